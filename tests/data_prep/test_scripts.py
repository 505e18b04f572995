import json
import shutil
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
import soundfile
from layouts import COMMANDS, OTHERS, SCRIPTS, V2_ONLY, script, speech_commands, write_wav

from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.verification import verify_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex


def described(split: Path) -> dict[str, dict[str, Any]]:
    """Key -> JSON of all samples of a split, which is sound."""
    found = find_shards(str(split))
    assert verify_shards(found, progress=False) == []
    samples = {}
    for path in found.paths:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name.endswith(".json"):
                    content = archive.extractfile(member)
                    assert content
                    samples[member.name.removesuffix(".json")] = json.load(content)
    return samples


def error_in(said: str) -> str:
    """The one error in what was said on stderr, which ends it, with its details."""
    lines = said.splitlines()
    (begin,) = (number for number, one in enumerate(lines) if one.startswith("error: "))
    assert "Traceback" not in said and all(one.startswith("  ") for one in lines[begin + 1 :])
    return "\n".join(lines[begin:])


def counts(split: Path, key: str) -> Counter[str]:
    return Counter(sample["labels"].get(key) for sample in described(split).values())


@pytest.fixture
def make(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Path]:
    """Run a script over the source, into tmp_path/out."""

    def run(name: str, *options: str, source: str = "in") -> Path:
        arguments = [str(tmp_path / source), str(tmp_path / "out"), "--workers=1", *options]
        assert script(name).main(arguments) == 0, capsys.readouterr().err
        return tmp_path / "out"

    return run


