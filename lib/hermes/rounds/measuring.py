"""Versions on the labels of held-out images: what the gate compares."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hermes.campaign.records import LabelRecord
from hermes.checkpoint import Manifest, UsedCase
from hermes.errors import BadImageError, BadLabelError, CancelledError, NotFoundError
from hermes.inference.predictor import Predictor
from hermes.rounds.cases import used_case
from hermes.rounds.gate import Scores
from hermes.scoring.agreement import agreement
from hermes.submission import LabelArchive
from hermes.training.preflight import LeftOut
from hermes.transforms.reading import read_label_map
from hermes.types import CaseId, StructureName
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Holdout:
    """The held-out labels of a campaign, and how images are found.

    Attributes:
        workspace: the campaign.
        labels: of held-out images.
        image_path: id of an image -> its file.
        should_stop: asked between images and while the network runs.
        on_progress: called with (labels measured, labels in all).
    """

    workspace: Workspace
    labels: Sequence[LabelRecord]
    image_path: Callable[[CaseId], Path]
    should_stop: Callable[[], bool]
    on_progress: Callable[[int, int], None]

    def measure(
        self, version: str, manifest: Manifest, load: Callable[[], Predictor]
    ) -> tuple[Scores, list[LeftOut]]:
        """Dice of a version on every label that can be used, and those that cannot.

        What was measured before is read from the database.

        Args:
            version: that names the weights, and no others ever.
            manifest: its manifest.
            load: gives its predictor; called only when something has to be measured.

        Raises:
            CancelledError: asked to stop.
        """
        conditions = self._conditions(manifest)
        cached = self.workspace.campaign.holdout_scores
        scores = self._as_annotated(
            cached.get(version, conditions, [label.id for label in self.labels]), manifest
        )
        skipped: list[LeftOut] = []
        predictor = None
        for place, label in enumerate(self.labels):
            self.on_progress(place, len(self.labels))
            if self.should_stop():
                msg = "Training was stopped on request while the candidate was measured."
                raise CancelledError(msg)
            if label.id in scores:
                continue
            predictor = predictor or load()
            try:
                scores[label.id] = self._dice(label, manifest, predictor)
            except (BadImageError, BadLabelError, NotFoundError) as error:
                skipped.append(LeftOut(label.image_id, str(error)))
                logger.warning("The hold-out leaves out %s: %s", label.image_id, error)
            else:
                cached.put(version, conditions, label.id, scores[label.id])
        return scores, skipped

    def measured(self, scores: Scores) -> tuple[UsedCase, ...]:
        """The labels that ``scores`` has a number of, for the manifest."""
        found = []
        for label in self.labels:
            if not scores.get(label.id):
                continue
            try:
                found.append(used_case(self.workspace, label, self.image_path(label.image_id)))
            except (BadImageError, NotFoundError):  # the score was kept, the image has gone
                found.append(UsedCase(label.image_id, None, label.sha256, label.id))
        return tuple(found)

    def _as_annotated(
        self, cached: Mapping[int, Mapping[StructureName, float]], manifest: Manifest
    ) -> dict[int, Mapping[StructureName, float]]:
        """What was measured of the structures that a label counts for now; a review may have changed which."""
        trained = set(self.workspace.bind(manifest).trained)
        found: dict[int, Mapping[StructureName, float]] = {}
        for label in self.labels:
            asked = trained & label.annotated.keys()
            if label.id in cached and asked <= cached[label.id].keys():
                found[label.id] = {n: v for n, v in cached[label.id].items() if n in asked}
        return found

    def _dice(
        self, label: LabelRecord, manifest: Manifest, predictor: Predictor
    ) -> dict[StructureName, float]:
        bindings = self.workspace.bind(manifest)
        asked = [name for name in label.annotated if name in bindings.trained]
        if not asked:
            return {}
        file = self.workspace.archive.path(label.path)
        truth = replace(read_label_map(file), names=LabelArchive.names_of(file))
        # Asked for all that it would answer a viewer for: structures compete for voxels.
        image = self.image_path(label.image_id)
        there = self.workspace.rows_of_image(image, bindings, self.workspace.preparation(manifest))
        found = predictor.predict(
            image,
            {name: there[name] for name in bindings.trained},
            modality=self.workspace.settings.modality,
            should_stop=self.should_stop,
        )
        return agreement(found.label_map, truth, asked)

    def _conditions(self, manifest: Manifest) -> str:
        """What besides label and version decides a score: settings of inference and the structures asked for."""
        settings = self.workspace.settings.to_conf()
        named = {
            key: settings[key] for key in ("spacing_mm", "modality", "window_overlap", "precision", "device")
        }
        bindings = self.workspace.bind(manifest)
        elsewhere = {modality.value: rows for modality, rows in bindings.elsewhere.items()}
        facts = {**named, "asked": bindings.trained, "elsewhere": elsewhere}
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
