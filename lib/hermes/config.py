"""Settings of a campaign: one table, read once, in which a misspelled key or a bad value is an error.

>>> from_conf({"labels_per_round": "3", "structures": "liver, left kidney"}).structures
('liver', 'left kidney')
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hermes.errors import BadRequestError, UnknownSettingError
from hermes.types import Modality

AUTO = "auto"
"""The word with which a setting leaves the choice to Hermes."""

FOREIGN_KEYS = ("server_mode",)
"""Keys that MONAI Label itself puts among an app's settings; they are known and mean nothing here."""

STRATEGY_NAMES = (
    "uncertainty", "random", "foreground", "clasp", "coverage", "core-set", "hybrid", "disagreement", "first", "last",
)  # fmt: skip
"""The strategies of `hermes.strategies`, which this module does not import."""

PATCH_DIVISOR = 16
"""The networks halve a volume four times, so a patch's sides are multiples of this."""


@dataclass(frozen=True)
class Setting:
    """One row of the table.

    Attributes:
        name: the ``--conf`` key; a quantity has its unit in it.
        default: as one would write it on the command line.
        help: one sentence for a person who sets it.
        parse: text -> value; raises ValueError that says what was expected.
    """

    name: str
    default: str
    help: str
    parse: Callable[[str], Any]


@dataclass(frozen=True)
class Quota:
    """In how many images a structure is to be drawn.

    >>> str(Quota("liver", 50))
    'liver=50'
    """

    structure: str
    images: int

    def __str__(self) -> str:
        return f"{self.structure}={self.images}"


@dataclass(frozen=True)
class Settings:
    """The settings of a campaign, parsed; each field is the row of `SETTINGS` with its name.

    Attributes that leave the choice to Hermes hold ``None``: ``model`` (the starter), ``campaign_dir`` (see
    `campaign_directory`), ``modality`` (decided per image), ``spacing_mm`` (the model's),
    ``train_steps_per_round``, ``train_patch_voxels`` (z, y, x) and ``learning_rate`` (the recipe's),
    ``training_threads`` (torch's). Empty ``structures`` are all of the model's; ``labels_per_round`` 0 never
    trains by itself.
    """

    structures: tuple[str, ...]
    labels_per_round: int
    model: Path | None
    campaign_dir: str | None
    strategy: str
    modality: Modality | None
    device: str
    precision: str
    spacing_mm: float | None
    train_steps_per_round: int | None
    train_batch_size: int
    train_patch_voxels: tuple[int, int, int] | None
    learning_rate: float | None
    training_threads: int | None
    train_mode: str
    replay: float
    distil: float
    holdout_share: float
    gate_task_margin: float
    gate_margin: float
    tensorboard: bool
    mlflow: bool
    window_overlap: float
    inference_memory_gib: float
    score_images_per_round: int
    score_minutes_per_round: float
    score_storage_mib: float
    prelabel: bool
    lease_minutes: float
    labels_per_image: int
    required_structures: tuple[str, ...]
    quotas: tuple[Quota, ...]
    round_hours: float
    stop_dice: float
    stop_submissions: int
    user_header: str
    allowed_hosts: tuple[str, ...]
    pacs_modalities: tuple[str, ...]
    pacs_filter: str
    pacs_refresh_seconds: float
    pacs_cache_gib: float
    pacs_upload_predictions: bool
    seed: int

    def to_conf(self) -> dict[str, str]:
        """The settings as `from_conf` reads them: what a second process is given, and a manifest keeps."""
        written = {field.name: _written(getattr(self, field.name)) for field in fields(self)}
        return {s.name: s.default if written[s.name] is None else str(written[s.name]) for s in SETTINGS}


def _written(value: Any) -> str | None:
    if value is None:
        return None
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ",".join(str(part) for part in value)
    return value.value if isinstance(value, Modality) else str(value)


# ------------------------------------------------------------------------------------------------ parsers


def _text(text: str) -> str:
    return text


def _or_none(text: str) -> str | None:
    return text or None


def _directory(text: str) -> Path | None:
    return Path(text).expanduser() if text else None


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(",")) if text.strip() else ()
    if not all(names):
        msg = "names separated by single commas"
        raise ValueError(msg)
    return names


def _quotas(text: str) -> tuple[Quota, ...]:
    quotas = []
    for part in _names(text):
        name, _, number = (piece.strip() for piece in part.rpartition("="))
        if not name or not number.isdecimal() or not 0 < int(number) <= 10_000_000:
            msg = "structures with their numbers of images, such as liver=50,pancreas=80"
            raise ValueError(msg)
        quotas.append(Quota(name, int(number)))
    if len({quota.structure for quota in quotas}) < len(quotas):
        msg = "one quota per structure"
        raise ValueError(msg)
    return tuple(quotas)


