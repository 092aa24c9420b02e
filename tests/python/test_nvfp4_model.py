"""longspur.nvfp4: its layers and quantize_model, on plain modules and on a tiny model of Hugging
Face's; the documented examples."""

import copy
import doctest

import pytest
import torch
from torch import nn

pytestmark = pytest.mark.usefixtures("op_library")


@pytest.fixture
def nvfp4():
    from longspur import nvfp4

    return nvfp4


class Block(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width // 2)
        self.v_proj = nn.Linear(width, width // 2, bias=False)
        self.out = nn.Linear(width * 2, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x):
        joined = torch.cat([self.q_proj(x), self.k_proj(x), self.v_proj(x)], -1)
        return self.norm(x + self.out(joined))


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block(), Block()])
        self.lm_head = nn.Linear(64, 100)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


@pytest.fixture
def tiny():
    torch.manual_seed(0)
    return Tiny()


def test_documented_examples(nvfp4):
    result = doctest.testmod(nvfp4)
    assert result.attempted >= 20 and result.failed == 0


def test_layer(nvfp4):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    ours = nvfp4.Nvfp4Linear.from_linear(layer, rule="sweep")
    x = torch.randn(5, 64)
    packed = nvfp4.quantize(layer.weight.detach(), rule="sweep")
    assert torch.equal(ours.weight, nvfp4.dequantize(*packed))
    assert torch.equal(ours(x), nvfp4.linear(x, *packed, layer.bias))
    assert ours.bias is layer.bias
    assert set(ours.state_dict()) == {"codes", "block_scales", "tensor_scale", "bias"}
    assert [name for name, _ in ours.named_parameters()] == ["bias"]
    with pytest.raises(ValueError, match="in_features: found 20, expected a multiple of 16"):
        nvfp4.Nvfp4Linear(20, 4)


def test_conversion_keeps_the_bits(nvfp4):
    layer = nvfp4.Nvfp4Linear.from_linear(nn.Linear(64, 48))
    before = {name: t.clone() for name, t in layer.state_dict().items()}
    layer.to(torch.bfloat16)
    assert layer.bias.dtype == torch.bfloat16 and layer.weight.dtype == torch.bfloat16
    assert layer.block_scales.dtype == torch.float8_e4m3fn
    assert torch.equal(layer.tensor_scale, before["tensor_scale"])
    assert layer.tensor_scale.dtype == torch.float32
    assert layer(torch.zeros(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16
    layer.half().float()
    for name in ("codes", "block_scales"):
        now = layer.state_dict()[name]
        assert torch.equal(now.view(torch.uint8), before[name].view(torch.uint8))
    assert layer.to("meta").codes.device.type == "meta"


def test_model(nvfp4, tiny):
    original = copy.deepcopy(tiny)
    tiny.eval()
    x = torch.randn(3, 64)
    found = nvfp4.quantize_model(tiny, rule="full_sweep")
    assert found is tiny
    replaced = [m for m in tiny.modules() if isinstance(m, nvfp4.Nvfp4Linear)]
    assert len(replaced) == 8 and type(tiny.lm_head) is nn.Linear
    assert all(not m.training for m in replaced)
    # each layer's error is that of 4 bits, and so is the model's
    for ours, theirs in zip(tiny.layers, original.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "out"):
            w, back = getattr(theirs, name).weight, getattr(ours, name).weight
            assert 0.03 < (w - back).norm() / w.norm() < 0.12
    y, expected = tiny(x), original(x)
    assert 0.01 < (y - expected).norm() / expected.norm() < 0.2


def test_groups_share_a_scale(nvfp4, tiny):
    original = copy.deepcopy(tiny)
    nvfp4.quantize_model(tiny)
    for ours, theirs in zip(tiny.layers, original.layers, strict=True):
        scales = [getattr(ours, n).tensor_scale for n in ("q_proj", "k_proj", "v_proj")]
        assert scales[0] == scales[1] == scales[2] != ours.out.tensor_scale
        largest = max(getattr(theirs, n).weight.abs().max() for n in ("q_proj", "k_proj", "v_proj"))
        assert scales[0] == largest / 1536
    assert tiny.layers[0].q_proj.tensor_scale != tiny.layers[1].q_proj.tensor_scale
    alone = nvfp4.quantize_model(original, fused_groups=())
    assert alone.layers[0].q_proj.tensor_scale != alone.layers[0].k_proj.tensor_scale


def test_state_round_trip(nvfp4, tiny, tmp_path):
    other = Tiny()
    x = torch.randn(3, 64)
    nvfp4.quantize_model(tiny, "sweep")
    torch.save(tiny.state_dict(), tmp_path / "state.pt")
    nvfp4.quantize_model(other)  # another rule: what is loaded counts
    assert not torch.equal(other(x), tiny(x))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(x), tiny(x))
    with torch.device("meta"):
        empty = Tiny()
    nvfp4.quantize_model(empty)
    empty.load_state_dict(tiny.state_dict(), assign=True)
    assert torch.equal(empty(x), tiny(x))


def test_what_is_left_alone(nvfp4, tiny):
    nvfp4.quantize_model(tiny, modules_to_not_convert=["layers.0", "out", "head"])
    kinds = {name: type(m) for name, m in tiny.named_modules() if hasattr(m, "in_features")}
    assert kinds["layers.0.q_proj"] is nn.Linear and kinds["layers.1.out"] is nn.Linear
    assert kinds["layers.1.q_proj"] is nvfp4.Nvfp4Linear
    assert kinds["lm_head"] is nvfp4.Nvfp4Linear  # "head" is no whole part of the name
    attention = nn.MultiheadAttention(64, 4)
    nvfp4.quantize_model(attention)
    attention(*[torch.randn(5, 1, 64)] * 3)


def test_shared_and_bare_layers(nvfp4):
    shared = nn.Linear(64, 64)
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(shared, nn.ReLU()), "c": shared})
    nvfp4.quantize_model(model)
    assert model["a"] is model["b"][0] is model["c"]
    assert isinstance(model["a"], nvfp4.Nvfp4Linear)
    assert isinstance(nvfp4.quantize_model(nn.Linear(64, 32)), nvfp4.Nvfp4Linear)


