"""The sockets that a server listens on, bound before anything that takes long."""

import os
import socket


def listen(host: str, port: int, backlog: int) -> list[socket.socket]:
    """One for each address of the host, all of one port.  OSError that names address and port."""
    try:
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except (OSError, UnicodeError) as error:
        raise OSError(f"{host}: {getattr(error, 'strerror', None) or error}") from None
    sockets: list[socket.socket] = []
    for family, _, _, _, address in dict.fromkeys(found):
        if port == 0 and sockets:
            address = (address[0], sockets[0].getsockname()[1], *address[2:])
        try:
            sockets.append(socket.create_server(address, family=family, backlog=backlog))
        except OSError as error:
            for bound in sockets:
                bound.close()
            # its text repeats the address in Python's words
            raise OSError(f"{shown(address)}: {os.strerror(error.errno or 0)}") from None
    return sockets


def shown(address: tuple[object, ...]) -> str:
    """An address as it stands in a URL."""
    host, port = address[:2]
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
