"""torch.ops.longspur.xattn_block_scores, xattn_select and xattention: parity with the estimators'
definitions in float64, golden selections, laws, gradients, what torch asks of an operation, errors.

Tolerance of scores: shares of attention, so their errors are absolute. float32 sums are within 1e-5
of float64; 16-bit operands are widened exactly.
"""

import itertools
import math

import pytest
import torch
import xattn_plain
from test_attention_op import DEVICES, FLOOR, Packed, error, plain

pytestmark = pytest.mark.usefixtures("op_library")
# queries and keys: several blocks, a chunk behind a prefix, one row, empty, a longer q
LENGTHS = [(300, 300), (0, 5), (1, 400), (140, 397), (5, 0), (150, 70)]
TERMS = [
    *(f"antidiagonal:{s}" for s in (4, 8, 16, 32, 64)),
    "diagonal:16",
    *(f"pooled:{g}" for g in (16, 128)),
    "pooled_plain:32",
    *(f"sampled:{g}" for g in (1, 16, 128)),
    "outlier",
    "mean",
    "block_mean",
    "pooled:128+sampled:128+mean",
    "0.5*antidiagonal:16+1.5*block_mean",
]


def block_scores(*arguments, **options):
    return torch.ops.longspur.xattn_block_scores(*arguments, **options)


def select(*arguments, **options):
    return torch.ops.longspur.xattn_select(*arguments, **options)


def xattention(*arguments, **options):
    return torch.ops.longspur.xattention(*arguments, **options)


def operands(packed):
    """All of an operation's arguments but v."""
    q, k, _, *rest = packed.arguments()
    return q.detach(), k.detach(), *rest


def structured(lengths, heads, kv_heads, dim, dtype=torch.float32, device="cpu", seed=0):
    """Packed operands with a few heavy keys, so that attention is sparse."""
    packed = Packed(lengths, heads, kv_heads, dim, torch.float64, "cpu", seed)
    generator = torch.Generator().manual_seed(seed + 1)
    tokens = packed.k.shape[0]
    with torch.no_grad():
        heavy = torch.rand(tokens, generator=generator) < 0.02
        packed.k[heavy, :, 0] += 6.0
        packed.q[:, :, 0] += 2.0
    for name in ("q", "k", "v", "grad_out"):
        x = getattr(packed, name).detach().to(dtype).to(device)
        setattr(packed, name, x.requires_grad_(name != "grad_out"))
    packed.cu_q, packed.cu_k = packed.cu_q.to(device), packed.cu_k.to(device)
    return packed


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize("estimator", TERMS)
def test_scores_are_the_definition(estimator, block_size, causal, device):
    packed = Packed(LENGTHS, 2, 1, 40, torch.float32, device)
    found = block_scores(
        *operands(packed), estimator=estimator, block_size=block_size, causal=causal, scale=0.3
    )
    expected = xattn_plain.block_scores(
        *(x.cpu() for x in operands(packed)[:4]),
        packed.longest,
        estimator,
        block_size,
        causal,
        0.3,
    )
    assert (found.dtype, found.shape) == (torch.float32, expected.shape)
    # where the products of a GPU are TF32 or bf16, scores move with them
    bound = 1e-5 if device == "cpu" else 2e-2
    assert (found.cpu() - expected).abs().max() < bound


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", FLOOR, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", [(9, 3, 64), (3, 1, 37), (2, 2, 128), (2, 1, 264)])
def test_scores_of_any_type_and_shape(shape, dtype, device):
    packed = Packed([(200, 333), (130, 130)], *shape, dtype, device)
    estimator = "antidiagonal:16+sampled:16+mean"
    found = block_scores(*operands(packed), estimator)
    expected = xattn_plain.block_scores(
        *(x.cpu() for x in operands(packed)[:4]), packed.longest, estimator, 128, True
    )
    assert (found.cpu() - expected).abs().max() < (1e-5 if device == "cpu" else 2e-2)


