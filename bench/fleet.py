"""What `bench/scale` starts: a control server on one host, and on the other the process with every agent's control connection."""

import json
import signal
import subprocess
import time
from pathlib import Path

from hosts import Host

# As many as in bench/fleet/src/mesh.rs.
NAMESPACES = 20
# The addresses of the agents, all of them local to their host: each agent speaks from its own, as the server wants to see it.
AGENTS = "100.64.0.0/10"
CONTROL_PORT = 15012
READY_SECONDS = 120


class Failed(Exception):
    """Something that is measured did not come to its end."""


class Server:
    """`baremesh control` on the server's host, with directories of its own."""

    def __init__(self, hosts, binary, logs, agents):
        self.host, self.binary, self.place = hosts.server, binary, logs / "control"
        self.address = hosts.server.address
        hosts.client.run("ip", "route", "add", "local", AGENTS, "dev", "lo")
        hosts.server.run("ip", "route", "add", AGENTS, "via", hosts.client.address)
        # Thousands that come back at once are known to the kernel before the server has taken them.
        for host in (hosts.client, hosts.server):
            host.sysctl("net/core/somaxconn", "4096")
            # Each agent has an address of its own, hence a neighbour entry nowhere but on the wire's one link.
            host.sysctl("net/ipv4/tcp_max_syn_backlog", str(max(4096, 2 * agents)))
        self._run("init", "--trust-domain", "mesh.internal")
        self.process = None

    @property
    def pid(self):
        return self.process.pid

    @property
    def socket(self):
        return self.place / "run" / "control.sock"

    def start(self):
        """Starts it, and returns when it answers."""
        self.process = self.host.spawn(self.binary, *self._flags(), "control", "--listen", f"{self.address}:{CONTROL_PORT}",
                                       log="control")
        until = time.monotonic() + READY_SECONDS
        while True:
            try:
                return self.status()
            except Failed as error:
                if time.monotonic() > until or self.process.poll() is not None:
                    raise Failed(f"the control server does not answer: {error}") from None
                time.sleep(0.05)

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def apply(self, text):
        self._run("apply", "-f", "-", stdin=text)

    def status(self):
        """How every host stands. Whether all is well, which the command's exit code says, is not asked here."""
        command = self.host.command(self.binary, *self._flags(), "status", "-o", "json")
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        answer = json.loads(done.stdout) if done.stdout.startswith("{") else {}
        if not answer.get("control"):
            raise Failed(f"the control server does not say how hosts stand: {done.stderr.strip()[-600:]}")
        return answer["control"]

    def _flags(self):
        return ["--config-dir", str(self.place / "config"), "--state-dir", str(self.place / "state"), "--run-dir",
                str(self.place / "run")]

    def token(self, host):
        """A token with which that host joins."""
        return self._run("token", "create", "--host", host).split()[0]

    def _run(self, *words, stdin=""):
        command = self.host.command(self.binary, *self._flags(), *words)
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=600)
        if done.returncode != 0:
            raise Failed(f"baremesh {' '.join(words)}: {(done.stderr.strip() or done.stdout.strip())[-600:]}")
        return done.stdout


class Fleet:
    """The process with every agent's control connection, told what to do line by line."""

    def __init__(self, hosts, server, options):
        words = ["follow", f"{server.address}:{CONTROL_PORT}", server.socket, options.agents, options.services, options.endpoints,
                 options.subscribe]
        command = hosts.client.command(options.fleet, *words)
        self.agents = options.agents
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, order):
        """Gives one order and returns its answer."""
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise Failed(f"the fleet has ended at {order!r}")
        answer = json.loads(line)
        if "error" in answer:
            raise Failed(f"{order!r}: {answer['error']}")
        return answer

    def await_whole(self, seconds):
        """Waits until every agent holds all that it asked for."""
        answer = self.ask(f"await-whole {seconds}")
        if answer["whole"] < self.agents:
            raise Failed(f"{answer['whole']} of {self.agents} agents hold the whole state after {seconds} s: {answer['reasons']}")
        return answer

    def close(self):
        self.process.stdin.close()
        self.process.wait()


