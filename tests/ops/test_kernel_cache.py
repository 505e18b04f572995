"""What is kept of compiled kernels saves time or is passed over: whatever stands there, the kernel is the sources'."""

import ctypes
import logging
import multiprocessing
import os
import resource
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from numba import config
from numba.core.ccallback import CFunc

from ssamba.ops import kernel_cache
from ssamba.ops.simd import integer

SOURCES = kernel_cache.SOURCES
CALL = (ctypes.c_int64 * 2)(0, 3)
not_as_root = pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")


def compiled() -> CFunc:
    """A small kernel, compiled as in a process of its own; it runs."""

    def kernel(call):  # type: ignore[no-untyped-def]
        integer(call, 1)

    callback = kernel_cache.compile_kernel(kernel)
    callback.ctypes(ctypes.addressof(CALL))
    return callback


def is_kept() -> bool:
    return compiled().cache_hits == 1


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where kernels are kept in a test, not made yet; what it says is said as for the first time."""
    folder = tmp_path / "kept" / "kernels"
    monkeypatch.setattr(config, "CACHE_DIR", str(folder))
    monkeypatch.setattr(kernel_cache, "has_warned", False)
    return folder


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[Callable[[], list[str]]]:
    """The warnings so far."""
    with caplog.at_level(logging.WARNING, logger="ssamba"):
        yield lambda: [record.getMessage() for record in caplog.records]


def kept_file(folder: Path) -> Path:
    (file,) = folder.iterdir()
    return file


def test_a_kernel_is_compiled_once(folder: Path, said: Callable[[], list[str]]) -> None:
    assert not is_kept()
    assert is_kept() and is_kept()
    kept_file(folder)  # and nothing else
    assert said() == []


def test_kernels_of_one_name_in_the_folders_of_two_operators_are_kept_apart(folder: Path) -> None:
    for operator in ("conv", "scan"):

        def kernel(call):  # type: ignore[no-untyped-def]
            integer(call, 1)

        kernel.__module__ = f"ssamba.ops.{operator}.cpu"
        assert kernel_cache.compile_kernel(kernel).cache_hits == 0
    assert sorted(file.name.split("-")[0] for file in folder.iterdir()) == ["conv.cpu.kernel", "scan.cpu.kernel"]


@pytest.mark.parametrize("name", sorted(str(path.relative_to(SOURCES)) for path in SOURCES.rglob("*.py")))
def test_a_kernel_is_compiled_anew_after_a_change_in_any_source(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    copy = tmp_path / "sources"
    shutil.copytree(SOURCES, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(kernel_cache, "SOURCES", copy)
    assert not is_kept() and is_kept()
    with (copy / name).open("a") as file:
        file.write("# changed\n")
    assert not is_kept() and is_kept()
    kept_file(folder)  # the older one is replaced
    (copy / name).rename((copy / name).with_stem("renamed"))
    assert not is_kept()
    assert said() == []


@pytest.mark.parametrize("package", ["numba", "llvmlite"])
def test_a_kernel_is_compiled_anew_with_another_version(
    package: str, folder: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    assert not is_kept()
    with monkeypatch.context() as changed:
        changed.setattr(getattr(kernel_cache, package), "__version__", "99.0")
        assert not is_kept() and is_kept()
    assert is_kept()  # neither takes the other's place
    assert len(list(folder.iterdir())) == 2 and said() == []


def test_without_sources_to_know_it_by_no_kernel_is_kept(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    monkeypatch.setattr(kernel_cache, "SOURCES", tmp_path / "nowhere")
    assert not is_kept() and not is_kept()
    assert not folder.exists() and said() == []


def cut(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])


def flip(at: int) -> Callable[[Path], None]:
    def damage(file: Path) -> None:
        content = bytearray(file.read_bytes())
        content[at] ^= 1
        file.write_bytes(content)

    return damage


def make_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def without_its_meaning(file: Path) -> None:
    """Of this package's sources and with the right checksum, yet no kernel."""
    content = kernel_cache.source_digest() + b"no pickle"
    file.write_bytes(kernel_cache.hashlib.sha256(content).digest() + content)


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "empty": lambda file: file.write_bytes(b""),
    "one byte": lambda file: file.write_bytes(b"x"),
    "cut": cut,
    "garbage": lambda file: file.write_bytes(os.urandom(5000)),
    "checksum": flip(0),
    "sources": flip(40),
    "content": flip(5000),
    "last byte": flip(-1),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "pipe": make_pipe,
    "no kernel": without_its_meaning,
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_what_is_damaged_is_compiled_anew_replaced_and_told_once(
    damage: Callable[[Path], Any], folder: Path, said: Callable[[], list[str]]
) -> None:
    assert not is_kept()
    file = kept_file(folder)
    damage(file)
    assert not is_kept()
    (message,) = said()
    assert str(file) in message and "compiled anew" in message and "\n" not in message
    assert is_kept() and kept_file(folder) == file
    damage(file)
    assert not is_kept() and len(said()) == 1


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="files have no owner here")
def test_another_users_file_is_not_loaded(
    folder: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    assert not is_kept()
    if os.geteuid() == 0:
        os.chown(kept_file(folder), 12345, -1)
    else:
        others = os.geteuid() + 1
        monkeypatch.setattr(os, "geteuid", lambda: others)
    owner = SOURCES.stat()
    monkeypatch.setattr(Path, "stat", lambda *_, **__: os.stat_result((*owner[:4], 0, *owner[5:])))
    assert not is_kept()
    assert "belongs to another user" in said()[0]


def in_the_way(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("no folder")


def its_parent_in_the_way(folder: Path) -> None:
    folder.parent.write_text("no folder")


def its_place_taken(folder: Path) -> None:
    assert not is_kept()
    file = kept_file(folder)
    file.unlink()
    file.mkdir()


def read_only(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o500)


@pytest.mark.parametrize(
    "spoil", [in_the_way, its_parent_in_the_way, its_place_taken, pytest.param(read_only, marks=not_as_root)]
)
def test_where_nothing_can_be_written_kernels_are_compiled_without_and_one_line_names_the_folder(
    spoil: Callable[[Path], None], folder: Path, said: Callable[[], list[str]]
) -> None:
    spoil(folder)
    assert not is_kept() and not is_kept()
    (message,) = said()
    assert str(folder) in message and "NUMBA_CACHE_DIR" in message and "\n" not in message


def test_a_full_disk_leaves_nothing_half_written(folder: Path, said: Callable[[], list[str]]) -> None:
    most = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most[1]))
        assert not is_kept() and not is_kept()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, most)
    (message,) = said()
    assert f"{folder} (File too large)" in message
    assert list(folder.iterdir()) == []
    assert not is_kept() and is_kept()


