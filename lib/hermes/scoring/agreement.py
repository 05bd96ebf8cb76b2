"""How well two label maps agree."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


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
