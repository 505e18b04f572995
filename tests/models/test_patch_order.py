"""Patches in time-major order: what the stack meets, against tokens that are put in their places by hand here."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.export.program import load_program
from ssamba.export.torch_export import save_program
from ssamba.hub import SsambaModel
from ssamba.models.checkpoint import load_model, load_pretrained_encoder, save_model
from ssamba.models.convert.state_dicts import from_authors, to_authors
from ssamba.models.encoder import SIZES, AudioEncoder
from ssamba.models.heads import AudioClassifier, MaskedPatchModel
from ssamba.models.patches import fit_positions
from ssamba.models.settings import AudioSettings, ClassifierSettings, read_config

SMALL: dict[str, dict[str, Any]] = {
    "ssamba": {**SIZES["ssamba"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "ssast": {**SIZES["ssast"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    "aum": {**SIZES["aum"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "conformer": {**SIZES["conformer"]["nano"], "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48},
    "bilstm": {**SIZES["bilstm"]["nano"], "hidden_size": 32, "state_size": 24},
    "ssd": {**SIZES["ssd"]["nano"], "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4, "head_dim": 16},
}
AUDIO = AudioSettings(16000, -4.25, 4.5, "repeat")
each_encoder = pytest.mark.parametrize("encoder", list(SMALL))


def make(encoder: str, order: str, fshape: int = 8, bins: int = 24, frames: int = 40, **options: Any) -> AudioEncoder:
    """A grid of 3 x 5, of the same weights whatever the order, away from zeros and ones."""
    torch.manual_seed(0)
    model = AudioEncoder(encoder, {**SMALL[encoder], **options}, bins, frames, fshape, 8, fshape, 8, order)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return model


def spectrogram(frames: int = 40, bins: int = 24) -> Tensor:
    return torch.randn(2, frames, bins, generator=torch.Generator().manual_seed(1))


def by_hand(model: AudioEncoder, log_mel: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Tokens in rows, class tokens, and hidden states in rows: each patch embedded by itself and put in a list."""
    rows, columns = model.patch_shape.grid(log_mel.shape[2], log_mel.shape[1])
    places = [(row, column) for column in range(columns) for row in range(rows)]
    positions, tokens = fit_positions(model.positions, rows, columns), []
    for row, column in places:
        patch = log_mel[:, 8 * column : 8 * column + 8, 8 * row : 8 * row + 8].transpose(1, 2).flatten(1)
        token = model.projection(patch)
        token = torch.where(mask[:, row * columns + column, None], model.mask_token, token)
        tokens.append(token + positions[row, column])
    extra = [token.expand(2, -1) for token in model.class_tokens + model.class_positions]
    at = model.stack.class_token_index(len(tokens))
    states: list[Tensor] = []
    out = model.stack(torch.stack([*tokens[:at], *extra, *tokens[at:]], 1), states)

    def in_rows(x: Tensor) -> Tensor:
        rest = [x[:, index] for index in range(x.shape[1]) if not at <= index < at + len(extra)]
        found = dict(zip(places, rest, strict=True))
        return torch.stack([found[row, column] for row in range(rows) for column in range(columns)], 1)

    return in_rows(out), out[:, at : at + len(extra)], [in_rows(state) for state in states]


