"""A model's outputs for recordings, window by window: only a batch of windows is in memory.

Shapes: B windows, T frames, M mel bins, F and P grid sizes in frequency and time, D width, N hops, C classes.
"""

import itertools
import math
import os
import sys
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssamba.audio import HOP_MS, frames_in, samples_for
from ssamba.errors import BadAudio, UserError
from ssamba.hub import SsambaModel
from ssamba.inference.cutting import Windows
from ssamba.models.heads import TokenClassifier
from ssamba.models.pools import Pool
from ssamba.progress import print_above, progress_bar
from ssamba.recordings import Waveform, header_seconds, stream_audio

BATCH_SIZE = 8
FRAMES_A_SECOND = 1000 / HOP_MS


class Window(NamedTuple):
    """One window of a recording; tensors are float32, on the CPU.

    start, end: in seconds. step: seconds from the start of the window before it, for the first one the hop: what the
    window counts for in a mean over the recording. spectrogram: (T, M), normalised, the frames that are its own.
    probabilities: (C,), None without a classifier; of one of hops their mean. pooled (the size of the job's pool,) and
    tokens (P, F, D): the hidden state of the layer asked for, None without one. Tokens are columns of patches in the
    order of time; those without a frame of the recording, where a short one was filled up, are left out.
    column_seconds: float64 (P, 2), start and end of each. hops: (N, C), probabilities of each hop of the window, and
    hop_seconds, of a classifier of hops.
    """

    path: str
    start: float
    end: float
    step: float
    spectrogram: Tensor
    probabilities: Tensor | None
    pooled: Tensor | None
    tokens: Tensor | None
    column_seconds: Tensor
    hops: Tensor | None = None
    hop_seconds: float = 0.0


class TimeMean:
    """The mean of something that a recording's windows have, each counting for the time that it stands for."""

    def __init__(self) -> None:
        self._total, self._seconds = torch.zeros(()), 0.0

    def add(self, window: Window, value: Tensor) -> None:
        """What a window has, any shape."""
        self._total = self._total + window.step * value.double()
        self._seconds += window.step

    def value(self) -> Tensor:
        """float64, of the windows that were added, at least one."""
        return self._total / self._seconds


class Ended(NamedTuple):
    """The end of a recording, after its windows; with an error the recording failed, and its windows are not to be
    used."""

    path: str
    seconds: float
    error: str | None


class _Piece(NamedTuple):
    path: str
    start: int
    step: int
    samples: Waveform


