"""How the bench starts baremesh: the one place that knows the binary's command line."""

from pathlib import Path


class BaremeshLacks(Exception):
    """The binary is missing, or cannot yet do what the bench asks of it."""


def start_baremesh(hosts, binary, http_port, bulk_port):
    """Makes a mesh of the two hosts and puts capture in place on both.

    `hosts.client` and `hosts.server` are `hosts.Host`: `run` runs a program there to its end, `spawn` starts one that runs
    until the hosts are closed, `address` is the host's address on the wire. Each has its own network, mounts (bind or tmpfs
    mounts made in a host are seen there alone) and host name. `hosts.log_dir` is a directory of this run for state and
    logs. On the server's host nginx listens on `http_port` and iperf3 on `bulk_port`, on every address, loopback included.

    Routes and rules that the agents add are given the run's congestion control and tracking limits afterwards.

    Returns what `peers.Running` is made of:
      http, bulk    (host, port) that the client's programs dial: a name that resolves there, or a virtual address
      client_pids   processes of baremesh on the client's host, a control server not included
      server_pids   the same on the server's host
      evidence      a function that returns facts about the path taken (connections captured, TLS version and group, from
                    the agents' metrics) and raises `peers.NotTaken` if the bytes took another one
    """
    if not Path(binary).is_file():
        raise BaremeshLacks(f"no baremesh binary at {binary}: cargo build --release, or name one with --baremesh")
    raise BaremeshLacks(f"baremesh binary lacks the commands to make a mesh: {binary}")
