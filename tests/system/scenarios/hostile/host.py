"""What happens to the host and its units: clocks, boots, rules, ports, limits, names, and agents that hang or are two."""

import json
import time
from pathlib import Path

from load import PROGRAMS
from mesh import call
from report import until

from .stage import PORT, SHOP, doctor_finds, doctor_names, drop_in, is_well, metric, no_drop_in, now, ready, said_at, says, status

FAKETIME = "/usr/lib/faketime.so"


def clock(stage):
    """the called host's clock is set back by a day, and forward by a day"""
    report, server, caller = stage.report, stage.server, stage.caller
    server.copy(library(), FAKETIME)
    server.write("/etc/faketimerc", "+0\n")
    # Set clocks leave the monotonic one alone.
    drop_in(server, "clock", f"[Service]\nEnvironment=LD_PRELOAD={FAKETIME} FAKETIME_TIMESTAMP_FILE=/etc/faketimerc "
                             "FAKETIME_CACHE_DURATION=1 DONT_FAKE_MONOTONIC=1\n")
    stage.flows("the load flows under a clock that can be set")
    for by, what, text in (("-1d", "a day behind", "this host's clock is behind, or the control server's ahead"),
                           ("+1d", "a day ahead", "by this host's clock: compare the clocks of both hosts")):
        begin = time.monotonic()
        server.write("/etc/faketimerc", f"{by}\n")
        stage.heals(f"with a clock {what} the agent is not ready, with the reason",
                    lambda: (said := ready(server))[0] == "503" and "no certificate for" in said[1])
        if by == "-1d":
            stage.flows("calls go on", ("name4", "name6"))
            stage.undisturbed("calls go on over tunnels that stand", begin)
        # Other tunnels.
        caller.run("systemctl reload baremesh")
        moment = now()
        says(caller, '"response_code_details":"handshake_failed"', moment)
        report.holds("new tunnels are refused, the caller's log has handshake_failed")
        begin = time.monotonic()
        until("calls fail", lambda: len(stage.errors(begin)) == 4)
        through = [line for line in stage.lines(begin) if line.ok() and line.way != "kept"]
        report.check("no new call comes through", not through, through[:4])
        found = doctor_finds(server, {"clock_skew", "not_ready"}.issubset, "clock_skew and not_ready")
        report.holds("doctor finds `clock_skew` and `not_ready`")
        report.check("and which clock is wrong", text in found["clock_skew"] and "timedatectl" in found["clock_skew"], found)
        server.write("/etc/faketimerc", "+0\n")
        stage.heals("with the right time again calls go on", lambda: stage.flows("the load flows", count=1))
        stage.heals("it is ready", lambda: ready(server)[0] == "200")
    stage.heals("doctor has nothing to say", lambda: is_well(server), 120)
    no_drop_in(server, "clock")
    stage.flows("the load flows")


def library():
    """The library that gives a program another clock, of this machine: hosts have the same Debian."""
    return next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))


def without_control(stage):
    """the control server is gone when the host boots"""
    report, server = stage.report, stage.server
    stage.control.run("systemctl stop baremesh-control")
    stage.reboot(server)
    stage.heals("a host that boots without its control server is called again", lambda: stage.flows("the load flows", count=1))
    until("it is ready", lambda: server.is_active("baremesh"))
    # Its first attempt to reach the control server may still be under way.
    until("it knows that the control server is away", lambda: "not in reach" in status(server)[1])
    code, said = status(server)
    report.check("`baremesh status`: ready, and the last state stays in force", "ready         yes" in said and code == 0
                 and "control, not in reach: the last state stays in force" in said, f"{code}: {said}")
    report.check("it says so to who asks for readiness", ready(server)[0] == "200", ready(server))
    doctor_names(stage, server, "registry_away", "control_port")
    report.check("baremesh_registry_connected is 0", metric(server, "baremesh_registry_connected") == 0)
    stage.control.run("systemctl start baremesh-control")
    stage.heals("the agent finds its control server when it is back", lambda: metric(server, "baremesh_registry_connected") == 1)
    doctor_names(stage, server)


def rules_flushed(stage):
    """somebody removes all rules"""
    report, server, caller = stage.report, stage.server, stage.caller
    for host in (server, caller):
        begin, moment = time.monotonic(), now()
        host.run("nft flush ruleset")
        line = says(host, "the capture rules were changed by somebody else, and were put back", moment)
        report.check(f"the {host.name}'s log says who did it", "nft" in line, line)
        stage.heals("rules stand", lambda host=host: host.succeeds("baremesh capture status"))
        doctor_names(stage, host, "rules_restored")
        report.check("baremesh_capture_restored_total counts it", metric(host, "baremesh_capture_restored_total") >= 1)
        stage.flows("the load flows")
        report.figure(f"lost meanwhile: {stage.errors(begin) or 'nothing'}; answers in plaintext to an outsider: {len(stage.intruded(begin))}")
        # Who connected before may be answered for so long.
        back = said_at(host, "were put back", moment) + 1
        late = [at for at in stage.intruded(begin) if at > back]
        report.check("no outsider is answered once the rules are back", not late, late)
    for host in (server, caller):
        host.run("systemctl restart baremesh")
    stage.flows("the load flows")


