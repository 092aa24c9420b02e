"""NVFP4 models between dialects, read back by the packages that define them: compressed-tensors,
gguf, transformers; and tokenizers between folders and GGUF files."""

import json
import subprocess

import gguf
import numpy as np
import pytest
import tokenizer_kinds as kinds
import torch
import transformers
from compressed_tensors.compressors.nvfp4 import NVFP4PackedCompressor
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationConfig
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


@pytest.fixture(scope="session")
def convert(build_dir):
    """convert(source, output, dialect)."""
    binary = build_dir / "bin" / "tensor_probe"
    if not binary.exists():
        pytest.skip(f"{binary}: not built")

    def run(source, output, dialect):
        command = [str(binary), "convert", str(source), str(output), dialect]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stderr
        return output

    return run


def quantised(rows, k, seed):
    """Codes, block scales (bytes), multiplier and values of a random matrix of ordinary size."""
    random = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 256, (rows, k // 2), generator=random, dtype=torch.uint8)
    scales = torch.randint(0x40, 0x7F, (rows, k // 16), generator=random, dtype=torch.uint8)
    multiplier = torch.tensor(0.11 * (1 + seed % 5) / 2688, dtype=torch.float32)
    elements = torch.stack([E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]], -1)
    blocks = scales.view(torch.float8_e4m3fn).float().repeat_interleave(16, dim=1)
    values = elements.reshape(rows, k) * blocks * multiplier
    return codes, scales.view(torch.float8_e4m3fn), multiplier, values


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """(ModelOpt folder, the same model in fp32, {module: what quantised() gave}). One layer stays
    as it is."""
    config = transformers.LlamaConfig(
        vocab_size=96,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        tie_word_embeddings=False,
    )
    torch.manual_seed(5)
    plain = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    plain = plain.bfloat16().float().eval()  # what is not quantised is stored in bf16
    matrices, state = {}, {}
    for name, weight in plain.state_dict().items():
        if "layers.0" not in name or "_proj" not in name:
            state[name] = weight.bfloat16().contiguous()
            continue
        module = name.removesuffix(".weight")
        matrices[module] = quantised(*weight.shape, seed=len(matrices))
        codes, scales, multiplier, values = matrices[module]
        weight.copy_(values)
        state[name] = codes
        state[f"{module}.weight_scale"] = scales
        state[f"{module}.weight_scale_2"] = multiplier
    folder = tmp_path_factory.mktemp("nvfp4") / "modelopt"
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    described = config.to_dict()
    described["quantization_config"] = {
        "quant_method": "modelopt",
        "quant_algo": "W4A16_NVFP4",
        "group_size": 16,
    }
    (folder / "config.json").write_text(json.dumps(described))
    return folder, plain, matrices


def test_round_trip_is_bit_equal(convert, model, tmp_path):
    at, _, matrices = model
    first = load_file(at / "model.safetensors")
    for step, dialect in enumerate(["compressed-tensors", "gguf", "fouroversix", "modelopt"]):
        at = convert(at, tmp_path / f"{step}", dialect)
    last = load_file(at / "model.safetensors")
    assert set(last) == set(first)
    for name, before in first.items():
        after = last[name]
        if name.endswith("weight_scale_2"):  # two changes of direction
            torch.testing.assert_close(after, before, rtol=2**-22, atol=0)
        elif after.dtype == before.dtype:
            bits = torch.uint8
            assert torch.equal(after.contiguous().view(bits), before.contiguous().view(bits)), name
        else:  # norms are fp32 in GGUF
            assert before.dim() == 1
            assert torch.equal(after, before.float())
    assert matrices


def test_compressed_tensors_reads_the_same_values(convert, model, tmp_path):
    folder, _, matrices = model
    out = convert(folder, tmp_path / "out", "compressed-tensors")
    config = QuantizationConfig.model_validate(
        json.loads((out / "config.json").read_text())["quantization_config"]
    )
    assert config.format == "nvfp4-pack-quantized"
    assert set(config.ignore) == {"lm_head"} | {
        module.replace("layers.0", "layers.1") for module in matrices
    }
    (scheme,) = config.config_groups.values()
    assert scheme.targets == ["Linear"]
    assert NVFP4PackedCompressor.can_compress(torch.nn.Linear, scheme)
    state = load_file(out / "model.safetensors")
    for module, (codes, scales, multiplier, values) in matrices.items():
        parts = {
            part: state[f"{module}.{part}"]
            for part in ("weight_packed", "weight_scale", "weight_global_scale")
        }
        rows, k = values.shape
        unpacked = unpack_fp4_from_uint8(parts["weight_packed"], rows, k, dtype=torch.float32)
        elements = torch.stack([E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]], -1)
        assert torch.equal(unpacked, elements.reshape(rows, k))
        assert torch.equal(parts["weight_scale"].float(), scales.float())
        assert parts["weight_global_scale"].shape == (1,)
        torch.testing.assert_close(
            1 / parts["weight_global_scale"][0], multiplier, rtol=2**-23, atol=0
        )
        read = NVFP4PackedCompressor.decompress(parts, scheme)["weight"]
        torch.testing.assert_close(read.float(), values, rtol=2**-6, atol=1e-9)  # it reads to bf16


def test_gguf_reads_the_same_values(convert, model, tmp_path):
    folder, plain, matrices = model
    out = convert(folder, tmp_path / "out.gguf", "gguf")
    reader = gguf.GGUFReader(out)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    assert reader.get_field("general.file_type").contents() == 39
    names = {"q_proj": "attn_q", "k_proj": "attn_k", "v_proj": "attn_v", "o_proj": "attn_output"}
    names |= {"gate_proj": "ffn_gate", "up_proj": "ffn_up", "down_proj": "ffn_down"}
    for module, (_, _, multiplier, values) in matrices.items():
        name = "blk.0." + names[module.rsplit(".", 1)[1]]
        tensor = tensors[name + ".weight"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.NVFP4
        read = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        scale = tensors[name + ".scale"].data
        assert scale.dtype == np.float32 and scale.shape == (1,)
        assert abs(float(scale[0]) / float(multiplier) - 1) < 2**-22
        heads = {"q_proj": 4, "k_proj": 2}.get(module.rsplit(".", 1)[1])
        if heads:  # the rotary halves of each head stand interleaved
            half = values.shape[0] // heads // 2
            values = values.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(values.shape)
        np.testing.assert_array_equal(read * scale, values.numpy())
    down = tensors["blk.1.ffn_down.weight"]
    assert down.tensor_type == gguf.GGMLQuantizationType.BF16
    weight = plain.state_dict()["model.layers.1.mlp.down_proj.weight"]
    read = gguf.quants.dequantize(down.data, down.tensor_type)
    np.testing.assert_array_equal(read, weight.numpy())


@pytest.mark.parametrize("dialect", ["modelopt", "compressed-tensors", "fouroversix", "gguf"])
def test_the_engine_computes_with_the_same_weights(convert, longspur, model, tmp_path, dialect):
    folder, plain, _ = model
    out = convert(folder, tmp_path / "out", dialect)
    if dialect == "gguf":
        out = out.rename(tmp_path / "out.gguf")
    tokens, output = tmp_path / "tokens.json", tmp_path / "logits.safetensors"
    ids = [[3, 1, 41, 59, 26, 53, 58, 9, 79, 3]]
    tokens.write_text(json.dumps(ids))
    command = [longspur, "logits", "-m", out, "--tokens", tokens, "--output", output]
    done = subprocess.run(
        [*map(str, command), "--compute", "fp32"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    found = load_file(output)["logits_0"]
    with torch.no_grad():
        expected = plain(torch.tensor(ids), use_cache=False).logits[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_inspect_counts_matrices_not_parts(convert, longspur_json, model, tmp_path):
    folder, plain, matrices = model
    for dialect in ("modelopt", "compressed-tensors", "fouroversix"):
        out = convert(folder, tmp_path / dialect, dialect)
        types = {t["dtype"]: t for t in longspur_json("inspect", "-m", out)["tensor_types"]}
        assert types["NVFP4"]["count"] == len(matrices)
        weights = sum(values.numel() for *_, values in matrices.values())
        assert types["NVFP4"]["elements"] == weights
        assert "U8" not in types and "F8_E4M3" not in types


def test_transformers_loads_compressed_tensors(convert, model, tmp_path):
    folder, plain, _ = model
    out = convert(folder, tmp_path / "out", "compressed-tensors")
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        out, dtype=torch.bfloat16, attn_implementation="eager"
    ).eval()
    ids = torch.tensor([[3, 1, 41, 59, 26, 53, 58, 9, 79, 3]])
    with torch.no_grad():
        found = loaded(ids, use_cache=False).logits
        expected = plain(ids, use_cache=False).logits
    # all of it in bf16 there
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()


# --- tokenizers ---------------------------------------------------------------------------------

TOKENIZERS = {
    "gpt-2": lambda: kinds.byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "smollm": lambda: kinds.byte_level(kinds.digits_then_bytes()),
    "llama-bpe": lambda: kinds.byte_level(
        kinds.split_then_bytes(kinds.LLAMA3_PATTERN), ignore_merges=True
    ),
    "qwen2": lambda: kinds.byte_level(
        kinds.split_then_bytes(kinds.QWEN2_PATTERN), normalizers.NFC()
    ),
}


@pytest.mark.parametrize("pre", TOKENIZERS)
def test_tokenizers_survive_gguf(convert, tmp_path, pre):
    data = json.loads(TOKENIZERS[pre]().to_str())
    for token in data["added_tokens"]:  # a GGUF file cannot say these
        token |= dict(lstrip=False, rstrip=False, single_word=False, normalized=False)
    tokenizer = Tokenizer.from_str(json.dumps(data))
    source = tmp_path / "source"
    config = transformers.LlamaConfig(
        vocab_size=tokenizer.get_vocab_size() + 3,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(source)
    tokenizer.save(str(source / "tokenizer.json"))
    (source / "chat_template.jinja").write_text("{{ messages[0].content }}")
    middle = convert(source, tmp_path / "middle.gguf", "gguf")
    assert gguf.GGUFReader(middle).get_field("tokenizer.ggml.pre").contents() == pre
    back = convert(middle, tmp_path / "back", "modelopt")
    read = Tokenizer.from_file(str(back / "tokenizer.json"))
    loaded = transformers.AutoTokenizer.from_pretrained(back)
    assert loaded.chat_template == "{{ messages[0].content }}"
    for text in [*kinds.make_texts(200, seed=1), " ".join(kinds.CONTROL)]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids
        assert read.encode(text, add_special_tokens=False).ids == ids, text
        assert loaded(text, add_special_tokens=False).input_ids == ids, text


def test_the_default_model_becomes_a_folder(convert, smollm2, longspur_json, tmp_path):
    out = convert(smollm2, tmp_path / "out", "modelopt")
    config = transformers.AutoConfig.from_pretrained(out)
    assert (config.model_type, config.num_hidden_layers, config.rms_norm_eps) == ("llama", 30, 1e-5)
    assert config.tie_word_embeddings and config.eos_token_id == 2
    loaded = transformers.AutoTokenizer.from_pretrained(out)
    text = kinds.ENGLISH[:3000] + kinds.FOREIGN + "<|im_start|>user\n12345<|im_end|>"
    ids = longspur_json("tokenize", "-m", smollm2, stdin=text.encode())["ids"]
    assert loaded(text, add_special_tokens=False).input_ids == ids
    assert longspur_json("tokenize", "-m", out, stdin=text.encode())["ids"] == ids
