"""Longspur's operations for torch: attention for long contexts, dense and over chosen blocks
(``longspur.xattention`` for models of transformers), 4-bit weights and activations
(``longspur.nvfp4``), on CPU and CUDA.

The functions are thin: each calls the operation of the same name in ``torch.ops.longspur``. Those
are written in C++ and have gradients, fake-tensor shapes and schemas, so they work under autograd
and ``torch.compile`` like torch's own. Nothing is computed in Python.
"""

from longspur import nvfp4, xattention
from longspur._library import library_path
from longspur.ops import (
    attention,
    block_sparse_attention,
    xattn_block_scores,
    xattn_select,
)

__all__ = [
    "attention",
    "block_sparse_attention",
    "library_path",
    "nvfp4",
    "xattention",
    "xattn_block_scores",
    "xattn_select",
]
