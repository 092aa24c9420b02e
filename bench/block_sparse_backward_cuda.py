"""Backward of block-sparse and dense attention on one GPU beside torch's cuDNN attention.

    python3 bench/block_sparse_backward_cuda.py \
        build/cuda/lib/libblock_sparse_backward_cuda_bench.so [--only TEXT] [--profile]

bf16, one sequence, causal, random data; masks of random blocks with the first and the diagonal
one. The gradients of one KV head are first compared with fp32 sums. Times are sustained: 0.12 s of
back-to-back launches, then the median over 0.25 s; the baseline, cuDNN's dense backward of the same
shape, right after. One JSON object a line.
"""

import argparse
import ctypes
import json
import math

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

POINTERS = ["q", "k", "v", "out", "grad_out", "lse", "dq", "dk", "dv", "workspace", "cu", "words"]
SIZES = ["batch", "heads", "kv_heads", "dim", "total", "longest"]
MASK_SIZES = ["block_size", "mask_heads", "query_blocks", "row_words"]
CHUNK = 2048  # query rows of the fp32 sums


class Backward(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_void_p) for n in POINTERS]
        + [(n, ctypes.c_int64) for n in SIZES + MASK_SIZES]
        + [("deterministic", ctypes.c_int32), ("scale", ctypes.c_float)]
    )


