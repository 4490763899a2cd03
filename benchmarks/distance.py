"""A broker that is far away: a TCP proxy on loopback that delays every byte, in a process of its
own, so that it shares nobody's lock.

A delay line and no throttle: it reads on while earlier chunks wait, so the bandwidth stays what it
was. The timers of asyncio add up to a millisecond in each direction; opening a connection costs no
round trip, as it does on a real network.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

CHUNK_BYTES = 262_144
_SERVE = "import sys; from benchmarks.distance import serve; serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))"


@contextmanager
def distance(port: int, target_port: int, round_trip_s: float) -> Iterator[None]:
    """From 127.0.0.1:``port`` to 127.0.0.1:``target_port``, half of the round trip (seconds) in
    each direction."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        command = [
            sys.executable,
            "-c",
            _SERVE,
            str(listener.fileno()),
            str(target_port),
            str(round_trip_s),
        ]
        proxy = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()])
    assert proxy.stdin is not None
    try:
        yield
    finally:
        proxy.stdin.close()
        proxy.wait(10)


def serve(listener: int, target_port: int, round_trip_s: float) -> None:
    """The proxy process: accepts on the file descriptor ``listener`` until stdin ends, which it
    does with the parent, however that ends."""
    asyncio.run(_serve(socket.socket(fileno=listener), target_port, round_trip_s / 2))


async def _serve(listener: socket.socket, target_port: int, delay_s: float) -> None:
    async def connect(near_reader: asyncio.StreamReader, near: asyncio.StreamWriter) -> None:
        try:
            far_reader, far = await asyncio.open_connection("127.0.0.1", target_port)
        except OSError:
            near.close()
            return
        try:
            await asyncio.gather(
                _carry(near_reader, far, delay_s), _carry(far_reader, near, delay_s)
            )
        except OSError:  # one side is gone
            pass
        finally:
            near.close()
            far.close()

    asyncio.get_running_loop().add_reader(
        sys.stdin.fileno(), os._exit, 0
    )  # nothing here needs an orderly end
    server = await asyncio.start_server(connect, sock=listener, limit=CHUNK_BYTES)
    await server.serve_forever()


async def _carry(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, delay_s: float
) -> None:
    """One direction of one connection, to its end."""
    now = asyncio.get_running_loop().time
    travelling: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def send() -> None:
        while True:
            arrives, chunk = await travelling.get()
            if (left := arrives - now()) > 0:
                await asyncio.sleep(left)
            if not chunk:
                writer.write_eof()
                return
            writer.write(chunk)
            await writer.drain()

    sending = asyncio.create_task(send())
    try:
        while chunk := await reader.read(CHUNK_BYTES):
            travelling.put_nowait((now() + delay_s, chunk))
    finally:
        travelling.put_nowait((now() + delay_s, b""))
        await sending
