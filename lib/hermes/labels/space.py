"""The label space: which task stands in which row of the network's tables, and what a name asks for.

>>> space = published_label_space()
>>> task = space.resolve("Oesophagus@BTCV")
>>> task.key, space.row(task)
('esophagus@BCV', 23)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

from hermes.errors import BadRequestError, CheckpointError, ConflictError, UnknownStructureError
from hermes.labels.catalogue import canonical_key, describe, find_group
from hermes.labels.names import PROTOCOL_MARK, did_you_mean, key, nearest, split_protocol
from hermes.labels.published import CAMPAIGN_PROTOCOL, preferred_protocols, protocol_key, published_protocols
from hermes.types import Modality

FORMAT_VERSION = 1
"""Version of the JSON form; a reader refuses a newer one."""

GROUP_MARK = "group:"
"""Says that a group is meant where a structure has the same name: ``group:heart``."""

EVERYTHING = "all"
"""The request for one task per structure."""


@dataclass(frozen=True)
class Task:
    """A structure as drawn by one protocol: one row of the task-prior tables.

    Attributes:
        structure: name of the structure.
        protocol: whose way of drawing it.
        modalities: in which it was taught; empty: in none in particular, so it may be asked for in any.
        modality_unknown_ok: whether it was also taught on images of unknown modality.
    """

    structure: str
    protocol: str
    modalities: tuple[Modality, ...] = ()
    modality_unknown_ok: bool = False

    def __post_init__(self) -> None:
        for part in (self.structure, self.protocol):
            if not key(part) or PROTOCOL_MARK in part:
                msg = f"Expected a structure and a protocol with a letter and without '@', got {part!r}."
                raise BadRequestError(msg)

    @property
    def key(self) -> str:
        """``structure@protocol``, as written in requests, files and reports."""
        return f"{self.structure}{PROTOCOL_MARK}{self.protocol}"

    def covers(self, modality: Modality | None) -> bool:
        """Whether it was taught in ``modality`` (``None``: not known, then every task may be asked for).

        A task that was also taught without the modality's name covers the sequences of MR.
        """
        if modality is None or not self.modalities or modality in self.modalities:
            return True
        return self.modality_unknown_ok and modality in (Modality.T1, Modality.T2, Modality.CINE)


def _identity(structure: str, protocol: str) -> tuple[str, str]:
    """What makes two tasks the same, however their names are spelled."""
    return canonical_key(structure), protocol_key(protocol)


@dataclass(frozen=True)
class LabelSpace:
    """An append-only list of tasks; the place of a task is its row, and never changes.

    Raises:
        ConflictError: two of the tasks are the same.
    """

    tasks: tuple[Task, ...] = ()

    def __post_init__(self) -> None:
        seen: dict[tuple[str, str], Task] = {}
        for task in self.tasks:
            first = seen.setdefault(_identity(task.structure, task.protocol), task)
            if first is not task:
                msg = f"A label space holds a task once; {task.key!r} is {first.key!r} again."
                raise ConflictError(msg)

    def __len__(self) -> int:
        return len(self.tasks)

    @cached_property
    def _rows(self) -> dict[tuple[str, str], int]:
        return {_identity(task.structure, task.protocol): row for row, task in enumerate(self.tasks)}

    def row(self, task: Task) -> int:
        """The row of ``task``.

        Raises:
            UnknownStructureError: it is not in this space.
        """
        row = self._rows.get(_identity(task.structure, task.protocol))
        if row is None:
            msg = f"Unknown task {task.key!r}.{did_you_mean(task.key, (t.key for t in self.tasks))}"
            raise UnknownStructureError(msg)
        return row

    def append(self, task: Task) -> LabelSpace:
        """This space with ``task`` in a new last row.

        Raises:
            ConflictError: the space has this task.
        """
        return LabelSpace((*self.tasks, task))

    def structures(self) -> tuple[str, ...]:
        """The names of the structures that some task draws, each once, in the order of their first row."""
        first: dict[str, str] = {}
        for task in self.tasks:
            first.setdefault(canonical_key(task.structure), task.structure)
        return tuple(first.values())

    def resolve(self, name: str, modality: Modality | None = None, *, prefer: tuple[str, ...] = ()) -> Task:
        """The task that ``name`` (``"liver"`` or ``"liver@BCV"``, in any spelling) asks for.

        Without a protocol: among the tasks taught in ``modality`` (or, where none is, among all), a site's
        own protocol comes first, then ``prefer``, then the order of ``published.yaml``, then the lower row.

        Raises:
            UnknownStructureError: no task of this space draws it; the message proposes the nearest names.
            BadRequestError: not of the form ``structure`` or ``structure@protocol``.
        """
        structure, protocol = split_protocol(name)
        drawn = [task for task in self.tasks if canonical_key(task.structure) == canonical_key(structure)]
        if not drawn:
            raise UnknownStructureError(self._unknown(name, structure))
        if protocol is not None:
            return _with_protocol(drawn, name, protocol)
        order = [protocol_key(p) for p in (CAMPAIGN_PROTOCOL, *prefer, *preferred_protocols(modality))]

        def place(task: Task) -> int:
            own = protocol_key(task.protocol)
            return order.index(own) if own in order else len(order)

        return min([task for task in drawn if task.covers(modality)] or drawn, key=place)

    def _unknown(self, name: str, structure: str) -> str:
        known = self.structures()
        listed = ", ".join(known[:80]) if known else "none yet"
        return f"Unknown structure {name!r}.{did_you_mean(structure, known)} This label space has: {listed}."

    def nearest(self, name: str) -> list[str]:
        """Up to three structures of this space that ``name`` may be a misspelling of."""
        return nearest(split_protocol(name)[0], self.structures())

    def group(self, name: str, modality: Modality | None = None) -> tuple[Task, ...]:
        """One task for each structure of a body region, by row; only those that cover ``modality``.

        Raises:
            UnknownStructureError: there is no such group.
        """
        group = find_group(name)
        if group is None:
            msg = f"Unknown group {name!r}.{did_you_mean(name, self.groups())}"
            raise UnknownStructureError(msg)
        prefer = preferred_protocols(modality, group=group)
        members = [member for member in self.structures() if group in describe(member).groups]
        return self._covering((self.resolve(member, modality, prefer=prefer) for member in members), modality)

    def _covering(self, tasks: Iterable[Task], modality: Modality | None) -> tuple[Task, ...]:
        return tuple(sorted((task for task in tasks if task.covers(modality)), key=self.row))

    def groups(self) -> tuple[str, ...]:
        """The groups of which this space has at least one structure."""
        return tuple(dict.fromkeys(group for name in self.structures() for group in describe(name).groups))

    def select(self, names: Iterable[str] | None, modality: Modality | None = None) -> tuple[Task, ...]:
        """The tasks that a request asks for, each once, in the order asked.

        A name is a structure, ``structure@protocol``, a group (``abdomen``; ``group:heart`` where a structure
        has the group's name), or ``all``; ``None`` is ``all``.

        Raises:
            UnknownStructureError: a name that is none of these.
        """
        chosen: dict[Task, None] = {}
        for name in (EVERYTHING,) if names is None else names:
            chosen.update(dict.fromkeys(self._expand(name, modality)))
        return tuple(chosen)

    def _expand(self, name: str, modality: Modality | None) -> tuple[Task, ...]:
        if name.strip().lower().startswith(GROUP_MARK):
            return self.group(name.strip()[len(GROUP_MARK) :], modality)
        if self.knows(name):
            return (self.resolve(name, modality),)
        if key(name) == EVERYTHING:
            return self._covering((self.resolve(one, modality) for one in self.structures()), modality)
        if find_group(name) is not None:
            return self.group(name, modality)
        return (self.resolve(name, modality),)  # raises, with the nearest names

    def knows(self, name: str) -> bool:
        """Whether `resolve` has an answer for ``name``."""
        try:
            self.resolve(name)
        except BadRequestError:
            return False
        return True

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` restores this space."""
        tasks = [
            {
                "structure": task.structure,
                "protocol": task.protocol,
                "modalities": [modality.value for modality in task.modalities],
                "modality_unknown_ok": task.modality_unknown_ok,
            }
            for task in self.tasks
        ]
        return {"format": FORMAT_VERSION, "tasks": tasks}

    @staticmethod
    def from_json(document: Mapping[str, Any] | str) -> LabelSpace:
        """The space that `to_json` wrote (its object, or that object as text).

        Raises:
            CheckpointError: a newer format, or not a label space at all.
        """
        try:
            data = json.loads(document) if isinstance(document, str) else document
            if data["format"] != FORMAT_VERSION:
                found = data["format"]
                msg = f"Expected a label space of format {FORMAT_VERSION}, got {found!r}: update Hermes."
                raise CheckpointError(msg)
            return LabelSpace(tuple(_task_from(entry) for entry in data["tasks"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            msg = f"Expected a label space with a format and tasks, got something else: {error!r}."
            raise CheckpointError(msg) from error

    @property
    def content_hash(self) -> str:
        """SHA-256 (hex) of the tasks in their order: equal for equal spaces, on every machine."""
        return hashlib.sha256(json.dumps(self.to_json(), sort_keys=True).encode()).hexdigest()


def _task_from(entry: Mapping[str, Any]) -> Task:
    return Task(
        structure=entry["structure"],
        protocol=entry["protocol"],
        modalities=tuple(Modality(value) for value in entry["modalities"]),
        modality_unknown_ok=bool(entry["modality_unknown_ok"]),
    )


def _with_protocol(drawn: list[Task], name: str, protocol: str) -> Task:
    for task in drawn:
        if protocol_key(task.protocol) == protocol_key(protocol):
            return task
    protocols = ", ".join(task.protocol for task in drawn)
    msg = f"Unknown task {name!r}: {drawn[0].structure!r} is drawn by {protocols}."
    raise UnknownStructureError(msg)


@cache
def published_label_space() -> LabelSpace:
    """The 71 tasks of the published networks, in the order of their rows."""
    return LabelSpace(
        tuple(
            Task(structure, protocol.name, protocol.modalities, place < protocol.unknown_modality)
            for protocol in published_protocols()
            for place, structure in enumerate(protocol.structures)
        )
    )


def bind_structures(
    space: LabelSpace, names: Iterable[str], modality: Modality | None = None
) -> tuple[LabelSpace, tuple[tuple[str, int], ...]]:
    """What a campaign labels: ``(space, ((name as written, row), ...))``.

    A name that the space knows is bound to its task; any other becomes a new task in a new row, of the
    protocol "campaign". ``liver@campaign`` asks for a new task of a structure that the space knows, for a
    site that draws it its own way. Existing rows do not move.

    Raises:
        BadRequestError: a name that cannot name a structure, one that is given twice, or two for one task.
        UnknownStructureError: a protocol other than "campaign" that does not draw the structure.
    """
    bound: dict[int, str] = {}
    for name in (name.strip() for name in names):
        space, task = _bind(space, name, modality)
        row = space.row(task)
        if row in bound:
            msg = f"Expected one name per task, got {bound[row]!r} and {name!r}, which are both {task.key!r}."
            raise BadRequestError(msg)
        bound[row] = name
    return space, tuple((name, row) for row, name in bound.items())


def _bind(space: LabelSpace, name: str, modality: Modality | None) -> tuple[LabelSpace, Task]:
    structure, protocol = split_protocol(name)
    if space.knows(name):
        return space, space.resolve(name, modality)
    if protocol is not None and protocol_key(protocol) != protocol_key(CAMPAIGN_PROTOCOL):
        hint = f"To draw it your own way, write '{structure}{PROTOCOL_MARK}{CAMPAIGN_PROTOCOL}'."
        msg = f"Unknown task {name!r}: no task of the label space has this structure and protocol. {hint}"
        raise UnknownStructureError(msg)
    task = Task(describe(structure).name, CAMPAIGN_PROTOCOL)
    return space.append(task), task
