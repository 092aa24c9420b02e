"""Tiny random models against transformers: logits of the CLI in reference arithmetic, and the
gradients of the training forward."""

import json
import os
import subprocess

import pytest
import tiny_models
import torch
import transformers
from safetensors.torch import load_file

LENGTHS = (1, 2, 63, 64, 65, 130)
MAX_DIFF = 1e-4  # fp32 against fp32; logits are of order 1 to 10


def prompts():
    generator = torch.Generator().manual_seed(7)
    return [
        torch.randint(3, tiny_models.VOCAB, (n,), generator=generator).tolist() for n in LENGTHS
    ]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """name -> (model, folder), built once."""
    cache = {}

    def get(name, shards=1):
        key = (name, shards)
        if key not in cache:
            model = tiny_models.build(name)
            folder = tmp_path_factory.mktemp("tiny") / f"{name}-{shards}"
            tiny_models.save(model, folder, shards)
            cache[key] = (model, folder)
        return cache[key]

    return get


def reference_logits(model, tokens):
    with torch.no_grad():
        return model(torch.tensor([tokens]), use_cache=False).logits[0]


def longspur_logits(binary, folder, token_lists, tmp_path, *flags):
    tokens, output = tmp_path / "tokens.json", tmp_path / "logits.safetensors"
    tokens.write_text(json.dumps(token_lists))
    command = [binary, "logits", "-m", folder, "--tokens", tokens, "--output", output, *flags]
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    data = load_file(output)
    return [data[f"logits_{i}"] for i in range(len(token_lists))]


@pytest.mark.parametrize("name", tiny_models.SPECS)
def test_logits_match_transformers(name, folders, longspur, tmp_path):
    model, folder = folders(name)
    token_lists = prompts()
    # the longest is more than the dynamic model's own context
    flags = ("--compute", "fp32", "--max-context", 256)
    found = longspur_logits(longspur, folder, token_lists, tmp_path, *flags)
    for tokens, logits in zip(token_lists, found, strict=True):
        expected = reference_logits(model, tokens)
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max().item() <= MAX_DIFF


def test_sharded_folder(folders, longspur, tmp_path):
    model, folder = folders("qwen2", shards=4)
    assert len(list(folder.glob("*.safetensors"))) >= 3
    token_lists = prompts()[-1:]
    (found,) = longspur_logits(longspur, folder, token_lists, tmp_path, "--compute", "fp32")
    assert (found - reference_logits(model, token_lists[0])).abs().max().item() <= MAX_DIFF


def test_last_row_equals_the_full_result(folders, longspur, tmp_path):
    _, folder = folders("llama")
    token_lists = prompts()
    full = longspur_logits(longspur, folder, token_lists, tmp_path, "--compute", "fp32")
    last = longspur_logits(longspur, folder, token_lists, tmp_path, "--compute", "fp32", "--last")
    for a, b in zip(full, last, strict=True):
        assert b.shape == (1, tiny_models.VOCAB)
        torch.testing.assert_close(a[-1:], b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_weights(dtype, folders, longspur, tmp_path):
    """Weights stored in 16 bits: the reference arithmetic of ours and of transformers on the same
    rounded weights agree."""
    folder = tmp_path / "model"
    tiny_models.build("llama").to(dtype).save_pretrained(folder)
    # read again: a model cast to 16 bits and back keeps rounded rotary frequencies
    rounded = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    token_lists = prompts()[-1:]
    (found,) = longspur_logits(longspur, folder, token_lists, tmp_path, "--compute", "fp32")
    expected = reference_logits(rounded, token_lists[0])
    assert (found - expected).abs().max().item() <= MAX_DIFF


@pytest.mark.parametrize("name", ["llama", "llama-biases", "llama-head-dim", "qwen3"])
def test_default_arithmetic_stays_close(name, folders, longspur, tmp_path):
    """bf16 cache and bf16 products: the error is bounded by that of transformers run in bf16."""
    model, folder = folders(name)
    token_lists = prompts()[-1:]
    (found,) = longspur_logits(longspur, folder, token_lists, tmp_path)
    expected = reference_logits(model, token_lists[0])
    half = reference_logits(tiny_models.build(name).bfloat16(), token_lists[0]).float()
    naive = (half - expected).abs().max().item()
    assert (found - expected).abs().max().item() <= 1.5 * naive


def decoder_probe(longspur):
    probe = os.path.join(os.path.dirname(longspur), "decoder_probe")
    if not os.path.exists(probe):
        pytest.skip("decoder_probe is not built (no torch)")
    return probe


GRADIENT_MODELS = [name for name in tiny_models.SPECS if "window" not in name]


@pytest.mark.parametrize("name", GRADIENT_MODELS)
def test_training_forward_and_gradients(name, folders, longspur, tmp_path):
    """The same decoder definition with autograd: logits, loss and every gradient of a packed batch
    of two sequences."""
    model, folder = folders(name)
    token_lists = prompts()[2:4]
    tokens, output = tmp_path / "tokens.json", tmp_path / "gradients.safetensors"
    tokens.write_text(json.dumps(token_lists))
    command = [decoder_probe(longspur), folder, tokens, output]
    run = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = load_file(output)

    model.zero_grad()
    logits = [model(torch.tensor([t]), use_cache=False).logits[0] for t in token_lists]
    targets = torch.tensor([t for tokens in token_lists for t in tokens[1:]])
    predicted = torch.cat([row[:-1] for row in logits])
    loss = torch.nn.functional.cross_entropy(predicted, targets)
    loss.backward()

    assert (found["logits"] - torch.cat(logits)).abs().max().item() <= MAX_DIFF
    assert abs(found["loss"].item() - loss.item()) <= 1e-5 * abs(loss.item())
    for parameter_name, parameter in model.named_parameters():
        gradient = found[f"grad.{parameter_name}"]
        scale = parameter.grad.norm().item() + 1e-12
        assert (gradient - parameter.grad).norm().item() <= 1e-4 * scale, parameter_name


def test_transformers_is_the_pinned_major():
    assert transformers.__version__.split(".")[0] == "5"
