"""The `ssamba` command."""

import argparse
import errno
import logging
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ssamba.config import (
    AUDIO_RANGES,
    ENCODERS,
    AudioConfig,
    DataConfig,
    FinetuneRecipe,
    PretrainRecipe,
    Recipe,
    load_recipe,
)
from ssamba.errors import Stopped, UserError
from ssamba.files import check_place
from ssamba.launch import check_launch, rank
from ssamba.printable import log_to_stderr, printable
from ssamba.protocols.command import add_layer, add_pool, add_probe, add_verify
from ssamba.shell import ENOUGH, is_of_stdout, name_stdout, said_of
from ssamba.values import (
    add_argument,
    new_path,
    new_place,
    number,
    path,
    path_text,
    pattern_text,
    plain_text,
    source_text,
    whole_number,
)

# torch and Lightning take seconds to import: the commands import what they need, so that --help and a mistake in a
# recipe are answered at once.


_LET_OTHERS_SPEAK = 10.0  # seconds; Lightning looks after its processes every 5
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SECONDS = (0.001, 1e6)  # of a window and a hop
_MANY = 10**9  # more clips, labels or steps than there are
_MOST_VALUES = 2**31  # of a tensor whose speed is measured


def pretrain(arguments: argparse.Namespace) -> None:
    """Train an encoder on unlabelled clips; run_dir gets checkpoints, metrics, pictures and model/."""
    recipe = load_recipe(arguments.recipe, _overrides(arguments), "pretrain")
    assert isinstance(recipe, PretrainRecipe)
    from ssamba.build import build_pretrainer, find_start
    from ssamba.models.checkpoint import save_model
    from ssamba.training.runs import RunLock

    check_launch(recipe.trainer.devices, recipe.trainer.num_nodes)
    folder = Path(recipe.run_dir)
    check_place(folder)
    with RunLock(folder) as lock:
        start = find_start(recipe, arguments.resume, arguments.overwrite)
        if _already_finished(recipe, start):
            return
        built = build_pretrainer(recipe)
        trainer, checkpoints, weights, skipped = _train(recipe, built, start, arguments, lock)
        if trainer.global_rank == 0:
            save_model(folder / "model", built.module.model, built.audio, weights=weights)
            _finish(folder, trainer, checkpoints, skipped, {}, {})


def finetune(arguments: argparse.Namespace) -> None:
    """Train a classifier on labelled clips, from model.pretrained or from scratch; scored on data.test at the end."""
    recipe = load_recipe(arguments.recipe, _overrides(arguments), "finetune")
    assert isinstance(recipe, FinetuneRecipe)
    if arguments.folds or arguments.seeds or arguments.cluster:
        return _finetune_members(recipe, arguments)
    from ssamba.build import build_finetuner, find_start
    from ssamba.models.checkpoint import save_model
    from ssamba.protocols.finetuned import score_finetuned
    from ssamba.training.runs import RunLock

    check_launch(recipe.trainer.devices, recipe.trainer.num_nodes)
    folder = Path(recipe.run_dir)
    check_place(folder)
    with RunLock(folder) as lock:
        start = find_start(recipe, arguments.resume, arguments.overwrite)
        if _already_finished(recipe, start):
            return
        built = build_finetuner(recipe)
        trainer, checkpoints, weights, skipped = _train(recipe, built, start, arguments, lock)
        if trainer.global_rank == 0:
            save_model(folder / "model", built.module.model, built.audio, built.classifier, weights)
            scores, more = score_finetuned(recipe, built, folder) if built.shards.test else ({}, {})
            _finish(folder, trainer, checkpoints, skipped, scores, more)


