"""XAttention for whole models: long prompts are prefilled by block-sparse attention whose blocks
are chosen from cheap scores, without training. Decoding stays dense.

With transformers::

    import longspur
    longspur.xattention.register(threshold=0.9)
    model = AutoModelForCausalLM.from_pretrained(..., attn_implementation="longspur_xattention")

With anything else, such as a video model: an ``XAttention`` is a function of ``q, k, v``
``[B, H, L, D]``. Programs for MIT's Block-Sparse-Attention call ``block_sparse_attn_func``.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from longspur import ops

NAME = "longspur_xattention"


def load_thresholds(path: str | Path) -> dict:
    """The table that ``longspur calibrate`` wrote: ``thresholds`` (a row for each layer, a number
    for each query head), ``estimator``, ``block_size`` and ``rule``, as options of ``XAttention``
    (``rule`` under that name).

    Raises ValueError with one line when the file is no such table.
    """
    table = json.loads(Path(path).read_text())

    def fail(what: str, found, expected: str):
        raise ValueError(f"{path}: {what}: found {found!r}, expected {expected}")

    if not isinstance(table, dict):
        fail("table", type(table).__name__, "an object")
    rows = table.get("thresholds")
    if not (isinstance(rows, list) and rows and all(isinstance(r, list) and r for r in rows)):
        fail("thresholds", type(rows).__name__, "a list of heads for each layer")
    for layer, row in enumerate(rows):
        if len(row) != len(rows[0]):
            fail(f"thresholds[{layer}]", f"{len(row)} heads", f"{len(rows[0])}")
        for head, value in enumerate(row):
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not (number and 0 <= value <= 1):
                fail(f"thresholds[{layer}][{head}]", value, "a number from 0 to 1")
    for name, kind in (("estimator", str), ("block_size", int)):
        if not isinstance(table.get(name), kind):
            fail(name, table.get(name), "a name" if kind is str else "64 or 128")
    return {
        "threshold": rows,
        "estimator": table["estimator"],
        "block_size": table["block_size"],
        "rule": table.get("rule", "share"),
    }


@dataclass
class XAttention:
    """Attention that is block-sparse where that pays. Calling it attends; see ``__call__``.

    Attributes:
        threshold: the share of estimated attention that is kept, from 0 to 1: one number, one for
            each query head, or a row of them for each layer. 1 keeps (all but) everything.
        estimator, stride, block_size, sink_blocks, local_blocks, rule: as of
            ``longspur.ops.xattention``. "default" is an estimator by length.
        min_keys: shorter sequences stay dense: choosing would cost more than it saves.
        min_queries: so do calls with fewer queries, such as decoding steps.
        warmup_steps: each layer's first calls that could be sparse stay dense: the first steps of a
            diffusion model settle the layout. ``reset`` begins anew.
        dense_layers: layers with a lower index stay dense.
        density: of each layer's last sparse call, float32 ``[B, H]``.
    """

    threshold: float | Sequence[float] | Sequence[Sequence[float]] = 0.9
    estimator: str = "default"
    stride: int = 16
    block_size: int = 128
    sink_blocks: int = 1
    local_blocks: int = 1
    rule: str = "share"
    min_keys: int = 4096
    min_queries: int = 128
    warmup_steps: int = 0
    dense_layers: int = 0

    def __post_init__(self):
        self.reset()

    def __setattr__(self, name: str, value):
        if name == "threshold":
            self.__dict__["_table"] = checked_thresholds(value)
        object.__setattr__(self, name, value)

    @classmethod
    def from_file(cls, path: str | Path, **options) -> "XAttention":
        """With the table of ``longspur calibrate``; ``options`` come on top."""
        return cls(**(load_thresholds(path) | options))

    def reset(self) -> None:
        """Forgets what was counted."""
        self.steps: dict[int, int] = {}
        self.density: dict[int, Tensor] = {}

    def threshold_of(self, layer: int, heads: int) -> Tensor:
        """A scalar or ``[heads]``, on the CPU."""
        row = self._table
        if row.dim() == 2:
            if not 0 <= layer < len(row):
                raise ValueError(
                    f"threshold: found {len(row)} layers, expected one for layer {layer}"
                )
            row = row[layer]
        if row.dim() == 1 and len(row) != heads:
            raise ValueError(f"threshold: found {len(row)} heads, expected {heads}")
        return row

    def is_sparse(self, layer: int, queries: int, keys: int) -> bool:
        """Whether a call is to be sparse; counts it as a step if it could be."""
        if queries < self.min_queries or keys < self.min_keys or layer < self.dense_layers:
            return False
        step = self.steps.get(layer, 0)
        self.steps[layer] = step + 1
        return step >= self.warmup_steps

    def packed(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        causal: bool = True,
        scale: float | None = None,
        layer: int = 0,
    ) -> Tensor:
        """The same over packed sequences, operands as of ``longspur.attention``: ``[T, H, D]``."""
        lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k
        if not self.is_sparse(layer, max_seqlen_q, max_seqlen_k):
            return ops.attention(q, k, v, *lengths, causal, scale)[0]
        out, _, self.density[layer] = ops.xattention(
            q,
            k,
            v,
            *lengths,
            self.threshold_of(layer, q.shape[1]),
            self.estimator,
            self.stride,
            self.block_size,
            causal,
            scale,
            self.sink_blocks,
            self.local_blocks,
            False,
            self.rule,
        )
        return out

    def __call__(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        causal: bool = True,
        scale: float | None = None,
        layer: int = 0,
    ) -> Tensor:
        """Attends.

        Args:
            q: ``[B, H, Lq, D]``; k, v: ``[B, Hkv, Lk, D]``, not repeated. Any strides.
            mask: bool ``[B, Lk]``, True where a key exists. The queries are the last ``Lq`` places.
                Places without a token are left out of the computation; their output is 0.
            causal: with ``Lq < Lk`` the queries continue what the keys begin.
            layer: which row of thresholds, and whose steps.

        Returns:
            ``[B, Lq, H, D]``.
        """
        batch, heads, queries, dim = q.shape
        keys = k.shape[2]
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # [B, L, H, D]
        if mask is None:
            lengths = regular_lengths(batch, queries), regular_lengths(batch, keys), queries, keys
            packed = (x.flatten(0, 1) if batch > 1 else x[0] for x in (q, k, v))
            return self.packed(*packed, *lengths, causal, scale, layer).view(
                batch, queries, heads, dim
            )
        if mask.dim() != 2 or mask.shape != (batch, keys) or mask.dtype != torch.bool:
            raise ValueError(
                f"{NAME}: mask: found {mask.dtype} {list(mask.shape)}, expected torch.bool "
                f"{[batch, keys]}, True where there is a token"
            )
        query_mask = mask[:, keys - queries :]
        q_lengths, k_lengths = query_mask.sum(1).cpu(), mask.sum(1).cpu()
        out = self.packed(
            q[query_mask],
            k[mask],
            v[mask],
            cumulative(q_lengths),
            cumulative(k_lengths),
            int(q_lengths.max()),
            int(k_lengths.max()),
            causal,
            scale,
            layer,
        )
        return out.new_zeros(batch, queries, heads, dim).masked_scatter(
            query_mask[:, :, None, None], out
        )


def checked_thresholds(value) -> Tensor:
    """float32, a scalar, [heads] or [layers, heads]."""
    table = torch.as_tensor(value, dtype=torch.float32, device="cpu")
    if table.dim() > 2:
        raise ValueError(
            f"threshold: found {table.dim()} dimensions, expected a number, one a head, or a row "
            "of them for each layer"
        )
    wrong = table[~((table >= 0) & (table <= 1))]
    if len(wrong):
        raise ValueError(f"threshold: found {wrong[0].item()}, expected numbers from 0 to 1")
    return table


def regular_lengths(batch: int, length: int) -> Tensor:
    """cu_seqlens of sequences of one length, on the CPU."""
    return torch.arange(batch + 1, dtype=torch.int32) * length


def cumulative(lengths: Tensor) -> Tensor:
    """cu_seqlens from lengths."""
    return torch.nn.functional.pad(lengths.cumsum(0), (1, 0)).to(torch.int32)


def register(attend: XAttention | None = None, name: str = NAME, **options) -> XAttention:
    """Makes ``name`` an attention of transformers: ``attn_implementation=name`` when a model is
    loaded, or ``model.set_attn_implementation(name)``.

    Args:
        attend: an ``XAttention``; default: one made from ``options``.
        name: one for each configuration that is in use at the same time.

    Returns:
        the ``XAttention``, whose attributes may be changed and read at any time.

    What the models call it with: keys and values of any number of heads that divides the queries',
    padded batches (2-D masks), caches that grow, packed sequences with ``cu_seq_lens_q`` and
    ``cu_seq_lens_k``. Anything else that would change the result is refused by a ValueError:
    sliding windows, masks of other forms, caches of fixed size, soft caps, attention sinks and
    dropout.
    """
    from transformers import AttentionInterface, AttentionMaskInterface

    attend = attend or XAttention(**options)

    def forward(module, query, key, value, attention_mask, **arguments):
        return attend_as_transformers(attend, module, query, key, value, attention_mask, arguments)

    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, padding_mask)
    return attend


def padding_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function=None,
    attention_mask: Tensor | None = None,
    **_,
) -> Tensor | None:
    """What transformers is to hand to the attention: bool ``[B, keys]``, or None when every place
    has a token."""
    from transformers import masking_utils

    plain = masking_utils.causal_mask_function, masking_utils.bidirectional_mask_function
    if mask_function is not None and mask_function not in plain:
        name = getattr(mask_function, "__qualname__", mask_function)
        raise ValueError(
            f"{NAME}: mask: found {name}, expected a causal or a full one: sliding windows, chunks "
            "and packed positions without cu_seq_lens_q are not done here"
        )
    causal = mask_function is None or mask_function is plain[0]
    if causal and int(q_offset) + q_length != kv_length + kv_offset:
        raise ValueError(
            f"{NAME}: cache: found {kv_length} places for {int(q_offset) + q_length} tokens, "
            "expected a cache that grows, such as DynamicCache"
        )
    if attention_mask is None:
        return None
    attention_mask = attention_mask[:, -kv_length:].bool()
    if attention_mask.shape[1] != kv_length:
        raise ValueError(
            f"{NAME}: attention_mask: found {attention_mask.shape[1]} places, expected {kv_length}"
        )
    return None if bool(attention_mask.all()) else attention_mask


REFUSED = {  # argument: what it would be
    "sliding_window": "a sliding window",
    "softcap": "a soft cap of scores",
    "s_aux": "attention sinks",
    "position_bias": "a position bias",
    "dropout": "dropout",
}


def attend_as_transformers(attend, module, query, key, value, mask, arguments):
    """An attention function of transformers: ``[B, H, L, D]`` to ``([B, L, H, D], None)``."""
    for argument, meaning in REFUSED.items():
        found = arguments.get(argument)
        if isinstance(found, Tensor) or found:
            shown = list(found.shape) if isinstance(found, Tensor) else found
            raise ValueError(
                f"{NAME}: {argument}: found {shown}, expected none: {meaning} is not done here"
            )
    if value.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"{NAME}: value: found head size {value.shape[-1]}, expected {key.shape[-1]} as key has"
        )
    causal = arguments.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    options = causal, arguments.get("scaling"), getattr(module, "layer_idx", None) or 0
    if arguments.get("cu_seq_lens_q") is None:
        return attend(query, key, value, mask, *options), None
    if query.shape[0] != 1 or mask is not None:
        raise ValueError(
            f"{NAME}: cu_seq_lens_q: found a batch of {query.shape[0]}"
            f"{'' if mask is None else ' with a mask'}, expected 1 of packed sequences without"
        )
    cu_q, cu_k = arguments["cu_seq_lens_q"].int(), arguments["cu_seq_lens_k"].int()
    longest = (
        int(arguments.get(name) or torch.diff(cu).max())
        for name, cu in (("max_length_q", cu_q), ("max_length_k", cu_k))
    )
    packed = (x[0].transpose(0, 1) for x in (query, key, value))
    return attend.packed(*packed, cu_q, cu_k, *longest, *options)[None], None


def block_sparse_modes(
    head_mask_type: Tensor,
    streaming_info: Tensor | None,
    base_blockmask: Tensor | None,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = True,
) -> Tensor:
    """The mask for ``longspur.block_sparse_attention`` that Block-Sparse-Attention means by its
    arguments, bool ``[B, H, nQ, nK]`` in blocks of 128 x 128.

    Args:
        head_mask_type: int ``[H]``: 0 dense; below 0 streaming; 1 the next slot of
            ``base_blockmask``; any higher ``n`` its slot ``n - 1``.
        streaming_info: int ``[2 * H]``, for each head the number of blocks kept at the front and of
            those kept up to the diagonal (without ``causal``: at the end).
        base_blockmask: bool ``[B, slots, nQ, nK]``; may be larger in the last two.

    >>> import torch, longspur
    >>> cu = torch.tensor([0, 512], dtype=torch.int32)
    >>> modes, info = torch.tensor([0, -1]), torch.tensor([0, 0, 1, 2])
    >>> mask = longspur.xattention.block_sparse_modes(modes, info, None, cu, cu, 512, 512)
    >>> mask[0, 1].int().tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """
    rows, columns = -(-max_seqlen_q // 128), -(-max_seqlen_k // 128)
    types = head_mask_type.tolist()
    ends = _streaming_ends(cu_seqlens_q, cu_seqlens_k, rows, columns, causal)  # [B, rows]
    device = cu_seqlens_q.device if base_blockmask is None else base_blockmask.device
    mask = torch.ones(len(ends), len(types), rows, columns, dtype=torch.bool)
    column = torch.arange(columns)
    slot = 0
    for head, kind in enumerate(types):
        if kind < 0:
            if streaming_info is None:
                raise ValueError("streaming_info: found none, expected two numbers a head")
            sink, local = streaming_info[2 * head : 2 * head + 2].tolist()
            end = ends[:, :, None]
            near = (column >= end - local) & (column < end)
            mask[:, head] = (near | (column < sink)) & (end > 0)
        elif kind > 0:
            slot = slot + 1 if kind == 1 else kind
            if base_blockmask is None or slot > base_blockmask.shape[1]:
                slots = 0 if base_blockmask is None else base_blockmask.shape[1]
                raise ValueError(f"base_blockmask: found {slots} slots, expected {slot} or more")
            mask[:, head] = base_blockmask[:, slot - 1, :rows, :columns].cpu()
    return mask.to(device)


def _streaming_ends(cu_q: Tensor, cu_k: Tensor, rows: int, columns: int, causal: bool) -> Tensor:
    """Where the near blocks of each row end; 0 for rows that see nothing: int64 [B, rows]."""
    queries, keys = torch.diff(cu_q.cpu().long()), torch.diff(cu_k.cpu().long())
    if not causal:
        return torch.full((len(queries), rows), columns)
    row = torch.arange(rows)[None] - ((queries - keys).clamp(min=0) // 128)[:, None]
    begin = ((keys - queries).clamp(min=0) + 127) // 128
    return torch.where(row >= 0, begin[:, None] + row + 1, 0)


def block_sparse_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    head_mask_type: Tensor,
    streaming_info: Tensor | None,
    base_blockmask: Tensor | None,
    max_seqlen_q_: int,
    max_seqlen_k_: int,
    p_dropout: float = 0.0,
    deterministic: bool = False,
    softmax_scale: float | None = None,
    is_causal: bool = False,
    exact_streaming: bool = False,
    return_attn_probs: bool = False,
):
    """Block-Sparse-Attention's function of the same name, on ``longspur.block_sparse_attention``.
    Returns ``out``, with ``return_attn_probs`` ``(out, lse, None)``. Dropout and streaming heads
    that count tokens are refused.
    """
    for name, found in (("p_dropout", p_dropout), ("exact_streaming", exact_streaming)):
        if found:
            raise ValueError(f"block_sparse_attn_func: {name}: found {found}, expected none of it")
    lengths = cu_seqlens_q, cu_seqlens_k, max_seqlen_q_, max_seqlen_k_
    mask = block_sparse_modes(head_mask_type, streaming_info, base_blockmask, *lengths, is_causal)
    out, lse = ops.block_sparse_attention(
        q, k, v, *lengths, mask.to(q.device), 128, is_causal, softmax_scale, deterministic
    )
    return (out, lse, None) if return_attn_probs else out
