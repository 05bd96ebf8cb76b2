"""Manifests of ``hermes train``: what they say, and what is refused."""

from __future__ import annotations

import json
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
        ({"steps": -1}, "steps"),
        ({"held_out": 1}, "held_out"),
    ],
)  # fmt: skip
def test_what_is_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        read_plan(plan_of(tmp_path, **values))


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no file"):
        read_plan(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(BadRequestError, match="YAML"):
        read_plan(tmp_path / "bad.yaml")
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
