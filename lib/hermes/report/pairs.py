"""How well annotators agree about the same image. Each pair of label versions is measured once."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from hermes.campaign.agreements import PairAgreement
from hermes.campaign.records import LabelRecord
from hermes.errors import BadLabelError
from hermes.records import LabelMap
from hermes.scoring.agreement import dice
from hermes.submission import LabelArchive
from hermes.transforms.reading import read_label_map
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)

PERCENTILE = 95


def pairs_of(labels: Sequence[LabelRecord]) -> Iterator[tuple[LabelRecord, LabelRecord]]:
    """The latest labels of different annotators of one image, two by two, that have a structure in common."""
    latest = {(label.image_id, label.annotator): label for label in labels}
    by_image: dict[str, list[LabelRecord]] = {}
    for label in latest.values():
        by_image.setdefault(label.image_id, []).append(label)
    for found in by_image.values():
        for first, second in itertools.combinations(sorted(found, key=lambda label: label.id), 2):
            if first.annotated.keys() & second.annotated.keys():
                yield first, second


def measure_pairs(workspace: Workspace) -> dict[tuple[int, int], list[PairAgreement]]:
    """What is known of every pair of labels of a campaign; new ones are measured, and kept."""
    agreements = workspace.campaign.agreements
    known, found = agreements.pairs(), {}
    for first, second in pairs_of(workspace.campaign.labels(latest=False)):
        key = (first.id, second.id)
        if key not in known:
            try:
                known[key] = agreement_of(first, second, workspace.archive)
            except (BadLabelError, OSError) as error:
                logger.warning("Labels %d and %d cannot be compared: %s", *key, error)
                continue
            agreements.put_pair(known[key])
        found[key] = known[key]
    return found


def agreement_of(first: LabelRecord, second: LabelRecord, archive: LabelArchive) -> list[PairAgreement]:
    """Dice and surface distances in the structures that both annotated.

    Raises:
        BadLabelError: a file is gone or cannot be read.
    """
    ours, theirs = (_read(label, archive) for label in (first, second))
    common = sorted(first.annotated.keys() & second.annotated.keys())
    return [
        _measure(first.id, second.id, name, _mask(ours, name), _mask(theirs, name), ours) for name in common
    ]


def _read(label: LabelRecord, archive: LabelArchive) -> LabelMap:
    path = archive.path(label.path)
    found = read_label_map(path)
    return LabelMap(found.array, found.grid, LabelArchive.names_of(path))


def _mask(label: LabelMap, name: str) -> NDArray[np.bool_]:
    values = [value for value, known in label.names.items() if known == name]
    return np.isin(label.array, values)


def _measure(
    first: int, second: int, name: str, ours: NDArray[np.bool_], theirs: NDArray[np.bool_], label: LabelMap
) -> PairAgreement:
    value = dice(ours, theirs)
    if not ours.any() or not theirs.any():
        return PairAgreement(first, second, name, value, None, None)
    box = _box(ours | theirs)
    to_theirs, to_ours = surface_distances_mm(ours[box], theirs[box], label.grid.spacing_mm)
    mean = float(np.concatenate([to_theirs, to_ours]).mean())
    worst = max(float(np.percentile(one, PERCENTILE)) for one in (to_theirs, to_ours))
    return PairAgreement(first, second, name, value, mean, worst)


def surface_distances_mm(
    ours: NDArray[np.bool_], theirs: NDArray[np.bool_], spacing_mm: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each voxel of one mask's surface to the nearest of the other's, both ways.

    The surface are the voxels of a mask with a neighbour (of six) outside it; beyond the array is outside.

    Args:
        ours: (D, H, W), not empty.
        theirs: the same.
        spacing_mm: (z, y, x).
    """
    surfaces = [mask & ~ndimage.binary_erosion(mask) for mask in (ours, theirs)]
    away = [ndimage.distance_transform_edt(~surface, sampling=spacing_mm) for surface in surfaces]
    return away[1][surfaces[0]], away[0][surfaces[1]]


def _box(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    places = [np.flatnonzero(mask.any(axis=tuple(a for a in range(3) if a != axis))) for axis in range(3)]
    return tuple(slice(int(p[0]), int(p[-1]) + 1) for p in places)