def test_options_reach_the_layers(nvfp4, tiny):
    x = torch.randn(4, 64)
    weights = {"layers.0.q_proj": torch.rand(64)}
    plain = copy.deepcopy(tiny)
    nvfp4.quantize_model(plain, "sweep")
    weighted = nvfp4.quantize_model(copy.deepcopy(tiny), "sweep", importance=weights)
    ours, theirs = plain.layers[0], weighted.layers[0]
    assert not torch.equal(ours.q_proj.weight, theirs.q_proj.weight)
    assert torch.equal(ours.out.weight, theirs.out.weight)
    w4a4 = nvfp4.quantize_model(copy.deepcopy(tiny), "sweep", activations="sweep")
    layer = w4a4.layers[0].out
    rounded = nvfp4.fake_quantize(torch.cat([x, x], -1), rule="sweep", per_row=True)
    expected = torch.nn.functional.linear(rounded, layer.weight, layer.bias)
    assert torch.allclose(layer(torch.cat([x, x], -1)), expected, atol=1e-5)
    tiles = nvfp4.quantize_model(copy.deepcopy(tiny), scale_2d=True).layers[1].out
    scales = tiles.block_scales.view(torch.uint8).view(4, 16, 8)
    assert (scales == scales[:, :1]).all()


def test_errors_change_nothing(nvfp4, tiny):
    tiny.layers[1].extra = nn.Linear(40, 8)
    for call, message in (
        (dict(), "layers.1.extra: found in_features 40, expected a multiple of 16"),
        (dict(rule="4/6"), "rule: found '4/6', expected one of static_6, static_4, four_over_six"),
        (dict(metric="l2"), "metric: found 'l2', expected one of mse, mae, abs_max"),
        (dict(activations="int8"), "activations: found 'int8', expected one of static_6"),
    ):
        with pytest.raises(ValueError, match=message):
            nvfp4.quantize_model(tiny, **call)
    assert not any(isinstance(m, nvfp4.Nvfp4Linear) for m in tiny.modules())
    nvfp4.quantize_model(tiny, modules_to_not_convert=["extra"])
    with pytest.raises(ValueError, match="lm_head: found out_features 100, expected"):
        nvfp4.quantize_model(Tiny(), modules_to_not_convert=(), scale_2d=True)


def test_training(nvfp4, tiny):
    names = [name for name, _ in tiny.named_parameters()]
    nvfp4.quantize_model(tiny, "sweep", activations="sweep", qat=True)
    assert [name for name, _ in tiny.named_parameters()] == names
    layer = tiny.layers[0].q_proj
    assert isinstance(layer, nvfp4.Nvfp4QatLinear)
    assert layer.seed != tiny.layers[0].k_proj.seed
    x, target = torch.randn(32, 64), torch.randn(32, 100)
    optimizer = torch.optim.Adam(tiny.parameters(), 1e-2)
    losses = []
    for _ in range(10):
        optimizer.zero_grad()
        loss = (tiny(x) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    assert layer.step == 10
    tiny.eval()
    first = tiny(x)
    assert torch.equal(first, tiny(x)) and layer.step == 10
    # the quantised model for inference computes what the trained one did in its forward
    final = nvfp4.quantize_model(copy_as_plain(tiny), "sweep", activations="sweep", fused_groups=())
    assert torch.allclose(final(x), first, atol=1e-4)


def copy_as_plain(model):
    plain = Tiny().eval()
    plain.load_state_dict(model.state_dict())
    return plain


def test_weight_only_training_is_straight_through(nvfp4):
    torch.manual_seed(0)
    layer = nn.Linear(64, 48)
    ours = nvfp4.quantize_model(copy.deepcopy(layer), qat=True)
    x = torch.randn(5, 64)
    grad = torch.randn(5, 48)
    dw = torch.autograd.grad(ours(x), ours.weight, grad)[0]
    assert torch.allclose(dw, grad.t() @ x, atol=1e-5)


def test_compiled_layer(nvfp4):
    layer = nvfp4.Nvfp4Linear.from_linear(nn.Linear(64, 48))
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(5, 64)
    assert torch.equal(compiled(x), layer(x))


def test_hugging_face_model(nvfp4, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=96, hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config).eval().to(torch.bfloat16)
    original = copy.deepcopy(model)
    nvfp4.quantize_model(model, activations="four_over_six")
    assert model.dtype == torch.bfloat16
    assert sum(isinstance(m, nvfp4.Nvfp4Linear) for m in model.modules()) == 14
    mlp = model.model.layers[0].mlp
    assert mlp.gate_proj.tensor_scale == mlp.up_proj.tensor_scale
    assert model.lm_head.weight is model.model.embed_tokens.weight
    ids = torch.arange(1, 17)[None]
    with torch.no_grad():
        logits, expected = model(ids).logits, original(ids).logits
    assert logits.dtype == torch.bfloat16
    assert (logits - expected).float().norm() / expected.float().norm() < 0.5
    out = model.generate(ids, max_new_tokens=4, do_sample=False)
    assert out.shape == (1, 20)
    again = nvfp4.quantize_model(transformers.LlamaForCausalLM(config).eval().to(torch.bfloat16),
                                 activations="four_over_six")  # fmt: skip
    again.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert torch.equal(again(ids).logits, logits)
