"""Writes the corpora of the file readers' fuzz targets: small files, good and bad, that reach every
part of the readers. Run it again after changing it:

    python tests/fuzz/make_corpus.py

Findings that were fixed are added by hand as files named finding-*; they stay.
"""

import json
import struct
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"


def write(target, files):
    folder = CORPUS / target
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        if not old.name.startswith("finding-"):
            old.unlink()
    for name, data in files.items():
        (folder / name).write_bytes(data)


# --- safetensors ------------------------------------------------------------------------------


def safetensors(header, data=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(dtype, shape, begin, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def safetensors_files():
    one = {"a": entry("F32", [2], 0, 8)}
    sizes = {
        "F64": 8,
        "F32": 4,
        "F16": 2,
        "BF16": 2,
        "F8_E4M3": 1,
        "F8_E5M2": 1,
        "C64": 8,
        "F8_E8M0": 1,
        "F8_E4M3FNUZ": 1,
        "F8_E5M2FNUZ": 1,
        "F6_E2M3": 0.75,
        "F6_E3M2": 0.75,
        "F4": 0.5,
        "I64": 8,
        "I32": 4,
        "I16": 2,
        "I8": 1,
        "U64": 8,
        "U32": 4,
        "U16": 2,
        "U8": 1,
        "BOOL": 1,
    }
    every, at = {"__metadata__": {"format": "pt"}}, 0
    for dtype, size in sizes.items():
        every[dtype.lower()] = entry(dtype, [2, 4], at, at + int(8 * size))
        at += int(8 * size)
    return {
        "empty": safetensors({}),
        "one": safetensors(one, b"12345678"),
        "every-type": safetensors(every, bytes(i % 256 for i in range(at))),
        "scalar-and-none": safetensors(
            {"s": entry("U8", [], 0, 1), "n": entry("F32", [3, 0], 1, 1)}, b"x"
        ),
        "padded": safetensors(json.dumps(one).encode() + b"   ", b"12345678"),
        "hole": safetensors({"a": entry("U8", [1], 1, 2)}, b"12"),
        "overlap": safetensors({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, b"123"),
        "tail": safetensors(one, b"123456789"),
        "overflow": safetensors({"a": entry("F64", [2**32, 2**32], 0, 0)}),
        "twice": safetensors(
            b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},'
            b'"a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}}',
            b"12",
        ),
        "long-header": safetensors(b"{}", length=2**40),
        "escapes": safetensors(
            b'{"\\u00e9\\ud83d\\ude00":{"dtype":"\\u0055\\u0038",'
            b'"shape":[1],"data_offsets":[0,1]}}',
            b"x",
        ),
        "zero-byte": safetensors(b"{}\0{"),
        "deep": safetensors(b'{"a":' + b"[" * 200),
    }


# --- GGUF ---------------------------------------------------------------------------------------

CODES = dict(
    u8=0, i8=1, u16=2, i16=3, u32=4, i32=5, f32=6, bool=7, str=8, array=9, u64=10, i64=11, f64=12
)
FORMATS = dict(
    u8="B", i8="b", u16="H", i16="h", u32="I", i32="i", f32="f", bool="?", u64="Q", i64="q", f64="d"
)
TYPES = {
    "F32": (0, 1, 4),
    "F16": (1, 1, 2),
    "Q4_0": (2, 32, 18),
    "Q4_1": (3, 32, 20),
    "Q5_0": (6, 32, 22),
    "Q5_1": (7, 32, 24),
    "Q8_0": (8, 32, 34),
    "Q4_K": (12, 256, 144),
    "Q5_K": (13, 256, 176),
    "Q6_K": (14, 256, 210),
    "I8": (24, 1, 1),
    "I16": (25, 1, 2),
    "I32": (26, 1, 4),
    "I64": (27, 1, 8),
    "F64": (28, 1, 8),
    "BF16": (30, 1, 2),
    "NVFP4": (40, 64, 36),
}


def text(value):
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def value_of(kind, value):
    return text(value) if kind == "str" else struct.pack("<" + FORMATS[kind], value)


class Gguf:
    def __init__(self, version=3):
        self.version, self.keys, self.tensors, self.data = version, [], [], b""

    def key(self, name, kind, value):
        if isinstance(value, list):
            body = struct.pack("<IIQ", CODES["array"], CODES[kind], len(value))
            body += b"".join(value_of(kind, v) for v in value)
        else:
            body = struct.pack("<I", CODES[kind]) + value_of(kind, value)
        self.keys.append(text(name) + body)
        return self

    def tensor(self, name, shape, kind="F32", fill=None):
        code, block, size = TYPES[kind]
        count = 1
        for dim in shape:
            count *= dim
        length = count // block * size
        self.tensors.append(
            text(name)
            + struct.pack(f"<I{len(shape)}QIQ", len(shape), *reversed(shape), code, len(self.data))
        )
        raw = bytes((i * 7 + 1) % 60 for i in range(length)) if fill is None else fill
        self.data += raw + b"\0" * (-length % 32)
        return self

    def bytes(self):
        head = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        head += b"".join(self.keys + self.tensors)
        if self.tensors:
            head += b"\0" * (-len(head) % 32)
        return head + self.data


def gguf_model(architecture, kind="F32", hidden=8, extra=(), bias=False, norm=False):
    file, prefix = Gguf(), architecture + "."
    file.key("general.architecture", "str", architecture)
    for name, value in (
        ("context_length", 64),
        ("embedding_length", hidden),
        ("block_count", 1),
        ("feed_forward_length", 2 * hidden),
        ("attention.head_count", 2),
        ("attention.head_count_kv", 1),
    ):
        file.key(prefix + name, "u32", value)
    file.key(prefix + "attention.layer_norm_rms_epsilon", "f32", 1e-5)
    for name, value_kind, value in extra:
        file.key(name.format(prefix), value_kind, value)
    file.key("tokenizer.ggml.eos_token_id", "u32", 2)
    half = hidden // 2
    file.tensor("token_embd.weight", [3, hidden], kind).tensor("output_norm.weight", [hidden])
    layer = {
        "attn_norm": [hidden],
        "attn_q": [hidden, hidden],
        "attn_k": [half, hidden],
        "attn_v": [half, hidden],
        "attn_output": [hidden, hidden],
        "ffn_norm": [hidden],
        "ffn_gate": [2 * hidden, hidden],
        "ffn_up": [2 * hidden, hidden],
        "ffn_down": [hidden, 2 * hidden],
    }
    if norm:
        layer |= {"attn_q_norm": [half], "attn_k_norm": [half]}
    for name, shape in layer.items():
        file.tensor(f"blk.0.{name}.weight", shape, kind if len(shape) == 2 else "F32")
    if bias:
        for name, rows in (("q", hidden), ("k", half), ("v", half)):
            file.tensor(f"blk.0.attn_{name}.bias", [rows])
    return file


def gguf_files():
    keys = Gguf()
    for kind in CODES:
        if kind in ("array", "str"):
            continue
        keys.key(f"k.{kind}", kind, kind != "bool" or True)
        keys.key(f"a.{kind}", kind, [1, 0])
    keys.key("k.str", "str", "text").key("a.str", "str", ["a", "", "ü"])
    types = Gguf()
    for kind, (_, block, _) in TYPES.items():
        types.tensor(kind, [1, block], kind)
    bad_type = Gguf().tensor("t", [8])
    bad_type.tensors[0] = bad_type.tensors[0][:-12] + struct.pack("<IQ", 99, 0)
    scaled = gguf_model("llama", "NVFP4", 64)
    scaled.tensor("blk.0.attn_q.scale", [1], fill=struct.pack("<f", 0.5))
    yarn = [
        ("{}rope.scaling.type", "str", "yarn"),
        ("{}rope.scaling.factor", "f32", 4.0),
        ("{}rope.scaling.original_context_length", "u32", 32),
        ("{}rope.scaling.attn_factor", "f32", 0.9),
        ("{}attention.sliding_window", "u32", 16),
    ]
    nested = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("k")
    nested += struct.pack("<IIQIQ", 9, 9, 1, 9, 1)
    freqs = gguf_model("llama").tensor("rope_freqs.weight", [2], fill=struct.pack("<2f", 1, 8))
    return {
        "empty": Gguf().bytes(),
        "version-2": Gguf(2).key("k", "u8", 1).bytes(),
        "every-key-type": keys.bytes(),
        "every-tensor-type": types.bytes(),
        "aligned": Gguf().key("general.alignment", "u32", 32).tensor("t", [1]).bytes(),
        "misaligned": Gguf().key("general.alignment", "u32", 33).tensor("t", [1]).bytes(),
        "unknown-type": bad_type.bytes(),
        "nested": nested,
        "split": Gguf().key("split.count", "u16", 2).bytes(),
        "llama": gguf_model("llama").bytes(),
        "llama-freqs": freqs.bytes(),
        "llama-head": gguf_model("llama", "F16").tensor("output.weight", [3, 8], "F16").bytes(),
        "llama-q4_1": gguf_model("llama", "Q4_1", 32).bytes(),
        "llama-nvfp4": scaled.bytes(),
        "qwen2-yarn": gguf_model("qwen2", extra=yarn, bias=True).bytes(),
        "qwen3": gguf_model("qwen3", norm=True).bytes(),
        "per-layer": gguf_model("llama", extra=[("{}rope.scale_linear", "f32", 2.0)]).bytes(),
        "missing-tensors": gguf_model("qwen2").bytes(),
        "unknown-architecture": gguf_model("gpt2").bytes(),
    }


# --- folders of JSON -----------------------------------------------------------------------------


def folder(config, generation=None, index=None):
    parts = [
        p if isinstance(p, str) else json.dumps(p) for p in (config, generation or {}, index or {})
    ]
    return "\x1e".join(parts).encode()


def hf_files():
    base = dict(
        model_type="llama",
        vocab_size=100,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
    )
    qwen = dict(model_type="qwen2", use_sliding_window=True, sliding_window=8, max_window_layers=1)
    kinds = dict(layer_types=["full_attention", "sliding_attention", "sliding_attention"])
    yarn = dict(
        type="yarn", factor=4.0, original_max_position_embeddings=32, beta_fast=32, mscale=0.7
    )
    llama3 = dict(rope_type="llama3", factor=8, low_freq_factor=1, high_freq_factor=4)
    generation = dict(eos_token_id=[2, 3], temperature=0.6, top_p=0.9, top_k=20, do_sample=True)
    return {
        "llama": folder(base, generation),
        "mistral": folder({**base, "model_type": "mistral", "sliding_window": 32}),
        "qwen2": folder({**base, **qwen}),
        "qwen2-layer-types": folder({**base, **qwen, **kinds}),
        "qwen3": folder({**base, "model_type": "qwen3", "head_dim": 16, "attention_bias": True}),
        "yarn": folder({**base, "rope_scaling": yarn}),
        "yarn-null-factor": folder({**base, "rope_scaling": {**yarn, "factor": None}}),
        "llama3": folder({**base, "rope_parameters": {**llama3, "rope_theta": 5e5}}),
        "linear": folder({**base, "rope_scaling": {"type": "linear", "factor": 2.0}}),
        "dynamic": folder({**base, "rope_scaling": {"type": "dynamic", "factor": 2.0}}),
        "nulls": folder({**base, "head_dim": None, "rope_scaling": None, "bos_token_id": None}),
        "negative": folder({**base, "hidden_size": -1}, {"eos_token_id": -5}),
        "huge": folder({**base, "vocab_size": 2**63}, {"top_k": 10**30}),
        "quantised": folder({**base, "quantization_config": {"quant_method": "fp8"}}),
        "twice": folder('{"model_type":"llama","model_type":"qwen2"}'),
        "deep": folder('{"a":' + "[" * 100, '{"b":' * 100),
        "index": folder(base, {}, {"metadata": {}, "weight_map": {"a": "m-1.safetensors"}}),
        "index-outside": folder(base, {}, {"weight_map": {"a": "../x", "b": "/etc/passwd"}}),
    }


# --- NVFP4 weights of a small model in each dialect ----------------------------------------------


def nvfp4_parts(dialect, base):
    """(name, type, shape, bytes) of the parts of a matrix [16, 16]."""
    codes, scales = bytes(range(128)), bytes([0x38, 0x40, 0x30, 0x7E] * 4)
    value = lambda number: struct.pack("<f", number)  # noqa: E731
    if dialect == "modelopt":
        return [
            (base + "weight", "U8", [16, 8], codes),
            (base + "weight_scale", "F8_E4M3", [16, 1], scales),
            (base + "weight_scale_2", "F32", [], value(0.001)),
            (base + "input_scale", "F32", [], value(0.01)),
        ]
    if dialect == "compressed-tensors":
        return [
            (base + "weight_packed", "U8", [16, 8], codes),
            (base + "weight_scale", "F8_E4M3", [16, 1], scales),
            (base + "weight_global_scale", "F32", [1], value(1000)),
        ]
    swizzled = bytearray(512)
    for row in range(16):
        swizzled[row * 16] = scales[row]
    padded = b"".join(codes[8 * row : 8 * row + 8] + bytes(24) for row in range(16)) + bytes(
        112 * 32
    )
    return [
        (base + "quantized_weight_values", "U8", [128, 32], padded),
        (base + "quantized_weight_scale_factors", "F8_E4M3", [512], bytes(swizzled)),
        (base + "quantized_weight_amax", "F32", [1], value(0.5)),
        (
            base + "quantized_weight_metadata",
            "I32",
            [6],
            struct.pack("<6i", 16, 16, 128, 64, 1, 1),
        ),
    ]


def nvfp4_model(dialect, quantization=None, quant_config=None, change=None):
    config = dict(
        model_type="llama",
        vocab_size=2,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    if quantization:
        config["quantization_config"] = quantization
    layer = "model.layers.0."
    parts = [("model.embed_tokens.weight", "BF16", [2, 16], b"\x80\x3f" * 32)]
    for name in ("model.norm", layer + "input_layernorm", layer + "post_attention_layernorm"):
        parts.append((name + ".weight", "BF16", [16], b"\x80\x3f" * 16))
    for name in ("k", "v", "o"):
        parts.append((f"{layer}self_attn.{name}_proj.weight", "BF16", [16, 16], b"\0\x3f" * 256))
    for name in ("gate", "up"):
        parts.append((f"{layer}mlp.{name}_proj.weight", "BF16", [16, 16], b"\0\x3f" * 256))
    parts += nvfp4_parts(dialect, layer + "self_attn.q_proj.")
    parts += nvfp4_parts(dialect, layer + "mlp.down_proj.")
    if change:
        parts = change(parts)
    header, data = {}, b""
    for name, dtype, shape, content in parts:
        header[name] = entry(dtype, shape, len(data), len(data) + len(content))
        data += content
    text = json.dumps(config).encode() + b"\x1e"
    text += json.dumps(quant_config).encode() if quant_config else b""
    return text + b"\x1e" + safetensors(header, data)


def nvfp4_files():
    opt = {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["lm_head"]}
    weights = dict(num_bits=4, type="float", strategy="tensor_group", group_size=16)
    packed = {
        "quant_method": "compressed-tensors",
        "format": "nvfp4-pack-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
    }
    six = {"quant_method": "fouroversix", "dtype": "nvfp4", "scale_rule": "mse"}
    layers = {"model.layers.0.mlp.up_proj": {"quant_algo": "NVFP4", "group_size": 16}}
    mixed = {"quantization": {"quant_algo": "MIXED_PRECISION", "quantized_layers": layers}}
    without = lambda end: lambda parts: [p for p in parts if not p[0].endswith(end)]  # noqa: E731

    def with_bytes(end, content):
        return lambda parts: [(*p[:3], content) if p[0].endswith(end) else p for p in parts]

    return {
        "modelopt": nvfp4_model("modelopt", opt),
        "modelopt-file": nvfp4_model("modelopt", None, {"quantization": {"quant_algo": "NVFP4"}}),
        "modelopt-mixed": nvfp4_model("modelopt", opt, mixed),
        "modelopt-fp8": nvfp4_model("modelopt", None, {"quantization": {"quant_algo": "FP8"}}),
        "compressed-tensors": nvfp4_model("compressed-tensors", packed),
        "fouroversix": nvfp4_model("fouroversix", six),
        "no-rule": nvfp4_model("fouroversix"),
        "no-scale": nvfp4_model("modelopt", change=without("weight_scale_2")),
        "swapped": nvfp4_model("modelopt", change=with_bytes("scale_2", struct.pack("<f", 1000))),
        "bad-scales": nvfp4_model("modelopt", change=with_bytes("weight_scale", b"\x7f\x80" * 8)),
    }


# --- thresholds of XAttention -------------------------------------------------------------------


def thresholds(**changes):
    table = {
        "format": "longspur-xattention-thresholds",
        "version": 1,
        "model": {"name": "m", "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8},
        "estimator": "sampled:16",
        "block_size": 64,
        "rule": "share",
        "target": {"kept": 0.9},
        "thresholds": [[0, 0.5, 0.9, 1], [0.1, 0.2, 0.3, 0.4]],
    }
    return json.dumps({**table, **changes}).encode()


def thresholds_files():
    model = {"name": "m", "layers": 2, "heads": 4, "kv_heads": 2, "head_dim": 8}
    return {
        "plain": thresholds(),
        "of-max": thresholds(rule="of_max", block_size=128, target={}),
        "above": thresholds(thresholds=[[0, 2, 0, 0], [0, 0, 0, 0]]),
        "short-row": thresholds(thresholds=[[0, 0, 0], [0, 0, 0, 0]]),
        "huge-model": thresholds(model={**model, "layers": 4096, "heads": 4096}),
        "no-layers": thresholds(model={**model, "layers": 0}),
        "null-cell": thresholds(thresholds=[[0, None, 0, 0], [0, 0, 0, 0]]),
        "unknown-key": thresholds(surprise=1),
    }


def main():
    write("xattention_thresholds", thresholds_files())
    write("nvfp4", nvfp4_files())
    write("safetensors", safetensors_files())
    write("gguf", gguf_files())
    write("hf_config", hf_files())


if __name__ == "__main__":
    main()
