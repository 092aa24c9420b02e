"""torch.ops.longspur.nvfp4_linear, nvfp4_fake_quantize and nvfp4_linear_qat: against the same
formulas in float64 over dequantised operands; gradients; what torch asks of an operation; errors.

Tolerances: docs/numerics.md, section nvfp4.
"""

import itertools

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
# error of the result, relative, root mean square: fp32 sums of a few hundred terms, or the rounding
# of the output
BOUND = {torch.float32: 2e-6, torch.bfloat16: 3e-3, torch.float16: 4e-4}
DTYPES = pytest.mark.parametrize("dtype", BOUND, ids=lambda dtype: str(dtype).split(".")[1])
ON_DEVICES = pytest.mark.parametrize("device", DEVICES)
WITHOUT_SCHEMA = ("test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")

pytestmark = pytest.mark.usefixtures("op_library")


def ops():
    return torch.ops.longspur


def normal(*shape, seed=0, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator).to(dtype).to(device)


def packed(n, k, device="cpu", seed=1, **options):
    return ops().nvfp4_quantize(normal(n, k, seed=seed, device=device), **options)


def real(quantized):
    return ops().nvfp4_dequantize(*quantized, torch.float32).double()


def error(found, expected):
    return ((found.double() - expected).norm() / expected.norm().clamp(min=1e-300)).item()


# --- linear --------------------------------------------------------------------------------------

SHAPES = [(1, 48, 64), (3, 1, 16), (5, 33, 208), (17, 96, 512), (64, 128, 256), (200, 130, 1040)]


@ON_DEVICES
@DTYPES
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_linear(shape, dtype, device):
    m, n, k = shape
    x = normal(m, k, dtype=dtype, device=device)
    bias = normal(n, seed=2, dtype=dtype, device=device)
    for per_row, with_bias in itertools.product((False, True), (False, True)):
        weight = packed(n, k, device, per_row=per_row)
        y = ops().nvfp4_linear(x, *weight, bias if with_bias else None)
        expected = x.double() @ real(weight).t() + (bias.double() if with_bias else 0)
        assert (y.dtype, y.shape) == (dtype, (m, n))
        assert error(y, expected) <= BOUND[dtype]


@ON_DEVICES
@DTYPES
@pytest.mark.parametrize("rule", ["static_6", "four_over_six", "sweep"])
def test_linear_of_quantised_activations(rule, dtype, device):
    x = normal(33, 512, dtype=dtype, device=device)
    weight = packed(96, 512, device)
    y = ops().nvfp4_linear(x, *weight, None, rule)
    rounded = real(ops().nvfp4_quantize(x, rule=rule, per_row=True))
    assert error(y, rounded @ real(weight).t()) <= BOUND[dtype]
    # a row does not depend on its batch, but for the order of its sums
    alone = torch.cat([ops().nvfp4_linear(row[None], *weight, None, rule) for row in x])
    assert error(alone, y.double()) <= BOUND[dtype]


@ON_DEVICES
def test_linear_shapes(device):
    weight = packed(48, 64, device)
    x = normal(2, 3, 64, device=device)
    y = ops().nvfp4_linear(x, *weight)
    assert y.shape == (2, 3, 48)
    assert torch.equal(y.flatten(0, 1), ops().nvfp4_linear(x.flatten(0, 1), *weight))
    assert ops().nvfp4_linear(x[0, 0], *weight).shape == (48,)
    assert ops().nvfp4_linear(x[:0], *weight).shape == (0, 3, 48)
    strided = normal(64, 6, device=device).t()
    assert torch.equal(
        ops().nvfp4_linear(strided, *weight), ops().nvfp4_linear(strided.contiguous(), *weight)
    )
    view = [t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t for t in weight]
    assert torch.equal(ops().nvfp4_linear(x, *view), y)


@ON_DEVICES
def test_weights_written_in_place(device):
    """What a device keeps of a weight is made anew when the weight changes or another one comes to
    its place."""
    x = normal(3, 64, dtype=torch.bfloat16, device=device)
    weight = packed(32, 64, device)
    for seed in range(2, 6):
        other = packed(32, 64, device, seed=seed)
        for old, new in zip(weight, other, strict=True):
            old.copy_(new)
        assert torch.equal(ops().nvfp4_linear(x, *weight), ops().nvfp4_linear(x, *other))
        del other
    weight[1].view(torch.uint8).fill_(0)
    assert ops().nvfp4_linear(x, *weight).eq(0).all()
    with torch.inference_mode():
        weight = packed(32, 64, device)
        first = ops().nvfp4_linear(x, *weight)
        weight[0].zero_()
        assert not first.eq(0).all() and ops().nvfp4_linear(x, *weight).eq(0).all()


