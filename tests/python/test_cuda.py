"""The CUDA executor against the CPU; skipped where there is no plugin or no GPU."""

import json
import subprocess

import pytest
import tiny_models
import torch
from safetensors.torch import load_file

PROMPT = "The three primary colours are"


@pytest.fixture(scope="module", autouse=True)
def plugin(build_dir):
    if not (build_dir / "lib" / "liblongspur_cuda.so").exists():
        pytest.skip("the build has no CUDA plugin")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")


def run(*command):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def generate(longspur, model, *flags):
    out = run(longspur, "generate", "-m", model, "--json", "--max-tokens", 32, "-p", PROMPT, *flags)
    return json.loads(out)["tokens"]


def logits(longspur, model, tokens, out, *flags):
    tokens_file = out.with_suffix(".json")
    tokens_file.write_text(json.dumps(tokens))
    run(longspur, "logits", "-m", model, "--tokens", tokens_file, "--output", out, *flags)
    return [load_file(out)[f"logits_{i}"] for i in range(len(tokens))]


def test_smollm2_gives_the_same_tokens(longspur, smollm2):
    on_cpu = generate(longspur, smollm2, "--compute", "fp32")
    assert generate(longspur, smollm2, "--device", "cuda", "--compute", "fp32") == on_cpu


def test_smollm2_in_bf16_is_close_to_fp32(longspur, smollm2, tmp_path):
    tokens = generate(longspur, smollm2, "--compute", "fp32", "--ignore-eos")
    (fp32,) = logits(longspur, smollm2, [tokens], tmp_path / "a", "--compute", "fp32")
    (bf16,) = logits(longspur, smollm2, [tokens], tmp_path / "b", "--device", "cuda")
    p, q = fp32.double().log_softmax(-1), bf16.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1).mean().item()
    print(f"mean KL {kl:.2e}, same top {(p.argmax(-1) == q.argmax(-1)).double().mean():.3f}")
    assert kl <= 5e-3


@pytest.mark.parametrize("name", [n for n in tiny_models.SPECS if "head-dim" not in n])
def test_tiny_models(name, longspur, tmp_path):
    model = tiny_models.build(name)
    tiny_models.save(model, tmp_path / "model")
    generator = torch.Generator().manual_seed(7)
    lists = [
        torch.randint(3, tiny_models.VOCAB, (n,), generator=generator).tolist()
        for n in (1, 40, 130)
        if n <= model.config.max_position_embeddings
    ]
    (tmp_path / "tokens.json").write_text(json.dumps(lists))
    run(
        longspur, "logits", "-m", tmp_path / "model", "--device", "cuda", "--compute", "fp32",
        "--tokens", tmp_path / "tokens.json", "--output", tmp_path / "out.safetensors",
    )  # fmt: skip
    found = load_file(tmp_path / "out.safetensors")
    for i, tokens in enumerate(lists):
        with torch.no_grad():
            expected = model(torch.tensor([tokens]), use_cache=False).logits[0]
        assert (found[f"logits_{i}"] - expected).abs().max().item() <= 1e-4
