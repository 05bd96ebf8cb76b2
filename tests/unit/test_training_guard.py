"""Stopping: asked first, killed only when nobody answers, and an answer in every case."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import HTTPException
from monailabel.utils.async_tasks.task import AsyncTask

from hermes.adapters import training_guard
from hermes.adapters.training_guard import GuardedTask, Hooks, run_all_trainings
from hermes.workspace import StopRequest


class Trainer:
    """A training that ends when it is asked, or never."""

    def __init__(
        self, stop: StopRequest, *, obeys: bool, running: bool = True, lingers: bool = False
    ) -> None:
        self.stop, self.obeys, self.running, self.lingers = stop, obeys, running, lingers
        self.task = {"id": "1", "status": "RUNNING"}
        self.killed = False

    def tasks(self, _: str) -> list[dict[str, Any]]:
        return [self.task]

    def is_running(self) -> bool:
        if self.running and self.obeys and self.stop.made():
            self.running = False
            self.task["status"] = "ERROR"  # as MONAI Label sees a process that ends with an exception
        return self.running

    def processes(self, _: str) -> dict[str, object]:
        return {"1": object()} if self.running or self.lingers else {}

    def kill(self) -> None:
        self.killed, self.running = True, False


@pytest.fixture
def stop(tmp_path: Path) -> StopRequest:
    return StopRequest(tmp_path / "stop")


@pytest.fixture(autouse=True)
def no_hooks_afterwards() -> Iterator[None]:
    yield
    GuardedTask.hooks = None


def install(monkeypatch: pytest.MonkeyPatch, trainer: Trainer) -> None:
    monkeypatch.setattr(training_guard, "tasks", trainer.tasks)
    monkeypatch.setattr(training_guard, "processes", trainer.processes)
    monkeypatch.setattr(training_guard, "STOP_WAIT_S", 0.3)
    monkeypatch.setattr(training_guard, "EXIT_WAIT_S", 0.2)
    monkeypatch.setattr(AsyncTask, "stop", staticmethod(lambda _: None))
    GuardedTask.hooks = Hooks(
        lambda *_: None,
        trainer.stop,
        trainer.kill,
        trainer.is_running,
        lambda: {"phase": "training"},
        lambda: None,
    )


@pytest.mark.parametrize("obeys", [True, False])
def test_a_training_is_asked_before_it_is_killed(
    monkeypatch: pytest.MonkeyPatch, stop: StopRequest, obeys: bool
) -> None:
    trainer = Trainer(stop, obeys=obeys)
    install(monkeypatch, trainer)
    answer = GuardedTask.stop("train")
    assert (answer["id"], answer["status"]) == ("1", "STOPPED")
    assert trainer.killed is not obeys
    assert ("goes on" in answer["detail"]) is obeys
    assert not stop.made()  # or the next round would end at once


def test_a_process_that_lingers_after_its_round_is_ended(
    monkeypatch: pytest.MonkeyPatch, stop: StopRequest
) -> None:
    trainer = Trainer(stop, obeys=True, lingers=True)
    install(monkeypatch, trainer)
    ended: list[str] = []
    monkeypatch.setattr(AsyncTask, "stop", staticmethod(ended.append))
    assert "goes on" in GuardedTask.stop("train")["detail"]
    assert ended == ["train"]
    assert not trainer.killed  # its run has ended well: nothing is noted


def test_stopping_nothing_says_so(monkeypatch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    trainer = Trainer(stop, obeys=True, running=False)
    trainer.task["status"] = "DONE"
    install(monkeypatch, trainer)
    assert GuardedTask.stop("train") == {"status": "IDLE", "detail": "No training is running."}
    assert trainer.task["status"] == "DONE"


def test_the_status_of_a_training_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, stop: StopRequest
) -> None:
    install(monkeypatch, Trainer(stop, obeys=True))
    monkeypatch.setattr(AsyncTask, "status", staticmethod(lambda *_: ({"id": "1"}, None)))
    assert GuardedTask.status("train") == ({"id": "1", "progress": {"phase": "training"}}, None)
    assert GuardedTask.status("scoring") == ({"id": "1"}, None)
    monkeypatch.setattr(AsyncTask, "status", staticmethod(lambda *_: (None, "none")))
    assert GuardedTask.status("train") == (None, "none")


def test_a_round_of_another_server_is_waited_for(monkeypatch: pytest.MonkeyPatch, stop: StopRequest) -> None:
    trainer = Trainer(stop, obeys=True)
    trainer.task["status"] = "DONE"  # nothing of this server
    install(monkeypatch, trainer)
    started: list[str] = []
    monkeypatch.setattr(AsyncTask, "run", staticmethod(lambda method, *_: started.append(method)))
    answer, reason = GuardedTask.run("train", {"model": "hermes"})
    assert (answer, started) == (None, [])  # 429
    assert "Another server" in str(reason)
    trainer.running = False
    GuardedTask.run("train", {"model": "hermes"})
    assert started == ["train"]


def test_a_trainer_gets_its_own_part_of_the_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    class App:
        def info(self) -> dict[str, Any]:
            return {"trainers": {"hermes": {}, "other": {}}}

    started: list[Any] = []

    def run(method: str, request: Any, params: Any, force_sync: bool, enqueue: bool) -> tuple[str, str]:
        started.append((method, request["model"], params, force_sync, enqueue))
        return "task", "detail"

    monkeypatch.setattr(training_guard, "app_instance", App)
    monkeypatch.setattr(GuardedTask, "run", staticmethod(run))
    with pytest.raises(HTTPException) as refused:
        run_all_trainings({"hermes": 5})
    assert (refused.value.status_code, started) == (400, [])
    answer = run_all_trainings({"hermes": {"train_steps": 1}, "device": "cpu"}, True)
    assert answer == {name: {"result": "task", "detail": "detail"} for name in ("hermes", "other")}
    assert started == [
        ("train", "hermes", {"device": "cpu", "train_steps": 1}, True, True),
        ("train", "other", {"device": "cpu"}, True, True),
    ]
    run_all_trainings()
    assert started[2] == ("train", "hermes", {}, False, True)
