"""The NVFP4 operations against torch's, on the CPU or a GPU.

    .venv/bin/python bench/nvfp4_op.py [--device cpu|cuda] [--threads 2] [--output results.json]

Quantisation is compared with torch's copy and its cast to float8, both of the same matrix;
nvfp4_linear with torch's linear layer in bf16 (on the CPU also in fp32). Each is checked first: the
error that four-over-six has on normal numbers, and products against float64. Times are taken in
turns in one process. CPU: the best of the repetitions. GPU: sustained, at least 0.12 s of warm-up
before every measurement, then the median over 0.2 s; matrices rotate through more than the cache.
"""

import argparse
import json
import statistics
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
from longspur import nvfp4  # from this checkout

QUANTISERS = [("static_6", "mse"), ("four_over_six", "mse"), ("sweep", "mse")]
SIZES = {"cpu": 2048, "cuda": 8192}
# N, K of the layers, and tokens
LAYERS = {"cpu": [(1536, 576), (4096, 1024)], "cuda": [(8192, 8192), (14336, 4096)]}
TOKENS = {"cpu": [1, 16, 256], "cuda": [1, 16, 64, 256, 4096]}
CACHE_BYTES = 200 << 20  # more than any L2


def cpu_times(functions, repeat=7):
    """Shortest time of each in seconds, taken in turns."""
    best = [float("inf")] * len(functions)
    for _ in range(repeat):
        for i, function in enumerate(functions):
            begin = time.perf_counter()
            function(0)
            best[i] = min(best[i], time.perf_counter() - begin)
    return best


def cuda_times(functions):
    """Median time of each in seconds; functions get a running number."""

    def batch(function, launches):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        for i in range(launches):
            function(i)
        end.record()
        return begin, end, launches

    def spend(function, seconds, launches):
        """Intervals of back-to-back launches for about that long."""
        done, start = [], time.perf_counter()
        while time.perf_counter() - start < seconds:
            done.append(batch(function, launches))
            if len(done) % 4 == 0:
                done[-4][1].synchronize()
        torch.cuda.synchronize()
        return [b.elapsed_time(e) / n for b, e, n in done]

    times = []
    for function in functions:
        function(0)
        once = statistics.median(spend(function, 0.02, 4))
        launches = max(2, round(1.0 / max(once, 1e-3)))  # intervals of a millisecond
        spend(function, 0.12, launches)
        times.append(statistics.median(spend(function, 0.2, launches)) / 1e3)
    return times


def measure(device, functions):
    return cuda_times(functions) if device == "cuda" else cpu_times(functions)


def rotated(make, bytes_each, device):
    """Copies enough to exceed the cache, made by make(i); one on the CPU."""
    return [
        make(i) for i in range(max(2, -(-CACHE_BYTES // bytes_each)) if device == "cuda" else 1)
    ]


def quantise_rows(device):
    n = SIZES[device]
    xs = rotated(lambda i: torch.randn(n, n, device=device).bfloat16(), 2 * n * n, device)
    back = nvfp4.dequantize(*nvfp4.quantize(xs[0]))
    share = ((back - xs[0]).square().sum() / xs[0].float().square().sum()).item()
    assert abs(share / 0.00755 - 1) < 0.01, share
    names = ["torch copy", "torch cast to float8"]
    functions = [
        lambda i: xs[i % len(xs)].clone(),
        lambda i: xs[i % len(xs)].to(torch.float8_e4m3fn),
    ]
    for rule, metric in QUANTISERS:
        for per_row in (True, False):
            names.append(f"quantize, {rule}, amax {'of each row' if per_row else 'of the tensor'}")
            functions.append(
                lambda i, r=rule, m=metric, p=per_row: nvfp4.quantize(
                    xs[i % len(xs)], rule=r, metric=m, per_row=p
                )
            )
    packed = nvfp4.quantize(xs[0])
    names.append("dequantize to bf16")
    functions.append(lambda i: nvfp4.dequantize(*packed, torch.bfloat16))
    times = dict(zip(names, measure(device, functions), strict=True))
    copy, cast = times.pop("torch copy"), times.pop("torch cast to float8")
    print(f"torch copy {copy * 1e6:.1f} us, cast to float8 {cast * 1e6:.1f} us", flush=True)
    return [
        {
            "what": f"{n} x {n}: {name}",
            "us": round(t * 1e6, 1),
            "torch_us": round(cast * 1e6, 1),
            "ratio": round(cast / t, 2),
        }
        for name, t in times.items()
    ]


def layer_row(device, tokens, packed, plain, wide):
    """One layer: quantised and bf16 copies of its weight, and one in fp32."""
    n, k = wide.shape
    linear = torch.nn.functional.linear
    x = torch.randn(tokens, k, device=device).bfloat16()
    y = nvfp4.linear(x[:4], *packed[0]).double()
    exact = x[:4].double() @ nvfp4.dequantize(*packed[0]).double().t()
    assert ((y - exact).norm() / exact.norm()).item() < 3e-3
    functions = {
        "us": lambda i: nvfp4.linear(x, *packed[i % len(packed)]),
        "w4a4_us": lambda i: nvfp4.linear(x, *packed[i % len(packed)], activations="static_6"),
        "torch_us": lambda i: linear(x, plain[i % len(plain)]),
    }
    if device == "cpu":
        wide_x = x.float()
        functions["torch_fp32_us"] = lambda i: linear(wide_x, wide)
    times = measure(device, list(functions.values()))
    row = {"what": f"linear {n} x {k}, {tokens} tokens"}
    row |= {name: round(t * 1e6, 1) for name, t in zip(functions, times, strict=True)}
    return row | {"ratio": round(times[2] / times[0], 2)}


def linear_rows(device):
    rows = []
    for n, k in LAYERS[device]:
        wide = torch.randn(n, k, device=device) / 32
        packed = rotated(lambda i, w=wide: nvfp4.quantize(w.roll(i, 0)), n * k // 2, device)
        plain = rotated(lambda i, w=wide: w.roll(i, 0).bfloat16(), n * k * 2, device)
        rows += [layer_row(device, tokens, packed, plain, wide) for tokens in TOKENS[device]]
    return rows


def result(device, rows):
    """As bench/README.md has it."""
    columns = {"what": "operation", "us": "us", "w4a4_us": "4-bit activations, us"}
    columns |= {"torch_us": "torch, us", "ratio": "ratio"}
    if device == "cpu":
        columns["torch_fp32_us"] = "torch fp32, us"
    return {
        "title": f"NVFP4 as torch operations, {'CPU' if device == 'cpu' else 'CUDA'}",
        "device": device,
        "date": time.strftime("%Y-%m-%d"),
        "baseline": f"torch {torch.__version__}: cast to float8 of the same matrix, linear in bf16",
        "note": "calls from Python, bf16 matrices and activations",
        "columns": columns,
        "rows": [dict.fromkeys(columns, "") | row for row in rows],
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    name = torch.cuda.get_device_name() if arguments.device == "cuda" else "cpu"
    print(f"torch {torch.__version__}, {name}, {arguments.threads} threads")
    rows = []
    with torch.no_grad():
        for part in (quantise_rows, linear_rows):
            for row in part(arguments.device):
                rows.append(row)
                print(json.dumps(row), flush=True)
    if arguments.output:
        arguments.output.write_text(json.dumps(result(name, rows), indent=1) + "\n")


if __name__ == "__main__":
    main()
