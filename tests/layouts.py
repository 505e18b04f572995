"""A tiny tree of each data set, in the layout in which it is published: what data_prep's scripts are tested on, and
recipes on the shards that they make of it."""

import importlib.util
import json
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

SCRIPTS = Path(__file__).parents[1] / "data_prep"
COMMANDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
OTHERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "bed",
    "bird",
    "cat",
    "dog",
    "happy",
    "house",
    "marvin",
    "sheila",
    "tree",
    "wow",
)
V2_ONLY = ("backward", "follow", "forward", "learn", "visual")
AUDIOSET_CLASSES = [("/m/09x0r", "Speech"), ("/m/0bt9lr", "Dog"), ("/m/05zppz", "Male speech, man speaking")]
EPIC_SOUNDS_HEADER = "annotation_id,participant_id,video_id,start_timestamp,stop_timestamp,start_sample,stop_sample,"
EPIC_SOUNDS_HEADER += "description,class,class_id\n"
EMOTIONS = ("ang", "hap", "exc", "neu", "sad", "fru", "xxx")  # the last two are in none of the four classes


def script(name: str) -> Any:
    """One of data_prep's, as a module."""
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def write_wav(path: Path, seconds: float = 0.05, rate: int = 16000) -> None:
    """Noise, another one under each name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).normal(0, 3000, round(seconds * rate))
    soundfile.write(path, noise.clip(-32768, 32767).astype(np.int16), rate)


def write_mp3(path: Path, seconds: float = 0.2, rate: int = 44100) -> None:
    """As `write_wav`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(zlib.crc32(path.name.encode())).normal(0, 0.1, round(seconds * rate))
    soundfile.write(path, noise.clip(-1, 1), rate, format="MP3")


def write_ramp(path: Path, seconds: float = 0.05) -> None:
    """A ramp of 16-bit steps, so that a cut tells where it was cut."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, (np.arange(round(seconds * 16000)) % 30000).astype(np.int16), 16000)


def esc50(root: Path) -> None:
    """In each fold two dogs, a rooster and an airplane; the classes' numbers are not in the order of the alphabet."""
    rows = ["filename,fold,target,category,esc10,src_file,take"]
    classes = [(0, "dog"), (1, "rooster"), (0, "dog"), (47, "airplane")]
    for fold in range(1, 6):
        for take, (target, category) in zip("ABCD", classes, strict=True):
            name = f"{fold}-10003{fold}-{take}-{target}.wav"
            write_wav(root / "audio" / name, rate=44100)
            rows.append(f"{name},{fold},{target},{category},True,10003{fold},{take}")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows) + "\n")


def urbansound8k(root: Path) -> None:
    """In each fold a clip of each of three classes, not in the order of their numbers."""
    rows = ["slice_file_name,fsID,start,end,salience,fold,classID,class"]
    for fold in range(1, 11):
        for number, name in ((3, "dog_bark"), (0, "air_conditioner"), (10, "ten")):
            file = f"{1000 + fold}-{number}-0-0.wav"
            write_wav(root / "audio" / f"fold{fold}" / file, rate=48000)
            rows.append(f"{file},{1000 + fold},0.0,4.0,1,{fold},{number},{name}")
    (root / "metadata").mkdir()
    (root / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows) + "\n")


def audioset_video(part: str, number: int) -> str:
    return f"-{part}{number:06d}_x-"


def audioset(root: Path) -> None:
    """20 clips of train, 10 of balanced, 4 of eval, called in three ways; the last of each is missing."""
    root.mkdir(parents=True)
    rows = [f'{index},{mid},"{name}"' for index, (mid, name) in enumerate(AUDIOSET_CLASSES)]
    (root / "class_labels_indices.csv").write_text("\n".join(["index,mid,display_name", *reversed(rows)]) + "\n")
    for part, name, count in (("u", "unbalanced_train", 20), ("b", "balanced_train", 10), ("e", "eval", 4)):
        lines = [
            "# Segments csv created Sun Mar  5 10:54:31 2017",
            f"# num_ytids={count}, num_segs={count}",
            "# YTID, start_seconds, end_seconds, positive_labels",
        ]
        for number in range(count):
            labels, video = "/m/09x0r,/m/05zppz" if number % 2 else "/m/0bt9lr", audioset_video(part, number)
            lines.append(f'{video}, {number * 10}.000, {number * 10 + 10}.000, "{labels}"')
            if number < count - 1:
                ends = ("", f"_{number * 10}.000", f"_{number * 10000}_{number * 10000 + 10000}")[number % 3]
                write_wav(root / "clips" / part / f"{video}{ends}.wav")
        (root / f"{name}_segments.csv").write_text("\n".join(lines) + "\n")


