"""Spellings: when do two names mean the same thing, and which name was probably meant.

>>> key("Kidney, left") == key("L_kidney") == key("leftKidney")
True
>>> key("oesophagus") == key("Esophagus")
True
"""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache

from hermes.errors import BadRequestError

PROTOCOL_MARK = "@"
"""Stands between a structure and the protocol that draws it: ``liver@BCV``."""

MAX_NAME_LENGTH = 64
"""Characters; DICOM's Segment Label (value representation LO) holds no more."""

_SIDES = {"l": "left", "lt": "left", "left": "left", "r": "right", "rt": "right", "right": "right"}

_AMERICAN = {
    "oesophagus": "esophagus",
    "oesophageal": "esophageal",
    "tumour": "tumor",
    "tumours": "tumors",
    "tumoural": "tumoral",
    "grey": "gray",
    "oedema": "edema",
    "haematoma": "hematoma",
    "haemorrhage": "hemorrhage",
    "caecum": "cecum",
    "foetus": "fetus",
    "foetal": "fetal",
    "centre": "center",
    "fibre": "fiber",
    "fibres": "fibers",
    "ischaemia": "ischemia",
    "anaesthesia": "anesthesia",
    "colour": "color",
}

_SUGGESTIONS = 3
"""How many names an error proposes: more would bury the right one."""


@lru_cache(maxsize=4096)
def key(name: str) -> str:
    """What is left of a name when the ways of writing it are taken away; "" where nothing is left.

    Case, accents, separators, camel case, American or British spelling and the place and abbreviation of the
    side do not count. ``key(key(x)) == key(x)``.
    """
    previous, current = None, name
    # Compatibility decomposition and case folding can each make work for the other; two rounds settle it.
    while current != previous:
        previous, current = current, _key_once(current)
    return current


def _key_once(name: str) -> str:
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", spaced).casefold())
    letters = "".join(c for c in folded if not unicodedata.combining(c))
    tokens = [_AMERICAN.get(token, token) for token in re.findall(r"[^\W_]+", letters)]
    return " ".join(_side_first(tokens))


def _side_first(tokens: list[str]) -> list[str]:
    """One side moves to the front; with two ("left and right kidney") the order may carry the meaning."""
    sides = [_SIDES[token] for token in tokens if token in _SIDES]
    if len(sides) != 1 or len(tokens) == 1:
        return tokens
    return [sides[0], *(token for token in tokens if token not in _SIDES)]


def split_protocol(name: str) -> tuple[str, str | None]:
    """The structure and the protocol (or ``None``) of ``"liver"`` or ``"liver@BCV"``, as written.

    Raises:
        BadRequestError: one of the two is empty, or there are more than two.
    """
    parts = [part.strip() for part in name.split(PROTOCOL_MARK)]
    if len(parts) > 2 or not all(key(part) for part in parts):
        msg = f"Expected a structure or structure{PROTOCOL_MARK}protocol, such as 'liver@BCV', got {name!r}."
        raise BadRequestError(msg)
    return parts[0], parts[1] if len(parts) == 2 else None


def check_new_name(name: str) -> str:
    """``name`` without outer white space, when it can name a structure in files, viewers and DICOM objects.

    Raises:
        BadRequestError: empty, too long, reserved, or with a character that one of these cannot hold.
    """
    clean = name.strip()
    if not key(clean) or len(clean) > MAX_NAME_LENGTH:
        msg = f"Expected a structure name of 1 to {MAX_NAME_LENGTH} characters, got {clean[:80]!r}."
        raise BadRequestError(msg)
    if PROTOCOL_MARK in clean or "\\" in clean or not clean.isprintable():
        msg = f"Expected a structure name without '@', backslash and control characters, got {clean!r}."
        raise BadRequestError(msg)
    if key(clean) == "background":
        msg = "'background' is what no structure claims (value 0); leave it out of the structures."
        raise BadRequestError(msg)
    return clean


def nearest(name: str, known: Iterable[str]) -> list[str]:
    """Up to three of ``known`` that ``name`` may be a misspelling of, the likeliest first."""
    by_key: dict[str, str] = {}
    for candidate in known:
        by_key.setdefault(key(candidate), candidate)
    wanted = key(name)
    close = difflib.get_close_matches(wanted, by_key, n=_SUGGESTIONS, cutoff=0.7)
    words = set(wanted.split())
    # "uterus" is part of "prostate / uterus" but too short to be close to it.
    containing = [k for k in by_key if words and words <= set(k.split()) and k not in close]
    return [by_key[k] for k in [*close, *sorted(containing)][:_SUGGESTIONS]]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence that proposes the nearest of ``known``, with a leading space; "" where none is near."""
    close = nearest(name, known)
    return f" Did you mean {' or '.join(repr(c) for c in close)}?" if close else ""
