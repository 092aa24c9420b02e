"""torch.ops.longspur.block_sparse_attention: parity with attention in float64 under the same mask;
gradients; what torch asks of an operation; laws; errors; Block-Sparse-Attention's arguments.

Tolerances: as of test_attention_op.py.
"""

import math

import pytest
import torch
from test_attention_op import DEVICES, FLOOR, Packed, error, lse_dtype, results_and_gradients

pytestmark = pytest.mark.usefixtures("op_library")
# queries and keys: several blocks of both, a shorter q, a longer q, one row, empty
LENGTHS = [(200, 200), (0, 5), (1, 300), (130, 261), (150, 70), (5, 0)]


def block_sparse_attention(*arguments, **options):
    return torch.ops.longspur.block_sparse_attention(*arguments, **options)


def random_mask(packed, heads, block_size, share=0.5, seed=0):
    """bool [B, heads, nQ, nK]; some rows have nothing."""
    generator = torch.Generator().manual_seed(seed)
    longest_q, longest_k = packed.longest
    shape = (
        len(packed.cu_q) - 1,
        heads,
        math.ceil(longest_q / 128),
        math.ceil(longest_k / block_size),
    )
    return (torch.rand(shape, generator=generator) < share).to(packed.q.device)


def plain(q, k, v, cu_q, cu_k, mask, block_size, causal, scale):
    """Attention over listed blocks from torch's operations in the dtype of q."""
    outs, lses = [], []
    heads, group = q.shape[1], q.shape[1] // k.shape[1]
    mask = mask.repeat_interleave(heads // mask.shape[1], 1)
    for b in range(len(cu_q) - 1):
        rows, columns = slice(cu_q[b], cu_q[b + 1]), slice(cu_k[b], cu_k[b + 1])
        qb = q[rows].transpose(0, 1)
        kb, vb = (x[columns].transpose(0, 1).repeat_interleave(group, 0) for x in (k, v))
        n, m = qb.shape[1], kb.shape[1]
        scores = qb @ kb.transpose(1, 2) * scale
        row, column = torch.arange(n, device=q.device), torch.arange(m, device=q.device)
        seen = mask[b][:, (row // 128)[:, None], (column // block_size)[None]]
        if causal:
            seen = seen & (column[None] <= row[:, None] + m - n)
        blind = ~seen.any(-1)
        scores = scores.masked_fill(~seen & ~blind[..., None], -math.inf)
        p = scores.softmax(-1).masked_fill(blind[..., None], 0.0)
        outs.append((p @ vb).transpose(0, 1))
        lses.append(scores.logsumexp(-1).masked_fill(blind, -math.inf))
    return torch.cat(outs), torch.cat(lses, 1)


# H, Hkv, D, heads of the mask, keys a block
SHAPES = [
    (4, 2, 64, 4, 128),
    (9, 3, 64, 3, 64),
    (3, 1, 37, 1, 128),
    (2, 2, 128, 2, 64),
    (2, 1, 264, 2, 64),
]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", FLOOR, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: "H{}_G{}_D{}_M{}_B{}".format(*s))
def test_parity(shape, dtype, causal, device):
    *sizes, mask_heads, block_size = shape
    packed = Packed(LENGTHS, *sizes, dtype, device)
    mask = random_mask(packed, mask_heads, block_size)
    cu, scale = (packed.cu_q, packed.cu_k), 1.0 / math.sqrt(shape[2])

    def reference(q, k, v):
        return plain(q, k, v, *cu, mask, block_size, causal, scale)

    def ours(q, k, v):
        return block_sparse_attention(q, k, v, *cu, *packed.longest, mask, block_size, causal)

    expected, seen = results_and_gradients(packed, torch.float64, reference)
    naive, _ = results_and_gradients(packed, dtype, reference)
    found, found_seen = results_and_gradients(packed, dtype, ours)
    assert torch.equal(found_seen, seen)
    assert (~seen).any()
    assert found["lse"].dtype == lse_dtype(dtype)
    assert found["out"][~seen.t()].abs().sum() == 0
    for name, value in found.items():
        factor = 2.0 if name in ("out", "lse") else 3.0
        bound = factor * error(naive[name], expected[name]) + FLOOR[dtype]
        assert error(value, expected[name]) <= bound, name


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False])
def test_every_block_is_dense_attention(causal, device):
    packed = Packed(LENGTHS, 4, 2, 64, torch.float32, device)
    mask = torch.ones_like(random_mask(packed, 1, 128))
    out, lse = block_sparse_attention(*packed.arguments(), mask, 128, causal)
    dense, dense_lse = torch.ops.longspur.attention(*packed.arguments(), causal)
    assert error(out, dense) < 1e-6
    assert torch.allclose(lse, dense_lse, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_no_block_at_all(device):
    packed = Packed(LENGTHS, 4, 2, 64, torch.bfloat16, device)
    mask = torch.zeros_like(random_mask(packed, 4, 64))
    out, lse = block_sparse_attention(*packed.arguments(), mask, 64)
    assert (out == 0).all() and (lse == -math.inf).all()
    for gradient in torch.autograd.grad(out, (packed.q, packed.k, packed.v), packed.grad_out):
        assert (gradient == 0).all()


def test_blocks_nobody_sees_are_ignored():
    """The causal future, keys beyond a sequence, query blocks beyond it."""
    packed = Packed([(200, 300), (100, 90)], 2, 1, 16, torch.float32)
    mask = random_mask(packed, 2, 64)
    expected = block_sparse_attention(*packed.arguments(), mask, 64)
    mask = mask.clone()
    mask[0, :, 0, 4:] ^= True  # rows up to 127 stand at keys up to 227
    mask[1, :, 0, 2:] ^= True
    mask[1, :, 1] ^= True
    for a, b in zip(expected, block_sparse_attention(*packed.arguments(), mask, 64), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_batch_is_sequence_by_sequence(device):
    packed = Packed(LENGTHS, 4, 2, 32, torch.float32, device)
    mask = random_mask(packed, 4, 128)
    out, lse = block_sparse_attention(*packed.arguments(), mask)
    for b, (n, m) in enumerate(LENGTHS):
        rows = slice(packed.cu_q[b], packed.cu_q[b + 1])
        keys = slice(packed.cu_k[b], packed.cu_k[b + 1])
        cu = [torch.tensor([0, x], dtype=torch.int32) for x in (n, m)]
        part = mask[b : b + 1, :, : math.ceil(n / 128), : math.ceil(m / 128)]
        alone = block_sparse_attention(
            packed.q[rows], packed.k[keys], packed.v[keys], *cu, n, m, part
        )
        assert torch.equal(alone[0], out[rows]) and torch.equal(alone[1], lse[:, rows])


def test_grouped_heads_are_repeated_ones():
    packed = Packed(LENGTHS, 6, 2, 32, torch.float32)
    mask = random_mask(packed, 2, 64)
    q, k, v, *rest = packed.arguments()
    grouped = block_sparse_attention(q, k, v, *rest, mask, 64)
    k, v, mask = k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), mask.repeat_interleave(3, 1)
    for a, b in zip(grouped, block_sparse_attention(q, k, v, *rest, mask, 64), strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)


def test_strided_operands():
    packed = Packed([(133, 133), (270, 270)], 4, 4, 20, torch.float32)
    q, k, v = (x.detach() for x in (packed.q, packed.k, packed.v))
    mask = random_mask(packed, 4, 64)
    expected = block_sparse_attention(*packed.arguments(), mask, 64)
    views = torch.stack([q, k, v], 1).flatten(1).view(-1, 3, 4, 20).unbind(1)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    dim_first = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (q, k, v)]
    for operands in (views, heads_first, dim_first):
        for form in (mask, mask.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)):
            found = block_sparse_attention(*operands, *packed.arguments()[3:], form, 64)
            assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])
    expected[0].sum().backward()  # a gradient with strides 0
    assert packed.q.grad.isfinite().all()


