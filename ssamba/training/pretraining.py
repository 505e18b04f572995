"""Masked-patch pretraining as a LightningModule (SSAMBA section 2.3).

Shapes: B batch, V masks of a clip, S samples, T frames, M mel bins, L patch tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from ssamba.audio import LogMel
from ssamba.data.batches import Batch
from ssamba.errors import UserError
from ssamba.masking import Masking, clip_generators
from ssamba.models.heads import MaskedPatchModel
from ssamba.objectives import (
    OF_PATCHES,
    PARTS,
    Changes,
    ChangeSettings,
    Mixture,
    Seen,
    Teacher,
    changed,
    draw_changes,
    draw_partners,
    mixed_with,
    retained,
)
from ssamba.training.common import OptimizerSettings, TrainingModule
from ssamba.training.distributed import gathered

COLLAPSED = 0.01
"""A spread (`ssamba.objectives.spread`) below it is a collapse,"""
COLLAPSE_AFTER = 500
"""judged from this step on: what a head says at first differs little from clip to clip."""


class Pretraining(TrainingModule):
    """One encoder pass a step; all parts of the loss read it, on the same masks.

    Args:
        model: the encoder with its heads, among them those that the parts need (`ssamba.objectives.HEADS`).
        log_mel: waveforms to spectrograms.
        parts: what is minimized: the sum of these parts (`ssamba.objectives.PARTS`), each times its weight. SSAMBA's
            are contrastive and 10 times reconstruction (the papers' lambda).
        masking: which patches are hidden.
        masks: V, in training; a validation clip has one.
        teacher: of the parts that need one.
        mix: the probability that a training clip is mixed with another of its batch.
        changes: of training clips, each mask's its own, before the student hears them; None: it hears them as they are.
        features: gives (B, P, D) of a batch, another model's features of its clips at the times of their P columns of
            patches; of the part that needs that. It is no part of this module: no checkpoint has it, no gradient
            reaches it.
        drop_path: of `Stack.draw_kept`.
    """

    model: MaskedPatchModel

    def __init__(
        self,
        model: MaskedPatchModel,
        log_mel: LogMel,
        settings: OptimizerSettings,
        *,
        parts: Mapping[str, float],
        masking: Masking,
        masks: int = 1,
        teacher: Teacher | None = None,
        mix: float = 0.0,
        changes: ChangeSettings | None = None,
        features: Callable[[Batch], Tensor] | None = None,
        drop_path: float,
        seed: int,
    ) -> None:
        super().__init__(settings, seed, drop_path)
        self.model, self.log_mel, self.teacher, self.features = model, log_mel, teacher, features
        self.parts, self.masking, self.masks, self.mix, self.changes = dict(parts), masking, masks, mix, changes
        self._scored: list[tuple[int, dict[str, Tensor]]] = []
        # What gets no gradient is not among what several devices wait for.
        model.contrastive_head.requires_grad_("contrastive" in parts)
        model.reconstruction_head.requires_grad_("reconstruction" in parts)
        if model.decoder is not None:
            model.decoder.requires_grad_(bool(parts.keys() & set(OF_PATCHES)))
            model.encoder.mask_token.requires_grad_(False)

    def trained_parts(self) -> list[tuple[nn.Module, float]]:
        return [(self.model, self.settings.learning_rate)]

    def sharded_modules(self) -> Iterator[tuple[nn.Module, nn.ModuleList]]:
        yield from super().sharded_modules()
        if self.teacher is not None:
            yield self.teacher, self.teacher.encoder.stack.layers

    def after_step(self, steps: int) -> None:
        super().after_step(steps)
        if self.teacher is not None:
            self.teacher.follow(self.model.encoder, steps / self.settings.max_steps)

    def draw_mask(
        self, purpose: str, positions: Sequence[int], lengths: Tensor | None = None, masks: int = 1
    ) -> Tensor:
        """bool (B * masks, L) on the module's device, those of a clip one after another: each clip's own, by the seed
        and its place in the order. `lengths` (B,): the samples of each that are no padding; None: all."""
        encoder, columns = self.model.encoder, None
        generators = clip_generators(self.seed, purpose, positions, masks)
        if self.masking.padded and lengths is not None:
            columns = encoder.patch_shape.own_columns(self.log_mel.frames(lengths.cpu()), encoder.grid[1])
            columns = columns.repeat_interleave(masks)
        return self.masking.draw(*encoder.grid, generators, columns).to(self.device)

    def own_patches(self, lengths: Tensor) -> Tensor | None:
        """bool (B, L), the patches that are no padding; None: all."""
        if not self.masking.padded:
            return None
        encoder = self.model.encoder
        return encoder.patch_shape.own_patches(self.log_mel.frames(lengths), *encoder.grid)

    def mixture(self, log_mel: Tensor, lengths: Tensor, positions: Sequence[int]) -> Mixture:
        """Training clips, some mixed: each draws by the seed and its place in the order, its partner from this batch.
        log_mel (B, T, M), lengths (B,) in samples."""
        generators = clip_generators(self.seed, "mix", positions)
        partners = draw_partners(self.mix, generators).to(self.device)
        return mixed_with(log_mel, self.log_mel.frames(lengths), partners, self.log_mel.scale)

    def draw_changes(self, positions: Sequence[int], lengths: Tensor) -> Changes | None:
        """Of the student's clips, B * V, those of a clip one after another: each its own, by the seed and the clip's
        place in the order. `lengths` (B,): their samples. None: it hears them as they are."""
        if self.changes is None:
            return None
        frames = self.log_mel.frames(lengths).repeat_interleave(self.masks)
        return draw_changes(self.changes, clip_generators(self.seed, "changes", positions, self.masks), frames)

    def features_of(self, batch: Batch) -> Tensor | None:
        """(B, P, D), as of the module."""
        return None if self.features is None else self.features(batch)

    def objectives(
        self,
        log_mel: Tensor,
        mask: Tensor,
        kept: Tensor | None = None,
        own: Tensor | None = None,
        mixture: Mixture | None = None,
        features: Tensor | None = None,
        changes: Changes | None = None,
    ) -> dict[str, Tensor]:
        """What is minimized, and all that makes it: float32 scalars, "loss" first.

        Args:
            log_mel: (B, T, M).
            mask: bool (B * V, L).
            kept: as of the encoder, of B * V clips.
            own: bool (B, L), the patches of log_mel that are no padding; None: all.
            mixture: the mixed clips that the student gets in place of log_mel, which the teacher gets; None: both get
                log_mel.
            features: (B, P, D), as of the module; None: none are needed.
            changes: of B * V clips, which the student hears changed, and tells the patches of; a teacher hears them as
                they are. None: so does the student.
        """
        masks = len(mask) // len(log_mel)
        targets = None if self.teacher is None else self.teacher(log_mel, own)
        if mixture is not None:
            log_mel = mixture.log_mel
            targets = None if targets is None else retained(targets, mixture.partners, own)
            own = None if own is None else own | own[mixture.partners]
        if masks > 1:
            log_mel = log_mel.repeat_interleave(masks, 0)
            own = None if own is None else own.repeat_interleave(masks, 0)
        if changes is not None:
            log_mel = changed(log_mel, changes, self.log_mel.scale)
        prediction = self.model(log_mel, mask, self.masking.masked, own, kept)
        seen = Seen(prediction, masks, targets, features, own)
        by_part = {name: PARTS[name](seen) for name in self.parts}
        losses = [weight * by_part[name][name] for name, weight in self.parts.items()]
        loss = losses[0]
        for one in losses[1:]:
            loss = loss + one
        values = {"loss": loss}
        for measures in by_part.values():
            values |= measures
        return values

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        log_mel = self.log_mel(batch["waveform"], batch["lengths"])
        positions, lengths = batch["positions"], batch["lengths"]
        own, mixture = self.own_patches(lengths), None
        if self.mix:
            mixture = self.mixture(log_mel, lengths, positions)
            lengths = torch.maximum(lengths, lengths[mixture.partners])
        mask = self.draw_mask("train", positions, lengths, self.masks)
        kept = self.draw_kept(positions, self.masks)
        changes = self.draw_changes(positions, lengths)
        values = self.objectives(log_mel, mask, kept, own, mixture, self.features_of(batch), changes)
        self.watch(batch["keys"], **values)
        return values["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        lengths = batch["lengths"]
        log_mel = self.log_mel(batch["waveform"], lengths)
        # The mask of a validation clip is the same every time, so that the curve shows the model alone.
        mask = self.draw_mask("validation", batch["positions"], lengths)
        values = self.objectives(log_mel, mask, None, self.own_patches(lengths), None, self.features_of(batch))
        self._scored.append((len(log_mel), values))

    def on_validation_epoch_end(self) -> None:
        # Lightning's own mean over ranks rounds their numbers of clips.
        scored = [(clips, torch.stack(list(values.values())).tolist()) for clips, values in self._scored]
        parts = [part for rank in gathered(scored) for part in rank]
        for index, name in enumerate(self._scored[0][1]):
            mean = sum(clips * values[index] for clips, values in parts) / sum(clips for clips, _ in parts)
            self.log(f"val/{name}", mean)
        self._scored.clear()

    def check_parts(self, parts: Mapping[str, float]) -> None:
        """Stop a run whose student or teacher has collapsed: its output is the same for every input.

        Raises:
            UserError: names what collapsed.
        """
        if self.trainer.global_step < COLLAPSE_AFTER:
            return
        for name, value in parts.items():
            if name.endswith("_spread") and value < COLLAPSED:
                who = "the teacher" if name == "teacher_spread" else f"the predictions of objective.parts.{name[:-7]}"
                mend = (
                    "raise objective.teacher.decay, or add a part with fixed targets (objective.parts.reconstruction)"
                )
                if name == "distillation_spread":
                    mend = "or take another objective.distillation.teacher or layer"
                raise UserError(
                    f"step {self.trainer.global_step}: {who} collapsed: {name} is {value:.2g}, so all clips are told "
                    f"alike, and nothing more is learned. Lower optimizer.learning_rate, {mend}"
                )
