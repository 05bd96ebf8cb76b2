"""Versions of a model: an immutable folder with ``model.safetensors`` and ``manifest.json``.

A folder appears complete or not at all (written beside its place, flushed to disk, renamed). Weights are
never unpickled. The manifest says what the weights are, so that nothing else is needed to use them, and holds
their SHA-256, so that weights of another version cannot be taken for them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from hermes import __version__
from hermes.errors import BadRequestError, CheckpointError, ConflictError, HermesError, WeightsMismatchError
from hermes.labels.space import LabelSpace
from hermes.model import NetworkConfig, UniversalNetwork, build_network
from hermes.transforms.preparation import PreparationSpec

FORMAT_VERSION = 1
WEIGHTS_FILE = "model.safetensors"
MANIFEST_FILE = "manifest.json"
LARGEST_HALF = 6.0e4
"""A tensor with a larger value stays float32 when weights are stored in half precision."""
_SHOWN = 5  # names per message


@dataclass(frozen=True)
class UsedCase:
    """A labelled image that a version was trained or measured on, and what its files held then.

    Attributes:
        case_id: of the image.
        image_sha256: of the image file; of a DICOM folder, over the SHA-256 of its files in the order of their paths.
        label_sha256: of the label file.
        label_id: number of the label version in the campaign's database; None: there was no campaign.
        rows: of the label space that the label taught the version; none where it only measured it, or is not known.

    A hash is None where it is not known: in manifests of older versions of Hermes, and of an image that is gone.
    """

    case_id: str
    image_sha256: str | None = None
    label_sha256: str | None = None
    label_id: int | None = None
    rows: tuple[int, ...] = ()


@dataclass(frozen=True)
class LearnedIn:
    """The version that was the last to learn some tasks from labels.

    Attributes:
        version: its name.
        sha256: of its weights file.
        rows: of the label space.
    """

    version: str
    sha256: str
    rows: tuple[int, ...]


@dataclass(frozen=True)
class Manifest:
    """What a version is.

    Attributes:
        network: what to build.
        label_space: its rows are the rows of the task tables.
        preparation: how images are prepared for it.
        window: sliding window (z, y, x) in voxels of the model grid.
        version: name of this version, unique where it is served.
        parent: name of the version it was trained from.
        created: ISO 8601 time in UTC.
        metrics: what was measured, by name.
        trained_on: the cases it was trained on; an image with labels of several annotators is there once for each.
        held_out: the cases it was measured on.
        trained_rows: rows of the label space that have been learned; None: all of them.
        learned_in: of tasks that this version only keeps, which one learned them; the others are its own.
        settings: the effective settings of the training.
        seed: of the training.
        code_version: of this package, see :func:`code_version`.
        note: free text.
        dtype: of the weights on disk; in memory they are float32 always.
        sha256: of the weights file; filled in by :func:`save_checkpoint`.
    """

    network: NetworkConfig
    label_space: LabelSpace
    preparation: PreparationSpec = field(default_factory=PreparationSpec)
    window: tuple[int, int, int] = (128, 128, 128)
    version: str = ""
    parent: str | None = None
    created: str = ""
    metrics: Mapping[str, Any] = field(default_factory=dict)
    trained_on: tuple[UsedCase, ...] = ()
    held_out: tuple[UsedCase, ...] = ()
    trained_rows: tuple[int, ...] | None = None
    learned_in: tuple[LearnedIn, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    code_version: str = ""
    note: str = ""
    dtype: Literal["float32", "float16"] = "float32"
    sha256: str = ""

    def __post_init__(self) -> None:
        if len(self.label_space) > self.network.tasks:
            msg = (
                f"Expected at most one task per row, got {len(self.label_space)} tasks and a network of "
                f"{self.network.tasks} rows."
            )
            raise CheckpointError(msg)
        if not all(size > 0 and size % 16 == 0 for size in self.window):
            msg = f"Expected a `window` of three positive multiples of 16, got {list(self.window)}."
            raise CheckpointError(msg)
        if not set(self.trained_rows or ()) <= set(range(len(self.label_space))):
            msg = f"Expected `trained_rows` from 0 to {len(self.label_space) - 1}, got {list(self.trained_rows or ())}."
            raise CheckpointError(msg)

    @property
    def learned_rows(self) -> frozenset[int]:
        """Rows of the label space that the weights know."""
        return frozenset(range(len(self.label_space)) if self.trained_rows is None else self.trained_rows)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that :meth:`from_json` takes back."""
        data = {item.name: getattr(self, item.name) for item in dataclasses.fields(self)}
        data["network"] = dataclasses.asdict(self.network)
        data["label_space"] = self.label_space.to_json()
        data["preparation"] = self.preparation.to_json()
        for name in ("trained_on", "held_out"):
            data[name] = [dataclasses.asdict(case) for case in data[name]]
        data["learned_in"] = [dataclasses.asdict(one) for one in self.learned_in]
        return {"format_version": FORMAT_VERSION, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Manifest:
        """The manifest that ``data`` holds.

        Raises:
            CheckpointError: another format version, or entries are missing or wrong.
        """
        if data.get("format_version") != FORMAT_VERSION:
            msg = f"Expected a manifest of format {FORMAT_VERSION}, got {data.get('format_version')!r}."
            raise CheckpointError(msg)
        values = {name: value for name, value in data.items() if name != "format_version"}
        try:
            values["network"] = _network(values["network"])
            values["label_space"] = LabelSpace.from_json(values["label_space"])
            values["preparation"] = PreparationSpec.from_json(values["preparation"])
            z, y, x = (int(size) for size in values["window"])
            values["window"] = (z, y, x)
            for name in ("trained_on", "held_out"):
                values[name] = tuple(_used_case(entry) for entry in values.get(name, ()))
            values["learned_in"] = tuple(_learned_in(entry) for entry in values.get("learned_in", ()))
            rows = values.get("trained_rows")
            values["trained_rows"] = None if rows is None else tuple(int(row) for row in rows)
            return cls(**values)
        except CheckpointError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError, HermesError) as error:
            msg = f"Expected a complete manifest, got one with a missing or wrong entry: {error}."
            raise CheckpointError(msg) from error


