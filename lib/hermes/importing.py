"""``hermes import``: a released checkpoint of the published networks as a model directory of ours.

A checkpoint is a pickle, and a pickle can run any program. Only tensors and plain containers are read from it
(``weights_only``); everything else in it is refused without being executed.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from hermes.checkpoint import Manifest, code_version, save_checkpoint
from hermes.errors import CheckpointError, ConflictError, NotFoundError, WeightsMismatchError
from hermes.labels.space import published_label_space
from hermes.model import build_network
from hermes.published import convert_published
from hermes.transforms.preparation import PreparationSpec
from hermes.types import Modality

PUBLISHED_SPACING_MM = 1.5
PUBLISHED_WINDOW = (128, 128, 128)
EMA_KEY, RAW_KEY = "ema_model_state_dict", "model_state_dict"
AVERAGED_MODELS_COUNTER = "n_averaged"
"""How many updates torch's ``AveragedModel`` has seen, which it keeps beside the weights."""
_WRAPPERS = ("module.", "_orig_mod.")  # put in front of every name by DistributedDataParallel, torch.compile
_TELLTALES = {"hermes-r": "prior_init_fuse_2.", "hermes-m": "map_fusion."}


@dataclass(frozen=True)
class Found:
    """The state dict that was found in a checkpoint.

    Attributes:
        weights: published names, without the prefixes of wrappers.
        origin: the entry that held it; ``""`` for a bare state dict.
    """

    weights: Mapping[str, Tensor]
    origin: str


@dataclass(frozen=True)
class Imported:
    """What an import did; ``remarks`` are sentences that a person should read."""

    directory: Path
    manifest: Manifest
    remarks: tuple[str, ...]


def import_published(
    file: str | os.PathLike[str], out: str | os.PathLike[str], *, network: str | None = None
) -> Imported:
    """Writes the model directory ``out`` from a released checkpoint.

    Args:
        file: a checkpoint or a bare state dict as ``torch.save`` wrote it, or a ``.safetensors`` file.
        out: must not exist.
        network: ``"hermes-r"`` or ``"hermes-m"``; None: told by the names of the weights.

    Raises:
        ConflictError: ``out`` exists.
        NotFoundError: there is no such file.
        CheckpointError: it is no checkpoint, is damaged, or holds more than weights.
        WeightsMismatchError: the weights are not those of a published network.
        BadRequestError: ``network`` was never published.
    """
    source, target = Path(file), Path(out)
    if target.exists():
        msg = f"Expected a new directory for the model, but {str(target)!r} exists. Choose another name."
        raise ConflictError(msg)
    found = find_state_dict(read_weights(source), source.name)
    name = network or detect_network(found.weights)
    config, weights = convert_published(found.weights, name)
    _require_published_sizes(config.tasks, config.modalities)
    with torch.device("meta"):
        net = build_network(config)
    net.load_state_dict(weights, strict=True, assign=True)
    digest = _sha256(source)
    manifest = Manifest(
        network=config,
        label_space=published_label_space(),
        preparation=PreparationSpec(spacing_mm=PUBLISHED_SPACING_MM),
        window=PUBLISHED_WINDOW,
        version=target.name,
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        settings={"imported_from": source.name, "source_sha256": digest, "weights": found.origin or "bare"},
        code_version=code_version(),
        note=f"Published {name} weights, imported from a file with the SHA-256 {digest}.",
    )
    return Imported(target, save_checkpoint(target, net, manifest), _remarks(found))


