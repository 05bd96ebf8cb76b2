from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from hermes.demo import RoundResult, draw_curve, draw_overlay, folder_dataset, main, sample_dataset
from hermes.errors import BadRequestError
from hermes.geometry import Grid
from hermes.records import LabelMap
from hermes.transforms.writing import write_label_map


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight pairs of 0.8 mm whose labels have the values 1 and 4."""
    grid = Grid((4, 5, 6), np.diag([0.8, 0.8, 2.0, 1.0]))
    array = np.zeros(grid.shape, np.uint8)
    array[0, 0, :2] = 1, 4
    for part in ("images", "labels"):
        (tmp_path / part).mkdir()
        for number in range(8):
            write_label_map(LabelMap(array, grid, {}), tmp_path / part / f"case_{number}.nii.gz")
    (tmp_path / "images" / "without_label.nii.gz").write_bytes(b"x")
    return tmp_path


def test_last_cases_by_name_are_held_out(folder: Path) -> None:
    dataset = folder_dataset(folder, {})
    assert [p.case_id for p in dataset.held_out] == ["case_6", "case_7"]
    assert [p.case_id for p in dataset.pool] == [f"case_{n}" for n in range(6)]
    assert dataset.structures == ("structure 1", "structure 4")
    assert dataset.conf == {"structures": "structure 1,structure 4", "spacing_mm": "0.8"}


def test_names_from_the_settings_or_a_description(folder: Path) -> None:
    named = folder_dataset(folder, {"structures": "head, tail", "spacing_mm": "2"})
    assert named.pool[0].names == {1: "head", 4: "tail"}
    assert named.conf["spacing_mm"] == "2"
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "a", "4": "b"}}))
    assert folder_dataset(folder, {}).structures == ("a", "b")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"background": 0, "c": 1, "d": 4}}))
    assert folder_dataset(folder, {}).structures == ("c", "d")


def test_folder_that_is_no_dataset(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(BadRequestError, match="images/"):
        folder_dataset(tmp_path / "nothing", {})
    with pytest.raises(BadRequestError, match="name in structures for each"):
        folder_dataset(folder, {"structures": "only one"})


def test_sample_campaign_has_truth_for_every_image() -> None:
    dataset = sample_dataset({})
    assert len(dataset.pool) == 24
    assert len(dataset.held_out) == 8
    assert not {p.case_id for p in dataset.pool} & {p.case_id for p in dataset.held_out}
    assert dataset.structures == ("liver", "spleen", "left kidney", "right kidney", "stomach")


def test_wrong_arguments_end_with_a_sentence(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--data", str(folder), "--rounds", "9"]) == 2
    assert "45 images" in capsys.readouterr().err


def test_curve_is_a_picture(tmp_path: Path) -> None:
    rounds = [RoundResult(n, 5 * n, {"liver": 0.1 * n}, 1.0, 2.0, "v") for n in range(3)]
    draw_curve(rounds, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_overlay_is_a_picture(tmp_path: Path) -> None:
    image = np.random.default_rng(0).normal(size=(3, 8, 9))
    truth = np.zeros(image.shape, np.uint8)
    truth[1, 2:5, 2:5] = 1
    draw_overlay(image, truth, np.zeros_like(truth), "title", tmp_path / "overlay.png")
    assert (tmp_path / "overlay.png").read_bytes().startswith(b"\x89PNG")
