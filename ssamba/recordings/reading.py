"""Recordings: the one list of what they are called, and the one way in which each is read. Imports no torch.

libsndfile decodes what it reads to its end. The rest is decoded by PyAV (the extra `formats`, with FFmpeg inside), or
refused by name where that is not installed: M4A, WebM, WMA, AMR, Speex, several MP3 or Ogg streams in one file, MP3s
that do not say how long they are.

A recording is taken whole or not at all: one that is cut or damaged, so that a part of the sound that its container
tells of is not there, is refused, with what there is of it. Less than a frame (25 ms) is no loss, as sizes are often a
few bytes off; of compressed sound a tenth of a second, what encoders put around it.

Shapes: S samples.
"""

import math
import re
from collections.abc import Iterator

import numpy as np
import soundfile
import soxr

from ssamba.errors import BadAudio
from ssamba.recordings import pyav
from ssamba.recordings.decoders import Decoder, SndfileDecoder, Source, Waveform, open_decoder

ENDINGS = frozenset(
    re.findall(
        r"\.\w+",
        # What libsndfile reads, and what FFmpeg reads in its place.
        ".aif .aifc .aiff .au .avr .bwf .caf .flac .ircam .mp1 .mp2 .mp3 .nist .oga .ogg .opus .paf .pvf .rf64 .sd2 "
        ".sf .snd .sph .svx .voc .w64 .wav .wave .wavex .wve "
        ".3gp .aac .ac3 .amr .ape .asf .awb .eac3 .m4a .m4b .mka .mkv .mp4 .spx .tta .weba .webm .wma .wv",
    )
)
"""How the names of recordings end, in small letters. A file that is named itself may end as it likes."""

LOUDEST = 100.0
"""The highest sample that is taken for sound of full scale 1: 40 dB above it."""

_MOST_UPSAMPLED = 100  # times: a recording of a lower rate has a damaged header, or little that could be heard
_LEFT_OF_CHANNELS = 2e-3  # of the 1 / n of their energy that n channels leave if they have nothing in common


def read_audio(source: Source, sampling_rate: int, max_seconds: float) -> Waveform:
    """Decode a recording, mix it to mono and resample it: float32 (S,), full scale is 1.

    Args:
        source: a path, an open file that can be sought in, or the bytes of one.
        sampling_rate: Hz of the result; soxr's high-quality resampler if the recording has another one.
        max_seconds: a recording whose header says that it is longer is not decoded.

    Raises:
        BadAudio: unreadable, empty, cut, longer than max_seconds, or with samples that are not finite or above
            `LOUDEST`.
    """
    return _joined(list(stream_audio(source, sampling_rate, max_seconds)))


def stream_audio(source: Source, sampling_rate: int, max_seconds: float = math.inf) -> Iterator[Waveform]:
    """The same recording block by block: float32 (S,), none of them empty. Joined they are what `read_audio` gives.

    No more than a block is in memory, and nothing depends on the length that the header gives.

    Raises:
        BadAudio: as `read_audio` does, an empty recording aside, when the block in question is asked for. That it is
            cut can be known after the last one alone.
    """
    with open_decoder(source) as decoder:
        yield from _resampled(_mono(decoder, max_seconds), sampling_rate)


def read_cut(
    source: Source, sampling_rate: int, max_seconds: float, start: float, stop: float | None = None
) -> Waveform:
    """What `read_audio` gives of a recording from `start` to `stop` (None: its end), in seconds; no more of it is
    decoded than its format needs.

    Raises:
        BadAudio: as `read_audio`, or the recording ends before `stop`, or the cut is longer than max_seconds.
    """
    with open_decoder(source) as decoder:
        return _joined(list(_resampled(_between(decoder, start, stop, max_seconds), sampling_rate)))


def read_segment(source: bytes, sampling_rate: int, start: int, out: Waveform) -> None:
    """Decode a part of a recording into `out`, float32 (S,): S samples from `start` on, mixed to mono, and no others.

    They are the same samples that the whole recording has there: where a decoder's state depends on what was before
    (MP3, Vorbis, Opus, GSM, ...), it is decoded from its start.

    Raises:
        BadAudio: unreadable, cut, of another sampling rate, shorter than that, or with samples that are not finite or
            above `LOUDEST`.
    """
    with open_decoder(source) as decoder:
        _fill(decoder, sampling_rate, start, out)


