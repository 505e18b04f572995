"""A model of ours as a teacher: any encoder, pretrained or fine-tuned, of any sampling rate and number of mel bins."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssamba.audio import frames_in, samples_for
from ssamba.features import column_times
from ssamba.hub import SsambaModel
from ssamba.recordings import Waveform
from ssamba.teachers.teacher import FeatureTeacher


class OwnTeacher(FeatureTeacher):
    """A frame is a column of patches, its rows concatenated from low to high mel bins.

    Args:
        place: a model folder or a run folder, or a name on the Hub.
        layer: as `SsambaModel.num_hidden_states` counts.

    Raises:
        UserError: no model, or no such layer.
    """

    def __init__(self, place: str, layer: int) -> None:
        self.model = SsambaModel.from_pretrained(place)
        self._layer = self.model.layer_number(layer)
        extractor, encoder = self.model.feature_extractor, self.model.network.encoder
        rate, patch, (rows, columns) = extractor.sampling_rate, encoder.patch_shape, encoder.grid
        super().__init__(
            self.model,
            name=place,
            layer=layer,
            width=rows * encoder.hidden_size,
            sampling_rate=rate,
            times=column_times(patch, rate),
            window_samples=extractor.clip_samples,
            window_frames=columns,
            least_samples=samples_for(patch.tshape, rate),
        )

    def window_features(self, windows: Sequence[Waveform]) -> list[Tensor]:
        features = self.model.feature_extractor.extract(windows)
        out = self.model(*features, layers=[self._layer])
        joined = out.hidden_states[0].transpose(1, 2).flatten(2)  # (B, P, F * D)
        frames = torch.tensor([frames_in(one.size, self.sampling_rate) for one in windows])
        own = self.model.network.encoder.patch_shape.own_columns(frames, joined.shape[1])
        return [columns[:count] for columns, count in zip(joined, own.tolist(), strict=True)]
