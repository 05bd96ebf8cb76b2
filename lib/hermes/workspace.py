"""One campaign on disk: what the server and the training process both open.

::

    .hermes/
      campaign.sqlite      images, label versions, runs, versions, scores, leases, events
      labels/<image>/      every submitted label version
      models/              versions and the pointer to the serving one
      cache/               prepared images
      served.json          the studies and settings of the server, for commands beside it
      training.json        how far the running (or last) training is
      training.stop        is there while the running training is asked to stop
      training.state       state of an interrupted training
      logs/                TensorBoard and MLflow
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from hermes.cache import VolumeCache
from hermes.campaign.campaign import Campaign
from hermes.campaign.holdout import HoldoutRule
from hermes.campaign.openness import Wish
from hermes.campaign.records import VersionState
from hermes.checkpoint import Manifest, check_checkpoint, load_checkpoint, read_manifest
from hermes.config import SETTINGS, Quota, Settings, campaign_directory
from hermes.device import choose_precision
from hermes.errors import BadRequestError, CheckpointError, ConflictError
from hermes.inference.predictor import Predictor
from hermes.labels.catalogue import canonical_key
from hermes.labels.names import split_protocol
from hermes.labels.space import EVERYTHING, LabelSpace, bind_structures
from hermes.model import UniversalNetwork
from hermes.publish import Serving, VersionStore, write_atomically
from hermes.records import NewStructure
from hermes.submission import LabelArchive, match_structure
from hermes.transforms.preparation import PreparationSpec
from hermes.types import Modality

MOST_STRUCTURES = 255  # label maps for viewers are 8 bit
SERVED_FILE = "served.json"
DAMAGED = "damaged"


@dataclass(frozen=True)
class Bindings:
    """What the campaign labels, in the rows of one model version.

    Attributes:
        space: label space of the version with the campaign's new tasks appended.
        rows: structure as the campaign writes it -> row of its task.
        trained: structures that the version has learned; it does not answer for the others.
        elsewhere: modality -> structure -> row of the learned task that draws it there, where that is another one:
            a liver in T1 is CHAOS's, in CT that of another dataset. A name with a protocol has that one everywhere.
    """

    space: LabelSpace
    rows: Mapping[str, int]
    trained: tuple[str, ...]
    elsewhere: Mapping[Modality, Mapping[str, int]] = field(default_factory=dict)

    @property
    def structures(self) -> tuple[str, ...]:
        """The structures of the campaign; the place from 1 is the value in label maps."""
        return tuple(self.rows)

    def rows_in(self, modality: Modality | None) -> dict[str, int]:
        """Structure -> row in images of a modality; None: it is not known."""
        return {**self.rows, **({} if modality is None else self.elsewhere.get(modality, {}))}

    def all_rows(self) -> dict[int, str]:
        """Every row that stands for a structure in some modality -> the structure."""
        return {row: name for rows in (*self.elsewhere.values(), self.rows) for name, row in rows.items()}


@dataclass(frozen=True)
class VersionInfo:
    """A version as `Workspace.list_versions` tells of it.

    Attributes:
        name: of its directory.
        parent: that it was trained from.
        state: ``base`` for the model that the campaign began with, else of `VersionState`; ``unrecorded`` for a
            directory that the database does not know, ``damaged`` for one whose manifest cannot be read.
        serving: whether it answers now.
        created: ISO 8601 time in UTC, as its manifest has it.
        cases: how many it was trained on.
        metrics: what was measured; ``report`` is that of its round.
    """

    name: str
    parent: str | None
    state: str
    serving: bool
    created: str
    cases: int
    metrics: Mapping[str, Any]


@dataclass(frozen=True)
class Served:
    """How a campaign was served last.

    Attributes:
        studies: folder or URL of its images; "" where that is not known.
        conf: the settings as `hermes.config.from_conf` reads them.
    """

    studies: str
    conf: Mapping[str, str]


def served_with(directory: Path) -> Served | None:
    """What the campaign in ``directory`` was served with last, by its server's note, else by its newest version.

    None where it has neither: it was last served by a version of Hermes that kept no note, and never trained.
    """
    try:
        noted = json.loads((directory / SERVED_FILE).read_text(encoding="utf-8"))
        studies, settings = str(noted["studies"]), dict(noted["settings"])
    except (OSError, ValueError, KeyError, TypeError):
        newest = _newest_manifest(directory / "models")
        if newest is None:
            return None
        studies, settings = "", dict(newest.settings)
    known = {setting.name for setting in SETTINGS}
    conf = {name: str(value) for name, value in settings.items() if name in known}
    return Served(studies, conf) if "structures" in conf else None


def _newest_manifest(models: Path) -> Manifest | None:
    for found in sorted(models.glob("v[0-9]*/manifest.json"), reverse=True):
        with suppress(CheckpointError):
            return read_manifest(found.parent)
    return None


class Workspace:
    """Everything that belongs to one campaign."""

    def __init__(self, settings: Settings, studies: str, *, starter: Path, check: bool = True) -> None:
        """Open (or begin) the campaign on ``studies``.

        Args:
            settings: of the campaign.
            studies: folder of images or URL of a DICOMweb server.
            starter: model directory to begin with where the settings name none.
            check: whether the model and the structures have to fit; without, a campaign whose model is damaged can be repaired.

        Raises:
            CheckpointError: the serving model cannot be read.
            BadRequestError: the settings name structures that cannot be bound.
        """
        self.settings, self.studies = settings, studies
        self.directory = campaign_directory(settings, studies)
        self.directory.mkdir(parents=True, exist_ok=True)
        self.versions = VersionStore(self.directory / "models", base=settings.model or starter)
        rule = HoldoutRule(settings.holdout_share, settings.seed)
        self.campaign = Campaign(self.directory / "campaign.sqlite", holdout=rule)
        self.cache = VolumeCache(self.directory / "cache")
        self.archive = LabelArchive(self.directory / "labels")
        self.progress = ProgressFile(self.directory / "training.json")
        self.stop = StopRequest(self.directory / "training.stop")
        self.training_state = self.directory / "training.state"
        self._lock = threading.Lock()
        self._bound: tuple[tuple[str, tuple[NewStructure, ...]], Bindings] | None = None
        if check:
            self.bindings()

    def note_served(self) -> None:
        """Keep what this campaign is served on and with, for commands that open it later: see `served_with`."""
        model = self.settings.model
        settings = self.settings.to_conf() | {"model": str(model.absolute()) if model else ""}
        studies = self.studies if "://" in self.studies else str(Path(self.studies).absolute())
        noted = json.dumps({"studies": studies, "settings": settings}, indent=1)
        write_atomically(self.directory / SERVED_FILE, noted)

    # -------------------------------------------------------------- structures

    def bindings(self) -> Bindings:
        """The campaign's structures in the rows of the version that answers now."""
        confirmed = self.campaign.confirmed.all()
        with self._lock, self._serving() as serving:
            if self._bound is None or self._bound[0] != (serving.name, confirmed):
                self._bound = ((serving.name, confirmed), self.bind(read_manifest(serving.directory)))
            return self._bound[1]

    def bind(self, manifest: Manifest) -> Bindings:
        """The campaign's structures in the rows of a version: those of the settings, then those added since.

        Raises:
            BadRequestError: more structures than a label map can hold, or two names for one task.
        """
        named = self.settings.structures or manifest.label_space.structures()
        known = {canonical_key(split_protocol(name)[0]) for name in named}
        added = [one.name for one in self.campaign.confirmed.all() if canonical_key(one.name) not in known]
        space, bound = bind_structures(manifest.label_space, (*named, *added), self.settings.modality)
        _require_room(len(bound))
        rows = dict(bound)
        learned = manifest.learned_rows
        trained = tuple(name for name, row in rows.items() if row in learned)
        return Bindings(space, rows, trained, _elsewhere(space, rows, learned))

    def rows_of_image(
        self, image: Path, bindings: Bindings, spec: PreparationSpec, modality: Modality | None = None
    ) -> dict[str, int]:
        """Structure -> row of the task that draws it in this image; ``modality``: as its caller says.

        Raises:
            BadImageError: the image cannot be read or used.
        """
        said = modality or self.settings.modality
        return bindings.rows_in(self.cache.prepared(image, spec, modality=said, lazy=True).record.modality)

    def wish(self) -> Wish:
        """What the settings want of every image.

        Raises:
            UnknownStructureError: they require a structure that the campaign does not label.
        """
        asked = self.settings.required_structures
        if not asked:  # asked for at every offer: the quick way out
            return Wish((), self.settings.labels_per_image)
        labelled = self.bindings().structures
        if asked == (EVERYTHING,):
            return Wish(labelled, self.settings.labels_per_image)
        names = tuple(match_structure(name, labelled) for name in asked)
        return Wish(names, self.settings.labels_per_image)

    def quotas(self) -> tuple[Quota, ...]:
        """In how many images each structure is to be drawn, by the names of the campaign.

        Raises:
            UnknownStructureError: a quota of a structure that the campaign does not label.
        """
        labelled = self.bindings().structures
        return tuple(Quota(match_structure(q.structure, labelled), q.images) for q in self.settings.quotas)

    def add_structures(self, new: Sequence[NewStructure]) -> None:
        """Let the campaign label further structures from now on.

        Raises:
            UnknownStructureError: ``like`` names a structure that neither the model nor the campaign knows.
            BadRequestError: more structures than a label map can hold.
        """
        bindings = self.bindings()
        for one in new:
            if one.like is not None:
                bindings.space.resolve(one.like)
        _require_room(len(bindings.rows) + len(new))
        self.campaign.confirmed.add(new)
        for one in new:
            begins = {"like": one.like} if one.like or one.random else {}
            self.campaign.log_event("StructureAdded", {"structure": one.name, **begins})

    # ---------------------------------------------------------------- versions

    def preparation(self, manifest: Manifest) -> PreparationSpec:
        """How images are prepared for a version: as it was trained, unless the settings give a spacing."""
        spacing = self.settings.spacing_mm
        if spacing is None:
            return manifest.preparation
        return PreparationSpec.from_json({**manifest.preparation.to_json(), "spacing_mm": spacing})

    def predictor(
        self, net: torch.nn.Module, manifest: Manifest, *, device: torch.device, version: str
    ) -> Predictor:
        """A predictor for a network of this campaign, on ``device``, as the settings want it."""
        settings = self.settings
        return Predictor(
            net,
            manifest,
            device=device,
            cache=self.cache,
            preparation=self.preparation(manifest),
            version=version,
            overlap=settings.window_overlap,
            memory_bytes=int(settings.inference_memory_gib * 2**30),
            precision=choose_precision(settings.precision, device),
        )

    def serving(self) -> tuple[Serving, Manifest]:
        """The version that answers now, with its manifest."""
        with self._serving() as serving:
            return serving, read_manifest(serving.directory)

    def load_serving(self, device: str | torch.device = "cpu") -> tuple[Serving, UniversalNetwork, Manifest]:
        """The version that answers now, its network and its manifest.

        Raises:
            CheckpointError: it is damaged.
        """
        with self._serving() as serving:
            return serving, *load_checkpoint(serving.directory, device)

    @contextmanager
    def _serving(self) -> Iterator[Serving]:
        """The version that answers now; where it turns out to be damaged, the way out is said."""
        serving = self.versions.serving()
        try:
            yield serving
        except CheckpointError as error:
            if serving.directory == self.versions.base:
                raise
            msg = (
                f"The version that answers, {serving.name}, cannot be used. {error} To let the version before it answer: "
                "hermes rollback STUDIES"
            )
            raise CheckpointError(msg) from error

    def list_versions(self) -> list[VersionInfo]:
        """The base and all versions, oldest first."""
        states = {record.name: record.state.value for record in self.campaign.versions()}
        serving, base = self.versions.serving().name, self.versions.base
        places = {name: self.versions.path(name) for name in self.versions.names()}
        found = []
        for name, place in {base.name: base, **places}.items():
            try:
                manifest = read_manifest(place)
            except CheckpointError:
                found.append(VersionInfo(name, None, DAMAGED, name == serving, "", 0, {}))
                continue
            state = states.get(name, "unrecorded") if name in places else "base"
            parent = manifest.parent if name in places else None
            found.append(
                VersionInfo(
                    name,
                    parent,
                    state,
                    name == serving,
                    manifest.created,
                    len({case.case_id for case in manifest.trained_on}),
                    manifest.metrics,
                )
            )
        return found

    def publish(self, name: str, *, force: bool = False, kind: str = "ModelPublished") -> str:
        """Let a version (or the base) answer from now on; the one that answered before.

        Args:
            name: of the version.
            force: publish it though the gate refused it.
            kind: of the event that is noted.

        Raises:
            NotFoundError: there is no such version.
            ConflictError: the gate refused it, and ``force`` is not given; or it is damaged.
        """
        before = self.versions.serving().name
        states = {record.name: record.state for record in self.campaign.versions()}
        if states.get(name) is VersionState.REFUSED and not force:
            msg = f"Version {name!r} was refused because it does worse on the hold-out. To publish it all the same, force it."
            raise ConflictError(msg)
        self._require_intact(name, before)
        self.versions.publish(name)
        if name in states:
            self.campaign.set_version_state(name, VersionState.PUBLISHED)
        self.campaign.log_event(kind, {"version": name, "before": before, "forced": force})
        return before

    def _require_intact(self, name: str, serving: str) -> None:
        try:
            check_checkpoint(self.versions.directory_of(name))
        except CheckpointError as error:
            stays = "" if name == serving else f" {serving} stays the version that answers."
            msg = f"Version {name!r} cannot answer. {error}{stays} Choose another: hermes versions STUDIES lists them."
            raise ConflictError(msg) from error

    def rollback(self, to: str | None = None, *, force: bool = False) -> str:
        """Let an earlier version answer again; its name. The next round trains from it.

        Args:
            to: its name; None: the parent of the version that answers now.
            force: also where it was refused.

        Raises:
            NotFoundError: there is no such version, or not any more.
            ConflictError: the base answers, which has no parent; or the version was refused, or is damaged.
        """
        serving = self.versions.serving()
        if to is None and serving.directory == self.versions.base:
            msg = f"Expected a version with a parent to go back from, {serving.name!r} is the model the campaign began with."
            raise ConflictError(msg)
        target = to or self._parent_of(serving) or self.versions.base.name
        self.publish(target, force=force, kind="RolledBack")
        return target

    def _parent_of(self, version: Serving) -> str | None:
        """The version that one was trained from; where its manifest is damaged, the database says it."""
        try:
            return read_manifest(version.directory).parent
        except CheckpointError:
            return next(
                (known.parent for known in self.campaign.versions() if known.name == version.name), None
            )


