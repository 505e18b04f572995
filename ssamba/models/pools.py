"""Pools: the tokens of a clip to one vector.

Shapes: B batch, F and P grid sizes in frequency and time, D width, S segments.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ssamba.models.encoder import Encoded
from ssamba.parts import load_class, names, own_names

POOLINGS = own_names("pool")
"""The pools of this package."""
MOST_SEGMENTS = 1000
DEFAULT_POOLING = "statistics"
"""Of new classifiers, and of a pretrained model's vectors where no pool is named."""
_BOTTLENECK = 128  # of the attention, as in ECAPA-TDNN
_LEAST_VARIANCE = 1e-5  # below it a deviation has no gradient, which would be infinite at 0


class Pool(nn.Module):
    """The tokens of a clip to a vector of `size` numbers.

    Every pool is a class below this one, and has a name in `ssamba.parts`. It is made of `rows` and `width`, F and D,
    and has `pooled`, and a `size`, which its `__init__` gives to this one's. A row is all patches of the same mel bins:
    a mean over all tokens throws away which band is which.

    Args:
        rows: F.
        size: of the vector.
    """

    in_time = True
    """Whether it reads patches, so that there is a vector of each stretch of a clip, too."""
    takes_segments = False
    """Whether its `__init__` takes a third argument, S."""
    name = ""
    """By which it was asked for."""
    segments = 1
    padding = False
    """The tokens of what fills up a short clip are pooled too, as in the originals."""

    def __init__(self, rows: int, size: int) -> None:
        super().__init__()
        self.rows, self.size = rows, size

    def forward(self, encoded: Encoded, columns: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            encoded: tokens (B, F * P, D) and class tokens.
            columns: int64 (B,), how many of the P columns are the clip's own, at least 1; what follows them is padding
                and left out, unless `padding` says otherwise. None: all.

        Returns:
            (B, size).
        """
        return self.pooled(encoded, None if self.padding else columns)

    def pooled(self, encoded: Encoded, columns: Tensor | None) -> Tensor:
        """`forward` of a clip's own columns (B,), or of all."""
        raise NotImplementedError

    def in_columns(self, encoded: Encoded) -> Tensor:
        """The patch tokens, column by column: (B, P, F * D)."""
        return encoded.tokens.unflatten(1, (self.rows, -1)).transpose(1, 2).flatten(2)


def find_pool(name: str) -> type[Pool]:
    """The pool of a name of `ssamba.parts`; UserError if there is none, or another package's that cannot be used."""
    return load_class("pool", name, Pool)


def build_pool(name: str, rows: int, width: int, segments: int = 4, padding: bool = False) -> Pool:
    """The pool of a name of `ssamba.parts`.

    Args:
        rows, width: F and D.
        segments: S, of a pool that takes it.
        padding: as of `Pool`.

    Raises:
        ValueError: another name, or no segment.
        UserError: a pool of another package that cannot be used.
    """
    if name not in names("pool"):
        raise ValueError(f"pooling is {name!r}; expected one of {', '.join(names('pool'))}")
    if segments < 1:
        raise ValueError(f"segments is {segments}; expected at least 1")
    kind = find_pool(name)
    make: Callable[..., Pool] = kind
    pool = make(rows, width, segments) if kind.takes_segments else make(rows, width)
    pool.name, pool.padding = name, padding
    return pool


class ClassPool(Pool):
    """The mean of the class tokens, D. It has no columns to leave out."""

    in_time = False

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)

    def pooled(self, encoded: Encoded, columns: Tensor | None) -> Tensor:
        return encoded.class_tokens.mean(1)