def read_crop(source: bytes, sampling_rate: int, samples: int, chance: float, max_seconds: float) -> Waveform:
    """Decode a recording, or of a longer one so many samples, mixed to mono: float32 (S,), S at most `samples`.

    Args:
        chance: from 0 to below 1: which of the places that such a part can begin at.
        max_seconds: what is longer is not decoded; nor is a longer recording whose format does not tell where a part of
            it lies.

    Raises:
        BadAudio: as `read_segment`; empty, or cut where all of it is decoded.
    """
    with open_decoder(source) as decoder:
        if isinstance(decoder, SndfileDecoder) and decoder.counts and decoder.frames:
            if (length := min(samples, decoder.frames)) > max_seconds * decoder.rate:
                raise BadAudio(f"it has {decoder.frames / decoder.rate:.0f} s; at most {max_seconds:g} s are read")
            out = np.empty(length, np.float32)
            _fill(decoder, sampling_rate, int(chance * (decoder.frames - len(out) + 1)), out)
            return out
        _check_rate(decoder, sampling_rate)
        whole = _joined([mono for _, mono in _mono(decoder, max_seconds)])
    start = int(chance * (max(0, len(whole) - samples) + 1))
    return whole[start : start + samples]


def measured_length(source: Source) -> tuple[int, int]:
    """Sampling rate in Hz and number of samples of a recording: by its header where its container counts them, what
    it counts is there, and all of it can be used, else by decoding it.

    Raises:
        BadAudio: unreadable, or cut; where it is decoded, also with samples that are not finite or above `LOUDEST`.
    """
    with open_decoder(source) as decoder:
        if isinstance(decoder, SndfileDecoder) and decoder.counts:
            length = decoder.frames or 0
            # Of FLAC, sizes do not tell whether the end is there.
            if length and not list(decoder.blocks(length - 1, length)):
                seconds = length / decoder.rate
                raise BadAudio(f"it is cut or damaged: the end of the {seconds:.3f} s it tells of is missing")
            return decoder.rate, length
    return decoded_length(source)


def recording_seconds(source: Source) -> float:
    """How long a recording is: by its header, or by decoding it where that has no length.

    Raises:
        BadAudio: unreadable, or cut where that can be known; where it is decoded, as `decoded_length`.
    """
    with open_decoder(source) as decoder:
        seconds = decoder.seconds
    if seconds is None:
        rate, length = decoded_length(source)
        seconds = length / rate if rate else 0.0
    return seconds


def decoded_length(source: Source) -> tuple[int, int]:
    """Sampling rate in Hz and number of samples of a recording, by decoding all of it.

    Raises:
        BadAudio: as `read_audio`, an empty recording aside.
    """
    with open_decoder(source) as decoder:
        blocks = [(rate, mono.size) for rate, mono in _mono(decoder, math.inf)]
    return blocks[0][0] if blocks else 0, sum(size for _, size in blocks)


def header_seconds(source: Source) -> float:
    """The length in a recording's header, 0 without; nothing is decoded, and damage raises nothing."""
    try:
        with open_decoder(source) as decoder:
            return decoder.seconds or 0.0
    except BadAudio:
        return 0.0


def check_level(samples: Waveform, sampling_rate: int, before: int = 0) -> None:
    """Raise BadAudio for samples (S,) that are not finite or above `LOUDEST`; `before`: those of the recording before
    them."""
    # No sample is above the root of the sum of all squares, which is found in a fraction of the time.
    with np.errstate(over="ignore", invalid="ignore"):
        if np.dot(samples, samples) <= LOUDEST**2:
            return
    peak = max(float(samples.max()), -float(samples.min()))  # NaN if there is one
    if not peak <= LOUDEST:
        finite = np.isfinite(samples)
        if not finite.all():
            first = (before + int(finite.argmin())) / sampling_rate
            raise BadAudio(f"it holds samples that are not finite, the first at {first:.3f} s")
        raise BadAudio(
            f"its samples reach {peak:g}, where full scale is 1 and {LOUDEST:g} the most that is taken: as integers "
            "that were written as floats; divide them by their full scale, such as 32768"
        )


def decoder_versions() -> str:
    """Of the libraries that decide what samples a recording has."""
    libraries = {
        "libsndfile": soundfile.__libsndfile_version__,
        "soxr": soxr.__libsoxr_version__,
        "PyAV": pyav.version() or "none",
    }
    return ", ".join(f"{name} {version}" for name, version in libraries.items())


def _fill(decoder: Decoder, sampling_rate: int, start: int, out: Waveform) -> None:
    _check_rate(decoder, sampling_rate)
    read, mix = decoder.fill(start, out) if isinstance(decoder, SndfileDecoder) else 0, _Mix()
    for _, samples in decoder.blocks(start, start + len(out)) if not read else ():
        out[read : read + len(samples)] = mix(samples)
        read += len(samples)
    mix.check()
    if read < len(out):
        raise BadAudio(f"it ends after {start + read} samples; at least {start + len(out)} are expected")
    check_level(out, sampling_rate, start)


