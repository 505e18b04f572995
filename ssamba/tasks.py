"""The table of tasks: what `ssamba tasks` prints, and docs/tasks.md is. Imports nothing."""

from typing import NamedTuple

NONE = "-"


class Task(NamedTuple):
    """A row. Files are named as they lie in the repository; figures are per cent, with where they stand."""

    task: str
    licence: str
    comes_from: str
    preparation: str
    recipe: str
    protocol: str
    metric: str
    ssamba: str = NONE
    ssast: str = NONE
    aum: str = NONE
    deviations: str = NONE


INTRODUCTION = """# Tasks

What the papers of SSAMBA (arXiv 2405.11831), SSAST (arXiv 2110.09784) and AuM (arXiv 2406.03344) were judged on, and
what there is besides, from a data set's public layout to a score: run the preparation, then `ssamba finetune RECIPE`.
Each recipe takes any encoder by one word (`model.encoder=ssamba`, `ssast`, `aum`, `conformer`, `bilstm` or `ssd`), and
its own comment says where its hyper-parameters come from and all that differs. Beside every score but that of texts
stands that of log-mel statistics without a network.

Published figures are per cent, of base models, and none of this package's. SSAST's are those of its patch model with
400 masked patches in Table 2; AuM's those of its repository's README, from scratch and, behind a comma, from weights
of AudioSet. A dash: the paper has none, or it stood in no source that could be read here. Licences are those that the
data sets' own pages or files give, or where it is said their copies; read them before you use what you train.
"""

_YOUTUBE = "YouTube, by the official lists"
_README = "README"
_OURS = "none of the papers has it: a recipe of ours"
_ONE_LABEL = "cosine rate; one-label loss"

