from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hermes.adapters.train import LONGEST_START_S, HermesTrainTask
from hermes.campaign.transfer import read_json, write_json
from hermes.checkpoint import Manifest, save_checkpoint
from hermes.config import from_conf
from hermes.labels.space import LabelSpace, Task
from hermes.model import NetworkConfig, build_network
from hermes.workspace import Workspace


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    net = build_network(NetworkConfig("hermes-c", 8, tasks=1))
    save_checkpoint(tmp_path / "base", net, Manifest(net.config, LabelSpace((Task("liver", "Test"),))))
    opened = Workspace(from_conf({}), str(tmp_path / "studies"), starter=tmp_path / "base")
    yield opened
    opened.campaign.close()


def start_run(workspace: Workspace) -> int:
    label = workspace.campaign.record_label("a", "final", "p", "0" * 64, "anna", {"liver": "present"})
    return workspace.campaign.start_run([label.id]).id


def test_before_any_training(workspace: Workspace) -> None:
    stats = HermesTrainTask(workspace).stats()
    assert (stats["epoch"], stats["total_epochs"], stats["serving_version"], stats["new_labels"]) == (
        0,
        0,
        "base",
        0,
    )


def test_a_running_round_is_shown_as_it_is(workspace: Workspace) -> None:
    start_run(workspace)
    workspace.progress.write(phase="training", step=3, steps=10, loss=0.5)
    stats = HermesTrainTask(workspace).stats()
    assert (stats["phase"], stats["epoch"], stats["total_epochs"]) == ("training", 3, 10)


def test_a_round_whose_process_died_is_failed(workspace: Workspace) -> None:
    workspace.progress.write(phase="training", step=3, steps=10, loss=0.5)
    stats = HermesTrainTask(workspace).stats()
    assert (stats["phase"], stats["reason"]) == ("failed", "the training process died")


def test_a_round_that_ends_while_it_is_looked_at_has_not_died(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = start_run(workspace)
    workspace.progress.write(phase="publishing", step=10, steps=10)
    look: Callable[[], object] = workspace.campaign.current_run

    def end_first() -> object:
        workspace.progress.write(phase="published", step=10, steps=10)
        workspace.campaign.finish_run(run)
        return look()

    monkeypatch.setattr(workspace.campaign, "current_run", end_first)
    assert HermesTrainTask(workspace).stats()["phase"] == "published"


def test_a_training_that_begins_does_not_show_how_the_last_one_ended(workspace: Workspace) -> None:
    workspace.progress.write(phase="published", step=10, steps=10)
    workspace.progress.write(phase="starting", at=time.time())
    stats = HermesTrainTask(workspace).stats()
    assert (stats["phase"], stats["epoch"], stats["total_epochs"]) == ("starting", 0, 0)


def test_a_training_that_never_says_anything_has_failed(workspace: Workspace) -> None:
    workspace.progress.write(phase="starting", at=time.time() - LONGEST_START_S - 1)
    stats = HermesTrainTask(workspace).stats()
    assert (stats["phase"], "did not begin" in stats["reason"]) == ("failed", True)


def test_a_report_of_another_campaign_is_not_the_last_one(workspace: Workspace, tmp_path: Path) -> None:
    workspace.campaign.finish_run(start_run(workspace), version="v1", report={"steps": 3})
    assert HermesTrainTask(workspace).stats()["report"] == {"steps": 3}
    write_json(workspace.directory / "campaign.sqlite", tmp_path / "state.json")
    read_json(tmp_path / "state.json", tmp_path / "other" / ".hermes" / "campaign.sqlite")
    other = Workspace(from_conf({}), str(tmp_path / "other"), starter=tmp_path / "base")
    stats = HermesTrainTask(other).stats()
    other.campaign.close()
    assert (stats["new_labels"], "report" in stats) == (1, False)  # its model did not come along
