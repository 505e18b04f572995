"""Rare and common classes, soft targets: what the loss and the order of training make of them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file
from torch import Tensor

from ssamba.build.runs import build_finetuner
from ssamba.cli import main
from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.errors import UserError

Recipes = dict[str, Path]
RATE = 16000
RARE = ["a"] * 9 + ["b"] * 2 + ["c"]  # of one label
TAGS = [["a", "b"]] * 4 + [["a"]] * 5 + [["b", "c"], ["c"], []]


def shards(folder: Path, labels: list[Any]) -> Path:
    found = []
    for number, label in enumerate(labels):
        path = folder / f"{number:03}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(number).normal(0, 0.1, RATE // 2), RATE, "FLOAT")
        found.append(Recording(path.stem, path, {"sound": label}))
    write_shards({"train": found}, folder / "shards", "few", samples_per_shard=4)
    return folder / "shards" / "train"


@pytest.fixture(scope="module")
def rare(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shards(tmp_path_factory.mktemp("rare"), RARE)


def words_for(train: Path, run: Path | str, *words: str) -> list[str]:
    common = [f"data.train={train}", "data.validation=[]", "data.test=[]", f"run_dir={run}", "model.encoder=ssast"]
    return [*common, "audio.mean=-4", "audio.std=4", *words]


def build(recipes: Recipes, train: Path, *words: str) -> Any:
    recipe = load_recipe(recipes["finetune"], words_for(train, "unused", *words))
    assert isinstance(recipe, FinetuneRecipe)
    return build_finetuner(recipe)


def step_loss(module: Any, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Of a training step: logits and loss."""
    said: list[Tensor] = []
    forward = module.model.forward
    module.model.forward = lambda *given: said.append(forward(*given)) or said[-1]
    module.watch = lambda *_, **__: None
    loss = module.training_step(batch, 0)
    module.model.forward = forward
    return said[0].detach(), loss.detach()


def one_hot(labels: Tensor, classes: int) -> list[list[float]]:
    return [[float(c == label) for c in range(classes)] for label in labels.tolist()]


def plain_cross_entropy(logits: Tensor, targets: list[list[float]], weights: list[float]) -> float:
    total = 0.0
    for row, target in zip(logits.double(), targets, strict=True):
        log_chances = row - row.exp().sum().log()
        total -= sum(w * t * float(log_chances[c]) for c, (t, w) in enumerate(zip(target, weights, strict=True)))
    return total / len(targets)


# The loss


def test_smoothed_targets(recipes: Recipes, rare: Path) -> None:
    made = build(recipes, rare, "task.label_smoothing=0.3")
    batch = next(iter(made.data.training_stream()))
    logits, loss = step_loss(made.module, batch)
    smoothed = [[0.7 * t + 0.1 for t in target] for target in one_hot(batch["labels"], 3)]
    assert float(loss) == pytest.approx(plain_cross_entropy(logits, smoothed, [1, 1, 1]), rel=1e-5)
    # Held-out clips are judged by their labels.
    hard = plain_cross_entropy(logits, one_hot(batch["labels"], 3), [1, 1, 1])
    assert float(made.module.loss(logits, made.module.targets(batch["labels"]))) == pytest.approx(hard, rel=1e-5)
    assert abs(hard - float(loss)) > 1e-3


def test_weighted_classes_of_one_label(recipes: Recipes, rare: Path) -> None:
    made = build(recipes, rare, "task.class_weights=balanced", "task.label_smoothing=0.3", "data.batch_size=12")
    batch = next(iter(made.data.training_stream()))
    assert Counter(batch["labels"].tolist()) == {0: 9, 1: 2, 2: 1}
    logits, loss = step_loss(made.module, batch)
    smoothed = [[0.7 * t + 0.1 for t in target] for target in one_hot(batch["labels"], 3)]
    weights = [12 / (3 * 9), 12 / (3 * 2), 12 / 3]
    assert float(loss) == pytest.approx(plain_cross_entropy(logits, smoothed, weights), rel=1e-5)


def test_weighted_classes_of_several_labels(recipes: Recipes, tmp_path: Path) -> None:
    train = shards(tmp_path, TAGS)
    made = build(recipes, train, "task.loss=bce", "task.class_weights=balanced", "data.batch_size=12")
    batch = next(iter(made.data.training_stream()))
    logits, loss = step_loss(made.module, batch)
    positive = [3 / 9, 7 / 5, 10 / 2]
    total = 0.0
    for row, label in zip(logits.double().sigmoid().tolist(), batch["labels"].tolist(), strict=True):
        for chance, present, weight in zip(row, label, positive, strict=True):
            total -= weight * present * np.log(chance) + (1 - present) * np.log(1 - chance)
    assert float(loss) == pytest.approx(total / 36, rel=1e-5)


