"""Block-sparse and dense attention on one GPU beside torch's cuDNN and flash attention.

    python3 bench/block_sparse_cuda.py build/cuda/lib/libblock_sparse_cuda_bench.so [--only TEXT]

bf16, one sequence, causal, random data; masks of random blocks with the first and the diagonal
one. Each result is first compared with fp32 sums on sampled rows. Times are sustained: 0.12 s of
back-to-back launches, then the median over 0.25 s; ours and the baseline in turns. One JSON object
a line, with the clock and power that nvidia-smi saw.
"""

import argparse
import ctypes
import json
import math
import re
import subprocess
import tempfile
import time

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

NAMES_P = ["q", "k", "v", "out", "lse", "workspace", "cu_q", "cu_k", "words", "pool", "block_table"]
NAMES_I = [
    "pages",
    "max_blocks",
    "batch",
    "heads",
    "kv_heads",
    "dim",
    "total_q",
    "total_k",
    "max_q",
    "max_k",
    "block_size",
    "mask_heads",
    "query_blocks",
    "row_words",
]


class Forward(ctypes.Structure):
    _fields_ = (
        [(n, ctypes.c_void_p) for n in NAMES_P]
        + [(n, ctypes.c_int64) for n in NAMES_I]
        + [("type", ctypes.c_int32), ("causal", ctypes.c_int32), ("scale", ctypes.c_float)]
    )


class Clock:
    """What nvidia-smi reports while something runs."""

    def __init__(self):
        handle, self.path = tempfile.mkstemp()
        query = "--query-gpu=clocks.sm,power.draw --format=csv,noheader,nounits -lms 50"
        self.process = subprocess.Popen(["nvidia-smi", *query.split()], stdout=handle)
        self.at = 0

    def read(self):
        with open(self.path) as log:
            log.seek(self.at)
            rows = [line.split(",") for line in log.readlines() if line.count(",") == 1]
            self.at = log.tell()
        if not rows:
            return None, None
        clocks, watts = zip(*((float(a), float(b)) for a, b in rows), strict=True)
        return round(sum(clocks) / len(clocks)), round(sum(watts) / len(watts))

    def stop(self):
        self.process.terminate()
        self.process.wait()


