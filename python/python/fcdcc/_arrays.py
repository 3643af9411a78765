"""Arrays of other libraries as numpy arrays, without copies where their memory can be shared."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def as_array(value: Any, what: str = "array") -> Array:
    """``value`` as a numpy array of native byte order.

    numpy arrays are taken as they are. Others are shared through DLPack or ``__array_interface__`` if they lie in the memory
    of this machine, and converted by ``numpy.asarray`` otherwise. Tensors of PyTorch that record gradients are detached.

    >>> as_array([[1.0, 2.0]]).shape
    (1, 2)
    """
    array = value if type(value) is np.ndarray else _foreign(value)
    if array.dtype.hasobject:
        raise TypeError(f"{what} has element type {array.dtype}: give numbers")
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    return array


def _foreign(value: Any) -> Array:
    if hasattr(value, "detach") and getattr(value, "requires_grad", False):
        value = value.detach()
    if hasattr(value, "__dlpack__") and not isinstance(value, np.ndarray):
        try:
            return np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError):
            # Another device, or an element type that DLPack or numpy does not know: the library itself converts.
            pass
    if str(getattr(value, "dtype", "")) == "torch.bfloat16":
        return _bfloat16_of(value)
    return np.asarray(value)


def _bfloat16_of(tensor: Any) -> Array:
    """A tensor of PyTorch as the bits of its numbers, in the type that numpy knows as bfloat16."""
    # There is a tensor, so the module is there too.
    torch: Any = sys.modules["torch"]
    bits: Array = tensor.cpu().contiguous().view(torch.int16).numpy().view(np.uint16)
    return with_bfloat16(bits)


def native(value: Any, what: str) -> tuple[Array, bool]:
    """``value`` as the extension module takes it: bfloat16 as its bits, and whether it is."""
    array = as_array(value, what)
    # The name takes numpy longer than all the rest.
    if array.dtype.kind == "V" and array.dtype.name == "bfloat16":
        return array.view(np.uint16), True
    return array, False


def plain(array: Array) -> Array:
    """``array``, or a copy, aligned and in row-major order."""
    return np.require(array, requirements=("C", "A", "E"))


def contiguous(value: Any, dtype: Any, what: str) -> Array:
    """``value`` as a numpy array of floats, aligned and in row-major order; a copy where it is not.

    >>> contiguous([1, 2], np.float32, "input").dtype.name
    'float32'
    """
    array = as_array(value, what)
    if array.dtype.kind not in "biufV":
        raise TypeError(f"{what} has element type {array.dtype}: give real numbers")
    return np.require(array, dtype, ("C", "A", "E"))


def floats(value: Any, what: str) -> Array:
    """As :func:`contiguous`, in float64 if ``value`` is that, else in float32."""
    array = as_array(value, what)
    return contiguous(array, np.float64 if array.dtype == np.float64 else np.float32, what)


def with_bfloat16(bits: Array) -> Array:
    """Bits of bfloat16 numbers as an array of them (with the package ml_dtypes), or of float32 with the same values."""
    try:
        import ml_dtypes
    except ImportError:
        wide: Array = (bits.astype(np.uint32) << 16).view(np.float32)
        return wide
    narrow: Array = bits.view(ml_dtypes.bfloat16)
    return narrow
