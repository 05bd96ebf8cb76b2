from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hermes.errors import BadLabelError, BadRequestError, GeometryMismatchError, UnknownStructureError
from hermes.geometry import Grid
from hermes.records import LabelMap
from hermes.submission import (
    LabelArchive,
    Submission,
    campaign_values,
    check_submission,
    match_structure,
    read_submission,
)
from hermes.transforms.reading import read_label_map
from hermes.transforms.writing import write_label_map

STRUCTURES = ("left kidney", "liver", "spleen")
GRID = Grid((4, 5, 6), np.diag([2.0, 2.0, 3.0, 1.0]))


@pytest.fixture
def label(tmp_path: Path) -> Callable[..., Path]:
    def write(*values: int, grid: Grid = GRID) -> Path:
        array = np.zeros(grid.shape, np.uint8)
        array.flat[: len(values)] = values
        return write_label_map(LabelMap(array, grid, {}), tmp_path / "label.nii.gz")

    return write


def read(path: Path, params: dict[str, Any]) -> Submission:
    return read_submission(path, params, image_grid=GRID, structures=STRUCTURES)


def test_values_are_read_by_name_and_not_by_rank(label: Callable[..., Path]) -> None:
    info = [{"name": "spleen", "idx": 7}, {"name": "liver", "idx": 3}]
    found = read(label(7, 3, 3), {"label_info": info})
    assert found.label_map.array.flat[:4].tolist() == [3, 2, 2, 0]
    assert found.annotated == {"liver": "present", "spleen": "present"}
    assert found.label_map.names == {2: "liver", 3: "spleen"}


def test_name_without_a_voxel_was_not_annotated(label: Callable[..., Path]) -> None:
    info = [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 2}]
    assert read(label(1), {"label_info": info}).annotated == {"liver": "present"}


def test_absent_is_said_explicitly(label: Callable[..., Path]) -> None:
    found = read(label(1), {"label_info": [{"name": "liver", "idx": 1}], "absent": ["Spleen"]})
    assert found.annotated == {"liver": "present", "spleen": "absent"}
    nothing = read(label(), {"absent": ["liver"]})
    assert nothing.annotated == {"liver": "absent"}
    assert not nothing.label_map.array.any()


def test_background_of_viewers_is_no_structure(label: Callable[..., Path]) -> None:
    info = [{"name": "background", "idx": 0}, {"name": "kidney_left", "idx": 1}]
    assert read(label(1), {"label_info": info}).annotated == {"left kidney": "present"}


SHIFTED = [{"name": "left kidney", "idx": 2}, {"name": "liver", "idx": 3}, {"name": "spleen", "idx": 4}]
"""What 3D Slicer sends when a segment for the background comes first: the file counts without it."""


@pytest.mark.parametrize(
    ("values", "meant"),
    [((1, 2, 3), (1, 2, 3)), ((1,), (1,)), ((4, 2), (3, 1)), ((4,), (3,))],
    ids=["all, by order", "by order", "by idx", "only idx fits"],
)
def test_numbers_that_slicer_shifts(
    label: Callable[..., Path], values: tuple[int, ...], meant: tuple[int, ...]
) -> None:
    found = read(label(*values), {"label_info": SHIFTED})
    assert found.label_map.array.flat[: len(values)].tolist() == list(meant)


def test_numbers_that_could_be_shifted_or_not_are_refused_unless_said(label: Callable[..., Path]) -> None:
    with pytest.raises(BadLabelError, match="two things"):
        read(label(3), {"label_info": SHIFTED})
    said = read(label(3), {"label_info": SHIFTED, "label_values": "idx"})
    assert said.annotated == {"liver": "present"}
    with pytest.raises(BadRequestError, match="label_values"):
        read(label(3), {"label_info": SHIFTED, "label_values": "rank"})


@pytest.mark.parametrize(
    ("first", "second"),
    [("liver", "liver"), ("liver", "Liver"), ("Left Kidney", "left_kidney"), ("kidney_left", "left kidney")],
)
@pytest.mark.parametrize("values", [(1, 2), (1,)], ids=["both drawn", "one drawn"])
def test_a_structure_that_is_named_twice_is_refused(
    label: Callable[..., Path], first: str, second: str, values: tuple[int, ...]
) -> None:
    info = [{"name": first, "idx": 1}, {"name": second, "idx": 2}]
    with pytest.raises(BadRequestError, match=f"'{first}'.*'{second}'"):
        read(label(*values), {"label_info": info})


