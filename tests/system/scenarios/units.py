"""Whose calls are whose, by systemd's units of every kind; and what holds while a host boots."""

from hosts import Network
from load import PROGRAMS
from mesh import PROGRAM, access_log, has_certificate, make, service_unit
from report import until

ECHO, PORT = "echo.mesh.internal", 7000
CALL = f"{PROGRAM} demo-shop call {ECHO} {PORT}"
# Each is registered on the caller by its unit, or otherwise as it is said.
SERVICES = {
    "plain": "--unit plain.service",
    "dynamic": "--unit dynamic.service",
    "first": "--unit app@1.service",
    "forking": "--unit forking.service",
    "activated": "--unit activated.service",
    "each": "--cgroup /system.slice/system-each.slice",
    "renamed": "--unit old.service",
    "early": "--unit early.service",
}
FETCH = "import socket, sys; print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 60).makefile().read())"
HOST_ITSELF = "ns/hosts/sa/caller"


def run(report, packages):
    """attribution by unit through restarts, sockets, DynamicUser=, templates, users' units, forks and another name; boots"""
    with Network() as network:
        control, caller, server = network.boot("control", "caller", "server")
        make(control, [caller, server], {"caller": list(SERVICES), "server": ["echo", "open"]}, packages[0])
        service_unit(server, "echo", f"{PROGRAM} demo-shop echo 0.0.0.0:{PORT}")
        service_unit(server, "open", f"{PROGRAM} demo-shop echo 0.0.0.0:7100")
        server.run(f"baremesh service register echo --port {PORT} --unit echo.service")
        server.run("baremesh service register open --port 7100 --unit open.service --when-gone open")
        for number, (name, places) in enumerate(SERVICES.items()):
            caller.run(f"baremesh service register {name} --port {9000 + number} {places}")
        for name in SERVICES:
            until(f"there is a certificate for {name}", lambda name=name: has_certificate(caller, name))
        until("the echo is called", lambda: probe(caller, f"{CALL} hello"))
        seen = Seen(caller, server)
        # Else it would be taken for the next connection's.
        until("that is in the called side's log", seen.lines)
        kinds(report, caller, server, seen)
        users_unit(report, caller, seen)
        another_name(report, caller, seen)
        first_connection(report, caller, seen)
        closed_while_booting(report, control, caller, server)
        without_control(report, control, caller, seen)


class Seen:
    """Who the called side saw."""

    def __init__(self, caller, server):
        self.caller, self.server = caller, server

    def lines(self):
        return access_log(self.server, reporter="destination", destination_principal="spiffe://mesh.internal/ns/default/sa/echo")

    def by(self, act):
        """The identity of the connection that `act()` makes, without its trust domain."""
        before = len(self.lines())
        act()
        line = until("the called side's log has the connection", lambda: self.lines()[before:])[-1]
        return line.split('"source_principal":"spiffe://mesh.internal/')[1].split('"')[0]

    def by_start_of(self, unit):
        return self.by(lambda: self.caller.run(f"systemctl start {unit}"))


def once(host, unit, settings="", command=f"{CALL} hello"):
    """A unit that calls when it is started, and ends."""
    host.write(f"/etc/systemd/system/{unit}", f"[Service]\nType=oneshot\nExecStart={command}\n{settings}\n")


def probe(host, command):
    """Whether a command succeeds in a unit that is no service. One that is only let into the host from outside has a cgroup
    that nobody there can see."""
    return host.as_unit("probe", command).returncode == 0


def expect(report, statement, seen, wanted):
    report.check(statement, seen == wanted, f"the called side saw {seen}, not {wanted}")


def service(name):
    return f"ns/default/sa/{name}"


def kinds(report, caller, server, seen):
    once(caller, "plain.service")
    once(caller, "dynamic.service", "DynamicUser=yes\n")
    once(caller, "app@.service", command=f"{CALL} %i")
    caller.write("/etc/systemd/system/forking.service",
                 f"[Service]\nType=forking\nExecStart=/bin/sh -c '(setsid sh -c \"sleep 0.2; {CALL} child; exec sleep 1000\" &)'\n")
    caller.copy(PROGRAMS / "activated.py", "/srv/activated.py")
    port = 9000 + list(SERVICES).index("activated")
    caller.write("/etc/systemd/system/activated.socket", f"[Socket]\nListenStream=127.0.0.1:{port}\n")
    caller.write("/etc/systemd/system/activated.service", f"[Service]\nExecStart=/usr/bin/python3 /srv/activated.py {ECHO} {PORT}\n")
    each = 9000 + list(SERVICES).index("each")
    caller.write("/etc/systemd/system/each.socket", f"[Socket]\nListenStream=127.0.0.1:{each}\nAccept=yes\n")
    caller.write("/etc/systemd/system/each@.service", f"[Service]\nStandardInput=socket\nExecStart={CALL} hello\n")
    caller.run("systemctl daemon-reload && systemctl start activated.socket each.socket")

    for time in ("first", "second", "third"):
        expect(report, f"a unit's {time} start calls as its service", seen.by_start_of("plain"), service("plain"))
    expect(report, "a unit with DynamicUser=yes does", seen.by_start_of("dynamic"), service("dynamic"))
    expect(report, "an instance of a template does", seen.by_start_of("app@1"), service("first"))
    expect(report, "another instance of it is not that service", seen.by_start_of("app@2"), HOST_ITSELF)
    expect(report, "what a forking service left behind in another session does", seen.by_start_of("forking"), service("forking"))
    caller.run("systemctl stop forking")

    caller.refuses("systemctl is-active activated.service")
    def fetch(name, port):
        said = server.as_unit("probe", f"python3 -c '{FETCH}' {name}.mesh.internal {port}")
        report.check(f"{name} answers a call of the mesh", said.returncode == 0 and said.stdout.strip() in ("activated", "hello"),
                     said.stdout + "\n".join(access_log(server, reporter="source")[-2:] + access_log(caller, reporter="destination")[-2:]))

    expect(report, "a service that a call of the mesh starts by its socket (Accept=no) does",
           seen.by(lambda: fetch("activated", port)), service("activated"))
    expect(report, "instances that a socket starts (Accept=yes) do, by the cgroup of their template's slice",
           seen.by(lambda: fetch("each", each)), service("each"))