class Job(NamedTuple):
    """The model and how recordings are windowed; without a layer the windows have the classifier's answer alone."""

    model: SsambaModel
    windows: Windows
    batch_size: int
    layer: int | None
    pool: Pool

    @classmethod
    def of(
        cls,
        model: SsambaModel,
        window_seconds: float | None,
        hop_seconds: float | None,
        layer: int | None,
        batch_size: int,
        pooling: str | None = None,
        segments: int | None = None,
    ) -> "Job":
        """Arguments as of `predict_file`; UserError for one that cannot be."""
        if batch_size < 1:
            raise UserError(f"batch size is {batch_size}; expected at least 1")
        layer_index = None if layer is None else model.layer_number(layer)
        windows = Windows.of(model.feature_extractor, window_seconds, hop_seconds)
        if hop_seconds is None and isinstance(model.network, TokenClassifier):
            # A hop's answer depends on its context, so windows overlap; each begins where a hop does.
            rate = model.feature_extractor.sampling_rate
            hop = samples_for(model.network.hop_frames + 1, rate) - samples_for(1, rate)
            windows = windows._replace(hop=max(windows.size // 2 // hop * hop, min(hop, windows.size)))
        return cls(model, windows, batch_size, layer_index, model.pool(pooling, segments))


def predict_file(
    model: SsambaModel,
    path: str | os.PathLike[str],
    window_seconds: float | None = None,
    hop_seconds: float | None = None,
    *,
    layer: int | None = None,
    batch_size: int = BATCH_SIZE,
    pooling: str | None = None,
    segments: int | None = None,
) -> Iterator[Window]:
    """A model's outputs for a recording of any length, window by window, as they are computed.

    A recording no longer than a window is one window, and the answer that of `model(*model.feature_extractor(path))`.
    A longer one is cut into windows every hop; after the last of them comes one that ends with the recording.

    A classifier of hops has an answer for each hop: these are yielded, each as a window of its own, taken from the
    model's window in whose middle it is. With a layer they stay together, in `Window.hops`.

    Args:
        window_seconds: default: the model's clip. To the model each window is a recording of its own.
        hop_seconds: from one window's start to the next, at most the window, its default; of a classifier of hops the
            default is half of it.
        layer: whose hidden state is yielded too, as `SsambaModel.num_hidden_states` counts.
        batch_size: windows that are read ahead and run together.
        pooling, segments: of `Window.pooled`; see `SsambaModel.pool`.

    Raises:
        UserError: at once, a window, hop, layer or pool that cannot be.
        BadAudio: unreadable, too short or not finite: when that is found, which can be after its first windows.
    """
    job = Job.of(model, window_seconds, hop_seconds, layer, batch_size, pooling, segments)
    return _windows_of(os.fspath(path), job)


def _windows_of(path: str, job: Job) -> Iterator[Window]:
    for result in run([path], job):
        if isinstance(result, Window):
            yield result
        elif result.error is not None:
            raise BadAudio(f"{path}: {result.error}")


def load(model: str, device: str) -> SsambaModel:
    """A model as a command names it, on "cpu", "cuda" or, by "auto", a GPU if there is one."""
    return SsambaModel.from_pretrained(model).to(device_named(device))


def device_named(device: str) -> torch.device:
    """ "cpu", "cuda" or, by "auto", a GPU if there is one; UserError for one that is not here."""
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("device is cuda, but torch finds no GPU; expected auto or cpu")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


def run(paths: Sequence[str], job: Job) -> Iterator[Window | Ended]:
    """Each recording's windows, or their hops, then that it ended, one recording after another; a batch has windows of
    several."""
    results = _windows(paths, job)
    return stitched(results) if job.layer is None and isinstance(job.model.network, TokenClassifier) else results


def stitched(results: Iterable[Window | Ended]) -> Iterator[Window | Ended]:
    """The hops of windows as windows of their own, each from the end of the one before. Where two windows overlap, the
    first half is taken from the first."""
    before: Window | None = None
    start = -math.inf
    covered = 0.0
    for one in results:
        if before is not None:
            end = (one.start + before.end) / 2 if isinstance(one, Window) else math.inf
            for hop in _hops_between(before, start, end):
                # The last window ends with the recording, and its hops may begin amid those of the one before.
                yield hop._replace(start=covered, step=hop.end - covered)
                covered = hop.end
            start = end
        if isinstance(one, Window):
            before = one
        else:
            before, start, covered = None, -math.inf, 0.0
            yield one


def _hops_between(window: Window, start: float, end: float) -> Iterator[Window]:
    """Those whose middle lies from `start` to before `end`, in seconds of the recording; they end where they do."""
    assert window.hops is not None
    seconds, count = window.hop_seconds, len(window.hops)
    frames = round(seconds * FRAMES_A_SECOND)
    for hop, chances in enumerate(window.hops):
        begin = window.start + hop * seconds
        if start <= begin + seconds / 2 < end:
            last = hop + 1 == count  # what is left of the window goes with it
            stop = window.end if last else min(begin + seconds, window.end)
            own = window.spectrogram[hop * frames : None if last else (hop + 1) * frames]
            yield window._replace(end=stop, spectrogram=own, probabilities=chances, hops=None)


def _windows(paths: Sequence[str], job: Job) -> Iterator[Window | Ended]:
    waiting: list[_Piece | Ended] = []
    for item in itertools.chain.from_iterable(_pieces(path, job) for path in paths):
        waiting.append(item)
        pieces = sum(isinstance(one, _Piece) for one in waiting)
        if pieces in (0, job.batch_size):
            yield from _answers(waiting, job)
            waiting.clear()
    yield from _answers(waiting, job)


def _pieces(path: str, job: Job) -> Iterator[_Piece | Ended]:
    extractor, rate = job.model.feature_extractor, job.model.feature_extractor.sampling_rate
    start, end = -job.windows.hop, 0
    try:
        for first, samples in job.windows.cut(stream_audio(path, rate)):
            if samples.size < extractor.min_samples:
                raise BadAudio(extractor.too_short(samples.size))
            yield _Piece(path, first, first - start, samples)
            start, end = first, first + samples.size
        yield Ended(path, end / rate, None if end else "it holds no samples")
    except BadAudio as error:
        yield Ended(path, end / rate, str(error))


def _answers(waiting: Sequence[_Piece | Ended], job: Job) -> Iterator[Window | Ended]:
    """`waiting` with windows in the place of pieces."""
    answers = iter(infer([one for one in waiting if isinstance(one, _Piece)], job))
    yield from (next(answers) if isinstance(one, _Piece) else one for one in waiting)


@torch.no_grad()
def infer(pieces: Sequence[_Piece], job: Job) -> list[Window]:
    if not pieces:
        return []
    model, rate = job.model, job.model.feature_extractor.sampling_rate
    features = model.feature_extractor.extract([piece.samples for piece in pieces])
    out = model(*features, layers=[] if job.layer is None else [job.layer], pool=job.pool)
    spectrograms, chances = features.input_values.cpu(), None
    if out.logits is not None and model.classifier is not None:
        chances = (out.logits.sigmoid() if model.classifier.loss == "bce" else out.logits.softmax(-1)).cpu()
    state = None if job.layer is None else (out.pooled[0].cpu(), out.hidden_states[0].transpose(1, 2).cpu())
    windows: list[Window] = []
    for row, piece in enumerate(pieces):
        start, end = piece.start / rate, (piece.start + piece.samples.size) / rate
        spectrogram = spectrograms[row, : frames_in(piece.samples.size, rate)]
        seconds = start + _column_seconds(model, len(spectrogram), int(out.columns[row]))
        pooled, tokens = (None, None) if state is None else (state[0][row], state[1][row, : len(seconds)])
        answer, hops, hop_seconds = None if chances is None else chances[row], None, 0.0
        if answer is not None and isinstance(model.network, TokenClassifier):
            count = model.network.hops(torch.tensor(len(spectrogram)), int(out.columns[row]))
            hops, hop_seconds = answer[: int(count)], model.network.hop_frames / FRAMES_A_SECOND
            answer = hops.mean(0)
        windows.append(
            Window(
                piece.path,
                start,
                end,
                piece.step / rate,
                spectrogram,
                answer,
                pooled,
                tokens,
                seconds.clamp(max=end),
                hops,
                hop_seconds,
            )
        )
    return windows


def _column_seconds(model: SsambaModel, frames: int, columns: int) -> Tensor:
    """Start and end of the columns of patches with at least one of a window's own frames, float64 (P, 2)."""
    patch, rate = model.network.encoder.patch_shape, model.feature_extractor.sampling_rate
    own = int(patch.own_columns(torch.tensor(frames), columns))
    hop = samples_for(2, rate) - samples_for(1, rate)
    starts = torch.arange(own, dtype=torch.float64) * patch.time_stride * hop
    return torch.stack([starts, starts + samples_for(patch.tshape, rate)], 1) / rate


def watched(paths: Sequence[str], job: Job, desc: str) -> Generator[Window | Ended]:
    """`run` with a bar over seconds of audio, from the files' headers, and each failure named on stderr."""
    lengths = [header_seconds(path) for path in paths]
    ends = dict(zip(paths, itertools.accumulate(lengths), strict=True))
    starts = {path: ends[path] - length for path, length in zip(paths, lengths, strict=True)}
    with progress_bar(round(sum(lengths)), "s", desc) as bar:
        for result in run(paths, job):
            bar.update(
                round(starts[result.path] + result.end if isinstance(result, Window) else ends[result.path]) - bar.n
            )
            if isinstance(result, Ended) and result.error is not None:
                print_above(f"ssamba: {result.path}: {result.error}", sys.stderr)
            yield result
