"""What X-ARES asks of an encoder: its attributes, batches and single clips, a length that the hop foretells."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssamba.errors import UserError
from ssamba.hub import SsambaModel
from ssamba.integrations.timeline import Timeline
from ssamba.integrations.xares import SsambaEncoder

Runs = Callable[[str], Path]
each_encoder = pytest.mark.parametrize("encoder", ["ssamba", "ssast"])


@each_encoder
def test_the_encoder_is_what_xares_checks(encoder: str, pretrained: Runs) -> None:
    made = SsambaEncoder(pretrained(encoder))
    assert isinstance(made, torch.nn.Module) and type(made).__name__.endswith("Encoder")
    assert (made.sampling_rate, made.output_dim, made.hop_size_in_ms) == (16000, 8 * 96, 40.0)
    audio = 0.1 * torch.randn(2, 50000)
    found = made(audio)
    assert found.shape == (2, math.ceil(3125 / 40), 8 * 96) and found.dtype == torch.float32
    assert not found.requires_grad
    with torch.inference_mode():
        expected = Timeline(SsambaModel.from_pretrained(pretrained(encoder)))(list(audio))[0]
        assert torch.equal(made(audio), expected)
    torch.testing.assert_close(made(audio[1])[0], found[1], rtol=1e-4, atol=1e-5)
    assert made(audio[1]).shape == (1, 79, 8 * 96)


def test_the_length_of_the_output_follows_from_the_hop(pretrained: Runs) -> None:
    for max_hop_ms in (50, 160):
        made = SsambaEncoder(pretrained("ssast"), max_hop_ms)
        for samples in (1, 300, 639, 640, 641, 2560, 2561, 31999, 32000):
            found = made(0.1 * torch.randn(samples))
            assert found.shape[1] == math.ceil(samples / 16 / made.hop_size_in_ms) and found.isfinite().all()
    assert made.hop_size_in_ms == 160


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no model"):
        SsambaEncoder(tmp_path)
