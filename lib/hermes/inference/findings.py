"""From the sums of one inference to what is measured of an image (:data:`hermes.records.MEASURES`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.inference.engine import Segmentation
from hermes.inference.reduction import TaskSums
from hermes.inference.tokens import ImageTokens
from hermes.labels.catalogue import canonical_key
from hermes.labels.names import split_protocol
from hermes.records import Findings
from hermes.types import Modality

WHOLE_IMAGE = ""
LEAST_VOXELS = 1e-9


def pairs_of(structures: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """Places of any two that are one structure by different protocols.

    Example:
        >>> pairs_of(["liver@BCV", "spleen", "liver@AMOS"])
        ((0, 2),)
    """
    keys = [canonical_key(split_protocol(name)[0]) for name in structures]
    return tuple((a, b) for b in range(len(keys)) for a in range(b) if keys[a] == keys[b])


def findings_of(
    result: Segmentation,
    sums: TaskSums,
    names: Sequence[str],
    pairs: Sequence[tuple[int, int]],
    *,
    voxel_ml: float,
    modality: Modality | None,
) -> Findings:
    """What the sums of a run come to.

    Args:
        result: of the run.
        sums: of the run.
        names: what to call each task of the request.
        pairs: of the request.
        voxel_ml: volume of a voxel of the model grid.
        modality: that the image was taken for.
    """
    columns: dict[str, NDArray[Any]] = {
        "entropy": result.uncertainty,
        "presence": result.presence,
        **_columns(result.presence, sums),
    }
    measures = {measure: _named(values, names) for measure, values in columns.items()}
    measures["volume_ml"] = _named(sums.inside_voxels * sums.every * voxel_ml, names)
    measures["entropy"][WHOLE_IMAGE] = result.image_uncertainty
    if pairs:
        measures["protocols"] = _protocols(sums.products, names, pairs)
    tokens = result.tokens
    if tokens is None:
        return Findings(measures, np.zeros((len(names), 0), np.float32))
    measures["modality_surprise"] = {WHOLE_IMAGE: surprise(tokens, modality)}
    return Findings(measures, tokens.tokens)


def surprise(tokens: ImageTokens, modality: Modality | None) -> float:
    """Bits by which the modality head is surprised; its entropy where no modality is stated."""
    known = tokens.chances[: len(Modality)]  # the last class stands for "unknown"
    chances = known / max(float(known.sum()), 1e-12)
    if modality is not None and modality.row < len(chances):
        return float(-np.log2(max(float(chances[modality.row]), 1e-6)))
    return float(-(chances * np.log2(np.maximum(chances, 1e-12))).sum())


def _columns(presence: NDArray[np.float32], sums: TaskSums) -> dict[str, NDArray[np.float64]]:
    voxels, inside = np.maximum(sums.voxels, LEAST_VOXELS), np.maximum(sums.inside_voxels, LEAST_VOXELS)
    volume = np.maximum(sums.inside_voxels * sums.every, 1)
    area = (36 * math.pi) ** (1 / 3) * volume ** (2 / 3)  # of a ball of that volume, in voxel faces
    p = np.clip(presence.astype(np.float64), 1e-7, 1 - 1e-7)
    return {
        "entropy_inside": np.where(sums.inside_voxels > 0, sums.inside_entropy / inside, 0.0),
        "entropy_shell": sums.entropy * sums.every / area,
        "margin": np.where(sums.voxels > 0, 1 - sums.decided / voxels, 0.0),
        "presence_doubt": -(p * np.log2(p) + (1 - p) * np.log2(1 - p)),
    }


def _protocols(
    products: NDArray[np.float64], names: Sequence[str], pairs: Sequence[tuple[int, int]]
) -> dict[str, float]:
    """Per structure the mean over its pairs; a structure that neither of two draws says nothing."""
    found: dict[str, list[float]] = {}
    for (a, b), (both, first, second) in zip(pairs, products, strict=True):
        if first + second > 0:
            for place in (a, b):
                found.setdefault(names[place], []).append(1 - 2 * both / (first + second))
    return {name: math.fsum(values) / len(values) for name, values in found.items()}


def _named(values: NDArray[Any], names: Sequence[str]) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
