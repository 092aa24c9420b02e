"""Longspur's operations for torch: attention kernels for long contexts, on CPU and CUDA.

The functions are thin: each calls the operation of the same name in ``torch.ops.longspur``. Those
are written in C++ and have gradients, fake-tensor shapes and schemas, so they work under autograd
and ``torch.compile`` like torch's own. Nothing is computed in Python.
"""

from longspur._library import library_path
from longspur.ops import attention

__all__ = ["attention", "library_path"]
