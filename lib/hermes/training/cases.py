"""What training sees of a labelled image."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from hermes.checkpoint import UsedCase
from hermes.types import CaseId, Modality


class ArrayLike3D(Protocol):
    """A numpy array, a memory map or a zarr array: has a shape and gives boxes as numpy arrays."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(D, H, W)."""
        ...

    def __getitem__(self, box: tuple[slice, slice, slice], /) -> Any: ...


@dataclass(frozen=True)
class TrainingCase:
    """A prepared image and what was annotated in it.

    Attributes:
        case_id: id of the image in the campaign.
        image: (D, H, W) prepared intensities on the model grid (z-scored, air is not necessarily 0).
        labels: (D, H, W) uint8 label values on the same grid.
        annotated: task row -> label value that draws it; ``None`` = annotated and absent. A task that is
            not a key was not annotated and is never part of the loss of this case.
        modality: ``None`` = unknown.
        covered: rows that may be asked of an image like this one: a teacher answers no other; ``None`` = all.
        dataset: group for weighted sampling.
        source: the files behind it, for the manifest; None: there are none.
        weight: how often it is drawn beside the others of its dataset.
    """

    case_id: CaseId
    image: ArrayLike3D
    labels: ArrayLike3D
    annotated: Mapping[int, int | None]
    modality: Modality | None
    dataset: str = "campaign"
    source: UsedCase | None = None
    covered: Collection[int] | None = None
    weight: float = 1.0


def used_cases(cases: Iterable[TrainingCase]) -> tuple[UsedCase, ...]:
    """What a manifest says of ``cases``."""
    return tuple(case.source or UsedCase(case.case_id) for case in cases)


def taught_cases(cases: Iterable[TrainingCase], rows: Collection[int]) -> tuple[UsedCase, ...]:
    """What a manifest says of those ``cases`` that taught one of ``rows``, and which."""
    taught = ((case, tuple(sorted(case.annotated.keys() & set(rows)))) for case in cases)
    return tuple(
        replace(case.source or UsedCase(case.case_id), rows=its_rows) for case, its_rows in taught if its_rows
    )


@dataclass(frozen=True)
class ForegroundIndex:
    """A bounded sample of the voxels of each label value, a few kilobytes per case.

    Attributes:
        shape: (D, H, W) of the label array.
        places: value -> (k,) uint32 places in the flattened array.
    """

    shape: tuple[int, ...]
    places: Mapping[int, NDArray[np.uint32]]

    @classmethod
    def of(
        cls, case: TrainingCase, *, generator: np.random.Generator, voxels_per_value: int = 500
    ) -> ForegroundIndex:
        """The index of ``case``; the label array is read once, a fixed number of voxels is kept."""
        labels = np.asarray(case.labels[:, :, :])
        found: dict[int, NDArray[np.uint32]] = {}
        for value in sorted({v for v in case.annotated.values() if v is not None}):
            flat = np.flatnonzero(labels == value)
            if flat.size == 0:
                continue
            if flat.size > voxels_per_value:
                flat = generator.choice(flat, voxels_per_value, replace=False)
            found[value] = flat.astype(np.uint32)
        return cls(labels.shape, found)

    def draw(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """A voxel (z, y, x) of a random value, every value as often; there must be a foreground."""
        values = sorted(self.places)
        places = self.places[values[int(generator.integers(len(values)))]]
        return np.array(np.unravel_index(int(places[int(generator.integers(len(places)))]), self.shape))
