import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest

from ssamba.errors import UserError

pytest.importorskip("espeakng_loader", reason="the demo's synthesizer is not installed")


@pytest.fixture(scope="module")
def script() -> Any:
    return layouts.script("synthesize")


@pytest.fixture(scope="module")
def synthesizer(script: Any) -> Any:
    return script.Synthesizer(0)  # the engine is started once in a process


def speak(synthesizer: Any, text: str = "forward", voice: str = "en-US+m3", **changes: int) -> Any:
    return synthesizer.speak(text, voice, **({"words_per_minute": 160, "pitch": 50, "variation": 50} | changes))


def pitch_hertz(synthesizer: Any, speech: Any) -> float:
    """The pitch of a voiced word: the highest peak of its autocorrelation between 60 and 400 Hz."""
    power = np.abs(np.fft.rfft(speech.astype(float), 2 * speech.size)) ** 2
    likeness = np.fft.irfft(power)
    shortest, longest = synthesizer.sampling_rate // 400, synthesizer.sampling_rate // 60
    return float(synthesizer.sampling_rate / (shortest + likeness[shortest:longest].argmax()))


def test_speaks_a_word_for_as_long_as_one_takes(synthesizer: Any) -> None:
    speech = speak(synthesizer)
    assert speech.dtype == np.int16
    assert 0.2 < speech.size / synthesizer.sampling_rate < 1.5
    assert np.abs(speech.astype(int)).max() > 3000


def test_words_differ_in_length(synthesizer: Any) -> None:
    assert speak(synthesizer, "up").size < 0.9 * speak(synthesizer, "backward").size


def test_speed_and_pitch_are_heard(synthesizer: Any) -> None:
    assert speak(synthesizer, words_per_minute=230).size < 0.8 * speak(synthesizer, words_per_minute=120).size
    low, high = (pitch_hertz(synthesizer, speak(synthesizer, pitch=pitch, variation=0)) for pitch in (10, 90))
    assert high > 1.1 * low


def test_every_voice_of_the_corpus_is_another_one(script: Any, synthesizer: Any) -> None:
    heard = {speak(synthesizer, voice=voice).tobytes() for voice in script.VOICES}
    assert len(heard) == len(script.VOICES) >= 12


def test_the_same_is_said_by_the_same_seed(script: Any) -> None:
    program = (
        "import hashlib, sys, synthesize\n"
        "synthesizer = synthesize.Synthesizer(int(sys.argv[1]))\n"
        "for voice in synthesize.VOICES:\n"
        "    said = synthesizer.speak('forward', voice, words_per_minute=160, pitch=50, variation=50)\n"
        "    print(hashlib.sha256(said).hexdigest())\n"
    )

    def said(seed: int) -> list[str]:
        """A process each: an engine does not begin anew."""
        words = [sys.executable, "-c", program, str(seed)]
        where = Path(script.__file__).parent
        return subprocess.run(words, cwd=where, check=True, capture_output=True, text=True).stdout.split()

    first, again, other = said(0), said(0), said(1)
    assert first == again and len(first) == len(script.VOICES)
    assert first != other


def test_an_unknown_voice_is_named(synthesizer: Any) -> None:
    with pytest.raises(UserError, match="martian"):
        speak(synthesizer, voice="martian")


def test_the_corpus_has_every_word_by_every_voice_and_sentences(script: Any) -> None:
    corpus = list(script.utterances(random.Random(0)))
    words = [(text, voice) for file, voice, text in corpus if file.startswith("words/")]
    assert len(set(script.WORDS)) >= 12
    assert len(words) == len(script.WORDS) * len(script.VOICES) * script.TAKES
    assert len(set(words)) == len(script.WORDS) * len(script.VOICES)
    assert len({file for file, _, _ in corpus}) == len(corpus)
    assert len(corpus) - len(words) == script.SENTENCES * len(script.VOICES)


def test_sentences_are_listed_with_what_is_said(
    script: Any, synthesizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = script.HELD_OUT
    assert held.keys() < set(script.VOICES) and sorted(set(held.values())) == ["test", "validation"]
    some = [
        ("words/yes_en-f2_0.wav", "en+f2", "yes"),
        ("sentences/en-f2_0.wav", "en+f2", "a letter from Vienna"),
        ("sentences/en-US-m1_0.wav", "en-US+m1", "the first snow"),
    ]
    monkeypatch.setattr(script, "utterances", lambda rng: iter(some))
    script.synthesize(tmp_path, synthesizer, 0)
    assert (tmp_path / "sentences.csv").read_text().splitlines() == [
        "path,text,voice,split",
        "sentences/en-f2_0.wav,a letter from vienna,en+f2,validation",
        "sentences/en-US-m1_0.wav,the first snow,en-US+m1,train",
    ]
    assert all((tmp_path / file).is_file() for file, _, _ in some)


def test_refuses_a_folder_that_exists(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["synthesize.py", str(tmp_path)])
    assert script.main() == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
