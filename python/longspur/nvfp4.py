"""NVFP4 for torch programs: 4-bit values with an E4M3 scale for 16 of them and an fp32 scale for a
tensor or each row. ``value = e2m1 * block_scale * tensor_scale``.

Functions forward to ``torch.ops.longspur.nvfp4_*``; layers and whole models are at the end. Shapes:
K the dimension that a product sums over, a multiple of 16; N the outputs of a layer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn

from longspur import _library

_library.load()

RULES = ("static_6", "static_4", "four_over_six", "sweep", "full_sweep")
METRICS = ("mse", "mae", "abs_max")
ROUNDINGS = ("nearest", "stochastic", "stochastic_unbiased")
# Layers that read the same input and that other engines store as one: they share a tensor scale.
FUSED_GROUPS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("w1", "w3"))


def quantize(
    x: Tensor,
    amax: Tensor | None = None,
    rule: str = "four_over_six",
    metric: str = "mse",
    tile_2d: bool = False,
    rounding: str = "nearest",
    seed: int = 0,
    per_row: bool = False,
    scale_bound: int = 0,
    importance: Tensor | None = None,
    hadamard: bool = False,
    transpose: bool = False,
    swizzle: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Quantises to NVFP4. Each block of 16 along the last dimension gets the E4M3 scale that
    ``rule`` says, of several candidates the one with the least error:

    ============= ==============================================================================
    static_6      the block's largest value becomes 6, the largest code (plain NVFP4)
    static_4      it becomes 4
    four_over_six the better of the two
    sweep         the best of five scales around static_6's: codes -1, 0, +1, +4, +5
    full_sweep    the best of eleven: -3 .. +7; slow, for weights
    ============= ==============================================================================

    Args:
        x: ``[..., K]``, float32, bfloat16 or float16, any strides; leading dimensions are rows.
        amax: the largest magnitude that the tensor scale is made for: a scalar, or one a row
            (``x.shape[:-1]``). Default: that of ``x``. Larger values saturate.
        metric: what a candidate's error is: ``mse``, ``mae`` or ``abs_max``.
        tile_2d: one scale for 16 rows x 16 columns, so that ``x`` and its transpose read back
            alike. Rows in a multiple of 16.
        rounding: ``nearest``; ``stochastic``: up or down so that the mean is right;
            ``stochastic_unbiased``: also at a block's largest value, which plain stochastic
            rounding may clip by 1/17.
        seed: of stochastic rounding. The draw belongs to the element's position.
        per_row: without ``amax``: one largest magnitude for each row instead of one for all.
        scale_bound: the largest block scale aimed at, 256 or 448; 0 for the rule's own (448 for
            the static ones).
        importance: ``[K]``, weighs errors; the mean square of each input channel for weights.
        hadamard: each block is rotated first (a fixed randomised Hadamard matrix of 16 x 16).
        transpose: quantises the transpose of the matrix ``x`` instead: blocks go down its columns.
        swizzle: block scales in tiles of 128 x 4, as Blackwell's matrix instructions read them.

    Returns:
        ``codes`` uint8 ``[..., K / 2]``, low nibble first; ``block_scales`` float8_e4m3fn
        ``[..., K / 16]`` (with ``swizzle`` padded to 128 rows and 4 columns); ``tensor_scale``
        float32, a scalar or one a row. No gradient goes through them: see ``fake_quantize``.

        Zeros give zeros. A block with a NaN or an infinity reads back as NaN, and so does
        everything that shares its ``amax`` when that is found here.

    Raises:
        RuntimeError: an argument is wrong. One line names it, what was found, what was expected.

    >>> import torch, longspur
    >>> x = torch.tensor([[0.5, 1.0, -3.0, 6.0] * 4])
    >>> codes, block_scales, tensor_scale = longspur.nvfp4.quantize(x, rule="static_6")
    >>> codes.shape, block_scales.shape, tensor_scale.shape
    (torch.Size([1, 8]), torch.Size([1, 1]), torch.Size([]))
    >>> longspur.nvfp4.dequantize(codes, block_scales, tensor_scale)[0, :4]
    tensor([ 0.5000,  1.0000, -3.0000,  6.0000])
    """
    return torch.ops.longspur.nvfp4_quantize(
        x,
        amax,
        rule,
        metric,
        tile_2d,
        rounding,
        seed,
        per_row,
        scale_bound,
        importance,
        hadamard,
        transpose,
        swizzle,
    )