def _finetune_members(recipe: FinetuneRecipe, arguments: argparse.Namespace) -> None:
    if not (arguments.folds or arguments.seeds):
        raise UserError("--cluster is for the runs of --folds all or --seeds N; give one of them")
    if arguments.folds and (recipe.data.fold_by is None or recipe.data.fold is not None):
        raise UserError(
            f"--folds all takes each name of data.fold_by, which is {recipe.data.fold_by or 'null'}, and data.fold is "
            f"{recipe.data.fold or 'null'}; expected a label such as data.fold_by=speaker, and no data.fold"
        )
    from ssamba.evaluation.tables import markdown_table
    from ssamba.protocols.many import finetune_members

    tables = finetune_members(
        recipe, folds=arguments.folds is not None, seeds=arguments.seeds or 1, resume=arguments.resume is not None,
        overwrite=arguments.overwrite, address=arguments.cluster,
    )  # fmt: skip
    print("\n\n".join(map(markdown_table, tables)))
    print(f"written to {printable(recipe.run_dir)}")


def _overrides(arguments: argparse.Namespace) -> list[str]:
    """With the run that is to go on as run_dir."""
    named = [] if arguments.resume in (None, "auto") else [f"run_dir={arguments.resume}"]
    return [*arguments.overrides, *named]


def _already_finished(recipe: Recipe, start: Any) -> bool:
    from ssamba.build import is_finished

    if not is_finished(recipe, start):
        return False
    place = printable(recipe.run_dir)
    early, larger = "", "trainer.max_steps"
    if start.step < recipe.trainer.max_steps:
        early, larger = f", after {start.run['stale']} validations without a better score", "trainer.patience"
    print(f"the run in {place} is finished: {start.step} steps{early}. A larger {larger} goes on with it")
    return True


def _train(recipe: Recipe, built: Any, start: Any, arguments: argparse.Namespace,
           lock: Any) -> tuple[Any, Any, Any, Any]:  # fmt: skip
    """Make the run folder and train: the trainer, its checkpoints, the weights that are exported on the first rank, and
    the samples that were skipped. From here on the ranks are by themselves."""
    from ssamba.build import build_trainer, start_run
    from ssamba.training.callbacks import SkippedSamples
    from ssamba.training.distributed import part_at_exit
    from ssamba.training.runs import fit

    skipped = SkippedSamples()
    trainer, checkpoints = build_trainer(recipe, built.data, skipped, start)
    checkpoints.record = start_run(recipe, built, start, arguments.overwrite or arguments.resume is not None, lock)
    fit(trainer, built.module, built.data, start and start.path, checkpoints)
    weights, checkpoints.record["exported"] = checkpoints.trained_weights(trainer)
    part_at_exit()
    return trainer, checkpoints, weights, skipped


def evaluate(arguments: argparse.Namespace) -> None:
    """Score a finished run on the recipe's test split (a pretrained one on its validation split)."""
    recipe = load_recipe(arguments.recipe, arguments.overrides)
    out = Path(recipe.run_dir) / "evaluation"
    if out.exists() and not arguments.overwrite:
        raise UserError(f"{out} exists; --overwrite replaces the scores in it")
    check_place(out)
    from ssamba.build import build_masked_evaluation
    from ssamba.evaluation.report import write_evaluation_report
    from ssamba.evaluation.scores import write_masked_scores
    from ssamba.protocols.finetuned import evaluate_finetuned
    from ssamba.training.runs import RunLock, command_record

    run = Path(recipe.run_dir)
    with RunLock(run):
        if isinstance(recipe, PretrainRecipe):
            scores = write_masked_scores(out, build_masked_evaluation(recipe))
            write_evaluation_report(out, run, scores, {}, command_record())
        else:
            scores = evaluate_finetuned(recipe, out)
    _print_scores(scores, out)


def predict(arguments: argparse.Namespace) -> int:
    """Name what is heard in recordings, by a fine-tuned model: files of any length and format, folders, patterns."""
    from ssamba.inference.predict import predict_recordings

    failed = predict_recordings(
        arguments.model, arguments.files, form=arguments.format, top=arguments.top, out=arguments.out,
        batch_size=arguments.batch_size, device=arguments.device, window_seconds=arguments.window,
        hop_seconds=arguments.hop, timeline=arguments.timeline, overwrite=arguments.overwrite,
    )  # fmt: skip
    if arguments.out:
        print(f"written to {printable(str(arguments.out))}", file=sys.stderr)
    return _failures(failed)