def vggsound(root: Path) -> None:
    """Three clips of train, and one that is missing, and two of test; another clip of one of the videos."""
    root.mkdir(parents=True)
    rows = [
        ("---g-f_I2yQ", 1, "people marching", "test"),
        ("--0PQM4-hqg", 30, "waterfall burbling", "train"),
        ("--56QUhyDQM", 185, '"female speech, woman speaking"', "train"),
        ("-zzzzzzzzzz", 0, "airplane", "train"),
        ("-zzzzzzzzzz", 20, "people marching", "test"),
        ("--7LX_9d6Hs", 4, "people marching", "train"),
    ]
    (root / "vggsound.csv").write_text("".join(f"{','.join(map(str, row))}\n" for row in rows))
    for name, start, _, split in rows:
        if start:
            write_wav(root / split / f"{name}_{start:06d}.wav")
    write_wav(root / "train" / "-zzzzzzzzzz_000010.wav")


def epic_sounds(root: Path) -> None:
    """Two videos that are there, one that is not. The first is a ramp, so that a cut tells where it was cut: 1 over
    100 s."""
    (root / "P01").mkdir(parents=True)
    soundfile.write(root / "P01" / "P01_01.wav", np.arange(70 * 8000) / 800000, 8000)
    write_wav(root / "P01" / "P01_11.wav", 70.0, 8000)
    (root / "EPIC_Sounds_train.csv").write_text(
        EPIC_SOUNDS_HEADER + "P01_01_0,P01,P01_01,00:00:02.466,00:00:05.315,59184,127560,paper rustle,rustle,4\n"
        "P01_01_1,P01,P01_01,00:01:02.500,00:01:03.750,1,2,tap running,water,5\n"
        "P01_11_1,P01,P01_11,00:00:40.000,00:00:40.500,1,2,pan,metal-only collision,0\n"
        "P02_03_0,P02,P02_03,00:00:00.000,01:00:01.000,1,2,cut,cut / chop,2\n"
    )
    (root / "EPIC_Sounds_validation.csv").write_text(
        EPIC_SOUNDS_HEADER + "P01_11_0,P01,P01_11,00:00:10.000,00:00:10.500,1,2,clang,metal-only collision,0\n"
    )


def fsdd(root: Path) -> None:
    """Each digit by two speakers, two takes of the test and two of training."""
    for digit in range(10):
        for speaker in ("theo", "george"):
            for take in (0, 4, 5, 12):
                write_wav(root / "recordings" / f"{digit}_{speaker}_{take}.wav", rate=8000)


def speech_commands(root: Path, words: Iterable[str], noise_seconds: float = 12.0) -> None:
    """Ten recordings of each word: eight of training, one of validation, one of test."""
    lists: dict[str, list[str]] = {"validation_list.txt": [], "testing_list.txt": []}
    for word in words:
        for take in range(10):
            name = f"{word}/{take:08x}_nohash_{take % 2}.wav"
            write_wav(root / name)
            if take >= 8:
                lists["validation_list.txt" if take == 8 else "testing_list.txt"].append(name)
    for name, listed in lists.items():
        (root / name).write_text("\n".join(listed) + "\n")
    # A ramp, so that a cut tells where it was cut: full scale over 20 s.
    for name in ("pink_noise", "running_tap"):
        ramp = np.arange(round(noise_seconds * 16000)) / 320000
        (root / "_background_noise_").mkdir(exist_ok=True)
        soundfile.write(root / "_background_noise_" / f"{name}.wav", ramp, 16000)
    (root / "README.md").write_text("")


def speech_commands_v1(root: Path) -> None:
    speech_commands(root, (*COMMANDS, *OTHERS))


def speech_commands_v2(root: Path) -> None:
    speech_commands(root, (*COMMANDS, *OTHERS, *V2_ONLY))


def voxceleb1(root: Path, folders: tuple[str, str] = ("vox1_dev_wav/wav", "vox1_test_wav/wav")) -> list[str]:
    """Three speakers, one of them in the second folder, of a video with four recordings each: 2 / 1 / 1."""
    lines = []
    for speaker, folder in (("id10001", folders[0]), ("id10002", folders[0]), ("id10270", folders[1])):
        for number, kind in enumerate("1123", 1):
            name = f"{speaker}/1zcIwh-deo4/{number:05d}.wav"
            write_ramp(root / folder / name)
            lines.append(f"{kind} {name}")
    (root / "iden_split.txt").write_text("\n".join(lines) + "\n")
    return lines


def iemocap(root: Path) -> None:
    """Five sessions of one dialog: an utterance of each emotion by each of two speakers."""
    for session in range(1, 6):
        dialog = "Ses02M_script01_1b" if session == 2 else f"Ses{session:02d}F_impro01"
        folder = root / f"Session{session}"
        lines = ["% [START_TIME - END_TIME] TURN_NAME EMOTION [V, A, D]", ""]
        for gender in "FM":
            for number, emotion in enumerate(EMOTIONS):
                utterance = f"{dialog}_{gender}{number:03d}"
                write_wav(folder / "sentences" / "wav" / dialog / f"{utterance}.wav")
                lines += [
                    f"[{number}.2901 - {number + 1}.2357]\t{utterance}\t{emotion}\t[2.5000, 2.5000, 2.5000]",
                    f"C-E2:\t{emotion};\t()",
                    "A-E3:\tval 3; act 2; dom  2;\t()",
                    "",
                ]
        labels = folder / "dialog" / "EmoEvaluation" / f"{dialog}.txt"
        labels.parent.mkdir(parents=True)
        labels.write_text("\n".join(lines))
        (labels.parent / f"._{dialog}.txt").write_bytes(b"\x00\xff")