def test_scores_of_a_group_are_the_mean_of_its_heads():
    packed = Packed(LENGTHS, 6, 2, 32, torch.float32)
    heads = block_scores(*operands(packed), "sampled:16")
    grouped = block_scores(*operands(packed), "sampled:16", per_kv_group=True)
    assert grouped.shape[1] == 2
    assert torch.allclose(grouped, heads.unflatten(1, (2, 3)).mean(2), atol=1e-6)


def test_estimator_options():
    packed = Packed([(300, 300)], 2, 1, 32, torch.float32)
    by_argument = block_scores(*operands(packed), "antidiagonal", 8)
    assert torch.equal(by_argument, block_scores(*operands(packed), "antidiagonal:8"))
    assert torch.equal(block_scores(*operands(packed)), block_scores(*operands(packed), stride=16))
    default = block_scores(*operands(packed), "default")
    assert torch.allclose(default.sum(-1), torch.ones(1, 2, 3))


@pytest.mark.parametrize("estimator", ["antidiagonal:16", "sampled:16", "pooled:128", "mean"])
@pytest.mark.parametrize("first", [128, 256])
def test_chunks_at_multiples_of_128_are_the_whole(estimator, first):
    """Law c: a prompt cut in two gives the scores, the choice and the output of one piece."""
    whole = structured([(500, 500)], 4, 2, 32)
    q, k, v = (x.detach() for x in (whole.q, whole.k, whole.v))
    threshold = torch.tensor(0.8)

    def run(begin, end):
        cu_q, cu_k = (torch.tensor([0, n], dtype=torch.int32) for n in (end - begin, end))
        part = q[begin:end], k[:end]
        lengths = cu_q, cu_k, end - begin, end
        scores = block_scores(*part, *lengths, estimator)
        out, _, _ = xattention(*part, v[:end], *lengths, threshold, estimator)
        return scores, select(scores, threshold, cu_q, cu_k), out

    scores, mask, out = run(0, 500)
    for begin, end in ((0, first), (first, 500)):
        part_scores, part_mask, part_out = run(begin, end)
        blocks = slice(begin // 128, math.ceil(end / 128))
        width = part_scores.shape[-1]
        assert torch.allclose(part_scores, scores[:, :, blocks, :width], atol=1e-6)
        assert torch.equal(part_mask, mask[:, :, blocks, :width])
        assert torch.allclose(part_out, out[begin:end], atol=1e-5)


GOLDEN = [[1, 0, 0, 0], [0.3, 0.7, 0, 0], [0.1, 0.5, 0.4, 0], [0.05, 0.6, 0.15, 0.2]]
CHOICES = {
    0.0: [[0], [0, 1], [0, 2], [0, 3]],
    0.5: [[0], [0, 1], [0, 2], [0, 1, 3]],
    0.8: [[0], [0, 1], [0, 1, 2], [0, 1, 3]],
    0.9: [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]],
}


def lists(mask):
    return [row.nonzero().flatten().tolist() for row in mask]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("threshold", CHOICES)
def test_golden_selections(threshold, device):
    cu = torch.tensor([0, 512], dtype=torch.int32, device=device)
    scores = torch.tensor([[GOLDEN, GOLDEN]], device=device)
    for form in (torch.tensor(threshold), torch.tensor([threshold] * 2, device=device)):
        mask = select(scores, form, cu, cu)
        assert (mask.dtype, mask.shape) == (torch.bool, scores.shape)
        assert lists(mask[0, 0]) == lists(mask[0, 1]) == CHOICES[threshold]


def test_thresholds_belong_to_heads():
    cu = torch.tensor([0, 512], dtype=torch.int32)
    scores = torch.tensor([[GOLDEN] * len(CHOICES)])
    mask = select(scores, torch.tensor(list(CHOICES)), cu, cu)
    assert [lists(m) for m in mask[0]] == list(CHOICES.values())


