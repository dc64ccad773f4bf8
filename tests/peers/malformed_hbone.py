#!/usr/bin/env python3
"""A raw HBONE peer on the PyPI package h2: shows a member's certificate, then says what no agent would say. Prints one line
a case, `CASE: OUTCOME`, where the outcome is the first thing that came back: `status N`, `reset CODE`, `goaway CODE`,
`closed`, `refused` (in the handshake) or `open` (nothing within the case's patience); floods add how many frames it took."""

import argparse
import select
import socket
import ssl
import time

import hpack
import h2.config
import h2.connection
import h2.events
import h2.exceptions
from hyperframe.frame import (ContinuationFrame, DataFrame, HeadersFrame, PingFrame, RstStreamFrame, SettingsFrame,
                              WindowUpdateFrame)

PATIENCE_SECONDS = 30
# More than any of the peer's limits; a flood that gets this far was not stopped.
FLOOD_FRAMES = 20_000
# Frames of a head without an end, by which the peer has seen enough: how soon its end of it is heard of is the machine's affair.
CONTINUATION_FRAMES = 200
# Streams that are open at once; fewer than the peer allows.
BATCH_STREAMS = 50
# Floods that are answered rather than ended are given up here.
PING_FRAMES = 200_000


class Ended(Exception):
    """The peer closed or reset the connection."""


