"""What a structure is: its code, side, colour and spellings, read from ``catalogue.yaml``.

>>> structure("Kidney_L").name
'left kidney'
>>> structure("liver").code.value
'10200004'
"""

from __future__ import annotations

import colorsys
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from importlib import resources
from typing import Any, TypeAlias

import yaml

from hermes.errors import UnknownStructureError
from hermes.labels.names import check_new_name, did_you_mean, key

Colour: TypeAlias = tuple[int, int, int]
"""sRGB, each 0 to 255."""


@dataclass(frozen=True)
class Code:
    """A concept of a coding scheme, as DICOM's code sequences hold it."""

    value: str
    scheme: str
    meaning: str


@dataclass(frozen=True)
class Structure:
    """An anatomical thing that can be drawn.

    Attributes:
        name: as people write it.
        code: what it is (DICOM Segmented Property Type).
        category: what kind of thing it is (Segmented Property Category).
        colour: sRGB, 0 to 255.
        laterality: modifier of ``code``; ``None`` where there is no side or the code says it.
        region: where an abnormality lies (Anatomic Region); ``None`` for anatomy.
        parts: codes of what it is made of, where no one code covers it.
        groups: names of the body regions it belongs to.
        within: names of the structures that contain it, over which it wins in a label map.
        synonyms: further names.
        known: whether it stands in the catalogue; ``False`` for one that a campaign made up.
    """

    name: str
    code: Code
    category: Code
    colour: Colour
    laterality: Code | None = None
    region: Code | None = None
    parts: tuple[Code, ...] = ()
    groups: tuple[str, ...] = ()
    within: tuple[str, ...] = ()
    synonyms: tuple[str, ...] = ()
    known: bool = True


@cache
def load_yaml(name: str) -> Any:
    """The content of a data file of this package; read once, so not to be changed."""
    return yaml.safe_load(resources.files("hermes.labels").joinpath(name).read_text(encoding="utf-8"))


@cache
def catalogue() -> tuple[Structure, ...]:
    """Every structure of the catalogue, in its order."""
    data = load_yaml("catalogue.yaml")
    categories, sides = data["codes"]["categories"], data["codes"]["lateralities"]
    return tuple(_structure_from(entry, categories, sides) for entry in data["structures"])


def _structure_from(
    entry: Mapping[str, Any], categories: Mapping[str, list[str]], sides: Mapping[str, list[str]]
) -> Structure:
    return Structure(
        name=entry["name"],
        code=_snomed(entry["code"]),
        category=_snomed(categories[entry["category"]]),
        colour=(entry["colour"][0], entry["colour"][1], entry["colour"][2]),
        laterality=_snomed(sides[entry["laterality"]]) if "laterality" in entry else None,
        region=_snomed(entry["region"]) if "region" in entry else None,
        parts=tuple(_snomed(part) for part in entry.get("parts", ())),
        groups=tuple(entry.get("groups", ())),
        within=tuple(entry.get("within", ())),
        synonyms=tuple(entry.get("synonyms", ())),
    )


def _snomed(pair: Iterable[str]) -> Code:
    value, meaning = pair
    return Code(value, "SCT", meaning)


@cache
def _by_key() -> dict[str, Structure]:
    return {key(name): entry for entry in catalogue() for name in (entry.name, *entry.synonyms)}


@cache
def _group_by_key() -> dict[str, str]:
    groups: Mapping[str, list[str]] = load_yaml("catalogue.yaml")["groups"]
    return {key(name): group for group, aliases in groups.items() for name in (group, *aliases)}


def group_names() -> tuple[str, ...]:
    """The body regions and other groups, in the order of the catalogue."""
    return tuple(dict.fromkeys(_group_by_key().values()))


def find_group(name: str) -> str | None:
    """The group that ``name`` or one of its aliases names, or ``None``."""
    return _group_by_key().get(key(name))


def find_structure(name: str) -> Structure | None:
    """The structure of the catalogue that ``name`` names in any spelling, or ``None``."""
    return _by_key().get(key(name))


def structure(name: str) -> Structure:
    """The structure of the catalogue that ``name`` names in any spelling.

    Raises:
        UnknownStructureError: there is none; the message proposes the nearest names.
    """
    found = find_structure(name)
    if found is None:
        hint = did_you_mean(name, (entry.name for entry in catalogue()))
        msg = f"Unknown structure {name!r}: none of the catalogue's {len(catalogue())} has this name.{hint}"
        raise UnknownStructureError(msg)
    return found


def describe(name: str) -> Structure:
    """The structure of the catalogue that ``name`` names, else a new one with a general code.

    Raises:
        BadRequestError: the name cannot name a structure (see `describe_new`).
    """
    return find_structure(name) or describe_new(name)


@lru_cache(maxsize=4096)
def canonical_key(name: str) -> str:
    """One key per structure: all spellings and synonyms of a structure share it."""
    found = find_structure(name)
    return key(name) if found is None else key(found.name)


@cache
def describe_new(name: str) -> Structure:
    """A structure that the catalogue does not have, described by nothing but its name.

    Its code is the general one for a part of the body ("Tissue"), with a side where the name has one, and its
    colour is a function of the name, away from the colours of the catalogue.

    Raises:
        BadRequestError: the name is empty, too long, ``background``, or holds a character that a DICOM
            Segment Label or ``structure@protocol`` cannot.
    """
    clean = check_new_name(name)
    data = load_yaml("catalogue.yaml")["codes"]
    sides = [side for side in data["lateralities"] if key(clean).startswith(f"{side} ")]
    tissue = _snomed(data["categories"]["tissue"])
    return Structure(
        name=clean,
        code=tissue,
        category=tissue,
        colour=_colour_of(key(clean)),
        laterality=_snomed(data["lateralities"][sides[0]]) if sides else None,
        known=False,
    )


_NEW_COLOURS_TRIED = 8
"""Draws of a colour for a new structure; the one furthest from the catalogue's is taken."""


def _colour_of(name_key: str) -> Colour:
    taken = [lab(entry.colour) for entry in catalogue()]

    def clearance(colour: Colour) -> float:
        point = lab(colour)
        return min(sum((a - b) ** 2 for a, b in zip(point, other, strict=True)) for other in taken)

    return max((_draw_colour(name_key, draw) for draw in range(_NEW_COLOURS_TRIED)), key=clearance)


def _draw_colour(name_key: str, draw: int) -> Colour:
    digest = hashlib.sha256(f"{name_key}\0{draw}".encode()).digest()
    # Neither pale nor dark: it has to be seen on a grey image.
    red, green, blue = colorsys.hsv_to_rgb(digest[0] / 256, 0.4 + digest[1] / 512, 0.6 + digest[2] / 640)
    return round(red * 255), round(green * 255), round(blue * 255)


def lab(colour: Colour) -> tuple[float, float, float]:
    """CIE L*a*b* (D65) of an sRGB colour: distances in it are about as large as they look."""
    linear = [_linear(channel / 255) for channel in colour]
    rows = (
        (0.4124564, 0.3575761, 0.1804375),
        (0.2126729, 0.7151522, 0.0721750),
        (0.0193339, 0.1191920, 0.9503041),
    )
    white = (0.95047, 1.0, 1.08883)
    xyz = [
        sum(r * c for r, c in zip(row, linear, strict=True)) / w for row, w in zip(rows, white, strict=True)
    ]
    x, y, z = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in xyz)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def _linear(channel: float) -> float:
    return channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4
