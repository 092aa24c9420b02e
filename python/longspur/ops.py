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
