"""Large tensors on the CPU, in huge pages where the system grants them.

The system clears fresh memory page by page when it is first written, and a GEMM into 128 MiB of fresh small pages
takes a quarter longer than one into memory at hand. Asked for huge pages of 2 MiB, it needs a five-hundredth of the
faults. Linux only, by madvise, where the system leaves that to programs (transparent_hugepage: madvise); else nothing
happens. numpy does the same for its arrays.
"""

from __future__ import annotations

import ctypes
import mmap
import sys

import torch
from torch import Tensor

_LEAST = 2**25  # bytes; what is larger has a mapping of its own from the C library, which goes with the tensor
_HUGE_PAGE = 2**21


def empty(like: Tensor, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
    """`like.new_empty(shape, dtype=dtype)`."""
    tensor = like.new_empty(shape, dtype=dtype)
    size = tensor.numel() * tensor.element_size()
    if tensor.device.type == "cpu" and size > _LEAST and _madvise is not None:
        start = -(-tensor.data_ptr() // _HUGE_PAGE) * _HUGE_PAGE
        end = (tensor.data_ptr() + size) // _HUGE_PAGE * _HUGE_PAGE
        _madvise(start, end - start, mmap.MADV_HUGEPAGE)  # advice: refused, it changes nothing
    return tensor


def _find_madvise() -> ctypes._NamedFuncPointer | None:
    if sys.platform != "linux" or not hasattr(mmap, "MADV_HUGEPAGE"):
        return None
    function = ctypes.CDLL(None).madvise
    function.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return function


_madvise = _find_madvise()
