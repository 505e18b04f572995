"""Clips that the student hears changed and its teacher as they are, against descriptions written out here."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.audio import samples_for
from ssamba.build.runs import build_pretrainer
from ssamba.cli import main
from ssamba.config import PretrainRecipe, load_recipe
from ssamba.data.batches import Batch
from ssamba.masking import clip_generator, clip_generators
from ssamba.models.patches import gather_patches
from ssamba.objectives import Changes, ChangeSettings, changed, draw_changes

Recipes = dict[str, Path]
RATE, STD = 16000, 4.0
DECIBEL = math.log(10) / 10 / (2 * STD)  # of a normalised spectrogram
WORDS = ["objective.changes.frequency_shift=9", "objective.changes.gain=6", "objective.changes.tilt=4"]
LATENT = ["objective.parts.contrastive=0", "objective.parts.latent=1", "objective.parts.reconstruction=2"]


def build(recipes: Recipes, *words: str) -> Any:
    recipe = load_recipe(recipes["pretrain"], ["run_dir=unused", "audio.mean=-4", f"audio.std={STD}", *words])
    assert isinstance(recipe, PretrainRecipe)
    module: Any = build_pretrainer(recipe).module.eval()
    module.seen = []
    module.watch = lambda keys, **values: module.seen.append(values)
    return module


def batch_of(lengths: list[int], first: int = 20) -> Batch:
    generator = torch.Generator().manual_seed(1)
    waveform = 0.1 * torch.randn(len(lengths), samples_for(64, RATE), generator=generator)
    return {
        "waveform": waveform * (torch.arange(waveform.shape[1]) < torch.tensor(lengths).unsqueeze(1)),
        "lengths": torch.tensor(lengths),
        "labels": torch.empty(0),
        "keys": [str(clip) for clip in range(len(lengths))],
        "positions": list(range(first, first + len(lengths))),
        "consumed": len(lengths),
        "skipped": [],
    }


def changes(bins: list[int], gain: list[float], tilt: list[float], frames: list[int]) -> Changes:
    return Changes(torch.tensor(bins), torch.tensor(gain), torch.tensor(tilt), torch.tensor(frames))


def test_a_clip_is_moved_and_made_louder_and_its_padding_is_not() -> None:
    clips = torch.randn(3, 5, 7, generator=torch.Generator().manual_seed(0))
    out = changed(clips, changes([2, -1, 0], [0.0, 6.0, -3.0], [4.0, 0.0, 0.0], [5, 3, 0]), 2 * STD)
    for frame in range(5):
        for place in range(7):
            up = clips[0, frame, max(0, place - 2)] + 4.0 * DECIBEL * (place / 3 - 1)
            assert out[0, frame, place].item() == pytest.approx(up.item(), abs=1e-6)
            down = clips[1, frame, min(6, place + 1)] + 6.0 * DECIBEL if frame < 3 else clips[1, frame, place]
            assert out[1, frame, place].item() == pytest.approx(down.item(), abs=1e-6)
    assert torch.equal(out[2], clips[2])


def test_a_decibel_is_one_of_the_waveforms_power(recipes: Recipes) -> None:
    module, batch = build(recipes), batch_of([samples_for(64, RATE)] * 2)
    frames = module.log_mel.frames(batch["lengths"])
    louder = module.log_mel(batch["waveform"] * 10 ** (6 / 20), batch["lengths"])
    told = Changes(torch.zeros(2, dtype=torch.int64), torch.full((2,), 6.0), torch.zeros(2), frames)
    clips = module.log_mel(batch["waveform"], batch["lengths"])
    above = clips > -1.4  # the floor, which some narrow filters have
    assert above.float().mean() > 0.95
    torch.testing.assert_close(changed(clips, told, 2 * STD)[above], louder[above], rtol=0, atol=1e-4)


def test_changes_are_as_large_as_they_are_said_to_be() -> None:
    drawn = draw_changes(ChangeSettings(3, 6.0, 2.0), clip_generators(0, "changes", range(4000)), torch.arange(4000))
    assert torch.bincount(drawn.bins + 3, minlength=7).div(4000).tolist() == pytest.approx([1 / 7] * 7, abs=0.02)
    for values, deviation in ((drawn.gain, 6.0), (drawn.tilt, 2.0)):
        assert values.std().item() == pytest.approx(deviation, rel=0.05)
        assert abs(values.mean().item()) < 0.1 * deviation
    assert abs(torch.corrcoef(torch.stack([drawn.bins.float(), drawn.gain, drawn.tilt])).triu(1)).max() < 0.06
    assert torch.equal(drawn.frames, torch.arange(4000))


def test_each_mask_of_a_clip_is_changed_by_itself_whoever_stands_beside_it(recipes: Recipes) -> None:
    module = build(recipes, *WORDS, "mask.per_clip=2")
    whole = module.draw_changes([4, 9], torch.tensor([16000, 8000]))
    alone = module.draw_changes([9], torch.tensor([8000]))
    for name in Changes._fields:
        assert torch.equal(getattr(whole, name)[2:], getattr(alone, name))
    assert whole.frames.tolist() == [98, 98, 48, 48]
    assert len(set(whole.gain.tolist())) == 4
    first = draw_changes(ChangeSettings(9, 6.0, 4.0), [clip_generator(0, "changes", 4)], torch.tensor([98]))
    assert torch.equal(whole.gain[:1], first.gain) and torch.equal(whole.bins[:1], first.bins)


@pytest.mark.parametrize("encode", ["all", "visible"])
def test_a_step_hears_changed_clips_and_is_told_of_whole_ones(encode: str, recipes: Recipes) -> None:
    module = build(recipes, *WORDS, *LATENT, f"model.encode={encode}", "mask.per_clip=2", "data.short=pad")
    samples = samples_for(64, RATE)
    batch = batch_of([samples, 3 * samples // 4, samples // 2])
    heard: list[Tensor] = []
    module.teacher.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    module.model.register_forward_pre_hook(lambda _, given: heard.append(given[0]))
    loss = module.training_step(batch, 0)
    (values,), (told, student) = module.seen, heard
    clips = module.log_mel(batch["waveform"], batch["lengths"])
    assert torch.equal(told, clips)
    drawn = module.draw_changes(batch["positions"], batch["lengths"])
    wanted = changed(clips.repeat_interleave(2, 0), drawn, 2 * STD)
    assert torch.equal(student, wanted)
    assert not torch.equal(student[0], student[1])

    mask, own = module.draw_mask("train", batch["positions"], batch["lengths"], 2), module.own_patches(batch["lengths"])
    said = module.model(wanted, mask, module.masking.masked, own.repeat_interleave(2, 0))
    targets = gather_patches(module.teacher(clips, own).patches.repeat_interleave(2, 0), said.places)
    errors = (said.more["latent"] - targets).square().mean(2)
    torch.testing.assert_close(values["latent"], (errors * said.hidden).sum() / said.hidden.sum())
    torch.testing.assert_close(loss, values["latent"] + 2 * values["reconstruction"])
    # Patches are told as they are heard.
    patches = gather_patches(module.model.encoder.patch_shape.cut(wanted), said.places)
    torch.testing.assert_close(said.target, patches)


def test_each_change_changes_a_step_and_none_is_what_there_was(recipes: Recipes) -> None:
    def loss(*words: str) -> Any:
        module = build(recipes, *LATENT, *words)
        module.training_step(batch_of([samples_for(64, RATE)] * 3), 0)
        return module.seen[0]["latent"].item()

    plain = loss()
    assert loss("objective.changes.gain=0") == plain
    assert len({plain, *(loss(word) for word in WORDS), loss(*WORDS)}) == 5


def test_validation_changes_nothing(recipes: Recipes) -> None:
    def scores(*words: str) -> dict[str, Tensor]:
        module = build(recipes, *LATENT, *words)
        module.validation_step(batch_of([samples_for(64, RATE)] * 3), 0)
        ((_, values),) = module._scored
        return dict(values)

    plain, changing = scores(), scores(*WORDS)
    assert all(torch.equal(plain[name], changing[name]) for name in plain)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("objective.changes.gain=-1", "objective.changes.gain is -1.0; expected at least 0"),
        ("objective.changes.tilt=101", "objective.changes.tilt is 101.0; expected at least 0 and at most 100"),
        ("objective.changes.frequency_shift=-1", "objective.changes.frequency_shift is -1; expected at least 0"),
    ],
)
def test_a_mistake_is_told(word: str, told: str, recipes: Recipes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["pretrain", str(recipes["pretrain"]), "run_dir=unused", word]) == 2
    assert told in capsys.readouterr().err
