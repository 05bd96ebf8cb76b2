"""The one network in memory that all infer tasks share, and that follows the pointer to the serving version."""

from __future__ import annotations

import logging
import threading

from hermes.device import choose_device
from hermes.inference.predictor import Predictor
from hermes.workspace import Workspace

logger = logging.getLogger(__name__)


class ResidentModel:
    """Gives the predictor of the version that answers now; a newly published one is loaded on first use.

    What is loaded answers on, whatever happens to its files.
    """

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._device = choose_device(workspace.settings.device)
        self._lock = threading.Lock()
        self._loaded: tuple[str, Predictor] | None = None

    def predictor(self) -> Predictor:
        """The predictor of the serving version.

        A caller that holds the predictor of an older version finishes with it; the next call gets the new one.

        Raises:
            CheckpointError: the serving version cannot be read.
        """
        with self._lock:
            serving = self._workspace.versions.serving()
            if self._loaded is None or self._loaded[0] != serving.name:
                serving, net, manifest = self._workspace.load_serving(self._device)
                logger.info("Serving version %s on %s", serving.name, self._device)
                predictor = self._workspace.predictor(
                    net, manifest, device=self._device, version=serving.name
                )
                self._loaded = (serving.name, predictor)
            return self._loaded[1]