def embed(arguments: argparse.Namespace) -> int:
    """Write the vectors that a layer of a model has for recordings, with or without a classifier on it."""
    from ssamba.inference.embed import embed_recordings

    failed, said = embed_recordings(
        arguments.model, arguments.files, arguments.out, layer=arguments.layer, tokens=arguments.tokens,
        batch_size=arguments.batch_size, device=arguments.device, window_seconds=arguments.window,
        hop_seconds=arguments.hop, overwrite=arguments.overwrite, pooling=arguments.pooling,
        segments=arguments.segments,
    )  # fmt: skip
    print(printable(said))
    return _failures(failed)


def _failures(failed: int) -> int:
    if failed:
        print(f"ssamba: {failed} recordings failed", file=sys.stderr)
    return 1 if failed else 0


def tasks(arguments: argparse.Namespace) -> None:
    """Print the table of tasks: data sets, how they are prepared, recipes, protocols and published figures."""
    from ssamba.evaluation.tables import markdown_table
    from ssamba.tasks import HEADER, INTRODUCTION, TASKS

    print(f"{INTRODUCTION}\n{markdown_table([HEADER, *TASKS])}")


def stats(arguments: argparse.Namespace) -> None:
    """Measure the mean and standard deviation of the log-mel values of shards, for audio.mean and audio.std."""
    sources, bins, cache = arguments.sources, arguments.num_mel_bins, None
    if sources[0].endswith((".yaml", ".yml")) or (Path(sources[0]) / "recipe.yaml").is_file():
        recipe = load_recipe(sources[0], sources[1:])
        sources, bins, cache = recipe.data.train, bins or recipe.audio.num_mel_bins, recipe.data.cache
    from ssamba.build import measure

    measured = measure(sources, bins or AudioConfig.num_mel_bins, arguments.limit, cache)
    print(f"audio.mean={measured.mean:.4f} audio.std={measured.std:.4f}")
    print(f"{measured.clips} clips, {measured.frames / 100:.1f} s in frames", file=sys.stderr)


def shards_info(arguments: argparse.Namespace) -> None:
    """Say what shards hold, from their index."""
    from ssamba.data.shards.index import find_shards
    from ssamba.printable import printable

    held = find_shards(arguments.shards)
    print(f"{len(held.shards)} shards, {held.samples} samples, {held.seconds / 3600:.3f} h at {held.sampling_rate} Hz")
    for key, names in held.labels.items():
        some = f"{len(names)} labels: {', '.join(names[:12])}{', ...' if len(names) > 12 else ''}"
        print(printable(f"{key}: {some if names else 'what is said'}"))
    print(f"fingerprint {held.fingerprint}")


def shards_verify(arguments: argparse.Namespace) -> None:
    """Read shards in full and compare them with their index: checksums, every sample's audio and JSON."""
    from ssamba.data.prepare.verification import verify_shards
    from ssamba.data.shards.index import find_shards
    from ssamba.data.shards.remote import ShardCache

    held = find_shards(arguments.shards)
    cache = ShardCache(DataConfig().cache_bytes)
    problems = verify_shards(held, local=cache.local, workers=_workers(arguments))
    if problems:
        raise UserError(f"{len(problems)} problems in {len(held.shards)} shards:", *problems)
    print(f"{len(held.shards)} shards, {held.samples} samples: all as their index says")


