"""A server that cannot start says why in one message, without a traceback."""

from __future__ import annotations

from typing import Any

from hermes.errors import HermesError


class SayWhyNotStarted:
    """ASGI middleware: an error of Hermes at the start becomes the message of the server that ends."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection, or the server's start and end."""
        if scope["type"] != "lifespan":
            await self._app(scope, receive, send)
            return
        failed: list[Any] = []  # holds the traceback

        async def send_later(message: Any) -> None:
            if message["type"] == "lifespan.startup.failed":
                failed.append(message)
            else:
                await send(message)

        try:
            await self._app(scope, receive, send_later)
        except HermesError as error:
            await send({"type": "lifespan.startup.failed", "message": f"Hermes does not start. {error}"})
        except BaseException:
            for message in failed:
                await send(message)
            raise
