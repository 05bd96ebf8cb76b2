"""Names of the domain that every layer shares; nothing heavy is imported here."""

from __future__ import annotations

from enum import Enum
from typing import TypeAlias

CaseId: TypeAlias = str
"""Name of an image in the datastore (a file stem or a DICOM SeriesInstanceUID)."""

StructureName: TypeAlias = str
"""Name of an anatomical structure as people write it, e.g. ``"left kidney"``."""


class Modality(str, Enum):
    """Imaging physics that has its own modality prior. ``None`` stands for unknown, everywhere."""

    CT = "CT"
    PET = "PET"
    T1 = "T1"
    T2 = "T2"
    CINE = "cine"

    @property
    def row(self) -> int:
        """Row of this modality in the modality tables and in the modality logits."""
        return list(Modality).index(self)

    @classmethod
    def parse(cls, text: str) -> Modality:
        """The modality that ``text`` names (case does not matter; ``PT``, ``cine MR`` are understood).

        Raises:
            ValueError: no modality has this name.
        """
        key = text.strip().lower().replace("-", " ").replace("_", " ")
        aliases = {
            "ct": cls.CT, "pet": cls.PET, "pt": cls.PET, "t1": cls.T1, "t1w": cls.T1,
            "t2": cls.T2, "t2w": cls.T2, "cine": cls.CINE, "cine mr": cls.CINE, "cine mri": cls.CINE,
        }  # fmt: skip
        if key not in aliases:
            msg = f"Expected a modality out of {[m.value for m in cls]}, got {text!r}."
            raise ValueError(msg)
        return aliases[key]
