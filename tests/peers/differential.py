#!/usr/bin/env python3
"""Sends mutated HTTP/1 requests, raw, to an agent, and holds what comes out behind it against two readers that nobody
here wrote: h11 (PyPI) and nginx.

    differential.py serve DIRECTORY NGINX       on the called host: nginx as the service's program, and before it a tee
                                                that keeps what it is sent, byte by byte and by connection
    differential.py send DIRECTORY SEED COUNT ADDRESS PORT
                                                where the attacker is: COUNT mutated requests
    differential.py judge DIRECTORY LOG         each stream that the tee kept is read by h11, by nginx (its log), and by
                                                the agent (its log): the same requests, with the same bodies, or else

The seed decides everything that is sent. What is wrong is printed with the case that it came of, and ends with 1."""

import itertools
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time

PROGRAM = ("127.0.0.1", 8080)
NGINX = ("127.0.0.1", 8081)
SINK = ("127.0.0.1", 8082)
# How long an attacker listens to a connection that says nothing more. What is under way then is broken off.
QUIET_SECONDS = 1.0
PATIENCE_SECONDS = 30
SENDERS = 8


# ---- the called side

CONFIG = """
user root root;
daemon off;
master_process off;
pid {directory}/nginx.pid;
error_log {directory}/error.log warn;
events {{ worker_connections 1024; }}
http {{
    log_format reading escape=json '{{"from":"$remote_addr-$remote_port","request":"$request","id":"$http_x_request_id",'
        '"host":"$http_host","length":"$http_content_length","coding":"$http_transfer_encoding",'
        '"body":"$request_body","status":"$status"}}';
    access_log off;
    client_body_temp_path {directory}/body;
    proxy_temp_path {directory}/proxy;
    fastcgi_temp_path {directory}/fastcgi;
    uwsgi_temp_path {directory}/uwsgi;
    scgi_temp_path {directory}/scgi;
    client_body_buffer_size 1m;
    client_max_body_size 0;
    large_client_header_buffers 8 64k;
    ignore_invalid_headers off;
    underscores_in_headers on;
    keepalive_requests 1000000;
    server {{
        listen 127.0.0.1:{nginx};
        access_log {directory}/readings.log reading;
        location / {{ proxy_pass http://127.0.0.1:{sink}; }}
    }}
    server {{
        listen 127.0.0.1:{sink};
        location / {{ return 200 "read\\n"; }}
    }}
}}
"""


def serve(directory, nginx):
    config = os.path.join(directory, "nginx.conf")
    with open(config, "w") as file:
        file.write(CONFIG.format(directory=directory, nginx=NGINX[1], sink=SINK[1]))
    process = subprocess.Popen([nginx, "-e", "stderr", "-p", directory, "-c", config])
    until = time.monotonic() + PATIENCE_SECONDS
    while socket.socket().connect_ex(NGINX) != 0:
        if process.poll() is not None or time.monotonic() > until:
            sys.exit("nginx does not start")
        time.sleep(0.05)
    listener = socket.create_server(PROGRAM, backlog=1024)
    print("serving", flush=True)
    for number in itertools.count(1):
        agent, _ = listener.accept()
        threading.Thread(target=tee, args=(directory, agent, number), daemon=True).start()


def tee(directory, agent, number):
    # An address for each connection: ports come again.
    address = f"127.{1 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
    upstream = socket.create_connection(NGINX, source_address=(address, 0))
    port = upstream.getsockname()[1]
    back = threading.Thread(target=copy, args=(upstream, agent, None), daemon=True)
    back.start()
    with open(os.path.join(directory, f"sent-{number:08}_{address}-{port}"), "wb") as kept:
        copy(agent, upstream, kept)
    back.join()


def copy(source, to, kept):
    try:
        while part := source.recv(65536):
            if kept:
                kept.write(part)
                kept.flush()
            to.sendall(part)
        to.shutdown(socket.SHUT_WR)
    except OSError:
        # What broke here breaks there.
        for end in (source, to):
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                end.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass


