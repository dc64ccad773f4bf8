"""Debian 13, whose systemd (257) notes units in sets of nftables: what the package is there, and that a unit which reaches the registry
alone is held from its first packet on, with the agent, without it and before it."""

import re

from hosts import Network
from load import PROGRAMS
from mesh import PROGRAM, access_log, has_certificate, make, service_unit
from report import until

STARTS, PORT = 20, 9999
HEARD = "/srv/heard"
DROP_IN = "/etc/systemd/system/eager.service.d/50-baremesh.conf"
MOST_EXPOSED = 2.5
REGISTER = "baremesh service register eager --port 9000 --unit eager.service"


def run(report, packages):
    """the deb on Debian 13; a unit with `--drop-in` is held from its first packet on, whether the agent runs, is gone or comes later"""
    with Network("trixie") as network:
        control, caller, server = network.boot("control", "caller", "server")
        make(control, [caller, server], {"caller": ["eager", "other"], "server": ["echo"]}, packages[0])
        version = caller.run("systemctl --version | head -1")
        report.check("the deb installs on Debian 13, with a systemd that notes units, and a mesh stands",
                     caller.run("cat /etc/debian_version").startswith("13") and int(re.match(r"systemd (\d+)", version).group(1)) >= 255, version)
        examined(report, caller)
        listens(caller, server)
        drop_in(report, caller)
        shut(report, control, caller, server)
        with_agent(report, caller, server)
        without_note(report, caller, server)
        agent_gone(report, caller, server)
        before_agent(report, caller, server)
        taken_back(report, caller)


def examined(report, host):
    """Our units, as this systemd sees them."""
    units = host.run("cd /usr/lib/systemd/system && ls baremesh*.service").split()
    said = host.tries(f"cd /usr/lib/systemd/system && systemd-analyze verify --man=no {' '.join(units)}").stdout
    report.check("systemd-analyze has nothing to say against the units", not any(unit in said for unit in units), said)
    for unit in units:
        said = host.run(f"systemd-analyze security --no-pager {unit} | tail -1")
        exposed = float(re.search(r"[\d.]+(?= [A-Z]+)", said).group())
        report.check(f"{unit} is exposed by {exposed}, and {MOST_EXPOSED} is what it may be", exposed <= MOST_EXPOSED, said)


def listens(caller, server):
    for program in ("listener.py", "first_act.py"):
        for host in (caller, server):
            host.copy(PROGRAMS / program, f"/srv/{program}")
    service_unit(server, "listener", f"/usr/bin/python3 /srv/listener.py {PORT} {HEARD}")
    service_unit(server, "echo", f"{PROGRAM} demo-shop echo 0.0.0.0:7000")
    server.run("baremesh service register echo --port 7000 --unit echo.service")
    act = f"/usr/bin/python3 /srv/first_act.py {PORT}"
    targets = f"{server.address} {server.address6}"
    caller.write("/etc/systemd/system/eager.service",
                 # systemd notes a unit of which it controls something, as it does of every one on a machine whose controllers are its own.
                 f"[Unit]\nStartLimitIntervalSec=0\n[Service]\nType=oneshot\nIPAccounting=yes\nExecStart={act} leak {targets}\nExecStart=-{PROGRAM} demo-shop call --timeout 5 echo.mesh.internal 7000 hello\n"
                 "[Install]\nWantedBy=multi-user.target\n")
    # Of no service: what it sends arrives, and what was sent before it has arrived by then.
    caller.write("/etc/systemd/system/free@.service", f"[Service]\nType=oneshot\nExecStart={act} free-%i {targets}\n")
    caller.run("systemctl daemon-reload")


