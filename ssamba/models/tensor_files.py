"""Tensors in .safetensors files: written whole, and read as untrusted."""

import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ssamba.errors import UserError
from ssamba.files import written_beside

_MOST_HEADER_BYTES = 1 << 24


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write contiguous tensors on the CPU, each with memory of its own; NotWritten if the disk does not take them."""
    with written_beside(path) as beside:
        try:
            save_file(dict(tensors), beside, metadata={"format": "pt"})
        except SafetensorError as error:
            if code := re.search(r"os error (\d+)", str(error)):  # which safetensors has in its message alone
                raise OSError(int(code[1]), os.strerror(int(code[1])), str(beside)) from error
            raise


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU; UserError for a damaged one."""
    read_header(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error


def read_header(path: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name -> dtype, in safetensors' words, and shape of what a .safetensors file holds, without reading the tensors.

    Raises:
        UserError: it is damaged, or its header is larger than any model's.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
        if size > _MOST_HEADER_BYTES:
            raise UserError(f"{path} is damaged: its header has {size} bytes; expected {_MOST_HEADER_BYTES} at most")
        with safe_open(path, "pt") as tensors:
            parts = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 - it is no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in parts.items()}
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is damaged: {error}") from error
