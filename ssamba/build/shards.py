"""The shards of a recipe, and how their recordings become clips."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssamba.audio import samples_for
from ssamba.config import DataConfig, Recipe
from ssamba.data.datamodule import ClipDataModule, ClipSettings, TrainingShards
from ssamba.data.order import ClipRules, Indices, Weights
from ssamba.data.shards.finding import ShardList, find_shards, list_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.statistics import Statistics, measure_statistics
from ssamba.errors import UserError

MEASURED_CLIPS = 2000  # enough for three digits of the statistics


@dataclass(frozen=True)
class Shards:
    """The splits of a recipe; None where it names none. With folds, test is train, each with its own rows."""

    train: ShardSet | ShardList
    validation: ShardSet | None
    test: ShardSet | None

    @property
    def indexed(self) -> ShardSet:
        """The training split, as fine-tuning has it in any case."""
        assert isinstance(self.train, ShardSet)
        return self.train

    def splits(self) -> dict[str, ShardSet]:
        """Name -> shards of the splits that the recipe names and that have an index."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        return {name: shards for name, shards in splits.items() if isinstance(shards, ShardSet)}

    def fingerprints(self) -> dict[str, Any]:
        """For run.json: what each split holds; the test split of a fold is in the training shards, which are named
        once."""
        splits = {"train": self.train, **self.splits()}
        return fingerprints(
            {name: shards for name, shards in splits.items() if name == "train" or shards is not self.train}
        )


def fingerprints(splits: Mapping[str, ShardSet | ShardList]) -> dict[str, Any]:
    """For the record of a run: what each split holds, as `SplitRecord` has it."""
    return {name: _fingerprint(shards) for name, shards in splits.items()}


def _fingerprint(split: ShardSet | ShardList) -> dict[str, Any]:
    if isinstance(split, ShardList):
        return {"samples": None, "seconds": None, "fingerprint": split.fingerprint, "shards": len(split.urls)}
    return {"samples": split.samples, "seconds": round(split.seconds, 3), "fingerprint": split.fingerprint}


def build_shards(recipe: Recipe) -> Shards:
    """Find every shard that a recipe names; UserError for what is missing, damaged or of another sampling rate."""
    data = recipe.data
    train = find_training(recipe)
    validation = find_shards(data.validation, data.cache) if data.validation else None
    test = find_shards(data.test, data.cache) if data.test else None
    if data.fold_by and isinstance(train, ShardSet):
        test = train
    shards = Shards(train, validation, test)
    for name, shard_set in shards.splits().items():
        check_rate(recipe, f"data.{name}", shard_set)
    return shards


def find_training(recipe: Recipe) -> ShardSet | ShardList:
    """The shards that a recipe trains on, as its data.order reads them."""
    data = recipe.data
    return list_shards(data.train) if data.order == "streaming" else find_shards(data.train, data.cache)


def check_rate(recipe: Recipe, option: str, shards: ShardSet) -> None:
    if shards.sampling_rate != recipe.audio.sampling_rate:
        raise UserError(
            f"{option} holds audio at {shards.sampling_rate} Hz; audio.sampling_rate is {recipe.audio.sampling_rate}. "
            "Write the shards again, or change the recipe"
        )


def build_clip_settings(recipe: Recipe) -> ClipSettings:
    """How the recipe's recordings become clips."""
    audio, data, trainer = recipe.audio, recipe.data, recipe.trainer
    clip_samples = samples_for(audio.max_length, audio.sampling_rate)
    rules = ClipRules(clip_samples, data.short, shuffle_buffer=data.shuffle_buffer, seed=recipe.seed)
    batch_size = data.batch_size // (trainer.ranks * trainer.accumulate)
    return ClipSettings(
        rules, audio.sampling_rate, batch_size, data.max_bad_fraction, data.cache_bytes, data.num_workers
    )


def build_training_shards(
    recipe: Recipe, train: ShardSet | ShardList, rows: Indices | None = None, balance: Weights | None = None
) -> TrainingShards | ShardList:
    """All training shards, or some rows of their table, with the recipe's weights."""
    if isinstance(train, ShardList):
        return train
    weights = recipe.data.weights
    sources = [len(find_shards(source, recipe.data.cache).shards) for source in recipe.data.train] if weights else None
    return TrainingShards(train, rows, sources, weights, balance)


def at_most(clips: int, train: ShardSet | ShardList) -> int:
    """So many, or all that there are if they are fewer and can be known."""
    return clips if isinstance(train, ShardList) else min(clips, train.samples)


def measure(sources: Sequence[str], num_mel_bins: int, limit: int | None, cache: str | None = None) -> Statistics:
    """Statistics of all the recordings of some shards, or of `limit` of them; a minute of each at most."""
    shards = find_shards(sources, cache)
    rate = shards.sampling_rate
    rules, cache_bytes = ClipRules(60 * rate, "pad", shuffle_buffer=0, seed=0), DataConfig().cache_bytes
    settings = ClipSettings(rules, rate, batch_size=16, max_bad_fraction=0.01, cache_bytes=cache_bytes)
    stream = ClipDataModule(settings, test=shards).test_stream()
    return measure_statistics(stream, num_mel_bins, min(limit or shards.samples, shards.samples))
