"""Decoders and drivers: sound of each format is written and read again; a file is put and got by a driver."""

import io
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ssamba.doctor.findings import LOCK, Finding, absent, cause_of, ok, problem
from ssamba.doctor.installation import installed
from ssamba.errors import BadAudio, UserError

_RATE = 48000  # which every encoder below has
_HERTZ = 500.0
_SECONDS = 0.5
# Shards are FLAC, and recordings mostly WAV: without these there is nothing to train on.
_NEEDED = ("WAV", "FLAC")
_BY_LIBSNDFILE = {
    "WAV": ("WAV", "PCM_16"),
    "FLAC": ("FLAC", "PCM_16"),
    "MP3": ("MP3", "MPEG_LAYER_III"),
    "Ogg Vorbis": ("OGG", "VORBIS"),
    "Ogg Opus": ("OGG", "OPUS"),
    "AIFF": ("AIFF", "PCM_16"),
    "AU": ("AU", "PCM_16"),
    "CAF": ("CAF", "PCM_16"),
    "W64": ("W64", "PCM_16"),
    "NIST SPHERE": ("NIST", "PCM_16"),
}
# Name -> FFmpeg's container and encoder.
_BY_PYAV = {
    "M4A": ("ipod", "aac"),
    "AAC": ("adts", "aac"),
    "WebM": ("webm", "libopus"),
    "WMA": ("asf", "wmav2"),
    "WavPack": ("wv", "wavpack"),
    "AC3": ("ac3", "ac3"),
}


def decoders() -> Iterator[Finding]:
    """What reads recordings: libsndfile, and PyAV what that does not read."""
    import soundfile

    from ssamba.recordings import pyav

    known = sorted(soundfile.available_formats())
    yield ok("libsndfile", f"{soundfile.__libsndfile_version__}: {', '.join(known)}")
    for name, (form, subtype) in _BY_LIBSNDFILE.items():
        if soundfile.check_format(form, subtype):
            yield heard(f"{name} by libsndfile", partial(_by_libsndfile, form, subtype))
        elif name in _NEEDED:
            yield problem(f"{name} by libsndfile", "it lacks it", "pip install --force-reinstall soundfile")
        else:
            yield absent(f"{name} by libsndfile", "it lacks it", f"PyAV reads it: {pyav.INSTALL}")
    if (version := pyav.version()) is None:
        yield absent("PyAV", "not installed: no M4A, AAC, WebM, WMA, AMR", pyav.INSTALL)
        return
    try:
        import av
    except Exception as error:  # whatever a library that does not fit raises
        yield problem("PyAV", f"{version} does not import: {cause_of(error)}", f"{pyav.INSTALL} --force-reinstall")
        return
    yield ok("PyAV", f"{version}, with libavcodec {'.'.join(map(str, av.library_versions['libavcodec']))}")
    for name, (container, codec) in _BY_PYAV.items():
        if codec not in av.codecs_available:
            yield absent(f"{name} by PyAV", f"its FFmpeg lacks {codec}", pyav.INSTALL)
        else:
            yield heard(f"{name} by PyAV", partial(_by_pyav, container, codec))


def _tone() -> npt.NDArray[np.float32]:
    time = np.arange(round(_SECONDS * _RATE)) / _RATE
    return (0.5 * np.sin(2 * np.pi * _HERTZ * time)).astype(np.float32)


def _by_libsndfile(form: str, subtype: str) -> bytes:
    import soundfile

    file = io.BytesIO()
    soundfile.write(file, _tone(), _RATE, format=form, subtype=subtype)
    return file.getvalue()


def _by_pyav(container: str, codec: str) -> bytes:
    import av

    file = io.BytesIO()
    with av.open(file, "w", format=container) as out:
        stream = out.add_stream(codec, rate=_RATE, layout="mono", bit_rate=64000)
        frame = av.AudioFrame.from_ndarray(_tone()[None], format="fltp", layout="mono")
        frame.sample_rate = _RATE
        for packet in (*stream.encode(frame), *stream.encode(None)):
            out.mux(packet)
    return file.getvalue()


def heard(name: str, write: Callable[[], bytes]) -> Finding:
    """Whether a tone that was written is read again."""
    from ssamba.recordings import read_audio

    try:
        content = write()
    except Exception as error:  # an encoder that is not as expected says nothing of the decoder
        return absent(name, f"not tried, for it could not be written: {cause_of(error)}")
    try:
        samples = read_audio(content, _RATE, 10.0)
    except (BadAudio, OSError, RuntimeError) as error:
        return problem(name, f"it is not read: {cause_of(error)}", LOCK)
    spectrum = np.abs(np.fft.rfft(samples))
    hertz = float(spectrum.argmax()) * _RATE / len(samples)
    level = float(np.sqrt(np.mean(np.square(samples[len(samples) // 4 : -len(samples) // 4]))))
    if abs(hertz - _HERTZ) > 0.05 * _HERTZ or not 0.3 < level < 0.4:
        return problem(name, f"a tone of {_HERTZ:g} Hz at 0.35 is read as {hertz:.0f} Hz at {level:.2f}", LOCK)
    return ok(name, f"{len(content)} bytes read")


# Scheme -> the package with its driver.
_DRIVERS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "hf": "huggingface_hub"}


def storage() -> Iterator[Finding]:
    """The drivers for urls: whether each is here; nothing outside this machine is asked."""
    from ssamba.data.shards.stores import Failed, check_driver

    for scheme, package in _DRIVERS.items():
        name, version = f"{scheme}://", installed(package)
        try:
            check_driver(f"{scheme}://bucket/folder")
        except UserError as error:
            install = str(error).rpartition("not installed: ")[2]
            if version is None:
                yield absent(name, f"{package} is not installed", install)
            else:
                cause = cause_of(error.__cause__ or error)
                yield problem(name, f"{package} {version} does not import: {cause}", install)
        except Exception as error:  # whatever a driver raises that does not fit its libraries
            yield problem(name, f"{package} {version} does not import: {cause_of(error)}", LOCK)
        else:
            yield ok(name, f"{package} {version}")
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield _put_and_got(Path(folder))
        except (Failed, OSError) as error:
            yield problem("file://", f"what was put is not got: {cause_of(error)}", LOCK)


def _put_and_got(folder: Path) -> Finding:
    from ssamba.data.shards.stores import Store

    content = bytes(range(256)) * 16
    (folder / "put").write_bytes(content)
    store: Any = Store(f"file://{folder}/got")
    store.put(folder / "put")
    got = b"".join(piece.content for piece in store.pieces(0))
    if got != content:
        return problem("file://", f"of {len(content)} bytes that were put {len(got)} others are got", LOCK)
    return ok("file://", f"fsspec {installed('fsspec')}: {len(got)} bytes put and got")
