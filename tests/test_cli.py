"""The `ssamba` command: its help, what it says of mistakes, and its commands that train nothing."""

import argparse
import csv
import errno
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import soundfile
import torch
import torchaudio.compliance.kaldi
import webdataset
import yaml
from torch import Tensor

from ssamba import cli
from ssamba.cli import main
from ssamba.config import ENCODERS
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.data.shards.finding import find_shards
from ssamba.errors import UserError
from ssamba.export.program import load_program
from ssamba.values import Argument, new_path, new_place, number, path, path_text, plain_text, whole_number

SCRIPT = Path(sys.executable).with_name("ssamba")
Runs = Callable[[str], Path]
Capture = pytest.CaptureFixture[str]


def digests(folder: Path) -> dict[str, str]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    folders = {str(path.relative_to(folder)): "" for path in folder.rglob("*") if path.is_dir()}
    return folders | {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Help


@pytest.mark.parametrize(
    "command",
    [
        "",
        "pretrain",
        "finetune",
        "evaluate",
        "probe",
        "compare",
        "predict",
        "embed",
        "stats",
        "shards",
        "shards info",
        "shards verify",
        "shards index",
        "import",
        "export",
        "bench",
        "bench scan",
    ],
)
def test_help(command: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([*command.split(), "--help"])
    assert stopped.value.code == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"usage: ssamba {command}") and not said.err
    if not command:
        commands = (
            "pretrain",
            "finetune",
            "evaluate",
            "probe",
            "compare",
            "predict",
            "embed",
            "stats",
            "shards",
            "import",
            "export",
            "bench",
        )
        assert all(command in said.out for command in commands)


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["train"],
        ["shards"],
        ["pretrain"],
        ["pretrain", "recipe.yaml", "--quickly"],
        ["stats"],
        ["import", "file.pth"],
        ["import", "file.pth", "model", "--loss", "none"],
        ["export", "model", "file.pth"],
        ["export", "model", "file.pth", "--format", "other"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_is_none_exits_with_2_and_the_usage(words: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(words)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("usage: ssamba")


def test_the_installed_command_tells_a_misspelt_key_before_torch_is_there(
    recipes: dict[str, Path], tmp_path: Path
) -> None:
    words = ["pretrain", str(recipes["pretrain"]), f"run_dir={tmp_path / 'run'}", "trainer.maxsteps=3"]
    done = subprocess.run([SCRIPT, *words], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"ssamba: recipe {recipes['pretrain']}:\n"
        "  trainer.maxsteps (command line) is no key of a trainer section; did you mean trainer.max_steps?\n"
    )
    assert not list(tmp_path.iterdir())
    code = f"import sys, ssamba.cli as cli; assert cli.main({words!r}) == 2; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


# Every argument of every command


def commands(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[argparse.Action]]]:
    """The words of each command, and its arguments."""
    below = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    for action in below:
        for name, sub in action.choices.items():
            yield from commands(sub, (*words, name))
    if not below:
        yield words, parser._actions


def alternatives(
    parser: argparse.ArgumentParser, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], list[list[argparse.Action]]]]:
    """The words of each command, and of what arguments it needs one."""
    for action in parser._actions:
        for name, sub in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            yield from alternatives(sub, (*words, name))
    yield words, [group._group_actions for group in parser._mutually_exclusive_groups if group.required]


PARSER = cli.build_parser()
ARGUMENTS = [
    (words, action)
    for words, actions in commands(PARSER)
    for action in actions
    if action.nargs != 0 and action.choices is None and action.dest != "overrides"
]
ALTERNATIVES = dict(alternatives(PARSER))
NUMBERS = [
    (words, action.type)
    for words, action in ARGUMENTS
    if isinstance(action.type, Argument) and action.type.read in (number, whole_number)
]
PATHS = [
    (words, action)
    for words, action in ARGUMENTS
    if isinstance(action.type, Argument) and action.type.read not in (number, whole_number, plain_text)
    if action.metavar not in ("KEY[=FIELD]", "N|all", "POOL")
]


