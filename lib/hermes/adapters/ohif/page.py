"""The viewer's files: MONAI Label's build of OHIF, with our script in its page, and nothing loaded from elsewhere."""

from __future__ import annotations

import mimetypes
import re
from functools import lru_cache
from pathlib import Path

import monailabel
from fastapi import APIRouter, Depends
from fastapi.responses import FileResponse, HTMLResponse, RedirectResponse, Response
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User

from hermes.adapters.errors import answers_errors
from hermes.errors import NotFoundError

BUILD = Path(monailabel.__file__).resolve().parent / "endpoints" / "static" / "ohif"
OURS = Path(__file__).resolve().parent / "static"
_CONFIG_TAG = '<script rel="preload" as="script" src="/ohif/app-config.js"></script>'
_OUR_TAGS = (
    '<link rel="stylesheet" href="/ohif/hermes/hermes.css"><script src="/ohif/hermes/hermes.js"></script>'
)
_OF_OTHERS = re.compile(r'<link\b[^>]*\bhref="https?://[^>]*>')
_OWN_FONTS = "style-src 'self' 'unsafe-inline' blob:; font-src 'self' data: blob:"
"""The build's page and style ask Google for a font: that would tell it who labels, and hold the page up without a network."""
_NAMED_BY_CONTENT = re.compile(r"[0-9a-f]{20}\.(js|wasm)$")
_FOR_EVER = "public, max-age=31536000, immutable"
_ASK_AGAIN = "no-cache"

router = APIRouter(tags=["Hermes"])
_USER = Depends(RBAC(settings.MONAI_LABEL_AUTH_ROLE_USER))


@router.get("/ohif", include_in_schema=False)
def without_slash() -> RedirectResponse:
    """The viewer's address as people type it."""
    return RedirectResponse("/ohif/")


@router.get("/ohif/hermes/{name}", include_in_schema=False)
def ours(name: str, user: User = _USER) -> Response:
    """The script and style of the campaign's panel."""
    return answers_errors(_file)(OURS, name)


@router.get("/ohif/{path:path}", include_in_schema=False)
def viewer(path: str, user: User = _USER) -> Response:
    """A file of the build, or its page: the viewer reads the address itself (``/ohif/monai-label?...``)."""
    if path and "." in path.rsplit("/", 1)[-1] and path != "index.html":
        return answers_errors(_file)(BUILD, path)
    return HTMLResponse(_page(), headers={"Cache-Control": _ASK_AGAIN, "Content-Security-Policy": _OWN_FONTS})


@lru_cache(maxsize=1)
def _page() -> str:
    """The build's page with our tags behind its configuration and before the viewer itself, without links elsewhere."""
    html = _OF_OTHERS.sub("", (BUILD / "index.html").read_text(encoding="utf-8"))
    if _CONFIG_TAG in html:
        return html.replace(_CONFIG_TAG, _CONFIG_TAG + _OUR_TAGS, 1)
    return html.replace("</head>", f"{_OUR_TAGS}</head>", 1)


def _file(root: Path, path: str) -> Response:
    file = (root / path).resolve()
    if root not in file.parents or not file.is_file():
        msg = "Expected a file of the viewer, there is none of this name."
        raise NotFoundError(msg)
    kept = _FOR_EVER if _NAMED_BY_CONTENT.search(file.name) else _ASK_AGAIN
    kind = "text/javascript" if file.suffix in (".js", ".mjs") else mimetypes.guess_type(file.name)[0]
    return FileResponse(file, media_type=kind, headers={"Cache-Control": kept})
