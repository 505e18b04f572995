"""`ssamba import` and `ssamba export`."""

import argparse
from typing import Any

from ssamba.config import AUDIO_RANGES, AUTHORS_FORMATS
from ssamba.errors import UserError
from ssamba.printable import printable
from ssamba.values import add_argument, new_path, number, path, plain_text, whole_number


def add(commands: Any) -> None:
    """Add the commands to a parser's."""
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
    sub.add_argument("--format", required=True, choices=(*AUTHORS_FORMATS, "torch"), help=whose)
    sub.add_argument("--overwrite", action="store_true", help="replace OUT if it is a file")
    sub.set_defaults(call=export)


def import_checkpoint(arguments: argparse.Namespace) -> None:
    """Make a model folder of a checkpoint in the format of SSAMBA's, SSAST's or AuM's authors."""
    values = vars(arguments)
    if (arguments.mean is None) != (arguments.std is None):
        raise UserError("--mean and --std: give both or neither")
    from ssamba.models.convert import transfer

    audio = {name: values[name] for name in ("sampling_rate", "mean", "std", "short") if values[name] is not None}
    labels = transfer.read_label_names(arguments.labels) if arguments.labels else None
    options = transfer.ClassifierOptions(labels, arguments.label, arguments.loss, arguments.pooling)
    counts = ("num_attention_heads", "num_mel_bins", "max_length", "frequency_stride", "time_stride")
    sizes = {name: values[name] for name in counts}
    imported = transfer.import_checkpoint(
        arguments.checkpoint, arguments.out, audio, sizes, options, arguments.overwrite
    )
    print(transfer.import_report(imported))
    print(f"written to {printable(str(arguments.out))}")


def export(arguments: argparse.Namespace) -> None:
    """Write a model as a checkpoint that the originals' scripts load, or a classifier as a program that torch runs."""
    if arguments.format == "torch":
        from ssamba.export.torch_export import export_torch

        export_torch(arguments.model, arguments.out, arguments.overwrite)
        print(f"written to {printable(str(arguments.out))}")
        return
    from ssamba.models.convert.transfer import export_model

    exported = export_model(arguments.model, arguments.out, arguments.format, arguments.overwrite)
    print(f"tensors: {len(exported.tensors)}")
    if exported.zeros:
        print(f"zeros, which nothing reads: {', '.join(exported.zeros)}")
    if exported.padding:
        print(
            "short clips: the authors' code pools their padding too, which this model leaves out: other scores of them"
        )
    print(f"written to {printable(str(arguments.out))}")
