"""Data sets of sound events, each as a tiny tree in its public layout."""

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import test_scripts
from layouts import (
    EPIC_SOUNDS_HEADER,
    audioset,
    audioset_video,
    epic_sounds,
    esc50,
    script,
    urbansound8k,
    vggsound,
    write_wav,
)
from test_scripts import counts, described

from ssamba.config import FinetuneRecipe, load_recipe
from ssamba.data.prepare.sources import VideoClips
from ssamba.data.shards.index import ShardIndex

make, fails = test_scripts.make, test_scripts.fails
RECIPES = Path(__file__).parents[2] / "recipes" / "finetune"


@pytest.mark.parametrize("name", ["audioset", "epic_sounds", "esc50", "urbansound8k", "vggsound"])
def test_help_and_no_such_folder(name: str, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        script(name).main(["--help"])
    assert end.value.code == 0
    assert "Shards of" in capsys.readouterr().out
    assert "which does not exist; expected the recordings of the data set" in fails(name)


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("audioset", "class_labels_indices.csv"),
        ("epic_sounds", "EPIC_Sounds_train.csv"),
        ("esc50", "meta/esc50.csv"),
        ("urbansound8k", "metadata/UrbanSound8K.csv"),
        ("vggsound", "vggsound.csv"),
    ],
)
def test_a_folder_without_the_list_and_with_an_odd_one(
    name: str, table: str, tmp_path: Path, fails: Callable[..., str]
) -> None:
    path = tmp_path / "in" / table
    write_wav(tmp_path / "in" / "audio" / "1.wav")
    assert f"{path} is missing; expected the data set's official list" in fails(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"\xff\xfe,1\n")
    assert f"{path} cannot be read" in fails(name)
    path.write_text("one,two\n1,2\n")
    message = fails(name)
    assert f"{path} has the columns ['one', 'two']; expected" in message or "line 1 is ['one', 'two']" in message


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("as20k", "audioset"), ("audioset", "audioset"), ("vggsound", "vggsound"), ("epic_sounds", "epic_sounds")],
)
def test_a_recipe_tells_how_its_shards_are_made(recipe: str, name: str) -> None:
    path = RECIPES / f"aum_{recipe}.yaml"
    loaded = load_recipe(path)
    assert isinstance(loaded, FinetuneRecipe)
    (command,) = [line for line in path.read_text().splitlines() if line.startswith("#   ssamba prepare ")]
    _, _, _, script, _, out, *options = command.split()
    assert script == name
    assert loaded.task.label == "label"
    assert {Path(split).parent for split in (*loaded.data.train, *loaded.data.validation, *loaded.data.test)} == {
        Path(out)
    }
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert int(given.get("--sampling-rate", 16000)) == loaded.audio.sampling_rate


# ESC-50


def test_esc50(tmp_path: Path, make: Callable[..., Path]) -> None:
    esc50(tmp_path / "in")
    out = make("esc50")
    assert sorted(path.name for path in out.iterdir()) == ["test", "train"]
    train = ShardIndex.read(out / "train")
    assert (train.dataset, train.labels) == (
        "esc50",
        {"category": ("dog", "rooster", "airplane"), "fold": tuple("12345")},
    )
    assert counts(out / "train", "fold") == dict.fromkeys("1234", 4)
    assert counts(out / "train", "category") == {"dog": 8, "rooster": 4, "airplane": 4}
    assert counts(out / "test", "category") == {"dog": 2, "rooster": 1, "airplane": 1}
    assert described(out / "test")["5-100035-A-0"] == {
        "key": "5-100035-A-0",
        "source": "5-100035-A-0.wav",
        "seconds": pytest.approx(0.05),
        "labels": {"category": "dog", "fold": "5"},
    }
    make("esc50", "--test-fold=2", "--overwrite")
    assert counts(out / "test", "fold") == {"2": 4}
    assert counts(out / "train", "fold") == dict.fromkeys("1345", 4)