@ON_DEVICES
def test_linear_special_values(device):
    weight = [t.clone() for t in packed(32, 64, device)]
    x = normal(4, 64, device=device)
    x[1, 5] = float("nan")
    y = ops().nvfp4_linear(x, *weight)
    assert y[1].isnan().all() and y[[0, 2, 3]].isfinite().all()
    weight[1].view(torch.uint8)[7, 2] = 0x7F
    y = ops().nvfp4_linear(x, *weight)
    assert y[:, 7].isnan().all() and y[0, :7].isfinite().all()
    zero = ops().nvfp4_quantize(torch.zeros(32, 64, device=device))
    assert ops().nvfp4_linear(x[:1], *zero).eq(0).all()


@ON_DEVICES
@DTYPES
def test_linear_gradients(dtype, device):
    for per_row in (False, True):
        weight = packed(80, 96, device, per_row=per_row)
        x = normal(2, 7, 96, dtype=dtype, device=device).requires_grad_()
        bias = normal(80, seed=3, dtype=dtype, device=device).requires_grad_()
        grad = normal(2, 7, 80, seed=4, dtype=dtype, device=device)
        dx, dbias = torch.autograd.grad(ops().nvfp4_linear(x, *weight, bias), (x, bias), grad)
        assert error(dx, grad.double() @ real(weight)) <= BOUND[dtype]
        assert error(dbias, grad.double().sum((0, 1))) <= BOUND[dtype]
        assert (dx.dtype, dbias.dtype) == (dtype, dtype)
    (dbias,) = torch.autograd.grad(ops().nvfp4_linear(x.detach(), *weight, bias), bias, grad)
    assert error(dbias, grad.double().sum((0, 1))) <= BOUND[dtype]
    # straight-through: the same gradient whatever happened to x
    (same,) = torch.autograd.grad(ops().nvfp4_linear(x, *weight, None, "sweep"), x, grad)
    assert torch.equal(same, dx)


def test_second_derivatives_are_refused():
    x = normal(4, 64).requires_grad_()
    w = normal(32, 64, seed=1).requires_grad_()
    for name, y in {
        "nvfp4_linear": ops().nvfp4_linear(x, *packed(32, 64)),
        "nvfp4_linear_qat": ops().nvfp4_linear_qat(x, w),
    }.items():
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        with pytest.raises(RuntimeError, match=f"{name}: found a second derivative, expected"):
            dx.sum().backward()


# --- fake quantisation ---------------------------------------------------------------------------


@ON_DEVICES
@DTYPES
def test_fake_quantize(dtype, device):
    x = normal(32, 64, dtype=dtype, device=device).requires_grad_()
    amax = torch.tensor(3.0, device=device)
    importance = normal(64, seed=5, device=device).square()
    for options in (
        {},
        dict(rule="sweep", metric="mae", importance=importance),
        dict(tile_2d=True, amax=amax, scale_bound=448),
        dict(per_row=True, rounding="stochastic", seed=3),
    ):
        y = ops().nvfp4_fake_quantize(x, **options)
        expected = ops().nvfp4_dequantize(*ops().nvfp4_quantize(x, **options), dtype)
        assert torch.equal(y, expected) and y.dtype == dtype
        grad = normal(32, 64, seed=6, dtype=dtype, device=device)
        assert torch.equal(torch.autograd.grad(y, x, grad)[0], grad)
    with pytest.raises(RuntimeError, match="rule: found 'none', expected static_6"):
        ops().nvfp4_fake_quantize(x, rule="none")


# --- quantised training --------------------------------------------------------------------------


def quantised(x, rule, rounding="nearest", seed=0, tile_2d=False, per_row=False, hadamard=False):
    """x [rows, K] as the product sees it, in double; any sizes."""
    if rule is None:
        return x.double()
    rows, k = x.shape
    pad = (0, -k % 16, 0, -rows % 16 if tile_2d else 0)
    found = ops().nvfp4_quantize(
        torch.nn.functional.pad(x, pad), None, rule, "mse", tile_2d, rounding, seed, per_row,
        hadamard=hadamard,
    )  # fmt: skip
    return real(found)[:rows]


