"""`ssamba shards info|verify|index` and `ssamba stats`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from ssamba.config import AUDIO_RANGES, AudioConfig, DataConfig, load_recipe
from ssamba.errors import UserError
from ssamba.printable import masked, printable
from ssamba.values import add_argument, new_place, number, path, source_text, whole_number

_MANY = 10**9  # more clips than there are
_LABEL = (
    "a label KEY and where other programs put it: FIELD is the extension of a member beside the audio (cls, txt), or a "
    "field of its JSON (label; within objects: original_data.class_label); default: KEY. Names, integers, true and "
    "false, and lists of them are read; the lines of a text file are names. Again for each further label"
)


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    shards = commands.add_parser("shards", help="Look at shards, check them, or make the index of others'.")
    actions = shards.add_subparsers(required=True, metavar="info|verify|index")
    for name, action in (("info", shards_info), ("verify", shards_verify), ("index", shards_index)):
        sub = actions.add_parser(name, help=action.__doc__, description=action.__doc__)
        if action is shards_index:
            folder = "of .tar files, those of one split, or its url, such as s3://BUCKET/FOLDER"
            add_argument(sub, "folder", new_place, metavar="FOLDER", help=folder)
            names = "what a label's names are, in the order of their numbers, one a line; again for each further label"
            add_argument(sub, "--labels", _label_file, action="append", default=[], metavar="KEY=FILE", help=names)
            add_argument(sub, "--label", _label_field, action="append", default=[], metavar="KEY[=FIELD]", help=_LABEL)
            bad = "give up if more of the samples have a problem (default: %(default)s)"
            add_argument(sub, "--max-bad-fraction", number, 0, 1, default=0.01, metavar="X", help=bad)
            sub.add_argument("--overwrite", action="store_true", help="replace an index, of whatever format")
        else:
            where = "a split's folder, a pattern of shards in one, or their url"
            add_argument(sub, "shards", source_text, nargs="+", metavar="SHARDS", help=where)
        if action is not shards_info:
            add_argument(sub, "--workers", whole_number, 1, 1024, metavar="N", help="processes; default: the cores")
        sub.set_defaults(call=action)
    sub = commands.add_parser("stats", help=stats.__doc__, description=stats.__doc__)
    either = "folders of splits or patterns of shards; or a recipe or run (and key=value), for its data.train"
    add_argument(sub, "sources", source_text, nargs="+", metavar="SHARDS|RECIPE|RUN", help=either)
    bins = "default: the recipe's, else 128"
    add_argument(sub, "--num-mel-bins", whole_number, *AUDIO_RANGES["num_mel_bins"], metavar="N", help=bins)
    add_argument(sub, "--limit", whole_number, 1, _MANY, metavar="CLIPS", help="read no more clips than this")
    sub.set_defaults(call=stats)


def shards_info(arguments: argparse.Namespace) -> None:
    """Say what shards hold, from their index."""
    from ssamba.data.shards.finding import find_shards

    shards = find_shards(arguments.shards)
    print(
        f"{len(shards.shards)} shards, {shards.samples} samples, {shards.seconds / 3600:.3f} h at "
        f"{shards.sampling_rate} Hz"
    )
    for key, names in shards.labels.items():
        some = f"{len(names)} labels: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        print(printable(f"{key}: {some if names else 'what is said'}"))
    for place, index in shards.indexes.items():
        if features := index.features:
            rate = f"{features.frame_rate:g} x {features.width} numbers a second"
            print(printable(masked(f"{place}: features of layer {features.layer} of {features.teacher}, {rate}")))
    print(f"fingerprint {shards.fingerprint}")


def shards_verify(arguments: argparse.Namespace) -> None:
    """Read shards in full and compare them with their index: checksums, every sample's audio and JSON."""
    from ssamba.data.prepare.verification import verify_shards
    from ssamba.data.shards.finding import find_shards
    from ssamba.data.shards.remote import ShardCache

    shards = find_shards(arguments.shards)
    cache = ShardCache(DataConfig().cache_bytes)
    problems = verify_shards(shards, local=cache.local, workers=_workers(arguments))
    if problems:
        raise UserError(f"{len(problems)} problems in {len(shards.shards)} shards:", *problems)
    print(f"{len(shards.shards)} shards, {shards.samples} samples: all as their index says")