def test_weights_of_classes_are_counted_of_the_recordings_that_are_used(recipes: Recipes, tmp_path: Path) -> None:
    train = shards(tmp_path, ["a"] * 20 + ["b"] * 8 + ["c"] * 4)
    made = build(recipes, train, "task.class_weights=balanced", "data.label_fraction=0.5")
    assert made.module.class_weights.tolist() == pytest.approx([16 / (3 * 10), 16 / (3 * 4), 16 / (3 * 2)])


def test_what_the_recipe_says_decides_what_is_learned(recipes: Recipes, rare: Path, tmp_path: Path) -> None:
    runs = {
        "none": [],
        "smooth": ["task.label_smoothing=0.2"],
        "weights": ["task.class_weights=balanced"],
        "balance": ["data.balance=true"],
    }
    heads = {}
    for name, words in runs.items():
        assert main(["finetune", str(recipes["finetune"]), *words_for(rare, tmp_path / name, *words)]) == 0
        heads[name] = load_file(tmp_path / name / "model" / "model.safetensors")
        assert not [tensor for tensor in heads[name] if "class_weights" in tensor]
    biases = [tuple(held["head.1.bias"].tolist()) for held in heads.values()]
    assert len(set(biases)) == 4


# The order


def test_classes_are_heard_alike(recipes: Recipes, rare: Path) -> None:
    made = build(recipes, rare, "data.balance=true", "data.batch_size=12")
    heard: Counter[str] = Counter()
    for _, batch in zip(range(30), made.data.training_stream(), strict=False):
        heard.update("abc"[label] for label in batch["labels"].tolist())
        assert [RARE[int(key)] for key in batch["keys"]] == ["abc"[label] for label in batch["labels"].tolist()]
    assert all(abs(heard[name] / 360 - 1 / 3) < 0.02 for name in "abc")
    assert len(made.data.order) == 12


def test_ranks_share_the_draw(recipes: Recipes, rare: Path) -> None:
    made = build(recipes, rare, "data.balance=true")

    def stream(rank: int, ranks: int, batch_size: int, first: int = 0) -> Any:
        found = made.data.training_stream()
        source = found.source
        source.rank, source.world_size, source.batch_size, source.first = rank, ranks, batch_size, first
        return iter(found)

    whole, parts = stream(0, 1, 4), [stream(rank, 2, 2) for rank in range(2)]
    seen = []
    for _ in range(8):
        keys = next(whole)["keys"]
        assert [key for part in parts for key in next(part)["keys"]] == keys
        seen += keys
    assert next(stream(0, 1, 4, first=12))["keys"] == seen[12:16]


# What cannot be


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["task.label_smoothing=0.1", "task.loss=bce"], "task.label_smoothing is for cross_entropy; task.loss is bce"),
        (["task.label_smoothing=1"], "task.label_smoothing is 1.0; expected 0 to below 1"),
        (["task.class_weights=some"], "task.class_weights is 'some'; expected one of none, balanced"),
    ],
)
def test_what_the_loss_cannot_be(
    words: list[str], said: str, recipes: Recipes, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert said in refused("finetune", recipes["finetune"], f"run_dir={tmp_path / 'run'}", *words)


def test_pretraining_has_no_labels(recipes: Recipes, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("pretrain", recipes["pretrain"], f"run_dir={tmp_path / 'run'}", "data.balance=true")
    assert "data.balance is for fine-tuning; pretraining uses no labels" in said


def test_a_class_that_is_heard_in_no_training_recording(
    recipes: Recipes, refused: Callable[..., str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train, test = shards(tmp_path / "train", ["a", "b"] * 4), shards(tmp_path / "test", ["a", "b", "c"])
    index = train / "index.json"
    index.write_text(index.read_text().replace('"a"', '"a",\n"c"', 1))  # in the label list alone
    words = words_for(train, tmp_path / "run", f"data.test={test}")
    said = refused("finetune", recipes["finetune"], *words)
    assert "data.test has recordings with sound c, which no training recording has: it cannot be learned." in said
    build(recipes, train, f"data.test={test}", "task.loss=bce")
    assert "data.test has recordings with sound c" in caplog.text


def test_a_class_that_the_fraction_leaves_out(recipes: Recipes, tmp_path: Path) -> None:
    train = shards(tmp_path, ["a"] * 10 + ["b"] * 9 + ["c"])
    said = "data.validation has recordings with sound c, which .* in data.train, or a larger data.label_fraction"
    with pytest.raises(UserError, match=said):
        build(recipes, train, "data.label_fraction=0.2", f"data.validation={train}")
