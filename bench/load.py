"""The servers, the loads, and what each load yields. Every load runs in the client's host against what the peer says to
dial, with the proxies' processor time taken around it."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import tools
from meter import Watch, peak_mib, resident_mib
from peers import BULK_PORT, HTTP2_PORT, HTTP_PORT, NotTaken

HERE = Path(__file__).parent
GIB = 1 << 30
BODY = "baremesh " * 14
# A message in gRPC's frame: not compressed, its length, and that many bytes.
ASKED = b"\0\0\0\0\x10" + b"a" * 16
ANSWERED = b"\0\0\0\0\x40" + b"b" * 64

KEPT_CONNECTIONS = 64
NEW_CONNECTIONS = 32
IDLE_CONNECTIONS = 1000
RATE = 1000
RATE_CONNECTIONS = 16
# As many requests under way as with wrk's connections.
HTTP2_CONNECTIONS = 8
HTTP2_STREAMS = 8
WARM_UP_SECONDS = 1
# What a peer's memory is given to come to rest.
SETTLE_SECONDS = 1
# More failed requests than this share of them make a sample worthless.
ERROR_SHARE = 0.001

NGINX = """
user root root; daemon off; worker_processes 1; pid {dir}/nginx.pid; error_log stderr warn;
events {{ worker_connections 8192; }}
http {{
    access_log off; keepalive_requests 1000000000; keepalive_timeout 600s; default_type text/plain;
    client_body_temp_path {dir}/nginx-body; proxy_temp_path {dir}/nginx-proxy; fastcgi_temp_path {dir}/nginx-fastcgi;
    uwsgi_temp_path {dir}/nginx-uwsgi; scgi_temp_path {dir}/nginx-scgi;
    server {{ listen {port} backlog=4096 reuseport; location / {{ return 200 "{body}"; }} }}
}}
"""


class LoadFailed(Exception):
    """A load ran, but not as it should: its errors, or a socket with other congestion control than cubic."""


def start_servers(hosts):
    """nginx with one worker and a small answer from memory, nghttpd with one and a small file, which it closes with
    trailers, and iperf3, all on all addresses of the server's host."""
    config = hosts.log_dir / "nginx.conf"
    config.write_text(NGINX.format(dir=hosts.log_dir, port=HTTP_PORT, body=BODY))
    hosts.server.spawn("nginx", "-c", config, "-p", hosts.log_dir, log="nginx")
    documents = hosts.log_dir / "documents"
    documents.mkdir(exist_ok=True)
    (documents / "page").write_text(BODY)
    (documents / "call.grpc").write_bytes(ANSWERED)
    (hosts.log_dir / "asked").write_bytes(ASKED)
    (hosts.log_dir / "mime.types").write_text("application/grpc grpc\n")
    hosts.server.spawn("nghttpd", "--no-tls", "--htdocs", documents, "--mime-types-file", hosts.log_dir / "mime.types",
                       "--trailer", "grpc-status: 0", HTTP2_PORT, log="nghttpd")
    hosts.server.spawn("iperf3", "--server", "--port", BULK_PORT, log="iperf3")
    _wait_listening(hosts.server, HTTP_PORT, HTTP2_PORT, BULK_PORT)


def _wait_listening(host, *ports):
    for _ in range(100):
        host.check_alive()
        listening = host.run("ss", "-Hltn")
        if all(f":{port} " in listening for port in ports):
            return
        time.sleep(0.05)
    raise LoadFailed(f"no server listens on {ports} of host {host.name} after 5 s")


def memory(hosts, running, _seconds):
    """Resident memory of each side's proxies: after start, and with 1,000 connections that have carried one request.
    Looks at every socket's congestion control while they stand."""
    time.sleep(SETTLE_SECONDS)
    found = _resident("idle", running)
    argv = hosts.client.command(sys.executable, HERE / "hold.py", *running.http, IDLE_CONNECTIONS)
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          text=True) as holder:
        if holder.stdout.readline() != "ready\n":
            raise LoadFailed(f"{IDLE_CONNECTIONS} idle connections: {holder.communicate()[1].strip()}")
        time.sleep(SETTLE_SECONDS)
        found |= _resident("held", running)
        _check_congestion_control(hosts)
        holder.stdin.close()
    return found


