"""Shards of a dataset of the Hugging Face Hub, or of a local one, by the package `datasets` (extra datasets).

SOURCE is one of:
  hf://datasets/OWNER/NAME, perhaps with @REVISION: a repository of the Hub; --config names one of its configurations.
  It is downloaded to the cache of `datasets` first, or with --streaming read as it comes;
  a folder as `save_to_disk` writes it, or as `load_dataset` takes it: of Parquet files, or of recordings in folders of
  their labels, or beside a metadata.csv. It is read as it lies.
Its recordings are the column of type Audio. Columns of classes are labels, under the columns' names, a list of classes
several at once; --labels names others instead: of text (speakers), of whole numbers, or lists of them. An empty value,
or a class of -1, is no label. --transcripts names the column of what is said, which becomes the label text. Its splits
are the splits (valid, val, dev: validation; eval: test).
Recordings that lie in no file of their own are unpacked into the system's temporary folder (TMPDIR) until the shards
are there: it needs room for them, and with --cluster a place that all workers see.
"""

import argparse
import logging
import re
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
from huggingface_hub.constants import HF_HUB_CACHE

from ssamba.data.prepare.lists import split_names
from ssamba.data.prepare.recordings import DataSet, Recording, check_present, keyed, safe_key
from ssamba.data.prepare.script import run_script, whole_path
from ssamba.data.prepare.sources import Unpacked, import_extra
from ssamba.data.shards.descriptions import TEXT_LABEL
from ssamba.errors import UserError
from ssamba.progress import progress_bar
from ssamba.values import add_argument, plain_text

log = logging.getLogger("ssamba.huggingface")

HUB = "hf://datasets/"
SAVED = ("dataset_dict.json", "state.json")  # of save_to_disk: of splits, of one
_REPOSITORY = re.compile(r"(?P<name>[\w.-]+(?:/[\w.-]+)?)(?:@(?P<revision>[\w./-]+))?/?")
_NAMES = re.compile(r"(large_)?string|u?int\d+|bool")  # of types whose values can be names


def place(text: str) -> Path | str:
    """SOURCE: a path, or a repository as it was typed."""
    if text.startswith(HUB):
        if not _REPOSITORY.fullmatch(plain_text(text).removeprefix(HUB)):
            raise ValueError(f"expected {HUB}OWNER/NAME, perhaps with @REVISION")
        return text
    path = whole_path(text)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", text) and not path.exists():
        raise ValueError(f"expected a folder that is there; a repository of the Hub is {HUB}{text}")
    return path


@contextmanager
def told(source: Path | str, datasets: Any) -> Iterator[None]:
    """What `datasets` cannot read, as a UserError."""
    try:
        yield
    except UserError:
        raise
    except (OSError, ValueError, RuntimeError, ImportError, datasets.exceptions.DatasetsError) as error:
        why: BaseException = error
        while why.__cause__:
            why = why.__cause__
        # As it copies recordings that lie in files; it reads them without.
        streaming = "; --streaming does without" if "torchcodec" in str(why) else ""
        raise UserError(f"{source} cannot be read by datasets: {why}{streaming}") from error


def load(options: argparse.Namespace, datasets: Any) -> dict[str, Any]:
    """Split, as the source calls it -> its rows; what they are of is looked at before any is downloaded."""
    source = options.source
    if isinstance(source, Path) and any((source / name).exists() for name in SAVED):
        if options.config:
            raise UserError(f"--config is {options.config}; {source} was written by save_to_disk and has none")
        loaded = datasets.load_from_disk(str(source))
        return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {str(loaded.split or "train"): loaded}
    name, revision = str(source), None
    if isinstance(source, str):
        parts = _REPOSITORY.fullmatch(source.removeprefix(HUB))
        assert parts
        name, revision = parts["name"], parts["revision"]
    builder = datasets.load_dataset_builder(name, options.config, revision=revision)
    if options.streaming or isinstance(source, Path):
        return dict(builder.as_streaming_dataset())
    if builder.info.features:
        chosen_columns(options, builder.info.features, datasets)
    builder.download_and_prepare()
    return dict(builder.as_dataset())


