"""A provider of external authorization that nobody here wrote for: Python's http.server, and PyPI's grpcio without generated
code. What it says is what the field `x-ext-authz` of the request asks for.

    ext_authz.py HTTP-ADDRESS GRPC-ADDRESS FILE

    allow     it goes on, as `x-user: alice`, and its answer is marked `x-checked: yes`; `x-drop` goes
    deny      403, `no entry`, with `x-why: because` and `x-secret: 1`
    login     302 to /login
    error     503 (gRPC: the status UNAVAILABLE)
    hang      nothing, for long
    overreach it goes on, with fields that are no provider's to set
    session   it goes on, with a cookie for the caller

Without the field it is refused. Each check is a line of JSON in FILE: over gRPC what was asked is told apart by the numbers of
its fields, as envoy/service/auth/v3 has them.
"""

import json
import sys
import threading
import time
from concurrent import futures
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc

LONG = 3600
LOCK = threading.Lock()
COUNT = 0


def note(file, check):
    global COUNT
    with LOCK:
        COUNT += 1
        with open(file, "a") as out:
            out.write(json.dumps(check) + "\n")
        return COUNT


class Http(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def check(self):
        length = int(self.headers.get("content-length", 0))
        body = self.rfile.read(length).decode("latin-1")
        headers = {name.lower(): value for name, value in self.headers.items()}
        count = note(self.server.file, {"over": "http", "method": self.command, "path": self.path, "headers": headers,
                                        "body": body})
        asked = headers.get("x-ext-authz")
        if asked == "hang":
            time.sleep(LONG)
        if asked in ("allow", "session"):
            cookie = [("set-cookie", f"session={count}")] if asked == "session" else []
            return self.answer(200, [("x-user", "alice"), ("x-checked", "yes"), ("x-count", str(count)),
                                     ("x-envoy-auth-headers-to-remove", "x-drop"), *cookie], "")
        if asked == "overreach":
            return self.answer(200, [("x-forwarded-client-cert", "By=x;URI=spiffe://mesh.internal/ns/a/sa/admin"),
                                     ("x-user", "mallory"), ("transfer-encoding-hint", "1"), ("host", "elsewhere"),
                                     ("x-envoy-auth-headers-to-remove", "host, x-forwarded-client-cert")], "")
        if asked == "login":
            return self.answer(302, [("location", "/login")], "")
        if asked == "error":
            return self.answer(503, [], "broken")
        self.answer(403, [("x-why", "because"), ("x-secret", "1")], "no entry")

    def answer(self, status, fields, body):
        self.send_response_only(status)
        for name, value in fields:
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def log_message(self, *_):
        pass

    do_GET = do_POST = do_PUT = do_HEAD = do_DELETE = do_OPTIONS = check


def fields(message):
    """The fields of a message in protobuf's encoding: number, and the value as it stands."""
    at = 0

    def number():
        nonlocal at
        value = shift = 0
        while True:
            byte = message[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(message):
        key = number()
        if key & 7 == 2:
            length = number()
            yield key >> 3, message[at:at + length]
            at += length
        elif key & 7 == 0:
            yield key >> 3, number()
        else:
            raise ValueError(f"a field of kind {key & 7}")


def pick(message, *path):
    """The last value at a path of field numbers; None where there is none."""
    for wanted in path:
        if message is None:
            return None
        found = [value for tag, value in fields(message) if tag == wanted]
        message = found[-1] if found else None
    return message


def text(value):
    return None if value is None else value.decode("utf-8", "replace")


def address(peer):
    return text(pick(peer, 1, 1, 2)), pick(peer, 1, 1, 3)


def told(request):
    """What a CheckRequest says."""
    attributes = pick(request, 1)
    source, destination = pick(attributes, 1), pick(attributes, 2)
    http = pick(attributes, 4, 2)
    said = {"over": "grpc", "source": address(source), "source_principal": text(pick(source, 4)),
            "destination": address(destination), "destination_principal": text(pick(destination, 4)),
            "sni": text(pick(attributes, 12, 1)), "has_time": pick(attributes, 4, 1) is not None}
    if http is not None:
        headers = dict((text(pick(entry, 1)), text(pick(entry, 2)) or "") for tag, entry in fields(http) if tag == 3)
        size = pick(http, 9)
        if size is not None and size >= 1 << 63:
            size -= 1 << 64
        said |= {"id": text(pick(http, 1)), "method": text(pick(http, 2)), "headers": headers, "path": text(pick(http, 4)),
                 "host": text(pick(http, 5)), "scheme": text(pick(http, 6)), "size": size,
                 "protocol": text(pick(http, 10)), "body": text(pick(http, 11)), "raw_body": text(pick(http, 12))}
    return said


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def put(tag, value):
    if isinstance(value, int):
        return varint(tag << 3) + varint(value)
    value = value.encode() if isinstance(value, str) else value
    return varint(tag << 3 | 2) + varint(len(value)) + value


def option(name, value, append_action=None, append=None):
    """A HeaderValueOption."""
    action = b"" if append_action is None else put(3, append_action)
    appends = b"" if append is None else put(2, put(1, int(append)))
    return put(1, put(1, name) + put(2, value)) + appends + action


class Grpc(grpc.GenericRpcHandler):
    def __init__(self, file):
        self.file = file

    def service(self, details):
        if details.method == "/envoy.service.auth.v3.Authorization/Check":
            return grpc.unary_unary_rpc_method_handler(self.check)
        return None

    def check(self, message, context):
        said = told(message)
        count = note(self.file, said)
        # A connection of bytes has no field: who calls decides.
        by_caller = "allow" if (said["source_principal"] or "").endswith("/sa/web") else "deny"
        asked = said["headers"].get("x-ext-authz") if "headers" in said else by_caller
        if asked == "hang":
            time.sleep(LONG)
        if asked == "error":
            context.abort(grpc.StatusCode.UNAVAILABLE, "broken")
        if asked == "allow":
            return put(1, put(1, 0)) + put(3, put(2, option("X-User", "alice")) + put(2, option("x-list", "b", append=True))
                                           + put(2, option("x-new", "n", 1)) + put(5, "x-drop")
                                           + put(6, option("x-checked", "yes")) + put(6, option("x-count", str(count)))
                                           + put(7, put(1, "added") + put(2, "a&b")) + put(8, "gone"))
        if asked == "login":
            return put(1, put(1, 16)) + put(2, put(1, put(1, 302)) + put(2, option("location", "/login")))
        if asked == "plain":
            return put(1, put(1, 7))
        return put(1, put(1, 7)) + put(2, put(1, put(1, 403)) + put(2, option("x-why", "because")) + put(3, "no entry"))


def main(http_address, grpc_address, file):
    host, port = http_address.rsplit(":", 1)
    web = ThreadingHTTPServer((host, int(port)), Http)
    web.daemon_threads = True
    web.file = file
    threading.Thread(target=web.serve_forever, daemon=True).start()
    server = grpc.server(futures.ThreadPoolExecutor(64))
    server.add_generic_rpc_handlers((Grpc(file),))
    assert server.add_insecure_port(grpc_address)
    server.start()
    print("listening on", http_address, grpc_address, flush=True)
    server.wait_for_termination()


main(*sys.argv[1:])