@lru_cache(maxsize=1)
def code_version() -> str:
    """The package's version and the first 12 digits of a SHA-256 over its source files, like ``0.1.0+91f2c8a07b3d``."""
    package = Path(__file__).parent
    digest = hashlib.sha256()
    for file in sorted(package.rglob("*.py")):
        digest.update(f"{file.relative_to(package).as_posix()} {_sha256(file)}\n".encode())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def save_checkpoint(directory: str | os.PathLike[str], net: torch.nn.Module, manifest: Manifest) -> Manifest:
    """Writes a version and returns its manifest as stored (with the hash of the weights).

    Args:
        directory: must not exist: versions never change.
        net: whose ``state_dict`` is stored; left as it is.
        manifest: ``dtype`` says how to store it.

    Raises:
        ConflictError: the directory exists.
        HermesError: the disk is full or not writable.
    """
    target = Path(directory)
    if target.exists():
        msg = f"Expected a new directory for the version, but {target.name!r} exists. Choose another name."
        raise ConflictError(msg)
    partial = target.parent / f".{target.name}-{uuid.uuid4().hex}"
    try:
        partial.mkdir(parents=True)
        weights = {name: _stored(value, manifest.dtype) for name, value in net.state_dict().items()}
        save_file(weights, partial / WEIGHTS_FILE)
        stored = dataclasses.replace(manifest, sha256=_sha256(partial / WEIGHTS_FILE))
        (partial / MANIFEST_FILE).write_text(json.dumps(stored.to_json(), indent=1))
        for place in (partial / WEIGHTS_FILE, partial / MANIFEST_FILE, partial):
            _flush(place)
        partial.rename(target)
        _flush(target.parent)
    except OSError as error:
        msg = (
            f"The version could not be written: {error.strerror}. Check space and rights of the model folder."
        )
        raise HermesError(msg) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return stored