def _resident(when, running):
    return {f"rss_{when}_{side}_mib": resident_mib(pids)
            for side, pids in (("client", running.client_pids), ("server", running.server_pids)) if pids}


def _check_congestion_control(hosts):
    for host in (hosts.client, hosts.server):
        words = set(host.run("ss", "-Htin", "state", "established").split())
        if "cubic" not in words or words & {"bbr", "reno"}:
            raise LoadFailed(f"a socket of host {host.name} does not use cubic")


def kept(hosts, running, seconds):
    """Requests over kept connections."""
    _wrk(hosts, running, WARM_UP_SECONDS, KEPT_CONNECTIONS)
    report, spent = _wrk(hosts, running, seconds, KEPT_CONNECTIONS)
    return _requests("kept", report, spent)


def new(hosts, running, seconds):
    """A new connection for every request. wrk's clock starts when the connection to the capturing proxy stands."""
    close = ("--header", "Connection: close")
    _wrk(hosts, running, WARM_UP_SECONDS, NEW_CONNECTIONS, close)
    report, spent = _wrk(hosts, running, seconds, NEW_CONNECTIONS, close)
    return _requests("new", report, spent)


def _wrk(hosts, running, seconds, connections, extra=()):
    watch = Watch(running.pids)
    said = hosts.client.run("wrk", "--threads", 1, "--connections", connections, "--duration", f"{seconds}s",
                            "--script", HERE / "report.lua", *extra, url(running), timeout=seconds + 60)
    watch.stop()
    report = _reported(said)
    errors = sum(report["errors"].values())
    if not report["requests"] or errors > report["requests"] * ERROR_SHARE:
        raise LoadFailed(f"wrk: {errors} errors in {report['requests']} requests: {report['errors']}")
    return report, watch


def _reported(said):
    return json.loads(next(line for line in said.splitlines() if line.startswith("REPORT "))[len("REPORT "):])


def _requests(name, report, spent):
    count = report["requests"]
    return {
        f"{name}_per_s": count / (report["microseconds"] / 1e6),
        f"{name}_p50_us": report["p50_us"],
        f"{name}_p99_us": report["p99_us"],
        f"{name}_errors": sum(report["errors"].values()),
    } | _spent_for(name, count, spent)


def _spent_for(name, requests, spent):
    """Processor time for 10,000 requests: the machine's, and the proxies' where there are any."""
    found = {f"{name}_machine_s_per_10k": spent.machine / requests * 10_000}
    return found | ({f"{name}_cpu_s_per_10k": spent.proxies / requests * 10_000} if spent.pids else {})


def lone(hosts, running, seconds):
    """Latency with nothing else under way: one connection, one request at a time."""
    _wrk(hosts, running, WARM_UP_SECONDS, 1)
    report, spent = _wrk(hosts, running, seconds, 1)
    return _requests("lone", report, spent)


def rate(hosts, running, seconds):
    """A request a millisecond, whatever becomes of those before; latency from when each fell due."""
    _steady(hosts, running, WARM_UP_SECONDS)
    report, spent = _steady(hosts, running, seconds)
    figures = ("p50_us", "p99_us", "late_p50_us", "late_p99_us", "waited")
    return {f"rate_{figure}": report[figure] for figure in figures} | _spent_for("rate", report["requests"], spent)


def _steady(hosts, running, seconds):
    host, port = running.http
    watch = Watch(running.pids)
    said = hosts.client.run(tools.STEADY, f"{host}:{port}", RATE, 0, seconds, RATE_CONNECTIONS, timeout=seconds + 60)
    watch.stop()
    return _reported(said), watch


