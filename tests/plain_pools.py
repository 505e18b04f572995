"""Pools as they are described, one number after another, in float64: what the package's are held against."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ssamba.models.encoder import Encoded
from ssamba.models.heads import AudioClassifier
from ssamba.models.pools import Pool

Array = np.ndarray


def plain_pool(pool: Pool, encoded: Encoded, columns: Sequence[int] | None = None) -> Array:
    """What `pool` is to give: of each clip its first `columns` alone, None for all."""
    tokens, class_tokens = (x.detach().double().numpy() for x in encoded)
    grids = tokens.reshape(len(tokens), pool.rows, -1, tokens.shape[2])
    counts = columns or [grids.shape[2]] * len(grids)
    return np.array(
        [
            plain_vector(pool, grid[:, :count], extra)
            for grid, extra, count in zip(grids, class_tokens, counts, strict=True)
        ]
    )


def plain_vector(pool: Pool, grid: Array, class_tokens: Array) -> list[float]:
    """Of one clip: its own patch tokens (F, P, D) and its class tokens (1 or 2, D)."""
    rows, count, width = grid.shape
    numbers = [(row, number) for row in range(rows) for number in range(width)]
    if pool.name == "class":
        return [sum(token[number] for token in class_tokens) / len(class_tokens) for number in range(width)]
    if pool.name == "mean":
        return [
            sum(grid[row, place, number] for row in range(rows) for place in range(count)) / (rows * count)
            for number in range(width)
        ]
    if pool.name == "segments":
        edges = [count * segment / pool.segments for segment in range(pool.segments + 1)]
        return [
            sum(grid[row, place, number] * max(0.0, min(end, place + 1) - max(start, place)) for place in range(count))
            / (end - start)
            for start, end in zip(edges, edges[1:], strict=False)
            for row, number in numbers
        ]
    weights = [1 / count] * count
    if pool.name == "attentive":
        first, last = pool.attention[0], pool.attention[2]
        inner, bias, outer = (x.detach().double().numpy() for x in (first.weight, first.bias, last.weight[0]))
        scores = [outer @ np.tanh(inner @ np.concatenate(grid[:, place]) + bias) for place in range(count)]
        chances = [np.exp(score - max(scores)) for score in scores]
        weights = [chance / sum(chances) for chance in chances]
    means = [sum(weights[place] * grid[row, place, number] for place in range(count)) for row, number in numbers]
    if pool.name == "rows":
        return means
    variances = [
        sum(weights[place] * (grid[row, place, number] - mean) ** 2 for place in range(count))
        for (row, number), mean in zip(numbers, means, strict=True)
    ]
    return [*means, *(max(variance, 1e-5) ** 0.5 for variance in variances)]


class Pooled(NamedTuple):
    """encoded: what a classifier's encoder gave for a batch; vector: what came to its head, (B, size)."""

    encoded: Encoded
    vector: Tensor


@contextmanager
def pools_watched(model: AudioClassifier) -> Iterator[list[Pooled]]:
    """Within it, what goes into the classifier's pool and what comes out, batch by batch."""
    seen: list[Pooled] = []
    encoded: list[Encoded] = []
    hooks = [
        model.encoder.register_forward_hook(lambda module, inputs, output: encoded.append(output)),
        model.head.register_forward_pre_hook(lambda module, inputs: seen.append(Pooled(encoded.pop(), inputs[0]))),
    ]
    yield seen
    for hook in hooks:
        hook.remove()