def shards_index(arguments: argparse.Namespace) -> None:
    """Make the index of a folder of webdataset shards that another program or an older version wrote."""
    from ssamba.data.prepare.indexing import fields_report, index_folder

    labels: dict[str, tuple[str, ...]] = {}
    for key, file in arguments.labels:
        from ssamba.models.convert.transfer import read_label_names

        labels[key] = read_label_names(file)
    fields = dict(arguments.label)
    if len(fields) < len(arguments.label):
        raise UserError("--label is given twice for one KEY; expected each once")
    made = index_folder(
        arguments.folder,
        labels,
        fields=fields or None,
        workers=_workers(arguments),
        max_bad_fraction=arguments.max_bad_fraction,
        overwrite=arguments.overwrite,
    )
    index = made.index
    print(
        f"{printable(masked(str(arguments.folder)))}: {index.samples} samples in {len(index.shards)} shards, "
        f"{index.seconds / 3600:.3f} h at {index.sampling_rate} Hz, {len(index.skipped)} problems"
    )
    for key, names in index.labels.items():
        without = f"; {made.unlabelled[key]} samples have none" if key in made.unlabelled else ""
        print(f"{printable(key)}: {f'{len(names)} labels' if names else 'what is said'}{without}")
    if index.passed_over:
        print("passed over: " + printable(", ".join(f"{count} {kind}" for kind, count in index.passed_over.items())))
    if not index.labels and made.fields:
        again = (
            f"ssamba shards index {masked(str(arguments.folder))} --overwrite --label {min(made.fields, key=_likely)}"
        )
        print(f"no labels; what may be some: {fields_report(made.fields)}. To name one: {printable(again)}")


def stats(arguments: argparse.Namespace) -> None:
    """Measure the mean and standard deviation of the log-mel values of shards, for audio.mean and audio.std."""
    sources, bins, cache = arguments.sources, arguments.num_mel_bins, None
    if sources[0].endswith((".yaml", ".yml")) or (Path(sources[0]) / "recipe.yaml").is_file():
        recipe = load_recipe(sources[0], sources[1:])
        sources, bins, cache = recipe.data.train, bins or recipe.audio.num_mel_bins, recipe.data.cache
    from ssamba.build.shards import measure

    measured = measure(sources, bins or AudioConfig.num_mel_bins, arguments.limit, cache)
    print(f"audio.mean={measured.mean:.4f} audio.std={measured.std:.4f}")
    print(f"{measured.clips} clips, {measured.frames / 100:.1f} s in frames", file=sys.stderr)


def _likely(field: str) -> tuple[bool, bool]:
    """Sort key: names that labels usually have come first."""
    name = field.rpartition(".")[2].lower()
    return name not in ("cls", "label", "labels", "class", "class_label", "category", "tag", "tags"), name == "txt"


def _workers(arguments: argparse.Namespace) -> int:
    from ssamba.jobs import usable_cores

    return usable_cores() if arguments.workers is None else int(arguments.workers)


def _label_file(text: str) -> tuple[str, Path]:
    key, _, file = text.partition("=")
    if not key or not file:
        raise ValueError("expected KEY=FILE, such as label=classes.txt")
    return key, path(file)


def _label_field(text: str) -> tuple[str, str]:
    key, equals, field = text.partition("=")
    if not key or (equals and not field):
        raise ValueError("expected KEY or KEY=FIELD, such as animal=cls")
    return (key, field) if equals else (key.removeprefix("."), key)