def shards_index(arguments: argparse.Namespace) -> None:
    """Make the index of a folder of webdataset shards that another program or an older version wrote."""
    from ssamba.data.prepare.indexing import fields_report, index_folder
    from ssamba.printable import masked, printable

    labels: dict[str, tuple[str, ...]] = {}
    for key, file in arguments.labels:
        from ssamba.models.transfer import read_label_names

        labels[key] = read_label_names(file)
    fields = dict(arguments.label)
    if len(fields) < len(arguments.label):
        raise UserError("--label is given twice for one KEY; expected each once")
    made = index_folder(
        arguments.folder, labels, fields=fields or None, workers=_workers(arguments),
        max_bad_fraction=arguments.max_bad_fraction, overwrite=arguments.overwrite,
    )  # fmt: skip
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


def _likely(field: str) -> tuple[bool, bool]:
    """First what is called as labels are."""
    name = field.rpartition(".")[2].lower()
    return name not in ("cls", "label", "labels", "class", "class_label", "category", "tag", "tags"), name == "txt"


def _workers(arguments: argparse.Namespace) -> int:
    from ssamba.jobs import usable_cores

    return usable_cores() if arguments.workers is None else int(arguments.workers)


def bench_scan(arguments: argparse.Namespace) -> None:
    """Measure speed and error of the selective scan's backends beside the machine's peaks."""
    out = arguments.out
    if out and not out.parent.is_dir():
        raise UserError(f"--out {out}: there is no folder {out.parent}")
    values = arguments.batch * arguments.tokens * max(arguments.width, arguments.states)
    if values > _MOST_VALUES:
        raise UserError(
            f"--batch * --tokens * --width or --states is {values}; expected at most {_MOST_VALUES} values of a tensor"
        )
    import torch

    from ssamba.evaluation.efficiency import SCAN_BACKENDS, ScanShape, benchmark_scan, scan_report, versions
    from ssamba.files import write_json
    from ssamba.training.runs import hardware

    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    shape = ScanShape(1 + arguments.bidirectional, arguments.batch, arguments.tokens, arguments.width, arguments.states)
    backends = arguments.backends or SCAN_BACKENDS
    result = benchmark_scan(shape, getattr(torch, arguments.dtype), arguments.device, backends, arguments.rounds)
    machine = hardware()
    print(f"{machine['processor']}, threads {machine['threads']}{''.join(f', {gpu}' for gpu in machine['gpus'])}")
    print(scan_report(result))
    if out:
        write_json(out, {**result, "hardware": machine, "versions": versions()})
        print(f"written to {printable(str(out))}")


def import_checkpoint(arguments: argparse.Namespace) -> None:
    """Make a model folder of a checkpoint in the format of SSAMBA's, SSAST's or AuM's authors."""
    given = vars(arguments)
    if (arguments.mean is None) != (arguments.std is None):
        raise UserError("--mean and --std: give both or neither")
    from ssamba.models import transfer

    audio = {name: given[name] for name in ("sampling_rate", "mean", "std", "short") if given[name] is not None}
    labels = transfer.read_label_names(arguments.labels) if arguments.labels else None
    options = transfer.ClassifierOptions(labels, arguments.label, arguments.loss, arguments.pooling)
    counts = ("num_attention_heads", "num_mel_bins", "max_length", "frequency_stride", "time_stride")
    told = {name: given[name] for name in counts}
    imported = transfer.import_checkpoint(
        arguments.checkpoint, arguments.out, audio, told, options, arguments.overwrite
    )
    print(transfer.import_report(imported))
    print(f"written to {printable(str(arguments.out))}")


def export(arguments: argparse.Namespace) -> None:
    """Write a model as a checkpoint that the originals' scripts load, or a classifier as a program that torch runs."""
    if arguments.format == "torch":
        from ssamba.deploy import export_torch

        export_torch(arguments.model, arguments.out, arguments.overwrite)
        print(f"written to {printable(str(arguments.out))}")
        return
    from ssamba.models.transfer import export_model

    exported = export_model(arguments.model, arguments.out, arguments.format, arguments.overwrite)
    print(f"tensors: {len(exported.tensors)}")
    if exported.zeros:
        print(f"zeros, which nothing reads: {', '.join(exported.zeros)}")
    if exported.padding:
        print(
            "short clips: the authors' code pools their padding too, which this model leaves out: other scores of them"
        )
    print(f"written to {printable(str(arguments.out))}")