def expected_qat(x, w, grad, r, seed):
    """y, dx, dW by the recipe's formulas in double."""
    y = (
        quantised(x, r["activation_rule"], per_row=r["per_row"])
        @ quantised(w, r["weight_rule"], tile_2d=r["tile_2d"]).t()
    )
    rotate = bool(r["hadamard"] and r["activation_rule"] and r["gradient_rule"])
    if r["quantize_dgrad"]:
        g = quantised(
            grad, r["gradient_rule"], r["gradient_rounding"], 2 * seed, per_row=r["per_row"]
        )
        w_t = quantised(w.t(), r["weight_rule"], tile_2d=r["tile_2d"])
        columns = max(g.shape[1], w_t.shape[1])
        g, w_t = (torch.nn.functional.pad(t, (0, columns - t.shape[1])) for t in (g, w_t))
        dx = g @ w_t.t()[:, : w.shape[1]]
    else:
        dx = grad.double() @ quantised(w, r["weight_rule"], tile_2d=r["tile_2d"])
    if r["quantize_wgrad"]:
        rounding, common = r["gradient_rounding"], dict(per_row=r["per_row"], hadamard=rotate)
        g_t = quantised(grad.t(), r["gradient_rule"], rounding, 2 * seed + 1, **common)
        x_t = quantised(x.t(), r["activation_rule"], **common)
        columns = max(g_t.shape[1], x_t.shape[1])
        g_t, x_t = (torch.nn.functional.pad(t, (0, columns - t.shape[1])) for t in (g_t, x_t))
        dw = g_t @ x_t.t()
    else:
        dw = grad.t().double() @ quantised(x, r["activation_rule"], per_row=r["per_row"])
    return y, dx, dw


DEFAULT = dict(
    activation_rule="four_over_six",
    weight_rule="four_over_six",
    gradient_rule="four_over_six",
    tile_2d=False,
    gradient_rounding="stochastic_unbiased",
    quantize_dgrad=True,
    quantize_wgrad=True,
    hadamard=True,
    per_row=True,
)
RECIPES = {
    "default": {},
    "tiles": dict(tile_2d=True),
    "per_tensor": dict(per_row=False),
    "nearest": dict(gradient_rounding="nearest", hadamard=False),
    "stochastic": dict(gradient_rounding="stochastic"),
    "rules": dict(activation_rule="sweep", weight_rule="static_6", gradient_rule="static_4"),
    "no_dgrad": dict(quantize_dgrad=False),
    "no_wgrad": dict(quantize_wgrad=False, tile_2d=True),
    "straight_through": dict(quantize_dgrad=False, quantize_wgrad=False),
    "weights": dict(activation_rule=None, gradient_rule=None),
    "activations": dict(weight_rule=None),
    "nothing": dict(activation_rule=None, weight_rule=None, gradient_rule=None),
}


@ON_DEVICES
@DTYPES
@pytest.mark.parametrize("name", RECIPES)
def test_qat(name, dtype, device):
    recipe = DEFAULT | RECIPES[name]
    for m, n, k in ((32, 48, 64), (7, 41, 32)):
        x = normal(m, k, dtype=dtype, device=device).requires_grad_()
        w = normal(n, k, seed=1, dtype=dtype, device=device).requires_grad_()
        bias = normal(n, seed=2, dtype=dtype, device=device).requires_grad_()
        grad = normal(m, n, seed=3, dtype=dtype, device=device)
        y = ops().nvfp4_linear_qat(x, w, bias, **recipe, seed=5)
        dx, dw, dbias = torch.autograd.grad(y, (x, w, bias), grad)
        expected = expected_qat(x.detach(), w.detach(), grad, recipe, 5)
        found = (y.detach() - bias.detach().double(), dx, dw)
        # products that are not quantised run in dtype, over operands rounded to it; a scale chosen
        # differently on a GPU changes a block by a grid step
        bound = 2 * BOUND[dtype] + (0.05 if device == "cuda" else 0.0)
        for label, a, b in zip(("y", "dx", "dW"), found, expected, strict=True):
            assert a.shape == b.shape
            assert error(a, b) <= bound + (2e-2 if dtype != torch.float32 else 0.0), label
        assert error(dbias, grad.double().sum(0)) <= BOUND[dtype]