# ---- the attacker

SPACES = [b"", b" ", b"  ", b"\t", b"\x0b", b"\x0c", b"\xa0", b"\x00", b"\r", b"\r\n ", b"\r\n\t"]
ENDS = [b"\r\n", b"\n", b"\r", b"\r\r\n", b"\n\r", b"\r\n\r\n", b"\x00\r\n", b""]
METHODS = [b"GET", b"POST", b"PUT", b"HEAD", b"OPTIONS", b"DELETE", b"PATCH", b"get", b"G\x00T", b"CONNECT", b"TRACE", b"M-X",
           b"PRI", b"GET\t", b""]
VERSIONS = [b"HTTP/1.1"] * 8 + [b"HTTP/1.0", b"HTTP/1.2", b"HTTP/0.9", b"http/1.1", b"HTTP/1.1 ", b"HTTP/01.1", b"HTTP/2.0", b""]
TARGETS = [b"/%b", b"/%b/../x", b"//%b", b"/%b?q=%%00", b"/%b#x", b"/%b%%00", b"/%b%%2f..", b"/%b;x", b"\\%b", b"/%b x", b"*",
           b"http://shop/%b", b"http://admin/%b", b"HTTP://SHOP:80/%b", b"https://shop/%b", b"/%b\t", b"/%b\xff", b"/%b%%zz", b"%b",
           b"/%b{|}", b"http://shop?%b", b"http://user@shop/%b"]
HOSTS = [b"shop"] * 6 + [b"SHOP", b"shop:80", b"admin", b"", b"shop,admin", b"sh\x00op", b"shop admin", b"user@shop", b"shop/x",
                         b"[::1]", b"sho%70", b"shop:x", b"\tshop "]
LENGTHS = [b"%d", b"+%d", b"-%d", b"0%d", b"0x%x", b"%d, %d", b"%d,", b"%d;", b"%d\x00", b" %d ", b"\x0b%d", b"%d_0", b"1e1",
           b"184467440737095516%02d", b"", b"%d %d"]
CODINGS = [b"chunked"] * 6 + [b"Chunked", b"chunked, chunked", b"identity", b"gzip, chunked", b"chunked, identity", b"xchunked",
                              b"\x0bchunked", b"chunked\x00", b"chunked;q=1", b"\"chunked\"", b",chunked", b"", b"chun\x00ked",
                              b"\r\n chunked"]
NAMES = [b"Content-Length", b"content-length", b"Content_Length", b"Content-Length ", b" Content-Length", b"Content-Length\x00",
         b"Content-Length\t", b"CONTENT-LENGTH", b"X\r\nContent-Length"]
CODING_NAMES = [b"Transfer-Encoding", b"transfer-encoding", b"Transfer_Encoding", b"Transfer-Encoding ", b" Transfer-Encoding",
                b"Transfer-Encoding\x0b", b"X: y\r\nTransfer-Encoding", b"X: y\nTransfer-Encoding", b"X:y\rTransfer-Encoding", b"TE"]
EXTRAS = [b"Connection: close", b"Connection: keep-alive", b"Connection: content-length", b"Connection: transfer-encoding",
          b"Connection: host", b"Connection: upgrade\r\nUpgrade: websocket", b"Connection: upgrade\r\nUpgrade: h2c", b"Expect: 100-continue",
          b"Expect: nothing", b"Keep-Alive: 1", b"Proxy-Connection: close", b"X: " + b"a" * 3000, b"X: \xff\xfe", b"X: a\x00b", b"X",
          b": x", b"X : y", b"X\x7f: y", b"\xe4: x", b"X: a\r\n folded", b"Cookie: a=b\r\nCookie: c=d", b"TE: trailers", b"TE: chunked",
          b"Trailer: content-length", b"Upgrade: websocket", b"X-Forwarded-Client-Cert: URI=admin"]
