"""Who sends a request: the user of MONAI Label's login, else of a proxy's header, else the name that the client gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import parse_qs

from starlette.responses import JSONResponse

from hermes.errors import BadRequestError

LONGEST_NAME = 64
"""Characters of an annotator's name in a request."""
LONGEST_LOGIN = 255
"""Characters kept of a login's name, which its own service has checked; the database's columns end there."""

_KNOWN: ContextVar[str | None] = ContextVar("known_annotator", default=None)
_IN_QUERY: ContextVar[str | None] = ContextVar("annotator_in_query", default=None)


def annotator_name(value: Any, field: str = "client_id") -> str:
    """The name of an annotator, without the blanks around it.

    Args:
        value: as a request gives it.
        field: where it stood, for the message.

    Raises:
        BadRequestError: no text of 1 to 64 characters that can all be shown: control characters, line ends and half
            characters (lone surrogates) cannot.
    """
    name = value.strip() if isinstance(value, str) else ""
    if not 1 <= len(name) <= LONGEST_NAME or not name.isprintable():
        shown = str(value)[:LONGEST_NAME].encode("unicode_escape").decode("ascii")
        msg = f"Expected {field!r} to be a name of 1 to {LONGEST_NAME} printable characters, got '{shown}'."
        raise BadRequestError(msg)
    return name


def usable_name(value: Any) -> str | None:
    """The name of an annotator, or None for what is none: a cookie, or a field of a DICOM object."""
    try:
        return annotator_name(value)
    except BadRequestError:
        return None


def known_annotator() -> str | None:
    """The annotator of the request that this code runs for; None where the server cannot tell."""
    return _KNOWN.get()


def logged_in(username: str) -> None:
    """From now on in this request, the annotator is who has logged in."""
    _KNOWN.set(username[:LONGEST_LOGIN])


class NameAnnotator:
    """ASGI middleware: takes the annotator from a header, where a setting names one; notes ``client_id`` of the query.

    Anybody can write a header: the proxy in front has to remove it from what clients send.
    """

    def __init__(self, app: Any, header: Callable[[], str]) -> None:
        """Wrap ``app``; ``header`` gives the name of the header, or "" for none."""
        self._app, self._header = app, header

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection; 400 for a header that names nobody, or that is sent twice."""
        token = _IN_QUERY.set(_client_in_query(scope))
        try:
            await self._serve(scope, receive, send)
        finally:
            _IN_QUERY.reset(token)

    async def _serve(self, scope: Any, receive: Any, send: Any) -> None:
        header = self._header() if scope["type"] == "http" else ""
        said = [v for key, v in scope.get("headers", ()) if header and key.lower() == header.lower().encode()]
        if not said or said == [b""]:  # an empty one is what some proxies send for who has not logged in
            await self._app(scope, receive, send)
            return
        try:
            user = annotator_name(_text(said[0]) if len(said) == 1 else [_text(v) for v in said], header)
        except BadRequestError as error:
            await JSONResponse({"detail": str(error)}, error.status)(scope, receive, send)
            return
        token = _KNOWN.set(user)
        try:
            await self._app(scope, receive, send)
        finally:
            _KNOWN.reset(token)


def _client_in_query(scope: Mapping[str, Any]) -> str | None:
    """``client_id`` in the address of a request, the last one where it is given twice; None where there is none."""
    said = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("client_id")
    return said[-1] if said else None


def _text(header: bytes) -> str:
    """A header's value: UTF-8, as proxies send names, else Latin-1, as HTTP has it of old."""
    try:
        return header.decode("utf-8")
    except UnicodeDecodeError:
        return header.decode("latin-1")


def annotator_in(params: Mapping[str, Any]) -> str | None:
    """Who sent a request: whom the server knows, else who the client says it is; None where neither says.

    The client says it in ``params``; where those are silent, ``client_id`` in the query counts.

    Raises:
        BadRequestError: the client says something that names nobody.
    """
    known = known_annotator()
    if known is not None:
        return known
    for field in ("user", "client_id"):
        if params.get(field) is not None:  # MONAI Label's client sends null for "nobody"
            return annotator_name(params[field], field)
    in_query = _IN_QUERY.get()
    return None if in_query is None else annotator_name(in_query)
