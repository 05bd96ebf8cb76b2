"""Structures that a request adds: confirmed, kept in order, and without effect on what the model knew."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from hermes.checkpoint import Manifest, load_checkpoint, save_checkpoint
from hermes.config import from_conf
from hermes.errors import BadRequestError, UnknownStructureError
from hermes.geometry import Grid
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.model.priors import PriorTables
from hermes.records import LabelMap, NewStructure
from hermes.rounds.rows import add_rows, nearest_row
from hermes.submission import new_structures_in, read_submission
from hermes.transforms.writing import write_label_map
from hermes.workspace import Workspace

TASKS = (Task("liver", "Test"), Task("left kidney", "Test"), Task("spleen", "Test"))
GRID = Grid((4, 4, 4), np.eye(4))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    net = build_network(NetworkConfig("hermes-c", 8, tasks=3))
    save_checkpoint(tmp_path / "base", net, Manifest(net.config, LabelSpace(TASKS), window=(32, 32, 32)))
    return tmp_path / "base"


@pytest.fixture
def workspace(tmp_path: Path, base: Path) -> Iterator[Workspace]:
    opened = Workspace(from_conf({"structures": "liver,spleen"}), str(tmp_path / "studies"), starter=base)
    yield opened
    opened.campaign.close()


@pytest.fixture
def label(tmp_path: Path) -> Path:
    array = np.zeros((4, 4, 4), np.uint8)
    array[0], array[1] = 1, 2
    return write_label_map(LabelMap(array, GRID, {}), tmp_path / "label.nii.gz")


INFO = [{"name": "liver", "idx": 1}, {"name": "my organ", "idx": 2}]


def read(label: Path, **params: object) -> object:
    return read_submission(
        label, {"label_info": INFO, **params}, image_grid=GRID, structures=("liver", "spleen")
    )


def test_an_unknown_structure_is_refused_with_a_way_out(label: Path) -> None:
    with pytest.raises(UnknownStructureError, match="new_structures"):
        read(label)
    with pytest.raises(UnknownStructureError, match="Did you mean 'spleen'"):
        read_submission(
            label,
            {"label_info": [INFO[0], {"name": "spleeen", "idx": 2}], "new_structures": {"other": {}}},
            image_grid=GRID,
            structures=("liver", "spleen"),
        )


def test_a_confirmed_structure_comes_last_and_keeps_its_voxels(label: Path) -> None:
    found = read(label, new_structures={"unused": {}, "my organ": {"like": "liver"}})
    assert found.new == (NewStructure("my organ", "liver"),)  # type: ignore[attr-defined]
    assert found.annotated == {"liver": "present", "my organ": "present"}  # type: ignore[attr-defined]
    names = found.label_map.names  # type: ignore[attr-defined]
    value = next(v for v, n in names.items() if n == "my organ")
    assert (found.label_map.array == value).sum() == 16  # type: ignore[attr-defined]


def test_how_a_row_begins_is_read_from_the_request() -> None:
    given = {"new_structures": {"a": {}, "b": {"like": None}, "c": {"like": "liver"}, "Spleen": {}}}
    assert new_structures_in(given, ("liver", "spleen")) == (
        NewStructure("a"),
        NewStructure("b", None, random=True),
        NewStructure("c", "liver"),
    )


@pytest.mark.parametrize(
    "given",
    [
        ["a"],
        {"a": "liver"},
        {"a": {"like": 3}},
        {"a": {"lke": "x"}},
        {"a@b": {}},
        {"": {}},
        {"background": {}},
    ],
)
def test_a_malformed_confirmation_is_refused(given: object) -> None:
    with pytest.raises(BadRequestError):
        new_structures_in({"new_structures": given}, ())


def test_rows_and_values_never_move(workspace: Workspace, tmp_path: Path, base: Path) -> None:
    workspace.add_structures([NewStructure("b organ", "liver")])
    workspace.add_structures([NewStructure("a organ"), NewStructure("b organ")])
    assert workspace.bindings().rows == {"liver": 0, "spleen": 2, "b organ": 3, "a organ": 4}
    assert workspace.bindings().trained == ("liver", "spleen")
    first = workspace.bindings().space
    # A version that has learned the first one, served with everything in its label space.
    net, _ = load_checkpoint(base)
    add_rows(net, first, workspace.campaign.confirmed.all(), seed=0)
    later = Manifest(net.config, first, window=(32, 32, 32), version="later", trained_rows=(0, 1, 2, 3))
    workspace.add_structures([NewStructure("c organ")])
    assert workspace.bind(later).rows == {"liver": 0, "spleen": 2, "b organ": 3, "a organ": 4, "c organ": 5}
    again = Workspace(from_conf({"structures": "liver,spleen"}), str(tmp_path / "studies"), starter=base)
    assert again.bindings().structures == workspace.bindings().structures
    again.campaign.close()
    every = Workspace(from_conf({}), str(tmp_path / "studies"), starter=base)
    assert every.bind(later).structures == ("liver", "left kidney", "spleen", "b organ", "a organ", "c organ")
    every.campaign.close()


def test_an_unknown_relative_adds_nothing(workspace: Workspace) -> None:
    with pytest.raises(UnknownStructureError, match=r"Unknown structure 'livr'.*liver"):
        workspace.add_structures([NewStructure("my organ", "livr")])
    assert workspace.campaign.confirmed.all() == ()


def test_old_tasks_answer_with_the_same_bits(base: Path) -> None:
    net, manifest = load_checkpoint(base)
    space = manifest.label_space
    for name in ("copy", "near", "random"):
        space = space.append(Task(name, "campaign"))
    image = torch.randn(1, 1, 32, 32, 32, generator=torch.Generator().manual_seed(1))
    rows, modality = torch.tensor([[0, 1, 2]]), torch.tensor([0])
    with torch.no_grad():
        before = net(image, rows, modality).logits
        new = add_rows(
            net, space, [NewStructure("copy", "spleen"), NewStructure("random", random=True)], seed=0
        )
        after = net(image, rows, modality).logits
    assert new == (3, 4, 5)
    assert torch.equal(before, after)
    tables = [module.task_prior for module in net.modules() if isinstance(module, PriorTables)]
    assert tables
    for table in tables:
        assert torch.equal(table[3], table[2])
        assert not any(torch.equal(table[5], table[row]) for row in range(5))


def test_the_nearest_row_of_the_catalogue() -> None:
    space = LabelSpace((Task("liver", "T"), Task("left kidney", "T"), Task("brain", "T")))
    assert nearest_row(space, "right kidney", 3) == 1
    assert nearest_row(space, "liver tumor", 3) == 0
    assert nearest_row(space, "levt kidney", 3) == 1
    assert nearest_row(space, "qzx", 3) is None
