"""A mesh of two members, one of which is hurt while the other calls it: what the caller, an outsider and the wire see."""

import json
import re
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from hosts import cgroup2
from load import PROGRAMS
from mesh import install, service_unit, token_in
from report import Broken, until

PORT = 7000
CONTROL = "control.example"
SHOP = "shop.mesh.internal"
WAYS = ("name4", "name6", "address", "kept")
# What steady.py sends to the service's name, and to its host's own address.
MARKS = ("what-is-said-within-the-mesh", "what-is-said-to-an-address")
# Conditions in which no agent says goodbye to its control server, or is silent for longer than its lease.
STRICTLY = ("killed", "dns-dead", "half-open", "two-agents")
DROP_INS = "etc/systemd/system/baremesh.service.d"


@dataclass(frozen=True)
class Line:
    """One line that was sent: when, which way, what became of it, and how long that took."""

    at: float
    way: str
    said: str
    took: float

    def ok(self):
        return self.said == "ok"


class Stage:
    """The hosts. `server` runs the service shop, closed when its agent is gone; `caller` calls it steadily; `control` is the
    control host, and an outsider who tries the shop in plaintext all the time."""

    def __init__(self, network, report):
        self.network, self.report = network, report
        # What has been read of the caller's lines, and how many bytes that was.
        self.read, self.bytes_read = [], 0
        # Who looks at the wire, by the file with what they have seen.
        self.wires = {}

    def set(self, package):
        self.control, self.caller, self.server = self.network.boot("control", "caller", "server")
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda host: install(host, package), self.network.hosts))
        self.control.run(f"baremesh init --address {CONTROL}:15012 && systemctl enable --now baremesh-control")
        for host, service in ((self.caller, "callers"), (self.server, "shop")):
            self.join(host, service)
        service_unit(self.server, "shop", f"/usr/bin/baremesh demo-shop echo [::]:{PORT}")
        self.server.run(f"baremesh service register shop --port {PORT} --unit shop.service")
        self.caller.run("baremesh service register callers --port 9000 --unit callers.service")
        for host in (self.caller, self.server):
            self.wire(host)
        self.caller.copy(PROGRAMS / "steady.py", "/srv/steady.py")
        service_unit(self.caller, "callers", f"/usr/bin/python3 /srv/steady.py {SHOP} {PORT} {self.server.address} /srv/steady")
        self.control.copy(PROGRAMS / "intruder.py", "/srv/intruder.py")
        service_unit(self.control, "intruder", f"/usr/bin/python3 /srv/intruder.py {PORT} /srv/intruded "
                                               f"{self.server.address} {self.server.address6}")
        self.flows("the load flows")

    def join(self, host, service):
        # The control host has a name with both families.
        host.run(f"printf '%s {CONTROL}\\n' {self.control.address} {self.control.address6} >>/etc/hosts")
        # What is open when an agent stops is not what is looked at here.
        host.run("sed -i 's/^#* *drain_seconds = .*/drain_seconds = 1/' /etc/baremesh/agent.toml && "
                 "grep -q '^drain_seconds = 1$' /etc/baremesh/agent.toml")
        token = token_in(self.control.run(f"baremesh token create --service {service}"))
        host.run(f"baremesh join {CONTROL} --token {token} && systemctl enable --now baremesh")

    def wire(self, host):
        """Looks at what goes over a host's cable, from its side of the switch. Anew after each boot, since the cable is."""
        file = self.network.place / f"wire-{host.name}-{len(self.wires)}"
        process = subprocess.Popen(["ip", "netns", "exec", f"{self.network.tag}-sw", sys.executable, PROGRAMS / "wire.py",
                                    f"p-{host.name}", file, *MARKS], stdout=subprocess.DEVNULL)
        self.wires[file] = process

    def reboot(self, host):
        host.power_off()
        host.start_booting()
        self.wire(host)
        until("it has booted", lambda: host.state() in ("running", "degraded"), 180)

    def end_wire(self):
        for process in self.wires.values():
            process.kill()
            process.wait()

    def go(self, name, condition):
        """One condition, on hosts that are well."""
        print(f"  {name}: {condition.__doc__}", flush=True)
        self.flows("the load flows before it")
        begin, readable = time.monotonic(), self.readable()
        condition(self)
        if name != "rules-flushed":
            self.nothing_leaked(begin, readable, name in STRICTLY)
        self.report.figure(f"{time.monotonic() - begin:.0f} s")

    # --- what is seen ---

    def heals(self, statement, condition, patience=90):
        """What has to come by itself, and how long that took."""
        begin = time.monotonic()
        until(statement, condition, patience)
        self.report.holds(f"{statement} (after {time.monotonic() - begin:.1f} s)")

    def refused_meanwhile(self, when, since):
        """Calls that did not come through since then were refused or reset: none was answered by somebody else."""
        errors = self.errors(since)
        self.report.check(f"{when} calls were refused", errors, self.lines(since)[:4])
        self.report.check("nobody else answered one", not any("another answer" in said for of_way in errors.values() for said in of_way), errors)
        self.report.figure(f"programs saw {errors}")

    def lines(self, since):
        """The lines that were begun since then, and have ended."""
        file = self.caller.root / "srv/steady"
        # The program makes it when it has started.
        if file.exists():
            with open(file, "rb") as written:
                written.seek(self.bytes_read)
                # The last one may be half of it.
                whole = written.read().rpartition(b"\n")[0]
            for text in whole.decode(errors="replace").splitlines():
                at, way, said, took = text.split("\t")
                self.read.append(Line(float(at), way, said, float(took)))
            self.bytes_read += len(whole) + 1 if whole else 0
        return [line for line in self.read if line.at >= since]

    def ended(self, since, ways=WAYS):
        """The lines of these ways that were begun since then, with those that are under way: each way has one that was begun after
        now."""
        begin = time.monotonic()

        def missing():
            return set(ways) - {line.way for line in self.lines(begin)}

        try:
            until("each way has a line that was begun since", lambda: not missing(), 60)
        except Broken as error:
            raise Broken(f"{error}: there is none of {sorted(missing())}") from error
        return [line for line in self.lines(since) if line.way in ways]

    def flows(self, what, ways=WAYS, patience=90, count=3):
        """Waits until `count` lines have come back each of these ways, one after the other, since now; how long it took."""
        begin = time.monotonic()

        def well():
            lines = self.lines(begin)
            last = {way: [line.ok() for line in lines if line.way == way][-count:] for way in ways}
            return all(len(some) == count and all(some) for some in last.values())

        try:
            until(what, well, patience)
        except Broken as error:
            raise Broken(f"{error}: {self.errors(begin)}") from error
        return time.monotonic() - begin

    def errors(self, since):
        """What went wrong since then, by way: each error with its count."""
        return errors_of(self.lines(since))

    def undisturbed(self, statement, since, ways=WAYS):
        """No line was lost since then, and there were some of each way."""
        lines = self.ended(since, ways)
        lost = errors_of(lines)
        self.report.check(f"{statement} ({len(lines)} lines, none lost)", not lost, lost)

    def gap(self, since, ways=WAYS):
        """The longest time since then in which no line of one of these ways came back, in seconds, with the way."""
        longest = (0.0, "")
        for way in ways:
            last = since
            for line in self.lines(since):
                if line.way == way and line.ok():
                    end = line.at + line.took
                    longest = max(longest, (end - last, way))
                    last = end
        return longest

    def readable(self):
        """How many packets have gone over the wire until now, and in how many of them could be read what is said to the service's
        name, and what is said to its host's own address."""
        now = time.monotonic()

        def looked_at():
            counts = [file.read_text().split() for file in self.wires if file.exists()]
            return counts if len(counts) == len(self.wires) and all(float(count[0]) > now for count in counts) else None

        counts = until("what went over the wire has been looked at", looked_at)
        return tuple(sum(int(count[place]) for count in counts) for place in (1, 2, 3))

    def intruded(self, since=0.0):
        """When the outsider got an answer in plaintext."""
        file = self.control.root / "srv/intruded"
        # The last line may be half of one.
        whole = file.read_text().split("\n")[:-1] if file.exists() else []
        times = [float(line.split("\t")[0]) for line in whole]
        return [at for at in times if at >= since]

    def nothing_leaked(self, since, before, strictly=False):
        """By what was `readable()` before. `strictly`: not by the host's own address either, which is one of the mesh while its
        agent announces it, and anybody's when that has said goodbye."""
        packets, by_name, by_address = (now - then for now, then in zip(self.readable(), before))
        self.report.check("nothing that is said to a name of the mesh was readable on the wire", packets and not by_name, f"{by_name} of {packets}")
        if strictly:
            self.report.check("nor what is said to the host's own address", by_address == 0, by_address)
        elif by_address:
            self.report.figure(f"{by_address} packets to the host's own address were readable, while its agent did not announce it")
        answered = self.intruded(since) if self.control.is_active("intruder") else ["nobody tries any more"]
        self.report.check("no outsider was answered in plaintext", not answered, answered[:9])


