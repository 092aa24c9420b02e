"""torch.ops.longspur.nvfp4_quantize and nvfp4_dequantize: the published vectors, a plain version of
every rule written here in torch's operations, laws, special values, what torch asks of an
operation, errors. The linear layers are in test_nvfp4_linear.py.

Codes and scales are compared bit by bit (docs/numerics.md, section nvfp4). CUDA may choose another
scale in fewer than one of a thousand blocks, where two candidates' errors are within rounding.
"""

import itertools
import math

import pytest
import torch
from nvfp4_plain import VALUES, VECTORS, K, plain_quantize, top_of

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
RULES = ["static_6", "static_4", "four_over_six", "sweep", "full_sweep"]
METRICS = ["mse", "mae", "abs_max"]

pytestmark = pytest.mark.usefixtures("op_library")


def quantize(*arguments, **options):
    return torch.ops.longspur.nvfp4_quantize(*arguments, **options)


def dequantize(*arguments):
    return torch.ops.longspur.nvfp4_dequantize(*arguments)


def normal(*shape, seed=0, dtype=torch.bfloat16, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def bits_of(tensor):
    """As integers of the same size: torch compares neither float8 nor NaN."""
    return tensor.cpu().view(torch.uint8 if tensor.element_size() == 1 else torch.int32)


def equal_bits(ours, theirs):
    return all(torch.equal(bits_of(a), bits_of(b)) for a, b in zip(ours, theirs, strict=True))


def agree(found, expected, share=0.0):
    """Codes equal wherever scales are, scales but for a share of them."""
    scales, plain_scales = bits_of(found[1]), expected[1].cpu().view(torch.uint8)
    same = scales == plain_scales
    assert (~same).float().mean().item() <= share
    codes, plain_codes = found[0].cpu(), expected[0].cpu()
    equal = (codes == plain_codes).reshape(*same.shape, 8).all(-1)
    assert equal[same].all()
    assert torch.equal(found[2].cpu(), expected[2].cpu())


def flips(device):
    return 0.0 if device == "cpu" else 1e-3


# --- published vectors ---------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", VECTORS)
def test_published_vectors(name, device):
    x, amax, plain, plain_codes, six, four, codes6, codes4, picks = VECTORS[name]
    x = torch.tensor(x, dtype=torch.float32, device=device)
    amax = torch.tensor(float(amax), device=device)
    expected = [("static_6", "mse", plain, plain_codes)]
    for metric, pick in zip(METRICS, picks, strict=True):
        chosen = (six, codes6) if pick == "6" else (four, codes4)
        expected.append(("four_over_six", metric, *chosen))
    for rule, metric, scale, codes in expected:
        found = quantize(x[None], amax, rule, metric)
        assert bits_of(found[1]).tolist() == [[int(scale, 16)]], (rule, metric)
        assert bytes(found[0][0].tolist()) == bytes.fromhex(codes), (rule, metric)
        assert found[2].item() == (amax.cpu() / top_of(rule)).item()


@pytest.mark.parametrize("device", DEVICES)
def test_published_tile_and_sweep(device):
    r, c = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    tile = (((37 * r + 61 * c) % 97) - 48).float().to(device) / 16
    amax = torch.tensor(3.0, device=device)
    codes, scales, _ = quantize(tile, amax, tile_2d=True)
    assert bits_of(scales).eq(0x7C).all()
    assert bytes(codes[0].tolist()).hex() == "2e5cd0a43e5bd194"
    six = quantize(tile, amax, "static_6", tile_2d=True, scale_bound=256)
    assert bits_of(six[1]).eq(0x78).all()
    assert bytes(six[0][0].tolist()).hex() == "3f6de0a54f7ce1a6"
    k = torch.tensor(K, device=device)[None]
    for rule in ("sweep", "full_sweep"):  # of the codes 0x75 .. 0x7e around 0x78, 0x78 is best
        assert bits_of(quantize(k, torch.tensor(4.0, device=device), rule)[1]).item() == 0x78


@pytest.mark.parametrize("device", DEVICES)
def test_published_rotation(device):
    x = torch.arange(1, 17, dtype=torch.float32, device=device)[None]
    expected = [-15.5, -7.5, 7.5, -0.5, 7.5, -0.5, -15.5, 8.5]
    expected += [8.5, 16.5, 1.5, 1.5, 1.5, -2.5, 10.5, -17.5]
    rotated = torch.tensor(expected, device=device)[None]
    found, plain = quantize(x, hadamard=True), quantize(rotated)
    assert equal_bits(found, plain)


# --- every rule against the plain version --------------------------------------------------------

INPUTS = {
    "zeros": lambda *shape: torch.zeros(*shape),
    "ones": lambda *shape: torch.ones(*shape),
    "bits": lambda *shape: normal(*shape, seed=1).gt(0).float(),
    "normal": lambda *shape: normal(*shape, seed=2).float(),
    "outliers": lambda *shape: (
        normal(*shape, seed=3).float() * 10 ** normal(*shape, seed=4).float()
    ),
    "tiny": lambda *shape: normal(*shape, seed=5).float() * 1e-30,
    "huge": lambda *shape: normal(*shape, seed=6).float() * 1e30,
    "denormal": lambda *shape: normal(*shape, seed=7).float() * 1e-41,
}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("tile_2d", [False, True], ids=["rows", "tiles"])
@pytest.mark.parametrize("hadamard", [False, True], ids=["plain", "rotated"])
@pytest.mark.parametrize("transpose", [False, True], ids=["as_is", "transposed"])
def test_every_rule(tile_2d, hadamard, transpose, device):
    cases = itertools.product(RULES, METRICS, INPUTS)
    for rule, metric, kind in cases:
        if rule.startswith("static") and metric != "mse":
            continue
        x = INPUTS[kind](32, 48)
        found = quantize(
            x.to(device),
            rule=rule,
            metric=metric,
            tile_2d=tile_2d,
            hadamard=hadamard,
            transpose=transpose,
        )
        source = x.t().contiguous() if transpose else x
        expected = plain_quantize(source, rule, metric, tile_2d=tile_2d, hadamard=hadamard)
        agree(found, expected, 0.02 if device == "cuda" else 0.0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(1024, 1024), (1024, 512), (512, 1024)], ids=str)
