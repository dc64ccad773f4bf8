"""A mesh of namespace hosts, brought up through the command line as an operator would: a control host, and hosts that
join it with tokens, each with a real agent."""

import http.client
import json
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

from baremesh import flags
from hosts import CommandFailed, Host

CONTROL_ADDRESS = "10.0.0.200"
PREFIX = 16
# Every condition that is waited for comes within a second on an idle machine.
SECONDS = 60

# The API groups of kinds, where they are not about networking.
GROUPS = {kind: "security.istio.io" for kind in ("AuthorizationPolicy", "PeerAuthentication", "RequestAuthentication")}

# Answers what it is sent, with its name first, on loopback alone: only an agent reaches it.
ECHO = """
import asyncio, sys
name, ports = sys.argv[1].encode(), sys.argv[2:]
async def echo(reader, writer):
    data = await reader.read(100)
    if data:
        writer.write(name + b":" + data)
        await writer.drain()
    writer.close()
async def main():
    servers = [await asyncio.start_server(echo, "127.0.0.1", int(port)) for port in ports]
    print("listening", flush=True)
    await asyncio.gather(*(server.serve_forever() for server in servers))
asyncio.run(main())
"""

# Prints what Prometheus would be told.
METRICS = """
import urllib.request
print(urllib.request.urlopen("http://127.0.0.1:15020/metrics", timeout=10).read().decode())
"""

# Says how a connection went, as its client sees it.
CALL = """
import socket, sys
address, port = sys.argv[1], int(sys.argv[2])
try:
    with socket.create_connection((address, port), timeout=10) as stream:
        stream.sendall(b"hello")
        data = b""
        while chunk := stream.recv(100):
            data += chunk
    print("answered", data.decode() if data else "nothing")
except TimeoutError:
    print("timeout")
except OSError as error:
    print("closed", error)
"""


def wait_until(what, condition):
    """Waits for a condition, and returns what it came to."""
    until = time.monotonic() + SECONDS
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > until:
            raise CommandFailed(f"{what}: not after {SECONDS} s")
        time.sleep(0.05)


