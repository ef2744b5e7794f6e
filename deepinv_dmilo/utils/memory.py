"""Errors of shapes, and those of memory that ran out, which look like them."""

from __future__ import annotations

import torch

SHAPE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # what a physics raises at a misfit
# The words that memory runs out in, in lower case: of torch's allocators; of the libraries of CUDA and ROCm, which
# without room to work in are not initialized, or support nothing; of MPS.
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "insufficient memory"),
    *("alloc_failed", "allocfailed", "cublas_status_not_initialized", "cudnn_status_not_supported"),
    *("memory_error", "invalid buffer size"),
)
# What torch, from 2.8 on, raises where a device is at fault, and not what it was given.
OF_A_DEVICE = getattr(torch, "AcceleratorError", ())


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a GPU or of the machine ran out, which torch often says in a plain RuntimeError."""
    told = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(words in told for words in OUT_OF_MEMORY)


def raise_out_of_memory(error: Exception) -> None:
    """Let go on what only looks like a misfit of shapes: memory that ran out, and other faults of a device."""
    if is_out_of_memory(error) or isinstance(error, OF_A_DEVICE):
        raise error
