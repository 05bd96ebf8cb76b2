"""The infer task that viewers call."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from hermes.adapters.errors import answers_errors
from hermes.adapters.images import resolve_image
from hermes.adapters.requests import InferRequest
from hermes.errors import NotFoundError
from hermes.records import LabelMap, Prediction
from hermes.resident import ResidentModel
from hermes.submission import campaign_values, match_structure
from hermes.transforms.reading import read_volume
from hermes.transforms.writing import write_label_map
from hermes.types import Modality
from hermes.workspace import Bindings, Workspace


class HermesInferTask(InferTask):  # type: ignore[misc]
    """Segments the campaign's structures with the resident network."""

    def __init__(self, workspace: Workspace, resident: ResidentModel) -> None:
        self._workspace, self._resident = workspace, resident
        structures = workspace.bindings().structures
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=campaign_values(structures),
            dimension=3,
            description="Universal 3D segmentation with context priors: any subset of the campaign's structures",
            config={"structures": "all", "modality": ["auto", *(m.value for m in Modality)]},
        )

    def is_valid(self) -> bool:
        """Always: there is a model from the first start."""
        return True

    @answers_errors
    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Segment ``request["image"]`` (a path); the label map's file and what is known about it."""
        asked = InferRequest.parse(request)
        bindings = self._workspace.bindings()
        wanted = self._wanted(asked, bindings)
        ready = [name for name in wanted if name in bindings.trained]
        waiting = [name for name in wanted if name not in bindings.trained]
        if asked.structures is not None and not ready:
            msg = f"The serving model has not learned {waiting} yet. Label them in a few images; training then starts by itself."
            raise NotFoundError(msg)
        prediction = self._predict(
            Path(request["image"]), {name: bindings.rows[name] for name in ready}, asked.modality
        )
        values = campaign_values(bindings.structures)
        label_map = _in_campaign_values(prediction, values)
        file = tempfile.NamedTemporaryFile(suffix=asked.extension, delete=False).name  # noqa: SIM115  # the endpoint removes it
        write_label_map(label_map, file)
        return file, _answer(prediction, values, waiting)

    def _predict(self, path: Path, rows: Mapping[str, int], modality: Modality | None) -> Prediction:
        modality = modality or self._workspace.settings.modality
        if rows:
            return self._resident.predictor().predict(path, rows, modality=modality)
        # A campaign of new structures before its first training: the honest answer is an empty label map.
        volume = read_volume(path, modality=modality)
        empty = LabelMap(np.zeros(volume.grid.shape, np.uint8), volume.grid, {})
        version = self._workspace.versions.serving().name
        decided = (volume.modality, volume.modality_source, volume.modality_confidence)
        return Prediction(empty, (), *decided, 0.0, None, version, {}, 0, 0)

    def _wanted(self, asked: InferRequest, bindings: Bindings) -> list[str]:
        if asked.structures is None:
            return list(bindings.structures)
        return [match_structure(name, bindings.structures) for name in asked.structures]


def run_infer(
    task: HermesInferTask, request: Mapping[str, Any], datastore: Datastore, sessions_directory: str | None
) -> dict[str, Any]:
    """Run the task on the image of a request; with ``save_label`` its answer becomes the offered label.

    MONAI Label's own `infer` is not called: for an id that is also the name of a file in the server's
    working directory it would read that file.

    Raises:
        NotFoundError: no image has this id, or no asked structure has been learned.
        BadRequestError: a path to a file that was not uploaded, or another malformed option.
        BadImageError: the image cannot be read.
    """
    image, path = resolve_image(request.get("image"), datastore, sessions_directory)
    file, params = task({**request, "image": str(path)})
    label = file
    if file and image is not None and request.get("save_label"):
        tag = request.get("label_tag") or DefaultLabelTag.ORIGINAL.value
        label = datastore.save_label(image, file, tag, {"model": request.get("model"), "params": params})
    return {"label": label, "tag": DefaultLabelTag.ORIGINAL.value, "file": file, "params": params}


def _in_campaign_values(prediction: Prediction, values: Mapping[str, int]) -> LabelMap:
    """The predicted label map with each structure's value in the campaign."""
    given = prediction.label_map
    table = np.zeros(int(given.array.max(initial=0)) + 1, dtype=np.uint8)
    names = {}
    for result in prediction.structures:
        if result.value < table.size:
            table[result.value] = values[result.structure]
        names[values[result.structure]] = result.structure
    return LabelMap(table[given.array], given.grid, names)


def _answer(prediction: Prediction, values: Mapping[str, int], waiting: list[str]) -> dict[str, Any]:
    """The JSON beside the label map."""
    return {
        "label_names": {r.structure: values[r.structure] for r in prediction.structures},
        "structures": {
            r.structure: {
                "task": r.task,
                "presence_probability": round(r.presence_probability, 4),
                "voxels": r.voxel_count,
                "volume_ml": round(r.volume_ml, 3),
                "uncertainty": round(r.uncertainty, 4),
            }
            for r in prediction.structures
        },
        "not_learned_yet": waiting,
        "modality": prediction.modality.value if prediction.modality else None,
        "modality_source": prediction.modality_source,
        "modality_confidence": round(prediction.modality_confidence, 3),
        "uncertainty": round(prediction.uncertainty, 4),
        "model_version": prediction.model_version,
        "windows": prediction.windows,
        "latencies": {name: round(seconds, 3) for name, seconds in prediction.timings_s.items()},
    }
