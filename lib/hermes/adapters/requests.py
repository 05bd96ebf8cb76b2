"""MONAI Label's request dictionaries, read once and checked."""

from __future__ import annotations

import json
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hermes.adapters.annotators import annotator_in
from hermes.config import Settings
from hermes.errors import BadRequestError
from hermes.rounds import KEEPS, MODES, RoundOptions
from hermes.submission import match_structure
from hermes.types import Modality, StructureName

_UPLOAD = re.compile(r"tmp[a-z0-9_]{8}(\.[A-Za-z0-9]+)*")
_EXTENSIONS = (".nii.gz", ".nii", ".nrrd", ".seg.nrrd", ".mha")
_DTYPES = ("uint8", "uint16")
LARGEST_WEIGHT = 100
ANONYMOUS = "anonymous"
"""The annotator where nobody says who it is."""
LARGEST_MARGIN_MM = 1000
LONGEST_VALUE = 100  # characters of a client's value in a message


def parse_json_object(text: str, field: str) -> dict[str, Any]:
    """The JSON object in a form field.

    Raises:
        BadRequestError: something else than an object, or what `check_json` refuses.
    """
    try:
        value = json.loads(text) if text else {}
    except (ValueError, RecursionError) as error:
        msg = f"Expected JSON in the field {field!r}, got something else: {type(error).__name__}."
        raise BadRequestError(msg) from error
    if not isinstance(value, dict):
        msg = f"Expected a JSON object in the field {field!r}, got {type(value).__name__}."
        raise BadRequestError(msg)
    check_json(value, field)
    return value


def check_json(value: Any, field: str) -> None:
    """Nothing, if the value can be stored and sent again.

    Raises:
        BadRequestError: it holds NaN or infinity, half a character (a lone surrogate), a null character, or is too deep.
    """
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False)
        text.encode("utf-8")
    except (ValueError, RecursionError, TypeError) as error:
        msg = f"Expected {field!r} to hold plain text and finite numbers, got something else ({type(error).__name__})."
        raise BadRequestError(msg) from error
    if "\\u0000" in text:
        msg = f"Expected {field!r} to hold plain text, got a null character."
        raise BadRequestError(msg)


@dataclass(frozen=True)
class InferRequest:
    """What an inference is asked for.

    Attributes:
        structures: names of structures; None: all that the task offers.
        modality: said by the caller; None: decided by Hermes.
        extension: of the answered label map.
        near: structures in the image's label around which the answer is wanted; None: in all of the image.
        margin_mm: how far around them.
    """

    structures: tuple[str, ...] | None
    modality: Modality | None
    extension: str
    near: tuple[str, ...] | None = None
    margin_mm: float = 20.0

    @classmethod
    def parse(cls, request: Mapping[str, Any]) -> InferRequest:
        """Read a request; keys of viewers that mean nothing here are ignored.

        Raises:
            BadRequestError: a value of the wrong type or out of its vocabulary.
        """
        near, margin_mm = names_in(request, "near"), _margin(request)
        return cls(_structures(request), _modality(request), _extension(request), near, margin_mm)


def _structures(request: Mapping[str, Any]) -> tuple[str, ...] | None:
    names = names_in(request, "structures")
    return None if names == ("all",) else names


def names_in(request: Mapping[str, Any], field: str) -> tuple[str, ...] | None:
    """The names in a field of a request, a list or a text with commas; None where there are none.

    Raises:
        BadRequestError: something else.
    """
    value = request.get(field)
    if isinstance(value, str):
        value = [name.strip() for name in value.split(",") if name.strip()]
    if value in (None, []):
        return None
    if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
        msg = f"Expected {field!r} to be a list of names, got {str(value)[:LONGEST_VALUE]!r}."
        raise BadRequestError(msg)
    return tuple(dict.fromkeys(value))


def _margin(request: Mapping[str, Any]) -> float:
    value = request.get("margin_mm", InferRequest.margin_mm)
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else math.nan
    if not 0 <= number <= LARGEST_MARGIN_MM:
        msg = f"Expected 'margin_mm' to be a number from 0 to {LARGEST_MARGIN_MM}, got {str(value)[:LONGEST_VALUE]!r}."
        raise BadRequestError(msg)
    return float(number)


def _modality(request: Mapping[str, Any]) -> Modality | None:
    value = request.get("modality")
    if isinstance(value, list):  # the whole vocabulary, as the task's config offers it and Slicer echoes it
        value = value[0] if value else None
    if value in (None, "", "auto"):
        return None
    try:
        return Modality.parse(str(value))
    except ValueError as error:
        msg = f"Expected 'modality' to be auto or one of {[m.value for m in Modality]}, got {value!r}."
        raise BadRequestError(msg) from error


