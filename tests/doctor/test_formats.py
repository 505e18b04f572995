"""Formats and drivers that are here, that are not, and that are broken."""

import sys
from collections.abc import Iterable
from types import ModuleType
from typing import Any

import fsspec
import numpy as np
import pytest
import soundfile

from ssamba.doctor import formats
from ssamba.doctor.findings import Finding
from ssamba.errors import BadAudio


def by_name(findings: Iterable[Finding]) -> dict[str, Finding]:
    return {one.name: one for one in findings}


def test_every_format_that_is_tried_is_read_here() -> None:
    pytest.importorskip("av")
    found = by_name(formats.decoders())
    assert {one.state for one in found.values()} == {"ok"}
    assert {"WAV by libsndfile", "FLAC by libsndfile", "MP3 by libsndfile", "M4A by PyAV", "WMA by PyAV"} <= set(found)
    assert found["WAV by libsndfile"].said == f"{44 + 2 * 24000} bytes read"
    assert found["libsndfile"].said.startswith(soundfile.__libsndfile_version__) and "FLAC" in found["libsndfile"].said


def test_a_decoder_that_says_something_else_or_nothing_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssamba.recordings.read_audio", lambda *_: np.zeros(24000, np.float32))
    assert "is read as 0 Hz at 0.00" in formats.heard("FLAC", lambda: b"").said

    def refuses(*_: Any) -> Any:
        raise BadAudio("it cannot be decoded")

    monkeypatch.setattr("ssamba.recordings.read_audio", refuses)
    one = formats.heard("FLAC", lambda: b"")
    assert (one.state, one.said) == ("problem", "it is not read: BadAudio: it cannot be decoded")


def test_a_libsndfile_without_formats_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soundfile, "check_format", lambda form, _: form not in ("MP3", "FLAC"))
    monkeypatch.setattr("ssamba.recordings.pyav.version", lambda: None)
    found = by_name(formats.decoders())
    assert found["FLAC by libsndfile"].state == "problem"  # shards are of it
    assert found["MP3 by libsndfile"].state == "absent" and "ssamba[formats]" in found["MP3 by libsndfile"].remedy
    assert found["PyAV"].state == "absent" and "ssamba[formats]" in found["PyAV"].remedy


def test_a_pyav_that_does_not_import_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    monkeypatch.setattr("ssamba.recordings.pyav.version", lambda: "18.1.0")
    found = by_name(formats.decoders())
    assert found["PyAV"].state == "problem" and "18.1.0 does not import: ModuleNotFoundError" in found["PyAV"].said


def test_drivers_that_are_missing_are_told_with_what_installs_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = fsspec.get_filesystem_class

    def without(scheme: str) -> Any:
        if scheme == "gs":
            raise ImportError("Please install gcsfs to access Google Storage")
        return real(scheme)

    monkeypatch.setattr(fsspec, "get_filesystem_class", without)
    monkeypatch.setattr(formats, "installed", lambda package: None if package == "gcsfs" else "1")
    found = by_name(formats.storage())
    assert found["gs://"] == Finding("gs://", "absent", "gcsfs is not installed", "pip install 'ssamba[gs]'")
    assert found["file://"].said.endswith("4096 bytes put and got")
    # There, and of no use.
    monkeypatch.setattr(formats, "installed", lambda package: "2026.9.0")
    one = by_name(formats.storage())["gs://"]
    assert one.state == "problem" and one.said.startswith("gcsfs 2026.9.0 does not import: ImportError: Please")


def test_a_store_that_gives_back_something_else_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("piece")
    module.content = b"other"  # type: ignore[attr-defined]
    monkeypatch.setattr("ssamba.data.shards.stores.Store.pieces", lambda *_: iter([module]))
    one = by_name(formats.storage())["file://"]
    assert one.state == "problem" and "of 4096 bytes that were put 5 others are got" in one.said
