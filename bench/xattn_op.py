"""XAttention's torch operations against torch's dense attention, causal, checked first.

    .venv/bin/python bench/xattn_op.py [--device cpu|cuda] [--repeat 5] [--output FILE]

Each row: scoring, selection and block-sparse attention apart and together, on random operands with
a threshold that gives about the density asked for, and dense attention in the same run: ours, and
torch's scaled_dot_product_attention (on CUDA its FlashAttention and its cuDNN kernel). Everything
is taken in turns. On a CPU the best of the repetitions counts; on CUDA the median over at least
0.25 s after 0.12 s of warm-up, because the card is power-limited. Before a time is taken the output
is compared with dense attention under the same mask in float32.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import longspur  # from this checkout

# T, H, Hkv, D, estimator, density
CPU_CASES = [
    (4096, 9, 3, 64, "default", 0.25),
    (8192, 9, 3, 64, "default", 0.25),
    (8192, 9, 3, 64, "antidiagonal:16", 0.25),
    (8192, 9, 3, 64, "default", 0.10),
]
CUDA_CASES = [
    (8192, 32, 8, 128, "default", 0.10),
    (32768, 32, 8, 128, "default", 0.10),
    (32768, 32, 8, 128, "antidiagonal:16", 0.10),
    (131072, 32, 8, 128, "default", 0.10),
    (131072, 32, 8, 128, "default", 0.05),
    (131072, 32, 8, 128, "antidiagonal:16", 0.10),
]


def best(functions, repeat, device):
    """Seconds of each, taken in turns."""
    if device == "cpu":
        times = {name: float("inf") for name in functions}
        for _ in range(repeat):
            for name, function in functions.items():
                begin = time.perf_counter()
                function()
                times[name] = min(times[name], time.perf_counter() - begin)
        return times
    return {name: sustained(function) for name, function in functions.items()}


def sustained(function):
    """Median seconds of a call on a warm GPU."""
    end = time.perf_counter() + 0.12
    while time.perf_counter() < end:
        function()
        torch.cuda.synchronize()
    times, total = [], 0.0
    while total < 0.25 or len(times) < 3:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
        function()
        events[1].record()
        torch.cuda.synchronize()
        times.append(events[0].elapsed_time(events[1]) * 1e-3)
        total += times[-1]
    return statistics.median(times)


def operands(tokens, heads, kv_heads, dim, device):
    """Random, with 1 % heavy keys: attention worth sparing."""
    generator = torch.Generator(device).manual_seed(0)

    def normal(n):
        return torch.randn(tokens, n, dim, generator=generator, device=device).bfloat16()

    q, k, v = normal(heads), normal(kv_heads), normal(kv_heads)
    k[torch.rand(tokens, generator=generator, device=device) < 0.01, :, 0] += 4.0
    q[..., 0] += 3.0
    return q, k, v


def threshold_for(density, scores, lengths):
    """The threshold that lists about this share of the visible blocks, by bisection."""
    low, high = 0.0, 1.0
    visible = scores.shape[2] * (scores.shape[3] + 1) / 2
    for _ in range(14):
        middle = (low + high) / 2
        mask = longspur.xattn_select(scores, torch.tensor(middle), *lengths[:2])
        found = mask.sum().item() / (scores.shape[1] * visible)
        low, high = (middle, high) if found < density else (low, middle)
    return torch.tensor(low)


def check(q, k, v, out, mask):
    """Relative error of the last 128 queries, which see everything, in float32."""
    rows = min(128, len(q) % 128 or 128)
    group = q.shape[1] // k.shape[1]
    tail = q[-rows:].float().transpose(0, 1)
    keys, values = (x.float().transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
    scores = tail @ keys.transpose(1, 2) / q.shape[2] ** 0.5
    column = torch.arange(len(k), device=q.device)
    hidden = column[None] > (len(k) - rows + torch.arange(rows, device=q.device))[:, None]
    listed = mask[0, :, -1].repeat_interleave(128, -1)[:, None, : len(k)]
    scores = scores.masked_fill(hidden | ~listed, float("-inf"))
    expected = (scores.softmax(-1) @ values).transpose(0, 1)
    return ((out[-rows:].float() - expected).norm() / expected.norm()).item()


def dense_baselines(q, k, v, device):
    """torch's attention on keys and values repeated beforehand."""
    group = q.shape[1] // k.shape[1]
    repeated = [q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)]
    theirs = [x.transpose(0, 1)[None].contiguous() for x in repeated]

    def run(backend=None):
        if backend is None:
            return scaled_dot_product_attention(*theirs, is_causal=True)
        with sdpa_kernel(backend):
            return scaled_dot_product_attention(*theirs, is_causal=True)

    if device == "cpu":
        return {"torch_sdpa": run}
    return {
        "torch_flash": lambda: run(SDPBackend.FLASH_ATTENTION),
        "torch_cudnn": lambda: run(SDPBackend.CUDNN_ATTENTION),
    }


