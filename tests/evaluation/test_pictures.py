"""What is drawn, read back from the figures; and that the files are PNGs."""

import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.text import Text

from ssamba.evaluation import pictures
from ssamba.models.encoder import AudioEncoder
from ssamba.models.heads import MaskedPatchModel
from ssamba.models.patches import PatchShape

pytestmark = pytest.mark.drawn


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Figure]]:
    """Every figure that is saved."""
    drawn: list[Figure] = []
    save = pictures.save_figure

    def keep(figure: Figure, path: Path) -> None:
        drawn.append(figure)
        save(figure, path)

    monkeypatch.setattr(pictures, "save_figure", keep)
    yield drawn


def assert_png(path: Path) -> None:
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 100 and image.shape[1] > 100 and image.std() > 0.01
    assert [other.name for other in path.parent.iterdir()] == [path.name]


def image_of(axis: Any) -> np.ndarray[Any, Any]:
    return np.ma.filled(axis.get_images()[0].get_array().astype(float), math.nan)


def test_a_reconstruction_shows_what_was_hidden_and_what_was_made_of_it(tmp_path: Path, figures: list[Figure]) -> None:
    torch.manual_seed(0)
    options = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "layer_norm_eps": 1e-6}
    model = MaskedPatchModel(AudioEncoder("ssast", options, 8, 14, 4, 4, 4, 4))
    log_mel = torch.randn(14, 8)  # a grid of 2 x 3 patches, and two frames that fill none
    mask = torch.tensor([True, False, False, False, True, True])
    path = tmp_path / "pictures" / "reconstruction.png"
    with torch.no_grad():
        said = model(log_mel.unsqueeze(0), mask.unsqueeze(0)).reconstruction[0]
    pictures.draw_reconstruction(path, log_mel, mask, said, model.encoder.patch_shape, "step 3: " + "a name " * 20)
    assert_png(path)
    shown, hidden, filled = (image_of(axis) for axis in figures[0].axes[:3])
    whole = log_mel[:12].T.numpy()
    np.testing.assert_allclose(shown, whole, rtol=1e-6)
    where = np.zeros((8, 12), bool)
    predicted = whole.copy()
    for patch, (row, column) in zip(said, ((0, 0), (1, 1), (1, 2)), strict=True):
        place = np.s_[4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        where[place] = True
        predicted[place] = patch.view(4, 4).numpy()
    assert np.array_equal(np.isnan(hidden), where)
    np.testing.assert_allclose(hidden[~where], whole[~where], rtol=1e-6)
    np.testing.assert_allclose(filled, predicted, rtol=1e-5)
    assert figures[0].get_suptitle().endswith("...")  # a packed clip's name can be long


def test_latent_targets_are_coloured_by_what_they_have_in_common(tmp_path: Path, figures: list[Figure]) -> None:
    shape = PatchShape(4, 4, 4, 4)
    log_mel = torch.randn(14, 8)  # a grid of 2 x 3 patches, and two frames that fill none
    one, other, third = torch.eye(3, 5) * 4
    targets = torch.stack([one, one, other, third, other, third])
    mask = torch.tensor([True, False, True, False, False, True])
    pictures.draw_latent(
        tmp_path / "latent.png", log_mel, mask, targets, torch.stack([other, one, third]), shape, "one"
    )
    assert_png(tmp_path / "latent.png")
    shown, told, predicted = (axis.get_images()[0].get_array() for axis in figures[0].axes[:3])
    np.testing.assert_allclose(shown, log_mel[:12].T.numpy(), rtol=1e-6)

    def colours(image: Any) -> list[tuple[float, ...]]:
        """Of each patch, which is of one colour."""
        assert image.shape == (8, 12, 3)
        patches = np.asarray(image).reshape(2, 4, 3, 4, 3).transpose(0, 2, 1, 3, 4).reshape(6, 16, 3)
        assert (patches == patches[:, :1]).all()
        return [tuple(patch[0].tolist()) for patch in patches]

    of_one, again, of_other, of_third, *rest = colours(told)
    assert of_one == again and rest == [of_other, of_third] and len({of_one, of_other, of_third}) == 3
    white = (1.0, 1.0, 1.0)
    assert colours(predicted) == [of_other, white, of_one, white, white, of_third]


@pytest.mark.parametrize("patches", [1, 2, 6])
def test_latent_targets_that_are_few_or_not_finite_end_no_run(patches: int, tmp_path: Path) -> None:
    log_mel, mask = torch.randn(4 * patches, 4), torch.arange(patches) == 0
    for value in (1.0, math.nan, math.inf):
        targets = torch.randn(patches, 5) * value
        shape = PatchShape(4, 4, 4, 4)
        path = tmp_path / str(value) / "latent.png"
        pictures.draw_latent(path, log_mel, mask, targets, targets[mask], shape, "one")
        assert_png(path)


def test_curves_are_the_numbers_of_the_csv(tmp_path: Path, figures: list[Figure]) -> None:
    metrics = tmp_path / "metrics.csv"
    metrics.write_text(
        "epoch,gradient_norm,step,train/loss,val/loss\n0,5.5,0,3.0,\n0,4.5,1,2.0,\n0,,1,,2.5\n0,3.5,2,1.0,\n"
    )
    pictures.draw_curves(tmp_path / "pictures" / "curves.png", metrics, "a run")
    assert_png(tmp_path / "pictures" / "curves.png")
    panels = {axis.get_title(): axis for axis in figures[0].axes if axis.get_visible()}
    lines = {
        name: {line.get_label(): line.get_xydata().tolist() for line in axis.get_lines()}  # type: ignore[union-attr]
        for name, axis in panels.items()
    }
    assert set(panels) == {"gradient norm", "loss"}
    assert lines["loss"] == {"train": [[0, 3], [1, 2], [2, 1]], "val": [[1, 2.5]]}
    (norms,) = lines["gradient norm"].values()
    assert norms == [[0, 5.5], [1, 4.5], [2, 3.5]]


def test_no_metrics_no_picture(tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text("epoch,step\n")
    pictures.draw_curves(tmp_path / "curves.png", tmp_path / "metrics.csv", "a run")
    assert not (tmp_path / "curves.png").exists()


@pytest.mark.parametrize("classes", [3, 30, 70])
def test_confusion_is_drawn_as_shares_of_each_true_class(tmp_path: Path, figures: list[Figure], classes: int) -> None:
    confusion = torch.randint(0, 5, (classes, classes), generator=torch.Generator().manual_seed(0))
    confusion[1] = 0  # a class that does not occur
    names = [f"class {number}" for number in range(classes)]
    path = tmp_path / "pictures" / "confusion.png"
    pictures.draw_confusion(path, confusion, names, "a title")
    assert_png(path)
    axis = figures[0].axes[0]
    counts = confusion.numpy()
    wanted = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.testing.assert_allclose(image_of(axis), wanted, rtol=1e-6)
    assert ([text.get_text() for text in axis.get_yticklabels()] == names) == (classes <= 60)
    written = {(int(t.get_position()[1]), int(t.get_position()[0])): int(t.get_text()) for t in axis.texts}
    assert written == ({(r, c): n for (r, c), n in np.ndenumerate(counts) if n} if classes <= 20 else {})


def test_bars_are_as_high_as_their_values(tmp_path: Path, figures: list[Figure]) -> None:
    values = {"words": {"pretrained": 0.75, "scratch": 0.5}, "voices": {"scratch": 0.25}}
    path = tmp_path / "pictures" / "bars.png"
    pictures.draw_bars(path, values, "accuracy", "a title")
    assert_png(path)
    axis = figures[0].axes[0]
    drawn = {bars.get_label(): [bar.get_height() for bar in bars] for bars in axis.containers}  # type: ignore[union-attr]
    assert drawn == {"pretrained": [0.75], "scratch": [0.5, 0.25]}
    places = {bars.get_label(): [bar.get_x() + bar.get_width() / 2 for bar in bars] for bars in axis.containers}  # type: ignore[union-attr]
    assert [round(place) for place in places["scratch"]] == [0, 1]
    assert places["pretrained"][0] < places["scratch"][0]


def test_a_timeline_shares_its_axis_with_the_spectrogram(tmp_path: Path, figures: list[Figure]) -> None:
    spectrogram = torch.randn(50, 16, generator=torch.Generator().manual_seed(0))
    chances = torch.zeros(50, 9)
    chances[:, 0] = 0.1
    for place in range(1, 8):  # higher than the first somewhere, and ever higher
        chances[10:12, place] = 0.1 * place + 0.15
    labels = [f"class {place}" for place in range(8)] + ["$never"]
    pictures.draw_timeline(tmp_path / "a.png", spectrogram, chances, 0.5, labels, "$odd name")
    assert_png(tmp_path / "a.png")
    above, below = figures[0].axes
    np.testing.assert_array_equal(image_of(above), spectrogram.T)
    assert above.get_xlim() == below.get_xlim() == (0, 25)
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == [f"class {i}" for i in (7, 6, 5, 4, 3, 2)]
    values, edges, _ = below.patches[0].get_data()  # type: ignore[attr-defined]
    np.testing.assert_array_equal(values, chances[:, 7])
    np.testing.assert_allclose(edges, np.arange(51) * 0.5)
    assert "(s)" in below.get_xlabel()
    pictures.draw_timeline(tmp_path / "a.png", spectrogram, chances, 10.0, labels, "x" * 200)
    assert figures[1].axes[0].get_xlim() == (0, pytest.approx(500 / 60)) and "(min)" in figures[1].axes[1].get_xlabel()


@pytest.mark.parametrize(("unit", "expected"), [(1.0, {"0.2", "0.5", "1", "2", "5"}), (1e12, {"500 G", "1 T", "2 T"})])
def test_the_numbers_of_a_logarithmic_axis_are_plain(
    unit: float, expected: set[str], figures: list[Figure], tmp_path: Path
) -> None:
    groups = {"A: x": (0.2 * unit, 0.9, 0.85, 0.95), "B: y": (7 * unit, 0.93, float("nan"), float("nan"))}
    pictures.draw_trade_off(tmp_path / "a.png", groups, "cost", "accuracy", "title")
    (axis,) = figures[0].axes
    said = {label.get_text() for label in axis.get_xticklabels(which="both")}
    assert expected <= said and not any("$" in text or "8" in text for text in said)


def test_names_with_dollars_are_no_formulas(tmp_path: Path, figures: list[Figure]) -> None:
    names = ["$x^2$", r"$\alpha$"]
    pictures.draw_confusion(tmp_path / "a.png", torch.eye(2).long(), names, "$title$")
    pictures.draw_bars(tmp_path / "b.png", {name: {name: 1.0} for name in names}, "$y$", "$title$")
    for figure in figures:
        texts = [text for text in figure.findobj(Text) if "$" in text.get_text()]
        assert {*names, "$title$"} <= {text.get_text() for text in texts}
        assert not any(text.get_parse_math() for text in texts)


def test_the_matplotlib_of_who_imports_the_package_stays_as_it_was() -> None:
    code = (
        "import matplotlib; matplotlib.use('svg'); before = dict(matplotlib.rcParams)\n"
        "import ssamba.train; assert dict(matplotlib.rcParams) == before"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
