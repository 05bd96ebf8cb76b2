"""Inferences whose client has gone are ended: they would keep the device from those who wait."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

_GONE: ContextVar[threading.Event | None] = ContextVar("client_gone", default=None)
_AHEAD = 2
"""Parts of a request's body that are read before the endpoint asks for them."""


def client_has_left() -> bool:
    """Whether the client of the request that this code runs for has closed its connection."""
    gone = _GONE.get()
    return gone is not None and gone.is_set()


class NoticeLeaving:
    """ASGI middleware: watches the connections of inferences, see :func:`client_has_left`."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        if scope["type"] != "http" or "/infer/" not in scope["path"]:
            await self._app(scope, receive, send)
            return
        gone = threading.Event()
        waiting: asyncio.Queue[Any] = asyncio.Queue(_AHEAD)

        async def watch() -> None:
            while not gone.is_set():
                message = await receive()
                if message["type"] == "http.disconnect":
                    gone.set()
                await waiting.put(message)

        token = _GONE.set(gone)
        watcher = asyncio.create_task(watch())
        try:
            await self._app(scope, waiting.get, send)
        finally:
            watcher.cancel()
            _GONE.reset(token)
