"""An encoder that is trained later than its head, and mixtures of the whole set, in fine-tuning runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.build.runs import build_finetuner
from ssamba.cli import main
from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.models.checkpoint import save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings
from ssamba.training.callbacks import Throughput
from ssamba.training.common import TrainingModule
from ssamba.training.finetuning import FineTuning
from ssamba.training.saved import read_checkpoint

Recipes = dict[str, Path]


@pytest.fixture
def moved(monkeypatch: pytest.MonkeyPatch) -> list[set[str]]:
    """After each step: the names of the tensors that it changed."""
    found: list[set[str]] = []
    held: dict[str, Tensor] = {}

    def compare(self: Throughput, trainer: Any, module: TrainingModule, *_: Any) -> None:
        state = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
        if held:
            found.append({name for name, tensor in state.items() if not torch.equal(tensor, held[name])})
        held.update(state)

    monkeypatch.setattr(Throughput, "on_train_start", compare)
    monkeypatch.setattr(Throughput, "on_train_batch_end", compare)
    return found


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., str]:
    """Encoder -> the word for weights of one of two layers, with options."""

    def word(encoder: str, **options: Any) -> str:
        folder = tmp_path_factory.mktemp("weights")
        torch.manual_seed(0)
        sizes = {**SIZES[encoder]["nano"], **options}
        model = MaskedPatchModel(AudioEncoder(encoder, sizes, 128, 64, 16, 16, 16, 16))
        save_model(folder, model, AudioSettings(16000, -4.0, 4.0, "pad"))
        return f"model.pretrained={folder}"

    return word


def words_for(recipes: Recipes, run: Path, *words: str) -> list[str]:
    common = ["audio.mean=-4", "audio.std=4", "data.validation=[]", "data.test=[]", "trainer.max_steps=5"]
    return ["finetune", str(recipes["finetune"]), f"run_dir={run}", *common, *words]


def parts(names: set[str]) -> set[str]:
    """head; 0, 1, ... of layers; norm; tokens for what is below the layers."""
    found = set()
    for name in names:
        _, part, *rest = name.split(".")
        found.add(
            "head"
            if name.startswith("head.")
            else rest[1]
            if rest[:1] == ["layers"]
            else rest[0]
            if part == "stack"
            else "tokens"
        )
    return found


ALL = {"head", "0", "1", "norm", "tokens"}


def test_the_encoder_is_trained_after_so_many_steps(
    recipes: Recipes, weights: Callable[..., str], moved: list[set[str]], tmp_path: Path
) -> None:
    words = ["model.encoder=ssast", weights("ssast"), "task.freeze_steps=2", "optimizer.weight_decay=0.1"]
    assert main(words_for(recipes, tmp_path / "run", *words)) == 0
    assert [parts(names) for names in moved] == [{"head"}] * 2 + [ALL] * 3
    state = read_checkpoint(tmp_path / "run" / "checkpoints" / "step-0000005.ckpt")["optimizer_states"][0]["state"]
    assert {float(held["step"]) for held in state.values()} == {3, 5}  # of the encoder's weights, and of the head's


def test_no_gradients_are_made_while_the_encoder_is_frozen(
    recipes: Recipes, weights: Callable[..., str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made: list[bool] = []
    step = FineTuning.on_before_optimizer_step

    def look(self: FineTuning, optimizer: Any) -> None:
        with_gradients = {one.grad is not None for one in self.model.encoder.stack.parameters()}
        assert len(with_gradients) == 1
        made.extend(with_gradients)
        step(self, optimizer)

    monkeypatch.setattr(FineTuning, "on_before_optimizer_step", look)
    words = ["model.encoder=ssamba", weights("ssamba"), "task.freeze_steps=2"]
    assert main(words_for(recipes, tmp_path / "run", *words)) == 0
    assert made == [False] * 2 + [True] * 3


def test_from_scratch_all_is_trained_at_once(recipes: Recipes, moved: list[set[str]], tmp_path: Path) -> None:
    words = ["model.encoder=ssast", "task.freeze_steps=2", "task.unfreeze_every=2"]
    assert main(words_for(recipes, tmp_path / "run", *words)) == 0
    assert [parts(names) for names in moved] == [ALL] * 5


def test_layers_are_trained_from_the_last_one_down(
    recipes: Recipes, weights: Callable[..., str], moved: list[set[str]], tmp_path: Path
) -> None:
    words = ["model.encoder=aum", weights("aum"), "task.freeze_steps=1", "task.unfreeze_every=1"]
    assert main(words_for(recipes, tmp_path / "run", *words)) == 0
    assert [parts(names) for names in moved] == [{"head"}, {"head", "norm", "1"}, ALL - {"tokens"}, ALL, ALL]


def test_pairs_of_the_doubling_residual_are_trained_together(
    recipes: Recipes, weights: Callable[..., str], moved: list[set[str]], tmp_path: Path
) -> None:
    words = ["model.encoder=ssamba", weights("ssamba", residual="doubling"), "task.unfreeze_every=2"]
    assert main(words_for(recipes, tmp_path / "run", *words)) == 0
    assert [parts(names) for names in moved] == [ALL - {"tokens"}] * 2 + [ALL] * 3


def test_frozen_steps_are_those_of_a_head_alone(recipes: Recipes, weights: Callable[..., str], tmp_path: Path) -> None:
    """While the encoder is frozen, its gradients are in no norm, and the head learns as if there were none."""
    runs = {}
    common = ["model.encoder=ssast", weights("ssast")]
    for name in ("task.freeze_steps=5", "task.freeze_encoder=true"):
        words = [*common, "optimizer.gradient_clip=0.01", name]
        assert main(words_for(recipes, tmp_path / name, *words)) == 0
        runs[name] = read_checkpoint(tmp_path / name / "checkpoints" / "step-0000005.ckpt")["state_dict"]
    one, other = runs.values()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_goes_on_where_it_froze(recipes: Recipes, weights: Callable[..., str], tmp_path: Path) -> None:
    words = words_for(
        recipes,
        tmp_path / "run",
        "model.encoder=ssast",
        weights("ssast"),
        "task.freeze_steps=3",
        "task.unfreeze_every=1",
        "augmentation.mixup=0.5",
        "augmentation.mixup_from=set",
    )
    assert main([*words, "trainer.max_steps=2", "optimizer.schedule=constant"]) == 0
    assert main([*words, "trainer.max_steps=5", "optimizer.schedule=constant", "--resume=auto"]) == 0
    resumed = (tmp_path / "run" / "model" / "model.safetensors").read_bytes()
    assert main([*words, "optimizer.schedule=constant", "--overwrite"]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").read_bytes() == resumed


def test_what_contradicts_a_frozen_encoder(recipes: Recipes, refused: Callable[..., str], tmp_path: Path) -> None:
    for name in ("freeze_steps", "unfreeze_every"):
        words = words_for(recipes, tmp_path / "run", "task.freeze_encoder=true", f"task.{name}=3")
        assert f"task.{name} is 3, but task.freeze_encoder=true never trains the encoder" in refused(*words)


# Mixtures


def test_where_partners_are_from_is_the_recipes(recipes: Recipes) -> None:
    def first(*words: str) -> tuple[Any, Any]:
        given = ["run_dir=unused", "audio.mean=-4", "audio.std=4", "model.encoder=ssast", "augmentation.mixup=1"]
        recipe = load_recipe(recipes["finetune"], [*given, *words])
        assert isinstance(recipe, FinetuneRecipe)
        made = build_finetuner(recipe)
        return made.module, next(iter(made.data.training_stream()))

    module, batch = first()
    assert module.augmentation.mixup == 1 and batch["labels"].ndim == 1
    module, batch = first("augmentation.mixup_from=set")
    assert module.augmentation.mixup == 0 and all("+" in key for key in batch["keys"])
    assert torch.equal(module.targets(batch["labels"]), batch["labels"])
    torch.testing.assert_close(batch["labels"].sum(1), torch.ones(4))


def test_mixtures_of_the_set_do_not_depend_on_how_a_step_is_cut(recipes: Recipes, tmp_path: Path) -> None:
    states = {}
    for accumulate in (1, 2):
        words = ["model.encoder=ssast", "augmentation.mixup=1", "augmentation.mixup_from=set", "trainer.max_steps=1"]
        run = tmp_path / str(accumulate)
        assert main(words_for(recipes, run, *words, f"trainer.accumulate={accumulate}")) == 0
        (optimizer,) = read_checkpoint(run / "checkpoints" / "step-0000001.ckpt")["optimizer_states"]
        states[accumulate] = [held["exp_avg"] for held in optimizer["state"].values()]
    for one, other in zip(states[1], states[2], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-7)