def dequantize(
    codes: Tensor,
    block_scales: Tensor,
    tensor_scale: Tensor,
    dtype: torch.dtype = torch.float32,
    swizzle: bool = False,
) -> Tensor:
    """The values of a quantised tensor, ``[..., K]``: the product of code and block scale, which is
    exact, times the tensor scale, rounded to float32 and then to ``dtype``.

    ``block_scales`` may also be uint8, the same bytes. Their sign is ignored; 0x7f is a NaN.
    ``swizzle`` says that they are in tiles of 128 x 4. Errors are as ``quantize``'s.
    """
    return torch.ops.longspur.nvfp4_dequantize(codes, block_scales, tensor_scale, dtype, swizzle)


def fake_quantize(
    x: Tensor,
    amax: Tensor | None = None,
    rule: str = "four_over_six",
    metric: str = "mse",
    tile_2d: bool = False,
    rounding: str = "nearest",
    seed: int = 0,
    per_row: bool = False,
    scale_bound: int = 0,
    importance: Tensor | None = None,
) -> Tensor:
    """``dequantize(*quantize(x, ...), x.dtype)``, bit for bit, with a gradient: that of no rounding
    at all (straight-through).

    >>> import torch, longspur
    >>> x = torch.randn(4, 32, requires_grad=True)
    >>> longspur.nvfp4.fake_quantize(x).sum().backward()
    >>> bool((x.grad == 1).all())
    True
    """
    return torch.ops.longspur.nvfp4_fake_quantize(
        x, amax, rule, metric, tile_2d, rounding, seed, per_row, scale_bound, importance
    )


def linear(
    x: Tensor,
    codes: Tensor,
    block_scales: Tensor,
    tensor_scale: Tensor,
    bias: Tensor | None = None,
    activations: str | None = None,
    activation_metric: str = "mse",
) -> Tensor:
    """``x @ W.T + bias`` with ``W`` ``[N, K]`` in NVFP4.

    Args:
        x: ``[..., K]``, float32, bfloat16 or float16.
        codes, block_scales, tensor_scale: as ``quantize`` returns them, not swizzled.
        bias: ``[N]``.
        activations: a rule's name quantises each row of ``x`` first (W4A4). None leaves ``x`` in
            its own precision (W4A16).
        activation_metric: of that rule.

    Returns:
        ``[..., N]`` in the dtype of ``x``; sums are float32. ``x`` and ``bias`` have gradients,
        once; the weight has none. With ``activations`` the gradient is straight-through.

    >>> import torch, longspur
    >>> layer = torch.nn.Linear(64, 48)
    >>> packed = longspur.nvfp4.quantize(layer.weight)
    >>> x = torch.randn(5, 64)
    >>> y = longspur.nvfp4.linear(x, *packed, layer.bias)
    >>> expected = x @ longspur.nvfp4.dequantize(*packed).T + layer.bias
    >>> torch.allclose(y, expected, atol=1e-5)
    True
    """
    return torch.ops.longspur.nvfp4_linear(
        x, codes, block_scales, tensor_scale, bias, activations, activation_metric
    )


