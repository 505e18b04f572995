"""A model's hidden states as sequences in time: what the benchmarks' interfaces share.

Shapes: B batch, S samples, T frames, M mel bins, F and P grid sizes in frequency and time, N columns of a timeline,
D width of a token.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ssamba.audio import frames_in
from ssamba.errors import UserError
from ssamba.hub import SsambaModel

_TOKENS = 8192  # of one pass through the encoder: bounds its memory, whatever the clips' number and length


class Timeline(nn.Module):
    """A model's hidden states every `hop_ms`, whatever the length of its patches and of the clips.

    Column j stands for the samples from j * hop_samples on. It is the patches whose middle is nearest to the middle of
    these samples, their frequency rows side by side: F * D numbers, D where a patch has all mel bins. The rows' mean
    would be as small for every model, but a row is a band of frequencies, and the differences between bands are most of
    what a linear classifier uses.

    A patch can last longer than the hop (16 frames are 160 ms). The spectrogram is then encoded several times, each
    time shifted by a hop, and the columns are interleaved: every pass has the stride, positions and number of tokens
    that the encoder was trained on. An encoder of a smaller time stride, its positions interpolated, would be one pass
    over as many tokens; a linear classifier finds as much in it, but it costs twice as much (attention more, the longer
    the clip), and a frame of the spectrogram would be in several tokens of one sequence, which no training had.

    A clip has its own length: nothing is repeated, and it does not depend on the others of its batch. Where a patch
    reaches over an end of the clip, the clip's first or last frame is repeated; silence there would be an onset that is
    not in the sound. A clip longer than those of the training is encoded in windows of that length, spread evenly, each
    column in the window in whose middle it lies, and a few windows at a time: memory grows by the waveform, the
    spectrogram and the result alone, unless gradients are wanted.

    Differentiable with respect to the weights and the waveforms.

    Args:
        model: any.
        max_hop_ms: the longest hop allowed; the model's own time stride is divided by as little as that takes.

    Raises:
        UserError: max_hop_ms is shorter than the hop of the spectrogram's frames.
    """

    def __init__(self, model: SsambaModel, max_hop_ms: float = 50.0) -> None:
        super().__init__()
        self.model = model
        patch, log_mel = model.network.encoder.patch_shape, model.feature_extractor.log_mel
        frame_ms = 1000 * log_mel.hop / self.sampling_rate
        hops = [n for n in range(1, patch.time_stride + 1) if patch.time_stride % n == 0 and n * frame_ms <= max_hop_ms]
        if not hops:
            raise UserError(f"max_hop_ms is {max_hop_ms:g}; the frames of this model are {frame_ms:g} ms apart")
        self._hop = hops[-1]
        self._passes = patch.time_stride // self._hop
        self.hop_samples = self._hop * log_mel.hop
        # From the start of a patch to its middle, and how many frames earlier than the clip the first patch begins.
        middle = ((patch.tshape - 1) * log_mel.hop + log_mel.frame) / 2
        self._lead = max(0, int((middle - self.hop_samples / 2) // log_mel.hop))
        self._first = middle - self._lead * log_mel.hop

    @classmethod
    def from_pretrained(cls, path: str | Path, max_hop_ms: float = 50.0) -> "Timeline":
        """The timeline of a model folder, a run folder, or a model of the Hub; see `SsambaModel.from_pretrained`."""
        return cls(SsambaModel.from_pretrained(path), max_hop_ms)

    @property
    def sampling_rate(self) -> int:
        """Hz of the waveforms."""
        return self.model.audio.sampling_rate

    @property
    def hop_ms(self) -> float:
        """Milliseconds from one column to the next."""
        return 1000 * self.hop_samples / self.sampling_rate

    @property
    def size(self) -> int:
        """F * D, the numbers of a column."""
        encoder = self.model.network.encoder
        return encoder.grid[0] * encoder.hidden_size

    def columns(self, samples: int) -> int:
        """N of a clip: one column for each hop that begins in it."""
        return math.ceil(samples / self.hop_samples)

    def middles_ms(self, columns: int) -> Tensor:
        """Where the middle of each column's patches lies in the clip: float32 (N,), milliseconds."""
        samples = self._first + self.hop_samples * torch.arange(columns, dtype=torch.float64)
        return (samples * (1000 / self.sampling_rate)).float()

    def forward(self, waveforms: Sequence[Tensor], layers: Sequence[int] = (-1,)) -> list[Tensor]:
        """Encode clips of any lengths.

        Args:
            waveforms: B times (S,), float of full scale 1, at `sampling_rate`, all on the model's device.
            layers: as `SsambaModel.num_hidden_states` numbers them.

        Returns:
            For each layer float32 (B, N, F * D) with N of the longest clip, zeros after the others' `columns`.

        Raises:
            UserError: no waveform, one that is not (S,) with samples in it, or a layer that there is not.
        """
        if not waveforms:
            raise UserError("there is no waveform; expected at least one")
        # Those of equal length go through the encoder together: number of columns -> windows, each a clip's number and
        # its first frame. And for each clip the rows of what comes out that are its columns.
        windows: dict[int, list[tuple[int, int]]] = {}
        shares = []
        for clip, waveform in enumerate(waveforms):
            if waveform.ndim != 1 or not len(waveform):
                raise UserError(f"waveform {clip} has shape {tuple(waveform.shape)}; expected one or more samples (S,)")
            columns = torch.arange(self.columns(len(waveform)))
            place, shift = columns // self._passes, columns % self._passes
            places = int(place[-1]) + 1
            size = min(places, self.model.network.encoder.grid[1])
            starts, owner = spread(places, size)
            group = windows.setdefault(size, [])
            window = len(group) + owner[place] * self._passes + shift
            shares.append((size, window * size + place - starts[owner[place]]))
            for start in starts.tolist():
                group += [(clip, (start * self._passes + n) * self._hop) for n in range(self._passes)]
        spectrograms = self._spectrograms(waveforms)
        encoded = {size: self._encode(spectrograms, group, size, layers) for size, group in windows.items()}
        return [
            pad_sequence([encoded[size][layer][rows.to(self.model.device)] for size, rows in shares], batch_first=True)
            for layer in range(len(layers))
        ]

    def _spectrograms(self, waveforms: Sequence[Tensor]) -> list[Tensor]:
        """Normalised log-mel (T, M) of each clip; where there is less than one frame, of one that ends in zeros."""
        log_mel = self.model.feature_extractor.log_mel
        batch = pad_sequence(list(waveforms), batch_first=True)
        batch = F.pad(batch, (0, max(0, log_mel.frame - batch.shape[1])))
        samples = [max(len(one), log_mel.frame) for one in waveforms]
        values = log_mel(batch, torch.tensor(samples, device=batch.device))
        return [one[: frames_in(n, self.sampling_rate)] for one, n in zip(values, samples, strict=True)]

    def _encode(
        self, spectrograms: Sequence[Tensor], windows: Sequence[tuple[int, int]], size: int, layers: Sequence[int]
    ) -> list[Tensor]:
        """Windows of `size` columns -> for each layer (windows * size, F * D)."""
        encoder = self.model.network.encoder
        patch = encoder.patch_shape
        frames = torch.arange((size - 1) * patch.time_stride + patch.tshape, device=self.model.device) - self._lead
        at_once = max(1, _TOKENS // (encoder.grid[0] * size))
        parts = []
        for first in range(0, len(windows), at_once):
            batch = torch.stack(
                [
                    spectrograms[clip][(begin + frames).clamp(0, len(spectrograms[clip]) - 1)]
                    for clip, begin in windows[first : first + at_once]
                ]
            )
            hidden = self.model(batch, layers=layers).hidden_states
            parts.append([one.transpose(1, 2).flatten(2).flatten(0, 1) for one in hidden])
        return [torch.cat(part) for part in zip(*parts, strict=True)]


def spread(places: int, size: int) -> tuple[Tensor, Tensor]:
    """As few windows of `size` as cover `places` (at least `size`), spread evenly.

    Returns:
        starts: int64, where each window begins.
        owner: int64 (places,), the window that each place lies in, in the middle of which rather than at its end.
    """
    count = math.ceil(places / size)
    starts = torch.linspace(0, places - size, count, dtype=torch.float64).round().long()
    middles = (starts[1:] + starts[:-1] + size) // 2
    return starts, torch.bucketize(torch.arange(places), middles, right=True)
