"""Stochastic depth: which residual branches are left out of which clips, and that training alone leaves any out."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ssamba.build.runs import build_finetuner, build_pretrainer
from ssamba.cli import main
from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.masking import clip_generator
from ssamba.models.encoder import SIZES, find_stack
from ssamba.models.stack import Stack

LAYERS = 4
STACK_OPTIONS = [
    ("ssamba", {"residual": "plain"}),
    ("ssamba", {"residual": "doubling"}),
    ("ssast", {}),
    ("aum", {}),
    ("conformer", {}),
    ("bilstm", {}),
    ("ssd", {}),
]
each_stack = pytest.mark.parametrize(("encoder", "options"), STACK_OPTIONS, ids=lambda value: str(value))


def make_stack(encoder: str, options: dict[str, str]) -> Stack:
    torch.manual_seed(0)
    backend = {"scan_backend": "reference"} if find_stack(encoder).scans else {}
    made: Stack = find_stack(encoder)(**{**SIZES[encoder]["nano"], "num_hidden_layers": LAYERS, **options, **backend})
    return made


def generators(count: int) -> list[torch.Generator]:
    return [clip_generator(0, "test", place) for place in range(count)]


def test_the_chance_to_be_left_out_rises_from_the_first_layer_to_the_last() -> None:
    stack = make_stack("ssast", {})
    kept = stack.draw_kept(0.6, generators(4000))
    assert kept.shape == (LAYERS, 2, 4000) and kept.dtype == torch.float32
    for layer, chance in enumerate((0, 0.2, 0.4, 0.6)):
        for branch in kept[layer]:
            assert branch[branch > 0].unique().tolist() == pytest.approx([1 / (1 - chance)], rel=1e-6)
            assert abs(float((branch == 0).float().mean()) - chance) < 0.03
            assert abs(float(branch.mean()) - 1) < 0.05  # what is expected of a branch stays
    # The branches of a layer, and layers, are drawn apart.
    dropped = (kept == 0).float()
    assert abs(float((dropped[3, 0] * dropped[3, 1]).mean()) - 0.36) < 0.03
    assert abs(float((dropped[3, 0] * dropped[2, 0]).mean()) - 0.24) < 0.03


def attention(layer: Any, x: Tensor) -> Tensor:
    """As its definition: softmax(q k / sqrt(d)) v, head by head."""
    size = x.shape[-1] // layer.heads
    q, k, v = layer.qkv(layer.norm1(x)).split(x.shape[-1], -1)
    heads = []
    for n in range(layer.heads):
        own = slice(n * size, (n + 1) * size)
        weights = (q[..., own] @ k[..., own].transpose(1, 2) / size**0.5).softmax(-1)
        heads.append(weights @ v[..., own])
    out: Tensor = layer.proj(torch.cat(heads, -1))
    return out


def plain(stack: Any, x: Tensor, kept: Tensor) -> Tensor:
    """One clip (1, L, D) whose branches are multiplied by kept (N, R): a loop over layers."""
    for n, layer in enumerate(stack.layers):
        if type(layer).__name__ == "SsastLayer":
            x = x + float(kept[n, 0]) * attention(layer, x)
            x = x + float(kept[n, 1]) * layer.fc2(F.gelu(layer.fc1(layer.norm2(x))))
        elif type(layer).__name__ == "ConformerLayer":
            x = x + float(kept[n, 0]) * layer.ffn1(x) / 2
            y = layer.self_attn_layer_norm(x)
            x = x + float(kept[n, 1]) * layer.self_attn(*[y.transpose(0, 1)] * 3)[0].transpose(0, 1)
            x = x + float(kept[n, 2]) * layer.conv_module(x)
            x = layer.final_layer_norm(x + float(kept[n, 3]) * layer.ffn2(x) / 2)
        elif getattr(stack, "residual", "plain") == "plain":
            x = x + float(kept[n, 0]) * layer(x)
        elif n % 2 == 0:
            before, x = x, 2 * x + float(kept[n, 0]) * layer(x)
        else:
            x = x + float(kept[n, 0]) * layer(before.flip(1)).flip(1)
    norms = 2 if getattr(stack, "residual", "") == "doubling" else hasattr(stack, "norm")
    for _ in range(norms):
        x = stack.norm(x)
    return x


@each_stack
def test_each_clips_branches_are_multiplied_by_its_own_numbers(encoder: str, options: dict[str, str]) -> None:
    stack = make_stack(encoder, options)
    x = torch.randn(5, 7, 96, generator=torch.Generator().manual_seed(1))
    kept = stack.draw_kept(0.5, generators(5))
    assert (kept == 0).any() and (kept > 1.5).any()
    out = stack(x, None, kept)
    wanted = torch.cat([plain(stack, x[n : n + 1], kept[:, :, n]) for n in range(5)])
    torch.testing.assert_close(out, wanted, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(out, stack(x), atol=1e-3)
    assert torch.equal(stack(x, None, torch.ones_like(kept)), stack(x))


@each_stack
def test_the_second_forward_of_a_recomputed_layer_has_the_same_draw(encoder: str, options: dict[str, str]) -> None:
    stack = make_stack(encoder, options)
    x = torch.randn(3, 7, 96, generator=torch.Generator().manual_seed(1))
    kept = stack.draw_kept(0.5, generators(3))

    def gradients() -> list[Tensor]:
        stack.zero_grad()
        stack(x, None, kept).square().sum().backward()
        return [parameter.grad.clone() for parameter in stack.parameters()]

    once = gradients()
    stack.recompute = True
    assert all(torch.equal(one, other) for one, other in zip(once, gradients(), strict=True))


def built(recipes: dict[str, Path], kind: str, *words: str) -> Any:
    recipe = load_recipe(recipes[kind], ["run_dir=unused", "audio.mean=-4", "audio.std=4", *words])
    made = build_finetuner(recipe) if isinstance(recipe, FinetuneRecipe) else build_pretrainer(recipe)
    module = made.module
    module.watch = module.log_dict = module.log = lambda *_, **__: None
    return made


@pytest.mark.parametrize("kind", ["pretrain", "finetune"])
def test_training_draws_by_the_place_and_held_out_clips_are_whole(kind: str, recipes: dict[str, Path]) -> None:
    made = built(recipes, kind, "model.encoder=ssast", "model.drop_path=0.5")
    module, batch = made.module, next(iter(made.data.training_stream()))
    seen: list[Tensor | None] = []
    forward = module.model.encoder.stack.forward
    module.model.encoder.stack.forward = lambda x, states, kept: seen.append(kept) or forward(x, states, kept)
    for _ in range(2):
        torch.rand(3)  # what else is drawn has no say
        module.training_step(batch, 0)
    module.training_step({**batch, "positions": [place + 4 for place in batch["positions"]]}, 0)
    assert seen[0] is not None and seen[1] is not None and seen[2] is not None
    assert torch.equal(seen[0], seen[1]) and not torch.equal(seen[0], seen[2])
    wanted = [clip_generator(0, "drop path", place) for place in batch["positions"]]
    assert torch.equal(seen[0], module.model.encoder.stack.draw_kept(0.5, wanted))
    # Clips have the same draw in whatever batch they come.
    assert torch.equal(module.draw_kept(batch["positions"][1:2]), seen[0][:, :, 1:2])
    module.eval()
    module.validation_step(batch, 0)
    assert seen[3] is None
    assert built(recipes, kind, "model.encoder=ssast").module.draw_kept([0, 1]) is None


def rows(run: Path) -> list[dict[str, float]]:
    with (run / "metrics.csv").open(newline="") as file:
        found = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    clock = {"samples_per_second", "seconds"}
    return [{name: value for name, value in row.items() if name not in clock} for row in found]


def test_a_step_of_several_batches_leaves_out_what_one_batch_does(recipes: dict[str, Path], tmp_path: Path) -> None:
    words = ["model.encoder=ssast", "trainer.max_steps=2", "audio.mean=-4", "audio.std=4", "data.test=[]"]
    drop, found = "model.drop_path=0.5", {}
    runs = {"whole": [drop], "none": [], "parts": [drop, "trainer.accumulate=2", "trainer.recompute=true"]}
    for name, more in runs.items():
        assert main(["finetune", str(recipes["finetune"]), f"run_dir={tmp_path / name}", *words, *more]) == 0
        found[name] = rows(tmp_path / name)
    for whole, parts in zip(found["whole"], found["parts"], strict=True):
        assert parts == pytest.approx(whole, rel=1e-3)
    assert abs(found["whole"][0]["train/loss"] - found["none"][0]["train/loss"]) > 1e-4
