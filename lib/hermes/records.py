"""Frozen records that cross layers. No torch here, so that the campaign's tests stay fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hermes.errors import BadImageError
from hermes.geometry import Grid
from hermes.types import Modality, StructureName

ModalitySource = Literal["caller", "dicom", "file", "name", "intensity", "network", "unknown"]
"""Who said which modality it is: the caller, DICOM attributes, a file's header, its name, its range of
values, the network's modality head, or nobody."""


@dataclass(frozen=True, eq=False)
class Volume:
    """An image as read, on its own grid.

    Attributes:
        array: ``(D, H, W)`` float32, finite; HU for CT, SUV body weight for PET where computable.
        grid: where the voxels lie.
        modality: None when unknown.
        modality_source: who said so.
        modality_confidence: 0..1.
    """

    array: NDArray[np.float32]
    grid: Grid
    modality: Modality | None = None
    modality_source: ModalitySource = "unknown"
    modality_confidence: float = 0.0

    def __post_init__(self) -> None:
        _check_shape(self.array, self.grid)


@dataclass(frozen=True, eq=False)
class LabelMap:
    """A label map on an image's own grid, which always carries the names of its values.

    Attributes:
        array: ``(D, H, W)`` uint8 or uint16; 0 is background.
        grid: the grid of the image.
        names: value to structure name, for every value that could occur (not only those that do).
    """

    array: NDArray[Any]
    grid: Grid
    names: Mapping[int, StructureName] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_shape(self.array, self.grid)


@dataclass(frozen=True)
class NewStructure:
    """A structure that a campaign is to label from now on.

    Attributes:
        name: as the campaign writes it.
        like: name of the structure whose row its row begins as a copy of; None: nobody named one.
        random: whether its row begins at random.
    """

    name: StructureName
    like: StructureName | None = None
    random: bool = False


@dataclass(frozen=True)
class StructureResult:
    """What a prediction says about one structure.

    Attributes:
        structure: its name.
        task: the task that drew it, ``structure@protocol``.
        value: its value in the label map.
        presence_probability: highest averaged probability of any voxel, 0..1.
        voxel_count: voxels with this value in the label map, on the image's own grid.
        volume_ml: their volume in millilitres.
        uncertainty: mean binary entropy in bits, 0..1, over the voxels of this structure and of its boundary
            (probability of at least 0.1); 0 where there is none.
    """

    structure: StructureName
    task: str
    value: int
    presence_probability: float
    voxel_count: int
    volume_ml: float
    uncertainty: float


MEASURES: Mapping[str, str] = {
    "entropy": "mean entropy in bits where a structure or its boundary is (probability of at least 0.1)",
    "entropy_inside": "mean entropy in bits where the structure is predicted (above 0.5)",
    "entropy_shell": "entropy summed over structure and boundary, divided by the area of a ball of the predicted volume: "
    "how thick the unsure layer is, in voxels, however large the structure",
    "margin": "1 minus the mean distance of the probability from 0.5, times two, where structure or boundary is",
    "presence": "highest averaged probability of any voxel: whether the structure is there at all",
    "presence_doubt": "entropy in bits of the presence: highest where the model does not know whether it is there",
    "volume_ml": "predicted volume, before overlaps with other structures are decided",
    "protocols": "1 minus the soft Dice between rows that draw the same structure by other protocols",
    "modality_surprise": "whole image: bits by which the network's modality head is surprised by the stated modality; "
    "entropy of its answer where none is stated",
}
"""What is measured of an image beside its label map, in the same pass. Larger means less sure, except for presence and
volume."""


@dataclass(frozen=True, eq=False)
class Findings:
    """What one inference found beside the label map, per structure in the order of the request.

    Attributes:
        measures: name of `MEASURES` -> structure ("" for the whole image) -> value; a measure that says nothing about
            a structure lacks it.
        tokens: ``(n, e)`` float32: the posterior token of each task, layer-normalised, averaged over the windows that
            see the structure (over all windows where none does); zeros where no window was visited.
    """

    measures: Mapping[str, Mapping[StructureName, float]]
    tokens: NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Prediction:
    """Everything one inference answers.

    Attributes:
        label_map: on the image's own grid.
        structures: one per requested task, in the order of the request.
        modality: as used; None when it stayed unknown.
        modality_source: who decided it.
        modality_confidence: 0..1.
        uncertainty: mean entropy in bits over the foreground and its boundary of the whole image, 0..1.
        uncertainty_map: ``(D, H, W)`` float32 on the image's own grid in bits (entropy of the requested task
            that is nearest to undecided), or None when not asked for.
        model_version: version of the weights.
        timings_s: seconds per stage.
        windows: windows that the network saw.
        windows_skipped: windows left out as air or outside the region of interest.
        findings: what was measured beside, or None when not asked for.
    """

    label_map: LabelMap
    structures: tuple[StructureResult, ...]
    modality: Modality | None
    modality_source: ModalitySource
    modality_confidence: float
    uncertainty: float
    uncertainty_map: NDArray[np.float32] | None
    model_version: str
    timings_s: Mapping[str, float]
    windows: int
    windows_skipped: int
    findings: Findings | None = None


def _check_shape(array: NDArray[Any], grid: Grid) -> None:
    if tuple(array.shape) != grid.shape:
        msg = f"Expected an array of the grid's shape {grid.shape} (z, y, x), got {tuple(array.shape)}."
        raise BadImageError(msg)