def _check_rate(decoder: Decoder, sampling_rate: int) -> None:
    if decoder.rate not in (0, sampling_rate):
        raise BadAudio(f"it is of {decoder.rate} Hz; expected {sampling_rate} Hz")


def _mono(decoder: Decoder, max_seconds: float) -> Iterator[tuple[int, Waveform]]:
    """A recording's sampling rate and its next samples, mixed to mono and checked."""
    if (decoder.seconds or 0) > max_seconds:
        raise BadAudio(f"its header says {decoder.seconds:.0f} s; at most {max_seconds:g} s are read")
    read, mix = 0, _Mix()
    for rate, samples in decoder.blocks():
        mono = mix(samples)
        check_level(mono, rate, read)
        read += len(mono)
        if read > max_seconds * rate:
            raise BadAudio(f"it has more than {max_seconds:g} s; at most that is read")
        yield rate, mono
    mix.check()


def _between(decoder: Decoder, start: float, stop: float | None, max_seconds: float) -> Iterator[tuple[int, Waveform]]:
    """The same from one second to another."""
    rate, frames = decoder.rate, decoder.frames
    first, last = round(start * rate), None if stop is None else round(stop * rate)
    end = frames if last is None else last
    if frames is not None and (first >= frames or (end or 0) > frames):
        raise _beyond(frames / rate, start, stop)
    if end is not None and end - first > max_seconds * rate:
        raise BadAudio(f"the cut has {(end - first) / rate:.0f} s; at most {max_seconds:g} s are read")
    read, mix = 0, _Mix()
    for _, samples in decoder.blocks(first, last):
        mono = mix(samples)
        check_level(mono, rate, first + read)
        read += len(mono)
        if read > max_seconds * rate:
            raise BadAudio(f"the cut has more than {max_seconds:g} s; at most that is read")
        yield rate, mono
    mix.check()
    if rate and read < (1 if last is None else last - first):
        raise _beyond(decoder.done / rate, start, stop)


def _beyond(seconds: float, start: float, stop: float | None) -> BadAudio:
    end = "its end" if stop is None else f"{stop:g} s"
    return BadAudio(f"it has {seconds:.3f} s; the cut is from {start:g} to {end}")


def _resampled(blocks: Iterator[tuple[int, Waveform]], sampling_rate: int) -> Iterator[Waveform]:
    resampler = None
    for rate, mono in blocks:
        if rate * _MOST_UPSAMPLED < sampling_rate:
            raise BadAudio(f"it is of {rate} Hz, too few for {sampling_rate} Hz; expected 1/{_MOST_UPSAMPLED} at least")
        if rate != sampling_rate:
            resampler = resampler or soxr.ResampleStream(rate, sampling_rate, 1, dtype="float32", quality="HQ")
            mono = resampler.resample_chunk(mono)
        if mono.size:
            yield mono
    rest = resampler.resample_chunk(np.empty(0, np.float32), last=True) if resampler else None
    if rest is not None and rest.size:
        yield rest


def _joined(blocks: list[Waveform]) -> Waveform:
    if not blocks:  # as can be what is left of very few samples
        raise BadAudio("it holds no samples")
    return np.concatenate(blocks)


class _Mix:
    """Channels to mono, and how much of their sound is left of it."""

    def __init__(self) -> None:
        self._left = self._there = 0.0  # energies: of the mean, and the channels' mean one
        self._channels = 1

    def __call__(self, samples: Waveform) -> Waveform:
        """The next samples, (S, channels) -> (S,), their mean."""
        channels = self._channels = samples.shape[1]
        if channels == 1:
            return np.ascontiguousarray(samples[:, 0])
        # Column by column: numpy's mean over rows of two takes sixteen times as long.
        mono: Waveform = sum(samples.T[1:], start=samples[:, 0]) / channels
        every = samples.reshape(-1)
        with np.errstate(over="ignore", invalid="ignore"):  # which `check_level` tells
            self._left += float(np.dot(mono, mono))
            self._there += float(np.dot(every, every)) / channels
        return mono

    def check(self) -> None:
        """BadAudio if the channels have cancelled each other out, as those of a stereo recording with one inverted."""
        if self._left < _LEFT_OF_CHANNELS / self._channels * self._there:
            raise BadAudio(
                "its channels cancel each other out: their mean, which is what is read, has "
                f"{self._left / self._there:.1g} of their energy; expected channels that can be mixed: invert one, or "
                "keep one"
            )
