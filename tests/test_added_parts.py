"""Parts of other packages: when they are imported, what is refused, and what a model of theirs says elsewhere."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from contributed import install, install_contributed

import ssamba
from ssamba.cli import main
from ssamba.config import load_recipe
from ssamba.doctor.installation import added_parts
from ssamba.errors import UserError
from ssamba.evaluation.task import find_task
from ssamba.models.checkpoint import build_classifier, load_model, load_pretrained_encoder, save_model
from ssamba.models.encoder import SIZES, AudioEncoder, find_stack
from ssamba.models.heads import AudioClassifier
from ssamba.models.pools import POOLINGS, build_pool
from ssamba.models.settings import AudioSettings, ClassifierSettings, read_config
from ssamba.parts import Kind, load, load_main, names, own_names, parts

AUDIO = AudioSettings(16000, -4.25, 4.5, "repeat")
STACK = """
    from __future__ import annotations
    from torch import nn
    from ssamba.models.stack import ResidualStack

    class Other(ResidualStack):
        sizes = {"nano": {"hidden_size": 32, "num_hidden_layers": 1}}

        def __init__(self, hidden_size: int, num_hidden_layers: int) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(hidden_size, hidden_size) for _ in range(num_hidden_layers))
            self.norm = nn.LayerNorm(hidden_size)
"""
Install = Callable[..., None]
Capture = pytest.CaptureFixture[str]


def forget() -> None:
    parts.cache_clear()
    find_stack.cache_clear()


@pytest.fixture
def site(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sys.path, whose modules and entry points are forgotten afterwards."""
    folder, before = tmp_path_factory.mktemp("site"), set(sys.modules)
    monkeypatch.syspath_prepend(folder)
    forget()
    yield folder
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(str(folder)):
            del sys.modules[name]
    monkeypatch.undo()
    forget()


@pytest.fixture
def installed(site: Path) -> Install:
    """Install a package of one module with one entry point."""

    def add(package: str, group: str, name: str, source: str = "", value: str = "") -> None:
        module = package.replace("-", "_")
        install(site, package, {group: {name: value or f"{module}:Other"}}, {f"{module}.py": source})
        forget()

    return add


@pytest.fixture
def contributed(site: Path) -> None:
    """The package of CONTRIBUTING.md."""
    install_contributed(site)
    forget()


def imported() -> set[str]:
    return {name for name in sys.modules if name.split(".")[0] == "bird_parts"}


# What is known, and when it is imported


@pytest.mark.usefixtures("contributed")
def test_names_are_known_and_nothing_is_imported_before_it_is_asked_for(recipes: dict[str, Path]) -> None:
    added: dict[Kind, str] = {"encoder": "gru", "pool": "max", "task": "focal", "data set": "birds"}
    for kind, name in added.items():
        assert names(kind) == (*own_names(kind), name)
    words = ["run_dir=unused", "model.encoder=gru", "task.pooling=max", "task.loss=focal"]
    recipe = load_recipe(recipes["finetune"], words)
    assert recipe.model.encoder == "gru" and main(["prepare"]) == 0
    assert not imported()
    assert find_stack("gru").sizes["nano"] == {"hidden_size": 96, "num_hidden_layers": 2}
    assert imported() == {"bird_parts", "bird_parts.encoder"}
    assert build_pool("max", 2, 3).size == 6 and find_task("focal").monitor == ("macro_F1", "max")
    assert callable(load_main("birds"))


def test_a_recipe_with_such_names_needs_no_torch(site: Path, recipes: dict[str, Path]) -> None:
    install_contributed(site)
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r}); from ssamba.config import load_recipe\n"
        f"load_recipe({str(recipes['finetune'])!r}, ['run_dir=unused', 'model.encoder=gru', 'task.loss=focal'])\n"
        "assert not {'torch', 'bird_parts'} & set(sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_our_own_parts_are_in_the_same_table() -> None:
    assert own_names("encoder") == tuple(SIZES) and own_names("pool") == POOLINGS
    for kind in ("encoder", "pool", "task", "data set"):
        for name in own_names(kind):
            assert load(kind, name) is not None
    assert find_stack("ssast") is load("encoder", "ssast")
    for kind in ("encoder", "pool", "task", "data set"):
        with pytest.raises(UserError, match=f"there is no {kind} 'os:system'; expected one of {own_names(kind)[0]}"):
            load(kind, "os:system")


