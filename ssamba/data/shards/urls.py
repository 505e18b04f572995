"""How files that lie elsewhere are named: urls and commands (`pipe:`), patterns of them, and files beside others."""

import re

from braceexpand import braceexpand

from ssamba.errors import UserError
from ssamba.printable import LEFT_OUT

_MOST_NAMES = 100_000  # that a pattern with braces may stand for
_RANGE = re.compile(r"{(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?}")
# What can stand in a url and in a command as it is, so that a name from elsewhere adds nothing to either.
_SHARD_NAME = r"\w[\w.-]*\.tar"
_FILE = re.compile(rf"""(?<![^/\s'"=:])(index\.json|{_SHARD_NAME})(?![^\s'"?#&|;<>)])""", re.ASCII)


def is_by_driver(url: str) -> bool:
    """Whether fsspec has the driver: neither http(s) nor a command, which are read here."""
    return not url.startswith(("http://", "https://", "pipe:"))


def expand_remote(source: str) -> list[str]:
    """The urls and commands, each of one .tar or of an index.json, that a source with braces stands for; of a url that
    a driver of fsspec reads, wildcards (*, ?, [...]) stay, to be listed.

    Raises:
        UserError: unbalanced braces, not exactly one file named in each, or a part that a saved recipe left out.
    """
    if LEFT_OUT in source:
        raise UserError(
            f"{source!r} has {LEFT_OUT} where its secret was, which is never written into a recipe: name it again, "
            "such as data.train=..., or put credentials where its driver looks for them"
        )
    urls = expand_braces(source, escape=False)
    urls = [f"{url}index.json" if url.startswith("http") and url.endswith("/") else url for url in urls]
    urls = [f"{url.rstrip('/')}/index.json" if is_by_driver(url) and not _is_file(url) else url for url in urls]
    for url in urls:
        if len(_FILE.findall(url)) != 1 and not has_wildcard(url):
            raise UserError(
                f"{url!r} should name one file, a shard (.../000000.tar) or the index of all (.../index.json, or for "
                f"http a url that ends in /); it names {len(_FILE.findall(url)) or 'none'}"
            )
    return urls


def has_wildcard(url: str) -> bool:
    """Whether a url is a pattern, to be compared with a listing."""
    return is_by_driver(url) and re.search(r"[*?\[]", url) is not None


def _is_file(url: str) -> bool:
    return url.endswith((".tar", "/index.json"))


def expand_braces(pattern: str, escape: bool = True) -> list[str]:
    """The texts that a pattern with braces stands for, as the shell has them: `{000000..000009}.tar`, `{a,b}/train`.

    Args:
        escape: a backslash takes its meaning from a brace.

    Raises:
        UserError: unbalanced braces, or more texts than can be meant.
    """
    shown = repr(pattern[:200])
    try:
        # Counted before it is written out, which takes the memory of all of them and more.
        if _most_texts(re.sub(r"\\.", "", pattern) if escape else pattern) <= _MOST_NAMES:
            return list(braceexpand(pattern, escape=escape))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{shown} has unbalanced braces; expected a pattern like {{000000..000009}}.tar") from error
    raise UserError(f"{shown} stands for more than {_MOST_NAMES} names; expected those of shards")


def _most_texts(pattern: str) -> int:
    """How many texts a pattern stands for at most: fewer if it has braces within braces. ValueError if they are not
    balanced."""
    total, choices = 1, [1]
    for letter in pattern:
        if letter == "{":
            choices.append(1)
        elif letter == ",":
            choices[-1] += 1
        elif letter == "}":
            total *= choices.pop()
            if not choices:
                raise ValueError(pattern)
    if choices[1:]:
        raise ValueError(pattern)
    for first, last, step in _RANGE.findall(pattern):
        total *= abs(int(last) - int(first)) // max(1, int(step or 1)) + 1
    return total


def file_name(url: str) -> str:
    """The name of the file that a url or a command gives."""
    return _FILE.findall(url)[0]


def renamed(url: str, name: str) -> str:
    """The url or command of another file in the same folder."""
    return _FILE.sub(lambda _: name, url)


def is_shard_name(name: str) -> bool:
    """Whether a name is plain enough to stand in a url and in a command."""
    return re.fullmatch(_SHARD_NAME, name, re.ASCII) is not None
