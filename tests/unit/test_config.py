"""Settings: the defaults, every range, and errors that say what to do."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from hermes.config import SETTINGS, Quota, Settings, campaign_directory, from_conf, settings_markdown
from hermes.errors import BadRequestError, UnknownSettingError
from hermes.strategies import STRATEGIES
from hermes.types import Modality

DEFAULTS = Settings(
    structures=(),
    labels_per_round=5,
    model=None,
    campaign_dir=None,
    strategy="foreground",
    modality=None,
    device="auto",
    precision="auto",
    spacing_mm=None,
    train_steps_per_round=None,
    train_batch_size=2,
    train_patch_voxels=None,
    learning_rate=None,
    training_threads=None,
    train_mode="full",
    replay=1.0,
    distil=2.0,
    keep="named",
    holdout_share=0.2,
    gate_task_margin=0.02,
    gate_margin=0.005,
    tensorboard=False,
    mlflow=False,
    window_overlap=0.5,
    inference_memory_gib=2.0,
    score_images_per_round=64,
    score_minutes_per_round=0.0,
    score_storage_mib=256.0,
    prelabel=False,
    lease_minutes=30.0,
    labels_per_image=1,
    required_structures=(),
    quotas=(),
    round_hours=0.0,
    stop_dice=0.95,
    stop_submissions=20,
    user_header="",
    allowed_hosts=(),
    pacs_modalities=("CT", "MR", "PT"),
    pacs_filter="",
    pacs_refresh_seconds=2.0,
    pacs_cache_gib=50.0,
    pacs_upload_predictions=False,
    seed=0,
)


def test_defaults() -> None:
    assert from_conf({}) == DEFAULTS
    assert from_conf({"server_mode": "true"}) == DEFAULTS
    assert from_conf({setting.name: setting.default for setting in SETTINGS}) == DEFAULTS


def test_the_table_and_the_dataclass_have_the_same_names_in_the_same_order() -> None:
    assert [setting.name for setting in SETTINGS] == [field.name for field in fields(Settings)]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("structures", " liver , left kidney", ("liver", "left kidney")),
        ("pacs_modalities", "ct, MR", ("CT", "MR")),
        (
            "pacs_filter",
            "StudyDate=20240101- & BodyPartExamined=ABDOMEN",
            "StudyDate=20240101-&BodyPartExamined=ABDOMEN",
        ),
        ("structures", "liver@BCV", ("liver@BCV",)),
        ("labels_per_round", "0", 0),
        ("labels_per_round", " 12 ", 12),
        ("model", "models/v1", Path("models/v1")),
        ("campaign_dir", "/data/c", "/data/c"),
        ("strategy", "Random", "random"),
        ("modality", "PT", Modality.PET),
        ("modality", "AUTO", None),
        ("device", "cuda:1", "cuda:1"),
        ("device", "CPU", "cpu"),
        ("precision", "bf16", "bf16"),
        ("spacing_mm", "1.5", 1.5),
        ("spacing_mm", "0.0", None),
        ("train_steps_per_round", "100", 100),
        ("train_batch_size", "1", 1),
        ("train_patch_voxels", "48, 64,48", (48, 64, 48)),
        ("learning_rate", "2e-3", 0.002),
        ("training_threads", "2", 2),
        ("window_overlap", "0", 0.0),
        ("inference_memory_gib", "0.5", 0.5),
        ("score_images_per_round", "0", 0),
        ("lease_minutes", "0.5", 0.5),
        ("labels_per_image", "3", 3),
        ("required_structures", "liver, spleen", ("liver", "spleen")),
        ("quotas", "liver=50, left kidney = 8", (Quota("liver", 50), Quota("left kidney", 8))),
        ("round_hours", "0.5", 0.5),
        ("user_header", "X-Remote-User", "X-Remote-User"),
        ("allowed_hosts", "Hermes.Hospital.org, [fd00::1], *", ("hermes.hospital.org", "fd00::1", "*")),
        ("seed", "4294967295", 4294967295),
    ],
)
def test_values_are_read(name: str, text: str, value: Any) -> None:
    assert getattr(from_conf({name: text}), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("structures", "liver,,spleen"),
        ("labels_per_round", "-1"),
        ("labels_per_round", "five"),
        ("labels_per_round", "2.5"),
        ("labels_per_round", ""),
        ("labels_per_round", "²"),
        ("strategy", "clever"),
        ("modality", "US"),
        ("device", "cuda:"),
        ("device", "tpu"),
        ("precision", "fp16"),
        ("spacing_mm", "0.2"),
        ("spacing_mm", "11"),
        ("spacing_mm", "nan"),
        ("train_steps_per_round", "-5"),
        ("train_batch_size", "0"),
        ("train_patch_voxels", "48,64"),
        ("train_patch_voxels", "48,64,50"),
        ("train_patch_voxels", "0,64,48"),
        ("train_patch_voxels", "-48,64,48"),
        ("train_patch_voxels", "²,64,48"),
        ("learning_rate", "2"),
        ("training_threads", "-1"),
        ("window_overlap", "1"),
        ("inference_memory_gib", "0"),
        ("score_images_per_round", "-1"),
        ("lease_minutes", "inf"),
        ("labels_per_image", "0"),
        ("quotas", "liver"),
        ("quotas", "liver=0"),
        ("quotas", "liver=5,liver=6"),
        ("user_header", "X Remote: User"),
        ("allowed_hosts", "http://hermes.hospital.org"),
        ("allowed_hosts", "hermes.hospital.org/ohif"),
        ("seed", "-1"),
    ],
)
def test_a_bad_value_is_an_error_that_names_setting_and_value(name: str, text: str) -> None:
    with pytest.raises(
        BadRequestError,
        match=f"'{name}': expected (0|a|one|auto|names|the name|structures)[ ,].*, got {text!r}",
    ):
        from_conf({name: text})


def test_an_unknown_key_lists_the_known_ones_and_the_nearest() -> None:
    with pytest.raises(
        UnknownSettingError, match=r"'label_per_round'. Did you mean 'labels_per_round'\?"
    ) as caught:
        from_conf({"label_per_round": "3"})
    assert all(setting.name in str(caught.value) for setting in SETTINGS)


def test_settings_survive_being_handed_to_another_process() -> None:
    conf = {
        "structures": "liver, left kidney", "model": "m/v1", "campaign_dir": "c", "strategy": "first",
        "modality": "cine", "device": "cpu", "spacing_mm": "1.25", "train_patch_voxels": "32,48,64",
        "learning_rate": "0.001", "training_threads": "1", "lease_minutes": "2.5", "quotas": "liver=5,spleen=6", "seed": "7",
    }  # fmt: skip
    settings = from_conf(conf)
    assert from_conf(settings.to_conf()) == settings
    assert settings.to_conf()["train_patch_voxels"] == "32,48,64"
    assert from_conf(DEFAULTS.to_conf()) == DEFAULTS


def test_the_strategies_that_can_be_set_are_those_that_there_are() -> None:
    for name in STRATEGIES:
        assert from_conf({"strategy": name}).strategy == name
    with pytest.raises(BadRequestError) as caught:
        from_conf({"strategy": "?"})
    offered = str(caught.value).split("one of ")[1].split(", got")[0].split(", ")
    assert set(offered) == set(STRATEGIES)


def test_the_table_in_markdown() -> None:
    lines = settings_markdown().splitlines()
    assert len(lines) == len(SETTINGS) + 2
    assert all(line.count("|") == 4 for line in lines)
    assert lines[2].startswith("| `structures` | (empty) | What the campaign labels")
    assert "| `labels_per_round` | `5` |" in lines[3]


def test_where_a_campaign_lives(tmp_path: Path) -> None:
    assert campaign_directory(from_conf({"campaign_dir": str(tmp_path / "x")}), "http://s") == tmp_path / "x"
    assert campaign_directory(DEFAULTS, str(tmp_path)) == tmp_path / ".hermes"
    one = campaign_directory(DEFAULTS, "http://pacs:8042/dicom-web", data_home=tmp_path)
    assert one == campaign_directory(DEFAULTS, "http://pacs:8042/dicom-web/", data_home=tmp_path)
    assert one != campaign_directory(DEFAULTS, "http://other:8042/dicom-web", data_home=tmp_path)
    assert one.parent == tmp_path / "hermes"
    assert list(tmp_path.iterdir()) == []
