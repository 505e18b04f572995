"""Recordings of every format that there is a decoder for: whole, in part, cut, joined, and without PyAV."""

import io
import os
import random
import struct
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import soundfile
import soxr

from ssamba.errors import BadAudio
from ssamba.recordings import (
    ENDINGS,
    LOUDEST,
    check_level,
    decoded_length,
    header_seconds,
    measured_length,
    read_audio,
    read_cut,
    read_segment,
    recording_seconds,
    stream_audio,
)


def encoded(samples: Any, sampling_rate: int, container: str = "WAV", subtype: str | None = None) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.asarray(samples), sampling_rate, format=container, subtype=subtype)
    return file.getvalue()


def tone(seconds: float, sampling_rate: int, hertz: float = 440.0) -> Any:
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(int(seconds * sampling_rate)) / sampling_rate)


@pytest.mark.parametrize(
    ("container", "subtype", "error"),
    [
        ("WAV", "PCM_16", 2**-15),
        ("WAV", "FLOAT", 1e-7),
        ("FLAC", "PCM_16", 2**-15),
        ("FLAC", "PCM_24", 2**-23),
        ("AIFF", "PCM_16", 2**-15),
        ("OGG", "VORBIS", 0.02),
    ],
)
def test_samples_are_read_at_full_scale_one(container: str, subtype: str, error: float) -> None:
    samples = tone(0.5, 16000)
    waveform = read_audio(encoded(samples, 16000, container, subtype), 16000, 10)
    assert waveform.dtype == np.float32 and waveform.flags["C_CONTIGUOUS"]
    np.testing.assert_allclose(waveform, samples, atol=error)


def test_a_path_an_open_file_and_bytes_give_the_same(tmp_path: Path) -> None:
    data = encoded(tone(0.1, 16000), 16000, "FLAC")
    path = tmp_path / "tone.flac"
    path.write_bytes(data)
    with path.open("rb") as file:
        waveforms = [read_audio(source, 16000, 10) for source in (data, path, str(path), file)]
    assert all(np.array_equal(waveform, waveforms[0]) for waveform in waveforms)


def test_channels_are_mixed_by_their_mean() -> None:
    left, right = tone(0.1, 16000), tone(0.1, 16000, 1000.0)
    waveform = read_audio(encoded(np.stack([left, right], 1), 16000, subtype="FLOAT"), 16000, 10)
    np.testing.assert_allclose(waveform, (left + right) / 2, atol=1e-6)


@pytest.mark.parametrize("container", ["WAV", "FLAC", "AIFF", "CAF", "AU", "W64", "OGG", "MP3"])
def test_channels_that_cancel_each_other_out_are_told(container: str, tmp_path: Path) -> None:
    left, right = tone(0.5, 16000), tone(0.5, 16000, 1000.0)
    opposite = encoded(np.stack([left, -left], 1), 16000, container)
    readers = [
        lambda: read_audio(opposite, 16000, 10),
        lambda: read_cut(opposite, 16000, 10, 0.1, 0.4),
        lambda: read_segment(opposite, 16000, 800, np.empty(4000, np.float32)),
        lambda: decoded_length(opposite),
    ]
    for read in readers:
        with pytest.raises(BadAudio, match="its channels cancel each other out"):
            read()
    # Silence is silence, and what the channels have in common is enough.
    assert not read_audio(encoded(np.zeros((8000, 2)), 16000, "WAV"), 16000, 10).any()
    wide = encoded(np.stack([left, 0.8 * right - left], 1), 16000, container)
    assert np.abs(read_audio(wide, 16000, 10)).max() > 0.05


@pytest.mark.parametrize(("container", "place"), [("WAV", 24), ("AU", 16), ("W64", 68)])
def test_a_sampling_rate_of_nothing_is_told(container: str, place: int) -> None:
    data = bytearray(encoded(tone(0.1, 16000), 16000, container))
    assert int.from_bytes(data[place : place + 4], "big" if container == "AU" else "little") == 16000
    data[place : place + 4] = bytes(4)
    with pytest.raises(BadAudio, match="its header gives no sampling rate"):
        read_audio(bytes(data), 16000, 10)


