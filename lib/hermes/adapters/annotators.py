"""Who sends a request, as the server itself knows it: by MONAI Label's login, or by a proxy's header."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any

LONGEST_NAME = 255
"""Characters of an annotator's name; the database's columns end there."""

_KNOWN: ContextVar[str | None] = ContextVar("known_annotator", default=None)


def known_annotator() -> str | None:
    """The annotator of the request that this code runs for; None where the server cannot tell."""
    return _KNOWN.get()


def logged_in(username: str) -> None:
    """From now on in this request, the annotator is who has logged in."""
    _KNOWN.set(username[:LONGEST_NAME])


class NameAnnotator:
    """ASGI middleware: takes the annotator from a header, where a setting names one.

    Anybody can write a header: the proxy in front has to remove it from what clients send.
    """

    def __init__(self, app: Any, header: Callable[[], str]) -> None:
        """Wrap ``app``; ``header`` gives the name of the header, or "" for none."""
        self._app, self._header = app, header

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection."""
        name = self._header().lower().encode() if scope["type"] == "http" else b""
        if not name:
            await self._app(scope, receive, send)
            return
        said = [value for key, value in scope["headers"] if key.lower() == name]
        user = said[0].decode("latin-1").strip() if len(said) == 1 else ""
        token = _KNOWN.set(user[:LONGEST_NAME] or None)
        try:
            await self._app(scope, receive, send)
        finally:
            _KNOWN.reset(token)


def annotator_in(params: Mapping[str, Any]) -> str | None:
    """Who sent a request: whom the server knows, else who the client says it is; None where neither says."""
    said = known_annotator() or params.get("user") or params.get("client_id")
    return str(said)[:LONGEST_NAME] if said else None
