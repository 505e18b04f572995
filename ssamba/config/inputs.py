"""What a model hears, what it is, and where its clips come from: the sections that all recipes begin with."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from ssamba.config.checks import (
    AUDIO_RANGES,
    LARGE,
    MANY,
    MODEL_SIZES,
    PATCH_ORDERS,
    SCAN_BACKENDS,
    SCAN_LAYOUTS,
    PathText,
    SourceText,
    below_one,
    known_part,
    one_of,
    within,
)


@dataclass
class AudioConfig:
    """What a spectrogram is."""

    sampling_rate: int = 16000
    """Hz; shards of another rate are refused."""
    num_mel_bins: int = 128
    max_length: int = 1024
    """Frames of a clip (10 ms each); shorter recordings are padded, longer ones cropped."""
    mean: float | None = None
    """Of the log-mel values; null: the pretrained model's, else measured on the training shards (`ssamba stats`)."""
    std: float | None = None
    """As mean. Spectrograms are (x - mean) / (2 * std)."""

    def problems(self) -> Iterator[str]:
        for name, (low, high) in AUDIO_RANGES.items():
            yield from within(f"audio.{name}", getattr(self, name), low, high)
        if (self.mean is None) != (self.std is None):
            yield "audio.mean and audio.std: give both or neither"


@dataclass
class ModelConfig:
    """The encoder and its patches."""

    encoder: str = "ssamba"
    """ssamba | ssast | aum | conformer | bilstm | ssd, or one of another package (CONTRIBUTING.md, Adding parts): the
    one word that switches the network."""
    size: str = "tiny"
    """nano | tiny | small | base, and large of aum; of another package's encoder its own."""
    fshape: int = 16
    """Mel bins of a patch."""
    tshape: int = 16
    """Frames of a patch."""
    frequency_stride: int | None = None
    """Mel bins from one patch to the next; null: fshape."""
    time_stride: int | None = None
    """Frames from one patch to the next; null: tshape."""
    patch_order: str | None = None
    """frequency | time: the order in which the layers meet patches: one frequency row after another, as the originals
    have it, or one column after another, so that a scan meets all bands of a moment together (of ssast, which has no
    order, the same); null: the pretrained model's, else frequency."""
    residual: str | None = None
    """plain | doubling, of ssamba: the stack as the paper draws it, or the original's residual, which its weights need;
    null: the pretrained model's, else plain."""
    scan_layout: str | None = None
    """fo_fo | fo_bi | bi_bi, of aum: directions of the convolution and of the scan (fo: forward, bi: both); null: the
    pretrained model's, else fo_bi."""
    scan_backend: str = "auto"
    """auto | reference | torch-chunked | cpu | triton | mamba-ssm, of ssamba and aum: what computes the scan."""
    drop_path: float = 0.0
    """In training a layer's residual branch is left out of a clip by this chance at the last layer, by less and less
    before it, down to none at the first (stochastic depth); SSAMBA's scripts have 0.1."""
    encode: str = "all"
    """all | visible, in pretraining: the encoder gets all patches, hidden ones behind a mask token; or the visible ones
    alone, and a light decoder, three convolutions of a third of the width, fills in the hidden ones (MAE): the more
    mask.share hides, the faster is a step. The decoder is exported, for `ssamba evaluate`; whatever else uses the model
    takes the encoder alone."""
    pretrained: PathText | None = None
    """A run folder or its model/ folder: weights to start from; the encoder and patch shape must agree."""

    def problems(self) -> Iterator[str]:
        yield from known_part("model.encoder", "encoder", self.encoder)
        for complaint in one_of("model.size", self.size, MODEL_SIZES.get(self.encoder, (self.size,))):
            yield f"{complaint} for encoder {self.encoder}"
        if self.patch_order is not None:
            yield from one_of("model.patch_order", self.patch_order, PATCH_ORDERS)
        if self.residual is not None:
            yield from one_of("model.residual", self.residual, ("plain", "doubling"))
        if self.scan_layout is not None:
            yield from one_of("model.scan_layout", self.scan_layout, SCAN_LAYOUTS)
        yield from one_of("model.scan_backend", self.scan_backend, SCAN_BACKENDS)
        for name in ("fshape", "tshape", "frequency_stride", "time_stride"):
            yield from within(f"model.{name}", getattr(self, name), 1, MANY)
        yield from below_one("model.drop_path", self.drop_path)
        yield from one_of("model.encode", self.encode, ("all", "visible"))


