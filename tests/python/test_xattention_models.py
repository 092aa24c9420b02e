"""longspur.xattention for whole models: a tiny Llama of transformers against torch's own attention;
what is refused; thresholds; warm-up; a video-like stand-in (3-D RoPE, no causal mask).
"""

import doctest
import json
import math

import pytest
import torch

pytestmark = pytest.mark.usefixtures("op_library")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def tiny_llama(transformers, **options):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=2048,
        **options,
    )
    return transformers.LlamaForCausalLM(config).eval()


def prompt(batch, length):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, 97, (batch, length), generator=generator)


def logits(model, name, *arguments, **options):
    model.set_attn_implementation(name)
    with torch.no_grad():
        return model(*arguments, **options).logits


def test_threshold_1_is_torchs_attention(transformers):
    import longspur

    model, ids = tiny_llama(transformers), prompt(2, 500)
    attend = longspur.xattention.register(threshold=1.0, min_keys=256, estimator="sampled:16")
    expected = logits(model, "sdpa", ids)
    found = logits(model, "longspur_xattention", ids)
    assert torch.allclose(found, expected, atol=1e-4)
    assert sorted(attend.density) == [0, 1]  # both layers went the sparse way
    assert all((d == 1).all() and d.shape == (2, 4) for d in attend.density.values())


def test_a_lower_threshold_reads_less(transformers):
    import longspur

    model, ids = tiny_llama(transformers), prompt(1, 1000)
    attend = longspur.xattention.register(threshold=0.3, min_keys=256)
    expected = logits(model, "sdpa", ids)
    found = logits(model, "longspur_xattention", ids)
    assert all((d < 0.8).all() for d in attend.density.values())
    assert 0 < (found - expected).abs().max() < 1.0


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("min_keys", [128, 4096], ids=["sparse", "dense"])
def test_padded_batches(transformers, side, min_keys):
    import longspur

    model, ids = tiny_llama(transformers), prompt(3, 300)
    mask = torch.ones_like(ids)
    for row, gap in enumerate((0, 37, 170)):
        if side == "left":
            mask[row, :gap] = 0
        else:
            mask[row, 300 - gap :] = 0
    longspur.xattention.register(threshold=1.0, min_keys=min_keys)
    expected = logits(model, "sdpa", ids, attention_mask=mask)
    found = logits(model, "longspur_xattention", ids, attention_mask=mask)
    seen = mask.bool()
    assert torch.allclose(found[seen], expected[seen], atol=1e-4)
    assert found.isfinite().all()


@pytest.mark.parametrize("padded", [False, True])
def test_generation(transformers, padded):
    """Prefill is sparse, decoding dense; the tokens are those of torch's attention."""
    import longspur

    model, ids = tiny_llama(transformers), prompt(2, 300)
    mask = torch.ones_like(ids)
    if padded:
        mask[0, :99] = 0
    attend = longspur.xattention.register(threshold=1.0, min_keys=256)
    texts = []
    for name in ("sdpa", "longspur_xattention"):
        model.set_attn_implementation(name)
        texts.append(model.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False))
    assert torch.equal(*texts)
    assert attend.steps == {0: 1, 1: 1}  # one prefill; the decoding steps do not count


def test_chunked_prefill_continues_the_cache(transformers):
    import longspur

    model, ids = tiny_llama(transformers), prompt(1, 700)
    longspur.xattention.register(threshold=0.6, min_keys=128, estimator="antidiagonal:16")
    whole = logits(model, "longspur_xattention", ids)
    cache = transformers.DynamicCache()
    parts = [
        logits(model, "longspur_xattention", part, past_key_values=cache)
        for part in ids.split(256, 1)
    ]
    assert torch.allclose(torch.cat(parts, 1), whole, atol=1e-4)


def test_gradients(transformers):
    import longspur

    model, ids = tiny_llama(transformers), prompt(1, 300)
    longspur.xattention.register(threshold=1.0, min_keys=128)
    gradients = []
    for name in ("sdpa", "longspur_xattention"):
        model.set_attn_implementation(name)
        model.zero_grad()
        model(ids, labels=ids).loss.backward()
        gradients.append(model.model.layers[0].self_attn.k_proj.weight.grad.clone())
    assert torch.allclose(*gradients, atol=1e-5) and gradients[0].abs().max() > 1e-4


