"""Speed of data preparation on one core: recordings of 44.1 kHz to shards of FLAC at 16 kHz, and where the time goes.

    taskset -c 1 python benchmarks/preparation.py [--recordings FOLDER] [--clips 60] [--rounds 7]

The recordings are FOLDER's, else 10 s of chirps with noise in stereo, WAV. Speed is seconds of audio a second of the
whole writer in one process; the steps are timed beside it, in turn in every round, in ms a minute of audio. For each
resampler there is what it does to tones at 16 kHz: the error of one of 7 kHz, which should stay, and what is left of
one of 9 kHz, which should go, both beside the tone; for each FLAC level the bytes beside those of the one in use.
"whole, mp3" and "whole, m4a" are the whole writer on the same recordings in these formats; PyAV decodes M4A.
"""

import argparse
import functools
import io
import logging
import shutil
import statistics
import tarfile
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import soxr
import torch
from torchaudio.functional import resample

from loader import encoded
from ssamba.data.prepare.recordings import Recording
from ssamba.data.prepare.writer import write_shards
from ssamba.evaluation.efficiency import Goal, goals_table, interleaved_times, versions
from ssamba.evaluation.tables import markdown_table
from ssamba.files import write_json
from ssamba.folders import look_below
from ssamba.recordings import read_audio
from ssamba.training.runs import hardware

RESULTS = Path(__file__).parent / "results"
FROM, TO, SECONDS = 44100, 16000, 10
Array = np.ndarray[Any, Any]

# torchaudio's parameters for librosa's kaiser_best, as its documentation gives them.
BEST: dict[str, Any] = {"lowpass_filter_width": 64, "rolloff": 0.9475937167399596, "beta": 14.769656459379492}
RESAMPLERS: dict[str, Callable[[Array, int], Array]] = {
    "soxr HQ": lambda samples, rate: soxr.resample(samples, rate, TO, quality="HQ"),
    "soxr VHQ": lambda samples, rate: soxr.resample(samples, rate, TO, quality="VHQ"),
    "torchaudio": lambda samples, rate: resample(torch.from_numpy(samples), rate, TO).numpy(),
    "torchaudio kaiser_best": lambda samples, rate: resample(
        torch.from_numpy(samples), rate, TO, resampling_method="sinc_interp_kaiser", **BEST
    ).numpy(),
}
LEVELS: dict[str, float | None] = {"flac": None, **{f"flac {level}": level / 8 for level in (0, 3, 6, 8)}}


def write_recordings(folder: Path, clips: int) -> list[Path]:
    """WAVs of SECONDS, 16-bit stereo."""
    rng, time = np.random.default_rng(0), np.arange(FROM * SECONDS) / FROM
    paths = [folder / f"{number}.wav" for number in range(clips)]
    for path in paths:
        low, high = rng.uniform(100, 6000, 2)
        chirps = [
            0.3 * np.sin(2 * np.pi * (a + (b - a) / (2 * SECONDS) * time) * time) for a, b in ((low, high), (high, low))
        ]
        soundfile.write(path, np.stack(chirps, 1) + rng.normal(0, 0.02, (len(time), 2)), FROM)
    return paths


def flac(samples: Array, level: float | None) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, samples, TO, format="FLAC", subtype="PCM_16", compression_level=level)
    return content.getvalue()


def tar(folder: Path, contents: Sequence[bytes]) -> None:
    with tarfile.open(folder / "steps.tar", "w") as archive:
        for number, content in enumerate(contents):
            member = tarfile.TarInfo(f"{number}.flac")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def decibels(ratio: float) -> float:
    return 20 * float(np.log10(max(ratio, 1e-12)))