@pytest.mark.parametrize("recorded", [8000, 22050, 44100, 48000])
def test_another_sampling_rate_is_resampled(recorded: int) -> None:
    waveform = read_audio(encoded(tone(1.0, recorded), recorded, subtype="FLOAT"), 16000, 10)
    wanted = tone(1.0, 16000)
    assert abs(len(waveform) - 16000) <= 1
    np.testing.assert_allclose(waveform[1000:15000], wanted[1000:15000], atol=1e-3)


def test_tones_above_the_new_nyquist_frequency_are_gone() -> None:
    waveform = read_audio(encoded(tone(1.0, 44100, 12000.0), 44100, subtype="FLOAT"), 16000, 10)
    assert np.abs(waveform[1000:15000]).max() < 2e-3


@pytest.mark.parametrize("recorded", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG", "MP3"])
def test_blocks_resampled_in_turn_are_the_recording_resampled_at_once(
    container: str, recorded: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = encoded(tone(1.3, recorded), recorded, container)
    whole = soundfile.read(io.BytesIO(data), dtype="float32")[0]
    wanted = whole if recorded == 16000 else soxr.resample(whole, recorded, 16000, quality="HQ")
    for block in (1000, 1 << 16):
        monkeypatch.setattr("ssamba.recordings.decoders.BLOCK_SAMPLES", block)
        blocks = list(stream_audio(data, 16000))
        assert min(map(len, blocks)) > 0
        if block == 1000:  # the resampler has blocks of its own, too
            assert len(blocks) > 9 and max(map(len, blocks)) < 4000
        np.testing.assert_allclose(np.concatenate(blocks), wanted, rtol=0, atol=1e-6)
        assert np.array_equal(read_audio(data, 16000, 10), np.concatenate(blocks))


def test_a_recording_that_its_header_says_is_too_long_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(tone(2.0, 16000), 16000)
    assert len(read_audio(data, 16000, 2.0)) == 32000

    def decode(*_: Any, **__: Any) -> None:
        raise AssertionError("it was decoded")

    monkeypatch.setattr(soundfile.SoundFile, "read", decode)
    with pytest.raises(BadAudio, match=r"2 s; at most 1\.5 s"):
        read_audio(data, 16000, 1.5)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "cannot be decoded"),
        (b"these are words, not sounds " * 50, "cannot be decoded"),
        (encoded(tone(1.0, 16000), 16000, "FLAC")[:60], "cannot be decoded"),
        (encoded(tone(1.0, 16000), 16000, "FLAC")[:9000], "cannot be decoded"),
        (encoded(np.zeros(0), 16000), "no samples"),
        (encoded(np.zeros(0), 44100), "no samples"),
        (encoded(np.ones(1), 48000), "no samples"),  # not one sample at 16 kHz
        (encoded([0.1, np.nan, 0.2], 16000, subtype="FLOAT"), "not finite"),
        (encoded([0.1, np.inf, 0.2], 44100, subtype="FLOAT"), "not finite"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",  # of the same name in every process
)
def test_what_is_no_usable_audio_is_refused_with_the_reason(data: bytes, message: str) -> None:
    with pytest.raises(BadAudio, match=message):
        read_audio(data, 16000, 10)


@pytest.mark.parametrize("name", ["words.wav", "headerless.raw", "missing.flac", "."])
def test_a_path_that_cannot_be_decoded_is_refused(name: str, tmp_path: Path) -> None:
    for written in ("words.wav", "headerless.raw"):
        (tmp_path / written).write_bytes(b"words " * 100)
    with pytest.raises(BadAudio, match="cannot be decoded"):
        read_audio(tmp_path / name, 16000, 10)


# Formats

SECONDS = 1.3
# RAW says nothing of what it holds, SD2 keeps it in another file; libsndfile writes no layers I and II.
NOT_WRITTEN = {"RAW", "SD2", "MP3 MPEG_LAYER_I", "MP3 MPEG_LAYER_II", "WAV MPEG_LAYER_III", "AIFF DWVW_12"}
BY_LIBSNDFILE = [
    f"{container} {subtype}"
    for container in soundfile.available_formats()
    for subtype in soundfile.available_subtypes(container)
    if not {container, f"{container} {subtype}"} & NOT_WRITTEN
]
# Muxer and encoder of PyAV, and what libsndfile does not do with it.
BY_PYAV = [
    "ipod aac",
    "mp4 aac",
    "mov alac",
    "ipod alac",
    "3gp aac",
    "adts aac",
    "caf alac",
    "matroska libopus",
    "matroska aac",
    "matroska flac",
    "matroska libmp3lame",
    "webm libopus",
    "asf wmav1",
    "asf wmav2",
    "amr amr_nb",
    "ogg flac",
    "wav adpcm_swf",
    "wav g726",
    "tta tta",
    "wv wavpack",
    "ac3 ac3",
    "eac3 eac3",
]


def chirp(rate: int, seconds: float = SECONDS) -> np.ndarray:
    time = np.arange(round(seconds * rate)) / rate
    return 0.4 * np.sin(2 * np.pi * (200 + 500 * time) * time)


@cache
def by_libsndfile(name: str) -> bytes:
    container, subtype = name.split()
    for rate in (16000, 8000):
        try:
            return encoded(chirp(rate), rate, container, subtype)
        except soundfile.LibsndfileError:  # of one rate alone
            continue
    raise AssertionError(f"{name} is not written")


@cache
def by_pyav(name: str, seconds: float = SECONDS, rate: int = 16000, **options: str) -> bytes:
    muxer, codec = name.split()
    only = {"amr_nb": 8000, "libopus": 48000, "adpcm_swf": 22050, "g726": 8000}
    rate = only.get(codec, 44100 if codec in ("wmav1", "wmav2", "ac3", "eac3") else rate)
    file = io.BytesIO()
    with av.open(file, "w", format=muxer, options=options) as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        stream.bit_rate = {"amr_nb": 12200, "g726": 32000}.get(codec, 64000)
        samples = np.round(32767 * chirp(rate, seconds)).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate = rate
        fitting = av.AudioResampler(stream.codec_context.format, "mono", rate, stream.codec_context.frame_size or 4096)
        for part in [*fitting.resample(frame), *fitting.resample(None), None]:
            container.mux([packet for packet in stream.encode(part) if packet.size])
    return file.getvalue()


def recording(name: str) -> bytes:
    return by_libsndfile(name) if name in BY_LIBSNDFILE else by_pyav(name)


def without_xing(seconds: float, quality: str = "5") -> bytes:
    """An MP3 of a bit rate that varies and no header that tells how long it is."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp3", options={"write_xing": "0", "id3v2_version": "0"}) as container:
        stream = container.add_stream("libmp3lame", rate=44100, layout="mono")
        stream.codec_context.global_quality = int(quality) * 118
        stream.codec_context.flags |= 2  # a constant quality
        rate, silence = 44100, np.zeros(44100)
        samples = np.concatenate([silence, chirp(rate, seconds - 2), silence])
        frame = av.AudioFrame.from_ndarray(np.round(32767 * samples).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = rate
        fitting = av.AudioResampler("s16p", "mono", rate, 1152)
        for part in [*fitting.resample(frame), *fitting.resample(None), None]:
            container.mux(stream.encode(part))
    return file.getvalue()


@pytest.mark.parametrize("name", [*BY_LIBSNDFILE, *BY_PYAV])
def test_every_format_is_read_whole_and_alike_everywhere(name: str, tmp_path: Path) -> None:
    data = recording(name)
    path = tmp_path / "named.wrongly.raw"
    path.write_bytes(data)
    rate, length = decoded_length(data)
    assert measured_length(data) == measured_length(path) == decoded_length(path) == (rate, length)
    # Encoders fill the last of their blocks, and some put silence before the sound; FFmpeg's decoder of WMA keeps its
    # last one. These know one rate alone.
    written = SECONDS * (16000 if name.startswith(("VOC", "WVE", "XI")) else rate)
    assert (-0.05 if name.startswith("asf") else -0.01) * rate <= length - written <= 0.15 * rate
    whole = read_audio(data, rate, 10)
    assert whole.shape == (length,) and 0.2 < np.sqrt(np.mean(whole**2)) < 0.33
    for source in (path, str(path), io.BytesIO(data)):
        assert np.array_equal(read_audio(source, rate, 10), whole)
    assert abs(header_seconds(path) - length / rate) < 0.15 or not header_seconds(path)
    assert abs(recording_seconds(path) - length / rate) < 0.15
    for start, size in ((0, 100), (0, length), (1, 999), (length // 3, 5000), (length - 1700, 1700), (length - 1, 1)):
        out = np.zeros(size, np.float32)
        read_segment(data, rate, start, out)
        assert np.array_equal(out, whole[start : start + size]), start
    np.testing.assert_array_equal(read_cut(path, rate, 1, 0.125, 0.25), whole[round(rate / 8) : round(rate / 4)])
    np.testing.assert_array_equal(read_cut(path, rate, 4, 0.375), whole[round(3 * rate / 8) :])
    with pytest.raises(BadAudio, match=f"it ends after {length} samples; at least {length + 10} are"):
        read_segment(data, rate, length - 10, np.zeros(20, np.float32))
    with pytest.raises(BadAudio, match=rf"it has {length / rate:.3f} s; the cut is from 9 to 10 s"):
        read_cut(path, rate, 2, 9, 10)
    for read in (lambda: read_audio(path, 16000, 0.2), lambda: read_cut(path, 16000, 0.2, 0.1, 0.4)):
        with pytest.raises(BadAudio, match=r"at most"):
            read()


# Those that tell no length, what old samplers and MATLAB made, and frames one behind another.
BELIEVED = {"IRCAM", "PAF", "PVF", "AVR", "MAT4", "MAT5", "MPC2K", "SDS", "XI", "WVE", "adts", "amr", "ac3", "eac3"}


@pytest.mark.parametrize("name", [*BY_LIBSNDFILE, *BY_PYAV])
def test_what_is_cut_is_refused_by_everything(name: str) -> None:
    data = recording(name)
    cut = data[: len(data) * 3 // 5]
    if name.split()[0] in BELIEVED:
        assert decoded_length(cut)[1] <= decoded_length(data)[1]
        return
    rate, length = decoded_length(data)
    for read in (
        lambda: read_audio(cut, 16000, 10),
        lambda: list(stream_audio(cut, 16000)),
        lambda: decoded_length(cut),
        lambda: measured_length(cut),
    ):
        with pytest.raises(BadAudio, match="cut|cannot be decoded"):
            read()
    with pytest.raises(BadAudio):
        read_segment(cut, rate, length - 2000, np.zeros(2000, np.float32))


@pytest.mark.parametrize("name", BY_PYAV)
def test_without_pyav_it_is_refused_with_what_would_help(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    data = recording(name)
    monkeypatch.setitem(sys.modules, "av", None)
    for read in (lambda: read_audio(data, 16000, 10), lambda: measured_length(data)):
        with pytest.raises(BadAudio, match=r'pip install "ssamba\[formats\]"'):
            read()


def joined(data: bytes) -> bytes:
    return data + data


def tagged(data: bytes) -> bytes:
    return data + b"TAG" + bytes(125) + data


@pytest.mark.parametrize(
    ("data", "seconds"),
    [
        pytest.param(lambda: without_xing(9.0), 9, id="VBR without a header"),
        pytest.param(lambda: joined(without_xing(5.0)), 10, id="joined VBR"),
        pytest.param(lambda: joined(by_libsndfile("MP3 MPEG_LAYER_III")), 2 * SECONDS, id="joined MP3"),
        pytest.param(lambda: tagged(by_libsndfile("MP3 MPEG_LAYER_III")), 2 * SECONDS, id="joined MP3 with tags"),
        pytest.param(lambda: bytes(3000) + by_libsndfile("MP3 MPEG_LAYER_III"), SECONDS, id="zeros before MP3"),
        pytest.param(lambda: joined(by_libsndfile("OGG VORBIS")), 2 * SECONDS, id="chained Vorbis"),
        pytest.param(lambda: joined(by_libsndfile("OGG OPUS")), 2 * SECONDS, id="chained Opus"),
        pytest.param(lambda: wav(0, 0), SECONDS, id="WAV of size 0"),
        pytest.param(lambda: wav(36, 0), SECONDS, id="WAV whose sizes were not filled in"),
    ],
)
def test_what_libsndfile_would_read_in_part(
    data: Callable[[], bytes], seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = data()
    # What an encoder puts before and after the sound is sound where a second file begins.
    assert 0 <= len(read_audio(content, 16000, 30)) / 16000 - seconds < 0.2
    rate, length = measured_length(content)
    assert length == decoded_length(content)[1]
    monkeypatch.setitem(sys.modules, "av", None)
    try:
        assert decoded_length(content)[1] >= seconds * rate
    except BadAudio as error:
        assert 'pip install "ssamba[formats]"' in str(error)


def wav(
    riff: int | None = None,
    size: int | None = None,
    samples: int = round(SECONDS * 16000),
    rate: int = 16000,
    channels: int = 1,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """16-bit; the sizes are right unless others are given."""
    sound = np.round(32767 * chirp(16000)).astype("<i2").tobytes()[: 2 * samples]
    size = len(sound) if size is None else size
    frame = 2 * channels & 0xFFFF
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * frame & 0xFFFFFFFF, frame, 16)
    body = b"WAVEfmt \x10\0\0\0" + form + before + b"data" + struct.pack("<I", size) + sound + after
    return b"RIFF" + struct.pack("<I", len(body) if riff is None else riff) + body


ID3 = b"ID3\3\0\0" + bytes([0, 1, 7, 0x76]) + bytes((1 << 14) + (7 << 7) + 0x76)


@pytest.mark.parametrize(
    "data",
    [
        wav(0xFFFFFFFF, 0xFFFFFFFF),
        wav(0x7FFFFFFF, 0x7FFFFFFF),
        wav(0xFFFFFFFF, 0x7FFFF000),
        wav(0, 0),
        wav(36, 0),
        wav(None, 2 * round(SECONDS * 16000) + 16),
        wav(after=b"ID3" + bytes(997)),
        wav(before=b"note\3\0\0\0abc\0"),
        wav(0),
        wav(0xFFFFFFFF),
        ID3 + wav(),
        ID3 + by_libsndfile("FLAC PCM_16"),
        ID3 + ID3 + by_libsndfile("FLAC PCM_16"),
        by_libsndfile("FLAC PCM_16") + b"TAG" + bytes(125),
    ],
)
def test_sizes_and_tags_that_take_nothing_from_the_sound(data: bytes, tmp_path: Path) -> None:
    wanted = read_audio(wav(), 16000, 10)
    (tmp_path / "sound").write_bytes(data)
    for source in (data, tmp_path / "sound"):
        np.testing.assert_allclose(read_audio(source, 16000, 10), wanted, atol=2**-15)
        assert measured_length(source) == (16000, len(wanted))
    out = np.zeros(3000, np.float32)
    read_segment(data, 16000, 9000, out)
    np.testing.assert_allclose(out, wanted[9000:12000], atol=2**-15)


@pytest.mark.parametrize("tail", [b"", b"TAG" + bytes(125)])
def test_a_flac_of_unknown_length(tail: bytes) -> None:
    data = bytearray(by_libsndfile("FLAC PCM_16"))
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    wanted = read_audio(by_libsndfile("FLAC PCM_16"), 16000, 10)
    assert np.array_equal(read_audio(bytes(data) + tail, 16000, 10), wanted)
    assert measured_length(bytes(data) + tail) == (16000, len(wanted)) and header_seconds(bytes(data) + tail) == 0
    out = np.zeros(3000, np.float32)
    read_segment(bytes(data) + tail, 16000, 9000, out)
    assert np.array_equal(out, wanted[9000:12000])
    assert recording_seconds(bytes(data) + tail) == len(wanted) / 16000
    with pytest.raises(BadAudio, match=r"more than 0\.5 s; at most"):
        read_audio(bytes(data) + tail, 16000, 0.5)


def test_a_cut_mp3_says_how_much_is_there() -> None:
    data = by_pyav("mp3 libmp3lame", 4.0)
    with pytest.raises(BadAudio, match=r"it is cut or damaged: 2\.\d+ s of the 4\.\d+ s that its header tells of"):
        read_audio(data[: len(data) // 2], 16000, 10)
    hole = data[:6000] + b"\x55" * 900 + data[6900:]
    with pytest.raises(BadAudio, match="it is cut or damaged|it is damaged"):
        read_audio(hole, 16000, 10)


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"<html><body>403 Forbidden</body></html>", "it begins like a web page"),
        (b"\xef\xbb\xbf\n<!DOCTYPE html>", "it begins like a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"PK\3\4" + bytes(99), "it is an archive"),
        (b"words, and more words\n", "it begins like text"),
        (b"ID3\3\0\0\0\0\7\x76" + bytes(1014), r"a tag \(ID3\) and no sound"),
        (b"#EXTM3U\n#EXTINF:9,\nhttp://localhost/x.ts\n", "it begins like text"),
        (wav(rate=0), "its header gives no sampling rate, or no channels"),
        (wav(channels=0), "cannot be decoded: Channel count is zero"),
        (wav(samples=0), "no samples"),
    ],
)
def test_what_is_no_recording_is_told(data: bytes, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.wav").write_bytes(data)
    for source in (data, tmp_path / "x.wav"):
        with pytest.raises(BadAudio, match=said):
            read_audio(source, 16000, 10)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(BadAudio, match=said):
        read_audio(data, 16000, 10)


@pytest.mark.parametrize("claimed", [10**9, 2**31 + 2, 2**32 - 70000])
def test_a_size_that_is_claimed_takes_no_memory(claimed: int) -> None:
    with pytest.raises(BadAudio, match=r"it is cut: 1\.300 s of the"):
        read_audio(wav(claimed, claimed), 16000, 10)
    flac = bytearray(by_libsndfile("FLAC PCM_16"))
    flac[22:26] = (claimed & 0xFFFFFFFF).to_bytes(4, "big")
    with pytest.raises(BadAudio, match=r"at most 10 s are read"):
        read_audio(bytes(flac), 16000, 10)
    with pytest.raises(BadAudio, match="cannot be decoded|cut or damaged"):
        decoded_length(bytes(flac))
    with pytest.raises(BadAudio):
        measured_length(bytes(flac))


@pytest.mark.parametrize(("rate", "channels"), [(1, 1), (7, 2), (200, 1), (384000, 1), (768000, 8), (16000, 1000)])
def test_odd_rates_and_many_channels(rate: int, channels: int) -> None:
    data = wav(rate=rate, channels=channels)
    length = round(SECONDS * 16000) // channels
    assert measured_length(data) == (rate, length)
    if rate >= 160:
        assert abs(len(read_audio(data, 16000, 300)) / 16000 - length / rate) < 0.01
        return
    with pytest.raises(BadAudio, match=f"it is of {rate} Hz, too few for 16000 Hz"):  # hours, of a header's fault
        list(stream_audio(data, 16000))


def test_folders_pipes_and_devices_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.wav")
    begin = time.monotonic()
    for path, said in (
        (tmp_path, "a folder"),
        (tmp_path / "pipe.wav", "a pipe"),
        (Path(os.devnull), "a device"),
        (tmp_path / "gone.wav", "No such file"),
        ("a\0b.wav", "null"),
    ):
        with pytest.raises(BadAudio, match=f"it cannot be decoded: .*{said}"):
            read_audio(path, 16000, 10)
        assert header_seconds(path) == 0
    assert time.monotonic() - begin < 10  # and nothing was waited for


@pytest.mark.parametrize("scale", [128.0, 32768.0, 1e30])
def test_floats_of_integer_scale_are_named(scale: float) -> None:
    data = encoded(scale * chirp(16000), 16000, subtype="FLOAT" if scale < 1e9 else "DOUBLE")
    if 0.4 * scale < LOUDEST:
        assert len(read_audio(data, 16000, 10))
        return
    for read in (
        lambda: read_audio(data, 16000, 10),
        lambda: decoded_length(data),
        lambda: measured_length(data),
        lambda: read_segment(data, 16000, 5000, np.zeros(5000, np.float32)),
    ):
        with pytest.raises(BadAudio, match=r"its samples reach \S+, where full scale is 1"):
            read()


def test_levels_above_full_scale_are_kept() -> None:
    samples = 3 * chirp(16000) / 0.4
    np.testing.assert_allclose(read_audio(encoded(samples, 16000, subtype="FLOAT"), 16000, 10), samples, atol=1e-6)
    check_level(samples.astype(np.float32), 16000)


def test_endings_are_small_and_told_apart() -> None:
    assert all(ending == ending.lower() and ending.startswith(".") for ending in ENDINGS)
    assert {".aifc", ".snd", ".voc", ".sph", ".m4a", ".aac", ".mp4", ".mka", ".webm", ".wma", ".amr", ".spx"} <= ENDINGS
    assert not {".raw", ".txt", ".json", ".csv", ".npy", ".cls"} & ENDINGS


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_a_damaged_page_of_ogg_is_told(subtype: str) -> None:
    """A decoder goes on behind it, or ends there, without a word."""
    file = io.BytesIO()
    soundfile.write(file, np.random.default_rng(0).normal(0, 0.1, 48_000), 16000, format="OGG", subtype=subtype)
    whole = file.getvalue()
    read_audio(whole, 16000, 60)
    read_audio(whole + b"TAG" + bytes(125), 16000, 60)  # what is put behind it is none
    for at in range(30, len(whole), len(whole) // 20):
        flipped = whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :]
        for changed in (flipped, whole[:at] + b"xx" + whole[at:], whole[:at] + whole[at + 1 :]):
            with pytest.raises(BadAudio, match="it is damaged|cut"):
                read_audio(changed, 16000, 60)


@pytest.mark.parametrize("name", BY_PYAV)
def test_a_damaged_header_is_told_by_an_error_alone(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """And the same of a file and of its bytes: what FFmpeg seeks before a file's start, PyAV may print."""
    whole, rng = by_pyav(name), random.Random(name)
    for _ in range(25):
        changed = bytearray(whole)
        for _ in range(rng.choice((1, 8, 64))):
            changed[rng.randrange(128)] ^= 1 << rng.randrange(8)
        (tmp_path / "x.bin").write_bytes(changed)
        told = []
        for source in (bytes(changed), tmp_path / "x.bin"):
            try:
                told.append(measured_length(source))
            except BadAudio as error:
                told.append(str(error))
        assert told[0] == told[1]
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(("channels", "bits"), [(1, 16), (2, 16), (1, 24), (3, 8), (1, 32)])
def test_a_wav_whose_channels_do_not_fit_its_blocks_is_told(channels: int, bits: int) -> None:
    file = io.BytesIO()
    subtype = {8: "PCM_U8", 16: "PCM_16", 24: "PCM_24", 32: "FLOAT"}[bits]
    soundfile.write(file, np.zeros((16_000, channels)), 16000, format="WAV", subtype=subtype)
    whole = file.getvalue()
    assert len(read_audio(whole, 16000, 60)) == 16_000
    for other in set(range(1, 7)) - {channels}:
        at = whole.index(b"fmt ") + 10
        with pytest.raises(BadAudio, match="do not fit blocks"):
            read_audio(whole[:at] + bytes([other]) + whole[at + 1 :], 16000, 60)
