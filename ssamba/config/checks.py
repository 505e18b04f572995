"""The choices that recipes have, what becomes of their paths, and the checks of their values."""

from collections.abc import Iterator, Sequence
from typing import Annotated

from ssamba.parts import Kind, clash, names
from ssamba.values import expected_range, path_text, source_text, teacher_text

PathText = Annotated[str, path_text]
"""A path, ~ in it replaced."""
SourceText = Annotated[str, source_text]
"""A path or a pattern of paths, ~ in it replaced; or a url or a command as it is."""
TeacherText = Annotated[str, teacher_text]
"""What `teacher_text` reads."""

SCAN_BACKENDS = ("auto", "reference", "torch-chunked", "cpu", "triton", "mamba-ssm")
MODEL_SIZES = {
    "ssamba": ("nano", "tiny", "small", "base"),
    "ssast": ("nano", "tiny", "small", "base"),
    "aum": ("nano", "tiny", "small", "base", "large"),
    "conformer": ("nano", "tiny", "small", "base"),
    "bilstm": ("nano", "tiny", "small", "base"),
    "ssd": ("nano", "tiny", "small", "base"),
}
"""Of this package's encoders; an encoder of another package says its sizes where it is built."""
ENCODERS = tuple(MODEL_SIZES)
AUTHORS_FORMATS = ("ssamba", "ssast", "aum")
"""Encoders whose authors publish checkpoints, which are imported and exported."""
MOST_SEGMENTS = 1000
SCAN_LAYOUTS = ("fo_fo", "fo_bi", "bi_bi")
PATCH_ORDERS = ("frequency", "time")
AUDIO_RANGES: dict[str, tuple[float, float]] = {
    "sampling_rate": (1000, 768_000),
    "num_mel_bins": (1, 1024),
    "max_length": (1, 1_000_000),
    "mean": (-1000, 1000),
    "std": (0.001, 1000),
}
"""The lowest and the highest value of what a spectrogram is. Log-mel values lie between -16 and 30: by a deviation that
is much larger, all of them would become the same."""


def one_of(name: str, value: object, choices: Sequence[str]) -> Iterator[str]:
    if value not in choices:
        yield f"{name} is {value!r}; expected one of {', '.join(choices)}"


def known_part(name: str, kind: Kind, value: str) -> Iterator[str]:
    yield from one_of(name, value, names(kind))
    if problem := clash(kind, value):
        yield f"{name} is {value!r}; {problem}"


def within(name: str, value: float | None, low: float, high: float) -> Iterator[str]:
    if value is not None and (problem := expected_range(value, low, high)):
        yield f"{name} is {value}; {problem}"


def below_one(name: str, value: float) -> Iterator[str]:
    if not 0 <= value < 1:
        yield f"{name} is {value}; expected 0 to below 1"


MANY = 10**9  # more steps, recordings or frames than any run has
MOST_SIDE = 1000  # of a cluster, in patches
LONGEST_TAG = 64  # that wandb takes
LARGE = 1e6  # more than any weight, rate or amplitude that trains