def tones(resampler: Callable[[Array, int], Array]) -> tuple[float, float]:
    """Error of a tone that should stay and remainder of one that should go, in dB beside the tone."""
    middle = slice(TO // 2, -TO // 2)
    found = []
    for hertz, wanted in ((7000, 1.0), (9000, 0.0)):
        tone = np.sin(2 * np.pi * hertz * np.arange(4 * FROM) / FROM).astype(np.float32)
        ideal = wanted * np.sin(2 * np.pi * hertz * np.arange(4 * TO) / TO)
        error = (resampler(tone, FROM) - ideal)[middle]
        found.append(decibels(float(np.sqrt(2 * np.mean(error**2)))))
    return found[0], found[1]


def measure(paths: Sequence[Path], rounds: int, folder: Path) -> dict[str, Any]:
    """Seconds of each step of each round, all recordings at once; what the FLACs weigh; the resamplers' errors."""
    decoded = [soundfile.read(path, dtype="float32", always_2d=True) for path in paths]
    mono = [(samples.mean(axis=1), rate) for samples, rate in decoded]
    audio = sum(len(samples) / rate for samples, rate in mono)
    ready = [np.clip(np.rint(read_audio(path, TO, 1e9) * 32768), -32768, 32767).astype(np.int16) for path in paths]
    packed = [flac(samples, None) for samples in ready]
    found = [Recording(str(number), path.absolute()) for number, path in enumerate(paths)]

    for form in ("mp3", "m4a"):
        (folder / form).mkdir()
        for number, (samples, rate) in enumerate(decoded):
            (folder / form / f"{number}.{form}").write_bytes(encoded(samples, rate, form))
    others = {form: [Recording(path.stem, path) for path in (folder / form).iterdir()] for form in ("mp3", "m4a")}

    def whole(recordings: list[Recording]) -> None:
        shutil.rmtree(folder / "out", ignore_errors=True)
        write_shards({"train": recordings}, folder / "out", "benchmark", max_seconds=1e5)

    steps: dict[str, Callable[[], object]] = {
        "whole": lambda: whole(found),
        **{f"whole, {form}": functools.partial(whole, recordings) for form, recordings in others.items()},
        "decode": lambda: [soundfile.read(path, dtype="float32", always_2d=True) for path in paths],
        "decode, mix, resample": lambda: [read_audio(path, TO, 1e9) for path in paths],
        "tar": lambda: tar(folder, packed),
    }
    for name, resampler in RESAMPLERS.items():
        steps[name] = functools.partial(lambda own: [own(samples, rate) for samples, rate in mono], resampler)
    for name, level in LEVELS.items():
        steps[name] = functools.partial(lambda own: [flac(samples, own) for samples in ready], level)
    times = interleaved_times(steps, rounds)
    return {
        "audio_seconds": audio,
        "seconds": times,
        "flac_bytes": {name: sum(len(flac(one, level)) for one in ready) for name, level in LEVELS.items()},
        "tones_db": {name: tones(resampler) for name, resampler in RESAMPLERS.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recordings", type=Path, metavar="FOLDER", help="real ones, of any rate (default: made)")
    parser.add_argument("--clips", type=int, default=60, help="recordings at most (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=7, help="medians are taken over them")
    parser.add_argument("--out", type=Path, default=RESULTS / "preparation.json")
    given = parser.parse_args()
    if not given.out.parent.is_dir() or given.clips < 1 or given.rounds < 1:
        parser.error(
            f"{given.out}, {given.clips} clips, {given.rounds} rounds; expected a folder and at least 1 of each"
        )
    logging.disable(logging.INFO)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        paths = (
            [given.recordings / path for path in look_below(given.recordings).recordings][: given.clips]
            if given.recordings
            else write_recordings(folder, given.clips)
        )
        if not paths:
            parser.error(f"--recordings {given.recordings} has none")
        found = measure(paths, given.rounds, folder)
    audio = found["audio_seconds"]
    medians = {name: statistics.median(times) for name, times in found["seconds"].items()}
    rows = [("", "ms a minute of audio", "real time", "bytes", "7 kHz, dB", "9 kHz, dB")]
    for name, seconds in medians.items():
        weight, errors = found["flac_bytes"].get(name), found["tones_db"].get(name)
        rows.append(
            (
                name,
                f"{60000 * seconds / audio:.1f}",
                f"{audio / seconds:.0f}",
                f"{weight / found['flac_bytes']['flac']:.3f}" if weight else "",
                *(f"{error:.0f}" for error in errors or ()),
                *([] if errors else ["", ""]),
            )
        )
    goal = Goal("whole, seconds of audio a second", ">=", 150, audio / medians["whole"])
    print(
        f"{len(paths)} recordings, {audio:.0f} s, medians of {given.rounds}\n\n{markdown_table(rows)}\n\n"
        f"{goals_table([goal])}"
    )
    write_json(
        given.out,
        {
            "recordings": len(paths),
            "made": given.recordings is None,
            "rounds": given.rounds,
            **found,
            "goals": [goal._asdict()],
            "hardware": hardware(),
            "versions": versions("soundfile", "soxr", "torchaudio", "av"),
        },
    )


if __name__ == "__main__":
    main()
