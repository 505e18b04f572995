"""Groups of runs with their scores, their costs and which of their differences are significant."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ssamba.comparison.bootstrap import Difference, Sample, Scores, difference, holm, resample, score_interval
from ssamba.comparison.conditions import Variants, describe, sort_runs, value_text
from ssamba.comparison.costs import Costs, mean_costs, run_costs
from ssamba.comparison.runs import Examples, Run, read_examples
from ssamba.errors import UserError
from ssamba.evaluation.intervals import LEVEL, Interval, Scored, mean_intervals, resamples
from ssamba.progress import progress_bar

SEED = 0
"""Of the resamples."""
_NAMED_BY_VALUE = ("model.encoder", "model.size", "task.pooling", "trainer.precision")


@dataclass(frozen=True)
class Group:
    """Runs that are seeds and folds of one another.

    Args:
        letter: A, B, ..., its name in tables.
        label: what distinguishes it from the others, in words.
        values: of the keys that differ between groups.
        seeds, folds: how many.
        examples: how many its runs are scored on in all folds; None where that is not known.
        scores: metric -> mean over seeds and folds; without ends where there is nothing to draw.
        draws: for differences; None without scores of examples.
        digests: fold -> what it was scored on.
    """

    letter: str
    label: str
    runs: Sequence[Run]
    values: Mapping[str, Any]
    seeds: int
    folds: int
    examples: int | None
    scores: Mapping[str, Interval]
    costs: Costs
    draws: Scores | None
    digests: Mapping[str, str]


@dataclass(frozen=True)
class Pair:
    """Two groups, their difference, and its p value corrected for all pairs; NaN of what could not be tested."""

    first: Group
    second: Group
    difference: Difference
    corrected: float

    @property
    def significant(self) -> bool:
        return self.corrected <= 1 - LEVEL

    @property
    def single(self) -> bool:
        """Whether one of the groups is a single run, so that the variance over seeds is not known."""
        return self.first.seeds == 1 or self.second.seeds == 1


@dataclass(frozen=True)
class Comparison:
    """What was compared: by which metric, the groups, the keys that tell them apart (treatments, and conditions that
    were admitted), every pair of groups, and notes, in sentences."""

    metric: str
    groups: Sequence[Group]
    variants: Variants
    pairs: Sequence[Pair]
    notes: Sequence[str]

    @property
    def lower_is_better(self) -> bool:
        return self.metric == "CER"

    @property
    def ranked(self) -> list[Group]:
        """The groups, the best score first."""
        sign = 1 if self.lower_is_better else -1
        return sorted(self.groups, key=lambda group: sign * group.scores[self.metric].value)

    @property
    def best(self) -> Group:
        return self.ranked[0]


def compare_runs(runs: Sequence[Run], allowed: Sequence[str] = (), passed_over: Sequence[str] = ()) -> Comparison:
    """Sort runs into groups, score them and test every pair.

    Args:
        allowed: names of conditions, or of kinds of them, that may differ.
        passed_over: what was found and is not compared, for the notes.

    Raises:
        UserError: as `sort_runs`, one run alone, or scores that are damaged.
    """
    if len(runs) < 2:
        what = f"{runs[0].place} is one run alone" if runs else "there is nothing to compare"
        raise UserError(
            "; ".join([what, *(f"passed over are {one}" for one in passed_over), "expected two runs or more"])
        )
    fingerprints = all(run.record.get("data") for run in runs)
    described = [describe(run.place, run.recipe, run.record, fingerprints) for run in runs]
    examples: list[Examples | None] = []
    with progress_bar(len(runs), "run", "reading") as bar:
        for run in runs:
            examples.append(read_examples(run) if run.scored else None)
            bar.update()
    variants = sort_runs(described, allowed, [None if one is None else one.digest for one in examples])
    draws = _draws(runs, [one.fold for one in described], variants, examples)
    known: dict[str, int] = {}
    groups = []
    for index, (members, values) in enumerate(zip(variants.members, variants.values, strict=True)):
        own = [runs[place] for place in members]
        places = {described[place].fold: place for place in members}
        by_fold = {fold: one for fold, place in places.items() if (one := examples[place]) is not None}
        whole = draws[index] if len(by_fold) == len(places) else None
        groups.append(
            Group(
                _letter(index),
                group_label(values, variants.keys),
                own,
                values,
                max(sum(described[place].fold == fold for place in members) for fold in places),
                len(places),
                sum(len(one.keys) for one in by_fold.values()) if whole else None,
                _scores(own, [described[place].fold for place in members], by_fold, whole),
                mean_costs([run_costs(run, known) for run in own]),
                whole,
                {fold: one.digest for fold, one in by_fold.items()},
            )
        )
    pairs = _pairs(groups)
    return Comparison(runs[0].metric, groups, variants, pairs, _notes(groups, variants, pairs, passed_over))


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"G{index + 1}"


def group_label(values: Mapping[str, Any], keys: Sequence[str]) -> str:
    """What the keys that differ are in a group: "ssamba, pretrained, learning_rate=0.001"."""
    parts = []
    for key in keys:
        value, names = values.get(key), key.split(".")
        name = names[-2] if names[-1] == "name" else names[-1]
        if name == "pretrained":
            parts.append(start_text(value))
        elif key in _NAMED_BY_VALUE:
            parts.append(str(value))
        else:
            name = f"pretraining {name}" if key.startswith("pretraining.") else name
            parts.append(f"{name}={value_text(value)}")
    return ", ".join(parts)


def start_text(pretrained: str | None) -> str:
    """What a group's weights start from, by the value of its model.pretrained."""
    if pretrained is None:
        return "from scratch"
    return {"from pretrain": "pretrained", "from finetune": "fine-tuned before"}.get(pretrained, f"from {pretrained}")


