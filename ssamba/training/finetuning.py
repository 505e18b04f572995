"""Training a classifier as a LightningModule (SSAST section 2.4; SSAMBA section 3.2).

Shapes: B batch, S samples, T frames, M mel bins, C classes.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
import torchaudio
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn

from ssamba.audio import LogMel, make_louder, move_bins
from ssamba.data.batches import Batch
from ssamba.evaluation.metrics import clip_metrics
from ssamba.evaluation.task import Task
from ssamba.masking import clip_generator
from ssamba.models.heads import AudioClassifier
from ssamba.training.common import OptimizerSettings, TrainingModule
from ssamba.training.distributed import gathered


class Augmentation(nn.Module):
    """Random changes of training clips; probabilities and sizes as in the recipe's augmentation section. scale: of
    the spectrograms, `LogMel.scale`."""

    def __init__(
        self,
        mixup: float,
        frequency_mask: int,
        time_mask: int,
        noise: float,
        time_shift: int,
        time_stretch: float,
        frequency_shift: int,
        gain: float,
        tilt: float,
        scale: float,
    ) -> None:
        super().__init__()
        self.mixup, self.noise, self.time_shift = mixup, noise, time_shift
        self.time_stretch, self.frequency_shift = time_stretch, frequency_shift
        self.gain, self.tilt, self.scale = gain, tilt, scale
        masks: list[nn.Module] = []
        if frequency_mask:
            masks.append(torchaudio.transforms.FrequencyMasking(frequency_mask, iid_masks=True))
        if time_mask:
            masks.append(torchaudio.transforms.TimeMasking(time_mask, iid_masks=True))
        self.masks = nn.Sequential(*masks)

    def mix(self, waveform: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mixup of waveforms (B, S), their lengths (B,) and soft targets (B, C), each clip with a random other one."""
        batch = len(waveform)
        chosen = (torch.rand(batch) < self.mixup).to(waveform.device)
        share = torch.distributions.Beta(10.0, 10.0).sample((batch, 1)).to(waveform.device)
        share = torch.where(chosen.unsqueeze(1), share, 1.0)
        other = torch.randperm(batch).to(waveform.device)
        mixed_lengths = torch.where(chosen, torch.maximum(lengths, lengths[other]), lengths)
        mixed = share * waveform + (1 - share) * waveform[other]
        return mixed, mixed_lengths, share * targets + (1 - share) * targets[other]

    def forward(self, log_mel: Tensor, frames: Tensor) -> Tensor:
        """Time shift and stretch, frequency shift, gain and tilt, noise and SpecAugment of normalised spectrograms
        (B, T, M). Of each clip its own `frames` (B,) are rolled and stretched, as a loop, and made louder; the padding
        after them stays what it is."""
        batch, length, _ = log_mel.shape
        device = log_mel.device
        place, own = torch.arange(length, device=device), frames.clamp(min=1).unsqueeze(1)
        if self.time_shift:
            shift = torch.randint(-self.time_shift, self.time_shift + 1, (batch, 1)).to(device)
            log_mel = _taken(log_mel, torch.where(place < own, (place - shift) % own, place))
        if self.time_stretch:
            speed = 1 + self.time_stretch * (2 * torch.rand(batch, 1) - 1).to(device)
            at = place * speed % own
            first = at.floor().long()
            before, after = (_taken(log_mel, torch.where(place < own, one % own, place)) for one in (first, first + 1))
            log_mel = torch.lerp(before, after, (at - first).unsqueeze(2))
        if self.frequency_shift:
            shift = torch.randint(-self.frequency_shift, self.frequency_shift + 1, (batch,)).to(device)
            log_mel = move_bins(log_mel, shift)
        if self.gain or self.tilt:
            gain, tilt = torch.randn(2, batch).to(device)
            louder = make_louder(log_mel, self.gain * gain, self.tilt * tilt, self.scale)
            log_mel = torch.where((place < own).unsqueeze(2), louder, log_mel)
        if self.noise:
            amplitude = self.noise * torch.rand(batch, 1, 1, device=device)
            log_mel = log_mel + amplitude * torch.rand_like(log_mel)
        if len(self.masks):
            # torchaudio masks (B, channel, frequency, time); masked values become 0, the mean.
            log_mel = self.masks(log_mel.transpose(1, 2).unsqueeze(1)).squeeze(1).transpose(1, 2)
        return log_mel


def _taken(log_mel: Tensor, index: Tensor) -> Tensor:
    """Of each clip of (B, T, M) the frames of an index (B, T)."""
    return log_mel.gather(1, index.unsqueeze(2).expand_as(log_mel))