@dataclass
class DataConfig:
    """Where clips come from. A source is a split's folder (with its index.json) or a pattern of shards in one."""

    train: list[SourceText] = field(default_factory=list)
    """Here (FOLDER/train, FOLDER/train/{000000..000009}.tar), at the same urls (s3://BUCKET/train, gs://, az://, hf://,
    https://HOST/train/ and others, by fsspec's drivers), or wherever a command reads them from: `pipe:` and the command
    that writes one of the folder's files to its stdout, with its name in it ("pipe:ssh HOST cat train/index.json";
    index.json stands for all shards). The commands of a recipe are executed: read a stranger's first."""
    weights: list[float] | None = None
    """Of the sources in train: their shares of the clips, to a thousandth; null: every recording equally often."""
    order: str = "indexed"
    """indexed | streaming, of train: one order for any workers and devices, in which a run goes on exactly where it
    was; or, in pretraining, shards of which there is no index (a folder of .tar, their names or urls), read from front
    to back: a run that goes on hears what is left of an epoch in another order."""
    validation: list[SourceText] = field(default_factory=list)
    """Held-out clips; null: no validation."""
    test: list[SourceText] = field(default_factory=list)
    """Scored once, at the end of fine-tuning and by `ssamba evaluate`; null: nothing is."""
    batch_size: int = 32
    """Clips of one optimizer step, over all devices and accumulated batches: how a run is spread changes neither the
    step nor its learning rate. Each device takes batch_size / (devices * num_nodes * accumulate) clips at a time."""
    num_workers: int = 0
    """Processes that decode, for each device; 0: the training process itself."""
    shuffle_buffer: int = 2000
    """Shards come in an order of chance; so many recordings at least (whole shards) are mixed at a time. Streaming, so
    many are in memory on each device, as they were read."""
    short: str = "pad"
    """What fills the clip of a short recording: pad | repeat (it again) | pack (pretraining: the next ones)."""
    label_fraction: float = 1.0
    """Fine-tuning: share of the labelled training recordings, stratified by label, chosen by the seed."""
    balance: bool = False
    """Fine-tuning: recordings are drawn with replacement, each by the sum over its labels of 1 / the recordings that
    have this label, as SSAST and AuM do for AudioSet, so that rare labels are heard as often as common ones. An epoch
    is as long as without. A recording that is drawn several times in an epoch comes within one shuffle_buffer."""
    fold_by: str | None = None
    """Fine-tuning: a label of the training recordings, such as speaker or session, whose names are folds; null: the
    test split is data.test."""
    fold: str | None = None
    """The name of fold_by whose recordings are the test split, and are left out of training and validation; `ssamba
    finetune --folds all` takes each in turn."""
    max_bad_fraction: float = 0.01
    """More bad recordings than this share end the run."""
    cache: PathText | None = None
    """Folder for shards that lie elsewhere, on a local disk, shared by all processes and runs of a machine; null:
    XDG_CACHE_HOME/ssamba/shards, else ~/.cache/ssamba/shards. Nothing there needs keeping: it is fetched again."""
    cache_gigabytes: float = 100.0
    """The most that it may hold (10^9 bytes); what was used least recently goes first. An epoch is fetched once if all
    shards fit, each epoch anew if not."""

    @property
    def cache_bytes(self) -> int:
        return round(self.cache_gigabytes * 1e9)

    def problems(self) -> Iterator[str]:
        yield from within("data.batch_size", self.batch_size, 1, 1_000_000)
        yield from one_of("data.order", self.order, ("indexed", "streaming"))
        if self.order == "streaming" and self.weights is not None:
            yield (
                "data.weights mixes sources by their recordings, which data.order=streaming does not know; expected "
                "null, or data.order=indexed"
            )
        yield from one_of("data.short", self.short, ("pad", "repeat", "pack"))
        yield from within("data.num_workers", self.num_workers, 0, 1024)
        yield from within("data.shuffle_buffer", self.shuffle_buffer, 1, MANY)
        yield from within("data.max_bad_fraction", self.max_bad_fraction, 0, 1)
        yield from within("data.cache_gigabytes", self.cache_gigabytes, 1e-9, LARGE)
        sources, weights = len(self.train), self.weights
        if weights is not None and (len(weights) != sources or not all(0 < weight <= LARGE for weight in weights)):
            yield (
                f"data.weights is {weights}; expected {sources} numbers above 0 and at most {LARGE:.15g}, one for "
                "each of data.train"
            )
        if self.fold_by is not None and self.test:
            yield f"data.fold_by is {self.fold_by!r}; expected one of it, whose fold is the test split, and data.test"
        if not 0 < self.label_fraction <= 1:
            yield f"data.label_fraction is {self.label_fraction}; expected more than 0 and at most 1"
