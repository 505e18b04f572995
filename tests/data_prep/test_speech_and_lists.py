import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from layouts import iemocap, script, voxceleb1, write_ramp
from test_scripts import counts, described, error_in

from ssamba.config import load_recipe
from ssamba.data.shards.index import ShardIndex

ROOT = Path(__file__).parents[2]


@pytest.fixture
def make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Run a script over tmp_path/in, into tmp_path/out."""

    def run(name: str, *options: str) -> Path:
        status = script(name).main([str(tmp_path / "in"), str(tmp_path / "out"), "--workers=1", *options])
        assert status == 0, capsys.readouterr().err
        return tmp_path / "out"

    return run


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script that must end with status 2 and one message; returns that, and finished shards alone are left."""

    def run(name: str, *options: str) -> str:
        before = sorted(tmp_path.iterdir())
        capsys.readouterr()  # what a run before it told
        assert script(name).main([str(tmp_path / "in"), str(tmp_path / "out"), "--workers=1", *options]) == 2
        printed = capsys.readouterr()
        if "Finished shards (" in printed.err:
            shutil.rmtree(tmp_path / "out.partial")
        assert sorted(tmp_path.iterdir()) == before
        assert printed.out == ""
        return error_in(printed.err)

    return run


@pytest.mark.parametrize("name", ["voxceleb1", "iemocap", "librispeech", "listed"])
def test_each_needs_a_source_and_has_help(
    name: str, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"iemocap": ["--test-session=1"], "listed": ["--train=a.json"]}.get(name, [])
    assert "which does not exist" in fails(name, *options)
    with pytest.raises(SystemExit) as end:
        script(name).main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for option in ("SOURCE OUT", "--workers", "--max-bad-fraction", "--overwrite", "Shards of"):
        assert option in printed


# VoxCeleb1


@pytest.mark.parametrize(
    "folders",
    [
        ("vox1_dev_wav/wav", "vox1_test_wav/wav"),
        ("wav", "wav"),
        (".", "."),
        ("dev/wav", "test/wav"),
        ("vox1_dev_wav", "vox1_test_wav"),
    ],
)
def test_voxceleb1(tmp_path: Path, make: Callable[..., Path], folders: tuple[str, str]) -> None:
    voxceleb1(tmp_path / "in", folders)
    out = make("voxceleb1")
    speakers = ("id10001", "id10002", "id10270")
    index = ShardIndex.read(out / "train")
    assert (index.dataset, index.labels) == ("voxceleb1", {"speaker": speakers})
    assert counts(out / "train", "speaker") == dict.fromkeys(speakers, 2)
    assert counts(out / "validation", "speaker") == counts(out / "test", "speaker") == dict.fromkeys(speakers, 1)
    assert set(described(out / "test")) == {f"{speaker}-1zcIwh-deo4-00004" for speaker in speakers}
    source = "id10270/1zcIwh-deo4/00003.wav"
    assert described(out / "validation")["id10270-1zcIwh-deo4-00003"] == {
        "key": "id10270-1zcIwh-deo4-00003",
        "seconds": 0.05,
        "labels": {"speaker": "id10270"},
        "source": source if folders[0] == folders[1] else f"{folders[1]}/{source}",
    }


def test_voxceleb1_of_other_endings(tmp_path: Path, make: Callable[..., Path]) -> None:
    voxceleb1(tmp_path / "in")
    for path in (tmp_path / "in").rglob("*.wav"):
        samples, rate = soundfile.read(path, dtype="int16")
        soundfile.write(path.with_suffix(".flac"), samples, rate)
        path.unlink()
    assert {key[:7] for key in described(make("voxceleb1") / "train")} == {"id10001", "id10002", "id10270"}


def test_voxceleb1_makes_what_its_recipe_names() -> None:
    """The command in the recipe's comment, its splits and its label."""
    text = (ROOT / "recipes" / "finetune" / "aum_voxceleb.yaml").read_text()
    assert "#   ssamba prepare voxceleb1 VOXCELEB1 shards/voxceleb1\n" in text
    recipe = load_recipe(ROOT / "recipes" / "finetune" / "aum_voxceleb.yaml")
    splits = [recipe.data.train, recipe.data.validation, recipe.data.test]
    assert splits == [[f"shards/voxceleb1/{split}"] for split in ("train", "validation", "test")]
    assert recipe.task.label == "speaker"


