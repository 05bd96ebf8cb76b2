"""``hermes labels``: what can be asked for, and under which names, codes and colours.

>>> from hermes.labels import published_label_space
>>> [entry.structure.name for entry in search(entries_of(published_label_space()), "L kidney")]
['left kidney']
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hermes.errors import UnknownStructureError
from hermes.labels.catalogue import Code, Structure, canonical_key, describe, find_group, group_names
from hermes.labels.names import did_you_mean, key
from hermes.labels.space import LabelSpace, Task
from hermes.types import Modality


@dataclass(frozen=True)
class Entry:
    """A structure of a label space with the tasks that draw it; ``rows`` are theirs, in the same order."""

    name: str
    structure: Structure
    tasks: tuple[Task, ...]
    rows: tuple[int, ...]

    @property
    def protocols(self) -> tuple[str, ...]:
        """Who draws it."""
        return tuple(task.protocol for task in self.tasks)

    @property
    def modalities(self) -> tuple[Modality, ...]:
        """In which modalities some protocol draws it; empty: in any."""
        return tuple(m for m in Modality if any(m in task.modalities for task in self.tasks))

    @property
    def colour_hex(self) -> str:
        """``#rrggbb``."""
        return "#{:02x}{:02x}{:02x}".format(*self.structure.colour)

    def to_json(self) -> dict[str, Any]:
        """Everything about the structure as a JSON object."""
        laterality, region = self.structure.laterality, self.structure.region
        return {
            "name": self.name,
            "tasks": [
                {
                    "task": task.key,
                    "row": row,
                    "modalities": [m.value for m in task.modalities],
                    "modality_unknown_ok": task.modality_unknown_ok,
                }
                for task, row in zip(self.tasks, self.rows, strict=True)
            ],
            "groups": list(self.structure.groups),
            "code": _code(self.structure.code),
            "category": _code(self.structure.category),
            "laterality": _code(laterality) if laterality else None,
            "region": _code(region) if region else None,
            "colour": self.colour_hex,
            "synonyms": list(self.structure.synonyms),
            "within": list(self.structure.within),
        }


def _code(code: Code) -> dict[str, str]:
    return {"value": code.value, "scheme": code.scheme, "meaning": code.meaning}


def entries_of(space: LabelSpace, group: str | None = None) -> list[Entry]:
    """The structures of a label space, by their first row; only those of ``group`` where one is named.

    Raises:
        UnknownStructureError: there is no such group.
    """
    wanted = None if group is None else find_group(group)
    if group is not None and wanted is None:
        msg = f"Unknown group {group!r}. Expected one of: {', '.join(group_names())}.{did_you_mean(group, group_names())}"
        raise UnknownStructureError(msg)
    found = [_entry(space, name) for name in space.structures()]
    return [entry for entry in found if wanted is None or wanted in entry.structure.groups]


def _entry(space: LabelSpace, name: str) -> Entry:
    rows = [
        row for row, task in enumerate(space.tasks) if canonical_key(task.structure) == canonical_key(name)
    ]
    return Entry(name, describe(name), tuple(space.tasks[row] for row in rows), tuple(rows))


def search(entries: Sequence[Entry], query: str) -> list[Entry]:
    """The entries of which every word of the query begins a word of a name, synonym, protocol, modality, code or group.

    Case, accents, spelling (British, American) and the way a side is written do not count.
    """
    wanted = key(query).split()
    return [entry for entry in entries if all(_begins(word, _words_of(entry)) for word in wanted)]


def suggestion(entries: Sequence[Entry], query: str) -> str:
    """A sentence that proposes the nearest names, with a leading space; "" where none is near."""
    return did_you_mean(query, [name for e in entries for name in (e.name, *e.structure.synonyms)])


def _begins(word: str, words: Sequence[str]) -> bool:
    return any(candidate.startswith(word) for candidate in words)


def _words_of(entry: Entry) -> list[str]:
    known = entry.structure
    texts = [entry.name, known.name, *known.synonyms, *entry.protocols, *known.groups]
    texts += [m.value for m in entry.modalities] + [c.value for c in (known.code, known.region) if c]
    # A protocol is found as written and as its letters: "AMOS" and "StructSeg thorax".
    words = [word for text in texts for word in key(text).split()]
    return words + [protocol.casefold() for protocol in entry.protocols]
