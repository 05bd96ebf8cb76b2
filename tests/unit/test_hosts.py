"""Which requests the server takes for its own, by the names that it is told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from hermes.adapters.hosts import KnownHosts


def status(
    hosts: tuple[str, ...], host: str | None, *, origin: str | None = None, method: str = "POST"
) -> int:
    """The status of a request to a server of these names; 200: it was let in."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b""}

    given = {b"host": host, b"origin": origin}
    headers = [(name, value.encode("latin-1")) for name, value in given.items() if value is not None]
    scope = {"type": "http", "method": method, "headers": headers}
    asyncio.run(KnownHosts(app, lambda: hosts, ["http://viewer:3000"])(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("hosts", [(), ("*",), ("hermes.hospital.org", "*")])
def test_a_server_without_names_goes_by_any(hosts: tuple[str, ...]) -> None:
    assert status(hosts, "hermes.hospital.org") == 200
    assert status(hosts, "127.0.0.1:8000", origin="https://hermes.hospital.org") == 200
    assert status(hosts, None) == 200


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("hermes.hospital.org", 200),
        ("Hermes.Hospital.org:443", 200),
        ("127.0.0.1:8000", 200),
        ("[::1]:8000", 200),
        ("localhost", 200),
        ("[fd00::1]:8000", 200),
        ("fd00::2", 421),
        ("hospital.org", 421),
        ("evil.example", 421),
        ("hermes.hospital.org.evil.example", 421),
        ("evil.example@localhost", 421),
        ("localhost:port", 421),
        ("", 421),
        (None, 421),
    ],
)
def test_names_of_the_server(host: str | None, expected: int) -> None:
    assert status(("hermes.hospital.org", "fd00::1"), host) == expected
    assert status(("hermes.hospital.org", "fd00::1"), host, method="GET") == expected


@pytest.mark.parametrize(
    ("origin", "writes"),
    [
        ("http://127.0.0.1:8000", 200),
        ("https://hermes.hospital.org", 200),
        ("http://viewer:3000", 200),
        ("http://viewer:3001", 403),
        ("http://evil.example", 403),
        ("null", 403),
    ],
)
def test_pages_that_write(origin: str, writes: int) -> None:
    assert status(("hermes.hospital.org",), "127.0.0.1:8000", origin=origin) == writes
    assert status(("hermes.hospital.org",), "127.0.0.1:8000", origin=origin, method="GET") == 200
