"""The bundled OHIF viewer at ``/ohif/``, connected to this server, with a panel of the campaign in it.

The viewer's build is MONAI Label's own and is served unchanged, but for one line of its page that loads
``static/hermes.js``; its way to the PACS is our proxy.
"""

from __future__ import annotations

from fastapi import APIRouter

from hermes.adapters.ohif import existing, page, proxy, viewer

router = APIRouter()
for _part in (viewer, existing, page, proxy):
    router.include_router(_part.router)

__all__ = ["router"]