def _header(text: str) -> str:
    if text and not all(c.isalnum() or c == "-" for c in text):
        msg = "the name of a header, such as X-Remote-User"
        raise ValueError(msg)
    return text


def _hosts(text: str) -> tuple[str, ...]:
    hosts = tuple(name.lower().strip("[]").rstrip(".") for name in _names(text))
    if not all(name == "*" or all(c.isalnum() or c in ".-_:" for c in name) for name in hosts):
        msg = "names of hosts without http:// and port, separated by commas, or *"
        raise ValueError(msg)
    return hosts


def _modalities(text: str) -> tuple[str, ...]:
    found = tuple(part.strip().upper() for part in text.split(","))
    if not all(part.isalnum() for part in found):
        msg = "DICOM modalities separated by commas, such as CT,MR,PT"
        raise ValueError(msg)
    return found


def _conditions(text: str) -> str:
    pairs = [part.strip() for part in text.split("&") if part.strip()]
    if not all("=" in pair and pair.partition("=")[0].strip().isalnum() for pair in pairs):
        msg = "attribute=value pairs joined by &, such as StudyDate=20240101-&BodyPartExamined=ABDOMEN"
        raise ValueError(msg)
    return "&".join(pairs)


def _choice(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            msg = f"one of {', '.join(choices)}"
            raise ValueError(msg)
        return text.lower()

    return parse


def _switch(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        msg = "true or false"
        raise ValueError(msg)
    return text.lower() == "true"


def _whole(low: int, high: int, *, zero_is_none: bool = False) -> Callable[[str], int | None]:
    def parse(text: str) -> int | None:
        value = int(text) if text.isdecimal() else None
        if zero_is_none and value == 0:
            return None
        if value is None or not low <= value <= high:
            msg = f"{'0, or ' if zero_is_none else ''}a whole number from {low} to {high}"
            raise ValueError(msg)
        return value

    return parse


def _number(low: float, high: float, *, zero_is_none: bool = False) -> Callable[[str], float | None]:
    def parse(text: str) -> float | None:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if zero_is_none and value == 0:
            return None
        if not low <= value <= high:  # also where it is not a number
            msg = f"{'0, or ' if zero_is_none else ''}a number from {low:g} to {high:g}"
            raise ValueError(msg)
        return value

    return parse


def _patch(text: str) -> tuple[int, int, int] | None:
    if text.lower() == AUTO:
        return None
    sides = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if len(sides) != 3 or any(side <= 0 or side % PATCH_DIVISOR for side in sides):
        msg = f"auto, or three positive multiples of {PATCH_DIVISOR} (z,y,x), such as 48,64,48"
        raise ValueError(msg)
    return sides[0], sides[1], sides[2]


def _modality(text: str) -> Modality | None:
    if text.lower() == AUTO:
        return None
    try:
        return Modality.parse(text)
    except ValueError as error:
        msg = f"auto, or one of {', '.join(modality.value for modality in Modality)}"
        raise ValueError(msg) from error


def _device(text: str) -> str:
    kind, _, number = text.lower().partition(":")
    if text.lower() in (AUTO, "cpu") or (kind == "cuda" and (number.isdecimal() or text.lower() == "cuda")):
        return text.lower()
    msg = "auto, cpu, cuda, or cuda:0, cuda:1, ..."
    raise ValueError(msg)


# ------------------------------------------------------------------------------------------------ table

SETTINGS: tuple[Setting, ...] = (
    Setting(
        "structures",
        "",
        "What the campaign labels, separated by commas; names the model does not know become new tasks; "
        "empty: all that the model knows.",
        _names,
    ),
    Setting(
        "labels_per_round",
        "5",
        "Training starts by itself after this many images with new labels; 0: only by hand.",
        _whole(0, 100_000),
    ),
    Setting("model", "", "Directory of the model to begin with; empty: the starter model.", _directory),
    Setting(
        "campaign_dir",
        "",
        "Where the campaign keeps its database, cache and models; empty: `.hermes` in a folder of studies, "
        "a folder of its own in `~/.local/share/hermes` for a DICOMweb server.",
        _or_none,
    ),
    Setting(
        "strategy",
        "foreground",
        f"Which image is offered next: {', '.join(STRATEGY_NAMES)}; measured in docs/active-learning.md.",
        _choice(*STRATEGY_NAMES),
    ),
    Setting(
        "modality",
        AUTO,
        "Modality of all images (CT, PET, T1, T2, cine), where the images themselves do not say it; "
        "auto: decided for each image.",
        _modality,
    ),
    Setting("device", AUTO, "Where the network runs: auto, cpu, cuda, cuda:0, ...", _device),
    Setting(
        "precision",
        AUTO,
        "Arithmetic of the network: fp32, bf16, or auto (bf16 on GPUs and CPUs that multiply it natively).",
        _choice(AUTO, "fp32", "bf16"),
    ),
    Setting(
        "spacing_mm",
        "0",
        "Voxel size at which the network sees an image, 0.3 to 10; 0: the model's own.",
        _number(0.3, 10, zero_is_none=True),
    ),
    Setting(
        "train_steps_per_round",
        "0",
        "Optimiser steps of a training round; 0: as many as the device and the number of labels suggest.",
        _whole(1, 10_000_000, zero_is_none=True),
    ),
    Setting("train_batch_size", "2", "Patches per optimiser step.", _whole(1, 1024)),
    Setting(
        "train_patch_voxels",
        AUTO,
        "Size z,y,x of a training patch, multiples of 16, such as 48,64,48; auto: fitted to the images.",
        _patch,
    ),
    Setting(
        "learning_rate",
        "0",
        "Peak learning rate of training; 0: the recipe's.",
        _number(1e-8, 1, zero_is_none=True),
    ),
    Setting(
        "training_threads",
        "0",
        "CPU threads of the training process; 0: what torch takes.",
        _whole(1, 1024, zero_is_none=True),
    ),
    Setting(
        "train_mode",
        "full",
        "What a round trains: full (all of the network), or priors (the rows of new structures and nothing else).",
        _choice("full", "priors"),
    ),
    Setting(
        "replay",
        "1",
        "How often cases of earlier rounds are drawn beside those with new labels, 0 to 100; 1: all cases alike, "
        "0: new labels only.",
        _number(0, 100),
    ),
    Setting(
        "distil",
        "1",
        "Weight of the loss that keeps what the serving model says of structures not annotated in a case, 0 to 100.",
        _number(0, 100),
    ),
    Setting(
        "holdout_share",
        "0.2",
        "Part of the patients whose labels measure every candidate model and train none, 0 to 0.9; a patient is "
        "assigned once, when the first image comes; 0: none.",
        _number(0, 0.9),
    ),
    Setting(
        "gate_task_margin",
        "0.02",
        "How much Dice a structure may lose on the hold-out before a candidate is refused, 0 to 1.",
        _number(0, 1),
    ),
    Setting(
        "gate_margin",
        "0.005",
        "How much mean Dice a candidate may lose on the hold-out before it is refused, 0 to 1.",
        _number(0, 1),
    ),
    Setting(
        "tensorboard",
        "false",
        "Whether rounds write curves and example pictures for TensorBoard, below `logs/tensorboard` of the campaign.",
        _switch,
    ),
    Setting(
        "mlflow",
        "false",
        "Whether rounds write curves and example pictures for MLflow, in a SQLite store in `logs/mlflow` of the campaign.",
        _switch,
    ),
    Setting(
        "window_overlap",
        "0.5",
        "Overlap of neighbouring windows in inference, as a part of the window, 0 to 0.9.",
        _number(0, 0.9),
    ),
    Setting(
        "inference_memory_gib",
        "2.0",
        "Memory that inference may use for windows and accumulators, beside the network and the image.",
        _number(0.05, 1024),
    ),
    Setting(
        "score_images_per_round",
        "64",
        "How many unlabelled images are scored after a model is published; 0: none.",
        _whole(0, 1_000_000),
    ),
    Setting(
        "score_minutes_per_round",
        "0",
        "How long images are scored after a model is published, in minutes of inference; 0: until enough are.",
        _number(0, 100_000),
    ),
    Setting(
        "score_storage_mib",
        "256",
        "How much the database may hold of what versions found in images; older versions are forgotten first.",
        _number(1, 1_000_000),
    ),
    Setting(
        "prelabel",
        "false",
        "Whether the serving model labels waiting images ahead, as `original` labels that viewers open at once; "
        "they are made anew after a publication.",
        _switch,
    ),
    Setting(
        "lease_minutes",
        "30",
        "How long an image that was offered to one annotator is not offered to another; 0: not at all.",
        _number(0, 100_000),
    ),
    Setting(
        "labels_per_image",
        "1",
        "How many annotators label each image; with more than one their agreement is measured.",
        _whole(1, 100),
    ),
    Setting(
        "required_structures",
        "",
        "What has to be annotated (drawn, or declared absent) before an image is done, separated by commas, or `all`; "
        "empty: an image with any label is done.",
        _names,
    ),
    Setting(
        "quotas",
        "",
        "In how many images structures are to be drawn, such as liver=50,pancreas=80; images that serve only full "
        "quotas come last.",
        _quotas,
    ),
    Setting(
        "round_hours",
        "0",
        "Training starts by itself so many hours after the last one began, when there is a new label; 0: not by time.",
        _number(0, 100_000),
    ),
    Setting(
        "stop_dice",
        "0.95",
        "The report advises to stop when the last submissions agree with what the model offered at least as well, "
        "0 to 1.",
        _number(0, 1),
    ),
    Setting("stop_submissions", "20", "How many last submissions `stop_dice` is about.", _whole(1, 100_000)),
    Setting(
        "user_header",
        "",
        "Header in which a proxy names the annotator, such as X-Remote-User; empty: none is believed. Set it only "
        "behind a proxy that removes it from what clients send, since anybody can write it.",
        _header,
    ),
    Setting(
        "allowed_hosts",
        "",
        "Names by which browsers may address the server, beside localhost and 127.0.0.1, separated by commas; *: any. "
        "Empty: any, but with `make serve` on a loopback HOST (the default) none, so that web pages of others cannot come "
        "in by a name that points to this machine.",
        _hosts,
    ),
    Setting(
        "pacs_modalities",
        "CT,MR,PT",
        "Modalities of the series of a DICOMweb server that are images of the campaign.",
        _modalities,
    ),
    Setting(
        "pacs_filter",
        "",
        "Further conditions on the series of a DICOMweb server, QIDO attributes joined by &, such as "
        "StudyDate=20240101-&BodyPartExamined=ABDOMEN; empty: all.",
        _conditions,
    ),
    Setting(
        "pacs_refresh_seconds",
        "2",
        "How old the lists of a DICOMweb server may be when somebody asks, 0.1 to 3600.",
        _number(0.1, 3600),
    ),
    Setting(
        "pacs_cache_gib",
        "50",
        "How much the downloaded series of a DICOMweb server may take on disk; those used longest ago go first.",
        _number(0.01, 1_000_000),
    ),
    Setting(
        "pacs_upload_predictions",
        "false",
        "Whether predictions that are kept as labels (`original`) are stored in the PACS, too, marked AUTOMATIC.",
        _switch,
    ),
    Setting("seed", "0", "Seed of everything random.", _whole(0, 2**32 - 1)),
)
"""Every setting; the order is that of the documentation."""


def from_conf(conf: Mapping[str, str]) -> Settings:
    """The settings that ``conf`` (``--conf`` keys and values) asks for; the defaults for the others.

    Raises:
        UnknownSettingError: a key that is no setting; the message lists the known ones.
        BadRequestError: a value that cannot be read, or is out of its range.
    """
    by_name = {setting.name: setting for setting in SETTINGS}
    for name in conf:
        if name not in by_name and name not in FOREIGN_KEYS:
            raise UnknownSettingError(_unknown(name, list(by_name)))
    return Settings(**{name: _value(setting, conf.get(name)) for name, setting in by_name.items()})


def _value(setting: Setting, given: str | None) -> Any:
    text = setting.default if given is None else str(given).strip()
    try:
        return setting.parse(text)
    except ValueError as error:
        msg = f"Setting {setting.name!r}: expected {error}, got {text!r}."
        raise BadRequestError(msg) from error


def _unknown(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"Unknown setting {name!r}.{hint} There are: {', '.join(known)}."


def settings_markdown() -> str:
    """The table of settings for the README, in Markdown, without a newline at its end."""
    lines = ["| setting | default | what it does |", "|---|---|---|"]
    lines += [f"| `{s.name}` | {f'`{s.default}`' if s.default else '(empty)'} | {s.help} |" for s in SETTINGS]
    return "\n".join(lines)


def campaign_directory(settings: Settings, studies: str, *, data_home: Path | None = None) -> Path:
    """The absolute directory of the campaign on ``studies``; nothing is created.

    Args:
        settings: ``campaign_dir`` decides where it is given; relative to the current directory.
        studies: a local folder, or the URL of a DICOMweb server.
        data_home: under which the campaigns on servers lie; ``~/.local/share`` where not given.
    """
    if settings.campaign_dir is not None:
        return Path(settings.campaign_dir).expanduser().absolute()
    if "://" in studies:
        home = Path.home() / ".local" / "share" if data_home is None else data_home
        return home / "hermes" / hashlib.sha256(studies.rstrip("/").encode()).hexdigest()[:16]
    return Path(studies).expanduser().absolute() / ".hermes"