class Peer:
    """One connection: frames go out as they are given, what comes back is read by h2."""

    def __init__(self, options, alpn="h2"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # The name in the certificate is a SPIFFE ID: the chain is verified here, and the identity by the story.
        context.check_hostname = False
        context.load_verify_locations(options.root)
        context.load_cert_chain(options.certificate)
        context.set_alpn_protocols([alpn])
        raw = socket.create_connection((options.address, options.port), timeout=PATIENCE_SECONDS)
        self.socket = context.wrap_socket(raw, server_hostname=options.server_name)
        config = h2.config.H2Configuration(client_side=True, header_encoding="utf-8", validate_outbound_headers=False,
                                           normalize_outbound_headers=False, validate_inbound_headers=False)
        self.connection = h2.connection.H2Connection(config)
        # What goes over the wire has an encoder of its own, beside the one for what h2 believes to have sent.
        self.encoder = hpack.Encoder()
        self.next_stream = 1

    def start(self):
        """Exchanges prefaces."""
        self.connection.initiate_connection()
        self.send(self.connection.data_to_send())
        return self

    def send(self, data):
        try:
            self.socket.sendall(data)
        except (OSError, ssl.SSLError) as error:
            raise Ended(self.last_words()) from error

    def last_words(self):
        """What the peer said before it closed, if it said why."""
        try:
            while data := self.socket.recv(65536):
                for event in self.connection.receive_data(data):
                    if isinstance(event, h2.events.ConnectionTerminated):
                        return f"goaway {int(event.error_code)}"
        except (OSError, ssl.SSLError, h2.exceptions.ProtocolError):
            pass
        return "closed"

    def headers(self, headers, flags=("END_HEADERS",)):
        """Opens a stream with `headers` as they are; returns its number."""
        stream = self.next_stream
        self.next_stream += 2
        # h2 has to know of the stream to take its answer.
        self.connection.send_headers(stream, [(":method", "CONNECT"), (":authority", "known.invalid:1")])
        self.connection.data_to_send()
        block = self.encoder.encode(headers)
        frame = HeadersFrame(stream, block)
        for flag in flags:
            frame.flags.add(flag)
        self.send(frame.serialize())
        return stream

    def connect(self, authority, *more):
        return self.headers([(":method", "CONNECT"), (":authority", authority), *more])

    def data(self, stream, payload):
        self.send(DataFrame(stream, payload).serialize())

    def events(self, patience=PATIENCE_SECONDS):
        """What comes back, until the patience or the connection ends."""
        until = time.monotonic() + patience
        while (left := until - time.monotonic()) > 0:
            if not self.socket.pending() and not select.select([self.socket], [], [], left)[0]:
                return
            try:
                data = self.socket.recv(65536)
            except (OSError, ssl.SSLError) as error:
                raise Ended("closed") from error
            if not data:
                raise Ended("closed")
            yield from self.connection.receive_data(data)
            self.send(self.connection.data_to_send())

    def outcome(self, stream=None, patience=PATIENCE_SECONDS):
        """The first answer on `stream`, or to the connection."""
        try:
            for event in self.events(patience):
                if isinstance(event, h2.events.ConnectionTerminated):
                    return f"goaway {int(event.error_code)}"
                if getattr(event, "stream_id", None) != stream:
                    continue
                if isinstance(event, h2.events.ResponseReceived):
                    return f"status {dict(event.headers)[':status']}"
                if isinstance(event, h2.events.StreamReset):
                    return f"reset {int(event.error_code)}"
        except Ended as ended:
            return str(ended)
        return "open"

    def has_ended(self):
        """What ended the connection, without waiting for it."""
        outcome = self.outcome(patience=0.0005)
        return None if outcome == "open" else outcome


def request(*headers):
    """A case: one request, and what comes of it."""
    def case(options):
        peer = Peer(options).start()
        named = [(name, value.replace("AUTHORITY", options.authority)) for name, value in headers]
        return peer.outcome(peer.headers(named))
    return case


def early_data(options):
    """DATA right behind the CONNECT: held until the answer, then delivered, in this order."""
    peer = Peer(options).start()
    stream = peer.connect(options.authority)
    peer.data(stream, b"too ")
    peer.data(stream, b"early\n")
    said, status = b"", None
    for event in peer.events():
        if isinstance(event, h2.events.ResponseReceived):
            status = dict(event.headers)[":status"]
        if isinstance(event, h2.events.DataReceived):
            said += event.data
            if said == b"too early\n":
                return f"status {status} and echo"
    return f"status {status}, then {said!r}"


def early_data_refused(options):
    """The same where the answer is no."""
    peer = Peer(options).start()
    stream = peer.connect(options.other_authority)
    peer.data(stream, b"for nobody\n")
    return peer.outcome(stream)


def oversized_headers(options):
    peer = Peer(options).start()
    return peer.outcome(peer.connect(options.authority, *((f"x-{n}", "v" * 1000) for n in range(60))))


def flood(make, frames=FLOOD_FRAMES, patience=1):
    """A case: frames of `make(peer, number)` until the peer ends the connection, which after the last of them it has some
    time for; says how many it took."""
    def case(options):
        peer = Peer(options).start()
        sent = 0
        try:
            for sent in range(1, frames + 1):
                peer.send(make(peer, sent))
                if sent % 10 == 0 and (outcome := peer.has_ended()):
                    return f"{outcome} after {sent}"
        except Ended as ended:
            return f"{ended} after {sent}"
        return f"{peer.outcome(patience=patience)} after {sent}"
    return case


def continuation(payload):
    def make(peer, number):
        if number == 1:
            frame = HeadersFrame(1, peer.encoder.encode([(":method", "CONNECT")]))
        else:
            frame = ContinuationFrame(1, payload)
        return frame.serialize()
    return make


def rapid_reset(authority_of):
    def case(options):
        def make(peer, number):
            stream = 2 * number - 1
            block = peer.encoder.encode([(":method", "CONNECT"), (":authority", authority_of(options))])
            frame = HeadersFrame(stream, block)
            frame.flags.add("END_HEADERS")
            return frame.serialize() + RstStreamFrame(stream, 8).serialize()
        return flood(make)(options)
    return case


def open_and_reset(options):
    """Streams that are reset as soon as their 200 is there: each has cost the agent a connection to its program."""
    peer = Peer(options).start()
    opened = 0
    try:
        while opened < FLOOD_FRAMES:
            waiting = {peer.connect(options.authority) for _ in range(BATCH_STREAMS)}
            batch = list(waiting)
            for event in peer.events():
                if isinstance(event, h2.events.ConnectionTerminated):
                    return f"goaway {int(event.error_code)} after {opened}"
                if isinstance(event, h2.events.ResponseReceived):
                    waiting.discard(event.stream_id)
                    if not waiting:
                        break
            opened += len(batch)
            for stream in batch:
                peer.connection.reset_stream(stream, 8)
            peer.send(peer.connection.data_to_send())
    except Ended as ended:
        return f"{ended} after {opened}"
    return f"open after {opened}"


def pings(options):
    """PINGs whose answers nobody reads, then a request: the answers must not have piled up without bound."""
    peer = Peer(options).start()
    batch = b"".join(PingFrame(0, number.to_bytes(8, "big")).serialize() for number in range(1000))
    peer.socket.settimeout(3)
    for sent in range(0, PING_FRAMES, 1000):
        try:
            peer.send(batch)
        except Ended as ended:
            return f"{ended} after {sent}"
    return f"open after {PING_FRAMES}"


def settings(peer, number):
    return SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 65535 + number % 2}).serialize()


