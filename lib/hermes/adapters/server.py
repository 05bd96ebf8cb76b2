"""The ASGI app that ``make serve`` runs: MONAI Label's own, repaired where it would stall or stay silent.

* The stock endpoints are ``async def`` around blocking code, so one inference stops every other answer.
  Here each runs in a worker thread; the predictor keeps one queue per device.
* Form fields are checked before an endpoint sees them; what was uploaded with a refused request is deleted.
* An inference whose client has gone is ended.
* The viewer and its way to the PACS are replaced, see `hermes.adapters.ohif`.
* Pages of other sites are kept out, see `hermes.adapters.hosts`.
* Why the server cannot start is said without a traceback.
* An error that nobody expected is answered as JSON with a reason instead of the bare text
  "Internal Server Error".

Importing this module changes the routers of ``monailabel.endpoints`` before ``monailabel.app`` collects them.
"""

from __future__ import annotations

import errno
import functools
import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from fastapi import APIRouter, BackgroundTasks, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.config import settings as monai_settings
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    ohif,
    proxy,
    scoring,
    session,
    train,
)
from monailabel.interfaces.utils.app import app_instance

from hermes.adapters import campaign_routes, routes
from hermes.adapters.activity import next_sample, note_activity
from hermes.adapters.annotators import NameAnnotator
from hermes.adapters.errors import answers_errors
from hermes.adapters.hosts import KnownHosts
from hermes.adapters.leaving import NoticeLeaving
from hermes.adapters.ohif import router as viewer_router
from hermes.adapters.requests import check_json, parse_json_object
from hermes.adapters.starting import SayWhyNotStarted
from hermes.errors import BadRequestError, NotFoundError

logger = logging.getLogger(__name__)

_BLOCKING = (activelearning, batch_infer, datastore, infer, info, logs, model, scoring, session, train)


def run_in_threads(router: APIRouter) -> None:
    """Replace every ``async def`` route of the router by one that FastAPI runs in its thread pool."""
    for place, route in enumerate(router.routes):
        if isinstance(route, APIRoute) and inspect.iscoroutinefunction(route.endpoint):
            router.routes[place] = APIRoute(
                route.path,
                endpoint=_blocking(route.endpoint),
                methods=route.methods,
                name=route.name,
                tags=route.tags,
                summary=route.summary,
                responses=route.responses,
                deprecated=route.deprecated,
                include_in_schema=route.include_in_schema,
            )


def _blocking(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """The endpoint as a plain function: it never awaits, so its coroutine ends at the first step."""

    def call(**arguments: Any) -> Any:
        try:
            check_arguments(arguments)
            note_activity(arguments)
            coroutine = endpoint(**arguments)
            try:
                coroutine.send(None)
            except StopIteration as finished:
                return finished.value
        except BaseException as error:
            _forget_uploads(arguments.get("background_tasks"))
            if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
                raise HTTPException(
                    400, "Expected a shorter file name, this one is too long to store."
                ) from error
            raise
        coroutine.close()
        msg = f"Expected the endpoint {endpoint.__name__} not to await: it cannot be run in a thread."
        raise RuntimeError(msg)

    functools.update_wrapper(call, endpoint)
    del call.__wrapped__  # type: ignore[attr-defined]  # FastAPI unwraps and would see a coroutine function
    call.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return call


@answers_errors
def check_arguments(arguments: Mapping[str, Any]) -> None:
    """Refuse what MONAI Label's endpoints would fail on with a 500, or pass on unseen.

    Raises:
        BadRequestError: a form field without a JSON object, a request for an inference on nothing, or for a
            DICOM SEG as its answer.
        NotFoundError: a session that does not exist.
    """
    for field in ("params", "info"):
        value = arguments.get(field)
        if isinstance(value, str):
            parse_json_object(value, field)
        elif value is not None:
            check_json(value, field)
            if not isinstance(value, dict):
                msg = f"Expected {field!r} to be a JSON object, got {type(value).__name__}."
                raise BadRequestError(msg)
    if "session_id" in arguments and "image" in arguments:
        _check_infer(arguments)


def _check_infer(arguments: Mapping[str, Any]) -> None:
    session_id, image = arguments["session_id"], arguments["image"]
    if not (session_id or image or arguments.get("file")):
        msg = "Expected an image to segment: its id in 'image', a session in 'session_id', or an upload in 'file'."
        raise BadRequestError(msg)
    if session_id and (len(session_id) > 100 or "/" in session_id or not _session(session_id)):
        msg = f"Expected the id of a session, got {session_id[:100]!r}. It may have expired; PUT /session/ makes one."
        raise NotFoundError(msg)
    if arguments.get("output") == "dicom_seg":
        msg = (
            "Expected 'output' to be image, json or all: a DICOM SEG is written when a label is stored in a PACS. Ask for "
            "'image'; the setting pacs_upload_predictions stores kept predictions, too."
        )
        raise BadRequestError(msg)


def _session(session_id: str) -> Any:
    sessions = app_instance().sessions()
    return sessions.get_session(session_id) if sessions is not None else None


def _forget_uploads(tasks: BackgroundTasks | None) -> None:
    """Delete what was uploaded with a refused request: the endpoint's own clean-up runs after a success only."""
    for task in tasks.tasks if tasks is not None else []:
        task.func(*task.args, **task.kwargs)


# Deleting the weights would stop the server from answering; a version is withdrawn by publishing another.
model.router.routes[:] = [
    r for r in model.router.routes if "DELETE" not in (getattr(r, "methods", None) or ())
]

# The viewer and its way to the PACS are ours: `hermes.adapters.ohif`.
for _replaced in (ohif, proxy):
    _replaced.router.routes.clear()

# The stock function gathers all that /info/ says for each sample, and writes the index of all images afterwards.
activelearning.sample = next_sample

for _module in _BLOCKING:
    run_in_threads(_module.router)

from monailabel.app import app  # noqa: E402  # the routers have to be repaired first

# Pages of other sites must not reach the campaign and the PACS through a browser that can: the stock app lets all in when
# MONAI_LABEL_CORS_ORIGINS is empty, and none of those named in it, since it compares them with a slash at their end.
_ORIGINS = [str(origin).rstrip("/") for origin in monai_settings.MONAI_LABEL_CORS_ORIGINS]
for _middleware in app.user_middleware:
    if _middleware.cls is CORSMiddleware:
        _middleware.kwargs["allow_origins"] = _ORIGINS

app.include_router(routes.router)
app.include_router(campaign_routes.router)
app.include_router(viewer_router)
app.add_middleware(SayWhyNotStarted)
app.add_middleware(NoticeLeaving)
app.add_middleware(NameAnnotator, header=lambda: app_instance().parts.workspace.settings.user_header)
# The outermost: nothing else looks at what it refuses.
app.add_middleware(
    KnownHosts, hosts=lambda: app_instance().parts.workspace.settings.allowed_hosts, origins=_ORIGINS
)


@app.exception_handler(Exception)  # type: ignore[untyped-decorator]
def unexpected(_: Request, error: Exception) -> JSONResponse:
    """500 with the kind of the error; its traceback is in the server's log."""
    reason = (
        f"The server met an error it did not expect ({type(error).__name__}). Its log says more: GET /logs/."
    )
    return JSONResponse({"detail": reason}, 500)
