"""API documentation page: Swagger UI over `/openapi.json`, served without other servers.

The page loads nothing from other servers, and its Content-Security-Policy forbids it: a script from another server
could call the service as this page. The files come from the package fastapi-offline.
"""

import hashlib
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>hadakv</title>
<link rel="icon" href="docs/favicon.png">
<link rel="stylesheet" href="docs/swagger-ui.css">
<script defer src="docs/swagger-ui-bundle.js"></script>
<script defer src="docs/start.js"></script>
</head>
<body><div id="swagger-ui"></div></body>
</html>
"""
# The default would send the document to a validator on the internet.
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"content-security-policy": _POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
_JAVASCRIPT = "text/javascript"
_FILES = {"swagger-ui-bundle.js": _JAVASCRIPT, "swagger-ui.css": "text/css", "favicon.png": "image/png"}


@cache
def _folder() -> Path:
    """Return the folder of the package's files. Does not import the package."""
    package = find_spec("fastapi_offline")
    assert package is not None
    assert package.submodule_search_locations
    return Path(package.submodule_search_locations[0]) / "static"


async def _page(_: Request) -> Response:
    return HTMLResponse(_PAGE, headers=_HEADERS)


async def _start(_: Request) -> Response:
    return Response(_START, headers=_HEADERS, media_type=_JAVASCRIPT)


@cache
def _content(name: str) -> tuple[bytes, str]:
    """Return one of the package's files and its ETag. Reading and hashing the largest, 1.5 MB, takes milliseconds."""
    content = (_folder() / name).read_bytes()
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


ROUTES = [Route("/docs", _page), Route("/docs/start.js", _start), *(Route(f"/docs/{name}", _file) for name in _FILES)]