class FineTuning(TrainingModule):
    """A classifier on labelled clips: labels int64 (B,), or float32 (B, C) of tasks of several a clip.

    Args:
        task: has the loss, and what validation is scored by.
        freeze_encoder: train the head alone.
        freeze_steps, unfreeze_every: steps before the encoder is trained, and from one of its layers to the next.
        drop_path: of `Stack.draw_kept`.
        label_smoothing: of each target, the share that training spreads evenly over all classes.
        class_weights: float32 (C,), what each class's term counts in the loss of training; of bce its positive term.
    """

    model: AudioClassifier

    def __init__(
        self,
        model: AudioClassifier,
        log_mel: LogMel,
        settings: OptimizerSettings,
        *,
        task: Task,
        augmentation: Augmentation,
        freeze_encoder: bool,
        freeze_steps: int,
        unfreeze_every: int,
        drop_path: float,
        label_smoothing: float,
        class_weights: Tensor | None,
        seed: int,
    ) -> None:
        super().__init__(settings, seed, drop_path)
        self.model, self.log_mel, self.augmentation = model, log_mel, augmentation
        self.task, self.freeze_encoder, self.label_smoothing = task, freeze_encoder, label_smoothing
        self.freeze_steps, self.unfreeze_every = freeze_steps, unfreeze_every
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self._make_gradients(of_encoder=not freeze_encoder)
        self._scored: list[tuple[Tensor, Tensor, Tensor]] = []

    def trained_parts(self) -> list[tuple[nn.Module, float]]:
        s = self.settings
        head_rate = s.learning_rate if s.head_learning_rate is None else s.head_learning_rate
        head: list[tuple[nn.Module, float]] = [(self.model.pool, head_rate), (self.model.head, head_rate)]
        return head if self.freeze_encoder else [(self.model.encoder, s.learning_rate), *head]

    def frozen_parameters(self) -> Iterator[nn.Parameter]:
        since = self.trainer.global_step - self.freeze_steps
        if since >= 0 and not self.unfreeze_every:
            return
        # Layers that are trained, from the last on; with the first of them the final norm is.
        trained = -1 if since < 0 else 1 + since // self.unfreeze_every
        for name, parameter in self.model.encoder.named_parameters():
            if self.model.encoder.layers_above(name) > trained:
                yield parameter

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        # While the head alone is trained, the encoder's gradients are not made. DDP and FSDP wait for all of them.
        if self.freeze_steps and isinstance(self.trainer.strategy, SingleDeviceStrategy):
            self._make_gradients(self.trainer.global_step >= self.freeze_steps)

    def _make_gradients(self, of_encoder: bool) -> None:
        self.model.encoder.requires_grad_(of_encoder)
        self.model.encoder.mask_token.requires_grad_(False)  # no patch is hidden

    def targets(self, labels: Tensor) -> Tensor:
        """Class numbers (B,), or several or mixed labels (B, C) -> probabilities, float32 (B, C); labels of hops and
        characters (B, N) as they are."""
        if labels.ndim == 2:
            return labels
        return F.one_hot(labels, self.model.num_labels).float()

    def loss(self, logits: Tensor, targets: Tensor, class_weights: Tensor | None = None) -> Tensor:
        """logits (B, C), targets (B, C), class_weights (C,) -> float32 scalar, the mean over the clips."""
        return self.task.loss(logits.float(), targets, class_weights)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        targets = self.targets(batch["labels"])
        # Augmentation draws from torch's global generators; they are given this batch's own state for its duration. No
        # two ranks and no two steps have the same first clip.
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            torch.manual_seed(clip_generator(self.seed, "augmentation", batch["positions"][0]).initial_seed())
            waveform, lengths = batch["waveform"], batch["lengths"]
            if self.augmentation.mixup:
                waveform, lengths, targets = self.augmentation.mix(waveform, lengths, targets)
            frames = self.log_mel.frames(lengths)
            log_mel = self.augmentation(self.log_mel(waveform, lengths), frames)
        logits = self.model(log_mel, frames, self.draw_kept(batch["positions"]))
        values = self.objectives(logits, targets, frames)
        self.watch(batch["keys"], **values)
        return values["loss"]

    def objectives(self, logits: Tensor, targets: Tensor, frames: Tensor) -> dict[str, Tensor]:
        """What the model says of training clips of so many frames (B,), and `targets` -> loss and accuracy."""
        smooth = self.label_smoothing
        smoothed = (1 - smooth) * targets + smooth / targets.shape[1] if smooth else targets
        loss = self.loss(logits, smoothed, self.class_weights)
        return {"loss": loss, "accuracy": (logits.detach().argmax(1) == targets.argmax(1)).float().mean()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        logits = self.model(self.log_mel(batch["waveform"], batch["lengths"]), self.log_mel.frames(batch["lengths"]))
        self._scored.append((torch.tensor(batch["positions"]), logits.float().cpu(), batch["labels"].cpu()))

    def on_validation_epoch_end(self) -> None:
        # Scores are not means over ranks: they are taken of all clips, which every rank then holds.
        parts = gathered([torch.cat(column) for column in zip(*self._scored, strict=True)])
        self._scored.clear()
        positions, logits, labels = (torch.cat(column) for column in zip(*parts, strict=True))
        logits, labels = logits[order := positions.argsort()], labels[order]
        self.log("val/loss", self.loss(logits, self.targets(labels)))
        scores = {**clip_metrics(logits, labels), **self.task.scores(logits, labels)}
        self.log_dict({f"val/{name}": value for name, value in scores.items()})
