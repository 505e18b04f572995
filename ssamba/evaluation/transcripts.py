"""Transcripts from a model's characters: decoding (CTC, Graves et al. 2006) and error rates.

Shapes: B clips, N hops, C classes, of which 0 is the blank; R resamples.
"""

import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.text import char_error_rate, word_error_rate

from ssamba.audio import LogMel
from ssamba.data.labels import NO_LABEL
from ssamba.data.stream import ClipStream
from ssamba.evaluation.classification import answers
from ssamba.evaluation.intervals import RESAMPLES, Interval, drawn, interval
from ssamba.models.heads import TokenClassifier

BEAM = 50
"""Hypotheses that a beam search keeps."""
HAS_BEAM_SEARCH = importlib.util.find_spec("flashlight") is not None
"""Whether the package that it decodes with is installed."""


def greedy(logits: Tensor, hops: Tensor) -> list[list[int]]:
    """The likeliest class of each hop, repetitions joined and blanks left out.

    Args:
        logits: (B, N, C). hops: int64 (B,), how many of the N are a clip's own.
    """
    decoded = []
    for path, own in zip(logits.argmax(2), hops.tolist(), strict=True):
        joined = path[:own].unique_consecutive()
        decoded.append(joined[joined != 0].tolist())
    return decoded


def beam_search(logits: Tensor, hops: Tensor, names: Sequence[str]) -> list[list[int]]:
    """The likeliest characters that a beam search finds, by torchaudio's decoder, without a language model; it needs
    `HAS_BEAM_SEARCH`.

    Args:
        logits, hops: as of `greedy`. names: of the classes, all different.
    """
    from torchaudio.models.decoder import ctc_decoder  # imports flashlight-text

    # The probabilities of a text's paths are added up; no threshold leaves one out.
    decoder = ctc_decoder(
        lexicon=None, tokens=list(names), blank_token=names[0], sil_token=names[0], beam_size=BEAM, log_add=True
    )
    best = decoder(logits.float().log_softmax(2).cpu().contiguous(), hops.cpu())
    return [[index for index in hypotheses[0].tokens.tolist() if index] for hypotheses in best]


def spell(indices: Sequence[int], names: Sequence[str]) -> str:
    """The characters of class indices; names: of all classes."""
    return "".join(names[index] for index in indices)


class Texts(NamedTuple):
    """Keys of clips, their true texts, and those of a model, by greedy decoding and by a beam search; nothing of the
    latter without `HAS_BEAM_SEARCH`."""

    keys: list[str]
    true: list[str]
    greedy: list[str]
    beam: list[str]


def transcribe(
    model: TokenClassifier, log_mel: LogMel, stream: ClipStream, total: int, names: Sequence[str], device: torch.device
) -> Texts:
    """Run a model over a stream that ends; a progress bar over its `total` clips."""
    texts = Texts([], [], [], [])
    for batch, logits, frames in answers(model, log_mel, stream, total, device):
        hops = model.hops(frames, model.encoder.grid[1])
        texts.keys.extend(batch["keys"])
        texts.true.extend(spell(row[row != NO_LABEL].tolist(), names) for row in batch["labels"])
        texts.greedy.extend(spell(path, names) for path in greedy(logits, hops))
        if HAS_BEAM_SEARCH:
            texts.beam.extend(spell(path, names) for path in beam_search(logits, hops, names))
    return texts


class Errors(NamedTuple):
    """Of each clip, float64 (B,): edits (insertions, deletions, substitutions) from the true text to the predicted one,
    and the length of the true one, in words and in characters."""

    word_edits: Tensor
    words: Tensor
    character_edits: Tensor
    characters: Tensor

    def rates(self) -> dict[str, float]:
        """WER and CER, edits of all clips by the length of all; they may be above 1."""
        return {name: float(edits.sum() / whole.sum()) for name, (edits, whole) in self._pairs().items()}

    def intervals(self, seed: int = 0) -> dict[str, Interval]:
        """The rates with bootstrap intervals over the clips."""
        times = drawn(RESAMPLES, len(self.words), torch.Generator().manual_seed(seed)).double()
        values = self.rates()
        return {
            name: interval(values[name], (times @ edits) / (times @ whole))
            for name, (edits, whole) in self._pairs().items()
        }

    def _pairs(self) -> Mapping[str, tuple[Tensor, Tensor]]:
        return {"WER": (self.word_edits, self.words), "CER": (self.character_edits, self.characters)}


def count_errors(predicted: Sequence[str], true: Sequence[str]) -> Errors:
    """By torchmetrics' rates of each clip. Words are what stands between spaces.

    Raises:
        ValueError: a clip with an empty true text, for which there is no rate.
    """
    if not all(text.strip() for text in true):
        raise ValueError("a true text is empty, and there is no rate of its errors")
    words = torch.tensor([len(text.split()) for text in true], dtype=torch.float64)
    letters = torch.tensor([len(text) for text in true], dtype=torch.float64)
    return Errors(
        (_each(word_error_rate, predicted, true) * words).round(),
        words,
        (_each(char_error_rate, predicted, true) * letters).round(),
        letters,
    )


def _each(rate: Callable[[str, str], Tensor], predicted: Sequence[str], true: Sequence[str]) -> Tensor:
    return torch.tensor(
        [float(rate(one, other)) for one, other in zip(predicted, true, strict=True)], dtype=torch.float64
    )
