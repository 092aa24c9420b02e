"""torch.ops.longspur.attention: parity with attention in float64, one sequence at a time;
gradients; what torch asks of an operation (schema, fake tensors, tracing); errors.

Tolerances: twice the error of plain torch operations in the dtype under test, plus a floor for the
rounding of the result (docs/numerics.md, section attention).
"""

import doctest
import math

import pytest
import torch

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[
            pytest.mark.cuda,
            pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        ],
    ),
]
# queries and keys of each sequence: equal, empty, one row, longer k, longer q
LENGTHS = [(70, 70), (0, 5), (1, 131), (33, 67), (131, 64), (5, 0)]
FLOOR = {torch.float32: 3e-7, torch.bfloat16: 2e-3, torch.float16: 3e-4, torch.float64: 1e-14}

pytestmark = pytest.mark.usefixtures("op_library")


def attention(*arguments, **options):
    return torch.ops.longspur.attention(*arguments, **options)


class Packed:
    """Random operands of packed sequences."""

    def __init__(self, lengths, heads, kv_heads, dim, dtype, device="cpu", seed=0):
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            values = torch.randn(*shape, generator=generator, dtype=torch.float64)
            return values.to(dtype).to(device)

        queries, keys = [n for n, _ in lengths], [m for _, m in lengths]
        self.q = normal(sum(queries), heads, dim).requires_grad_()
        self.k = normal(sum(keys), kv_heads, dim).requires_grad_()
        self.v = normal(sum(keys), kv_heads, dim).requires_grad_()
        self.grad_out = normal(sum(queries), heads, dim)
        self.grad_lse = normal(heads, sum(queries)).to(lse_dtype(dtype))
        self.cu_q, self.cu_k = cumulative(queries).to(device), cumulative(keys).to(device)
        self.longest = max(queries, default=0), max(keys, default=0)

    def arguments(self):
        return self.q, self.k, self.v, self.cu_q, self.cu_k, *self.longest


def lse_dtype(dtype):
    return torch.float64 if dtype == torch.float64 else torch.float32


def cumulative(lengths):
    return torch.tensor([0, *lengths]).cumsum(0).to(torch.int32)