@dataclass(frozen=True)
class QatRecipe:
    """How ``linear_qat`` quantises. The default is that of NVIDIA's pre-training recipe with
    four-over-six scales. Each switch is on its own; a rule of None leaves its tensors as they are.

    Attributes:
        activation_rule, weight_rule, gradient_rule: rules of ``quantize``, or None.
        metric: of all three.
        tile_2d: weights in tiles of 16 x 16, the same numbers in both directions.
        gradient_rounding: of the output's gradient.
        quantize_dgrad, quantize_wgrad: whether the two products of the backward are quantised;
            otherwise they see what the forward saw, in the dtype of ``x``.
        hadamard: rotates both operands of the weight's gradient.
        per_row: one amax for each row of activations and gradients instead of one for all.
    """

    activation_rule: str | None = "four_over_six"
    weight_rule: str | None = "four_over_six"
    gradient_rule: str | None = "four_over_six"
    metric: str = "mse"
    tile_2d: bool = False
    gradient_rounding: str = "stochastic_unbiased"
    quantize_dgrad: bool = True
    quantize_wgrad: bool = True
    hadamard: bool = True
    per_row: bool = True


def linear_qat(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    recipe: QatRecipe = QatRecipe(),
    seed: int = 0,
) -> Tensor:
    """``x @ weight.T + bias`` for training with NVFP4: all three products of the layer take
    quantised operands, in blocks along the dimension that they sum over, with float32 sums.

    ======== ============================ =======================================================
    forward  ``y = Q(x) Q(W)^T``          rounded to the nearest
    backward ``dx = Q(dy) Q(W^T)^T``      ``dy`` by ``gradient_rounding``
    backward ``dW = Q(dy^T) Q(x^T)^T``    both rotated; ``dy`` by ``gradient_rounding``
    ======== ============================ =======================================================

    Args:
        x: ``[..., K]``, float32, bfloat16 or float16. Any number of rows.
        weight: ``[N, K]``, the master weight, of any of these dtypes.
        seed: of the stochastic rounding; the same seed gives the same gradients. Take another for
            each layer and step.

    >>> import torch, longspur
    >>> x, w = torch.randn(5, 64), torch.randn(48, 64, requires_grad=True)
    >>> longspur.nvfp4.linear_qat(x, w, seed=1).square().sum().backward()
    >>> w.grad.shape
    torch.Size([48, 64])
    """
    return torch.ops.longspur.nvfp4_linear_qat(x, weight, bias, **asdict(recipe), seed=seed)


