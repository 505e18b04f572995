"""Masked-patch pretraining as a LightningModule (SSAMBA section 2.3).

Shapes: B batch, S samples, T frames, M mel bins, L patch tokens.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssamba.audio import LogMel
from ssamba.data.batches import Batch
from ssamba.losses import info_nce, reconstruction_mse
from ssamba.masking import Masking, clip_generator
from ssamba.models.heads import MaskedPatchModel
from ssamba.training.common import OptimizerSettings, TrainingModule
from ssamba.training.distributed import gathered


class Pretraining(TrainingModule):
    """One encoder pass a step; both heads read it, on one mask.

    Args:
        model: the encoder with its two heads.
        log_mel: waveforms to spectrograms.
        objective: "joint", "contrastive" or "reconstruction".
        reconstruction_weight: joint = contrastive + this * reconstruction (the papers' lambda, 10).
        masking: which patches are hidden.
        drop_path: of `Stack.draw_kept`.
    """

    model: MaskedPatchModel

    def __init__(self, model: MaskedPatchModel, log_mel: LogMel, settings: OptimizerSettings, *, objective: str,
                 reconstruction_weight: float, masking: Masking, drop_path: float, seed: int) -> None:  # fmt: skip
        super().__init__(settings, seed, drop_path)
        self.model, self.log_mel = model, log_mel
        self.objective, self.reconstruction_weight = objective, reconstruction_weight
        self.masking = masking
        self._scored: list[tuple[int, dict[str, Tensor]]] = []
        # What gets no gradient is not among what several devices wait for.
        model.contrastive_head.requires_grad_(objective != "reconstruction")
        model.reconstruction_head.requires_grad_(objective != "contrastive")

    def trained_parts(self) -> list[tuple[nn.Module, float]]:
        return [(self.model, self.settings.learning_rate)]

    def draw_mask(self, purpose: str, positions: Sequence[int], lengths: Tensor | None = None) -> Tensor:
        """bool (B, L) on the module's device: each clip's own, by the seed and its place in the order. `lengths` (B,):
        the samples of each that are no padding; None: all."""
        encoder, columns = self.model.encoder, None
        generators = [clip_generator(self.seed, purpose, position) for position in positions]
        if self.masking.padded and lengths is not None:
            columns = encoder.patch_shape.own_columns(self.log_mel.frames(lengths.cpu()), encoder.grid[1])
        return self.masking.draw(*encoder.grid, generators, columns).to(self.device)

    def objectives(self, log_mel: Tensor, mask: Tensor, kept: Tensor | None = None) -> dict[str, Tensor]:
        """log_mel (B, T, M), mask bool (B, L), kept as of the encoder -> loss, contrastive, reconstruction, accuracy:
        float32 scalars."""
        prediction = self.model(log_mel, mask, self.masking.masked, self.masking.padded, kept)
        contrast = info_nce(prediction.contrastive, prediction.target, prediction.hidden)
        reconstruction = reconstruction_mse(prediction.reconstruction, prediction.target, prediction.hidden)
        joint = contrast.loss + self.reconstruction_weight * reconstruction
        loss = {"joint": joint, "contrastive": contrast.loss, "reconstruction": reconstruction}[self.objective]
        return {"loss": loss, "contrastive": contrast.loss, "reconstruction": reconstruction,
                "accuracy": contrast.accuracy}  # fmt: skip

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        log_mel = self.log_mel(batch["waveform"], batch["lengths"])
        positions = batch["positions"]
        mask = self.draw_mask("train", positions, batch["lengths"])
        values = self.objectives(log_mel, mask, self.draw_kept(positions))
        self.watch(batch["keys"], **values)
        return values["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        log_mel = self.log_mel(batch["waveform"], batch["lengths"])
        # The mask of a validation clip is the same every time, so that the curve shows the model alone.
        values = self.objectives(log_mel, self.draw_mask("validation", batch["positions"], batch["lengths"]))
        self._scored.append((len(log_mel), values))

    def on_validation_epoch_end(self) -> None:
        # Lightning's own mean over ranks rounds their numbers of clips.
        held = [(clips, torch.stack(list(values.values())).tolist()) for clips, values in self._scored]
        parts = [part for rank in gathered(held) for part in rank]
        for place, name in enumerate(self._scored[0][1]):
            mean = sum(clips * values[place] for clips, values in parts) / sum(clips for clips, _ in parts)
            self.log(f"val/{name}", mean)
        self._scored.clear()
