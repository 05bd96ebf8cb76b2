"""What a round did, in words and numbers that are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hermes.rounds.gate import Verdict
from hermes.training.preflight import LeftOut


@dataclass(frozen=True)
class RoundReport:
    """What a round did.

    Attributes:
        version: that it made.
        parent: that it was trained from.
        verdict: of the gate.
        cases: that were trained on.
        holdout_labels: labels of held-out images, which were not.
        steps: optimiser steps.
        train_seconds: they took.
        final_loss: mean of the last steps.
        skipped: labels that could not be used.
        mode: what was trained.
        preflight: what was found in the labels before.
    """

    version: str
    parent: str
    verdict: Verdict
    cases: int
    holdout_labels: int
    steps: int
    train_seconds: float
    final_loss: float
    skipped: tuple[LeftOut, ...]
    mode: str
    preflight: Mapping[str, Any]

    @property
    def published(self) -> bool:
        """Whether its version was let through."""
        return self.verdict.passed

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON object."""
        return {
            "version": self.version,
            "parent": self.parent,
            "gate": self.verdict.to_json(),
            "cases": self.cases,
            "holdout_labels": self.holdout_labels,
            "steps": self.steps,
            "train_seconds": round(self.train_seconds, 1),
            "final_loss": self.final_loss,
            "mode": self.mode,
            "skipped": [{"image": s.case_id, "reason": s.reason} for s in self.skipped],
            "preflight": dict(self.preflight),
        }
