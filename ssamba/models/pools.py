"""Pools: the tokens of a clip to one vector.

Shapes: B batch, F and P grid sizes in frequency and time, D width, S segments.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ssamba.models.encoder import Encoded

Pooling = Literal["mean", "class", "rows", "statistics", "segments", "attentive"]
POOLINGS: tuple[str, ...] = get_args(Pooling)
MOST_SEGMENTS = 1000
DEFAULT_POOLING: Pooling = "statistics"
"""Of new classifiers, and of a pretrained model's vectors where no pool is named."""
_BOTTLENECK = 128  # of the attention, as in ECAPA-TDNN
_LEAST_VARIANCE = 1e-5  # below it a deviation has no gradient, which would be infinite at 0


class Pool(nn.Module):
    """The tokens of a clip to a vector of `size` numbers.

    A row is all patches of the same mel bins. A mean over all tokens throws away which band is which; the pools below
    it keep the rows apart:

    - "mean": over all patch tokens, D: SSAST's and SSAMBA's (SSAST section 2.4).
    - "class": the mean of the class tokens, D.
    - "rows": of each row its mean over time, F * D.
    - "statistics": of each row its mean and its standard deviation over time, 2 * F * D.
    - "segments": the means of S equal stretches of time, rows apart, S * F * D: what is said has an order. A column of
      patches that two stretches share counts for each with the share that lies in it.
    - "attentive": mean and standard deviation over time, rows apart, weighted by learned attention over time, 2 * F * D
      (attentive statistics pooling, arXiv 1803.10963).

    Args:
        name: one of `POOLINGS`.
        rows, width: F and D.
        segments: S, of "segments" alone.
        padding: the tokens of what fills up a short clip are pooled too, as in the originals.

    Raises:
        ValueError: another name, or no segment.
    """

    def __init__(self, name: str, rows: int, width: int, segments: int = 4, padding: bool = False) -> None:
        super().__init__()
        if name not in POOLINGS:
            raise ValueError(f"pooling is {name!r}; expected one of {', '.join(POOLINGS)}")
        if segments < 1:
            raise ValueError(f"segments is {segments}; expected at least 1")
        self.name, self.rows, self.padding = name, rows, padding
        self.segments = segments if name == "segments" else 1
        vectors = {"mean": 1, "class": 1, "rows": rows, "segments": segments * rows}
        self.size = vectors.get(name, 2 * rows) * width
        if name == "attentive":
            # The softmax over time takes a bias of the scores out again.
            scores = nn.Linear(_BOTTLENECK, 1, bias=False)
            self.attention = nn.Sequential(nn.Linear(rows * width, _BOTTLENECK), nn.Tanh(), scores)

    def forward(self, encoded: Encoded, columns: Tensor | None = None) -> Tensor:
        """Pool.

        Args:
            encoded: tokens (B, F * P, D) and class tokens.
            columns: int64 (B,), how many of the P columns are the clip's own, at least 1; what follows them is padding
                and left out, unless `padding` says otherwise. None: all.

        Returns:
            (B, size). "class" has no columns to leave out.
        """
        if self.name == "class":
            return encoded.class_tokens.mean(1)
        if self.name == "mean" and (columns is None or self.padding):
            return encoded.tokens.mean(1)
        tokens = encoded.tokens.unflatten(1, (self.rows, -1)).transpose(1, 2).flatten(2)  # (B, P, F * D)
        weights = self._weights(tokens, None if self.padding else columns)
        # In bfloat16 a weight of one in many columns, or a difference from a mean, would be mostly rounding.
        with torch.autocast(tokens.device.type, enabled=False):
            tokens = tokens.to(weights.dtype)
            pooled = torch.einsum("bsp,bpx->bsx", weights, tokens)
            if self.name == "mean":
                pooled = pooled.unflatten(2, (self.rows, -1)).mean(2)
            elif self.name in ("statistics", "attentive"):
                variance = torch.einsum("bsp,bpx->bsx", weights, (tokens - pooled).square())
                pooled = torch.cat([pooled, variance.clamp(min=_LEAST_VARIANCE).sqrt()], dim=2)
        return pooled.flatten(1).to(encoded.tokens.dtype)

    def _weights(self, tokens: Tensor, columns: Tensor | None) -> Tensor:
        """What each column counts for in each segment's mean: (B, S, P), at least float32, sums over P are 1."""
        batch, places = tokens.shape[:2]
        dtype, index = torch.promote_types(tokens.dtype, torch.float32), torch.arange(places, device=tokens.device)
        if columns is None:
            columns = torch.full((batch,), places, device=tokens.device)
        ends = columns.to(tokens.device).unsqueeze(1)  # (B, 1)
        if self.name == "attentive":
            scores: Tensor = self.attention(tokens).squeeze(2).to(dtype)
            return scores.masked_fill(index >= ends, -torch.inf).softmax(1).unsqueeze(1)
        # A segment's share of a column is what of the column's stretch of time lies in it.
        edges = ends.to(dtype) * torch.arange(self.segments + 1, device=tokens.device) / self.segments
        first, last = edges[:, :-1, None], edges[:, 1:, None]
        shares = (torch.minimum(last, index + 1) - torch.maximum(first, index)).clamp(min=0)
        return shares / (last - first)
