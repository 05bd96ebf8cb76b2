"""The MONAI Label app. MONAI Label loads this file and takes the one class in it."""

from __future__ import annotations

from typing import Any

from fastapi import HTTPException
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.datastore import Datastore

import hermes
from hermes.adapters.build import build
from hermes.adapters.errors import answers_errors
from hermes.adapters.infer import run_infer
from hermes.adapters.sessions import HermesSessions
from hermes.errors import BadRequestError, NotFoundError


class HermesApp(MONAILabelApp):  # type: ignore[misc]
    """Wires the parts of Hermes into MONAI Label; everything they do is in ``hermes.adapters``."""

    def __init__(self, app_dir: str, studies: str, conf: dict[str, str]) -> None:
        self.parts = build(app_dir, studies, conf)
        description = "One universal 3D segmentation model for labelling campaigns"
        super().__init__(app_dir, studies, conf, "Hermes", description, hermes.__version__, self.parts.labels)
        self._auto_update_scoring = False  # the supervisor scores; the stock way starts a process per request

    def init_datastore(self) -> Datastore:
        """The images and labels of the campaign."""
        if self.studies.startswith(("http://", "https://")):
            return self.parts.dicomweb(self.studies)
        return self.parts.datastore(self.studies)

    def init_infers(self) -> dict[str, Any]:
        """Infer tasks by name."""
        return self.parts.infers()

    def init_trainers(self) -> dict[str, Any]:
        """Trainers by name."""
        return self.parts.trainers()

    def init_strategies(self) -> dict[str, Any]:
        """Strategies by name."""
        return self.parts.strategies()

    def init_scoring_methods(self) -> dict[str, Any]:
        """Scoring methods by name."""
        return self.parts.scoring_methods()

    def on_init_complete(self) -> None:
        """The server process is up: training and scoring may start by themselves."""
        super().on_init_complete()
        self.parts.serve(self._datastore, self._scoring_methods)

    @answers_errors
    def infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Segment an image of the campaign, an upload or a session."""
        if request.get("model") not in list(self._infers):
            msg = f"Expected one of the models {list(self._infers)}, got {request.get('model')!r}."
            raise NotFoundError(msg)
        sessions = self._sessions.store_path if self._sessions else None
        with self.parts.leaving_out_unreadable(request.get("image")):
            return run_infer(self._infers[request["model"]], request, datastore or self._datastore, sessions)

    @answers_errors
    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The image to label next; 200 with a reason and no id when there is none."""
        name = request.get("strategy")
        strategy = self._strategies.get(name) if isinstance(name, str) else None
        if strategy is None:
            msg = f"Expected one of the strategies {list(self._strategies)}, got {request.get('strategy')!r}."
            raise NotFoundError(msg)
        sample: dict[str, Any] = strategy(request, self._datastore)
        if sample["id"] is None:
            # Viewers take an answer without id for "nothing left"; an error status would be shown as a crash.
            raise HTTPException(status_code=200, detail=sample["reason"])
        # 3D Slicer opens the file of this name on its own disk, which may be another image; without one it downloads.
        return {**sample, "path": ""}

    @answers_errors
    def scoring(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Run one scoring method."""
        if request.get("method") not in list(self._scoring_methods):
            msg = f"Expected one of the scoring methods {list(self._scoring_methods)}, got {request.get('method')!r}."
            raise NotFoundError(msg)
        return super().scoring(request, datastore)

    @answers_errors
    def batch_infer(self, request: dict[str, Any], datastore: Datastore | None = None) -> Any:
        """Run one model over many images; without a GPU the stock call would divide by their number."""
        return super().batch_infer({**request, "multi_gpu": False}, datastore)

    def _load_sessions(self, load: bool = False) -> HermesSessions | None:
        """Sessions that unpack archives safely."""
        return (
            HermesSessions(settings.MONAI_LABEL_SESSION_PATH, settings.MONAI_LABEL_SESSION_EXPIRY)
            if load
            else None
        )

    def on_save_label(self, image_id: str, label_id: str) -> None:
        """A submitted label is stored: a round may be full."""
        self.parts.label_saved()

    @answers_errors
    def model_file(self, model: str, validate: bool = True) -> str | None:
        """A copy of the serving weights to download; uploading over them is refused."""
        if not validate:
            msg = "Expected models to be published by training or by `hermes import`; a version is never overwritten."
            raise BadRequestError(msg)
        return self.parts.exported_weights() if model in self._infers else None
