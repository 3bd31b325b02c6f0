"""The served page and clients that mean it ill, or do not know better: each request has one clean answer, none holds the server."""

import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from tests.served import SETTINGS, make_model, running
from ttt_dist.audio import load_codec
from ttt_dist.inference.decoder import Decoder
from ttt_dist.model.hf.folder import load_folder
from ttt_dist.serving import connections
from ttt_dist.serving.app import App
from ttt_dist.serving.decoding_thread import DecodingThread
from ttt_dist.serving.request_builder import RequestBuilder
from ttt_dist.serving.server import trusted_names

FIELD = b'--b\r\nContent-Disposition: form-data; name="task"\r\n\r\n%s\r\n--b--\r\n'
FORM = {"Content-Type": "multipart/form-data; boundary=b"}
SLOW_UPLOAD = b"POST /answers HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=b\r\nContent-Length: 900\r\n\r\n"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[App]:
    folder = load_folder(make_model(tmp_path_factory.mktemp("hostile")))
    thread = DecodingThread(Decoder(folder, batch_size=8))
    yield App(RequestBuilder(folder, load_codec(folder.codec), SETTINGS, "tiny"), thread, trusted_names("127.0.0.1"))
    thread.close()


@pytest.fixture(scope="module")
def port(app: App) -> Iterator[int]:
    with running(app) as port:
        yield port


def raw(port: int, request: bytes, half_close: bool = False) -> tuple[int, bytes, bytes]:
    """Status, head and body of the answer, read to its end; status 0 where there is none."""
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request)
        if half_close:
            connection.shutdown(socket.SHUT_WR)
        answer = b""
        while data := connection.recv(2**16):
            answer += data
    head, _, body = answer.partition(b"\r\n\r\n")
    status = re.match(rb"HTTP/1\.[01] (\d{3}) ", head)
    return int(status[1]) if status else 0, head, body


def message(line: bytes = b"POST /answers HTTP/1.1", body: bytes = b"", **headers: str | None) -> bytes:
    """A request; a header of None is left out, names have _ for -."""
    values: dict[str, str | None] = {"Host": "localhost", "Content-Length": str(len(body))}
    values |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{name}: {value}".encode("latin-1") for name, value in values.items() if value is not None]
    return b"\r\n".join([line, *lines, b"", body])


def refusal(port: int, request: bytes) -> tuple[int, str]:
    """Status of a refusal, and its one line."""
    status, head, body = raw(port, request, half_close=True)
    assert 400 <= status < 500, (status, head, body)
    assert b"connection: close" in head.lower()
    (line,) = json.loads(body).values()
    assert "\n" not in line and len(line) > 10
    return status, line


ORIGINS = ["http://[::1", "http://[x]", "http://a]b", "//", "", "localhost", "http://", "http:///", "http://localhost:x",
        "http://localhost:99999",
           "http://localhost:-1", "http://\u00e9", "http://\u00ff\u00fe", "http://a b", "http://localhost/path",
        "http://u@localhost", "\x01", "http://[v1.x"]  # fmt: skip


@pytest.mark.parametrize("origin", ORIGINS)
@pytest.mark.parametrize("line", [b"POST /answers HTTP/1.1", b"GET /model HTTP/1.1"])
def test_a_malformed_origin_is_refused(port: int, origin: str, line: bytes) -> None:
    assert refusal(port, message(line, Origin=origin))[0] in (400, 403)


def test_an_origin_counts_as_a_browser_writes_it(port: int) -> None:
    task = FIELD % b"sing"
    same = message(body=task, Host="LOCALHOST:80", Origin="http://localhost:80", **FORM)
    assert "task is 'sing'" in refusal(port, same)[1]
    twice = b"POST /answers HTTP/1.1\r\nHost: localhost\r\nOrigin: http://localhost\r\nOrigin: http://evil\r\n\r\n"
    assert refusal(port, twice)[0] in (400, 403)


@pytest.mark.parametrize("host", ["localhost:x", "localhost:99999", "localhost:-1", "localhost:", "u@localhost", "localhost/",
        "localhost?", "localhost#a",
                                  "[::1]x", "[::1]:x", "[localhost]", "local\u00e9host", "localhost,localhost",
        "localhost localhost", "\x00", None])  # fmt: skip
def test_a_malformed_host_is_refused(port: int, host: str | None) -> None:
    assert refusal(port, message(b"GET /model HTTP/1.1", Host=host))[0] == 400