def _finish(folder: Path, trainer: Any, checkpoints: Any, skipped: Any, scores: dict[str, Any],
            more: dict[str, Any]) -> None:  # fmt: skip
    """Write run.json, with `more` in it, the curves and the report, and print the scores."""
    from ssamba.evaluation.pictures import draw_curves
    from ssamba.evaluation.report import exported_text, watched, write_run_report
    from ssamba.files import write_json
    from ssamba.models.record import RECORD_NAME
    from ssamba.training.runs import peak_memory_bytes

    values = checkpoints.metrics
    record = {
        **checkpoints.record,
        "steps": trainer.global_step,
        "training_seconds": round(checkpoints.seconds, 1),
        "stopped_early": checkpoints.stopped_early if trainer.global_step < trainer.max_steps else None,
        "peak_memory_bytes": peak_memory_bytes(),
        "last_metrics": values,
        "test": scores,
        **more,
        "skipped_samples": list(skipped.names),
    }
    draw_curves(folder / "pictures" / "curves.png", folder / "metrics.csv", folder.name)
    write_run_report(folder, record)
    write_json(folder / RECORD_NAME, record)
    print(f"model: {exported_text(record['exported'])}")
    _print_scores(scores or watched(values), folder)
    if "baseline" in more:
        for name, value in more["baseline"]["scores"].items():
            if name in ("accuracy", "mAP"):
                print(f"log-mel baseline, {name}: {value:.4f}")


def _print_scores(scores: dict[str, Any], folder: Path) -> None:
    from ssamba.evaluation.report import score_text

    for name in scores:
        if not name.endswith(("_low", "_high")):  # the ends of an interval, which stand beside its score
            print(f"{name}: {score_text(scores, name)}")
    print(f"written to {printable(str(folder))}")


