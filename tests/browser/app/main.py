"""The real app with one part replaced: its inference draws by intensity, so that every voxel has a known answer."""

from __future__ import annotations

import importlib.util
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.app import MONAILabelApp

from hermes.adapters.infer import HermesInferTask
from hermes.adapters.requests import InferRequest
from hermes.records import LabelMap
from hermes.serve import PROJECT
from hermes.transforms.reading import read_volume
from hermes.transforms.writing import write_label_map

_SPEC = importlib.util.spec_from_file_location("hermes_app_main", PROJECT / "apps" / "hermes" / "main.py")
assert _SPEC is not None
assert _SPEC.loader is not None
_MODULE = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_MODULE)

BANDS_HU = {"liver": (50, 150), "spleen": (150, 250), "left kidney": (250, 350)}


class BandsTask(HermesInferTask):
    """Every voxel whose value lies in a structure's band belongs to it."""

    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        asked = InferRequest.parse(request)
        volume = read_volume(Path(request["image"]))
        drawn = np.zeros(volume.grid.shape, np.uint8)
        values = {name: self.labels[name] for name in asked.structures or tuple(self.labels)}
        for name, value in values.items():
            low, high = BANDS_HU[name]
            drawn[(volume.array >= low) & (volume.array < high)] = value
        file = tempfile.NamedTemporaryFile(suffix=asked.extension, delete=False).name  # noqa: SIM115
        write_label_map(LabelMap(drawn, volume.grid, {v: n for n, v in values.items()}), file)
        version = self._workspace.versions.serving().name
        found = {name: {"voxels": int(np.count_nonzero(drawn == value))} for name, value in values.items()}
        return file, {"label_names": values, "structures": found, "model_version": version}


class BandsApp(_MODULE.HermesApp, MONAILabelApp):  # type: ignore[misc,name-defined]
    """`HermesApp` that infers by bands."""

    def init_infers(self) -> dict[str, Any]:
        return {"hermes": BandsTask(self.parts.workspace, self.parts.resident)}
