"""What the model offered for an image, kept until the annotator submits, and how much of it was left as it was.

::

    offered/<image>/<infer task>.nii.gz     the last answer of each task (with the suffix that was asked for)
    offered/<image>/<infer task>.json       its structures and the version that drew it
    offered/<image>/drawn.jsonl             names of which any answer had voxels; these stay
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hermes.errors import BadLabelError
from hermes.records import LabelMap
from hermes.transforms.reading import read_label_map
from hermes.types import CaseId, StructureName

_DRAWN = "drawn.jsonl"


@dataclass(frozen=True)
class OfferedLabel:
    """A label map that was offered.

    Attributes:
        path: its file.
        values: structure that was asked for -> its value, whether it was found or not.
        model_version: that drew it.
        at: when, in seconds since 1970.
    """

    path: Path
    values: Mapping[StructureName, int]
    model_version: str
    at: float


class OfferedLabels:
    """The last answers per image."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def keep(
        self, image_id: CaseId, task: str, file: Path, values: Mapping[StructureName, int], model_version: str
    ) -> None:
        """Keep an answer in place of the same task's last one.

        Args:
            image_id: the image.
            task: that answered.
            file: the label map; it is copied.
            values: structure -> value.
            model_version: that drew it.
        """
        folder = self.directory / image_id
        folder.mkdir(parents=True, exist_ok=True)
        suffix = file.name[file.name.index(".") :]
        partial = folder / f".{threading.get_ident()}-{os.getpid()}{suffix}"
        shutil.copyfile(file, partial)
        name = f"{task}{suffix}"
        note = {"file": name, "values": dict(values), "model_version": model_version}
        partial.replace(folder / name)
        partial.write_text(json.dumps(note), encoding="utf-8")
        partial.replace(folder / f"{task}.json")

    def of(self, image_id: CaseId) -> list[OfferedLabel]:
        """What was offered for an image, the oldest first."""
        found = []
        for note in (self.directory / image_id).glob("*.json"):
            try:
                said = json.loads(note.read_text(encoding="utf-8"))
                label = OfferedLabel(
                    note.with_name(said["file"]), said["values"], said["model_version"], note.stat().st_mtime
                )
            except (FileNotFoundError, ValueError):  # replaced or forgotten at this moment
                continue
            found.append(label)
        return sorted(found, key=lambda one: one.at)

    def forget(self, image_id: CaseId) -> None:
        """Drop the label maps that were offered for an image; which structures were drawn in it stays known."""
        for file in (self.directory / image_id).glob("*"):
            if file.name != _DRAWN:
                file.unlink(missing_ok=True)

    def note_drawn(self, image_id: CaseId, names: Collection[StructureName]) -> None:
        """Note the structures of which an answer had voxels: of the whole image or of a part of it."""
        known = self.drawn(image_id)
        if known is not None and known.issuperset(names):
            return
        folder = self.directory / image_id
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _DRAWN).open(
            "a", encoding="utf-8"
        ) as stream:  # a line each: nobody replaces another's
            stream.write(json.dumps(sorted(names)) + "\n")

    def drawn(self, image_id: CaseId) -> set[StructureName] | None:
        """The structures that the model has ever drawn in an image; None where it was never asked."""
        try:
            lines = (self.directory / image_id / _DRAWN).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        return {name for line in lines for name in _names(line)}


def _names(line: str) -> list[StructureName]:
    """Of a line of notes; none of one that a crash cut off."""
    try:
        return list(json.loads(line))
    except ValueError:
        return []


def agreement_with_offer(
    submitted: LabelMap, annotated: Collection[StructureName], offers: Iterable[OfferedLabel]
) -> dict[str, dict[StructureName, float]]:
    """Model version -> structure -> Dice between offer and submission.

    Each structure is compared with the last offer in which it was asked for. An offer that cannot be read, or that is
    on another grid, does not count.

    Args:
        submitted: the label map.
        annotated: structures that were annotated in it, present or absent.
        offers: in the order in which they were made.
    """
    found: dict[StructureName, tuple[str, float]] = {}
    values = {name: value for value, name in submitted.names.items()}
    for offer in offers:
        names = [name for name in annotated if name in offer.values]
        if not names:
            continue
        try:
            drawn = read_label_map(offer.path)
        except BadLabelError:
            continue
        if submitted.grid.difference(drawn.grid) is not None:
            continue
        pairs = {name: (values.get(name, 0), offer.values[name]) for name in names}
        found |= {n: (offer.model_version, d) for n, d in dice_of_values(submitted, drawn, pairs).items()}
    result: dict[str, dict[StructureName, float]] = {}
    for name, (version, dice) in found.items():
        result.setdefault(version, {})[name] = dice
    return result


def dice_of_values(
    ours: LabelMap, theirs: LabelMap, pairs: Mapping[StructureName, tuple[int, int]]
) -> dict[StructureName, float]:
    """Dice of many structures from one pass over the voxels.

    Args:
        ours: a label map of at most 256 values.
        theirs: another of the same shape.
        pairs: structure -> its value in either; 0 where a map does not know it. Without a voxel in either, Dice is 1.
    """
    first, second = ours.array.ravel(), theirs.array.ravel()
    drawn = np.flatnonzero((first != 0) | (second != 0))
    width = int(second.max(initial=0)) + 1
    joint = np.bincount(
        first[drawn].astype(np.int64) * width + second[drawn],
        minlength=(int(first.max(initial=0)) + 1) * width,
    ).reshape(-1, width)
    rows, columns = joint.sum(axis=1), joint.sum(axis=0)

    def dice(a: int, b: int) -> float:
        size_a = int(rows[a]) if 0 < a < len(rows) else 0
        size_b = int(columns[b]) if 0 < b < len(columns) else 0
        both = int(joint[a, b]) if size_a and size_b else 0
        return 2 * both / (size_a + size_b) if size_a + size_b else 1.0

    return {name: dice(a, b) for name, (a, b) in pairs.items()}
