"""The benchmarks' rivals compute what ours computes, and the scripts run. No test looks at a time."""

import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.evaluation.efficiency import ScanShape, exact, relative_errors, scan_inputs, value_and_gradients
from ssamba.masking import cluster_mask
from ssamba.models.encoder import AudioEncoder
from ssamba.models.heads import MaskedPatchModel

pytest.importorskip("mambapy")

Capture = pytest.CaptureFixture[str]
Call = Callable[..., dict[str, Any]]
BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A script's name -> its module."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def call(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    """Run a script's main with these words; what it writes."""

    def run(name: str, *words: str) -> dict[str, Any]:
        out = tmp_path / f"{name}.json"
        monkeypatch.setattr(sys, "argv", [name, "--out", str(out), *words])
        script(name).main()
        result: dict[str, Any] = json.loads(out.read_text())
        return result

    return run


# The scan


@pytest.mark.parametrize("tokens", [1, 2, 16, 37])
@pytest.mark.parametrize("rival", ["loop_scan", "parallel_scan"])
def test_rivals_of_the_scan_compute_its_values_and_gradients(
    rival: str, tokens: int, script: Callable[[str], Any]
) -> None:
    scan = script("scan")
    inputs = {name: x.double() for name, x in scan_inputs(ScanShape(1, 2, tokens, 6, 3)).items()}
    dout = torch.randn(2, tokens, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    wanted = exact(inputs, dout)
    if rival == "loop_scan":
        turned = scan.other_layout({**inputs, "dout": dout})
        found = scan.other_layout(value_and_gradients(scan.loop_scan, turned, turned.pop("dout")))
    else:
        found = value_and_gradients(scan.parallel_scan, inputs, dout)
    # softplus is linear above 20 in torch, which the rivals call, and above 40 in ours.
    assert max(relative_errors(found, wanted).values()) < 1e-8


def test_scan_script(call: Call, capsys: Capture) -> None:
    sizes = ["--batch", "1", "--tokens", "12", "--width", "8", "--states", "4"]
    result = call("scan", *sizes, "--rounds", "2", "--loop-rounds", "1")
    assert list(result["contenders"]) == ["loop", "pscan", "cpu", "torch-chunked"]
    for found in result["contenders"].values():
        assert max(found["errors"].values()) < 1e-5
    assert len(result["contenders"]["loop"]["seconds"]["forward_backward"]) == 1
    bounds = {goal["quantity"]: goal["bound"] for goal in result["goals"]}
    assert bounds["forward, loop / cpu"] == 30 and bounds["forward + backward, pscan / cpu"] == 15
    printed = capsys.readouterr().out
    assert all(f"| {quantity} " in printed for quantity in bounds)


# Encoders


def test_the_original_structure_computes_the_same_values_and_gradients(script: Callable[[str], Any]) -> None:
    encoders = script("encoders")
    torch.manual_seed(0)
    options = {
        "hidden_size": 32,
        "num_hidden_layers": 4,
        "state_size": 4,
        "expand": 2,
        "conv_kernel": 4,
        "residual": "doubling",
        "layer_norm_eps": 1e-5,
    }
    ours = MaskedPatchModel(AudioEncoder("ssamba", options, 128, 48, 16, 16, 16, 16, scan_backend="reference"))
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter += 0.1 * torch.randn_like(parameter)  # away from zeros and ones
    original = encoders.as_original(ours)
    clips = encoders.make_clips(2, 48)
    mask = cluster_mask(8, 3, 12, [torch.Generator().manual_seed(0)] * 2)

    def measured(model: MaskedPatchModel, *masks: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            encoded = model.encoder(clips, mask)
        loss = encoders.joint_loss(model, clips, *masks)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        return {"tokens": encoded.tokens, "class_tokens": encoded.class_tokens, "loss": loss.detach(), **gradients}

    wanted, found = measured(ours, mask), measured(original, mask, mask)
    # It adds the same to all scores of a patch, so its true gradient is 0, and what is there is rounding.
    unseen = "contrastive_head.2.bias"
    assert max(wanted.pop(unseen).abs().max(), found.pop(unseen).abs().max()) < 1e-6
    assert found.keys() == wanted.keys() and all(x.abs().max() > 0 for x in wanted.values())
    assert max(relative_errors(found, wanted).values()) < 2e-5


def test_each_pass_of_the_original_has_its_own_mask_and_objective(script: Callable[[str], Any]) -> None:
    encoders = script("encoders")
    model = MaskedPatchModel(encoders.make_encoder("ssamba", "nano", 48))
    clips, generator = encoders.make_clips(1, 48), torch.Generator().manual_seed(0)
    first, second = (cluster_mask(8, 3, 12, [generator]) for _ in range(2))
    parts = model(clips, first), model(clips, second)
    wanted = encoders.info_nce(parts[0].contrastive, parts[0].target).loss
    wanted = wanted + 10 * encoders.reconstruction_mse(parts[1].reconstruction, parts[1].target)
    torch.testing.assert_close(encoders.joint_loss(model, clips, first, second), wanted)


def test_plain_attention_is_left_out_where_its_matrices_are_too_large(
    script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    encoders = script("encoders")
    one_layer = 4 * 3 * encoders.token_count(32) ** 2
    monkeypatch.setattr(encoders, "LARGEST_ATTENTION", one_layer)
    times = encoders.times_of(encoders.KINDS, "nano", 32, 1, 1)
    assert {name: list(found) for name, found in times.items()} == {
        "forward": ["ssamba", "ssast fused", "ssast plain"],
        "step": ["ssamba", "ssast fused"],
    }
    assert capsys.readouterr().out.startswith("ssast plain, step, 1 x 17 tokens is left out")


def test_steps_leave_no_gradients_and_memory_is_measured(script: Callable[[str], Any]) -> None:
    encoders = script("encoders")
    encoder = encoders.make_encoder("ssast", "nano", 32)
    encoders.differentiate(encoder, encoders.make_clips(1, 32))
    assert all(parameter.grad is None for parameter in encoder.parameters())
    memory = encoders.memory_of("ssamba", "nano", 256, "step", 1)
    assert memory is None or memory > 2**20


def test_encoders_script_keeps_the_parts_of_earlier_calls(
    call: Call, script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(script("encoders"), "BESIDE_SSAST", {32: (1, 0.8)})
    rest = ["--size", "nano", "--rounds", "1", "--longest", "32"]
    first = call("encoders", "--parts", "original", *rest)
    assert [goal["bound"] for goal in first["original"]["goals"]] == [20, 50]
    assert len(first["original"]["joint_step_seconds"]["original"]) == 1
    second = call("encoders", "--parts", "ssast", *rest)
    assert second["original"] == first["original"]
    assert [goal["quantity"] for goal in second["ssast"]["goals"]] == [
        f"{name}, 17 tokens, SSAST fused / SSAMBA" for name in ("forward", "step")
    ]
    assert "| forward, 17 tokens, SSAST fused / SSAMBA | >= 0.8" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        call("encoders", "--parts", "scaling", *rest)


def test_growth_is_the_slope_of_the_logarithms_and_is_drawn(script: Callable[[str], Any], tmp_path: Path) -> None:
    encoders = script("encoders")
    sizes = []
    for tokens in (100, 200, 800):
        seconds = {"ssamba": [1e-3 * tokens] * 3} | ({"ssast plain": [1e-5 * tokens**2]} if tokens < 800 else {})
        taken = {"ssamba": tokens**1.5, "ssast plain": None}
        sizes.append(
            {
                "tokens": tokens,
                "seconds": {"forward": seconds, "step": seconds},
                "bytes": {"forward": taken, "step": taken},
            }
        )
    assert encoders.exponent(sizes, "seconds", "step") == pytest.approx(1)
    assert encoders.exponent(sizes, "bytes", "forward") == pytest.approx(1.5)
    assert encoders.series(sizes, "seconds", "step", "ssast plain") == [
        (100, pytest.approx(0.1)),
        (200, pytest.approx(0.4)),
    ]
    encoders.draw(tmp_path / "growth.png", sizes, "growth")
    assert (tmp_path / "growth.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


# Half precision


def test_a_hard_batch_has_clips_of_every_kind(script: Callable[[str], Any]) -> None:
    x = script("training").hard_batch(6, 64, torch.Generator().manual_seed(0))
    assert x.shape == (6, 64, 128) and torch.isfinite(x).all()
    assert [bool((clip == clip[0, 0]).all()) for clip in x] == [True, True, False, False, False, False]
    assert (x[2, -1] == x[1, 0, 0]).all() and x[3].abs().max() == 1e4
    assert 19 < x[4:].std() < 21


def test_training_script(call: Call, capsys: Capture) -> None:
    result = call("training", "--steps", "3", "--batch", "4", "--frames", "48")
    assert result["runs"]["bfloat16"]["not_finite"] == {"losses": 0, "gradients": 0, "parameters": 0}
    assert all(goal["measured"] == 0 and goal["bound"] == 0 for goal in result["goals"]) and len(result["goals"]) == 3
    assert "steps with gradients that are not finite" in capsys.readouterr().out


def test_what_is_not_finite_is_counted(script: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    training = script("training")
    monkeypatch.setattr(training, "hard_batch", lambda *_: torch.full((4, 48, 128), float("inf")))
    run = training.train(torch.bfloat16, "cpu", 2, 4, 48)
    assert run["not_finite"] == {"losses": 2, "gradients": 2, "parameters": 2}
