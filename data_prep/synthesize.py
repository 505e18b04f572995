"""Make a small corpus of speech with a real synthesizer: words by many voices, and sentences without labels.

    ssamba prepare synthesize OUT

writes OUT/words/{word}_{voice}_{take}.wav and OUT/sentences/{voice}_{number}.wav at eSpeak NG's own 22,050 Hz, and
OUT/sentences.csv, a list of the latter for folder.py: path, text (what is said), voice and split, of which four voices
are the test and two the validation. The engine comes as a library with the package espeakng-loader (pip install
'ssamba[demo]'). The seed decides what is said, how fast, how high and how loud; the engine itself varies a little from
one call to the next.
"""

import argparse
import csv
import ctypes
import os
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

from ssamba.data.prepare.script import SEEDS
from ssamba.errors import UserError
from ssamba.files import whole_folder
from ssamba.shell import run_program
from ssamba.values import add_argument, new_path, whole_number

WORDS = (
    "yes",
    "no",
    "up",
    "down",
    "left",
    "right",
    "on",
    "off",
    "stop",
    "go",
    "forward",
    "backward",
    "follow",
    "learn",
)
VOICES = (
    "en-US+m1",
    "en-US+m3",
    "en-US+f1",
    "en-US+f3",
    "en-US+f5",
    "en+m2",
    "en+m7",
    "en+f2",
    "en+f4",
    "en-GB-scotland+m4",
    "en-GB-scotland+f1",
    "en-GB-x-rp+m8",
    "en-029+m5",
    "en-029+f3",
)
HELD_OUT = {
    **dict.fromkeys(("en-US+f5", "en+f4", "en-GB-scotland+f1", "en-029+m5"), "test"),
    **dict.fromkeys(("en-US+m3", "en+f2"), "validation"),
}
"""Voices of which no sentence is in the split train."""
TAKES = 6
SENTENCES = 36  # a voice

_SUBJECTS = (
    "the captain",
    "my neighbour",
    "a young doctor",
    "the old machine",
    "her brother",
    "every student",
    "the river",
    "a quiet engine",
    "the black cat",
    "our teacher",
)
_VERBS = (
    "remembers",
    "is watching",
    "never understood",
    "carries",
    "was painting",
    "might follow",
    "has forgotten",
    "stops behind",
    "goes around",
    "keeps looking at",
)
_OBJECTS = (
    "the northern lights",
    "a letter from Vienna",
    "seven yellow boxes",
    "the noise in the garden",
    "an unfinished bridge",
    "the first snow of the year",
    "nothing at all",
    "a forward looking plan",
    "the left side of the road",
    "what nobody else could hear",
)

_SYNCHRONOUS = 2  # espeak_AUDIO_OUTPUT: samples come to the callback before espeak_Synth returns, none to a loudspeaker
_RATE, _PITCH, _RANGE = 1, 3, 4  # espeak_PARAMETER
_UTF8 = 1
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)


class Synthesizer:
    """eSpeak NG through ctypes; one in a process, which goes on where its last utterance ended.

    Args:
        seed: of the noise in breathy voices, which would be drawn by the clock.
    """

    def __init__(self, seed: int) -> None:
        try:
            import espeakng_loader
        except ModuleNotFoundError as error:
            raise UserError("the synthesizer is not installed: pip install 'ssamba[demo]'") from error
        self._library = ctypes.CDLL(espeakng_loader.get_library_path())
        data = str(Path(espeakng_loader.get_data_path()).parent).encode()
        self.sampling_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 0, data, 0)
        if self.sampling_rate <= 0:
            raise UserError(f"eSpeak NG does not start with its data in {data.decode()}")
        self._library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        self._heard: list[np.ndarray] = []
        self._callback = _CALLBACK(self._hear)  # ctypes keeps no reference of its own
        self._library.espeak_SetSynthCallback(self._callback)

    def _hear(self, samples: "ctypes._Pointer[ctypes.c_short]", count: int, events: int | None) -> int:
        if samples and count > 0:
            self._heard.append(np.ctypeslib.as_array(samples, (count,)).copy())
        return 0

    def speak(self, text: str, voice: str, *, words_per_minute: int, pitch: int, variation: int) -> np.ndarray:
        """One utterance, int16; pitch and its variation from 0 to 100."""
        if self._library.espeak_SetVoiceByName(f"gmw/{voice}".encode()):
            raise UserError(f"eSpeak NG has no voice {voice!r}")
        for parameter, value in ((_RATE, words_per_minute), (_PITCH, pitch), (_RANGE, variation)):
            self._library.espeak_SetParameter(parameter, value, 0)
        said = text.encode()
        self._heard = []
        self._library.espeak_Synth(said, len(said) + 1, 0, 0, 0, _UTF8, None, None)
        return np.concatenate(self._heard)


def utterances(rng: random.Random) -> Iterator[tuple[str, str, str]]:
    """(file below OUT, voice, text) of the whole corpus."""
    for voice in VOICES:
        name = voice.replace("+", "-")
        for word in WORDS:
            for take in range(TAKES):
                yield f"words/{word}_{name}_{take}.wav", voice, word
        for index in range(SENTENCES):
            text = " ".join((rng.choice(_SUBJECTS), rng.choice(_VERBS), rng.choice(_OBJECTS)))
            yield f"sentences/{name}_{index}.wav", voice, text


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_argument(parser, "out", new_path, metavar="OUT", help="a new folder")
    seed = "of pitch, speed, level, noise and sentences (default: 0)"
    add_argument(parser, "--seed", whole_number, *SEEDS, default=0, metavar="N", help=seed)

    def work() -> int:
        options = parser.parse_args(arguments)
        if os.path.lexists(options.out):
            raise UserError(f"{options.out} exists; expected a new folder")
        synthesizer = Synthesizer(options.seed)
        with whole_folder(options.out) as folder:
            synthesize(folder, synthesizer, options.seed)
        return 0

    return run_program(work)


def synthesize(out: Path, synthesizer: Synthesizer, seed: int) -> None:
    """Write the corpus into a folder that is there."""
    rng = random.Random(seed)
    said = list(utterances(rng))
    for folder in ("words", "sentences"):
        (out / folder).mkdir()
    with (out / "sentences.csv").open("w", newline="", encoding="utf-8") as listed:
        writer = csv.writer(listed)
        writer.writerow(["path", "text", "voice", "split"])
        for file, voice, text in said:
            if file.startswith("sentences/"):
                writer.writerow([file, text.lower(), voice, HELD_OUT.get(voice, "train")])
    for file, voice, text in tqdm(said, unit="utterance", desc="synthesis"):
        speech = synthesizer.speak(
            text,
            voice,
            words_per_minute=rng.randint(120, 230),
            pitch=rng.randint(20, 80),
            variation=rng.randint(20, 80),
        )
        # Levels and a little noise as rooms and microphones have them; digital silence is in no recording.
        loud = speech / 32768 * rng.uniform(0.3, 1.0)
        noise = np.random.default_rng(rng.getrandbits(32)).normal(0, 10 ** rng.uniform(-4, -2.5), loud.shape)
        soundfile.write(out / file, np.clip(loud + noise, -1, 1), synthesizer.sampling_rate)


if __name__ == "__main__":
    raise SystemExit(main())