class Nvfp4Linear(nn.Module):
    """A linear layer with weights in NVFP4: ``linear`` as a module.

    Its state is ``codes``, ``block_scales``, ``tensor_scale`` and, if there is one, ``bias``. The
    first three keep their types when the module is converted (``.half()``, ``.to(dtype)``); only
    they and no other copy of the weight are kept. ``weight`` reads them back.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        activations: str | None = None,
        activation_metric: str = "mse",
        device=None,
        dtype=None,
    ):
        super().__init__()
        if in_features % 16:
            raise ValueError(f"in_features: found {in_features}, expected a multiple of 16")
        self.in_features, self.out_features = in_features, out_features
        self.activations, self.activation_metric = activations, activation_metric
        self.weight_dtype = dtype or torch.get_default_dtype()
        shape = {"codes": (in_features // 2, torch.uint8)}
        shape["block_scales"] = (in_features // 16, torch.float8_e4m3fn)
        for name, (columns, kind) in shape.items():
            zeros = torch.zeros(out_features, columns, dtype=torch.uint8, device=device)
            self.register_buffer(name, zeros.view(kind))
        self.register_buffer("tensor_scale", torch.zeros((), dtype=torch.float32, device=device))
        values = torch.zeros(out_features, device=device, dtype=dtype) if bias else None
        self.register_parameter("bias", nn.Parameter(values) if bias else None)

    @classmethod
    def from_linear(
        cls,
        layer: nn.Linear,
        activations: str | None = None,
        activation_metric: str = "mse",
        **options,
    ) -> "Nvfp4Linear":
        """``layer``, its weight quantised with ``options`` of ``quantize``; its bias is shared."""
        weight = layer.weight.detach()
        new = cls(
            layer.in_features,
            layer.out_features,
            False,
            activations,
            activation_metric,
            device="meta",
            dtype=weight.dtype,
        )
        new.codes, new.block_scales, new.tensor_scale = quantize(weight, **options)
        new.bias = layer.bias
        new.train(layer.training)
        return new

    @property
    def weight(self) -> Tensor:
        """The weight ``[N, K]``, dequantised now. Not a parameter."""
        return dequantize(self.codes, self.block_scales, self.tensor_scale, self.weight_dtype)

    def forward(self, x: Tensor) -> Tensor:
        return linear(
            x,
            self.codes,
            self.block_scales,
            self.tensor_scale,
            self.bias,
            self.activations,
            self.activation_metric,
        )

    def extra_repr(self) -> str:
        shape = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{shape}, bias={self.bias is not None}, activations={self.activations}"

    def _apply(self, fn, recurse=True):
        # .to(dtype) converts every floating-point buffer, and these are bits, not numbers
        kept = {name: getattr(self, name) for name in ("codes", "block_scales", "tensor_scale")}
        super()._apply(fn, recurse)
        for name, before in kept.items():
            after = getattr(self, name)
            if after.dtype != before.dtype:
                self.weight_dtype = after.dtype
                setattr(self, name, before.to(after.device))
        return self


class Nvfp4QatLinear(nn.Linear):
    """A linear layer that keeps its weight in high precision and trains it with NVFP4 products:
    ``linear_qat`` as a module. Parameters are those of ``nn.Linear``.

    The forward's seed is ``seed`` plus the number of forwards so far in training mode (``step``).
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        recipe: QatRecipe = QatRecipe(),
        seed: int = 0,
        device=None,
        dtype=None,
    ):
        super().__init__(in_features, out_features, bias, device, dtype)
        self.recipe, self.seed, self.step = recipe, seed, 0

    @classmethod
    def from_linear(
        cls, layer: nn.Linear, recipe: QatRecipe = QatRecipe(), seed: int = 0
    ) -> "Nvfp4QatLinear":
        """``layer`` with the same parameters, shared."""
        new = cls(layer.in_features, layer.out_features, False, recipe, seed, device="meta")
        new.weight, new.bias = layer.weight, layer.bias
        new.train(layer.training)
        return new

    def forward(self, x: Tensor) -> Tensor:
        y = linear_qat(x, self.weight, self.bias, self.recipe, self.seed + self.step)
        self.step += self.training
        return y


