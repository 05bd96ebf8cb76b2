"""From labels of the campaign to what training sees."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from hermes.campaign.records import Annotated, LabelRecord
from hermes.checkpoint import Manifest, UsedCase
from hermes.errors import BadImageError, BadLabelError, CancelledError, NotFoundError, NothingToTrainError
from hermes.rounds.recipe import EARLIER, NEW
from hermes.submission import LabelArchive
from hermes.training.cases import TrainingCase
from hermes.training.preflight import LeftOut
from hermes.types import CaseId
from hermes.workspace import Bindings, Workspace

logger = logging.getLogger(__name__)


NOTHING_NEW = (
    "Expected labels of a structure that the serving model has not learned: mode 'priors' trains nothing "
    "but the rows of new structures. Label one, or train with mode 'full'."
)


@dataclass(frozen=True)
class CaseReader:
    """Prepares the cases of one version's label space; what was prepared before comes from the cache."""

    workspace: Workspace
    manifest: Manifest
    bindings: Bindings
    image_path: Callable[[CaseId], Path]

    def read(self, label: LabelRecord, dataset: str = NEW) -> TrainingCase:
        """The case of a label.

        Raises:
            BadImageError: the image cannot be read or used.
            BadLabelError: the label cannot, or nothing in it belongs to the campaign any more.
            NotFoundError: the image is gone.
        """
        spec = self.workspace.preparation(self.manifest)
        image = self.image_path(label.image_id)
        prepared = self.workspace.cache.prepared(
            image, spec, modality=self.workspace.settings.modality, lazy=True
        )
        path = self.workspace.archive.path(label.path)
        labels = self.workspace.cache.prepared_labels(path, prepared.record, lazy=True)
        values = {name: value for value, name in LabelArchive.names_of(path).items()}
        rows = self.bindings.rows_in(prepared.record.modality)
        annotated: dict[int, int | None] = {}
        for name, state in label.annotated.items():
            if name not in rows:
                continue  # labelled under settings that named more structures
            annotated[rows[name]] = values[name] if state is Annotated.PRESENT else None
        if not annotated:
            msg = f"None of the annotated structures {sorted(label.annotated)} belongs to the campaign's settings now."
            raise BadLabelError(msg)
        source = used_case(self.workspace, label, image)
        modality = prepared.record.modality
        covered = {row for row, task in enumerate(self.bindings.space.tasks) if task.covers(modality)}
        return TrainingCase(
            label.image_id, prepared.array, labels, annotated, modality, dataset, source,
            frozenset(covered.union(rows.values())),
        )  # fmt: skip

    def read_all(
        self,
        labels: Sequence[LabelRecord],
        *,
        earlier: Collection[int] = (),
        should_stop: Callable[[], bool] = lambda: False,
    ) -> tuple[list[TrainingCase], list[LeftOut]]:
        """The cases that can be used, and the labels that cannot with the reason.

        Args:
            labels: to read.
            earlier: ids of labels that the serving version or one before it was taught by.
            should_stop: asked between cases.

        Raises:
            CancelledError: ``should_stop`` said so.
        """
        cases, skipped = [], []
        for label in labels:
            if should_stop():
                msg = "Training was stopped on request while the labels were prepared."
                raise CancelledError(msg)
            try:
                cases.append(self.read(label, EARLIER if label.id in earlier else NEW))
            except (BadImageError, BadLabelError, NotFoundError) as error:
                skipped.append(LeftOut(label.image_id, str(error)))
                logger.warning("Training leaves out %s: %s", label.image_id, error)
        return cases, skipped


def used_case(workspace: Workspace, label: LabelRecord, image: Path) -> UsedCase:
    """What a manifest says of a label and its image."""
    return UsedCase(label.image_id, workspace.cache.content_sha256(image), label.sha256, label.id)


@dataclass(frozen=True)
class Sorted:
    """The labels that count (`hermes.campaign.reviews.chosen`): for training, and of held-out images."""

    training: tuple[LabelRecord, ...]
    holdout: tuple[LabelRecord, ...]


def sort_labels(workspace: Workspace) -> Sorted:
    """The campaign's labels by what they are for; one of an image that is not assigned yet is in neither."""
    labels = workspace.campaign.training_labels()
    training, holdout = workspace.campaign.training_ids(), workspace.campaign.holdout_ids()
    return Sorted(
        tuple(label for label in labels if label.image_id in training),
        tuple(label for label in labels if label.image_id in holdout),
    )


def without_held_out(
    cases: Sequence[TrainingCase],
    holdout: Sequence[LabelRecord],
    workspace: Workspace,
    image_path: Callable[[CaseId], Path],
) -> tuple[list[TrainingCase], list[LeftOut]]:
    """The cases whose image is no copy of a labelled held-out one under another name, and the others with the reason."""
    held: dict[str, CaseId] = {}
    for label in holdout:
        try:
            held[workspace.cache.content_sha256(image_path(label.image_id))] = label.image_id
        except (BadImageError, NotFoundError):
            continue  # the hold-out says so itself when it is measured
    kept, copies = [], []
    for case in cases:
        original = held.get(case.source.image_sha256 or "") if case.source is not None else None
        if original is None:
            kept.append(case)
        else:
            reason = f"The image is a copy of {original}, which is held out and must never be trained on."
            copies.append(LeftOut(case.case_id, reason))
            logger.warning("Training leaves out %s: %s", case.case_id, reason)
    return kept, copies


def require_cases(cases: Sequence[TrainingCase], skipped: Sequence[LeftOut]) -> None:
    """Nothing, if there is a case.

    Raises:
        NothingToTrainError: there is none.
    """
    if not cases:
        reasons = "; ".join(f"{s.case_id}: {s.reason}" for s in skipped[:5])
        msg = f"Expected at least one usable label, all {len(skipped)} were left out: {reasons}"
        raise NothingToTrainError(msg)


def require_new_structures(workspace: Workspace) -> None:
    """Nothing, if a structure is labelled that the serving model has not learned.

    Raises:
        NothingToTrainError: there is none, so that training new rows only would train nothing.
    """
    annotated = {name for label in sort_labels(workspace).training for name in label.annotated}
    if annotated <= set(workspace.bindings().trained):
        raise NothingToTrainError(NOTHING_NEW)


def require_labels(workspace: Workspace) -> None:
    """Nothing, if there is a label to train on.

    Raises:
        NothingToTrainError: there is none.
    """
    found = sort_labels(workspace)
    if found.training:
        return
    if found.holdout:
        msg = (
            f"Expected at least one label to train on; all {len(found.holdout)} are of held-out images, which measure "
            "the model and never train it. Label more images, or begin a campaign with holdout_share=0."
        )
    else:
        msg = "Expected at least one submitted label to train on, there is none. Submit a label first."
    raise NothingToTrainError(msg)
