"""Predicted volumes that do not fit the rest of the pool."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hermes.types import CaseId, StructureName

FEWEST = 8
"""Images with a structure before any of them can be called unusual."""
SMALLEST_ML = 0.01
MAD_TO_SD = 1.4826
LEAST_SPREAD = 0.05
"""Of the logarithm: where most volumes are the same, five percent more or less are not unusual."""


def volume_outliers(
    volumes_ml: Mapping[CaseId, Mapping[StructureName, float]],
) -> dict[CaseId, dict[StructureName, float]]:
    """Image -> structure -> how unusual its predicted volume is: robust standard deviations of the logarithm.

    Images in which a structure was not predicted do not count for it. A structure that fewer than `FEWEST` images have
    is left out.
    """
    found: dict[CaseId, dict[StructureName, float]] = {}
    for structure in sorted({name for by_structure in volumes_ml.values() for name in by_structure}):
        cases = [
            c for c, by_structure in volumes_ml.items() if by_structure.get(structure, 0.0) > SMALLEST_ML
        ]
        if len(cases) < FEWEST:
            continue
        logs = np.log([volumes_ml[case][structure] for case in cases])
        spread = MAD_TO_SD * float(np.median(np.abs(logs - np.median(logs))))
        far = np.abs(logs - np.median(logs)) / max(spread, LEAST_SPREAD)
        for case, value in zip(cases, far, strict=True):
            found.setdefault(case, {})[structure] = float(value)
    return found
