"""Two hosts made of network namespaces, joined by one veth pair, and nothing else: no traffic leaves them,
and all of it is gone when the run ends. `enter` puts the whole run into namespaces of its own first, so that an
ordinary user can be root there, and so that a killed run leaves no process and no interface behind."""

import os
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

# Set in the run inside the namespaces, so that it does not enter a second time.
INSIDE = "BAREMESH_BENCH_INSIDE"
# All peers, clients and servers share these many processors, however many the machine has.
CORES = 2

# BBR, the default on some machines, paces loopback and veth traffic, so that one would measure its pacing. A namespace's
# own default can be set only to what the machine allows everyone, which may leave cubic out; a route's always.
CONGESTION_CONTROL = ("congctl", "cubic")

# The port range leaves the fixed ports alone and is wide enough for new connections by the thousand; reusing ports in
# TIME_WAIT keeps the loader from running dry.
SYSCTLS = {
    "net/ipv4/ip_local_port_range": "16384 65535",
    "net/ipv4/tcp_tw_reuse": "1",
    "net/core/somaxconn": "4096",
}
# Connection tracking keeps closed connections for 120 s by default, which fills its table at 10,000 new connections a
# second. The setting exists once any peer's rules have loaded connection tracking.
CONNTRACK_TIME_WAIT = "net/netfilter/nf_conntrack_tcp_timeout_time_wait"


class CommandFailed(Exception):
    """A command that the run needs ended with an error: its name and what it said."""


def enter():
    """Re-executes the run inside its own user (if not root), network, mount and process namespaces, on two cores."""
    if os.environ.get(INSIDE) == "1":
        # As process 1 of the namespace, SIGTERM would be ignored without a handler.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        return
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    command = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    if os.geteuid() != 0:
        command += ["--user", "--map-root-user"]
    command += [sys.executable, *sys.argv]
    os.execvpe(command[0], command, {**os.environ, INSIDE: "1"})


@dataclass
class Host:
    """One namespace host: its own network, mounts and host name. `spawn` and `run` start programs in it."""

    name: str
    address: str
    log_dir: Path
    _holder: subprocess.Popen = field(init=False, repr=False)
    _spawned: list = field(default_factory=list, init=False, repr=False)

    def __post_init__(self):
        # The holder keeps the namespaces alive until our end of its standard input closes, hence also when we die.
        script = f"hostname {self.name} && echo up && exec cat > /dev/null"
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--uts", "sh", "-c", script],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._holder.stdout.readline() != "up\n":
            raise CommandFailed(f"host {self.name}: unshare could not make its namespaces")
        self.run("ip", "link", "set", "lo", "up")
        for name, value in SYSCTLS.items():
            self.sysctl(name, value)

    @property
    def pid(self):
        """A process whose namespaces are the host's, for `ip link … netns PID` and `nsenter --target PID`."""
        return self._holder.pid

    def command(self, *argv):
        """The command line that runs `argv` in the host. nsenter replaces itself, so its pid is the program's."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--uts", "--", *map(str, argv)]

    def run(self, *argv, stdin="", timeout=120):
        """Runs a program in the host to its end and returns its standard output."""
        done = subprocess.run(self.command(*argv), input=stdin, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-600:]
            raise CommandFailed(f"{argv[0]} on host {self.name} ended with {done.returncode}: {said}")
        return done.stdout

    def spawn(self, *argv, log, env=None):
        """Starts a program that runs until the host is closed; its output goes to LOG.log of the run's directory."""
        with open(self.log_dir / f"{self.name}-{log}.log", "ab") as output:
            process = subprocess.Popen(
                self.command(*argv), stdin=subprocess.DEVNULL, stdout=output, stderr=output,
                env={**os.environ, **(env or {})})
        process.label = f"{self.name}-{log}"
        self._spawned.append(process)
        return process

    def sysctl(self, name, value):
        """Sets a setting of the host's network, `name` being the path below /proc/sys."""
        self.run("sh", "-c", f"echo '{value}' > /proc/sys/{name}")

    def use_cubic(self):
        """Sets the congestion control of every IPv4 route that has none yet, the local ones included: connections get it
        from their route, whatever program opens or accepts them."""
        for line in self.run("ip", "-4", "route", "show", "table", "all").splitlines():
            # `linkdown` is a state that is shown, not one that can be set.
            route = [word for word in line.split() if word != "linkdown"]
            if route[0] not in ("broadcast", "multicast") and CONGESTION_CONTROL[0] not in route:
                self.run("ip", "route", "replace", *route, *CONGESTION_CONTROL)

    def check_alive(self):
        """Raises with the end of its log if a spawned program has ended."""
        for process in self._spawned:
            if process.poll() is not None:
                log = (self.log_dir / f"{process.label}.log").read_text(errors="replace")
                raise CommandFailed(f"{process.label} ended with {process.returncode}: {log.strip()[-600:]}")

    def close(self):
        """Ends every program of the host, newest first, and with the holder its namespaces."""
        for process in reversed(self._spawned):
            process.terminate()
        for process in reversed(self._spawned):
            try:
                process.wait(timeout=5)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._holder.stdin.close()
        self._holder.wait()


class Hosts:
    """The client's host and the server's host on one wire. A context manager; every peer gets a fresh pair, so that no
    connection, rule or TIME_WAIT of one is left to the next."""

    CLIENT_ADDRESS = "10.77.0.1"
    SERVER_ADDRESS = "10.77.0.2"

    def __init__(self, log_dir):
        self.log_dir = Path(log_dir)
        self.log_dir.mkdir(parents=True, exist_ok=True)

    def __enter__(self):
        self.client = Host("client", self.CLIENT_ADDRESS, self.log_dir)
        self.server = Host("server", self.SERVER_ADDRESS, self.log_dir)
        self.client.run("ip", "link", "add", "eth0", "type", "veth",
                        "peer", "name", "eth0", "netns", self.server.pid)
        for host in (self.client, self.server):
            host.run("ip", "address", "add", f"{host.address}/24", "dev", "eth0")
            host.run("ip", "link", "set", "eth0", "up")
        self.adopt_changes()
        return self

    def __exit__(self, *_):
        self.client.close()
        self.server.close()

    def adopt_changes(self):
        """Applies the run's network settings to what a peer has added since: its routes, and connection tracking."""
        for host in (self.client, self.server):
            host.use_cubic()
            if Path(f"/proc/sys/{CONNTRACK_TIME_WAIT}").exists():
                host.sysctl(CONNTRACK_TIME_WAIT, 5)

    def check_alive(self):
        self.client.check_alive()
        self.server.check_alive()