def plain(q, k, v, cu_q, cu_k, causal, scale):
    """Attention from torch's operations in the dtype of q, a sequence at a time."""
    outs, lses = [], []
    group = q.shape[1] // k.shape[1]
    for b in range(len(cu_q) - 1):
        rows, columns = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        qb = q[rows].transpose(0, 1)
        kb, vb = (x[columns].transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
        n, m = qb.shape[1], kb.shape[1]
        scores = qb @ kb.transpose(1, 2) * scale
        hidden = torch.zeros(n, m, dtype=torch.bool, device=q.device)
        if causal:
            at = torch.arange(n, device=q.device)[:, None] + m - n
            hidden = torch.arange(m, device=q.device)[None] > at
        blind = hidden.all(-1)  # also when there is no key
        scores = scores.masked_fill(hidden & ~blind[:, None], -math.inf)
        p = scores.softmax(-1).masked_fill(blind[:, None], 0.0)
        outs.append((p @ vb).transpose(0, 1))
        lses.append(scores.logsumexp(-1).masked_fill(blind, -math.inf))
    return torch.cat(outs), torch.cat(lses, 1)


def results_and_gradients(packed, dtype, compute):
    """out, lse (where finite), dq, dk, dv of compute(q, k, v) with operands in dtype."""
    leaves = [x.detach().to(dtype).requires_grad_() for x in (packed.q, packed.k, packed.v)]
    out, lse = compute(*leaves)
    seen = lse > -math.inf
    gradients = torch.autograd.grad(
        [out, lse[seen]],
        leaves,
        [packed.grad_out.to(out.dtype), packed.grad_lse[seen].to(lse.dtype)],
    )
    named = dict(zip(("dq", "dk", "dv"), gradients, strict=True))
    return {"out": out, "lse": lse[seen]} | named, seen


def error(found, expected):
    """Root mean square of the difference over that of what is expected."""
    size = expected.double().norm()
    difference = (found.double() - expected.double()).norm()
    return (difference / size).item() if size > 0 else difference.item()


SHAPES = [(4, 2, 64), (9, 3, 64), (3, 1, 37), (2, 2, 128), (5, 5, 1), (2, 1, 256), (2, 1, 264)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", FLOOR, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "H{}_G{}_D{}".format(*s))
def test_parity(shape, dtype, causal, device):
    packed = Packed(LENGTHS, *shape, dtype, device)
    cu, scale = (packed.cu_q, packed.cu_k), 1.0 / math.sqrt(shape[2])
    expected, seen = results_and_gradients(
        packed, torch.float64, lambda q, k, v: plain(q, k, v, *cu, causal, scale)
    )
    naive, _ = results_and_gradients(
        packed, dtype, lambda q, k, v: plain(q, k, v, *cu, causal, scale)
    )
    found, found_seen = results_and_gradients(
        packed, dtype, lambda q, k, v: attention(q, k, v, *cu, *packed.longest, causal=causal)
    )
    assert torch.equal(found_seen, seen)
    assert found["out"].dtype == dtype
    assert found["lse"].dtype == lse_dtype(dtype)
    assert found["out"][~seen.t()].abs().sum() == 0
    for name, value in found.items():
        bound = 2.0 * error(naive[name], expected[name]) + FLOOR[dtype]
        assert error(value, expected[name]) <= bound, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("scale", [-0.4, 0.0, 3.0])
def test_any_scale(scale, device):
    packed = Packed([(40, 70), (3, 3)], 4, 2, 24, torch.float32, device)
    cu = packed.cu_q, packed.cu_k

    def reference(q, k, v):
        return plain(q, k, v, *cu, True, scale)

    expected, _ = results_and_gradients(packed, torch.float64, reference)
    naive, _ = results_and_gradients(packed, torch.float32, reference)
    found, _ = results_and_gradients(
        packed, torch.float32, lambda q, k, v: attention(q, k, v, *cu, *packed.longest, True, scale)
    )
    for name, value in found.items():
        # three times, not two: scores of tens put the exponentials' own error on top
        bound = 3.0 * error(naive[name], expected[name]) + FLOOR[torch.float32]
        assert error(value, expected[name]) <= bound, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
def test_long_prompts(causal, device):
    """From 1,024 queries on Hopper has a kernel of its own."""
    packed = Packed(
        [(1100, 1100), (0, 5), (70, 131), (1030, 1207)], 4, 2, 64, torch.bfloat16, device
    )
    cu = packed.cu_q, packed.cu_k

    def reference(q, k, v):
        return plain(q, k, v, *cu, causal, 0.125)

    expected, seen = results_and_gradients(packed, torch.float64, reference)
    naive, _ = results_and_gradients(packed, torch.bfloat16, reference)
    found, found_seen = results_and_gradients(
        packed,
        torch.bfloat16,
        lambda q, k, v: attention(q, k, v, *cu, *packed.longest, causal=causal),
    )
    assert torch.equal(found_seen, seen)
    for name, value in found.items():
        bound = 2.0 * error(naive[name], expected[name]) + FLOOR[torch.bfloat16]
        assert error(value, expected[name]) <= bound, name


def test_strided_operands():
    """Views of a fused projection, a transposed layout, a flipped one: the same numbers."""
    packed = Packed([(33, 33), (70, 70)], 4, 4, 20, torch.float32)
    q, k, v = (x.detach() for x in (packed.q, packed.k, packed.v))
    expected = attention(*packed.arguments())
    fused = torch.stack([q, k, v], 1).flatten(1)  # [T, 3 * H * D]
    views = fused.view(-1, 3, 4, 20).unbind(1)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    dim_first = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (q, k, v)]
    for operands in (views, heads_first, dim_first):
        assert not all(x.is_contiguous() for x in operands)
        found = attention(*operands, *packed.arguments()[3:])
        assert torch.equal(found[0], expected[0])
        assert torch.equal(found[1], expected[1])
        assert found[0].is_contiguous()
    # a gradient with strides 0, as sum() gives
    expected[0].sum().backward()
    assert packed.q.grad.isfinite().all()


def test_lse_alone_and_unused_results():
    packed = Packed([(20, 31)], 2, 1, 16, torch.float64)
    out, lse = attention(*packed.arguments())
    from_lse = torch.autograd.grad(lse.sum(), packed.q, retain_graph=True)[0]
    from_out = torch.autograd.grad(out.sum(), packed.q, retain_graph=True)[0]
    both = torch.autograd.grad(out.sum() + lse.sum(), packed.q)[0]
    assert torch.allclose(both, from_lse + from_out, atol=1e-12)
    # d lse / d v is zero
    _, lse = attention(*packed.arguments())
    assert torch.autograd.grad(lse.sum(), packed.v)[0].abs().max() == 0


def test_gradcheck():
    packed = Packed([(3, 4), (0, 2), (5, 3)], 4, 2, 3, torch.float64)

    def compute(q, k, v):
        out, lse = attention(q, k, v, *packed.arguments()[3:], True, 0.7)
        return out, lse.masked_fill(lse == -math.inf, 0.0)

    assert torch.autograd.gradcheck(compute, (packed.q, packed.k, packed.v))


def test_second_derivative_is_refused():
    packed = Packed([(3, 4)], 2, 1, 8, torch.float64)
    out, _ = attention(*packed.arguments())
    (gradient,) = torch.autograd.grad(out.square().sum(), packed.q, create_graph=True)
    with pytest.raises(RuntimeError, match="attention: found a second derivative, expected first"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_repetition_do_not_change_a_bit(dtype):
    packed = Packed([(200, 200), (7, 90)], 6, 2, 32, dtype)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out, lse = attention(*packed.arguments())
            leaves = packed.q, packed.k, packed.v
            return out, lse, *torch.autograd.grad(out, leaves, packed.grad_out)
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (1, 2, 3):
        for a, b in zip(first, run(threads), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype, device):
    packed = Packed([(3, 4), (0, 2), (5, 3)], 4, 2, 8, dtype, device)
    torch.library.opcheck(torch.ops.longspur.attention.default, packed.arguments())
    with torch.no_grad():
        out, lse = attention(*packed.arguments())
    backward = (packed.grad_out, packed.grad_lse, *packed.arguments()[:3], out, lse)
    detached = [x.detach() for x in backward] + list(packed.arguments()[3:])
    torch.library.opcheck(torch.ops.longspur.attention_backward.default, detached)


def test_meta_and_schema():
    q = torch.empty(7, 4, 16, dtype=torch.bfloat16, device="meta")
    k = torch.empty(9, 2, 16, dtype=torch.bfloat16, device="meta")
    cu = torch.empty(3, dtype=torch.int32, device="meta")
    out, lse = attention(q, k, k, cu, cu, 5, 5)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, torch.bfloat16, "meta")
    assert (lse.shape, lse.dtype) == ((4, 7), torch.float32)
    with pytest.raises(RuntimeError, match="attention: k: found shape"):
        attention(q, k[0], k, cu, cu, 5, 5)
    assert str(torch.ops.longspur.attention.default._schema) == (
        "longspur::attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor "
        "cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, bool causal=True, float? scale=None) -> "
        "(Tensor out, Tensor lse)"
    )


def test_compile():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(q, k, v, cu_q, cu_k):
        out, lse = attention(q * 2, k, v, cu_q, cu_k, 64, 64)
        return out.square().sum() + lse.exp().sum()

    for lengths in ([(20, 31), (9, 9)], [(17, 17), (40, 64)]):  # another length: no new graph
        packed = Packed(lengths, 2, 1, 16, torch.float32)
        leaves = packed.q, packed.k, packed.v
        compiled = torch.autograd.grad(step(*leaves, packed.cu_q, packed.cu_k), leaves)
        out, lse = attention(packed.q * 2, *packed.arguments()[1:])
        eager = torch.autograd.grad(out.square().sum() + lse.exp().sum(), leaves)
        for a, b in zip(compiled, eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def broken_calls():
    """(what the message must hold, changes to good arguments)"""
    q, k = torch.zeros(5, 4, 8), torch.zeros(6, 2, 8)
    cu = [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 2, 6])]
    good = dict(q=q, k=k, v=k, cu_q=cu[0], cu_k=cu[1], max_q=3, max_k=4, scale=None)

    def values(*entries):
        return torch.tensor(entries, dtype=torch.int32)

    changes = {
        "q: found shape [5, 32], expected [Tq, H, D]": dict(q=q.flatten(1)),
        "q: found int64, expected float32, bfloat16": dict(q=q.long()),
        "k: found bfloat16, expected float32 as q has": dict(k=k.bfloat16()),
        "v: found float64, expected float32 as q has": dict(v=k.double()),
        "k: found [6, 2, 7], expected [Tk, Hkv, D] with D = 8": dict(k=k[..., :7]),
        "v: found shape [5, 2, 8], expected [6, 2, 8], k's shape": dict(v=k[:5]),
        "heads: found 3 of q and 2 of k, expected a multiple": dict(q=q[:, :3]),
        "heads: found 4 of q and 0 of k": dict(k=k[:, :0], v=k[:, :0]),
        "expected [Tq, H, D] with D at least 1": dict(q=q[..., :0], k=k[..., :0], v=k[..., :0]),
        "k: found on meta, expected on cpu as q is": dict(k=k.to("meta")),
        "cu_seqlens_q: found int64, expected int32": dict(cu_q=cu[0].long()),
        "cu_seqlens_q: found shape [], expected [B + 1]": dict(cu_q=cu[0][0]),
        "cu_seqlens_q: found no entries, expected B + 1": dict(cu_q=cu[0][:0]),
        "cu_seqlens_k: found 2 entries, expected 3 as cu_seqlens_q has": dict(cu_k=cu[1][1:]),
        "cu_seqlens_q[0]: found 1, expected 0": dict(cu_q=values(1, 2, 5)),
        "cu_seqlens_q[1]: found -1, expected at least 0": dict(cu_q=values(0, -1, 5)),
        "cu_seqlens_k[2]: found 1, expected at least 2": dict(cu_k=values(0, 2, 1)),
        "cu_seqlens_q[2]: found 4, expected 5, the number of rows": dict(cu_q=values(0, 2, 4)),
        "cu_seqlens_k[2]: found 7, expected 6, the number of rows": dict(
            cu_k=values(0, 2, 7), max_k=5
        ),
        "cu_seqlens_k: found 4 rows of sequence 1, expected at most": dict(max_k=3),
        "max_seqlen_q: found -1, expected at least 0": dict(max_q=-1),
        "scale: found nan, expected a finite number": dict(scale=math.nan),
        "cu_seqlens_q[2]: found -2147483648, expected at least 2147483647": dict(
            cu_q=values(0, 2**31 - 1, -(2**31)), max_q=2**31 - 1
        ),
    }
    return [pytest.param(message, good | change, id=message) for message, change in changes.items()]


