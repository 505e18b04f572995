"""Features standardised by those of a batch's clips, wherever the clips of the batch are.

Shapes: B clips, D features.
"""

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

_SHARE = 0.1  # that a batch has in the moving average; after n batches at least 1 / n
_LEAST_VARIANCE = 1e-5


class BatchNorm(nn.Module):
    """Each feature less its mean and over its deviation: in training those of the step's clips on all devices, which
    have gradients, and afterwards their moving average. No scale and no shift, since a linear layer follows, as in
    MAE's linear probes (arXiv 2111.06377, appendix A.1).

    torch's own is not shared by devices on a CPU, and its average begins with what no batch had.

    Args:
        size: D.
    """

    mean: Tensor
    variance: Tensor
    batches: Tensor

    def __init__(self, size: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("variance", torch.ones(size))
        self.register_buffer("batches", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """x (B, D) -> (B, D) of its type, computed in float32. In training B is the same on all devices."""
        with torch.autocast(x.device.type, enabled=False):
            features, mean, variance = x.float(), self.mean, self.variance
            if self.training:
                mean = _over_ranks(features.mean(0))
                variance = _over_ranks((features - mean).square().mean(0))
                self._take_in(mean.detach(), variance.detach())
            return ((features - mean) * (variance + _LEAST_VARIANCE).rsqrt()).to(x.dtype)

    @torch.no_grad()
    def _take_in(self, mean: Tensor, variance: Tensor) -> None:
        # A step that is skipped because it is not finite must leave no trace, and is not waited for.
        finite = (mean + variance).isfinite().all()
        self.batches += finite
        share = self.batches.reciprocal().clamp(min=_SHARE, max=1)
        self.mean.lerp_(torch.where(finite, mean, self.mean), share)
        self.variance.lerp_(torch.where(finite, variance, self.variance), share)


def _over_ranks(value: Tensor) -> Tensor:
    """The mean of a tensor over all ranks, through which gradients go to each."""
    if not torch.distributed.is_initialized():
        return value
    total: Tensor = all_reduce(value)
    return total / torch.distributed.get_world_size()
