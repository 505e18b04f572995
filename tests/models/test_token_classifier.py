"""The classifier of hops: each hop's answer is the pool of its own columns, and padding enters none."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from ssamba.models.checkpoint import build_classifier, load_model, save_model
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import TokenClassifier
from ssamba.models.pools import POOLINGS
from ssamba.models.settings import AudioSettings, ClassifierSettings

LABELS = ("background", "dog", "rain")
IN_TIME = [name for name in POOLINGS if name != "class"]


def encoder(kind: str = "ssamba", stride: int = 10) -> AudioEncoder:
    torch.manual_seed(0)
    options = {**SIZES[kind]["nano"], "num_hidden_layers": 2}
    return AudioEncoder(kind, options, 32, 96, 16, 16, 16, stride)


def plain(model: TokenClassifier, log_mel: Tensor, own: int) -> Tensor:
    """Hop by hop, on the columns of each that are the clip's own: mean and deviation over time, rows apart."""
    rows, columns = model.encoder.grid
    tokens = model.encoder(log_mel).tokens.detach().double().view(len(log_mel), rows, columns, -1)[:, :, :own]
    found = []
    for start in range(0, own, model.hop_columns):
        part = tokens[:, :, start : start + model.hop_columns]
        deviation = part.var(2, unbiased=False).clamp(min=1e-5).sqrt()
        vector = torch.cat([part.mean(2).flatten(1), deviation.flatten(1)], 1)
        found.append(model.head.double()(vector))
    model.head.float()
    return torch.stack(found, 1)


@pytest.mark.parametrize("kind", list(SIZES))
@pytest.mark.parametrize("frames", [96, 70, 31, 3])
def test_each_hop_is_the_pool_of_its_own_columns(kind: str, frames: int) -> None:
    model = TokenClassifier(encoder(kind), 3, "statistics", hop_columns=3).eval()
    torch.nn.init.normal_(model.head[1].weight)
    log_mel = torch.randn(2, 96, 32)
    lengths = torch.tensor([frames, frames])
    own = min(-(-frames // 10), model.encoder.grid[1])
    expected = plain(model, log_mel, own)
    logits = model(log_mel, lengths)
    assert logits.shape == (2, 3, 3)
    assert model.hops(lengths, model.encoder.grid[1]).tolist() == [expected.shape[1]] * 2
    torch.testing.assert_close(logits[:, : expected.shape[1]].double(), expected, rtol=1e-4, atol=1e-4)


def test_what_is_not_the_clips_own_says_nothing() -> None:
    model = TokenClassifier(encoder(), 3, "rows", hop_columns=4).eval()
    log_mel = torch.randn(1, 96, 32)
    encoded = model.encoder(log_mel)
    changed = encoded._replace(tokens=encoded.tokens.unflatten(1, model.encoder.grid).clone())
    changed.tokens[:, :, 5:] = 100.0
    changed = changed._replace(tokens=changed.tokens.flatten(1, 2))
    before, after = (model.classify(one, torch.tensor([45])) for one in (encoded, changed))
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.allclose(before[:, 2], after[:, 2])


@pytest.mark.parametrize("pooling", IN_TIME)
def test_a_hop_of_all_columns_is_the_clip_itself(pooling: str) -> None:
    kind = encoder()
    settings = ClassifierSettings(LABELS, "scene", "cross_entropy", pooling)
    torch.manual_seed(1)
    whole = build_classifier(kind, settings).eval()
    torch.manual_seed(1)
    hops = TokenClassifier(kind, 3, pooling, hop_columns=kind.grid[1]).eval()
    log_mel, frames = torch.randn(3, 96, 32), torch.tensor([96, 50, 20])
    torch.testing.assert_close(hops(log_mel, frames)[:, 0], whole(log_mel, frames))


@pytest.mark.parametrize("loss", ["cross_entropy", "ctc"])
def test_it_is_saved_and_read(tmp_path: Path, loss: str) -> None:
    settings = ClassifierSettings(LABELS, "scene", loss, "rows", hop_columns=2)
    model = build_classifier(encoder(), settings).eval()
    assert isinstance(model, TokenClassifier)
    save_model(tmp_path, model, AudioSettings(16000, -4.0, 4.0, "pad"), settings)
    read = load_model(tmp_path)
    assert read.classifier == settings and isinstance(read.model, TokenClassifier)
    log_mel = torch.randn(1, 96, 32)
    assert torch.equal(read.model(log_mel), model(log_mel))


@pytest.mark.parametrize(("pooling", "columns", "told"), [("class", 2, "no place in time"), ("rows", 0, "at least 1")])
def test_what_cannot_be_is_told(pooling: str, columns: int, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        TokenClassifier(encoder(), 3, pooling, hop_columns=columns)
