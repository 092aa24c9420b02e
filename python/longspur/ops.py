"""The operations, documented. Shapes: T packed tokens, H query heads, Hkv key/value heads, D head
size, B sequences."""

import torch
from torch import Tensor

from longspur import _library

_library.load()


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    causal: bool = True,
    scale: float | None = None,
) -> tuple[Tensor, Tensor]:
    """Dense attention over packed sequences of different lengths.

    For each sequence and head ``out = softmax(scale * q @ k.T + mask) @ v``. Query head ``h`` reads
    key/value head ``h // (H // Hkv)``. With ``causal`` the last query stands at the last key, also
    where a sequence has fewer queries than keys (the queries continue what the keys begin). A query
    that sees no key has ``out`` 0, ``lse`` -inf and gives no gradient. Sequences may be empty.

    Args:
        q: ``[Tq, H, D]``, float32, bfloat16, float16 or float64. Any strides.
        k, v: ``[Tk, Hkv, D]``, dtype and device of ``q``; ``H`` is a multiple of ``Hkv``.
        cu_seqlens_q, cu_seqlens_k: int32 ``[B + 1]``, where each sequence begins: from 0 to ``Tq``
            or ``Tk``, not falling. On the CPU or on ``q``'s device; their values are checked, so on
            a GPU, CPU tensors save waiting for it.
        max_seqlen_q, max_seqlen_k: no sequence is longer.
        causal: whether query ``i`` of ``n`` sees only the keys up to ``i + m - n`` of ``m``.
        scale: default ``1 / sqrt(D)``.

    Returns:
        ``out`` ``[Tq, H, D]`` and ``lse`` ``[H, Tq]``, the natural logarithm of the softmax's
        denominator, float32 (float64 for float64 inputs). Both are differentiable, once. On the CPU
        results are the same for any number of threads.

    Raises:
        RuntimeError: an argument is wrong. One line names it, what was found and what was expected.
            Also for a second derivative, which there is not.

    >>> import torch, longspur
    >>> q = torch.randn(8, 4, 16, requires_grad=True)  # two sequences of 3 and 5 tokens, 4 heads
    >>> k, v = torch.randn(8, 2, 16), torch.randn(8, 2, 16)  # that share 2 key/value heads
    >>> cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32)
    >>> out, lse = longspur.attention(q, k, v, cu_seqlens, cu_seqlens, 5, 5)
    >>> out.shape, lse.shape
    (torch.Size([8, 4, 16]), torch.Size([4, 8]))
    >>> torch.allclose(out[0], v[0].repeat_interleave(2, dim=0))  # the first token sees itself only
    True
    >>> out.sum().backward()
    >>> q.grad.shape
    torch.Size([8, 4, 16])
    """
    return torch.ops.longspur.attention(
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale
    )


def xattn_block_scores(
    q: Tensor,
    k: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    estimator: str = "antidiagonal",
    stride: int = 16,
    block_size: int = 128,
    causal: bool = True,
    scale: float | None = None,
    per_kv_group: bool = False,
) -> Tensor:
    """How much of its attention each block of 128 queries gives to each block of keys, estimated.

    Args:
        q, k, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale: as
            ``attention``'s; ``scale`` is that of the attention the scores are for.
        estimator: terms joined by ``+``, each a share of attention that adds up to 1 over a row,
            averaged (``0.5*pooled:128+0.5*mean``: with weights). "default": by length.

            =================== ====================================================================
            ``antidiagonal:S``  sums of S products along antidiagonals of S x S tiles (the paper)
            ``diagonal:S``      along diagonals
            ``pooled:G``        the mean of G queries against every key, with a bias for the spread
                                of the queries; ``pooled_plain:G`` without
            ``sampled:G``       one query of G against every key
            ``outlier``         the query farthest from its block's mean
            ``mean``            every query against the mean key of each block
            ``block_mean``      the mean query against the mean keys
            =================== ====================================================================
        stride: S of terms that name none: 4, 8, 16, 32 or 64.
        block_size: keys a block, 64 or 128.
        per_kv_group: one row for each key/value head, the mean over the query heads that share it.

    Returns:
        float32 ``[B, H, nQ, nK]`` (``[B, Hkv, nQ, nK]`` with ``per_kv_group``),
        ``nQ = ceil(max_seqlen_q / 128)``, ``nK = ceil(max_seqlen_k / block_size)``; 0 where nothing
        is seen. No gradient goes through it. Query block ``i`` holds rows ``128 * i ..`` of the
        call.

    Raises:
        RuntimeError: as ``attention``.

    >>> import torch, longspur
    >>> q, k = torch.randn(300, 4, 32), torch.randn(300, 2, 32)
    >>> cu = torch.tensor([0, 300], dtype=torch.int32)
    >>> scores = longspur.xattn_block_scores(q, k, cu, cu, 300, 300)
    >>> scores.shape
    torch.Size([1, 4, 3, 3])
    >>> torch.allclose(scores.sum(-1), torch.ones(1, 4, 3))
    True
    """
    return torch.ops.longspur.xattn_block_scores(
        q,
        k,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        estimator,
        stride,
        block_size,
        causal,
        scale,
        per_kv_group,
    )


