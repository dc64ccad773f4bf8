"""What a constant load feels of reloads, upgrades, restarts and the agent's death, on the caller's host and on the server's."""

import time

from hosts import Network
from load import PROGRAMS, SERVICES, Load, figures, losses
from mesh import access_log, drain_for, installed_version, make, program_of, upgrade
from report import Broken, until

RELOADS = RESTARTS = 20
UPGRADES = 5
# Reloads follow each other for longer than the unit's watchdog waits, in seconds.
WATCHED = 45
KILLS = 4
# Connections that are in line when an agent is killed.
WAITING = 8
# Longer than the scenario takes, so that streams which are open all the time are never out of it.
LONG_DRAIN = 900


def mesh_under_load(network, package, drain):
    """A control host, and two members with the load between them; each carries what is open for `drain` seconds."""
    control, caller, server = network.boot("control", "caller", "server")
    shop, callers = SERVICES
    make(control, [caller, server], {"caller": [callers], "server": [shop]}, package)
    for host in (caller, server):
        drain_for(host, drain)
        host.run("systemctl reload baremesh")
    return caller, server, Load(caller, server)


def gentle(report, packages):
    """20 reloads and more, and 5 upgrades, under a load of six kinds: no request fails and no stream is cut"""
    first, *later = packages
    with Network() as network:
        caller, server, load = mesh_under_load(network, first, LONG_DRAIN)
        begin, number = time.monotonic(), 0
        while number < RELOADS or time.monotonic() - begin < WATCHED:
            host = (caller, server)[number % 2]
            number += 1
            before = host.main_pid("baremesh")
            host.run("systemctl reload baremesh")
            until(f"the {host.name}'s main process is another", lambda host=host, before=before: host.main_pid("baremesh") not in (0, before))
            nothing_is_lost(load, f"reload {number}, of the {host.name}'s")
            load.goes_on()
        report.holds(f"{number} reloads, half of them at each end, lose nothing, and each has another process serve")
        figures(report, load.counts())
        for number in range(UPGRADES):
            package = (*later, first)[number % 3]
            host = (server, caller)[number % 2]
            upgrade(host, package)
            until(f"the {host.name} runs {package.version}",
                  lambda host=host, package=package: program_of(host, "baremesh") == package.digest)
            load.goes_on()
            nothing_is_lost(load, f"upgrade {number + 1}, of the {host.name} to {package.version}")
            report.check(f"the {host.name} has {package.version}, and what runs is its program",
                         installed_version(host) == f"{package.version}-1")
        counts = load.end()
        figures(report, counts)
        report.check("no request failed, no connection was refused and no stream was cut", not losses(counts), losses(counts))
        for host in (caller, server):
            until(f"the {host.name}'s old agents end with the last stream", lambda host=host: agents(host) == 1)
        report.holds("agents that were taken over from end with what they carried")


def agents(host):
    """How many agents run on the host."""
    return int(host.run("pgrep -fc '^/usr/bin/baremesh agent' || true"))


def nothing_is_lost(load, when):
    lost = losses(load.counts())
    if lost:
        raise Broken(f"{when}: {lost}")


def abrupt(report, packages):
    """20 restarts and the agent's death under a load of six kinds: what is open may end, and what comes or waits is answered

    Until the rules stand again after a death, new connections are refused, as docs/operating.md says."""
    with Network() as network:
        caller, server, load = mesh_under_load(network, packages[0], 1)
        for number in range(RESTARTS):
            host = (caller, server)[number % 2]
            before = host.main_pid("baremesh")
            host.run("systemctl restart baremesh")
            is_another(host, before)
            load.goes_on()
            nothing_new_is_lost(load, f"restart {number + 1}, of the {host.name}'s")
        report.holds(f"{RESTARTS} restarts, half of them at each end, refuse no connection and fail no request, and names resolve all the time")
        figures(report, load.counts())
        for number in range(KILLS):
            # One that took over is no child that systemd started.
            for host in (caller, server) if number % 2 else ():
                host.run("systemctl reload baremesh")
            killed_with_a_line_waiting(caller)
            killed(server)
            load.goes_on()
        report.holds(f"{KILLS} times the agents at both ends were killed, and the {WAITING} connections that waited in line at the caller's "
                     "were answered by the next one")
        figures(report, load.end())


def nothing_new_is_lost(load, when):
    """With what the caller's agent says of connections that it did not answer, while that is in its log's last lines."""
    refused = losses(load.counts(), ["failed", "refused", "unnamed"])
    if refused:
        unanswered = [line for line in access_log(load.caller, reporter="source", protocol="TCP")
                      if '"bytes_sent":0,' in line and '"response_flags":"-"' not in line]
        raise Broken(f"{when}: {refused}: " + "\n".join(["the caller's agent says:", *unanswered]))


def is_another(host, before):
    """Waits until the unit's main process is another than `before`."""
    until(f"the {host.name}'s main process is another", lambda: host.main_pid("baremesh") not in (0, before) and host.is_active("baremesh"))


def killed(host):
    old = host.main_pid("baremesh")
    host.run(f"kill -KILL {old}")
    is_another(host, old)


def killed_with_a_line_waiting(host):
    """Kills an agent that has been held still while connections of its host came."""
    sent, ended = "/run/waits.sent", "/run/waits.ended"
    host.copy(PROGRAMS / "waits.py", "/srv/waits.py")
    # Its names are the agent's as well.
    shop = host.run(f"rm -f {sent} {ended}; getent ahostsv4 shop.mesh.internal | cut -d' ' -f1 | head -1")
    old = host.main_pid("baremesh")
    host.run(f"kill -STOP {old}")
    try:
        host.run(f"systemd-run --quiet --collect --unit=waits sh -c 'python3 /srv/waits.py {shop} 7001 {WAITING} {sent} >{ended} 2>&1; "
                 f"echo $? >>{ended}'")
        until("lines are sent", lambda: host.succeeds(f"test -e {sent}"))
    finally:
        host.run(f"kill -KILL {old}")
    is_another(host, old)
    said = until("the lines that waited have ended", lambda: host.tries(f"grep -qE '^[0-9]+$' {ended} && cat {ended}").stdout)
    if said.strip() != "0":
        raise Broken(f"of connections that waited when the agent was killed: {said}")
