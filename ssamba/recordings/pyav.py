"""Recordings decoded by PyAV, which brings FFmpeg: the extra `formats`. Imports PyAV where it is needed."""

import errno
import importlib.metadata
import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from ssamba.errors import BadAudio

INSTALL = 'pip install "ssamba[formats]"'

# FFmpeg also opens lists that name other files and urls, pictures and text. A recording is none of these.
_DEMUXERS = (
    "aac,ac3,aiff,amr,amrnb,amrwb,ape,asf,au,avi,caf,dts,dtshd,eac3,flac,flv,gsm,iff,matroska,webm,mov,mp3,mpc,mpc8,"
    "mpeg,mpegts,nistsphere,ogg,oma,rm,tak,tta,truehd,voc,w64,wav,wsd,wv,xwma,aa,aax"
)
_OPTIONS = {"format_whitelist": _DEMUXERS, "protocol_whitelist": "none"}
_WITH_LENGTH = {"mov", "matroska", "asf", "flac", "wav", "w64", "aiff", "ape", "tta", "wv"}
_RESILIENT = {"mp1float", "mp1", "mp2float", "mp2", "mp3float", "mp3"}


def version() -> str | None:
    """Of the PyAV that is installed; None if it is not."""
    try:
        return importlib.metadata.version("av")
    except importlib.metadata.PackageNotFoundError:
        return None


class Decoder:
    """A recording that is read from its start on, block by block.

    Args:
        container: what `av.open` gives.
        count: samples of each channel in a block, about.

    Raises:
        BadAudio: it holds no sound.
    """

    def __init__(self, container: Any, count: int) -> None:
        stream = container.streams.best("audio")
        if stream is None or stream.codec_context is None:  # or none for which there is a decoder
            raise BadAudio("it cannot be decoded: it holds no sound that FFmpeg knows")
        self.container, self.stream, self.count = container, stream, count

    @property
    def seconds(self) -> float | None:
        """Its length by the container's header, where that has one."""
        if not _WITH_LENGTH & set(self.container.format.name.split(",")):
            return None
        if self.stream.duration is not None and self.stream.time_base is not None:
            return float(self.stream.duration * Fraction(self.stream.time_base))
        return None if self.container.duration is None else self.container.duration / 1e6

    def blocks(self) -> Iterator[tuple[int, npt.NDArray[np.float32]]]:
        """Sampling rate in Hz and samples of full scale 1: float32 (S, channels), none of them empty.

        Raises:
            BadAudio: what cannot be decoded, or a rate that changes.
        """
        rate, buffered = 0, 0
        waiting: list[npt.NDArray[np.float32]] = []
        for frame in self._frames():
            if rate not in (0, frame.sample_rate):
                raise BadAudio(f"its sampling rate changes from {rate} to {frame.sample_rate} Hz; expected one")
            rate = frame.sample_rate
            samples = _samples(frame)
            if waiting and waiting[0].shape[1] != samples.shape[1] or buffered >= self.count:
                yield rate, np.concatenate(waiting)
                waiting, buffered = [], 0
            if len(samples):
                waiting.append(samples)
                buffered += len(samples)
        if waiting:
            yield rate, np.concatenate(waiting)

    def _frames(self) -> Iterator[Any]:
        import av

        resilient, invalid = self.stream.codec_context.name in _RESILIENT, 0
        with _decoding():
            for packet in self.container.demux(self.stream):
                try:
                    frames = packet.decode()
                except av.InvalidDataError:
                    # Where files of MPEG audio were joined, packets of two halves; at any end, one that was cut.
                    invalid += not resilient
                    continue
                if frames and invalid:
                    break
                yield from frames
            else:
                if invalid < 2:
                    return
        raise BadAudio("it cannot be decoded: it is damaged, for some of its packets make no sound")


@contextmanager
def opened(file: BinaryIO, count: int) -> Iterator[Decoder]:
    """A seekable file that is open, to be decoded.

    Raises:
        BadAudio: FFmpeg does not know it, or it holds no sound.
        ImportError: PyAV is not installed.
    """
    import av

    with _decoding():
        container = av.open(_Sought(file), options=_OPTIONS, metadata_errors="replace")
    with container:
        yield Decoder(container, count)


class _Sought:
    """A file for FFmpeg, which seeks where a damaged one tells it to: before its start, what a file raises would be
    printed by PyAV; behind its end, how far one may go is another with each file system."""

    def __init__(self, file: BinaryIO) -> None:
        self.file, self.read, self.tell = file, file.read, file.tell
        start = file.tell()
        self.end = file.seek(0, os.SEEK_END)
        file.seek(start)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self.file.tell(), os.SEEK_END: self.end}[whence]
        return self.file.seek(place) if 0 <= place <= self.end else -errno.EINVAL


@contextmanager
def _decoding() -> Iterator[None]:
    import av

    try:
        yield
    except (av.FFmpegError, ValueError, EOFError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise BadAudio(f"it cannot be decoded: {reason}") from error


def _samples(frame: Any) -> npt.NDArray[np.float32]:
    """Of a frame: (S, channels)."""
    samples: npt.NDArray[Any] = frame.to_ndarray()
    channels = len(frame.layout.channels)
    samples = samples.T if frame.format.is_planar else samples.reshape(-1, channels)
    if samples.dtype.kind == "f":
        return samples.astype(np.float32, copy=False)
    middle, half = (128, 128) if samples.dtype == np.uint8 else (0, -np.iinfo(samples.dtype).min)
    return (samples.astype(np.float32) - np.float32(middle)) / np.float32(half)
