from __future__ import annotations

import asyncio
import contextvars
from typing import Any

import pytest

from hermes.adapters.annotators import (
    NameAnnotator,
    annotator_in,
    annotator_name,
    known_annotator,
    logged_in,
    usable_name,
)
from hermes.errors import BadRequestError

NOBODY: list[Any] = [
    "", "   ", "x" * 65, "anna\nben", "anna\x00", "a\ttab", "\x1b[31mred", "\ud800", "a\u2028b", "a\u202eb",
    5, True, ["anna"], {"name": "anna"},
]  # fmt: skip


@pytest.mark.parametrize("value", NOBODY, ids=ascii)
def test_names_of_nobody(value: Any) -> None:
    with pytest.raises(BadRequestError, match=r"client_id.*1 to 64 printable characters") as refused:
        annotator_name(value)
    assert str(refused.value).isprintable()  # fit for a log and for an answer in UTF-8
    assert usable_name(value) is None
    with pytest.raises(BadRequestError, match="client_id"):
        annotator_in({"client_id": value})


@pytest.mark.parametrize("name", ["a", "x" * 64, "Dr. Ana Muñoz", "山田 太郎", "anna@example.org"])
def test_names_of_somebody(name: str) -> None:
    assert annotator_name(f"  {name}\n") == usable_name(name) == name
    assert annotator_in({"client_id": name}) == name


def test_nobody_is_no_bad_name() -> None:
    assert annotator_in({}) is annotator_in({"client_id": None, "user": None}) is None
    assert usable_name(None) is None


def through(headers: list[tuple[bytes, bytes]], header: str = "X-Remote-User") -> tuple[str | None, int]:
    """Whom the app behind the middleware sees, and the status that the client gets."""
    seen: list[str | None] = []
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(annotator_in({"client_id": "somebody"}))
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    middleware = NameAnnotator(app, header=lambda: header)
    asyncio.run(middleware({"type": "http", "method": "GET", "headers": headers}, receive, send))
    return (seen[0] if seen else None), sent[0]["status"]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ([(b"x-remote-user", b" anna ")], ("anna", 200)),
        ([(b"X-Remote-User", "Muñoz".encode())], ("Muñoz", 200)),
        ([(b"x-remote-user", "Weiß".encode())], ("Weiß", 200)),
        ([(b"x-remote-user", "Muñoz".encode("latin-1"))], ("Muñoz", 200)),
        ([(b"x-remote-user", b"")], ("somebody", 200)),
        ([], ("somebody", 200)),
        ([(b"x-remote-user", b"x" * 65)], (None, 400)),
        ([(b"x-remote-user", b"an\x07na")], (None, 400)),
        ([(b"x-remote-user", b"anna"), (b"x-remote-user", b"ben")], (None, 400)),
    ],
)
def test_header_of_a_proxy(headers: list[tuple[bytes, bytes]], expected: tuple[str | None, int]) -> None:
    assert through(headers) == expected
    assert through(headers, header="") == ("somebody", 200)


@pytest.mark.parametrize(
    ("query", "params", "expected"),
    [
        (b"image=1&client_id=anna", {}, "anna"),
        (b"client_id=Mu%C3%B1oz+A", {"client_id": None}, "Muñoz A"),
        (b"client_id=anna", {"client_id": "ben"}, "ben"),
        (b"client_id=anna&client_id=ben", {}, "ben"),
        (b"client_id=&image=1", {}, None),
        (b"", {}, None),
        (b"client_id=an%07na", {}, BadRequestError),
        (b"client_id=" + b"x" * 65, {}, BadRequestError),
    ],
)
def test_a_name_in_the_query_counts_where_nothing_else_says_one(
    query: bytes, params: dict[str, Any], expected: Any
) -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            seen.append(annotator_in(params))
        except BadRequestError:
            seen.append(BadRequestError)

    async def nothing(*_: Any) -> None:
        """Not called."""

    middleware = NameAnnotator(app, header=lambda: "X-Remote-User")
    scope = {"type": "http", "method": "PUT", "headers": [], "query_string": query}
    asyncio.run(middleware(scope, nothing, nothing))
    known = {**scope, "headers": [(b"x-remote-user", b"carl")]}
    asyncio.run(middleware(known, nothing, nothing))
    assert seen == [expected, "carl"]


def test_a_login_counts_whatever_the_client_says() -> None:
    def in_a_request() -> str | None:
        logged_in("dr." * 30)
        return annotator_in({"client_id": "\n"})

    assert contextvars.copy_context().run(in_a_request) == "dr." * 30
    assert known_annotator() is None