# What cannot be used


BROKEN = {
    "missing module": ("", "no_such_module:Other", "ModuleNotFoundError: No module named 'no_such_module'"),
    "missing class": ("", "", "AttributeError: module 'bad_parts' has no attribute 'Other'"),
    "bad syntax": ("class Other(:", "", "SyntaxError"),
    "anything raised": ("raise RuntimeError('no licence\\nhere')", "", "RuntimeError: no licence here; mend or"),
    "no entry point": ("", "not a module", "cannot be imported"),
}


@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize(
    ("group", "word"),
    [("encoders", "model.encoder=other"), ("pools", "task.pooling=other"), ("tasks", "task.loss=other")],
)
def test_what_cannot_be_imported_is_told_before_any_work(
    case: str, group: str, word: str, installed: Install, recipes: dict[str, Path], tmp_path: Path, refused: Any
) -> None:
    source, value, cause = BROKEN[case]
    installed("bad-parts", f"ssamba.{group}", "other", source, value)
    said = refused("finetune", recipes["finetune"], f"run_dir={tmp_path / 'run'}", word)
    assert "other of the package bad-parts cannot be imported: " in said and cause in said
    assert said.count("\n") == 1


@pytest.mark.parametrize(
    ("group", "word", "expected"),
    [
        ("encoders", "model.encoder=other", "a subclass of ssamba.models.stack.Stack"),
        ("pools", "task.pooling=other", "a subclass of ssamba.models.pools.Pool"),
        ("tasks", "task.loss=other", "a subclass of ssamba.evaluation.task.Task"),
    ],
)
@pytest.mark.parametrize("source", ["class Other: pass", "Other = 3"])
def test_what_is_no_such_part_is_told(
    group: str, word: str, expected: str, source: str, installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    installed("bad-parts", f"ssamba.{group}", "other", source)
    said = refused("finetune", recipes["finetune"], "run_dir=run", word)
    assert "other of the package bad-parts is " in said and f"; expected {expected}" in said


CLASHES: Mapping[str, tuple[str, Any]] = {
    "model.encoder": ("ssamba.encoders", "ssast"),
    "task.pooling": ("ssamba.pools", "statistics"),
    "task.loss": ("ssamba.tasks", "cross_entropy"),
}


@pytest.mark.parametrize("key", CLASHES)
def test_a_name_of_ours_is_refused_where_it_is_asked_for(
    key: str, installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    group, name = CLASHES[key]
    installed("bad-parts", group, name, "raise SystemExit('imported')")
    said = refused("finetune", recipes["finetune"], "run_dir=run", f"{key}={name}")
    assert (
        f"{key} is '{name}'; the " in said and f"{name} is in the packages ssamba and bad-parts; expected one" in said
    )
    others = ["model.encoder=ssamba", "task.pooling=rows", "task.loss=bce"]
    assert load_recipe(recipes["finetune"], ["run_dir=run", *others])


@pytest.mark.parametrize("key", CLASHES)
def test_two_packages_with_one_name_are_both_named(
    key: str, installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    for package in ("a-parts", "b-parts"):
        installed(package, CLASHES[key][0], "other", "raise SystemExit('imported')")
    said = refused("finetune", recipes["finetune"], "run_dir=run", f"{key}=other")
    assert "other is in the packages a-parts and b-parts; expected one that has it: uninstall the others" in said


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ('"hidden_size": 32, ', "", "KeyError: 'hidden_size'"),
        ("hidden_size: int", "hidden_size", "KeyError: 'hidden_size'"),
        ('"num_hidden_layers": 1', '"num_hidden_layers": "1"', "Expected `int`, got `str`"),
        ('"num_hidden_layers": 1', '"num_hidden_layers": -1', "Expected `int` >= 0"),
        ("num_hidden_layers: int", "num_hidden_layers: nothing", "name 'nothing' is not defined"),
        ("sizes =", "of =", "LookupError: it has none; expected hidden_size"),
        ('"nano"', '"huge"', "model.size is 'nano'; expected one of huge for encoder other"),
    ],
)
def test_an_encoder_says_its_sizes(
    before: str, after: str, said: str, installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    assert before in STACK
    installed("some-parts", "ssamba.encoders", "other", STACK.replace(before, after))
    told = refused("pretrain", recipes["pretrain"], "run_dir=run", "model.encoder=other")
    assert said in told and "other" in told


TASK = """
    from ssamba.evaluation.task import BinaryCrossEntropy

    class Other(BinaryCrossEntropy):
        problem_type = "{}"
"""


@pytest.mark.parametrize(
    ("problem_type", "words", "said"),
    [
        ("ctc", [], "the task other of the package some-parts has problem_type 'ctc'; expected single_label"),
        ("regression", [], "has problem_type 'regression'; expected single_label_classification or multi_label"),
        ("multi_label_classification", ["task.label_smoothing=0.1"], "task.label_smoothing is for one label a clip"),
        ("single_label_classification", ["task.hop_ms=160"], "task.hop_ms is of one label a hop; task.loss is other"),
    ],
)
def test_what_a_task_does_not_go_with(
    problem_type: str, words: list[str], said: str, installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    installed("some-parts", "ssamba.tasks", "other", TASK.format(problem_type))
    assert said in refused("finetune", recipes["finetune"], "run_dir=run", "task.loss=other", *words)


@pytest.mark.parametrize("monitor", [("recall", "max"), ("mAP", "largest")])
def test_a_task_is_monitored_by_a_score_that_it_has(
    monitor: tuple[str, str], installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    source = f"{TASK.format('multi_label_classification')}\n        monitor = {monitor!r}\n"
    installed("some-parts", "ssamba.tasks", "other", source)
    said = refused("finetune", recipes["finetune"], "run_dir=run", "task.loss=other")
    assert f"the task other of the package some-parts has monitor {monitor!r}; expected max or min" in said
    assert said.endswith(" of one of loss, mAP\n")


def test_a_pool_without_a_place_in_time_answers_no_hops(
    installed: Install, recipes: dict[str, Path], refused: Any
) -> None:
    installed("some-parts", "ssamba.pools", "other", "from ssamba.models.pools import ClassPool as Other")
    said = refused(
        "finetune", recipes["finetune"], "run_dir=run", "task.pooling=other", "task.hop_ms=160", "data.short=pad"
    )
    assert "task.pooling is other, which has no place in time" in said


# Data sets


def test_data_sets_are_listed_and_told_apart(installed: Install, capsys: Capture) -> None:
    installed("bad-parts", "ssamba.datasets", "fsdd", "raise SystemExit('imported')", "bad_parts")
    installed("dull-parts", "ssamba.datasets", "dull", "", "dull_parts")
    assert main(["prepare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(maxsplit=1)[1][:20] for line in lines if line.startswith("fsdd ")] == [
        "Shards of the Free S",
        "of the package bad-p",
    ]
    assert main(["prepare", "fsdd", "a", "b"]) == 2
    assert "the data set fsdd is in the packages ssamba and bad-parts" in capsys.readouterr().err
    assert main(["prepare", "dull"]) == 2
    assert "the data set dull of the package dull-parts is " in (said := capsys.readouterr().err)
    assert "expected a module with a function main(arguments)" in said
    assert main(["prepare", "dul"]) == 2
    assert "did you mean dull?" in capsys.readouterr().err


def test_the_program_is_called_as_it_was(installed: Install, capsys: Capture) -> None:
    source = "import sys\ndef main(arguments):\n    print(sys.argv, arguments)\n    return 3"
    installed("some-parts", "ssamba.datasets", "calls", source, "some_parts")
    assert main(["prepare", "calls", "a", "--b"]) == 3
    assert capsys.readouterr().out == "['ssamba prepare calls'] ['a', '--b']\n"


# Models


def classifier(pooling: str = "max") -> tuple[AudioClassifier, ClassifierSettings]:
    torch.manual_seed(0)
    encoder = AudioEncoder("gru", find_stack("gru").sizes["nano"], 32, 48, 8, 8, 8, 8)
    settings = ClassifierSettings(("no", "yes"), "word", "cross_entropy", pooling)
    return build_classifier(encoder, settings).eval(), settings


@pytest.mark.usefixtures("contributed")
def test_a_model_of_theirs_comes_back(tmp_path: Path) -> None:
    made, settings = classifier()
    save_model(tmp_path, made, AUDIO, settings)
    assert read_config(tmp_path)["packages"] == {"encoder": "bird-parts", "pool": "bird-parts"}
    model = ssamba.SsambaModel.from_pretrained(tmp_path)
    log_mel = torch.randn(2, 48, 32, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        tokens = made.encoder(log_mel).tokens.unflatten(1, (4, 6))
        whole = model(log_mel)
        assert torch.equal(whole.logits, made(log_mel))
        torch.testing.assert_close(whole.logits, made.head(tokens.amax(2).flatten(1)))
        part = model(log_mel, own=torch.tensor([48, 20]))  # of the second clip three columns
        torch.testing.assert_close(part.logits[1], made.head(tokens[1, :, :3].amax(1).flatten()))
        vectors = model(log_mel, layers=[-1], pool=model.pool("max")).pooled[0]
        torch.testing.assert_close(vectors, tokens.amax(2).flatten(1))
    again = ssamba.SsambaModel.from_pretrained(tmp_path)
    again.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "config.json").read_bytes() == (tmp_path / "config.json").read_bytes()
    torch.manual_seed(1)
    other = AudioEncoder("gru", find_stack("gru").sizes["nano"], 32, 48, 8, 8, 8, 8)
    load_pretrained_encoder(other, tmp_path)
    assert all(torch.equal(x, y) for x, y in zip(other.parameters(), made.encoder.parameters(), strict=True))


def changed(folder: Path, **fields: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.usefixtures("contributed")
@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model_type": "lstm"},
            "the encoder 'lstm' of the package 'bird-parts', which is not installed here, or does",
        ),
        ({"model_type": "os:system"}, "the encoder 'os:system' of the package 'bird-parts', which is not installed"),
        ({"model_type": "bird_parts.encoder:GruStack"}, "which is not installed here"),
        (
            {"model_type": "ssast"},
            "the encoder 'ssast' of the package 'bird-parts', and here ssast is of the package ssamba",
        ),
        ({"packages": {}}, "the encoder 'gru', and here gru is of the package bird-parts; expected the package that"),
        (
            {"packages": {"encoder": "cat-parts"}},
            "'gru' of the package 'cat-parts', and here gru is of the package bird",
        ),
        ({"packages": {"encoder": "bird-parts"}}, "the pool 'max', and here max is of the package bird-parts"),
        ({"packages": {"encoder": 3}}, "Expected `str`, got `int`"),
        ({"packages": "bird-parts"}, "Expected `object`, got `str`"),
        ({"pooling": "min"}, "the pool 'min' of the package 'bird-parts', which is not installed here"),
        ({"pooling": "min", "packages": {"encoder": "bird-parts"}}, "the pool 'min'; expected one of mean, class"),
        ({"hidden_size": 10**6}, "Expected `int` <= 65536"),
        ({"hidden_size": 64}, "do not fit"),
        ({"hidden_size": "96"}, "Expected `int`, got `str`"),
        ({"num_hidden_layers": 1024}, "do not fit"),
    ],
)
def test_what_the_files_of_a_model_say_is_looked_up_and_no_more(
    fields: dict[str, Any], said: str, tmp_path: Path
) -> None:
    save_model(tmp_path, *classifier()[:1], AUDIO, classifier()[1])
    before = set(sys.modules)
    changed(tmp_path, **fields)
    with pytest.raises(UserError) as told:
        load_model(tmp_path)
    assert said in str(told.value) and "\n" not in str(told.value)
    assert not {name for name in set(sys.modules) - before if not name.startswith(("ssamba", "torch"))}


@pytest.mark.usefixtures("contributed")
def test_elsewhere_a_model_says_which_package_is_missing(site: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "a", *classifier()[:1], AUDIO, classifier()[1])
    ours = AudioEncoder("ssast", SIZES["ssast"]["nano"], 32, 48, 8, 8, 8, 8)
    settings = ClassifierSettings(("no", "yes"), "word", "cross_entropy", "max")
    save_model(tmp_path / "b", build_classifier(ours, settings), AUDIO, settings)
    assert load_model(tmp_path / "b").classifier == settings
    (site / "bird_parts-0.1.dist-info").rename(site / "gone")
    forget()
    with pytest.raises(UserError, match="the encoder 'gru' of the package 'bird-parts', which is not installed here"):
        load_model(tmp_path / "a")
    with pytest.raises(UserError, match="the pool 'max' of the package 'bird-parts', which is not installed here"):
        load_model(tmp_path / "b")
    with pytest.raises(UserError, match="'gru' of the package 'bird-parts', which is not installed here"):
        ssamba.SsambaModel.from_pretrained(tmp_path / "a")


def test_a_model_needs_its_task_no_more(
    installed: Install, site: Path, recipes: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    """That of several labels: scored by its own score, and used where the package is gone."""
    source = TASK.format("multi_label_classification") + (
        "\n        monitor = ('share', 'min')"
        "\n\n        def loss(self, logits, targets, class_weights=None):"
        "\n            return 2 * super().loss(logits, targets, class_weights)"
        "\n\n        def scores(self, logits, labels):"
        "\n            return {'share': float(labels.mean())}"
    )
    installed("some-parts", "ssamba.tasks", "other", source)
    losses = []
    for loss in ("other", "bce"):
        run = tmp_path / loss
        words = [f"run_dir={run}", "model.encoder=ssast", "task.label=tags", f"task.loss={loss}", "trainer.max_steps=2"]
        assert main(["finetune", str(recipes["finetune"]), *words]) == 0
        record = json.loads((run / "run.json").read_text())
        losses.append(record["last_metrics"]["val/loss"])
        assert ("share" in record["test"]) == (loss == "other") and "mAP_low" in record["test"]
    assert json.loads((tmp_path / "other" / "run.json").read_text())["test"]["share"] == pytest.approx(2 / 6)
    assert record["exported"]["best"] == "val/mAP"
    # AdamW does not feel a factor; the first step is by its own loss, twice as large.
    assert losses[0] == pytest.approx(2 * losses[1], rel=0.05)
    (site / "some_parts-0.1.dist-info").rename(site / "gone")
    forget()
    saved = load_model(tmp_path / "other")
    assert saved.classifier is not None and saved.classifier.problem_type == "multi_label_classification"
    capsys.readouterr()
    assert main(["evaluate", str(tmp_path / "other"), f"run_dir={tmp_path / 'other'}"]) == 2
    assert "task.loss is 'other'; expected one of cross_entropy, bce, ctc" in capsys.readouterr().err


# The doctor


def test_the_doctor_tells_what_is_added(installed: Install, site: Path) -> None:
    assert [(one.state, one.said) for one in added_parts()] == [("absent", "no other package adds any")]
    install_contributed(site)
    installed("bad-parts", "ssamba.pools", "bad", "import no_such_module")
    installed("worse-parts", "ssamba.encoders", "aum", "")
    found = {one.name: one for one in added_parts()}
    assert set(found) == {"encoder aum", "encoder gru", "pool bad", "pool max", "task focal", "data set birds"}
    assert (found["encoder gru"].state, found["encoder gru"].said) == ("ok", "bird-parts 0.1")
    assert found["pool bad"].state == found["encoder aum"].state == "problem"
    assert "the package bad-parts cannot be imported" in found["pool bad"].said
    assert "ssamba and worse-parts" in found["encoder aum"].said
