"""A constant load on the shop, of six kinds, until SIGTERM; then every caller ends what it has begun. In the file that is named
are, as JSON, always: the `counts`, and the moment of which they are (`at`, on the machine's monotonic clock).

    callers.py HOST FILE

Of each kind: `done` (requests, or messages that came back), `opened` (connections), `refused` (ended before the caller had
sent anything), `failed` (requests without an answer, or with a wrong one), `cut` (streams that ended by themselves),
`unnamed` (the name did not resolve, and the address that it had before was called), the `slowest` exchange in seconds, and the
first errors of each sort.
"""

import asyncio
import base64
import contextlib
import json
import os
import signal
import socket
import sys
import time
from datetime import datetime

import grpc

CALLERS = 4
# Between two requests or messages of one caller, in seconds.
PAUSE = 0.1
# Every other stream ends by itself after so many messages; the others last as long as the load.
SHORT = 40
# An exchange that takes longer failed.
PATIENCE = 60
GREETING = b"welcome\n"

HOST, FILE = sys.argv[1:]
ending = asyncio.Event()
# The addresses that the name had last, by family.
known = {}


class Counts:
    def __init__(self):
        self.done = self.opened = self.refused = self.failed = self.cut = self.unnamed = 0
        self.slowest = 0.0
        self.errors = {}

    def wrong(self, what, error):
        setattr(self, what, getattr(self, what) + 1)
        errors = self.errors.setdefault(what, [])
        if len(errors) < 4:
            errors.append(f"{datetime.now():%H:%M:%S.%f} {type(error).__name__}: {' '.join(str(error).split())[:300]}")

    @contextlib.asynccontextmanager
    async def exchange(self):
        begin = time.monotonic()
        async with asyncio.timeout(PATIENCE):
            yield
        self.slowest = max(self.slowest, time.monotonic() - begin)
        self.done += 1


class Wrong(Exception):
    """The answer is another one."""


class Refused(Exception):
    """The connection ended before anything was sent."""


