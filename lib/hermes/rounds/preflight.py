"""What a round would find in the labels, before anything is trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hermes.rounds.cases import CaseReader, require_cases, require_labels, sort_labels
from hermes.rounds.options import RoundOptions
from hermes.training.cases import TrainingCase
from hermes.training.preflight import CaseFacts, LeftOut, PreflightReport, preflight, survey
from hermes.types import CaseId
from hermes.workspace import Bindings, Workspace


@dataclass(frozen=True)
class Preflight:
    """What there is to learn from, on the model's grid, and how many held-out labels there are to measure on."""

    labels: PreflightReport
    holdout_labels: int

    def to_json(self) -> dict[str, Any]:
        """A JSON object."""
        return {**self.labels.to_json(), "holdout_labels": self.holdout_labels}


def preflight_of(
    workspace: Workspace, image_path: Callable[[CaseId], Path], options: RoundOptions
) -> Preflight:
    """What a round with these options would find; cases that were not prepared yet are prepared.

    Raises:
        NothingToTrainError: it would not begin: no usable label, or a requested structure that nobody has drawn.
    """
    require_labels(workspace)
    _, manifest = workspace.serving()
    bindings = workspace.bind(manifest)
    labels = sort_labels(workspace)
    cases, skipped = CaseReader(workspace, manifest, bindings, image_path).read_all(labels.training)
    require_cases(cases, skipped)
    return Preflight(check_cases(cases, skipped, bindings, options.structures), len(labels.holdout))


def check_cases(
    cases: Iterable[TrainingCase], skipped: Iterable[LeftOut], bindings: Bindings, requested: Sequence[str]
) -> PreflightReport:
    """What the cases hold of each structure of the campaign.

    Raises:
        NothingToTrainError: a requested structure is drawn in no case.
    """
    facts = [facts_of(case, bindings) for case in cases]
    facts += [CaseFacts(one.case_id, problem=one.reason) for one in skipped]
    if requested:
        preflight(facts, requested)
    return survey(facts, bindings.structures)


def facts_of(case: TrainingCase, bindings: Bindings) -> CaseFacts:
    """Voxels per structure of a case on the model's grid, and what was looked for in vain."""
    names = bindings.all_rows()
    counts = np.bincount(np.asarray(case.labels[:, :, :]).ravel(), minlength=256)
    return CaseFacts(
        case.case_id,
        {names[row]: int(counts[value]) for row, value in case.annotated.items() if value is not None},
        frozenset(names[row] for row, value in case.annotated.items() if value is None),
    )