class Mesh:
    """The control host and the bridge that all hosts are on. A context manager: nothing of it stays. `resources` are files
    that are there before the mesh is made, by their names."""

    def __init__(self, binary, directory, resources):
        self.binary = str(binary)
        self.directory = Path(directory)
        self.members = []
        self._links = 0
        self._resources = resources

    def __enter__(self):
        for argv in (["ip", "link", "set", "lo", "up"], ["ip", "link", "add", "bridge", "type", "bridge"],
                     ["ip", "link", "set", "bridge", "up"]):
            subprocess.run(argv, check=True)
        self.control = self.host("control", CONTROL_ADDRESS)
        registry = self.place("control") / "config/registry"
        registry.mkdir(parents=True)
        for name, text in self._resources.items():
            (registry / name).write_text(text)
        self.operate("init")
        self.control.spawn(self.binary, *flags(self.place("control")), "control", log="control")
        wait_until("the control server answers", lambda: self.status() is not None)
        return self

    def __exit__(self, *_):
        for member in self.members:
            member.close()
        self.control.close()
        # A namespace that ends takes its links with it, but at the kernel's leisure, and the next mesh has the same names.
        for number in range(1, self._links + 1):
            subprocess.run(["ip", "link", "delete", f"host{number}"], check=False, stderr=subprocess.DEVNULL)
        subprocess.run(["ip", "link", "delete", "bridge"], check=True)

    def place(self, name):
        return self.directory / name

    def host(self, name, address):
        """A host with this address, and nothing on it."""
        logs = self.directory / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        host = Host(name, address, logs)
        self._links += 1
        link = f"host{self._links}"
        subprocess.run(["ip", "link", "add", link, "type", "veth", "peer", "name", "eth0", "netns", str(host.pid)],
                       check=True)
        subprocess.run(["ip", "link", "set", link, "up", "master", "bridge"], check=True)
        host.run("ip", "address", "add", f"{address}/{PREFIX}", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        return host

    def operate(self, *argv, stdin=""):
        """A command of the operator on the control host."""
        return self.control.run(self.binary, *flags(self.place("control")), *argv, stdin=stdin)

    def status(self):
        """What the control server says of itself and of the hosts."""
        return ask(self.place("control") / "run/control.sock", "/status")

    def join(self, name, address, services):
        """A host that joined with a token for these services, with its agent ready."""
        granted = [word for service in services for word in ("--service", service)]
        token = json.loads(self.operate("token", "create", "-o", "json", *granted))["token"]
        member = Member(self, name, address)
        self.members.append(member)
        member.baremesh("join", CONTROL_ADDRESS, "--token", token, "--host", name)
        member.start()
        return member

    def apply(self, resources):
        """Puts resources in force, on every host."""
        self.operate("apply", "-f", "-", stdin=manifest(resources))
        self.wait_until_in_force()

    def delete(self, resource):
        self.operate("delete", resource["kind"], resource["name"], "-n", resource["ns"])

    def wait_until_in_force(self):
        """Waits until every host has said that it took the newest state."""
        def taken():
            status = self.status()
            hosts = status["hosts"]
            return len(hosts) == len(self.members) and all(
                (host["acked"] or 0) >= status["stateVersion"] for host in hosts)
        wait_until("every host has the newest state", taken)


class Member:
    """A host of the mesh."""

    def __init__(self, mesh, name, address):
        self.mesh, self.name, self.address = mesh, name, address
        self.host = mesh.host(name, address)
        self.place = mesh.place(name)
        self.webs = {}

    def baremesh(self, *argv):
        return self.host.run(self.mesh.binary, *flags(self.place), *argv)

    def start(self):
        (self.place / "config").mkdir(parents=True, exist_ok=True)
        (self.place / "config/agent.toml").write_text('[dns]\nmode = "off"\n')
        self.host.spawn(self.mesh.binary, *flags(self.place), "agent", log="agent")
        wait_until(f"the agent of {self.name} is ready", lambda: (self.ask("/status") or {}).get("ready"))

    def serve(self, name, ports):
        """A program on loopback that answers on these ports."""
        self.host.spawn(sys.executable, "-c", ECHO, name, *ports, log="echo")
        log = self.host.log_dir / f"{self.host.name}-echo.log"
        wait_until(f"the echo of {name} listens", lambda: "listening" in log.read_text())

    def spawn_web(self, label, name, addresses):
        """The shop's HTTP server on these addresses; one of the same label before it is ended first."""
        log = self.host.log_dir / f"{self.host.name}-{label}.log"
        before = log.read_text().count("listening on") if log.exists() else 0
        if label in self.webs:
            self.webs[label].kill()
            self.webs[label].wait()
        self.webs[label] = self.host.spawn(self.mesh.binary, "demo-shop", "web", name, *addresses, log=label)
        wait_until(f"{name} listens", lambda: log.read_text().count("listening on") == before + len(addresses))

    def requests_of(self, label):
        """The requests that a server has seen."""
        text = (self.host.log_dir / f"{self.host.name}-{label}.log").read_text()
        return [json.loads(line) for line in text.splitlines() if line.startswith("{") and line.endswith("}")]

    def get(self, words):
        """What the shop's HTTP client says of one request."""
        return get(self, self.mesh.binary, words)

    def endpoints(self, service):
        """The endpoints of a service that the agent knows."""
        known = next((one for one in self.ask("/services") or [] if one["service"] == service), None)
        return known["endpoints"] if known else []

    def address_of(self, service):
        """A virtual address of a service."""
        known = next((one for one in self.ask("/services") or [] if one["service"] == service), None)
        if known is None or not known["addresses"]:
            raise CommandFailed(f"{self.name} knows no service {service}")
        return min(known["addresses"], key=lambda address: ":" in address)

    def ask(self, path):
        """What the agent's socket answers; None while it does not."""
        return ask(self.place / "run/agent.sock", path)

    def metric(self, name):
        """A metric without labels, as Prometheus is told; None while it is not."""
        text = self.host.run(sys.executable, "-c", METRICS)
        return next((float(line.split(" ")[1]) for line in text.splitlines() if line.startswith(f"{name} ")), None)

    def log(self):
        """The lines of the access log."""
        text = (self.host.log_dir / f"{self.host.name}-agent.log").read_text(errors="replace")
        found = []
        for line in text.splitlines():
            if line.startswith("{"):
                try:
                    found.append(json.loads(line))
                except ValueError:
                    pass  # The last line is being written.
        return [line for line in found if "reporter" in line]

    def close(self):
        self.host.close()


def get(caller, binary, words):
    """What the shop's HTTP client says of one request from a member, or from a host outside of the mesh."""
    host = caller.host if isinstance(caller, Member) else caller
    argv = host.command(binary, "demo-shop", "get", *words)
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)
    try:
        return json.loads(done.stdout)
    except ValueError:
        raise CommandFailed(f"get {words}: {done.stdout}{done.stderr}") from None


def call(host, address, port):
    """How a connection went: `answered NAME:hello`, `answered nothing`, `closed REASON` or `timeout`."""
    return host.run(sys.executable, "-c", CALL, address, port).strip()


def manifest(resources):
    """Resources of the cases' compact form as Istio's YAML, of which JSON is a part."""
    return "\n---\n".join(
        json.dumps({
            "apiVersion": f"{GROUPS.get(resource['kind'], 'networking.istio.io')}/v1", "kind": resource["kind"],
            "metadata": {"name": resource["name"], "namespace": resource["ns"]}, "spec": resource["spec"],
        }, indent=1) for resource in resources)


class UnixConnection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(SECONDS)
        self.sock.connect(self.host)


def ask(path, target):
    """What a Unix socket answers to a GET; None while nothing answers."""
    try:
        connection = UnixConnection(str(path))
        connection.request("GET", target, headers={"Host": "cases"})
        response = connection.getresponse()
        body = response.read()
        return json.loads(body) if response.status == 200 else None
    except (OSError, ValueError, http.client.HTTPException):
        return None


def label(text):
    """A host's name made of a workload's."""
    return re.sub(r"[^a-z0-9]+", "-", text)
