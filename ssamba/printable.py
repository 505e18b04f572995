"""Text from elsewhere (names of files, labels, messages) as it may be shown. Imports no torch."""

import html
import logging
import re

# Control characters, among them a terminal's escape and the end of a line; halves of characters, as names that are no
# UTF-8 have; the ends of lines and paragraphs that only Unicode has; and what turns the direction of writing.
_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

LEFT_OUT = "***"
"""What stands where a secret was."""

_SECRETS = (
    (re.compile(r"(?<=://)([^/\s@:'\"]*):[^/\s@'\"]+(?=@)"), rf"\1:{LEFT_OUT}"),  # a password before the host
    (re.compile(r"(?<=http://|ttps://)[^/\s@:'\"]+(?=@)"), LEFT_OUT),  # a token there
    (re.compile(r"(?<=-H)(\s*['\"]?[\w-]+:\s*)[^'\"$]+(?=['\"])"), rf"\1{LEFT_OUT}"),  # a header of curl's
    (re.compile(r"(?<=--header)([\s=]*['\"]?[\w-]+:\s*)[^'\"$]+(?=['\"])"), rf"\1{LEFT_OUT}"),
)
_QUERY = re.compile(r"(?<=://)([^\s?'\"]*\?)([^\s'\"#]+)")
_VALUE = re.compile(r"(?<=[=])[^&]+")


def masked(text: str) -> str:
    """The text without what may be secret in its urls and commands: passwords and tokens before a host, the values of
    queries, the headers of curl. Variables, such as $TOKEN, stay."""
    if "://" not in text and "pipe:" not in text:
        return text
    for secret, instead in _SECRETS:
        text = secret.sub(instead, text)
    return _QUERY.sub(lambda match: match[1] + _masked_query(match[2]), text)


def _masked_query(query: str) -> str:
    return _VALUE.sub(LEFT_OUT, query) if "=" in query else LEFT_OUT


def printable(text: str) -> str:
    r"""The text in one line that shows all it holds: what acts instead of being seen is escaped, as \x1b or \u202e."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def csv_cell(text: str) -> str:
    """Text as a cell of a CSV file that spreadsheets may open: printable, and none that they would take for a formula.

    What begins with =, +, - or @ gets an apostrophe before it, as OWASP advises. Numbers are not for this function.
    """
    shown = printable(text)
    return f"'{shown}" if shown.startswith(("=", "+", "-", "@")) else shown


def html_text(text: str) -> str:
    """Text within a page or an attribute: printable, and no markup."""
    return html.escape(printable(text))


def markdown_text(text: str) -> str:
    """Text within a line or a cell of Markdown: printable, and neither Markdown's nor HTML's markup."""
    return re.sub(r"([\\`*_\[\]|~#!])", r"\\\1", printable(text).replace("&", "&amp;").replace("<", "&lt;"))


def markdown_code(text: str) -> str:
    """Text as code within a line of Markdown, in more backticks than it has in a row."""
    shown = printable(text)
    fence = "`" * (1 + max(map(len, re.findall("`+", shown)), default=0))
    space = " " if "`" in (shown[:1], shown[-1:]) else ""
    return f"{fence}{space}{shown}{space}{fence}"


_LATEX = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
_LATEX |= {sign: f"\\{sign}" for sign in "&%$#_{}"}


def latex_text(text: str) -> str:
    """Text within a cell of LaTeX: printable, and none of its commands."""
    return "".join(_LATEX.get(letter, letter) for letter in printable(text))


class PrintableFormatter(logging.Formatter):
    """Messages of this package in one line; of others, whose lines are their own, line by line."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        ours = record.name.partition(".")[0] == "ssamba"
        lines = [record.message] if ours else record.message.split("\n")
        record.message = "\n".join(printable(masked(line)) for line in lines)
        return super().formatMessage(record)


def log_to_stderr(form: str, level: int) -> None:
    """Let the root logger write there, unless it has a place already."""
    handler = logging.StreamHandler()
    handler.setFormatter(PrintableFormatter(form))
    logging.basicConfig(handlers=[handler], level=level)