HOLDER = "import socket, sys, time; s = socket.socket(); s.setsockopt(1, 2, 1); s.bind((\"0.0.0.0\", int(sys.argv[1]))); s.listen(); time.sleep(1e6)"


def port_taken(stage):
    """another program has a port of the agent's while that is down"""
    report, server = stage.report, stage.server
    for port in (15001, 15008):
        begin = time.monotonic()
        server.run("systemctl stop baremesh")
        server.run(f"systemd-run --quiet --unit=holder python3 -c '{HOLDER}' {port}")
        until("the program has the port", lambda: server.succeeds(f"ss -Hltn 'sport = :{port}' | grep -q ."))
        moment = now()
        server.run("systemctl start --no-block baremesh")
        line = says(server, f"port {port} is taken by", moment)
        report.check("the log names port and process at once", f"port {port} is taken by process" in line or "of user 0" in line, line)
        line = says(server, "end what has it, or give the agent another port in agent.toml", moment)
        report.holds("and ends with what to do")
        found = doctor_names(stage, server, "port_taken", "agent_down", "rules_gone")
        report.check("doctor names port and program", str(port) in found["port_taken"] and "python3" in found["port_taken"], found)
        code, said = status(server)
        report.check("`baremesh status` ends with 3", code == 3, f"{code}: {said}")
        server.run("systemctl stop holder")
        stage.heals("when the program ends, the agent starts by itself", lambda: stage.flows("the load flows", count=1))
        stage.refused_meanwhile("while no agent ran", begin)


def descriptors(stage):
    """the agent has few descriptors, and many connections come"""
    report, server, caller = stage.report, stage.server, stage.caller
    moment = now()
    drop_in(server, "descriptors", "[Service]\nLimitNOFILE=300\n")
    line = says(server, "fewer connections are taken at once than `max_connections`", moment)
    report.check("the log says at the start how many are taken", "LimitNOFILE" in line and "lowered_to" in line, line)
    report.figure(line[line.find("fewer"):])
    stage.flows("the load flows with few descriptors")
    doctor_names(stage, server, "descriptors_low")
    begin, moment = time.monotonic(), now()
    caller.copy(PROGRAMS / "hold.py", "/srv/hold.py")
    caller.run(f"systemd-run --quiet --unit=hold --property=LimitNOFILE=4096 python3 /srv/hold.py {SHOP} {PORT} 400 /srv/held")
    line = says(server, '"response_code_details":"overloaded"', moment)
    fields = json.loads(line)
    report.check("who is refused is refused with the reason and the limit's name", "max_connections" in fields["connection_termination_details"], line)
    held = until("the crowd knows", lambda: caller.succeeds("test -e /srv/held") and caller.run("cat /srv/held"))
    report.figure(held)
    doctor_names(stage, server, "descriptors_low")
    report.check("the agent runs on", server.is_active("baremesh"))
    stage.undisturbed("a connection that was open goes on", begin, ("kept",))
    caller.run("systemctl stop hold")
    stage.heals("when they have gone, others are served again", lambda: stage.flows("the load flows", count=1))
    no_drop_in(server, "descriptors")
    stage.flows("the load flows")


ONLY_CALLERS = """\
[[AuthorizationPolicy]]
name = "only-callers"
namespace = "default"
action = "ALLOW"
rules = [{ from = [{ source = { principals = ["mesh.internal/ns/default/sa/callers"] } }] }]
"""