def test_packed_sequences(transformers):
    import longspur

    longspur.xattention.register(threshold=1.0, min_keys=128)
    model, ids = tiny_llama(transformers), prompt(1, 500)
    cu = torch.tensor([0, 180, 500], dtype=torch.int32)
    positions = torch.cat([torch.arange(180), torch.arange(320)])[None]
    found = logits(
        model,
        "longspur_xattention",
        ids,
        position_ids=positions,
        cu_seq_lens_q=cu,
        cu_seq_lens_k=cu,
        max_length_q=320,
        max_length_k=320,
        use_cache=True,  # with a cache transformers does not look for packing itself
    )
    apart = [logits(model, "sdpa", part) for part in ids.split([180, 320], 1)]
    assert torch.allclose(found, torch.cat(apart, 1), atol=1e-4)


def test_refusals(transformers):
    import longspur

    attend = longspur.xattention.register(threshold=0.9)
    module = torch.nn.Module()
    q, k = torch.zeros(1, 4, 6, 8), torch.zeros(1, 2, 6, 8)
    call = longspur.xattention.attend_as_transformers
    for options, message in (
        (dict(sliding_window=4), "sliding_window: found 4, expected none"),
        (dict(softcap=30.0), r"softcap: found 30\.0, expected none"),
        (dict(s_aux=torch.zeros(4)), r"s_aux: found \[4\], expected none"),
        (dict(dropout=0.1), r"dropout: found 0\.1, expected none"),
    ):
        with pytest.raises(ValueError, match=f"longspur_xattention: {message}") as caught:
            call(attend, module, q, k, k, None, options)
        assert "\n" not in str(caught.value)
    for mask in (torch.zeros(1, 1, 6, 6), torch.ones(1, 6), torch.ones(1, 5, dtype=torch.bool)):
        with pytest.raises(ValueError, match="longspur_xattention: mask: found"):
            call(attend, module, q, k, k, mask, {})
    config = transformers.MistralConfig(
        vocab_size=97,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=64,
    )
    windowed = transformers.MistralForCausalLM(config)
    with pytest.raises(ValueError, match="longspur_xattention: mask: found"):
        logits(windowed, "longspur_xattention", prompt(1, 200))
    model = tiny_llama(transformers)
    positions = torch.cat([torch.arange(50), torch.arange(50)])[None]
    with pytest.raises(ValueError, match="packed positions without cu_seq_lens_q"):
        logits(
            model, "longspur_xattention", prompt(1, 100), position_ids=positions, use_cache=False
        )


def write(path, **changes):
    table = dict(
        model="tiny", estimator="sampled:16", block_size=64, thresholds=[[0.5] * 4, [1.0] * 4]
    )
    path.write_text(json.dumps(table | changes))
    return path


def test_thresholds_of_a_file(transformers, tmp_path):
    import longspur

    attend = longspur.xattention.XAttention.from_file(write(tmp_path / "t.json"), min_keys=256)
    assert (attend.estimator, attend.block_size, attend.rule) == ("sampled:16", 64, "share")
    longspur.xattention.register(attend)
    model, ids = tiny_llama(transformers), prompt(1, 600)
    logits(model, "longspur_xattention", ids)
    assert (attend.density[0] < 1).all() and (attend.density[1] == 1).all()
    for thresholds, message in (
        ([[0.5] * 3] * 2, "threshold: found 3 heads, expected 4"),
        ([[0.5] * 4], "threshold: found 1 layers, expected one for layer 1"),
    ):
        attend.threshold = thresholds
        with pytest.raises(ValueError, match=message):
            logits(model, "longspur_xattention", ids)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(thresholds=[]), "thresholds: found"),
        (dict(thresholds=[[0.5], [0.5, 0.5]]), r"thresholds\[1\]: found '2 heads'"),
        (dict(thresholds=[[1.5]]), r"thresholds\[0\]\[0\]: found 1\.5"),
        (dict(thresholds=[[math.nan]]), r"thresholds\[0\]\[0\]: found nan"),
        (dict(thresholds=[[True]]), r"thresholds\[0\]\[0\]: found True"),
        (dict(estimator=3), "estimator: found 3"),
        (dict(block_size="64"), "block_size: found '64'"),
    ],
)
def test_files_that_are_no_thresholds(tmp_path, changes, message):
    import longspur

    with pytest.raises(ValueError, match=message) as caught:
        longspur.xattention.load_thresholds(write(tmp_path / "t.json", **changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [1.5, math.nan, -0.1, [0.5, 2.0], [[[0.5]]]])
def test_impossible_thresholds(value):
    import longspur

    with pytest.raises(ValueError, match="threshold: found"):
        longspur.xattention.XAttention(threshold=value)


def rope_3d(x, sizes, bands):
    """Rotates [L, H, D] by positions in time, height and width, each on its band of channels."""
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) for n in sizes), indexing="ij"), -1)
    positions = grid.reshape(-1, 3).double()
    parts = []
    for part, axis in zip(x.split(bands, -1), range(3), strict=True):
        half = part.shape[-1] // 2
        frequency = 100.0 ** (-torch.arange(half).double() / half)
        angle = (positions[:, axis, None] * frequency)[:, None]
        a, b = part.chunk(2, -1)
        parts += [a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()]
    return torch.cat(parts, -1).float()


