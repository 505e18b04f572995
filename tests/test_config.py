"""A recipe is either right, or all that is wrong with it is told at once."""

import copy
import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ssamba.config import (
    AUTHORS_FORMATS,
    MODEL_SIZES,
    PATCH_ORDERS,
    SCAN_BACKENDS,
    SCAN_LAYOUTS,
    FinetuneRecipe,
    PathText,
    PretrainRecipe,
    Recipe,
    SourceText,
    TaskConfig,
    TeacherText,
    differences,
    load_recipe,
    save_recipe,
)
from ssamba.data.shards.finding import find_shards
from ssamba.errors import UserError

PRETRAIN: dict[str, Any] = {"task_type": "pretrain", "run_dir": "run", "data": {"train": "shards/train"}}
FINETUNE: dict[str, Any] = {**PRETRAIN, "task_type": "finetune"}


def write(folder: Path, recipe: Any) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(recipe if isinstance(recipe, str) else yaml.safe_dump(recipe))
    return path


def complaints(folder: Path, recipe: Any, *overrides: str, kind: str | None = None) -> list[str]:
    with pytest.raises(UserError) as caught:
        load_recipe(write(folder, recipe), overrides, kind)
    return [line.strip() for line in str(caught.value).splitlines()]


def absolute(recipe: Recipe) -> Recipe:
    """As it is when it was saved from this working folder."""
    placed = copy.deepcopy(recipe)
    placed.run_dir = os.path.abspath(recipe.run_dir)
    for name in ("train", "validation", "test"):
        setattr(placed.data, name, [os.path.abspath(source) for source in getattr(recipe.data, name)])
    return placed


def test_defaults_are_filled_in_and_values_are_typed(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {**PRETRAIN, "audio": {"mean": -4, "std": 4.5}, "seed": 3}))
    assert isinstance(recipe, PretrainRecipe)
    assert (recipe.seed, recipe.audio.mean, recipe.audio.std, recipe.audio.max_length) == (3, -4.0, 4.5, 1024)
    assert isinstance(recipe.audio.mean, float)
    assert recipe.data.train == ["shards/train"]
    assert recipe.objective.parts.weights == {"contrastive": 1.0, "reconstruction": 10.0}


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, {**FINETUNE, "trainer": {"max_steps": 7}, "model": {"pretrained": "somewhere"}})
    words = [
        "trainer.max_steps=9",
        "model.pretrained=null",
        "data.train=[a,b]",
        "trainer.precision=32",
        "optimizer.learning_rate=1e-3",
        "task.freeze_encoder=true",
        "run_dir=runs/a=b",
    ]
    recipe = load_recipe(path, words)
    assert isinstance(recipe, FinetuneRecipe)
    assert (recipe.trainer.max_steps, recipe.model.pretrained, recipe.data.train) == (9, None, ["a", "b"])
    assert (recipe.trainer.precision, recipe.optimizer.learning_rate) == ("32", 1e-3)
    assert recipe.task.freeze_encoder is True
    assert recipe.run_dir == "runs/a=b"


@pytest.mark.filterwarnings("error")
def test_a_whole_number_stands_for_a_float_without_a_warning(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, {**FINETUNE, "data": {"train": "a", "max_bad_fraction": 1}}), ["run_dir=7"])
    assert (recipe.data.max_bad_fraction, recipe.run_dir) == (1.0, "7")