def test_beside_sources_that_cannot_be_written_kernels_are_kept_in_the_users_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    sources, personal = tmp_path / "sources", tmp_path / "cache"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "__pycache__").write_text("no folder")
    monkeypatch.setattr(kernel_cache, "SOURCES", sources)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(personal))
    assert not is_kept()
    kept_file(personal / "ssamba" / "kernels")
    # A read problem in the first place is none: the second has it.
    assert is_kept() and said() == []
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert not is_kept()
    kept_file(tmp_path / "home" / ".cache" / "ssamba" / "kernels")
    assert said() == []


@pytest.mark.parametrize("home", ["/proc/nobody", "", "~", "relative"])
def test_beside_sources_that_cannot_be_written_and_without_a_home_kernels_are_compiled_without(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: Callable[[], list[str]]
) -> None:
    sources = tmp_path / "sources"
    shutil.copytree(SOURCES, sources, ignore=shutil.ignore_patterns("__pycache__"))
    (sources / "__pycache__").write_text("no folder")
    monkeypatch.setattr(kernel_cache, "SOURCES", sources)
    monkeypatch.setattr(config, "CACHE_DIR", "")
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    monkeypatch.setenv("HOME", "/proc/nobody")
    before = sorted(tmp_path.iterdir())
    monkeypatch.chdir(tmp_path)
    assert not is_kept() and not is_kept()
    (message,) = said()
    assert str(sources / "__pycache__") in message
    assert sorted(tmp_path.iterdir()) == before


def test_what_an_image_has_kept_serves_a_user_who_cannot_write_there(
    folder: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not is_kept()

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(kernel_cache, "written_beside", refuse)
    assert is_kept() and said() == []


def compile_and_load(_: int) -> tuple[bool, bool]:
    is_kept()
    return is_kept(), kernel_cache.has_warned


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="processes are not forked here")
def test_several_processes_at_once_all_get_their_kernel(folder: Path) -> None:
    with multiprocessing.get_context("fork").Pool(3) as pool:
        assert pool.map(compile_and_load, range(3), chunksize=1) == [(True, False)] * 3
    assert is_kept() and kept_file(folder)
