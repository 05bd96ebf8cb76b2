"""The label space: the published rows, what a name asks for, and what a campaign appends."""

from __future__ import annotations

import json

import pytest

from hermes.errors import BadRequestError, CheckpointError, ConflictError, UnknownStructureError
from hermes.labels import LabelSpace, Task, bind_structures, published_datasets, published_label_space
from hermes.types import Modality

ABDOMEN = "spleen|right kidney|left kidney|gallbladder|esophagus|liver|stomach|aorta|inferior vena cava"
HEAD = (
    "left eye|right eye|left lens|right lens|left optic nerve|right optic nerve|optic chiasm|pituitary gland|"
    "brain stem|left temporal lobe|right temporal lobe|spinal cord|left parotid gland|right parotid gland|"
    "left inner ear|right inner ear|left middle ear|right middle ear|left temporomandibular joint|"
    "right temporomandibular joint|left mandible|right mandible"
)
# (first row, protocol, modalities, structures): the published table, written out a second time.
PUBLISHED = [
    (0, "LiTS", "CT", "liver|liver tumour"),
    (2, "KiTS", "CT", "kidney|kidney tumour"),
    (
        4,
        "AMOS",
        "CT",
        f"{ABDOMEN}|pancreas|right adrenal gland|left adrenal gland|duodenum|bladder|prostate / uterus",
    ),
    (
        19,
        "BCV",
        "CT",
        f"{ABDOMEN}|portal vein and splenic vein|pancreas|right adrenal gland|left adrenal gland",
    ),
    (32, "StructSeg-Thorax", "CT", "left lung|right lung|heart|esophagus|trachea|spinal cord"),
    (38, "CHAOS", "T1 T2", "liver|right kidney|left kidney|spleen"),
    (42, "StructSeg-HeadNeck", "CT", HEAD),
    (64, "MnMs", "cine", "left ventricle|myocardium|right ventricle"),
    (67, "DLBS", "T1", "grey matter|white matter|cerebrospinal fluid"),
    (70, "AutoPET", "PET", "lesion"),
]
SPACE = published_label_space()


def test_the_published_space_is_the_published_table() -> None:
    assert len(SPACE) == 71
    for first, protocol, modalities, structures in PUBLISHED:
        for row, structure in enumerate(structures.split("|"), start=first):
            task = SPACE.tasks[row]
            assert (task.structure, task.protocol) == (structure, protocol)
            assert task.modalities == tuple(Modality(m) for m in modalities.split())
            assert task.modality_unknown_ok == (4 <= row <= 16)
            assert SPACE.row(task) == row


def test_datasets_have_the_published_values_and_weights() -> None:
    datasets = {dataset.name: dataset for dataset in published_datasets()}
    assert {name: dataset.sampling_weight for name, dataset in datasets.items()} == {
        "BCV": 1.5, "StructSeg-Thorax": 0.7, "LiTS": 0.3, "KiTS": 0.3, "AMOS-CT": 1.8, "AMOS-MR": 1.6,
        "CHAOS": 0.5, "StructSeg-HeadNeck": 2.6, "MnMs": 0.3, "DLBS": 0.4, "AutoPET": 0.1,
    }  # fmt: skip
    assert datasets["AMOS-CT"].rows == {value: value + 3 for value in range(1, 16)}
    assert datasets["AMOS-MR"].rows == {value: value + 3 for value in range(1, 14)}
    assert datasets["AMOS-MR"].modalities == ()
    assert datasets["BCV"].rows[10] == 28
    assert datasets["CHAOS"].modalities == (Modality.T1, Modality.T2)


@pytest.mark.parametrize(
    ("name", "modality", "expected"),
    [
        ("liver", None, "liver@AMOS"),
        ("Liver", Modality.CT, "liver@AMOS"),
        ("liver", Modality.T1, "liver@CHAOS"),
        ("pancreas", Modality.T2, "pancreas@AMOS"),
        ("liver@bcv", Modality.T1, "liver@BCV"),
        ("liver @ BTCV", None, "liver@BCV"),
        ("LV@M&Ms", None, "left ventricle@MnMs"),
        ("lesion@auto-pet", None, "lesion@AutoPET"),
        ("kidney", Modality.T1, "kidney@KiTS"),  # no task covers T1: still answered, since it was asked for
        ("spinal cord", None, "spinal cord@StructSeg-Thorax"),
    ],
)
def test_resolve(name: str, modality: Modality | None, expected: str) -> None:
    assert SPACE.resolve(name, modality).key == expected


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("livr", "Did you mean 'liver'"),
        ("uterus", "Did you mean 'prostate / uterus'"),
        ("hippocampus", "This label space has: liver,"),
        ("liver@KiTS", "drawn by LiTS, AMOS, BCV, CHAOS"),
    ],
)
def test_an_unknown_name_says_what_there_is(name: str, message: str) -> None:
    with pytest.raises(UnknownStructureError, match=message):
        SPACE.resolve(name)


