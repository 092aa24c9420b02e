"""The default model against transformers reading the same GGUF (weights dequantised to fp32)."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

PROMPTS = [
    "The capital of France is",
    "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n<|im_start|>assistant\n",
    "def fibonacci(n):\n    if n < 2:\n        return n\n",
    "Once upon a time, in 1984, there were 3 naïve café owners — “why?” 日本語 🙂",
    " ",
]


def long_text():
    import pydoc_data.topics

    return "\n".join(pydoc_data.topics.topics.values())


@pytest.fixture(scope="module")
def reference(smollm2):
    """transformers' model and our tokens of the prompts and of 2,000 tokens of long text."""
    transformers = pytest.importorskip("transformers")
    path = Path(smollm2)
    return transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    ).eval()


@pytest.fixture(scope="module")
def token_lists(longspur, smollm2):
    lists = [tokenize(longspur, smollm2, text) for text in PROMPTS]
    return [*lists, tokenize(longspur, smollm2, long_text()[:12000])[:2000]]


def run(binary, *arguments, text=None):
    command = [str(a) for a in (binary, *arguments)]
    result = subprocess.run(command, input=text, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return result.stdout


def tokenize(binary, model, text):
    return json.loads(run(binary, "tokenize", "-m", model, "--json", text=text))["ids"]


def test_logits_in_reference_arithmetic(longspur, smollm2, reference, token_lists, tmp_path):
    tokens, output = tmp_path / "tokens.json", tmp_path / "logits.safetensors"
    tokens.write_text(json.dumps(token_lists))
    run(
        longspur, "logits", "-m", smollm2, "--compute", "fp32",
        "--tokens", tokens, "--output", output,
    )  # fmt: skip
    found = load_file(output)
    for i, ids in enumerate(token_lists):
        with torch.no_grad():
            expected = reference(torch.tensor([ids])).logits[0]
        logits = found[f"logits_{i}"]
        assert logits.shape == expected.shape
        assert (logits - expected).abs().max().item() <= 2e-3
        top = expected.topk(2, dim=-1)
        clear = top.values[:, 0] - top.values[:, 1] > 1e-2
        assert torch.equal(logits.argmax(-1)[clear], top.indices[:, 0][clear])


def test_perplexity(longspur, smollm2, reference, tmp_path):
    context, limit = 512, 2048
    text = tmp_path / "text.txt"
    text.write_text(long_text()[:20000])
    found = json.loads(
        run(
            longspur, "perplexity", "-m", smollm2, "--text", text, "--json",
            "--context", context, "--max-tokens", limit,
        )
    )  # fmt: skip
    ids = tokenize(longspur, smollm2, text.read_text())[:limit]
    nll, count = 0.0, 0
    for begin in range(0, len(ids), context):
        window = torch.tensor([ids[begin : begin + context]])
        if window.shape[1] < 2:
            continue
        with torch.no_grad():
            logits = reference(window).logits[0, :-1]
        nll += torch.nn.functional.cross_entropy(logits.double(), window[0, 1:], reduction="sum")
        count += window.shape[1] - 1
    expected = math.exp(nll / count)
    assert abs(found["perplexity"] / expected - 1) <= 0.003


def generate(binary, model, prompt, *flags):
    return json.loads(
        run(binary, "generate", "-m", model, "--json", "--max-tokens", 24, *flags, "-p", prompt)
    )


def test_greedy_continuation_matches_transformers(longspur, smollm2, reference):
    prompt = PROMPTS[0]
    ids = tokenize(longspur, smollm2, prompt)
    with torch.no_grad():
        expected = reference.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, pad_token_id=2
        )[0, len(ids) :].tolist()
    found = generate(longspur, smollm2, prompt, "--compute", "fp32")["tokens"]
    assert found[: len(expected)] == expected[: len(found)]


def test_batch_does_not_change_the_answers(longspur, smollm2, tmp_path):
    lines = [{"id": str(i), "prompt": text, "max_tokens": 16} for i, text in enumerate(PROMPTS * 3)]
    lines = [line | {"temperature": 0.8, "seed": 11} for line in lines]
    source = tmp_path / "in.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    texts = {}
    for order, name in ((lines, "a"), (lines[::-1], "b")):
        source.write_text("".join(json.dumps(line) + "\n" for line in order))
        output = tmp_path / f"{name}.jsonl"
        run(
            longspur, "generate", "-m", smollm2, "--compute", "fp32",
            "--input", source, "--output", output,
        )  # fmt: skip
        rows = [json.loads(line) for line in output.read_text().splitlines()]
        texts[name] = {row["id"]: row["text"] for row in rows}
    assert len(texts["a"]) == len(lines)
    assert texts["a"] == texts["b"]