def read_weights(path: Path) -> Mapping[Any, Any]:
    """The dictionary in a checkpoint file, on the CPU; nothing in the file is executed.

    Raises:
        NotFoundError: there is no such file.
        CheckpointError: it is damaged, of another kind, or holds objects other than tensors and containers.
    """
    if not path.is_file():
        msg = f"Expected a checkpoint file, but there is none at {str(path)!r}."
        raise NotFoundError(msg)
    _require_stored(path)
    try:
        if path.suffix.lower() == ".safetensors":
            weights: dict[str, Tensor] = load_file(path)
            return weights
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # on unusual pickle protocols: what matters is what is read
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        msg = (
            f"Expected nothing but weights in {path.name!r}, got a file that is damaged or that holds other objects, "
            "which could run programs when read. It was refused and nothing in it was executed. Save it again as "
            "a state dict of tensors with torch.save."
        )
        raise CheckpointError(msg) from error
    except MemoryError as error:
        msg = f"Expected enough memory to read {path.name!r} ({path.stat().st_size / 2**30:.1f} GiB on disk)."
        raise CheckpointError(msg) from error
    # A reader of two file formats meets damage anywhere in its own code: these are all the ways it says so.
    except (SafetensorError, RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError,
            AttributeError, AssertionError) as error:  # fmt: skip
        msg = f"Expected a checkpoint as torch.save writes it in {path.name!r}, got a file that is damaged or of another kind."
        raise CheckpointError(msg) from error
    if not isinstance(content, Mapping):
        msg = f"Expected a dictionary in {path.name!r}, got {type(content).__name__}."
        raise CheckpointError(msg)
    return content


def _require_stored(path: Path) -> None:
    """Nothing, unless the file is an archive of compressed parts: reading those takes memory beyond any bound.

    ``torch.save`` never compresses, so that the size of the file is that of its tensors.

    Raises:
        CheckpointError: it is one.
    """
    if not zipfile.is_zipfile(path):
        return
    with suppress(zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
        packed = [part.filename for part in archive.infolist() if part.file_size > part.compress_size]
        if packed:
            msg = (
                f"Expected a checkpoint as torch.save writes it in {path.name!r}, got compressed parts such as "
                f"{packed[0]!r}. Unpack it and save it again with torch.save."
            )
            raise CheckpointError(msg)


def find_state_dict(content: Mapping[Any, Any], file_name: str = "the file") -> Found:
    """The weights to serve: the EMA's, else the trained ones, else ``content`` itself where it is a state dict.

    Raises:
        WeightsMismatchError: there is none.
    """
    for entry in (EMA_KEY, RAW_KEY):
        weights = content.get(entry)
        if isinstance(weights, Mapping) and weights:
            return Found(_unwrapped(weights), entry)
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return Found(_unwrapped(content), "")
    entries = ", ".join(sorted(str(entry) for entry in content)[:10]) or "nothing"
    msg = f"Expected {EMA_KEY!r}, {RAW_KEY!r} or a state dict of tensors in {file_name!r}, got: {entries}."
    raise WeightsMismatchError(msg)


def detect_network(names: Mapping[str, Tensor]) -> str:
    """The published network whose layers have these names.

    Raises:
        WeightsMismatchError: it is none of them.
    """
    fitting = [network for network, start in _TELLTALES.items() if any(n.startswith(start) for n in names)]
    if len(fitting) != 1:
        shown = ", ".join(list(names)[:3])
        msg = (
            f"Expected the weights of one of {', '.join(_TELLTALES)}, got layers named {shown}, ... "
            "If the file is one of them, say which with --network."
        )
        raise WeightsMismatchError(msg)
    return fitting[0]


def _unwrapped(weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    names = {str(name): value for name, value in weights.items() if str(name) != AVERAGED_MODELS_COUNTER}
    while prefix := next((w for w in _WRAPPERS if all(name.startswith(w) for name in names)), None):
        names = {name[len(prefix) :]: value for name, value in names.items()}
    return names


def _require_published_sizes(tasks: int, modalities: int) -> None:
    space = published_label_space()
    if tasks < len(space) or modalities != len(Modality):
        msg = (
            f"Expected task tables of at least {len(space)} rows and {len(Modality)} modalities, whose meaning is "
            f"published, got {tasks} and {modalities}: this network was trained on other tasks."
        )
        raise WeightsMismatchError(msg)


def _remarks(found: Found) -> tuple[str, ...]:
    if found.origin == RAW_KEY:
        return (
            f"The file has no {EMA_KEY!r}; its {RAW_KEY!r} was taken. The averaged weights answer better.",
        )
    if not found.origin:
        return ("The file is a bare state dict: whether its weights are the averaged ones, it does not say.",)
    return ()


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
