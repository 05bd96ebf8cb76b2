"""How well two label maps agree."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.records import LabelMap
from hermes.types import StructureName


def dice(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Sørensen-Dice coefficient of two masks of one shape; 1 when both are empty.

    Args:
        ours: (D, H, W) bool.
        theirs: (D, H, W) bool.

    Raises:
        ValueError: the shapes differ.
    """
    if ours.shape != theirs.shape:
        msg = f"Expected masks of one shape, got {ours.shape} and {theirs.shape}."
        raise ValueError(msg)
    total = int(np.count_nonzero(ours)) + int(np.count_nonzero(theirs))
    return 2 * int(np.count_nonzero(ours & theirs)) / total if total else 1.0


def agreement(
    ours: LabelMap, theirs: LabelMap, structures: Iterable[StructureName]
) -> dict[StructureName, float]:
    """Dice per structure between two label maps of one grid, by the names of their values.

    A structure that one of the maps does not name has no voxel there: where the other draws it, Dice is 0.

    Raises:
        ValueError: the shapes differ.
    """
    values = [{name: value for value, name in label_map.names.items()} for label_map in (ours, theirs)]
    return {
        name: dice(*(_mask(m, v.get(name)) for m, v in zip((ours, theirs), values, strict=True)))
        for name in structures
    }


def _mask(label_map: LabelMap, value: int | None) -> NDArray[Any]:
    array = label_map.array
    mask: NDArray[Any] = np.zeros(array.shape, dtype=bool) if value is None else array == value
    return mask
