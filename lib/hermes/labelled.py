"""Folders of labelled images: ``images/`` and ``labels/`` with files of the same names."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hermes.errors import BadRequestError
from hermes.transforms.reading import read_label_map, read_volume
from hermes.types import CaseId, StructureName

IMAGE_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
"""What the names of image files end in, in folders of images with and without labels."""
PUBLISHED_SPACING_MM = 1.5


@dataclass(frozen=True)
class Pair:
    """An image and its true label, with the names of the label's values."""

    case_id: CaseId
    image: Path
    label: Path
    names: Mapping[int, StructureName]


def folders_of(folder: Path) -> tuple[Path, Path]:
    """Where images and labels lie: ``images/`` and ``labels/``, or ``imagesTr`` and ``labelsTr``.

    Raises:
        BadRequestError: neither is there.
    """
    for images, labels in (("images", "labels"), ("imagesTr", "labelsTr")):
        if (folder / images).is_dir() and (folder / labels).is_dir():
            return folder / images, folder / labels
    msg = (
        f"Expected folders images/ and labels/ with files of the same names in {folder}, they are not there."
    )
    raise BadRequestError(msg)


def values_in(labels: Iterable[Path]) -> list[int]:
    """The values above 0 that occur in label files."""
    return sorted({int(v) for path in labels for v in np.unique(read_label_map(path).array) if v})


def value_names(folder: Path, values: Sequence[int], given: Sequence[str] = ()) -> dict[int, StructureName]:
    """What the values of label files are called.

    As ``given`` in order of the values, else as ``dataset.json`` (``labels``) says, else "structure <value>".

    Raises:
        BadRequestError: another number of names than of values.
    """
    if given:
        if len(given) != len(values):
            msg = f"Expected a name in structures for each of the label values {list(values)}, got {list(given)}."
            raise BadRequestError(msg)
        return dict(zip(values, given, strict=True))
    described = folder / "dataset.json"
    table = json.loads(described.read_text(encoding="utf-8")).get("labels", {}) if described.is_file() else {}
    listed = {int(k): str(v) for k, v in table.items() if str(k).isdigit()}
    listed |= {int(v): str(k) for k, v in table.items() if str(v).isdigit()}
    return {value: listed.get(value, f"structure {value}") for value in values}


def pairs_of(images: Path, labels: Path, names: Mapping[int, StructureName]) -> tuple[Pair, ...]:
    """The images that have a label, by name.

    Raises:
        BadRequestError: there is none.
    """
    found = []
    for image in sorted(images.iterdir()):
        suffix = next((s for s in IMAGE_SUFFIXES if image.name.endswith(s)), None)
        label = labels / image.name
        if suffix and label.is_file():
            found.append(Pair(image.name.removesuffix(suffix), image, label, names))
    if not found:
        msg = f"Expected images with labels of the same name in {images} and {labels}, found none."
        raise BadRequestError(msg)
    return tuple(found)


def finest_spacing(pairs: Sequence[Pair]) -> float:
    """Spacing for the model in mm: the median of the images' finest axes, at most the published 1.5."""
    finest = [min(read_volume(p.image).grid.spacing_mm) for p in pairs[:16]]
    return min(PUBLISHED_SPACING_MM, round(float(np.median(finest)), 2))
