"""`ssamba probe` and `ssamba verify`."""

import argparse
from pathlib import Path
from typing import Any

from ssamba.config import MOST_SEGMENTS
from ssamba.errors import UserError
from ssamba.files import check_place
from ssamba.parts import names, own_names
from ssamba.printable import printable
from ssamba.values import add_argument, new_path, number, path, path_text, plain_text, source_text, whole_number

_MANY = 10**9
_ALL_LAYERS = "all"
_PROTOCOLS = ("linear", "weighted", "knn")

EPILOG = """
protocols:
  linear    logistic regression on the standardised vectors of a layer, its L2 penalty chosen
  weighted  the same on a learned weighted sum of all layers, as SUPERB does it
  knn       the votes of the nearest training clips by the cosine of their vectors, how many of them chosen
  What is chosen, the layer of --layer all as well, is chosen by cross-validation among the training clips (with
  --fold-by, whole folds of those are held back); the clips of --test, or of each fold, are scored once. Beside it
  stands the same classifier on log-mel statistics of the same clips (mean and standard deviation over time of each
  mel bin, or means of eight stretches of time).

intervals:
  95 %, by bootstrap over the clips that are scored (with --group-by over groups of them), the seeds and the folds.

files of --out:
  report.html, report.md, probe.json (what was asked for, chosen and found) and, if there are several in a folder for
  each fold and seed: scores.json, scores.npz (keys, names, probabilities, labels), predictions.csv, mistakes.csv,
  confusion.png; baseline/ has those of log-mel."""


def layer_or_all(text: str) -> int | None:
    """A layer's number, None for all."""
    return None if text == _ALL_LAYERS else whole_number(text)


def pool_name(text: str) -> str:
    """A name of a pool."""
    if text not in names("pool"):
        raise ValueError(f"expected one of {', '.join(names('pool'))}")
    return text


def add_layer(sub: argparse.ArgumentParser) -> None:
    """Which layer's hidden state is meant."""
    layer = "0: the patches, 1: after the first layer, ...; default: -1, the output"
    add_argument(sub, "--layer", whole_number, -1000, 1000, default=-1, metavar="N", help=layer)


def add_pool(sub: argparse.ArgumentParser) -> None:
    """What makes one vector of a hidden state."""
    pool = f"what makes one vector of the patches': {', '.join(own_names('pool'))}; default: a classifier's own, else "
    pool += "statistics"
    add_argument(sub, "--pooling", pool_name, metavar="POOL", help=pool)
    stretches = "of --pooling segments; default: a classifier's own, else 4"
    add_argument(sub, "--segments", whole_number, 1, MOST_SEGMENTS, metavar="N", help=stretches)


def _add_rest(sub: argparse.ArgumentParser, out: str) -> None:
    """What both commands have: the baseline beside, where the results go, and where and how it is computed."""
    sub.add_argument("--baseline", choices=("log-mel", "none"), default="log-mel", help="default: %(default)s")
    add_argument(sub, "--out", new_path, metavar="FOLDER", help=out)
    sub.add_argument("--overwrite", action="store_true", help="replace what this command wrote there")
    add_argument(sub, "--batch-size", whole_number, 1, 2**16, default=16, metavar="N", help="default: %(default)s")
    sub.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"), help="default: %(default)s")


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
    _add_probe(commands)
    _add_verify(commands)


