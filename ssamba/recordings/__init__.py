"""Recordings: the one list of what they are called, and the one way in which each is read. Whatever reads sound imports
these functions; what is behind them, the decoders and the containers they open, is for this folder and the doctor."""

from ssamba.recordings.decoders import Source, Waveform
from ssamba.recordings.reading import (
    ENDINGS,
    LOUDEST,
    check_level,
    decoded_length,
    decoder_versions,
    header_seconds,
    measured_length,
    read_audio,
    read_crop,
    read_cut,
    read_segment,
    recording_seconds,
    stream_audio,
)

__all__ = [
    "ENDINGS",
    "LOUDEST",
    "Source",
    "Waveform",
    "check_level",
    "decoded_length",
    "decoder_versions",
    "measured_length",
    "read_audio",
    "read_crop",
    "read_cut",
    "read_segment",
    "recording_seconds",
    "stream_audio",
    "header_seconds",
]