def line(words: tuple[str, ...], action: argparse.Action, value: str) -> list[str]:
    """A command line with a value for the argument, and something for the others that must be there."""
    value = f"key={value}" if action.metavar == "KEY=FILE" else value
    positional = [other for them, other in ARGUMENTS if them == words and not other.option_strings]
    given = [value if other is action else "x" for other in positional]
    options = [f"{action.option_strings[0]}={value}"] if action.option_strings else []
    for other in dict(commands(cli.build_parser()))[words]:
        if other.required and other.option_strings and other.dest != action.dest:
            options.append(f"{other.option_strings[0]}={next(iter(other.choices or ['x']))}")
    for group in ALTERNATIVES.get(words, ()):
        if action not in group:
            options.append(f"{group[0].option_strings[0]}=x")
    return [*words, *given, *options]


def test_every_argument_has_a_reader() -> None:
    assert len(ARGUMENTS) > 40
    for words, action in ARGUMENTS:
        assert isinstance(action.type, Argument), (words, action.dest)
        assert action.type.name in (action.option_strings or [action.metavar])
    assert all(kind.low is not None and kind.high is not None for _, kind in NUMBERS)


def test_numbers_are_read_as_they_are_typed_and_in_range(refused: Callable[..., str]) -> None:
    for words, kind in NUMBERS:
        assert kind.low is not None and kind.high is not None
        odd = ["nan", "inf", "-inf", "", "0x10", "1_0", "1:30", "1e999", "9" * 5000, "many"]
        for word in [*odd, f"{kind.low - 1:g}", f"{10 * kind.high:.0f}", "10000000000000000"]:
            said = refused(*words, f"{kind.name}={word}")
            assert said.startswith(f"{kind.name} is ") and "; expected " in said and len(said.splitlines()) == 1
        assert kind(f"{kind.low:.15g}") == kind.low and kind(f"{kind.high:.15g}") == kind.high
    assert Argument("--limit", whole_number, 1, 100)("010") == 10


def test_a_tilde_is_the_home_folder_in_every_argument(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for words, action in PATHS:
        value = getattr(cli.build_parser().parse_known_args(line(words, action, "~/a"))[0], action.dest)
        while isinstance(value, list | tuple):
            value = value[-1]
        assert str(value) == f"{tmp_path}/a", (words, action.dest)
        assert "expected a user of this machine after ~" in refused(*line(words, action, "~no-such-user/a"))


def test_paths_that_are_none(refused: Callable[..., str]) -> None:
    for words, action in PATHS:
        for odd in ("", "a\0b", "a\ud800b"):
            said = refused(*line(words, action, odd))
            assert " is " in said and "expected " in said and "\0" not in said
        if isinstance(action.type, Argument) and action.type.read in (path, path_text, new_path, new_place):
            assert "at most 255 bytes" in refused(*line(words, action, "a/" + "b" * 256))


def test_a_place_that_cannot_be_written_is_told_before_work(tmp_path: Path, refused: Callable[..., str]) -> None:
    (tmp_path / "file").write_text("")
    places = [(words, action) for words, action in PATHS if action.type.read in (new_path, new_place)]  # type: ignore[union-attr]
    assert {words[0] for words, _ in places} >= {"predict", "embed", "export", "import", "bench", "shards"}
    for words, action in places:
        for place in ("/proc/x.pt2", tmp_path / "file" / "x.pt2", tmp_path / "file" / "x" / "y.pt2"):
            assert refused(*line(words, action, str(place))).startswith(f"{place} cannot be written: ")


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_a_run_dir_that_cannot_be_written_is_told_before_work(
    command: str, recipes: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/proc/x", tmp_path / "file" / "x"):
        said = refused(command, recipes[command], f"run_dir={place}", "data.train=nowhere")
        assert said.startswith(f"{place} cannot be written: ")


def test_a_run_folder_is_its_own_run_dir(
    finetuned: Runs, copy_of: Callable[[Path], Path], refused: Callable[..., str]
) -> None:
    copy = copy_of(finetuned("ssast"))
    assert f"run folder {copy} exists" in refused("finetune", copy)


# Errors of the system


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EACCES, "Permission denied", "a/b"), "a/b: Permission denied"),
        (OSError(errno.EXDEV, "Invalid link", "a", None, b"b"), "a: b: Invalid link"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe", "a"), "a: Broken pipe"),
        (
            OSError(errno.ENOSPC, "No space left", "a"),
            "a: No space left; make room, and go on with --resume if it was training",
        ),
        (
            OSError("Caught OSError in worker 0.\nOriginal Traceback:\n  File x\nOSError: [Errno 5] Bad disk: 'a'"),
            "OSError: [Errno 5] Bad disk: 'a'",
        ),
        (OSError(), "OSError"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken pipe"),
        (MemoryError(), "there is not enough memory for what was asked for"),
        (UserError("a\x1b[2J\u202eb\n  c", "d\ne"), r"a\x1b[2J\u202eb\n  c" + "\n  " + r"d\ne"),
    ],
)
def test_what_the_system_says_is_one_line(
    error: BaseException, said: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(arguments: argparse.Namespace) -> None:
        raise error

    monkeypatch.setattr("ssamba.commands.shards.shards_info", fails)
    assert refused("shards", "info", "x") == said + "\n"


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        (">&-", 2, "ssamba: stdout is closed; expected a place for what is printed, such as a file, or >/dev/null\n"),
        ("2>&-", 0, ""),
        (">&- 2>&-", 2, ""),
        (">/dev/full", 2, "ssamba: stdout: No space left on device\n"),
    ],
)
def test_a_stdout_that_takes_nothing(where: str, status: int, said: str, corpus: Path) -> None:
    code = "import sys; from ssamba.cli import main; sys.exit(main(['shards', 'info', sys.argv[1]]))"
    command = ["sh", "-c", f'exec "$@" {where}', "sh", sys.executable, "-c", code, str(corpus / "train")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (status, said)


def test_letters_that_a_terminal_lacks_are_escaped(tmp_path: Path, recordings: dict[str, list[Recording]]) -> None:
    write_shards({"train": [Recording("a", recordings["test"][0].path, {"é": "ü"})]}, tmp_path / "s", "s")
    code = "import sys; from ssamba.cli import main; sys.exit(main(['shards', 'info', sys.argv[1]]))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "s" / "train")],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "") and r"\xe9: 1 labels: \xfc" in done.stdout


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "SLURM_PROCID"])
def test_a_rank_that_is_none(name: str, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "first")
    assert refused("shards", "info", "x").startswith(f"{name} is 'first' in the environment; expected the number")


