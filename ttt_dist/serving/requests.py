"""What is required of a request before anything is made of it: who asks whom, and that its body can be read to an end."""

import re
from collections.abc import Container
from typing import Any

from werkzeug.exceptions import BadRequest, Forbidden, LengthRequired, RequestEntityTooLarge, UnsupportedMediaType
from werkzeug.formparser import FormDataParser
from werkzeug.wrappers import Request

MAX_UPLOAD = 20 * 2**20
MAX_TEXT = 500_000  # bytes of a form's field, and of a whole form that carries no files
FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
HOST = r"(?P<name>\[[0-9a-f:.]+\]|[!$&'*+.0-9;=_a-z~-]+)(?::(?P<port>\d{1,5}))?"
"""NAME or NAME:PORT of RFC 3986, without the user names and escapes that no browser sends."""


class StrictParser(FormDataParser):
    """A form that cannot be read is an error, not an empty form."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"silent": False})


class LimitedRequest(Request):
    """A request whose body is not read beyond the limit."""

    form_data_parser_class = StrictParser
    max_form_memory_size = MAX_TEXT

    @property
    def max_content_length(self) -> int:  # type: ignore[override]
        """werkzeug reads an encoded form at once, so that it counts as a field."""
        return MAX_TEXT if self.mimetype == FORMS[1] else MAX_UPLOAD


def require_trusted(request: Request, names: Container[str | None]) -> None:
    """Refuse other names of this address (a site that has its name point here would read along), and other sites' forms."""
    host = request.environ.get("HTTP_HOST", "").lower()
    if hostname(host) not in names:
        raise BadRequest(f"the server is not called {host[:80]!r}; open it by the address that it printed")
    origin = request.headers.get("Origin")
    if origin is None:
        return
    site = re.fullmatch(rf"[a-z][a-z0-9+.-]*://(?P<host>{HOST})", origin.lower())
    if origin != "null" and (site is None or hostname(site["host"]) is None):
        raise BadRequest(f"the Origin {origin[:80]!r} is not one that a browser sends; leave it out")
    if request.method != "GET" and (site is None or site["host"] != host):
        raise Forbidden(f"a page of {origin[:80]!r} may not ask this server; open its own page")


def hostname(host: str) -> str | None:
    """The name or address in a Host header in lower case, or None where it is malformed."""
    found = re.fullmatch(HOST, host)
    return found["name"].strip("[]") if found and int(found["port"] or 0) < 2**16 else None


def require_readable(request: Request) -> None:
    """Refuse bodies whose end is not told, or is told twice."""
    length, coding = request.environ.get("CONTENT_LENGTH"), request.headers.get("Transfer-Encoding")
    if length is not None and not re.fullmatch(r"[0-9]{1,18}", length):
        raise BadRequest(f"the Content-Length {length[:40]!r} is not one number of bytes; correct it")
    if coding is not None and (coding.strip().lower() != "chunked" or length is not None):
        raise BadRequest("Transfer-Encoding is not chunked, or stands beside a Content-Length; send one of both")
    if request.method == "POST" and length is None and coding is None:
        raise LengthRequired("the request has no Content-Length; send one")


def require_form(request: Request) -> None:
    """Read the form. Raises an HTTPException naming what is wrong with it."""
    if request.mimetype not in FORMS:
        raise UnsupportedMediaType(f"the body is {request.mimetype[:40]!r}; send a form ({' or '.join(FORMS)})")
    try:
        _ = request.form
    except RequestEntityTooLarge:
        raise RequestEntityTooLarge(
            f"the upload is larger than {MAX_UPLOAD // 2**20} MB, or its text than {MAX_TEXT / 1e6} MB; send less"
        ) from None
    except ValueError as error:
        raise BadRequest(f"the form cannot be read ({error}); correct its boundary, parts and encoding") from None