def test_gradcheck():
    packed = Packed([(130, 132), (3, 5)], 2, 1, 2, torch.float64)
    mask = torch.tensor([[[[True, False], [True, True]]], [[[True, True], [True, True]]]])
    rows = torch.tensor([0, 64, 127, 128, 129, 130, 132])  # few, to be quick

    def compute(q, k, v):
        out, lse = block_sparse_attention(q, k, v, *packed.arguments()[3:], mask, 128, True, 0.7)
        return out[rows], lse[:, rows]

    leaves = [x.detach() * 1.0 for x in (packed.q, packed.k, packed.v)]
    assert torch.autograd.gradcheck(
        compute, [x.requires_grad_() for x in leaves], fast_mode=True, atol=1e-6
    )


def test_second_derivative_is_refused():
    packed = Packed([(3, 4)], 2, 1, 8, torch.float64)
    out, _ = block_sparse_attention(*packed.arguments(), torch.ones(1, 1, 1, 1, dtype=torch.bool))
    (gradient,) = torch.autograd.grad(out.square().sum(), packed.q, create_graph=True)
    with pytest.raises(RuntimeError, match="block_sparse_attention: found a second derivative"):
        gradient.sum().backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_repetition_do_not_change_a_bit(dtype):
    packed = Packed([(300, 300), (7, 390)], 6, 2, 32, dtype)
    mask = random_mask(packed, 6, 64)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            out, lse = block_sparse_attention(*packed.arguments(), mask, 64)
            leaves = packed.q, packed.k, packed.v
            return out, lse, *torch.autograd.grad(out, leaves, packed.grad_out)
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (1, 2, 3):
        for a, b in zip(first, run(threads), strict=True):
            assert torch.equal(a, b)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("by", ["argument", "global"])