SIZES = [b"%x", b"%X", b"0%x", b"0x%x", b"+%x", b" %x", b"%x ", b"%x;a=b", b"%x;a=\"\r\"", b"%x;\n", b"1%016x", b"%x\x00", b"-%x", b"%x\t;x", b""]


class Mutator:
    """One case: a request, wrong in one place or in several, and a right one behind it."""

    def __init__(self, seed, number):
        self.random = random.Random(f"{seed}/{number}")
        # Unique over all senders, whose seeds end with who they are.
        self.name = b"%b-%d" % (seed.rsplit("/", 1)[-1].encode(), number)
        # Most mutations alone; some together with others.
        self.rate = self.random.choice([0.0, 0.04, 0.1, 0.25])

    def mutated(self):
        return self.random.random() < self.rate

    def pick(self, usual, others):
        return self.random.choice(others) if self.mutated() else usual

    def end(self):
        return self.pick(b"\r\n", ENDS)

    def filled(self, pattern, number):
        count = pattern.count(b"%d") + pattern.count(b"%x") + pattern.count(b"%X") + pattern.count(b"%02d") + pattern.count(b"%016x")
        return pattern % ((number,) * count) if count else pattern

    def chunks(self, body):
        out = []
        while body:
            part, body = body[:self.random.randint(1, 40)], body[40:]
            size = self.filled(self.pick(b"%x", SIZES), len(part) + (self.random.choice([-1, 1, 7]) if self.mutated() else 0))
            out += [size, self.end(), part, self.end()]
        trailers = self.random.choice([b"", b"X-End: y\r\n", b"Content-Length: 4\r\n", b"Host: admin\r\n"]) if self.mutated() else b""
        return b"".join([*out, self.pick(b"0", [b"00", b"0;x", b"0 ", b"0x0", b"+0", b""]), self.end(), trailers, self.end()])

    def request(self, name):
        rng = self.random
        path = b"case-%b-%b" % (self.name, name)
        body = bytes(rng.choice(b"abc\r\n0GET /") for _ in range(rng.choice([0, 1, 5, 40, 200])))
        if rng.random() < 0.3:
            body = b"0\r\n\r\nGET /smuggled-%b HTTP/1.1\r\nHost: shop\r\n\r\n" % self.name + body
        method = self.pick(rng.choice([b"GET", b"POST", b"POST", b"PUT"]), METHODS)
        target = self.pick(b"/%b", TARGETS)
        target = target % path if b"%b" in target else target
        line = method + self.pick(b" ", SPACES) + target + self.pick(b" ", SPACES) + self.pick(b"HTTP/1.1", VERSIONS)
        fields = [b"X-Request-Id: " + path, b"Host:" + self.pick(b" ", SPACES) + self.pick(b"shop", HOSTS)]
        framing = rng.choice(["none", "length", "chunked", "both"] if self.mutated() else ["none", "length", "chunked"])
        length = len(body) + (rng.choice([-1, 1, -5, 30]) if self.mutated() else 0)
        if framing in ("length", "both"):
            fields.append(self.pick(b"Content-Length", NAMES) + b": " + self.filled(self.pick(b"%d", LENGTHS), max(length, 0)))
            if self.mutated():
                fields.append(b"Content-Length: %d" % len(body))
        if framing in ("chunked", "both"):
            fields.append(self.pick(b"Transfer-Encoding", CODING_NAMES) + b": " + self.pick(b"chunked", CODINGS))
        while self.mutated():
            fields.append(rng.choice(EXTRAS))
        if self.mutated():
            fields.append(b"Host: " + rng.choice(HOSTS))
        rng.shuffle(fields)
        head = line + self.end() + b"".join(field + self.end() for field in fields) + self.end()
        if framing == "none":
            return head
        return head + (self.chunks(body) if framing == "chunked" or framing == "both" and rng.random() < 0.5 else body)

    def case(self):
        raw = self.request(b"a")
        if self.rate and self.random.random() < 0.3:
            # Bytes that nobody thought of. What a request is known by stays, or it could not be looked up.
            known = b"X-Request-Id: case-%b-a\r" % self.name
            at = self.random.randrange(len(raw) + 1)
            mangled = raw[:at] + self.random.choice([b"\x00", b"\r", b"\n", b"\x80", b":", b" ", b"0", b""]) + raw[at + self.random.randint(0, 2):]
            raw = mangled if known in mangled else raw
        if self.random.random() < 0.4:
            raw += self.request(b"b")
        name = b"case-%b-last" % self.name
        return raw + b"GET /%b HTTP/1.1\r\nHost: shop\r\nX-Request-Id: %b\r\nConnection: close\r\n\r\n" % (name, name)