def _draws(
    runs: Sequence[Run], folds: Sequence[str], variants: Variants, examples: Sequence[Examples | None]
) -> list[dict[str, Any]]:
    """Of each group its runs' scores in resamples, by fold: the same resamples for all groups on the same examples."""
    ranked = sum(len(one.keys) for one in examples if one) if runs[0].metric == "mAP" else 0
    classes = len(runs[0].predictions()[1]) if ranked else 0
    draws: list[dict[str, Any]] = [{} for _ in variants.members]
    for index, fold in enumerate(sorted(set(folds))):
        sharing: dict[str, list[tuple[int, list[int]]]] = {}
        for group, members in enumerate(variants.members):
            own = [place for place in members if folds[place] == fold]
            digests = {one.digest for place in own if (one := examples[place])}
            if own and all(examples[place] for place in own) and len(digests) == 1:
                sharing.setdefault(digests.pop(), []).append((group, own))
        for same in sharing.values():
            names = {place: _pair(runs, place, own) for _, own in same for place in own}
            known = {place: one for place in names if (one := examples[place])}
            # Of groups by several labels, which --allow intervals admits, the largest.
            units = min((one.units for one in known.values()), key=lambda some: len(set(some)))
            samples = [[Sample(names[place], known[place].score) for place in own] for _, own in same]
            drawn = resample(samples, units, resamples(ranked * classes), SEED + index)
            for (group, _), scores in zip(same, drawn, strict=True):
                draws[group][fold] = scores
    return draws


def _pair(runs: Sequence[Run], place: int, own: Sequence[int]) -> str:
    """The name of a run within its group, as `Sample` has it: by its seed, where that draws the training
    recordings whose labels are used."""
    seeds = [runs[one].recipe["seed"] for one in own]
    if runs[place].recipe["data.label_fraction"] < 1 and len(set(seeds)) == len(seeds):
        return f"seed {runs[place].recipe['seed']:010d}"
    return f"run {place:06d}"


def _scores(
    runs: Sequence[Run], folds: Sequence[str], examples: Mapping[str, Examples], draws: Scores | None
) -> dict[str, Interval]:
    """As the runs' own reports have them."""
    metric = runs[0].metric
    if draws is None:  # of logs, which have the scores alone
        tested = [run.record["test"] for run in runs]
        names = [name for name in (metric, "balanced_accuracy") if all(one.get(name) is not None for one in tested)]
        means = {name: sum(one[name] for one in tested) / len(tested) for name in names}
        return {name: Interval(mean, math.nan, math.nan) for name, mean in means.items()}
    if metric == "CER":
        return {metric: score_interval(draws, SEED)}
    units = {key: unit for one in examples.values() for key, unit in zip(one.keys, one.units, strict=True)}
    drawn = None if all(key == unit for key, unit in units.items()) else units
    scored = [Scored(run.predictions()[0], fold) for run, fold in zip(runs, folds, strict=True)]
    return mean_intervals(scored, drawn, SEED)


def _pairs(groups: Sequence[Group]) -> list[Pair]:
    nothing = Difference(math.nan, math.nan, math.nan, math.nan)
    pairs = []
    for first, second in itertools.combinations(groups, 2):
        known = first.draws is not None and second.draws is not None and first.digests == second.digests
        pairs.append((first, second, difference(first.draws or {}, second.draws or {}) if known else nothing))
    corrected = holm([one.p for _, _, one in pairs])
    return [Pair(*parts, p) for parts, p in zip(pairs, corrected, strict=True)]


def _notes(groups: Sequence[Group], variants: Variants, pairs: Sequence[Pair], passed_over: Sequence[str]) -> list[str]:
    notes = [f"Passed over: {', '.join(passed_over)}."] if passed_over else []
    if variants.admitted:
        notes.append(
            f"These groups are no equals: they differ in {', '.join(variants.admitted)}, which --allow admitted."
        )
    if single := [group.letter for group in groups if group.seeds == 1]:
        notes.append(
            f"{', '.join(single)}: one seed each. Whether such a group is better is said of its run on other examples; "
            "what other seeds would say is not known."
        )
    if any(math.isnan(pair.difference.p) for pair in pairs):
        notes.append("Not tested: pairs without scores of the same examples, or of one group of recordings alone.")
    unknown = [group.letter for group in groups if _start_unknown(group)]
    if unknown:
        notes.append(f"{', '.join(unknown)}: of the pretraining nothing is known, neither data nor budget.")
    machines = {_machine(run) for group in groups for run in group.runs}
    if len(machines) > 1:
        notes.append(f"Speed, memory and time are of different machines: {'; '.join(sorted(machines))}.")
    if len(commits := {str(run.record.get("git_commit")) for group in groups for run in group.runs}) > 1:
        notes.append(f"The runs are of {len(commits)} versions of the code.")
    return notes


def _start_unknown(group: Group) -> bool:
    return any(run.recipe["model.pretrained"] is not None and not run.record.get("origin") for run in group.runs)


def _machine(run: Run) -> str:
    machine = run.record.get("hardware")
    return f"{machine['processor']}, {', '.join(machine['gpus']) or 'no GPU'}" if machine else "not known"