def drop_in(report, caller):
    caller.write("/etc/systemd/system/other.service.d/50-baremesh.conf", "[Service]\nNice=1\n")
    said = caller.refuses("baremesh service register other --port 9001 --unit other.service --drop-in")
    report.check("a drop-in of that name that is somebody's is not overwritten, and nothing is registered",
                 "was not written by" in said and "other" not in caller.run("baremesh service list"), said)
    said = caller.refuses("baremesh service register other --port 9001 --unit shop.scope --drop-in")
    report.check("a scope takes none", "scope" in said, said)
    said = caller.run(f"{REGISTER} --drop-in 2>&1")
    report.check("registering with --drop-in says what it does, and from when on", "next start" in said and DROP_IN in said, said)
    until("there is a certificate", lambda: has_certificate(caller, "eager"))
    until("the set stands", lambda: caller.succeeds("nft list set inet baremesh_units unit.default.eager"))
    said = caller.run("systemctl show -p DropInPaths -p NeedDaemonReload -p After -p Wants eager.service")
    report.check("systemd has read it", DROP_IN in said and "NeedDaemonReload=no" in said and said.count("baremesh.service") == 2, said)
    said = caller.tries("systemd-analyze verify --man=no eager.service").stdout
    report.check("and has nothing to say against it", "50-baremesh" not in said, said)


def shut(report, control, caller, server):
    caller.run("systemctl start eager")
    until("what the unit sends arrives while nothing holds it", lambda: heard(server, "leak"))
    control.write("/root/shut.toml", '[[MeshConfig]]\noutboundTrafficPolicy = { mode = "REGISTRY_ONLY" }\n')
    control.run("baremesh apply -f /root/shut.toml")
    until("the sets hold", lambda: "@unit.default.eager goto refuse" in caller.run("nft -t list table inet baremesh_units"))
    said = caller.run("baremesh status 2>&1 || true")
    report.check("status warns of no unit that is held too late", "held only when the agent has found it" not in said, said)


def heard(server, word=""):
    """What came to the listener that has this word in its line."""
    return [line for line in server.run(f"cat {HEARD} 2>/dev/null || true").splitlines() if word in line]


def counted(caller, *names):
    listed = caller.run("nft list counters table inet baremesh_units")
    return sum(int(re.search(rf"counter {name} \{{[^}}]*?packets (\d+)", listed).group(1)) for name in names)


def starts(caller, server, number=STARTS):
    """What arrives of so many starts of the unit."""
    server.run(f": >{HEARD}")
    for _ in range(number):
        caller.run("systemctl start eager")
    return arrived(caller, server, number)


def arrived(caller, server, mark):
    """Datagrams and connections that have arrived and were not sent by a unit that is free to. It sends last, with this mark."""
    caller.run(f"systemctl start free@{mark}")
    # By UDP over both families, and what is said in a connection over each.
    until("what others send arrives", lambda: len(heard(server, f"free-{mark}")) == 4)
    lines = heard(server)
    connections = {tuple(line.split()[1:3]) for line in lines if line.startswith("said") and "free" in line}
    return [line for line in lines if not line.startswith("said") and "free" not in line and tuple(line.split()[1:3]) not in connections]


def with_agent(report, caller, server):
    before = counted(caller, "unit_stray"), counted(caller, "outbound_unit")
    came = starts(caller, server)
    report.check(f"of {STARTS} starts of a unit that sends as its first act nothing arrives", not came, came)
    after = counted(caller, "unit_stray"), counted(caller, "outbound_unit")
    report.check("the sets refused its datagrams before the agent had found the unit", after[0] > before[0], (before, after))
    report.check("the sets brought its connections to the agent before that", after[1] > before[1], (before, after))
    report.figure(f"refused by the sets: {after[0] - before[0]} packets; brought to the agent: {after[1] - before[1]} connections")
    until("what the registry has is reached, by the unit's identity",
          lambda: access_log(server, reporter="destination", source_principal="spiffe://mesh.internal/ns/default/sa/eager"))
    report.holds("what the registry has is reached, by the unit's identity")
    # A rule by the path of a unit that has ended is another to nft, until the agent has taken it out.
    shown = until("the rules are in place", lambda: (said := caller.tries("baremesh capture status")).returncode == 0 and said.stdout)
    report.check("capture status shows what the sets did", "unit_stray" in shown and "outbound_unit" in shown, shown)


