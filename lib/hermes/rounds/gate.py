"""Whether a candidate may take the place of the serving version.

Both are measured on the labels of held-out images. A candidate is refused when a structure that the serving
version knows loses more Dice than a margin, or when the mean over these structures does. Structures that are new
to the candidate are in the table and decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hermes.types import StructureName

PASSED, REFUSED, UNGATED = "passed", "refused", "ungated"
UNGATED_REASON = "No held-out image has a usable label, so nothing could be compared."

Scores = Mapping[int, Mapping[StructureName, float]]
"""Label -> structure -> Dice."""

_ROUNDING = 1e-9
"""A loss of exactly the margin is allowed, however its digits are rounded."""


@dataclass(frozen=True)
class TaskRow:
    """One line of the table: mean Dice of a structure before and after, over ``labels`` held-out labels."""

    structure: StructureName
    labels: int
    before: float | None
    after: float


@dataclass(frozen=True)
class Verdict:
    """What the gate says; the means are over the structures that the serving version knows."""

    state: str
    reason: str
    table: tuple[TaskRow, ...] = ()
    mean_before: float | None = None
    mean_after: float | None = None

    @property
    def passed(self) -> bool:
        """Whether the candidate is published."""
        return self.state != REFUSED

    def to_json(self) -> dict[str, Any]:
        """The verdict as a JSON object."""
        return {
            "state": self.state,
            "reason": self.reason,
            "mean_before": _rounded(self.mean_before),
            "mean_after": _rounded(self.mean_after),
            "table": [
                {
                    "structure": r.structure,
                    "labels": r.labels,
                    "before": _rounded(r.before),
                    "after": _rounded(r.after),
                }
                for r in self.table
            ],
        }


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 4)


def judge(before: Scores, after: Scores, *, task_margin: float, margin: float) -> Verdict:
    """The verdict on a candidate.

    Args:
        before: what the serving version reached, per label and structure that it knows.
        after: what the candidate reached.
        task_margin: Dice that one structure may lose.
        margin: mean Dice that may be lost.
    """
    labels = [label for label in after if label in before]
    table = tuple(_row(name, before, after, labels) for name in _names(after, labels))
    if not table:
        return Verdict(UNGATED, UNGATED_REASON)
    old = [(row, row.before) for row in table if row.before is not None]
    if not old:
        return Verdict(PASSED, "The serving version knows none of the structures of the hold-out.", table)
    means = fmean(b for _, b in old), fmean(row.after for row, _ in old)
    losses = [
        f"{row.structure} {b:.3f} -> {row.after:.3f}"
        for row, b in old
        if b - row.after > task_margin + _ROUNDING
    ]
    if losses:
        reason = f"More than {task_margin:g} Dice lost on the hold-out: {', '.join(losses)}."
    elif means[0] - means[1] > margin + _ROUNDING:
        reason = f"More than {margin:g} mean Dice lost on the hold-out: {means[0]:.4f} -> {means[1]:.4f}."
    else:
        return Verdict(PASSED, f"Not worse on {len(labels)} held-out labels.", table, *means)
    return Verdict(REFUSED, reason, table, *means)


def _names(scores: Scores, labels: list[int]) -> list[StructureName]:
    return list(dict.fromkeys(name for label in labels for name in scores[label]))


def _row(name: StructureName, before: Scores, after: Scores, labels: list[int]) -> TaskRow:
    """Both means over the same labels: those in which both were asked for the structure, where there are such."""
    asked = [label for label in labels if name in after[label]]
    both = [label for label in asked if name in before[label]]
    counted = both or asked
    old = fmean(before[label][name] for label in both) if both else None
    return TaskRow(name, len(counted), old, fmean(after[label][name] for label in counted))