def test_esc50_complains(tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    esc50(root)
    with pytest.raises(SystemExit) as end:
        script("esc50").main([str(root), str(tmp_path / "out"), "--test-fold=6"])
    assert end.value.code == 2
    assert "argument --test-fold: invalid choice: '6'" in capsys.readouterr().err
    (root / "audio" / "3-100033-C-0.wav").unlink()
    assert "3-100033-C-0.wav is missing, and is in meta/esc50.csv: unpack the archive again" in fails("esc50")
    header = "filename,fold,target,category\n"
    for rows, message in (
        ("1-100031-A-0.wav,1,none,dog\n", "the target of 1-100031-A-0.wav is 'none'; expected a number"),
        (
            "1-100031-A-0.wav,1,0,dog\n5-100035-D-47.wav,5,47\n",
            "esc50.csv line 3 is ['5-100035-D-47.wav', '5', '47']; expected",
        ),
        ("1-100031-A-0.wav,7,0,dog\n5-100035-D-47.wav,5,47,airplane\n", "has the fold '7'; expected one of the 5"),
        ("1-100031-A-0.wav,1,0,dog\n", "split 'test' has no recordings"),
    ):
        (root / "meta" / "esc50.csv").write_text(header + rows)
        assert message in fails("esc50")


# UrbanSound8K


def test_urbansound8k(tmp_path: Path, make: Callable[..., Path]) -> None:
    urbansound8k(tmp_path / "in")
    out = make("urbansound8k")
    train = ShardIndex.read(out / "train")
    assert train.dataset == "urbansound8k"
    assert train.labels == {
        "class": ("air_conditioner", "dog_bark", "ten"),
        "fold": tuple(str(fold) for fold in range(1, 11)),
    }
    assert counts(out / "train", "fold") == {str(fold): 3 for fold in range(1, 10)}
    assert counts(out / "test", "class") == {"dog_bark": 1, "air_conditioner": 1, "ten": 1}
    make("urbansound8k", "--test-fold=1", "--overwrite")
    assert described(out / "test")["1001-3-0-0"]["labels"] == {"class": "dog_bark", "fold": "1"}
    assert len(described(out / "train")) == 27 and len(described(out / "test")) == 3


def test_urbansound8k_complains(tmp_path: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "in"
    urbansound8k(root)
    with pytest.raises(SystemExit) as end:
        script("urbansound8k").main([str(root), str(tmp_path / "out"), "--test-fold=11"])
    assert end.value.code == 2
    assert "argument --test-fold: invalid choice: '11'" in capsys.readouterr().err
    (root / "audio" / "fold4" / "1004-3-0-0.wav").unlink()
    assert "1004-3-0-0.wav is missing, and is in metadata/UrbanSound8K.csv" in fails("urbansound8k")


# Clips of videos


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("-0RWZT-miFs.wav", 420.0),
        ("Y-0RWZT-miFs.flac", 420.0),
        ("id_-0RWZT-miFs.m4a", 420.0),
        ("-0RWZT-miFs_420.ogg", 420.0),
        ("-0RWZT-miFs_420.000.wav", 420.0),
        ("-0RWZT-miFs_000420.wav", 420.0),
        ("-0RWZT-miFs_420_430.wav", 420.0),
        ("-0RWZT-miFs_420.000_430.000.WAV", 420.0),
        ("Y-0RWZT-miFs_420000_430000.wav", 420.0),
        ("deep/er/-0RWZT-miFs_0_10000.wav", 0.0),
        ("-0RWZT-miFs_30.wav", 30.5),
        ("-0RWZT-miFs_4007.wav", 4.007),
    ],
)
def test_names_of_clips(name: str, start: float, tmp_path: Path) -> None:
    write_wav(tmp_path / "other" / "AAAAAAAAAAA.wav")
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    assert VideoClips(tmp_path).find("-0RWZT-miFs", start) == path
    assert VideoClips(tmp_path).find("BBBBBBBBBBB", start) is None