def parts(rng, raw):
    """The bytes as they may be cut on their way."""
    if rng.random() < 0.6:
        return [raw]
    cuts = sorted(rng.randrange(len(raw) + 1) for _ in range(rng.randint(1, 4)))
    return [raw[a:b] for a, b in zip([0, *cuts], [*cuts, len(raw)])]


def attack(seed, number, address):
    mutator = Mutator(seed, number)
    raw = mutator.case()
    answer = b""
    with socket.create_connection(address, timeout=PATIENCE_SECONDS) as line:
        line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for part in parts(mutator.random, raw):
                line.sendall(part)
                time.sleep(0.001)
            line.settimeout(QUIET_SECONDS)
            while data := line.recv(65536):
                answer += data
        except TimeoutError:
            line.shutdown(socket.SHUT_WR)
            line.settimeout(PATIENCE_SECONDS)
            try:
                while data := line.recv(65536):
                    answer += data
            except OSError:
                pass
        except OSError:
            pass
    # A well-formed request is answered, whatever stood before it was.
    if mutator.rate == 0.0 and b"read\n" not in answer:
        return f"case {number}: {raw!r} was not answered: {answer!r}"
    if not answer:
        return None
    statuses = {b"200", b"100", b"101", b"400", b"405", b"408", b"414", b"417", b"431", b"501", b"502", b"503", b"505", b"404", b"403"}
    return None if answer.startswith(b"HTTP/1.1 ") and answer[9:12] in statuses else f"case {number}: {raw!r}: {answer!r}"


