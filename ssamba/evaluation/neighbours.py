"""k nearest neighbours by the cosine of features.

Shapes: N training clips, B clips, D features, C classes, K neighbours.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

NEIGHBOURS = (1, 2, 5, 10, 20, 50, 100, 200)
"""Numbers of neighbours among which cross-validation chooses."""
TEMPERATURE = 0.07
_AT_ONCE = 1 << 24  # cosines in memory


class Neighbours(NamedTuple):
    """Of B clips the K nearest of N, the nearest first: rows int64 and cosines float32, both (B, K)."""

    rows: Tensor
    cosines: Tensor


def find_neighbours(train: Tensor, x: Tensor, k: int) -> Neighbours:
    """The nearest rows of train (N, D) for each row of x (B, D); as many as there are, if they are fewer than k."""
    train, x = F.normalize(train.float(), dim=1), F.normalize(x.float(), dim=1)
    rows, cosines = [], []
    for part in x.split(max(1, _AT_ONCE // len(train))):
        near = (part @ train.T).topk(min(k, len(train)), dim=1)
        rows.append(near.indices)
        cosines.append(near.values)
    return Neighbours(torch.cat(rows), torch.cat(cosines))


def vote(near: Neighbours, labels: Tensor, classes: int, k: int, temperature: float = TEMPERATURE) -> Tensor:
    """Logits, float64 (B, C), of each class's share of the votes of the first k neighbours.

    A neighbour's vote counts exp(cosine / temperature), as of instance discrimination (arXiv 1805.01978, section 3.4)
    and DINO. Labels: of the training clips, int64 (N,) or, several a clip, (N, C).
    """
    weights = (near.cosines[:, :k].double() / temperature).softmax(1)
    kinds = F.one_hot(labels, classes) if labels.ndim == 1 else labels
    shares = torch.einsum("bk,bkc->bc", weights, kinds.double()[near.rows[:, :k]])
    # No class is impossible: a share of 0 has a logit, too.
    shares = shares.clamp(1e-9, 1 - 1e-9)
    return shares.log() if labels.ndim == 1 else shares.logit()
