"""Columns in time: what each of them is, where it lies, and that a clip is encoded at its own length and alone."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import ssamba.integrations.timeline
from ssamba.errors import UserError
from ssamba.hub import SsambaModel
from ssamba.integrations.timeline import Timeline, spread
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings

Runs = Callable[[str], Path]
RATE = 16000
each_encoder = pytest.mark.parametrize("encoder", ["ssamba", "ssast"])


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def model(
    encoder: str = "ssamba",
    fshape: int = 16,
    tshape: int = 16,
    time_stride: int = 16,
    max_length: int = 64,
    sampling_rate: int = RATE,
    short: str = "repeat",
) -> SsambaModel:
    """One of fresh weights; "repeat", since a timeline must not."""
    torch.manual_seed(0)
    network = AudioEncoder(encoder, SIZES[encoder]["nano"], 128, max_length, fshape, tshape, fshape, time_stride)
    return SsambaModel(MaskedPatchModel(network), AudioSettings(sampling_rate, -4.0, 4.0, short)).eval()


def beside(grid: Tensor) -> Tensor:
    """(1, F, P, D) -> (P, F * D)."""
    return torch.cat(list(grid[0]), dim=1)


def held(spectrogram: Tensor, begin: int, frames: int) -> Tensor:
    """Frames from `begin` on, which may lie before the clip, the first and the last frame held outside of it."""
    before, after = max(0, -begin), max(0, begin + frames - len(spectrogram))
    padded = np.pad(spectrogram.numpy(), ((before, after), (0, 0)), mode="edge")
    return torch.from_numpy(padded[begin + before :][:frames].copy())


@pytest.mark.parametrize(
    ("tshape", "time_stride", "max_hop_ms", "hop", "first_ms"),
    [
        (16, 16, 50, 4, 27.5),  # 87.5 ms is the middle of 16 frames, six frames earlier is as near to 20 as it gets
        (16, 16, 79, 4, 27.5),
        (16, 16, 80, 8, 47.5),
        (16, 16, math.inf, 16, 87.5),
        (16, 10, 50, 5, 27.5),
        (16, 7, 50, 1, 7.5),
        (2, 2, 50, 2, 17.5),
        (2, 1, 50, 1, 7.5),
        (2, 4, 50, 4, 17.5),
    ],
)
def test_the_hop_is_the_longest_part_of_the_stride_that_is_allowed(
    tshape: int, time_stride: int, max_hop_ms: float, hop: int, first_ms: float
) -> None:
    timeline = Timeline(model(tshape=tshape, time_stride=time_stride), max_hop_ms)
    assert timeline.hop_ms == 10 * hop and timeline.hop_samples == 160 * hop
    torch.testing.assert_close(timeline.middles_ms(3), first_ms + 10.0 * hop * torch.arange(3))


def test_rates_that_no_hop_of_10_ms_fits() -> None:
    timeline = Timeline(model(sampling_rate=22050))
    assert timeline.hop_samples == 4 * 220 and timeline.hop_ms == pytest.approx(39.909, abs=1e-3)
    twenty_minutes = timeline.columns(20 * 60 * 22050)
    assert twenty_minutes == math.ceil(20 * 60 * 22050 / 880)
    assert timeline.middles_ms(twenty_minutes)[-1].item() == pytest.approx(20 * 60 * 1000, abs=40)


def test_a_hop_shorter_than_a_frame_s_is_refused() -> None:
    with pytest.raises(UserError, match="max_hop_ms is 9; the frames of this model are 10 ms apart"):
        Timeline(model(), 9)


@each_encoder
@pytest.mark.parametrize(("fshape", "tshape"), [(16, 16), (128, 2)])
def test_columns_are_shifted_passes_of_the_model_itself(encoder: str, fshape: int, tshape: int) -> None:
    network, waveform = model(encoder, fshape, tshape, tshape), noise(9000)
    timeline = Timeline(network)
    passes, lead = {16: (4, 6), 2: (1, 0)}[tshape]
    spectrogram = network.feature_extractor.log_mel(waveform[None], torch.tensor([9000]))[0]
    assert len(spectrogram) == 54
    columns = math.ceil(9000 / {16: 640, 2: 320}[tshape])
    every = math.ceil(columns / passes)
    with torch.inference_mode():
        found = timeline([waveform], [0, -1])
        for shift in range(passes):
            values = held(spectrogram, shift * tshape // passes - lead, every * tshape)
            expected = network(values[None], layers=[0, -1]).hidden_states
            for one, other in zip(found, expected, strict=True):
                assert one.shape == (1, columns, timeline.size)
                part = one[0, shift::passes]
                torch.testing.assert_close(part, beside(other)[: len(part)], rtol=1e-4, atol=1e-5)
        for rows in timeline([waveform], range(network.num_hidden_states)):
            assert rows.isfinite().all() and rows.std(1).min() > 1e-3


@each_encoder
def test_a_long_clip_is_windows_of_the_training_s_length(encoder: str) -> None:
    network = model(encoder)  # of clips of 4 columns
    timeline, waveform = Timeline(network, 160), noise(RATE * 2)
    spectrogram = network.feature_extractor.log_mel(waveform[None], torch.tensor([RATE * 2]))[0]
    with torch.inference_mode():
        found = timeline([waveform])[0][0]
        assert len(found) == 13
        # Windows 0..3, 3..6, 6..9, 9..12: a column that two hold is of the one in which it is further from the end.
        for start, of_it in [(0, [0, 1, 2]), (3, [4, 5]), (6, [7, 8]), (9, [10, 11, 12])]:
            values = held(spectrogram, 16 * start, 64)
            expected = beside(network(values[None], layers=[-1]).hidden_states[0])
            for column in of_it:
                torch.testing.assert_close(found[column], expected[column - start], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 7, 64])
def test_windows_cover_all_evenly_and_as_few_as_can(size: int) -> None:
    for places in range(size, 6 * size + 3):
        starts, owner = spread(places, size)
        assert len(starts) == math.ceil(places / size) and starts[0] == 0 and starts[-1] == places - size
        steps = starts.diff()
        assert not len(steps) or (steps.max() - steps.min() <= 1 and steps.max() <= size)
        offsets = torch.arange(places) - starts[owner]
        assert offsets.min() >= 0 and offsets.max() < size
        # No other window holds a place nearer to its middle, by more than the half that an odd sum leaves.
        distance = (torch.arange(places)[:, None] - starts - (size - 1) / 2).abs()
        assert (distance.gather(1, owner[:, None])[:, 0] <= distance.min(1).values + 0.5).all()


@each_encoder
def test_a_clip_in_a_batch_is_as_alone(encoder: str) -> None:
    timeline = Timeline(model(encoder))
    clips = [noise(n, n) for n in (1, 300, 2799, 2800, 8000, 8000, 20001)]
    with torch.inference_mode():
        together = timeline(clips, [1, -1])
        for number, clip in enumerate(clips):
            columns = timeline.columns(len(clip))
            for one, other in zip(together, timeline([clip], [1, -1]), strict=True):
                torch.testing.assert_close(one[number, :columns], other[0], rtol=1e-4, atol=1e-5)
                assert not one[number, columns:].any() and one[number, :columns].isfinite().all()


def test_how_much_is_encoded_at_once_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    timeline, clips = Timeline(model()), [noise(RATE), noise(RATE, 1), noise(5000)]
    with torch.inference_mode():
        expected = timeline(clips)[0]
        batches = []
        timeline.model.register_forward_pre_hook(lambda _, given: batches.append(len(given[0])))
        monkeypatch.setattr(ssamba.integrations.timeline, "_TOKENS", 3 * 8 * 4)
        torch.testing.assert_close(timeline(clips)[0], expected, rtol=1e-4, atol=1e-5)
    assert batches == [3, 3, 3, 3, 3, 1, 4]  # 2 clips of 2 windows and 4 passes; 1 window of 2 columns


@pytest.mark.parametrize("tshape", [16, 2])
def test_there_is_a_column_for_each_hop_that_begins(tshape: int) -> None:
    timeline = Timeline(model(fshape=128, tshape=tshape, time_stride=tshape))
    hop = timeline.hop_samples
    lengths = [1, 2, 159, 399, 400, 401, hop - 1, hop, hop + 1, 2799, 2800, 2801, *(997 * n for n in range(1, 20))]
    with torch.inference_mode():
        for samples in lengths:
            columns = timeline.columns(samples)
            assert (columns - 1) * hop < samples <= columns * hop
            assert timeline([noise(samples)])[0].shape == (1, columns, 96)


@each_encoder
@pytest.mark.parametrize("tshape", [16, 2])
@pytest.mark.parametrize("onset_ms", [130, 305, 470, 777])
def test_an_onset_moves_the_columns_at_its_time(encoder: str, tshape: int, onset_ms: int) -> None:
    timeline = Timeline(model(encoder, 128 if tshape == 2 else 16, tshape, tshape, max_length=112))
    reach = (10 * (tshape - 1) + 25) / 2  # of a patch to both sides of its middle

    def changes(before: Tensor, layer: int) -> Tensor:
        after = before.clone()
        after[onset_ms * 16 :] = noise(RATE, 1)[onset_ms * 16 :]
        with torch.inference_mode():
            return (timeline([after], [layer])[0] - timeline([before], [layer])[0])[0]

    middles = timeline.middles_ms(timeline.columns(RATE))
    # Digital silence moves as soon as a patch reaches the first sample that is not.
    moved = changes(torch.zeros(RATE), 0).abs().amax(1) > 0
    assert torch.equal(moved, middles + reach > onset_ms)
    # Half of the way is gone where the middle of a patch is at the onset; a column is as wide as the hop, and a frame
    # that holds half of a sound is already as loud. What stands before changes the encoder's output a little, too.
    inside = (middles > onset_ms + reach) & (middles < 1000 - reach)
    for layer, tolerance in ((0, timeline.hop_ms / 2 + 12.5), (-1, timeline.hop_ms * 1.5)):
        change = changes(0.02 * noise(RATE), layer)
        way = change @ change[inside].mean(0)
        crossed = int((way > way[inside].mean() / 2).nonzero()[0])
        assert abs(middles[crossed] - timeline.hop_ms / 2 - onset_ms) <= tolerance


def tone(samples: int, hertz: float) -> Tensor:
    return 0.3 * torch.sin(2 * math.pi * hertz / RATE * torch.arange(samples, dtype=torch.float64)).float()


def test_nothing_happens_at_the_ends_of_a_steady_sound() -> None:
    timeline = Timeline(model())
    for samples in (500, 900, 2000, 9440):
        # Whole periods fit a frame's hop, so all frames are one frame; the positions cancel in the difference.
        with torch.inference_mode():
            high, low = timeline([tone(samples, 2000.0), tone(samples, 500.0)], [0])[0]
        change = high - low
        torch.testing.assert_close(change, change[:1].expand_as(change), rtol=0, atol=0.02 * change.abs().max())
        assert change.std() > 0.05


@each_encoder
def test_gradients_reach_the_weights_and_the_waveform(encoder: str) -> None:
    network = model(encoder)
    timeline = Timeline(network)
    clips = [noise(12000).requires_grad_(), noise(3000).requires_grad_()]
    timeline(clips)[0].square().sum().backward()
    for clip in clips:
        assert clip.grad is not None and clip.grad.abs().max() > 0
    for name, parameter in network.network.encoder.named_parameters():
        if name != "mask_token":
            assert parameter.grad is not None and parameter.grad.abs().max() > 0, name


def test_a_folder_gives_the_timeline_of_its_model(pretrained: Runs) -> None:
    timeline = Timeline.from_pretrained(pretrained("ssamba"), 80)
    assert timeline.hop_ms == 80 and timeline.size == 8 * 96 and timeline.sampling_rate == RATE
    with torch.inference_mode():
        expected = Timeline(SsambaModel.from_pretrained(pretrained("ssamba")), 80)([noise(9000)])[0]
        assert torch.equal(timeline([noise(9000)])[0], expected)


@pytest.mark.parametrize(
    ("clips", "said"),
    [
        ([torch.zeros(5), torch.zeros(0)], r"waveform 1 has shape \(0,\); expected one or more samples \(S,\)"),
        ([torch.zeros(2, 5)], r"waveform 0 has shape \(2, 5\)"),
        ([], "there is no waveform"),
    ],
)
def test_what_is_no_waveform_is_named(clips: list[Tensor], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Timeline(model())(clips)