def _add_probe(commands: Any) -> None:
    sub = commands.add_parser(
        "probe",
        help=probe.__doc__,
        description=probe.__doc__,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_argument(sub, "model", path_text, metavar="MODEL", help="a run folder, a model folder, or a model of the Hub")
    where = "labelled clips to learn from: a split's folder, a pattern of shards in one, or their url"
    add_argument(sub, "shards", source_text, nargs="+", metavar="SHARDS", help=where)
    add_argument(sub, "--test", source_text, nargs="+", default=[], metavar="SHARDS", help="clips to be scored")
    sub.add_argument("--protocol", choices=_PROTOCOLS, default="linear", help="default: %(default)s")
    add_argument(sub, "--label", plain_text, default="label", metavar="KEY", help="of the shards; default: label")
    losses = "bce: clips with several labels, each class against the rest; default: %(default)s"
    sub.add_argument("--loss", choices=("cross_entropy", "bce"), default="cross_entropy", help=losses)
    share = "so much of the training clips, stratified by label, chosen by the seed; default: 1"
    add_argument(sub, "--label-fraction", number, 1e-9, 1, default=1.0, metavar="X", help=share)
    add_argument(sub, "--seeds", whole_number, 1, 1000, default=1, metavar="N", help="0 to N - 1; default: 1")
    folds = "instead of --test: each recording is scored by what the other folds' recordings say; speaker, session, ..."
    add_argument(sub, "--fold-by", plain_text, metavar="KEY", help=folds)
    some = "of --fold-by; default: all"
    add_argument(sub, "--folds", plain_text, nargs="+", default=["all"], metavar="NAME", help=some)
    layer = "0: the patches, 1: after the first layer, ..., or all: the best one; default: -1, the output"
    add_argument(sub, "--layer", layer_or_all, default=-1, metavar="N|all", help=layer)
    add_pool(sub)
    add_argument(sub, "--k", whole_number, 1, _MANY, metavar="N", help="neighbours of knn; default: chosen")
    warmth = "a neighbour's vote counts exp(cosine / X); default: %(default)s"
    add_argument(sub, "--temperature", number, 1e-3, 1e3, default=0.07, metavar="X", help=warmth)
    drawn = "whole groups are drawn for the intervals, such as the clips of a speaker"
    add_argument(sub, "--group-by", plain_text, metavar="KEY", help=drawn)
    most = "take no more clips of SHARDS, nor of --test, than this, stratified by label"
    add_argument(sub, "--limit", whole_number, 2, _MANY, metavar="N", help=most)
    _add_rest(sub, "a new folder for what each clip got")
    sub.set_defaults(call=probe)


def probe(arguments: argparse.Namespace) -> None:
    """Score what a model's features are worth, without training it: linear, weighted layers, or nearest neighbours."""
    _check(arguments)
    from ssamba.evaluation.tables import markdown_table
    from ssamba.protocols.probe import ProbeSettings, run_probe
    from ssamba.protocols.results import tables, write_result
    from ssamba.training.runs import command_record, peak_memory_bytes

    settings = ProbeSettings(
        arguments.model,
        arguments.shards,
        arguments.label,
        arguments.protocol,
        arguments.test,
        arguments.loss,
        arguments.label_fraction,
        arguments.seeds,
        arguments.fold_by,
        arguments.folds,
        arguments.layer,
        arguments.pooling,
        arguments.segments,
        arguments.k,
        arguments.temperature,
        arguments.baseline != "none",
        arguments.group_by,
        arguments.limit,
        arguments.batch_size,
        arguments.device,
    )
    started = command_record()
    result = run_probe(settings)
    print("\n\n".join(map(markdown_table, tables(result))))
    if arguments.out:
        write_result(arguments.out, result, {**started, "peak_memory_bytes": peak_memory_bytes()})
        print(f"written to {printable(str(arguments.out))}")


def _check(arguments: argparse.Namespace) -> None:
    """UserError for arguments that do not go together."""
    if bool(arguments.test) == bool(arguments.fold_by):
        raise UserError("give --test SHARDS to be scored, or --fold-by KEY for folds of SHARDS; one of them")
    if arguments.folds != ["all"] and not arguments.fold_by:
        raise UserError("--folds names recordings of --fold-by KEY, which is not given")
    if arguments.protocol != "knn" and arguments.k is not None:
        raise UserError(f"--k is of --protocol knn, which is {arguments.protocol}")
    if arguments.protocol == "weighted" and arguments.layer not in (-1, None):
        raise UserError("--layer is one of many, and --protocol weighted takes all of them")
    if arguments.out:
        check_folder(arguments.out, arguments.overwrite, "probe.json")


def check_folder(out: Path, overwrite: bool, record: str) -> None:
    """UserError if there is something already that the command did not write, or is not to be replaced."""
    check_place(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        if not (out / record).is_file():
            raise UserError(f"{out} exists and has no {record}, so it is not this command's; expected a new folder")
        if not overwrite:
            raise UserError(f"{out} exists; --overwrite replaces the scores in it")


VERIFY_EPILOG = """
TRIALS has a pair of recordings a line: `1 id10270/a/1.wav id10270/b/2.wav` as VoxCeleb's lists (1: of one speaker,
0: of two), or `enroll.wav test.wav target` (nontarget) as NIST's.

files of --out:
  report.html, report.md, verify.json, trials.csv (the score of each trial), error_rates.png."""


def _add_verify(commands: Any) -> None:
    sub = commands.add_parser(
        "verify",
        help=verify.__doc__,
        description=verify.__doc__,
        epilog=VERIFY_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_argument(sub, "model", path_text, metavar="MODEL", help="a run folder, a model folder, or a model of the Hub")
    add_argument(sub, "trials", path, metavar="TRIALS", help="see below")
    folder = "what the names of TRIALS are relative to; default: its own folder"
    add_argument(sub, "--recordings", path, metavar="FOLDER", help=folder)
    add_layer(sub)
    add_pool(sub)
    raw = "compare the vectors as they are, not brought to mean 0 and deviation 1 over the recordings"
    sub.add_argument("--raw", action="store_true", help=raw)
    cut = "into windows of so many seconds, whose mean vector is the recording's; default: the model's clip"
    add_argument(sub, "--window", number, 1e-3, 1e6, metavar="SECONDS", help=cut)
    add_argument(sub, "--hop", number, 1e-3, 1e6, metavar="SECONDS", help="at most the window, which is the default")
    _add_rest(sub, "a new folder for scores and report")
    sub.set_defaults(call=verify)


def verify(arguments: argparse.Namespace) -> int:
    """Tell pairs of recordings of one speaker from others, by the cosine of a model's vectors: EER and minDCF."""
    if arguments.overwrite and not arguments.out:
        raise UserError("--overwrite is for --out FOLDER, which is not given")
    if arguments.out:
        check_folder(arguments.out, arguments.overwrite, "verify.json")
    from ssamba.evaluation.tables import markdown_table
    from ssamba.protocols.verify import (
        VerifySettings,
        report_failures,
        run_verification,
        score_table,
        write_verification,
    )
    from ssamba.training.runs import command_record, peak_memory_bytes

    recordings = arguments.recordings or arguments.trials.parent
    settings = VerifySettings(
        arguments.model,
        str(arguments.trials),
        str(recordings),
        arguments.layer,
        arguments.pooling,
        arguments.segments,
        not arguments.raw,
        arguments.baseline != "none",
        arguments.window,
        arguments.hop,
        arguments.batch_size,
        arguments.device,
    )
    started = command_record()
    result = run_verification(settings)
    print(markdown_table(score_table(result)))
    if arguments.out:
        write_verification(arguments.out, result, {**started, "peak_memory_bytes": peak_memory_bytes()})
        print(f"written to {printable(str(arguments.out))}")
    return report_failures(result)
