"""The infer tasks that viewers call: the whole campaign, and one per body region; all share one network."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monailabel.interfaces.datastore import Datastore, DefaultLabelTag
from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from hermes.adapters.errors import answers_errors
from hermes.adapters.images import resolve_image
from hermes.adapters.leaving import client_has_left
from hermes.adapters.nearby import region_near
from hermes.adapters.requests import InferRequest
from hermes.errors import BadRequestError, NotFoundError
from hermes.inference.region import Region
from hermes.labels.catalogue import canonical_key, describe, find_group, group_names
from hermes.labels.names import key, split_protocol
from hermes.labels.space import EVERYTHING, GROUP_MARK
from hermes.offered import OfferedLabels
from hermes.records import LabelMap, Prediction
from hermes.resident import ResidentModel
from hermes.submission import campaign_values, match_structure
from hermes.transforms.reading import read_volume
from hermes.transforms.writing import write_label_map
from hermes.types import Modality
from hermes.workspace import Bindings, Workspace

logger = logging.getLogger(__name__)


class HermesInferTask(InferTask):  # type: ignore[misc]
    """Segments the campaign's structures, or those of one body region, with the resident network."""

    def __init__(
        self,
        workspace: Workspace,
        resident: ResidentModel,
        group: str | None = None,
        *,
        background: Callable[[], bool] | None = None,
    ) -> None:
        """Offer all structures of the campaign, or those of ``group``; any can be asked for by name.

        Args:
            workspace: the campaign.
            resident: its network.
            group: a body region; None: all structures.
            background: when given, no client waits: inferences give way to others, and end when it says so.
        """
        self._workspace, self._resident, self._group = workspace, resident, group
        self._background, self._should_stop = background is not None, background or client_has_left
        self._offers = OfferedLabels(workspace.directory / "offered")
        labels = self._offer()
        what = "any subset of the campaign's structures" if group is None else group
        super().__init__(
            type=InferType.SEGMENTATION,
            labels=labels,
            dimension=3,
            description=f"Universal 3D segmentation with context priors: {what}",
            config={"structures": "all", "modality": ["auto", *(m.value for m in Modality)]},
        )

    def keep_offer(
        self, image_id: str, name: str, file: Path, params: Mapping[str, Any], *, whole: bool
    ) -> None:
        """Keep an answer, to be compared with what will be submitted, and what it drew.

        Args:
            image_id: the image.
            name: of the infer task.
            file: the label map.
            params: of the answer.
            whole: False for an answer about a part of the image, which could not be compared with a whole label.
        """
        drawn = [structure for structure, found in params["structures"].items() if found["voxels"]]
        try:
            self._offers.note_drawn(image_id, drawn)
            if whole:
                self._offers.keep(image_id, name, file, params["label_names"], params["model_version"])
        except OSError as error:  # of a full disk; the answer itself is there
            logger.warning("What was offered for %s is not kept: %s", image_id, error)

    def refresh(self) -> None:
        """Offer what the campaign labels now: a structure may have been added."""
        self.labels = self._offer()

    def _offer(self) -> dict[str, int]:
        structures = self._workspace.bindings().structures
        self._offered = structures if self._group is None else members(structures, self._group)
        values = campaign_values(structures)
        return {name: values[name] for name in self._offered}

    def is_valid(self) -> bool:
        """Always: there is a model from the first start."""
        return True

    @answers_errors
    def __call__(self, request: Mapping[str, Any]) -> tuple[str | None, dict[str, Any]]:
        """Segment ``request["image"]`` (a path), in ``request["region"]`` if it has one; the file and what is known."""
        asked = InferRequest.parse(request)
        bindings = self._workspace.bindings()
        wanted = self._wanted(asked, bindings)
        ready = {name: row for name, row in wanted.items() if self._has_learned(name, row, bindings)}
        waiting = [name for name in wanted if name not in ready]
        if asked.structures is not None and not ready:
            msg = f"The serving model has not learned {waiting} yet. Label them in a few images; training then starts by itself."
            raise NotFoundError(msg)
        path, modality = Path(request["image"]), asked.modality or self._workspace.settings.modality
        rows = self._fitting(path, ready, asked, modality, bindings)
        prediction = self._predict(path, rows, modality, request.get("region"))
        values = campaign_values(bindings.structures)
        label_map = _in_campaign_values(prediction, values)
        file = tempfile.NamedTemporaryFile(suffix=asked.extension, delete=False).name  # noqa: SIM115  # the endpoint removes it
        write_label_map(label_map, file)
        answer = _answer(prediction, values, waiting)
        return file, answer | {"not_taught_in_modality": [name for name in ready if name not in rows]}

    def region(self, request: Mapping[str, Any], image_id: str | None, datastore: Datastore) -> Region | None:
        """The part of the image that a request is about; see `hermes.adapters.nearby`."""
        return region_near(InferRequest.parse(request), image_id, datastore, self._workspace)

    def _predict(
        self, path: Path, rows: Mapping[str, int], modality: Modality | None, region: Region | None
    ) -> Prediction:
        if rows:
            return self._resident.predictor().predict(
                path,
                rows,
                modality=modality,
                region=region,
                background=self._background,
                should_stop=self._should_stop,
            )
        # A campaign of new structures before its first training: the honest answer is an empty label map.
        volume = read_volume(path, modality=modality)
        empty = LabelMap(np.zeros(volume.grid.shape, np.uint8), volume.grid, {})
        version = self._workspace.versions.serving().name
        decided = (volume.modality, volume.modality_source, volume.modality_confidence)
        return Prediction(empty, (), *decided, 0.0, None, version, {}, 0, 0)

    def _fitting(
        self,
        path: Path,
        rows: Mapping[str, int],
        asked: InferRequest,
        modality: Modality | None,
        bindings: Bindings,
    ) -> Mapping[str, int]:
        """The rows to ask for: what was named, and of the model's own structures those taught in the modality.

        A structure is drawn by the protocol that is the default in the image's modality, unless one was named.
        A published model knows brains in T1 and lungs in CT: asked for both in one image it would invent one.
        Where the site chose the structures, all of them are asked for.
        """
        if not rows:
            return rows
        spec = self._resident.predictor().preparation
        # The predictor finds the prepared image in the cache.
        record = self._workspace.cache.prepared(path, spec, modality=modality, lazy=True).record
        there = bindings.rows_in(record.modality)
        by_protocol = {
            name
            for one in asked.structures or ()
            if split_protocol(one)[1]
            for name in _rows_of(one, bindings)
        }
        rows = {name: row if name in by_protocol else there[name] for name, row in rows.items()}
        named = {
            name
            for one in asked.structures or ()
            if _is_one(one, bindings)
            for name in _rows_of(one, bindings)
        }
        if self._workspace.settings.structures or named.issuperset(rows):
            return rows
        tasks = bindings.space.tasks
        return {
            name: row for name, row in rows.items() if name in named or tasks[row].covers(record.modality)
        }

    def _has_learned(self, name: str, row: int, bindings: Bindings) -> bool:
        if row == bindings.rows[name]:
            return name in bindings.trained
        return row in self._workspace.serving()[1].learned_rows

    def _wanted(self, asked: InferRequest, bindings: Bindings) -> dict[str, int]:
        """Structure of the campaign -> row of the task that shall draw it.

        Raises:
            UnknownStructureError: a name that is no structure of the campaign and no group.
            BadRequestError: a structure by two protocols: it has one value in the label map.
        """
        if asked.structures is None:
            return {name: bindings.rows[name] for name in self._offered}
        wanted: dict[str, int] = {}
        for asked_name in asked.structures:
            for name, row in _rows_of(asked_name, bindings).items():
                if wanted.setdefault(name, row) != row:
                    msg = (
                        f"Expected one protocol for {name!r} in a request, got two. Ask for them one by one."
                    )
                    raise BadRequestError(msg)
        return wanted


