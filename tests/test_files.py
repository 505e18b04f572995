"""What is written is whole or not there, whatever is in the way; and nothing but ssamba.files writes by itself."""

import ast
import errno
import os
import re
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch

from ssamba.errors import UserError
from ssamba.files import (
    TEMPORARY,
    NotWritten,
    check_out,
    made_folder,
    open_unlinked,
    whole_folder,
    write_json,
    writing_to,
    written_beside,
)
from ssamba.models.tensor_files import write_safetensors

ROOT = Path(__file__).parents[1]

NoRoom = Callable[[int], AbstractContextManager[None]]


def names(folder: Path) -> set[str]:
    return set(os.listdir(folder))


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_is_there_when_it_is_whole(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with written_beside(path, durable) as beside:
        beside.write_text("after")
        assert beside.parent == tmp_path and beside.name.startswith(TEMPORARY) and beside.suffix == ".txt"
        assert path.read_text() == "before"
    assert path.read_text() == "after" and names(tmp_path) == {"a.txt"}
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~_umask()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("no"), UserError("no")])
def test_what_is_not_finished_leaves_what_was_there(tmp_path: Path, error: BaseException) -> None:
    path, folder = tmp_path / "a.txt", tmp_path / "f"
    path.write_text("before")
    folder.mkdir()
    (folder / "before").write_text("")
    with pytest.raises(type(error)) as told, written_beside(path) as beside:
        beside.write_text("half")
        raise error
    assert told.value is error
    with pytest.raises(type(error)), whole_folder(folder) as other:
        (other / "half").write_text("")
        raise error
    assert path.read_text() == "before" and names(tmp_path) == {"a.txt", "f"} and names(folder) == {"before"}


def test_what_is_somebody_elses_stays(tmp_path: Path) -> None:
    """Whatever has a name that another program, or an earlier version, would take for its own."""
    victim, others = tmp_path / "victim", ("a.txt.tmp", "a.txt.partial", "a.txt.part", "f.tmp", "f.partial", "f.old")
    victim.write_text("precious")
    for other in others:
        (tmp_path / other).symlink_to(victim)
    with written_beside(tmp_path / "a.txt") as beside:
        beside.write_text("new")
    with whole_folder(tmp_path / "f") as folder:
        (folder / "new").write_text("")
    assert victim.read_text() == "precious" and all((tmp_path / other).is_symlink() for other in others)


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, kept = tmp_path / "victim", tmp_path / "kept"
    victim.write_text("precious")
    kept.mkdir()
    (kept / "precious").write_text("")
    for name, target in (("a.txt", victim), ("f", kept), ("g", tmp_path / "nowhere")):
        (tmp_path / name).symlink_to(target)
    with written_beside(tmp_path / "a.txt") as beside:
        beside.write_text("new")
    for name in ("f", "g"):
        with whole_folder(tmp_path / name) as folder:
            (folder / "new").write_text("")
        assert names(tmp_path / name) == {"new"} and not (tmp_path / name).is_symlink()
    assert victim.read_text() == "precious" and names(kept) == {"precious"}
    assert names(tmp_path) == {"victim", "kept", "a.txt", "f", "g"}


def test_names_as_long_as_can_be(tmp_path: Path) -> None:
    for name in ("a" * 254 + "b", "b" * 200 + "." + "c" * 54):
        with written_beside(tmp_path / name) as beside:
            beside.write_text("x")
        with whole_folder(tmp_path / name[::-1]):
            pass
    assert len(names(tmp_path)) == 4


# What the system says is said of the place that was meant


def test_no_room_names_the_place(tmp_path: Path, no_room: NoRoom) -> None:
    path, folder = tmp_path / "a.npz", tmp_path / "f"
    tensors = {"a": torch.zeros(100_000)}
    with no_room(1000):
        why = "cannot be written: File too large$"
        for write in (
            lambda beside: beside.write_bytes(b"x" * 10_000),
            lambda beside: _torch_save(tensors, beside),
            lambda beside: write_safetensors(beside, tensors),
        ):
            with pytest.raises(NotWritten, match=f"^{path} {why}") as told, written_beside(path) as beside:
                write(beside)
            assert told.value.errno == errno.EFBIG
        with pytest.raises(NotWritten, match=f"^{folder}/sub/a.json {why}"), whole_folder(folder) as other:
            (other / "sub").mkdir()
            write_json(other / "sub" / "a.json", {"a": "x" * 10_000})
        with pytest.raises(NotWritten, match=f"^{path} cannot be written"), writing_to(path):
            (tmp_path / "scratch").write_bytes(b"x" * 10_000)
    assert names(tmp_path) == {"scratch"}


