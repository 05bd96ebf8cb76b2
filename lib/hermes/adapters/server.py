"""The ASGI app that ``make serve`` runs: MONAI Label's own, repaired where it would stall or stay silent.

* The stock endpoints are ``async def`` around blocking code, so one inference stops every other answer.
  Here each runs in a worker thread; the predictor keeps one queue per device.
* An error that nobody expected is answered as JSON with a reason instead of the bare text
  "Internal Server Error"; malformed JSON in a form field is a 400.

Importing this module changes the routers of ``monailabel.endpoints`` before ``monailabel.app`` collects them.
"""

from __future__ import annotations

import functools
import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from monailabel.endpoints import (
    activelearning,
    batch_infer,
    datastore,
    infer,
    info,
    logs,
    model,
    scoring,
    session,
    train,
)

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
        coroutine = endpoint(**arguments)
        try:
            coroutine.send(None)
        except StopIteration as finished:
            return finished.value
        coroutine.close()
        msg = (
            f"Expected the endpoint {endpoint.__name__} not to await, it does. It cannot be run in a thread."
        )
        raise RuntimeError(msg)

    functools.update_wrapper(call, endpoint)
    del call.__wrapped__  # type: ignore[attr-defined]  # FastAPI unwraps and would see a coroutine function
    call.__signature__ = inspect.signature(endpoint)  # type: ignore[attr-defined]
    return call


for _module in _BLOCKING:
    run_in_threads(_module.router)

from monailabel.app import app  # noqa: E402  # the routers have to be repaired first


@app.exception_handler(json.JSONDecodeError)  # type: ignore[untyped-decorator]
def malformed_json(_: Request, error: json.JSONDecodeError) -> JSONResponse:
    """400 for a form field that should hold JSON and does not."""
    return JSONResponse({"detail": f"Expected JSON in the field 'params', got something else: {error}."}, 400)


@app.exception_handler(Exception)  # type: ignore[untyped-decorator]
def unexpected(_: Request, error: Exception) -> JSONResponse:
    """500 with the kind of the error; its traceback is in the server's log."""
    reason = (
        f"The server met an error it did not expect ({type(error).__name__}). Its log says more: GET /logs/."
    )
    return JSONResponse({"detail": reason}, 500)
