"""Shards of VGGSound, of what could be downloaded of it, by its official split.

SOURCE holds vggsound.csv (video, start in seconds, label, train or test) and anywhere below it the clips, each of them
cut to its 10 s already and called as the video and the start: ---g-f_I2yQ_000001.wav, or in another way that
audioset.py knows. What is missing is counted and left out. Label: label, of which the list has 309, in the alphabet's
order.
"""

import argparse
import sys
from collections.abc import Sequence

from ssamba.data.prepare.recordings import DataSet, Recording
from ssamba.data.prepare.script import run_script
from ssamba.data.prepare.sources import VideoClips, number, read_table, warn_missing
from ssamba.errors import UserError


def find(options: argparse.Namespace) -> DataSet:
    table = options.source / "vggsound.csv"
    rows = list(read_table(table, ("video", "start", "label", "split"), header=False))
    clips = VideoClips(options.source)
    splits: dict[str, list[Recording]] = {"train": [], "test": []}
    wanted = dict.fromkeys(splits, 0)
    for row in rows:
        video, split = row["video"], row["split"]
        if split not in splits:
            raise UserError(f"{video} in {table} is of the split {split!r}; expected train or test")
        wanted[split] += 1
        start = number(row["start"], f"the start of {video} in {table}")
        if path := clips.find(video, start):
            splits[split].append(Recording(f"{video}_{int(start):06d}", path, {"label": row["label"]}))
    for split, recordings in splits.items():
        warn_missing(split, len(recordings), wanted[split], options.source, "---g-f_I2yQ_000001.wav")
    # All of the list's labels, so that their numbers do not depend on what could be downloaded.
    return DataSet("vggsound", splits, {"label": sorted({row["label"] for row in rows})})


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    return run_script(parser, find, arguments)


if __name__ == "__main__":
    sys.exit(main())