def folder(root: Path) -> None:
    """Ten cats, five of them deeper, and twenty dogs, some with odd names."""
    for number in range(20):
        write_wav(root / "dog" / f"barking {number}.v1.WAV")
    for number in range(5):
        write_wav(root / "cat" / f"{number}.wav")
        write_wav(root / "cat" / "deep" / f"{number}.wav")
    (root / "cat" / "notes.txt").write_text("")
    (root / "cat" / "._0.wav").write_text("no audio")


def keywords(root: Path) -> None:
    """The demo's list of words by voices."""
    rows = ["path,label,split"]
    for word in ("go", "stop", "yes"):
        for voice, split in (("en-f1", "train"), ("en-m1", "train"), ("en-f4", "test")):
            for take in range(2):
                name = f"speech/words/{word}_{voice}_{take}.wav"
                write_wav(root / name, seconds=0.2)
                rows.append(f"{name},{word},{split}")
    (root / "keywords.csv").write_text("\n".join(rows) + "\n")


def sentences(root: Path) -> None:
    """The synthesizer's list of what is said, by voices that are in one split each."""
    rows = ["path,text,voice,split"]
    for voice, split in (("en+m2", "train"), ("en+f2", "validation"), ("en+f4", "test")):
        for number, text in enumerate(("yes no", "no", "one", "yes")):
            name = f"sentences/{voice}_{number}.wav"
            write_wav(root / name, 0.3, 22050)
            rows.append(f"{name},{text},{voice},{split}")
    (root / "sentences.csv").write_text("\n".join(rows) + "\n")


def gtzan(root: Path) -> None:
    """Three recordings of each genre in each part of the split, and one that is in none: of the 1,000 few are there."""
    for names in script("gtzan").fault_filtered().values():
        for genre in script("gtzan").GENRES:
            for name in [name for name in names if name.startswith(genre)][:3]:
                write_wav(root / "genres" / genre / f"{name}.wav", rate=22050)
    write_wav(root / "genres" / "blues" / "blues.00099x.wav", rate=22050)


def nsynth(root: Path) -> None:
    """Notes of three families at three pitches, more of them in train."""
    for part, instruments in (("train", 3), ("valid", 1), ("test", 1)):
        notes: dict[str, Any] = {}
        for family, number in (("vocal", 10), ("bass", 0), ("guitar", 3)):
            for instrument in range(instruments):
                for pitch in (9, 60, 100):
                    name = f"{family}_acoustic_{part}{instrument:03d}-{pitch:03d}-127"
                    write_wav(root / f"nsynth-{part}" / "audio" / f"{name}.wav")
                    notes[name] = {
                        "note": len(notes),
                        "note_str": name,
                        "pitch": pitch,
                        "velocity": 127,
                        "sample_rate": 16000,
                        "instrument_str": name.partition("-")[0],
                        "instrument_family": number,
                        "instrument_family_str": family,
                        "qualities": [0] * 10,
                        "qualities_str": [],
                    }
        (root / f"nsynth-{part}" / "examples.json").write_text(json.dumps(notes, indent=4))


FMA_HEADER = ",album,album,set,set,track,track\n,comments,information,split,subset,genre_top,title\ntrack_id,,,,,,\n"


def fma(root: Path) -> None:
    """Clips of three genres, and a track that is in the large set alone; an artist says more than a line of himself."""
    rows, track = [], 1
    for genre in ("Rock", "Hip-Hop", "Folk"):
        for split, count in (("training", 4), ("validation", 1), ("test", 2)):
            for _ in range(count):
                track += 1031
                write_mp3(root / "fma_small" / f"{track:06d}"[:3] / f"{track:06d}.mp3")
                rows.append(f'{track},0,"<p>One, two,\nthree</p>",{split},small,{genre},"A, B"')
    rows.append("20,0,,training,large,,C")
    (root / "fma_metadata").mkdir()
    (root / "fma_metadata" / "tracks.csv").write_text(FMA_HEADER + "\n".join(rows) + "\n")


def librispeech(root: Path) -> None:
    """A chapter of each of four parts, with what is said in it."""
    for part, speaker in (
        ("train-clean-100", "103"),
        ("train-other-500", "20"),
        ("dev-clean", "84"),
        ("test-clean", "61"),
    ):
        lines = []
        for number, text in enumerate(("YES NO", "NO", "ONE", "YES")):
            name = f"{speaker}-1240-{number:04d}"
            write_wav(root / part / speaker / "1240" / f"{name}.flac", 0.3)
            lines.append(f"{name} {text}")
        (root / part / speaker / "1240" / f"{speaker}-1240.trans.txt").write_text("\n".join(lines) + "\n")