@ON_DEVICES
def test_qat_depends_on_its_seed_only(device):
    x = normal(32, 64, device=device).requires_grad_()
    w = normal(48, 64, seed=1, device=device).requires_grad_()
    grad = normal(32, 48, seed=3, device=device)

    def run(seed):
        y = ops().nvfp4_linear_qat(x, w, seed=seed)
        return y, *torch.autograd.grad(y, (x, w), grad)

    first, again, other = run(1), run(1), run(2)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert torch.equal(first[0], other[0])  # the forward rounds to the nearest
    assert not torch.equal(first[1], other[1]) and not torch.equal(first[2], other[2])


@ON_DEVICES
def test_qat_gradients_are_unbiased(device):
    """Over many seeds the mean gradients are those of the quantised weights and activations: the
    error of a mean shrinks by the root of the number of draws."""
    x = normal(32, 32, device=device).requires_grad_()
    w = normal(48, 32, seed=1, device=device).requires_grad_()
    grad = normal(32, 48, seed=3, device=device)
    draws = 200

    def gradients(seed):
        return torch.autograd.grad(ops().nvfp4_linear_qat(x, w, seed=seed), (x, w), grad)

    means = [
        sum(parts).double() / draws for parts in zip(*map(gradients, range(draws)), strict=True)
    ]
    exact_dx = expected_qat(x.detach(), w.detach(), grad, DEFAULT | dict(gradient_rule=None), 0)[1]
    # dy is rotated like x; rotations are orthogonal, so rotate x back instead
    rotated = quantised(x.detach().t(), "four_over_six", per_row=True, hadamard=True)
    back = (rotated.reshape(32, 2, 16) @ rotation(device)).reshape(32, 32)
    exact_dw = grad.t().double() @ back.t()
    for mean, once, exact in zip(means, gradients(0), (exact_dx, exact_dw), strict=True):
        assert error(mean, exact) < 1.3 * error(once, exact) / draws**0.5


def rotation(device):
    """The inverse of quantize's rotation: y = x * signs @ H / 4."""
    k = torch.arange(16)
    signs = 1 - 2 * (0xD7E8 >> k & 1)
    bits = sum((k[:, None] & k) >> b & 1 for b in range(4))
    return ((1 - 2 * (bits % 2)) * signs).double().to(device) / 4


@ON_DEVICES
def test_qat_trains(device):
    """A few steps of a regression: the loss falls as it does without quantisation."""
    torch.manual_seed(0)
    target = normal(32, 64, seed=7, device=device) / 8
    x = normal(256, 64, seed=8, device=device)
    losses = {}
    for quantise in (False, True):
        w = torch.zeros(32, 64, device=device, requires_grad=True)
        for step in range(60):
            y = ops().nvfp4_linear_qat(x, w, seed=step) if quantise else x @ w.t()
            loss = (y - x @ target.t()).square().mean()
            (gradient,) = torch.autograd.grad(loss, w)
            with torch.no_grad():
                w -= 8.0 * gradient
        losses[quantise] = ((w - target).norm() / target.norm()).item()
    assert losses[False] < 0.05 and losses[True] < 0.3


def test_qat_master_weights_of_another_type():
    x = normal(8, 64, dtype=torch.bfloat16).requires_grad_()
    w = normal(32, 64, seed=1).requires_grad_()
    y = ops().nvfp4_linear_qat(x, w)
    y.sum().backward()
    assert (y.dtype, x.grad.dtype, w.grad.dtype) == (torch.bfloat16, torch.bfloat16, torch.float32)


# --- what torch asks for -------------------------------------------------------------------------


@ON_DEVICES
def test_opcheck(device):
    x = normal(5, 64, device=device).requires_grad_()
    bias = normal(32, seed=1, device=device).requires_grad_()
    weight = packed(32, 64, device)
    as_bytes = [t.view(torch.uint8) if t.dtype == torch.float8_e4m3fn else t for t in weight]
    linear = ops().nvfp4_linear.default
    torch.library.opcheck(linear, (x, *weight, bias), test_utils=WITHOUT_SCHEMA)
    torch.library.opcheck(linear, (x, *as_bytes, bias))
    torch.library.opcheck(linear, (x, *as_bytes, None, "sweep"))
    torch.library.opcheck(
        ops().nvfp4_linear_backward.default, (normal(5, 32, device=device), *as_bytes)
    )
    torch.library.opcheck(ops().nvfp4_fake_quantize.default, (x,), dict(per_row=True))
    w = normal(32, 64, seed=2, device=device).requires_grad_()
    for options in (dict(seed=3), dict(weight_rule=None, tile_2d=True)):
        torch.library.opcheck(ops().nvfp4_linear_qat.default, (x, w, bias), options)
    torch.library.opcheck(
        ops().nvfp4_linear_qat_backward.default,
        (normal(5, 32, device=device), x.detach(), w.detach(), "sweep", None, "static_6", "mse",
         True, "nearest", True, True, True, True, 0),
    )  # fmt: skip


