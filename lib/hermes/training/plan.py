"""The manifest of ``hermes train``: which datasets, which network, how long (docs/training.md)."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import yaml

from hermes.errors import BadRequestError, NotFoundError
from hermes.model.universal import DIVISOR
from hermes.types import Modality

EVERY = "all"
"""As value of ``absent``: every structure of the dataset was looked for in every image."""
CASE = "{case}"
"""Stands for the name of the case in the pattern of its label file."""
MOST = 2**31 - 1
"""Of a whole number in a manifest, where nothing else is said."""
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
    except (yaml.YAMLError, ValueError) as error:  # ValueError: no UTF-8, or a date like 2024-13-01
        msg = f"Expected YAML in {file.name!r}: {error}"
        raise BadRequestError(msg) from error
    values = _known(data, TrainingPlan, "the manifest", without=frozenset({"folder", "width"}))
    listed = values.pop("datasets", None)
    if not isinstance(listed, list) or not listed:
        msg = f"Expected a list `datasets` with at least one dataset in the manifest, got {listed!r}."
        raise BadRequestError(msg)
    values |= _network(values.pop("network", {}))
    datasets = tuple(_dataset(entry) for entry in listed)
    twice = {d.name for d in datasets if sum(d.name == other.name for other in datasets) > 1}
    if twice:
        msg = f"Expected a name of its own for every dataset, got {sorted(twice)} twice."
        raise BadRequestError(msg)
    values = _checked(values, TrainingPlan, _PLAN_CHECKS)
    if values.get("start") is not None:
        values["start"] = file.parent / values["start"]
    return TrainingPlan(folder=file.parent, datasets=datasets, **values)


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
    name = _text(values["name"], "name of a dataset")
    values = _checked(values, DatasetPlan, _DATASET_CHECKS, of=f" of {name}")
    if "absent" in values:
        values["absent"] = _absent(values["absent"], f"absent of {name}", set(values["structures"].values()))
    return DatasetPlan(**values)


# ------------------------------------------------------------------------------------------ checks of one value


def _checked(
    values: Mapping[str, Any], kind: type, checks: Mapping[str, Callable[[Any, str], Any]], *, of: str = ""
) -> dict[str, Any]:
    """``values`` as their checks return them; null stands for what is not said where ``kind`` has that as default.

    Raises:
        BadRequestError: a value makes no sense; the message says which.
    """
    optional = {item.name for item in dataclasses.fields(kind) if item.default is None}
    return {
        name: value if name not in checks or (value is None and name in optional) else checks[name](value, name + of)
        for name, value in values.items()
    }  # fmt: skip


def _refuse(what: str, wanted: str, got: Any) -> NoReturn:
    msg = f"Expected `{what}` to be {wanted}, got {got!r}."
    raise BadRequestError(msg)


def _is_whole(value: Any, least: int, most: int = MOST) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _whole(value: Any, what: str, *, least: int = 1, most: int = MOST) -> int:
    if not _is_whole(value, least, most):
        _refuse(what, f"a whole number from {least} to {most}", value)
    return int(value)


def _number(value: Any) -> float | None:
    """A finite number, also text like 1e-3, which YAML does not take for one; None: it is something else."""
    if isinstance(value, str):
        with suppress(ValueError):
            value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return value if abs(value) <= sys.float_info.max else None


def _positive(value: Any, what: str, *, most: float = math.inf) -> float:
    number = _number(value)
    if number is None or not 0 < number <= most:
        _refuse(what, "a positive number" + (f" of at most {most:g}" if most < math.inf else ""), value)
    return number


def _share(value: Any, what: str) -> float:
    number = _number(value)
    if number is None or not 0 <= number < 1:
        _refuse(what, "a number from 0 to below 1", value)
    return number


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip() or "\0" in value:
        _refuse(what, "text (a number: in quotes)", value)
    return value


def _place(value: Any, what: str) -> str:
    """A folder or a glob that can be searched for."""
    place = _text(value, what)
    try:
        next(Path(os.devnull).glob(_from_root(Path(), place)[1]), None)  # finds nothing, whatever it says
    except (ValueError, re.error) as error:
        _refuse(what, f"a folder or a pattern ({error})", value)
    return place


def _expression(value: Any, what: str) -> str:
    text = _text(value, what)
    try:
        groups = re.compile(text).groups
    except (re.error, OverflowError, RecursionError) as error:
        _refuse(what, f"a regular expression ({error})", value)
    if not groups:
        _refuse(what, "a regular expression with a group for the patient", value)
    return text


def _patch(value: Any, what: str) -> tuple[int, int, int]:
    """Sizes that the network takes (`hermes.model.universal`): one voxel alone at its coarsest has no variance."""
    sizes = value if isinstance(value, list) else [value] * 3
    if len(sizes) != 3 or any(not _is_whole(s, DIVISOR) or s % DIVISOR for s in sizes):
        _refuse(what, f"three positive multiples of {DIVISOR} (z, y, x)", value)
    d, h, w = sizes
    if d == h == w == DIVISOR:
        _refuse(what, f"more than {DIVISOR} voxels along at least one axis", value)
    return d, h, w


def _structures(value: Any, what: str) -> dict[int, str]:
    good = isinstance(value, dict) and all(
        _is_whole(number, 1) and isinstance(name, str) for number, name in value.items()
    )
    if not good or not value or len(set(value.values())) < len(value):
        _refuse(what, "{label value: name} with values from 1 and each name once", value)
    return dict(value)


def _absent(value: Any, what: str, structures: Set[str]) -> frozenset[str]:
    names = sorted(structures) if value == EVERY else value
    if not isinstance(names, list) or not all(isinstance(n, str) and n in structures for n in names):
        _refuse(what, f"a list of structures of the dataset or '{EVERY}'", value)
    return frozenset(names)


def _modality(value: Any, what: str) -> Modality:
    try:
        return Modality.parse(_text(value, what))
    except ValueError as error:
        raise BadRequestError(str(error)) from error


_PLAN_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "network": _text,
    "width": _whole,
    "start": _text,
    "spacing_mm": _positive,
    "patch": _patch,
    "steps": _whole,
    "batch_size": _whole,
    "learning_rate": _positive,
    "seed": partial(_whole, least=0, most=2**64 - 1),  # what torch takes
    "held_out": _share,
    "patient": _expression,
}
_DATASET_CHECKS: dict[str, Callable[[Any, str], Any]] = {
    "name": _text,
    "images": _place,
    "labels": _place,
    "structures": _structures,
    "modality": _modality,
    "weight": partial(_positive, most=1e9),  # so that their sum is finite
}


# ------------------------------------------------------------------------------------------------ files


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
    if place.is_dir():
        found = place.iterdir()
    else:
        root, rest = _from_root(folder, pattern)
        found = root.glob(rest)
    return sorted(f for f in found if f.name.lower().endswith(_SUFFIXES) and not f.name.startswith("."))


def _from_root(folder: Path, pattern: str) -> tuple[Path, str]:
    """The folder that a pattern begins in, and what it says from there."""
    place = Path(pattern)
    if place.anchor:
        return Path(place.anchor), str(place.relative_to(place.anchor))
    return folder, str(place)


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
