"""Rows for the tasks that a campaign has and its model has not, and what they begin as."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch

from hermes.labels.catalogue import canonical_key, describe
from hermes.labels.names import nearest
from hermes.labels.space import LabelSpace
from hermes.model import UniversalNetwork, extend_tasks
from hermes.records import NewStructure
from hermes.types import StructureName


def add_rows(
    net: UniversalNetwork, space: LabelSpace, confirmed: Iterable[NewStructure], *, seed: int
) -> tuple[int, ...]:
    """The new rows of ``net``, one for each task of ``space`` beyond its own; old rows keep their bits.

    Args:
        net: changed in place.
        space: label space with the campaign's tasks appended.
        confirmed: structures that requests have added, with what they are like.
        seed: of rows that begin at random.
    """
    known = {canonical_key(one.name): one for one in confirmed}
    old = net.config.tasks
    new = range(old, len(space))
    begin = [first_row(space, row, known, old) for row in new]
    extend_tasks(net, len(new), begin, torch.Generator().manual_seed(seed))
    return tuple(new)


def first_row(
    space: LabelSpace, row: int, confirmed: Mapping[StructureName, NewStructure], old: int
) -> int | None:
    """The row below ``old`` as a copy of which ``row`` begins; None: at random.

    The named relative where there is one; else the same structure by another protocol; else, for a structure
    that a request has confirmed, the nearest of the catalogue. Names of the settings that nothing in the model
    draws begin at random.
    """
    structure = space.tasks[row].structure
    new = confirmed.get(canonical_key(structure))
    if new is not None and new.random:
        return None
    if new is not None and new.like is not None:
        named = _drawn_by(space, new.like, old)
        if named is not None:
            return named
    same = _drawn_by(space, structure, old)
    return same if same is not None or new is None else nearest_row(space, structure, old)


def _drawn_by(space: LabelSpace, structure: StructureName, old: int) -> int | None:
    """The first row below ``old`` that draws a structure."""
    wanted = canonical_key(structure)
    return next((r for r in range(old) if canonical_key(space.tasks[r].structure) == wanted), None)


def nearest_row(space: LabelSpace, structure: StructureName, old: int) -> int | None:
    """The row below ``old`` whose structure is nearest to ``structure``; None where none is near.

    In this order: the other side of the same organ, what contains it, the likeliest misspelling, a structure of
    the same category and body region.
    """
    wanted, names = describe(structure), [task.structure for task in space.tasks[:old]]
    entries = [describe(name) for name in names]
    if wanted.known:
        for row, entry in enumerate(entries):
            if entry.known and entry.code == wanted.code and not wanted.parts:
                return row
        for row, entry in enumerate(entries):
            if entry.name in wanted.within:
                return row
    close = nearest(structure, names)
    if close:
        return names.index(close[0])
    for row, entry in enumerate(entries):
        if wanted.known and entry.category == wanted.category and set(entry.groups) & set(wanted.groups):
            return row
    return None
