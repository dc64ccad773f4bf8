"""What is called under load: servers on 127.0.0.1 that know nothing of the mesh.

    7000    HTTP/1.1: 200 and a few bytes; a WebSocket that sends every message back
    7001    TCP that sends back what comes
    7002    gRPC: a stream of messages, each sent back
    7003    TCP that speaks first: a line, then what comes is sent back
"""

import asyncio
import base64
import hashlib

import grpc

GREETING = b"welcome\n"


async def http(reader, writer):
    while True:
        head = await reader.readuntil(b"\r\n\r\n")
        fields = {}
        for line in head.decode("latin-1").split("\r\n")[1:-2]:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        if fields.get("upgrade", "").lower() == "websocket":
            accept = base64.b64encode(hashlib.sha1(
                (fields["sec-websocket-key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11").encode()).digest()).decode()
            writer.write(("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                          f"Sec-WebSocket-Accept: {accept}\r\n\r\n").encode())
            return await websocket(reader, writer)
        await reader.readexactly(int(fields.get("content-length", 0)))
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nthanks")
        await writer.drain()
        if fields.get("connection", "").lower() == "close":
            return None


async def websocket(reader, writer):
    """Small messages alone; a close is answered by a close (RFC 6455, 5.5.1)."""
    while True:
        first, length = await reader.readexactly(2)
        mask = await reader.readexactly(4)
        payload = bytes(byte ^ mask[at % 4] for at, byte in enumerate(await reader.readexactly(length & 0x7F)))
        writer.write(bytes((first, len(payload))) + payload)
        await writer.drain()
        if first & 0x0F == 8:
            return


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def greeter(reader, writer):
    writer.write(GREETING)
    await echo(reader, writer)


class Echo(grpc.GenericRpcHandler):
    def service(self, details):
        return grpc.stream_stream_rpc_method_handler(self.send_back)

    async def send_back(self, messages, _context):
        async for message in messages:
            yield message


def serving(handler):
    async def serve(reader, writer):
        try:
            await handler(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()
    return serve


async def main():
    calls = grpc.aio.server()
    calls.add_generic_rpc_handlers((Echo(),))
    calls.add_insecure_port("127.0.0.1:7002")
    await calls.start()
    for handler, port in ((http, 7000), (echo, 7001), (greeter, 7003)):
        await asyncio.start_server(serving(handler), "127.0.0.1", port, backlog=1024)
    await asyncio.Event().wait()


asyncio.run(main())
