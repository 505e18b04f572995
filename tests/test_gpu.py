"""What a GPU computes, beside the same on the CPU."""

from pathlib import Path

import pytest
import torch

from ssamba.audio import LogMel, samples_for
from ssamba.export.program import load_program
from ssamba.export.torch_export import save_program
from ssamba.hub import SsambaModel
from ssamba.integrations import hear
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.masking import random_mask
from ssamba.models.checkpoint import build_classifier
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.pools import POOLINGS
from ssamba.models.settings import AudioSettings, ClassifierSettings
from ssamba.ops import resolve_backend, selective_scan

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]


def test_spectrograms_are_those_of_the_cpu() -> None:
    waveform, lengths = 0.1 * torch.randn(3, 16000), torch.tensor([16000, 9000, 300])
    log_mel = LogMel(16000, 128, -4.27, 4.57)
    expected = log_mel(waveform, lengths)
    found = log_mel.cuda()(waveform.cuda(), lengths.cuda())
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=0)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_scan_is_that_of_the_cpu(direction: str) -> None:
    u, delta, z = (torch.randn(2, 33, 40) for _ in range(3))
    b, c = torch.randn(2, 33, 8), torch.randn(2, 33, 8)
    a, d, bias = -torch.rand(40, 8), torch.randn(40), torch.randn(40)
    arguments = (u, delta, a, b, c, d, z, bias)
    expected = selective_scan(*arguments, direction=direction)  # type: ignore[arg-type]
    found = selective_scan(*(x.cuda() for x in arguments), direction=direction)  # type: ignore[arg-type]
    torch.testing.assert_close(found.cpu(), expected, atol=1e-4, rtol=1e-4)
    assert resolve_backend("auto", "cuda", torch.float32) == "triton"


@pytest.mark.parametrize("encoder", list(SIZES))
def test_a_pretraining_step_has_the_losses_and_gradients_of_the_cpu(encoder: str) -> None:
    torch.manual_seed(0)
    model = MaskedPatchModel(AudioEncoder(encoder, SIZES[encoder]["nano"], 128, 64, 16, 16, 16, 16))
    log_mel, mask = torch.randn(2, 64, 128), random_mask(8, 4, 16, [torch.Generator().manual_seed(0)] * 2)

    def step(device: str) -> tuple[float, dict[str, torch.Tensor]]:
        model.to(device).zero_grad()
        said = model(log_mel.to(device), mask.to(device))
        loss = info_nce(said.contrastive, said.target).loss + 10 * reconstruction_mse(said.reconstruction, said.target)
        loss.backward()
        return loss.item(), {name: p.grad.cpu().clone() for name, p in model.named_parameters() if p.grad is not None}

    (expected, gradients), (found, on_gpu) = step("cpu"), step("cuda")
    assert found == pytest.approx(expected, rel=1e-4)
    assert on_gpu.keys() == gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(on_gpu[name], gradient, atol=1e-4, rtol=1e-2)


@pytest.mark.parametrize("encoder", list(SIZES))
def test_a_program_made_on_either_device_has_the_logits_of_the_cpu(encoder: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = AudioClassifier(AudioEncoder(encoder, SIZES[encoder]["nano"], 128, 64, 16, 16, 16, 16), 3, "mean")
    settings = ClassifierSettings(("a", "b", "c"), "sound", "bce", "mean")
    model = SsambaModel(network, AudioSettings(16000, -4.27, 4.57, "pad"), settings).eval()
    waveforms = 0.1 * torch.randn(2, samples_for(64, 16000))
    with torch.inference_mode():
        expected = model(*model.feature_extractor(waveforms)).logits
    for name, device in (("cpu", "cuda"), ("cuda", "cpu"), ("cuda", "cuda")):
        save_program(tmp_path / "model.pt2", model.to(name))
        found = load_program(tmp_path / "model.pt2", device)(waveforms)
        assert found.device.type == device
        torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_short_clips_are_pooled_as_on_the_cpu(pooling: str) -> None:
    torch.manual_seed(0)
    settings = ClassifierSettings(("a", "b", "c"), "sound", "bce", pooling)
    network = build_classifier(AudioEncoder("ssast", SIZES["ssast"]["nano"], 128, 64, 16, 16, 16, 16), settings)
    model = SsambaModel(network, AudioSettings(16000, -4.27, 4.57, "pad"), settings).eval()
    waveforms = [0.1 * torch.randn(samples) for samples in (3000, 5200, samples_for(64, 16000))]
    with torch.inference_mode():
        expected = model(*model.feature_extractor(waveforms), layers=[-1])
        found = model.cuda()(*model.feature_extractor(waveforms), layers=[-1])
    for one, other in ((found.logits, expected.logits), (found.pooled[0], expected.pooled[0])):
        torch.testing.assert_close(one.cpu(), other, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("encoder", list(SIZES))
def test_embeddings_are_those_of_the_cpu_on_the_device_of_the_audio(encoder: str) -> None:
    torch.manual_seed(0)
    network = AudioEncoder(encoder, SIZES[encoder]["nano"], 128, 64, 16, 16, 16, 16)
    model = hear.HearModel(SsambaModel(MaskedPatchModel(network), AudioSettings(16000, -4.27, 4.57, "keep")).eval())
    audio = 0.1 * torch.randn(2, 20000)
    expected, times = hear.get_timestamp_embeddings(audio, model)
    scenes = hear.get_scene_embeddings(audio, model)
    found, at = hear.get_timestamp_embeddings(audio.cuda(), model)
    assert found.is_cuda and at.is_cuda and torch.equal(at.cpu(), times)
    torch.testing.assert_close(found.cpu(), expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(hear.get_scene_embeddings(audio.cuda(), model).cpu(), scenes, atol=1e-3, rtol=1e-3)
