"""What MONAI Label's endpoints do not ask before they start a process for training, scoring or batch inference.

The stock endpoint forwards any request to a new process, whose errors no client sees. `GuardedTask` stands in
its place and refuses at once what cannot work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import HTTPException
from monailabel.endpoints import batch_infer, scoring, train
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import processes, tasks

from hermes.adapters.requests import check_json
from hermes.errors import BadRequestError, HermesError
from hermes.workspace import StopRequest

logger = logging.getLogger(__name__)

_PATH_OPTIONS = ("name", "model_filename")
_starting = threading.Lock()
STOP_WAIT_S = 20.0
"""How long a training that is asked to stop may take to save its state and end."""
EXIT_WAIT_S = 5.0
"""How long the process of a round that has ended may take to go; nothing is lost by ending it then."""


@dataclass(frozen=True)
class Hooks:
    """What the server does around the tasks.

    Attributes:
        check: called with method and request before a process is started; raises to refuse.
        stop: the campaign's stop request.
        killed: called when a training had to be killed.
        is_running: whether a round runs, in whatever process.
        stats: how far the training is.
        begins: called before the process of a training is started.
    """

    check: Callable[[str, Mapping[str, Any]], None]
    stop: StopRequest
    killed: Callable[[], None]
    is_running: Callable[[], bool]
    stats: Callable[[], dict[str, Any]]
    begins: Callable[[], None]


class GuardedTask(AsyncTask):  # type: ignore[misc]
    """`AsyncTask` that checks a train request first, and never lets two trainings exist."""

    hooks: Hooks | None = None

    @staticmethod
    def run(
        method: str,
        request: dict[str, Any] | None = None,
        params: dict[str, Any] | None = None,
        force_sync: bool = False,
        enqueue: bool = False,
    ) -> tuple[Any, str | None]:
        """Start the task; ``(None, reason)`` when one runs already, which the endpoint answers with 429."""
        asked = (params or {}) | (request or {})
        try:
            check_json(asked, "params")
            if method == "train":
                refuse_paths(asked)
            if GuardedTask.hooks is not None:
                GuardedTask.hooks.check(method, asked)
        except HermesError as error:
            raise HTTPException(status_code=error.status, detail=str(error)) from error
        if method != "train":
            return AsyncTask.run(method, request, params, force_sync, enqueue)  # type: ignore[no-any-return]
        with _starting:  # the stock check races with the start of the process
            if is_training():
                return None, "A training is running. Wait for it, or stop it with DELETE /train/."
            if GuardedTask.hooks is not None:
                if GuardedTask.hooks.is_running():
                    return (
                        None,
                        "Another server trains this campaign. Wait for it, or stop it with DELETE /train/.",
                    )
                GuardedTask.hooks.stop.clear()  # one that nobody heard before the server went down
                GuardedTask.hooks.begins()
            return _run_training(request, params, force_sync)

    @staticmethod
    def status(method: str, all: bool = False, check_if_running: bool = False) -> Any:  # MONAI Label's name
        """The stock status; that of one training has how far it is in ``progress``."""
        found, detail = AsyncTask.status(method, all, check_if_running)
        if method == "train" and isinstance(found, dict) and GuardedTask.hooks is not None:
            found = {**found, "progress": GuardedTask.hooks.stats()}
        return found, detail

    @staticmethod
    def stop(method: str) -> Any:
        """Stop the task. A training is asked first, so that it keeps what it has, and killed when it does not end."""
        hooks = GuardedTask.hooks
        if method != "train" or hooks is None:
            return AsyncTask.stop(method)
        began = hooks.is_running()
        if not began and not is_training():
            return {"status": "IDLE", "detail": "No training is running."}
        hooks.stop.make()
        try:
            ended = _run_ends_within(STOP_WAIT_S, hooks, began=began)
            if not ended:
                hooks.killed()
            if not _wait(lambda: not _has_process(), EXIT_WAIT_S if ended else 0):
                AsyncTask.stop(method)
        finally:
            hooks.stop.clear()
        if ended:
            return _noted_as_stopped("The training has ended; POST /train/ goes on where it was.")
        return _noted_as_stopped("The training did not answer and was killed; its last saved state is kept.")


def _run_training(request: Any, params: Any, force_sync: bool) -> tuple[Any, str | None]:
    try:
        return AsyncTask.run("train", request, params, force_sync, False)  # type: ignore[no-any-return]
    except HermesError as error:  # only in this process: another one's end is in its status
        raise HTTPException(status_code=error.status, detail=str(error)) from error


def _run_ends_within(seconds: float, hooks: Hooks, *, began: bool) -> bool:
    """Whether the round ends by itself in that time: its run is over, or its process ends before it begins one."""

    def ended() -> bool:
        nonlocal began
        running = hooks.is_running()
        began = began or running
        return not running and (began or not _has_process())

    return _wait(ended, seconds)


def _has_process() -> bool:
    return is_training() or bool(processes("train"))


def _wait(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether the condition came true in that time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _noted_as_stopped(detail: str) -> dict[str, Any]:
    """The last training's task as MONAI Label answers it, with the status of one that was stopped."""
    known = tasks("train")
    if not known:  # it ran inside a request
        return {"status": "STOPPED", "detail": detail}
    known[-1]["status"] = "STOPPED"
    return {**known[-1], "detail": detail}


def is_training() -> bool:
    """Whether a training was submitted to this server and has not ended."""
    return any(task["status"] in ("SUBMITTED", "RUNNING") for task in tasks("train"))


def refuse_paths(request: Mapping[str, Any]) -> None:
    """Nothing, if no option of the request names a path.

    Raises:
        BadRequestError: ``name`` or ``model_filename`` is not a plain file name.
    """
    for option in _PATH_OPTIONS:
        value = request.get(option)
        if value is not None and (
            not isinstance(value, str) or "/" in value or "\\" in value or ".." in value
        ):
            msg = f"Expected a plain name without path separators as {option!r} of a train request, got {value!r}."
            raise BadRequestError(msg)


def install(hooks: Hooks) -> None:
    """Let MONAI Label's endpoints go through `GuardedTask` with these hooks from now on."""
    GuardedTask.hooks = hooks
    for endpoint in (train, scoring, batch_infer):
        endpoint.AsyncTask = GuardedTask
    train.run = run_all_trainings


def run_all_trainings(params: dict[str, Any] | None = None, run_sync: bool | None = False) -> dict[str, Any]:
    """MONAI Label's ``train.run``: what is not a model's own part of the parameters is for all of them.

    The stock one hands each model all the parts.
    """
    given, models = params or {}, app_instance().info()["trainers"]
    for model in given.keys() & models:
        if not isinstance(given[model], dict):
            msg = f"Expected the parameters of trainer {model!r} as a JSON object, got {type(given[model]).__name__}."
            raise HTTPException(status_code=BadRequestError.status, detail=msg)
    common = {key: value for key, value in given.items() if key not in models}
    result = {}
    for model in models:
        part = {**common, **given.get(model, {})}
        found, detail = GuardedTask.run("train", {"model": model}, part, bool(run_sync), enqueue=True)
        result[model] = {"result": found, "detail": detail}
    return result