def video(sizes, heads=4, dim=64):
    """Queries, keys and values of latents in (t, h, w) order: near places look alike, and each
    head attends to what looks alike."""
    generator = torch.Generator().manual_seed(0)

    def field(channels):
        coarse = torch.randn(1, channels, *(max(2, n // 4) for n in sizes), generator=generator)
        fine = torch.nn.functional.interpolate(coarse, sizes, mode="trilinear", align_corners=True)
        return fine[0].flatten(1).T.reshape(-1, heads, channels // heads)  # [L, H, D]

    content = field(heads * dim)
    noise = torch.randn(content.shape, generator=generator)
    q, k = (2.5 * content + 0.3 * part for part in (noise, noise.flip(0)))
    bands = [dim // 4, 3 * dim // 8, 3 * dim // 8]
    q, k = (rope_3d(x.double(), sizes, bands) for x in (q, k))
    return [x.transpose(0, 1)[None] for x in (q, k, field(heads * dim).float())]


def psnr(found, expected):
    error = (found - expected).square().mean()
    return (20 * torch.log10(expected.max() - expected.min()) - 10 * torch.log10(error)).item()


# Measured: 47 dB at 43 % of the blocks, 57 at 56 %, 46 at 34 %. (The paper has 21.5 and 23.5 dB for
# these thresholds, of pixels after 50 steps of a model.)
@pytest.mark.parametrize(
    ("estimator", "threshold", "least"),
    [("antidiagonal:8", 0.9, 40.0), ("antidiagonal:8", 0.95, 50.0), ("default", 0.95, 40.0)],
)
def test_video(estimator, threshold, least, record_property):
    import longspur

    q, k, v = video((7, 15, 19))  # 1,995 places: no multiple of a block
    attend = longspur.xattention.XAttention(threshold, estimator, min_keys=256, sink_blocks=0)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    quality = psnr(attend(q, k, v, causal=False), dense)
    density = attend.density[0].mean().item()
    print(f"{estimator} {threshold}: {quality:.1f} dB at {density:.0%} of the blocks")
    record_property("psnr", quality)
    assert quality >= least and density < 0.7


def test_warmup_steps_are_dense():
    import longspur

    q, k, v = video((4, 10, 13))
    attend = longspur.xattention.XAttention(0.3, min_keys=256, warmup_steps=2)
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
    for _ in range(2):  # the second time after reset
        steps = [attend(q, k, v, causal=False, layer=layer) for layer in (0, 0, 1, 0, 1, 1)]
        exact = [torch.allclose(step, dense, atol=1e-5) for step in steps]
        assert exact == [True, True, True, False, True, False]
        attend.reset()
    short = q[:, :, :100], k, v
    attend(*short, causal=False)
    assert attend.steps == {}  # few queries: dense, and no step


def test_dense_layers():
    import longspur

    q, k, v = video((4, 10, 13))
    attend = longspur.xattention.XAttention(0.3, min_keys=256, dense_layers=1)
    first, second = (attend(q, k, v, causal=False, layer=layer) for layer in (0, 1))
    assert not torch.allclose(first, second, atol=1e-4) and sorted(attend.density) == [1]


def test_documented_examples():
    import longspur

    result = doctest.testmod(longspur.xattention)
    assert result.attempted >= 4 and result.failed == 0
