"""The manifest of ``hermes train``: which datasets, which network, how long (docs/training.md)."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hermes.errors import BadRequestError, NotFoundError
from hermes.types import Modality

EVERY = "all"
"""As value of ``absent``: every structure of the dataset was looked for in every image."""
CASE = "{case}"
"""Stands for the name of the case in the pattern of its label file."""
_SUFFIXES = (".nii.gz", ".nii", ".seg.nrrd", ".nrrd", ".mha", ".mhd", ".mgz")


@dataclass(frozen=True)
class DatasetPlan:
    """One dataset of a manifest.

    Attributes:
        name: the protocol of its tasks, e.g. ``BCV``.
        images: folder or glob, relative to the manifest.
        labels: folder of files named like the images, or a pattern with ``{case}``.
        structures: label value -> structure.
        absent: structures that were looked for in every image: without a voxel they count as absent.
        modality: of all images; None: as the files tell.
        weight: how often it is drawn, beside the other datasets.
    """

    name: str
    images: str
    labels: str
    structures: Mapping[int, str]
    absent: frozenset[str] = frozenset()
    modality: Modality | None = None
    weight: float = 1.0


@dataclass(frozen=True)
class TrainingPlan:
    """A manifest.

    Attributes:
        folder: of the manifest; relative paths begin there.
        datasets: to train on.
        network: member of the family; unused with ``start``.
        width: of the network; None: the member's default.
        start: version to fine-tune; None: from scratch.
        spacing_mm: of the model grid; None: that of ``start``, else 1.5.
        patch: (z, y, x) in voxels; None: fitted to the images.
        steps: None: as many as suit the cases.
        batch_size: patches per step.
        learning_rate: None: the recipe's.
        seed: of weights, sampling and the hold-out.
        held_out: part of the patients that measures and never trains.
        patient: regular expression whose first group is the patient in a file's name; None: BIDS subjects, else
            every name is a patient, whichever datasets it is in.
    """

    folder: Path
    datasets: tuple[DatasetPlan, ...]
    network: str = "hermes-c"
    width: int | None = None
    start: Path | None = None
    spacing_mm: float | None = None
    patch: tuple[int, int, int] | None = None
    steps: int | None = None
    batch_size: int = 2
    learning_rate: float | None = None
    seed: int = 0
    held_out: float = 0.2
    patient: str | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object that says what was asked for, without places of this machine."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        data.pop("folder")
        data["start"] = None if self.start is None else self.start.name
        data["datasets"] = [
            {
                **vars(d),
                "absent": sorted(d.absent),
                "structures": {str(value): name for value, name in d.structures.items()},
                "modality": None if d.modality is None else d.modality.value,
            }
            for d in self.datasets
        ]
        return data


@dataclass(frozen=True)
class Pair:
    """An image of a dataset and its label file, which may not exist."""

    dataset: DatasetPlan
    name: str
    image: Path
    label: Path | None

    @property
    def case_id(self) -> str:
        """Unique in the plan."""
        return f"{self.dataset.name}/{self.name}"


def read_plan(path: str | os.PathLike[str]) -> TrainingPlan:
    """The plan in a YAML file.

    Raises:
        NotFoundError: there is no such file.
        BadRequestError: not YAML, unknown keys, or values that make no sense; the message says which.
    """
    file = Path(path)
    if not file.is_file():
        msg = f"Expected a manifest, there is no file {str(file)!r}."
        raise NotFoundError(msg)
    try:
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        msg = f"Expected YAML in {file.name!r}: {error}"
        raise BadRequestError(msg) from error
    values = _known(data, TrainingPlan, "the manifest", without=frozenset({"folder", "width"}))
    listed = values.pop("datasets", None)
    if not isinstance(listed, list) or not listed:
        msg = f"Expected a list `datasets` with at least one dataset in the manifest, got {listed!r}."
        raise BadRequestError(msg)
    network = _network(values.pop("network", {}))
    datasets = tuple(_dataset(entry) for entry in listed)
    twice = {d.name for d in datasets if sum(d.name == other.name for other in datasets) > 1}
    if twice:
        msg = f"Expected a name of its own for every dataset, got {sorted(twice)} twice."
        raise BadRequestError(msg)
    if values.get("start") is not None:
        values["start"] = file.parent / str(values["start"])
    if values.get("patch") is not None:
        values["patch"] = _patch(values["patch"])
    return _checked(TrainingPlan(folder=file.parent, datasets=datasets, **network, **values))


def _known(data: Any, kind: type, what: str, *, without: frozenset[str] = frozenset()) -> dict[str, Any]:
    names = [item.name for item in dataclasses.fields(kind) if item.name not in without]
    if not isinstance(data, dict) or not set(data) <= set(names):
        unknown = sorted(set(map(str, data)) - set(names)) if isinstance(data, dict) else data
        msg = f"Expected only these keys in {what}: {', '.join(names)}; got {unknown!r}."
        raise BadRequestError(msg)
    return dict(data)


def _network(entry: Any) -> dict[str, Any]:
    if not isinstance(entry, dict) or not set(entry) <= {"name", "width"}:
        msg = f"Expected `network` with `name` and `width`, got {entry!r}."
        raise BadRequestError(msg)
    return {field: entry[key] for key, field in (("name", "network"), ("width", "width")) if key in entry}


def _dataset(entry: Any) -> DatasetPlan:
    values = _known(entry, DatasetPlan, "a dataset")
    missing = sorted({"name", "images", "labels", "structures"} - set(values))
    if missing:
        msg = f"Expected name, images, labels and structures in every dataset, {missing} are missing in {entry!r}."
        raise BadRequestError(msg)
    structures = values["structures"]
    good = isinstance(structures, dict) and all(
        isinstance(value, int) and value > 0 and isinstance(name, str) for value, name in structures.items()
    )
    if not good or not structures or len(set(structures.values())) < len(structures):
        msg = f"Expected structures as {{label value: name}} with values from 1 and each name once, got {structures!r}."
        raise BadRequestError(msg)
    absent = values.get("absent", [])
    values["absent"] = frozenset(structures.values() if absent == EVERY else absent)
    if not values["absent"] <= set(structures.values()):
        msg = f"Expected `absent` to name structures of the dataset or to be '{EVERY}', got {absent!r}."
        raise BadRequestError(msg)
    if values.get("modality") is not None:
        try:
            values["modality"] = Modality.parse(str(values["modality"]))
        except ValueError as error:
            raise BadRequestError(str(error)) from error
    values["weight"] = float(values.get("weight", 1.0))
    return DatasetPlan(**values)


def _patch(value: Any) -> tuple[int, int, int]:
    sizes = [value] * 3 if isinstance(value, int) else value
    if not isinstance(sizes, list) or len(sizes) != 3 or any(not isinstance(s, int) or s % 16 for s in sizes):
        msg = f"Expected `patch` as three multiples of 16 (z, y, x), got {value!r}."
        raise BadRequestError(msg)
    d, h, w = sizes
    return d, h, w


def _checked(plan: TrainingPlan) -> TrainingPlan:
    positive = {"steps": plan.steps, "batch_size": plan.batch_size, "spacing_mm": plan.spacing_mm,
                "width": plan.width, "learning_rate": plan.learning_rate}  # fmt: skip
    positive |= {f"weight of {d.name}": d.weight for d in plan.datasets}
    for name, value in positive.items():
        if value is not None and not (isinstance(value, int | float) and value > 0):
            msg = f"Expected `{name}` to be a positive number, got {value!r}."
            raise BadRequestError(msg)
    if not isinstance(plan.held_out, int | float) or not 0 <= plan.held_out < 1:
        msg = f"Expected `held_out` from 0 to below 1, got {plan.held_out!r}."
        raise BadRequestError(msg)
    return plan


def find_pairs(plan: TrainingPlan) -> list[Pair]:
    """Every image of the plan with its label file, by dataset and name.

    Raises:
        NotFoundError: a dataset has no image.
    """
    pairs: list[Pair] = []
    for dataset in plan.datasets:
        images = _files(plan.folder, dataset.images)
        if not images:
            msg = f"Expected images of {dataset.name} at {dataset.images!r}, there are none."
            raise NotFoundError(msg)
        pairs += [
            Pair(dataset, _case(i), i, _label_of(plan.folder, dataset.labels, _case(i))) for i in images
        ]
    return pairs


def _files(folder: Path, pattern: str) -> list[Path]:
    place = folder / pattern
    found = place.iterdir() if place.is_dir() else Path(place.anchor or ".").glob(
        str(place.relative_to(place.anchor)) if place.anchor else str(place)
    )  # fmt: skip
    return sorted(f for f in found if f.name.lower().endswith(_SUFFIXES) and not f.name.startswith("."))


def _stem(file: Path) -> str:
    suffix = next((s for s in _SUFFIXES if file.name.lower().endswith(s)), "")
    return file.name[: len(file.name) - len(suffix)]


def _case(image: Path) -> str:
    """The image's name without its suffix, and without nnU-Net's number of the channel."""
    return re.sub(r"_0000$", "", _stem(image))


def _label_of(folder: Path, pattern: str, case: str) -> Path | None:
    if CASE in pattern:
        file = folder / pattern.replace(CASE, case)
        return file if file.is_file() else None
    return next((file for file in _files(folder, pattern) if _stem(file) == case), None)