def read_manifest(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest of a version, without its weights.

    Raises:
        CheckpointError: there is none, or it cannot be read.
    """
    path = Path(directory) / MANIFEST_FILE
    try:
        data = json.loads(path.read_text())
    except OSError as error:
        msg = f"Expected a version with a {MANIFEST_FILE} in {path.parent.name!r}, got none that can be read."
        raise CheckpointError(msg) from error
    except ValueError as error:
        msg = f"Expected JSON in the {MANIFEST_FILE} of {path.parent.name!r}, got something else."
        raise CheckpointError(msg) from error
    if not isinstance(data, dict):
        msg = f"Expected an object in the {MANIFEST_FILE} of {path.parent.name!r}, got {type(data).__name__}."
        raise CheckpointError(msg)
    return Manifest.from_json(data)


def check_checkpoint(directory: str | os.PathLike[str]) -> Manifest:
    """The manifest of a version whose weights are those that were stored, and fit the network that it names.

    Raises:
        CheckpointError: files are missing or damaged, the weights are not those of the manifest, or there is no such network.
        WeightsMismatchError: a missing, surplus or misshapen tensor.
    """
    manifest = read_manifest(directory)
    path = Path(directory) / WEIGHTS_FILE
    if not path.is_file():
        msg = f"Expected {WEIGHTS_FILE} beside the manifest in {path.parent.name!r}, got none."
        raise CheckpointError(msg)
    if _sha256(path) != manifest.sha256:
        msg = (
            f"Expected the weights that the manifest of {path.parent.name!r} names in {WEIGHTS_FILE}, got others (their "
            "SHA-256 differs). The file was changed or damaged: restore it or import the model again."
        )
        raise CheckpointError(msg)
    try:
        with torch.device("meta"):  # nothing of it is in memory
            net = build_network(manifest.network)
        with safe_open(path, framework="pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  # no mapping
    except BadRequestError as error:
        msg = f"Expected a network that can be built in the manifest of {path.parent.name!r}. {error}"
        raise CheckpointError(msg) from error
    except SafetensorError as error:
        msg = f"Expected safetensors in {WEIGHTS_FILE} of {path.parent.name!r}, got a damaged file."
        raise CheckpointError(msg) from error
    _require_fit(net, shapes)
    return manifest


def load_checkpoint(
    directory: str | os.PathLike[str], device: str | torch.device = "cpu"
) -> tuple[UniversalNetwork, Manifest]:
    """The network of a version, in eval mode and float32 on ``device``, and its manifest.

    Raises:
        CheckpointError: files are missing or damaged, or the weights are not those of the manifest.
        WeightsMismatchError: a missing, surplus or misshapen tensor.
    """
    manifest = check_checkpoint(directory)
    net = build_network(manifest.network)
    load_weights(net, load_file(Path(directory) / WEIGHTS_FILE))
    return net.to(device).eval(), manifest


def load_weights(net: torch.nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies ``weights`` into ``net``; nothing is copied unless all of it fits.

    Raises:
        WeightsMismatchError: a missing, surplus or misshapen tensor, each named.
    """
    _require_fit(net, {name: tuple(value.shape) for name, value in weights.items()})
    net.load_state_dict(dict(weights))


def _require_fit(net: torch.nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> None:
    wanted = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    problems = [f"missing {name}" for name in wanted if name not in shapes]
    problems += [f"surplus {name}" for name in shapes if name not in wanted]
    problems += [
        f"{name} of shape {shapes[name]} instead of {shape}"
        for name, shape in wanted.items()
        if shapes.get(name, shape) != shape
    ]
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        msg = f"The weights do not fit the network: {'; '.join(problems[:_SHOWN])}{more}."
        raise WeightsMismatchError(msg)


def _network(entry: Any) -> NetworkConfig:
    _require(isinstance(entry, dict), "network", entry)
    config = NetworkConfig(**entry)
    _require(isinstance(config.tasks, int), "network.tasks", config.tasks)
    return config


def _used_case(entry: Any) -> UsedCase:
    """A case of a manifest; older versions of Hermes wrote its id alone, or no rows."""
    if isinstance(entry, str):
        return UsedCase(entry)
    used = UsedCase(**{**entry, "rows": tuple(int(row) for row in entry.get("rows", ()))})
    _require(used.label_id is None or isinstance(used.label_id, int), "label_id", used.label_id)
    texts = (used.case_id, used.image_sha256 or "", used.label_sha256 or "")
    _require(all(isinstance(text, str) for text in texts), "trained_on", texts)
    return used


def _learned_in(entry: Any) -> LearnedIn:
    found = LearnedIn(entry["version"], entry["sha256"], tuple(int(row) for row in entry["rows"]))
    _require(isinstance(found.version, str) and isinstance(found.sha256, str), "learned_in", entry)
    return found


def _require(well: bool, name: str, got: object) -> None:
    if not well:
        msg = f"`{name}` is {got!r}"
        raise ValueError(msg)


def _stored(value: Tensor, dtype: Literal["float32", "float16"]) -> Tensor:
    tensor = value.detach().cpu()
    if tensor.is_floating_point():
        small = dtype == "float16" and (tensor.numel() == 0 or float(tensor.abs().max()) <= LARGEST_HALF)
        tensor = tensor.to(torch.float16 if small else torch.float32)
    return tensor.contiguous().clone()  # safetensors refuses tensors that share memory


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush(path: Path) -> None:
    """To the disk itself; folders too, where the system can open them."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # folders on Windows
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