def chosen_columns(
    options: argparse.Namespace, features: Mapping[str, Any], datasets: Any
) -> tuple[str, dict[str, str]]:
    """The column of the recordings, and label -> its column.

    Raises:
        UserError: there is none for the recordings, or several; one that is not there, or cannot be a label.
    """
    columns = ", ".join(f"{name} ({kind_of(feature)})" for name, feature in features.items()) or "no known columns"
    sounds = [name for name, feature in features.items() if isinstance(feature, datasets.Audio)]
    audio = options.audio_column or (sounds[0] if len(sounds) == 1 else None)
    if audio not in sounds:
        said = f"--audio-column is {audio}; " if audio else ""
        wanted = "--audio-column, one of them" if len(sounds) > 1 else "one of type Audio"
        raise UserError(f"{said}{options.source} has {columns}; expected {wanted}")
    classes = [name for name, feature in features.items() if isinstance(leaf(feature), datasets.ClassLabel)]
    labels = {label: label for label in (classes if options.labels is None else options.labels.split(","))}
    asked = [("--labels", label) for label in labels]
    if options.transcripts:
        labels, asked = {**labels, TEXT_LABEL: options.transcripts}, [*asked, ("--transcripts", options.transcripts)]
    for option, name in asked:
        kind = leaf(features[name]) if name in features else None
        if not isinstance(kind, datasets.ClassLabel) and not _NAMES.fullmatch(getattr(kind, "dtype", "")):
            raise UserError(
                f"{option} has {name!r}; {options.source} has {columns}; expected columns of classes, text "
                "or whole numbers, or lists of them"
            )
    if not labels:
        log.warning("%s has no column of classes, so there are no labels; --labels names others", options.source)
    return audio, labels


def kind_of(feature: Any) -> str:
    kind = type(feature).__name__
    return feature.dtype if kind == "Value" else kind


def leaf(feature: Any) -> Any:
    """Of a list's values, of a column's own otherwise."""
    return getattr(feature, "feature", feature)


def names_of(value: Any, feature: Any) -> str | list[str] | None:
    """The names that a value stands for; None if it is no label."""
    if isinstance(value, list):
        names = [name for one in value if isinstance(name := names_of(one, leaf(feature)), str)]
        return list(dict.fromkeys(names)) or None
    if value is None or value == "":
        return None
    if (classes := getattr(feature, "names", None)) is not None:
        return str(classes[value]) if value >= 0 else None
    return str(value)


def bare(rows: Any, columns: Sequence[str], datasets: Any) -> Any:
    """Columns of the rows, the recordings' first, as {"bytes", "path"}: not decoded, which is the writer's work."""

    class Stored(datasets.Audio):  # type: ignore[misc]
        """In a stream, that of `datasets` asks for a package that encodes sound, whatever it is given."""

        def encode_example(self, value: Any) -> Any:
            return {"bytes": None, "path": str(value)} if isinstance(value, str | Path) else value

    rows = rows.select_columns(list(dict.fromkeys(columns)))
    stored = Stored if isinstance(rows, datasets.IterableDataset) else datasets.Audio
    return rows.cast_column(columns[0], stored(decode=False))


