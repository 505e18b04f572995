"""`ssamba embed`: which vectors, in which order, in which file."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from plain_pools import plain_pool

from ssamba import SsambaModel
from ssamba.cli import main
from ssamba.inference import predict_file
from ssamba.models.pools import POOLINGS, Pool, build_pool

parquet = pytest.importorskip("pyarrow.parquet")

MakeModel = MakeSound = Callable[..., Path]
Capture = pytest.CaptureFixture[str]


def embed(model: Path, *words: object, status: int = 0) -> None:
    assert main(["embed", str(model), *map(str, words)]) == status


def arrays(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def vectors_of(table: Any) -> np.ndarray:
    return np.array(table["embedding"].to_pylist(), np.float32)


@pytest.mark.parametrize("layer", [0, 1, -1])
def test_a_vector_for_each_recording(
    layer: int, encoder: Path, make_sound: MakeSound, tmp_path: Path, capsys: Capture
) -> None:
    paths = [make_sound("a.wav", 1, 8000), make_sound("b.flac", 5, 44100, 2), make_sound("c.ogg", 10, 22050)]
    out = tmp_path / "x.npz"
    embed(encoder, *paths, "--out", out, "--layer", layer, "--batch-size", 2)
    assert capsys.readouterr().out == f"written to {out}: 3 recordings, 3 rows of 512\n"
    found = arrays(out)
    assert found.keys() == {"names", "recording", "start", "end", "embeddings"}
    assert found["names"].tolist() == list(map(str, paths)) and found["recording"].tolist() == [0, 1, 2]
    assert found["start"].tolist() == [0, 0, 0] and found["end"] == pytest.approx([1, 5, 10], abs=1e-3)
    assert found["embeddings"].dtype == np.float32
    model = SsambaModel.from_pretrained(encoder)
    with torch.no_grad():
        wanted = model(*model.feature_extractor(paths), layers=[layer]).pooled[0]
    np.testing.assert_allclose(found["embeddings"], wanted, rtol=1e-4, atol=1e-5)


def plain_vectors(model: SsambaModel, pool: Pool, paths: list[Path], padding: bool = False) -> np.ndarray:
    """What embed is to write of recordings no longer than a clip."""
    features = model.feature_extractor(paths)
    with torch.no_grad():
        encoded = model.network.encoder(features.input_values)
    return plain_pool(pool, encoded, None if padding else [-(-count // 16) for count in features.own.tolist()])


SIZES = {
    "mean": 32,
    "class": 32,
    "rows": 8 * 32,
    "statistics": 2 * 8 * 32,
    "segments": 4 * 8 * 32,
    "attentive": 2 * 8 * 32,
}


@pytest.mark.parametrize("kind", ["pretrained", "finetuned"])
def test_a_vector_of_each_pool(kind: str, make_model: MakeModel, make_sound: MakeSound, tmp_path: Path) -> None:
    """Of recordings that end in the first, the sixth and the last second of the clip that the model sees."""
    labels = {} if kind == "finetuned" else {"labels": None}
    folder = make_model(max_length=512, pooling="attentive", **labels)
    paths = [make_sound("a.wav", 0.5), make_sound("b.wav", 2.7), make_sound("c.wav", 5.1)]
    model = SsambaModel.from_pretrained(folder)
    for name in POOLINGS[:-1] if kind == "pretrained" else POOLINGS:
        wanted = plain_vectors(model, model.pool(name), paths)
        assert wanted.shape == (3, SIZES[name])
        for out in (tmp_path / f"{name}.npz", tmp_path / f"{name}.parquet"):
            embed(folder, *paths, "--pooling", name, "--out", out)
            found = arrays(out)["embeddings"] if out.suffix == ".npz" else vectors_of(parquet.read_table(out))
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)
    embed(folder, *paths, "--out", tmp_path / "x.npz")
    own = arrays(tmp_path / "statistics.npz" if kind == "pretrained" else tmp_path / "attentive.npz")["embeddings"]
    np.testing.assert_array_equal(arrays(tmp_path / "x.npz")["embeddings"], own)


def test_as_many_segments_as_are_asked_for(make_model: MakeModel, make_sound: MakeSound, tmp_path: Path) -> None:
    folder, path = make_model(max_length=512, pooling="segments"), make_sound("a.wav", 1.3)
    model = SsambaModel.from_pretrained(folder)
    for words, count in ((["--segments", 3], 3), ([], 4), (["--segments", 40], 40)):
        embed(folder, path, "--pooling", "segments", *words, "--out", tmp_path / "x.npz", "--overwrite")
        wanted = plain_vectors(model, build_pool("segments", 8, 32, count), [path])
        np.testing.assert_allclose(arrays(tmp_path / "x.npz")["embeddings"], wanted, rtol=1e-4, atol=1e-5)


def test_an_imported_classifiers_own_pool_takes_padding(
    make_model: MakeModel, make_sound: MakeSound, tmp_path: Path
) -> None:
    folder, paths = make_model(max_length=512, padding=True), [make_sound("a.wav", 0.5), make_sound("b.wav", 2.7)]
    model = SsambaModel.from_pretrained(folder)
    for words, name, padding in (
        ([], "mean", True),
        (["--pooling", "mean"], "mean", True),
        (["--pooling", "rows"], "rows", False),
    ):
        embed(folder, *paths, *words, "--out", tmp_path / "x.npz", "--overwrite")
        wanted = plain_vectors(model, model.pool(name), paths, padding)
        np.testing.assert_allclose(arrays(tmp_path / "x.npz")["embeddings"], wanted, rtol=1e-4, atol=1e-5)


def test_a_long_recording_is_the_mean_over_its_seconds(classifier: Path, make_sound: MakeSound, tmp_path: Path) -> None:
    path = make_sound("long.wav", 25)
    embed(classifier, path, "--out", tmp_path / "x.npz")
    found = list(predict_file(SsambaModel.from_pretrained(classifier), path, layer=-1))
    clip = (400 + 1023 * 160) / 16000
    assert len(found) == 3
    first, second, third = (window.pooled for window in found)
    mean = (clip * first + clip * second + (25 - 2 * clip) * third) / 25  # type: ignore[operator]
    np.testing.assert_allclose(arrays(tmp_path / "x.npz")["embeddings"][0], mean, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("words", [["--window", 2], ["--window", 2, "--hop", 2]])
def test_a_vector_for_each_window_where_windows_are_asked_for(
    words: list[object], classifier: Path, make_sound: MakeSound, tmp_path: Path
) -> None:
    paths = [make_sound("a.wav", 5), make_sound("b.wav", 1)]
    embed(classifier, *paths, *words, "--out", tmp_path / "x.npz", "--batch-size", 3)
    embed(classifier, *paths, *words, "--out", tmp_path / "x.parquet", "--batch-size", 3)
    found, table = arrays(tmp_path / "x.npz"), parquet.read_table(tmp_path / "x.parquet")
    assert found["recording"].tolist() == [0, 0, 0, 1] and found["window"].tolist() == [0, 1, 2, 0]
    assert found["start"].tolist() == [0, 2, 3, 0] and found["end"].tolist() == [2, 4, 5, 1]
    model = SsambaModel.from_pretrained(classifier)
    wanted = [
        window.pooled.numpy()
        for path in paths
        for window in predict_file(model, path, 2, layer=-1)
        if window.pooled is not None
    ]
    np.testing.assert_allclose(found["embeddings"], wanted, rtol=1e-4, atol=1e-5)
    assert table.column_names == ["name", "window", "start", "end", "embedding"]
    assert table["name"].to_pylist() == [str(paths[place]) for place in found["recording"]]
    for name in ("window", "start", "end"):
        assert table[name].to_pylist() == found[name].tolist()
    np.testing.assert_array_equal(vectors_of(table), found["embeddings"])


@pytest.mark.parametrize("short", ["pad", "keep"])
def test_a_row_for_each_column_of_patches(
    short: str, make_model: MakeModel, make_sound: MakeSound, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ssamba.inference.embed.BLOCK_BYTES", 20 * 8 * 32 * 4)  # several blocks to read back
    folder = make_model(None, short=short)
    paths = [make_sound("a.wav", 12), make_sound("b.wav", 1)]
    for name in ("x.npz", "x.parquet"):
        embed(folder, *paths, "--tokens", "--layer", 0, "--out", tmp_path / name)
    found, table = arrays(tmp_path / "x.npz"), parquet.read_table(tmp_path / "x.parquet")
    model = SsambaModel.from_pretrained(folder)
    windows = [list(predict_file(model, path, layer=0)) for path in paths]
    assert [len(each) for each in windows] == [2, 1]
    columns = 7 if short == "pad" else 6
    assert found["embeddings"].shape == (64 + 64 + columns, 8, 32) and found["embeddings"].dtype == np.float32
    assert found["recording"].tolist() == [0] * 128 + [1] * columns
    assert found["window"].tolist() == [0] * 64 + [1] * 64 + [0] * columns
    wanted = [window.tokens for each in windows for window in each]
    np.testing.assert_allclose(found["embeddings"], torch.cat(wanted), rtol=1e-4, atol=1e-5)  # type: ignore[arg-type]
    np.testing.assert_allclose(found["start"][:3], [0, 0.16, 0.32])
    np.testing.assert_allclose(found["end"][:3], [0.175, 0.335, 0.495])
    assert found["start"][64] == pytest.approx(12 - (400 + 1023 * 160) / 16000) and found["end"].max() <= 12
    assert parquet.ParquetFile(tmp_path / "x.parquet").num_row_groups == -(-(128 + columns) // 20)
    np.testing.assert_array_equal(vectors_of(table), found["embeddings"])


@pytest.mark.parametrize("words", [[], ["--window", 2], ["--tokens"], ["--tokens", "--window", 2]])
def test_nothing_is_left_of_recordings_that_fail(
    words: list[object], encoder: Path, make_sound: MakeSound, tmp_path: Path, capsys: Capture
) -> None:
    """One that turns bad after many windows stands between two good ones."""
    samples = np.random.default_rng(0).normal(0, 0.1, 30 * 16000).astype(np.float32)
    samples[25 * 16000] = np.nan
    soundfile.write(tmp_path / "b.wav", samples, 16000, subtype="FLOAT")
    (tmp_path / "d.wav").write_bytes(b"no sound")
    good = [make_sound("a.wav", 12), make_sound("c.wav", 11)]
    out, clean = tmp_path / "x.npz", tmp_path / "clean.npz"
    embed(encoder, good[0], tmp_path / "b.wav", tmp_path / "d.wav", good[1], "--out", out, *words, status=1)
    said = capsys.readouterr()
    assert "b.wav: it holds samples that are not finite" in said.err and "d.wav: it cannot be decoded" in said.err
    assert "2 recordings failed" in said.err
    embed(encoder, *good, "--out", clean, *words)
    found, wanted = arrays(out), arrays(clean)
    assert found.keys() == wanted.keys()
    for name in found:
        np.testing.assert_array_equal(found[name], wanted[name]) if name != "embeddings" else (
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
        )


def test_nothing_is_written_where_nothing_can_be_embedded(encoder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "a.wav").write_bytes(b"no sound")
    embed(encoder, tmp_path, "--out", tmp_path / "x.npz", status=1)
    assert capsys.readouterr().out == "nothing written\n" and [one.name for one in tmp_path.iterdir()] == ["a.wav"]


def test_an_existing_file_stays_without_overwrite(
    encoder: Path, make_sound: MakeSound, tmp_path: Path, capsys: Capture
) -> None:
    path, out = make_sound("a.wav", 1), tmp_path / "x.npz"
    out.write_text("mine")
    embed(encoder, path, "--out", out, status=2)
    assert f"{out} exists; --overwrite replaces it" in capsys.readouterr().err and out.read_text() == "mine"
    embed(encoder, path, "--out", out, "--overwrite")
    assert arrays(out)["names"].tolist() == [str(path)]
    assert {one.name for one in tmp_path.iterdir()} == {"a.wav", "x.npz"}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--out", "x.csv"], "x.csv ends in .csv; expected .npz or .parquet"),
        (["--out", "nowhere/x.npz"], "there is no folder nowhere"),
        (["--out", "x.npz", "--layer", 2], "layer is 2; this model has 2: 0 (the patches) to 1 (its output)"),
        (["--out", "x.npz", "--window", 0.1], "the model needs 0.175 s, one patch"),
        (["--out", "x.npz", "--hop", -1], "--hop is -1; expected at least 0.001"),
        (["--out", "x.npz", "--batch-size", 0], "--batch-size is 0; expected at least 1"),
        (["--out", "x.npz", "--segments", 0, "--pooling", "segments"], "--segments is 0; expected at least 1"),
        (["--out", "x.npz", "--segments", 3], "segments is 3 and no pooling is named; expected pooling segments"),
        (["--out", "x.npz", "--segments", 3, "--pooling", "rows"], "segments is 3 and pooling is rows; expected"),
        (
            ["--out", "x.npz", "--tokens", "--pooling", "rows"],
            "--tokens writes the vector of every patch, and --pooling",
        ),
        (
            ["--out", "x.npz", "--pooling", "attentive"],
            "this model has none; expected another pool, or a model that was fine-tuned with task.pooling=attentive",
        ),
    ],
)
def test_mistakes(
    words: list[object],
    said: str,
    encoder: Path,
    make_sound: MakeSound,
    tmp_path: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    embed(encoder, make_sound("a.wav", 1), *words, status=2)
    out, err = capsys.readouterr()
    assert out == "" and said in err and err.count("\n") == 1
    assert [one.name for one in tmp_path.iterdir()] == ["a.wav"]


def test_parquet_without_pyarrow(
    encoder: Path, make_sound: MakeSound, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    embed(encoder, make_sound("a.wav", 1), "--out", tmp_path / "x.parquet", status=2)
    assert "pip install 'ssamba[parquet]'" in capsys.readouterr().err
