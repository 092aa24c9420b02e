"""Decode of an NVFP4 model by Longspur beside llama.cpp's Q4_0 of the same source, one run.

    nvfp4_decode.py [--source MODEL.gguf] [--nvfp4 MODEL.gguf] [--rounds 5] [--json FILE]

llama.cpp writes the Q4_0 file itself (its quantiser, its choice for embedding and head). Both
programs decode 64 tokens after the same 16, in turns, both settings of flash attention for
llama.cpp; the best rate of each counts. Quality is the mean KL divergence of next-token
distributions from the source's in fp32 arithmetic, both files read by Longspur, so that only the
formats differ. Without --nvfp4 the file is made by `longspur quantize --rule sweep`. For figures to
publish let nothing else run, or prefix `chrt -f 20`.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np

ROOT = pathlib.Path(__file__).resolve().parent.parent
LONGSPUR = ROOT / "build/release/bin/longspur"
SERVER = ROOT / "bench/baselines/llama_cpp_server.py"
SOURCE = ROOT / ".cache/models/smollm2-135m-instruct-q4_1.gguf"
STEPS = 64


def quantize_q4_0(source: pathlib.Path, output: pathlib.Path) -> None:
    """In a process of its own: llama.cpp reports at length on stderr."""
    code = (
        "import sys, llama_cpp as l\n"
        "p = l.llama_model_quantize_default_params()\n"
        "p.ftype, p.allow_requantize = l.LLAMA_FTYPE_MOSTLY_Q4_0, True\n"
        "sys.exit(l.llama_model_quantize(sys.argv[1].encode(), sys.argv[2].encode(), p))"
    )
    command = [sys.executable, "-c", code, str(source), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"llama.cpp cannot quantise {source}: {done.stderr[-500:]}")


def run_longspur(*arguments: str, text: str = "") -> dict:
    command = [LONGSPUR, *arguments, "--json"]
    done = subprocess.run(command, input=text.encode(), capture_output=True, check=True)
    return json.loads(done.stdout)


def tokens_of(text: str, count: int) -> list[int]:
    return run_longspur("tokenize", "--model", str(SOURCE), text=text)["ids"][:count]


class LlamaCpp:
    def __init__(self, model: pathlib.Path, threads: int):
        self.child = subprocess.Popen(
            [sys.executable, SERVER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        self.version = self.ask({"model": str(model), "context": 512, "threads": threads})

    def ask(self, request: dict) -> dict:
        self.child.stdin.write(json.dumps(request) + "\n")
        self.child.stdin.flush()
        answer = json.loads(self.child.stdout.readline())
        if "error" in answer or "missing" in answer:
            sys.exit(f"llama.cpp: {answer}")
        return answer

    def rate(self, flash: bool, prompt: list[int], tokens: list[int]) -> float:
        request = {"flash_attention": flash, "prompt": prompt, "tokens": tokens}
        return len(tokens) / sum(self.ask(request)["decode_s"])


def rate_of_longspur(model: pathlib.Path, text: str, threads: int) -> float:
    answer = run_longspur(
        *("generate", "--model", str(model), "-p", text, "--max-tokens", str(STEPS)),
        *("--ignore-eos", "--threads", str(threads), "--max-context", "512"),
    )
    return answer["timing"]["decode_tokens_per_s"]


def logits_of(model: pathlib.Path, tokens: list[list[int]], folder: str, *extra: str):
    """[T, V] of all windows."""
    from safetensors.numpy import load_file

    ids, output = pathlib.Path(folder) / "ids.json", pathlib.Path(folder) / "logits.safetensors"
    ids.write_text(json.dumps(tokens))
    arguments = ("--model", str(model), "--tokens", str(ids), "--output", str(output))
    run_longspur("logits", *arguments, "--max-context", "1024", *extra)
    tensors = load_file(output)
    output.unlink()
    return np.concatenate([tensors[f"logits_{i}"] for i in range(len(tokens))])


def mean_kl(reference: np.ndarray, found: np.ndarray) -> float:
    total = 0.0
    for p, q in zip(reference, found, strict=True):
        p, q = p.astype(np.float64), q.astype(np.float64)
        p -= p.max() + np.log(np.exp(p - p.max()).sum())
        q -= q.max() + np.log(np.exp(q - q.max()).sum())
        total += float((np.exp(p) * (p - q)).sum())
    return total / len(reference)


def quality(source: pathlib.Path, models: list[pathlib.Path], folder: str) -> list[float]:
    from pydoc_data import topics

    ids = tokens_of("\n".join(topics.topics[name] for name in sorted(topics.topics)[:40]), 1024)
    windows = [ids[:512], ids[512:]]
    reference = logits_of(source, windows, folder, "--compute", "fp32")
    return [mean_kl(reference, logits_of(model, windows, folder)) for model in models]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--source", type=pathlib.Path, default=SOURCE)
    parser.add_argument("--nvfp4", type=pathlib.Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--no-quality", action="store_true", help="rates and bytes only")
    parser.add_argument("--json", type=pathlib.Path)
    args = parser.parse_args()
    text = "Every autumn the birds gather on the northern shore and leave together for the south,"
    with tempfile.TemporaryDirectory() as folder:
        q4_0 = pathlib.Path(folder) / "q4_0.gguf"
        quantize_q4_0(args.source, q4_0)
        nvfp4 = args.nvfp4
        if nvfp4 is None:
            nvfp4 = pathlib.Path(folder) / "nvfp4.gguf"
            paths = ("--model", str(args.source), "--output", str(nvfp4))
            run_longspur("quantize", *paths, "--rule", "sweep")
        kl = None if args.no_quality else quality(args.source, [nvfp4, q4_0], folder)
        prompt, more = tokens_of(text, 16), tokens_of(text * 8, 16 + STEPS)[16:]
        baseline = LlamaCpp(q4_0, args.threads)
        rates = {"longspur_nvfp4": [], "longspur_q4_0": [], "llama_cpp_q4_0": []}
        for _ in range(args.rounds):
            rates["longspur_nvfp4"].append(rate_of_longspur(nvfp4, text, args.threads))
            rates["llama_cpp_q4_0"].append(baseline.rate(False, prompt, more))
            rates["longspur_q4_0"].append(rate_of_longspur(q4_0, text, args.threads))
            rates["llama_cpp_q4_0"].append(baseline.rate(True, prompt, more))
        baseline.child.stdin.close()
        result = {
            "baseline": baseline.version,
            "tokens_per_s": {name: max(values) for name, values in rates.items()},
            "file_bytes": {"nvfp4": nvfp4.stat().st_size, "q4_0": q4_0.stat().st_size},
        }
        if kl is not None:
            result["mean_kl"] = {"nvfp4": kl[0], "q4_0": kl[1]}
    best = result["tokens_per_s"]
    result["speed_ratio"] = best["longspur_nvfp4"] / best["llama_cpp_q4_0"]
    result["bytes_ratio"] = result["file_bytes"]["nvfp4"] / result["file_bytes"]["q4_0"]
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
