"""Processes of their own that begin with everything imported: forked from a server that has one thread.

To import torch and Lightning takes longer than most of what the tests do with them."""

import contextlib
import functools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

HERE = Path(__file__).parent
# Each request is forked twice: the first waits for the second, which has a session of its own, and writes its status.
SERVER = f"""
import json, os, signal, sys
sys.path.insert(0, {str(HERE)!r})
import shallow
import ssamba.commands.training, ssamba.hub, ssamba.train
from ssamba.cli import main

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
for line in sys.stdin:
    request = json.loads(line)
    if os.fork():
        continue
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    if pid := os.fork():
        print(pid, flush=True)
        _, status = os.waitpid(pid, 0)
        with open(request["status"] + ".partial", "w") as file:
            file.write(str(os.waitstatus_to_exitcode(status)))
        os.rename(file.name, request["status"])
        os._exit(0)
    os.setsid()
    os.chdir(request["folder"])
    os.environ.clear()
    os.environ.update(request["environment"])
    for number, path in enumerate((os.devnull, request["out"], request["err"])):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
    sys.stdin = open(0, closefd=False)
    sys.argv = ["-c", *request["words"]]
    break
else:
    os._exit(0)
exec(request["code"] or "sys.exit(main())")
"""


@functools.cache
def _server() -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", SERVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


class Forked:
    """`ssamba WORDS`, or Python code with these arguments, in a process and a session of its own; files of what it says
    are in `folder`. As a context it ends with all that is left of it killed."""

    def __init__(
        self,
        words: list[str],
        folder: Path,
        code: str = "",
        environment: Mapping[str, str] | None = None,
        within: Path | None = None,
    ) -> None:
        folder.mkdir(parents=True)
        self.status, self.out, self.err = (folder / name for name in ("status", "out", "err"))
        request = {
            "words": words,
            "code": code,
            "environment": {**os.environ, **(environment or {})},
            "folder": str(within or Path.cwd()),
            **{name: str(getattr(self, name)) for name in ("status", "out", "err")},
        }
        server = _server()
        assert server.stdin and server.stdout
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        self.pid = int(server.stdout.readline())

    def poll(self) -> int | None:
        """The exit status, minus a signal's number; None while it runs."""
        return int(self.status.read_text()) if self.status.exists() else None

    def wait(self, seconds: float = 120) -> int:
        end = time.monotonic() + seconds
        while (status := self.poll()) is None:
            assert time.monotonic() < end, f"it runs for more than {seconds:g} s: {self.err.read_text()}"
            time.sleep(0.01)
        return status

    def __enter__(self) -> "Forked":
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
