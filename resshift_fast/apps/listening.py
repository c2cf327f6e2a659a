"""Addresses that servers listen on."""

from __future__ import annotations

import errno
import ipaddress
import socket


def bound(host: str, port: int) -> socket.socket:
    """A socket for a host and port, which is not yet listened on; port 0 is any that is free.

    Raises:
        OSError: saying what to do, if that is not possible.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise OSError(f"--host {host} is no address of this machine ({error}); give one such as 127.0.0.1") from None
    found = socket.socket(family, kind, protocol)
    try:
        # Else a service that is started again would have to wait for connections of the one before.
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen(128)  # here, since another program could still take the port
    except OSError as error:
        found.close()
        cure = {
            errno.EADDRINUSE: "is used by another program; give another --port, or 0 for any",
            errno.EACCES: "is kept for administrators; give a --port from 1024 on",
            errno.EADDRNOTAVAIL: "is no address of this machine; give a --host such as 127.0.0.1",
        }.get(error.errno or 0, f"cannot be listened on: {error.strerror}; give another --host or --port")
        raise OSError(f"{host} port {port} {cure}") from None
    return found


def is_local(listener: socket.socket) -> bool:
    """Whether a socket can be reached from this machine alone."""
    return ipaddress.ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listener: socket.socket) -> str:
    """The address of a socket, for a browser or curl."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