@pytest.mark.parametrize("rule", RULES[:4])
def test_large_matrices(rule, shape, device):
    x = normal(*shape, seed=sum(shape))
    found = quantize(x.to(device), rule=rule)
    agree(found, plain_quantize(x.float(), rule), flips(device))
    # dequantised in float32: the product of three, rounded once
    codes = torch.stack([found[0] % 16, found[0] // 16], -1).reshape(shape).cpu().long()
    scale = found[1].cpu().float().repeat_interleave(16, 1)
    expected = VALUES[codes] * scale * found[2].cpu()
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(dequantize(*found, dtype).cpu(), expected.to(dtype))


@pytest.mark.parametrize("device", DEVICES)
def test_options(device):
    x = normal(32, 96, seed=3).float()
    weight = normal(96, seed=4).float().square()
    for bound in (256, 448):
        found = quantize(x.to(device), scale_bound=bound)
        agree(found, plain_quantize(x, "four_over_six", bound=bound), 0.02 * (device == "cuda"))
    for rule in ("four_over_six", "sweep"):
        for tile_2d in (False, True):
            found = quantize(x.to(device), rule=rule, importance=weight.to(device), tile_2d=tile_2d)
            expected = plain_quantize(x, rule, w=weight, tile_2d=tile_2d)
            agree(found, expected, 0.02 * (device == "cuda"))
    for amax in (torch.tensor(2.0), torch.tensor([2.0]), torch.tensor(2.0).bfloat16()):
        found = quantize(x.to(device), amax.to(device))
        assert found[2].shape == ()
        expected = plain_quantize(x, "four_over_six", amax=torch.tensor(2.0))
        agree(found, expected, 0.02 * (device == "cuda"))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rows_on_their_own(dtype, device):
    """One amax a row is each row quantised alone; given ones are the same as found ones."""
    x = (normal(19, 64, seed=8) * torch.logspace(-3, 3, 19)[:, None]).to(dtype).to(device)
    codes, scales, tensor_scale = quantize(x, per_row=True)
    assert tensor_scale.shape == (19,)
    given = quantize(x, x.abs().amax(1))
    for i in range(19):
        alone = quantize(x[i])
        assert torch.equal(alone[0], codes[i]) and torch.equal(alone[2], tensor_scale[i])
        assert torch.equal(bits_of(alone[1]), bits_of(scales[i]))
    assert equal_bits(given, (codes, scales, tensor_scale))
    back = dequantize(codes, scales, tensor_scale, torch.float32)
    assert torch.equal(back[5], dequantize(codes[5], scales[5], tensor_scale[5], torch.float32))


# --- laws ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", RULES)
def test_powers_of_two_change_the_multiplier_only(rule, device):
    x = normal(64, 128, seed=9).float().to(device)
    codes, scales, tensor_scale = quantize(x, rule=rule)
    for power in (2.0**-20, 0.5, 2.0**15):
        found = quantize(x * power, rule=rule)
        assert torch.equal(found[0], codes) and torch.equal(bits_of(found[1]), bits_of(scales))
        assert torch.equal(found[2], tensor_scale * power)


@pytest.mark.parametrize("device", DEVICES)
def test_more_candidates_never_do_worse(device):
    x = normal(64, 256, seed=10).float().to(device)

    def block_errors(rule, **options):
        back = dequantize(*quantize(x, rule=rule, **options), torch.float32)
        return (back - x).double().reshape(64, 16, 16).square().sum(-1)

    plain = block_errors("static_6", scale_bound=256)
    for rule in ("four_over_six", "sweep", "full_sweep"):
        assert (block_errors(rule) <= plain * (1 + 1e-5)).all()
    assert (block_errors("full_sweep") <= block_errors("sweep") * (1 + 1e-5)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_relative_error_of_normal_numbers(device):
    """The published relative errors of N(0, 1), within 1 % (1024 x 1024, two seeds)."""
    expected = {
        ("static_6", "mse"): 0.00904,
        ("static_4", "mse"): 0.00964,
        ("four_over_six", "mse"): 0.00755,
        ("four_over_six", "mae"): 0.00779,
        ("four_over_six", "abs_max"): 0.00797,
        ("sweep", "mse"): 0.00669,
        ("full_sweep", "mse"): 0.00660,
    }
    x = normal(2048, 1024, seed=11).to(device)
    for (rule, metric), share in expected.items():
        back = dequantize(*quantize(x, rule=rule, metric=metric), torch.float32)
        found = ((back - x).double().square().sum() / x.double().square().sum()).item()
        assert found == pytest.approx(share, rel=0.01), (rule, metric)


@pytest.mark.parametrize("device", DEVICES)
def test_tiles_of_the_transpose(device):
    """Tiles of 16 x 16 read back as the same numbers from W and from its transpose."""
    w = normal(64, 96, seed=12).to(device)
    ours = dequantize(*quantize(w, tile_2d=True), torch.float32)
    theirs = dequantize(*quantize(w, tile_2d=True, transpose=True), torch.float32)
    share = (ours != theirs.t()).reshape(4, 16, 6, 16).any(3).any(1).float().mean().item()
    assert share <= (0.05 if device == "cuda" else 0.0)  # errors are added up in another order


@pytest.mark.parametrize("device", DEVICES)
def test_swizzled_scales(device):
    x = normal(200, 16 * 7, seed=13).to(device)
    codes, scales, tensor_scale = quantize(x)
    tiled_codes, tiles, tiled_scale = quantize(x, swizzle=True)
    assert tiles.shape == (256, 8) and tiles.dtype == torch.float8_e4m3fn
    assert torch.equal(codes, tiled_codes) and torch.equal(tensor_scale, tiled_scale)
    flat, plain = bits_of(tiles).flatten(), bits_of(scales)
    expected = torch.zeros_like(flat)
    for r in range(200):
        for c in range(7):
            at = ((r // 128 * 2 + c // 4) * 32 + r % 32) * 16 + r % 128 // 32 * 4 + c % 4
            expected[at] = plain[r, c]
    assert torch.equal(flat, expected)
    # published offsets
    wide = bits_of(quantize(normal(131, 128, seed=1).to(device), swizzle=True)[1]).flatten()
    plain = bits_of(quantize(normal(131, 128, seed=1).to(device))[1])
    offsets = {(0, 3): 3, (1, 0): 16, (31, 3): 499, (32, 0): 4, (127, 3): 511, (0, 4): 512,
               (5, 6): 594, (128, 0): 1024, (130, 7): 1571}  # fmt: skip
    assert all(wide[at] == plain[rc] for rc, at in offsets.items())
    back = dequantize(tiled_codes, tiles, tiled_scale, torch.float32, True)
    assert torch.equal(back, dequantize(codes, scales, tensor_scale, torch.float32))


# --- stochastic rounding -------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("rule", "rounding", "distance"),
    [
        ("static_6", "stochastic", 140.8),
        ("four_over_six", "stochastic", 136.2),
        ("static_6", "stochastic_unbiased", 156.9),
        ("four_over_six", "stochastic_unbiased", 149.2),
    ],
)
def test_stochastic_distance(rule, rounding, distance, device):
    """||Q(x) - x|| of 1024 x 1024 normal numbers, within 1 % of the published."""
    x = normal(1024, 1024, seed=14, dtype=torch.float32).to(device)
    back = dequantize(*quantize(x, rule=rule, rounding=rounding, seed=7), torch.float32)
    assert (back - x).norm().item() == pytest.approx(distance, rel=0.01)


@pytest.mark.parametrize("device", DEVICES)
def test_stochastic_mean(device):
    """The mean of many draws is x: its error falls like that of independent draws."""
    x = normal(16, 64, seed=15, dtype=torch.float32).to(device)
    draws = 2000
    total = torch.zeros_like(x, dtype=torch.float64)
    square = torch.zeros_like(total)
    for seed in range(draws):
        found = quantize(x, rounding="stochastic_unbiased", seed=seed)
        back = dequantize(*found, torch.float32).double()
        total += back
        square += (back - x) ** 2
    # standard error of each mean, from the draws themselves
    spread = (square / draws / draws).sqrt() + 1e-7
    deviation = (total / draws - x) / spread
    assert deviation.abs().max() < 6.0
    assert abs(deviation.mean().item()) < 5.0 / math.sqrt(x.numel())


@pytest.mark.parametrize("device", DEVICES)
def test_stochastic_draws(device):
    x = normal(64, 64, seed=16).to(device)
    first = quantize(x, rounding="stochastic", seed=1)[0]
    assert torch.equal(first, quantize(x, rounding="stochastic", seed=1)[0])
    assert not torch.equal(first, quantize(x, rounding="stochastic", seed=2)[0])
    assert not torch.equal(first, quantize(x, rounding="stochastic", seed=1 + 2**40)[0])
    # the draw belongs to the element's place: equal rows differ, a shorter matrix agrees
    same = x[:1].expand(64, 64)
    rows = quantize(same, rounding="stochastic", seed=1)[0]
    assert not torch.equal(rows[0], rows[1])
    assert torch.equal(quantize(same[:5], rounding="stochastic", seed=1)[0], rows[:5])
    # every code is one of the two neighbours, and scales are those of rounding to the nearest
    near = quantize(x)
    drawn = quantize(x, rounding="stochastic", seed=3)
    assert torch.equal(bits_of(near[1]), bits_of(drawn[1]))
    a, b = (dequantize(*q, torch.float32) for q in (near, drawn))
    step = near[1].float().repeat_interleave(16, 1) * near[2] * 2
    assert ((a - b).abs() <= step * (1 + 1e-6)).all()


def test_cuda_draws_as_the_cpu_does():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    x = normal(64, 512, seed=17)
    for rounding in ("stochastic", "stochastic_unbiased"):
        ours = quantize(x, rule="static_6", rounding=rounding, seed=2**40 + 5)
        theirs = quantize(x.cuda(), rule="static_6", rounding=rounding, seed=2**40 + 5)
        assert equal_bits(ours, theirs)


# --- special values ------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rule", RULES)
def test_zero_and_not_finite(rule, device):
    zeros = quantize(torch.zeros(16, 32, device=device), rule=rule)
    assert all(bits_of(t).eq(0).all() for t in zeros)
    assert dequantize(*zeros, torch.float32).eq(0).all()
    for value in (math.nan, math.inf, -math.inf):
        x = normal(4, 64, seed=18).float().to(device)
        x[2, 17] = value
        assert dequantize(*quantize(x, rule=rule), torch.float32).isnan().all()
        by_row = dequantize(*quantize(x, rule=rule, per_row=True), torch.float32)
        assert by_row[2].isnan().all() and by_row[[0, 1, 3]].isfinite().all()
        # with an amax given, only the block itself is lost
        codes, scales, tensor_scale = quantize(x, torch.tensor(4.0, device=device), rule=rule)
        back = dequantize(codes, scales, tensor_scale, torch.float32)
        lost = back.isnan()
        assert lost[2, 16:32].all() and lost.sum() == 16
        assert bits_of(scales)[2, 1] == 0x7F
    bad = torch.tensor(math.nan, device=device)
    x = normal(4, 64, seed=18).float().to(device)
    assert dequantize(*quantize(x, bad, rule=rule), torch.float32).isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_one_huge_outlier(device):
    x = normal(16, 64, seed=19).float().to(device)
    x[3, 5] = 1e30
    back = dequantize(*quantize(x), torch.float32)
    assert back.isfinite().all() and back[3, 5].item() == pytest.approx(1e30, rel=1e-6)
    back[3, 5] = 0
    assert back.eq(0).all()  # all else is too small for the steps of such a tensor


def test_signed_scales_and_minus_zero_are_read():
    codes = torch.tensor([[0x8F, 0x08] * 4], dtype=torch.uint8)
    scales = torch.tensor([[0xB8]], dtype=torch.uint8)  # 0x38 is 1.0
    one = torch.ones(())
    back = dequantize(codes, scales, one, torch.float32)
    assert back.tolist() == [[-6.0, 0.0, 0.0, 0.0] * 4]
    assert torch.equal(
        back, dequantize(codes, scales.view(torch.float8_e4m3fn), one, torch.float32)
    )


def test_threads_do_not_change_a_bit():
    x = normal(333, 1040, seed=20)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            results.append(quantize(x) + quantize(x, per_row=True, rounding="stochastic"))
        finally:
            torch.set_num_threads(before)
    assert all(equal_bits(results[0], other) for other in results[1:])


# --- shapes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("device", DEVICES)
def test_leading_dimensions_and_strides(device):
    x = normal(3, 5, 64, seed=21).to(device)
    codes, scales, tensor_scale = quantize(x, per_row=True)
    assert (codes.shape, scales.shape) == ((3, 5, 32), (3, 5, 4))
    assert tensor_scale.shape == (3, 5)
    flat = quantize(x.flatten(0, 1), per_row=True)
    assert torch.equal(flat[0].view(3, 5, 32), codes)
    assert dequantize(codes, scales, tensor_scale, torch.float32).shape == x.shape
    assert quantize(x)[2].shape == ()
    base = normal(128, 96, seed=22).to(device)
    views = [base[::2, 32:], base.t()[:64], base[:, None, :].expand(-1, 2, -1)]
    for view in views:
        assert not view.is_contiguous()
        ours, theirs = quantize(view), quantize(view.contiguous())
        assert equal_bits(ours, theirs)
    strided = quantize(base, transpose=True)
    assert torch.equal(strided[0], quantize(base.t())[0])
    codes, scales, tensor_scale = quantize(base)
    back = dequantize(codes.t().contiguous().t(), scales, tensor_scale, torch.float32)
    assert torch.equal(back, dequantize(codes, scales, tensor_scale, torch.float32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("shape", [(0, 32), (4, 0), (0,), (2, 0, 16)], ids=str)
def test_nothing_to_do(shape, device):
    found = quantize(torch.zeros(shape, device=device))
    assert found[2].item() == 0
    assert dequantize(*found, torch.bfloat16).shape == shape


# --- what torch asks for -------------------------------------------------------------------------

# torch's own check of mutation cannot compare float8 tensors: with those inputs, all but it
WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device):
    op, back = (
        torch.ops.longspur.nvfp4_quantize.default,
        torch.ops.longspur.nvfp4_dequantize.default,
    )
    x = normal(32, 64, dtype=torch.float32, device=device).requires_grad_()
    torch.library.opcheck(op, (x,))
    options = dict(rule="sweep", rounding="stochastic", seed=3, transpose=True, swizzle=True)
    torch.library.opcheck(op, (x, torch.tensor(3.0, device=device)), options)
    torch.library.opcheck(op, (x,), dict(per_row=True, hadamard=True))
    codes, scales, tensor_scale = quantize(x)
    assert not any(t.requires_grad for t in (codes, scales, tensor_scale))
    operands = (codes, scales, tensor_scale, torch.bfloat16)
    torch.library.opcheck(back, operands, test_utils=WITHOUT_SCHEMA)
    torch.library.opcheck(back, (codes, scales.view(torch.uint8), tensor_scale, torch.float32))


def test_meta_and_schema():
    x = torch.empty(32, 64, dtype=torch.bfloat16, device="meta")
    codes, scales, tensor_scale = quantize(x, per_row=True, transpose=True)
    assert (codes.shape, codes.dtype) == ((64, 16), torch.uint8)
    assert (scales.shape, scales.dtype) == ((64, 2), torch.float8_e4m3fn)
    assert (tensor_scale.shape, tensor_scale.dtype) == ((64,), torch.float32)
    assert dequantize(codes, scales, tensor_scale, torch.float16).shape == (64, 32)
    with pytest.raises(RuntimeError, match=r"expected \[..., K\] with K a multiple of 16"):
        quantize(x[:, :60])
    ops = torch.ops.longspur
    assert str(ops.nvfp4_quantize.default._schema).startswith(
        'longspur::nvfp4_quantize(Tensor x, Tensor? amax=None, str rule="four_over_six", '
        'str metric="mse", bool tile_2d=False, str rounding="nearest", int seed=0'
    )
    assert str(ops.nvfp4_dequantize.default._schema).startswith(
        "longspur::nvfp4_dequantize(Tensor codes, Tensor block_scales, Tensor tensor_scale, "
        "ScalarType dtype"
    )


def test_compile():
    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(x):
        codes, scales, tensor_scale = quantize(x * 2, None, "sweep")
        return dequantize(codes, scales, tensor_scale, torch.float32).sum(1)

    for rows in (7, 20):
        x = normal(rows, 64, seed=rows)
        expected = dequantize(*quantize(x * 2, None, "sweep"), torch.float32).sum(1)
        assert torch.equal(step(x), expected)


# --- errors --------------------------------------------------------------------------------------

X = torch.zeros(32, 64)
BROKEN = {
    "x: found shape [32, 60], expected [..., K] with K a multiple of 16": dict(x=X[:, :60]),
    "x: found shape [30, 64], expected [K, rows] with K a multiple": dict(x=X[:30], transpose=True),
    "x: found float64, expected float32, bfloat16 or float16": dict(x=X.double()),
    "x: found int64, expected float32": dict(x=X.long()),
    "x: found a scalar": dict(x=X[0, 0]),
    "x: found shape [2, 16, 64], expected [K, rows] for transpose": dict(
        x=X.view(2, 16, 64), transpose=True
    ),
    "x: found shape [64], expected [rows, K] for swizzle": dict(x=X[0], swizzle=True),
    "rule: found 'best', expected static_6, static_4, four_over_six, sweep or full_sweep": dict(
        rule="best"
    ),
    "metric: found 'rms', expected mse, mae or abs_max": dict(metric="rms"),
    "rounding: found '', expected nearest, stochastic or stochastic_unbiased": dict(rounding=""),
    "scale_bound: found 300, expected 256, 448 or 0": dict(scale_bound=300),
    "amax: found shape [31], expected [] or [32], one a row": dict(amax=torch.ones(31)),
    "amax: found int64, expected float32": dict(amax=torch.ones(32).long()),
    "amax: found on meta, expected on cpu as x is": dict(amax=torch.ones(32, device="meta")),
    "amax: found shape [], expected one a row, as per_row says": dict(
        amax=torch.ones(()), per_row=True
    ),
    "importance: found shape [32], expected [64], one a column": dict(importance=torch.ones(32)),
    "importance: found int64, expected float32": dict(importance=torch.ones(64).long()),
    "x: found shape [31, 64], expected rows in a multiple of 16 for tile_2d": dict(
        x=X[:31], tile_2d=True
    ),
    "tile_2d: found one amax a row, expected one for all": dict(tile_2d=True, per_row=True),
}


@pytest.mark.parametrize("message", BROKEN)
def test_quantize_errors_name_found_and_expected(message):
    call = dict(x=X) | BROKEN[message]
    with pytest.raises(RuntimeError) as caught:
        quantize(**call)
    text = str(caught.value)
    assert text.startswith("nvfp4_quantize: ") and message in text
    assert "\n" not in text.strip()


GOOD = dict(
    codes=torch.zeros(32, 32, dtype=torch.uint8),
    block_scales=torch.zeros(32, 4, dtype=torch.uint8),
    tensor_scale=torch.ones(()),
    dtype=torch.float32,
)
BROKEN_BACK = {
    "codes: found float32, expected uint8": dict(codes=torch.zeros(32, 32)),
    "codes: found shape [32, 30], expected [..., K / 2] with K a multiple of 16": dict(
        codes=GOOD["codes"][:, :30]
    ),
    "block_scales: found shape [32, 3], expected [32, 4], [..., K / 16]": dict(
        block_scales=GOOD["block_scales"][:, :3]
    ),
    "block_scales: found float32, expected float8_e4m3fn": dict(block_scales=torch.zeros(32, 4)),
    "tensor_scale: found shape [4], expected [] or [32], one a row": dict(
        tensor_scale=torch.ones(4)
    ),
    "tensor_scale: found bfloat16, expected float32": dict(tensor_scale=torch.ones(()).bfloat16()),
    "tensor_scale: found on meta, expected on cpu as codes is": dict(
        tensor_scale=torch.ones((), device="meta")
    ),
    "dtype: found int64, expected float32, bfloat16 or float16": dict(dtype=torch.int64),
    "block_scales: found shape [32, 4], expected [128, 4], tiles of 128": dict(swizzle=True),
}


@pytest.mark.parametrize("message", BROKEN_BACK)
def test_dequantize_errors_name_found_and_expected(message):
    with pytest.raises(RuntimeError) as caught:
        torch.ops.longspur.nvfp4_dequantize(**(GOOD | BROKEN_BACK[message]))
    text = str(caught.value)
    assert text.startswith("nvfp4_dequantize: ") and message in text
    assert "\n" not in text.strip()
