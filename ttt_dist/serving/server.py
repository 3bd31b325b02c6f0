"""The socket, the names that it may be called by, and how the server ends."""

import os
import signal
import socket
from ipaddress import ip_address

from ttt_dist.serving.app import App
from ttt_dist.serving.connections import Connection, Server
from ttt_dist.util.errors import UserError

LOCAL = ("127.0.0.1", "::1", "localhost")


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one. Raises UserError naming the flag that does not work."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=128)
    except socket.gaierror as error:
        raise UserError(f"--host {host}: {error.strerror}; give a name or address of this machine") from None
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        raise UserError(
            f"--host {host} --port {port}: {reason}; choose another --port, 0 for any that is free"
        ) from None


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine can connect to `host`."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def trusted_names(host: str) -> set[str]:
    """Names that the server may be called by, in lower case; its address beside them is known from each connection."""
    names = {*LOCAL, host} | (set() if is_loopback(host) else {socket.gethostname(), socket.getfqdn()})
    return {name.lower() for name in names}


def url_of(host: str, port: int) -> str:
    """The address to open; of a server on all interfaces, by the machine's name."""
    name = socket.gethostname() if host in ("0.0.0.0", "::") else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def server_on(listening: socket.socket, app: App) -> Server:
    """The server of an application."""
    host, port = listening.getsockname()[:2]
    return Server(host, port, app, Connection, fd=listening.fileno())


def serve(listening: socket.socket, app: App) -> None:
    """Answer until SIGINT or SIGTERM, then end the decoding thread. For the main thread."""
    server = server_on(listening, app)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # ends serve_forever
    try:
        server.serve_forever()
    finally:
        listening.close()
        app.thread.close()
