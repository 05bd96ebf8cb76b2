"""Structures as DICOM codes them, and back: which name a segment means.

A segment is named by its label; a code speaks only where the label says nothing (``Segment 1``) or is in words
of another language. A label that holds the structure's own words and more ("liver segment VIII") is something
narrower and stays a name of its own: to take it for the whole would be a silent error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from pydicom.dataset import Dataset
from pydicom.sr._snomed_dict import mapping as snomed  # Code's own == and hash disagree on old codes

from hermes.labels.catalogue import (
    Code,
    Colour,
    Structure,
    canonical_key,
    catalogue,
    describe,
    find_structure,
    lab,
)
from hermes.labels.names import MAX_NAME_LENGTH, PROTOCOL_MARK, key

_PROTOCOL_TEXT = "Protocol: "
"""Opens the Segment Description of a structure drawn by a named protocol."""
_NOTHING_SAID = re.compile(
    r"^(?:segment|segmentation|label|roi|mask|region|tissue|object|structure|unknown|unnamed|new)?[ _-]*\d*$",
    re.IGNORECASE,
)
"""Labels that viewers make up."""

_OLD_SNOMED = ("SRT", "SNM3", "99SDM")
"""Designators of SNOMED-RT codes, which older writers use."""

_Concept = tuple[str, str]  # scheme, value; SNOMED-RT translated to SNOMED CT
_Key = tuple[_Concept, tuple[_Concept, ...], tuple[_Concept, ...], tuple[_Concept, ...]]


def split_task(name: str) -> tuple[str, str]:
    """The structure and the protocol ("" for none) of ``liver@BCV``."""
    structure, _, protocol = name.partition(PROTOCOL_MARK)
    return structure.strip(), protocol.strip()


def structure_of(name: str) -> Structure:
    """The structure that ``name`` (with or without a protocol) names, else one with a general code.

    Raises:
        BadRequestError: the name cannot name a structure.
    """
    return describe(split_task(name)[0])


def segment_label(name: str) -> str:
    """The Segment Label: the name as it is, without its protocol where both are too long for DICOM."""
    return name if len(name) <= MAX_NAME_LENGTH else split_task(name)[0]


def segment_description(name: str) -> str | None:
    """The Segment Description, which carries the protocol."""
    protocol = split_task(name)[1]
    return f"{_PROTOCOL_TEXT}{protocol}" if protocol else None


def code_item(code: Code) -> Dataset:
    """An item of a code sequence."""
    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = code.value, code.scheme, code.meaning
    return item


def dicom_lab(colour: Colour) -> list[int]:
    """RecommendedDisplayCIELabValue of an sRGB colour (PS3.3 C.10.7.1.1: three 16-bit numbers).

    With the white point D65, as dcmjs (OHIF) and dcmqi (3D Slicer) decode it: the viewers show this very
    colour. With the D50 of the ICC they would show another one.
    """
    lightness, a, b = lab(colour)
    scaled = (lightness / 100.0, (a + 128.0) / 255.0, (b + 128.0) / 255.0)
    return [round(min(1.0, max(0.0, value)) * 65535) for value in scaled]


def name_of(label: str, item: Any, structures: Sequence[str] = (), description: str = "") -> str:
    """The name that a segment means.

    Args:
        label: its Segment Label or ROI Name, as written.
        item: the dataset with its codes (Segmented Property Type, or RT ROI Identification).
        structures: names that the campaign uses; they win over the catalogue's spelling.
        description: its Segment Description.

    Returns:
        The campaign's or the catalogue's spelling where one is meant, else the label, else the meaning of
        the code.
    """
    clean = " ".join(label.split())
    protocol = description[len(_PROTOCOL_TEXT) :].strip() if description.startswith(_PROTOCOL_TEXT) else ""
    if protocol and PROTOCOL_MARK not in clean:
        clean = f"{clean}{PROTOCOL_MARK}{protocol}"
    structure, _ = split_task(clean)
    matched = _matching(clean, structures)
    if matched is not None:
        return matched
    found = find_structure(structure)
    if found is not None:
        return _spelled(found.name, clean, structures)
    coded = _structure_coded(item)
    if coded is not None and (_NOTHING_SAID.match(structure) or not _narrows(structure, coded)):
        return _spelled(coded.name, clean, structures)
    meaning = _meaning(item)
    return meaning if meaning and not structure else clean or meaning or "unnamed"


def _matching(name: str, structures: Sequence[str]) -> str | None:
    """The campaign's spelling of ``name``; with several protocols of one structure only the exact one."""
    if name in structures:
        return name
    structure, protocol = split_task(name)
    found = [s for s in structures if canonical_key(split_task(s)[0]) == canonical_key(structure)]
    if protocol:
        same = [s for s in found if key(split_task(s)[1]) in (key(protocol), "")]
        return same[0] if len(same) == 1 else None
    return found[0] if len(found) == 1 else None