def is_of_hub(path: str, datasets: Any) -> bool:
    """Whether a path that a repository names leads to what is the Hub's, there or in the caches here."""
    if "://" in path:
        return path.rpartition("::")[2].startswith("hf://")
    caches = (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    return any(Path(path).resolve().is_relative_to(Path(cache).resolve()) for cache in caches)


def recordings_of(
    rows: Any, split: str, audio: str, labels: Mapping[str, str], options: argparse.Namespace, datasets: Any
) -> Iterator[Recording]:
    """A split's, without keys.

    Raises:
        UserError: a row without a recording; one of a repository with a file of this machine that is not of the Hub.
    """
    with progress_bar(None, "recording", f"reading {split}") as bar:
        for index, row in enumerate(bare(rows, [audio, *labels.values()], datasets)):
            if row[audio] is None:
                raise UserError(f"row {index} of the split {split} has no recording; expected one in each {audio}")
            inside = isinstance(options.source, Path) or row[audio]["bytes"] is not None
            if not inside and not is_of_hub(row[audio]["path"] or "", datasets):
                raise UserError(
                    f"row {index} of the split {split} of {options.source} names {row[audio]['path']}, which "
                    "is not of the Hub; expected a repository that holds its recordings"
                )
            named = {label: names_of(row[column], rows.features[column]) for label, column in labels.items()}
            path = file_of(row[audio], f"{safe_key(split)}-{index:06d}", options.unpacked)
            yield Recording("", path, {label: names for label, names in named.items() if names is not None})
            bar.update()


def file_of(recording: Mapping[str, Any], otherwise: str, unpacked: Unpacked) -> Path:
    """A recording's own file, or the one to which its bytes, or what is at its url, are written."""
    path, content = recording["path"], recording["bytes"]
    if content is None and "://" in (path or ""):
        with fsspec.open(path, "rb") as file:
            content = file.read()
        path = re.split("://|::", path)[1]
    return Path(path or "").absolute() if content is None else unpacked.add(path, otherwise, content)


def class_lists(splits: Mapping[str, Any], labels: Mapping[str, str]) -> dict[str, Sequence[str]]:
    """Label -> its classes in the order of their numbers, of those that have them."""
    lists: dict[str, Sequence[str]] = {}
    for split, rows in splits.items():
        for label, column in labels.items():
            classes = getattr(leaf(rows.features[column]), "names", None)
            if classes is not None and list(lists.setdefault(label, classes)) != list(classes):
                raise UserError(f"the split {split} has other classes of the {label} than others; expected the same")
    return lists


def find(options: argparse.Namespace) -> DataSet:
    datasets = import_extra("datasets")
    with told(options.source, datasets):
        loaded = load(options, datasets)
        wanted = options.splits.split(",") if options.splits else list(loaded)
        if unknown := [split for split in wanted if split not in loaded]:
            raise UserError(f"--splits has {unknown[0]!r}; {options.source} has the splits {', '.join(loaded)}")
        names = split_names([safe_key(split) for split in wanted])
        chosen = [chosen_columns(options, loaded[split].features or {}, datasets) for split in wanted]
        audio, labels = chosen[0]
        if any(other != chosen[0] for other in chosen):
            raise UserError(f"{options.source} has other columns in each split; expected --audio-column and --labels")
        lists = class_lists({split: loaded[split] for split in wanted}, labels)
        splits = {
            names[safe_key(split)]: list(recordings_of(loaded[split], split, audio, labels, options, datasets))
            for split in wanted
        }
    check_present(splits, options.max_bad_fraction)
    name = options.name or str(options.source).rstrip("/").rpartition("/")[2].partition("@")[0]
    return DataSet(name, keyed(splits, options.source if isinstance(options.source, Path) else None), lists)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, shape, what in (
        ("--name", "NAME", "of the data set (default: SOURCE's)"),
        ("--config", "NAME", "the configuration, of a repository that has several"),
        ("--splits", "NAME,...", "those to write, as SOURCE calls them (default: all)"),
        ("--audio-column", "NAME", "the recordings' column (default: the one of type Audio)"),
        ("--labels", "NAME,...", "the labels' columns (default: those of classes)"),
        ("--transcripts", "NAME", "the column of what is said, for the label text"),
    ):
        add_argument(parser, option, plain_text, metavar=shape, help=what)
    streaming = "read a repository as it comes, without a copy in the cache of datasets"
    parser.add_argument("--streaming", action="store_true", help=streaming)
    with tempfile.TemporaryDirectory() as folder:
        parser.set_defaults(unpacked=Unpacked(Path(folder)))
        return run_script(parser, find, arguments, read_source=place)


if __name__ == "__main__":
    sys.exit(main())
