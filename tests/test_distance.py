"""benchmarks/distance.py: it delays, and it does not throttle."""

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from benchmarks.distance import distance
from streamer.testing import free_port

ROUND_TRIP_S = 0.4


def receive(connection, nbytes):
    data = bytearray()
    while len(data) < nbytes and (chunk := connection.recv(1 << 20)):
        data += chunk
    return bytes(data)


@contextmanager
def echo(ends):
    """A server that sends back what it gets; `ends` learns when a connection does."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer():
            connection, _ = listener.accept()
            with connection:
                while chunk := connection.recv(1 << 20):
                    connection.sendall(chunk)
            ends.append(time.monotonic())

        thread = threading.Thread(target=answer)
        thread.start()
        yield listener.getsockname()[1]
        thread.join(10)


@pytest.fixture
def far():
    """A connection through the proxy, and the moments at which the other end saw one end."""
    ends = []
    port = free_port()
    with (
        echo(ends) as target,
        distance(port, target, ROUND_TRIP_S),
        socket.create_connection(("127.0.0.1", port)) as connection,
    ):
        connection.settimeout(20)
        yield connection, ends


def test_every_byte_takes_the_round_trip(far):
    connection, _ = far
    connection.sendall(b"the proxy has started")
    receive(connection, 21)
    for _ in range(3):
        began = time.monotonic()
        connection.sendall(b"x")
        assert receive(connection, 1) == b"x"
        assert ROUND_TRIP_S <= time.monotonic() - began < 2 * ROUND_TRIP_S


def test_the_bandwidth_stays(far):
    connection, _ = far
    data = bytes(range(256)) * 200_000  # 51 MB; chunk by chunk it would take a minute and more
    began = time.monotonic()
    sender = threading.Thread(target=connection.sendall, args=(data,))
    sender.start()
    assert receive(connection, len(data)) == data
    sender.join()
    assert time.monotonic() - began < 15


def test_an_end_arrives_after_what_was_sent_before(far):
    connection, ends = far
    connection.sendall(b"the last words")
    connection.shutdown(socket.SHUT_WR)
    assert receive(connection, 100) == b"the last words"
    assert len(ends) == 1
