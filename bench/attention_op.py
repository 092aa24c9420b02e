"""longspur.attention against torch's scaled_dot_product_attention on the CPU, causal.

    .venv/bin/python bench/attention_op.py [--threads 2] [--repeat 5]

Both are checked against each other first, then run alternately in one process; printed is the best
of the repetitions. torch gets its keys and values repeated for grouped heads beforehand, which is
not counted.
"""

import argparse
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import scaled_dot_product_attention

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "python"))
import longspur  # from this checkout

SHAPES = [(2048, 9, 3, 64), (2048, 8, 8, 128), (512, 8, 8, 64)]  # T, H, Hkv, D


def best(functions, repeat):
    """Shortest time of each, in seconds, taken in turns."""
    times = [float("inf")] * len(functions)
    for _ in range(repeat):
        for i, function in enumerate(functions):
            begin = time.perf_counter()
            function()
            times[i] = min(times[i], time.perf_counter() - begin)
    return times


def measure(dtype, shape, repeat):
    tokens, heads, kv_heads, dim = shape
    q, k, v = (torch.randn(tokens, n, dim).to(dtype) for n in (heads, kv_heads, kv_heads))
    cu = torch.tensor([0, tokens], dtype=torch.int32)
    group = heads // kv_heads
    theirs = [
        x.detach().transpose(0, 1)[None].contiguous().requires_grad_()
        for x in (q, k.repeat_interleave(group, 1), v.repeat_interleave(group, 1))
    ]
    ours = [x.requires_grad_() for x in (q, k, v)]

    def our_forward():
        return longspur.attention(*ours, cu, cu, tokens, tokens)[0]

    def their_forward():
        return scaled_dot_product_attention(*theirs, is_causal=True)

    out, expected = our_forward(), their_forward()
    grad = torch.randn_like(out)
    their_grad = grad.transpose(0, 1)[None].contiguous()
    difference = (out.transpose(0, 1) - expected[0]).norm() / expected.norm()
    assert difference < (1e-5 if dtype == torch.float32 else 1e-2), difference
    with torch.no_grad():
        forward = best([our_forward, their_forward], repeat)
    backward = best(
        [
            lambda: torch.autograd.grad(out, ours, grad, retain_graph=True),
            lambda: torch.autograd.grad(expected, theirs, their_grad, retain_graph=True),
        ],
        repeat,
    )
    flops = 2 * tokens * tokens * heads * dim  # of the causal half
    for name, (mine, other), factor in (("forward", forward, 1.0), ("backward", backward, 2.5)):
        print(
            f"{str(dtype)[6:]:9} T {tokens} H {heads}/{kv_heads} D {dim:3} {name:8} "
            f"{mine * 1e3:7.1f} ms {factor * flops / mine / 1e9:5.0f} GFLOP/s, "
            f"torch {other * 1e3:7.1f} ms, ratio {other / mine:.2f}",
            flush=True,
        )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, {arguments.threads} threads")
    for dtype in (torch.float32, torch.bfloat16):
        for shape in SHAPES:
            measure(dtype, shape, arguments.repeat)


if __name__ == "__main__":
    main()
