"""The two decoders of recordings, libsndfile and PyAV, and which of them a recording gets. Imports no torch.

Shapes: S samples.
"""

import io
import os
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import chain
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import soundfile

from ssamba.errors import BadAudio
from ssamba.recordings import pyav
from ssamba.recordings.containers import described, examine
from ssamba.recordings.content import Content

BLOCK_SAMPLES = 1 << 15  # samples of each channel that are decoded at a time, at most
_MOST_VALUES = 1 << 20  # of all channels
_LOST_SECONDS = 0.025
_LOST_OF_COMPRESSED = 0.1, 3072  # seconds and samples, whichever are more

Waveform = npt.NDArray[np.float32]
Source = str | os.PathLike[str] | bytes | BinaryIO


class _Forward(soundfile.SoundFile):  # type: ignore[misc]
    """A file read from front to back. soundfile seeks after each block of a file that can be sought in, and that fails
    at the end of a FLAC whose header gives no length, as one that came through a pipe, or a wrong one."""

    def seekable(self) -> bool:
        return False


class _Bytes(io.BytesIO):
    """A file in memory. libsndfile seeks where a damaged one tells it to, and an exception there would be shown."""

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return super().seek(offset, whence)
        except (ValueError, OverflowError):
            return self.tell()


class _FromOffset(io.RawIOBase):
    """A file from a byte on, as if it began there."""

    def __init__(self, file: BinaryIO, start: int) -> None:
        self.file, self.start = file, start

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        with suppress(OSError, ValueError, OverflowError):  # as `_Bytes`
            self.file.seek(offset + (self.start if whence == os.SEEK_SET else 0), whence)
        return self.tell()

    def tell(self) -> int:
        return self.file.tell() - self.start

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class SndfileDecoder:
    """A recording that libsndfile decodes."""

    def __init__(self, file: soundfile.SoundFile, content: Content) -> None:
        self.file, self.content, self.rate = file, content, int(file.samplerate)
        self.count, self.done = _block(file.channels), 0
        self.frames: int | None = int(file.frames)
        if content.frames is not None or content.kind == "flac":
            self.frames = content.frames

    @property
    def seekable(self) -> bool:
        """A sample is the same wherever the decoder comes from, and it is found at once."""
        subtype = self.file.subtype
        exact = subtype.startswith("PCM_") or subtype in ("FLOAT", "DOUBLE", "ULAW", "ALAW")
        # Of formats that keep their samples in blocks, libsndfile does not find the last ones.
        return exact and self.file.format not in ("PAF", "SDS") and self.frames is not None and self.frames < 1 << 40

    @property
    def counts(self) -> bool:
        """Its header tells as much of it as decoding it does; floats can be no sound."""
        return self.seekable and self.file.subtype not in ("FLOAT", "DOUBLE")

    @property
    def seconds(self) -> float | None:
        return None if self.frames is None else self.frames / self.rate

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Waveform]]:
        """Sampling rate in Hz and samples: float32 (S, channels), none of them empty, from `start` to `stop`, or to
        where the recording ends. To know that it is whole, it must be read to its end."""
        if start and self.seekable:
            if start >= (self.frames or 0):
                return
            self._seek(start)
            self.done = start
        # Not beyond the end that a header tells: behind the sound may be what would be taken for damage.
        last = self.frames if self.frames is not None and not self.content.guessed else 1 << 62
        end = last if stop is None else min(last, stop)
        while self.done < end:
            samples = self._read(min(self.count, end - self.done))
            if not len(samples):
                break
            before = self.done
            self.done += len(samples)
            if self.done > start:
                yield self.rate, samples[max(0, start - before) :]
        if stop is None and self.frames is not None:
            _check_whole(self.done, self.frames, self.rate, self.content.inexact, not self.seekable)

    def fill(self, start: int, out: Waveform) -> int:
        """Samples from `start` on in one go, where that is possible: how many, and they are in `out`."""
        if not self.seekable or self.file.channels > 1 or start + len(out) > (self.frames or 0):
            return 0
        if start:
            self._seek(start)
        return len(self._read(len(out), out))

    def _seek(self, start: int) -> None:
        try:
            self.file.seek(start)
        except soundfile.LibsndfileError as error:
            stated = (self.frames or 0) / self.rate
            raise BadAudio(
                f"it is cut or damaged: {start / self.rate:.3f} s of the {stated:.3f} s it tells of cannot be found"
            ) from error

    def _read(self, count: int, out: Waveform | None = None) -> Waveform:
        try:
            if out is None:
                samples: Waveform = self.file.read(count, dtype="float32", always_2d=True)
            else:
                samples = self.file.read(dtype="float32", out=out)
            return samples
        except soundfile.LibsndfileError as error:
            whole = f" of {self.frames / self.rate:.3f}" if self.frames else ""
            raise BadAudio(
                f"it cannot be decoded beyond {self.done / self.rate:.3f}{whole} s: {error.error_string}"
            ) from error