@each_encoder
@pytest.mark.parametrize("frames", [40, 24, 64])
def test_columns_are_met_one_after_another_and_given_back_in_rows(encoder: str, frames: int) -> None:
    model, log_mel = make(encoder, "time"), spectrogram(frames)
    mask = torch.rand(2, 3 * (frames // 8), generator=torch.Generator().manual_seed(2)) < 0.4
    tokens, class_tokens, _ = by_hand(model, log_mel, mask)
    encoded = model(log_mel, mask)
    torch.testing.assert_close(encoded.tokens, tokens, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(encoded.class_tokens, class_tokens, rtol=1e-5, atol=1e-5)
    weight = torch.randn(tokens.shape, generator=torch.Generator().manual_seed(3))
    ours, wanted = (
        torch.autograd.grad((x * weight).sum(), [model.positions, model.projection.weight])
        for x in (encoded.tokens, tokens)
    )
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


@each_encoder
def test_the_visible_patches_alone_are_met_by_columns_too(encoder: str) -> None:
    model, log_mel = make(encoder, "time"), spectrogram()
    visible = torch.tensor([[0, 3, 4, 6, 7, 10, 13], [1, 2, 5, 9, 11, 12, 14]])
    with torch.no_grad():
        encoded = model(log_mel, visible=visible)
        patches = model.projection(model.patch_shape.cut(log_mel)) + model.positions.flatten(0, 1)
        extra = model.class_tokens + model.class_positions
        at = model.stack.class_token_index(7)
        for clip, places in enumerate(visible.tolist()):
            order = sorted(places, key=lambda place: (place % 5, place // 5))  # of a grid of 3 x 5
            tokens = patches[clip, order]
            out = model.stack(torch.cat([tokens[:at], extra, tokens[at:]]).unsqueeze(0))[0]
            rest = torch.cat([out[:at], out[at + len(extra) :]])
            wanted = torch.stack([rest[order.index(place)] for place in places])
            torch.testing.assert_close(encoded.tokens[clip], wanted, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(encoded.class_tokens[clip], out[at : at + len(extra)], rtol=1e-5, atol=1e-5)


@each_encoder
def test_hidden_states_are_in_rows_too(encoder: str) -> None:
    model, log_mel = make(encoder, "time"), spectrogram()
    _, _, wanted = by_hand(model, log_mel, torch.zeros(2, 15, dtype=torch.bool))
    found = model.hidden_states(log_mel)
    assert len(found) == len(wanted) == model.stack.num_hidden_states
    for one, state in zip(found, wanted, strict=True):
        torch.testing.assert_close(one.tokens, state, rtol=1e-5, atol=1e-5)


@each_encoder
def test_a_scan_meets_other_neighbours_and_attention_does_not(encoder: str) -> None:
    log_mel = spectrogram()
    with torch.no_grad():
        rows, columns = (make(encoder, order)(log_mel).tokens for order in ("frequency", "time"))
    difference = (rows - columns).abs().max()
    assert difference < 1e-4 if encoder == "ssast" else difference > 1e-2


@each_encoder
def test_one_row_is_in_both_orders_at_once(encoder: str) -> None:
    with torch.no_grad():
        frequency, time = (make(encoder, order, fshape=24)(spectrogram()) for order in ("frequency", "time"))
    assert torch.equal(frequency.tokens, time.tokens) and torch.equal(frequency.class_tokens, time.class_tokens)


def test_what_is_hidden_is_predicted_at_its_own_place() -> None:
    """The heads' predictions of a clip stand beside the pixels of the same patches."""
    encoder, log_mel = make("ssamba", "time"), spectrogram()
    model, mask = MaskedPatchModel(encoder), torch.zeros(2, 15, dtype=torch.bool)
    mask[0, [1, 7]] = mask[1, [4, 14]] = True
    with torch.no_grad():
        said, (tokens, _, _) = model(log_mel, mask), by_hand(encoder, log_mel, mask)
    patches = encoder.patch_shape.cut(log_mel)
    assert torch.equal(said.target, torch.stack([patches[clip][mask[clip]] for clip in (0, 1)]))
    wanted = torch.stack([model.reconstruction_head(tokens[clip][mask[clip]]) for clip in (0, 1)])
    torch.testing.assert_close(said.reconstruction, wanted, rtol=1e-5, atol=1e-5)


def test_an_order_that_there_is_not() -> None:
    with pytest.raises(ValueError, match="patch_order is 'columns'; expected one of frequency, time"):
        make("ssamba", "columns")


# Folders


def test_a_folder_keeps_the_order_and_one_without_it_has_rows(tmp_path: Path) -> None:
    log_mel = spectrogram()
    for order in ("frequency", "time"):
        save_model(tmp_path / order, MaskedPatchModel(make("ssamba", order)), AUDIO)
        assert read_config(tmp_path / order)["patch_order"] == order
        with torch.no_grad():
            found = load_model(tmp_path / order).model.encoder(log_mel).tokens
            assert torch.equal(found, make("ssamba", order)(log_mel).tokens)
    path = tmp_path / "frequency" / "config.json"
    config = json.loads(path.read_text())
    del config["patch_order"]
    path.write_text(json.dumps(config))
    with torch.no_grad():
        found = load_model(tmp_path / "frequency").model.encoder(log_mel).tokens
        assert torch.equal(found, make("ssamba", "frequency")(log_mel).tokens)
    path.write_text(json.dumps({**config, "patch_order": "columns"}))
    with pytest.raises(UserError, match="config.json"):
        read_config(tmp_path / "frequency")


def test_weights_of_another_order_are_told(tmp_path: Path) -> None:
    save_model(tmp_path, MaskedPatchModel(make("ssamba", "time")), AUDIO)
    with pytest.raises(UserError, match="has patch_order time; the recipe asks for patch_order frequency"):
        load_pretrained_encoder(make("ssamba", "frequency"), tmp_path)
    load_pretrained_encoder(make("ssamba", "time"), tmp_path)


def test_the_authors_formats_have_rows_alone() -> None:
    model = AudioClassifier(make("ssamba", "time", residual="doubling"), 3, "mean")
    with pytest.raises(UserError, match=r"its patch_order is time \(theirs is always frequency\)"):
        to_authors(model)
    # Of one row nothing is lost, and what comes back has the originals' order.
    single = AudioClassifier(make("ssamba", "time", fshape=24, residual="doubling"), 3, "mean").eval()
    back = from_authors(to_authors(single), None, 24, 40, 24, 8)
    assert back.arguments == {**single.encoder.arguments, "patch_order": "frequency"}
    again = AudioEncoder(**back.arguments)
    again.load_state_dict(back.encoder)
    with torch.no_grad():
        assert torch.equal(again(spectrogram()).tokens, single.encoder(spectrogram()).tokens)


@pytest.mark.parametrize("encoder", ["ssamba", "aum"])
def test_a_program_keeps_the_order(encoder: str, tmp_path: Path) -> None:
    network = AudioClassifier(make(encoder, "time"), 3, "statistics").eval()
    with torch.no_grad():
        network.head[1].weight.mul_(20)
    settings = ClassifierSettings(("a", "b", "c"), "sound", "cross_entropy", "statistics")
    model = SsambaModel(network, AUDIO, settings)
    save_program(tmp_path / "model.pt2", model)
    program = load_program(tmp_path / "model.pt2")
    waveforms = 0.1 * torch.randn(3, program.samples, generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        wanted = model(*model.feature_extractor(list(waveforms))).logits
    assert wanted is not None and (wanted[0] - wanted[1]).abs().max() > 0.01
    torch.testing.assert_close(program(waveforms), wanted, rtol=1e-5, atol=1e-5)
