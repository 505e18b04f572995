"""The command line that data_prep's scripts share. Imports no torch."""

import argparse
import contextlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ssamba.data.prepare.elsewhere import new_url
from ssamba.data.prepare.fetch import Archive, fetch_archives
from ssamba.data.prepare.recordings import DataSet
from ssamba.data.prepare.unfinished import Folder
from ssamba.data.prepare.writer import (
    MAX_BAD_FRACTION,
    MAX_SECONDS,
    MIN_SECONDS,
    RATES,
    SAMPLES_PER_SHARD,
    check_settings,
    place_of,
    write_shards,
)
from ssamba.errors import UserError
from ssamba.jobs import cluster, usable_cores
from ssamba.printable import log_to_stderr, masked, printable
from ssamba.shell import run_program
from ssamba.values import add_argument, is_remote, new_path, number, path, plain_text, whole_number

MOST_SECONDS = 1e6
SEEDS = (0, 2**32 - 1)
_MOST_WORKERS = 1024


def run_script(
    parser: argparse.ArgumentParser,
    find: Callable[[argparse.Namespace], DataSet],
    arguments: Sequence[str] | None = None,
    archives: Callable[[argparse.Namespace], Sequence[Archive]] | None = None,
    after: Callable[[argparse.Namespace], None] | None = None,
    read_source: Callable[[str], Path | str] | None = None,
) -> int:
    """A script of data_prep: the arguments that all of them have, the writing, and the summary at the end.

    Args:
        parser: with the script's own arguments, each by a reader of `ssamba.values`.
        find: from the arguments, `source` (a Path that exists, or what read_source gives) and `seed` among them, to
            the recordings.
        arguments: those of the command line by default.
        archives: from the arguments to the data set's public archives, for a script that has the option --fetch.
        after: what the script writes besides, once the shards are there.
        read_source: what SOURCE is where it can be other than a path: a reader that gives a Path, or the text of a
            place that is not on this machine, which is `find`'s to look at.

    Returns:
        The exit status: 0, or after a message on stderr 2 for an error and 130 for an interrupt.
    """
    _add_arguments(parser, read_source or whole_path, fetches=archives is not None)

    def work() -> int:
        options = parser.parse_args(arguments)
        log_to_stderr("%(message)s", logging.WARNING)
        logging.getLogger("ssamba").setLevel(logging.INFO)
        workers = usable_cores() if options.workers is None else options.workers
        check_settings(
            options.sampling_rate,
            options.samples_per_shard,
            workers,
            MIN_SECONDS,
            options.max_seconds,
            options.max_bad_fraction,
        )
        place = place_of(options.out)
        place.check(options.overwrite)  # now, and not only after hours
        if archives and options.fetch:
            fetch_archives(archives(options), options.source)
        if isinstance(options.source, Path) and not options.source.exists():
            raise UserError(
                f"SOURCE is {options.source}, which does not exist; expected the recordings of the data set"
            )
        try:
            data_set = find(options)
            with cluster(options.cluster) if options.cluster else contextlib.nullcontext() as executor:
                indexes = write_shards(
                    data_set.splits,
                    options.out,
                    data_set.name,
                    data_set.labels,
                    sampling_rate=options.sampling_rate,
                    samples_per_shard=options.samples_per_shard,
                    seed=options.seed,
                    workers=workers,
                    executor=executor,
                    max_seconds=options.max_seconds,
                    max_bad_fraction=options.max_bad_fraction,
                    passed_over=data_set.passed_over,
                    overwrite=options.overwrite,
                )
        except KeyboardInterrupt:
            print(printable(f"interrupted. {place.how_to_go_on()}"), file=sys.stderr)
            return 130
        if after:
            after(options)
        for split, index in indexes.items():
            out = printable(masked(os.path.join(options.out, split)))
            print(
                f"{out}: {index.samples} recordings, {index.seconds / 3600:.2f} h, "
                f"{len(index.shards)} shards, {len(index.skipped)} skipped"
                + (f", {index.above_full_scale} above full scale" if index.above_full_scale else "")
            )
        if data_set.passed_over:
            print(printable(f"passed over: {data_set.passed_over}"))
        return 0

    return run_program(work)


def _add_arguments(parser: argparse.ArgumentParser, read_source: Callable[[str], Path | str], fetches: bool) -> None:
    """Those that all scripts have."""
    add_argument(parser, "source", read_source, metavar="SOURCE", help="where the recordings are")
    out = "folder to make, or its url, such as s3://BUCKET/FOLDER; each split is a folder of shards in it"
    add_argument(parser, "out", _new_place, metavar="OUT", help=out)
    by = parser.add_mutually_exclusive_group()
    workers = f"processes (default: {usable_cores()}, the cores)"
    add_argument(by, "--workers", whole_number, 1, _MOST_WORKERS, metavar="N", help=workers)
    address = (
        "of a Dask scheduler, such as tcp://host:8786: its workers do the work, and find SOURCE and OUT under the same "
        "paths as this machine (an OUT that is a url, by credentials of their own)"
    )
    add_argument(by, "--cluster", plain_text, metavar="ADDRESS", help=address)
    for option, read, low, high, default, shape, what in (
        ("--samples-per-shard", whole_number, 1, 10**9, SAMPLES_PER_SHARD, "N", "recordings in a shard, at most"),
        ("--seed", whole_number, *SEEDS, 0, "N", "of every choice left to chance"),
        ("--sampling-rate", whole_number, *RATES, 16000, "HZ", "Hz of what is written"),
        ("--max-seconds", number, MIN_SECONDS, MOST_SECONDS, MAX_SECONDS, "SECONDS", "longer recordings are skipped"),
        ("--max-bad-fraction", number, 0, 1, MAX_BAD_FRACTION, "X", "give up if more of the recordings are unusable"),
    ):
        what += " (default: %(default)s)"
        add_argument(parser, option, read, low, high, default=default, metavar=shape, help=what)
    overwrite = "replace OUT if it holds shards, discard what another call left unfinished"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    if fetches:
        get = "first download and unpack into SOURCE what of the data set is not there"
        parser.add_argument("--fetch", action="store_true", help=get)


def whole_path(text: str) -> Path:
    """A path as SOURCE is one."""
    # Workers on other machines have another working directory.
    return path(text).absolute()


def _new_place(text: str) -> Path | str:
    """A place for a folder, and for its partial one beside it; or the url of one."""
    if is_remote(text):
        return new_url(plain_text(text))
    out = path(text)
    whole = Path(os.path.realpath(out))
    if not whole.name:
        raise ValueError("expected a folder to make")
    new_path(str(Folder(whole).partial))
    return out