def errors_of(lines):
    """What went wrong of these lines, by way: each error with its count."""
    found = {}
    for line in lines:
        if not line.ok():
            found.setdefault(line.way, {}).setdefault(line.said, 0)
            found[line.way][line.said] += 1
    return found


# --- what an operator sees ---

def status(host):
    """What `baremesh status` says, and its exit code."""
    said = host.tries("baremesh status")
    return said.returncode, said.stdout


def ready(host):
    """What the endpoint of readiness answers: the code, and the text."""
    said = host.tries("curl -s -m 5 -w '\\n%{http_code}' http://127.0.0.1:15021/healthz/ready")
    text, _, code = said.stdout.rpartition("\n")
    return code, text.strip()


def metric(host, name):
    """The sum of a metric's series; none where there is no such metric."""
    said = host.tries("curl -s -m 5 http://127.0.0.1:15020/metrics").stdout
    values = re.findall(rf"^{name}(?:{{.*}})? ([0-9.e+]+)$", said, re.MULTILINE)
    return sum(map(float, values)) if values else None


def doctor(host):
    """The findings of `baremesh doctor`, by code; and its exit code."""
    said = host.tries("baremesh doctor -o json")
    try:
        found = json.loads(said.stdout)
    except ValueError as error:
        raise Broken(f"{host.name}: baremesh doctor says {said.stdout[-2000:]}") from error
    # The outsider, and that this machine's own limit of descriptors may be low, are always there.
    usual = ("plaintext_refused",) if " of 300 descriptors" in said.stdout else ("plaintext_refused", "descriptors_low")
    return said.returncode, {one["code"]: one["seen"] for one in found["findings"] if one["code"] not in usual}