def test_meta_and_schema():
    meta = [t.to("meta") for t in packed(32, 64)]
    x = torch.empty(5, 64, dtype=torch.bfloat16, device="meta")
    assert ops().nvfp4_linear(x, *meta).shape == (5, 32)
    assert ops().nvfp4_linear_qat(x, torch.empty(32, 64, device="meta")).dtype == torch.bfloat16
    with pytest.raises(RuntimeError, match="nvfp4_linear: x: found shape"):
        ops().nvfp4_linear(x[:, :32], *meta)
    assert str(ops().nvfp4_linear.default._schema).startswith(
        "longspur::nvfp4_linear(Tensor x, Tensor codes, Tensor block_scales, Tensor tensor_scale, "
        "Tensor? bias=None"
    )


def test_compile():
    weight = packed(32, 64)

    @torch.compile(fullgraph=True, backend="aot_eager", dynamic=True)
    def step(x, w):
        y = ops().nvfp4_linear(x, *weight).square().sum()
        y = y + ops().nvfp4_fake_quantize(x).square().sum()
        return y + ops().nvfp4_linear_qat(x, w, seed=2).square().sum()

    for rows in (7, 20):
        x = normal(rows, 64).requires_grad_()
        w = normal(48, 64, seed=1).requires_grad_()
        compiled = torch.autograd.grad(step(x, w), (x, w))
        torch.compiler.set_stance("force_eager")
        eager = torch.autograd.grad(step(x, w), (x, w))
        torch.compiler.set_stance("default")
        for a, b in zip(compiled, eager, strict=True):
            assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)


# --- errors --------------------------------------------------------------------------------------


def test_linear_errors_name_found_and_expected():
    weight, x = packed(32, 64), normal(5, 64)
    codes, scales, tensor_scale = weight
    broken = {
        "x: found shape [5, 48], expected [..., 64], K of the weight": (x[:, :48], *weight),
        "x: found float64, expected float32, bfloat16 or float16": (x.double(), *weight),
        "codes: found shape [32], expected [N, K / 2]": (
            x, codes[:, 0], scales[:, 0][:4], tensor_scale),
        "codes: found int32, expected uint8": (x, codes.int(), scales, tensor_scale),
        "block_scales: found shape [31, 4], expected [32, 4]": (x, codes, scales[1:], tensor_scale),
        "tensor_scale: found shape [31], expected [] or [32]": (
            x, codes, scales, torch.ones(31)),
        "bias: found shape [64], expected [32], [N]": (x, *weight, torch.ones(64)),
        "bias: found int64, expected float32": (x, *weight, torch.ones(32).long()),
        "codes: found on cpu, expected on meta as x is": (x.to("meta"), *weight),
        "rule: found 'w4', expected static_6": (x, *weight, None, "w4"),
        "metric: found 'rms', expected mse": (x, *weight, None, "sweep", "rms"),
    }  # fmt: skip
    for message, call in broken.items():
        with pytest.raises(RuntimeError) as caught:
            ops().nvfp4_linear(*call)
        text = str(caught.value)
        assert text.startswith("nvfp4_linear: ") and message in text, text
        assert "\n" not in text.strip()


def test_qat_errors_name_found_and_expected():
    x, w = normal(5, 64), normal(32, 64)
    broken = {
        "found x [5, 48] and weight [32, 64], expected [..., K] and [N, K]": ((x[:, :48], w), {}),
        "found x [5, 40] and weight [32, 40], expected": ((x[:, :40], w[:, :40]), {}),
        "weight: found shape [64], expected [N, K]": ((x, w[0]), {}),
        "weight: found float64, expected float32": ((x, w.double()), {}),
        "bias: found shape [5], expected [32], [N]": ((x, w, torch.ones(5)), {}),
        "rule: found 'a', expected static_6": ((x, w), dict(gradient_rule="a")),
        "rounding: found 'up', expected nearest": ((x, w), dict(gradient_rounding="up")),
    }
    for message, (arguments, options) in broken.items():
        with pytest.raises(RuntimeError) as caught:
            ops().nvfp4_linear_qat(*arguments, **options)
        text = str(caught.value)
        assert text.startswith("nvfp4_linear_qat: ") and message in text, text
        assert "\n" not in text.strip()
