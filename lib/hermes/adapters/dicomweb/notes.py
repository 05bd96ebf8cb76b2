"""What is kept beside the images of a PACS and is not submitted: predictions by tag, and notes of clients."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes.publish import write_atomically
from hermes.records import LabelMap
from hermes.transforms.writing import write_label_map

_LATEST = "latest.json"


@dataclass(frozen=True)
class Kept:
    """A prediction: its file and what was noted of it."""

    path: Path
    info: dict[str, Any]


class Predictions:
    """``<directory>/<tag>/<image>/<model version>.nii.gz``: of every version its last, and which came last."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def put(self, image_id: str, tag: str, label: LabelMap, version: str, info: Mapping[str, Any]) -> Path:
        """Keeps a prediction; it is the one that `get` gives from now on."""
        folder = self._directory / tag / image_id
        path = write_label_map(label, folder / f"{version}.nii.gz")
        write_atomically(folder / _LATEST, json.dumps({"file": path.name, "info": dict(info)}))
        return path

    def get(self, image_id: str, tag: str) -> Kept | None:
        """The last prediction of this tag."""
        folder = self._directory / tag / image_id
        try:
            stored = json.loads((folder / _LATEST).read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            return None
        path = folder / stored["file"]
        return Kept(path, dict(stored["info"])) if path.is_file() else None

    def note(self, image_id: str, tag: str, info: Mapping[str, Any]) -> None:
        """Adds to what is noted of the last prediction."""
        kept = self.get(image_id, tag)
        if kept is not None:
            text = json.dumps({"file": kept.path.name, "info": {**kept.info, **info}})
            write_atomically(kept.path.with_name(_LATEST), text)

    def remove(self, image_id: str, tag: str) -> bool:
        """Removes all predictions of an image and tag; whether there were any."""
        folder = self._directory / tag / image_id
        there = folder.is_dir()
        shutil.rmtree(folder, ignore_errors=True)
        return there

    def tags_of(self, image_id: str) -> list[str]:
        """Tags of the predictions of an image."""
        return [tag for tag in _names(self._directory) if (self._directory / tag / image_id).is_dir()]

    def tags(self) -> dict[str, list[str]]:
        """Image -> tags of its predictions."""
        found: dict[str, list[str]] = {}
        for tag in _names(self._directory):
            for image_id in _names(self._directory / tag):
                found.setdefault(image_id, []).append(tag)
        return found


class Notes:
    """One JSON object per name."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def get(self, name: str) -> dict[str, Any]:
        """What was noted; empty where nothing was."""
        try:
            stored: dict[str, Any] = json.loads(
                (self._directory / f"{name}.json").read_text(encoding="utf-8")
            )
        except FileNotFoundError:
            return {}
        return stored

    def put(self, name: str, value: Mapping[str, Any]) -> None:
        """Replaces what is noted."""
        write_atomically(self._directory / f"{name}.json", json.dumps(dict(value)))


def _names(folder: Path) -> list[str]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except FileNotFoundError:
        return []
