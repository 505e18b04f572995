"""What every backend's backward pass of the scan returns."""

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
