"""Scores of the images that wait to be labelled."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hermes.campaign.records import WHOLE_IMAGE, Score
from hermes.errors import BadImageError, CancelledError
from hermes.queueing import UNCERTAINTY_METHOD
from hermes.resident import ResidentModel
from hermes.strategies.base import lot
from hermes.types import CaseId
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)


class PoolScorer:
    """Scores images with the serving version, one inference each, at most so many per version."""

    def __init__(self, workspace: Workspace, resident: ResidentModel) -> None:
        self._workspace, self._resident = workspace, resident

    def missing(self, images: Mapping[CaseId, Path]) -> list[CaseId]:
        """Images of the pool that the serving version should still score, in a seeded order."""
        settings = self._workspace.settings
        if not self._workspace.bindings().trained:
            return []
        version = self._workspace.versions.serving().name
        scored = self._workspace.campaign.get_scores(UNCERTAINTY_METHOD, version)
        broken = {i.id for i in self._workspace.campaign.images() if i.quarantined_reason}
        waiting = [i for i in images if i not in scored and i not in broken]
        room = max(0, settings.score_images_per_round - len(scored))
        return sorted(waiting, key=lambda image_id: lot(settings.seed, image_id))[:room]

    def score(
        self, images: Mapping[CaseId, Path], *, should_stop: Callable[[], bool] = lambda: False
    ) -> Iterator[CaseId]:
        """Score what is missing, yielding each id when its score is stored; an unreadable image is quarantined."""
        for image_id in self.missing(images):
            if should_stop():
                return
            try:
                version, scores = self._scores(image_id, images[image_id], should_stop)
            except CancelledError:
                return
            except BadImageError as error:
                logger.warning("Image %s is left out of the campaign: %s", image_id, error)
                self._workspace.campaign.quarantine(image_id, str(error))
                continue
            self._workspace.campaign.put_scores(UNCERTAINTY_METHOD, version, scores)
            yield image_id

    def _scores(
        self, image_id: CaseId, path: Path, should_stop: Callable[[], bool]
    ) -> tuple[str, list[Score]]:
        bindings = self._workspace.bindings()
        rows = {name: bindings.rows[name] for name in bindings.trained}
        prediction = self._resident.predictor().predict(
            path, rows, modality=self._workspace.settings.modality, should_stop=should_stop
        )
        scores = [Score(image_id, WHOLE_IMAGE, prediction.uncertainty)]
        scores += [Score(image_id, r.structure, r.uncertainty) for r in prediction.structures]
        return prediction.model_version, scores
