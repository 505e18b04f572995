"""Clips that are mixed with one of all recordings: by their place alone, beside a plain mixture of what is read."""

import random
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ssamba.data.datamodule import ClipDataModule, ClipSettings, TrainingShards
from ssamba.data.labels import Labels
from ssamba.data.mixup import Mixup
from ssamba.data.order import ClipRules
from ssamba.data.shards.finding import find_shards
from ssamba.data.stream import ClipStream

RULES = ClipRules(8000, "pad", shuffle_buffer=30, seed=3)
SOUNDS = ("falling", "high", "low", "rising")


def stream(
    corpus: Path,
    mixup: float,
    *,
    tags: bool = False,
    rank: int = 0,
    ranks: int = 1,
    rules: ClipRules = RULES,
    workers: int = 0,
) -> Any:
    settings = ClipSettings(rules, 16000, 12 // ranks, 0.01, 10**9, num_workers=workers)
    shards = find_shards([str(corpus / "train")])
    labels = Labels("tags", shards.labels["tags"], True) if tags else Labels("sound", SOUNDS)
    data = ClipDataModule(settings, train=TrainingShards(shards), labels=labels, mixup=mixup)
    if workers:
        return iter(data.train_dataloader())
    found: ClipStream = data.training_stream()
    found.source.rank, found.source.world_size = rank, ranks
    return iter(found)


@pytest.mark.parametrize("tags", [False, True])
def test_a_mixture_is_what_its_definition_says(tags: bool, corpus: Path) -> None:
    mixed = stream(corpus, 0.5, tags=tags)
    plain = stream(corpus, 0, tags=tags)
    others = stream(corpus, 0, tags=tags, rules=ClipRules(8000, "pad", shuffle_buffer=30, seed=3 + 2**32))
    alone = 0
    for _ in range(4):
        batch, own, other = next(mixed), next(plain), next(others)
        assert batch["labels"].dtype == torch.float32 and batch["labels"].shape == (12, 6 if tags else 4)
        for n, place in enumerate(own["positions"]):
            rng = random.Random(f"mixup/{3 + 2**32}/{place}")
            chosen = rng.random() < 0.5
            share = rng.betavariate(10, 10) if chosen else 1.0
            alone += not chosen
            wave = share * own["waveform"][n].double() + (1 - share) * other["waveform"][n].double()
            torch.testing.assert_close(batch["waveform"][n].double(), wave, atol=1e-6, rtol=1e-5)
            one, two = (
                held["labels"][n].double() if tags else torch.eye(4).double()[held["labels"][n]]
                for held in (own, other)
            )
            torch.testing.assert_close(batch["labels"][n].double(), share * one + (1 - share) * two)
            length = max(own["lengths"][n], other["lengths"][n]) if chosen else own["lengths"][n]
            assert batch["lengths"][n] == length
            assert batch["keys"][n] == (f"{own['keys'][n]}+{other['keys'][n]}" if chosen else own["keys"][n])
        assert batch["positions"] == own["positions"]
    assert 0 < alone < 48


def test_shares_and_partners(corpus: Path) -> None:
    mixup = Mixup.of(0.3, find_shards([str(corpus / "train")]), RULES, None)
    shares = [mixup.share(place) for place in range(4000)]
    some = [share for share in shares if share is not None]
    assert abs(len(some) / 4000 - 0.3) < 0.03
    # Beta(10, 10): mean 1/2, variance 1/84.
    assert abs(np.mean(some) - 0.5) < 0.02 and abs(np.var(some) * 84 - 1) < 0.2
    partners = Counter(mixup.order.clip(place)[0].row for place in range(600))
    assert partners == dict.fromkeys(range(60), 10)


@pytest.mark.parametrize("workers", [0, 2])
def test_ranks_and_workers_mix_what_one_process_does(workers: int, corpus: Path) -> None:
    whole = stream(corpus, 1.0)
    parts = [stream(corpus, 1.0, workers=2)] if workers else [stream(corpus, 1.0, rank=n, ranks=2) for n in range(2)]
    for _ in range(3):
        wanted, found = next(whole), [next(part) for part in parts]
        assert [key for batch in found for key in batch["keys"]] == wanted["keys"]
        assert torch.equal(torch.cat([batch["waveform"] for batch in found]), wanted["waveform"])
        assert torch.equal(torch.cat([batch["labels"] for batch in found]), wanted["labels"])