def test_names_of_other_clips(tmp_path: Path) -> None:
    """Underscores and a Y of the video's own; other beginnings, other files."""
    names = ("Y_a_b_c_d_e_30.wav", "YYaaaaaaaaa_.wav", "cccccccccccc.wav", "ddddddddddd_x.wav", "eeeeeeeeeee.json")
    for name in (*names, "fffffffffff.wav", "fffffffffff_20.wav", "fffffffffff_30.wav"):
        (tmp_path / name).write_bytes(b"")
    clips = VideoClips(tmp_path)
    assert clips.find("Y_a_b_c_d_e", 30.0) == tmp_path / "Y_a_b_c_d_e_30.wav"
    assert clips.find("Y_a_b_c_d_e", 40.0) is None
    assert clips.find("Yaaaaaaaaa_", 0.0) == tmp_path / "YYaaaaaaaaa_.wav"
    assert clips.find("fffffffffff", 30.0) == tmp_path / "fffffffffff_30.wav"
    assert clips.find("fffffffffff", 40.0) == tmp_path / "fffffffffff.wav"
    assert sorted(clips.clips) == ["Y_a_b_c_d_e", "Yaaaaaaaaa_", "fffffffffff"]


# AudioSet


def test_audioset(tmp_path: Path, make: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    audioset(tmp_path / "in")
    out = make("audioset", "--validation=0.2")
    for told in ("train: 1 of 20", "balanced: 1 of 10", "test: 1 of 4"):
        assert f"{told} clips are missing" in caplog.text
    splits = {path.name: described(path) for path in out.iterdir()}
    assert {name: len(samples) for name, samples in splits.items()} == {
        "train": 15,
        "validation": 4,
        "balanced": 9,
        "test": 3,
    }
    assert {*splits["train"], *splits["validation"]} == {audioset_video("u", number) for number in range(19)}
    assert set(splits["balanced"]) == {audioset_video("b", number) for number in range(9)}
    index = ShardIndex.read(out / "balanced")
    assert (index.dataset, index.labels) == ("audioset", {"label": ("Speech", "Dog", "Male speech, man speaking")})
    assert splits["balanced"][audioset_video("b", 1)]["labels"] == {"label": ["Speech", "Male speech, man speaking"]}
    assert splits["test"][audioset_video("e", 2)] == {
        "key": audioset_video("e", 2),
        "source": f"e/{audioset_video('e', 2)}_20000_30000.wav",
        "seconds": 0.05,
        "labels": {"label": ["Dog"]},
    }

    make("audioset", "--validation=0.2", "--overwrite")
    assert set(described(out / "validation")) == set(splits["validation"])
    make("audioset", "--validation=0.2", "--overwrite", "--seed=1")
    assert set(described(out / "validation")) != set(splits["validation"])


def test_audioset_balanced_only(tmp_path: Path, make: Callable[..., Path], fails: Callable[..., str]) -> None:
    audioset(tmp_path / "in")
    (tmp_path / "in" / "unbalanced_train_segments.csv").unlink()
    assert "unbalanced_train_segments.csv is missing; expected the official segments" in fails("audioset")
    out = make("audioset", "--balanced-only", "--validation=0.34")
    splits = {path.name: described(path) for path in out.iterdir()}
    assert {name: len(samples) for name, samples in splits.items()} == {"validation": 3, "balanced": 6, "test": 3}
    assert {*splits["balanced"], *splits["validation"]} == {audioset_video("b", number) for number in range(9)}
    out = make("audioset", "--balanced-only", "--validation=0", "--overwrite")
    assert {path.name: len(described(path)) for path in out.iterdir()} == {"balanced": 9, "test": 3}


def test_audioset_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    root = tmp_path / "in"
    audioset(root)
    assert "--validation is 1; expected a fraction" in fails("audioset", "--validation=1")
    assert "split 'validation' has no recordings" in fails("audioset", "--validation=0.01")
    table = root / "balanced_train_segments.csv"
    written = table.read_text()
    table.write_text(written.replace("/m/05zppz", "/m/none", 1))
    assert f"{audioset_video('b', 1)} in {table} is labelled '/m/none'; expected identifiers that" in fails("audioset")
    table.write_text(written.replace(" 10.000, 20.000", " ten, 20.000"))
    assert "the start of" in (message := fails("audioset")) and "is 'ten'; expected a number" in message
    table.write_text(written)
    (root / "clips" / "e").rename(tmp_path / "elsewhere")
    assert "none of the 4 clips of the split test is in" in fails("audioset")


# VGGSound


def test_vggsound(tmp_path: Path, make: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    vggsound(tmp_path / "in")
    out = make("vggsound")
    assert "train: 1 of 4 clips are missing" in caplog.text and "test:" not in caplog.text
    labels = ("airplane", "female speech, woman speaking", "people marching", "waterfall burbling")
    assert ShardIndex.read(out / "test").labels == {"label": labels}
    assert ShardIndex.read(out / "test").dataset == "vggsound"
    assert counts(out / "train", "label") == dict.fromkeys(labels[1:], 1)
    test = described(out / "test")
    assert sorted(test) == ["---g-f_I2yQ_000001", "-zzzzzzzzzz_000020"]
    assert test["---g-f_I2yQ_000001"] == {
        "key": "---g-f_I2yQ_000001",
        "source": "test/---g-f_I2yQ_000001.wav",
        "seconds": 0.05,
        "labels": {"label": "people marching"},
    }


def test_vggsound_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    root = tmp_path / "in"
    vggsound(root)
    (root / "train").rename(tmp_path / "elsewhere")
    assert "none of the 4 clips of the split train is in" in fails("vggsound")
    (root / "vggsound.csv").write_text("---g-f_I2yQ,1,people marching,dev\n")
    assert "is of the split 'dev'; expected train or test" in fails("vggsound")
    for start in ("one", "nan", ""):
        (root / "vggsound.csv").write_text(f"---g-f_I2yQ,{start},people marching,test\n")
        assert f"vggsound.csv is {start!r}; expected a number" in fails("vggsound")
    (root / "vggsound.csv").write_text("---g-f_I2yQ,1,test\n")
    assert "vggsound.csv line 1 is ['---g-f_I2yQ', '1', 'test']; expected ['video', 'start'," in fails("vggsound")


# EPIC-SOUNDS


def test_epic_sounds(tmp_path: Path, make: Callable[..., Path], caplog: pytest.LogCaptureFixture) -> None:
    epic_sounds(tmp_path / "in")
    out = make("epic_sounds", "--sampling-rate=8000")
    assert "train: 1 of 4 clips are missing" in caplog.text and "validation:" not in caplog.text
    index = ShardIndex.read(out / "train")
    assert (index.dataset, index.sampling_rate) == ("epic-sounds", 8000)
    assert index.labels == {"label": ("metal-only collision", "cut / chop", "rustle", "water"), "participant": ("P01",)}
    train = described(out / "train")
    assert train["P01_01_0"] == {
        "key": "P01_01_0",
        "source": "P01_01.wav#t=2.466,5.315",
        "seconds": 2.849,
        "labels": {"label": "rustle", "participant": "P01"},
    }
    assert train["P01_01_1"]["seconds"] == 1.25 and len(train) == 3
    assert counts(out / "validation", "label") == {"metal-only collision": 1}
    with tarfile.open(out / "train" / "000000.tar") as archive:
        content = archive.extractfile("P01_01_1.flac")
        assert content
        waveform, _ = soundfile.read(content)
    np.testing.assert_allclose(waveform[[0, -1]] * 100, [62.5, 63.75], atol=0.004)


def test_epic_sounds_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    root = tmp_path / "in"
    epic_sounds(root)
    table = root / "EPIC_Sounds_validation.csv"
    for row, message in (
        ("x,P01,P01_11,10,00:00:11.0,1,2,a,b,0", "x has the time '10'; expected one like 00:01:02.345"),
        ("x,P01,P01_11,00:00:10.0,00:00:11.0,1,2,a,b,zero", "the class_id of x is 'zero'; expected a number"),
        ("x,P01,P01_11,00:00:11.0,00:00:10.0,1,2,a,b,0", "'x' is cut from 11.0 to 10.0 s"),
        ("x,P01,P09_99,00:00:10.0,00:00:11.0,1,2,a,b,0", "none of the 1 clips of the split validation is in"),
        ("x,P01,P01_11,00:01:10.0,00:01:11.0,1,2,a,metal-only collision,0", "it has 70.000 s; the cut is from 70"),
    ):
        table.write_text(f"{EPIC_SOUNDS_HEADER}{row}\n")
        assert message in fails("epic_sounds")
    table.unlink()
    assert "EPIC_Sounds_validation.csv is missing; expected the data set's official list" in fails("epic_sounds")
