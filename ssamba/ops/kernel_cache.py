"""The CPU kernels, compiled and kept on disk for later processes. What is kept there can only save time.

numba's own cache knows a kernel by the one file that holds it, so it would take one that was compiled with an older
ssamba/ops/simd.py; it fails where it finds no folder to write to; and it loads what is damaged. Here a kernel is known
by all sources of this package, the versions of Python, numba and llvmlite, and the CPU; its file holds a checksum and
belongs to somebody whose code runs here anyway. Whatever else stands there is passed over, and whatever cannot be
written is left: the kernel is compiled without, and the log says so once.

The folder is NUMBA_CACHE_DIR if that is set. Otherwise `__pycache__` beside the sources, or where that cannot be
written, ssamba/kernels in XDG_CACHE_HOME or ~/.cache.
"""

import functools
import hashlib
import logging
import os
import pickle
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba import types
from numba.core import config
from numba.core.caching import NullCache
from numba.core.ccallback import CFunc
from numba.core.compiler import CompileResult
from numba.core.serialize import dumps

from ssamba.files import written_beside

log = logging.getLogger(__name__)

SOURCES = Path(__file__).parent
MOST_BYTES = 1 << 26
_DIGEST = hashlib.sha256().digest_size

has_warned = False


@functools.cache
def compile_kernel(kernel: Callable[[Any], None]) -> CFunc:
    """A kernel (see `ssamba.ops.kernels`), compiled once, or taken from where an earlier process has kept it."""
    callback = CFunc(kernel, ((types.voidptr,), types.void), locals={}, options={})
    callback._cache = _Cache(kernel)  # type: ignore[attr-defined]  # what enable_caching sets
    callback.compile()
    return callback


class _Unfit(Exception):
    """A file that is no kept kernel to be used."""


class _Cache(NullCache):
    """Where `CFunc` asks for a compiled kernel, and puts it otherwise."""

    def __init__(self, kernel: Callable[[Any], None]) -> None:
        self.kernel = f"{kernel.__module__.removeprefix('ssamba.ops.')}.{kernel.__name__}"
        self.name, self.source = "", b""
        self.folders: list[Path] = []
        self.damaged: list[str] = []

    def load_overload(self, sig: Any, target_context: Any) -> CompileResult | None:
        target_context.refresh()
        self.name = _file_name(self.kernel, target_context)
        self.source = source_digest()
        # A kernel whose sources are nowhere to be read cannot be told from an older one.
        self.folders = kernel_folders() if self.source else []
        for folder in self.folders:
            try:
                content = _read(folder / self.name)
                if content[:_DIGEST] == self.source:
                    return CompileResult._rebuild(target_context, *pickle.loads(content[_DIGEST:]))
            except (FileNotFoundError, NotADirectoryError):
                continue
            except Exception as error:  # what stands there must not stop the one who can do without
                self.damaged.append(f"{folder / self.name} ({_cause(error)})")
        return None

    def save_overload(self, sig: Any, data: CompileResult) -> None:
        content = self.source + dumps(data._reduce())
        unwritable: list[str] = []
        for folder in self.folders:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with written_beside(folder / self.name) as beside:
                    beside.write_bytes(hashlib.sha256(content).digest() + content)
                unwritable = []
                break
            except OSError as error:
                unwritable.append(f"{folder} ({_cause(error)})")
        if unwritable:
            _warn_once(
                f"compiled kernels cannot be kept in {' or in '.join(unwritable)}: every process compiles them anew; "
                "NUMBA_CACHE_DIR names another folder"
            )
        elif self.damaged:
            _warn_once(f"a kept kernel cannot be used and was compiled anew: {', '.join(self.damaged)}")


def _warn_once(message: str) -> None:
    global has_warned
    if not has_warned:
        log.warning(message)
    has_warned = True


def _cause(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) if isinstance(error, _Unfit) else f"{type(error).__name__}: {error}"


def kernel_folders() -> list[Path]:
    """Where kernels may be kept, the first choice first."""
    chosen: str = config.CACHE_DIR  # type: ignore[attr-defined]  # numba sets it as it is imported
    if chosen:
        return [Path(os.path.expanduser(chosen))]
    folders = [SOURCES / "__pycache__"]
    personal = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    if personal.is_absolute():  # "~" stays where there is no home
        folders.append(personal / "ssamba" / "kernels")
    return folders


def _file_name(kernel: str, target_context: Any) -> str:
    """One for all that may use a folder in turn, so that they do not replace each other's."""
    python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")
    cpu = target_context.codegen().magic_tuple()
    user = repr((str(SOURCES), python, numba.__version__, llvmlite.__version__, cpu))
    return f"{kernel}-{hashlib.sha256(user.encode()).hexdigest()[:16]}.kernel"


def source_digest() -> bytes:
    """Of every source in this package and its folders: what a kernel calls, and how it is called, may stand in any of
    them. Empty where there is none."""
    # .pyc where a package comes without its sources, not those that Python keeps beside them.
    paths = sorted(path for path in SOURCES.rglob("*.py*") if path.parent.name != "__pycache__")
    try:
        contents = [
            f"{path.relative_to(SOURCES)} {path.stat().st_size}\n".encode() + path.read_bytes() for path in paths
        ]
    except OSError:
        contents = []
    return hashlib.sha256(b"".join(contents)).digest() if contents else b""


def _read(path: Path) -> bytes:
    """The content of a kept kernel's file behind its checksum; `_Unfit` where it is none."""
    # A FIFO must not be waited for.
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise _Unfit("it is no file")
        if hasattr(os, "geteuid") and status.st_uid not in (os.geteuid(), 0, SOURCES.stat().st_uid):
            raise _Unfit("it belongs to another user")
        content = file.read(MOST_BYTES)
    if hashlib.sha256(content[_DIGEST:]).digest() != content[:_DIGEST]:
        raise _Unfit("it is damaged")
    return content[_DIGEST:]