@pytest.fixture
def fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a script that must end with status 2 and one line; returns that, and finished shards alone are left."""

    def run(name: str, *options: str, source: str = "in") -> str:
        before = sorted(tmp_path.iterdir())
        assert script(name).main([str(tmp_path / source), str(tmp_path / "out"), "--workers=1", *options]) == 2
        printed = capsys.readouterr()
        if "Finished shards (" in printed.err:
            shutil.rmtree(tmp_path / "out.partial")
        assert sorted(tmp_path.iterdir()) == before
        assert printed.out == ""
        _, *messages = printed.err.split("error: ")
        assert len(messages) == 1
        return messages[0].strip()

    return run


# Free Spoken Digit Dataset


def test_fsdd(tmp_path: Path, make: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    layouts.fsdd(tmp_path / "in")
    out = make("fsdd", "--samples-per-shard=20")
    printed = capsys.readouterr().out
    assert f"{out / 'train'}: 40 recordings, 0.00 h, 2 shards, 0 skipped" in printed

    train = ShardIndex.read(out / "train")
    assert train.labels == {"digit": tuple("0123456789"), "speaker": ("george", "theo")}
    assert (train.dataset, train.sampling_rate) == ("fsdd", 16000)
    assert train.seconds == pytest.approx(2.0)
    assert [shard.samples for shard in train.shards] == [20, 20]
    assert counts(out / "train", "digit") == counts(out / "test", "digit") == dict.fromkeys("0123456789", 4)
    assert counts(out / "test", "speaker") == {"theo": 20, "george": 20}
    assert {key.rpartition("_")[2] for key in described(out / "test")} == {"0", "4"}
    assert described(out / "train")["7_theo_12"] == {
        "key": "7_theo_12",
        "source": "7_theo_12.wav",
        "seconds": 0.05,
        "labels": {"digit": "7", "speaker": "theo"},
    }


def test_fsdd_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "which does not exist" in fails("fsdd")
    (tmp_path / "in").mkdir()
    assert "has no .wav; expected the data set's folder `recordings`" in fails("fsdd")
    write_wav(tmp_path / "in" / "hello.wav")
    assert "hello.wav is not a recording of this data set; expected names like 7_jackson_32.wav" in fails("fsdd")


def test_fsdd_needs_all_of_it(tmp_path: Path, fails: Callable[..., str]) -> None:
    write_wav(tmp_path / "in" / "7_theo_0.wav")
    assert "split 'train' has no recordings" in fails("fsdd")


# Speech Commands


def test_speech_commands_v2(tmp_path: Path, make: Callable[..., Path]) -> None:
    words = (*COMMANDS, *OTHERS, *V2_ONLY)
    speech_commands(tmp_path / "in", words)
    write_wav(tmp_path / "in" / "_silence_" / "0.wav")
    (tmp_path / "in" / "yes" / "._00000000_nohash_0.wav").write_bytes(b"\0\5\x16\7")
    (tmp_path / "in" / ".git").mkdir()
    out = make("speech_commands", "--version=v2")
    assert ShardIndex.read(out / "test").passed_over == {"_silence_": 1, "hidden": 2}
    assert sorted(path.name for path in out.iterdir()) == ["test", "train", "validation"]
    train = ShardIndex.read(out / "train")
    assert (train.dataset, train.labels["word"]) == ("speech-commands-v2", words)
    assert train.labels["speaker"] == tuple(f"{take:08x}" for take in range(10))
    assert counts(out / "train", "word") == dict.fromkeys(words, 8)
    assert counts(out / "validation", "word") == counts(out / "test", "word") == dict.fromkeys(words, 1)
    assert counts(out / "validation", "speaker") == {"00000008": 35}
    assert described(out / "test")["tree-00000009_nohash_1"] == {
        "key": "tree-00000009_nohash_1",
        "source": "tree/00000009_nohash_1.wav",
        "seconds": 0.05,
        "labels": {"speaker": "00000009", "word": "tree"},
    }


def test_speech_commands_v1(tmp_path: Path, make: Callable[..., Path]) -> None:
    """80 / 10 / 10 recordings of the ten words, so 8 / 1 / 1 of silence and of unknown words."""
    speech_commands(tmp_path / "in", (*COMMANDS, *OTHERS))
    out = make("speech_commands", "--version=v1")
    classes = (*COMMANDS, "_silence_", "_unknown_")
    assert ShardIndex.read(out / "test").labels["word"] == classes
    assert counts(out / "train", "word") == dict.fromkeys(classes, 8)
    assert counts(out / "validation", "word") == counts(out / "test", "word") == dict.fromkeys(classes, 1)

    parts = {"train": (0.0, 0.8), "validation": (0.8, 0.9), "test": (0.9, 1.0)}
    starts = {}
    for split, (low, high) in parts.items():
        for key, sample in described(out / split).items():
            if sample["labels"]["word"] == "_unknown_":
                assert key.partition("-")[0] in OTHERS and "speaker" in sample["labels"]
            if sample["labels"]["word"] == "_silence_":
                assert sample["labels"] == {"word": "_silence_"} and sample["seconds"] == 1.0
                name, _, cut = sample["source"].partition("#t=")
                assert name in ("_background_noise_/pink_noise.wav", "_background_noise_/running_tap.wav")
                start, stop = map(float, cut.split(","))
                assert 12 * low <= start and stop <= 12 * high
                starts[key] = start
    assert len(set(starts.values())) == 10

    with tarfile.open(out / "train" / "000000.tar") as archive:
        content = archive.extractfile("silence-train-00003.flac")
        assert content
        waveform, _ = soundfile.read(content)
    np.testing.assert_allclose(waveform[[0, -1]] * 20, starts["silence-train-00003"] + np.array([0, 1]), atol=0.002)


def test_speech_commands_chance_is_the_seed(tmp_path: Path, make: Callable[..., Path]) -> None:
    speech_commands(tmp_path / "in", (*COMMANDS, *OTHERS))

    def drawn(*options: str) -> set[str]:
        samples = described(make("speech_commands", "--version=v1", "--overwrite", *options) / "train").values()
        return {sample["source"] for sample in samples if sample["labels"]["word"] in ("_silence_", "_unknown_")}

    first = drawn()
    assert len(first) == 16
    assert first == drawn("--seed=0")
    assert first != drawn("--seed=1")


def test_speech_commands_complains(tmp_path: Path, fails: Callable[..., str]) -> None:
    root = tmp_path / "in"
    speech_commands(root, (*COMMANDS, *OTHERS), noise_seconds=5)
    assert "has no .wav of at least 10 s" in fails("speech_commands", "--version=v1")
    (root / "_background_noise_" / "pink_noise.wav").write_text("no audio")
    assert "a background noise cannot be read" in fails("speech_commands", "--version=v1")
    message = fails("speech_commands", "--version=v2")
    assert "lacks the words ['backward', 'follow', 'forward', 'learn', 'visual']" in message
    assert "is --version right" in message
    (root / "wow" / "00000009_nohash_1.wav").unlink()
    message = fails("speech_commands", "--version=v1")
    assert "1 of the official lists' files are missing, first wow/00000009_nohash_1.wav" in message
    (root / "testing_list.txt").unlink()
    assert "testing_list.txt is missing; expected the official list" in fails("speech_commands", "--version=v1")
    (root / "visual").mkdir()
    assert "and has ['visual'] besides" in fails("speech_commands", "--version=v1")
    assert "expected the folder of the unpacked archive" in fails(
        "speech_commands", "--version=v1", source="in/README.md"
    )


# Any folder, any list


@pytest.fixture
def animals(tmp_path: Path) -> Path:
    layouts.folder(tmp_path / "in")
    return tmp_path / "in"


def test_folder(animals: Path, make: Callable[..., Path]) -> None:
    out = make("folder")
    assert [path.name for path in out.iterdir()] == ["train"]
    index = ShardIndex.read(out / "train")
    assert (index.dataset, index.labels) == ("in", {"label": ("cat", "dog")})
    assert counts(out / "train", "label") == {"cat": 10, "dog": 20}
    samples = described(out / "train")
    assert samples["dog-barking-3-v1"]["source"] == "dog/barking 3.v1.WAV"
    assert samples["cat-deep-3"]["labels"] == {"label": "cat"}


def test_folder_options(animals: Path, make: Callable[..., Path]) -> None:
    index = ShardIndex.read(make("folder", "--label-key=animal", "--name=zoo", "--sampling-rate=8000") / "train")
    assert (index.dataset, index.labels, index.sampling_rate) == ("zoo", {"animal": ("cat", "dog")}, 8000)


def test_folder_unlabelled(animals: Path, make: Callable[..., Path]) -> None:
    write_wav(animals / "loose.wav")
    out = make("folder", "--unlabelled")
    assert ShardIndex.read(out / "train").labels == {}
    assert len(described(out / "train")) == 31
    assert described(out / "train")["loose"]["labels"] == {}


def test_folder_fractions(animals: Path, make: Callable[..., Path]) -> None:
    out = make("folder", "--test=0.2", "--validation=0.1")
    assert counts(out / "test", "label") == {"cat": 2, "dog": 4}
    assert counts(out / "validation", "label") == {"cat": 1, "dog": 2}
    assert counts(out / "train", "label") == {"cat": 7, "dog": 14}
    keys = [set(described(out / split)) for split in ("train", "validation", "test")]
    assert len(set.union(*keys)) == 30

    make("folder", "--test=0.2", "--validation=0.1", "--overwrite")
    assert [set(described(out / split)) for split in ("train", "validation", "test")] == keys
    make("folder", "--test=0.2", "--validation=0.1", "--overwrite", "--seed=1")
    assert set(described(out / "test")) != keys[2]


@pytest.mark.parametrize("sizes", [(1, 1, 1), (3, 3, 3, 3), (7, 1, 2), (100,)])
@pytest.mark.parametrize("fraction", [0.05, 0.1, 0.25, 1 / 3, 0.5, 0.9])
def test_a_fraction_is_of_the_whole_and_of_each_label(sizes: tuple[int, ...], fraction: float) -> None:
    recordings = [
        Recording(f"{label}-{number}", Path("x.wav"), {"label": str(label)})
        for label, size in enumerate(sizes)
        for number in range(size)
    ]
    taken = script("folder").take(recordings, fraction, "label", 0)
    assert len(taken) == round(len(recordings) * fraction)
    per_label = Counter(one.labels["label"] for one in taken)
    for label, size in enumerate(sizes):
        assert abs(per_label[str(label)] - size * fraction) <= 1


def test_csv(animals: Path, make: Callable[..., Path]) -> None:
    (animals / "list.csv").write_text(
        "path,label,split,room\ncat/0.wav,cat,train,kitchen\ncat/1.wav,cat,test,\n"
        f'"dog/barking 0.v1.WAV",dog,train,garden\n{animals}/dog/barking 1.v1.WAV,dog,train,garden\n'
    )
    out = make("folder", source="in/list.csv")
    assert ShardIndex.read(out / "train").labels == {"label": ("cat", "dog"), "room": ("garden", "kitchen")}
    assert ShardIndex.read(out / "train").dataset == "list"
    assert counts(out / "train", "room") == {"kitchen": 1, "garden": 2}
    assert described(out / "test") == {
        "cat-1": {"key": "cat-1", "source": "cat/1.wav", "seconds": 0.05, "labels": {"label": "cat"}}
    }


def test_csv_with_several_labels(animals: Path, make: Callable[..., Path]) -> None:
    (animals / "list.csv").write_text("path,label\ncat/0.wav,cat;indoors\ncat/1.wav,cat\n")
    out = make("folder", "--separator=;", "--label-key=tags", source="in/list.csv")
    assert ShardIndex.read(out / "train").labels == {"tags": ("cat", "indoors")}
    assert described(out / "train")["cat-0"]["labels"] == {"tags": ["cat", "indoors"]}
    assert described(out / "train")["cat-1"]["labels"] == {"tags": ["cat"]}


def test_csv_held_out_speakers(animals: Path, make: Callable[..., Path]) -> None:
    rows = "".join(f"cat/{n}.wav,cat,s{n}\ncat/deep/{n}.wav,cat,s{n}\n" for n in range(5))
    (animals / "list.csv").write_text("\ufeffpath,label,speaker\n" + rows, encoding="utf-8")
    out = make("folder", "--hold-out=speaker=s1,s3", "--validation=0.2", source="in/list.csv")
    assert counts(out / "test", "speaker") == {"s1": 2, "s3": 2}
    assert len(described(out / "validation")) == 2 and len(described(out / "train")) == 4


def test_folder_complains(animals: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    assert "split 'test' has no recordings" in fails("folder", "--test=0.01")
    assert "split 'train' has no recordings" in fails("folder", "--test=0.5", "--validation=0.5")
    assert "--hold-out is label=cow; expected KEY=VALUE,...: no recording has" in fails(
        "folder", "--hold-out=label=cow"
    )
    write_wav(animals / "loose.wav")
    assert "loose.wav is in no label's folder; expected SOURCE/label/name, or --unlabelled" in fails("folder")
    (animals / "loose.wav").unlink()
    assert "30 of 30 recordings are unusable" in fails("folder", "--max-seconds=0.04")
    (tmp_path / "in" / "none").mkdir()
    assert "has no recordings; expected files that end with .3gp" in fails("folder", source="in/none")


def test_names_that_become_the_same_key(animals: Path, make: Callable[..., Path]) -> None:
    """Each has a key of its own, whatever else there is and however it is split."""
    write_wav(animals / "cat" / "deep-0.wav")
    keys = set(described(make("folder") / "train"))
    ours = {key for key in keys if key.startswith("cat-deep-0")}
    assert len(keys) == 31 and len(ours) == 2 and "cat-deep-0" not in ours
    out = make("folder", "--test=0.5", "--overwrite")
    assert set(described(out / "train")) | set(described(out / "test")) == keys
    (animals / "dog" / "barking 0.v1.WAV").unlink()
    assert ours < set(described(make("folder", "--overwrite") / "train"))


SPLIT_LAYOUTS = {
    "splits": ("Train/cat/1.wav", "Train/dog/2.wav", "dev/cat/3.wav", "eval/dog/deep/4.wav"),
    "a class called as one": ("train/1.wav", "car/2.wav"),
    "splits beside a label": ("train/a/1.wav", "test/a/2.wav", "cat/a/3.wav"),
    "splits below labels": ("cat/train/1.wav", "cat/test/2.wav"),
    "two names of one": ("train/a/1.wav", "val/a/2.wav", "dev/a/3.wav"),
    "no labels": ("train/1.wav", "test/2.wav"),
}


@pytest.mark.parametrize(
    ("layout", "made"),
    [
        ("splits", {"train": {"cat": 1, "dog": 1}, "validation": {"cat": 1}, "test": {"dog": 1}}),
        ("a class called as one", {"train": {"train": 1, "car": 1}}),
        ("splits beside a label", "the folders test, train are called as splits are, and beside them lie cat"),
        ("splits below labels", "there are folders test, train, called as splits are, below those of the labels"),
        ("two names of one", "dev and val are both names of the split validation"),
        (
            "no labels",
            "is in no label's folder; expected SOURCE/split/label/name, or --unlabelled, or --no-split-folders",
        ),
    ],
)
def test_split_folders(
    layout: str, made: object, tmp_path: Path, make: Callable[..., Path], fails: Callable[..., str]
) -> None:
    for name in SPLIT_LAYOUTS[layout]:
        write_wav(tmp_path / "in" / name)
    if isinstance(made, str):
        assert made in fails("folder")
        assert set(described(make("folder", "--no-split-folders") / "train"))
    else:
        out = make("folder")
        assert {split.name: dict(counts(split, "label")) for split in out.iterdir()} == made


def test_noises_and_links_that_are_labels(tmp_path: Path, make: Callable[..., Path]) -> None:
    for name in ("store/cat/1.wav", "store/dog/2.wav", "in/_background_noise_/3.wav"):
        write_wav(tmp_path / name)
    for label in ("cat", "dog"):
        (tmp_path / "in" / label).symlink_to(f"../store/{label}")
    out = make("folder")
    assert counts(out / "train", "label") == {"cat": 1, "dog": 1}
    assert ShardIndex.read(out / "train").passed_over == {"_background_noise_": 1}


def test_csv_complains(animals: Path, fails: Callable[..., str]) -> None:
    path = animals / "list.csv"
    for content, message in (
        ("", "has the columns []; expected one for a path (--path-column)"),
        ("a,label\n", "has the columns ['a', 'label']"),
        ("path\ncat/0.wav\n", "list.csv has no labels; expected a column for them (--label-column), or --unlabelled"),
        ("path,label\ncat/0.wav\n", "line 2 is ['cat/0.wav']; expected ['path', 'label']"),
        ("path,label\ncat/0.wav,cat,1\n", "line 2 is"),
        ("path,label\ncat/0.wav,cat\ncat/1.wav,\n", "line 3 is ['cat/1.wav', '']"),
        ("path,label\n,cat\n", "line 2 is ['', 'cat']"),
        ("path,label\n.,cat\n", "1 of 1 listed recordings are missing"),
        ("path,label\n", "list.csv names no recordings; expected a line for each of them"),
        ("path,label\ncat/0.wav,cat\ncat/0.wav,dog\n", "line 3 has "),
        ("path,label\ncat/9.wav,cat\n", "1 of 1 listed recordings are missing"),
        ("path,label,split\ncat/0.wav,cat,\n", "line 2 is ['cat/0.wav', 'cat', '']"),
    ):
        path.write_text(content)
        assert message in fails("folder", source="in/list.csv")
    path.write_text("path,label,split\ncat/0.wav,cat,test\ncat/1.wav,cat,train\n")
    assert "has a split test; expected no option that makes another" in fails(
        "folder", "--test=0.5", source="in/list.csv"
    )
    path.write_bytes(b"path,label\n\xff\xfe,cat\n")
    assert "list.csv cannot be read" in fails("folder", source="in/list.csv")


def test_too_many_bad_ones_and_more_allowed(
    animals: Path, make: Callable[..., Path], fails: Callable[..., str], caplog: pytest.LogCaptureFixture
) -> None:
    (animals / "cat" / "torn.wav").write_text("no audio")
    message = fails("folder")
    assert (
        "1 of 31 recordings are unusable" in message and "cat/torn.wav" in message and "--max-bad-fraction" in message
    )
    assert len(described(make("folder", "--max-bad-fraction=0.1") / "train")) == 30
    assert "skipped cat/torn.wav: it cannot be decoded" in caplog.text


# All of them


def test_from_the_shell(animals: Path, tmp_path: Path) -> None:
    """With workers of its own, and a complaint without a traceback."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(SCRIPTS / "folder.py"), *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, timeout=100)

    done = run(animals, tmp_path / "out", "--workers=2", "--samples-per-shard=10")
    assert (done.returncode, done.stdout) == (
        0,
        f"{tmp_path / 'out' / 'train'}: 30 recordings, 0.00 h, 3 shards, 0 skipped\n"
        "passed over: 1 x .txt (cat/notes.txt), 1 x hidden (cat/._0.wav)\n",
    )
    assert "30/30" in done.stderr
    again = run(animals, tmp_path / "out")
    assert (again.returncode, again.stdout) == (2, "")
    assert again.stderr == (
        f"error: {tmp_path / 'out'} exists; expected a new folder: give another, or replace it with --overwrite\n"
    )


@pytest.mark.parametrize("name", ["folder", "fsdd", "speech_commands"])
def test_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        script(name).main(["--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for option in ("SOURCE OUT", "--workers", "--samples-per-shard", "--seed", "--overwrite", "Shards of"):
        assert option in printed


def test_an_interrupt_leaves_nothing(
    animals: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(job: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ssamba.data.prepare.writer.finish_shard", interrupted)
    assert script("folder").main([str(animals), str(tmp_path / "out"), "--workers=1"]) == 130
    assert "interrupted. No shards were written" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