@torch.no_grad()
def measure(case, device, repeat):
    tokens, heads, kv_heads, dim, estimator, density = case
    q, k, v = operands(tokens, heads, kv_heads, dim, device)
    cu = torch.tensor([0, tokens], dtype=torch.int32)
    lengths = cu, cu, tokens, tokens
    scores = longspur.xattn_block_scores(q, k, *lengths, estimator)
    threshold = threshold_for(density, scores, lengths)
    mask = longspur.xattn_select(scores, threshold, cu, cu)
    out, _, found = longspur.ops.xattention(q, k, v, *lengths, threshold, estimator)
    error = check(q, k, v, out, mask)
    assert error < 1e-2, error
    functions = {
        "scores": lambda: longspur.xattn_block_scores(q, k, *lengths, estimator),
        "select": lambda: longspur.xattn_select(scores, threshold, cu, cu),
        "block_sparse": lambda: longspur.block_sparse_attention(q, k, v, *lengths, mask),
        "xattention": lambda: longspur.ops.xattention(q, k, v, *lengths, threshold, estimator),
        "dense": lambda: longspur.attention(q, k, v, *lengths),
    } | dense_baselines(q, k, v, device)
    seconds = best(functions, repeat, device)
    baselines = [name for name in seconds if name.startswith("torch_")]
    fastest = min(seconds[name] for name in baselines)
    row = {"what": f"{tokens} tokens, {heads}/{kv_heads} heads of {dim}, {estimator}"}
    row["density"] = round(found.mean().item(), 3)
    row |= {f"{name}_ms": round(s * 1e3, 3) for name, s in seconds.items()}
    row["torch_ms"] = round(fastest * 1e3, 3)
    row["speedup"] = round(fastest / seconds["xattention"], 2)
    row["error"] = round(error, 5)
    return row


def result(device, rows):
    """In the format of bench/README.md."""
    cuda = device == "cuda"
    torch_name = "FlashAttention or cuDNN, the faster" if cuda else "scaled_dot_product_attention"
    return {
        "title": f"XAttention as torch operations, {'CUDA' if cuda else 'CPU'}",
        "device": torch.cuda.get_device_name() if cuda else cpu_name(),
        "date": time.strftime("%Y-%m-%d"),
        "baseline": f"torch {torch.__version__}: {torch_name}, dense, causal, keys repeated before",
        "note": "bf16, causal; density is the share of the visible blocks that are read",
        "columns": {
            "what": "prompt and estimator",
            "density": "density",
            "scores_ms": "scores, ms",
            "select_ms": "selection, ms",
            "block_sparse_ms": "attention, ms",
            "xattention_ms": "all in, ms",
            "dense_ms": "ours dense, ms",
            "torch_ms": "torch dense, ms",
            "speedup": "speed-up",
        },
        "rows": rows,
    }


def cpu_name():
    """The processor and how much of it is used."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--cases", type=int, nargs="*", help="indices; all by default")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cases = CPU_CASES if arguments.device == "cpu" else CUDA_CASES
    rows = []
    for i in arguments.cases if arguments.cases is not None else range(len(cases)):
        rows.append(measure(cases[i], arguments.device, arguments.repeat))
        print(json.dumps(rows[-1]), flush=True)
        if arguments.output:
            text = json.dumps(result(arguments.device, rows), indent=1)
            arguments.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