def without_note(report, caller, server):
    """The counter-proof: without systemd's word the first packets are out before the agent has looked."""
    caller.run(f"sed -i /NFTSet/d {DROP_IN} && systemctl daemon-reload")
    came = starts(caller, server)
    report.check("without the line of the drop-in something arrives", came)
    report.figure(f"of {STARTS} starts without it {len(came)} packets or connections arrive")
    until("status warns of it", lambda: "held only when the agent has found it" in caller.run("baremesh status 2>&1 || true"))
    report.holds("and status warns of it")
    caller.run(f"{REGISTER} --drop-in && grep NFTSet {DROP_IN}")


def agent_gone(report, caller, server):
    caller.write("/etc/systemd/system/baremesh.service.d/stays-dead.conf", "[Service]\nRestart=no\n")
    caller.run("systemctl daemon-reload && systemctl kill --kill-whom=main -s KILL baremesh")
    until("the rules for a gone agent stand", lambda: "closed_ports" in caller.run("nft -t list table inet baremesh"))
    until("the unit has ended", lambda: not caller.is_active("baremesh"))
    # The unit would start it again.
    caller.run("systemctl mask --runtime baremesh")
    before = counted(caller, "unit_stray")
    came = starts(caller, server)
    report.check(f"with the agent killed nothing arrives of {STARTS} starts either, the service being closed", not came, came)
    report.check("the sets refused it", counted(caller, "unit_stray") > before)
    caller.run("systemctl unmask --runtime baremesh && rm /etc/systemd/system/baremesh.service.d/stays-dead.conf && systemctl daemon-reload")
    caller.run("systemctl start baremesh")
    came = starts(caller, server, 3)
    report.check("nor with the agent back", not came, came)


def before_agent(report, caller, server):
    """The unit starts at boot, and no agent does: rules of the boot alone."""
    caller.run("systemctl enable eager && systemctl restart baremesh && systemctl mask baremesh && systemctl add-wants sysinit.target baremesh-boot.service")
    server.run(f": >{HEARD}")
    caller.reboot()
    until("the unit has run", lambda: caller.run("systemctl show -p ExecMainExitTimestamp --value eager"))
    report.check("after a boot no agent runs", not caller.is_active("baremesh"))
    at_boot = arrived(caller, server, "boot")
    came = starts(caller, server, 5)
    report.check("what a unit sends while the host boots, and later, does not arrive before there is an agent", not came and not at_boot, at_boot + came)
    report.check("the sets refused it", counted(caller, "unit_stray") > 0)
    caller.run("systemctl unmask baremesh && systemctl start baremesh")
    until("the agent is up", lambda: caller.is_active("baremesh"))


def taken_back(report, caller):
    caller.run(REGISTER)
    gone = "test ! -e /etc/systemd/system/eager.service.d && test -z \"$(systemctl show -p DropInPaths --value eager)\""
    report.check("registered again without --drop-in, nothing of it is left with systemd", caller.succeeds(gone))
    caller.run(f"{REGISTER} --drop-in && test -e {DROP_IN} && baremesh service deregister eager")
    report.check("nor after deregistering", caller.succeeds(gone))
    until("the table goes with the last service that is told by a unit", lambda: not caller.succeeds("nft list table inet baremesh_units"))
    caller.run(f"{REGISTER} --drop-in && test -e {DROP_IN}")
    caller.run("echo 'baremesh baremesh/remove-state boolean true' | debconf-set-selections && apt purge -y baremesh")
    report.check("nor after a purge that takes the registrations, and no table is left", caller.succeeds(f"test ! -e {DROP_IN}") and "baremesh" not in caller.run("nft list tables"))
    caller.run("grep -q Nice /etc/systemd/system/other.service.d/50-baremesh.conf")
    report.holds("somebody else's drop-in is as it was")