def members(structures: Sequence[str], group: str) -> tuple[str, ...]:
    """Of the campaign's structures, those of a body region, in the campaign's order."""
    return tuple(name for name in structures if group in describe(split_protocol(name)[0]).groups)


def offered_groups(structures: Sequence[str]) -> list[str]:
    """The groups worth a task of their own: regions with at least two of the structures and PET, not with all."""
    least = {Modality.PET.value: 1}
    return [
        group
        for group in group_names()
        if least.get(group, 2) <= len(members(structures, group)) < len(structures)
    ]


def _is_one(name: str, bindings: Bindings) -> bool:
    """Whether a name of a request stands for one structure, not for a group or for ``all``."""
    labelled = {canonical_key(split_protocol(structure)[0]) for structure in bindings.structures}
    if canonical_key(name) in labelled:
        return True
    return not (name.lower().startswith(GROUP_MARK) or find_group(name) or key(name) == EVERYTHING)


def _rows_of(name: str, bindings: Bindings) -> dict[str, int]:
    """What one name of a request asks for: a structure, ``structure@protocol``, a group, or ``all``."""
    if not _is_one(name, bindings):
        return _rows_of_several(name, bindings)
    structure, protocol = match_structure(name, bindings.structures), split_protocol(name)[1]
    if protocol is None or name == structure:
        return {structure: bindings.rows[structure]}
    return {structure: bindings.space.row(bindings.space.resolve(name))}


def _rows_of_several(name: str, bindings: Bindings) -> dict[str, int]:
    if key(name) == EVERYTHING:
        return dict(bindings.rows)
    group = find_group(name[len(GROUP_MARK) :] if name.lower().startswith(GROUP_MARK) else name)
    chosen = () if group is None else members(bindings.structures, group)
    if not chosen:
        offered = ", ".join(g for g in group_names() if members(bindings.structures, g)) or "none"
        msg = f"Expected a group with structures of this campaign ({offered}), got {name!r}."
        raise BadRequestError(msg)
    return {member: bindings.rows[member] for member in chosen}


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
    region = task.region(request, image, datastore)
    file, params = task({**request, "image": str(path), "region": region})
    if file and image is not None:
        task.keep_offer(image, str(request.get("model") or "model"), Path(file), params, whole=region is None)
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