def test_deterministic_backward_on_cuda(by):
    packed = Packed([(700, 700), (7, 390)], 6, 2, 64, torch.bfloat16, "cuda")
    mask = random_mask(packed, 6, 64)

    def gradients():
        out, _ = block_sparse_attention(
            *packed.arguments(), mask, 64, deterministic=by == "argument"
        )
        return torch.autograd.grad(out, (packed.q, packed.k, packed.v), packed.grad_out)

    torch.use_deterministic_algorithms(by == "global")
    try:
        first = gradients()
        for _ in range(3):
            for a, b in zip(first, gradients(), strict=True):
                assert torch.equal(a, b)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_opcheck(dtype, device):
    packed = Packed([(130, 140), (0, 2), (5, 3)], 4, 2, 8, dtype, device)
    mask = random_mask(packed, 2, 64)
    arguments = (*packed.arguments(), mask, 64)
    torch.library.opcheck(torch.ops.longspur.block_sparse_attention.default, arguments)
    with torch.no_grad():
        out, lse = block_sparse_attention(*arguments)
    backward = (packed.grad_out, packed.grad_lse, *packed.arguments()[:3], out, lse)
    detached = [x.detach() for x in backward] + list(arguments[3:])
    torch.library.opcheck(torch.ops.longspur.block_sparse_attention_backward.default, detached)


def test_meta_and_schema():
    q = torch.empty(7, 4, 16, dtype=torch.bfloat16, device="meta")
    k = torch.empty(9, 2, 16, dtype=torch.bfloat16, device="meta")
    cu = torch.empty(3, dtype=torch.int32, device="meta")
    mask = torch.empty(2, 1, 2, 4, dtype=torch.bool, device="meta")
    out, lse = block_sparse_attention(q, k, k, cu, cu, 200, 200, mask, 64)
    assert (out.shape, out.dtype, out.device.type) == (q.shape, torch.bfloat16, "meta")
    assert (lse.shape, lse.dtype) == ((4, 7), torch.float32)
    with pytest.raises(RuntimeError, match="block_sparse_attention: block_mask: found shape"):
        block_sparse_attention(q, k, k, cu, cu, 300, 200, mask, 64)
    assert str(torch.ops.longspur.block_sparse_attention.default._schema) == (
        "longspur::block_sparse_attention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, "
        "Tensor cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, Tensor block_mask, "
        "int block_size=128, bool causal=True, float? scale=None, bool deterministic=False) -> "
        "(Tensor out, Tensor lse)"
    )