def _elsewhere(
    space: LabelSpace, rows: Mapping[str, int], learned: frozenset[int]
) -> dict[Modality, dict[str, int]]:
    """Modality -> structure -> row, where the default of a learned structure is not the row that it is bound to."""
    known = LabelSpace(tuple(task for row, task in enumerate(space.tasks) if row in learned))
    taken = set(rows.values())
    found: dict[Modality, dict[str, int]] = {}
    for name in rows:
        if split_protocol(name)[1] is not None or not known.knows(name):
            continue
        for modality in Modality:
            task = known.resolve(name, modality)
            row = space.row(task)
            if task.covers(modality) and row not in taken:
                found.setdefault(modality, {})[name] = row
    return found


def _require_room(structures: int) -> None:
    if structures > MOST_STRUCTURES:
        msg = f"Expected at most {MOST_STRUCTURES} structures in a campaign, got {structures}. Name fewer in `structures`."
        raise BadRequestError(msg)


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


class StopRequest:
    """A file by which one process asks another to stop training, keeping what it has."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def make(self) -> None:
        """Ask."""
        self.path.touch()

    def made(self) -> bool:
        """Whether somebody asks."""
        return self.path.exists()

    def clear(self) -> None:
        """Take it back, or note that it was heard."""
        self.path.unlink(missing_ok=True)
