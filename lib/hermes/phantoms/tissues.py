"""What a tissue looks like to each scanner.

CT in Hounsfield units for three contrast phases, PET in standardised uptake values, MR in arbitrary units
where fat of a T1-weighted image is about 1. Values are typical of an adult; a case draws its own around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from hermes.types import Modality

CT_PHASES = ("native", "arterial", "portal venous")
"""Contrast phases of a CT; the first is without contrast medium."""

_COLUMNS = ("native", "arterial", "portal venous", "PET", "T1", "T2")

_TABLE: Mapping[str, tuple[float, ...]] = MappingProxyType(
    {
        #               native  arterial  portal  PET   T1    T2
        "air":         (-1000,  -1000,   -1000,  0.00, 0.00, 0.00),
        "table":       (-350,   -350,    -350,   0.00, 0.00, 0.00),
        "fat":         (-100,   -98,     -96,    0.30, 0.95, 0.62),
        "visceral fat": (-95,   -92,     -88,    0.40, 0.85, 0.58),
        "muscle":      (52,     58,      64,     0.65, 0.38, 0.17),
        "bone":        (480,    485,     490,    0.80, 0.18, 0.10),
        "marrow":      (190,    200,     205,    1.20, 0.58, 0.36),
        "disc":        (85,     88,      90,     0.60, 0.36, 0.45),
        "cartilage":   (110,    112,     115,    0.50, 0.35, 0.25),
        "cord":        (32,     34,      36,     0.90, 0.42, 0.36),
        "canal":       (14,     15,      16,     0.50, 0.16, 0.92),
        "lung":        (-830,   -815,    -815,   0.35, 0.03, 0.03),
        "lung vessel": (25,     170,     110,    1.30, 0.18, 0.12),
        "airway":      (-990,   -990,    -990,   0.10, 0.00, 0.00),
        "liver":       (57,     68,      108,    2.20, 0.56, 0.28),
        "liver vessel": (42,    95,      160,    1.70, 0.26, 0.12),
        "liver tumour": (36,    52,      62,     4.80, 0.36, 0.56),
        "spleen":      (48,     125,     116,    1.80, 0.36, 0.60),
        "kidney cortex": (34,   165,     160,    3.40, 0.47, 0.60),
        "kidney medulla": (30,  72,      150,    4.00, 0.33, 0.72),
        "kidney sinus": (-40,   -30,     -20,    6.50, 0.62, 0.74),
        "kidney tumour": (38,   98,      84,     4.20, 0.37, 0.52),
        "pancreas":    (40,     98,      88,     1.30, 0.58, 0.36),
        "gallbladder": (9,      9,       10,     0.60, 0.22, 0.98),
        "stomach wall": (40,    62,      76,     2.00, 0.40, 0.34),
        "stomach content": (18, 18,      18,     0.80, 0.26, 0.85),
        "bowel wall":  (36,     60,      78,     1.70, 0.38, 0.34),
        "bowel content": (20,   20,      22,     1.20, 0.30, 0.62),
        "stool":       (-60,    -60,     -60,    1.20, 0.34, 0.22),
        "gas":         (-940,   -940,    -940,   0.10, 0.02, 0.02),
        "artery":      (42,     285,     150,    1.60, 0.16, 0.08),
        "vein":        (40,     78,      145,    1.50, 0.22, 0.14),
        "bladder":     (5,      5,       8,      13.0, 0.14, 1.00),
        "bladder wall": (36,    48,      60,     1.00, 0.36, 0.20),
        "heart wall":  (45,     95,      105,    3.60, 0.36, 0.24),
        "heart blood": (42,     255,     150,    1.70, 0.20, 0.12),
        "lesion":      (42,     80,      78,     8.00, 0.36, 0.58),
    }
)  # fmt: skip

HEAD_T1: Mapping[str, float] = MappingProxyType(
    {
        "air": 0.0, "scalp": 0.92, "muscle": 0.40, "skull": 0.06, "marrow": 0.55, "cerebrospinal fluid": 0.15,
        "grey matter": 0.46, "deep grey matter": 0.53, "white matter": 0.76, "airway": 0.02, "eye": 0.18,
    }
)  # fmt: skip
"""T1-weighted signal of the head."""

CINE: Mapping[str, float] = MappingProxyType(
    {
        "air": 0.02, "lung": 0.07, "fat": 0.66, "muscle": 0.27, "liver": 0.33, "blood": 0.86,
        "right blood": 0.80, "myocardium": 0.24, "papillary": 0.28, "vessel": 0.70,
    }
)  # fmt: skip
"""Balanced steady-state free-precession signal around the heart."""


def trunk_contrast(
    rng: np.random.Generator, modality: Modality, phase: str, *, fat_suppressed: bool = False
) -> dict[str, float]:
    """The value of each tissue of the trunk in one case, scattered around the typical one.

    Args:
        rng: source of the scatter.
        modality: CT (HU), PET (SUV), T1 or T2 (arbitrary units).
        phase: one of :data:`CT_PHASES`; read for CT only.
        fat_suppressed: MR with dark fat.
    """
    column = _COLUMNS.index(phase if modality is Modality.CT else modality.value)
    timing = rng.uniform(0.75, 1.2)  # how far the contrast medium has come, the same for the whole body
    values: dict[str, float] = {}
    for tissue, row in _TABLE.items():
        value = row[column]
        jitter = rng.normal()
        if modality is Modality.CT:
            values[tissue] = row[0] + (value - row[0]) * timing + (4.0 if row[0] > -80 else 10.0) * jitter
        elif modality is Modality.PET:
            values[tissue] = value * float(np.exp(0.16 * jitter))
        else:
            values[tissue] = value * float(np.exp(0.09 * jitter))
    values["air"] = _TABLE["air"][column]
    values["airway"] = max(values["airway"], values["air"])
    if fat_suppressed:
        values["fat"], values["visceral fat"] = 0.16, 0.14
    return values


def scattered(rng: np.random.Generator, table: Mapping[str, float], spread: float) -> dict[str, float]:
    """``table`` with each value multiplied by its own factor around 1 (log-normal, ``spread``)."""
    return {tissue: value * float(np.exp(spread * rng.normal())) for tissue, value in table.items()}
