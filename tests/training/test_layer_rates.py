"""How fast each layer learns: rates that fall from the head down, and AdamW's betas."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssamba.build.runs import build_finetuner
from ssamba.cli import main
from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.schedules import parameter_groups
from ssamba.training.saved import read_checkpoint

Recipes = dict[str, Path]


def finetune(recipes: Recipes, run: Path, *words: str) -> None:
    common = ["data.validation=[]", "data.test=[]", "audio.mean=-4", "audio.std=4", "optimizer.warmup_steps=0"]
    assert main(["finetune", str(recipes["finetune"]), f"run_dir={run}", *common, *words]) == 0


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "model" / "model.safetensors")


def plain_rate(name: str, layers: int, pairs: bool, rate: float, decay: float) -> float:
    """BEiT's rule, counted from the bottom."""
    depth = 0  # patches, positions, tokens
    if name.startswith("stack.layers."):
        number = int(name.split(".")[2])
        depth = 1 + (number // 2 if pairs else number)
    elif name.startswith("stack.norm"):
        depth = layers + 1
    for _ in range(layers + 1 - depth):
        rate = rate * decay
    return rate


@pytest.mark.parametrize(
    ("encoder", "options", "layers"),
    [
        ("ssamba", {"residual": "doubling"}, 3),
        ("ssamba", {"residual": "plain"}, 6),
        ("ssast", {}, 6),
        ("aum", {}, 6),
        ("conformer", {}, 6),
        ("bilstm", {}, 6),
        ("ssd", {}, 6),
    ],
)
def test_each_layer_has_its_own_rate(encoder: str, options: dict[str, str], layers: int) -> None:
    options = {**SIZES[encoder]["nano"], "num_hidden_layers": 6, **options}
    made = AudioEncoder(encoder, options, 32, 32, 16, 16, 16, 16)
    groups = parameter_groups(made, 0.5, 0.05, 0.75, made.layers_above)
    rates = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert len(rates) == sum(len(g["params"]) for g in groups) == len(list(made.parameters()))
    plain = {
        id(p): decay for g in parameter_groups(made, 0.5, 0.05) for p in g["params"] for decay in [g["weight_decay"]]
    }
    for name, parameter in made.named_parameters():
        rate, decay = rates[id(parameter)]
        assert math.isclose(rate, plain_rate(name, layers, layers == 3, 0.5, 0.75)), name
        assert decay == plain[id(parameter)]
    # One group for each layer and kind of decay; only the end, a norm, has one kind. A Conformer's layers end it.
    end = encoder != "conformer"
    assert len(groups) == 2 * (layers + 1) + end and groups[0]["lr"] == 0.5 * 0.75 ** (not end)
    assert len({group["lr"] for group in groups}) == layers + 1 + end


def test_the_first_step_is_as_long_as_each_rate(recipes: Recipes, tmp_path: Path) -> None:
    """AdamW's first step changes every weight with a gradient by its rate."""
    words = [
        "model.encoder=ssast",
        "optimizer.weight_decay=0",
        "optimizer.learning_rate=0.01",
        "optimizer.head_learning_rate=0.02",
    ]
    finetune(recipes, tmp_path / "start", *words[:2], "optimizer.learning_rate=0", "trainer.max_steps=1")
    finetune(recipes, tmp_path / "run", *words, "optimizer.layer_decay=0.5", "trainer.max_steps=1")
    first, trained = weights(tmp_path / "start"), weights(tmp_path / "run")
    for name, tensor in trained.items():
        if name == "encoder.mask_token":
            continue
        rate = 0.02 if not name.startswith("encoder.") else plain_rate(name[len("encoder.") :], 2, False, 0.01, 0.5)
        assert float((tensor - first[name]).abs().max()) == pytest.approx(rate, rel=0.01), name


def test_a_run_with_rates_of_its_layers_goes_on_to_the_same_bits(recipes: Recipes, tmp_path: Path) -> None:
    words = ["model.encoder=ssamba", "optimizer.layer_decay=0.5", "trainer.checkpoint_every_steps=2"]
    finetune(recipes, tmp_path / "run", *words)
    whole = weights(tmp_path / "run")
    for path in (tmp_path / "run" / "checkpoints").glob("step-0000004.*"):
        path.unlink()
    finetune(recipes, tmp_path / "run", *words, "--resume=auto")
    assert all(torch.equal(tensor, whole[name]) for name, tensor in weights(tmp_path / "run").items())


def test_the_betas_are_the_recipes(recipes: Recipes, tmp_path: Path) -> None:
    """After one step AdamW's moments are (1 - beta1) times the gradient and (1 - beta2) times its square."""
    moments = {}
    for first, second in ((0.95, 0.999), (0.8, 0.9)):
        words = ["model.encoder=ssast", "trainer.max_steps=1", "optimizer.gradient_clip=0"]
        given = [] if first == 0.95 else [f"optimizer.beta1={first}", f"optimizer.beta2={second}"]
        finetune(recipes, tmp_path / str(first), *words, *given)
        held = read_checkpoint(tmp_path / str(first) / "checkpoints" / "step-0000001.ckpt")
        (state,) = held["optimizer_states"]
        moments[first] = state["state"][0]
        assert {tuple(group["betas"]) for group in state["param_groups"]} == {(first, second)}
    torch.testing.assert_close(moments[0.8]["exp_avg"] / 0.2, moments[0.95]["exp_avg"] / 0.05, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(
        moments[0.8]["exp_avg_sq"] / 0.1, moments[0.95]["exp_avg_sq"] / 0.001, rtol=1e-4, atol=1e-12
    )


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("optimizer.layer_decay=0", "optimizer.layer_decay is 0.0; expected more than 0 and at most 1"),
        ("optimizer.layer_decay=1.5", "optimizer.layer_decay is 1.5; expected"),
        ("optimizer.beta1=-0.1", "optimizer.beta1 is -0.1; expected 0 to below 1"),
        ("optimizer.beta2=1", "optimizer.beta2 is 1.0; expected"),
        ("model.drop_path=1", "model.drop_path is 1.0; expected 0 to below 1"),
    ],
)
def test_rates_that_are_none(
    word: str, said: str, recipes: Recipes, refused: Callable[..., str], tmp_path: Path
) -> None:
    assert said in refused("finetune", recipes["finetune"], f"run_dir={tmp_path / 'run'}", word)


def test_pretraining_has_one_rate(recipes: Recipes, refused: Callable[..., str], tmp_path: Path) -> None:
    said = refused("pretrain", recipes["pretrain"], f"run_dir={tmp_path / 'run'}", "optimizer.layer_decay=0.9")
    assert "optimizer.layer_decay is for fine-tuning; leave it 1 in pretraining" in said


def test_a_frozen_encoder_has_no_groups(recipes: Recipes) -> None:
    words = ["run_dir=unused", "audio.mean=-4", "audio.std=4", "model.encoder=ssast", "task.freeze_encoder=true"]
    recipe = load_recipe(recipes["finetune"], [*words, "optimizer.layer_decay=0.5"])
    assert isinstance(recipe, FinetuneRecipe)
    groups: list[dict[str, Any]] = build_finetuner(recipe).module.parameter_groups()
    assert {group["lr"] for group in groups} == {recipe.optimizer.learning_rate}
