"""From the text of a setting to its value; a ValueError says what was expected."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from hermes.types import Modality

AUTO = "auto"
"""The word with which a setting leaves the choice to Hermes."""

PATCH_DIVISOR = 16
"""The networks halve a volume four times, so a patch's sides are multiples of this."""


@dataclass(frozen=True)
class Quota:
    """In how many images a structure is to be drawn.

    >>> str(Quota("liver", 50))
    'liver=50'
    """

    structure: str
    images: int

    def __str__(self) -> str:
        return f"{self.structure}={self.images}"


def parse_or_none(text: str) -> str | None:
    """The text; None where it is empty."""
    return text or None


def parse_directory(text: str) -> Path | None:
    """A path with ``~`` resolved; None where it is empty."""
    return Path(text).expanduser() if text else None


def parse_names(text: str) -> tuple[str, ...]:
    """Names separated by commas, without the blanks around them."""
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    if not all(names):
        msg = "names separated by single commas"
        raise ValueError(msg)
    return names


def parse_quotas(text: str) -> tuple[Quota, ...]:
    """``liver=50,pancreas=80``."""
    quotas = []
    for part in parse_names(text):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        if not name or not number.isdecimal() or not 0 < int(number) <= 10_000_000:
            msg = "structures with their numbers of images, such as liver=50,pancreas=80"
            raise ValueError(msg)
        quotas.append(Quota(name, int(number)))
    if len({quota.structure for quota in quotas}) < len(quotas):
        msg = "one quota per structure"
        raise ValueError(msg)
    return tuple(quotas)


def parse_header(text: str) -> str:
    """The name of a header; "" for none."""
    if text and not all(c.isalnum() or c == "-" for c in text):
        msg = "the name of a header, such as X-Remote-User"
        raise ValueError(msg)
    return text


def parse_hosts(text: str) -> tuple[str, ...]:
    """Names and addresses of hosts in lower case, without brackets; ``*`` stands for any."""
    hosts = tuple(name.lower().strip("[]").rstrip(".") for name in parse_names(text))
    if not all(name == "*" or all(c.isalnum() or c in ".-_:" for c in name) for name in hosts):
        msg = "names of hosts without http:// and port, separated by commas, or *"
        raise ValueError(msg)
    return hosts


def parse_modalities(text: str) -> tuple[str, ...]:
    """DICOM modalities in capitals."""
    found = tuple(part.strip().upper() for part in text.split(","))
    if not all(part.isalnum() for part in found):
        msg = "DICOM modalities separated by commas, such as CT,MR,PT"
        raise ValueError(msg)
    return found


def parse_conditions(text: str) -> str:
    """``attribute=value`` pairs joined by ``&``."""
    pairs = [part.strip() for part in text.split("&") if part.strip()]
    if not all("=" in pair and pair.partition("=")[0].strip().isalnum() for pair in pairs):
        msg = "attribute=value pairs joined by &, such as StudyDate=20240101-&BodyPartExamined=ABDOMEN"
        raise ValueError(msg)
    return "&".join(pairs)


def choice(*choices: str) -> Callable[[str], str]:
    """A parser that takes one of these words."""

    def parse(text: str) -> str:
        if text.lower() not in choices:
            msg = f"one of {', '.join(choices)}"
            raise ValueError(msg)
        return text.lower()

    return parse


def switch(text: str) -> bool:
    """``true`` or ``false``."""
    if text.lower() not in ("true", "false"):
        msg = "true or false"
        raise ValueError(msg)
    return text.lower() == "true"


def whole(low: int, high: int, *, zero_is_none: bool = False) -> Callable[[str], int | None]:
    """A parser of whole numbers from ``low`` to ``high``."""

    def parse(text: str) -> int | None:
        value = int(text) if text.isdecimal() else None
        if zero_is_none and value == 0:
            return None
        if value is None or not low <= value <= high:
            msg = f"{'0, or ' if zero_is_none else ''}a whole number from {low} to {high}"
            raise ValueError(msg)
        return value

    return parse


def number(low: float, high: float, *, zero_is_none: bool = False) -> Callable[[str], float | None]:
    """A parser of numbers from ``low`` to ``high``."""

    def parse(text: str) -> float | None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if zero_is_none and value == 0:
            return None
        if not low <= value <= high:  # also where it is not a number
            msg = f"{'0, or ' if zero_is_none else ''}a number from {low:g} to {high:g}"
            raise ValueError(msg)
        return value

    return parse


def parse_patch(text: str) -> tuple[int, int, int] | None:
    """Three sides (z, y, x); None for `AUTO`."""
    if text.lower() == AUTO:
        return None
    sides = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if len(sides) != 3 or any(side <= 0 or side % PATCH_DIVISOR for side in sides):
        msg = f"auto, or three positive multiples of {PATCH_DIVISOR} (z,y,x), such as 48,64,48"
        raise ValueError(msg)
    return sides[0], sides[1], sides[2]


def parse_modality(text: str) -> Modality | None:
    """A modality; None for `AUTO`."""
    if text.lower() == AUTO:
        return None
    try:
        return Modality.parse(text)
    except ValueError as error:
        msg = f"auto, or one of {', '.join(modality.value for modality in Modality)}"
        raise ValueError(msg) from error


def parse_device(text: str) -> str:
    """A device as torch names it, or `AUTO`."""
    kind, _, number = text.lower().partition(":")
    if text.lower() in (AUTO, "cpu") or (kind == "cuda" and (number.isdecimal() or text.lower() == "cuda")):
        return text.lower()
    msg = "auto, cpu, cuda, or cuda:0, cuda:1, ..."
    raise ValueError(msg)
