"""What the kernel says about listening sockets."""

from __future__ import annotations

import socket

import pytest

from lodestream.pipeline.serve.listeners import Listener, list_listeners


@pytest.mark.parametrize(
    ("family", "address", "is_loopback"),
    [
        (socket.AF_INET, "127.0.0.1", True),
        (socket.AF_INET, "127.1.2.3", True),
        (socket.AF_INET, "0.0.0.0", False),
        (socket.AF_INET6, "::1", True),
        (socket.AF_INET6, "::", False),
        (socket.AF_INET6, "::ffff:127.0.0.1", True),
        (socket.AF_INET6, "::ffff:0.0.0.0", False),
    ],
)
def test_a_listening_socket_is_found(family: socket.AddressFamily, address: str, is_loopback: bool) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as server:
        try:
            server.bind((address, 0))
        except OSError as error:
            pytest.skip(f"this machine has no {address}: {error}")
        port = server.getsockname()[1]
        assert list_listeners({port}) == []
        server.listen()
        (found,) = list_listeners({port})
        assert found == Listener(address=found.address, port=port)
        assert found.is_loopback is is_loopback
    assert list_listeners({port}) == []


def test_a_connection_is_no_listener() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as client:
        assert list_listeners({client.getsockname()[1]}) == []