class RowsPool(Pool):
    """Of each row its mean over time, F * D."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, rows * width)

    def pooled(self, encoded: Encoded, columns: Tensor | None) -> Tensor:
        tokens = self.in_columns(encoded)
        weights = self.weights(tokens, columns)
        # In bfloat16 a weight of one in many columns, or a difference from a mean, would be mostly rounding.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.to(weights.dtype)
            means = torch.einsum("bsp,bpx->bsx", weights, tokens)
            return self.vector(tokens, weights, means).to(encoded.tokens.dtype)

    def vector(self, tokens: Tensor, weights: Tensor, means: Tensor) -> Tensor:
        """Of tokens (B, P, F * D), what each column counts (B, S, P), and the means by that (B, S, F * D):
        (B, size)."""
        return means.flatten(1)

    def weights(self, tokens: Tensor, columns: Tensor | None) -> Tensor:
        """What each column counts for in each segment's mean: (B, S, P), at least float32, sums over P are 1."""
        ends = _ends(tokens, columns)
        index = torch.arange(tokens.shape[1], device=tokens.device)
        # A segment's share of a column is what of the column's stretch of time lies in it.
        edges = ends.to(_at_least_float32(tokens)) * torch.arange(self.segments + 1, device=tokens.device)
        edges = edges / self.segments
        first, last = edges[:, :-1, None], edges[:, 1:, None]
        shares = (torch.minimum(last, index + 1) - torch.maximum(first, index)).clamp(min=0)
        return shares / (last - first)


class MeanPool(RowsPool):
    """Over all patch tokens, D: SSAST's and SSAMBA's (SSAST section 2.4)."""

    def __init__(self, rows: int, width: int) -> None:
        Pool.__init__(self, rows, width)

    def pooled(self, encoded: Encoded, columns: Tensor | None) -> Tensor:
        return encoded.tokens.mean(1) if columns is None else super().pooled(encoded, columns)

    def vector(self, tokens: Tensor, weights: Tensor, means: Tensor) -> Tensor:
        return means.unflatten(2, (self.rows, -1)).mean(2).flatten(1)


class SegmentsPool(RowsPool):
    """The means of S equal stretches of time, rows apart, S * F * D: what is said has an order. A column of patches
    that two stretches share counts for each with the share that lies in it."""

    takes_segments = True

    def __init__(self, rows: int, width: int, segments: int) -> None:
        Pool.__init__(self, rows, segments * rows * width)
        self.segments = segments


class StatisticsPool(RowsPool):
    """Of each row its mean and its standard deviation over time, 2 * F * D."""

    def __init__(self, rows: int, width: int) -> None:
        Pool.__init__(self, rows, 2 * rows * width)

    def vector(self, tokens: Tensor, weights: Tensor, means: Tensor) -> Tensor:
        variance = torch.einsum("bsp,bpx->bsx", weights, (tokens - means).square())
        return torch.cat([means, variance.clamp(min=_LEAST_VARIANCE).sqrt()], dim=2).flatten(1)


class AttentivePool(StatisticsPool):
    """Mean and standard deviation over time, rows apart, weighted by learned attention over time, 2 * F * D (attentive
    statistics pooling, arXiv 1803.10963)."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__(rows, width)
        # The softmax over time takes a bias of the scores out again.
        scores = nn.Linear(_BOTTLENECK, 1, bias=False)
        self.attention = nn.Sequential(nn.Linear(rows * width, _BOTTLENECK), nn.Tanh(), scores)

    def weights(self, tokens: Tensor, columns: Tensor | None) -> Tensor:
        scores: Tensor = self.attention(tokens).squeeze(2).to(_at_least_float32(tokens))
        padding = torch.arange(tokens.shape[1], device=tokens.device) >= _ends(tokens, columns)
        return scores.masked_fill(padding, -torch.inf).softmax(1).unsqueeze(1)


def _ends(tokens: Tensor, columns: Tensor | None) -> Tensor:
    """How many of the columns of tokens (B, P, F * D) are each clip's own: int64 (B, 1)."""
    batch, places = tokens.shape[:2]
    if columns is None:
        columns = torch.full((batch,), places, device=tokens.device)
    return columns.to(tokens.device).unsqueeze(1)


def _at_least_float32(tokens: Tensor) -> torch.dtype:
    return torch.promote_types(tokens.dtype, torch.float32)