def send(directory, seed, count, address, port):
    numbers, wrong = iter(range(int(count))), []
    lock = threading.Lock()

    def sender():
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                fault = attack(seed, number, (address, int(port)))
            except OSError as error:
                fault = f"case {number}: {error}"
            if fault:
                wrong.append(fault)

    threads = [threading.Thread(target=sender) for _ in range(SENDERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"seed {seed}: {count} cases sent")
    if wrong:
        sys.exit("\n".join(wrong[:10]))


# ---- the judge

def read_by_h11(raw):
    """The requests that h11 sees in a stream, each with whether it was whole; and why it went no further."""
    import h11
    requests = []
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    connection.receive_data(raw)
    try:
        while True:
            event = connection.next_event()
            if isinstance(event, h11.Request):
                fields = {}
                for name, value in event.headers:
                    fields.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
                requests.append({"method": event.method.decode("latin-1"), "target": event.target.decode("latin-1"),
                                 "host": fields.get("host"), "id": (fields.get("x-request-id") or [""])[0],
                                 "body": b"", "whole": False})
            elif isinstance(event, h11.Data):
                requests[-1]["body"] += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                requests[-1]["whole"] = True
                if requests[-1]["method"] == "CONNECT":
                    return requests, None
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                if connection.our_state is not h11.DONE or connection.their_state is not h11.DONE:
                    return requests, "bytes behind the last request" if connection.trailing_data[0] else None
                connection.start_next_cycle()
            elif requests and not requests[-1]["whole"]:
                return requests, "more was to come"
            else:
                return requests, "half a head" if connection.trailing_data[0] else None
    except h11.RemoteProtocolError as error:
        return requests, str(error)


def nginx_lines(path):
    """What nginx read, by where the connection came from, in order."""
    by_peer = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for line in file:
            reading = json.loads(line)
            by_peer.setdefault(reading["from"], []).append(reading)
    return by_peer


def judge(directory, log):
    wrong = []
    with open(log, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.startswith("{")]
    # Each request that the agent read has one line, by its id, or by its path where a mutation has lost that.
    agent = {}
    for line in lines:
        if line.get("reporter") == "destination" and "path" in line:
            agent.setdefault(line.get("request_id") or line["path"], []).append(line)
    by_peer = nginx_lines(os.path.join(directory, "readings.log"))
    read, whole, broken = {}, 0, 0
    for name in sorted(name for name in os.listdir(directory) if name.startswith("sent-")):
        with open(os.path.join(directory, name), "rb") as file:
            raw = file.read()
        requests, fault = read_by_h11(raw)
        ours = by_peer.pop(name.rsplit("_", 1)[1], [])
        complaints = []
        if fault and (not requests or requests[-1]["whole"]):
            complaints.append(f"h11 cannot read it: {fault}")
        for at, request in enumerate(requests):
            known = request["id"] or request["target"]
            records = agent.get(known, [])
            if len(records) != 1:
                complaints.append(f"the agent has {len(records)} lines for {request}")
                continue
            record = records[0]
            said = (record["method"], record["path"], [record["authority"]])
            if said != (request["method"], request["target"], request["host"]):
                complaints.append(f"the agent said {said}, h11 {request}")
            if request["whole"] and record["bytes_received"] != len(request["body"]):
                complaints.append(f"the agent read {record['bytes_received']} bytes of body, h11 {request}")
            # nginx may answer early what it does not serve, and then the rest is not sent; it serves nothing before it is whole.
            if not request["whole"] and (at + 1 < len(requests) or record["response_code"] == 200):
                complaints.append(f"the agent took it for whole ({record}), h11 did not: {request}")
            whole, broken = whole + request["whole"], broken + (not request["whole"])
            # Where nginx closes what was kept, a request that can be sent again may be on its way.
            reading = ours[at] if at < len(ours) else None
            if reading is None:
                continue
            # What it refuses to serve it may have read no further than its line, or its head.
            refused, served = reading["status"] == "400", reading["status"] == "200"
            line = f"{request['method']} {request['target']} HTTP/1.1"
            if reading["request"] not in ([line, ""] if refused else [line]):
                complaints.append(f"nginx read {reading}, h11 {request}")
            if not refused and (reading["id"], [reading["host"]]) != (request["id"], request["host"]):
                complaints.append(f"nginx read {reading}, h11 {request}")
            if request["whole"] and served and reading["body"].encode("utf-8", "surrogateescape") != request["body"]:
                complaints.append(f"nginx read the body {reading['body']!r}, h11 {request}")
            if request["whole"] and read.setdefault(known, name) != name:
                complaints.append(f"nginx read it twice, in {read[known]} too: {request}")
        if len(ours) > len(requests):
            complaints.append(f"nginx read more: {ours[len(requests):]}")
        if any("smuggled" in request["target"] for request in requests):
            complaints.append("a smuggled request is one")
        wrong += [f"{name}: {complaint}\n  {raw!r}" for complaint in complaints]
    wrong += [f"nginx read what nobody sent: {ours}" for ours in by_peer.values() if any(one["request"] for one in ours)]
    for name, records in agent.items():
        if records[0]["response_code"] == 200 and records[0]["response_flags"] == "-" and name not in read:
            wrong.append(f"nginx has not read {records[0]}")
    print(f"{whole} requests were read alike by the agent, h11 and nginx; {broken} broke off, and nobody took them for whole")
    if wrong or not whole:
        sys.exit("\n".join(wrong[:10]))


if __name__ == "__main__":
    {"serve": serve, "send": send, "judge": judge}[sys.argv[1]](*sys.argv[2:])
