"""Who has closed the connection is noticed while the endpoint works."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from hermes.adapters.leaving import NoticeLeaving, client_has_left

SCOPE = {"type": "http", "path": "/infer/hermes"}
BODY = [{"type": "http.request", "body": bytes([part]), "more_body": part < 4} for part in range(5)]


async def talk(app: Any, scope: dict[str, Any], *, leaves: bool) -> list[Any]:
    """What the endpoint behind the middleware finds out; the client sends a body and then stays or leaves."""
    messages, found = iter(BODY), list[Any]()

    async def receive() -> Any:
        for message in messages:
            return message
        if not leaves:
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}

    async def endpoint(_: Any, take: Any, __: Any) -> None:
        body = b""
        while True:
            message = await take()
            body += message["body"]
            if not message["more_body"]:
                break
        found.append(body)
        found.append(await asyncio.to_thread(app))

    await asyncio.wait_for(NoticeLeaving(endpoint)(scope, receive, None), 20)
    return found


def work() -> bool:
    """As an inference asks: often, for a while; whether it was told that nobody waits any more."""
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        if client_has_left():
            return True
        time.sleep(0.01)
    return False


def test_an_inference_learns_that_its_client_has_gone() -> None:
    assert asyncio.run(talk(work, SCOPE, leaves=True)) == [bytes(range(5)), True]


def test_an_inference_whose_client_waits_goes_on() -> None:
    assert asyncio.run(talk(work, SCOPE, leaves=False)) == [bytes(range(5)), False]


def test_other_requests_and_code_outside_of_requests_are_left_alone() -> None:
    assert asyncio.run(talk(work, {"type": "http", "path": "/train/"}, leaves=True)) == [
        bytes(range(5)),
        False,
    ]
    assert not client_has_left()
