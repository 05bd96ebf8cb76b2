"""Standardised uptake value by body weight, from the attributes of a PET series.

Follows the vendor-neutral pseudo-code of the QIBA FDG-PET committee (Clunie, 2012 and 2018):
``SUV = activity [Bq/ml] * weight [g] / dose decayed to the start of the scan [Bq]``.
"""

from __future__ import annotations

import math
from datetime import datetime, timedelta
from typing import Any

_PHILIPS_SUV = (0x7053, 0x1000)
"""Philips' private factor from counts to SUV by body weight."""
_PHILIPS_ACTIVITY = (0x7053, 0x1009)
"""Philips' private factor from counts to Bq/ml."""


def suv_factor(header: Any) -> float | None:
    """What to multiply rescaled PET values by to get SUV body weight (g/ml).

    ==========  ==================================================================================
    Units       factor
    ==========  ==================================================================================
    ``GML``     1; None when SUVType says another normalisation than body weight (LBM, BSA, IBW)
    ``BQML``    weight / dose, the dose decayed to what Decay Correction says: START of the scan,
                or ADMIN: the injection (no decay). NONE and anything else: None
    ``CNTS``    Philips' private factor to SUV, else the one to Bq/ml and then as ``BQML``
    others      None
    ==========  ==================================================================================

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
        return 1.0 if str(header.get("SUVType", "") or "BW") == "BW" else None
    try:
        if units == "BQML":
            return _by_dose(header)
        if units == "CNTS":
            private = _private(header, _PHILIPS_SUV)
            if private:
                return private
            activity, dose = _private(header, _PHILIPS_ACTIVITY), _by_dose(header)
            return activity * dose if activity and dose else None
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, ZeroDivisionError, OverflowError):
        return None
    return None


def _by_dose(header: Any) -> float | None:
    """Factor from Bq/ml to SUV; None when the decay was not corrected to a known moment."""
    if str(header.DecayCorrection) not in ("START", "ADMIN"):
        return None
    source = header.RadiopharmaceuticalInformationSequence[0]
    weight_g = float(header.PatientWeight) * 1000.0
    dose_bq = float(source.RadionuclideTotalDose)
    if str(header.DecayCorrection) == "START":
        half_life_s = float(source.RadionuclideHalfLife)
        start = _scan_start(header, half_life_s)
        dose_bq *= 0.5 ** ((start - _injection(source, start)).total_seconds() / half_life_s)
    return weight_g / dose_bq if weight_g > 0 and dose_bq > 0 else None


def _scan_start(header: Any, half_life_s: float) -> datetime:
    """To when decay was corrected: the series' time, unless that is when a derived series was made.

    A series time after the acquisition is the time of post-processing. Then the start follows from the frame:
    Frame Reference Time counts from it to the moment of the average count rate within the frame.
    """
    series = _moment(header.get("SeriesDate"), header.SeriesTime)
    if not header.get("AcquisitionTime"):
        return series
    acquired = _moment(header.get("AcquisitionDate") or header.get("SeriesDate"), header.AcquisitionTime)
    reference_s = float(header.get("FrameReferenceTime") or 0.0) / 1000.0
    duration_s = float(header.get("ActualFrameDuration") or 0.0) / 1000.0
    if series <= acquired:
        return series
    if reference_s <= 0 or duration_s <= 0:
        return acquired
    decay = math.log(2.0) / half_life_s
    average_s = math.log(decay * duration_s / -math.expm1(-decay * duration_s)) / decay
    return acquired - timedelta(seconds=reference_s - average_s)


def _injection(source: Any, start: datetime) -> datetime:
    if source.get("RadiopharmaceuticalStartDateTime"):
        text = str(source.RadiopharmaceuticalStartDateTime)
        given = _moment(text[:8], text[8:14])
        # De-identification shifts dates, and not everywhere alike: then only the time of day is believed.
        if timedelta(0) <= start - given < timedelta(days=1):
            return given
    clock = source.get("RadiopharmaceuticalStartTime") or str(source.RadiopharmaceuticalStartDateTime)[8:14]
    injected = _moment(start.strftime("%Y%m%d"), clock)
    # Times without dates: an injection "after" the scan was before midnight.
    return injected - timedelta(days=1) if injected > start else injected


def _moment(date: Any, time: Any) -> datetime:
    clock, _, fraction = str(time).strip().replace(":", "").partition(".")
    day = str(date or "20000101").replace("-", "")
    moment = datetime.strptime(f"{day}{clock.ljust(6, '0')}", "%Y%m%d%H%M%S")
    digits = "".join(c for c in fraction if c.isdigit())[:6]
    return moment + timedelta(microseconds=int(digits.ljust(6, "0")) if digits else 0)


def _private(header: Any, tag: tuple[int, int]) -> float | None:
    if tag not in header:
        return None
    value = header[tag].value
    value = float(value[0] if isinstance(value, (list, tuple)) else value)
    return value if value > 0 else None
