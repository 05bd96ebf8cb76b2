"""What a server that cannot start says."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette

from hermes.adapters.starting import SayWhyNotStarted
from hermes.errors import CheckpointError


def start(error: Exception | None) -> list[dict[str, Any]]:
    """The messages of a server whose start meets an error."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> Any:
        if error is not None:
            raise error
        yield

    sent: list[dict[str, Any]] = []
    asked = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, Any]:
        return {"type": next(asked)}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    asyncio.run(SayWhyNotStarted(Starlette(lifespan=lifespan))({"type": "lifespan"}, receive, send))
    return sent


def test_an_error_of_hermes_is_said_without_a_traceback() -> None:
    assert start(CheckpointError("The file is damaged.")) == [
        {"type": "lifespan.startup.failed", "message": "Hermes does not start. The file is damaged."}
    ]


def test_any_other_error_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        start(ZeroDivisionError())


def test_a_start_without_an_error_is_passed_on() -> None:
    assert [m["type"] for m in start(None)] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
