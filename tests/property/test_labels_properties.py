"""Laws of the label space: names settle, rows never move, JSON keeps everything."""

from __future__ import annotations

import json

from hypothesis import given, settings
from hypothesis import strategies as st

from hermes.labels import (
    LabelSpace,
    Structure,
    Task,
    bind_structures,
    catalogue,
    published_label_space,
    structure,
)
from hermes.labels.names import key
from hermes.types import Modality

QUICK = settings(max_examples=60, deadline=None)
SPACE = published_label_space()

words = st.from_regex(r"[a-z]{3,8}( [a-z]{3,8}){0,2}", fullmatch=True)
tasks = st.builds(
    Task,
    structure=words,
    protocol=words,
    modalities=st.lists(st.sampled_from(Modality), unique=True).map(tuple),
    modality_unknown_ok=st.booleans(),
)
spaces = st.lists(
    tasks, unique_by=lambda t: (key(t.structure), key(t.protocol).replace(" ", "")), max_size=6
).filter(
    lambda ts: (
        not {key(t.structure) for t in ts} & {key(n) for e in catalogue() for n in (e.name, *e.synonyms)}
    )
)


@given(st.text())
@settings(max_examples=300, deadline=None)
def test_a_key_is_its_own_key(name: str) -> None:
    assert key(key(name)) == key(name)


@given(st.sampled_from(catalogue()), st.data())
@QUICK
def test_a_structure_is_found_under_every_spelling(entry: Structure, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from((entry.name, *entry.synonyms)))
    separator = data.draw(st.sampled_from([" ", "_", "-", ".", "  "]))
    case = data.draw(st.sampled_from([str.upper, str.lower, str.title]))
    assert structure(case(name.replace(" ", separator))) == entry


@given(spaces)
@QUICK
def test_json_round_trip(members: list[Task]) -> None:
    space = LabelSpace(tuple(members))
    assert LabelSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


@given(spaces)
@QUICK
def test_append_never_moves_a_row(members: list[Task]) -> None:
    space = LabelSpace()
    for count, task in enumerate(members):
        longer = space.append(task)
        assert longer.row(task) == count
        assert [longer.row(t) for t in space.tasks] == [space.row(t) for t in space.tasks]
        space = longer


@given(st.sampled_from(SPACE.tasks), st.sampled_from([None, *Modality]))
@QUICK
def test_resolve_is_idempotent(task: Task, modality: Modality | None) -> None:
    resolved = SPACE.resolve(task.structure, modality)
    assert SPACE.resolve(resolved.key, modality) is resolved
    assert SPACE.resolve(task.key, modality) is task
    assert resolved.covers(modality) or not any(
        t.covers(modality) for t in SPACE.tasks if t.structure == task.structure
    )


@given(st.lists(words, unique_by=key, max_size=4))
@QUICK
def test_binding_twice_is_binding_once(names: list[str]) -> None:
    space, bound = bind_structures(SPACE, names)
    assert space.tasks[: len(SPACE)] == SPACE.tasks
    assert bind_structures(space, names) == (space, bound)
