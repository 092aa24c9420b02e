"""`longspur quantize`: every architecture and format, what --json says, and what is refused."""

import json
import math
import re
import struct
from pathlib import Path

import pytest
import tiny_models
import torch
from safetensors.torch import load_file, save_file
from test_verbs import failed_in_one_line

NAMES = ["llama", "mistral", "qwen2", "qwen3", "qwen3-tied"]
FORMATS = ["modelopt", "compressed-tensors", "fouroversix"]
LINEARS = 7


def tiny(folder: Path, name: str = "llama") -> Path:
    tiny_models.save(tiny_models.build(name), folder)
    return folder


@pytest.fixture(scope="module")
def llama(tmp_path_factory) -> Path:
    return tiny(tmp_path_factory.mktemp("quantize") / "llama")


def logits(run_longspur, model: Path, work: Path) -> torch.Tensor:
    ids = work / "ids.json"
    ids.write_text(json.dumps([[5, 9, 11, 40, 7, 3, 21, 33]]))
    out = work / f"{model.name}.logits.safetensors"
    done = run_longspur(
        "logits", "-m", model, "--tokens", ids, "--output", out, "--compute", "fp32"
    )
    assert done.returncode == 0, done.stderr.decode()
    return load_file(out)["logits_0"]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("name", NAMES)
def test_every_architecture(name, longspur_json, run_longspur, tmp_path):
    model = tiny(tmp_path / "model", name)
    out = tmp_path / "out"
    said = longspur_json("quantize", "-m", model, "-o", out)
    layers = json.loads((model / "config.json").read_text())["num_hidden_layers"]
    assert len(said["tensors"]) == layers * LINEARS
    assert 0.005 < said["error"] < 0.012
    assert said["bits_per_weight"] == 4.5
    assert said["bytes"] == sum(
        t.numel() * t.element_size() for t in load_file(out / "model.safetensors").values()
    )
    for tensor in said["tensors"]:
        assert tensor["type"] == "NVFP4"
        assert tensor["bytes"] == math.prod(tensor["shape"]) * 9 // 16
        assert 0 < tensor["weight_error"] < 0.02
        assert 0 < tensor["share_of_4"] < 1
    before, after = (logits(run_longspur, m, tmp_path) for m in (model, out))
    assert torch.isfinite(after).all()
    assert 0 < (after - before).norm() < 0.5 * before.norm()


@pytest.mark.parametrize("form", FORMATS)
def test_formats_compute_the_same(form, longspur_json, run_longspur, llama, tmp_path):
    plain = tmp_path / "modelopt"
    longspur_json("quantize", "-m", llama, "-o", plain)
    out = tmp_path / "out"
    said = longspur_json("quantize", "-m", llama, "-o", out, "--format", form)
    assert said["format"] == form
    torch.testing.assert_close(
        logits(run_longspur, out, tmp_path), logits(run_longspur, plain, tmp_path)
    )


def test_changing_the_format_keeps_codes_and_scales(longspur_json, llama, tmp_path):
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    longspur_json("quantize", "-m", llama, "-o", first, "--rule", "full_sweep")
    longspur_json("quantize", "-m", first, "-o", second, "--format", "compressed-tensors")
    said = longspur_json("quantize", "-m", second, "-o", third, "--format", "modelopt")
    assert said["error"] == 0
    before, after = (load_file(f / "model.safetensors") for f in (first, third))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        if name.endswith("weight_scale_2"):  # a divisor's inverse may be the next float
            torch.testing.assert_close(tensor, after[name], rtol=1.2e-7, atol=0)
        else:
            same = tensor.reshape(-1).view(torch.uint8) == after[name].reshape(-1).view(torch.uint8)
            assert same.all(), name


def test_options_of_method_quantise_anew(longspur_json, llama, tmp_path):
    longspur_json("quantize", "-m", llama, "-o", tmp_path / "first")
    said = longspur_json(
        "quantize", "-m", tmp_path / "first", "-o", tmp_path / "second", "--rule", "static_6"
    )
    assert said["error"] > 0


def test_fused_matrices_share_a_scale(longspur_json, llama, tmp_path):
    out = tmp_path / "out"
    longspur_json("quantize", "-m", llama, "-o", out)
    tensors = load_file(out / "model.safetensors")
    groups = [
        [f"self_attn.{n}_proj" for n in "qkv"],
        ["mlp.gate_proj", "mlp.up_proj"],
    ]
    for group in groups:
        scales = {tensors[f"model.layers.0.{n}.weight_scale_2"].item() for n in group}
        assert len(scales) == 1


def test_rules_order_by_error(longspur_json, llama, tmp_path):
    rules = ["static_6", "four_over_six", "sweep", "full_sweep"]
    errors = [
        longspur_json("quantize", "-m", llama, "-o", tmp_path / rule, "--rule", rule)["error"]
        for rule in rules
    ]
    assert errors == sorted(errors, reverse=True)


