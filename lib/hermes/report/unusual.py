"""Images in which the serving version draws a structure unusually small or large: errors of it, or findings."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from statistics import median

from hermes.scoring.outliers import SMALLEST_ML, volume_outliers
from hermes.types import CaseId, StructureName
from hermes.workspace import Workspace

LEAST_DEVIATION = 3.5
"""Robust standard deviations from which on a volume is unusual (Iglewicz and Hoaglin, 1993)."""
MOST_SHOWN = 100


@dataclass(frozen=True)
class UnusualVolume:
    """A structure in an image.

    Attributes:
        image_id: of the image.
        structure: in it.
        volume_ml: that the serving version predicts.
        usual_ml: median over the images in which it predicts the structure.
        deviation: how far the two are apart, in robust standard deviations of the logarithm.
    """

    image_id: CaseId
    structure: StructureName
    volume_ml: float
    usual_ml: float
    deviation: float


def unusual_volumes(workspace: Workspace, images: Collection[CaseId]) -> tuple[UnusualVolume, ...]:
    """Those of ``images`` that stand out among all that the serving version has looked at, the most unusual first."""
    facts = workspace.campaign.facts.of(workspace.versions.serving().name)
    volumes = {image: found.measures.get("volume_ml", {}) for image, found in facts.items()}
    names = {name for by_structure in volumes.values() for name in by_structure}
    usual = {
        name: median(present)
        for name in names
        if (present := [v[name] for v in volumes.values() if v.get(name, 0.0) > SMALLEST_ML])
    }
    found = [
        UnusualVolume(image, name, volumes[image][name], usual[name], far)
        for image, by_structure in volume_outliers(volumes).items()
        if image in images
        for name, far in by_structure.items()
        if far >= LEAST_DEVIATION
    ]
    found.sort(key=lambda one: (-one.deviation, one.image_id, one.structure))
    return tuple(found[:MOST_SHOWN])