async def address(counts, number):
    """The shop's address as it resolves now, or as it did before. Half of the callers take IPv6."""
    family = (socket.AF_INET, socket.AF_INET6)[number // 2 % 2]
    try:
        found = await asyncio.get_running_loop().getaddrinfo(HOST, None, family=family, type=socket.SOCK_STREAM)
        known[family] = found[0][4][0]
    except OSError as error:
        counts.wrong("unnamed", error)
    if family not in known:
        raise Refused("the name has never resolved")
    return known[family]


async def connect(counts, number, port):
    where = await address(counts, number)
    try:
        async with asyncio.timeout(PATIENCE):
            reader, writer = await asyncio.open_connection(where, port)
    except (OSError, TimeoutError) as error:
        raise Refused(f"{type(error).__name__}: {error}") from error
    counts.opened += 1
    return reader, writer


async def answer(reader):
    """Reads a response to its end; whether the connection goes on after it."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    status, *fields = head.split("\r\n")
    body = b""
    for field in fields:
        if field.startswith("content-length:"):
            body = await reader.readexactly(int(field.split(":")[1]))
    if not status.startswith("http/1.1 200") or body != b"thanks":
        raise Wrong(f"{status} {body[:200]!r}")
    return "connection: close" not in fields


def request(*fields):
    return "\r\n".join((f"GET / HTTP/1.1\r\nHost: {HOST}:7000", *fields, "\r\n")).encode()


async def kept(counts, number):
    """HTTP/1.1 over one connection for as long as the other side leaves it open."""
    reader, writer = await connect(counts, number, 7000)
    try:
        while not ending.is_set() and not reader.at_eof():
            async with counts.exchange():
                writer.write(request())
                goes_on = await answer(reader)
            if not goes_on:
                return
            await pause()
    finally:
        writer.close()


async def once(counts, number):
    """A connection for each request."""
    reader, writer = await connect(counts, number, 7000)
    try:
        async with counts.exchange():
            writer.write(request("Connection: close"))
            await answer(reader)
    finally:
        writer.close()
    await pause()


async def stream(counts, number):
    """TCP that stays open, with a line there and back."""
    reader, writer = await connect(counts, number, 7001)
    try:
        async for line in lines(number):
            async with counts.exchange():
                writer.write(line)
                if await reader.readexactly(len(line)) != line:
                    raise Wrong("another line came back")
        writer.write_eof()
        async with asyncio.timeout(PATIENCE):
            if await reader.read():
                raise Wrong("more came back than was sent")
    finally:
        writer.close()


async def greeted(counts, number):
    """TCP whose caller sends nothing before the other side has spoken."""
    reader, writer = await connect(counts, number, 7003)
    try:
        try:
            async with counts.exchange():
                greeting = await reader.readexactly(len(GREETING))
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            raise Refused(f"no greeting: {type(error).__name__}: {error}") from error
        if greeting != GREETING:
            raise Wrong("another greeting")
        writer.write_eof()
    finally:
        writer.close()
    await pause()


async def websocket(counts, number):
    """A WebSocket, with a message there and back."""
    reader, writer = await connect(counts, number, 7000)
    try:
        async with counts.exchange():
            key = base64.b64encode(os.urandom(16)).decode()
            writer.write(request("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13", f"Sec-WebSocket-Key: {key}"))
            head = await reader.readuntil(b"\r\n\r\n")
            if b" 101 " not in head.split(b"\r\n")[0]:
                raise Wrong(head[:200])
        async for line in lines(number):
            async with counts.exchange():
                await message(reader, writer, 1, line)
        async with asyncio.timeout(PATIENCE):
            await message(reader, writer, 8, b"\x03\xe8")
    finally:
        writer.close()


async def message(reader, writer, kind, payload):
    mask = os.urandom(4)
    writer.write(bytes((0x80 | kind, 0x80 | len(payload))) + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload)))
    first, length = await reader.readexactly(2)
    if first != 0x80 | kind or await reader.readexactly(length) != payload:
        raise Wrong("another message came back")


async def grpc_stream(counts, number):
    """A gRPC call with streams both ways, on a connection of its own."""
    where = await address(counts, number)
    at = f"[{where}]" if ":" in where else where
    async with grpc.aio.insecure_channel(f"dns:///{at}:7002", [("grpc.use_local_subchannel_pool", 1),
                                         ("grpc.default_authority", HOST)]) as channel:
        counts.opened += 1
        call = channel.stream_stream("/shop.Shop/Echo")()
        sent = False
        try:
            async for line in lines(number):
                async with counts.exchange():
                    await call.write(line)
                    sent = True
                    if await call.read() != line:
                        raise Wrong("another message came back")
            await call.done_writing()
            async with asyncio.timeout(PATIENCE):
                if await call.read() is not grpc.aio.EOF:
                    raise Wrong("more came back than was sent")
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            why = f"{await call.code()}: {await call.details()}"
            raise (Refused if not sent or "failed to connect" in why else ConnectionError)(why) from error


async def lines(number):
    """What a stream's caller sends, with pauses."""
    count = 0
    while not ending.is_set() and (number % 2 == 0 or count < SHORT):
        yield f"{number}.{count}\n".encode()
        count += 1
        await pause()


async def pause():
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(ending.wait(), PAUSE)


async def calls(kind, number, counts):
    """One caller, again and again."""
    unfinished = "failed" if kind in (kept, once) else "cut"
    while not ending.is_set():
        try:
            await kind(counts, number)
        except Refused as error:
            counts.wrong("refused", error)
            await pause()
        except Wrong as error:
            counts.wrong("failed", error)
            await pause()
        except Exception as error:  # noqa: BLE001
            # Whatever it is, it is told, and the load goes on.
            counts.wrong(unfinished, error)
            await pause()


async def main():
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, ending.set)
    counts = {kind.__name__: Counts() for kind in (kept, once, stream, greeted, websocket, grpc_stream)}
    callers = [asyncio.create_task(calls(kind, number, counts[kind.__name__]))
               for kind in (kept, once, stream, greeted, websocket, grpc_stream) for number in range(CALLERS)]
    while True:
        done, _ = await asyncio.wait(callers, timeout=0.2)
        for failed in done:
            failed.result()
        with open(FILE + ".new", "w", encoding="utf-8") as file:
            json.dump({"at": time.monotonic(), "counts": {kind: vars(found) for kind, found in counts.items()}}, file)
        os.rename(FILE + ".new", FILE)
        if len(done) == len(callers):
            return


asyncio.run(main())
