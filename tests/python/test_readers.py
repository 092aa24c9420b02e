"""The file readers against those of the safetensors, gguf and transformers packages: every tensor's
type, shape and values, every configuration that transformers can write."""

import json
import subprocess

import gguf
import numpy as np
import pytest
import torch
import transformers
from gguf import GGMLQuantizationType as Q
from safetensors import safe_open
from safetensors.torch import load_file, save_file


@pytest.fixture(scope="session")
def probe(build_dir):
    """probe(*arguments) -> (exit code, stdout, stderr) of tests/tensor_probe.cpp."""
    binary = build_dir / "bin" / "tensor_probe"
    if not binary.exists():
        pytest.skip(f"{binary}: not built")

    def run(*arguments):
        command = [str(binary), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        return done.returncode, done.stdout, done.stderr

    return run


@pytest.fixture
def read(probe, tmp_path):
    """read(path) -> ({name: (dtype, shape)}, {name: fp32 values})."""

    def run(path):
        output = tmp_path / "values.safetensors"
        code, listed, errors = probe("tensors", path, output)
        assert code == 0, errors
        infos = {t["name"]: (t["dtype"], tuple(t["shape"])) for t in json.loads(listed)}
        return infos, load_file(output)

    return run


def config_of(probe, path):
    code, text, errors = probe("config", path)
    assert code == 0, errors
    return json.loads(text)


# --- safetensors ------------------------------------------------------------------------------

SAFETENSORS_TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "F8_E8M0": torch.float8_e8m0fnu,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def random_bits(dtype, shape, seed):
    """A tensor of every kind of bit pattern (NaNs, infinities and subnormals among them)."""
    generator = torch.Generator().manual_seed(seed)
    size = torch.empty(0, dtype=dtype).element_size()
    if dtype == torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    raw = torch.randint(0, 256, (*shape, size), dtype=torch.uint8, generator=generator)
    return raw.view(dtype).reshape(shape)


def test_safetensors_types(read, tmp_path):
    tensors = {
        name: random_bits(dtype, (7, 3, 11), seed)
        for seed, (name, dtype) in enumerate(SAFETENSORS_TYPES.items())
    }
    for name in ("F16", "BF16", "F8_E4M3", "F8_E5M2", "F8_E4M3FNUZ", "F8_E5M2FNUZ", "F8_E8M0"):
        size = tensors[name].element_size()
        every = np.arange(256**size, dtype=np.uint16 if size == 2 else np.uint8)
        tensors[f"every {name}"] = torch.from_numpy(every).view(SAFETENSORS_TYPES[name])
    path = tmp_path / "all.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    infos, values = read(path)
    assert infos.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert infos[name] == (name.removeprefix("every "), tuple(tensor.shape))
        expected = tensor.to(torch.float64).to(torch.float32)
        assert torch.equal(values[name].isnan(), expected.isnan()), name
        assert torch.equal(values[name].nan_to_num(), expected.nan_to_num()), name


def test_safetensors_shapes(read, tmp_path):
    shapes = {"scalar": (), "empty": (0,), "middle": (3, 0, 2), "deep": (1, 2, 1, 3, 1, 2)}
    tensors = {name: torch.randn(shape) for name, shape in shapes.items()}
    path = tmp_path / "shapes.safetensors"
    save_file(tensors, path)
    infos, values = read(path)
    for name, tensor in tensors.items():
        assert infos[name] == ("F32", tuple(tensor.shape))
        assert torch.equal(values[name], tensor)


def test_safetensors_names(read, tmp_path):
    tensors = {name: torch.ones(1) for name in ("a b", "ünï", "\"'\\", "日本", "😀", "a/b")}
    path = tmp_path / "names.safetensors"
    save_file(tensors, path)
    assert read(path)[0].keys() == tensors.keys()


def test_writer_is_read_by_the_package(probe, tmp_path):
    tensors = {
        name: random_bits(dtype, (3, 5), seed)
        for seed, (name, dtype) in enumerate(SAFETENSORS_TYPES.items())
    }
    tensors["scalar"], tensors["empty"] = torch.tensor(1.5), torch.empty(2, 0)
    source, target = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(tensors, source)
    code, _, errors = probe("copy", source, target)
    assert code == 0, errors
    found = load_file(target)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        if tensor.numel():
            same = found[name].reshape(-1).view(torch.uint8) == tensor.reshape(-1).view(torch.uint8)
            assert bool(same.all()), name
    with safe_open(target, "pt") as file:
        assert file.metadata() == {"format": "pt", "source": "tensor_probe"}
    header = int.from_bytes(target.read_bytes()[:8], "little")
    assert header % 8 == 0  # data starts aligned


# --- GGUF ---------------------------------------------------------------------------------------

BLOCK_TYPES = [Q.Q8_0, Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.NVFP4]
PLAIN_TYPES = {
    Q.F64: np.float64,
    Q.F32: np.float32,
    Q.F16: np.float16,
    Q.I8: np.int8,
    Q.I16: np.int16,
    Q.I32: np.int32,
    Q.I64: np.int64,
}


def gguf_writer(path, architecture="llama"):
    return gguf.GGUFWriter(path, architecture)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def random_blocks(kind, rows, columns, rng):
    """Every bit pattern, but for fp16 scales that are NaN or infinite."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (rows * columns // block, size), dtype=np.uint8)
    scales = {
        Q.Q4_1: (0, 2),
        Q.Q5_1: (0, 2),
        Q.Q4_K: (0, 2),
        Q.Q5_K: (0, 2),
        Q.Q6_K: (208,),
        Q.NVFP4: (),
    }.get(kind, (0,))
    for at in scales:
        blocks[:, at + 1] &= 0xBF  # exponent below 16
    return blocks.reshape(rows, columns // block * size)


@pytest.mark.parametrize("kind", BLOCK_TYPES, ids=lambda kind: kind.name)
def test_gguf_block_types(kind, read, tmp_path):
    rng = np.random.default_rng(int(kind))
    path = tmp_path / "blocks.gguf"
    writer = gguf_writer(path)
    data = random_blocks(kind, 37, 512, rng)
    writer.add_tensor("t", data, raw_dtype=kind)
    finish(writer)
    infos, values = read(path)
    assert infos["t"] == (kind.name, (37, 512))
    expected = gguf.dequantize(data, kind).astype(np.float32)
    np.testing.assert_array_equal(values["t"].numpy(), expected)


def test_gguf_every_nvfp4_byte(read, tmp_path):
    """All 256 scale bytes with all 16 codes."""
    blocks = np.zeros((64, 36), dtype=np.uint8)
    blocks[:, :4] = np.arange(256, dtype=np.uint8).reshape(64, 4)
    blocks[:, 4:] = np.tile(np.array([0x10 * ((i + 1) % 16) + i for i in range(16)]), 2)
    path = tmp_path / "nvfp4.gguf"
    writer = gguf_writer(path)
    writer.add_tensor("t", blocks, raw_dtype=Q.NVFP4)
    finish(writer)
    expected = gguf.dequantize(blocks, Q.NVFP4)
    np.testing.assert_array_equal(read(path)[1]["t"].numpy(), expected)


def test_gguf_plain_types(read, tmp_path):
    rng = np.random.default_rng(1)
    path = tmp_path / "plain.gguf"
    writer = gguf_writer(path)
    arrays = {}
    for kind, dtype in PLAIN_TYPES.items():
        shape = tuple(rng.integers(1, 8, rng.integers(1, 5)))
        arrays[kind.name] = (rng.standard_normal(shape) * 100).astype(dtype)
        writer.add_tensor(kind.name, arrays[kind.name])
    bf16 = torch.randn(5, 3).bfloat16()
    raw = bf16.view(torch.uint8).numpy()
    writer.add_tensor("BF16", raw, raw_dtype=Q.BF16)
    arrays["BF16"] = bf16.float().numpy()
    finish(writer)
    infos, values = read(path)
    assert infos.keys() == arrays.keys()
    for name, array in arrays.items():
        assert infos[name] == (name, array.shape)
        np.testing.assert_array_equal(values[name].numpy(), array.astype(np.float32))


@pytest.mark.parametrize("alignment", [8, 32, 256, 4096])
def test_gguf_alignment(alignment, read, tmp_path):
    path = tmp_path / "aligned.gguf"
    writer = gguf_writer(path)
    writer.add_custom_alignment(alignment)
    arrays = {str(n): np.random.default_rng(n).standard_normal(n, np.float32) for n in (1, 3, 77)}
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    finish(writer)
    values = read(path)[1]
    for name, array in arrays.items():
        np.testing.assert_array_equal(values[name].numpy(), array)


def test_gguf_metadata(probe, tmp_path):
    path = tmp_path / "meta.gguf"
    writer = gguf_writer(path)
    expected = {
        "u8": (255, "uint8"),
        "i8": (-128, "int8"),
        "u16": (65535, "uint16"),
        "i16": (-32768, "int16"),
        "u32": (2**32 - 1, "uint32"),
        "i32": (-(2**31), "int32"),
        "u64": (2**64 - 1, "uint64"),
        "i64": (-(2**63), "int64"),
        "f32": (0.5, "float32"),
        "f64": (1e300, "float64"),
        "bool": (True, "bool"),
        "string": ("naïve \n text", "string"),
    }
    for key, (value, kind) in expected.items():
        getattr(writer, f"add_{kind}")(key, value)
    arrays = {
        "ints": [1, -2, 3],
        "floats": [0.5, -1.5],
        "strings": ["a", "", "ü"],
        "bools": [True, False],
    }
    for key, value in arrays.items():
        writer.add_array(key, value)
    finish(writer)
    code, text, errors = probe("metadata", path)
    assert code == 0, errors
    found = json.loads(text)
    for key, (value, _) in expected.items():
        assert found[key] == value, key
    for key, value in arrays.items():
        assert found[key] == value, key


def test_default_model(probe, read, smollm2):
    """Every tensor of the default model, block types included, equals what gguf makes of it."""
    reader = gguf.GGUFReader(smollm2)
    infos, values = read(smollm2)
    assert len(infos) == len(reader.tensors)
    for tensor in reader.tensors:
        expected = gguf.dequantize(tensor.data, tensor.tensor_type)
        assert infos[tensor.name][0] == tensor.tensor_type.name
        found = values[tensor.name].numpy()
        np.testing.assert_array_equal(found, expected.reshape(found.shape), err_msg=tensor.name)
    config = config_of(probe, smollm2)
    assert config["config"]["layers"] == 30 and config["config"]["head_dim"] == 64
    assert config["config"]["max_position"] == 8192 and config["config"]["tied"]
    assert config["defaults"]["eos_ids"]


# --- config.json --------------------------------------------------------------------------------

CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}
SHAPE = dict(
    vocab_size=1000,
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=6,
    num_attention_heads=32,
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}
# extra keys of config.json, as an author would write them
EXTRAS = [
    {},
    {"num_key_value_heads": 4},
    {"num_key_value_heads": None},
    {"head_dim": 64},
    {"tie_word_embeddings": True},
    {"attention_bias": True},
    {"mlp_bias": True},
    {"rms_norm_eps": 1e-5},
    {"max_position_embeddings": 4096},
    {"sliding_window": None},
    {"sliding_window": 128},
    {"use_sliding_window": True},
    {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2},
    {"use_sliding_window": True, "sliding_window": None},
    {"use_sliding_window": False, "sliding_window": 64},
    {
        "use_sliding_window": True,
        "sliding_window": 64,
        "layer_types": ["full_attention", "sliding_attention"] * 3,
    },
    {"rope_theta": 5e5},
    {"rope_scaling": None, "rope_theta": 1e6},
    {"rope_scaling": {"type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2}, "rope_theta": 5000},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    {"rope_scaling": {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 512}},
    {"rope_scaling": LLAMA3, "max_position_embeddings": 8192},
    {"rope_scaling": YARN, "max_position_embeddings": 2048},
    {"rope_scaling": {**YARN, "type": "yarn"}, "max_position_embeddings": 4096},
    {"rope_scaling": {"type": "yarn", "factor": 4.0}, "max_position_embeddings": 4096},
    {"rope_scaling": {**YARN, "attention_factor": 1.25, "truncate": False}},
    {
        "rope_scaling": {
            **YARN,
            "mscale": 0.7,
            "mscale_all_dim": 0.5,
            "beta_fast": 20,
            "beta_slow": 2,
        }
    },
    {"rope_scaling": {**YARN, "beta_fast": None, "beta_slow": 0}},
    {"rope_scaling": {**YARN, "factor": None}, "max_position_embeddings": 2048},
    {"rope_parameters": {"rope_type": "default", "rope_theta": 7e5}},
    {"rope_parameters": {**YARN, "rope_theta": 7e5}},
    {"rope_parameters": {"rope_theta": 7e5}, "rope_theta": 3.0},
    {"rope_parameters": {**LLAMA3, "rope_theta": 7e5}, "max_position_embeddings": 8192},
    {"rope_parameters": {"rope_theta": 7e5}, "rope_scaling": {"type": "linear", "factor": 3.0}},
    {"rope_scaling": {}, "rope_parameters": {"rope_theta": 7e5}},
    {
        "rope_scaling": YARN,
        "original_max_position_embeddings": 256,
        "max_position_embeddings": 2048,
    },
]


def expected_windows(config):
    window = getattr(config, "sliding_window", None) or 0
    layers = config.num_hidden_layers
    if config.model_type == "llama":
        return [0] * layers
    if config.model_type == "mistral":
        return [window] * layers
    return [window if kind == "sliding_attention" else 0 for kind in config.layer_types]


def check_rope(found, config):
    """The frequencies that transformers computes depend on these."""
    rope = config.rope_parameters
    assert found["rope_theta"] == rope["rope_theta"]
    assert found["rope"]["kind"] == rope["rope_type"]
    if rope["rope_type"] == "default":
        return
    trained = found["rope"]["original_max_position"] or found["max_position"]
    factor = (
        rope["factor"] or config.max_position_embeddings / rope["original_max_position_embeddings"]
    )
    assert found["rope"]["factor"] == factor
    if rope["rope_type"] in ("yarn", "llama3"):
        config.standardize_rope_params()
        assert trained == config.rope_parameters["original_max_position_embeddings"]
    if rope["rope_type"] == "dynamic":
        assert trained == config.max_position_embeddings
    if rope["rope_type"] == "yarn":
        for key, fallback in {"beta_fast": 32, "beta_slow": 1}.items():
            assert found["rope"][key] == (rope.get(key) or fallback)
        for key in ("attention_factor", "mscale", "mscale_all_dim"):
            assert found["rope"][key] == rope.get(key)
        assert found["rope"]["truncate"] == rope.get("truncate", True)


# transformers refuses a null here; we read it as for the other families
REFUSED = [("mistral", {"num_key_value_heads": None})]
CONFIGS = [
    (family, extra) for family in CLASSES for extra in EXTRAS if (family, extra) not in REFUSED
]


@pytest.mark.parametrize(("family", "extra"), CONFIGS, ids=lambda part: json.dumps(part)[:60])
def test_config_json(family, extra, probe, tmp_path):
    """What we read from a hand-written config.json is what transformers reads from it."""
    text = {"model_type": family, **SHAPE, **extra}
    (tmp_path / "config.json").write_text(json.dumps(text))
    config = CLASSES[family].from_pretrained(tmp_path)
    found = config_of(probe, tmp_path)["config"]
    assert found["architecture"] == family
    assert found["kv_heads"] == config.num_key_value_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    assert found["head_dim"] == found["rotary_dim"] == head_dim
    assert found["max_position"] == config.max_position_embeddings
    assert found["rms_eps"] == config.rms_norm_eps
    assert found["tied"] == config.tie_word_embeddings
    assert found["sliding_window"] == expected_windows(config)
    check_rope(found, config)


@pytest.mark.parametrize("family", CLASSES)
@pytest.mark.parametrize("extra", [{}, {"attention_bias": True}, {"mlp_bias": True}])
def test_biases(family, extra, probe, tmp_path):
    """The tensors that a model of transformers has decide which biases there are."""
    shape = {**SHAPE, "num_hidden_layers": 1, "num_key_value_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": family, **shape, **extra}))
    config = CLASSES[family].from_pretrained(tmp_path)
    with torch.device("meta"):
        names = set(transformers.AutoModelForCausalLM.from_config(config).state_dict())
    found = config_of(probe, tmp_path)["config"]
    layer = "model.layers.0."
    assert found["qkv_bias"] == (layer + "self_attn.q_proj.bias" in names)
    assert found["output_bias"] == (layer + "self_attn.o_proj.bias" in names)
    assert found["mlp_bias"] == (layer + "mlp.gate_proj.bias" in names)
    assert found["qk_norm"] == (layer + "self_attn.q_norm.weight" in names)


@pytest.mark.parametrize("family", CLASSES)
def test_saved_config(family, probe, tmp_path):
    """The form that transformers itself writes."""
    CLASSES[family](**SHAPE, num_key_value_heads=8).save_pretrained(tmp_path)
    found = config_of(probe, tmp_path)["config"]
    assert found["kv_heads"] == 8 and found["hidden"] == 256


@pytest.mark.parametrize(
    ("config", "generation", "expected"),
    [
        ({}, None, {"eos_ids": [2], "bos_id": 1}),
        ({"eos_token_id": None}, None, {"eos_ids": []}),
        ({"eos_token_id": 7}, None, {"eos_ids": [7]}),
        ({"eos_token_id": [7, 8]}, None, {"eos_ids": [7, 8]}),
        ({"eos_token_id": 7}, {"eos_token_id": [9, 3]}, {"eos_ids": [9, 3]}),
        ({"eos_token_id": 7}, {"temperature": 0.5}, {"eos_ids": [7], "temperature": 0.5}),
        ({"eos_token_id": 1000}, None, {"eos_ids": []}),
        ({"pad_token_id": -1}, None, {"pad_id": None}),
        (
            {},
            {"do_sample": True, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
            {"do_sample": True, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05},
        ),
        ({}, {"do_sample": None, "temperature": None}, {"do_sample": None, "temperature": None}),
    ],
)
def test_generation_defaults(config, generation, expected, probe, tmp_path):
    text = {"model_type": "llama", **SHAPE, **config}
    (tmp_path / "config.json").write_text(json.dumps(text))
    if generation is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(generation))
    found = config_of(probe, tmp_path)["defaults"]
    for key, value in expected.items():
        assert found[key] == value, key


def test_gguf_config(probe, tmp_path):
    path = tmp_path / "config.gguf"
    writer = gguf_writer(path, "qwen2")
    writer.add_context_length(2048)
    writer.add_embedding_length(128)
    writer.add_block_count(3)
    writer.add_feed_forward_length(256)
    writer.add_head_count(8)
    writer.add_head_count_kv([2, 2, 2])
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(1e6)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(4.0)
    writer.add_rope_scaling_orig_ctx_len(512)
    writer.add_vocab_size(99)
    writer.add_eos_token_id(5)
    finish(writer)
    found = config_of(probe, path)
    config = found["config"]
    assert (config["kv_heads"], config["head_dim"], config["vocab"]) == (2, 16, 99)
    assert config["qkv_bias"] and config["tied"] and config["rope"]["kind"] == "yarn"
    assert config["rope"]["original_max_position"] == 512
    assert found["defaults"]["eos_ids"] == [5]
