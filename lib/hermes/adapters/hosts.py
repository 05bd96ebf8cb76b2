"""Web pages of others are kept out: those that reach the server by a name of their own, and those that only send to it.

A name that its owner lets point to 127.0.0.1 (DNS rebinding) makes a page of that name one of this server's origin, for
the browser; the name is in the request's ``Host``. A page of another origin needs no such trick to send a request whose
answer it cannot read; the page's origin is in the request's ``Origin``.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

ANY = "*"
_LOCAL = "localhost"
_READING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing: what other origins may read of their answers, MONAI Label's CORS settings say."""
_LONGEST_SHOWN = 100


class KnownHosts:
    """ASGI middleware: refuses requests for hosts that this server does not go by, and pages of other origins that write.

    Names of this machine for itself (localhost, 127.0.0.1, [::1]) are always known.
    """

    def __init__(
        self, app: Any, hosts: Callable[[], Collection[str]], origins: Collection[str] = frozenset()
    ) -> None:
        """Wrap an app.

        Args:
            app: what is behind.
            hosts: gives the further names of the server; none: every request is let in, as with ``*``.
            origins: of pages that may write, too, such as ``http://viewer:3000``.
        """
        self._app, self._hosts, self._origins = app, hosts, frozenset(origins)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one connection; 421 for an unknown host, 403 for a page of another origin."""
        hosts = self._hosts() if scope["type"] in ("http", "websocket") else ()
        refused = self._refusal(scope, hosts) if hosts and ANY not in hosts else None
        if refused is None:
            await self._app(scope, receive, send)
            return
        status, reason = refused
        await JSONResponse({"detail": reason}, status)(scope, receive, send)

    def _refusal(self, scope: Any, hosts: Collection[str]) -> tuple[int, str] | None:
        given = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"host"]
        if len(given) != 1 or not _is_known(_name_of(f"//{given[0]}"), hosts):
            shown = json.dumps(", ".join(given)[:_LONGEST_SHOWN])
            return 421, (
                f"Expected a request for localhost or another name of this server, got one for {shown}. If that is a name of "
                "it, put it into the setting allowed_hosts."
            )
        origins = [value.decode("latin-1") for key, value in scope["headers"] if key.lower() == b"origin"]
        foreign = [one for one in origins if one not in self._origins and not _is_known(_name_of(one), hosts)]
        if foreign and scope.get("method") not in _READING:
            shown = json.dumps(foreign[0][:_LONGEST_SHOWN])
            return 403, (
                f"Expected a request of this server's own pages, got one of {shown}. If that page may change things here, put "
                "its host into the setting allowed_hosts, or its origin into MONAI_LABEL_CORS_ORIGINS."
            )
        return None


def _name_of(address: str) -> str | None:
    """The host in ``//host:port`` or ``scheme://host:port``, in lower case; None where there is none."""
    try:
        parts = urlsplit(address)
        _ = parts.port  # raises for a port that is none
    except ValueError:
        return None
    name = parts.hostname
    return name.rstrip(".") if name and "@" not in parts.netloc else None


def _is_known(name: str | None, hosts: Collection[str]) -> bool:
    return name is not None and (name == _LOCAL or name in hosts or is_loopback(name))


def is_loopback(host: str) -> bool:
    """Whether an address is one by which a machine reaches only itself; False for a name."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
