"""What a training would see, before it starts: voxels and cases per structure, what is left out and why.

Pure functions on facts of the cases; nothing is read here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hermes.errors import NothingToTrainError

_SHOWN = 5  # reasons per message


@dataclass(frozen=True)
class CaseFacts:
    """What is known of a labelled image.

    Attributes:
        case_id: of the image.
        voxels: structure -> voxels drawn, on whatever grid the caller counts on. 0 and missing: nothing drawn.
        absent: structures that were looked for and are not there.
        problem: why the case cannot be used; None: it can.
    """

    case_id: str
    voxels: Mapping[str, int] = field(default_factory=dict)
    absent: frozenset[str] = frozenset()
    problem: str | None = None


@dataclass(frozen=True)
class StructureCount:
    """How much of a structure there is to learn from.

    Attributes:
        name: of the structure.
        cases: in which it is drawn.
        voxels: drawn in all of them.
        absent: cases in which it was looked for and is not there.
    """

    name: str
    cases: int
    voxels: int
    absent: int


@dataclass(frozen=True)
class LeftOut:
    """A case that training does not see, and why."""

    case_id: str
    reason: str


@dataclass(frozen=True)
class PreflightReport:
    """What a training would see.

    Attributes:
        structures: every requested one, in the order of the request.
        used: ids of the cases that have something of them, drawn or absent, each once.
        skipped: the other cases, each once, with all that was found; and those of which one of several labels
            cannot be used.
    """

    structures: tuple[StructureCount, ...]
    used: tuple[str, ...]
    skipped: tuple[LeftOut, ...]

    @property
    def missing(self) -> tuple[str, ...]:
        """Requested structures that are drawn in no case."""
        return tuple(count.name for count in self.structures if count.cases == 0)

    def to_json(self) -> dict[str, Any]:
        """A JSON object for reports and status answers."""
        return {
            "structures": [vars(count) for count in self.structures],
            "used": list(self.used),
            "skipped": [vars(one) for one in self.skipped],
        }


def survey(facts: Iterable[CaseFacts], requested: Sequence[str]) -> PreflightReport:
    """What a training of the ``requested`` structures on these cases would see; refuses nothing.

    A case of several labels, by several annotators, has several ``facts``.
    """
    used: list[CaseFacts] = []
    damaged: dict[str, list[str]] = {}
    others: dict[str, set[str]] = {}
    wanted = set(requested)
    for one in facts:
        annotated = {name for name, voxels in one.voxels.items() if voxels > 0} | one.absent
        if one.problem is not None:
            damaged.setdefault(one.case_id, []).append(one.problem)
        elif wanted & annotated:
            used.append(one)
        else:
            others.setdefault(one.case_id, set()).update(annotated)
    ids = dict.fromkeys(one.case_id for one in used)
    reasons = {case: list(dict.fromkeys(found)) for case, found in damaged.items()}
    for case, names in others.items():
        if case not in ids:
            has = f"; it has {', '.join(sorted(names))}" if names else ""
            reasons.setdefault(case, []).append(f"none of the requested structures is annotated{has}")
    counts = tuple(_count(name, used) for name in dict.fromkeys(requested))
    skipped = tuple(LeftOut(case, "; ".join(found)) for case, found in reasons.items())
    return PreflightReport(counts, tuple(ids), skipped)


def _count(name: str, used: Sequence[CaseFacts]) -> StructureCount:
    voxels = [one.voxels.get(name, 0) for one in used]
    return StructureCount(
        name, sum(v > 0 for v in voxels), sum(voxels), sum(name in one.absent for one in used)
    )


def preflight(facts: Iterable[CaseFacts], requested: Sequence[str]) -> PreflightReport:
    """What a training of the ``requested`` structures on these cases will see.

    Raises:
        NothingToTrainError: no case can be used, or a requested structure is drawn in none of them: a network
            that is only ever told "absent" learns to answer nothing.
    """
    report = survey(facts, requested)
    require_something(report)
    return report


def require_something(report: PreflightReport) -> None:
    """Nothing, if there is something to learn of every requested structure.

    Raises:
        NothingToTrainError: as :func:`preflight`.
    """
    left_out = "; ".join(f"{one.case_id}: {one.reason}" for one in report.skipped[:_SHOWN])
    more = f" and {len(report.skipped) - _SHOWN} more" if len(report.skipped) > _SHOWN else ""
    because = f" Left out: {left_out}{more}." if left_out else ""
    if not report.used:
        msg = f"Expected at least one usable labelled case, got none.{because}"
        raise NothingToTrainError(msg)
    if report.missing:
        names = ", ".join(report.missing)
        msg = (
            f"Expected every requested structure in at least one case; nobody has drawn: {names}. Label it in a "
            f"case, or leave it out of the request.{because}"
        )
        raise NothingToTrainError(msg)