def test_a_structure_that_the_file_names_twice_is_refused() -> None:
    array = np.zeros(GRID.shape, np.uint8)
    array.flat[:2] = 1, 2
    twice = LabelMap(array, GRID, {1: "liver", 2: "Liver"})
    with pytest.raises(BadRequestError, match=r"'liver'.*'Liver'"):
        check_submission(twice, {}, image_grid=GRID, structures=STRUCTURES)


def test_one_value_of_one_name_given_twice_is_refused(label: Callable[..., Path]) -> None:
    with pytest.raises(BadRequestError, match="value 1 has 'liver' and 'liver'"):
        read(label(1), {"label_info": [{"name": "liver", "idx": 1}] * 2})


def test_segments_of_viewers_may_come_twice(label: Callable[..., Path]) -> None:
    info = [{"name": name, "idx": 0} for name in ("background", "background", "Background_scribbles")]
    found = read(label(1), {"label_info": [*info, {"name": "liver", "idx": 1}]})
    assert found.annotated == {"liver": "present"}


@pytest.mark.parametrize(
    ("values", "params", "error", "words"),
    [
        ((1,), {}, BadLabelError, "without a name"),
        ((1, 2), {"label_info": [{"name": "liver", "idx": 1}]}, BadLabelError, r"\[2\] without a name"),
        ((), {"label_info": [{"name": "liver", "idx": 1}]}, BadLabelError, "empty"),
        ((1,), {"label_info": [{"name": "livr", "idx": 1}]}, UnknownStructureError, "Did you mean 'liver'"),
        ((1,), {"label_info": [{"name": "liver"}]}, BadRequestError, "idx"),
        ((1,), {"label_info": [{"name": "liver", "idx": True}]}, BadRequestError, "idx"),
        ((1,), {"label_info": {"liver": 1}}, BadRequestError, "label_info"),
        ((1,), {"label_info": [{"name": "liver", "idx": 1}], "absent": "spleen"}, BadRequestError, "absent"),
        ((1,), {"label_info": [{"name": "liver", "idx": 1}], "absent": ["liver"]}, BadLabelError, "absent"),
        (
            (1,),
            {"label_info": [{"name": "liver", "idx": 1}, {"name": "spleen", "idx": 1}]},
            BadRequestError,
            "one name per value",
        ),
    ],
)
def test_refusals(
    label: Callable[..., Path],
    values: tuple[int, ...],
    params: dict[str, Any],
    error: type[Exception],
    words: str,
) -> None:
    with pytest.raises(error, match=words):
        read(label(*values), params)


def test_another_grid_is_refused(label: Callable[..., Path]) -> None:
    other = Grid(GRID.shape, np.diag([2.0, 2.0, 4.0, 1.0]))
    with pytest.raises(GeometryMismatchError, match="spacings"):
        read(label(1, grid=other), {"label_info": [{"name": "liver", "idx": 1}]})


def test_ambiguous_name() -> None:
    with pytest.raises(UnknownStructureError, match="ambiguous"):
        match_structure("liver", ("liver@A", "liver@B"))
    assert match_structure("liver@B", ("liver@A", "liver@B")) == "liver@B"


def test_archive_never_overwrites(tmp_path: Path) -> None:
    archive = LabelArchive(tmp_path)
    paths = []
    for value in (1, 2):
        array = np.full(GRID.shape, value, np.uint8)
        name = STRUCTURES[value - 1]
        paths.append(
            archive.write("case", Submission(LabelMap(array, GRID, {value: name}), {name: "present"}))
        )
    assert [p.name for p in paths] == ["0001.nii.gz", "0002.nii.gz"]
    assert [int(read_label_map(p).array.max()) for p in paths] == [1, 2]
    assert [archive.names_of(p) for p in paths] == [{1: "left kidney"}, {2: "liver"}]


def test_values_follow_the_order_of_the_campaign() -> None:
    assert campaign_values(STRUCTURES) == {"left kidney": 1, "liver": 2, "spleen": 3}
