"""Labelled cases prepared into the cache before a round needs them, so that it starts at once."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from hermes.errors import BadImageError, BadLabelError, NotFoundError
from hermes.rounds.cases import CaseReader, sort_labels
from hermes.transforms.preparation import PreparationSpec
from hermes.types import CaseId
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)


class Ahead:
    """Prepares each label of a campaign once per way of preparing; held-out ones too, since they are measured."""

    def __init__(self, workspace: Workspace, image_path: Callable[[CaseId], Path]) -> None:
        self._workspace, self._image_path = workspace, image_path
        self._done: set[int] = set()
        self._spec: PreparationSpec | None = None

    def prepare(self, *, should_stop: Callable[[], bool] = lambda: False) -> int:
        """Prepare what has not been; how many labels that were. One that cannot be is left to the round to report."""
        found = sort_labels(self._workspace)
        waiting = [label for label in (*found.training, *found.holdout) if label.id not in self._done]
        if not waiting and self._spec is not None:
            return 0
        serving, manifest = self._workspace.serving()
        spec = self._workspace.preparation(manifest)
        if spec != self._spec:
            self._spec, self._done = spec, set()
            waiting = [*found.training, *found.holdout]
        reader = CaseReader(self._workspace, manifest, self._workspace.bindings(), self._image_path)
        prepared = 0
        for label in waiting:
            if should_stop():
                break
            self._done.add(label.id)
            try:
                reader.read(label)
                prepared += 1
            except (BadImageError, BadLabelError, NotFoundError) as error:
                logger.info("%s cannot be prepared for training: %s", label.image_id, error)
        if prepared:
            logger.info("Prepared %d labelled cases for %s", prepared, serving.name)
        return prepared
