"""What becomes of a label that comes in, whatever the images lie on: checked, archived, recorded."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes.adapters.annotators import annotator_in
from hermes.adapters.images import LONGEST_SHOWN
from hermes.campaign.records import LabelRecord
from hermes.errors import BadRequestError
from hermes.geometry import Grid
from hermes.records import LabelMap, NewStructure
from hermes.submission import LabelArchive, Submission, check_submission

RESERVED_PARAMS = frozenset({"label_info", "label_values", "absent", "new_structures"})
LONGEST_NAME = 200  # of an image or a tag; file systems end at 255 bytes with the suffix
_SAFE_NAME = re.compile(r"[\w][\w.\- ]*")

Record = Callable[[str, Path, str, Submission, Mapping[str, Any]], LabelRecord]
"""Called with (image id, archived file, its sha256, submission, params) once a label is safely on disk."""


@dataclass(frozen=True, eq=False)
class Accepted:
    """A submitted label that is archived and recorded.

    Attributes:
        path: the archived file.
        record: its row in the campaign's database.
        submission: what was checked.
        info: what MONAI Label notes beside a label.
    """

    path: Path
    record: LabelRecord
    submission: Submission
    info: dict[str, Any]


@dataclass(frozen=True)
class Intake:
    """Where submitted labels go.

    Attributes:
        structures: what the campaign labels now.
        confirm: called with the structures that a request adds, before its label is stored.
        archive: of label versions.
        record: enters a label into the database.
    """

    structures: Callable[[], tuple[str, ...]]
    confirm: Callable[[tuple[NewStructure, ...]], None]
    archive: LabelArchive
    record: Record

    def accept(self, image_id: str, label: LabelMap, params: Mapping[str, Any], grid: Grid) -> Accepted:
        """Check, archive and record a label; a refused one leaves everything as it was.

        Raises:
            BadRequestError: see `hermes.submission.check_submission`; or the annotator's name names nobody.
        """
        annotator_in(params)  # refuses before anything is stored
        submission = check_submission(label, params, image_grid=grid, structures=self.structures())
        if submission.new:
            self.confirm(submission.new)
        archived = self.archive.write(image_id, submission)
        record = self.record(image_id, archived, sha256_of(archived), submission, params)
        kept = {key: value for key, value in params.items() if key not in RESERVED_PARAMS}
        info = kept | label_info(submission.label_map.names, submission.annotated, archived)
        return Accepted(archived, record, submission, info)


def require_same_grid(grid: Grid, label: LabelMap) -> None:
    """Nothing, when the label is on the grid of its image.

    Raises:
        BadRequestError: it is not.
    """
    difference = grid.difference(label.grid)
    if difference is not None:
        msg = f"Expected a label on the grid of its image. {difference}"
        raise BadRequestError(msg)


def label_info(names: Mapping[int, str], annotated: Mapping[str, str], archived: Path) -> dict[str, Any]:
    """What MONAI Label notes beside a submitted label."""
    return {
        "label_info": [{"name": name, "idx": value} for value, name in names.items()],
        "annotated": dict(annotated),
        "version": int(archived.name.split(".")[0]),
    }


def sha256_of(path: Path) -> str:
    """Hash of a file, hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def checked_name(name: Any, what: str) -> str:
    """``name`` if it can be a file's name and nothing more.

    Raises:
        BadRequestError: it holds a path separator, starts with a dot, or the like.
    """
    if not isinstance(name, str) or len(name.encode()) > LONGEST_NAME or not _SAFE_NAME.fullmatch(name):
        shown = str(name)[:LONGEST_SHOWN]
        msg = f"Expected {what}: letters, digits, '_', '-', '.' and spaces, beginning with a letter or digit, got {shown!r}."
        raise BadRequestError(msg)
    return name