TASKS = (
    Task(
        "AudioSet, 527 sounds",
        "CC BY 4.0 (lists)",
        f"{_YOUTUBE} (research.google.com/audioset)",
        "ssamba prepare audioset AUDIOSET shards/audioset",
        "recipes/finetune/audioset.yaml, recipes/finetune/aum_audioset.yaml",
        "official eval set; training clips drawn by 1 / frequency of their labels",
        "mAP",
        aum=f"32.74 ({_README})",
        deviations="cosine rate; watched on clips of the training part; averages its own last checkpoints",
    ),
    Task(
        "AS-20K, the balanced part of AudioSet",
        "CC BY 4.0 (lists)",
        f"{_YOUTUBE} (research.google.com/audioset)",
        "ssamba prepare audioset AUDIOSET shards/audioset",
        "recipes/finetune/as20k.yaml, recipes/finetune/aum_as20k.yaml",
        "official eval set; mean of the last weights",
        "mAP",
        ssast="31.0 (Table 2)",
        aum=f"14.05 ({_README})",
        deviations="cosine rate; official labels, where SSAST's are enhanced; watched on clips of the training part",
    ),
    Task(
        "ESC-50, 50 sounds",
        "CC BY-NC",
        "github.com/karolpiczak/ESC-50 (--fetch)",
        "ssamba prepare esc50 ESC-50-master shards/esc50",
        "recipes/finetune/esc50.yaml",
        "5 folds, each scored once (--folds all)",
        "accuracy",
        ssast="88.8 (Table 2)",
        deviations="cosine rate; the last weights, where theirs are of the epoch that is best on the test folds",
    ),
    Task(
        "Speech Commands v1, 12 classes",
        "CC BY 4.0",
        "download.tensorflow.org (--fetch)",
        "ssamba prepare speech_commands SPEECH_COMMANDS shards/speech_commands_v1 --version v1",
        "recipes/finetune/speech_commands_v1.yaml",
        "official lists, SUPERB's classes",
        "accuracy",
        ssast="96.0 (Table 2)",
        deviations=f"SSAMBA's script has all 30 words, SSAST's goes through s3prl; {_ONE_LABEL}",
    ),
    Task(
        "Speech Commands v2, 35 words",
        "CC BY 4.0",
        "download.tensorflow.org (--fetch)",
        "ssamba prepare speech_commands SPEECH_COMMANDS shards/speech_commands_v2 --version v2",
        "recipes/finetune/speech_commands_v2.yaml, recipes/finetune/aum_speech_commands_v2.yaml",
        "official lists",
        "accuracy",
        ssast="98.0 (Table 2)",
        aum=f"94.44, 94.82 ({_README})",
        deviations=_ONE_LABEL,
    ),
    Task(
        "VoxCeleb1, identification of 1,251 speakers",
        "CC BY 4.0 (say its copies)",
        "robots.ox.ac.uk/~vgg/data/voxceleb, on request",
        "ssamba prepare voxceleb1 VOXCELEB1 shards/voxceleb1",
        "recipes/finetune/voxceleb1.yaml, recipes/finetune/aum_voxceleb.yaml",
        "official identification split",
        "accuracy",
        ssast="64.3 (Table 2)",
        aum=f"33.12, 41.82 ({_README})",
        deviations="theirs go through s3prl: a learned sum of layers, projected, its mean over time",
    ),
    Task(
        "VoxCeleb1, verification",
        "CC BY 4.0 (say its copies)",
        "robots.ox.ac.uk/~vgg/data/voxceleb, on request",
        "ssamba prepare voxceleb1 VOXCELEB1 shards/voxceleb1",
        "recipes/finetune/voxceleb1.yaml, then ssamba verify",
        "official trial lists, cosine of embeddings",
        "EER, minDCF",
        deviations="none of the papers has it",
    ),
    Task(
        "IEMOCAP, four emotions",
        "its own, on request",
        "sail.usc.edu/iemocap",
        "ssamba prepare iemocap IEMOCAP_full_release shards/iemocap --test-session 5 --validation 0",
        "recipes/finetune/iemocap.yaml",
        "5 sessions, each scored once (--folds all)",
        "accuracy",
        ssast="59.6 (Table 2)",
        deviations="theirs go through s3prl and choose weights by a fifth of the training sessions",
    ),
    Task(
        "UrbanSound8K, ten sounds of cities",
        "CC BY-NC 3.0",
        "zenodo.org/records/1203745 (--fetch)",
        "ssamba prepare urbansound8k URBANSOUND8K shards/urbansound8k",
        "recipes/finetune/urbansound8k.yaml",
        "10 folds, each scored once (--folds all)",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "Soundscapes of UrbanSound8K, a label a second",
        "CC BY-NC 3.0",
        "zenodo.org/records/1203745 (urbansound8k.py --fetch)",
        "ssamba prepare soundscapes URBANSOUND8K shards/soundscapes",
        "recipes/finetune/soundscapes.yaml",
        "minutes of one fold each; 10 folds, each scored once (--folds all)",
        "accuracy and F1 of seconds, F1 of events",
        deviations="cosine rate; whole columns of patches a second; the last minute is filled with recordings, where "
        "SSAMBA's has silence",
    ),
    Task(
        "VGGSound, 309 sounds",
        "CC BY 4.0 (say its copies)",
        f"{_YOUTUBE} (robots.ox.ac.uk/~vgg/data/vggsound)",
        "ssamba prepare vggsound VGGSOUND shards/vggsound",
        "recipes/finetune/vggsound.yaml, recipes/finetune/aum_vggsound.yaml",
        "official split",
        "accuracy",
        aum=f"42.97, 46.78 ({_README})",
        deviations=f"{_ONE_LABEL}; the last weights, where theirs are of the epoch that is best on the test",
    ),
    Task(
        "EPIC-SOUNDS, 44 sounds, from scratch at 24 kHz",
        "CC BY-NC 4.0",
        "github.com/epic-kitchens/epic-sounds-annotations",
        "ssamba prepare epic_sounds EPIC_SOUNDS shards/epic_sounds --sampling-rate 24000",
        "recipes/finetune/aum_epic_sounds.yaml",
        "official validation split",
        "accuracy",
        aum=f"44.92, 48.31 ({_README})",
        deviations="cosine rate; this package's spectrograms; the last weights",
    ),
    Task(
        "EPIC-SOUNDS, 44 sounds, from pretrained weights",
        "CC BY-NC 4.0",
        "github.com/epic-kitchens/epic-sounds-annotations",
        "ssamba prepare epic_sounds EPIC_SOUNDS shards/epic_sounds_16k",
        "recipes/finetune/epic_sounds.yaml",
        "official validation split",
        "accuracy",
        deviations="none of the papers has self-supervised weights for it: a recipe of ours",
    ),
    Task(
        "GTZAN, ten genres of music",
        NONE,
        "marsyas/gtzan on the Hugging Face Hub",
        "ssamba prepare gtzan GTZAN shards/gtzan",
        "recipes/finetune/gtzan.yaml",
        "fault-filtered split (arXiv 1507.04761)",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "NSynth, 11 families of instruments",
        "CC BY 4.0",
        "magenta.tensorflow.org/datasets/nsynth (--fetch)",
        "ssamba prepare nsynth NSYNTH shards/nsynth",
        "recipes/finetune/nsynth_family.yaml",
        "official split: other instruments",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "NSynth, pitch",
        "CC BY 4.0",
        "magenta.tensorflow.org/datasets/nsynth (--fetch)",
        "ssamba prepare nsynth NSYNTH shards/nsynth",
        "recipes/finetune/nsynth_pitch.yaml",
        "official split: other instruments",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "FMA-small, eight genres of music",
        "of each artist's choice; lists CC BY 4.0",
        "github.com/mdeff/fma (--fetch)",
        "ssamba prepare fma FMA shards/fma_small",
        "recipes/finetune/fma_small.yaml",
        "official split",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "FSDD, ten digits by six speakers",
        "CC BY-SA 4.0",
        "github.com/Jakobovski/free-spoken-digit-dataset (--fetch)",
        "ssamba prepare fsdd RECORDINGS shards/fsdd --sampling-rate 8000",
        "recipes/finetune/fsdd_digits.yaml, recipes/finetune/fsdd_speakers.yaml",
        "official split (takes 0 to 4), or a speaker held out (data.test=[] data.fold_by=speaker --folds all)",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "One's own recordings",
        "one's own",
        "a folder, lists (`ssamba prepare listed`), the Hub (`ssamba prepare huggingface`), cuts (`ssamba prepare "
        "lhotse`)",
        "ssamba prepare folder RECORDINGS shards/labelled --validation 0.1 --test 0.1",
        "recipes/finetune/folder.yaml, recipes/finetune/laptop.yaml",
        "splits by chance, by folder, by list, or folds of any label",
        "accuracy; mAP of several labels",
        deviations=_OURS,
    ),
    Task(
        "The demo's words and voices",
        "synthesized here",
        "`ssamba prepare synthesize` (ssamba demo)",
        "ssamba prepare folder demo/keywords.csv demo/shards/keywords --label-key word",
        "recipes/finetune/demo.yaml",
        "voices, or takes, held out",
        "accuracy",
        deviations=_OURS,
    ),
    Task(
        "LibriSpeech, speech to text",
        "CC BY 4.0",
        "openslr.org/12 (--fetch)",
        "ssamba prepare librispeech LIBRISPEECH shards/librispeech-text --transcripts --parts "
        "train-clean-100,dev-clean,test-clean",
        "recipes/finetune/librispeech.yaml",
        "official parts; CTC on characters, greedy and beam search",
        "WER, CER",
        deviations=_OURS,
    ),
    Task(
        "The synthesizer's sentences, speech to text",
        "synthesized here",
        "`ssamba prepare synthesize`",
        "ssamba prepare folder speech/sentences.csv shards/speech --label-column text --label-key text",
        "recipes/finetune/speech.yaml",
        "voices held out; CTC on characters, greedy and beam search",
        "WER, CER",
        deviations=_OURS,
    ),
    Task(
        "LibriSpeech, for pretraining",
        "CC BY 4.0",
        "openslr.org/12 (--fetch)",
        "ssamba prepare librispeech LIBRISPEECH shards/librispeech",
        "recipes/pretrain/audioset_librispeech_patch.yaml, recipes/pretrain/audioset_librispeech_frame.yaml",
        "with AudioSet's training part, without labels",
        NONE,
        deviations="of the recipes for pretraining, in their comments",
    ),
    Task(
        "AudioSet, for pretraining",
        "CC BY 4.0 (lists)",
        f"{_YOUTUBE} (research.google.com/audioset)",
        "ssamba prepare audioset AUDIOSET shards/audioset",
        "recipes/pretrain/audioset_eat.yaml",
        "its training part, without labels",
        NONE,
        deviations="EAT's objective (arXiv 2401.03497), not the papers'; of the recipe, in its comments",
    ),
)

HEADER = Task(
    "data set",
    "licence",
    "comes from",
    "preparation",
    "recipe",
    "protocol",
    "metric",
    "SSAMBA",
    "SSAST",
    "AuM",
    "deviations",
)
