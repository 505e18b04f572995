"""What s3prl asks of an upstream: every layer, lengths that the downsample rate foretells, gradients."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from ssamba.errors import UserError
from ssamba.hub import SsambaModel
from ssamba.integrations.s3prl import UpstreamExpert
from ssamba.integrations.timeline import Timeline
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.settings import AudioSettings

Runs = Callable[[str], Path]
each_encoder = pytest.mark.parametrize("encoder", ["ssamba", "ssast"])


@each_encoder
def test_every_layer_at_every_column(encoder: str, pretrained: Runs) -> None:
    upstream = UpstreamExpert(ckpt=str(pretrained(encoder)), model_config=None, refresh=False)
    model = SsambaModel.from_pretrained(pretrained(encoder))
    wavs = [0.1 * torch.randn(samples) for samples in (16000, 4000, 800)]
    with torch.no_grad():
        found = upstream(wavs)
        expected = Timeline(model)(wavs, range(model.num_hidden_states))
        assert len(found["hidden_states"]) == model.num_hidden_states
        for one, other in zip(found["hidden_states"], expected, strict=True):
            assert torch.equal(one, other) and one.shape == (3, 25, 8 * 96)
        assert torch.equal(found["last_hidden_state"], expected[-1])
        # A clip alone is as in a batch; what follows it is zeros.
        for number, wav in enumerate(wavs):
            for one, alone in zip(found["hidden_states"], upstream([wav])["hidden_states"], strict=True):
                torch.testing.assert_close(one[number, : alone.shape[1]], alone[0], rtol=1e-4, atol=1e-5)
                assert not one[number, alone.shape[1] :].any()


@pytest.mark.parametrize("max_hop_ms", [50, 160])
def test_lengths_are_what_s3prl_derives_from_the_rate(max_hop_ms: float, pretrained: Runs) -> None:
    upstream = UpstreamExpert(pretrained("ssamba"), max_hop_ms)
    rate = upstream.get_downsample_rates("hidden_states")
    assert type(rate) is int and rate == {50: 640, 160: 2560}[max_hop_ms]
    with torch.no_grad():
        for samples in (1, rate - 1, rate, rate + 1, 800, 7777, 10 * rate, 10 * rate + 1):
            hidden = upstream([0.1 * torch.randn(samples), torch.randn(1)])["hidden_states"]
            # S3PRLUpstream's own two ways to count: of the batch, and of a clip.
            assert hidden[0].shape[1] == len(range(0, samples, rate)) == (samples - 1) // rate + 1


@each_encoder
def test_gradients_reach_the_weights(encoder: str, pretrained: Runs) -> None:
    upstream = UpstreamExpert(pretrained(encoder)).train()
    wavs = [0.1 * torch.randn(12000), 0.1 * torch.randn(20000, requires_grad=True)]
    sum(hidden.square().mean() for hidden in upstream(wavs)["hidden_states"]).backward()  # type: ignore[union-attr]
    encoder_parameters = dict(upstream.timeline.model.network.encoder.named_parameters())
    without = {name for name, p in encoder_parameters.items() if p.grad is None or not p.grad.any()}
    assert without == {"mask_token"}


def test_a_model_of_another_rate_is_refused(tmp_path: Path) -> None:
    network = AudioEncoder("ssast", SIZES["ssast"]["nano"], 128, 64, 16, 16, 16, 16)
    SsambaModel(MaskedPatchModel(network), AudioSettings(8000, -4.0, 4.0, "pad")).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="takes 8000 Hz; s3prl gives every upstream 16000 Hz"):
        UpstreamExpert(tmp_path)
