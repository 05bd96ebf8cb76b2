"""The viewer's way to the PACS: ``/proxy/dicom/{qido,wado,stow}/...`` is passed on, whole and as a stream.

MONAI Label's own drops the query, so that a search finds everything and a patient's panel shows the studies of
others; it also holds every body in memory and stops all other answers while it waits.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator
from functools import lru_cache
from urllib.parse import parse_qsl, quote, unquote, urlencode

import httpx
from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import Response, StreamingResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import RBAC, User
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool

from hermes.adapters.annotators import known_annotator, usable_name
from hermes.adapters.dicomweb.client import text_of
from hermes.adapters.dicomweb.pacs import access_of
from hermes.adapters.ohif.incoming import Spool
from hermes.adapters.ohif.stored import instances_of_volumes, storing, take_labels

logger = logging.getLogger(__name__)

ANNOTATOR_COOKIE = "hermes_annotator"
LABEL_HEADER = "hermes-label"
IMAGE_HEADER = "hermes-image"
"""With which the panel says for which image of the campaign it asks for the attributes of a series."""
_SERVICES = ("studies", "series", "instances")
"""What DICOMweb addresses begin with; anything else of that server is not the viewer's business."""
_FORWARDED = ("accept", "accept-encoding", "accept-language", "content-type", "if-none-match", "range")
_ANSWERED = (
    "content-type", "content-length", "content-encoding", "content-range", "etag", "last-modified", "location",
    "cache-control", "warning",
)  # fmt: skip
_STUDY_METADATA = re.compile(r"studies/([0-9.]+)(?:/series/[0-9.]+)?/metadata$")
_TIMEOUT = httpx.Timeout(60.0, connect=5.0)
_LIMITS = httpx.Limits(max_connections=64, max_keepalive_connections=32, keepalive_expiry=0.5)
"""Orthanc closes a connection that was idle for a second; ours must not be about to use it then."""
_HUNG_UP = (httpx.RemoteProtocolError, httpx.ReadError)
"""What it looks like when the PACS closes a kept connection at the moment at which it is used again."""

router = APIRouter(prefix="/proxy", tags=["Hermes"])
_USER, _ANNOTATOR = (
    Depends(RBAC(role))
    for role in (settings.MONAI_LABEL_AUTH_ROLE_USER, settings.MONAI_LABEL_AUTH_ROLE_ANNOTATOR)
)


@router.get("/dicom/{path:path}", include_in_schema=False)
async def get(request: Request, path: str, user: User = _USER) -> Response:
    """QIDO and WADO: the answer as the PACS gives it, but for the attributes of a series of several volumes."""
    answer = await _pass_on(request, _address(path), None)
    study = _STUDY_METADATA.search(path)
    if IMAGE_HEADER not in request.headers or study is None or answer.status_code != 200:
        return answer
    return await _wanted_volumes(answer, study.group(1), request.headers[IMAGE_HEADER])


async def _wanted_volumes(answer: Response, study_uid: str, image: str) -> Response:
    """The attributes of a study's images without those of further volumes of a series: OHIF would make one stack of all."""
    volumes = await run_in_threadpool(instances_of_volumes, study_uid, image)
    if not volumes or not isinstance(answer, StreamingResponse):
        return answer
    body = b"".join([bytes(chunk) async for chunk in _stream_of(answer)])
    kept = [
        item
        for item in json.loads(body)
        if (wanted := volumes.get(text_of(item, "0020000E"))) is None or text_of(item, "00080018") in wanted
    ]
    return Response(json.dumps(kept), media_type=answer.headers.get("content-type"))


async def _stream_of(answer: StreamingResponse) -> AsyncIterator[bytes]:
    async for chunk in answer.body_iterator:
        yield chunk.encode() if isinstance(chunk, str) else bytes(chunk)


@router.post("/dicom/{path:path}", include_in_schema=False)
async def post(request: Request, path: str, user: User = _ANNOTATOR) -> Response:
    """STOW: passed on; a segmentation of an image of the campaign then counts as its submitted label."""
    address = _address(path)
    spool = Spool()
    try:
        async for chunk in request.stream():
            await spool.write(chunk)
        await spool.finish()
        labels = await run_in_threadpool(spool.label_objects, request.headers.get("content-type", ""))
        with storing(labels):
            answer = await _pass_on(request, address, spool)
            if labels and answer.status_code < 300:
                taken = await run_in_threadpool(take_labels, labels, _annotator(request, user))
                answer.headers[LABEL_HEADER] = json.dumps([entry.to_json() for entry in taken])
    finally:
        spool.close()
    return answer