# Mistakes


@pytest.mark.parametrize(
    ("command", "words", "said"),
    [
        ("pretrain", ["trainer.maxsteps=3"], "did you mean trainer.max_steps?"),
        ("pretrain", ["trainer.max_steps=none", "model.size=huge"], "model.size is 'huge'"),
        ("pretrain", ["data.train=nowhere/*.tar"], "'nowhere/*.tar' matches no .tar and no folder"),
        ("pretrain", ["data.train=nowhere"], "nowhere is no folder"),
        ("pretrain", ["data.train=nowhere/000000.tar"], "is missing"),
        ("pretrain", ["audio.sampling_rate=8000"], "holds audio at 16000 Hz; audio.sampling_rate is 8000"),
        ("pretrain", ["model.pretrained=nowhere"], "nowhere holds no model"),
        ("pretrain", ["trainer.max_steps"], "is not key=value"),
        ("finetune", ["task.label=mood"], "task.label is 'mood', which data.train lacks; it has sound, speaker, tags"),
        ("finetune", ["model.pretrained=nowhere"], "nowhere holds no model"),
        ("finetune", ["data.label_fraction=0.001"], "leaves none of the training recordings"),
        ("finetune", ["data.test=nowhere"], "nowhere is no folder"),
        ("evaluate", [], "holds no model"),
    ],
)
def test_mistakes_in_a_recipe(
    command: str, words: list[str], said: str, recipes: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    recipe = recipes["pretrain" if command == "pretrain" else "finetune"]
    assert said in refused(command, recipe, f"run_dir={tmp_path / 'run'}", *words)


def test_a_label_with_several_names_a_clip_asks_for_its_loss(
    recipes: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    words = [f"run_dir={tmp_path / 'run'}", "task.label=tags", "audio.mean=-4", "audio.std=4"]
    assert main(["finetune", str(recipes["finetune"]), *words]) == 2
    assert "expected one of the 6 of the label list" in capsys.readouterr().err


def test_recipes_of_the_wrong_kind_and_recipes_that_are_not_there(
    recipes: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    run = f"run_dir={tmp_path / 'run'}"
    assert "expected a finetune recipe" in refused("finetune", recipes["pretrain"], run)
    assert "expected a pretrain recipe" in refused("pretrain", recipes["finetune"], run)
    assert "does not exist" in refused("pretrain", tmp_path / "nothing.yaml", run)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(recipes: dict[str, Path], tmp_path: Path, refused: Callable[..., str]) -> None:
    words = [f"run_dir={tmp_path / 'run'}", "trainer.accelerator=gpu"]
    assert "trainer.accelerator is gpu, but torch finds none" in refused("pretrain", recipes["pretrain"], *words)


@pytest.fixture
def own_corpus(corpus: Path, tmp_path: Path) -> Path:
    """A copy of the shards that may be damaged."""
    return shutil.copytree(corpus, tmp_path / "own")


@pytest.mark.parametrize("size", [0, 1000, 20000])
def test_an_empty_or_truncated_shard(
    size: int, own_corpus: Path, recipes: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    shard = own_corpus / "train" / "000002.tar"
    shard.write_bytes(shard.read_bytes()[:size])
    words = [f"run_dir={tmp_path / 'run'}", f"data.train={own_corpus / 'train'}"]
    message = refused("pretrain", recipes["pretrain"], *words)
    assert str(shard) in message
    assert ("is empty (0 bytes" if size == 0 else "so it is truncated") in message
    assert str(shard) in refused("stats", own_corpus / "train")
    assert str(shard) in refused("shards", "verify", own_corpus / "train")


@pytest.mark.parametrize("workers", [0, 1])
def test_a_shard_that_breaks_in_the_middle_of_training(
    workers: int, own_corpus: Path, recipes: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    """Spoilt behind the index's back: found when it is read, and named in one line by whichever process reads it."""
    shard = own_corpus / "train" / "000002.tar"
    shard.write_bytes(bytes(shard.stat().st_size))
    words = [
        f"run_dir={tmp_path / 'run'}",
        f"data.train={own_corpus / 'train'}",
        f"data.num_workers={workers}",
        "audio.mean=-4",
        "audio.std=4",
        "model.encoder=ssast",
        "trainer.max_steps=20",
    ]
    assert main(["pretrain", str(recipes["pretrain"]), *words]) == 2
    said = capsys.readouterr().err
    (message,) = [line for line in said.splitlines() if line.startswith("ssamba: ")]
    assert "recordings are bad, more than data.max_bad_fraction 0.01 allows; the last: sample " in message
    assert f"in {shard}: its .json cannot be used" in message and "Traceback" not in said
    assert not (tmp_path / "run" / "run.json").exists()


def test_held_out_labels_that_the_training_list_lacks(
    recordings: dict[str, list[Recording]], recipes: dict[str, Path], tmp_path: Path, refused: Callable[..., str]
) -> None:
    few = [one for one in recordings["train"] if one.labels["sound"] != "rising"]
    write_shards({"train": few}, tmp_path / "few", "few")
    words = [f"run_dir={tmp_path / 'run'}", f"data.train={tmp_path / 'few' / 'train'}"]
    message = refused("finetune", recipes["finetune"], *words)
    assert "data.validation has sound rising, which the training label list lacks" in message


@pytest.mark.parametrize(
    ("words", "has", "wants"),
    [
        (["model.fshape=128", "model.tshape=2"], "fshape 16, tshape 16", "fshape 128, tshape 2"),
        (["model.encoder=ssamba"], "encoder ssast", "encoder ssamba"),
        (["model.size=tiny"], "hidden_size 96", "hidden_size 192"),
    ],
)
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_weights_that_do_not_fit_the_recipe(
    command: str,
    words: list[str],
    has: str,
    wants: str,
    recipes: dict[str, Path],
    pretrained: Runs,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    given = [f"run_dir={tmp_path / 'run'}", f"model.pretrained={pretrained('ssast')}", "model.encoder=ssast", *words]
    message = refused(command, recipes[command], *given)
    assert has in message and wants in message and str(pretrained("ssast")) in message


def test_weights_of_another_sampling_rate(
    recordings: dict[str, list[Recording]],
    recipes: dict[str, Path],
    pretrained: Runs,
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    write_shards({"train": recordings["train"][::7]}, tmp_path / "slow", "slow", sampling_rate=8000)
    words = [
        f"data.train={tmp_path / 'slow' / 'train'}",
        "data.validation=[]",
        "data.test=[]",
        "model.encoder=ssast",
        "audio.sampling_rate=8000",
        f"model.pretrained={pretrained('ssast')}",
        f"run_dir={tmp_path / 'run'}",
    ]
    assert "hears 16000 Hz; audio.sampling_rate is 8000" in refused("finetune", recipes["finetune"], *words)


def test_damaged_weights(
    recipes: dict[str, Path],
    pretrained: Runs,
    copy_of: Callable[[Path], Path],
    tmp_path: Path,
    refused: Callable[..., str],
) -> None:
    run = copy_of(pretrained("ssast"))
    weights = run / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    words = [f"run_dir={tmp_path / 'run'}", f"model.pretrained={run}", "model.encoder=ssast"]
    assert f"{weights} is damaged" in refused("finetune", recipes["finetune"], *words)
    assert f"{weights} is damaged" in refused("evaluate", run, f"run_dir={run}")


# Statistics


def sounds_in(split: Path) -> dict[str, Tensor]:
    """Key -> waveform, decoded by soundfile."""
    pipeline = webdataset.DataPipeline(
        webdataset.SimpleShardList(find_shards([str(split)]).paths), webdataset.tarfile_to_samples()
    )
    return {
        sample["__key__"]: torch.from_numpy(soundfile.read(io.BytesIO(sample["flac"]), dtype="float32")[0])
        for sample in pipeline
    }


def fbank(waveform: Tensor, bins: int) -> Tensor:
    return torchaudio.compliance.kaldi.fbank(
        (waveform - waveform.mean()).unsqueeze(0),
        htk_compat=True,
        sample_frequency=16000,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=bins,
        dither=0.0,
        frame_shift=10,
    )


@pytest.mark.parametrize("bins", [128, 23])
def test_statistics_are_those_of_kaldis_filterbank(bins: int, corpus: Path, capsys: Capture) -> None:
    assert main(["stats", str(corpus / "validation"), str(corpus / "test"), "--num-mel-bins", str(bins)]) == 0
    said = capsys.readouterr()
    spectrograms = [fbank(w, bins) for split in ("validation", "test") for w in sounds_in(corpus / split).values()]
    values = torch.cat(spectrograms).double()
    found = re.fullmatch(r"audio\.mean=(-?[\d.]+) audio\.std=([\d.]+)\n", said.out)
    assert found
    assert float(found[1]) == pytest.approx(float(values.mean()), abs=2e-4)
    assert float(found[2]) == pytest.approx(float(values.std(correction=0)), abs=2e-4)
    assert f"36 clips, {len(values) / 100:.1f} s in frames" in said.err


def test_no_more_clips_than_the_limit_are_read(corpus: Path, capsys: Capture) -> None:
    assert main(["stats", str(corpus / "train"), "--limit", "5"]) == 0
    said = capsys.readouterr()
    values = torch.cat([fbank(waveform, 128) for waveform in list(sounds_in(corpus / "train").values())[:5]])
    assert float(said.out.split()[0].removeprefix("audio.mean=")) == pytest.approx(float(values.mean()), abs=2e-4)
    assert "5 clips" in said.err


def test_a_recipe_stands_for_its_training_shards(corpus: Path, recipes: dict[str, Path], capsys: Capture) -> None:
    assert main(["stats", str(corpus / "train"), "--num-mel-bins", "64"]) == 0
    wanted = capsys.readouterr().out
    words = [str(recipes["pretrain"]), "run_dir=unused"]
    assert main(["stats", *words, "audio.num_mel_bins=64"]) == 0
    assert capsys.readouterr().out == wanted
    assert main(["stats", *words, "--num-mel-bins", "64"]) == 0
    assert capsys.readouterr().out == wanted
    assert main(["stats", *words]) == 0
    assert capsys.readouterr().out != wanted


def test_the_printed_statistics_are_words_for_a_recipe(
    corpus: Path, recipes: dict[str, Path], tmp_path: Path, capsys: Capture
) -> None:
    assert main(["stats", str(corpus / "validation")]) == 0
    words = capsys.readouterr().out.split()
    run = tmp_path / "run"
    more = [f"run_dir={run}", "model.encoder=ssast", "trainer.max_steps=1", "data.validation=[]"]
    assert main(["pretrain", str(recipes["pretrain"]), *more, *words]) == 0
    config = json.loads((run / "model" / "preprocessor_config.json").read_text())
    assert words == [f"audio.mean={config['mean']:.4f}", f"audio.std={config['std']:.4f}"]


# Shards


def test_what_shards_hold(corpus: Path, capsys: Capture) -> None:
    assert main(["shards", "info", str(corpus / "train")]) == 0
    held = find_shards([str(corpus / "train")])
    assert capsys.readouterr().out.splitlines() == [
        f"5 shards, 60 samples, {held.seconds / 3600:.3f} h at 16000 Hz",
        "sound: 4 labels: falling, high, low, rising",
        "speaker: 3 labels: ada, ben, cyd",
        "tags: 6 labels: falling, gliding, high, low, rising, steady",
        f"fingerprint {held.fingerprint}",
    ]
    assert main(["shards", "info", str(corpus / "{train,test}" / "00000[0-1].tar")]) == 0
    assert capsys.readouterr().out.startswith("4 shards, 48 samples")


def test_whole_shards_pass(corpus: Path, capsys: Capture) -> None:
    assert main(["shards", "verify", str(corpus / "train"), str(corpus / "test")]) == 0
    assert capsys.readouterr().out == "7 shards, 84 samples: all as their index says\n"


def test_a_flipped_bit_is_found(own_corpus: Path, refused: Callable[..., str]) -> None:
    shard = own_corpus / "train" / "000001.tar"
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    message = refused("shards", "verify", own_corpus / "train")
    assert re.search(rf"^\d problems in 5 shards:\n  {shard}: its sha256 is", message)
    assert "000000.tar" not in message and "000002.tar" not in message


@pytest.mark.parametrize("words", [["shards", "info"], ["shards", "verify"], ["stats"]])
def test_shards_that_are_not_there(words: list[str], tmp_path: Path, refused: Callable[..., str]) -> None:
    assert "has no index.json" in refused(*words, tmp_path)
    assert "matches no .tar" in refused(*words, tmp_path / "*.tar")
    assert "is no folder and no .tar" in refused(*words, tmp_path / "nowhere")


# Evaluation


@pytest.mark.parametrize("encoder", ENCODERS)
def test_evaluating_a_classifier_gives_the_scores_of_its_run(
    encoder: str, finetuned: Runs, copy_of: Callable[[Path], Path], capsys: Capture
) -> None:
    run = copy_of(finetuned(encoder))
    assert main(["evaluate", str(run), f"run_dir={run}"]) == 0
    scores = json.loads((run / "evaluation" / "scores.json").read_text())
    assert scores == json.loads((run / "run.json").read_text())["test"]
    assert f"accuracy: {scores['accuracy']:.4f}" in capsys.readouterr().out
    for name in ("predictions.csv", "confusion.png"):
        assert (run / "evaluation" / name).exists()
    # Its test split alone is read: the others may be gone, and so may what it was pretrained on.
    words = [f"run_dir={run}", "data.train=gone", "data.validation=gone", "model.pretrained=gone"]
    assert main(["evaluate", str(run), "--overwrite", *words]) == 0
    assert json.loads((run / "evaluation" / "scores.json").read_text()) == scores


def test_evaluating_a_pretrained_model(
    pretrained: Runs, copy_of: Callable[[Path], Path], capsys: Capture, refused: Callable[..., str]
) -> None:
    run = copy_of(pretrained("ssast"))
    assert main(["evaluate", str(run), f"run_dir={run}"]) == 0
    scores: dict[str, Any] = json.loads((run / "evaluation" / "scores.json").read_text())
    last = json.loads((run / "run.json").read_text())["last_metrics"]
    # The same clips and weights under other masks.
    assert scores["contrastive"] == pytest.approx(last["val/contrastive"], rel=0.1)
    assert scores["mse"] == pytest.approx(last["val/reconstruction"], rel=0.2)
    assert scores["chance"] == pytest.approx(1 / 12)
    assert scores["mse_ratio"] == pytest.approx(scores["mse"] / scores["mean_patch_mse"])
    assert scores["clips"] >= 10 and 0 < scores["row_chance"] <= 1
    assert f"mse: {scores['mse']:.4f}" in capsys.readouterr().out

    def written() -> dict[str, str]:  # a report says when it was made
        return {name: digest for name, digest in digests(run).items() if Path(name).stem != "report"}

    before = written()
    assert "exists; --overwrite replaces the scores in it" in refused("evaluate", run, f"run_dir={run}")
    assert main(["evaluate", str(run), f"run_dir={run}", "--overwrite"]) == 0
    assert written() == before
    # Of the heads that the recipe trains.
    words = ["evaluate", str(run), f"run_dir={run}", "--overwrite", "objective.parts.reconstruction=0"]
    assert main(words) == 0
    told = json.loads((run / "evaluation" / "scores.json").read_text())
    assert told == {name: score for name, score in scores.items() if "mse" not in name}
    latent = ["objective.parts.contrastive=0", "objective.parts.latent=1"]
    assert "objective.parts has latent alone, and evaluate scores contrastive" in refused(*words, *latent)


def test_evaluating_what_cannot_be(
    pretrained: Runs,
    finetuned: Runs,
    recipes: dict[str, Path],
    refused: Callable[..., str],
    copy_of: Callable[[Path], Path],
    recordings: dict[str, list[Recording]],
    tmp_path: Path,
) -> None:
    first, second = copy_of(pretrained("ssast")), copy_of(finetuned("ssast"))
    assert "holds a pretrained model" in refused("evaluate", recipes["finetune"], f"run_dir={first}")
    assert "holds a classifier" in refused("evaluate", recipes["pretrain"], f"run_dir={second}")
    assert "data.test is empty" in refused("evaluate", second, f"run_dir={second}", "data.test=[]")
    assert "data.validation is empty" in refused("evaluate", first, f"run_dir={first}", "data.validation=[]")
    strange = [Recording(one.key, one.path, {"sound": "hum"}) for one in recordings["test"][:3]]
    write_shards({"test": strange}, tmp_path / "strange", "strange")
    message = refused("evaluate", second, f"run_dir={second}", f"data.test={tmp_path / 'strange' / 'test'}")
    assert "data.test has sound hum, which the model" in message


def test_predictions_say_what_the_scores_say(finetuned: Runs, recordings: dict[str, list[Recording]]) -> None:
    folder = finetuned("ssast") / "test"
    scores = json.loads((folder / "scores.json").read_text())
    with (folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    labels = {recording.key: recording.labels["sound"] for recording in recordings["test"]}
    assert {row["key"]: row["true"] for row in rows} == labels and len(rows) == len(labels) == scores["clips"]
    hits = {name: [row["predicted"] == name for row in rows if row["true"] == name] for name in set(labels.values())}
    assert scores["accuracy"] == pytest.approx(sum(map(sum, hits.values())) / len(rows))
    assert scores["balanced_accuracy"] == pytest.approx(sum(sum(h) / len(h) for h in hits.values()) / len(hits))
    assert all(0.25 <= float(row["probability"]) <= 1 for row in rows)  # the largest of four


def test_a_run_is_a_recipe_for_the_next(finetuned: Runs, tmp_path: Path) -> None:
    """A run folder stands for its recipe; with another run_dir the same run is made again."""
    assert main(["finetune", str(finetuned("ssast")), f"run_dir={tmp_path / 'again'}"]) == 0
    ours, theirs = (tmp_path / "again" / "model", finetuned("ssast") / "model")
    assert digests(ours) == digests(theirs)
    assert yaml.safe_load((tmp_path / "again" / "recipe.yaml").read_text())["run_dir"] == str(tmp_path / "again")


def test_a_reader_that_has_had_enough_is_no_error(corpus: Path) -> None:
    code = "import sys; from ssamba.cli import main; sys.exit(main(['shards', 'info', sys.argv[1]]))"
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(corpus / "train")], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert child.stdout is not None and child.stderr is not None
    child.stdout.close()
    assert not child.stderr.read()
    assert child.wait() == 141


def test_a_classifier_becomes_a_program(finetuned: Callable[[str], Path], tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "sounds.pt2"
    assert main(["export", str(finetuned("ssast")), str(out), "--format", "torch"]) == 0
    assert capsys.readouterr().out == f"written to {out}\n"
    program = load_program(out)
    assert program.labels == ("falling", "high", "low", "rising") and program.sampling_rate == 16000
    assert main(["export", str(finetuned("ssast")), str(tmp_path / "sounds.pth"), "--format", "torch"]) == 2
    assert "ends in .pt2" in capsys.readouterr().err