@pytest.mark.parametrize("name", ["", "@", "liver@", "@BCV", "a@b@c"])
def test_a_malformed_name_is_refused(name: str) -> None:
    with pytest.raises(BadRequestError):
        SPACE.resolve(name)


def test_a_sites_own_protocol_comes_first() -> None:
    space = SPACE.append(Task("liver", "campaign"))
    assert space.resolve("liver", Modality.CT).key == "liver@campaign"
    assert space.resolve("liver@AMOS").key == "liver@AMOS"


@pytest.mark.parametrize("key", ["liver@BCV", "Liver@btcv", "oesophagus@AMOS"])
def test_append_refuses_a_task_that_is_there(key: str) -> None:
    structure, protocol = key.split("@")
    with pytest.raises(ConflictError, match="holds a task once"):
        SPACE.append(Task(structure, protocol))


def test_row_of_a_foreign_task_is_an_error() -> None:
    with pytest.raises(UnknownStructureError, match="liver@nobody"):
        SPACE.row(Task("liver", "nobody"))


def test_groups_take_the_protocol_that_was_made_for_them() -> None:
    assert [t.key for t in SPACE.group("heart")] == [
        "left ventricle@MnMs",
        "myocardium@MnMs",
        "right ventricle@MnMs",
    ]
    assert {t.protocol for t in SPACE.group("thorax")} == {"StructSeg-Thorax"}
    assert {t.protocol for t in SPACE.group("head & neck")} == {"StructSeg-HeadNeck"}
    assert [SPACE.row(t) for t in SPACE.group("brain")] == [67, 68, 69]
    assert [t.key for t in SPACE.group("PET")] == ["lesion@AutoPET"]
    assert len(SPACE.group("abdomen")) == 19
    assert "liver tumour@LiTS" not in [t.key for t in SPACE.group("abdomen", Modality.T1)]
    with pytest.raises(UnknownStructureError, match="abdomen"):
        SPACE.group("abdomn")


def test_select_expands_groups_and_keeps_the_order_asked() -> None:
    keys = [t.key for t in SPACE.select(["pancreas@BCV", "brain", "Liver", "pancreas@BTCV"], None)]
    assert keys == [
        "pancreas@BCV", "grey matter@DLBS", "white matter@DLBS", "cerebrospinal fluid@DLBS", "liver@AMOS",
    ]  # fmt: skip
    assert [t.key for t in SPACE.select(["heart"])] == ["heart@StructSeg-Thorax"]
    assert SPACE.select(["group:heart"]) == SPACE.group("heart")
    assert len(SPACE.select(None)) == len(SPACE.select(["all"])) == len(SPACE.structures()) == 52
    assert all(t.covers(Modality.CT) for t in SPACE.select(None, Modality.CT))
    with pytest.raises(UnknownStructureError, match="Did you mean 'spleen'"):
        SPACE.select(["liver", "splen"])


def test_json_says_when_it_is_not_a_label_space() -> None:
    for document in ("{}", "[]", "nonsense", '{"format": 99, "tasks": []}', '{"format": 1, "tasks": [{}]}'):
        with pytest.raises(CheckpointError):
            LabelSpace.from_json(document)


def test_the_hash_depends_on_order_and_survives_json() -> None:
    text = json.dumps(SPACE.to_json())
    assert LabelSpace.from_json(text).content_hash == SPACE.content_hash
    assert LabelSpace(SPACE.tasks[::-1]).content_hash != SPACE.content_hash


def test_bind_binds_what_is_known_and_appends_the_rest() -> None:
    space, bound = bind_structures(
        SPACE, ["Liver", "anterior hippocampus", "my own thing", "spleen@campaign"]
    )
    assert bound == (
        ("Liver", 9),
        ("anterior hippocampus", 71),
        ("my own thing", 72),
        ("spleen@campaign", 73),
    )
    assert [t.key for t in space.tasks[71:]] == [
        "anterior hippocampus@campaign", "my own thing@campaign", "spleen@campaign",
    ]  # fmt: skip
    again, bound_again = bind_structures(space, ["My_Own_Thing", "hippocampus anterior"])
    assert again == space
    assert [row for _, row in bound_again] == [72, 71]


def test_bind_follows_the_campaigns_modality() -> None:
    assert bind_structures(SPACE, ["liver"], Modality.T2)[1] == (("liver", 38),)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["liver", "Liver"], "one name per task"),
        (["liver", "liver@AMOS"], "one name per task"),
        (["new thing", "New_Thing"], "one name per task"),
        (["liver", ""], "Expected a structure"),
        (["background"], "leave it out"),
        (["liver@AMSO"], "liver@campaign"),
        (["new thing@clinic"], "new thing@campaign"),
    ],
)
def test_bind_refuses(names: list[str], message: str) -> None:
    with pytest.raises(BadRequestError, match=message):
        bind_structures(SPACE, names)


def test_a_task_needs_both_names() -> None:
    for structure, protocol in (("", "BCV"), ("liver", " "), ("liver@x", "BCV")):
        with pytest.raises(BadRequestError):
            Task(structure, protocol)