def users_unit(report, caller, seen):
    """A user's own unit of the same name is not the system's."""
    caller.run("useradd --create-home alice && loginctl enable-linger alice")
    caller.write("/home/alice/.config/systemd/user/plain.service", f"[Service]\nType=oneshot\nExecStart={CALL} hello\n")
    caller.run("chown -R alice: /home/alice")
    start = "runuser -u alice -- env XDG_RUNTIME_DIR=/run/user/$(id -u alice) systemctl --user start plain.service"
    until("alice's service manager runs", lambda: caller.succeeds("test -S /run/user/$(id -u alice)/systemd/private"))
    expect(report, "a user's unit of that name calls as the host alone", seen.by(lambda: caller.run(start)), HOST_ITSELF)


def another_name(report, caller, seen):
    once(caller, "old.service")
    caller.run("systemctl daemon-reload")
    expect(report, "a unit under its old name calls as its service", seen.by_start_of("old"), service("renamed"))
    caller.run("mv /etc/systemd/system/old.service /etc/systemd/system/new.service && systemctl daemon-reload")
    expect(report, "under a name that nobody registered it calls as the host alone", seen.by_start_of("new"), HOST_ITSELF)
    port = 9000 + list(SERVICES).index("renamed")
    caller.run(f"baremesh service register renamed --port {port} --unit new.service")
    until("the new name counts", lambda: seen.by_start_of("new") == service("renamed"))
    report.holds("registered anew, it calls as its service again")


def first_connection(report, caller, seen):
    """The drop-in of docs/operating.md: a program that does not start before the mesh does."""
    once(caller, "early.service", "[Install]\nWantedBy=multi-user.target\n")
    caller.write("/etc/systemd/system/early.service.d/override.conf", "[Unit]\nWants=baremesh.service\nAfter=baremesh.service\n")
    caller.run("systemctl daemon-reload && systemctl enable early.service")
    expect(report, "the first connection of a unit after baremesh.service, at boot, carries its identity",
           seen.by(caller.reboot), service("early"))
    caller.run("systemctl is-active baremesh; test \"$(systemctl show -p Result --value early)\" = success")
    caller.run("systemctl disable early.service")


def closed_while_booting(report, control, caller, server):
    """Power is lost, and the agent is slow to come. Rules for that boot are kept when an agent starts or stops."""
    server.run("systemctl restart baremesh")
    server.write("/srv/hold", "")
    server.write("/etc/systemd/system/baremesh.service.d/slow.conf",
                 "[Service]\nExecStartPre=/bin/sh -c 'while test -e /srv/hold; do sleep 0.1; done'\n")
    server.cut_power()
    server.start_booting()
    until("both programs listen", lambda: server.succeeds(f"ss -Hltn | grep ':{PORT} ' && ss -Hltn | grep ':7100 '"))
    report.check("the agent does not run yet", not server.is_active("baremesh"))
    reached = "python3 -c 'import socket, sys; c = socket.create_connection((sys.argv[1], int(sys.argv[2])), 20); c.sendall(b\"x\\n\"); sys.exit(c.recv(2) != b\"x\\n\")'"
    leaks = []
    for host in (control, caller):
        for address in (server.address, server.address6):
            # From the caller its own agent dials the tunnel, which nobody answers.
            leaks += [] if not probe(host, f"{reached} {address} {PORT}") else [f"{address} from {host.name}"]
    leaks += [] if not probe(server, f"{reached} 127.0.0.1 {PORT}") else ["itself"]
    report.check("before the agent is up after a power failure, a closed service is refused, to others and on its host", not leaks, leaks)
    report.check("the agent still does not run", not server.is_active("baremesh"))
    control.run(f"{reached} {server.address} 7100")
    report.holds("an open one is reached, as without a mesh")
    (server.root / "srv/hold").unlink()
    until("the agent is up", lambda: server.is_active("baremesh"))
    until("the closed service is called", lambda: probe(caller, f"{CALL} hello"))
    report.holds("with the agent, it is called")


def without_control(report, control, caller, seen):
    control.run("systemctl stop baremesh-control")
    caller.reboot()
    until("the agent is ready", lambda: caller.is_active("baremesh"))
    said = caller.run("baremesh status || true")
    report.check("a host that boots without its control server is ready from the last good state", "ready         yes" in said, said)
    expect(report, "and its units call as their services", seen.by_start_of("plain"), service("plain"))