def http2(hosts, running, seconds):
    """HTTP/2 requests over kept connections."""
    return _h2load("http2", hosts, running, seconds, "page")


def grpc(hosts, running, seconds):
    """The same in gRPC's form: POST with a small message each way, the status in trailers."""
    call = ("--data", hosts.log_dir / "asked", "--header", "content-type: application/grpc", "--header", "te: trailers")
    host, port = running.http2
    # h2load does not look at trailers.
    if "grpc-status: 0" not in hosts.client.run("nghttp", "--verbose", *call, f"http://{host}:{port}/call.grpc"):
        raise LoadFailed("an answer in gRPC's form lost its trailers")
    return _h2load("grpc", hosts, running, seconds, "call.grpc", call)


def _h2load(name, hosts, running, seconds, path, extra=()):
    host, port = running.http2
    for duration in (WARM_UP_SECONDS, seconds):
        watch = Watch(running.pids)
        said = hosts.client.run(
            "h2load", "--threads", 1, "--clients", HTTP2_CONNECTIONS, "--max-concurrent-streams", HTTP2_STREAMS,
            "--duration", duration, *extra, f"http://{host}:{port}/{path}", timeout=seconds + 60)
        watch.stop()
    done, failed = (int(re.search(rf"(\d+) {word}", said)[1]) for word in ("succeeded", "failed"))
    good = int(re.search(r"status codes: (\d+) 2xx", said)[1])
    if not done or failed > done * ERROR_SHARE or good < done:
        raise LoadFailed(f"h2load: {done} requests went well, {failed} failed, {good} were answered 2xx")
    return {f"{name}_per_s": done / seconds} | _spent_for(name, done, watch)


def bulk1(hosts, running, seconds):
    """Throughput of one stream."""
    return _iperf3("bulk1", hosts, running, ("--time", seconds, "--parallel", 1))


def bulk8(hosts, running, seconds):
    """Throughput of eight streams together."""
    return _iperf3("bulk8", hosts, running, ("--time", seconds, "--parallel", 8))


def _iperf3(name, hosts, running, extra):
    host, port = running.bulk
    watch = Watch(running.pids)
    said = hosts.client.run("iperf3", "--client", host, "--port", port, "--congestion", "cubic", "--json", *extra)
    watch.stop()
    end = json.loads(said)["end"]
    used = {end.get("sender_tcp_congestion"), end.get("receiver_tcp_congestion")}
    if used != {"cubic"}:
        raise LoadFailed(f"iperf3's sockets used {used}, not cubic")
    received = end["sum_received"]
    gib = received["bytes"] / GIB
    found = {f"{name}_gbit_s": received["bits_per_second"] / 1e9,
             f"{name}_machine_s_per_gib": watch.machine / gib}
    return found | ({f"{name}_cpu_s_per_gib": watch.proxies / gib} if watch.pids else {})


def peak(_hosts, running, _seconds):
    """The most memory that the proxies had at any time of their life."""
    return {f"rss_peak_{side}_mib": peak_mib(pids)
            for side, pids in (("client", running.client_pids), ("server", running.server_pids)) if pids}


def url(running):
    host, port = running.http
    return f"http://{host}:{port}/"


# In this order: memory is looked at before the loads have made the peer's heap grow, its peak after them all.
LOADS = {"memory": memory, "kept": kept, "lone": lone, "rate": rate, "http2": http2, "grpc": grpc, "new": new,
         "bulk1": bulk1, "bulk8": bulk8, "peak": peak}


def measure(hosts, running, loads, seconds):
    """Runs `loads` one after the other, but for those that the peer cannot carry; returns what they measured and what proves that the path was the peer's."""
    found = {}
    for name in LOADS:
        if name in loads and name not in running.unable:
            found |= LOADS[name](hosts, running, seconds)
            hosts.check_alive()
    return found, running.evidence()


__all__ = ["LOADS", "LoadFailed", "NotTaken", "measure", "start_servers"]
