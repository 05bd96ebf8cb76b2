"""Standardised uptake value by body weight, from the attributes of a PET series."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any


def suv_factor(header: Any) -> float | None:
    """What to multiply rescaled PET values by to get SUV body weight (g/ml).

    ``SUV = activity [Bq/ml] * weight [g] / dose decayed to the time of the scan [Bq]``. Only for values in
    Bq/ml whose decay was corrected to the start (the common case) or that are in g/ml already (factor 1).

    Args:
        header: a ``pydicom.Dataset``.

    Returns:
        None when the object is no PET or an attribute that is needed is absent: then the values stay as they
        are, and the network, which sees them after a z-score, is hardly affected.
    """
    if str(header.get("Modality", "")) != "PT":
        return None
    units = str(header.get("Units", ""))
    if units == "GML":
        return 1.0
    try:
        if units != "BQML" or str(header.DecayCorrection) not in ("START", "ADMIN"):
            return None
        source = header.RadiopharmaceuticalInformationSequence[0]
        weight_g = float(header.PatientWeight) * 1000.0
        dose_bq = float(source.RadionuclideTotalDose)
        if str(header.DecayCorrection) == "START":
            dose_bq *= 0.5 ** (_uptake_s(header, source) / float(source.RadionuclideHalfLife))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError):
        return None
    return weight_g / dose_bq if weight_g > 0 and dose_bq > 0 else None


def _uptake_s(header: Any, source: Any) -> float:
    """Seconds from the injection to the start of the series."""
    start = _clock(str(header.SeriesTime))
    injected = _clock(str(source.RadiopharmaceuticalStartTime))
    if injected > start:  # times without dates: the injection was before midnight
        injected -= timedelta(days=1)
    return (start - injected).total_seconds()


def _clock(text: str) -> datetime:
    return datetime.strptime(text.split(".")[0].strip(), "%H%M%S")