def test_every_complaint_comes_at_once(tmp_path: Path) -> None:
    recipe = {
        "task_type": "finetune",
        "run_dir": "run",
        "data": {"train": "a", "batch_size": "many", "batchsize": 3},
        "model": {"encoder": "perceiver"},
        "trainer": {"precision": "fp8"},
        "optimiser": {"learning_rate": 1},
    }
    first, *rest = complaints(tmp_path, recipe, "augmentation.mixup=1.5", "task.loss=mse")
    assert str(tmp_path / "recipe.yaml") in first
    assert {line.split()[0] for line in rest} == {
        "data.batch_size",
        "data.batchsize",
        "model.encoder",
        "trainer.precision",
        "optimiser",
        "augmentation.mixup",
        "task.loss",
    }


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.maxsteps=3", "did you mean trainer.max_steps?"),
        ("optimizer.lerning_rate=1", "did you mean optimizer.learning_rate?"),
        ("triner.max_steps=3", "did you mean trainer?"),
        ("data.zzz=3", "known here: train, weights, order, validation, test, batch_size"),
        ("augmentation.mixup=0.5", "is no key of a recipe"),
    ],
)
def test_a_misspelt_key_is_told_with_what_it_may_mean(tmp_path: Path, override: str, said: str) -> None:
    (complaint,) = complaints(tmp_path, PRETRAIN, override)[1:]
    assert complaint.startswith(override.split("=")[0].split(".")[0])
    assert said in complaint and "command line" in complaint


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trainer.max_steps=soon", "trainer.max_steps (command line) is 'soon'; expected a whole number in decimal"),
        ("trainer.max_steps=2.5", "is '2.5'; expected a whole number in decimal digits"),
        ("trainer.max_steps=0", "trainer.max_steps is 0; expected at least 1"),
        ("optimizer.learning_rate=-1", "optimizer.learning_rate is -1.0; expected at least 0"),
        ("optimizer.learning_rate=.nan", "optimizer.learning_rate (command line) is '.nan'; expected a finite number"),
        ("optimizer.final_fraction=2", "expected at least 0 and at most 1"),
        ("optimizer.schedule=step", "'step'; expected one of cosine, plateau, constant"),
        ("data.max_bad_fraction=1.1", "expected at least 0 and at most 1"),
        ("data.cache_gigabytes=0", "data.cache_gigabytes is 0.0; expected at least 1e-09 and at most"),
        ("data.weights=[1,2]", "data.weights is [1.0, 2.0]; expected 1 numbers above 0 and at most 1000000, one"),
        ("data.weights=[0]", "data.weights is [0.0]; expected 1 numbers above 0 and at most 1000000, one"),
        ("data.short=loop", "'loop'; expected one of pad, repeat, pack"),
        ("data.train=null", "data.train is empty; expected the folder of a training split"),
        ("data.label_fraction=0", "data.label_fraction is 0.0; expected more than 0 and at most 1"),
        ("data.num_workers=-1", "data.num_workers is -1; expected at least 0"),
        ("model.encoder=rnn", "'rnn'; expected one of ssamba, ssast, aum, conformer, bilstm, ssd"),
        ("model.size=huge", "'huge'; expected one of nano, tiny, small, base for encoder ssamba"),
        ("model.size=large", "'large'; expected one of nano, tiny, small, base for encoder ssamba"),
        ("model.scan_layout=bi", "model.scan_layout is 'bi'; expected one of fo_fo, fo_bi, bi_bi"),
        ("model.patch_order=rows", "model.patch_order is 'rows'; expected one of frequency, time"),
        ("model.residual=no", "model.residual is 'no'; expected one of plain, doubling"),
        ("model.scan_backend=gpu", "'gpu'; expected one of auto, reference, torch-chunked"),
        ("model.frequency_stride=0", "model.frequency_stride is 0; expected at least 1"),
        ("audio.mean=-4", "audio.mean and audio.std: give both or neither"),
        ("audio.num_mel_bins=0", "audio.num_mel_bins is 0; expected at least 1"),
        ("audio.max_length=???", "audio.max_length (command line) is '???'; expected a value"),
        ("trainer=3", "trainer (command line) is '3'; expected a section of keys and values"),
        ("trainer.devices=0", "trainer.devices is 0; expected at least 1"),
        ("task.pooling=max", "'max'; expected one of mean, class, rows, statistics, segments, attentive"),
        ("task.segments=0", "task.segments is 0; expected at least 1 and at most 1000"),
        ("task.freeze_encoder=maybe", "task.freeze_encoder (command line) is 'maybe'; expected true or false"),
        ("task.head_norm=maybe", "task.head_norm is 'maybe'; expected one of layer, batch, none"),
        ("augmentation.time_shift=-2", "augmentation.time_shift is -2; expected at least 0"),
        ("wandb.mode=maybe", "'maybe'; expected one of off, online, offline"),
        ("seed=-1", "seed is -1; expected at least 0"),
    ],
)
def test_a_bad_value_is_told_with_what_was_expected(tmp_path: Path, override: str, said: str) -> None:
    (complaint,) = complaints(tmp_path, FINETUNE, override)[1:]
    assert said in complaint