def _run_or_auto(text: str) -> str:
    return text if text == "auto" else path_text(text)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ssamba", description="Self-supervised audio pretraining with bidirectional state space models."
    )
    parser.add_argument("--version", action="version", version=_version())
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in (pretrain, finetune, evaluate):
        sub = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__)
        add_argument(
            sub, "recipe", path, metavar="RECIPE", help="a YAML file, or a run folder for the recipe.yaml in it"
        )
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="changes to it: trainer.max_steps=1000")
        sub.add_argument("--overwrite", action="store_true", help="replace what an earlier run wrote there")
        if command is not evaluate:
            goes_on = (
                "go on with the run in this folder; auto: with that in run_dir, or start it if it has no checkpoint"
            )
            add_argument(sub, "--resume", _run_or_auto, metavar="RUN|auto", help=goes_on)
        if command is finetune:
            each = "a run for each fold, below run_dir, and a table of them: data.fold_by says of what"
            sub.add_argument("--folds", choices=("all",), help=each)
            several = "a run for each of so many seeds, from the recipe's on, below run_dir, and a table of them"
            add_argument(sub, "--seeds", whole_number, 1, 1000, metavar="N", help=several)
            address = "such runs are made by a Dask cluster, by its scheduler's address; default: one after another"
            add_argument(sub, "--cluster", plain_text, metavar="ADDRESS", help=address)
        sub.set_defaults(call=command)
    add_probe(commands)
    add_verify(commands)
    _add_inference(commands)
    sub = commands.add_parser("tasks", help=tasks.__doc__, description=tasks.__doc__)
    sub.set_defaults(call=tasks)
    sub = commands.add_parser("stats", help=stats.__doc__, description=stats.__doc__)
    either = "folders of splits or patterns of shards; or a recipe or run (and key=value), for its data.train"
    add_argument(sub, "sources", source_text, nargs="+", metavar="SHARDS|RECIPE|RUN", help=either)
    bins = "default: the recipe's, else 128"
    add_argument(sub, "--num-mel-bins", whole_number, *AUDIO_RANGES["num_mel_bins"], metavar="N", help=bins)
    add_argument(sub, "--limit", whole_number, 1, _MANY, metavar="CLIPS", help="read no more clips than this")
    sub.set_defaults(call=stats)
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
    sub = commands.add_parser("import", help=import_checkpoint.__doc__, description=import_checkpoint.__doc__)
    add_argument(sub, "checkpoint", path, metavar="CHECKPOINT", help="a .pth of torch.save, or a .safetensors")
    add_argument(sub, "out", new_path, metavar="OUT", help="a new folder for the model")
    for name, most, default in (
        ("num-attention-heads", 1024, "of SSAST; default: by the width, 192: 3, 384: 6, 768: 12"),
        ("num-mel-bins", AUDIO_RANGES["num_mel_bins"][1], "of a fine-tuned model; default: 128"),
        (
            "max-length",
            AUDIO_RANGES["max_length"][1],
            "frames of a fine-tuned model's clips; default: a published one, else its grid's fewest",
        ),
        (
            "frequency-stride",
            AUDIO_RANGES["num_mel_bins"][1],
            "of a fine-tuned model's patches; default: their mel bins, if that is the only way",
        ),
        (
            "time-stride",
            AUDIO_RANGES["max_length"][1],
            "of a fine-tuned model's patches; default: their frames, if that is the only way",
        ),
    ):
        add_argument(sub, f"--{name}", whole_number, 1, most, metavar="N", help=default)
    add_argument(
        sub, "--sampling-rate", whole_number, *AUDIO_RANGES["sampling_rate"], metavar="N", help="Hz; default: 16000"
    )
    mean, std = "of the log-mel values; default: -4.2677393", "as --mean; default: 4.5689974 (AudioSet and LibriSpeech)"
    add_argument(sub, "--mean", number, *AUDIO_RANGES["mean"], metavar="X", help=mean)
    add_argument(sub, "--std", number, *AUDIO_RANGES["std"], metavar="X", help=std)
    short = "what a recording shorter than the clip becomes: padded with zeros, repeated, or kept short; default: pad"
    sub.add_argument("--short", choices=("pad", "repeat", "keep"), help=short)
    names = "class names, one a line, or AudioSet's class_labels_indices.csv; default: 0, 1, ..."
    add_argument(sub, "--labels", path, metavar="FILE", help=names)
    add_argument(sub, "--label", plain_text, metavar="NAME", help="what the classes are in shards; default: label")
    sub.add_argument("--loss", choices=("cross_entropy", "bce"), help="default: cross_entropy")
    sub.add_argument(
        "--pooling", choices=("mean", "class"), help="of patch tokens or class tokens; default: mean, of AuM: class"
    )
    sub.add_argument("--overwrite", action="store_true", help="replace OUT if it is a model folder")
    sub.set_defaults(call=import_checkpoint)
    sub = commands.add_parser("export", help=export.__doc__, description=export.__doc__)
    add_argument(sub, "model", path, metavar="MODEL", help="a run folder or its model/ folder")
    add_argument(sub, "out", new_path, metavar="OUT", help="a new file, such as model.pth or, for torch, model.pt2")
    whose = "whose checkpoint it becomes; torch: a graph from waveforms to logits (torch.export)"
    sub.add_argument("--format", required=True, choices=(*ENCODERS, "torch"), help=whose)
    sub.add_argument("--overwrite", action="store_true", help="replace OUT if it is a file")
    sub.set_defaults(call=export)
    bench = commands.add_parser("bench", help="Measure speed on this machine.")
    actions = bench.add_subparsers(required=True, metavar="scan")
    sub = actions.add_parser("scan", help=bench_scan.__doc__, description=bench_scan.__doc__)
    sub.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="default: %(default)s")
    for name, size in (("batch", 2), ("tokens", 512), ("width", 384), ("states", 16), ("rounds", 10)):
        add_argument(sub, f"--{name}", whole_number, 1, 2**20, default=size, metavar="N", help="default: %(default)s")
    types = ("float32", "bfloat16", "float16")
    sub.add_argument("--dtype", default="float32", choices=types, help="default: %(default)s")
    add_argument(sub, "--backends", plain_text, nargs="+", metavar="BACKEND", help="default: all that run here")
    add_argument(
        sub, "--threads", whole_number, 1, 1024, metavar="N", help="of the CPU; default: as many as torch takes"
    )
    sub.add_argument("--bidirectional", action="store_true", help="both directions in one operator")
    add_argument(sub, "--out", new_path, metavar="FILE.json", help="also write everything as JSON")
    sub.set_defaults(call=bench_scan)
    return parser