def _extension(request: Mapping[str, Any]) -> str:
    extension = request.get("result_extension", ".nii.gz") or ".nii.gz"
    if not isinstance(extension, str) or extension not in _EXTENSIONS:
        msg = f"Expected 'result_extension' out of {_EXTENSIONS}, got {extension!r}."
        raise BadRequestError(msg)
    dtype = request.get("result_dtype") or "uint8"
    if dtype not in _DTYPES:
        msg = f"Expected 'result_dtype' out of {_DTYPES}, got {dtype!r}."
        raise BadRequestError(msg)
    return str(extension)


def uploaded_file(image: str, sessions_directory: str | None) -> Path | None:
    """The path in ``image`` if this server wrote the file itself: an upload or a session's image.

    MONAI Label's endpoint passes uploads and sessions as paths in the field that else holds an image id, so
    a client could name any file of the server there. Only its own temporary files and sessions are accepted.
    """
    path = Path(image)
    try:
        if not path.is_absolute() or not path.exists():
            return None
    except (OSError, ValueError):  # too long for a path, or with a null character
        return None
    real = path.resolve()
    if (
        real.parent == Path(tempfile.gettempdir()).resolve()
        and _UPLOAD.fullmatch(real.name)
        and not path.is_symlink()
    ):
        return real
    if sessions_directory and Path(sessions_directory).resolve() in real.parents:
        return real
    return None


def annotator_of(params: Mapping[str, Any]) -> str:
    """Who sent a request: the user of login or proxy, else the id that the client gives itself."""
    return annotator_in(params) or ANONYMOUS


STOCK_TRAIN_PARAMS = frozenset(
    {
        "model", "name", "pretrained", "device", "max_epochs", "early_stop_patience", "val_split", "train_batch_size",
        "val_batch_size", "multi_gpu", "gpus", "dataset", "dataset_limit", "dataset_randomize", "tracking",
        "tracking_uri", "tracking_experiment_name", "tracking_run_name", "local_rank", "client_id", "model_filename",
    }
)  # fmt: skip
"""What clients of MONAI Label's own trainers send; it means nothing here, and is passed by."""
TRAIN_PARAMS = ("train_steps", "mode", "replay", "distil", "keep", "structures")


def round_options(
    request: Mapping[str, Any], settings: Settings, structures: Sequence[StructureName]
) -> RoundOptions:
    """What a train request chooses; the settings where it is silent.

    Args:
        request: ``train_steps``, ``mode``, ``replay``, ``distil``, ``keep`` and ``structures`` are read.
        settings: of the campaign.
        structures: that the campaign labels.

    Raises:
        BadRequestError: a value of the wrong type or out of its range.
        UnknownStructureError: a structure that the campaign does not label.
    """
    default = RoundOptions.of(settings)
    asked = _structures(request) or ()
    return RoundOptions(
        steps=steps_of(request) or default.steps,
        mode=_choice(request, "mode", MODES, default.mode),
        replay=_weight(request, "replay", default.replay),
        distil=_weight(request, "distil", default.distil),
        keep=_choice(request, "keep", KEEPS, default.keep),
        structures=tuple(match_structure(name, structures) for name in asked),
    )


def refuse_unknown_options(request: Mapping[str, Any]) -> None:
    """Nothing, if a train request holds only what is read, or what stock clients send.

    Raises:
        BadRequestError: it holds something else: a training with the defaults is not what was asked for.
    """
    unknown = sorted(set(request) - set(TRAIN_PARAMS) - STOCK_TRAIN_PARAMS)
    if unknown:
        msg = f"Expected parameters of a training out of {list(TRAIN_PARAMS)}, got {str(unknown)[:LONGEST_VALUE]}."
        raise BadRequestError(msg)


def _choice(request: Mapping[str, Any], key: str, choices: Sequence[str], default: str) -> str:
    value = request.get(key)
    if isinstance(value, list):  # the whole choice, as the trainer's config offers it and Slicer echoes it
        value = value[0] if value else None
    if value in (None, ""):
        return default
    chosen = value.lower() if isinstance(value, str) else value
    if chosen not in choices:
        msg = f"Expected {key!r} to be one of {list(choices)}, got {str(value)[:100]!r}."
        raise BadRequestError(msg)
    return str(chosen)


def _weight(request: Mapping[str, Any], key: str, default: float) -> float:
    value = request.get(key)
    if value in (None, ""):
        return default
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number <= LARGEST_WEIGHT:
        msg = f"Expected {key!r} to be a number from 0 to {LARGEST_WEIGHT}, got {str(value)[:100]!r}."
        raise BadRequestError(msg)
    return number


def steps_of(request: Mapping[str, Any]) -> int | None:
    """``train_steps`` of a train request; None when not given.

    Raises:
        BadRequestError: not a whole number from 1 to 10,000,000.
    """
    value = request.get("train_steps")
    if value in (None, 0, "0", ""):
        return None
    if isinstance(value, bool) or not str(value).isdecimal() or not 1 <= int(value) <= 10_000_000:
        msg = f"Expected 'train_steps' to be a whole number from 1 to 10,000,000, or 0 for automatic, got {value!r}."
        raise BadRequestError(msg)
    return int(value)
