"""Arrays of numpy in untrusted bytes: typed and bounded. Imports no torch."""

import io
import tokenize
from typing import Any

import numpy as np
import numpy.typing as npt

MOST_HEADER = 4096
"""Bytes of an array's header."""

_BROKEN = (ValueError, KeyError, TypeError, SyntaxError, tokenize.TokenError, RecursionError, MemoryError)


def parse_array(content: bytes, dtype: npt.DTypeLike, shape: tuple[int | None, ...]) -> npt.NDArray[Any]:
    """The array in the bytes of a .npy, which it shares memory with; its header is compared before anything is made.

    Args:
        dtype: that it must have.
        shape: that it must have; None: any size.

    Raises:
        ValueError: it is none, or has another dtype or shape, which the message names.
    """
    stream = io.BytesIO(content)
    try:
        version = np.lib.format.read_magic(stream)
        read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[
            version
        ]
        actual_shape, by_columns, kind = read_header(stream, max_header_size=MOST_HEADER)
    except _BROKEN as error:
        raise ValueError("it is no array of numpy") from error
    fits = len(actual_shape) == len(shape) and all(
        own in (None, size) for own, size in zip(shape, actual_shape, strict=True)
    )
    rest, size = len(content) - stream.tell(), np.dtype(dtype).itemsize
    for length in actual_shape:
        size *= length
    if kind != np.dtype(dtype) or not fits or (by_columns and len(actual_shape) > 1) or rest != size:
        raise ValueError(f"it is an array of {kind} and shape {actual_shape}, in {rest} bytes")
    return np.frombuffer(content, dtype, size // np.dtype(dtype).itemsize, stream.tell()).reshape(actual_shape)
