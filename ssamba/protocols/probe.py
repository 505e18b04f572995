"""`ssamba probe`: what a model's features are worth, without training it, beside log-mel statistics.

Everything that is open (the layer, the strength of the penalty, the number of neighbours) is chosen by cross-validation
within the training part; the clips to be scored are scored once, by what was chosen.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssamba.build.shards import fingerprints
from ssamba.config import DataConfig
from ssamba.data.labels import Labels, all_folds, in_fold
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardSet
from ssamba.data.shards.remote import ShardCache
from ssamba.errors import UserError
from ssamba.evaluation.baseline import BASELINES
from ssamba.evaluation.classification import Predictions
from ssamba.evaluation.intervals import Scored
from ssamba.evaluation.neighbours import TEMPERATURE
from ssamba.evaluation.probes import Probe, TrainingPart, linear_probe, neighbour_probe, weighted_probe
from ssamba.hub import SsambaModel
from ssamba.inference.windows import load
from ssamba.progress import progress_bar
from ssamba.protocols.clips import (
    Features,
    LabelledShards,
    Part,
    check_classes,
    check_memory,
    choose_rows,
    extract,
    names_of,
    read_labelled,
)


@dataclass(frozen=True)
class ProbeSettings:
    """The settings of `ssamba probe`; see its help.

    Attributes:
        layers: None for all; of "weighted" always all.
        folds: of `fold_by`; ("all",) or names.
        k: None: chosen.
    """

    model: str
    shards: Sequence[str]
    label: str
    protocol: str
    test: Sequence[str] = ()
    loss: str = "cross_entropy"
    fraction: float = 1.0
    seeds: int = 1
    fold_by: str | None = None
    folds: Sequence[str] = ("all",)
    layer: int | None = -1
    pooling: str | None = None
    segments: int | None = None
    k: int | None = None
    temperature: float = TEMPERATURE
    baseline: bool = True
    group_by: str | None = None
    limit: int | None = None
    batch_size: int = 16
    device: str = "auto"


class Row(NamedTuple):
    """A layer, or a kind of log-mel statistics, in one part: what was chosen, and its score on held-back clips."""

    name: str
    probe: Probe


@dataclass(frozen=True)
class Outcome:
    """Of one part: all layers that were tried, the one that was chosen, its predictions for the clips that are scored,
    and the same of the baseline, None where there is none."""

    part: Part
    rows: Sequence[Row]
    chosen: Row
    predictions: Predictions
    baseline: Row | None
    baseline_predictions: Predictions | None

    @property
    def scored(self) -> Scored:
        return Scored(self.predictions, self.part.fold)

    @property
    def scored_baseline(self) -> Scored:
        assert self.baseline_predictions is not None
        return Scored(self.baseline_predictions, self.part.fold)


@dataclass(frozen=True)
class ProbeResult:
    """All parts, and what they have in common: class names, the pool, the groups of clips by their keys (None: no
    groups), and what the shards hold, as in a run's record."""

    settings: ProbeSettings
    names: Sequence[str]
    pooling: str
    outcomes: Sequence[Outcome]
    groups: Mapping[str, str] | None
    data: Mapping[str, Any]


def run_probe(settings: ProbeSettings) -> ProbeResult:
    """Run a probe.

    Raises:
        UserError: whatever is wrong with it, before any recording is decoded.
    """
    model = load(settings.model, settings.device)
    cache = ShardCache(DataConfig().cache_bytes)
    multi_label = settings.loss == "bce"
    train = _labelled(settings.shards, "SHARDS", model, settings, cache)
    test = _labelled(settings.test, "--test", model, settings, cache) if settings.test else train
    if settings.test and test.shards.fingerprint == train.shards.fingerprint:
        raise UserError("SHARDS and --test have the same fingerprint: they are the same recordings; expected others")
    parts = _parts(settings, train, test, cache)
    check_classes(parts, train, test, settings.fraction)
    layers = _layers(model, settings)
    pool = model.pool(settings.pooling, settings.segments)
    rows = sorted({row for part in parts for row in (*part.train, *(() if settings.test else part.test))})
    held_out = sorted({row for part in parts for row in part.test}) if settings.test else []
    check_memory(len(rows) + len(held_out), len(layers), pool.size)
    names = sorted({name for part in parts for name in names_of(train, part.train)})
    groups = _groups(settings, test, cache)
    labels = Labels(settings.label, names, multi_label)

    def features(of: ShardSet, some: Sequence[int], desc: str) -> Features:
        return extract(
            model, of, some, labels, cache, layers=layers, pool=pool, batch_size=settings.batch_size, desc=desc
        )

    learned = features(train.shards, rows, "features")
    scored = features(test.shards, held_out, "test features") if settings.test else learned
    fit = _protocol(settings)
    outcomes = []
    with progress_bar(len(parts), "fit", settings.protocol) as bar:
        for part in parts:
            outcomes.append(_outcome(part, learned, scored, len(names), fit, settings))
            bar.update()
    splits = {"train": train.shards} | ({"test": test.shards} if settings.test else {})
    return ProbeResult(settings, names, pool.name, outcomes, groups, fingerprints(splits))