def xattn_select(
    scores: Tensor,
    threshold: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    block_size: int = 128,
    sink_blocks: int = 1,
    local_blocks: int = 1,
    causal: bool = True,
    rule: str = "share",
) -> Tensor:
    """Which blocks of keys each block of queries is to read.

    Forced blocks are kept and count. With ``rule="share"`` the others follow by falling score (the
    lower index first where they tie) until the kept ones hold ``threshold`` of the row's scores; 1
    keeps every block with a score above 0. ``rule="of_max"`` keeps every block that has at least
    ``threshold`` times the row's largest score. A row with a NaN, an infinity or a negative score
    keeps every visible block. Sums are exact: every machine chooses the same blocks.

    Args:
        scores: float32 ``[B, H, nQ, nK]``, as ``xattn_block_scores`` returns them.
        threshold: float32, a scalar or ``[H]``, each from 0 to 1, on the CPU or ``scores``'s
            device; on a GPU, a CPU tensor saves waiting for it.
        cu_seqlens_q, cu_seqlens_k: as ``attention``'s.
        sink_blocks: blocks at the front that are always kept.
        local_blocks: blocks at the end of what a row sees that are always kept; those on the
            diagonal count as one.

    Returns:
        bool ``[B, H, nQ, nK]``, for ``block_sparse_attention``; False for blocks that no query of
        the block sees.

    >>> import torch, longspur
    >>> rows = [[1, 0, 0, 0], [0.3, 0.7, 0, 0], [0.1, 0.5, 0.4, 0], [0.05, 0.6, 0.15, 0.2]]
    >>> cu = torch.tensor([0, 512], dtype=torch.int32)
    >>> mask = longspur.xattn_select(torch.tensor([[rows]]), torch.tensor(0.5), cu, cu)
    >>> [row.nonzero().flatten().tolist() for row in mask[0, 0]]
    [[0], [0, 1], [0, 2], [0, 1, 3]]
    """
    return torch.ops.longspur.xattn_select(
        scores,
        threshold,
        cu_seqlens_q,
        cu_seqlens_k,
        block_size,
        sink_blocks,
        local_blocks,
        causal,
        rule,
    )


def block_sparse_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    block_mask: Tensor,
    block_size: int = 128,
    causal: bool = True,
    scale: float | None = None,
    deterministic: bool = False,
) -> tuple[Tensor, Tensor]:
    """``attention`` in which each block of 128 queries reads only chosen blocks of keys.

    Args:
        q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, causal, scale: as
            ``attention``'s.
        block_mask: bool ``[B, H or Hkv or 1, nQ, nK]`` on ``q``'s device: whether query block ``i``
            of a sequence (its rows ``128 * i ..`` in this call) reads key block ``j`` (its keys
            ``block_size * j ..``). ``nQ = ceil(max_seqlen_q / 128)``,
            ``nK = ceil(max_seqlen_k / block_size)``. Blocks beyond a sequence or in the causal
            future are ignored. With ``Hkv`` rows or 1, query heads share them.
        block_size: keys a block, 64 or 128.
        deterministic: the backward sums in one order on a GPU, too. On the CPU it always does.

    Returns:
        ``out`` ``[Tq, H, D]`` and ``lse`` ``[H, Tq]`` as ``attention``'s; both differentiable,
        once. A query that reads no key has ``out`` 0, ``lse`` -inf and gives no gradient.

    Raises:
        RuntimeError: as ``attention``.

    >>> import torch, longspur
    >>> q, k, v = (torch.randn(300, 2, 16) for _ in range(3))
    >>> cu = torch.tensor([0, 300], dtype=torch.int32)
    >>> every = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    >>> out, _ = longspur.block_sparse_attention(q, k, v, cu, cu, 300, 300, every)
    >>> torch.allclose(out, longspur.attention(q, k, v, cu, cu, 300, 300)[0], atol=1e-6)
    True
    """
    return torch.ops.longspur.block_sparse_attention(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        block_mask,
        block_size,
        causal,
        scale,
        deterministic,
    )


def xattention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int,
    max_seqlen_k: int,
    threshold: Tensor,
    estimator: str = "antidiagonal",
    stride: int = 16,
    block_size: int = 128,
    causal: bool = True,
    scale: float | None = None,
    sink_blocks: int = 1,
    local_blocks: int = 1,
    per_kv_group: bool = False,
    rule: str = "share",
    deterministic: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Block-sparse attention whose blocks are chosen on the way: ``xattn_block_scores``,
    ``xattn_select``, ``block_sparse_attention``.

    Gradients of ``q``, ``k`` and ``v`` go through the attention, with the choice held fixed.

    Args: as of the three. ``threshold`` is float32, a scalar or one a query head (a key/value head
    with ``per_kv_group``).

    Returns:
        ``out`` ``[Tq, H, D]``, ``lse`` ``[H, Tq]`` and ``density`` float32 ``[B, H]``: the share of
        the blocks that a sequence's query blocks see (with ``causal`` those up to the diagonal)
        that were read; 1 where none is seen.

    Raises:
        RuntimeError: as ``attention``.

    >>> import torch, longspur
    >>> q, k, v = torch.randn(1000, 4, 32), torch.randn(1000, 2, 32), torch.randn(1000, 2, 32)
    >>> cu = torch.tensor([0, 1000], dtype=torch.int32)
    >>> out, lse, density = longspur.ops.xattention(
    ...     q, k, v, cu, cu, 1000, 1000, torch.tensor(0.8), estimator="sampled:16")
    >>> out.shape, density.shape, bool((density < 1).all())
    (torch.Size([1000, 4, 32]), torch.Size([1, 4]), True)
    """
    return torch.ops.longspur.xattention(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        max_seqlen_q,
        max_seqlen_k,
        threshold,
        estimator,
        stride,
        block_size,
        causal,
        scale,
        sink_blocks,
        local_blocks,
        per_kv_group,
        rule,
        deterministic,
    )