def unit_renamed(stage):
    """the calling service's unit gets another name"""
    report, caller, server = stage.report, stage.caller, stage.server
    stage.control.write("/root/only.toml", ONLY_CALLERS)
    stage.control.run("baremesh apply -f /root/only.toml")
    until("the policy is in force", lambda: call(caller, "stranger", SHOP, PORT).returncode != 0)
    stage.flows("the load flows under a policy that lets the service in alone")
    moment = now()
    caller.run("systemctl stop callers && cd /etc/systemd/system && mv callers.service renamed.service && systemctl daemon-reload && systemctl start renamed")
    begin = time.monotonic()
    until("its calls are refused", lambda: len([line for line in stage.lines(begin) if not line.ok()]) > 3)
    report.check("under another name nothing comes through", not [line for line in stage.lines(begin) if line.ok()], stage.lines(begin)[:3])
    line = says(server, '"response_code_details":"denied"', moment)
    report.check("the called side's log has the host as the caller", json.loads(line)["source_principal"].endswith("/ns/hosts/sa/caller"), line)
    line = says(caller, '"response_code_details":"denied_by_peer"', moment)
    report.holds("the caller's log has the reason denied_by_peer")
    found = doctor_names(stage, caller, "no_process")
    report.check("doctor names unit and service", "callers" in found["no_process"] and "callers.service" in found["no_process"], found)
    caller.run("baremesh service register callers --port 9000 --unit renamed.service")
    stage.heals("registered anew with its name it is the service again", lambda: stage.flows("the load flows", count=1))
    doctor_names(stage, caller)
    caller.run("systemctl stop renamed && cd /etc/systemd/system && mv renamed.service callers.service && systemctl daemon-reload && "
               "systemctl start callers && baremesh service register callers --port 9000 --unit callers.service")
    stage.control.run("baremesh delete AuthorizationPolicy only-callers -n default")
    stage.flows("the load flows")


def stopped(stage):
    """the agent is stopped by a signal, and stays so"""
    report, server = stage.report, stage.server
    report.check("the unit has a watchdog of 30 s", server.run("systemctl show -p WatchdogUSec --value baremesh") == "30s")
    begin, moment, old = time.monotonic(), now(), server.main_pid("baremesh")
    server.run(f"kill -STOP {old}")
    report.check("nobody answers to who asks for readiness", ready(server)[0] == "000", ready(server))
    until("calls fail", lambda: [line for line in stage.lines(begin) if not line.ok()])
    report.figure(f"programs see {stage.errors(begin)}")
    until("another agent runs", lambda: server.main_pid("baremesh") not in (0, old))
    report.figure(f"the service manager started another after {time.monotonic() - begin:.1f} s")
    says(server, "Watchdog timeout", moment, unit="baremesh")
    report.holds("systemd's log says why: Watchdog timeout")
    stage.heals("calls go on", lambda: stage.flows("the load flows", count=1))
    report.figure(f"{time.monotonic() - begin:.1f} s after the agent stood still")
    doctor_names(stage, server)


def hostname(stage):
    """the machine gets another name"""
    report, server = stage.report, stage.server
    begin = time.monotonic()
    server.run("hostnamectl set-hostname elsewhere")
    report.check("the machine has it", server.run("hostname") == "elsewhere")
    stage.flows("the load flows")
    stage.undisturbed("calls go on under another name of the machine", begin)
    server.run("systemctl restart baremesh")
    stage.flows("the load flows after a restart")
    said = status(server)[1]
    report.check("the host keeps the name that it joined under", said.startswith("Agent of host server "), said)
    doctor_names(stage, server)
    server.run("hostnamectl set-hostname server")


def two_agents(stage):
    """another agent is started by hand, and by another unit"""
    report, server = stage.report, stage.server
    begin, old = time.monotonic(), server.main_pid("baremesh")
    done = server.tries("baremesh agent", 60)
    report.check("a second agent that is started by hand ends with 1", done.returncode == 1, f"{done.returncode}: {done.stdout}")
    report.figure(done.stdout.strip().splitlines()[-1])
    report.check("and says that an agent runs already, and what to do", "error: an agent runs on this host already (port 15053 is taken by" in done.stdout
                 and "`systemctl reload baremesh` has a new one take its place" in done.stdout, done.stdout)
    stage.undisturbed("calls were not disturbed by it", begin)
    begin = time.monotonic()
    server.run("sed 's/^Type=notify/Type=exec/' /usr/lib/systemd/system/baremesh.service >/etc/systemd/system/second.service && "
               "systemctl daemon-reload && systemctl start --no-block second")
    until("the second unit's agent gives up", lambda: int(server.run("systemctl show -p NRestarts --value second")) >= 1, 60)
    says(server, "an agent runs on this host already", 0, unit="second")
    report.holds("the second unit's log says so too")
    server.run("systemctl stop second; rm /etc/systemd/system/second.service; systemctl daemon-reload")
    report.check("the first agent is the same process, and runs", server.main_pid("baremesh") == old and server.is_active("baremesh"))
    report.check("its rules stand", server.succeeds("baremesh capture status"))
    stage.flows("the load flows")
    # The second unit ran what places the rules for a gone agent, at each of its ends.
    report.check("no call is lost by its ends", not stage.errors(begin), f"{stage.errors(begin)}")
    stage.heals("doctor has nothing to say", lambda: is_well(server))
