"""Any model behind the API of HEAR, the Holistic Evaluation of Audio Representations
(https://hearbenchmark.com/hear-api.html), as the module `ssamba.integrations.hear`:

    python -m heareval.embeddings.runner ssamba.integrations.hear --model runs/pretrain-mine --tasks-dir tasks
    python benchmarks/hear_validator.py runs/pretrain-mine

Shapes: B batch, S samples, N columns, F rows of patches, D width of a token.
"""

from pathlib import Path

import torch
from torch import Tensor

from ssamba.errors import UserError
from ssamba.hub import SsambaModel
from ssamba.integrations.timeline import Timeline
from ssamba.models.encoder import Encoded
from ssamba.models.pools import DEFAULT_POOLING


class HearModel(Timeline):
    """What HEAR asks of a model: sample_rate in Hz, timestamp_embedding_size (F * D) and scene_embedding_size.

    A scene is the model's own pool of its columns, as `SsambaModel.pool` has it: a classifier's, else
    `pools.DEFAULT_POOLING`. A timeline has no class token, so that of a classifier that reads one is this, too.
    """

    def __init__(self, model: SsambaModel) -> None:
        super().__init__(model)  # 50 ms between timestamps are the most that HEAR advises
        pool = model.pool()
        self.pool = model.pool(DEFAULT_POOLING) if not pool.in_time else pool
        self.sample_rate = self.sampling_rate
        self.timestamp_embedding_size, self.scene_embedding_size = self.size, self.pool.size

    def scenes(self, columns: Tensor) -> Tensor:
        """The pooled columns of clips of one length: (B, N, F * D) -> float32 (B, scene_embedding_size)."""
        tokens = columns.unflatten(2, (self.pool.rows, -1)).transpose(1, 2).flatten(1, 2)
        scenes: Tensor = self.pool(Encoded(tokens, class_tokens=tokens[:, :0]))
        return scenes


def load_model(model_file_path: str | Path = "") -> HearModel:
    """A model folder, a run folder, or the name of a model on the Hub -> its model.

    Raises:
        UserError: no such model, or none named: there are no weights that could stand for this package.
    """
    if not model_file_path:
        raise UserError(
            "load_model was given no model; expected a model folder, a run folder or a model of the Hub (--model)"
        )
    return HearModel(SsambaModel.from_pretrained(model_file_path))


@torch.no_grad()
def get_timestamp_embeddings(audio: Tensor, model: HearModel) -> tuple[Tensor, Tensor]:
    """Embeddings at regular intervals of at most 50 ms.

    Args:
        audio: (B, S) in [-1, 1], at the model's rate, any S from 1 on; the model moves to its device.
        model: from `load_model`.

    Returns:
        embeddings: float32 (B, N, F * D); timestamps: float32 (B, N), the middles of what they embed, in milliseconds.

    Raises:
        UserError: audio of another shape.
    """
    embeddings = model.to(audio.device)(_clips(audio))[0]
    middles = model.middles_ms(embeddings.shape[1])
    # The last column can begin in the clip and have its middle after the end, where HEAR allows none.
    inside = max(1, int((middles <= 1000 * audio.shape[1] / model.sample_rate).sum()))
    return embeddings[:, :inside], middles[:inside].to(audio.device).expand(len(audio), -1)


@torch.no_grad()
def get_scene_embeddings(audio: Tensor, model: HearModel) -> Tensor:
    """One embedding a clip: (B, S) -> float32 (B, scene_embedding_size); as `get_timestamp_embeddings`."""
    return model.scenes(model.to(audio.device)(_clips(audio))[0])


def _clips(audio: Tensor) -> list[Tensor]:
    if audio.ndim != 2:
        raise UserError(f"audio has shape {tuple(audio.shape)}; expected (sounds, samples)")
    return list(audio)
