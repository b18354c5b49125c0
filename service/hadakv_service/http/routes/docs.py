"""API documentation page: Swagger UI over `/openapi.json`, served without other servers.

The page loads nothing from other servers, and its Content-Security-Policy forbids it: a script from another server
could call the service as this page. Swagger UI comes from the package fastapi-offline, the rest from `docs_page`.

The page and the document need no token. They are the same in every service, and a browser cannot send a token before
the page asks for one.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response
from starlette.routing import Route

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_JAVASCRIPT = "text/javascript"
_OWN_FILES = {"start.js": _JAVASCRIPT, "page.css": "text/css"}
_FILES = _OWN_FILES | {"swagger-ui-bundle.js": _JAVASCRIPT, "swagger-ui.css": "text/css", "favicon.png": "image/png"}


_OWN_FOLDER = Path(__file__).parents[1] / "docs_page"


@cache
def _swagger_folder() -> Path:
    """Return the folder of Swagger UI's files. Does not import their package."""
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "static"


async def _page(_: Request) -> Response:
    return HTMLResponse((_OWN_FOLDER / "index.html").read_bytes(), headers=_HEADERS)


@cache
def _content(name: str) -> tuple[bytes, str]:
    """Return one of the files and its ETag. Reading and hashing the largest, 1.5 MB, takes milliseconds."""
    content = ((_OWN_FOLDER if name in _OWN_FILES else _swagger_folder()) / name).read_bytes()
    return content, f'"{hashlib.sha256(content).hexdigest()[:32]}"'


async def _file(request: Request) -> Response:
    name = request.url.path.rpartition("/")[2]
    content, etag = _content(name)
    # The browser caches the file but must revalidate it, because an update of the package may change it.
    headers = {**_HEADERS, "etag": etag, "cache-control": "no-cache"}
    cached = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
    if cached & {etag, "*"}:
        return Response(status_code=304, headers=headers)
    return Response(content, headers=headers, media_type=_FILES[name])


async def _redirect(_: Request) -> Response:
    return RedirectResponse("/docs", headers=_HEADERS)


ROUTES = [Route("/", _redirect), Route("/docs", _page), *(Route(f"/docs/{name}", _file) for name in _FILES)]
# Paths that need no token.
OPEN_PATHS = frozenset({"/openapi.json", *(route.path for route in ROUTES)})
