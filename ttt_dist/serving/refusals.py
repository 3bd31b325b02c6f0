"""How requests are refused: one line of JSON, and the headers that every answer has."""

import json
from http import HTTPStatus

from werkzeug.wrappers import Response

HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; media-src 'self' blob:; "
    "frame-ancestors 'none'; form-action 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
RETRY_AFTER_S = 5  # what a client is told that came while the server was busy


def refusal(status: int, message: str) -> Response:
    """An error as a response: {"error": LINE}; with 503, when to come again."""
    headers = {"Retry-After": str(RETRY_AFTER_S)} if status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    line = json.dumps({"error": " ".join(message.split())})
    return Response(line, status, headers | HEADERS, mimetype="application/json")


def refusal_bytes(status: int, message: str) -> bytes:
    """The same as it goes over the wire, for requests that never reach the application."""
    response = refusal(status, message)
    lines = [f"HTTP/1.1 {response.status}", *(f"{name}: {value}" for name, value in response.headers)]
    return "\r\n".join([*lines, "Connection: close", "", ""]).encode() + response.get_data()