def test_voxceleb1_verification(tmp_path: Path, make: Callable[..., Path], fails: Callable[..., str]) -> None:
    voxceleb1(tmp_path / "in")
    first, second, other = (f"id{n}/1zcIwh-deo4/00001.wav" for n in (10270, 10001, 10002))
    trials = tmp_path / "veri_test.txt"
    trials.write_text(f"1 {first} {second}\n0 {first} {other}\n")
    out = make("voxceleb1", f"--trials={trials}")
    assert [path.name for path in out.iterdir()] == ["verification"]
    assert counts(out / "verification", "speaker") == {"id10001": 1, "id10002": 1, "id10270": 1}
    copy = tmp_path / "out-trials.txt"
    keys = [f"id{n}-1zcIwh-deo4-00001" for n in (10270, 10001, 10002)]
    assert copy.read_text() == f"1 {keys[0]} {keys[1]}\n0 {keys[0]} {keys[2]}\n"
    assert set(keys) == set(described(out / "verification"))

    copy.write_text("mine")
    shutil.rmtree(out)
    assert "out-trials.txt exists; --overwrite replaces it" in fails("voxceleb1", f"--trials={trials}")
    assert copy.read_text() == "mine"
    make("voxceleb1", f"--trials={trials}", "--overwrite")
    assert copy.read_text().startswith("1 id10270-")