def test_statistics_must_be_positive(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, FINETUNE, "audio.mean=0", "audio.std=0")[1:]
    assert complaint == "audio.std is 0.0; expected at least 0.001 and at most 1000"
    (complaint,) = complaints(tmp_path, FINETUNE, "audio.mean=0", "audio.std=.inf")[1:]
    assert complaint.startswith("audio.std (command line) is '.inf'; expected a finite number")


@pytest.mark.parametrize(
    ("recipe", "overrides", "said"),
    [
        (
            PRETRAIN,
            ["audio.max_length=64", "mask.share=0.99"],
            "mask.share is 0.99, 32 of a clip's 32 patches; expected some, not all",
        ),
        (PRETRAIN, ["model.time_stride=8"], "model.time_stride is 8; pretraining needs patches side by side, 16"),
        (PRETRAIN, ["model.frequency_stride=10"], "frequency_stride is 10; pretraining needs patches side by side, 16"),
        (PRETRAIN, ["optimizer.head_learning_rate=1"], "optimizer.head_learning_rate is for fine-tuning"),
        (PRETRAIN, ["data.label_fraction=0.5"], "data.label_fraction is for fine-tuning"),
        (PRETRAIN, ["optimizer.schedule=plateau"], "watches the validation loss; data.validation is empty"),
        (PRETRAIN, ["data.train=[]"], "data.train is empty"),
        (FINETUNE, ["data.short=pack"], "data.short is pack, which joins recordings of different labels"),
        (FINETUNE, ["model.encode=visible"], "model.encode is visible, which is for pretraining"),
        (
            FINETUNE,
            ["task.head_norm=batch", "data.batch_size=4", "trainer.accumulate=4"],
            "accumulate is 1; expected at",
        ),
        (FINETUNE, ["task.head_norm=batch", "task.loss=ctc"], "task.head_norm is batch, which is of whole clips; task"),
        (FINETUNE, ["audio.max_length=15"], "audio.max_length is 15; a clip must be at least one patch, 16"),
        (FINETUNE, ["audio.num_mel_bins=8"], "audio.num_mel_bins is 8; a clip must be at least one patch, 16"),
    ],
)
def test_sections_are_checked_against_each_other(tmp_path: Path, recipe: Any, overrides: list[str], said: str) -> None:
    (complaint,) = complaints(tmp_path, recipe, *overrides)[1:]
    assert said in complaint


def test_what_pretraining_refuses_fine_tuning_may_do(tmp_path: Path) -> None:
    words = [
        "model.time_stride=8",
        "model.frequency_stride=10",
        "optimizer.head_learning_rate=1",
        "data.label_fraction=0.5",
        "optimizer.schedule=plateau",
        "data.validation=somewhere",
    ]
    recipe = load_recipe(write(tmp_path, FINETUNE), words)
    assert (recipe.model.time_stride, recipe.data.validation) == (8, ["somewhere"])


def test_missing_run_dir_is_told_with_the_rest(tmp_path: Path) -> None:
    found = complaints(tmp_path, {"task_type": "pretrain", "data": {"train": "a"}, "sed": 1})
    assert "run_dir is missing" in found[2] and "did you mean seed?" in found[1]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("run_dir: a\n", "has no task_type; expected one of pretrain, finetune"),
        ("task_type: evaluate\n", "has task_type 'evaluate'; expected one of pretrain, finetune"),
        ("task_type: [pretrain]\n", "expected one of pretrain, finetune"),
        ("- pretrain\n", "is not a mapping"),
        ("task_type: [\n", "cannot be read"),
        ("task_type: pretrain\ntask_type: finetune\n", "duplicate key task_type"),
        ("task_type: pretrain\nrun_dir: ${nowhere}\n", "is '${nowhere}'; expected the value itself: nothing is put in"),
        ("task_type: pretrain\nrun_dir: a\ndata:\n", "data ("),
    ],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str, said: str) -> None:
    assert said in "\n".join(complaints(tmp_path, text))