@pytest.mark.parametrize(
    "length", ["", "x", "-1", "+5", "1e3", "5.0", "0x5", "5 5", "5,5", "1_0", "\u00b2", "9" * 5000, "9" * 30]
)
def test_a_malformed_length_is_named(port: int, length: str) -> None:
    for line in (b"POST /answers HTTP/1.1", b"GET /model HTTP/1.1"):
        status, said = refusal(port, message(line, Content_Length=length, **FORM))
        assert (status, "Content-Length" in said) in ((400, True), (413, False))


def test_two_lengths_or_none_or_a_length_beside_chunks(port: int) -> None:
    body = FIELD % b"sing"
    assert (
        "Content-Length"
        in refusal(port, message(body=body, **FORM).replace(b"\r\n\r\n--b", b"\r\nContent-Length: 7\r\n\r\n--b"))[1]
    )
    assert refusal(port, message(Content_Length=None, **FORM))[0] == 411
    assert refusal(port, message(body=body, Transfer_Encoding="chunked", **FORM))[0] == 400
    assert refusal(port, message(Content_Length=None, Transfer_Encoding="gzip", **FORM))[0] == 400
    chunks = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    assert (
        "task is 'sing'"
        in refusal(port, message(body=chunks, Content_Length=None, Transfer_Encoding="chunked", **FORM))[1]
    )


@pytest.mark.parametrize(
    "chunks",
    [b"x\r\n", b"-5\r\n", b"5", b"5\r\nab", b"\r\n", b"ffffffffffffffffff\r\n", b"3\r\nabcdef\r\n", b"9" * 70_000, b""],
)
def test_malformed_chunks(port: int, chunks: bytes) -> None:
    refusal(port, message(body=chunks, Content_Length=None, Transfer_Encoding="chunked", **FORM))


@pytest.mark.parametrize(
    "kind",
    [
        None,
        "",
        "x",
        "text/plain",
        "application/json",
        "application/json; charset=x",
        "multipart/mixed; boundary=b",
        "\u00ff",
    ],
)
def test_what_is_no_form_is_refused_as_such(port: int, kind: str | None) -> None:
    for body in (b"", b"null", b"[]", b"{}", b'"x"', b"1", b"{", b"\xff", b'{"task": 1e999}', b"[" * 100_000):
        assert refusal(port, message(body=body, Content_Type=kind))[0] == 415


@pytest.mark.parametrize("boundary", ["", "; boundary", "; boundary=", '; boundary="', "; boundary=\u00e9", "; boundary=\u00ff",
        "; boundary=a b", "; boundary=" + "x" * 60_000,
                                      "; boundary*=utf-8''b", "; boundary=b; boundary=c", "; boundary=c"])  # fmt: skip
def test_a_malformed_boundary(port: int, boundary: str) -> None:
    refusal(port, message(body=FIELD % b"sing", Content_Type=f"multipart/form-data{boundary}"))