def one(frame):
    """A case: one frame that breaks the protocol."""
    def case(options):
        peer = Peer(options).start()
        peer.send(frame if isinstance(frame, bytes) else frame.serialize())
        return peer.outcome()
    return case


def not_http2(options):
    peer = Peer(options)
    peer.send(b"GET / HTTP/1.1\r\nHost: store\r\n\r\n")
    return peer.outcome()


def other_protocol(options):
    try:
        peer = Peer(options, alpn="http/1.1")
        peer.send(b"GET / HTTP/1.1\r\nHost: store\r\n\r\n")
        return "closed" if not peer.socket.recv(1) else "answered"
    except (ssl.SSLError, OSError, Ended):
        return "refused"


CONNECT = (":method", "CONNECT")
AUTHORITY = (":authority", "AUTHORITY")
CASES = {
    "connect": request(CONNECT, AUTHORITY),
    "get": request((":method", "GET"), (":scheme", "http"), (":path", "/"), AUTHORITY),
    "post": request((":method", "POST"), (":scheme", "https"), (":path", "/x"), AUTHORITY),
    "no-port": request(CONNECT, (":authority", "10.77.0.2")),
    "port-zero": request(CONNECT, (":authority", "10.77.0.2:0")),
    "port-too-large": request(CONNECT, (":authority", "10.77.0.2:65536")),
    "user-information": request(CONNECT, (":authority", "root@AUTHORITY")),
    "empty-authority": request(CONNECT, (":authority", "")),
    "no-authority": request(CONNECT),
    "two-authorities": request(CONNECT, AUTHORITY, (":authority", "10.77.0.2:22")),
    "extended": request(CONNECT, (":protocol", "websocket"), (":scheme", "https"), (":path", "/"), AUTHORITY),
    "with-path": request(CONNECT, AUTHORITY, (":scheme", "https"), (":path", "/admin")),
    "unknown-pseudo-header": request(CONNECT, AUTHORITY, (":upstream", "10.77.0.2:22")),
    "transfer-encoding": request(CONNECT, AUTHORITY, ("transfer-encoding", "chunked")),
    "line-break-in-a-header": request(CONNECT, AUTHORITY, ("x-a", "b\r\nc: d")),
    "upper-case-header": request(CONNECT, AUTHORITY, ("X-A", "b")),
    "early-data": early_data,
    "early-data-refused": early_data_refused,
    "oversized-headers": oversized_headers,
    "continuation-flood": flood(continuation(b"\x00"), CONTINUATION_FRAMES, PATIENCE_SECONDS),
    "empty-continuation-flood": flood(continuation(b""), CONTINUATION_FRAMES, PATIENCE_SECONDS),
    "rapid-reset": rapid_reset(lambda options: options.authority),
    "rapid-reset-refused": rapid_reset(lambda options: options.other_authority),
    "open-and-reset": open_and_reset,
    "ping-flood": pings,
    "settings-flood": flood(settings),
    "data-on-stream-zero": one(DataFrame(1, b"x").serialize().replace(b"\x00\x00\x00\x01x", b"\x00\x00\x00\x00x")),
    "data-on-an-idle-stream": one(DataFrame(7, b"x")),
    "window-overflow": one(WindowUpdateFrame(0, 2**31 - 1)),
    "even-stream": one(HeadersFrame(2, b"\x82", flags=["END_HEADERS"])),
    "broken-compression": one(HeadersFrame(1, b"\xff\xff\xff\xff\xff\xff\xff", flags=["END_HEADERS"])),
    "huge-frame": one(b"\xff\xff\xff\x00\x00\x00\x00\x00\x01"),
    "not-http2": not_http2,
    "other-protocol": other_protocol,
}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("address", "certificate", "root", "server-name", "authority", "other-authority"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--port", type=int, default=15008)
    parser.add_argument("cases", nargs="*", metavar="CASE")
    options = parser.parse_args()
    for name in options.cases or CASES:
        try:
            print(f"{name}: {CASES[name](options)}", flush=True)
        except Ended as ended:
            print(f"{name}: {ended}", flush=True)


if __name__ == "__main__":
    main()