@pytest.mark.parametrize(("message", "call"), broken_calls())
def test_errors_name_found_and_expected(message, call):
    c = call
    with pytest.raises(RuntimeError) as caught:
        attention(
            c["q"], c["k"], c["v"], c["cu_q"], c["cu_k"], c["max_q"], c["max_k"], True, c["scale"]
        )
    text = str(caught.value)
    assert text.startswith("attention: ") and message in text
    assert "\n" not in text.strip()


def test_nothing_to_do():
    for lengths in ([], [(0, 0)], [(0, 3)], [(3, 0), (0, 2)]):
        packed = Packed(lengths, 4, 2, 8, torch.float32)
        out, lse = attention(*packed.arguments())
        assert out.shape == packed.q.shape and lse.shape == (4, packed.q.shape[0])
        assert (out == 0).all() and (lse == -math.inf).all()
        out.sum().backward()
        assert all((x.grad == 0).all() for x in (packed.q, packed.k, packed.v))


def test_documented_example():
    import longspur.ops

    result = doctest.testmod(longspur.ops)
    assert result.attempted >= 8 and result.failed == 0


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_takes_cu_seqlens_on_the_cpu():
    packed = Packed(LENGTHS, 4, 2, 64, torch.bfloat16, "cuda")
    on_device = attention(*packed.arguments())
    operands = packed.q, packed.k, packed.v, packed.cu_q.cpu(), packed.cu_k.cpu()
    from_host = attention(*operands, *packed.longest)
    assert torch.equal(on_device[0], from_host[0]) and torch.equal(on_device[1], from_host[1])
