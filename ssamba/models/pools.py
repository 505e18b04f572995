"""Pools: the tokens of a clip to one vector.

Shapes: B batch, F and P grid sizes in frequency and time, L = F * P patch tokens, D width, S segments.
"""

import torch
from torch import Tensor, nn

from ssamba.models.encoder import Encoded

POOLINGS = ("mean", "class", "rows", "statistics", "segments", "attentive")
MOST_SEGMENTS = 1000
_BOTTLENECK = 128  # of the attention, as in ECAPA-TDNN
_LEAST_VARIANCE = 1e-5  # below it a deviation has no gradient, which would be infinite at 0


class Pool(nn.Module):
    """The tokens of a clip to a vector of `size` numbers.

    A row is all patches of the same mel bins. Where a mean over all tokens has thrown away which band is which, these
    keep it:

    - "mean": over all patch tokens, D: SSAST's and SSAMBA's (SSAST section 2.4).
    - "class": the mean of the class tokens, D.
    - "rows": of each row its mean over time, F * D.
    - "statistics": of each row its mean and its standard deviation over time, 2 * F * D.
    - "segments": the means of S equal stretches of time, rows apart, S * F * D: what is said has an order.
    - "attentive": mean and standard deviation over time, rows apart, weighted by learned attention over time, 2 * F * D
      (attentive statistics pooling, arXiv 1803.10963).

    Args:
        name: one of `POOLINGS`.
        rows, width: F and D.
        segments: S, of "segments" alone.

    Raises:
        ValueError: another name, or no segment.
    """

    def __init__(self, name: str, rows: int, width: int, segments: int = 4) -> None:
        super().__init__()
        if name not in POOLINGS:
            raise ValueError(f"pooling is {name!r}; expected one of {', '.join(POOLINGS)}")
        if segments < 1:
            raise ValueError(f"segments is {segments}; expected at least 1")
        self.name, self.rows = name, rows
        self.segments = segments if name == "segments" else 1
        vectors = {"mean": 1, "class": 1, "rows": rows, "segments": segments * rows}
        self.size = vectors.get(name, 2 * rows) * width
        if name == "attentive":
            self.attention = nn.Sequential(nn.Linear(rows * width, _BOTTLENECK), nn.Tanh(), nn.Linear(_BOTTLENECK, 1))

    def forward(self, encoded: Encoded, columns: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            encoded: tokens (B, F * P, D) and class tokens.
            columns: int64 (B,), how many of the P columns are the clip's own, at least 1; what follows them is padding
                and left out. None: all.

        Returns:
            (B, size). "class" has no columns to leave out.
        """
        if self.name == "class":
            return encoded.class_tokens.mean(1)
        if self.name == "mean" and columns is None:
            return encoded.tokens.mean(1)
        tokens = encoded.tokens.unflatten(1, (self.rows, -1)).transpose(1, 2).flatten(2)  # (B, P, F * D)
        weights = self._weights(tokens, columns)
        means = torch.einsum("bsp,bpx->bsx", weights, tokens)
        if self.name == "mean":
            return means.unflatten(2, (self.rows, -1)).mean((1, 2))
        if self.name in ("rows", "segments"):
            return means.flatten(1)
        squares = torch.einsum("bsp,bpx->bsx", weights, (tokens - means).square())
        return torch.cat([means, squares.clamp(min=_LEAST_VARIANCE).sqrt()], dim=2).flatten(1)

    def _weights(self, tokens: Tensor, columns: Tensor | None) -> Tensor:
        """What each column counts for in each segment's mean: (B, S, P), sums over P are 1."""
        batch, places = tokens.shape[:2]
        if columns is None:
            columns = torch.full((batch,), places, device=tokens.device)
        ends = columns.to(tokens.device).unsqueeze(1)  # (B, 1)
        index = torch.arange(places, device=tokens.device)
        if self.name == "attentive":
            scores: Tensor = self.attention(tokens).squeeze(2).masked_fill(index >= ends, -torch.inf)
            return scores.softmax(1).unsqueeze(1)
        # A segment's share of a column is what of the column's stretch of time lies in it.
        edges = ends * torch.arange(self.segments + 1, device=tokens.device) / self.segments
        first, last = edges[:, :-1, None], edges[:, 1:, None]
        shares = (torch.minimum(last, index + 1) - torch.maximum(first, index)).clamp(min=0)
        return (shares / (last - first)).to(tokens.dtype)