def test_a_recipe_of_the_other_kind_is_refused(tmp_path: Path) -> None:
    (complaint,) = complaints(tmp_path, PRETRAIN, kind="finetune")
    assert "is a pretrain recipe; expected a finetune recipe" in complaint
    (complaint,) = complaints(tmp_path, FINETUNE, "task_type=pretrain")[1:]
    assert "task_type is 'pretrain' on the command line; the recipe is a finetune recipe" in complaint


@pytest.mark.parametrize(
    ("override", "said"),
    [("trainer.max_steps", "is not key=value"), ("=3", "is not key=value"), ("trainer.max_steps=[1", "cannot be read")],
)
def test_an_override_that_is_none(tmp_path: Path, override: str, said: str) -> None:
    assert said in "\n".join(complaints(tmp_path, FINETUNE, override))


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.yaml does not exist; expected a YAML file"):
        load_recipe(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_a_saved_recipe_reads_back_equal_and_says_everything(tmp_path: Path, kind: str) -> None:
    words = [
        "audio.mean=-4.25",
        "audio.std=4.5",
        "model.fshape=128",
        "model.tshape=2",
        "data.validation=[a,b]",
        "optimizer.learning_rate=2.5e-4",
        "trainer.precision=bf16-mixed",
        "seed=7",
    ]
    recipe = load_recipe(write(tmp_path, {**PRETRAIN, "task_type": kind}), words)
    run = tmp_path / "run"
    run.mkdir()
    save_recipe(recipe, run / "recipe.yaml")
    assert load_recipe(run / "recipe.yaml") == absolute(recipe)
    assert load_recipe(run) == dataclasses.replace(absolute(recipe), run_dir=str(run))
    written = yaml.safe_load((run / "recipe.yaml").read_text())
    for entry in fields(recipe):
        value = getattr(recipe, entry.name)
        assert (
            set(written[entry.name]) == {f.name for f in fields(value)}
            if is_dataclass(value)
            else entry.name in written
        )


def test_the_schema_needs_no_torch() -> None:
    code = "import sys, ssamba.config; sys.exit(any(name in sys.modules for name in ('torch', 'lightning', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_schema_names_the_scans_backends() -> None:
    from ssamba.ops import BACKENDS

    assert set(SCAN_BACKENDS) == set(BACKENDS)


def test_the_schema_names_the_encoders_sizes_layouts_and_orders() -> None:
    from ssamba.models import aum, encoder
    from ssamba.models.convert import families

    assert {name: tuple(sizes) for name, sizes in encoder.SIZES.items()} == MODEL_SIZES
    assert SCAN_LAYOUTS == aum.SCAN_LAYOUTS and AUTHORS_FORMATS == families.FORMATS
    assert PATCH_ORDERS == encoder.PATCH_ORDERS


def test_the_schema_names_the_pool_of_new_classifiers() -> None:
    from ssamba.models import pools

    assert TaskConfig().pooling == pools.DEFAULT_POOLING


@pytest.mark.parametrize(
    ("encoder", "size"), [("aum", "large"), ("aum", "nano"), ("ssast", "base"), ("bilstm", "tiny"), ("ssd", "nano")]
)
def test_an_encoders_own_sizes_are_taken(tmp_path: Path, encoder: str, size: str) -> None:
    model = load_recipe(write(tmp_path, PRETRAIN), [f"model.encoder={encoder}", f"model.size={size}"]).model
    assert (model.encoder, model.size) == (encoder, size)


# Every field of the schema, by its kind


def leaves(section: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """section.field and its type, of every field that is no section."""
    for name, kind in get_type_hints(section, include_extras=True).items():
        if is_dataclass(kind):
            yield from leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", kind


FIELDS = {**dict(leaves(PretrainRecipe)), **dict(leaves(FinetuneRecipe))}


def inner(kind: Any) -> Any:
    """What a field holds where it holds something: of str | None and list[str], str."""
    if NoneType in get_args(kind):
        (kind,) = set(get_args(kind)) - {NoneType}
    return inner(get_args(kind)[0]) if get_origin(kind) is list else kind


def named(*kinds: Any) -> list[str]:
    names = [name for name, kind in FIELDS.items() if inner(kind) in kinds and name != "task_type"]
    assert names
    return names


def is_optional(name: str) -> bool:
    lists = ("data.validation", "data.test", "evaluation.probe", "wandb.tags")
    return NoneType in get_args(FIELDS[name]) or name in lists


def yaml_lines(section: dict[str, Any], indent: str = "") -> Iterator[str]:
    """Sections of texts that are written as they are."""
    for key, value in section.items():
        if isinstance(value, dict):
            yield f"{indent}{key}:"
            yield from yaml_lines(value, f"{indent}  ")
        else:
            yield f"{indent}{key}: {value}"


def load(folder: Path, typed: dict[str, str], by: str) -> Iterator[tuple[list[str], Recipe | str]]:
    """Recipes of both kinds with what is typed in their fields, in the file or on the command line; or what is said."""
    finetune = [name for name in typed if name in dict(leaves(FinetuneRecipe))]
    for kind, names in (("finetune", finetune), ("pretrain", [name for name in typed if name not in finetune])):
        data = {"train": "a"} | ({"validation": "b"} if kind == "pretrain" else {})  # at which probes are scored
        content: dict[str, Any] = {"task_type": kind, "run_dir": "run", "data": data}
        for name in names if by == "file" else ():
            *sections, field = name.split(".")
            functools.reduce(lambda section, key: section.setdefault(key, {}), sections, content)[field] = typed[name]
        lines = list(yaml_lines(content))
        overrides = [f"{name}={typed[name]}" for name in names] if by == "override" else []
        if names:
            try:
                yield names, load_recipe(write(folder, "\n".join(lines)), overrides)
            except UserError as error:
                yield names, str(error)


def values(folder: Path, typed: dict[str, str], by: str) -> dict[str, Any]:
    """What the fields hold."""
    found = {}
    for names, recipe in load(folder, typed, by):
        assert not isinstance(recipe, str), recipe
        for name in names:
            found[name] = functools.reduce(getattr, name.split("."), recipe)
    return found


def refusals(folder: Path, typed: dict[str, str], by: str) -> dict[str, str]:
    """What is said of each field that is refused, once."""
    found: dict[str, str] = {}
    for _, told in load(folder, typed, by):
        for line in told.splitlines()[1:] if isinstance(told, str) else ():
            name = line.split()[0]
            assert name in typed and name not in found, line
            found[name] = line.strip()
    return found


both_ways = pytest.mark.parametrize("by", ["file", "override"])
WORDS = [
    "no",
    "off",
    "true",
    "010",
    "1:30",
    "1e5",
    "0x10",
    "1_000",
    "2024-01-01",
    ".inf",
    "-3.50",
    "=",
    "<<",
    "a=b",
    "nullable",
    "x#y",
    "ünïcode",
]


def test_the_kinds_are_all_that_there_are() -> None:
    assert {inner(kind) for kind in FIELDS.values()} == {str, int, float, bool, PathText, SourceText, TeacherText}


@both_ways
def test_a_text_is_the_text_typed(tmp_path: Path, by: str) -> None:
    names = named(str, PathText, SourceText, TeacherText)
    for word in WORDS:
        told = refusals(tmp_path, {"model.size": word}, by)  # whose choices are an encoder's
        told |= refusals(tmp_path, dict.fromkeys(names, word), by)
        assert all(f"{name} is {word!r}; expected one of " in line for name, line in told.items())
        held = values(tmp_path, {name: word for name in names if name not in told}, by)
        assert all(value in (word, [word]) for value in held.values())
        assert held.keys() >= {*named(PathText, SourceText, TeacherText), "task.label", "wandb.project"}


@both_ways
def test_every_choice_can_be_typed(tmp_path: Path, by: str) -> None:
    told = refusals(tmp_path, dict.fromkeys(named(str), "no"), by)
    assert {"wandb.mode", "trainer.precision", "model.residual"} <= told.keys()
    for name, line in told.items():
        for choice in line.partition("expected one of ")[2].partition(" for encoder")[0].split(", "):
            if choice not in ("pack", "streaming", "visible"):  # of pretraining
                needed = {"data.validation": "b", "evaluation.probe": "c"}
                assert values(tmp_path, {name: choice, **needed}, by)[name] == choice


@both_ways
def test_whole_numbers_are_decimal(tmp_path: Path, by: str) -> None:
    names = named(int)
    for word in ("0x10", "0o10", "1_000", "1e3", "1:30", "2.0", "ten", "٣", "1 0", "true", "[1]", "9" * 5000):
        told = refusals(tmp_path, dict.fromkeys(names, word), by)
        assert told.keys() == set(names)
        assert all("; expected " in line and len(line) < 400 for line in told.values())
    for word in ("999999999999999", "-999999999999999"):
        told = refusals(tmp_path, dict.fromkeys(names, word), by)
        assert told.keys() == set(names)
        assert all(f"{name} is {word}; expected at least" in line for name, line in told.items())
    for word, number in (("010", 10), ('"12"', 12), ("+7", 7)):
        assert values(tmp_path, {"trainer.max_steps": word}, by) == {"trainer.max_steps": number}


@both_ways
def test_numbers_are_finite(tmp_path: Path, by: str) -> None:
    names = named(float)
    for word in (
        ".inf",
        "-.inf",
        "inf",
        ".nan",
        "nan",
        "1e999",
        "1_0",
        "1:30",
        "0x1p3",
        "'1,5'",
        "a",
        "1e300",
        "-1e300",
    ):
        told = refusals(tmp_path, dict.fromkeys(names, word), by)
        assert told.keys() == set(names)
        assert all("expected" in line for line in told.values())
    for word, number in (("1.0e-3", 1e-3), (".5", 0.5), ("1", 1.0), ("1e-4", 1e-4)):
        assert values(tmp_path, {"optimizer.learning_rate": word}, by) == {"optimizer.learning_rate": number}


@both_ways
def test_truth_is_true_or_false(tmp_path: Path, by: str) -> None:
    names = named(bool)
    for words, value in (("true True yes on", True), ("false FALSE no off", False)):
        for word in words.split():
            assert values(tmp_path, dict.fromkeys(names, word), by) == dict.fromkeys(names, value)
    for word in ("1", "0", "y", "t", "[true]"):
        told = refusals(tmp_path, dict.fromkeys(names, word), by)
        assert told.keys() == set(names) and all("expected" in line for line in told.values())


@both_ways
def test_null_and_nothing_switch_off_what_is_optional(tmp_path: Path, by: str) -> None:
    optional = [name for name in FIELDS if is_optional(name)]
    assert {"model.pretrained", "data.cache", "data.weights", "trainer.checkpoint_every_steps"} <= set(optional)
    others = [name for name in FIELDS if name not in (*optional, "task_type", "data.train")]
    for word in ("null", "Null", ""):
        held = values(tmp_path, dict.fromkeys(optional, word), by)
        parts = {name: held.pop(name) for name in FIELDS if name.startswith("objective.parts.")}
        assert all(value == (None if NoneType in get_args(FIELDS[name]) else []) for name, value in held.items())
        # As if no part were named.
        said = {"objective.parts.contrastive": 1.0, "objective.parts.reconstruction": 10.0}
        assert parts == {**dict.fromkeys(parts, 0.0), **said}
        told = refusals(tmp_path, dict.fromkeys(others, word), by)
        assert told.keys() == set(others)
        assert all(f"is {word or 'nothing'}; expected a value" in line for line in told.values())
    assert values(tmp_path, {"task.label": '"null"'}, by) == {"task.label": "null"}


@both_ways
def test_a_tilde_is_the_home_folder_in_every_path(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/opt/of ${me}")
    names = named(PathText, SourceText, TeacherText)
    for typed, path in (("~/a", "/opt/of ${me}/a"), ("./~", "./~"), ("a~", "a~")):
        held = values(tmp_path, dict.fromkeys(names, typed), by)
        assert all(value in (path, [path]) for value in held.values())
    told = refusals(tmp_path, dict.fromkeys(names, "~no-such-user/a"), by)
    assert told.keys() == set(names)
    assert all("expected a user of this machine after ~" in line for line in told.values())
    optional = [name for name in names if NoneType in get_args(FIELDS[name])]
    told = refusals(tmp_path, dict.fromkeys(optional, "~"), by)
    assert told.keys() == set(optional) and all("expected null, or what is meant: ~/" in said for said in told.values())
    command = "pipe:cat ~/a/index.json"
    assert values(tmp_path, {"data.train": command}, by) == {"data.train": [command]}


@both_ways
def test_paths_that_are_none(tmp_path: Path, by: str) -> None:
    names = named(PathText, SourceText, TeacherText)
    for typed in ('""', r'"a\0b"', r'"a\ud800b"'):
        told = refusals(tmp_path, dict.fromkeys(names, typed), by)
        assert told.keys() == set(names) and all("expected a" in line for line in told.values())
    told = refusals(tmp_path, dict.fromkeys(named(PathText, TeacherText), "a/" + "ü" * 128), by)
    assert told.keys() == set(named(PathText, TeacherText)) and all(
        "at most 255 bytes" in line for line in told.values()
    )


@both_ways
def test_nothing_is_put_in_for_a_variable(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", "s3cr3t")
    names = [name for name in FIELDS if name != "task_type"]
    for typed in ("${oc.env:SECRET}", "'${oc.env:SECRET,x}'", "a${seed}", "'${oc.decode:\"{a: 1}\"}'", r"\\${SECRET}"):
        told = refusals(tmp_path, dict.fromkeys(names, typed), by)
        assert told.keys() == set(names)
        assert all("nothing is put in for ${...}" in line and "s3cr3t" not in line for line in told.values())
    assert values(tmp_path, {"run_dir": r"\${oc.env:SECRET}"}, by) == {"run_dir": "${oc.env:SECRET}"}


# Saved and read again

NASTY = [
    *WORDS,
    "null",
    "~x",
    "a: b",
    "#x",
    "a #b",
    "${x}",
    r"\${x}",
    r"\\${x}",
    "$${{x}",
    "line\nbreak",
    "\ttab ",
    " space",
    "'",
    '"',
    "[a]",
    "{a: b}",
    "*",
    "&x y",
    "!x",
    "%x",
    "@",
    "`",
    "- a",
    "? a",
    "\u202e",
    "\x1b[0m",
    "\x85",
    "\ufeff",
    "???x",
    "\\",
    "a\\",
]


def saved_and_read(recipe: Recipe, folder: Path) -> Recipe:
    save_recipe(recipe, folder / "recipe.yaml")
    return load_recipe(folder / "recipe.yaml")


def with_texts(text: str) -> FinetuneRecipe:
    """Wherever a text may be any, it is this one; paths have it below a folder."""
    recipe = FinetuneRecipe(run_dir=f"/r/{text}")
    recipe.data.train = [f"/a/{text}", f"pipe:{text}"]
    recipe.data.validation = recipe.data.test = [f"/a/{text}"]
    recipe.data.cache = recipe.model.pretrained = f"/c/{text}"
    recipe.task.label = recipe.wandb.project = text
    return recipe


@pytest.mark.parametrize("text", NASTY, ids=ascii)
def test_any_text_is_saved_as_it_is(text: str, tmp_path: Path) -> None:
    recipe = with_texts(text)
    assert saved_and_read(recipe, tmp_path) == recipe


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.sampled_from("${}\\a:'\"#[]?~n \n0.é") | st.characters(codec="utf-8"), min_size=1, max_size=20))
def test_every_text_is_saved_as_it_is(tmp_path: Path, text: str) -> None:
    if "\0" not in text and text != "???":
        recipe = with_texts(text)
        assert saved_and_read(recipe, tmp_path) == recipe


def test_a_saved_recipe_says_the_same_in_another_folder(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a {b} [c] *d"
    home.mkdir()
    (home / "shards").symlink_to(corpus)
    monkeypatch.chdir(home)
    sources = ["shards/train", "shards/{validation,test}", "shards/t*t", "https://host/train/", "pipe:cat x/index.json"]
    words = [f"data.train=[{', '.join(map(repr, sources))}]", "model.pretrained=runs/a", "data.cache=cache"]
    recipe = load_recipe(write(tmp_path, FINETUNE), words)
    assert recipe.data.train == sources
    save_recipe(recipe, tmp_path / "saved.yaml")
    monkeypatch.chdir("/")
    saved = load_recipe(tmp_path / "saved.yaml")
    assert (saved.run_dir, saved.model.pretrained, saved.data.cache) == tuple(
        str(home / name) for name in ("run", "runs/a", "cache")
    )
    assert saved.data.train[3:] == sources[3:]
    counts = [find_shards(source).samples for source in saved.data.train[:3]]
    assert counts == [60, 36, 24]


def test_a_run_that_goes_on_is_not_told_that_its_paths_are_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = load_recipe(write(tmp_path, FINETUNE), ["model.pretrained=runs/a"])
    assert not list(differences(saved_and_read(recipe, tmp_path), recipe))
    recipe.model.pretrained = "runs/b"
    (said,) = differences(load_recipe(tmp_path / "recipe.yaml"), recipe)
    assert said == f"model.pretrained is '{tmp_path}/runs/b'; in the run it is '{tmp_path}/runs/a'"


# Files from strangers


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: " + "[" * 5000 + "]" * 5000, "nested too deep"),
        ("a: " + "{a: " * 5000, "nested too deep"),
        ("- " * 5000, "nested too deep"),
        ("a: &a [b]\nc: *a", "line 2: *a stands for a value from elsewhere"),
        ("a: &a [x,x]\nb: &b [*a,*a]\nc: [*b,*b]", "stands for a value from elsewhere"),
        ("run_dir: *.tar", "cannot be read"),
        ("a: !!python/object/apply:os.system [ls]", "the tag tag:yaml.org,2002:python/object/apply:os.system is not"),
        ("run_dir: !!binary aGk=", "the tag tag:yaml.org,2002:binary is not read"),
        ("data: {train: a, train: b}", "line 1: duplicate key train"),
        ("? [a]\n: b", "a key is a list or a section"),
        ("a: 1\n---\nb: 2", "another document begins"),
        ("a: 'x", "cannot be read"),
        ("a: \x07", "cannot be read"),
        ("#" * 300_000, "it has more than 262144 bytes"),
        ("", "is not a mapping"),
        ("just text", "is not a mapping"),
    ],
)
def test_a_recipe_that_cannot_be_read(tmp_path: Path, text: str, said: str) -> None:
    (told,) = complaints(tmp_path, text)
    assert said in told


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    path = tmp_path / "recipe.yaml"
    for content in (b"a: \xff\xfe\xfd", bytes(range(256)), b"\0" * 100):
        path.write_bytes(content)
        with pytest.raises(UserError, match="cannot be read"):
            load_recipe(path)
    path.unlink()
    with pytest.raises(UserError, match="is no file"):
        load_recipe(tmp_path)
    os.mkfifo(tmp_path / "pipe.yaml")
    with pytest.raises(UserError, match="is no file"):
        load_recipe(tmp_path / "pipe.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_a_recipe_may_have_been_written_elsewhere(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes("task_type: finetune\r\nrun_dir: ü\r\ndata: {train: a}\r\n".encode(encoding))
    assert load_recipe(path).run_dir == "ü"


@both_ways
def test_a_teacher_is_a_path_or_a_word(tmp_path: Path, by: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/opt/me")
    name = "objective.distillation.teacher"
    for typed, held in (
        ("shards", "shards"),
        ("hf:~/a", "hf:/opt/me/a"),
        ("hf:A/b", "hf:A/b"),
        ("./shards", "./shards"),
    ):
        assert values(tmp_path, {name: typed}, by) == {name: held}
    for typed in ('"hf:"', "hf:~no-such-user/a", "s3://a/b"):
        assert name in refusals(tmp_path, {name: typed}, by)


def test_a_saved_recipe_names_its_teacher_by_an_absolute_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    source = write(tmp_path, "task_type: pretrain\nrun_dir: run\ndata: {train: a}")
    for typed, saved in (
        ("runs/a", f"{tmp_path}/runs/a"),
        ("shards", "shards"),
        ("hf:here", f"hf:{tmp_path}/here"),
        ("hf:A/b", "hf:A/b"),
    ):
        save_recipe(load_recipe(source, [f"objective.distillation.teacher={typed}"]), tmp_path / "saved.yaml")
        again = load_recipe(tmp_path / "saved.yaml")
        assert isinstance(again, PretrainRecipe) and again.objective.distillation.teacher == saved
