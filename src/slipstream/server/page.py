"""The page at /: static files of the package, which may use this server alone."""

from __future__ import annotations

from pathlib import Path

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response

STATIC = Path(__file__).parent / "static"

POLICY = (
    "default-src 'self'; img-src 'self' blob:; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'"
)
"""What the page may do: load and call this server, show pictures that it was sent, run no inline code, and sit in no
other page's frame."""

_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": POLICY,
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def page(request: Request) -> Response:
    """The page itself. Raises HTTPException 404 where the package was installed without it."""
    file = STATIC / "index.html"
    if not file.is_file():
        raise HTTPException(404)
    return FileResponse(file, headers=_HEADERS)
