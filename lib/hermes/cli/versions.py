"""``hermes versions``, ``hermes rollback`` and ``hermes preflight``: a campaign looked at from the command line.

They open the campaign beside a running server, which follows the pointer at its next inference.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hermes.config import campaign_directory, from_conf
from hermes.errors import NotFoundError
from hermes.labelled import IMAGE_SUFFIXES
from hermes.rounds import RoundOptions, preflight_of
from hermes.serve import APP, resolve_studies
from hermes.submission import match_structure
from hermes.types import CaseId
from hermes.workspace import VersionInfo, Workspace, served_with

DATABASE = "campaign.sqlite"


@dataclass(frozen=True)
class Found:
    """A campaign on this disk.

    Attributes:
        directory: that holds its database.
        studies: folder or DICOMweb URL of its images.
        conf: its settings: those of its server, and on top of them those of the command line.
    """

    directory: Path
    studies: str
    conf: Mapping[str, str]

    @property
    def on_pacs(self) -> bool:
        """Whether its images lie on a DICOMweb server."""
        return "://" in self.studies

    def open(self, *, starter: Path, check: bool = True) -> Workspace:
        """The campaign, to work with; ``starter`` is the model where its settings name none, ``check`` as `Workspace` has it."""
        return Workspace(from_conf(self.conf), self.studies, starter=starter, check=check)


def find_campaign(place: str, conf: Mapping[str, str]) -> Found:
    """The campaign on a folder or DICOMweb URL of studies, of the word ``pacs``, or in its own directory.

    Args:
        place: as ``make serve STUDIES=...`` was given it, or the directory that holds the campaign's database.
        conf: settings that differ from what the campaign was served with.

    Raises:
        NotFoundError: there is no campaign.
        PacsError: the sample PACS, which ``pacs`` stands for, does not run.
    """
    studies = resolve_studies(place)
    inside = "://" not in studies and (Path(studies) / DATABASE).is_file()
    directory = Path(studies).absolute() if inside else campaign_directory(from_conf(conf), studies)
    if not (directory / DATABASE).is_file():
        msg = (
            f"Expected a campaign of {place!r} in {str(directory)!r}, there is none. Name the folder or URL that was served; "
            'where its server was given a campaign_dir, name that directory, or pass --conf "campaign_dir=DIR".'
        )
        raise NotFoundError(msg)
    served = served_with(directory)
    if served is None and "structures" not in conf:
        sys.stderr.write(
            "hermes: this campaign does not say which settings it was served with. Where they are not the defaults, pass "
            'them: --conf "structures=... model=..."\n'
        )
    kept = served.conf if served is not None else {}
    if inside:
        noted = served.studies if served is not None else ""
        studies = noted if "://" in noted or directory.name != ".hermes" else str(directory.parent)
    return Found(directory, studies or place, {**kept, **conf, "campaign_dir": str(directory)})


def line_of(version: VersionInfo) -> list[str]:
    """A version as a row of the table: name, state, parent, cases, mean Dice before and after, reason."""
    gate = version.metrics.get("report", {}).get("gate", {})
    state = f"{version.state}, serving" if version.serving else version.state
    means = [_number(gate.get(key)) for key in ("mean_before", "mean_after")]
    return [version.name, state, version.parent or "", str(version.cases), *means, gate.get("reason", "")]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else ""


def structure_line(count: Mapping[str, Any]) -> list[str]:
    """What preflight says of a structure as a row of the table."""
    return [str(count["name"]), *(str(count[key]) for key in ("cases", "voxels", "absent"))]


def preflight(found: Found, structures: Sequence[str]) -> dict[str, Any]:
    """What a training would find in the labels of a campaign, as JSON.

    Args:
        found: the campaign.
        structures: that have to be drawn in a case; empty: any will do.

    Raises:
        NothingToTrainError: it would not begin.
        UnknownStructureError: a structure that the campaign does not label.
    """
    if found.on_pacs:
        from hermes.adapters.build import build  # brings monailabel, which takes seconds

        parts = build(str(APP), found.studies, found.conf)
        parts.dicomweb(found.studies)
        return parts.preflight(_options(parts.workspace, structures))
    workspace = found.open(starter=APP / "starter")
    return preflight_of(workspace, image_finder(found.studies), _options(workspace, structures)).to_json()


def _options(workspace: Workspace, structures: Sequence[str]) -> RoundOptions:
    known = workspace.bindings().structures
    asked = tuple(match_structure(name, known) for name in structures)
    return replace(RoundOptions.of(workspace.settings), structures=asked)


def image_finder(studies: str) -> Callable[[CaseId], Path]:
    """Image id -> its file in a folder of studies."""

    def path(image_id: CaseId) -> Path:
        found = [p for s in IMAGE_SUFFIXES if (p := Path(studies) / f"{image_id}{s}").is_file()]
        if not found:
            msg = f"Expected image {image_id!r} in the folder of studies, it is not there."
            raise NotFoundError(msg)
        return found[0]

    return path
