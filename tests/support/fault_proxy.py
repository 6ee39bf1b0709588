"""A line between a client and a server that can be made to fail in the ways a network does."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator


class FaultProxy:
    """Passes bytes between clients and the server on ``target_port``; ``port`` is what clients connect to.

    ``lose_replies``     the next requests that contain a mark are delivered, and their connections are
                         cut as soon as the server answers: the request was carried out, and its answer is lost
    ``hang``             connections are accepted, and nothing passes
    ``refuse``           connections are cut at once, open ones too
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.num_lost = 0
        self._to_lose = 0
        self._mark = b""
        self._mode = "pass"
        self._lines: set[socket.socket] = set()
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    def lose_replies(self, number: int, *, mark: bytes) -> None:
        """Loses the answers to the next ``number`` requests that contain ``mark``."""
        self._to_lose, self._mark, self.num_lost = number, mark, 0

    def hang(self) -> None:
        self._mode = "hang"

    def refuse(self) -> None:
        self._mode = "refuse"
        self._cut_all()

    def restore(self) -> None:
        """Passes everything again, on new connections."""
        self._mode = "pass"
        self._cut_all()

    def close(self) -> None:
        self._mode = "refuse"
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut_all()

    def _cut_all(self) -> None:
        with self._lock:
            lines, self._lines = self._lines, set()
        for line in lines:
            _cut(line)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        if self._mode == "refuse":
            client.close()
            return
        with client, socket.create_connection(("127.0.0.1", self._target_port)) as server:
            with self._lock:
                self._lines |= {client, server}
            line = _Line()
            back = threading.Thread(target=self._pass_replies, args=(server, client, line), daemon=True)
            back.start()
            self._pass_requests(client, server, line)
            back.join()
            with self._lock:
                self._lines -= {client, server}

    def _pass_requests(self, client: socket.socket, server: socket.socket, line: _Line) -> None:
        for data in _receive(client):
            if self._mode == "hang":
                continue
            if self._to_lose and self._mark in data:
                self._to_lose -= 1
                line.is_doomed = True
            with contextlib.suppress(OSError):
                server.sendall(data)
        _cut(server)

    def _pass_replies(self, server: socket.socket, client: socket.socket, line: _Line) -> None:
        for data in _receive(server):
            if line.is_doomed:
                self.num_lost += 1
                break
            if self._mode == "pass":
                with contextlib.suppress(OSError):
                    client.sendall(data)
        _cut(client)
        _cut(server)


class _Line:
    is_doomed = False


def _receive(line: socket.socket) -> Iterator[bytes]:
    while True:
        try:
            data = line.recv(1 << 20)
        except OSError:
            return
        if not data:
            return
        yield data


def _cut(line: socket.socket) -> None:
    with contextlib.suppress(OSError):
        line.shutdown(socket.SHUT_RDWR)
