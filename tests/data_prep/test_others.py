"""Recordings as other packages keep them: the same shards as folder.py makes of the same files."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from layouts import SCRIPTS, script, write_wav

from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.sources import Unpacked
from ssamba.data.prepare.writer import write_shards

FOLDERS = [
    (split, label, name)
    for split, names in (("train", "abcd"), ("dev", "ef"), ("eval", "gh"))
    for label, name in zip(("cat", "dog") * 2, names, strict=False)
]


def contents(out: Path) -> dict[str, bytes]:
    """All files of a data set's shards."""
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def samples(split: Path) -> dict[str, tuple[bytes, dict[str, Any]]]:
    """Key -> FLAC and JSON."""
    members: dict[str, bytes] = {}
    for path in split.glob("*.tar"):
        with tarfile.open(path) as archive:
            for member in archive:
                content = archive.extractfile(member)
                assert content
                members[member.name] = content.read()
    keys = [name.removesuffix(".json") for name in members if name.endswith(".json")]
    return {key: (members[f"{key}.flac"], json.loads(members[f"{key}.json"])) for key in keys}


def labels(split: Path, key: str) -> dict[str, Any]:
    return {name: sample["labels"].get(key) for name, (_, sample) in samples(split).items()}


def error_of(name: str, capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """The one error of a script that must fail and write nothing."""
    assert script(name).main([str(one) for one in arguments] + ["--workers=1"]) == 2
    printed = capsys.readouterr()
    assert "Traceback" not in printed.err and printed.out == "" and not Path(str(arguments[1])).exists()
    _, message = printed.err.split("error: ")
    return message.strip()


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("recordings")
    for split, label, name in FOLDERS:
        write_wav(root / split / label / f"{name}.wav")
    return root


@pytest.fixture(scope="module")
def by_folder(recordings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What folder.py makes of the recordings."""
    out = tmp_path_factory.mktemp("by_folder") / "out"
    assert script("folder").main([str(recordings), str(out), "--workers=1", "--name=same"]) == 0
    return out


def write(name: str, source: object, out: Path, *options: str) -> Path:
    assert script(name).main([str(source), str(out), "--workers=1", "--name=same", *options]) == 0
    return out


@pytest.mark.parametrize("name", ["huggingface", "lhotse"])
def test_a_package_that_is_missing_is_told_with_its_install_line(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = {"huggingface": "datasets"}.get(name, name)
    monkeypatch.setitem(sys.modules, package, None)
    said = error_of(name, capsys, tmp_path, tmp_path / "out")
    assert f"needs {package}, which" in said and said.endswith(f"pip install 'ssamba[{package}]'")


def test_a_script_is_not_taken_for_the_package_of_its_name(tmp_path: Path) -> None:
    pytest.importorskip("lhotse", reason="the extra lhotse is not installed")
    (tmp_path / "cuts.jsonl").write_text('{"id": "x"}\n')
    line = [sys.executable, str(SCRIPTS / "lhotse.py"), str(tmp_path / "cuts.jsonl"), str(tmp_path / "out")]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "cuts.jsonl cannot be read by lhotse" in done.stderr


def test_what_is_unpacked_stays_apart_and_within_the_folder(tmp_path: Path) -> None:
    unpacked = Unpacked(tmp_path / "in")
    names = [
        "../../x.wav",
        "/x.wav",
        None,
        "x.wav/y.wav",
        "a\\b.wav",
        "a",
        "..",
        "a/./c.wav",
        "x.wav",
        "n" * 300,
        "\ud800\0",
    ]
    paths = [unpacked.add(name, f"train-{index}", bytes([index])) for index, name in enumerate(names)]
    assert [str(path.relative_to(tmp_path / "in")) for path in paths] == [
        "x.wav",
        "train-1/x.wav",
        "train-2",
        "train-3/y.wav",
        "a/b.wav",
        "train-5/a",
        "train-6",
        "a/c.wav",
        "train-8/x.wav",
        "train-9",
        "?",
    ]
    assert [path.read_bytes() for path in paths] == [bytes([index]) for index in range(len(names))]


def test_what_is_unpacked_again_is_known_by_its_time(tmp_path: Path) -> None:
    times = [
        Unpacked(tmp_path / name).add("x", "x", content).stat().st_mtime_ns
        for name, content in (("a", b"one"), ("b", b"one"), ("c", b"two"))
    ]
    assert times[0] == times[1] != times[2]


# Datasets of the Hugging Face Hub


@pytest.fixture
def datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    package = pytest.importorskip("datasets", reason="the extra datasets is not installed")
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return package


@pytest.fixture
def table(datasets: Any, recordings: Path) -> Callable[..., Any]:
    """A split as a dataset, with the recordings' bytes and further columns."""

    def make(split: str, **columns: tuple[list[Any], Any]) -> Any:
        rows = [(label, f"{name}.wav") for part, label, name in FOLDERS if part == split]
        bytes_of = {"bytes": datasets.Value("binary"), "path": datasets.Value("string")}
        features = {"sound": bytes_of, "label": datasets.ClassLabel(names=["dog", "cat", "cow"])}
        values = {
            "sound": [
                {"bytes": (recordings / split / label / name).read_bytes(), "path": name} for label, name in rows
            ],
            "label": [label for label, _ in rows],
            **{name: given for name, (given, _) in columns.items()},
        }
        features |= {name: feature for name, (_, feature) in columns.items()}
        return datasets.Dataset.from_dict(values, datasets.Features(features)).cast_column("sound", datasets.Audio())

    return make


def test_a_folder_of_recordings_gives_the_shards_of_folder_byte_for_byte(
    datasets: Any, recordings: Path, by_folder: Path, tmp_path: Path
) -> None:
    same = contents(by_folder)
    assert {name.partition("/")[0] for name in same} == {"train", "validation", "test"}
    assert contents(write("huggingface", recordings, tmp_path / "out")) == same


def test_recordings_in_an_archive_have_the_sound_and_labels_of_the_files(
    datasets: Any, recordings: Path, by_folder: Path, tmp_path: Path
) -> None:
    lines = ["file_name,label"]
    for split, label, name in FOLDERS:
        if split == "train":
            write_wav(tmp_path / "flat" / f"{name}.wav")
            lines.append(f"{name}.wav,{label}")
    (tmp_path / "flat" / "metadata.csv").write_text("\n".join(lines))
    (tmp_path / "in").mkdir()
    shutil.make_archive(str(tmp_path / "in" / "train"), "zip", tmp_path / "flat")
    found = samples(write("huggingface", tmp_path / "in", tmp_path / "out", "--labels=label") / "train")
    wanted = {key.rpartition("-")[2]: sample for key, sample in samples(by_folder / "train").items()}
    assert found.keys() == wanted.keys()
    for key, (flac, described) in found.items():
        assert flac == wanted[key][0] and described["labels"] == wanted[key][1]["labels"]
        assert described["source"] == f"{key}.wav"


def test_recordings_in_columns_give_the_same_sound_labels_and_splits(
    datasets: Any, table: Callable[..., Any], by_folder: Path, tmp_path: Path
) -> None:
    saved = datasets.DatasetDict({split: table(split) for split in ("train", "dev", "eval")})
    saved.save_to_disk(tmp_path / "saved")
    (tmp_path / "parquet").mkdir()
    for split, rows in saved.items():
        rows.to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    one = contents(write("huggingface", tmp_path / "saved", tmp_path / "one"))
    assert one == contents(write("huggingface", tmp_path / "parquet", tmp_path / "two"))
    for split in ("train", "validation", "test"):
        found = samples(tmp_path / "one" / split)
        wanted = {key.rpartition("-")[2]: sample for key, sample in samples(by_folder / split).items()}
        assert found.keys() == wanted.keys()
        for key, (flac, described) in found.items():
            assert flac == wanted[key][0] and described["labels"] == wanted[key][1]["labels"]
    index = json.loads((tmp_path / "one" / "train" / "index.json").read_text())
    assert index["labels"] == {"label": ["dog", "cat", "cow"]}  # in the order of their numbers


def test_recordings_in_a_column_give_the_shards_of_a_list_byte_for_byte(
    datasets: Any, table: Callable[..., Any], recordings: Path, tmp_path: Path
) -> None:
    (tmp_path / "flat").mkdir()
    lines = ["path,label"]
    for split, label, name in FOLDERS:
        if split == "train":
            (tmp_path / "flat" / f"{name}.wav").write_bytes((recordings / split / label / f"{name}.wav").read_bytes())
            lines.append(f"{name}.wav,{label}")
    (tmp_path / "flat" / "list.csv").write_text("\n".join(lines))
    same = write("folder", tmp_path / "flat" / "list.csv", tmp_path / "same")
    rows = table("train", kind=(["cat", "dog"] * 2, datasets.Value("string"))).remove_columns("label")
    rows.rename_column("kind", "label").save_to_disk(tmp_path / "text")
    out = write("huggingface", tmp_path / "text", tmp_path / "again", "--labels=label")
    assert contents(out) == contents(same)


def test_columns_become_labels(datasets: Any, table: Callable[..., Any], tmp_path: Path) -> None:
    rows = table(
        "train",
        said=(["one", "two", "", None], datasets.Value("string")),
        speaker=([1, 2, 2, 10], datasets.Value("int32")),
        sounds=([[0, 1], [1], [], [1, 1]], datasets.List(datasets.ClassLabel(names=["hum", "hiss"]))),
        tags=([["x"], ["y", "z"], [], None], datasets.List(datasets.Value("string"))),
    )
    rows.save_to_disk(tmp_path / "saved")
    out = write("huggingface", tmp_path / "saved", tmp_path / "classes")
    assert labels(out / "train", "label") == {"a": "cat", "b": "dog", "c": "cat", "d": "dog"}
    assert labels(out / "train", "sounds") == {"a": ["hum", "hiss"], "b": ["hiss"], "c": None, "d": ["hiss"]}
    assert set(labels(out / "train", "said").values()) == {None}
    options = ["--labels=said,speaker,tags", "--transcripts=said"]
    out = write("huggingface", tmp_path / "saved", tmp_path / "asked", *options)
    for key in ("said", "text"):
        assert labels(out / "train", key) == {"a": "one", "b": "two", "c": None, "d": None}
    lists = json.loads((out / "train" / "index.json").read_text())["labels"]
    assert (lists["said"], lists["text"]) == (["one", "two"], [])  # what is said is not listed
    assert labels(out / "train", "speaker") == {"a": "1", "b": "2", "c": "2", "d": "10"}
    assert labels(out / "train", "tags") == {"a": ["x"], "b": ["y", "z"], "c": None, "d": None}
    assert set(labels(out / "train", "label").values()) == {None}


def test_a_repository_is_read_by_its_name_and_revision(
    datasets: Any, table: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "parquet").mkdir()
    for split in ("train", "dev"):
        table(split).to_parquet(tmp_path / "parquet" / f"{split}.parquet")
    asked: list[tuple[Any, ...]] = []
    load = datasets.load_dataset_builder

    def from_hub(name: str, config: str | None, revision: str | None) -> Any:
        asked.append((name, config, revision))
        return load(str(tmp_path / "parquet"))

    monkeypatch.setattr(datasets, "load_dataset_builder", from_hub)
    source, outs = "hf://datasets/some/sounds@v1", [tmp_path / "streamed" / "out", tmp_path / "whole" / "out"]
    for out, options in zip(outs, (["--streaming"], []), strict=True):
        assert script("huggingface").main([source, str(out), "--workers=1", "--config=big", *options]) == 0
        assert bool(list(tmp_path.glob("cache/**/*.arrow"))) == (not options)
    assert asked == [("some/sounds", "big", "v1")] * 2
    assert contents(outs[0]) == contents(outs[1])
    assert json.loads((outs[0] / "train" / "index.json").read_text())["dataset"] == "sounds"


def test_splits_are_those_asked_for_and_of_one_kind(
    datasets: Any, table: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    rows = table("dev")
    datasets.DatasetDict({"dev": rows, "valid": rows}).save_to_disk(tmp_path / "twice")
    assert "dev and valid are both names of" in error_of("huggingface", capsys, tmp_path / "twice", out)
    other = rows.cast_column("label", datasets.ClassLabel(names=["cat", "dog", "cow"]))
    datasets.DatasetDict({"train.1": rows, "dev": other}).save_to_disk(tmp_path / "other")
    assert "other classes of the label" in error_of("huggingface", capsys, tmp_path / "other", out)
    assert [path.name for path in write("huggingface", tmp_path / "other", out, "--splits=train.1").iterdir()] == [
        "train-1"
    ]


def test_a_repository_cannot_name_files_of_this_machine(
    datasets: Any, recordings: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = datasets.load_dataset_builder
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *_, revision: load(str(recordings)))
    said = error_of("huggingface", capsys, "hf://datasets/some/sounds", tmp_path / "out", "--streaming")
    assert f"of hf://datasets/some/sounds names {recordings}" in said and "which is not of the Hub" in said


def test_what_a_dataset_cannot_give_is_told_before_work(
    datasets: Any, table: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved, out = tmp_path / "saved", tmp_path / "out"
    table("train", level=([0.5] * 4, datasets.Value("float32"))).save_to_disk(saved)
    said = error_of("huggingface", capsys, saved, out, "--labels=kind")
    assert said.startswith("--labels has 'kind'") and "has sound (Audio), label (ClassLabel), level (float32);" in said
    assert error_of("huggingface", capsys, saved, out, "--labels=level").startswith("--labels has 'level'")
    assert error_of("huggingface", capsys, saved, out, "--transcripts=b").startswith("--transcripts has 'b'")
    said = error_of("huggingface", capsys, saved, out, "--audio-column=label")
    assert said.startswith("--audio-column is label") and said.endswith("expected one of type Audio")
    said = error_of("huggingface", capsys, saved, out, "--splits=train,odd")
    assert said.endswith("has the splits train") and "'odd'" in said
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "train.csv").write_text("path,label\na.wav,x\n")
    assert error_of("huggingface", capsys, tmp_path / "text", out).endswith("expected one of type Audio")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "train.parquet").write_bytes(b"PAR1")
    assert "cannot be read by datasets" in error_of("huggingface", capsys, tmp_path / "broken", out)
    (tmp_path / "empty").mkdir()
    assert "cannot be read by datasets" in error_of("huggingface", capsys, tmp_path / "empty", out)
    assert "hf://datasets/some/sounds" in error_of("huggingface", capsys, "some/sounds", out)
    assert "SOURCE is hf://datasets/a/b/c" in error_of("huggingface", capsys, "hf://datasets/a/b/c", out)


def test_files_that_a_dataset_names_and_that_are_missing_are_told(
    datasets: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_wav(tmp_path / "in" / "a.wav")
    (tmp_path / "in" / "metadata.csv").write_text("file_name,label\na.wav,x\nnone.wav,x\n")
    said = error_of("huggingface", capsys, tmp_path / "in", tmp_path / "out", "--labels=label")
    assert "1 of 2 listed recordings are missing" in said and "in/none.wav" in said


# Cuts of lhotse


@pytest.fixture
def lhotse() -> Any:
    return pytest.importorskip("lhotse", reason="the extra lhotse is not installed")


@pytest.fixture
def cuts(lhotse: Any, recordings: Path) -> Callable[[str], Any]:
    """A split's recordings, each a cut whose supervision has its label."""

    def make(split: str) -> Any:
        made = []
        for part, label, name in FOLDERS:
            if part == split:
                recording = lhotse.Recording.from_file(recordings / split / label / f"{name}.wav")
                cut = recording.to_cut()
                cut.id = f"{split}-{label}-{name}"
                cut.supervisions = [
                    lhotse.SupervisionSegment(
                        id=name,
                        recording_id=recording.id,
                        start=0,
                        duration=0.05,
                        text=f"it is {name}",
                        speaker="her",
                        custom={"label": label},
                    )
                ]
                made.append(cut)
        return lhotse.CutSet.from_cuts(made)

    return make


def test_manifests_of_cuts_give_the_shards_of_folder_byte_for_byte(
    cuts: Callable[[str], Any], by_folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for split, name in (("train", "mine_cuts_train"), ("dev", "cuts_dev"), ("eval", "eval")):
        cuts(split).to_file(tmp_path / "in" / f"{name}.jsonl.gz")
    (tmp_path / "in" / "mine_recordings_train.jsonl.gz").write_bytes(b"not read")
    assert contents(write("lhotse", tmp_path / "in", tmp_path / "out", "--labels=label")) == contents(by_folder)


def test_shar_gives_the_same_sound_labels_and_splits(
    cuts: Callable[[str], Any], by_folder: Path, tmp_path: Path
) -> None:
    for split in ("train", "dev", "eval"):
        (tmp_path / "in" / split).mkdir(parents=True)
        cuts(split).to_shar(tmp_path / "in" / split, fields={"recording": "wav"}, shard_size=3)
    out = write("lhotse", tmp_path / "in", tmp_path / "out", "--labels=label")
    for split in ("train", "validation", "test"):
        found, wanted = samples(out / split), samples(by_folder / split)
        assert found.keys() == wanted.keys()
        for key, (flac, described) in found.items():
            assert flac == wanted[key][0] and described["labels"] == wanted[key][1]["labels"]
    alone = write("lhotse", tmp_path / "in" / "eval", tmp_path / "alone")
    assert samples(alone / "train").keys() == samples(by_folder / "test").keys()


def test_cuts_of_one_id_in_each_split_of_shar_stay_apart(cuts: Callable[[str], Any], tmp_path: Path) -> None:
    for split in ("train", "dev", "eval"):
        (tmp_path / "in" / split).mkdir(parents=True)
        same = cuts(split).subset(first=1).modify_ids(lambda _: "same")
        same.to_shar(tmp_path / "in" / split, fields={"recording": "wav"})
    out = write("lhotse", tmp_path / "in", tmp_path / "out")
    found = [sample for split in out.iterdir() for sample in samples(split).items()]
    assert all(key.startswith("same-") for key, _ in found)
    assert len({key for key, _ in found}) == len({flac for _, (flac, _) in found}) == 3


def test_a_cut_is_a_part_of_its_recording_with_the_fields_asked_for(
    lhotse: Any, cuts: Callable[[str], Any], recordings: Path, tmp_path: Path
) -> None:
    whole, other, *_ = cuts("train")
    part = whole.truncate(offset=0.01, duration=0.03, preserve_id=True).with_id("part.1")
    both = other.with_id("both")
    both.supervisions = [
        lhotse.SupervisionSegment("2", "b", 0.02, 0.02, text="then", speaker="him"),
        lhotse.SupervisionSegment("1", "b", 0.0, 0.02, text="first", speaker="her", custom={"tags": ["x", "y"]}),
    ]
    both.custom = {"room": 3}
    lhotse.CutSet.from_cuts([whole, part, both]).to_file(tmp_path / "cuts.jsonl")
    out = write("lhotse", tmp_path / "cuts.jsonl", tmp_path / "out", "--labels=text,speaker,tags,room") / "train"
    # The whole files have the keys that their paths give.
    assert labels(out, "text") == {"cat-a": "it is a", "part-1": "it is a", "dog-b": "first then"}
    assert labels(out, "speaker") == {"cat-a": "her", "part-1": "her", "dog-b": ["her", "him"]}
    assert labels(out, "tags") == {"cat-a": None, "part-1": None, "dog-b": ["x", "y"]}
    assert labels(out, "room") == {"cat-a": None, "part-1": None, "dog-b": "3"}
    found = samples(out)
    assert found["part-1"][1]["source"] == "cat/a.wav#t=0.01,0.04"
    expected = Recording("part-1", recordings / "train/cat/a.wav", {}, 0.01, 0.04)
    write_shards({"train": [expected]}, tmp_path / "cut", "same")
    assert samples(tmp_path / "cut" / "train")["part-1"][0] == found["part-1"][0]


def test_cuts_that_cannot_be_taken_are_told_together_before_work(
    lhotse: Any, cuts: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two, three, four = cuts("train")
    one.start, one.duration = 0.04, 0.05
    four.supervisions[0].custom = {"label": 0.5}
    wrong = [one, two.mix(three, preserve_id="left"), three.perturb_speed(1.1), four]
    lhotse.CutSet.from_cuts(wrong).to_file(tmp_path / "cuts.jsonl")
    said = error_of("lhotse", capsys, tmp_path / "cuts.jsonl", tmp_path / "out", "--labels=label")
    assert "has 4 entries that cannot be used" in said
    for cut, why in (
        (one, "is from 0.04 to 0.09 s of a recording of 0.05 s"),
        (two, "is a MixedCut"),
        (wrong[2], "has a recording that is changed by Speed"),
        (four, "has the label 0.5"),
    ):
        assert f"cut {cut.id!r} {why}" in said


def test_manifests_that_are_none_or_name_what_is_missing_are_told_before_work(
    lhotse: Any, cuts: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def said(source: Path, *options: str) -> str:
        return error_of("lhotse", capsys, source, out, *options)

    whole = cuts("train")
    gone = next(iter(cuts("train")))
    gone.recording.sources[0].source = str(tmp_path / "none" / "a.wav")
    lhotse.CutSet.from_cuts([gone]).to_file(tmp_path / "gone.jsonl")
    assert "1 of 1 listed recordings are missing" in said(tmp_path / "gone.jsonl")
    lhotse.RecordingSet.from_recordings([cut.recording for cut in whole]).to_file(tmp_path / "recordings.jsonl")
    assert "is a Recording" in said(tmp_path / "recordings.jsonl")
    whole.to_file(tmp_path / "good.jsonl")
    assert said(tmp_path / "good.jsonl", "--labels=mood").startswith("--labels has 'mood', which no cut of")
    for name, content in (
        ("a.jsonl", b"no json\n"),
        ("b.jsonl", b'{"id": 1}\n'),
        ("c.jsonl.gz", b"no gzip"),
        ("d.jsonl", b""),
    ):
        (tmp_path / name).write_bytes(content)
        assert "cannot be read by lhotse" in said(tmp_path / name)
    (tmp_path / "a.wav").write_bytes(b"")
    assert "is no manifest of cuts" in said(tmp_path / "a.wav")
    (tmp_path / "shar").mkdir()
    assert "has no manifest of cuts and no Shar" in said(tmp_path / "shar")
    whole.to_shar(tmp_path / "shar", fields={"recording": "wav"}, shard_size=10)
    (tar,) = (tmp_path / "shar").glob("recording.*.tar")
    tar.write_bytes(tar.read_bytes()[:2000])
    assert "cannot be read by lhotse" in said(tmp_path / "shar")
    tar.unlink()
    assert "has a recording in a shar" in said(tmp_path / "shar")
