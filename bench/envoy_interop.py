#!/usr/bin/env python3
"""Envoy as a foreign HBONE peer. `dial` prints a configuration that takes plain TCP and carries it to an agent's port
15008 by CONNECT; `accept` prints one that takes an agent's CONNECT on 15008 and delivers it to a local port. Mutual TLS
1.3, no SNI, the peer's SPIFFE ID matched exactly, 100 streams a connection. Save the output as FILE.json, then
`envoy --config-path FILE.json`."""

import argparse
import json
from pathlib import Path

from certs import Credentials
from envoy_config import (HBONE_STREAMS, bootstrap, cluster, connect_terminator, downstream_tls, listener, tcp_proxy,
                          upstream_tls)

ALPN = ("h2",)


def dial(options):
    """Envoy as the client: what `listen` accepts goes to `agent`, for the authority `authority`."""
    tls = upstream_tls(credentials(options), options.peer_id, ALPN)
    return bootstrap(
        [listener("plain", options.listen, tcp_proxy("agent", tunnel_to=options.authority))],
        [cluster("agent", options.agent, tls, http2={"max_concurrent_streams": HBONE_STREAMS})],
        options.admin)


def accept(options):
    """Envoy as the server: a CONNECT for `authority` on `listen` is delivered to `deliver`."""
    tls = downstream_tls(credentials(options), options.peer_id, ALPN)
    return bootstrap(
        [listener("hbone", options.listen, connect_terminator({options.authority: "local"}), tls)],
        [cluster("local", options.deliver)],
        options.admin)


def credentials(options):
    """The files that the command line names; the leaf's own identity is whatever its certificate says."""
    return Credentials(options.cert, options.key, options.ca, identity="")


def address(text):
    """Reads "host:port" or "[v6]:port"."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text} is not HOST:PORT")
    return host.strip("[]"), int(port)


def arguments():
    parser = argparse.ArgumentParser(description=__doc__)
    sides = parser.add_subparsers(required=True, metavar="dial|accept")
    for name, build, own_port in (("dial", dial, "127.0.0.1:15001"), ("accept", accept, "0.0.0.0:15008")):
        side = sides.add_parser(name, help=build.__doc__)
        side.set_defaults(build=build)
        side.add_argument("--listen", type=address, default=address(own_port), help=f"default {own_port}")
        side.add_argument("--authority", required=True, help="the CONNECT's :authority, IP:PORT")
        for file in ("cert", "key", "ca"):
            side.add_argument(f"--{file}", type=Path, required=True, help="PEM file")
        side.add_argument("--peer-id", required=True, help="the peer's SPIFFE ID, matched exactly")
        side.add_argument("--admin", type=Path, help="serve Envoy's statistics on this Unix socket")
        if build is dial:
            side.add_argument("--agent", type=address, required=True, help="the agent's HOST:15008")
        else:
            side.add_argument("--deliver", type=address, required=True, help="where the application listens, HOST:PORT")
    return parser.parse_args()


if __name__ == "__main__":
    chosen = arguments()
    print(json.dumps(chosen.build(chosen), indent=2))
