"""One campaign on disk: what the server and the training process both open.

::

    .hermes/
      campaign.sqlite      images, label versions, runs, versions, scores, leases, events
      labels/<image>/      every submitted label version
      models/              versions and the pointer to the serving one
      cache/               prepared images
      training.json        how far the running (or last) training is
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes.cache import VolumeCache
from hermes.campaign.campaign import Campaign
from hermes.checkpoint import Manifest, read_manifest
from hermes.config import Settings, campaign_directory
from hermes.errors import BadRequestError
from hermes.labels.space import LabelSpace, bind_structures
from hermes.publish import Serving, VersionStore, write_atomically
from hermes.submission import LabelArchive
from hermes.transforms.preparation import PreparationSpec

MOST_STRUCTURES = 255  # label maps for viewers are 8 bit


@dataclass(frozen=True)
class Bindings:
    """What the campaign labels, in the rows of one model version.

    Attributes:
        space: label space of the version with the campaign's new tasks appended.
        rows: structure as the campaign writes it -> row of its task.
        trained: structures that the version has learned; it does not answer for the others.
    """

    space: LabelSpace
    rows: Mapping[str, int]
    trained: tuple[str, ...]

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures of the campaign; the place from 1 is the value in label maps."""
        return tuple(self.rows)


class Workspace:
    """Everything that belongs to one campaign."""

    def __init__(self, settings: Settings, studies: str, *, starter: Path) -> None:
        """Open (or begin) the campaign on ``studies``.

        Args:
            settings: of the campaign.
            studies: folder of images or URL of a DICOMweb server.
            starter: model directory to begin with where the settings name none.

        Raises:
            CheckpointError: the serving model cannot be read.
            BadRequestError: the settings name structures that cannot be bound.
        """
        self.settings = settings
        self.directory = campaign_directory(settings, studies)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.versions = VersionStore(self.directory / "models", base=settings.model or starter)
        self.campaign = Campaign(self.directory / "campaign.sqlite")
        self.cache = VolumeCache(self.directory / "cache")
        self.archive = LabelArchive(self.directory / "labels")
        self.progress = ProgressFile(self.directory / "training.json")
        self._lock = threading.Lock()
        self._bound: tuple[str, Bindings] | None = None
        self.bindings()

    def bindings(self) -> Bindings:
        """The campaign's structures in the rows of the version that answers now."""
        serving = self.versions.serving()
        with self._lock:
            if self._bound is None or self._bound[0] != serving.name:
                self._bound = (serving.name, self.bind(read_manifest(serving.directory)))
            return self._bound[1]

    def bind(self, manifest: Manifest) -> Bindings:
        """The campaign's structures in the rows of a version.

        Raises:
            BadRequestError: more structures than a label map can hold, or two names for one task.
        """
        names = self.settings.structures or manifest.label_space.structures()
        space, bound = bind_structures(manifest.label_space, names, self.settings.modality)
        if len(bound) > MOST_STRUCTURES:
            msg = f"Expected at most {MOST_STRUCTURES} structures in a campaign, got {len(bound)}. Name fewer in `structures`."
            raise BadRequestError(msg)
        rows = dict(bound)
        learned = manifest.learned_rows
        return Bindings(space, rows, tuple(name for name, row in rows.items() if row in learned))

    def preparation(self, manifest: Manifest) -> PreparationSpec:
        """How images are prepared for a version: as it was trained, unless the settings give a spacing."""
        spacing = self.settings.spacing_mm
        if spacing is None:
            return manifest.preparation
        return PreparationSpec.from_json({**manifest.preparation.to_json(), "spacing_mm": spacing})

    def serving(self) -> tuple[Serving, Manifest]:
        """The version that answers now, with its manifest."""
        serving = self.versions.serving()
        return serving, read_manifest(serving.directory)


class ProgressFile:
    """How far a training is, as a small JSON file that other processes read while it runs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, **state: Any) -> None:
        """Replace the state."""
        write_atomically(self.path, json.dumps(state))

    def read(self) -> dict[str, Any]:
        """The state; empty when no training has ever begun."""
        try:
            state: dict[str, Any] = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return state
