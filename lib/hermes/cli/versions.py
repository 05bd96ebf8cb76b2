"""``hermes versions``, ``hermes rollback`` and ``hermes preflight``: a campaign looked at from the command line.

They open the campaign beside a running server, which follows the pointer at its next inference.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from hermes.config import campaign_directory, from_conf
from hermes.errors import NotFoundError
from hermes.types import CaseId
from hermes.workspace import VersionInfo, Workspace

DATABASE = "campaign.sqlite"


def open_campaign(place: str, conf: Mapping[str, str], *, starter: Path) -> Workspace:
    """The campaign on a folder (or URL) of studies, or in a campaign's own directory.

    Args:
        place: the studies, or the directory that holds the campaign's database.
        conf: further settings, as the server was given them.
        starter: the model that a campaign begins with where ``conf`` names none.

    Raises:
        NotFoundError: there is no campaign.
    """
    inside = "://" not in place and (Path(place) / DATABASE).is_file()
    settings = from_conf({**conf, "campaign_dir": place} if inside else conf)
    directory = campaign_directory(settings, place)
    if not (directory / DATABASE).is_file():
        msg = f"Expected a campaign in {place!r}, there is none. Name the folder of studies that was served."
        raise NotFoundError(msg)
    return Workspace(settings, place, starter=starter)


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


def image_finder(studies: str, suffixes: tuple[str, ...]) -> Callable[[CaseId], Path]:
    """Image id -> its file in a folder of studies."""

    def path(image_id: CaseId) -> Path:
        found = [p for s in suffixes if (p := Path(studies) / f"{image_id}{s}").is_file()]
        if not found:
            msg = f"Expected image {image_id!r} in the folder of studies, it is not there."
            raise NotFoundError(msg)
        return found[0]

    return path