_LABEL = (
    "a label KEY and where other programs put it: FIELD is the extension of a member beside the audio (cls, txt), or a "
    "field of its JSON (label; within objects: original_data.class_label); default: KEY. Names, integers, true and "
    "false, and lists of them are read; the lines of a text file are names. Again for each further label"
)
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
"""


def _add_inference(commands: Any) -> None:
    for command, epilog in ((predict, _JSON_LINES), (embed, _ROWS)):
        sub = commands.add_parser(command.__name__, help=command.__doc__, description=command.__doc__,
                                  epilog=epilog + _WINDOWS,
                                  formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
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
            add_argument(sub, "--out", new_path, required=True, metavar="FILE", help="x.npz, or x.parquet (pyarrow)")
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


def _version() -> str:
    from importlib import metadata

    return metadata.version("ssamba")


def run(argv: Sequence[str] | None = None) -> NoReturn:
    """The program: `main`, with whose status the process ends."""
    status = main(argv)
    if "ssamba.training.distributed" in sys.modules:
        from ssamba.training.distributed import end_rank

        end_rank(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; 0 or the command's own status, or 2 after the message of a mistake that the user can mend."""
    if sys.stderr is None:  # closed: nobody listens
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    later_rank = False
    try:
        later_rank = rank() > 0
        status = _run(argv, logging.WARNING if later_rank else logging.INFO)
        sys.stdout.flush()
        return status
    except Stopped as stop:
        if str(stop):
            _say(str(stop))
        return stop.status
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except UserError as error:
        _let_others_speak(later_rank)
        _say(str(error))
    except (OSError, MemoryError) as error:
        of_stdout = is_of_stdout(error)
        if of_stdout and isinstance(error, BrokenPipeError):
            return ENOUGH
        _let_others_speak(_several_ranks())
        room = isinstance(error, OSError) and error.errno in _NO_ROOM and not of_stdout
        _say(said_of(error) + ("; make room, and go on with --resume if it was training" if room else ""))
    except Exception:
        _let_others_speak(_several_ranks())
        raise
    return 2


def _run(argv: Sequence[str] | None, level: int) -> int:
    name_stdout()
    log_to_stderr("%(levelname)s %(name)s: %(message)s", logging.WARNING)
    logging.getLogger("ssamba").setLevel(level)
    parser = _parser()
    arguments, rest = parser.parse_known_args(argv)
    # Overrides may stand after an option, too, where argparse does not look for them.
    if any(text.startswith("-") or not hasattr(arguments, "overrides") for text in rest):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        arguments.overrides = [*arguments.overrides, *rest]
    status: int | None = arguments.call(arguments)
    return status or 0


def _say(message: str) -> None:
    print(f"ssamba: {message}", file=sys.stderr)


def _several_ranks() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_initialized() and distributed.get_world_size() > 1


def _let_others_speak(several: bool) -> None:
    """Most mistakes are those of all ranks, and the first says them; or one rank made it, and what this one misses is
    that rank. Whatever launched them ends this process in a moment then, and there is one message in all."""
    if several:
        time.sleep(_LET_OTHERS_SPEAK)
