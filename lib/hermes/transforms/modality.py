"""Which modality an image has, from what its file says; None is a good answer, the network has a head for it.

Every function gives a :class:`Guess` or None. The confidence says how far to trust the kind of evidence:
DICOM attributes are near certain, words in a file name are a habit of people.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hermes.records import ModalitySource
from hermes.types import Modality

LONG_ECHO_MS = 60.0
"""Echo time from which a spin echo is T2 weighted."""
LONG_REPETITION_MS = 1500.0
"""Repetition time up to which a spin echo with a short echo is T1 weighted."""
SHORT_ECHO_MS = 30.0
"""Echo time up to which a sequence with a short repetition time is T1 weighted."""
CINE_TEMPORAL_POSITIONS = 8
"""Number of time points from which a gradient echo series is taken for a cine of the heart."""
CT_BELOW = -200.0
"""Only Hounsfield units reach below this: PET and MR magnitudes are not negative."""
CERTAIN = 0.95
AIR_BELOW = -700.0
"""Only air in Hounsfield units reaches below this; the overshoot of a resampled MR does not."""

_WORDS: tuple[tuple[Modality, str], ...] = (
    (Modality.CINE, r"cine|fiesta|truefisp|trufi|bssfp|ssfp|btfe"),
    (Modality.T2, r"t2w?|t2 ?tse|t2 ?fse|flair|haste|stir|blade"),
    (Modality.T1, r"t1w?|t1 ?ce|t1c|t1gd|mprage|mp2rage|vibe|bravo|spgr|lava|thrive|dixon"),
    (Modality.PET, r"pet|pt|suv|suvbw|fdg"),
    (Modality.CT, r"ct|cect|ncct|cta"),
)


@dataclass(frozen=True)
class Guess:
    """A modality, who said so and how far to believe it (0..1)."""

    modality: Modality
    source: ModalitySource
    confidence: float


def guess_from_words(text: str, source: ModalitySource, confidence: float) -> Guess | None:
    """The modality that the words of ``text`` name; None when none or two contradicting ones do.

    Example:
        >>> guess_from_words("patient_03_T1w.nii.gz", "name", 0.5).modality.value
        'T1'
    """
    words = re.sub(r"[^a-z0-9]+", " ", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower())
    found = [modality for modality, pattern in _WORDS if re.search(rf"(?:^| )(?:{pattern})(?: |$)", words)]
    if len(found) != 1:
        return None
    return Guess(found[0], source, confidence)


def guess_from_name(path: Path) -> Guess | None:
    """The modality that the file's name states, with low confidence."""
    return guess_from_words(path.name, "name", 0.5)


def guess_from_values(array: NDArray[np.float32]) -> Guess | None:
    """CT when values reach far below zero, as only Hounsfield units do; else None."""
    least = float(array.min(initial=0.0))
    if least < CT_BELOW:
        return Guess(Modality.CT, "intensity", CERTAIN if least < AIR_BELOW else 0.8)
    return None


def weigh(named: Guess | None, by_values: Guess | None) -> Guess | None:
    """What a file is whose header says nothing: what its name says, unless it shows air in Hounsfield units.

    In a name "t1" may also be a time point.
    """
    if named is None or by_values is None:
        return named or by_values
    agree = named.modality is by_values.modality
    return named if agree or by_values.confidence < CERTAIN else by_values


def guess_from_dicom(header: Any, temporal_positions: int = 1) -> Guess | None:
    """The modality that the attributes of one DICOM object of a series state.

    Args:
        header: a ``pydicom.Dataset``.
        temporal_positions: how many images the series has per slice position.

    Returns:
        CT and PET by the attribute Modality; the sequence of an MR by scan options and time points (cine),
        then by the words of its descriptions, then by echo and repetition time; else None.
    """
    kind = str(header.get("Modality", "")).upper()
    if kind in ("CT", "PT"):
        return Guess(Modality.CT if kind == "CT" else Modality.PET, "dicom", 1.0)
    if kind != "MR":
        return None
    gated = temporal_positions >= CINE_TEMPORAL_POSITIONS or _number(header, "CardiacNumberOfImages") > 1
    if gated and ("GR" in _words(header, "ScanningSequence") or _is_gated(header)):
        return Guess(Modality.CINE, "dicom", 0.9)
    described = " ".join(
        " ".join(_words(header, name))
        for name in ("SeriesDescription", "ProtocolName", "SequenceName", "AcquisitionContrast", "ImageType")
    )
    return guess_from_words(described, "dicom", 0.9) or _guess_from_times(header)


def _is_gated(header: Any) -> bool:
    """Whether scan options or trigger times tell of cardiac gating (CG, and vendors' words for it)."""
    options = {word.upper() for word in _words(header, "ScanOptions")}
    return bool(options & {"CG", "CARDIAC", "CARDIAC_GATING", "RG", "ECG"}) or "TriggerTime" in header


def _guess_from_times(header: Any) -> Guess | None:
    echo, repetition = _number(header, "EchoTime"), _number(header, "RepetitionTime")
    if echo >= LONG_ECHO_MS:
        return Guess(Modality.T2, "dicom", 0.7)
    if 0 < echo <= SHORT_ECHO_MS and 0 < repetition <= LONG_REPETITION_MS:
        return Guess(Modality.T1, "dicom", 0.6)
    return None


def _words(header: Any, name: str) -> list[str]:
    value = header.get(name)
    if value is None:
        return []
    is_list = isinstance(value, Iterable) and not isinstance(value, str)
    return [str(item) for item in value] if is_list else [str(value)]


def _number(header: Any, name: str) -> float:
    """The number in an attribute; 0 when it is absent or no number."""
    try:
        return float(header.get(name) or 0.0)
    except (TypeError, ValueError):
        return 0.0
