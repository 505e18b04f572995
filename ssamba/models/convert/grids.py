"""The grid of patches that so many positions of a checkpoint make, as the originals' recipes read them."""

from typing import NamedTuple

# Strides of the originals' published fine-tuning recipes, beside the patch's own sides, which make no overlap:
# 10 and 10 of patches of 16 x 16, and the whole height and 1 of frames. AuM's are all without overlap.
_OVERLAPPING = {(16, 16): (10, 10), (128, 2): (128, 1)}
_OVERLAPPING_FAMILIES = ("ssamba", "ssast")
# Frames of their clips, from Speech Commands (1 s) over ESC-50 and AudioSet to UrbanSound8K in one piece.
_PUBLISHED_LENGTHS = (128, 256, 512, 1024, 2048, 6144)
GIVE = "give --max-length, --num-mel-bins, --time-stride or --frequency-stride, as its recipe says"


class Reading(NamedTuple):
    """One way to read a positional grid: of patches with these strides, of clips with so many mel bins and frames."""

    frequency_stride: int
    time_stride: int
    rows: int
    columns: int
    num_mel_bins: int
    max_length: int

    def __str__(self) -> str:
        return (
            f"{self.rows} x {self.columns} patches of {self.num_mel_bins} mel bins x {self.max_length} frames with "
            f"--frequency-stride {self.frequency_stride} --time-stride {self.time_stride}"
        )


def readings_of(
    family: str,
    tokens: int,
    patch: tuple[int, int],
    num_mel_bins: int,
    max_length: int | None,
    frequency_stride: int | None,
    time_stride: int | None,
) -> list[Reading]:
    """The ways in which the originals' recipes read so many patches, as far as the arguments leave them open."""
    overlapping = _OVERLAPPING.get(patch) if family in _OVERLAPPING_FAMILIES else None
    readings = []
    for strides in (patch, overlapping) if overlapping else (patch,):
        rows_apart, columns_apart = frequency_stride or strides[0], time_stride or strides[1]
        rows = (num_mel_bins - patch[0]) // rows_apart + 1
        if rows < 1 or tokens < 1 or tokens % rows:
            continue
        columns = tokens // rows
        fewest = (columns - 1) * columns_apart + patch[1]
        lengths = range(fewest, fewest + columns_apart)
        length = max_length or next((frames for frames in _PUBLISHED_LENGTHS if frames in lengths), fewest)
        # One row of frames may have any number of columns: there a length that no recipe has is no reading.
        usual = strides == patch or rows > 1 or max_length or time_stride or length in _PUBLISHED_LENGTHS
        reading = Reading(rows_apart, columns_apart, rows, columns, num_mel_bins, length)
        if length in lengths and usual and reading not in readings:
            readings.append(reading)
    return readings
