"""Manifests of ``hermes train``: what they say, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from hermes.errors import BadRequestError, NotFoundError
from hermes.training.plan import find_pairs, read_plan
from hermes.types import Modality

DATASET = {"name": "A", "images": "img", "labels": "lab", "structures": {1: "liver", 2: "spleen"}}


def plan_of(folder: Path, **values: Any) -> Path:
    file = folder / "plan.yaml"
    file.write_text(yaml.safe_dump({"datasets": [DATASET], **values}))
    return file


def test_what_a_manifest_says(tmp_path: Path) -> None:
    dataset = {**DATASET, "absent": "all", "modality": "ct", "weight": 2}
    plan = read_plan(
        plan_of(tmp_path, datasets=[dataset], network={"name": "hermes-r", "width": 16}, start="v1", patch=64)
    )
    (one,) = plan.datasets
    assert (one.absent, one.modality, one.weight) == (frozenset({"liver", "spleen"}), Modality.CT, 2.0)
    assert (plan.network, plan.width, plan.start, plan.patch) == (
        "hermes-r",
        16,
        tmp_path / "v1",
        (64, 64, 64),
    )
    assert (plan.held_out, plan.seed, plan.steps, plan.batch_size) == (0.2, 0, None, 2)
    noted = json.loads(json.dumps(plan.to_json()))["datasets"][0]
    assert (noted["structures"], noted["modality"]) == ({"1": "liver", "2": "spleen"}, "CT")
    assert str(tmp_path) not in str(plan.to_json())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"stepz": 3}, "keys in the manifest.*stepz"),
        ({"datasets": []}, "at least one dataset"),
        ({"datasets": [{**DATASET, "label": 1}]}, "keys in a dataset.*label"),
        ({"datasets": [{"name": "A"}]}, "missing"),
        ({"datasets": [DATASET, DATASET]}, "twice"),
        ({"datasets": [{**DATASET, "structures": {0: "liver"}}]}, "values from 1"),
        ({"datasets": [{**DATASET, "structures": {1: "liver", 2: "liver"}}]}, "each name once"),
        ({"datasets": [{**DATASET, "absent": ["aorta"]}]}, "absent"),
        ({"datasets": [{**DATASET, "modality": "photo"}]}, "modality"),
        ({"datasets": [{**DATASET, "weight": 0}]}, "weight of A"),
        ({"network": "hermes-c"}, "network"),
        ({"patch": [64, 64, 60]}, "multiples of 16"),
        ({"patch": [16, 16, 16]}, "more than 16 voxels along at least one axis"),
        ({"patch": 16}, "more than 16 voxels along at least one axis"),
        ({"steps": -1}, "steps"),
        ({"held_out": 1}, "held_out"),
        ({"patient": "(case"}, "regular expression \\(missing"),
        ({"patient": "case"}, "a group for the patient"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        read_plan(plan_of(tmp_path, **values))


NO_NUMBERS = ["abc", [1], True, math.inf, math.nan, -1, 10**400]
OF_THE_PLAN: dict[str, list[Any]] = {
    "seed": ["abc", -1, 1.5, None, True, 10**30],
    "batch_size": [1.5, 0, None, True, 10**30],
    "steps": [2.5, 0, True, 10**30, "2"],
    "patch": [[-16, 32, 32], [0, 0, 0], 0, -16, True, "32", [32, 32], [32, 32, 32.0], {}],
    "spacing_mm": [*NO_NUMBERS, 0],
    "learning_rate": [*NO_NUMBERS, 0],
    "held_out": [*NO_NUMBERS, None],
    "patient": [5, ["(a)"], "", "(a{99999999999})"],
    "start": [5, ["v1"], ""],
}
OF_A_DATASET: dict[str, list[Any]] = {
    "name": [5, ["a"], None, " "],
    "images": [5, None, "**foo/[", "", "a\0b"],
    "labels": [None, ["x"], "**foo/["],
    "structures": [None, {True: "liver"}, {1: None}, {1: ["liver"]}, {1.5: "liver"}, {}],
    "absent": [5, [["liver"]], None, "liver", {"liver": 1}],
    "modality": [5, ["CT"]],
    "weight": [*NO_NUMBERS, 0, None, 1e300],
}
OF_THE_NETWORK: dict[str, list[Any]] = {"width": [7.5, 0, True, "8"], "name": [["x"], None, 5]}


def nonsense() -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """What the message calls the value, the value, the manifest."""
    for name, values in OF_THE_PLAN.items():
        yield from ((name, value, {name: value}) for value in values)
    for name, values in OF_A_DATASET.items():
        yield from ((name, value, {"datasets": [{**DATASET, name: value}]}) for value in values)
    for name, values in OF_THE_NETWORK.items():
        called = "network" if name == "name" else name
        yield from ((called, value, {"network": {name: value}}) for value in values)


@pytest.mark.parametrize(("name", "value", "values"), list(nonsense()), ids=lambda value: repr(value)[:30])
def test_a_value_that_makes_no_sense_is_named(
    tmp_path: Path, name: str, value: Any, values: dict[str, Any]
) -> None:
    with pytest.raises(BadRequestError, match=r"^Expected .*, got .*\.$") as refused:
        read_plan(plan_of(tmp_path, **values))
    assert name in str(refused.value)
    assert repr(value) in str(refused.value)


def test_values_at_the_edge_of_sense(tmp_path: Path) -> None:
    """Null says nothing where nothing need be said; 1e-3 is text in YAML and a number to people."""
    nothing = dict.fromkeys(["start", "spacing_mm", "patch", "steps", "learning_rate", "patient"])
    dataset = {**DATASET, "modality": None, "absent": [], "weight": "5e-1"}
    plan = read_plan(
        plan_of(tmp_path, datasets=[dataset], **nothing, network={"width": None}, seed=2**64 - 1)
    )
    assert plan.datasets[0] == read_plan(plan_of(tmp_path, datasets=[{**DATASET, "weight": 0.5}])).datasets[0]
    assert (plan.width, plan.seed, {getattr(plan, name) for name in nothing}) == (None, 2**64 - 1, {None})
    plan = read_plan(plan_of(tmp_path, learning_rate="1e-3", patch=[16, 16, 32], held_out=0, patient="(a)"))
    assert (plan.learning_rate, plan.patch, plan.held_out, plan.patient) == (1e-3, (16, 16, 32), 0, "(a)")


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(BadRequestError, match="YAML"):
        read_plan(tmp_path / "bad.yaml")
    (tmp_path / "date.yaml").write_text("steps: 2024-13-01")
    with pytest.raises(BadRequestError, match="YAML"):
        read_plan(tmp_path / "date.yaml")
    (tmp_path / "list.yaml").write_text("- a")
    with pytest.raises(BadRequestError, match="keys in the manifest"):
        read_plan(tmp_path / "list.yaml")


def test_images_find_their_labels(tmp_path: Path) -> None:
    for name in ("img/a.nii.gz", "img/b_0000.nii.gz", "img/c.mha", "img/.hidden.nii", "img/notes.txt",
                 "lab/a.nrrd", "lab/b.nii.gz", "seg/c_seg.nii.gz"):  # fmt: skip
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    by_name = find_pairs(read_plan(plan_of(tmp_path)))
    assert [(p.case_id, p.label and p.label.name) for p in by_name] == [
        ("A/a", "a.nrrd"), ("A/b", "b.nii.gz"), ("A/c", None),
    ]  # fmt: skip
    pattern = {**DATASET, "images": str(tmp_path / "img" / "*.mha"), "labels": "seg/{case}_seg.nii.gz"}
    (one,) = find_pairs(read_plan(plan_of(tmp_path, datasets=[pattern])))
    assert (one.name, one.label) == ("c", tmp_path / "seg" / "c_seg.nii.gz")
    with pytest.raises(NotFoundError, match="images of A"):
        find_pairs(read_plan(plan_of(tmp_path, datasets=[{**DATASET, "images": "img/*.nrrd"}])))


def test_a_manifest_in_a_folder_with_signs_of_patterns(tmp_path: Path) -> None:
    folder = tmp_path / "**[1]"
    (folder / "img").mkdir(parents=True)
    (folder / "img" / "a.nii").touch()
    (one,) = find_pairs(read_plan(plan_of(folder, datasets=[{**DATASET, "images": "im?/*.nii"}])))
    assert one.image == folder / "img" / "a.nii"
