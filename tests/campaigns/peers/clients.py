"""Clients of the other servers, as the load loops want them (`infer`, `submit`): one thread each, like ours.

What is sent is made once per input, so a client costs its server's users no more than it must.
"""

from __future__ import annotations

import os
import pickle
import select
import socket
import threading
from collections import deque
from concurrent.futures import Future
from typing import Any

import numpy as np
import zmq

CONNECTIONS = 64
ANSWER_S = 30.0
Answer = Future[Any]


class Naive:
    """pyzmq and pickle. `infer` has a socket of its own, on the calling thread."""

    def __init__(self, address: str) -> None:
        self._context = zmq.Context()
        self._socket, self._own = (self._context.socket(zmq.DEALER) for _ in range(2))
        for each in (self._socket, self._own):
            each.linger = 0
            each.connect(address)
        self._own.rcvtimeo = int(ANSWER_S * 1000)
        self._pending: dict[bytes, Answer] = {}
        self._new: deque[tuple[bytes, Any]] = deque()
        self._wakes, self._wake = os.pipe()
        self._number = 0
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def infer(self, model: str, x: Any, /, **options: Any) -> Any:
        self._own.send_multipart([b"", pickle.dumps(x, protocol=5)])
        return _result(self._own.recv_multipart()[1])

    def submit(self, model: str, x: Any, /, **options: Any) -> Answer:
        future: Answer = Future()
        self._number += 1
        number = b"%d" % self._number
        self._pending[number] = future
        if threading.current_thread() is self._thread:
            self._socket.send_multipart([number, pickle.dumps(x, protocol=5)])
        else:
            self._new.append((number, x))
            os.write(self._wake, b"\0")
        return future

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wakes, zmq.POLLIN)
        while not self._is_over:
            ready = dict(poller.poll())
            if self._wakes in ready:
                os.read(self._wakes, 4096)
            while self._new:
                number, x = self._new.popleft()
                self._socket.send_multipart([number, pickle.dumps(x, protocol=5)])
            while True:
                try:
                    number, answer = self._socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                self._pending.pop(number).set_result(_result(answer))

    def close(self) -> None:
        self._is_over = True
        os.write(self._wake, b"\0")
        self._thread.join()
        self._context.destroy(linger=0)


def _result(answer: bytes) -> Any:
    found = pickle.loads(answer)  # noqa: S301 - of a server that was started here, as its users do
    if isinstance(found, Exception):
        raise found
    return found


class Http:
    """HTTP/1.1 with connections that stay, one request at a time on each, raw bytes in and out. `head`: the
    lines beside the length; `before`: bytes in front of the tensor (Triton's JSON)."""

    def __init__(self, port: int, path: str, head: str = "", before: bytes = b"", skip: bool = False) -> None:
        self._head = f"POST {path} HTTP/1.1\r\nHost: x\r\n{head}Content-Length: ".encode()
        self._before = before
        self._skip = skip  # the answer has a JSON head
        self._poll = select.epoll()
        self._idle: deque[socket.socket] = deque()
        self._every: dict[int, socket.socket] = {}
        self._under_way: dict[int, tuple[Answer, bytearray]] = {}
        self._waiting: deque[tuple[Any, Answer]] = deque()
        self._lock = threading.Lock()
        self._own = self._connect(port)
        for _ in range(CONNECTIONS):
            each = self._connect(port)
            self._every[each.fileno()] = each
            self._poll.register(each, select.EPOLLIN)
            self._idle.append(each)
        self._is_over = False
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @staticmethod
    def _connect(port: int) -> socket.socket:
        each = socket.create_connection(("127.0.0.1", port), ANSWER_S)
        each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return each

    def infer(self, model: str, x: Any, /, **options: Any) -> Any:
        self._own.sendall(self._request(x))
        data = bytearray()
        while (found := self._answer(data)) is None:
            received = self._own.recv(1 << 16)
            if not received:
                raise ConnectionError("the server closed the connection")
            data += received
        return found

    def submit(self, model: str, x: Any, /, **options: Any) -> Answer:
        future: Answer = Future()
        with self._lock:
            if self._idle:
                self._send(self._idle.popleft(), x, future)
            else:
                self._waiting.append((x, future))
        return future

    def _send(self, each: socket.socket, x: Any, future: Answer) -> None:
        self._under_way[each.fileno()] = future, bytearray()
        each.sendall(self._request(x))

    def _request(self, x: Any) -> bytes:
        body = self._before + x.tobytes()
        return self._head + b"%d\r\n\r\n" % len(body) + body

    def _answer(self, data: bytearray) -> Any:
        """The tensor, when all of it has come."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            return None
        lines = bytes(data[:end]).lower().split(b"\r\n")
        fields = dict(line.split(b":", 1) for line in lines[1:])
        body = data[end + 4 :]
        if len(body) < int(fields[b"content-length"]):
            return None
        if b" 200 " not in lines[0] + b" ":
            raise ConnectionError(bytes(body[:200]).decode(errors="replace"))
        start = int(fields.get(b"inference-header-content-length", b"0")) if self._skip else 0
        return np.frombuffer(bytes(body[start:]), np.float32)

    def _run(self) -> None:
        while not self._is_over:
            for descriptor, _ in self._poll.poll(0.1):
                each = self._every[descriptor]
                received = each.recv(1 << 16)
                future, data = self._under_way.get(descriptor, (None, bytearray()))
                if not received or future is None:
                    self._forget(descriptor)
                    if future is not None:
                        future.set_exception(ConnectionError("the server closed the connection"))
                    continue
                data += received
                try:
                    found = self._answer(data)
                except Exception as error:
                    found = error
                if found is None:
                    continue
                del self._under_way[descriptor]
                with self._lock:
                    if self._waiting:
                        self._send(each, *self._waiting.popleft())
                    else:
                        self._idle.append(each)
                if isinstance(found, Exception):
                    future.set_exception(found)
                else:
                    future.set_result(found)

    def _forget(self, descriptor: int) -> None:
        """The server has closed it: some do when it was idle for long."""
        self._poll.unregister(descriptor)
        each = self._every.pop(descriptor)
        with self._lock:
            if each in self._idle:
                self._idle.remove(each)
        each.close()

    def close(self) -> None:
        self._is_over = True
        self._thread.join()
        for each in (*self._every.values(), self._own):
            each.close()
        self._poll.close()