def is_well(host):
    """Whether the doctor has nothing to say."""
    found = doctor(host)[1]
    time.sleep(1 if found else 0)
    return not found


def doctor_names(stage, host, *codes):
    """Waits until the doctor finds these codes, and no other; what it saw of each."""
    found = doctor_finds(host, set(codes).__eq__, " and ".join(codes) or "nothing")
    named = " and ".join(f"`{code}`" for code in codes) or "nothing wrong"
    stage.report.holds(f"doctor on the {host.name} finds {named}")
    return found


def doctor_finds(host, right, what):
    """Waits until the doctor finds what is right, by a set of codes; what it saw of each."""
    found = {}

    def finds():
        nonlocal found
        found = doctor(host)[1]
        if right(set(found)):
            return True
        # It asks the control server, which answers so many times a minute.
        time.sleep(1)
        return False

    try:
        until(f"doctor on {host.name} finds {what}", finds, 60)
    except Broken as error:
        raise Broken(f"{error}: {found}") from error
    return found


def says(host, text, since, unit="baremesh", patience=60):
    """Waits until the journal of a unit has a text since a moment of `now()`; the line."""
    def found():
        lines = host.run(f"journalctl --no-pager -o cat -u {unit} --since '@{since:.6f}'").splitlines()
        return next((line for line in lines if text in line), None)

    try:
        return until(f"{host.name}'s {unit} says {text!r}", found, patience)
    except Broken as error:
        said = host.run(f"journalctl --no-pager -o cat -u {unit} --since '@{since:.6f}' | grep -v '\"reporter\"' | tail -20")
        raise Broken(f"{error}; it says {said}") from error


def said_at(host, text, since):
    """When the agent's journal got the first line with a text since a moment of `now()`, on the machine's monotonic clock."""
    lines = host.run(f"journalctl --no-pager -o short-monotonic -u baremesh --since '@{since:.6f}'").splitlines()
    return next(float(re.match(r"\[ *([0-9.]+)\]", line).group(1)) for line in lines if text in line)


def now():
    """This moment, for journals."""
    return time.time()


def setting(host, key, value):
    """Sets a key that is a comment in the agent.toml of the package, which is put aside."""
    host.run("cp /etc/baremesh/agent.toml /srv/agent.toml")
    file = host.root / "etc/baremesh/agent.toml"
    text, count = re.subn(rf"(?m)^# {key} = .*$", f"{key} = {value}", file.read_text())
    if count != 1:
        raise Broken(f"{host.name}: agent.toml has {count} lines `# {key} = …`")
    file.write_text(text)


def drop_in(host, name, text, act="restart"):
    """Lays a drop-in for the agent's unit down, and restarts it."""
    host.write(f"{DROP_INS}/{name}.conf", text)
    host.run(f"systemctl daemon-reload && systemctl {act} baremesh")


def no_drop_in(host, name, act="restart"):
    (host.root / DROP_INS / f"{name}.conf").unlink()
    host.run(f"systemctl daemon-reload && systemctl {act} baremesh")


def unit_cgroup(host, unit):
    """The cgroup of a host's unit, as this machine sees it."""
    return cgroup2() / host.cgroup.relative_to(cgroup2()) / "payload/system.slice" / unit