def _annotator(request: Request, user: User) -> str | None:
    """Who stores: whom the server knows, else the name that the viewer's panel asked for."""
    if settings.MONAI_LABEL_AUTH_ENABLE:
        return str(user.username)
    return known_annotator() or usable_name(unquote(request.cookies.get(ANNOTATOR_COOKIE, "")))


def _address(path: str) -> str:
    """The PACS' address for what stands behind ``/proxy/dicom/``.

    Raises:
        HTTPException: 404 where there is no PACS, or for what is no address of DICOMweb.
    """
    server = settings.MONAI_LABEL_STUDIES.rstrip("/")
    if not server.startswith(("http://", "https://")):
        raise HTTPException(
            404, "Expected a campaign on a DICOMweb server; this one's images are files in a folder."
        )
    service, _, rest = path.partition("/")
    if service not in ("qido", "wado", "stow"):
        service, rest = "", path
    pieces = rest.rstrip("/").split("/")
    if pieces[0] not in _SERVICES or any(piece in ("", ".", "..") or "\\" in piece for piece in pieces):
        raise HTTPException(
            404, f"Expected an address of DICOMweb ({', '.join(_SERVICES)}), got another one."
        )
    if pieces[-1] == "metadata":
        service = "wado"  # some builds of the viewer ask the search service for it
    prefixes = {
        "qido": settings.MONAI_LABEL_QIDO_PREFIX,
        "wado": settings.MONAI_LABEL_WADO_PREFIX,
        "stow": settings.MONAI_LABEL_STOW_PREFIX,
    }
    prefix = (prefixes.get(service) or "").strip("/")
    return "/".join(
        [server, *([prefix] if prefix else []), *(quote(piece, safe="~,;=@") for piece in pieces)]
    )


async def _pass_on(request: Request, address: str, spool: Spool | None) -> Response:
    """The answer of the PACS, as a stream where it has no body of ours behind it.

    Raises:
        HTTPException: 503 where the PACS cannot be reached, 502 where it breaks off.
    """
    headers = {name: request.headers[name] for name in _FORWARDED if name in request.headers}
    headers.setdefault("accept-encoding", "identity")
    if IMAGE_HEADER in request.headers:
        headers["accept-encoding"] = "identity"  # we may have to read it
    if spool is not None:
        headers["content-length"] = str(spool.size)
    url = httpx.URL(address, query=_plain_query(request.url.query))
    outgoing = _client().build_request(
        request.method, url, headers=headers, content=spool.chunks() if spool is not None else None
    )
    try:
        answer = await _send(outgoing)
        if spool is not None:
            await answer.aread()
    except httpx.ConnectError as error:
        raise HTTPException(
            503, "The PACS cannot be reached. Look whether it runs, then try again."
        ) from error
    except httpx.TransportError as error:
        msg = f"The PACS did not answer ({type(error).__name__}). Try again; its log may say more."
        raise HTTPException(502, msg) from error
    kept = {name: answer.headers[name] for name in _ANSWERED if name in answer.headers}
    if spool is not None:
        kept.pop("content-length", None), kept.pop("content-encoding", None)
        return Response(answer.content, answer.status_code, kept)
    return StreamingResponse(
        _stream(answer), answer.status_code, kept, background=BackgroundTask(answer.aclose)
    )


async def _send(outgoing: httpx.Request) -> httpx.Response:
    """The beginning of the answer; what changes nothing in the PACS is asked once more where it hangs up before that."""
    try:
        return await _client().send(outgoing, stream=True, auth=_login())
    except _HUNG_UP:
        if outgoing.method not in ("GET", "HEAD"):
            raise
        return await _client().send(outgoing, stream=True, auth=_login())


def _plain_query(query: str) -> bytes | None:
    """The same query with no more escapes than it needs: Orthanc's plugin (1.7) finds nothing for ``%2A``."""
    pairs = parse_qsl(query, keep_blank_values=True)
    return urlencode(pairs, safe="*,:@/?!$'()", quote_via=quote).encode() or None


async def _stream(answer: httpx.Response) -> AsyncIterator[bytes]:
    try:
        async for chunk in answer.aiter_raw():
            yield chunk
    finally:
        await answer.aclose()


@lru_cache(maxsize=1)
def _client() -> httpx.AsyncClient:
    """One pool of connections for the whole server: a series is hundreds of requests."""
    return httpx.AsyncClient(timeout=_TIMEOUT, limits=_LIMITS, follow_redirects=False)


def _login() -> httpx.BasicAuth | None:
    access = access_of(settings.MONAI_LABEL_STUDIES)
    return httpx.BasicAuth(access.user, access.password) if access.user else None
