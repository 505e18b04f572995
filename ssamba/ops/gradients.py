"""What every backend's backward pass returns, and what torch.library wants of the results of an operator."""

from collections.abc import Iterable
from typing import NamedTuple

from torch import Tensor


class Gradients(NamedTuple):
    """Of the scan's inputs, each in its input's shape and dtype; None where there was no input."""

    u: Tensor
    delta: Tensor
    a: Tensor
    b: Tensor
    c: Tensor
    d: Tensor | None
    z: Tensor | None
    bias: Tensor | None


def separate(results: Iterable[Tensor]) -> tuple[Tensor, ...]:
    """Contiguous, no two in one storage, as the results of an operator of torch.library must be: of two that are views
    of one tensor the second is copied."""
    storages: set[int] = set()
    separated = []
    for result in results:
        tensor = result.contiguous()
        # Empty storages all have the address 0.
        if tensor.untyped_storage().data_ptr() in storages:
            tensor = tensor.clone()
        storages.add(tensor.untyped_storage().data_ptr())
        separated.append(tensor)
    return tuple(separated)
