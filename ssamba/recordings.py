"""Recordings: the one list of what they are called, and the one way in which each is read. Imports no torch."""

import re

ENDINGS = frozenset(
    re.findall(
        r"\.\w+",
        # What libsndfile reads, and what FFmpeg reads in its place.
        ".aif .aifc .aiff .au .avr .bwf .caf .flac .ircam .mp1 .mp2 .mp3 .nist .oga .ogg .opus .paf .pvf .rf64 .sd2 "
        ".sf .snd .sph .svx .voc .w64 .wav .wave .wavex .wve "
        ".3gp .aac .ac3 .amr .ape .asf .awb .eac3 .m4a .m4b .mka .mkv .mp4 .spx .tta .weba .webm .wma .wv",
    )
)
"""How the names of recordings end, in small letters. A file that is named itself may end as it likes."""
