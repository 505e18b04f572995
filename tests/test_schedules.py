"""Which parameters decay, and what the learning rate is at each step."""

import math

import pytest
import torch

from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.schedules import parameter_groups, warmup_then_constant, warmup_then_cosine


def model(encoder: str, kind: str) -> torch.nn.Module:
    body = AudioEncoder(encoder, SIZES[encoder]["nano"], 32, 32, 16, 16, 16, 16)
    return MaskedPatchModel(body) if kind == "pretraining" else AudioClassifier(body, 4, "mean")


each_model = pytest.mark.parametrize(
    ("encoder", "kind"), [(e, k) for e in SIZES for k in ("pretraining", "classifier")]
)


@each_model
def test_every_parameter_is_in_exactly_one_group(encoder: str, kind: str) -> None:
    module = model(encoder, kind)
    groups = parameter_groups(module, 1e-3, 0.05)
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(id(parameter) for parameter in module.parameters())
    assert [(group["lr"], group["weight_decay"]) for group in groups] == [(1e-3, 0.05), (1e-3, 0.0)]


@each_model
def test_weights_of_products_and_convolutions_decay_and_nothing_else_does(encoder: str, kind: str) -> None:
    module = model(encoder, kind)
    decayed = {id(parameter) for parameter in parameter_groups(module, 1e-3, 0.05)[0]["params"]}
    parts = {
        torch.nn.Linear: ("weight",),
        torch.nn.Conv1d: ("weight",),
        torch.nn.MultiheadAttention: ("in_proj_weight",),
    }
    parts[torch.nn.LSTM] = tuple(f"weight_{kind}_l0{end}" for kind in ("ih", "hh") for end in ("", "_reverse"))
    weights = {
        f"{name}.{weight}"
        for name, part in module.named_modules()
        for kind, names in parts.items()
        for weight in names
        if isinstance(part, kind)
    }
    assert {name for name, parameter in module.named_parameters() if id(parameter) in decayed} == weights


def test_scan_parameters_positions_tokens_norms_and_biases_do_not_decay() -> None:
    module = model("ssamba", "pretraining")
    kept = {id(parameter) for parameter in parameter_groups(module, 1e-3, 0.05)[1]["params"]}
    named = dict(module.named_parameters())
    layer = "encoder.stack.layers.0."
    for name in ("A_log", "D", "dt_proj.bias", "conv.bias"):
        assert id(named[f"{layer}mixer.ahead.{name}"]) in kept and id(named[f"{layer}mixer.back.{name}"]) in kept
    for name in ("positions", "class_tokens", "class_positions", "mask_token", "projection.bias", "stack.norm.weight"):
        assert id(named[f"encoder.{name}"]) in kept
    assert id(named[f"{layer}norm.weight"]) in kept and id(named["contrastive_head.0.bias"]) in kept


def test_frozen_parameters_are_in_no_group_and_an_empty_group_is_left_out() -> None:
    module = model("ssast", "classifier")
    module.encoder.requires_grad_(False)
    groups = parameter_groups(module, 1e-3, 0.05)
    grouped = {id(parameter) for group in groups for parameter in group["params"]}
    assert grouped == {id(parameter) for parameter in module.head.parameters()}
    module.head[1].weight.requires_grad_(False)
    assert [group["weight_decay"] for group in parameter_groups(module, 1e-3, 0.05)] == [0.0]


def test_undecayed_parameters_keep_their_value_where_decayed_ones_shrink() -> None:
    module = model("ssamba", "classifier")
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(module, 0.1, 0.5))
    for parameter in module.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in module.named_parameters():
        factor = 0.95 if name.endswith(("proj.weight", "conv.weight", "projection.weight", "head.1.weight")) else 1
        torch.testing.assert_close(parameter.detach(), factor * before[name], msg=name)


def test_warm_up_is_a_line_that_ends_at_one() -> None:
    factor = warmup_then_constant(4)
    assert [factor(step) for step in (0, 1, 2, 3, 4, 1000)] == [0.25, 0.5, 0.75, 1, 1, 1]
    assert [warmup_then_constant(0)(step) for step in (0, 1)] == [1, 1]


def test_the_cosine_falls_from_one_after_warm_up_to_its_final_fraction() -> None:
    factor = warmup_then_cosine(10, 110, 0.1)
    assert [factor(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert factor(10) == 1
    assert factor(35) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert factor(60) == pytest.approx(0.55)
    assert factor(110) == pytest.approx(0.1) and factor(5000) == pytest.approx(0.1)
    falling = [factor(step) for step in range(10, 111)]
    assert falling == sorted(falling, reverse=True)


def test_the_cosine_works_without_warm_up_and_with_nothing_but_warm_up() -> None:
    assert warmup_then_cosine(0, 100, 0.0)(0) == 1
    assert warmup_then_cosine(0, 100, 0.0)(50) == pytest.approx(0.5)
    assert warmup_then_cosine(0, 100, 0.0)(100) == pytest.approx(0.0)
    assert [warmup_then_cosine(5, 5, 0.2)(step) for step in (0, 4, 6)] == pytest.approx([0.2, 1.0, 0.2])