class RealAgents:
    """Agents as hosts run them, each on a host of its own with capture in place, joined to the same control server. Each runs one
    endpoint of a service that all of them are."""

    SERVICE, NAMESPACE, PORT = "real", "t0", 8080

    def __init__(self, server, binary, logs, count):
        self.server, self.hosts, self.processes = server, [], []
        try:
            for number in range(count):
                self._start(binary, logs, number)
        except BaseException:
            self.close()
            raise

    @property
    def pids(self):
        return [process.pid for process in self.processes]

    def _start(self, binary, logs, number):
        name = f"real{number}"
        near, far = f"10.78.{number}.1", f"10.78.{number}.2"
        host = Host(name, far, logs)
        self.hosts.append(host)
        self.server.host.run("ip", "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", host.pid)
        self.server.host.run("ip", "address", "add", f"{near}/30", "dev", name)
        self.server.host.run("ip", "link", "set", name, "up")
        host.run("ip", "address", "add", f"{far}/30", "dev", "eth0")
        host.run("ip", "link", "set", "eth0", "up")
        host.run("ip", "route", "add", "default", "via", near)
        place = logs / name
        flags = ["--config-dir", place / "config", "--state-dir", place / "state", "--run-dir", place / "run"]
        token = self.server.token(name)
        host.run(binary, *flags, "join", "--host", name, "--token", token, f"{self.server.address}:{CONTROL_PORT}")
        registrations = place / "config" / "registrations.d"
        registrations.mkdir(parents=True, exist_ok=True)
        with open(place / "config" / "agent.toml", "a") as settings:
            settings.write('[dns]\nmode = "off"\n[telemetry]\naccess_log = "off"\n')
        (registrations / f"{self.NAMESPACE}.{self.SERVICE}.toml").write_text(
            f'name = "{self.SERVICE}"\nnamespace = "{self.NAMESPACE}"\nports = [{{ port = {self.PORT}, protocol = "HTTP" }}]\n')
        self.processes.append(host.spawn(binary, *flags, "agent", log="agent"))

    def await_newest(self, seconds):
        """Waits until each has put the newest state in force, and says how long that was."""
        began = time.monotonic()
        while True:
            for host in self.hosts:
                host.check_alive()
            behind = self._behind()
            if not behind:
                return time.monotonic() - began
            if time.monotonic() - began > seconds:
                raise Failed(f"real agents that have not put the newest state in force: {', '.join(behind)}")
            time.sleep(0.1)

    def _behind(self):
        status = self.server.status()
        known = {host["host"]: host for host in status["hosts"]}
        faults = []
        for host in self.hosts:
            stands = known.get(host.name, {})
            if stands.get("nack"):
                raise Failed(f"{host.name} refused a state: {stands['nack']}")
            if not stands.get("registrations") or stands.get("acked") != status["stateVersion"]:
                faults.append(f"{host.name} ({stands.get('acked')} of {status['stateVersion']})")
        return faults

    def close(self):
        for host in self.hosts:
            host.close()


def asks_for(agent, service, options):
    """Whether an agent asks for a service's endpoints, as in bench/fleet/src/mesh.rs."""
    if options.subscribe == "all":
        return True
    count = min(options.subscribe, options.services)
    return (service - agent * options.subscribe) % options.services < count


def grants():
    """Every host may be every service of the bench."""
    services = ", ".join(f'"*.t{n}"' for n in range(NAMESPACES))
    return f'[[HostGrant]]\nname = "bench"\nhost = "*"\nservices = [{services}]\n'


def policies(count, services):
    return "".join(policy(f"p{n}", n % services, f"/v{n}/*") for n in range(count))


def policy(name, service, path):
    return (f'[[AuthorizationPolicy]]\nname = "{name}"\nnamespace = "t{service % NAMESPACES}"\naction = "ALLOW"\n'
            f'selector = {{ matchLabels = {{ app = "s{service}" }} }}\n'
            f'rules = [{{ from = [{{ source = {{ namespaces = ["t{(service + 1) % NAMESPACES}"] }} }}], '
            f'to = [{{ operation = {{ paths = ["{path}"] }} }}] }}]\n')