def cu_of(lengths):
    q, k = zip(*lengths, strict=True)
    return [torch.tensor([0, *x]).cumsum(0).to(torch.int32) for x in (q, k)]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", ["share", "of_max"])
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("block_size", [64, 128])
@pytest.mark.parametrize(("sink", "local"), [(1, 1), (0, 0), (2, 3), (0, 1)])
def test_selection_is_that_by_sorting(sink, local, block_size, causal, rule, device):
    lengths = [*LENGTHS, (1000, 1300), (640, 640)]
    cu_q, cu_k = cu_of(lengths)
    generator = torch.Generator().manual_seed(0)
    shape = len(lengths), 2, 8, math.ceil(1300 / block_size)
    # sixteenths: sums are exact in any arithmetic, and ties are common
    scores = torch.randint(0, 17, shape, generator=generator).float() / 16
    scores[0] = 0
    thresholds = torch.tensor([0.375, 0.875])
    mask = select(
        scores.to(device),
        thresholds,
        cu_q.to(device),
        cu_k,
        block_size,
        sink,
        local,
        causal,
        rule,
    ).cpu()
    for b, h in itertools.product(range(len(lengths)), range(2)):
        n, m = lengths[b]
        expected = xattn_plain.select(
            scores[b, h], thresholds[h].item(), n, m, block_size, sink, local, causal, rule
        )
        assert torch.equal(mask[b, h], expected), (b, h)


