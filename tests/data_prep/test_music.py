"""Data sets of music, each as a tiny tree in its public layout."""

from collections.abc import Callable
from pathlib import Path

import pytest
import test_scripts
from layouts import FMA_HEADER, fma, gtzan, nsynth
from test_scripts import counts, described

from ssamba.data.shards.index import ShardIndex

make, fails = test_scripts.make, test_scripts.fails
GENRES = ("blues", "classical", "country", "disco", "hiphop", "jazz", "metal", "pop", "reggae", "rock")


# GTZAN


@pytest.mark.parametrize("ending", [".wav", ".au"])
def test_gtzan(tmp_path: Path, make: Callable[..., Path], fails: Callable[..., str], ending: str) -> None:
    gtzan(tmp_path / "in")
    if ending == ".au":
        for path in (tmp_path / "in").rglob("*.wav"):
            path.rename(path.with_suffix(ending))
        (tmp_path / "in" / "genres").rename(tmp_path / "in" / "genres_original")
    assert "840 of 930 listed recordings are missing; at most 9 may be" in fails("gtzan")
    out = make("gtzan", "--max-bad-fraction=0.91")
    splits = {path.name: described(path) for path in out.iterdir()}
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 30, "validation": 30, "test": 30}
    assert ShardIndex.read(out / "test").labels == {"genre": GENRES}
    assert ShardIndex.read(out / "test").dataset == "gtzan"
    assert counts(out / "train", "genre") == dict.fromkeys(GENRES, 3)
    # The first of the list's lines of each part.
    assert set(splits["test"]) >= {"blues-00012", "blues-00013", "blues-00014"}
    assert set(splits["train"]) >= {"blues-00029", "blues-00030", "blues-00031"}
    assert splits["test"]["blues-00012"]["labels"] == {"genre": "blues"}
    assert splits["test"]["blues-00012"]["source"] == f"blues/blues.00012{ending}"


# NSynth


def test_nsynth(tmp_path: Path, make: Callable[..., Path]) -> None:
    nsynth(tmp_path / "in")
    out = make("nsynth")
    index = ShardIndex.read(out / "validation")
    assert index.dataset == "nsynth" and index.labels["pitch"] == ("9", "60", "100")
    assert index.labels["family"] == (
        "bass",
        "brass",
        "flute",
        "guitar",
        "keyboard",
        "mallet",
        "organ",
        "reed",
        "string",
        "synth_lead",
        "vocal",
    )
    assert counts(out / "train", "family") == dict.fromkeys(("bass", "guitar", "vocal"), 9)
    assert counts(out / "test", "pitch") == dict.fromkeys(("9", "60", "100"), 3)
    name = "guitar_acoustic_valid000-060-127"
    assert described(out / "validation")[name] == {
        "key": name,
        "source": f"nsynth-valid/audio/{name}.wav",
        "seconds": 0.05,
        "labels": {"family": "guitar", "pitch": "60", "instrument": "guitar_acoustic_valid000"},
    }
    assert set(counts(out / "train", "instrument")).isdisjoint(counts(out / "test", "instrument"))


def test_nsynth_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    root = tmp_path / "in"
    nsynth(root)
    table = root / "nsynth-valid" / "examples.json"
    written = table.read_text()
    for old, new, message in (
        ('"pitch": 60', '"pitch": "60"', "examples.json cannot be used: Expected `int`, got `str` at"),
        ('"pitch": 60', '"pitch": 128', "examples.json cannot be used: Expected `int` <= 127 at"),
        ('"instrument_family_str": "bass"', '"instrument_family_str": "tuba"', "has the family 'tuba'; expected one"),
        ("{", "[", "examples.json cannot be used: Expected `object`, got `array`"),
    ):
        table.write_text(written.replace(old, new))
        assert message in fails("nsynth")
    table.write_text(written)
    (root / "nsynth-valid" / "audio" / "bass_acoustic_valid000-009-127.wav").unlink()
    assert "1 of 45 listed recordings are missing" in fails("nsynth")


# FMA


def test_fma(tmp_path: Path, make: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    root = tmp_path / "in"
    fma(root)
    paths = sorted((root / "fma_small").rglob("*.mp3"))
    paths[0].write_bytes(b"")  # as those of which nothing but a header is there
    out = make("fma", "--max-bad-fraction=0.05")
    assert f"skipped {paths[0].parent.name}/{paths[0].name}: " in caplog.text
    splits = {path.name: described(path) for path in out.iterdir()}
    assert {name: len(samples) for name, samples in splits.items()} == {"train": 11, "validation": 3, "test": 6}
    index = ShardIndex.read(out / "train")
    assert (index.dataset, index.labels) == ("fma-small", {"genre": ("Folk", "Hip-Hop", "Rock")})
    assert [one.source for one in index.skipped] == [f"{paths[0].parent.name}/{paths[0].name}"]
    assert counts(out / "test", "genre") == {"Folk": 2, "Hip-Hop": 2, "Rock": 2}
    assert set().union(*splits.values()) == {path.stem for path in paths[1:]}


def test_fma_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    root = tmp_path / "in"
    fma(root)
    table = root / "fma_metadata" / "tracks.csv"
    for content, message in (
        ("", "tracks.csv begins with [[], [], []]; expected three lines of header"),
        ("track_id,set,track\n2,small,Rock\n", "tracks.csv begins with [['track_id', 'set', 'track'], ["),
        (FMA_HEADER.replace("genre_top", "genre"), "the columns set/subset, set/split, track/genre_top and track_id"),
        (FMA_HEADER + "2,0,,training,small\n", "tracks.csv line 4 has 5 fields; expected 7"),
        (FMA_HEADER + "2,0,,dev,small,Rock,A\n", "has the track '2' of the split 'dev' and the genre 'Rock'; expected"),
        (FMA_HEADER + "x,0,,test,small,Rock,A\n", "has the track 'x' of the split 'test'"),
        (FMA_HEADER + "2,0,,test,small,,A\n", "and the genre ''; expected a number, one of training, validation, test"),
        (FMA_HEADER + "2,0,,test,large,Rock,A\n", "split 'train' has no recordings"),
        (FMA_HEADER + "3,0,,test,small,Rock,A\n", "1 of 1 listed recordings are missing"),
    ):
        table.write_text(content)
        assert message in fails("fma")
    table.write_bytes(FMA_HEADER.encode() + b"2,\xff\n")
    assert "cannot be read ('utf-8' codec" in fails("fma")
