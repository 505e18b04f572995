import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
from changed_index import changed, table

from ssamba.data.prepare.verification import verify_shards
from ssamba.data.shards.finding import find_shards
from ssamba.data.shards.index import SAMPLE, ShardInfo
from ssamba.errors import UserError


def flac(samples: int = 1600, rate: int = 16000, channels: int = 1) -> bytes:
    content = io.BytesIO()
    soundfile.write(content, np.zeros((samples, channels), np.int16), rate, format="FLAC")
    return content.getvalue()


def test_verify(shards: Path) -> None:
    both = find_shards([str(shards / "a" / "train"), str(shards / "b" / "train")])
    assert verify_shards(both, progress=False) == []

    path = shards / "a" / "train" / "000001.tar"
    content = bytearray(path.read_bytes())
    content[600:700] = bytes(100)  # in the middle of a FLAC
    path.write_bytes(content)
    problems = verify_shards(both, progress=False)
    assert all(problem.startswith(f"{path}: ") for problem in problems)
    assert f"its sha256 is {hashlib.sha256(content).hexdigest()}; the index expects " in problems[0]


def test_verify_names_each_bad_sample(shards: Path) -> None:
    folder = shards / "b" / "train"
    samples = {
        "good": (flac(), b'{"key": "good", "labels": {}}'),
        "bare": (flac(), b""),
        "torn": (flac()[:40], b'{"key": "torn", "labels": {}}'),
        "odd": (flac(), b"{"),
        "plain": (flac(), b'{"key": "plain"}'),
        "stereo": (flac(channels=2), b'{"key": "stereo", "labels": {}}'),
        "slow": (flac(rate=8000), b'{"key": "slow", "labels": {}}'),
        "short": (flac(1599), b'{"key": "short", "labels": {}}'),
    }
    content = b"".join(part for parts in samples.values() for part in parts)
    rows, at = [], 0
    for audio, text in samples.values():
        rows.append((at, len(audio), at + len(audio), len(text), 1600))
        at += len(audio) + len(text)
    (folder / "000000.tar").write_bytes(content)
    np.save(folder / "samples.npy", np.array(rows, SAMPLE))
    listed = ShardInfo("000000.tar", len(rows), 0.8, len(content), hashlib.sha256(content).hexdigest())
    digest = hashlib.sha256((folder / "samples.npy").read_bytes()).hexdigest()
    changed(folder, shards=[vars(listed)], samples_sha256=digest)
    problems = verify_shards(find_shards(str(folder)), progress=False)
    prefix = f"{folder / '000000.tar'}: "
    assert [problem.removeprefix(prefix).partition(": ")[0] for problem in problems] == [
        "sample 'torn'",
        "sample 3",
        "sample 4",
        "sample 'slow'",
        "sample 'short'",
    ]
    for problem, words in zip(
        problems,
        (
            "its audio cannot be used: ",
            "its .json cannot be used: Input data was",
            "missing required field `labels`",
            "its audio is of 8000 Hz; expected 16000 Hz",
            "its audio has 1599 samples; samples.npy expects 1600",
        ),
        strict=True,
    ):
        assert words in problem


@pytest.mark.parametrize("workers", [1, 2])
def test_verify_finds_one_bit_wherever_it_is(made: Path, shards: Path, workers: int) -> None:
    """In a header, a name, a checksum, audio, JSON, padding, the end of the tar; in any shard, and in the table."""
    folder = shards / "a" / "train"
    row = np.load(folder / "samples.npy")[0]
    places = [
        0,
        148,
        257,
        400,
        row["audio"],
        row["audio"] + 30,
        row["audio"] + row["audio_bytes"] // 2,
        row["audio"] + row["audio_bytes"],
        row["json"] + 3,
        row["json"] + row["json_bytes"] + 1,
        -1,
    ]
    for number, place in enumerate(places):
        path = folder / f"00000{number % 3}.tar"
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[place] ^= 1 << (number % 8)
        path.write_bytes(flipped)
        problems = verify_shards(find_shards(str(folder)), progress=False, workers=workers)
        assert problems and all(problem.startswith(f"{path}: ") for problem in problems)
        assert f"its sha256 is {hashlib.sha256(flipped).hexdigest()}; the index expects " in problems[0]
        path.write_bytes(whole)
    assert verify_shards(find_shards(str(folder)), progress=False, workers=workers) == []

    table = (folder / "samples.npy").read_bytes()
    for place in range(0, len(table), 11):
        flipped = bytearray(table)
        flipped[place] ^= 1 << (place % 8)
        (folder / "samples.npy").write_bytes(flipped)
        with pytest.raises(UserError, match="samples.npy is not what index.json expects"):
            find_shards(str(folder))


def test_verify_compares_the_table(shards: Path) -> None:
    folder = shards / "b" / "train"
    table(folder, lambda samples: samples["length"].__setitem__(1, 1599))
    (problem,) = verify_shards(find_shards(str(folder)), progress=False)
    assert problem.endswith("its audio has 1600 samples; samples.npy expects 1599")
    table(folder, lambda samples: samples["audio"].__setitem__(1, 3))
    (problem,) = verify_shards(find_shards(str(folder)), progress=False)
    assert "its audio cannot be used: it cannot be decoded" in problem


def test_verify_goes_on_after_a_shard_that_is_none(shards: Path) -> None:
    both = find_shards([str(shards / "a" / "train"), str(shards / "b" / "train")])
    noise, gone = both.shards[0].path, both.shards[1].path
    noise.write_bytes(b"noise" * 1000)
    gone.unlink()
    problems = verify_shards(both, progress=False)
    assert [problem.partition(": ")[0] for problem in problems] == [*[str(noise)] * (len(problems) - 1), str(gone)]
    assert "its sha256 is" in problems[0] and "it cannot be read" in problems[-1]
