"""Which patches to hide: each clip's mask is a pure function of a torch.Generator of its own.

Shapes: B batch, F and P grid sizes in frequency and time.

The original (SSAST `gen_maskid_patch`, inherited by SSAMBA) marks clusters on the flat patch number, so a cluster at
the end of a row goes on at the start of the next one, and it lets clusters start only where they fit below the last
patch, so the first rows and columns are hidden less often than the others. Here a cluster is a true square: it is cut
at the border of the grid and never wraps, and it may start outside the grid, so that each cluster covers every patch
with the same probability. That a mask stops at an exact number leaves differences of about 2 % between positions on a
grid of 8 x 64, and more where the grid is hardly larger than a cluster.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

CLUSTER_SIZES = (3, 5)
"""SSAST section 2.2: the side of a cluster is drawn from 3, 4 and 5."""


@dataclass(frozen=True)
class Masking:
    """How a recipe hides patches.

    Attributes:
        kind: "cluster"; "random"; or "ssast", as SSAST section 2.2 has it: of patches clusters of side 3 to 5, of
            frames (a grid of one row) at random.
        masked: how many patches of a whole clip are hidden.
        sizes: of the clusters of kind "cluster": the least and the largest side.
        padded: clips may end in padding, of which nothing is hidden.
    """

    kind: str
    masked: int
    sizes: tuple[int, int] = CLUSTER_SIZES
    padded: bool = False

    def draw(
        self, frequency: int, time: int, generators: Sequence[torch.Generator], columns: Tensor | None = None
    ) -> Tensor:
        """A mask for each generator; see `random_mask`. `columns` counts for nothing unless clips are `padded`."""
        columns = columns if self.padded else None
        if self.kind == "random" or (self.kind == "ssast" and frequency == 1):
            return random_mask(frequency, time, self.masked, generators, columns)
        sizes = CLUSTER_SIZES if self.kind == "ssast" else self.sizes
        return cluster_mask(frequency, time, self.masked, generators, columns, sizes)


def clip_generator(seed: int, purpose: str, position: int) -> torch.Generator:
    """A generator on the CPU for a purpose and a clip's place in the order of the data, whatever was drawn before."""
    return torch.Generator().manual_seed(random.Random(f"{seed}/{purpose}/{position}").getrandbits(63))


def clip_generators(seed: int, purpose: str, positions: Sequence[int], times: int = 1) -> list[torch.Generator]:
    """Of each clip's place in the order as many as the clip is in the batch, those of a clip one after another."""
    purposes = [purpose, *(f"{purpose}/{time}" for time in range(1, times))]
    return [clip_generator(seed, one, position) for position in positions for one in purposes]


def random_mask(
    frequency: int, time: int, masked: int, generators: Sequence[torch.Generator], columns: Tensor | None = None
) -> Tensor:
    """Patches of each of B clips, uniformly at random (SSAST section 2.2, frame masking).

    Args:
        frequency, time: F and P.
        masked: how many patches of a whole clip are hidden, exactly.
        generators: one a clip.
        columns: int64 (B,) on the CPU, how many of the P columns are the clip's own. The rest is padding, of which
            nothing is hidden; of the others as large a share as of a whole clip, one at least. None: all.

    Returns:
        A bool mask on the CPU, (B, F * P) with the patches of one frequency row after another, True where hidden.
    """
    _check(frequency, time, masked)
    return _hide_smallest(_uniform(frequency * time, generators), frequency, masked, columns)


def cluster_mask(
    frequency: int,
    time: int,
    masked: int,
    generators: Sequence[torch.Generator],
    columns: Tensor | None = None,
    sizes: tuple[int, int] = CLUSTER_SIZES,
) -> Tensor:
    """Patches of each of B clips, in square clusters (SSAST section 2.2, patches); of frames, in runs of time.

    Clusters are drawn in turn until as many patches are covered as are to be hidden; of the cluster that covers too
    many, random patches are kept. Arguments and result as of `random_mask`; `sizes`: the least and the largest side of
    a cluster, in patches.
    """
    _check(frequency, time, masked)
    # Half as many clusters as patches cover nearly all where a mean cluster has 16 patches; small ones take more.
    least, most = sizes
    draws = max(4, frequency * time // (1 if least < 3 else 2))
    chance = _uniform(3 * draws + frequency * time, generators)
    side, row, column, last = chance.split([draws, draws, draws, frequency * time], dim=1)
    sides = least + (side * (most - least + 1)).long()
    row_hit = _covered(frequency, sides, row)
    column_hit = _covered(time, sides, column)
    hit = row_hit.unsqueeze(3) & column_hit.unsqueeze(2)  # (B, draws, F, P)
    # argmax gives the first cluster that covers a patch; a patch that none covers comes last.
    arrival = torch.where(hit.any(1), hit.to(torch.uint8).argmax(1), draws).flatten(1)
    return _hide_smallest(arrival + last, frequency, masked, columns)


def _uniform(size: int, generators: Sequence[torch.Generator]) -> Tensor:
    """(B, size) numbers from 0 to 1, each row of its own generator."""
    return torch.stack([torch.rand(size, generator=generator) for generator in generators])


def _covered(size: int, sides: Tensor, chance: Tensor) -> Tensor:
    """(B, draws, size): which of `size` places an interval of each side covers, if it starts anywhere it can touch."""
    reach = size + sides - 1
    start = (chance * reach).floor().long() - sides + 1
    place = torch.arange(size)
    start = start.unsqueeze(-1)
    return (place >= start) & (place < start + sides.unsqueeze(-1))


def _hide_smallest(keys: Tensor, frequency: int, masked: int, columns: Tensor | None) -> Tensor:
    """True at the patches of the smallest keys (B, L), as many as `random_mask` says."""
    if columns is None:
        hidden = keys.topk(masked, dim=1, largest=False).indices
        return torch.zeros(keys.shape, dtype=torch.bool).scatter_(1, hidden, True)
    patches = keys.shape[1]
    own = (torch.arange(patches // frequency) < columns.unsqueeze(1)).repeat(1, frequency)
    counts = (masked * columns * frequency / patches).round().long().clamp(min=1)
    rank = keys.masked_fill(~own, torch.inf).argsort(1).argsort(1)
    return rank < counts.unsqueeze(1)


def _check(frequency: int, time: int, masked: int) -> None:
    if not 0 < masked < frequency * time:
        raise ValueError(f"{masked} masked patches; expected 1 to {frequency * time - 1} on {frequency} x {time}")