class PyavDecoder:
    """A recording that PyAV decodes."""

    def __init__(self, decoder: pyav.Decoder, content: Content) -> None:
        self.decoder, self.content = decoder, content
        self._blocks = decoder.blocks()
        # A container's rate is not always that of the decoded samples.
        self._first = next(self._blocks, None)
        self.rate, self.frames = self._first[0] if self._first else 0, content.frames
        self.done = 0

    @property
    def seconds(self) -> float | None:
        return self.decoder.seconds

    def blocks(self, start: int = 0, stop: int | None = None) -> Iterator[tuple[int, Waveform]]:
        """As `SndfileDecoder.blocks`."""
        for rate, samples in chain([self._first] if self._first else [], self._blocks):
            begin = self.done
            self.done += len(samples)
            part = samples[max(0, start - begin) : None if stop is None else max(0, stop - begin)]
            if len(part):
                yield rate, part
            if stop is not None and self.done >= stop:
                return
        if stop is None and self.rate:
            if self.frames is not None:
                _check_whole(self.done, self.frames, self.rate, self.content.inexact)
            elif self.seconds is not None:
                _check_whole(self.done, int(self.seconds * self.rate), self.rate)
        elif self.seconds and not self.rate:
            raise BadAudio(f"it is cut or damaged: nothing of the {self.seconds:.3f} s it tells of can be decoded")


Decoder = SndfileDecoder | PyavDecoder


@contextmanager
def open_decoder(source: Source) -> Iterator[Decoder]:
    """A recording, open to be decoded once."""
    with ExitStack() as stack:
        handle = stack.enter_context(_opened(source))
        with _decoding():
            content = examine(_rewound(handle))
        if content.damage:
            raise BadAudio(content.damage)
        problem = None
        if content.by_libsndfile:
            try:
                with _decoding():
                    file = stack.enter_context(_sndfile(handle, content.start))
            except BadAudio as error:
                problem = error
            else:
                _check_there(content, content.frames or file.frames, file.samplerate)
                if not content.guessed or file.frames >= (content.frames or 0):
                    yield SndfileDecoder(file, content)
                    return
        start = _rewound(handle).read(512)
        if content.fraction < 0.999:  # a few bytes are none
            _check_there(content, 0, 1)
        try:
            decoder = stack.enter_context(pyav.opened(_rewound(handle), BLOCK_SAMPLES))
        except (BadAudio, ImportError) as error:
            if problem and (what := described(start)):
                raise BadAudio(f"it cannot be decoded: {what}") from error
            if isinstance(error, BadAudio):
                raise problem or error from error
            why = f"{problem}; perhaps" if problem else "libsndfile would read a part of it;"
            raise BadAudio(f"{why} PyAV reads it: {pyav.INSTALL}") from error
        yield PyavDecoder(decoder, content)


@contextmanager
def _opened(source: Source) -> Iterator[int | BinaryIO]:
    """Its descriptor, by which libsndfile reads faster and without a word about its name; or the file that it is."""
    if isinstance(source, bytes):
        yield _Bytes(source)
        return
    if not isinstance(source, str | os.PathLike):
        yield source
        return
    try:
        # Without waiting for what a pipe may bring.
        descriptor = os.open(source, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise BadAudio(f"it cannot be decoded: {getattr(error, 'strerror', None) or error}") from error
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):
            what = "a folder" if stat.S_ISDIR(mode) else "a pipe" if stat.S_ISFIFO(mode) else "a device"
            raise BadAudio(f"it cannot be decoded: it is {what}; expected a file")
        yield descriptor
    finally:
        os.close(descriptor)


def _sndfile(handle: int | BinaryIO, start: int) -> soundfile.SoundFile:
    file = _rewound(handle)
    if isinstance(handle, int) and not start:
        return _Forward(handle, closefd=False)
    if isinstance(file, _Bytes):
        return _Forward(_Bytes(file.getbuffer()[start:]) if start else file)
    return _Forward(_FromOffset(file, start))


def _rewound(handle: int | BinaryIO) -> BinaryIO:
    if isinstance(handle, int):
        os.lseek(handle, 0, os.SEEK_SET)
        return open(handle, "rb", closefd=False)
    handle.seek(0)
    return handle


@contextmanager
def _decoding() -> Iterator[None]:
    try:
        yield
    except soundfile.LibsndfileError as error:
        # Its whole text would name an open file by its address, another one each time.
        message = error.error_string
        if "SF_INFO" in message:  # libsndfile's own words for this are about its code
            raise BadAudio("it is damaged: its header gives no sampling rate, or no channels") from error
        raise BadAudio(f"it cannot be decoded: {message}") from error
    except (OSError, TypeError) as error:  # the name of an open file ends in .raw
        raise BadAudio(f"it cannot be decoded: {error}") from error


def _check_there(content: Content, frames: int, rate: int) -> None:
    """BadAudio if the file has a part only of the sound in its container's header; `frames` are in it."""
    if content.fraction == 1:
        return
    if not frames or not content.fraction:
        raise BadAudio(f"it is cut: {content.fraction:.0%} of the sound that its header tells of is there")
    present, stated = frames / rate, frames / rate / content.fraction
    if stated - present > _LOST_SECONDS:
        raise BadAudio(f"it is cut: {present:.3f} s of the {stated:.3f} s that its header tells of are there")


def _check_whole(done: int, stated: int, rate: int, inexact: int = 0, compressed: bool = True) -> None:
    """BadAudio if less was decoded than the recording's header states."""
    seconds, samples = _LOST_OF_COMPRESSED if compressed else (_LOST_SECONDS, 0)
    if stated - done > max(inexact, samples, seconds * rate):
        raise BadAudio(f"it is cut or damaged: {done / rate:.3f} s of the {stated / rate:.3f} s it tells of are there")


def _block(channels: int) -> int:
    return max(1, min(BLOCK_SAMPLES, _MOST_VALUES // channels))
