"""Mixup of training clips with others of the whole set (arXiv 1710.09412). Imports no torch."""

import random
from dataclasses import dataclass, replace

from ssamba.data.order import ClipOrder, ClipRules, Indices
from ssamba.data.shards.index import ShardSet

_OTHER_SEEDS = 2**32  # above those that a recipe can have


@dataclass(frozen=True)
class Mixup:
    """Which clips are mixed, with what and by which share: by their place alone, whoever reads them.

    `order`: the clip at the same place of it is the other one. Each recording is another's partner once an epoch, and
    partners are read shard by shard as clips are.
    """

    probability: float
    order: ClipOrder

    @classmethod
    def of(cls, probability: float, shards: ShardSet, rules: ClipRules, rows: Indices | None) -> "Mixup":
        """With partners from all training recordings alike."""
        return cls(probability, ClipOrder(shards, replace(rules, seed=rules.seed + _OTHER_SEEDS), rows))

    def share(self, place: int) -> float | None:
        """What of a mixture is the place's own clip, from Beta(10, 10); None: the clip stays as it is."""
        rng = random.Random(f"mixup/{self.order.rules.seed}/{place}")
        return rng.betavariate(10, 10) if rng.random() < self.probability else None
