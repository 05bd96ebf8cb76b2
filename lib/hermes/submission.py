"""What an annotator submitted, checked and brought to the campaign's own names and numbers.

A label file alone says too little: which name each value has comes with the request, and so does what was
looked at. ``read_submission`` turns both into a `Submission` or refuses, and never guesses a name from a value.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hermes.errors import BadLabelError, BadRequestError, GeometryMismatchError, UnknownStructureError
from hermes.geometry import Grid
from hermes.labels.catalogue import canonical_key
from hermes.labels.names import check_new_name, did_you_mean, split_protocol
from hermes.records import LabelMap, NewStructure
from hermes.transforms.reading import read_label_map
from hermes.transforms.writing import write_label_map

# Segments that viewers create for themselves and that are no structure.
IGNORED_SEGMENTS = frozenset({"background", "background_scribbles", "foreground_scribbles"})
PRESENT, ABSENT = "present", "absent"


@dataclass(frozen=True)
class Submission:
    """A checked label.

    Attributes:
        label_map: on the image's grid; values are the campaign's own numbers of the structures.
        annotated: structure -> ``"present"`` or ``"absent"``. What is not a key was not annotated.
        new: structures that the request adds to the campaign's, of those that are annotated.
    """

    label_map: LabelMap
    annotated: Mapping[str, str]
    new: tuple[NewStructure, ...] = ()


def campaign_values(structures: Sequence[str]) -> dict[str, int]:
    """The label value of each structure of a campaign: its place in the list, from 1."""
    return {name: value for value, name in enumerate(structures, start=1)}


def match_structure(name: str, structures: Sequence[str]) -> str:
    """The campaign's structure that a viewer's segment name means (case, underscores, side in any order).

    Raises:
        UnknownStructureError: the campaign labels nothing of this name.
    """
    if name in structures:
        return name
    wanted = canonical_key(split_protocol(name)[0])
    found = [s for s in structures if canonical_key(split_protocol(s)[0]) == wanted]
    if len(found) == 1:
        return found[0]
    problem = "is ambiguous" if found else "is not labelled in this campaign"
    msg = (
        f"Structure {name!r} {problem}.{did_you_mean(name, structures)} Expected one of: {', '.join(structures)}. "
        f"To add it, confirm it in the request: params {{'new_structures': {{{name!r}: {{}}}}}}."
    )
    raise UnknownStructureError(msg)


def read_submission(
    path: str | os.PathLike[str], params: Mapping[str, Any], *, image_grid: Grid, structures: Sequence[str]
) -> Submission:
    """The submission in a label file (NIfTI, NRRD, 3D Slicer's ``.seg.nrrd`` too, or MHA); see `check_submission`."""
    return check_submission(read_label_map(path), params, image_grid=image_grid, structures=structures)


def check_submission(
    label: LabelMap, params: Mapping[str, Any], *, image_grid: Grid, structures: Sequence[str]
) -> Submission:
    """The submission in a label map and the request's ``params``.

    Args:
        label: as read, on the grid of its image; its own names count where ``label_info`` is not given.
        params: ``label_info``: ``[{"name": ..., "idx": value}, ...]``, the name of every value in the file; where
            idx skips numbers as 3D Slicer's does, see ``label_values`` in docs/pacs.md.
            ``absent``: names of structures that were looked for and are not there. A name in ``label_info``
            without a voxel is *not* taken as absent: viewers list every segment, drawn or not.
            ``new_structures``: see `new_structures_in`; without it an unknown name is refused.
        image_grid: the grid of the image.
        structures: what the campaign labels.

    Raises:
        BadLabelError: no voxel and nothing declared absent, or values without a name.
        GeometryMismatchError: not on the grid of the image.
        UnknownStructureError: a name that the campaign does not label and that the request does not confirm.
        BadRequestError: ``label_info``, ``absent`` or ``new_structures`` is malformed, or a structure or a value is
            named twice.
    """
    new = new_structures_in(params, structures)
    structures = (*structures, *(one.name for one in new))
    difference = image_grid.difference(label.grid)
    if difference is not None:
        msg = f"Expected a label on the grid of its image. {difference} Export the label with the image as reference."
        raise GeometryMismatchError(msg)
    absent = [match_structure(name, structures) for name in _names_in(params, "absent")]
    names = _names_of_values(label, params, structures)
    array, present = _renumber(label.array, names, campaign_values(structures))
    if not present and not absent:
        msg = (
            "The label is empty: no voxel is drawn. If structures were looked for and are not there, say so "
            "with params {'absent': ['<structure>', ...]}."
        )
        raise BadLabelError(msg)
    both = sorted(set(present) & set(absent))
    if both:
        msg = f"Expected absent structures to have no voxel, but {both} are drawn. Erase them or do not call them absent."
        raise BadLabelError(msg)
    annotated = {name: PRESENT for name in present} | {name: ABSENT for name in absent}
    values = {value: name for name, value in campaign_values(structures).items() if name in annotated}
    used = tuple(one for one in new if one.name in annotated)
    return Submission(LabelMap(array, image_grid, values), annotated, used)


def new_structures_in(params: Mapping[str, Any], structures: Sequence[str]) -> tuple[NewStructure, ...]:
    """The structures that a request confirms as new, in its order; those that the campaign has are left out.

    ``new_structures`` is like ``{"my organ": {"like": "liver"}, "my lesion": {"like": null}, "other": {}}``:
    with ``like`` the row of the new task begins as a copy of that structure's, with null at random, and
    without it as a copy of the nearest the model knows.

    Raises:
        BadRequestError: malformed, or a name that cannot name a structure.
    """
    given = params.get("new_structures") or {}
    example = "{'my organ': {'like': 'liver'}}"
    if not isinstance(given, dict):
        msg = f"Expected params.new_structures like {example}, got {type(given).__name__}."
        raise BadRequestError(msg)
    found: dict[str, NewStructure] = {}
    for name, how in given.items():
        like = how.get("like") if isinstance(how, dict) else how
        if not isinstance(how, dict) or set(how) - {"like"} or not isinstance(like, str | None):
            msg = f"Expected params.new_structures like {example}, got {how!r} for {name!r}."
            raise BadRequestError(msg)
        new = NewStructure(check_new_name(name), like, random="like" in how and like is None)
        twins = [
            s for s in (*structures, *found) if canonical_key(split_protocol(s)[0]) == canonical_key(name)
        ]
        if not twins:
            found[new.name] = new
    return tuple(found.values())


def _names_in(params: Mapping[str, Any], key: str) -> list[str]:
    value = params.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        msg = f"Expected params.{key} to be a list of structure names, got {value!r}."
        raise BadRequestError(msg)
    return value


def _names_of_values(label: LabelMap, params: Mapping[str, Any], structures: Sequence[str]) -> dict[int, str]:
    """Value in the file -> the campaign's structure, from the request, else from the file itself."""
    given = params.get("label_info")
    if given is None:
        pairs = [(name, value) for value, name in label.names.items()]
    elif isinstance(given, list) and all(
        isinstance(entry, dict) and isinstance(entry.get("name"), str) for entry in given
    ):
        pairs = [(entry["name"], _value_of(entry)) for entry in given]
    else:
        msg = f"Expected params.label_info like [{{'name': 'liver', 'idx': 1}}], got {given!r}."
        raise BadRequestError(msg)
    _require_each_once(pairs, structures)
    if given is not None:
        pairs = _as_numbered(pairs, label, params)
    return {value: match_structure(name, structures) for name, value in pairs if not _is_ignored(name)}


def _is_ignored(name: str) -> bool:
    return name.strip().lower() in IGNORED_SEGMENTS


def _require_each_once(pairs: Sequence[tuple[str, int]], structures: Sequence[str]) -> None:
    """Nothing, where every structure has one value and every value one structure.

    Raises:
        BadRequestError: else, since one of the two is likely meant for something else, and training would not notice.
    """
    names: dict[int, str] = {}
    values: dict[str, tuple[str, int]] = {}
    for name, value in pairs:
        if _is_ignored(name):
            continue
        if value in names:
            msg = f"Expected one name per value in params.label_info, value {value} has {names[value]!r} and {name!r}."
            raise BadRequestError(msg)
        names[value] = name
        structure = match_structure(name, structures)
        if structure in values:
            other, before = values[structure]
            msg = (
                f"Expected each structure once in the label's names, {structure!r} is there as {other!r} (value {before}) "
                f"and as {name!r} (value {value}). Rename one of the two, or merge them into one segment."
            )
            raise BadRequestError(msg)
        values[structure] = (name, value)


def _as_numbered(
    pairs: list[tuple[str, int]], label: LabelMap, params: Mapping[str, Any]
) -> list[tuple[str, int]]:
    """Names with the values that they have in the file, where 3D Slicer numbered the two differently.

    Its module lists each segment under its place among all segments, those for background and scribbles too,
    which it then leaves out of the file and of the list: the file counts 1, 2, ... without them.

    Raises:
        BadLabelError: the file can be read either way, and the two differ.
        BadRequestError: ``label_values`` is something else than ``"idx"``.
    """
    if params.get("label_values") not in (None, "", "idx"):
        msg = f"Expected params.label_values to be 'idx' or not given, got {params['label_values']!r}."
        raise BadRequestError(msg)
    listed = [value for _, value in pairs]
    skipped = max(listed, default=0) - len(listed)
    increasing = all(before < after for before, after in itertools.pairwise([0, *listed]))
    if params.get("label_values") or not increasing or not 0 < skipped <= len(IGNORED_SEGMENTS):
        return pairs
    counted = [(name, place) for place, (name, _) in enumerate(pairs, start=1)]
    in_file = {name: value for value, name in label.names.items()}
    if in_file and all(name in in_file for name, _ in pairs):  # .seg.nrrd says itself what its values are
        return [(name, in_file[name]) for name, _ in pairs]
    drawn = {int(value) for value in np.unique(label.array) if value}
    if not drawn or not drawn <= set(range(1, len(pairs) + 1)):
        return pairs
    if not drawn <= set(listed):
        return counted
    by_index = {value: name for name, value in pairs}
    by_order = {value: name for name, value in counted}
    if any(by_index[value] != by_order[value] for value in drawn):
        told = {value: (by_index[value], by_order[value]) for value in sorted(drawn)}
        msg = (
            f"The values {sorted(drawn)} of the label can mean two things, {told}: params.label_info skips numbers, as 3D "
            "Slicer does for segments of background and scribbles that are not in the file. Remove these segments, "
            "save as .seg.nrrd, or send params {'label_values': 'idx'} if idx is the value in the file."
        )
        raise BadLabelError(msg)
    return pairs


def _value_of(entry: Mapping[str, Any]) -> int:
    value = entry.get("idx", entry.get("id"))
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        msg = f"Expected a value ('idx', a whole number) beside the name in params.label_info, got {dict(entry)!r}."
        raise BadRequestError(msg)
    return value


def _renumber(
    array: np.ndarray[Any, Any], names: Mapping[int, str], numbers: Mapping[str, int]
) -> tuple[np.ndarray[Any, Any], list[str]]:
    """(D, H, W) uint8 in the campaign's numbers, and the structures that have a voxel."""
    values = [int(v) for v in np.unique(array) if v != 0]
    nameless = [v for v in values if v not in names]
    if nameless:
        msg = (
            f"The label has voxels of value {nameless} without a name. Expected params.label_info to name every "
            f"value, it names {sorted(names)}."
        )
        raise BadLabelError(msg)
    table = np.zeros(int(array.max(initial=0)) + 1, dtype=np.uint8)
    for value in values:
        table[value] = numbers[names[value]]
    present = sorted({names[v] for v in values}, key=numbers.__getitem__)
    return table[array], present


class LabelArchive:
    """Every label version ever submitted, as files that are never overwritten.

    ``<directory>/<image id>/0001.nii.gz`` with ``0001.json`` beside it: the names of the values and what was
    annotated.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, image_id: str, submission: Submission) -> Path:
        """Store a submission under the next free number; both files are on disk when this returns."""
        folder = self.directory / image_id
        folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.stem) for p in folder.glob("[0-9]*.json")), default=0)
        while True:
            note = folder / f"{number:04d}.json"
            try:
                with note.open("x", encoding="utf-8") as stream:  # "x": two submissions never share a number
                    names = {str(v): n for v, n in submission.label_map.names.items()}
                    json.dump({"names": names, "annotated": dict(submission.annotated)}, stream)
                    stream.flush()
                    os.fsync(stream.fileno())
                break
            except FileExistsError:
                number += 1
        path = folder / f"{number:04d}.nii.gz"
        write_label_map(submission.label_map, path)
        with path.open("rb") as written:
            os.fsync(written.fileno())
        return path

    def reference(self, path: Path) -> str:
        """An archived file as it is noted in the database: relative, so that a campaign can be moved."""
        return path.relative_to(self.directory).as_posix()

    def path(self, reference: str) -> Path:
        """The archived file that a note means.

        Raises:
            BadLabelError: it is not there any more.
        """
        path = self.directory / reference
        if not path.is_file():
            msg = f"Expected the archived label {reference!r}, it is not there any more. Submit the label again."
            raise BadLabelError(msg)
        return path

    @staticmethod
    def names_of(path: Path) -> dict[int, str]:
        """Value -> structure of an archived label file."""
        note = path.with_name(path.name.removesuffix(".nii.gz") + ".json")
        document = json.loads(note.read_text(encoding="utf-8"))
        return {int(value): name for value, name in document["names"].items()}
