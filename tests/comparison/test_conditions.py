"""Which runs are seeds of one another, which may not stand side by side, and what is said of them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from ssamba.comparison.compare import group_label
from ssamba.comparison.conditions import (
    CONDITIONS,
    MACHINE,
    TASK,
    Described,
    Variants,
    check_names,
    describe,
    kind_of,
    sort_runs,
)
from ssamba.config import FinetuneRecipe, PretrainRecipe, flat_recipe
from ssamba.errors import UserError

ROOT = Path(__file__).parents[2]
KEYS = {**flat_recipe(PretrainRecipe(run_dir="run")), **flat_recipe(FinetuneRecipe(run_dir="run"))}


def described(place: str, origin: Any = None, data: str = "d", **changes: Any) -> Described:
    """A run whose recipe has these keys, with _ in the place of the dot."""
    recipe = flat_recipe(FinetuneRecipe(run_dir=place))
    for name, value in changes.items():
        key = next(key for key in recipe if key.replace(".", "_") == name)
        recipe[key] = value
    return describe(place, recipe, {"data": {"train": {"fingerprint": data * 64}}, "origin": origin})


def pretraining(seed: int = 0, data: str = "p", **changes: Any) -> dict[str, Any]:
    recipe = flat_recipe(PretrainRecipe(run_dir="pretrained", seed=seed))
    for name, value in changes.items():
        recipe[next(key for key in recipe if key.replace(".", "_") == name)] = value
    return {
        "recipe": recipe,
        "seed": seed,
        "steps": 4,
        "training_seconds": 1.0,
        "parameters": 1,
        "data": {"train": {"fingerprint": data * 64}},
    }


def sort(*runs: Described, allowed: tuple[str, ...] = (), examples: tuple[str | None, ...] | None = None) -> Variants:
    return sort_runs(runs, allowed, examples or ("same",) * len(runs))


def refusal(*runs: Described, **options: Any) -> str:
    with pytest.raises(UserError) as refused:
        sort(*runs, **options)
    return str(refused.value)


# Keys


def test_every_key_is_of_a_kind_and_the_documentation_has_it() -> None:
    """A new key is a treatment until somebody says otherwise, and whoever adds one is asked here."""
    of = {kind: {key for key in KEYS if kind_of(key) == kind} for kind in (*CONDITIONS, "task", "machine", None)}
    assert of["task"] == set(TASK)
    assert {key for kind in CONDITIONS for key in of[kind]} == {key for keys in CONDITIONS.values() for key in keys}
    assert {key.partition(".")[0] for key in of[None]} == {
        "audio",
        "model",
        "data",
        "task",
        "augmentation",
        "optimizer",
        "trainer",
        "objective",
        "mask",
        "evaluation",
    }
    text = (ROOT / "docs" / "comparing.md").read_text()
    for kind, keys in CONDITIONS.items():
        (row,) = re.findall(rf"^\| `{kind}` \|.*$", text, re.MULTILINE)
        assert set(re.findall(r"`([a-z_]+\.[a-z_]+)`", row)) == set(keys)
    for key in (*TASK, *MACHINE):
        assert f"`{key}`" in text


def test_what_is_seeds_of_one_another() -> None:
    """Whatever a machine decides, and statistics that each seed measured for itself."""
    runs = [described(f"run-{seed}", seed=seed, audio_mean=-3.6 - seed / 100, audio_std=3.7) for seed in range(3)]
    machine = {"trainer_devices": 4, "data_num_workers": 3, "wandb_mode": "offline", "model_scan_backend": "cpu"}
    other = described("other", seed=7, **machine, data_train=["elsewhere"], audio_mean=-3.6, audio_std=3.7)
    wide = described("wide", model_size="base", audio_mean=-3.6, audio_std=3.7)
    found = sort(*runs, other, wide)
    assert [list(group) for group in found.members] == [[0, 1, 2, 3], [4]]
    assert found.treatments == ["model.size"] and found.admitted == []
    assert [one["model.size"] for one in found.values] == ["tiny", "base"]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"data": "e"}, f"data.train (data): fingerprint {'d' * 16} in first; fingerprint {'e' * 16} in second"),
        ({"data_label_fraction": 0.1}, "data.label_fraction (data): 1 in first; 0.1 in second"),
        ({"trainer_max_steps": 20}, "trainer.max_steps (budget): 10000 in first; 20 in second"),
        ({"data_batch_size": 8}, "data.batch_size (budget): 32 in first; 8 in second"),
        ({"audio_max_length": 512}, "audio.max_length (budget)"),
        ({"audio_mean": -3.0, "audio_std": 3.7}, "audio.mean (statistics): -4 in first; -3 in second"),
        ({"evaluation_group_by": "speaker"}, "evaluation.group_by (intervals): null in first; speaker in second"),
    ],
)
def test_a_condition_that_differs_is_told_and_can_be_admitted(change: dict[str, Any], kind: str) -> None:
    first = described("first", audio_mean=-4.0, audio_std=3.7)
    second = described("second", **{"audio_mean": -4.0, "audio_std": 3.7, "model_encoder": "ssast", **change})
    said = refusal(first, second)
    name = re.search(r"\((\w+)\)", kind)[1]  # type: ignore[index]
    assert said.startswith("the runs cannot be put side by side as equals; they differ in:\n  ") and kind in said
    assert said.endswith(f"--allow {name} puts them into one table all the same, with a column for each")
    key = kind.partition(" ")[0]
    for allowed in (name, key):
        found = sort(first, second, allowed=(allowed,))
        assert found.admitted[0] == key and found.treatments == ["model.encoder"]
        assert found.values[0][key] != found.values[1][key]
    # Alone it makes groups, too.
    alone = sort(first, described("second", **{"audio_mean": -4.0, "audio_std": 3.7, **change}), allowed=(name,))
    assert len(alone.members) == 2 and not alone.treatments


def test_all_that_differs_is_told_at_once() -> None:
    runs = [described(f"run {number}", seed=number, trainer_max_steps=10 if number else 20) for number in range(7)]
    said = refusal(*runs, described("x", data_batch_size=8))
    assert (
        "  trainer.max_steps (budget): 20 in run 0; 10 in run 1, run 2, run 3, run 4 and 2 more; 10000 in x\n" in said
    )
    assert "  data.batch_size (budget): 32 in run 0, run 1, run 2, run 3 and 3 more; 8 in x\n" in said


def test_runs_of_different_tasks_are_not_compared() -> None:
    said = refusal(described("first"), described("second", task_label="speaker"), allowed=("data", "budget"))
    assert said == "runs of different tasks cannot be compared:\n  task.label (task): label in first; speaker in second"


def test_other_examples_are_other_data() -> None:
    runs = described("first"), described("second", model_size="base")
    said = refusal(*runs, examples=("aaaaaaaaaa", "bbbbbbbbbb"))
    assert (
        "data.test (data): " in said and "examples aaaaaaaa in first" in said and "examples bbbbbbbb in second" in said
    )
    assert len(sort(*runs, examples=("a", None)).members) == 2  # of a log nothing is known


def test_one_seed_twice_is_no_second_seed() -> None:
    said = refusal(described("a"), described("b", trainer_devices=2), described("c", model_size="base"))
    assert said.startswith("a and b are runs of one recipe and one seed, 0: a copy or a repetition")


def test_seeds_alone_are_nothing_to_compare() -> None:
    said = refusal(*(described(str(seed), seed=seed) for seed in range(3)))
    assert "the 3 runs are seeds of one another, and there is nothing to compare them with" in said


def test_groups_have_the_same_folds() -> None:
    def fold(name: str, size: str, seed: int = 0) -> Described:
        return described(f"{size}-{name}-{seed}", data_fold_by="speaker", data_fold=name, model_size=size, seed=seed)

    first, second = (
        [fold(name, "tiny") for name in "ab"],
        [fold(name, "base", seed) for name in "ab" for seed in (0, 1)],
    )
    found = sort(*first, *second, examples=("a", "b", "a", "a", "b", "b"))
    assert [list(group) for group in found.members] == [[0, 1], [2, 3, 4, 5]] and found.keys == ["model.size"]
    said = refusal(*first, *second[:2], examples=("a", "b", "a", "a"))
    assert "data.fold (split): a, b in tiny-a-0; a in base-a-0" in said
    found = sort(*first, *second[:2], examples=("a", "b", "a", "a"), allowed=("split",))
    assert found.admitted == ["data.fold"] and [one["data.fold"] for one in found.values] == ["a, b", "a"]


def test_a_run_that_knew_no_order_of_patches_has_the_originals() -> None:
    runs = [described("old", model_patch_order=None), described("new", seed=1, model_patch_order="frequency")]
    found = sort(*runs, described("time", model_patch_order="time"))
    assert [list(group) for group in found.members] == [[0, 1], [2]] and found.keys == ["model.patch_order"]


# Pretraining


def test_pretrained_runs_are_told_apart_by_their_pretraining() -> None:
    def run(place: str, origin: Any = None, **changes: Any) -> Described:
        return described(place, origin, model_pretrained=None if origin is None else f"runs/{place}", **changes)

    scratch = [run(f"scratch-{seed}", seed=seed) for seed in (0, 1)]
    # Each from a pretraining of a seed of its own: seeds of one another.
    joint = [run(f"joint-{seed}", pretraining(seed), seed=seed) for seed in (0, 1)]
    found = sort(*scratch, *joint)
    assert [list(group) for group in found.members] == [[0, 1], [2, 3]] and found.keys == ["model.pretrained"]
    assert [group_label(one, found.keys) for one in found.values] == ["from scratch", "pretrained"]
    alone = run("alone", pretraining(mask_kind="random", optimizer_learning_rate=1e-3))
    found = sort(*scratch, *joint, alone)
    assert found.keys == ["model.pretrained", "pretraining.mask.kind", "pretraining.optimizer.learning_rate"]
    label = group_label(found.values[2], found.keys)
    assert label == "pretrained, pretraining kind=random, pretraining learning_rate=0.001"
    # What the encoder is, its own key says.
    large = run("large", pretraining(model_size="base"), model_size="base")
    assert sort(*joint, large).keys == ["model.size"]


def test_pretraining_needs_equal_data_and_budget_where_it_is_known() -> None:
    def run(place: str, origin: Any, **changes: Any) -> Described:
        return described(place, origin, model_pretrained=place, **changes)

    first = run("first", pretraining())
    more = run("more", pretraining(trainer_max_steps=7, data="q"), model_encoder="ssast")
    said = refusal(first, more)
    assert "pretraining.trainer.max_steps (pretraining): 10000 in first; 7 in more" in said
    assert "pretraining.data.train (pretraining): fingerprint pppppppppppppppp in first" in said
    assert "--allow pretraining puts" in said
    admitted = sort(first, more, allowed=("pretraining.data.train", "pretraining.trainer.max_steps"))
    assert admitted.admitted == ["pretraining.data.train", "pretraining.trainer.max_steps"]
    # Those of the run itself are no reason to admit them.
    assert "pretraining.trainer.max_steps" in refusal(first, more, allowed=("budget", "data"))
    unknown = run("unknown", None, model_encoder="ssast")
    found = sort(first, unknown)
    assert "model.pretrained" in found.keys and found.values[1]["model.pretrained"] == "unknown"


def test_data_without_fingerprints_are_known_by_their_places() -> None:
    recipe = flat_recipe(FinetuneRecipe(run_dir="log"))
    recipe["data.train"] = ["https://host/train?key=secret"]
    one = describe("log", recipe, {"data": {}, "origin": None}, fingerprints=False)
    assert one.conditions["data.train"] == "https://host/train?key=***"
    assert json.dumps(replace(one, place="b").conditions)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("model.encoder", "is a treatment, which may differ as it is"),
        ("seed", "changes nothing of what is learned"),
        ("wandb.mode", "changes nothing of what is learned"),
        ("task.label", "is of the task, and scores of two tasks cannot be compared"),
        ("steps", "is no condition"),
        ("runs/a", "is no condition"),
        ("pretraining.model.encoder", "is a treatment"),
    ],
)
def test_names_that_admit_nothing(name: str, why: str) -> None:
    with pytest.raises(UserError) as refused:
        check_names(["budget", name])
    assert f"--allow {name} {why}" in str(refused.value) and "the runs stand before --allow" in str(refused.value)


def test_names_of_conditions() -> None:
    check_names(
        [*CONDITIONS, "pretraining", "pretraining.data.train", *(key for keys in CONDITIONS.values() for key in keys)]
    )
