"""Errors of mismatched shapes, and how to distinguish them from a lack of memory."""

from __future__ import annotations

import torch

SHAPE_ERRORS = (RuntimeError, ValueError, TypeError, IndexError, AssertionError)  # raised by a physics
# Lower-case messages of torch's allocators, of the CUDA and ROCm libraries (which fail to initialize, or report an
# unsupported operation, when they cannot allocate a workspace), and of MPS.
OUT_OF_MEMORY = (
    *("out of memory", "can't allocate memory", "cannot allocate memory", "not enough memory", "insufficient memory"),
    *("alloc_failed", "allocfailed", "cublas_status_not_initialized", "cudnn_status_not_supported"),
    *("memory_error", "invalid buffer size"),
)
DEVICE_ERROR = getattr(torch, "AcceleratorError", ())  # torch 2.8 and later


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a GPU or the machine ran out of memory, which torch often reports as a plain RuntimeError."""
    message = str(error).lower()
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(m in message for m in OUT_OF_MEMORY)


def raise_out_of_memory(error: Exception) -> None:
    """Raise an error again if it is a lack of memory or a device fault, and not a mismatch of shapes."""
    if is_out_of_memory(error) or isinstance(error, DEVICE_ERROR):
        raise error
