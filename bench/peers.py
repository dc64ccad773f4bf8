"""What is compared: how each peer is started on the two hosts, what the client dials there, and what proves afterwards that
the bytes took the peer's path. Every peer is reached by the same clients and serves the same servers."""

import http.client
import json
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import baremesh
import certs
import envoy_config as envoy
from hosts import CommandFailed

# The servers behind every peer, on the server's host: nginx, nghttpd and iperf3, on all its addresses.
HTTP_PORT = 8080
HTTP2_PORT = 8081
BULK_PORT = 5201

# Where Envoy takes what the client's host redirects, one listener for each server, and where its server side listens.
CAPTURE_PORT = {HTTP_PORT: 15001, BULK_PORT: 15002, HTTP2_PORT: 15003}
TLS_PORT = {HTTP_PORT: 15443, BULK_PORT: 15444, HTTP2_PORT: 15445}
HBONE_PORT = 15008
# One classic group for both Envoy forms. baremesh pays for X25519MLKEM768 in its own figures.
CURVES = ("X25519",)

# How long a peer may take to carry its first request.
READY_SECONDS = 30


class NotTaken(Exception):
    """The figures would not be the peer's: the bytes took another path, or another protocol than they should have."""


@dataclass(frozen=True)
class Settings:
    """What the command line chose for the peers."""

    envoy: str
    envoy_concurrency: int
    baremesh: Path


@dataclass
class Running:
    """A started peer: the (host, port) that clients dial, the proxies' processes on either side, and `evidence`, which
    returns facts about the path that was taken or raises `NotTaken`. `unable` are loads that it cannot carry."""

    http: tuple
    http2: tuple
    bulk: tuple
    client_pids: list = field(default_factory=list)
    server_pids: list = field(default_factory=list)
    evidence: Callable[[], dict] = dict
    unable: tuple = ()

    @property
    def pids(self):
        return self.client_pids + self.server_pids


def start(peer, hosts, settings):
    """Starts `peer` by its name in PEERS, and waits until it carries a request."""
    running = PEERS[peer](hosts, settings)
    wait_ready(hosts, running)
    hosts.adopt_changes()
    return running


def start_direct(hosts, _settings):
    """No proxy: the wire and the servers alone."""
    return Running(*((hosts.server.address, port) for port in (HTTP_PORT, HTTP2_PORT, BULK_PORT)))


def start_baremesh(hosts, settings):
    """A mesh of two hosts with the project's own binary."""
    return _start_mesh(hosts, settings, "tcp", "tcp")


def start_baremesh_http(hosts, settings):
    """The same mesh, with nginx's and nghttpd's ports declared to speak HTTP: both agents see every request."""
    return _start_mesh(hosts, settings, "http", "http2")


def start_baremesh_policies(hosts, settings):
    """The same, with 1,000 AuthorizationPolicies of 20 rules each in force on what is called. Those that deny by what only a
    request has deny what is carried as bytes."""
    running = _start_mesh(hosts, settings, "http", "http2", baremesh.many_policies())
    return replace(running, unable=("bulk1", "bulk8"))


def _start_mesh(hosts, settings, web, streams, policies=""):
    """`web` and `streams` are what nginx's and nghttpd's ports are declared to speak."""
    services = {"web": (HTTP_PORT, web), "streams": (HTTP2_PORT, streams), "bulk": (BULK_PORT, "tcp")}
    dialled, client_pids, server_pids, evidence = baremesh.start_baremesh(
        hosts, settings.baremesh, services, policies)
    return Running(dialled["web"], dialled["streams"], dialled["bulk"], client_pids, server_pids, evidence)


def start_envoy(hosts, settings):
    """A pair of Envoys as sidecars: each captured connection becomes one mutual TLS connection between them."""
    return _start_sidecars(hosts, settings, envoy.tcp_proxy)


def start_envoy_http(hosts, settings):
    """The same sidecars with HTTP on nginx's and nghttpd's ports, and HTTP/1.1 between them, which has no trailers behind a
    Content-Length."""
    return replace(_start_sidecars(hosts, settings, envoy.http_proxy), unable=("grpc",))


def start_envoy_http2(hosts, settings):
    """The same sidecars with HTTP on nginx's and nghttpd's ports, and HTTP/2 between them."""
    return _start_sidecars(hosts, settings, envoy.http_proxy, http2={})


def _start_sidecars(hosts, settings, of_web, http2=None):
    """A pair of Envoys; `of_web` makes the filters of nginx's and nghttpd's ports, and `http2` has them speak that between
    them."""
    client, server = certs.make(hosts.log_dir / "certs")
    to_server = envoy.upstream_tls(client, server.identity, curves=CURVES)
    to_client = envoy.downstream_tls(server, client.identity, curves=CURVES)
    client_listeners, client_clusters, server_listeners, server_clusters = [], [], [], []
    # Where connections are relayed, nobody has to say what nghttpd speaks.
    delivered = None if of_web is envoy.tcp_proxy else {}
    for port, proxy, between, spoken in ((HTTP_PORT, of_web, http2, None), (HTTP2_PORT, of_web, http2, delivered),
                                         (BULK_PORT, envoy.tcp_proxy, None, None)):
        remote, local = f"remote-{port}", f"local-{port}"
        client_listeners.append(_captured(port, proxy(remote)))
        client_clusters.append(envoy.cluster(remote, (hosts.server.address, TLS_PORT[port]), to_server, http2=between))
        server_listeners.append(
            envoy.listener(local, (hosts.server.address, TLS_PORT[port]), proxy(local), to_client))
        server_clusters.append(envoy.cluster(local, ("127.0.0.1", port), http2=spoken))
    return _run_pair(hosts, settings, (client_listeners, client_clusters), (server_listeners, server_clusters))