def _labelled(
    sources: Sequence[str], option: str, model: SsambaModel, settings: ProbeSettings, cache: ShardCache
) -> LabelledShards:
    shards = find_shards(sources)
    rate = model.feature_extractor.sampling_rate
    if shards.sampling_rate != rate:
        raise UserError(f"{option} holds audio at {shards.sampling_rate} Hz; the model hears {rate} Hz")
    _check_unseen(shards, option, model, settings.model)
    return read_labelled(shards, settings.label, settings.loss == "bce", "--label", cache)


def _check_unseen(shards: ShardSet, option: str, model: SsambaModel, place: str) -> None:
    """UserError for shards whose labels the model was trained on, by the record of its run."""
    if model.classifier is None or model.record is None:
        return
    for split in ("train", "validation"):
        if model.record["data"].get(split, {}).get("fingerprint") == shards.fingerprint:
            raise UserError(
                f"{option} is what {place} was fine-tuned on (data.{split} of its run.json has the same fingerprint), "
                "so that its features have learned the labels; expected a pretrained model, or other recordings"
            )


def _parts(settings: ProbeSettings, train: LabelledShards, test: LabelledShards, cache: ShardCache) -> list[Part]:
    everything, held_out = (_limited(one, settings.limit) for one in (train, test))
    names: dict[int, str] | None = None
    if settings.fold_by is None:
        folds = {"": (everything, held_out)}
    else:
        of = read_labelled(train.shards, settings.fold_by, False, "--fold-by", cache)
        names = {row: _name(of, row) for row in everything}
        by, chosen = f"--fold-by {settings.fold_by}", settings.folds
        if "all" in chosen:
            chosen = all_folds(names, train.shards.label_list(settings.fold_by), by, "--folds NAME ...")
        folds = {fold: in_fold(names, fold, by) for fold in chosen}
    return [
        Part(seed, fold, choose_rows(train, learned, settings.fraction, seed), scored, names)
        for fold, (learned, scored) in folds.items()
        for seed in range(settings.seeds)
    ]


def _name(labelled: LabelledShards, row: int) -> str:
    (name,) = names_of(labelled, [row])
    return name


def _limited(labelled: LabelledShards, limit: int | None) -> list[int]:
    rows = sorted(labelled.labels)
    return rows if limit is None or len(rows) <= limit else choose_rows(labelled, rows, limit / len(rows), 0)


def _layers(model: SsambaModel, settings: ProbeSettings) -> list[int]:
    if settings.layer is None or settings.protocol == "weighted":
        return list(range(model.num_hidden_states))
    return [model.layer_number(settings.layer)]


def _groups(settings: ProbeSettings, test: LabelledShards, cache: ShardCache) -> dict[str, str] | None:
    if settings.group_by is None:
        return None
    of = read_labelled(test.shards, settings.group_by, False, "--group-by", cache)
    return {name: _name(of, row) for row, (name, _) in of.labels.items()}


Fit = Callable[[Tensor, TrainingPart], Probe]


def _protocol(settings: ProbeSettings) -> Fit:
    if settings.protocol == "knn":
        return lambda x, part: neighbour_probe(x, part, settings.k, settings.temperature)
    return linear_probe


def _outcome(
    part: Part, learned: Features, scored: Features, classes: int, fit: Fit, settings: ProbeSettings
) -> Outcome:
    inside, outside = learned.places(part.train), scored.places(part.test)
    groups = None if part.groups is None else [part.groups[learned.rows[place]] for place in inside.tolist()]
    training = TrainingPart.of(learned.labels[inside], classes, part.seed, groups)
    keys, labels = [scored.keys[place] for place in outside.tolist()], scored.labels[outside]

    def chosen(rows: Sequence[Row], features: Mapping[str, Tensor]) -> tuple[Row, Predictions]:
        best = max(rows, key=lambda row: row.probe.score)
        return best, Predictions(keys, best.probe.logits(features[best.name][outside]), labels)

    if settings.protocol == "weighted":
        layers = {"weighted sum": torch.stack(list(learned.layers.values()), 1)}
        out = {"weighted sum": torch.stack(list(scored.layers.values()), 1)}
        rows = [Row(name, weighted_probe(x[inside], training)) for name, x in layers.items()]
    else:
        layers, out = ({f"layer {layer}": x for layer, x in one.layers.items()} for one in (learned, scored))
        rows = [Row(name, fit(x[inside], training)) for name, x in layers.items()]
    best, predictions = chosen(rows, out)
    if not settings.baseline:
        return Outcome(part, rows, best, predictions, None, None)
    statistics = [Row(name, fit(learned.baseline[name][inside], training)) for name in BASELINES]
    simple, theirs = chosen(statistics, scored.baseline)
    return Outcome(part, rows, best, predictions, simple, theirs)
