"""`ssamba embed`: a layer's vectors for each recording, window or column of patches, as .npz or Parquet.

Shapes: N rows, F grid size in frequency, D width.
"""

import math
import tempfile
import zipfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.files import check_out, writing_to, written_beside
from ssamba.folders import find_recordings
from ssamba.inference.windows import Job, TimeMean, Window, load, watched

BLOCK_BYTES = 1 << 24  # of rows that are in memory when they are written out


def embed_recordings(
    model: str,
    places: Sequence[str],
    out: Path,
    *,
    layer: int,
    tokens: bool,
    batch_size: int,
    device: str,
    window_seconds: float | None,
    hop_seconds: float | None,
    overwrite: bool,
    pooling: str | None = None,
    segments: int | None = None,
) -> tuple[int, str]:
    """Write a layer's vectors for recordings.

    A row is a column of patches with `tokens`, (F, D); else a vector, as `SsambaModel.pool` makes it: of a window where
    a window or a hop is asked for, else of a recording, the mean of its windows' vectors as `predict` takes it of their
    probabilities.

    Returns:
        How many recordings failed, each named on stderr, and what was written, in words.

    Raises:
        UserError: whatever is wrong with what was asked for, before any recording is read.
    """
    if out.suffix not in (".npz", ".parquet"):
        raise UserError(f"{out} ends in {out.suffix or 'nothing'}; expected .npz or .parquet")
    if tokens and pooling is not None:
        raise UserError(f"--tokens writes the vector of every patch, and --pooling {pooling} one of them all; give one")
    check_out(out, overwrite)
    if out.suffix == ".parquet":
        _parquet()
    paths = find_recordings(places)
    job = Job.of(load(model, device), window_seconds, hop_seconds, layer, batch_size, pooling, segments)
    whole = not tokens and window_seconds is None and hop_seconds is None
    failed, index = 0, 0
    mean = TimeMean()
    # Closed here, so that its bar stands above the message of whatever ends this.
    with (
        writing_to(out),
        tempfile.TemporaryFile(dir=out.parent) as file,
        closing(watched(paths, job, "embed")) as results,
    ):
        rows = Rows(file)
        for one in results:
            if isinstance(one, Window):
                assert one.tokens is not None and one.pooled is not None
                if tokens:
                    rows.add(index, one.column_seconds, one.tokens)
                elif whole:
                    mean.add(one, one.pooled)
                else:
                    rows.add(index, torch.tensor([[one.start, one.end]], dtype=torch.float64), one.pooled[None])
                index += 1
            else:
                if whole and one.error is None:
                    rows.add(0, torch.tensor([[0.0, one.seconds]], dtype=torch.float64), mean.value().float()[None])
                rows.end(one.path, keep=one.error is None)
                failed, index = failed + (one.error is not None), 0
                mean = TimeMean()
        if not rows.names:
            return failed, "nothing written"
        if whole:
            del rows.columns["window"]
        with written_beside(out) as beside:
            (_write_npz if out.suffix == ".npz" else _write_parquet)(beside, rows)
    shape = " x ".join(map(str, rows.shape))
    return failed, f"written to {out}: {len(rows.names)} recordings, {rows.kept} rows of {shape}"


class Rows:
    """Rows of vectors, kept in a file as long as it is not known which will stay: those of a recording that fails do
    not. Memory holds the names of the recordings and, for each row, the place of its recording in them, the number of
    its window, start and end in seconds."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.names: list[str] = []
        self.kept = 0
        self.columns: dict[str, array[Any]] = {
            "recording": array("q"),
            "window": array("q"),
            "start": array("d"),
            "end": array("d"),
        }
        self.shape: tuple[int, ...] = ()

    def add(self, window: int, seconds: Tensor, vectors: Tensor) -> None:
        """Rows of one window: seconds float64 (n, 2), vectors float32 (n, *shape)."""
        self.shape = tuple(vectors.shape[1:])
        self.file.write(vectors.contiguous().numpy().astype("<f4", copy=False).tobytes())
        starts, ends = seconds.T.tolist()
        for name, values in (
            ("recording", [len(self.names)] * len(starts)),
            ("window", [window] * len(starts)),
            ("start", starts),
            ("end", ends),
        ):
            self.columns[name].extend(values)

    def end(self, path: str, keep: bool) -> None:
        """A recording has come to its end."""
        if keep:
            self.names.append(path)
            self.kept = len(self.columns["start"])
            return
        self.file.truncate(self.kept * self._row_bytes)
        self.file.seek(0, 2)
        for values in self.columns.values():
            del values[self.kept :]

    @property
    def _row_bytes(self) -> int:
        return 4 * math.prod(self.shape)

    def blocks(self) -> Iterator[npt.NDArray[np.float32]]:
        """All vectors in turn, float32 (n, *shape)."""
        self.file.seek(0)
        size = max(1, BLOCK_BYTES // self._row_bytes) * self._row_bytes
        while block := self.file.read(size):
            yield np.frombuffer(block, "<f4").reshape(-1, *self.shape)


def _write_npz(path: Path, rows: Rows) -> None:
    """names str (R,), recording (its place in names) and window int64 (N,), start and end in seconds float64 (N,),
    embeddings float32 (N, *shape): what np.savez writes, without all of it in memory."""
    with zipfile.ZipFile(path, "w") as archive:
        columns = {"names": np.array(rows.names)} | {name: np.array(values) for name, values in rows.columns.items()}
        for name, values in columns.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, values, allow_pickle=False)
        header = {"descr": "<f4", "fortran_order": False, "shape": (rows.kept, *rows.shape)}
        with archive.open("embeddings.npy", "w", force_zip64=True) as member:
            np.lib.format.write_array_header_1_0(member, header)
            for block in rows.blocks():
                member.write(block.tobytes())


def _write_parquet(path: Path, rows: Rows) -> None:
    """name string, window int64, start and end double, embedding: lists of D floats, of F such lists for tokens."""
    pa, parquet = _parquet()
    kind = pa.float32()
    for size in reversed(rows.shape):
        kind = pa.list_(kind, size)
    others = [name for name in rows.columns if name != "recording"]
    fields = [("name", pa.string()), *((name, pa.int64() if name == "window" else pa.float64()) for name in others)]
    with parquet.ParquetWriter(path, pa.schema([*fields, ("embedding", kind)])) as writer:
        done = 0
        for block in rows.blocks():
            part = slice(done, done + len(block))
            vectors = pa.array(block.ravel())
            for size in reversed(rows.shape):
                vectors = pa.FixedSizeListArray.from_arrays(vectors, size)
            names = [rows.names[place] for place in rows.columns["recording"][part]]
            values = [pa.array(names), *(pa.array(np.array(rows.columns[name][part])) for name in others)]
            writer.write_table(pa.Table.from_arrays([*values, vectors], schema=writer.schema))
            done += len(block)


def _parquet() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise UserError("a .parquet needs pyarrow, which is not installed: pip install 'ssamba[parquet]'") from error
    return pyarrow, pyarrow.parquet