def _torch_save(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        torch.save(tensors, file)


def test_no_place_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path, why in ((tmp_path / "none" / "a", "No such file"), (tmp_path / "file" / "a", "Not a directory")):
        with pytest.raises(NotWritten, match=f"^{path} cannot be written: {why}"), written_beside(path):
            pass
    with pytest.raises(NotWritten, match="a cannot be written: Not a directory"), whole_folder(tmp_path / "file" / "a"):
        pass
    with pytest.raises(NotWritten, match=f"^{tmp_path} cannot be written: "), written_beside(tmp_path) as beside:
        beside.write_text("a folder stands there")
    assert names(tmp_path) == {"file"}


def test_errors_of_other_files_stay_theirs(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="elsewhere"), written_beside(tmp_path / "a"):
        (tmp_path / "elsewhere").read_text()
    with pytest.raises(BrokenPipeError), written_beside(tmp_path / "a"):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")
    with pytest.raises(RuntimeError, match="a reason of its own"), written_beside(tmp_path / "a"):
        raise RuntimeError("a reason of its own")
    assert names(tmp_path) == set()


def test_folders_that_stay_empty_go(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with made_folder(tmp_path / "there" / "a" / "b"):
        assert (tmp_path / "there" / "a" / "b").is_dir()
    assert names(tmp_path) == {"there"} and names(tmp_path / "there") == set()
    with made_folder(tmp_path / "c" / "d"):
        (tmp_path / "c" / "file").write_text("")
    assert names(tmp_path / "c") == {"file"}


def test_a_file_that_goes_on_is_no_link(tmp_path: Path) -> None:
    victim, path = tmp_path / "victim", tmp_path / "a.part"
    victim.write_text("precious")
    with open_unlinked(path) as file:
        file.write(b"half")
    with open_unlinked(path) as file:
        assert file.read() == b"half"
    for plant in (
        lambda: path.symlink_to(victim),
        lambda: path.symlink_to(tmp_path / "none"),
        lambda: path.hardlink_to(victim),
        lambda: os.mkfifo(path),
        lambda: path.mkdir(),
    ):
        path.rmdir() if path.is_dir() else path.unlink()
        plant()
        with pytest.raises(UserError, match=f"^{path} is a link or no file"):
            open_unlinked(path)
    assert victim.read_text() == "precious" and names(tmp_path) == {"victim", "a.part"}


def test_where_a_file_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    check_out(path, overwrite=False)
    path.symlink_to(tmp_path / "none")
    with pytest.raises(UserError, match="exists; --overwrite"):
        check_out(path, overwrite=False)
    check_out(path, overwrite=True)
    for place, why in ((tmp_path / "no" / "a", "no folder"), (tmp_path, "is a folder"), (Path(os.devnull), "no file")):
        with pytest.raises(UserError, match=why):
            check_out(place, overwrite=True)


# Every writer

_WRITES = re.compile(
    r"os\.(replace|renames?|link|symlink|mkfifo)|shutil\.(copy\w*|move)|(np|torch|torch\.export)\.save\w*|soundfile\.write"
    r"|(.+\.)?save_file|parquet\.ParquetWriter|.+\.(write_text|write_bytes|rename|touch|symlink_to|hardlink_to|savefig)"
)
_OPENS = re.compile(r"(.+\.)?(open|fdopen|ZipFile|SoundFile)")
_NEW = re.compile(r"(\w+\.)?(written_beside|whole_folder|open_unlinked|TemporaryFile|BytesIO)\(")

# What writes under a name of its own, and why it may.
ALONE = {
    "ssamba/data/prepare/unfinished.py:publish": "moves within the folder that it has locked, then that to its place",
    "ssamba/data/shards/transport.py:fetch_file": "a .part, opened by open_unlinked and locked, once it is as expected",
    "ssamba/data/prepare/fetch.py:_set_aside": "an archive that is wrong, as .bad",
    "ssamba/training/loggers.py:_append": "rows at the end of metrics.csv, cut off again if they do not fit",
    "ssamba/protocols/processes.py:make_run": "what a run says, at the end of its log",
    "ssamba/protocols/processes.py:only_runs_below": "a file to be locked, without content",
    "ssamba/doctor/formats.py:_put_and_got": "in a folder of its own, for as long as it is tried",
    "ssamba/doctor/selfcheck.py:write_recipe": "in a folder of its own, for as long as it is tried",
    "ssamba/cli.py:main": "/dev/null in the place of a stderr that is closed",
    "ssamba/evaluation/efficiency.py:peak_memory": "a switch of the kernel's, no file",
}
# What is called with the temporary name of one that does.
CALLED_WITHIN = {
    "ssamba/data/prepare/writer.py:write_shard",
    "ssamba/data/prepare/features.py:_write_shard",
    "ssamba/evaluation/scores.py:_write_predictions",
    "ssamba/evaluation/scores.py:_write_arrays",
    "ssamba/evaluation/scores.py:_write_mistakes",
    "ssamba/evaluation/scores.py:_write_classes",
    "ssamba/inference/embed.py:_write_npz",
    "ssamba/inference/embed.py:_write_parquet",
    "data_prep/synthesize.py:synthesize",
}


def is_write(call: ast.Call) -> bool:
    name = ast.unparse(call.func)
    if _OPENS.fullmatch(name):
        modes = [
            one.value
            for one in (*call.args, *(word.value for word in call.keywords if word.arg == "mode"))
            if isinstance(one, ast.Constant) and isinstance(one.value, str)
        ]
        return any(re.fullmatch("[rwaxbt+]*[wax+][rwaxbt+]*(:gz)?", mode) for mode in modes)
    # A text's replace takes two arguments, a dataclass's has keywords.
    renames = re.fullmatch(r".+\.replace", name) is not None and len(call.args) == 1 and not call.keywords
    return renames or _WRITES.fullmatch(name) is not None


def writers(source: str) -> Iterator[str]:
    """The functions of a module that write to a name, or rename to one, that none of ssamba.files has given."""

    def walk(node: ast.AST, function: str, given: frozenset[str]) -> Iterator[str]:
        if isinstance(node, ast.FunctionDef):
            function = node.name
        bound = [(item.context_expr, item.optional_vars) for item in node.items] if isinstance(node, ast.With) else []
        if isinstance(node, ast.FunctionDef):
            bound += [(one.value, one.targets[0]) for one in ast.walk(node) if isinstance(one, ast.Assign)]
        for value, name in bound:  # in their order: `with written_beside(path) as beside, beside.open("wb") as file`
            new = isinstance(value, ast.Call) and _NEW.match(ast.unparse(value))
            if isinstance(name, ast.Name) and (new or (given and given & names_in(value))):
                given |= {name.id}
        if isinstance(node, ast.Call) and is_write(node) and not given & names_in(node):
            yield function
        for child in ast.iter_child_nodes(node):
            yield from walk(child, function, given)

    yield from walk(ast.parse(source), "", frozenset())


def names_in(node: ast.AST) -> set[str]:
    return {one.id for one in ast.walk(node) if isinstance(one, ast.Name)}


def test_nothing_else_writes_by_itself() -> None:
    found = set()
    for path in (*ROOT.glob("ssamba/**/*.py"), *ROOT.glob("data_prep/*.py")):
        place = str(path.relative_to(ROOT))
        if place != "ssamba/files.py":
            found |= {f"{place}:{function}" for function in writers(path.read_text())}
    assert found == {*ALONE, *CALLED_WITHIN}


def test_the_walk_sees_what_writes() -> None:
    for line in (
        "os.replace(a, b)",
        "os.rename(a, b)",
        "a.rename(b)",
        "a.replace(b)",
        "a.write_text('')",
        "a.open('w')",
        "open(a, 'xb')",
        "a.open(mode='a')",
        "torch.save(t, a)",
        "save_file(t, a)",
        "np.save(a, t)",
        "a.touch()",
        "shutil.move(a, b)",
        "soundfile.write(a, t, 1)",
        "tarfile.open(a, 'w:gz')",
        "zipfile.ZipFile(a, 'w')",
        "figure.savefig(a)",
    ):
        assert list(writers(f"def f(a, b, t):\n    {line}")) == ["f"], line
        inside = f"def f(c, t):\n    with written_beside(c) as a, written_beside(c) as b:\n        {line}"
        assert list(writers(inside)) == [], line
    for line in ("a.replace('b', 'c')", "a.open()", "open(a)", "a.open('rb')", "replace(a, b=1)", "a.write('w')"):
        assert list(writers(f"def f(a):\n    {line}")) == [], line
