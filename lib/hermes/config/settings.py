"""The settings of one campaign: parsed, written, and where they put it on disk."""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from hermes.config.parsing import Quota
from hermes.config.table import SETTINGS, Setting
from hermes.errors import BadRequestError, UnknownSettingError
from hermes.types import Modality

FOREIGN_KEYS = ("server_mode",)
"""Keys that MONAI Label itself puts among an app's settings; they are known and mean nothing here."""


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
    keep: str
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