def interval(run, count):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def sustained(run):
    once = interval(run, 1)
    count = max(1, int(20 / max(once, 1e-3)))
    total = 0.0
    while total < 120:
        total += interval(run, count)
    times, total = [], 0.0
    while total < 250:
        ms = interval(run, count)
        times.append(ms / count)
        total += ms
    return sorted(times)[len(times) // 2]


def pack(blocks):
    """bool [..., key blocks] to int32 words."""
    width = -(-blocks.shape[-1] // 128) * 128
    bits = torch.nn.functional.pad(blocks, (0, width - blocks.shape[-1]))
    bits = bits.view(*blocks.shape[:-1], width // 32, 32).to(torch.int64)
    words = (bits << torch.arange(32, device=bits.device)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32).contiguous()


class Problem:
    def __init__(self, library, n, heads, kv_heads, dim=128, density=None, block_size=128,
                 deterministic=False):  # fmt: skip
        torch.manual_seed(0)
        self.library, self.n, self.heads, self.kv_heads = library, n, heads, kv_heads
        self.dim, self.block_size, self.blocks = dim, block_size, None
        new = lambda h: torch.randn(n, h, dim, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        self.q, self.k, self.v, self.grad_out = new(heads), new(kv_heads), new(kv_heads), new(heads)
        self.dq, self.dk, self.dv = (torch.full_like(x, math.nan) for x in (self.q, self.k, self.v))
        self.cu = torch.tensor([0, n], dtype=torch.int32, device="cuda")
        self.words, row_words = None, 0
        if density is not None:
            self.blocks = self.random_blocks(density)
            self.words = pack(self.blocks)
            row_words = self.words.shape[-1]
        self.out = torch.empty_like(self.q)
        self.lse = torch.empty(heads, n, device="cuda")
        for h in range(heads):
            self.forward(h)
        names = [*POINTERS[:9], "cu"]
        self.args = Backward(
            **{x: getattr(self, x).data_ptr() for x in names},
            words=self.words.data_ptr() if self.words is not None else None,
            batch=1, heads=heads, kv_heads=kv_heads, dim=dim, total=n, longest=n,
            block_size=block_size, mask_heads=heads, query_blocks=-(-n // 128),
            row_words=row_words, deterministic=int(deterministic), scale=dim**-0.5)  # fmt: skip
        size = library.longspur_backward_workspace(ctypes.byref(self.args))
        self.workspace = torch.empty(size, dtype=torch.uint8, device="cuda")
        self.args.workspace = self.workspace.data_ptr()

    def random_blocks(self, density):
        per, rows, columns = (
            128 // self.block_size,
            -(-self.n // 128),
            -(-self.n // self.block_size),
        )
        i = torch.arange(rows, device="cuda")[:, None]
        j = torch.arange(columns, device="cuda")[None, :]
        blocks = torch.rand(self.heads, rows, columns, device="cuda") < density
        return (blocks | (j < per) | (j >= i * per)) & (j < (i + 1) * per)

    def pairs(self):
        """Blocks of 128 x 128 that count; the diagonal as half."""
        rows = -(-self.n // 128)
        if self.blocks is None:
            return self.heads * rows * rows / 2
        return float(self.blocks.sum()) * self.block_size / 128 - self.heads * rows / 2

    def scores(self, h, begin):
        k = self.k[:, h // (self.heads // self.kv_heads)].float()
        s = self.q[begin : begin + CHUNK, h].float() @ k.T * self.dim**-0.5
        i = torch.arange(begin, begin + s.shape[0], device="cuda")[:, None]
        hidden = torch.arange(self.n, device="cuda")[None, :] > i
        if self.blocks is not None:
            rows = self.blocks[h, begin // 128 : -(-(begin + s.shape[0]) // 128)]
            rows = rows.repeat_interleave(128, 0).repeat_interleave(self.block_size, 1)
            hidden |= ~rows[: s.shape[0], : self.n]
        return s.masked_fill_(hidden, -math.inf)

    def forward(self, h):
        v = self.v[:, h // (self.heads // self.kv_heads)].float()
        for begin in range(0, self.n, CHUNK):
            s = self.scores(h, begin)
            lse = s.logsumexp(-1)
            self.lse[h, begin : begin + CHUNK] = lse
            p = (s - lse[:, None]).exp_()
            self.out[begin : begin + CHUNK, h] = (p @ v).to(torch.bfloat16)

    def run(self):
        stream = torch.cuda.current_stream().cuda_stream
        error = self.library.longspur_backward(ctypes.byref(self.args), ctypes.c_void_p(stream))
        assert error is None, error

    def check(self):
        """Relative errors of dq, dk, dv of the last KV head."""
        group, g = self.heads // self.kv_heads, self.kv_heads - 1
        dk, dv = (torch.zeros(self.n, self.dim, device="cuda") for _ in range(2))
        k, v = self.k[:, g].float(), self.v[:, g].float()
        dq = torch.zeros(self.n, group, self.dim, device="cuda")
        for h in range(group):
            for begin in range(0, self.n, CHUNK):
                at, head = slice(begin, begin + CHUNK), g * group + h
                p = (self.scores(head, begin) - self.lse[head, at, None]).exp_()
                go, q = self.grad_out[at, head].float(), self.q[at, head].float()
                delta = (go * self.out[at, head].float()).sum(-1, keepdim=True)
                ds = p * (go @ v.T - delta)
                dq[at, h] = ds @ k * self.dim**-0.5
                dk += ds.T @ q * self.dim**-0.5
                dv += p.T @ go
        self.run()
        torch.cuda.synchronize()
        found = (self.dq[:, g * group : (g + 1) * group], self.dk[:, g], self.dv[:, g])
        for x in (self.dq, self.dk, self.dv):
            assert not x.isnan().any()
        return [
            round(float((x.float() - y).norm() / y.norm()), 6)
            for x, y in zip(found, (dq, dk, dv), strict=True)
        ]


def cudnn_backward(p):
    """A call of cuDNN's dense backward on the same inputs."""
    q, k, v = (x.transpose(0, 1)[None].detach().requires_grad_(True) for x in (p.q, p.k, p.v))
    with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
        out = scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    grad_out = p.grad_out.transpose(0, 1)[None]
    return lambda: torch.autograd.grad(out, (q, k, v), grad_out, retain_graph=True)


def profile(p):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profiler:
        for _ in range(20):
            p.run()
        torch.cuda.synchronize()
    return {
        e.key.split("<")[0].split("::")[-1].split("(")[0]: round(e.device_time_total / 20, 1)
        for e in profiler.key_averages()
    }


CASES = {
    "10 % 32K 32/8": (32768, 32, 8, 128, 0.1),
    "10 % 32K 32/32": (32768, 32, 32, 128, 0.1),
    "10 % 32K 32/8 deterministic": (32768, 32, 8, 128, 0.1, 128, True),
    "10 % 32K 32/8 blocks of 64": (32768, 32, 8, 128, 0.1, 64),
    "10 % 32K 32/8 D 64": (32768, 32, 8, 64, 0.1),
    "dense 16K 32/32": (16384, 32, 32),
    "dense 32K 32/8": (32768, 32, 8),
    "dense 32K 32/32": (32768, 32, 32),
    "dense 16K 32/8 D 64": (16384, 32, 8, 64),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("library")
    parser.add_argument("--only", default="", help="cases whose name has this text")
    parser.add_argument("--profile", action="store_true", help="microseconds of each kernel too")
    options = parser.parse_args()
    library = ctypes.CDLL(options.library)
    library.longspur_backward.restype = ctypes.c_char_p
    library.longspur_backward_workspace.restype = ctypes.c_int64
    torch.backends.cuda.matmul.allow_tf32 = False
    for name, case in CASES.items():
        if options.only not in name:
            continue
        p = Problem(library, *case)
        errors = p.check()
        assert max(errors) < 2e-2, errors
        ms = sustained(p.run)
        flops = 10 * p.pairs() * 128 * 128 * p.dim
        row = {"case": name, "ms": round(ms, 3), "tflops": round(flops / ms * 1e-9, 1),
               "errors": errors, "workspace_mib": p.workspace.numel() >> 20}  # fmt: skip
        if options.profile:
            row["kernels_us"] = profile(p)
        baseline = sustained(cudnn_backward(p))
        row |= {"cudnn_dense_ms": round(baseline, 3), "ratio": round(baseline / ms, 2)}
        print(json.dumps(row), flush=True)
        del p
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