def test_report_is_what_json_says(run_longspur, llama, tmp_path):
    report = tmp_path / "report.json"
    done = run_longspur("quantize", "-m", llama, "-o", tmp_path / "out", "--report", report)
    assert done.returncode == 0
    assert re.search(rb"MiB, 4.5 bits a weight", done.stdout)
    assert {"tensors", "error", "bytes"} <= json.loads(report.read_text()).keys()


def test_existing_output_is_kept_without_force(run_longspur, llama, tmp_path):
    out = tmp_path / "out"
    assert run_longspur("quantize", "-m", llama, "-o", out).returncode == 0
    before = contents(out)
    done = run_longspur("quantize", "-m", llama, "-o", out, "--rule", "static_6")
    failed_in_one_line(done, 2, str(out))
    assert contents(out) == before
    done = run_longspur("quantize", "-m", llama, "-o", out, "--rule", "static_6", "--force")
    assert done.returncode == 0
    assert contents(out) != before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite(value, run_longspur, tmp_path):
    model = tiny(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    name = "model.layers.1.mlp.up_proj.weight"
    tensors[name][3, 5] = value
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    done = run_longspur("quantize", "-m", model, "-o", tmp_path / "out")
    failed_in_one_line(done, 1, name)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_zero_and_constant_matrices(longspur_json, run_longspur, tmp_path):
    model = tiny(tmp_path / "model")
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.0.self_attn.o_proj.weight"].zero_()
    tensors["model.layers.0.mlp.down_proj.weight"].fill_(0.25)
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    said = longspur_json("quantize", "-m", model, "-o", tmp_path / "out")
    errors = {t["name"]: t["weight_error"] for t in said["tensors"]}
    assert errors["model.layers.0.self_attn.o_proj.weight"] == 0
    assert errors["model.layers.0.mlp.down_proj.weight"] < 1e-12
    assert torch.isfinite(logits(run_longspur, tmp_path / "out", tmp_path)).all()


@pytest.mark.parametrize(
    "options",
    [
        ("--method", "gptq"),
        ("--method", "best"),
        ("--budget-bits", "5"),
        ("--input-scales",),
    ],
)
def test_what_needs_a_calibration_text(options, run_longspur, llama, tmp_path):
    done = run_longspur("quantize", "-m", llama, "-o", tmp_path / "out", *options)
    failed_in_one_line(done, 2, "--calibration", options[0])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "code", "word"),
    [
        ((), 2, "--output"),
        (("-o", "out", "--rule", "best"), 2, "--rule"),
        (("-o", "out", "--budget-bits", "4.4"), 2, "--budget-bits"),
        (("-o", "no/such/folder/out"), 1, "no/such/folder"),
    ],
)
def test_refusals(options, code, word, run_longspur, llama, tmp_path):
    done = run_longspur("quantize", "-m", llama, *options, cwd=tmp_path)
    failed_in_one_line(done, code)
    assert word.lower() in done.stderr.decode().lower()
    assert list(tmp_path.iterdir()) == []


def test_full_disk_leaves_nothing(run_longspur, llama, tmp_path):
    """A limit on the size of files stands for the disk."""
    import resource

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = run_longspur("quantize", "-m", llama, "-o", tmp_path / "out", preexec_fn=limit)
    failed_in_one_line(done, 1)
    assert list(tmp_path.iterdir()) == []


# --- the default model


@pytest.fixture(scope="module")
def text(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("A longspur is a bird that migrates over long distances. " * 40)
    return path


def test_gguf_stays_gguf(longspur_json, smollm2, tmp_path):
    out = tmp_path / "out.gguf"
    said = longspur_json("quantize", "-m", smollm2, "-o", out)
    assert said["format"] == "gguf"
    assert 0.0070 < said["error"] < 0.0077
    assert out.read_bytes()[:4] == b"GGUF"
    assert struct.unpack("<I", out.read_bytes()[4:8])[0] >= 2
    types = {t["dtype"]: t["count"] for t in longspur_json("inspect", out)["tensor_types"]}
    assert types["NVFP4"] == 210
    before, after = (
        longspur_json("generate", "-m", m, "-p", "The capital of France is", "-n", 4)["text"]
        for m in (smollm2, out)
    )
    assert "Paris" in before and "Paris" in after


def test_calibration_lowers_the_error_of_the_output(longspur_json, smollm2, text, tmp_path):
    common = ("quantize", "-m", smollm2, "--calibration", text, "--calibration-tokens", 256)
    plain = longspur_json(*common, "-o", tmp_path / "a.gguf", "--rule", "static_6")
    swept = longspur_json(*common, "-o", tmp_path / "b.gguf")
    assert swept["rule"] == "sweep"
    assert swept["output_error"] < 0.8 * plain["output_error"]