@pytest.mark.parametrize("device", DEVICES)
def test_selection_laws(device):
    """e: a larger threshold keeps a superset; f: the kept ones hold their share; 1 keeps all."""
    cu = torch.tensor([0, 2000], dtype=torch.int32, device=device)
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(1, 3, 16, 16, generator=generator).to(device) ** 4
    seen = xattn_plain.visible(2000, 2000, 16, 16, 128, True).to(device)
    last = torch.zeros(1, 3, 16, 16, dtype=torch.bool, device=device)
    for threshold in (0.0, 0.2, 0.5, 0.8, 0.95, 1.0):
        mask = select(scores, torch.tensor(threshold), cu, cu)
        assert (last <= mask).all() and (mask <= seen).all()
        held, total = (scores * mask).double().sum(-1), (scores * seen).double().sum(-1)
        assert (held >= (threshold - 1e-9) * total).all()
        last = mask
    assert torch.equal(last, seen.expand_as(last))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_rows_with_impossible_scores_keep_everything(value, device):
    cu = torch.tensor([0, 512], dtype=torch.int32)
    scores = torch.tensor([[GOLDEN]])
    scores[0, 0, 2, 1] = value
    mask = select(scores.to(device), torch.tensor(0.0), cu, cu)
    assert lists(mask[0, 0]) == [[0], [0, 1], [0, 1, 2], [0, 3]]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_nan_falls_back_to_dense_attention(dtype, device):
    """Never a silent wrong mask: query blocks whose scores are NaN read all that they see."""
    packed = structured([(600, 600)], 2, 1, 32, dtype, device)
    q, k, v = (x.detach().clone() for x in (packed.q, packed.k, packed.v))
    k[300, 0, 5] = math.nan
    out, _, density = xattention(q, k, v, *packed.arguments()[3:], torch.tensor(0.1), "sampled:16")
    scores = block_scores(q, k, *packed.arguments()[3:], "sampled:16")
    assert scores[0, :, 3:].isnan().any(-1).all()  # rows from 384 on see the key
    mask = select(scores, torch.tensor(0.1), *packed.arguments()[3:5])
    seen = xattn_plain.visible(600, 600, 5, 5, 128, True).to(device)
    assert torch.equal(mask[0, :, 3:], seen[3:].expand(2, 2, 5))
    assert out[384:].isnan().all() and out[:256].isfinite().all()
    assert density.isfinite().all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("causal", [True, False], ids=["causal", "full"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_threshold_1_is_dense_attention(dtype, causal, device):
    """Law g."""
    packed = Packed(LENGTHS, 4, 2, 64, dtype, device)
    out, lse, density = xattention(*packed.arguments(), torch.tensor(1.0), causal=causal)
    scale = 1.0 / 8.0
    cu = packed.cu_q, packed.cu_k
    wide = [x.detach().double() for x in (packed.q, packed.k, packed.v)]
    expected, expected_lse = plain(*wide, *cu, causal, scale)
    naive, _ = plain(*(x.detach() for x in (packed.q, packed.k, packed.v)), *cu, causal, scale)
    assert error(out, expected) <= 2.0 * error(naive, expected) + FLOOR[dtype]
    assert torch.allclose(
        lse.double(), expected_lse, atol=1e-4 if dtype != torch.bfloat16 else 1e-2
    )
    assert (density.dtype, density.shape) == (torch.float32, (len(LENGTHS), 4))
    assert (density == 1).all()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("per_kv_group", [False, True])
@pytest.mark.parametrize("block_size", [64, 128])
def test_xattention_is_its_three_parts(block_size, per_kv_group, device):
    packed = structured([(700, 700), (0, 3), (200, 900)], 4, 2, 64, torch.float32, device)
    threshold = torch.tensor([0.6, 0.9]) if per_kv_group else torch.tensor([0.0, 0.5, 0.8, 0.95])
    options = dict(estimator="sampled:16", block_size=block_size)
    lengths = packed.arguments()[3:]
    out, lse, density = xattention(
        *packed.arguments(), threshold, **options, per_kv_group=per_kv_group
    )
    scores = block_scores(*operands(packed), **options, per_kv_group=per_kv_group)
    mask = select(scores, threshold, *lengths[:2], block_size)
    apart = torch.ops.longspur.block_sparse_attention(*packed.arguments(), mask, block_size, True)
    assert torch.equal(out, apart[0]) and torch.equal(lse, apart[1])
    expected = torch.ones(3, 4)
    for b, (n, m) in enumerate([(700, 700), (0, 3), (200, 900)]):
        seen = xattn_plain.visible(n, m, *mask.shape[2:], block_size, True) if n else None
        for h in range(4 if n else 0):
            kept = mask[b, h * mask.shape[1] // 4].cpu()
            expected[b, h] = kept.sum() / seen.sum()
    assert torch.allclose(density.cpu(), expected)
    assert (density[0] < 1).any()
    choice, again = torch.ops.longspur.xattention_mask(
        *operands(packed), threshold, **options, per_kv_group=per_kv_group
    )
    assert torch.equal(choice, mask) and torch.equal(again, density)


@pytest.mark.parametrize("device", DEVICES)
def test_batch_is_sequence_by_sequence(device):
    """Law i."""
    lengths = [(300, 300), (0, 5), (1, 400), (140, 397), (5, 0)]
    packed = structured(lengths, 4, 2, 32, torch.float32, device)
    threshold = torch.tensor(0.7)
    out, lse, density = xattention(*packed.arguments(), threshold, "antidiagonal:16+mean")
    for b, (n, m) in enumerate(lengths):
        rows = slice(packed.cu_q[b], packed.cu_q[b + 1])
        keys = slice(packed.cu_k[b], packed.cu_k[b + 1])
        cu = [torch.tensor([0, x], dtype=torch.int32) for x in (n, m)]
        alone = xattention(
            packed.q[rows],
            packed.k[keys],
            packed.v[keys],
            *cu,
            n,
            m,
            threshold,
            "antidiagonal:16+mean",
        )
        assert torch.equal(alone[0], out[rows]) and torch.equal(alone[1], lse[:, rows])
        assert torch.equal(alone[2][0], density[b])


def test_grouped_heads_are_repeated_ones():
    """Law j."""
    packed = structured([(500, 500), (130, 280)], 6, 2, 32)
    q, k, v, *rest = packed.arguments()
    grouped = xattention(q, k, v, *rest, torch.tensor(0.7))
    repeated = xattention(
        q, k.repeat_interleave(3, 1), v.repeat_interleave(3, 1), *rest, torch.tensor(0.7)
    )
    for a, b in zip(grouped, repeated, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("estimator", ["antidiagonal:16", "sampled:16", "mean", "pooled:128"])
def test_longest_lengths_change_nothing_without_a_mask(estimator):
    """Law l: a bound above the real lengths pads the mask and nothing else."""
    packed = structured([(300, 300), (77, 413)], 2, 1, 32)
    q, k, v, cu_q, cu_k, *_ = packed.arguments()
    results = [
        xattention(q, k, v, cu_q, cu_k, *longest, torch.tensor(0.6), estimator, causal=False)
        for longest in ((300, 413), (1000, 2000))
    ]
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_gradients_hold_the_choice_fixed():
    packed = structured([(300, 300), (40, 170)], 4, 2, 16, torch.float64)
    threshold = torch.tensor(0.5)
    leaves = packed.q, packed.k, packed.v
    out, lse, density = xattention(*packed.arguments(), threshold, "sampled:16")
    assert not density.requires_grad and (density < 1).any()
    found = torch.autograd.grad([out.square().sum() + lse.sum()], leaves)
    mask, _ = torch.ops.longspur.xattention_mask(*operands(packed), threshold, "sampled:16")
    out, lse = torch.ops.longspur.block_sparse_attention(*packed.arguments(), mask)
    expected = torch.autograd.grad([out.square().sum() + lse.sum()], leaves)
    for a, b in zip(found, expected, strict=True):
        assert torch.equal(a, b) and a.abs().max() > 0
    out, _, _ = xattention(*packed.arguments(), threshold)
    (gradient,) = torch.autograd.grad(out.square().sum(), packed.q, create_graph=True)
    with pytest.raises(RuntimeError, match="found a second derivative"):
        gradient.sum().backward()


def test_gradcheck():
    packed = structured([(130, 132), (3, 5)], 2, 1, 2, torch.float64)

    def compute(q, k, v):
        # sampled:128 reads one row a block, so small steps elsewhere leave the choice as it is
        out, lse, _ = xattention(q, k, v, *packed.arguments()[3:], torch.tensor(0.3), "sampled:128")
        return out, lse

    assert torch.autograd.gradcheck(
        compute, (packed.q, packed.k, packed.v), fast_mode=True, atol=1e-6
    )


def test_strided_operands():
    packed = structured([(333, 333), (270, 270)], 4, 4, 20)
    q, k, v = (x.detach() for x in (packed.q, packed.k, packed.v))
    rest = (*packed.arguments()[3:], torch.tensor(0.7))
    expected = xattention(q, k, v, *rest)
    views = torch.stack([q, k, v], 1).flatten(1).view(-1, 3, 4, 20).unbind(1)
    heads_first = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (q, k, v)]
    dim_first = [x.permute(2, 0, 1).contiguous().permute(1, 2, 0) for x in (q, k, v)]
    for form in (views, heads_first, dim_first):
        for a, b in zip(xattention(*form, *rest), expected, strict=True):
            assert torch.equal(a, b)
    scores = block_scores(q, k, *packed.arguments()[3:])
    turned = scores.transpose(2, 3).contiguous().transpose(2, 3)
    for form in (scores, turned):
        assert torch.equal(
            select(form, torch.tensor(0.7), packed.cu_q, packed.cu_k),
            select(scores, torch.full((4,), 0.7), packed.cu_q, packed.cu_k),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_and_repetition_do_not_change_a_bit(dtype):
    packed = structured([(500, 500), (7, 390)], 6, 2, 32, dtype)

    def run(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            estimator = "antidiagonal:16+pooled:128+mean"
            scores = block_scores(*operands(packed), estimator)
            return scores, *xattention(*packed.arguments(), torch.tensor(0.7), estimator)
        finally:
            torch.set_num_threads(before)

    first = run(1)
    for threads in (1, 2, 3):
        for a, b in zip(first, run(threads), strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_opcheck(dtype, device):
    packed = Packed([(130, 140), (0, 2), (5, 3)], 4, 2, 8, dtype, device)
    ops = torch.ops.longspur
    scores = block_scores(*operands(packed))
    torch.library.opcheck(ops.xattn_block_scores.default, operands(packed))
    arguments = scores, torch.tensor(0.5), packed.cu_q, packed.cu_k
    torch.library.opcheck(ops.xattn_select.default, arguments)
    torch.library.opcheck(ops.xattention.default, (*packed.arguments(), torch.tensor(0.5)))
    torch.library.opcheck(ops.xattention_mask.default, (*operands(packed), torch.tensor(0.5)))


def test_meta_and_schemas():
    q = torch.empty(7, 4, 16, dtype=torch.bfloat16, device="meta")
    k = torch.empty(9, 2, 16, dtype=torch.bfloat16, device="meta")
    cu = torch.empty(3, dtype=torch.int32, device="meta")
    lengths = cu, cu, 300, 500
    scores = block_scores(q, k, *lengths, block_size=64)
    assert (scores.shape, scores.dtype) == ((2, 4, 3, 8), torch.float32)
    assert block_scores(q, k, *lengths, per_kv_group=True).shape == (2, 2, 3, 4)
    mask = select(scores, torch.empty(4, device="meta"), cu, cu, 64)
    assert (mask.shape, mask.dtype) == (scores.shape, torch.bool)
    out, lse, density = xattention(q, k, k, *lengths, torch.tensor(0.5))
    assert (out.shape, out.dtype) == (q.shape, torch.bfloat16)
    assert (lse.shape, density.shape) == ((4, 7), (2, 4))
    with pytest.raises(RuntimeError, match="xattention: stride: found 24"):
        xattention(q, k, k, *lengths, torch.tensor(0.5), stride=24)
    ops = torch.ops.longspur
    assert str(ops.xattn_block_scores.default._schema) == (
        "longspur::xattn_block_scores(Tensor q, Tensor k, Tensor cu_seqlens_q, Tensor "
        'cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, str estimator="antidiagonal", int '
        "stride=16, int block_size=128, bool causal=True, float? scale=None, bool "
        "per_kv_group=False) -> Tensor"
    )
    assert str(ops.xattn_select.default._schema) == (
        "longspur::xattn_select(Tensor scores, Tensor threshold, Tensor cu_seqlens_q, Tensor "
        "cu_seqlens_k, int block_size=128, int sink_blocks=1, int local_blocks=1, bool "
        'causal=True, str rule="share") -> Tensor'
    )
    assert str(ops.xattention.default._schema) == (
        "longspur::xattention(Tensor q, Tensor k, Tensor v, Tensor cu_seqlens_q, Tensor "
        "cu_seqlens_k, int max_seqlen_q, int max_seqlen_k, Tensor threshold, str "
        'estimator="antidiagonal", int stride=16, int block_size=128, bool causal=True, float? '
        "scale=None, int sink_blocks=1, int local_blocks=1, bool per_kv_group=False, str "
        'rule="share", bool deterministic=False) -> (Tensor out, Tensor lse, Tensor density)'
    )


def test_compile():
    threshold = torch.tensor(0.6)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(q, k, v, cu_q, cu_k):
        out, lse, density = xattention(q * 2, k, v, cu_q, cu_k, 300, 400, threshold)
        return out.square().sum() + lse.exp().sum(), density

    for lengths in ([(200, 310), (9, 9)], [(170, 170), (300, 264)]):  # other lengths, one graph
        packed = structured([(n, max(n, m)) for n, m in lengths], 2, 1, 16)
        leaves = packed.q, packed.k, packed.v
        loss, density = step(*leaves, packed.cu_q, packed.cu_k)
        compiled = torch.autograd.grad(loss, leaves)
        out, lse, eager_density = xattention(
            packed.q * 2, *packed.arguments()[1:5], 300, 400, threshold
        )
        eager = torch.autograd.grad(out.square().sum() + lse.exp().sum(), leaves)
        assert torch.equal(density, eager_density)
        for a, b in zip(compiled, eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def broken_calls():
    """(what the message must hold, changes to good arguments)"""
    q, k = torch.zeros(5, 4, 8), torch.zeros(6, 2, 8)
    cu = [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 2, 6])]
    good = dict(q=q, k=k, v=k, cu_q=cu[0], cu_k=cu[1], max_q=3, max_k=4, tau=torch.tensor(0.5))
    changes = {
        "q: found shape [5, 32], expected [Tq, H, D]": dict(q=q.flatten(1)),
        "k: found bfloat16, expected float32 as q has": dict(k=k.bfloat16()),
        "v: found float64, expected float32 as q has": dict(v=k.double()),
        "heads: found 3 of q and 2 of k, expected a multiple": dict(q=q[:, :3]),
        "cu_seqlens_k: found 4 rows of sequence 1, expected at most": dict(max_k=3),
        "scale: found inf, expected a finite number": dict(scale=math.inf),
        "threshold: found nan, expected a number from 0 to 1": dict(tau=torch.tensor(math.nan)),
        "threshold: found 1.5, expected a number from 0 to 1": dict(tau=torch.tensor(1.5)),
        "threshold: found -0.25, expected a number from 0 to 1": dict(tau=torch.tensor(-0.25)),
        "threshold[2]: found 2, expected a number from 0 to 1": dict(
            tau=torch.tensor([0.0, 1.0, 2.0, 0.5])
        ),
        "threshold: found shape [3], expected [] or [4]": dict(tau=torch.zeros(3)),
        "threshold: found shape [1, 4], expected [] or [4]": dict(tau=torch.zeros(1, 4)),
        "threshold: found float64, expected float32": dict(tau=torch.tensor(0.5).double()),
        "threshold: found shape [4], expected [] or [2]": dict(
            tau=torch.zeros(4), per_kv_group=True
        ),
        "stride: found 24, expected 4, 8, 16, 32 or 64": dict(stride=24),
        "stride: found 0, expected 4": dict(stride=0),
        "stride: found -16, expected 4": dict(stride=-16),
        "stride: found 128, expected 4": dict(stride=128),
        "block_size: found 96, expected 64 or 128": dict(block_size=96),
        "sink_blocks: found -1, expected at least 0": dict(sink_blocks=-1),
        "local_blocks: found -2, expected at least 0": dict(local_blocks=-2),
        "rule: found 'top', expected share or of_max": dict(rule="top"),
        "found 'nonsense'": dict(estimator="nonsense"),
        "estimator": dict(estimator=""),
        "estimator:": dict(estimator="antidiagonal:5"),
        "estimator: term: found 'a?b'": dict(estimator="a\nb"),
        "rule: found 'a?b'": dict(rule="a\nb"),
    }
    return [pytest.param(message, good | change, id=message) for message, change in changes.items()]


@pytest.mark.parametrize("gradient", [False, True])
@pytest.mark.parametrize(("message", "call"), broken_calls())
def test_errors_name_found_and_expected(message, call, gradient):
    c = dict(call)
    names = ("q", "k", "v", "cu_q", "cu_k", "max_q", "max_k", "tau")
    arguments = [c.pop(name) for name in names]
    if gradient:
        arguments[0] = arguments[0].clone().requires_grad_()
    with pytest.raises(RuntimeError) as caught:
        xattention(*arguments, **c)
    text = str(caught.value)
    assert text.startswith("xattention: ") and message in text
    assert "\n" not in text.strip()


def broken_selections():
    scores = torch.zeros(2, 4, 1, 1)
    cu = [torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 2, 6])]
    good = dict(scores=scores, tau=torch.tensor(0.5), cu_q=cu[0], cu_k=cu[1])
    long = torch.tensor([0, 2, 300], dtype=torch.int32)
    changes = {
        "scores: found shape [4, 1, 1], expected [B, H, nQ, nK]": dict(scores=scores[0]),
        "scores: found float64, expected float32": dict(scores=scores.double()),
        "cu_seqlens_q: found 2 entries, expected 3": dict(cu_q=cu[0][:2]),
        "cu_seqlens_k: found 2 entries, expected 3": dict(cu_k=cu[1][:2]),
        "cu_seqlens_k: found int64, expected int32": dict(cu_k=cu[1].long()),
        "cu_seqlens_q: found 298 rows of sequence 1, expected at most": dict(cu_q=long),
        "cu_seqlens_k: found 298 rows of sequence 1, expected at most": dict(cu_k=long),
        "threshold: found shape [2], expected [] or [4]": dict(tau=torch.zeros(2)),
        "threshold[1]: found nan, expected a number from 0 to 1": dict(
            tau=torch.tensor([0.5, math.nan, 0.5, 0.5])
        ),
        "block_size: found 16, expected 64 or 128": dict(block_size=16),
        "rule: found '', expected share or of_max": dict(rule=""),
    }
    return [pytest.param(message, good | change, id=message) for message, change in changes.items()]


@pytest.mark.parametrize(("message", "call"), broken_selections())
def test_errors_of_selection(message, call):
    c = dict(call)
    arguments = [c.pop(name) for name in ("scores", "tau", "cu_q", "cu_k")]
    with pytest.raises(RuntimeError) as caught:
        select(*arguments, **c)
    text = str(caught.value)
    assert text.startswith("xattn_select: ") and message in text
    assert "\n" not in text.strip()


def test_errors_of_scores_name_the_operation():
    packed = Packed([(5, 6)], 4, 2, 8, torch.float32)
    for options, message in (
        (dict(stride=5), "stride: found 5"),
        (dict(estimator="mean+"), "estimator"),
        (dict(block_size=256), "block_size: found 256, expected 64 or 128"),
    ):
        with pytest.raises(RuntimeError) as caught:
            block_scores(*operands(packed), **options)
        text = str(caught.value)
        assert text.startswith("xattn_block_scores: ") and message in text
        assert "\n" not in text.strip()


def test_nothing_to_do():
    for lengths in ([], [(0, 0)], [(0, 3)], [(3, 0), (0, 2)]):
        packed = Packed(lengths, 4, 2, 8, torch.float32)
        out, lse, density = xattention(*packed.arguments(), torch.tensor(0.5))
        assert out.shape == packed.q.shape and lse.shape == (4, packed.q.shape[0])
        assert (out == 0).all() and (lse == -math.inf).all() and (density == 1).all()
        out.sum().backward()
        assert all((x.grad == 0).all() for x in (packed.q, packed.k, packed.v))
        assert (block_scores(*operands(packed)) == 0).all()


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_chooses_as_the_cpu_does():
    """Law k: the same scores give the same choice."""
    packed = structured([(1500, 1500), (200, 900)], 4, 2, 64)
    scores = block_scores(*operands(packed), "sampled:16")
    for threshold in (0.0, 0.3, 0.7, 0.9, 1.0):
        tau = torch.tensor(threshold)
        here = select(scores, tau, packed.cu_q, packed.cu_k)
        there = select(scores.cuda(), tau.cuda(), packed.cu_q.cuda(), packed.cu_k)
        assert torch.equal(here, there.cpu())
