"""What the campaign's panel in the viewer shows: structures with their numbers and colours, and how far all is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Depends
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from monailabel.interfaces.utils.app import app_instance

from hermes.adapters.annotators import known_annotator
from hermes.adapters.errors import answers_errors
from hermes.labels.catalogue import describe
from hermes.labels.names import split_protocol

router = APIRouter(prefix="/hermes", tags=["Hermes"])
_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))


@router.get(
    "/viewer", summary="Structures with label values and colours, models, and the state of the campaign"
)
def viewer(user: User = _USER) -> dict[str, Any]:
    """What the panel in OHIF shows."""
    return answers_errors(_viewer)(user.username if settings.MONAI_LABEL_AUTH_ENABLE else known_annotator())


def _viewer(login: str | None) -> dict[str, Any]:
    instance = app_instance()
    info = instance.info()
    models = {name: about for name, about in info["models"].items() if about["type"] == "segmentation"}
    stats: dict[str, Any] = next(iter(info["train_stats"].values()), {})
    return {
        "login": login,
        "structures": palette(next(iter(models.values()))["labels"] if models else info["labels"]),
        "models": list(models),
        "strategies": list(info["strategies"]),
        "images": {key: info["datastore"].get(key, 0) for key in ("total", "completed")},
        "training": {key: stats.get(key) for key in ("phase", "step", "steps", "reason", "new_labels")},
        "serving_version": stats.get("serving_version"),
    }


def palette(labels: dict[str, int] | Sequence[str]) -> list[dict[str, Any]]:
    """Name, label value and colour (sRGB, 0 to 255) of each structure, by value."""
    values = labels if isinstance(labels, dict) else {name: n for n, name in enumerate(labels, start=1)}
    return [
        {"name": name, "value": value, "colour": list(describe(split_protocol(name)[0]).colour)}
        for name, value in sorted(values.items(), key=lambda item: item[1])
    ]
