"""What the samples of shards say of a label, counted before training is begun. Imports no torch."""

from collections import Counter
from collections.abc import Container, Sequence
from dataclasses import dataclass, field

from ssamba.data.index import ShardSet
from ssamba.data.reader import SampleReader
from ssamba.data.remote import ShardCache
from ssamba.errors import BadAudio
from ssamba.progress import progress_bar

_EXAMPLES = 4


@dataclass
class LabelCounts:
    """Of a split: samples with a label that is known, by how many names they have and, for each name, how many have it;
    of those whose label is none, or not in the list, how many there are and some of them, as they are told."""

    by_number: Counter[int] = field(default_factory=Counter)
    by_name: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    unknown_examples: list[str] = field(default_factory=list)
    several_examples: list[str] = field(default_factory=list)

    @property
    def samples(self) -> int:
        """Those with a label that is known."""
        return self.by_number.total()


def count_labels(
    shards: ShardSet, key: str, names: Sequence[str], cache: ShardCache, rows: Container[int] | None = None
) -> LabelCounts:
    """Read label `key` of all samples, or of some rows of the table; no audio is read, and what is damaged is passed
    over, as training does."""
    reader, known, counts = SampleReader(shards, cache), frozenset(names), LabelCounts()
    with progress_bar(shards.samples, "sample", "labels") as bar:
        for number in range(shards.samples):
            bar.update()
            if rows is not None and number not in rows:
                continue
            try:
                described = reader.description(number)
            except BadAudio:
                continue
            value = described["labels"].get(key)
            values = value if isinstance(value, list) else [] if value is None else [value]
            if value is None or not all(one in known for one in values):
                counts.unknown += 1
                if len(counts.unknown_examples) < _EXAMPLES:
                    counts.unknown_examples.append(f"{described['key']} ({value!r:.60})")
                continue
            counts.by_number[len(values)] += 1
            counts.by_name.update(set(values))
            if len(values) > 1 and len(counts.several_examples) < _EXAMPLES:
                counts.several_examples.append(f"{described['key']} ({', '.join(values)})"[:100])
    return counts
