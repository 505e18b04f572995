"""What the operators share about tensors: which they take, whether a backward pass may come, and what torch.library
wants of results."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def check_kinds(tensors: Mapping[str, Tensor | None]) -> None:
    """ValueError for numbers that no kernel takes (they would be cut silently), or tensors that lie apart."""
    first, device = next((name, x.device) for name, x in tensors.items() if x is not None)
    for name, tensor in tensors.items():
        if tensor is None:
            continue
        if not tensor.dtype.is_floating_point:
            raise ValueError(f"{name} has dtype {tensor.dtype}; expected a floating-point one, float32 for instance")
        if tensor.device != device:
            raise ValueError(f"{name} is on {tensor.device}; expected {device}, where {first} is")


def differentiable(*tensors: Tensor | None) -> bool:
    """Whether autograd records what is computed from these."""
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


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