def _spelled(name: str, written: str, structures: Sequence[str]) -> str:
    protocol = split_task(written)[1]
    full = f"{name}{PROTOCOL_MARK}{protocol}" if protocol else name
    return _matching(full, structures) or full


def _narrows(label: str, structure: Structure) -> bool:
    """Whether a label has a word of the structure's names: then it means something else than the whole."""
    words = {word for name in (structure.name, *structure.synonyms) for word in key(name).split()}
    return bool(words & set(key(label).split()))


def _structure_coded(item: Any) -> Structure | None:
    kind = _type_item(item)
    if kind is None:
        return None
    code = _concept_of(kind)
    modifiers = _codes(kind, "SegmentedPropertyTypeModifierCodeSequence")
    regions = _codes(item, "AnatomicRegionSequence")
    parts = _codes(item, "PrimaryAnatomicStructureSequence")
    known = _by_code()
    # Some writers put the side into the region's modifier, some leave out what a segment consists of.
    for extra in (modifiers, _region_modifiers(item)):
        for areas in (regions, ()):
            for pieces in (parts, ()):
                found = known.get((code, tuple(extra), tuple(areas), tuple(pieces)))
                if found is not None:
                    return found
    return None


@cache
def _by_code() -> Mapping[_Key, Structure]:
    """Code, laterality, regions and parts -> structure."""
    found: dict[_Key, Structure] = {}
    for entry in catalogue():
        identity = (
            _concept(entry.code),
            () if entry.laterality is None else (_concept(entry.laterality),),
            () if entry.region is None else (_concept(entry.region),),
            tuple(_concept(part) for part in entry.parts),
        )
        # Where a structure and a part of it share a code, the code means the whole.
        if identity not in found or entry.name in found[identity].within:
            found[identity] = entry
    return found


def _concept(code: Code) -> _Concept:
    return code.scheme, code.value


def _codes(item: Any, keyword: str) -> tuple[_Concept, ...]:
    """The codes of a sequence; old SNOMED-RT ones as their SNOMED CT successors."""
    return tuple(_concept_of(entry) for entry in item.get(keyword) or ())


def _concept_of(entry: Any) -> _Concept:
    value = str(entry.get("CodeValue", "") or entry.get("LongCodeValue", ""))
    scheme = str(entry.get("CodingSchemeDesignator", ""))
    if scheme in _OLD_SNOMED and value in snomed["SRT"]:
        return "SCT", snomed["SRT"][value]
    return scheme, value


def _region_modifiers(item: Any) -> tuple[_Concept, ...]:
    regions = item.get("AnatomicRegionSequence") or ()
    return tuple(code for region in regions for code in _codes(region, "AnatomicRegionModifierSequence"))


def _type_item(item: Any) -> Any | None:
    """The item that says what a segment or region is."""
    for keyword in ("SegmentedPropertyTypeCodeSequence", "RTROIIdentificationCodeSequence"):
        if item.get(keyword):
            return item.get(keyword)[0]
    return None


def _meaning(item: Any) -> str:
    kind = _type_item(item)
    return "" if kind is None else str(kind.get("CodeMeaning", ""))
