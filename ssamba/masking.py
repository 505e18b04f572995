"""Which patches to hide: pure functions of a torch.Generator.

Shapes: B batch, F and P grid sizes in frequency and time.

The original (SSAST `gen_maskid_patch`, inherited by SSAMBA) marks clusters on the flat patch number, so a cluster at
the end of a row goes on at the start of the next one, and it lets clusters start only where they fit below the last
patch, so the first rows and columns are hidden less often than the others. Here a cluster is a true square: it is cut
at the border of the grid and never wraps, and it may start outside the grid, so that each cluster covers every patch
with the same probability. That a mask stops at an exact number leaves differences of about 2 % between positions on a
grid of 8 x 64, and more where the grid is hardly larger than a cluster.
"""

import torch
from torch import Tensor

CLUSTER_SIZES = (3, 5)  # SSAST section 2.2: the side of a cluster is drawn from 3, 4 and 5


def random_mask(batch: int, frequency: int, time: int, masked: int, generator: torch.Generator) -> Tensor:
    """Exactly `masked` patches a clip, uniformly at random (SSAST section 2.2, frame masking).

    Returns a bool mask on the CPU, (B, F * P) with the patches of one frequency row after another, True where hidden.
    """
    _check(frequency, time, masked)
    return _hide_smallest(torch.rand(batch, frequency * time, generator=generator), masked)


def cluster_mask(batch: int, frequency: int, time: int, masked: int, generator: torch.Generator) -> Tensor:
    """Exactly `masked` patches a clip, in square clusters of side 3 to 5 (SSAST section 2.2, patch masking).

    Clusters are drawn in turn until `masked` patches are covered; of the cluster that covers too many, random patches
    are kept. Returns a bool mask on the CPU, (B, F * P) as in `random_mask`.
    """
    _check(frequency, time, masked)
    # A cluster of mean side 4 covers 16 patches where none is cut: half as many clusters as patches cover nearly all.
    draws = max(4, frequency * time // 2)
    sides = torch.randint(CLUSTER_SIZES[0], CLUSTER_SIZES[1] + 1, (batch, draws), generator=generator)
    row_hit = _covered(frequency, sides, generator)
    column_hit = _covered(time, sides, generator)
    hit = row_hit.unsqueeze(3) & column_hit.unsqueeze(2)  # (B, draws, F, P)
    # argmax gives the first cluster that covers a patch; a patch that none covers comes last.
    arrival = torch.where(hit.any(1), hit.to(torch.uint8).argmax(1), draws).flatten(1)
    return _hide_smallest(arrival + torch.rand(arrival.shape, generator=generator), masked)


def _covered(size: int, sides: Tensor, generator: torch.Generator) -> Tensor:
    """(B, draws, size): which of `size` places an interval of each side covers, if it starts anywhere it can touch."""
    reach = size + sides - 1
    start = (torch.rand(sides.shape, generator=generator) * reach).floor().long() - sides + 1
    place = torch.arange(size)
    start = start.unsqueeze(-1)
    return (place >= start) & (place < start + sides.unsqueeze(-1))


def _hide_smallest(keys: Tensor, masked: int) -> Tensor:
    hidden = keys.topk(masked, dim=1, largest=False).indices
    return torch.zeros(keys.shape, dtype=torch.bool).scatter_(1, hidden, True)


def _check(frequency: int, time: int, masked: int) -> None:
    if not 0 < masked < frequency * time:
        raise ValueError(f"{masked} masked patches; expected 1 to {frequency * time - 1} on {frequency} x {time}")
