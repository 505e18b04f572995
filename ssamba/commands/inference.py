"""`ssamba predict` and `ssamba embed`."""

import argparse
import os
import sys
from typing import Any

from ssamba.commands.protocols import add_layer, add_pool
from ssamba.config import DataConfig
from ssamba.errors import UserError
from ssamba.printable import masked, printable
from ssamba.values import TRANSFORMERS, add_argument, new_path, new_place, number, path_text, pattern_text, whole_number

_SECONDS = (0.001, 1e6)  # of a window and a hop
_MANY = 10**9  # more labels than there are
_WINDOWS = """
windows:
  A recording no longer than a window is one window. A longer one has windows of --window seconds every --hop seconds
  and, if the last does not end with it, one more that does: every sample is heard. In the mean over a recording each
  window counts for the seconds from the start of the one before it, so the one that was added counts for what it
  adds. To the model each window is a recording of its own, filled up to its clip where training did that.

  A model that answers hop by hop (task.hop_ms, task.loss=ctc) has windows every half of one, unless --hop says
  otherwise; each hop is told by the window in whose middle it lies, and is what a window is above.

exit status:
  0; 1 if a recording failed, which is named on stderr while the others go on; 2 for a mistake, before any work."""
_JSON_LINES = """JSON lines:
  {"path", "seconds", "windows", "labels": [{"label", "probability"}, ...]}, or {"path", "error"}; of a model of what is
  said {"path", "seconds", "text"}.
"""
_ROWS = """rows:
  A vector for each recording, the mean over its windows; with --window or --hop a vector for each window. --pooling
  makes it of D numbers (mean, class), F x D (rows: the mean over time of each row of patches), 2 x F x D (statistics
  and attentive: means and standard deviations) or N x F x D (segments: the means of N stretches of time); rows are in
  the order from low to high mel bins. With --tokens the vectors (F, D) of each column of patches of each window:
  columns in the order of time. Columns without sound, where a short recording was filled up, are left out of all of
  these but an imported classifier's own pool. Windows that overlap each have theirs.
  .npz: names and, for each row, recording (its place in names), window (its number; not for whole recordings), start
  and end in seconds, embeddings (float32). .parquet: name, window, start, end, embedding.

shards:
  With --into-shards FILES are shards, each argument those of one split, and MODEL is a teacher of other models: a model
  of ours, or hf:FOLDER or hf:NAME, an audio encoder of transformers (extra `transformers`). New shards are made of each
  split, OUT/<split>, in which every sample has a further member, teacher.npy: float16 (frames, width), each frame of
  that layer standardised over its dimensions; of ours a frame is a column of patches. index.json says when frames are.
  Pretraining learns from them with objective.parts.distillation=1 objective.distillation.teacher=shards. A call that
  was interrupted goes on, given again, from the shards that it has finished.
"""


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    for command, epilog in ((predict, _JSON_LINES), (embed, _ROWS)):
        sub = commands.add_parser(
            command.__name__,
            help=command.__doc__,
            description=command.__doc__,
            epilog=epilog + _WINDOWS,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_argument(
            sub, "model", path_text, metavar="MODEL", help="a run folder, a model folder, or a model of the Hub"
        )
        add_argument(
            sub,
            "files",
            pattern_text,
            nargs="+",
            metavar="FILES",
            help="recordings, folders of them, patterns ('**' too)",
        )
        add_argument(sub, "--window", number, *_SECONDS, metavar="SECONDS", help="default: the model's clip")
        add_argument(
            sub, "--hop", number, *_SECONDS, metavar="SECONDS", help="at most the window, which is the default"
        )
        windows = "windows; default: %(default)s"
        add_argument(sub, "--batch-size", whole_number, 1, 2**16, default=8, metavar="N", help=windows)
        sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: %(default)s")
        sub.add_argument("--overwrite", action="store_true", help="replace what is there")
        sub.set_defaults(call=command)
        if command is embed:
            into = sub.add_mutually_exclusive_group(required=True)
            add_argument(into, "--out", new_path, metavar="FILE", help="x.npz, or x.parquet (pyarrow)")
            shards = "FILES are shards, of which new ones are made; see below"
            add_argument(into, "--into-shards", new_place, metavar="OUT", help=shards)
            add_layer(sub)
            add_pool(sub)
            sub.add_argument("--tokens", action="store_true", help="every patch's vector")
            continue
        sub.add_argument("--format", default="table", choices=("table", "jsonl"), help="default: %(default)s")
        top = "labels a recording; default: %(default)s"
        add_argument(sub, "--top", whole_number, 1, _MANY, default=3, metavar="K", help=top)
        add_argument(sub, "--out", new_path, metavar="FILE", help="write there instead of to stdout")
        both = "a CSV (a line a window, or a hop: all classes; or a word) and a picture for each recording"
        add_argument(sub, "--timeline", new_path, metavar="FOLDER", help=both)


def predict(arguments: argparse.Namespace) -> int:
    """Name what is heard in recordings, by a fine-tuned model: files of any length and format, folders, patterns."""
    from ssamba.inference.predict import predict_recordings

    failed = predict_recordings(
        arguments.model,
        arguments.files,
        form=arguments.format,
        top=arguments.top,
        out=arguments.out,
        batch_size=arguments.batch_size,
        device=arguments.device,
        window_seconds=arguments.window,
        hop_seconds=arguments.hop,
        timeline=arguments.timeline,
        overwrite=arguments.overwrite,
    )
    if arguments.out:
        print(f"written to {printable(str(arguments.out))}", file=sys.stderr)
    return _failures(failed)


def embed(arguments: argparse.Namespace) -> int:
    """Write the vectors that a layer of a model has for recordings, with or without a classifier on it."""
    if arguments.into_shards is not None:
        _into_shards(arguments)
        return 0
    if arguments.model.startswith(TRANSFORMERS):
        raise UserError(
            f"{arguments.model} is a teacher's name, and --out takes a model of ours; expected --into-shards"
        )
    from ssamba.inference.embed import embed_recordings

    failed, summary = embed_recordings(
        arguments.model,
        arguments.files,
        arguments.out,
        layer=arguments.layer,
        tokens=arguments.tokens,
        batch_size=arguments.batch_size,
        device=arguments.device,
        window_seconds=arguments.window,
        hop_seconds=arguments.hop,
        overwrite=arguments.overwrite,
        pooling=arguments.pooling,
        segments=arguments.segments,
    )
    print(printable(summary))
    return _failures(failed)


def _into_shards(arguments: argparse.Namespace) -> None:
    others = {"--window": "window", "--hop": "hop", "--tokens": "tokens", "--pooling": "pooling"}
    if excluded := [
        option for option, name in {**others, "--segments": "segments"}.items() if getattr(arguments, name)
    ]:
        raise UserError(
            f"{', '.join(excluded)}: --into-shards writes what a teacher says of whole recordings; leave it out"
        )
    from ssamba.data.prepare.features import write_features
    from ssamba.data.shards.features import MEMBER, FeatureInfo
    from ssamba.data.shards.remote import ShardCache
    from ssamba.inference.windows import device_named
    from ssamba.teachers import load_teacher

    teacher = load_teacher(arguments.model, arguments.layer)
    teacher.to(device_named(arguments.device))
    times = teacher.times
    info = FeatureInfo(
        printable(arguments.model), teacher.fingerprint, arguments.layer, teacher.width, times.first, times.rate
    )
    made = write_features(
        arguments.files,
        arguments.into_shards,
        lambda waveforms, rate: [frames.half().cpu().numpy() for frames in teacher.features(waveforms, rate)],
        info,
        batch_size=arguments.batch_size,
        cache=ShardCache(DataConfig().cache_bytes),
        overwrite=arguments.overwrite,
    )
    for split, index in made.items():
        out = printable(masked(os.path.join(arguments.into_shards, split)))
        print(f"{out}: {index.samples} recordings, {MEMBER} of {times.rate:g} x {teacher.width} numbers a second")


def _failures(failed: int) -> int:
    if failed:
        print(f"ssamba: {failed} recordings failed", file=sys.stderr)
    return 1 if failed else 0