def quantize_model(
    model: nn.Module,
    rule: str = "four_over_six",
    metric: str = "mse",
    modules_to_not_convert: Sequence[str] = ("lm_head",),
    activations: str | None = None,
    scale_2d: bool = False,
    qat: bool = False,
    fused_groups: Sequence[Sequence[str]] = FUSED_GROUPS,
    importance: Mapping[str, Tensor] | None = None,
    scale_bound: int = 0,
    recipe: QatRecipe | None = None,
    seed: int = 0,
) -> nn.Module:
    """Replaces the ``nn.Linear`` layers of a model, for example one of Hugging Face's, by NVFP4
    ones, in place.

    Args:
        rule, metric, scale_bound: of the weights, as ``quantize`` takes them.
        modules_to_not_convert: names that stay as they are: the module's whole name or any run of
            its dotted parts (``"lm_head"``, ``"layers.0"``, ``"mlp.down_proj"``).
        activations: rule that quantises each layer's input at run time (W4A4); None: not at all.
        scale_2d: weights in tiles of 16 x 16.
        qat: layers keep their weights in high precision and train them with ``linear_qat``, seeds
            counted from ``seed``; ``recipe`` says how. Default: the rules given here, the gradient
            by that of ``activations``; without those the backward is in high precision.
        fused_groups: names of layers beside each other that get one tensor scale, since engines
            store them as one matrix.
        importance: for names of layers, ``[K]``: how much an error counts in each input channel.

    Returns:
        ``model``; if that is itself an ``nn.Linear``, the layer that replaces it. Its
        ``state_dict`` can be loaded into another copy of the model after the same call. Nothing is
        replaced when an error is raised.

    Raises:
        ValueError: a layer's ``in_features`` is no multiple of 16 (with ``scale_2d`` its
            ``out_features`` too): the message names it.

    >>> import torch, longspur
    >>> up, down = torch.nn.Linear(64, 128), torch.nn.Linear(128, 64)
    >>> mlp = torch.nn.Sequential(up, torch.nn.GELU(), down)
    >>> longspur.nvfp4.quantize_model(mlp, rule="sweep")
    Sequential(
      (0): Nvfp4Linear(in_features=64, out_features=128, bias=True, activations=None)
      (1): GELU(approximate='none')
      (2): Nvfp4Linear(in_features=128, out_features=64, bias=True, activations=None)
    )
    """
    _check_names(rule, metric, activations)
    layers = _convertible(model, modules_to_not_convert, scale_2d)
    if qat:
        quantized = activations is not None  # weights alone: a plain straight-through backward
        recipe = recipe or QatRecipe(
            activation_rule=activations,
            weight_rule=rule,
            gradient_rule=activations,
            metric=metric,
            tile_2d=scale_2d,
            quantize_dgrad=quantized,
            quantize_wgrad=quantized,
        )
        new = {
            layer: Nvfp4QatLinear.from_linear(layer, recipe, seed + (index << 32))
            for index, layer in enumerate(layers)
        }
    else:
        amax = _shared_amax(layers, fused_groups)
        options = dict(rule=rule, metric=metric, tile_2d=scale_2d, scale_bound=scale_bound)
        new = {
            layer: Nvfp4Linear.from_linear(
                layer,
                activations,
                metric,
                amax=amax.get(name),
                importance=(importance or {}).get(name),
                **options,
            )
            for layer, name in layers.items()
        }
    if model in new:
        return new[model]
    for parent in list(model.modules()):
        for name, child in parent._modules.items():  # named_children() leaves repeated ones out
            if child in new:
                setattr(parent, name, new[child])
    return model


def _check_names(rule: str, metric: str, activations: str | None) -> None:
    found = {"rule": (rule, RULES), "metric": (metric, METRICS)}
    if activations is not None:
        found["activations"] = (activations, RULES)
    for what, (name, known) in found.items():
        if name not in known:
            raise ValueError(f"{what}: found {name!r}, expected one of {', '.join(known)}")


def _convertible(model: nn.Module, excluded: Sequence[str], scale_2d: bool) -> dict[nn.Linear, str]:
    """The layers to replace and their names. Subclasses of Linear are left alone: code that made
    one looks into it (nn.MultiheadAttention reads its projection's weight itself)."""
    layers = {}
    for name, module in model.named_modules():
        dotted = f".{name}."
        if type(module) is not nn.Linear or any(f".{part}." in dotted for part in excluded):
            continue
        sizes = {"in_features": module.in_features}
        if scale_2d:
            sizes["out_features"] = module.out_features
        for what, size in sizes.items():
            if size % 16:
                raise ValueError(
                    f"{name}: found {what} {size}, expected a multiple of 16; "
                    "modules_to_not_convert can name it"
                )
        layers[module] = name
    return layers


def _shared_amax(
    layers: dict[nn.Linear, str], groups: Sequence[Sequence[str]]
) -> dict[str, Tensor]:
    """The largest magnitude of all layers of a group, for each that has neighbours of its group."""
    by_name = {name: layer for layer, name in layers.items()}
    shared = {}
    for name in by_name:
        parent, _, last = name.rpartition(".")
        prefix = f"{parent}." if parent else ""
        for group in groups:
            names = [prefix + part for part in group if prefix + part in by_name]
            if last in group and len(names) > 1:
                largest = [by_name[n].weight.detach().abs().amax().float() for n in names]
                shared[name] = torch.stack([m.to(largest[0].device) for m in largest]).amax()
                shared[name] = shared[name].to(by_name[name].weight.device)
    return shared