def test_compile():
    mask = torch.rand(2, 2, 3, 3, generator=torch.Generator().manual_seed(1)) < 0.7

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(q, k, v, cu_q, cu_k):
        out, lse = block_sparse_attention(q * 2, k, v, cu_q, cu_k, 300, 300, mask)
        return out.square().sum() + lse.exp().sum()

    for lengths in ([(200, 310), (9, 9)], [(170, 170), (300, 264)]):  # other lengths, one graph
        lengths = [(n, min(m, 300)) for n, m in lengths]
        packed = Packed(lengths, 2, 1, 16, torch.float32)
        leaves = packed.q, packed.k, packed.v
        compiled = torch.autograd.grad(step(*leaves, packed.cu_q, packed.cu_k), leaves)
        out, lse = block_sparse_attention(packed.q * 2, *packed.arguments()[1:5], 300, 300, mask)
        eager = torch.autograd.grad(out.square().sum() + lse.exp().sum(), leaves)
        for a, b in zip(compiled, eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


def broken_calls():
    """(what the message must hold, changes to good arguments)"""
    q, k = torch.zeros(5, 4, 8), torch.zeros(6, 2, 8)
    cu = [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 2, 6])]
    mask = torch.ones(2, 4, 1, 1, dtype=torch.bool)
    good = dict(q=q, k=k, v=k, cu_q=cu[0], cu_k=cu[1], max_q=3, max_k=4, mask=mask, size=128)
    changes = {
        "q: found shape [5, 32], expected [Tq, H, D]": dict(q=q.flatten(1)),
        "v: found shape [5, 2, 8], expected [6, 2, 8], k's shape": dict(v=k[:5]),
        "cu_seqlens_k: found 4 rows of sequence 1, expected at most": dict(max_k=3),
        "block_mask: found float32, expected bool": dict(mask=mask.float()),
        "block_mask: found uint8, expected bool": dict(mask=mask.byte()),
        "block_mask: found shape [4, 1, 1], expected [B, H or Hkv or 1, nQ, nK]": dict(
            mask=mask[0]
        ),
        "block_mask: found 3 heads, expected 4 as q has, 2 as k has, or 1": dict(mask=mask[:, :3]),
        "block_mask: found shape [1, 4, 1, 1], expected [2, 4, 1, 1]": dict(mask=mask[:1]),
        "block_mask: found shape [2, 4, 1, 1], expected [2, 4, 2, 1]": dict(max_q=129),
        "block_mask: found shape [2, 4, 1, 1], expected [2, 4, 1, 2]": dict(max_k=65, size=64),
        "block_mask: found shape [2, 4, 1, 0], expected [2, 4, 1, 1]": dict(mask=mask[..., :0]),
        "block_mask: found on meta, expected on cpu as q is": dict(mask=mask.to("meta")),
        "block_size: found 32, expected 64 or 128": dict(size=32),
        "block_size: found 0, expected 64 or 128": dict(size=0),
        "block_size: found -128, expected 64 or 128": dict(size=-128),
    }
    return [pytest.param(message, good | change, id=message) for message, change in changes.items()]


@pytest.mark.parametrize(("message", "call"), broken_calls())
def test_errors_name_found_and_expected(message, call):
    c = call
    with pytest.raises(RuntimeError) as caught:
        block_sparse_attention(
            c["q"],
            c["k"],
            c["v"],
            c["cu_q"],
            c["cu_k"],
            c["max_q"],
            c["max_k"],
            c["mask"],
            c["size"],
        )
    text = str(caught.value)
    assert text.startswith("block_sparse_attention: ") and message in text
    assert "\n" not in text.strip()


def test_nothing_to_do():
    for lengths in ([], [(0, 0)], [(0, 3)], [(3, 0), (0, 2)]):
        packed = Packed(lengths, 4, 2, 8, torch.float32)
        out, lse = block_sparse_attention(*packed.arguments(), random_mask(packed, 4, 128))
        assert out.shape == packed.q.shape and lse.shape == (4, packed.q.shape[0])
        assert (out == 0).all() and (lse == -math.inf).all()
        out.sum().backward()
        assert all((x.grad == 0).all() for x in (packed.q, packed.k, packed.v))


def test_modes_of_block_sparse_attention():
    """Dense, streaming and listed heads in one call, against masks written out by hand."""
    import longspur

    packed = Packed([(512, 512), (200, 456)], 4, 2, 16, torch.float32)
    base = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(3)) < 0.5
    modes = torch.tensor([1, 0, -1, 1], dtype=torch.int32)
    info = torch.tensor([0, 0, 0, 0, 1, 2, 0, 0], dtype=torch.int32)
    lengths = packed.arguments()[3:]
    mask = longspur.xattention.block_sparse_modes(modes, info, base, *lengths)
    assert torch.equal(mask[:, 0], base[:, 0]) and torch.equal(mask[:, 3], base[:, 1])
    assert mask[:, 1].all()
    first = [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    # 256 keys before it; rows beyond its two blocks do not matter
    second = [[1, 1, 1, 0], [1, 0, 1, 1]]
    assert mask[0, 2].int().tolist() == first
    assert mask[1, 2, :2].int().tolist() == second
    out = longspur.xattention.block_sparse_attn_func(
        *packed.arguments()[:5], modes, info, base, *packed.longest, 0.0, is_causal=True
    )
    expected, _ = plain(*packed.arguments()[:5], mask, 128, True, 0.25)
    assert error(out, expected) < 1e-6
    with pytest.raises(ValueError, match=r"p_dropout: found 0\.1, expected none"):
        longspur.xattention.block_sparse_attn_func(
            *packed.arguments()[:5], modes, info, base, *packed.longest, 0.1
        )
    with pytest.raises(ValueError, match="base_blockmask: found 1 slots, expected 2"):
        longspur.xattention.block_sparse_modes(modes, info, base[:, :1], *lengths)
