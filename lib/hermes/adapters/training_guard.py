"""What MONAI Label's endpoints do not ask before they start a process for training, scoring or batch inference.

The stock endpoint forwards any request to a new process, whose errors no client sees. `GuardedTask` stands in
its place and refuses at once what cannot work.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import HTTPException
from monailabel.endpoints import batch_infer, scoring, train
from monailabel.utils.async_tasks.task import AsyncTask
from monailabel.utils.async_tasks.utils import tasks

from hermes.adapters.requests import check_json
from hermes.errors import BadRequestError, HermesError

logger = logging.getLogger(__name__)

Check = Callable[[str, Mapping[str, Any]], None]
_PATH_OPTIONS = ("name", "model_filename")
_starting = threading.Lock()


class GuardedTask(AsyncTask):  # type: ignore[misc]
    """`AsyncTask` that checks a train request first, and never lets two trainings exist."""

    check: Check | None = None
    on_stop: Callable[[], None] | None = None

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
            if GuardedTask.check is not None:
                GuardedTask.check(method, asked)
        except HermesError as error:
            raise HTTPException(status_code=error.status, detail=str(error)) from error
        if method != "train":
            return AsyncTask.run(method, request, params, force_sync, enqueue)  # type: ignore[no-any-return]
        with _starting:  # the stock check races with the start of the process
            if is_training():
                return None, "A training is running. Wait for it, or stop it with DELETE /train/."
            return AsyncTask.run(method, request, params, force_sync, False)  # type: ignore[no-any-return]

    @staticmethod
    def stop(method: str) -> Any:
        """Stop the task; a training is noted as stopped first, so that nobody takes its end for a crash."""
        if method == "train" and GuardedTask.on_stop is not None and is_training():
            GuardedTask.on_stop()
        return AsyncTask.stop(method)


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


def install(check: Check, on_stop: Callable[[], None]) -> None:
    """Let MONAI Label's endpoints go through `GuardedTask` with these callbacks from now on."""
    GuardedTask.check, GuardedTask.on_stop = staticmethod(check), staticmethod(on_stop)
    for endpoint in (train, scoring, batch_infer):
        endpoint.AsyncTask = GuardedTask