def test_voxceleb1_missing_files_are_counted(
    tmp_path: Path,
    make: Callable[..., Path],
    fails: Callable[..., str],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    voxceleb1(tmp_path / "in")
    gone = tmp_path / "in" / "vox1_dev_wav" / "wav" / "id10002" / "1zcIwh-deo4" / "00002.wav"
    gone.unlink()
    message = fails("voxceleb1")
    assert "1 of 12 listed recordings are missing; at most 0 may be" in message
    assert message.splitlines()[1:] == [f"  {gone}"]
    capsys.readouterr()
    out = make("voxceleb1", "--max-bad-fraction=0.1")
    assert f"1 of 12 listed recordings are missing: {gone}" in caplog.text
    assert "train: 5 recordings, 0.00 h, 1 shards, 1 skipped" in capsys.readouterr().out
    (skipped,) = ShardIndex.read(out / "train").skipped
    assert (skipped.source.endswith("id10002/1zcIwh-deo4/00002.wav"), skipped.why) == (True, "there is no such file")


def test_voxceleb1_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    assert "has no idXXXXX in wav, dev/wav, test/wav, vox1_dev_wav/wav" in fails("voxceleb1")
    lines = voxceleb1(source)
    (tmp_path / "list.txt").write_text("\n".join([*lines, "4 id10001/x/00001.wav"]))
    assert "has the line '4 id10001/x/00001.wav'; expected 1 or 2 or 3 and then 1" in fails(
        "voxceleb1", f"--split-list={tmp_path / 'list.txt'}"
    )
    assert "has the line '1 id10001/1zcIwh-deo4/00001.wav'; expected 0 or 1 and then 2" in fails(
        "voxceleb1", f"--trials={source / 'iden_split.txt'}"
    )
    (tmp_path / "list.txt").write_text("\n")
    assert "is empty" in fails("voxceleb1", f"--split-list={tmp_path / 'list.txt'}")
    (source / "iden_split.txt").unlink()
    assert f"there is no list {source / 'iden_split.txt'}; expected an official one" in fails("voxceleb1")


# IEMOCAP


@pytest.mark.parametrize("inside", [".", "IEMOCAP_full_release"])
def test_iemocap(tmp_path: Path, make: Callable[..., Path], inside: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    iemocap(tmp_path / "in" / inside)
    out = make("iemocap", "--test-session=3")
    assert "50 of 70 utterances have one of the four emotions" in caplog.text
    index = ShardIndex.read(out / "test")
    assert index.dataset == "iemocap-3"
    assert index.labels == {
        "emotion": ("ang", "hap", "neu", "sad"),
        "session": tuple("12345"),
        "speaker": tuple(f"Ses0{session}{gender}" for session in range(1, 6) for gender in "FM"),
    }
    assert counts(out / "test", "emotion") == {"ang": 2, "hap": 4, "neu": 2, "sad": 2}
    assert counts(out / "test", "speaker") == {"Ses03F": 5, "Ses03M": 5}
    assert described(out / "test")["Ses03F_impro01_M002"]["labels"] == {
        "emotion": "hap",
        "session": "3",
        "speaker": "Ses03M",
    }
    rest = [described(out / split) for split in ("train", "validation")]
    assert [len(samples) for samples in rest] == [32, 8]
    assert len(rest[0] | rest[1]) == 40
    assert Counter(s["labels"]["emotion"] for samples in rest for s in samples.values()) == {
        "ang": 8,
        "hap": 16,
        "neu": 8,
        "sad": 8,
    }
    assert {s["labels"]["session"] for samples in rest for s in samples.values()} == set("1245")

    make("iemocap", "--test-session=3", "--overwrite", "--seed=1")
    assert set(described(out / "validation")) != set(rest[1])
    make("iemocap", "--test-session=3", "--overwrite", "--validation=0")
    assert sorted(path.name for path in out.iterdir()) == ["test", "train"]
    assert counts(out / "train", "session") == dict.fromkeys("1245", 10)


def test_iemocap_complains(tmp_path: Path, fails: Callable[..., str], make: Callable[..., Path]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    assert "Session1/dialog/EmoEvaluation has no Ses*.txt; expected IEMOCAP_full_release" in fails(
        "iemocap", "--test-session=1"
    )
    iemocap(source)
    assert "--test-session is 6; expected at least 1 and at most 5" in fails("iemocap", "--test-session=6")
    assert "--validation is 1; expected a fraction" in fails("iemocap", "--test-session=1", "--validation=1")
    (source / "Session4" / "sentences" / "wav" / "Ses04F_impro01" / "Ses04F_impro01_F000.wav").unlink()
    assert "1 of 50 listed recordings are missing; " in fails("iemocap", "--test-session=4")
    out = make("iemocap", "--test-session=4", "--max-bad-fraction=0.02")
    assert counts(out / "test", "emotion") == {"ang": 1, "hap": 4, "neu": 2, "sad": 2}
    (source / "Session5" / "dialog" / "EmoEvaluation" / "Ses05F_impro01.txt").write_text("[0 - 1] none")
    assert "has no utterance of ang, hap, neu, sad" in fails("iemocap", "--test-session=4", "--overwrite")


# LibriSpeech


@pytest.mark.parametrize("inside", [".", "LibriSpeech"])
def test_librispeech(tmp_path: Path, make: Callable[..., Path], inside: str) -> None:
    root = tmp_path / "in" / inside
    for name, speaker, seconds in (
        ("train-clean-100", "103", 2.5),
        ("train-other-500", "20", 3.0),
        ("dev-clean", "84", 1.5),
        ("test-clean", "61", 1.5),
    ):
        write_ramp(root / name / speaker / "1240" / f"{speaker}-1240-0000.flac", seconds)
        (root / name / speaker / "1240" / f"{speaker}-1240.trans.txt").write_text("")
    (root / "dev-clean" / "84" / "1240" / "._84-1240-0000.flac").write_bytes(b"\0\5\x16\7")
    out = make("librispeech", "--seconds=1.5")
    assert ShardIndex.read(out / "validation").passed_over == {"hidden": 1}
    assert sorted(path.name for path in out.iterdir()) == ["train", "validation"]
    train = described(out / "train")
    assert {key: sample["seconds"] for key, sample in train.items()} == {
        "103-1240-0000_0": 1.5,
        "103-1240-0000_1": 1.0,
        "20-1240-0000_0": 1.5,
        "20-1240-0000_1": 1.5,
    }
    assert train["103-1240-0000_1"]["source"].endswith("train-clean-100/103/1240/103-1240-0000.flac#t=1.5")
    assert counts(out / "train", "speaker") == {"103": 2, "20": 2}
    assert {key: sample["labels"] for key, sample in described(out / "validation").items()} == {
        "84-1240-0000": {"speaker": "84"}
    }  # a recording of a piece's length is whole

    with tarfile.open(out / "train" / "000000.tar") as archive:
        content = archive.extractfile("103-1240-0000_1.flac")
        assert content
        samples, _ = soundfile.read(content, dtype="int16")
    np.testing.assert_array_equal(samples, np.arange(24000, 40000) % 30000)


def test_librispeech_with_what_is_said(tmp_path: Path, make: Callable[..., Path], fails: Callable[..., str]) -> None:
    source = tmp_path / "in"
    for part, speaker in (("train-clean-100", "103"), ("dev-clean", "84"), ("test-clean", "61")):
        chapter = source / part / speaker / "1240"
        for number in range(2):
            write_ramp(chapter / f"{speaker}-1240-000{number}.flac", 11.0 + number)
        lines = [f"{speaker}-1240-000{number} HE'S  {part.upper().replace('-', ' ')}" for number in range(2)]
        (chapter / f"{speaker}-1240.trans.txt").write_text("\n".join(lines) + "\n")
    out = make("librispeech", "--transcripts")
    for split, part, speaker in (
        ("train", "TRAIN CLEAN 100", "103"),
        ("validation", "DEV CLEAN", "84"),
        ("test", "TEST CLEAN", "61"),
    ):
        found = described(out / split)
        assert {key: sample["labels"] for key, sample in found.items()} == {
            f"{speaker}-1240-000{number}": {"speaker": speaker, "text": f"HE'S {part}"} for number in range(2)
        }
        assert sorted(sample["seconds"] for sample in found.values()) == [11.0, 12.0]  # in no pieces
    out = make("librispeech", "--transcripts", "--parts=test-clean", "--overwrite")
    assert [path.name for path in out.iterdir()] == ["test"]

    chapter = source / "dev-clean" / "84" / "1240"
    (chapter / "84-1240.trans.txt").write_text("84-1240-0000 ONE\n84-1240-0001 \n")
    assert "1 of 2 recordings of" in (message := fails("librispeech", "--transcripts", "--overwrite"))
    assert "have no line in the .trans.txt of their chapter: 84-1240-0001" in message
    (chapter / "84-1240.trans.txt").unlink()
    assert "84-1240.trans.txt cannot be read" in fails("librispeech", "--transcripts", "--overwrite")


def test_librispeech_in_part(tmp_path: Path, make: Callable[..., Path], fails: Callable[..., str]) -> None:
    for name, speaker in (("train-clean-100", "103"), ("train-other-500", "20"), ("dev-clean", "84")):
        write_ramp(tmp_path / "in" / name / speaker / "1240" / f"{speaker}-1240-0000.flac")
    out = make("librispeech", "--parts=dev-clean,train-other-500")
    assert set(described(out / "train")) == {"20-1240-0000"} and set(described(out / "validation")) == {"84-1240-0000"}
    assert "in lacks train-clean-360, which --parts names: --fetch gets them" in fails(
        "librispeech", "--parts=dev-clean,train-clean-360", "--overwrite"
    )
    assert "--parts has test-clean; expected some of train-clean-100, train-clean-360" in fails(
        "librispeech", "--parts=test-clean", "--overwrite"
    )


def test_librispeech_leaves_short_rests_out(tmp_path: Path, make: Callable[..., Path]) -> None:
    write_ramp(tmp_path / "in" / "dev-other" / "7" / "8" / "7-8-0001.flac", 20.9)
    out = make("librispeech")
    assert {key: sample["seconds"] for key, sample in described(out / "validation").items()} == {
        "7-8-0001_0": 10.0,
        "7-8-0001_1": 10.0,
    }


def test_librispeech_complains(tmp_path: Path, fails: Callable[..., str], make: Callable[..., Path]) -> None:
    source = tmp_path / "in"
    source.mkdir()
    assert "has none of the folders train-clean-100, train-clean-360" in fails("librispeech")
    (source / "dev-clean").mkdir()
    assert "dev-clean has no SPEAKER/CHAPTER/*.flac" in fails("librispeech")
    write_ramp(source / "dev-clean" / "7" / "8" / "7-8-0001.flac")
    assert "--seconds is 0; expected at least 0.025" in fails("librispeech", "--seconds=0")
    (source / "dev-clean" / "7" / "8" / "7-8-0002.flac").write_text("torn")
    assert "1 of 2 recordings are unusable" in fails("librispeech")
    assert list(described(make("librispeech", "--max-bad-fraction=0.5") / "validation")) == ["7-8-0001"]


# Lists


@pytest.fixture
def audio(tmp_path: Path) -> Path:
    for name in ("a", "b c", "d.v1", "e"):
        write_ramp(tmp_path / "in" / "audio" / f"{name}.wav")
    return tmp_path / "in"


def write_json_list(path: Path, entries: dict[str, str]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"data": [{"wav": wav, "labels": labels} for wav, labels in entries.items()]}))


CLASSES = 'index,mid,display_name\n0,/m/s,"Speech, loud"\n1,/m/d,Dog\n2,/m/c,Cat\n'


def test_json_lists(audio: Path, make: Callable[..., Path]) -> None:
    """Whole paths and such as are relative to the list, in the folder of the lists and beside it."""
    write_json_list(audio / "train.json", {"audio/a.wav": "/m/d,/m/s", f"{audio}/audio/b c.wav": "/m/d"})
    write_json_list(audio / "lists" / "eval.json", {"../audio/d.v1.wav": "/m/s"})
    (audio / "classes.csv").write_text(CLASSES)
    lists = ("--train=train.json", f"--test={audio / 'lists' / 'eval.json'}")
    out = make("listed", *lists, "--class-labels=classes.csv")
    assert sorted(path.name for path in out.iterdir()) == ["test", "train"]
    index = ShardIndex.read(out / "train")
    assert (index.dataset, index.labels) == ("in", {"label": ("Speech, loud", "Dog", "Cat")})
    assert {key: sample["labels"] for key, sample in described(out / "train").items()} == {
        "a": {"label": ["Dog", "Speech, loud"]},
        "b-c": {"label": ["Dog"]},
    }
    assert described(out / "test") == {
        "d-v1": {"key": "d-v1", "source": "d.v1.wav", "seconds": 0.05, "labels": {"label": ["Speech, loud"]}}
    }

    make("listed", *lists, "--overwrite", "--name=mine", "--label-key=event")
    index = ShardIndex.read(out / "test")
    assert (index.dataset, index.labels) == ("mine", {"event": ("/m/d", "/m/s")})
    assert described(out / "train")["a"]["labels"] == {"event": ["/m/d", "/m/s"]}


def test_csv_lists(audio: Path, make: Callable[..., Path]) -> None:
    (audio / "a.csv").write_text("\ufeffpath,label,room\naudio/a.wav,cat,hall\naudio/b c.wav,dog,\n", encoding="utf-8")
    (audio / "b.CSV").write_text("room,path,label\nhall,audio/e.wav,dog\n")
    out = make("listed", "--train=a.csv", "--validation=b.CSV")
    assert ShardIndex.read(out / "train").labels == {"label": ("cat", "dog"), "room": ("hall",)}
    assert {key: sample["labels"] for key, sample in described(out / "train").items()} == {
        "a": {"label": "cat", "room": "hall"},
        "b-c": {"label": "dog"},
    }
    assert described(out / "validation")["e"]["labels"] == {"label": "dog", "room": "hall"}


def test_csv_list_with_several_labels_and_class_names(audio: Path, make: Callable[..., Path]) -> None:
    (audio / "a.csv").write_text("path,tags\naudio/a.wav,/m/c;/m/d\naudio/e.wav,/m/c\n")
    (audio / "classes.csv").write_text(CLASSES)
    options = ("--test=a.csv", "--label-key=tags", "--separator=;")
    out = make("listed", *options)
    assert ShardIndex.read(out / "test").labels == {"tags": ("/m/c", "/m/d")}
    assert described(out / "test")["a"]["labels"] == {"tags": ["/m/c", "/m/d"]}
    make("listed", *options, "--class-labels=classes.csv", "--overwrite")
    assert ShardIndex.read(out / "test").labels == {"tags": ("Speech, loud", "Dog", "Cat")}
    assert described(out / "test")["a"]["labels"] == {"tags": ["Cat", "Dog"]}


def test_lists_missing_files_are_counted(
    audio: Path, make: Callable[..., Path], fails: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    write_json_list(audio / "a.json", {"audio/a.wav": "x", "audio/gone.wav": "y"})
    gone = audio / "audio" / "gone.wav"
    message = fails("listed", "--train=a.json")
    assert "1 of 2 listed recordings are missing; at most 0 may be" in message and f"\n  {gone}" in message
    out = make("listed", "--train=a.json", "--max-bad-fraction=0.5")
    assert f"1 of 2 listed recordings are missing: {gone}" in caplog.text
    assert [one.source for one in ShardIndex.read(out / "train").skipped] == ["gone.wav"]
    assert list(described(out / "train")) == ["a"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("audio/a.wav x\n", 'a.json cannot be used: JSON is malformed: invalid character (byte 0); expected {"data'),
        ("", "a.json cannot be used: Input data was truncated"),
        ('{"data": [{"wav": "audio/a.wav", "labels": "x"},]}', "a.json cannot be used: JSON is malformed"),
        ("<html>403</html>", "a.json is a page of HTML or XML"),
        ("[" * 100_000, "a.json cannot be used: it is nested too deep"),
        ('{"files": []}', "a.json is an object with the keys ['files']; expected"),
        ('{"data": {"wav": "audio/a.wav"}}', "a.json 'data' is {\"wav"),
        ('{"data": []}', "split 'train' has no recordings"),
        ('{"data": ["audio/a.wav"]}', 'a.json data[0] is "audio/a.wav"; expected {"wav": path'),
        ('{"data": [{"wav": "audio/a.wav", "labels": "x"}, {"wav": "audio/e.wav"}]}', "a.json data[1] is {"),
        ('{"data": [{"wav": "audio/a.wav", "labels": {"x": 1}}]}', "a.json data[0] is {"),
        ('{"data": [{"wav": "audio/a.wav", "labels": true}]}', "a.json data[0] is {"),
        ('{"data": [{"wav": "audio/a.wav", "labels": ""}]}', "neither of them empty"),
        ('{"data": [{"wav": "audio/a.wav", "labels": "x,"}]}', "'a' has an empty name for the label 'label'"),
        (
            '{"data": [{"wav": "audio/a.wav", "labels": "x"}, {"wav": "audio/a.wav", "labels": "y"}]}',
            "a.wav with {'label': ['y']}, and data[0] has it with {'label': ['x']}; expected each recording once",
        ),
    ],
)
def test_json_list_complains(audio: Path, fails: Callable[..., str], content: str, message: str) -> None:
    (audio / "a.json").write_text(content)
    assert message in fails("listed", "--train=a.json")


def test_lists_complain(audio: Path, fails: Callable[..., str]) -> None:
    assert "no list is given; expected --train LIST, --validation LIST or --test LIST" in fails("listed")
    assert f"{audio / 'a.json'} cannot be read" in fails("listed", "--train=a.json")
    assert "a.xls is no list; expected a file that ends in .csv, .tsv" in fails("listed", "--train=a.xls")
    (audio / "a.csv").write_bytes(b"path,label\n\xff,x\n")
    assert "expected a table of recordings, such as a CSV in UTF-8" in fails("listed", "--train=a.csv")
    for content, message in (
        ("", "has the columns []; expected one for a path (--path-column) among them"),
        ("wave,label\naudio/a.wav,x\n", "has the columns ['wave', 'label']"),
        ("path,label,label\naudio/a.wav,x,y\n", "; expected each once"),
        ("path,label\naudio/a.wav\n", "a.csv line 2 is ['audio/a.wav']; expected ['path', 'label'], separated by ','"),
        ("path,label\naudio/a.wav,x\n,x\n", "a.csv line 3 is ['', 'x']"),
        ("path,label\n", "split 'train' has no recordings"),
    ):
        (audio / "a.csv").write_text(content)
        assert message in fails("listed", "--train=a.csv")
    (audio / "a.csv").write_text("path,label\naudio/e.wav,x\naudio/a.wav,x\n")
    (audio / "b.csv").write_text(f"path,label\n{audio}/audio/a.wav,x\n")
    message = f"as has {audio / 'a.csv'} line 3; expected each recording once in all lists"
    assert message in fails("listed", "--train=a.csv", "--test=b.csv")
    (audio / "a.csv").write_text("path,tags\naudio/a.wav,x;y\n")
    assert "expected one for a path (--path-column) and a label (--label-column)" in fails(
        "listed", "--train=a.csv", "--separator=;"
    )


def test_class_labels_complain(audio: Path, fails: Callable[..., str]) -> None:
    write_json_list(audio / "a.json", {"audio/a.wav": "/m/d", "audio/e.wav": "/m/d,/m/none"})
    options = ("--train=a.json", "--class-labels=classes.csv")
    assert "classes.csv cannot be read" in fails("listed", *options)
    for content, message in (
        ("", "has the columns [] and 0 lines below; expected index,mid,display_name"),
        ("mid,name\n/m/d,Dog\n", "has the columns ['mid', 'name'] and 1 lines below"),
        ("index,mid,display_name\n1,/m/d,Dog\n", "does not number its classes 0, 1, 2, ..."),
        ("index,mid,display_name\n0,/m/d,Dog\n1,/m/d,Cat\n", "each mid once"),
        ("index,mid,display_name\n0,/m/d,Dog\n1,/m/none,Dog\n", "has a name twice"),
        (CLASSES, "a.json data[1] has the label '/m/none'; expected one of --class-labels, like /m/s"),
    ):
        (audio / "classes.csv").write_text(content)
        assert message in fails("listed", *options)
