"""Run a classifier that `ssamba.export.torch_export` wrote: one file from waveforms to logits.

Needs torch and `ssamba.ops` alone, whose operators the file's graph calls; nothing that builds or trains a model.

Shapes: B batch, S samples of a clip, C classes.
"""

import os
import pickle
import warnings
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Annotated, Literal

import torch
from msgspec import Meta
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

import ssamba.ops  # noqa: F401 - registers ssamba::scan, ssamba::conv and ssamba::ssd
from ssamba.errors import UserError
from ssamba.files import parse_json

DESCRIPTION = "ssamba.json"


ClipProblem = Literal["single_label_classification", "multi_label_classification"]


@dataclass(frozen=True)
class Description:
    """The description in a program's file beside its graph, as JSON.

    labels: the names of the C classes. label: what they are in the data. problem_type: the logits' meaning,
    "single_label_classification" (softmax gives probabilities) or "multi_label_classification" (sigmoid does).
    sampling_rate: Hz. samples: S. least_samples: what a recording must have of its own. torch: the version that wrote
    it, which may be the only one to read it.
    """

    labels: tuple[str, ...]
    label: str
    problem_type: ClipProblem
    sampling_rate: Annotated[int, Meta(ge=1, le=768_000)]
    samples: Annotated[int, Meta(ge=1, le=2**31)]
    least_samples: Annotated[int, Meta(ge=1, le=2**31)]
    torch: str


@dataclass(frozen=True)
class Program(Description):
    """A loaded classifier: a function of waveforms with its `Description`. module: the graph, weights included."""

    module: nn.Module
    device: torch.device

    def __call__(self, waveforms: Tensor, lengths: Tensor | None = None) -> Tensor:
        """Classify clips.

        Args:
            waveforms: (B, S) float32 at `sampling_rate`, full scale 1, finite; what follows a shorter recording's own
                samples does not matter.
            lengths: int64 (B,), the samples of each that are its own; None: all S. A shorter recording is filled up
                as in training.

        Returns:
            Logits, float32 (B, C), on the program's device.

        Raises:
            ValueError: other shapes or dtypes, or a recording that is too short.
        """
        if waveforms.ndim != 2 or waveforms.shape[1] != self.samples or waveforms.dtype != torch.float32:
            actual = f"waveforms are {waveforms.dtype} {tuple(waveforms.shape)}"
            raise ValueError(f"{actual}; expected torch.float32 (B, {self.samples})")
        batch = waveforms.shape[0]
        if lengths is None:
            lengths = torch.full((batch,), self.samples)
        if lengths.shape != (batch,) or lengths.dtype != torch.int64:
            raise ValueError(f"lengths are {lengths.dtype} {tuple(lengths.shape)}; expected torch.int64 ({batch},)")
        if not ((lengths >= self.least_samples) & (lengths <= self.samples)).all():
            raise ValueError(f"lengths are {lengths.tolist()}; expected {self.least_samples} to {self.samples}")
        with torch.inference_mode():
            logits: Tensor = self.module(waveforms.to(self.device), lengths.to(self.device))
        return logits


def load_program(path: str | os.PathLike[str], device: str | torch.device = "cpu") -> Program:
    """Load what `ssamba.export.torch_export` wrote. The scan's backend is chosen here, for this machine and `device`.

    A program is code, and torch unpickles parts of what it is given: load only files that you trust.

    Raises:
        UserError: no such file, or one that holds no program.
    """
    description = _describe(path)
    with warnings.catch_warnings():
        # Its weights share memory with read-only bytes, and nothing writes to them.
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        try:
            program = torch.export.load(os.fspath(path))
        except (
            RuntimeError,
            ValueError,
            LookupError,
            TypeError,
            AttributeError,
            AssertionError,
            OSError,
            EOFError,
            pickle.UnpicklingError,
        ) as error:
            raise UserError(
                f"{path} cannot be loaded by torch {torch.__version__}; it was written by torch {description.torch}: "
                f"{str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}"
            ) from error
    where = torch.device(device)
    if where.type != "cpu":
        program = move_to_device_pass(program, where)
    return Program(**vars(description), module=program.module(), device=where)


def _describe(path: str | os.PathLike[str]) -> Description:
    expected = "a .pt2 of `ssamba export --format torch`"
    try:
        with zipfile.ZipFile(path) as archive:
            # Everything is in one folder, whose name is torch's choice.
            name = next(name for name in archive.namelist() if PurePosixPath(name).name == DESCRIPTION)
            # Members that unpack to more than the file has are a zip bomb: torch stores weights as they are.
            if sum(member.file_size for member in archive.infolist()) > os.path.getsize(path):
                raise zipfile.BadZipFile("it unpacks to more than it has")
            return parse_json(archive.read(name), Description, path, expected)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (
        zipfile.BadZipFile,
        zlib.error,
        StopIteration,
        ValueError,
        NotImplementedError,
        RuntimeError,
        EOFError,
    ) as error:
        raise UserError(f"{path} holds no program; expected {expected}") from error