def interval(run, count):
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(count):
        run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def sustained(run, clock):
    once = interval(run, 1)
    count = max(1, int(20 / max(once, 1e-3)))
    total = 0.0
    while total < 120:
        total += interval(run, count)
    clock.read()
    times, total = [], 0.0
    while total < 250:
        ms = interval(run, count)
        times.append(ms / count)
        total += ms
    return sorted(times)[len(times) // 2], *clock.read()


class Problem:
    def __init__(
        self,
        library,
        n,
        heads,
        kv_heads,
        dim=128,
        density=None,
        block_size=128,
        mask_heads=None,
        paged=False,
        seed=0,
    ):
        torch.manual_seed(seed)
        self.library, self.n, self.heads, self.kv_heads = library, n, heads, kv_heads
        self.density, self.block_size = density, block_size
        new = lambda h: torch.randn(n, h, dim, device="cuda", dtype=torch.bfloat16)  # noqa: E731
        self.q, self.k, self.v = new(heads), new(kv_heads), new(kv_heads)
        self.out = torch.full_like(self.q, math.nan)
        self.lse = torch.full((heads, n), math.nan, device="cuda")
        self.workspace = torch.empty(64, dtype=torch.uint8, device="cuda")
        self.cu = torch.tensor([0, n], dtype=torch.int32, device="cuda")
        self.rows = -(-n // 128)
        self.listed = None
        a = self.args = Forward(
            **{x: getattr(self, x).data_ptr() for x in NAMES_P[:6]},
            cu_q=self.cu.data_ptr(), cu_k=self.cu.data_ptr(), batch=1, heads=heads,
            kv_heads=kv_heads, dim=dim, total_q=n, total_k=n, max_q=n, max_k=n, type=0, causal=1,
            scale=dim**-0.5)  # fmt: skip
        if density is not None:
            self.make_mask(mask_heads or heads)
        if paged:
            self.make_pages(a, n, kv_heads, dim)

    def make_pages(self, a, n, kv_heads, dim):
        count = -(-n // 64)
        table = torch.randperm(kv_heads * count, device="cuda").view(kv_heads, count)
        self.table = table.to(torch.int32).contiguous()
        self.pool = torch.empty(kv_heads * count, 2, 64, dim, device="cuda", dtype=torch.bfloat16)
        for i, x in enumerate((self.k, self.v)):
            self.pool[table, i] = x.view(count, 64, kv_heads, dim).permute(2, 0, 1, 3)
        a.pool, a.block_table = self.pool.data_ptr(), self.table.data_ptr()
        a.pages, a.max_blocks = kv_heads * count, count

    def make_mask(self, mask_heads):
        per = 128 // self.block_size
        columns = -(-self.n // self.block_size)
        i = torch.arange(self.rows, device="cuda")[:, None]
        j = torch.arange(columns, device="cuda")[None, :]
        seen = (i + 1) * per
        forced = (j < per) | ((j >= i * per) & (j < seen))
        left = (self.density * seen - 2 * per) / (seen - 2 * per).clamp(min=1)
        self.mask = torch.rand(mask_heads, self.rows, columns, device="cuda") < left
        self.mask = (self.mask | forced) & (j < seen)
        self.listed = self.mask.sum().item() * (self.heads // mask_heads)
        words = -(-columns // 128) * 4
        self.words = torch.empty(mask_heads, self.rows, words, dtype=torch.int32, device="cuda")
        text = self.library.longspur_pack_mask(
            ctypes.c_void_p(self.mask.data_ptr()), ctypes.c_int64(mask_heads * self.rows),
            ctypes.c_int64(columns), ctypes.c_void_p(self.words.data_ptr()),
            ctypes.c_void_p(torch.cuda.current_stream().cuda_stream))  # fmt: skip
        assert text is None, text
        a = self.args
        a.words, a.block_size, a.mask_heads = self.words.data_ptr(), self.block_size, mask_heads
        a.query_blocks, a.row_words = self.rows, words

    def run(self):
        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        text = self.library.longspur_forward(ctypes.byref(self.args), stream)
        assert text is None, text

    def flops(self):
        """Useful ones: of the diagonal blocks, half."""
        dim, full = self.args.dim, self.rows * (self.rows + 1) // 2 * self.heads
        area = full if self.listed is None else self.listed * self.block_size / 128
        return 4 * dim * 128 * 128 * (area - self.rows * self.heads / 2)

    def check(self):
        self.run()
        worst = 0.0
        for block in {0, 1, self.rows // 2, self.rows - 1}:
            rows = slice(block * 128, min(block * 128 + 128, self.n))
            end = rows.stop
            for head in {0, self.heads // 2, self.heads - 1}:
                g = head // (self.heads // self.kv_heads)
                q = self.q[rows, head].float()
                s = q @ self.k[:end, g].float().T * self.args.scale
                t = torch.arange(end, device="cuda")
                hidden = t[None, :] > torch.arange(rows.start, end, device="cuda")[:, None]
                if self.listed is not None:
                    line = self.mask[head // (self.heads // self.args.mask_heads), block]
                    hidden = hidden | ~line[t // self.block_size][None, :]
                s = s.masked_fill(hidden, -math.inf)
                expected = torch.softmax(s, -1) @ self.v[:end, g].float()
                found = self.out[rows, head].float()
                error = ((found - expected).norm() / expected.norm()).item()
                lse = (self.lse[head, rows] - torch.logsumexp(s, -1)).abs().max().item()
                worst = max(worst, error, lse * 100, math.inf if math.isnan(error + lse) else 0)
        assert not self.out.isnan().any() and not self.lse.isnan().any()
        assert worst < 4e-3, worst
        return worst


def baseline(problem, backend):
    q, k, v = (x.transpose(0, 1)[None] for x in (problem.q, problem.k, problem.v))
    gqa = problem.heads != problem.kv_heads

    def run():
        with sdpa_kernel(backend):
            scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=gqa)

    return run


def cases():
    for n in (8192, 16384, 32768, 131072):
        yield f"dense {n} 32/32", dict(n=n, heads=32, kv_heads=32)
    for n in (8192, 32768, 131072):
        yield f"dense {n} 32/8", dict(n=n, heads=32, kv_heads=8)
    for d64 in (8192, 32768):
        yield f"dense {d64} 32/8 d64", dict(n=d64, heads=32, kv_heads=8, dim=64)
    yield "dense 32768 32/8 paged", dict(n=32768, heads=32, kv_heads=8, paged=True)
    for kv in (32, 8):
        for n, density in ((32768, 0.1), (131072, 0.1), (131072, 0.05), (262144, 0.1)):
            if n == 262144 and kv == 32:
                continue
            yield f"{density} {n} 32/{kv}", dict(n=n, heads=32, kv_heads=kv, density=density)
    for n in (32768, 131072):
        yield f"0.1 {n} 32/8 keys 64", dict(n=n, heads=32, kv_heads=8, density=0.1, block_size=64)
        yield (f"0.1 {n} 32/8 shared", dict(n=n, heads=32, kv_heads=8, density=0.1, mask_heads=8))
    yield "0.1 32768 32/8 d64", dict(n=32768, heads=32, kv_heads=8, dim=64, density=0.1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("library", nargs="+")
    parser.add_argument("--only", default="")  # regular expressions
    parser.add_argument("--skip", default="~")
    parser.add_argument("--no-baseline", action="store_true")
    args = parser.parse_args()
    libraries = [ctypes.CDLL(x) for x in args.library]
    for library in libraries:
        for function in (library.longspur_forward, library.longspur_pack_mask):
            function.restype = ctypes.c_char_p
    clock = Clock()
    time.sleep(0.3)
    for name, options in cases():
        if not re.search(args.only, name) or re.search(args.skip, name):
            continue
        for path, library in zip(args.library, libraries, strict=True):
            problem = Problem(library, **options)
            error = problem.check()
            ms, mhz, watts = sustained(problem.run, clock)
            line = {"case": name, "ms": round(ms, 4), "tflops": round(problem.flops() / ms / 1e9),
                    "mhz": mhz, "watts": watts, "error": float(f"{error:.2g}")}  # fmt: skip
            if len(libraries) > 1:
                line["library"] = path
            if problem.listed is not None:
                all_blocks = problem.rows * (problem.rows + 1) // 2 * problem.heads
                line["density"] = round(
                    problem.listed * options.get("block_size", 128) / 128 / all_blocks, 4
                )
            elif library is libraries[-1] and not args.no_baseline and "paged" not in name:
                for label, backend in (("cudnn", SDPBackend.CUDNN_ATTENTION),):
                    try:
                        other, mhz, watts = sustained(baseline(problem, backend), clock)
                        line |= {f"{label}_ms": round(other, 4), f"{label}_mhz": mhz,
                                 "ratio": round(other / ms, 3)}  # fmt: skip
                    except RuntimeError as error:
                        line[label] = str(error).splitlines()[0]
            print(json.dumps(line), flush=True)
            del problem
            torch.cuda.empty_cache()
    clock.stop()


if __name__ == "__main__":
    main()
