"""Downloads from a server on this machine, with and without faults, and archives that are sound, torn or hostile."""

import errno
import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.request import Request

import numpy as np
import pytest
import soundfile
from layouts import SCRIPTS, script

from ssamba.data.prepare import fetch
from ssamba.data.prepare.fetch import Archive, download, unpack
from ssamba.data.shards import transport
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import ShardIndex
from ssamba.data.shards.pieces import RedirectRefused, Redirects
from ssamba.errors import UserError

DATA = np.random.default_rng(0).bytes(300_000)


@dataclass
class Server:
    """What it serves, how it fails, and what it was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    ranges: bool = True
    length: bool = True
    cuts: list[int] = field(default_factory=list)  # bytes of the next answers, after which they break off
    codes: list[int] = field(default_factory=list)  # of the next answers
    always: int = 0  # the code of all answers
    elsewhere: dict[str, str] = field(default_factory=dict)  # path -> where it is sent to
    asked: list[str | None] = field(default_factory=list)  # each request's header Range
    sent: list[int] = field(default_factory=list)  # bytes of each answer


@pytest.fixture
def server() -> Iterator[Server]:
    told = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            told.asked.append(self.headers["Range"])
            code = told.always or (told.codes.pop(0) if told.codes else 0)
            if code:
                self.send_error(code)
                return
            if self.path in told.elsewhere:
                self.send_response(302)
                self.send_header("Location", told.elsewhere[self.path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            body, status = told.files[self.path], 200
            whole = len(body)
            if told.ranges and self.headers["Range"]:
                start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
                status, body = (206, body[start:]) if start < whole else (416, b"")
                self.send_response(status)
                content_range = f"{start}-{whole - 1}/{whole}" if status == 206 else f"*/{whole}"
                self.send_header("Content-Range", f"bytes {content_range}")
            else:
                self.send_response(status)
            if told.length:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            body = body[: told.cuts.pop(0)] if told.cuts else body
            told.sent.append(len(body))
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{running.server_port}"
    thread = threading.Thread(target=running.serve_forever, args=(0.01,))
    thread.start()
    yield told
    running.shutdown()
    thread.join()
    running.server_close()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "FIRST_WAIT_SECONDS", 0.0)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def md5(content: bytes) -> str:
    return f"md5:{hashlib.md5(content).hexdigest()}"


@pytest.fixture
def archive(server: Server) -> Archive:
    server.files["/data.tar.gz"] = DATA
    return Archive(f"{server.url}/data.tar.gz", "data", md5(DATA), len(DATA))


# Downloads


@pytest.mark.parametrize("checksum", [md5(DATA), f"sha256:{hashlib.sha256(DATA).hexdigest()}", None])
@pytest.mark.parametrize("size", [len(DATA), None])
def test_whole(checksum: str | None, size: int | None, server: Server, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "new" / "data.tar.gz"
    download(Archive(archive.url, "data", checksum, size), path)
    assert path.read_bytes() == DATA
    assert [one.name for one in path.parent.iterdir()] == ["data.tar.gz"]
    assert server.asked == [None]


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_part_is_gone_on_with(size: int | None, server: Server, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "data.tar.gz"
    (tmp_path / "data.tar.gz.part").write_bytes(DATA[:100_000])
    download(Archive(archive.url, "data", archive.checksum, size), path)
    assert path.read_bytes() == DATA
    assert (server.asked, server.sent) == (["bytes=100000-"], [200_000])


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_part_that_is_whole(size: int | None, server: Server, archive: Archive, tmp_path: Path) -> None:
    """With its size known nothing is asked for; without, the server says that nothing is missing."""
    path = tmp_path / "data.tar.gz"
    (tmp_path / "data.tar.gz.part").write_bytes(DATA)
    download(Archive(archive.url, "data", archive.checksum, size), path)
    assert path.read_bytes() == DATA
    assert server.asked == ([] if size else ["bytes=300000-"])


@pytest.mark.parametrize("size", [len(DATA), None])
def test_a_part_that_is_longer_than_the_file(
    size: int | None, server: Server, archive: Archive, tmp_path: Path
) -> None:
    path = tmp_path / "data.tar.gz"
    (tmp_path / "data.tar.gz.part").write_bytes(DATA + b"more")
    download(replace(archive, bytes=size), path)
    assert path.read_bytes() == DATA
    assert server.asked == ([None] if size else ["bytes=300004-", None])


@pytest.mark.parametrize("part", [100_000, 400_000])
def test_a_server_without_ranges(part: int, server: Server, archive: Archive, tmp_path: Path) -> None:
    server.ranges = False
    path = tmp_path / "data.tar.gz"
    (tmp_path / "data.tar.gz.part").write_bytes(b"x" * part)
    download(archive, path)
    assert path.read_bytes() == DATA
    assert (server.asked, server.sent) == ([f"bytes={part}-" if part < len(DATA) else None], [300_000])


def test_cut_off_more_often_than_it_gives_up(server: Server, archive: Archive, tmp_path: Path) -> None:
    """What brings something new is no failure: the attempts are counted from there."""
    server.cuts = [40_000] * 7
    path = tmp_path / "data.tar.gz"
    download(archive, path)
    assert path.read_bytes() == DATA
    assert server.asked == [None, *(f"bytes={n * 40_000}-" for n in range(1, 8))]


def test_cut_off_without_ranges_is_given_up(server: Server, archive: Archive, tmp_path: Path) -> None:
    """Each attempt brings as many bytes as the one before it, and so nothing new after the first."""
    server.ranges, server.cuts = False, [40_000] * 100
    with pytest.raises(UserError, match="too early: at 40000 of 300000; 40000 bytes of it are in .*part, and"):
        download(archive, tmp_path / "data.tar.gz")
    assert len(server.asked) == transport.ATTEMPTS
    assert [path.name for path in tmp_path.iterdir()] == ["data.tar.gz.part"]


def test_errors_that_pass(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.codes = [503, 429, 500, 502]
    download(archive, tmp_path / "data.tar.gz")
    assert (tmp_path / "data.tar.gz").read_bytes() == DATA and len(server.asked) == 5


@pytest.mark.parametrize(("code", "attempts"), [(404, 2), (403, 2), (500, 5)])
def test_errors_that_stay(code: int, attempts: int, server: Server, archive: Archive, tmp_path: Path) -> None:
    server.always = code
    with pytest.raises(
        UserError, match=f"{archive.url} could not be fetched in {attempts} .* HTTP {code} .*nothing came"
    ):
        download(archive, tmp_path / "data.tar.gz")
    assert len(server.asked) == attempts
    assert not list(tmp_path.iterdir())


def test_nobody_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"in 5 attempts; .*refused.*nothing came of it: is the network up"):
        download(Archive("http://127.0.0.1:9/data.zip", "data"), tmp_path / "data.zip")


def test_a_server_that_sends_elsewhere(
    server: Server, archive: Archive, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    server.elsewhere["/moved.tar.gz"] = f"{server.url.replace('127.0.0.1', 'localhost')}/data.tar.gz"
    download(replace(archive, url=f"{server.url}/moved.tar.gz"), tmp_path / "data.tar.gz")
    assert (tmp_path / "data.tar.gz").read_bytes() == DATA and "sends to localhost:" in caplog.text


@pytest.mark.parametrize("place", ["ftp://127.0.0.1/x", "file:///etc/passwd", "data:text/plain,x", "gopher://x/y"])
def test_where_nothing_is_fetched_from(place: str, server: Server, archive: Archive, tmp_path: Path) -> None:
    server.elsewhere["/moved.tar.gz"] = place
    with pytest.raises(UserError, match="moved.tar.gz could not be fetched in 2 att.* not (followed|allowed)"):
        download(replace(archive, url=f"{server.url}/moved.tar.gz"), tmp_path / "data.tar.gz")
    with pytest.raises(UserError, match="index.json could not be fetched in 2 att.* not (followed|allowed)"):
        server.elsewhere["/index.json"] = place
        find_shards(f"{server.url}/index.json", tmp_path / "cache")
    assert len(server.asked) == 4


def test_an_encryption_is_not_given_up() -> None:
    """What no server of ours can do: from https to http."""
    request = Request("https://host/a")
    with pytest.raises(RedirectRefused, match="from https://host to http://other, which is not followed"):
        Redirects().redirect_request(request, io.BytesIO(), 302, "", Message(), "http://other/b")
    followed = Redirects().redirect_request(request, io.BytesIO(), 302, "", Message(), "https://other/b")
    assert followed is not None and followed.full_url == "https://other/b"


def test_a_wrong_checksum(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.files["/data.tar.gz"] = wrong = DATA[:-1] + b"?"
    path = tmp_path / "data.tar.gz"
    with pytest.raises(UserError) as told:
        download(archive, path)
    expected, got = (md5(content).removeprefix("md5:") for content in (DATA, wrong))
    assert f"{path} has the md5 {got}; expected {expected}. It is now {path}.bad" in str(told.value)
    assert [one.name for one in tmp_path.iterdir()] == ["data.tar.gz.bad"]
    server.files["/data.tar.gz"] = DATA
    download(archive, path)
    assert path.read_bytes() == DATA
    assert server.asked == [None, None]


def test_another_size(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.files["/data.tar.gz"] = DATA + b"?"
    with pytest.raises(UserError, match="it has 300001 bytes; expected 300000; nothing came of it"):
        download(archive, tmp_path / "data.tar.gz")
    server.length = False
    with pytest.raises(UserError, match=r"it is larger than the 300000 bytes expected; nothing came of it"):
        download(archive, tmp_path / "data.tar.gz")


def test_a_page_instead_of_the_file_costs_nothing(server: Server, archive: Archive, tmp_path: Path) -> None:
    server.ranges, server.files["/data.tar.gz"] = False, b"<html>Please log in</html>"
    part = tmp_path / "data.tar.gz.part"
    part.write_bytes(DATA[:100_000])
    with pytest.raises(UserError, match="has 26 bytes; expected 300000"):
        download(archive, tmp_path / "data.tar.gz")
    assert part.read_bytes() == DATA[:100_000]


def test_what_is_there_is_checked_and_not_asked_for(server: Server, archive: Archive, tmp_path: Path) -> None:
    path = tmp_path / "data.tar.gz"
    path.write_bytes(DATA)
    download(archive, path)
    path.write_bytes(b"x" * len(DATA))
    with pytest.raises(UserError, match="has the md5"):
        download(archive, path)
    assert not path.exists() and not server.asked


def test_no_space_is_told_before(
    server: Server, archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data.tar.gz.part").write_bytes(DATA[:100_000])
    monkeypatch.setattr(transport.shutil, "disk_usage", lambda folder: SimpleNamespace(free=199_999))
    with pytest.raises(
        UserError, match=r"data.tar.gz cannot be written \(.* 199999 bytes are free for it; expected 20"
    ):
        download(archive, tmp_path / "data.tar.gz")
    assert (tmp_path / "data.tar.gz.part").stat().st_size == 100_000


def test_no_space_on_the_way(
    server: Server, archive: Archive, tmp_path: Path, no_room: Callable[[int], AbstractContextManager[None]]
) -> None:
    with (
        no_room(100_000),
        pytest.raises(UserError, match=r"data.tar.gz cannot be written \(.*File too large.*stays for the next call"),
    ):
        download(archive, tmp_path / "data.tar.gz")
    assert (tmp_path / "data.tar.gz.part").stat().st_size == 100_000 and len(server.asked) == 1


def test_places_and_addresses_that_cannot_be(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        download(archive, tmp_path / "file" / "data.tar.gz")
    with pytest.raises(UserError, match="'none://127.0.0.1/data.zip' is not read as it is; expected a path, http"):
        download(Archive("none://127.0.0.1/data.zip", "data"), tmp_path / "data.zip")


def test_a_file_of_this_machine(tmp_path: Path) -> None:
    (tmp_path / "there.zip").write_bytes(DATA)
    (tmp_path / "data.zip.part").write_bytes(DATA[:1000])
    download(Archive((tmp_path / "there.zip").as_uri(), "data", md5(DATA), len(DATA)), tmp_path / "data.zip")
    assert (tmp_path / "data.zip").read_bytes() == DATA


# Archives

Members = dict[str, bytes | None]  # name -> content, None for a folder
SOUND: Members = {"a/": None, "a/b/one.txt": b"1" * 5000, "a/two.txt": b"", "other/three.txt": b"3"}


def tar_gz(members: Members, *odd: tarfile.TarInfo) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            if text is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            else:
                member.size = len(text)
            tar.addfile(member, io.BytesIO(text or b""))
        for member in odd:
            tar.addfile(member)
    return content.getvalue()


def zipped(members: Members, *odd: zipfile.ZipInfo) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(name, text or b"")
        for member in odd:
            archive.writestr(member, "/etc")
    return content.getvalue()


def below(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): None if path.is_dir() else path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize(("name", "make"), [("x.zip", zipped), ("x.tar.gz", tar_gz)])
def test_unpacked(name: str, make: Callable[[Members], bytes], tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(make(SOUND))
    unpack(path, tmp_path / "new" / "whole")
    assert below(tmp_path / "new") == {
        "whole": None,
        "whole/a": None,
        "whole/a/b": None,
        "whole/a/b/one.txt": b"1" * 5000,
        "whole/a/two.txt": b"",
        "whole/other": None,
        "whole/other/three.txt": b"3",
    }
    unpack(path, tmp_path / "part", "a")
    assert below(tmp_path / "part") == {"b": None, "b/one.txt": b"1" * 5000, "two.txt": b""}
    unpack(path, tmp_path / "deeper", "a/b")
    assert below(tmp_path / "deeper") == {"one.txt": b"1" * 5000}


def test_names_that_begin_with_a_dot_and_a_slash(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_gz({"./": None, "./a/one.txt": b"1"}))
    unpack(path, tmp_path / "whole")
    assert below(tmp_path / "whole") == {"a": None, "a/one.txt": b"1"}


def link(kind: bytes, name: str, target: str) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def zip_link(name: str) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = (stat.S_IFLNK | 0o777) << 16
    return member


HOSTILE = {
    "climbing.tar.gz": (tar_gz({"a/../../evil": b"!"}), "'a/../../evil' in it lies outside of it"),
    "absolute.tar.gz": (tar_gz({"/tmp/evil": b"!"}), "'/tmp/evil' in it lies outside of it"),
    "symlink.tar.gz": (tar_gz({}, link(tarfile.SYMTYPE, "a/evil", "/etc")), "'a/evil' in it is neither a file nor"),
    "inner.tar.gz": (tar_gz({}, link(tarfile.SYMTYPE, "a/evil", "../..")), "'a/evil' in it is neither a file nor"),
    "hardlink.tar.gz": (tar_gz({}, link(tarfile.LNKTYPE, "a/evil", "/etc/passwd")), "is neither a file nor"),
    "device.tar.gz": (tar_gz({}, link(tarfile.CHRTYPE, "a/evil", "")), "'a/evil' in it is neither a file nor"),
    "climbing.zip": (zipped({"../evil": b"!"}), "'../evil' in it lies outside of it"),
    "absolute.zip": (zipped({"/tmp/evil": b"!"}), "'/tmp/evil' in it lies outside of it"),
    "symlink.zip": (zipped({}, zip_link("a/evil")), "'a/evil' in it is neither a file nor a folder"),
}


@pytest.mark.parametrize("inside", ["", "a"])
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_archives(name: str, inside: str, tmp_path: Path) -> None:
    """Even beside the folder that is wanted; and what came before such a member is gone too."""
    content, why = HOSTILE[name]
    home = tmp_path / "deep" / "home"
    home.mkdir(parents=True)
    (home / name).write_bytes(content)
    with pytest.raises(UserError, match=re.escape(why)):
        unpack(home / name, home / "whole", inside)
    assert below(tmp_path) == {"deep": None, "deep/home": None, f"deep/home/{name}.bad": content}
    assert not os.path.lexists("/tmp/evil")


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


NOISE = {"a/noise": DATA[:50_000]}
TORN = {
    "cut.tar.gz": tar_gz(NOISE)[:20_000],
    "without_checksum.tar.gz": tar_gz(NOISE)[:-8],
    "flipped.tar.gz": _flipped(tar_gz(NOISE), -6),  # in the checksum of all of it
    "no.tar.gz": b"<html>Please log in</html>",
    "not_tar.tar.gz": gzip.compress(DATA[:2000]),
    "cut.zip": zipped(NOISE)[:20_000],
    "flipped.zip": _flipped(zipped(NOISE), 20_000),
    "no.zip": b"<html>Please log in</html>",
    "empty.zip": b"",
    "other.zip": zipped({"b/file": b""}),
    "other.tar.gz": tar_gz({"ab/file": b""}),
}


@pytest.mark.parametrize("name", sorted(TORN))
def test_torn_archives(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(TORN[name])
    with pytest.raises(UserError, match=f"{name} cannot be unpacked: .* It is now {path}.bad; the same command"):
        unpack(path, tmp_path / "whole", "a")
    assert below(tmp_path) == {f"{name}.bad": TORN[name]}


def bomb(kind: str, sizes: list[int]) -> bytes:
    content = io.BytesIO()
    if kind == ".zip":
        with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as zipped:
            for number, size in enumerate(sizes):
                zipped.writestr(f"data/{number}", bytes(size))
    else:
        with tarfile.open(fileobj=content, mode="w:gz") as tarred:
            for number, size in enumerate(sizes):
                member = tarfile.TarInfo(f"data/{number}")
                member.size = size
                tarred.addfile(member, io.BytesIO(bytes(size)))
    return content.getvalue()


@pytest.mark.parametrize("kind", [".zip", ".tar.gz"])
@pytest.mark.parametrize(
    ("sizes", "free", "message"),
    [
        ([2_000_000], 10**12, r"it holds more than 0 members with 2000000 bytes; expected at most 4 with \d+, as data"),
        ([1] * 5, 10**12, "it holds more than 4 members with 5 bytes; expected at most 4"),
        ([6000, 5000], 10_000, "data.* unpacks to 11000 bytes or more, and 10000 are free"),
    ],
)
def test_archives_that_unpack_to_too_much(
    kind: str, sizes: list[int], free: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetch, "MOST_EXTRA", 100_000)
    monkeypatch.setattr(fetch, "MOST_MEMBERS", 4)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    path = tmp_path / f"data{kind}"
    path.write_bytes(bomb(kind, sizes))
    with pytest.raises(UserError, match=message):
        unpack(path, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_tar_whose_header_is_huge(tmp_path: Path) -> None:
    member = tarfile.TarInfo("name")
    member.type, member.size = tarfile.GNUTYPE_LONGNAME, 1 << 33
    path = tmp_path / "data.tar.gz"
    path.write_bytes(gzip.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2048)))
    with pytest.raises(UserError, match="cannot be unpacked: a header in it has 8589934"):
        unpack(path, tmp_path / "data")


@pytest.mark.parametrize(
    ("kind", "name", "make"), [(zipfile.ZipFile, "x.zip", zipped), (tarfile.TarFile, "x.tar.gz", tar_gz)]
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left on device")])
def test_an_interruption_leaves_no_folder(
    error: BaseException,
    kind: Any,
    name: str,
    make: Callable[[Members], bytes],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / name
    path.write_bytes(make(SOUND))
    extract, done = kind.extract, []

    def interrupted(self: Any, member: Any, *arguments: Any, **named: Any) -> None:
        if len(done) == 2:
            raise error
        done.append(extract(self, member, *arguments, **named))

    with monkeypatch.context() as patch, pytest.raises((KeyboardInterrupt, UserError)) as told:
        patch.setattr(kind, "extract", interrupted)
        unpack(path, tmp_path / "whole")
    assert isinstance(told.value, KeyboardInterrupt) or "No space left" in str(told.value)
    assert len(done) == 2 and [one.name for one in tmp_path.iterdir()] == [name]
    (tmp_path / "whole.tmp").mkdir()  # somebody else's
    (tmp_path / "whole.tmp" / "mine").write_text("")
    unpack(path, tmp_path / "whole")
    assert set(below(tmp_path / "whole")) == {"a", "a/b", "a/b/one.txt", "a/two.txt", "other", "other/three.txt"}
    assert {one.name for one in tmp_path.iterdir()} == {name, "whole", "whole.tmp"}
    assert (tmp_path / "whole.tmp" / "mine").exists()


# Archives of a data set, and its script


def test_fetched_where_it_is_not_there(server: Server, tmp_path: Path) -> None:
    """Two parts of one folder: SOURCE may be it, or what holds it."""
    for part in ("one", "two"):
        server.files[f"/v1/{part}.tar.gz"] = tar_gz({f"Speech/{part}/a.txt": part.encode(), "Speech/README": b""})
    archives = [Archive(f"{server.url}/v1/{part}.tar.gz", f"Speech/{part}") for part in ("one", "two")]
    fetch.fetch_archives(archives[:1], tmp_path / "here")
    assert below(tmp_path) == {
        "here": None,
        "here/Speech": None,
        "here/Speech/one": None,
        "here/Speech/one/a.txt": b"one",
    }
    fetch.fetch_archives(archives, tmp_path / "here" / "Speech")
    assert len(server.asked) == 2
    assert (tmp_path / "here" / "Speech" / "two" / "a.txt").read_bytes() == b"two"
    before = below(tmp_path)
    fetch.fetch_archives(archives, tmp_path / "here")
    assert below(tmp_path) == before and len(server.asked) == 2


def recordings(folder: str) -> dict[str, bytes]:
    members = {}
    for take in (0, 1, 7):
        wav = io.BytesIO()
        soundfile.write(wav, np.full(800, 1000 * take, np.int16), 8000, format="WAV")
        members[f"{folder}/recordings/7_theo_{take}.wav"] = wav.getvalue()
    return members


def test_a_script(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fsdd = script("fsdd")
    server.files["/v1.0.10.zip"] = content = zipped({**recordings(fsdd.ARCHIVE.folder)})
    fsdd.ARCHIVE = Archive(f"{server.url}/v1.0.10.zip", fsdd.ARCHIVE.folder, md5(content))
    source, out = tmp_path / "digits", tmp_path / "out"
    server.cuts = [300]
    assert fsdd.main([str(source), str(out), "--workers=1", "--fetch"]) == 0, capsys.readouterr().err
    assert server.asked == [None, "bytes=300-"]
    assert [path.name for path in source.iterdir()] == [fsdd.ARCHIVE.folder]
    assert (ShardIndex.read(out / "train").samples, ShardIndex.read(out / "test").samples) == (1, 2)

    assert fsdd.main([str(source), str(tmp_path / "again"), "--workers=1", "--fetch"]) == 0
    assert fsdd.main([str(source), str(tmp_path / "without"), "--workers=1"]) == 0
    assert len(server.asked) == 2
    assert (tmp_path / "again" / "test" / "000000.tar").read_bytes() == (out / "test" / "000000.tar").read_bytes()


def test_a_script_complains_before_it_fetches(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fsdd = script("fsdd")
    fsdd.ARCHIVE = Archive(f"{server.url}/gone.zip", fsdd.ARCHIVE.folder)
    server.always = 404
    (tmp_path / "out").mkdir()
    assert fsdd.main([str(tmp_path / "in"), str(tmp_path / "out"), "--fetch"]) == 2
    assert "out exists; expected a new folder" in capsys.readouterr().err and not server.asked
    assert fsdd.main([str(tmp_path / "in"), str(tmp_path / "new"), "--fetch"]) == 2
    *_, message = capsys.readouterr().err.strip().splitlines()
    assert message.startswith(f"error: {server.url}/gone.zip could not be fetched in 2 attempts; the last: HTTP 404")


def test_the_tables_of_the_scripts() -> None:
    """Addresses without encryption, and checksums of a wrong length, are slips."""
    libri, commands = script("librispeech"), script("speech_commands")
    assert list(libri.ARCHIVES) == [part for parts in libri.SPLITS.values() for part in parts]
    archives = [script(name).ARCHIVE for name in ("esc50", "fsdd", "urbansound8k")]
    archives += [archive for name in ("fma", "nsynth") for archive in script(name).ARCHIVES]
    for archive in (*archives, *libri.ARCHIVES.values(), *commands.ARCHIVES.values()):
        assert archive.url.startswith("https://") and archive.file.endswith((".zip", ".tar.gz"))
        assert archive.checksum is None or re.fullmatch(
            "md5:[0-9a-f]{32}|sha1:[0-9a-f]{40}|sha256:[0-9a-f]{64}", archive.checksum
        )
    assert libri.ARCHIVES["dev-clean"].file == "dev-clean.tar.gz"
    assert commands.ARCHIVES["v2"].file == "speech_commands_v0.02.tar.gz"


@pytest.mark.parametrize("name", sorted(path.stem for path in SCRIPTS.glob("*.py") if path.stem != "synthesize"))
def test_only_public_archives_are_offered(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        script(name).main(["--help"])
    offered = name in ("esc50", "fma", "fsdd", "librispeech", "nsynth", "speech_commands", "urbansound8k")
    assert ("[--fetch]" in capsys.readouterr().out) == offered