def start_envoy_hbone(hosts, settings):
    """A pair of Envoys that speak HBONE: captured connections share HTTP/2 connections between them, one stream each."""
    client, server = certs.make(hosts.log_dir / "certs")
    to_server = envoy.upstream_tls(client, server.identity, alpn=("h2",), curves=CURVES)
    to_client = envoy.downstream_tls(server, client.identity, alpn=("h2",), curves=CURVES)
    authority = {port: f"{hosts.server.address}:{port}" for port in CAPTURE_PORT}
    client_listeners = [_captured(port, envoy.tcp_proxy("remote", tunnel_to=authority[port])) for port in authority]
    client_clusters = [envoy.cluster("remote", (hosts.server.address, HBONE_PORT), to_server,
                                     http2={"max_concurrent_streams": envoy.HBONE_STREAMS})]
    terminator = envoy.connect_terminator({authority[port]: f"local-{port}" for port in authority})
    server_listeners = [envoy.listener("hbone", (hosts.server.address, HBONE_PORT), terminator, to_client)]
    server_clusters = [envoy.cluster(f"local-{port}", ("127.0.0.1", port)) for port in authority]
    return _run_pair(hosts, settings, (client_listeners, client_clusters), (server_listeners, server_clusters))


def _captured(port, network_filter):
    return envoy.listener(f"captured-{port}", ("127.0.0.1", CAPTURE_PORT[port]), network_filter)


def _run_pair(hosts, settings, client, server):
    """Starts the server's Envoy, then the client's, then the capture in front of it. `client` and `server` are (listeners,
    clusters)."""
    processes, sockets = [], []
    for host, parts in ((hosts.server, server), (hosts.client, client)):
        admin = hosts.log_dir / f"{host.name}-admin.sock"
        config = hosts.log_dir / f"{host.name}-envoy.json"
        config.write_text(json.dumps(envoy.bootstrap(*parts, admin), indent=1))
        processes.append(host.spawn(
            settings.envoy, "--config-path", config, "--concurrency", settings.envoy_concurrency,
            "--disable-hot-restart", "--log-level", "warning", log="envoy"))
        sockets.append(admin)
    _redirect(hosts.client, hosts.server.address)
    return Running(*((hosts.server.address, port) for port in (HTTP_PORT, HTTP2_PORT, BULK_PORT)),
                   [processes[1].pid], [processes[0].pid], lambda: _envoy_evidence(hosts.client, sockets[0]))


def _redirect(host, server_address):
    """Captures what the host's programs send to the servers' ports, as baremesh's own capture does, so that both pay for
    address translation and connection tracking on the client's host."""
    rules = "\n".join(
        f"ip daddr {server_address} tcp dport {port} counter name captured redirect to :{to}"
        for port, to in CAPTURE_PORT.items())
    host.run("nft", "-f", "-", stdin=f"""table ip bench {{
        counter captured {{ }}
        chain output {{
            type nat hook output priority -100; policy accept;
            {rules}
        }}
    }}""")


def _envoy_evidence(client, admin):
    """The server's Envoy says which TLS it spoke and that the client's certificate was verified; the client's rules say
    that its connections were captured."""
    listed = json.loads(client.run("nft", "-j", "list", "counter", "ip", "bench", "captured"))["nftables"]
    captured = next(entry["counter"]["packets"] for entry in listed if "counter" in entry)
    stats = {}
    for line in _admin(admin, "/stats?filter=listener.*ssl").splitlines():
        name, _, value = line.rpartition(": ")
        name = name.rpartition(".ssl.")[2]
        if value.isdigit() and int(value) and not name.startswith("certificate."):
            stats[name] = stats.get(name, 0) + int(value)
    facts = {"captured_connections": captured, "tls": stats}
    if not captured:
        raise NotTaken("no connection was redirected to the client's Envoy")
    if not stats.get("handshake") or stats.get("handshake") != stats.get("versions.TLSv1.3"):
        raise NotTaken(f"the server's Envoy did not speak TLS 1.3 alone: {stats}")
    if stats.get("no_certificate") or stats.get("fail_verify_san") or stats.get("fail_verify_error"):
        raise NotTaken(f"the server's Envoy saw clients without a valid certificate: {stats}")
    return facts


def _admin(path, query):
    """One GET on Envoy's administration socket."""
    connection = http.client.HTTPConnection("envoy", timeout=10)
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", query)
    return connection.getresponse().read().decode()


def wait_ready(hosts, running):
    """Waits until one HTTP request succeeds through the peer."""
    probe = Path(__file__).with_name("hold.py")
    deadline = time.monotonic() + READY_SECONDS
    while True:
        hosts.check_alive()
        try:
            return hosts.client.run(sys.executable, probe, *running.http, 1)
        except CommandFailed:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


PEERS = {
    "direct": start_direct,
    "baremesh": start_baremesh,
    "envoy": start_envoy,
    "envoy-hbone": start_envoy_hbone,
    "baremesh-http": start_baremesh_http,
    "baremesh-policies": start_baremesh_policies,
    "envoy-http": start_envoy_http,
    "envoy-http2": start_envoy_http2,
}