@pytest.mark.parametrize(
    "body",
    [
        b"", b"x", b"--b", b"--b\r\n", b"--b--", b"--b\r\n\r\n\r\n--b--", FIELD[:30], FIELD[:-6], b"--b\r\n" + b"x" * 100_000,
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Disposition: form-data; name*=bad'x'%ff\r\n\r\nx\r\n--b--\r\n",
        b"--b\r\nContent-Type: text/plain; charset=none\r\nContent-Disposition: form-data; name=task\r\n\r\n\xff\r\n--b--\r\n",
        b"".join(b"--b\r\nContent-Disposition: form-data; name=f%d\r\n\r\nx\r\n" % n for n in range(2000)) + b"--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="recording"; filename="\x00\x1b[2J\r\n ../../x"\r\n\r\nRIFF\r\n--b--\r\n',
    ],
)  # fmt: skip
def test_malformed_parts(port: int, body: bytes) -> None:
    refusal(port, message(body=body, **FORM))


@pytest.mark.parametrize(
    "body", [b"", b"task", b"task=%ff%zz", b"\xff\xfe", b"&" * 600_000, b"task=" + b"x" * 600_000, b"a=1&" * 5000]
)
def test_an_encoded_form_is_bounded_like_the_other(port: int, body: bytes) -> None:
    status, _ = refusal(port, message(body=body, Content_Type="application/x-www-form-urlencoded"))
    assert status == (413 if len(body) > 500_000 else 400)


@pytest.mark.parametrize(
    "line",
    [
        b"", b" ", b"GET", b"GET /", b"GET / HTTP/x", b"GET / HTTP/9.9", b"GET / HTTP/1.1 x", b"GET /" + b"x" * 70_000 + b" HTTP/1.1",
        b"GET http://[::1/ HTTP/1.1", b"GET http://evil/ HTTP/1.1", b"GET //[::1 HTTP/1.1", b"GET /%ff%00 HTTP/1.1",
        b"GET * HTTP/1.1", b"GET \x00 HTTP/1.1",
        b"GET http://local\xc3\xa9/ HTTP/1.1", b"\xff\xfe / HTTP/1.1", b"CONNECT a:1 HTTP/1.1", b"__init__ / HTTP/1.1",
        b"\x16\x03\x01\x02\x00\x01", b"HTTP/1.1 200 OK",
    ],
)  # fmt: skip
def test_malformed_request_lines(port: int, line: bytes) -> None:
    refusal(port, message(line))


def test_a_whole_address_is_understood(port: int) -> None:
    for path in (b"http://localhost", b"http://localhost/", b"http://localhost/page.css"):
        assert raw(port, message(b"GET " + path + b" HTTP/1.1"))[0] == 200


def test_queries_are_passed_over(port: int) -> None:
    for query in (b"?", b"?%ff", b"?a=%zz&;", b"?" + b"[" * 1000, b"?\xff"):
        assert raw(port, message(b"GET /model" + query + b" HTTP/1.1"))[0] == 200


@pytest.mark.parametrize(
    "headers",
    [
        b"x" * 70_000,
        b"A: b\r\n" * 200,
        b": x",
        b"no colon",
        b"\x00: \x00",
        b" folded",
        b"Upgrade: websocket\r\nConnection: Upgrade",
    ],
)
def test_malformed_headers_end_in_no_failure(port: int, headers: bytes) -> None:
    status, _, _ = raw(port, b"GET /model HTTP/1.1\r\nHost: localhost\r\n" + headers + b"\r\n\r\n", half_close=True)
    assert status == 200 or 400 <= status < 500


def test_any_damage_to_a_request_has_an_answer(port: int, capfd: pytest.CaptureFixture[str]) -> None:
    generator = random.Random(0)
    whole = message(body=FIELD % b"sing", Origin="http://localhost", Accept="*/*", **FORM)
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(generator.randint(1, 4)):
            place = generator.randrange(len(damaged))
            damaged[place : place + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
        status, _, _ = raw(port, bytes(damaged), half_close=True)
        assert 400 <= status < 500, bytes(damaged)
    assert "Traceback" not in capfd.readouterr().err


def test_connections_are_bounded_and_the_others_told(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 8)
    with running(app) as port, ExitStack() as stack:
        before = threading.active_count()
        slow = [stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20)) for _ in range(40)]
        for connection in slow:
            connection.sendall(SLOW_UPLOAD)
        status, head, body = raw(port, message(b"GET /model HTTP/1.1"))
        assert (status, "try again" in json.loads(body)["error"]) == (503, True)
        assert re.search(rb"\r\nRetry-After: \d+\r\n", head)
        assert threading.active_count() - before <= 8 + 1
        for connection in slow:
            connection.close()
        deadline = time.monotonic() + 20
        while raw(port, message(b"GET /model HTTP/1.1"))[0] != 200:  # places are given back
            assert time.monotonic() < deadline


@pytest.mark.parametrize("start", [b"", b"G", b"GET /model HTTP/1.1\r\nHost: ", SLOW_UPLOAD, SLOW_UPLOAD + b"--b\r\n"])
@pytest.mark.parametrize("limit", ["RECEIVE_S", "SILENCE_S"])
def test_a_request_that_does_not_come_to_its_end_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch, start: bytes, limit: str
) -> None:
    monkeypatch.setattr(connections, limit, 0.6)
    with socket.create_connection(("127.0.0.1", port), timeout=0.1) as connection:
        connection.sendall(start)
        deadline, answer = time.monotonic() + 10, b""
        while b"408" not in answer:
            assert time.monotonic() < deadline
            if limit == "RECEIVE_S":  # a drip: never silent for long
                connection.sendall(b"x")
            try:
                answer += connection.recv(2**16)
            except TimeoutError:
                continue


def test_a_refused_upload_lets_its_client_read_to_the_end_at_once(port: int) -> None:
    head = SLOW_UPLOAD.replace(b"900", b"99000000")
    for sent in (0, 100, 2**20):
        start = time.monotonic()
        status, _, body = raw(port, head + bytes(sent))
        assert (status, "larger than 20 MB" in json.loads(body)["error"]) == (413, True)
        assert time.monotonic() - start < 4


def test_lingering_clients_hold_no_place(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    with running(app) as port, ExitStack() as stack:
        for _ in range(8):  # each has its answer, and does not close
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=20))
            connection.sendall(SLOW_UPLOAD.replace(b"900", b"99000000"))
            with connection.makefile("rb") as answer:
                assert b" 413 " in answer.readline()
                answer.read()
