"""Who kills the agent, and who comes before it."""

import time

from report import until

from .stage import doctor_names


def killed(stage):
    """the agent is killed while its rules stand, at either end"""
    report = stage.report
    for host in (stage.server, stage.caller):
        begin, old = time.monotonic(), host.main_pid("baremesh")
        host.run("systemctl kill --kill-who=main -s KILL baremesh")
        until("another agent runs", lambda: host.main_pid("baremesh") not in (0, old))
        until("it is ready", lambda: host.is_active("baremesh"))
        stage.heals(f"after a SIGKILL of the {host.name}'s agent calls go on", lambda: stage.flows("the load flows", count=1))
        gap, way = stage.gap(begin)
        report.check(f"no way was shut for longer than 15 s: {gap:.1f} s for {way}", gap < 15, stage.errors(begin))
        doctor_names(stage, host)


# Stands in for the program: it fails when it is run for the first time since the boot.
FAILS_ONCE = """#!/bin/sh
[ -e /run/tried ] && exec /usr/bin/baremesh.real "$@"
touch /run/tried
exit 1
"""
BOOT_DROP_IN = "etc/systemd/system/baremesh-boot.service.d/tries.conf"


def first_attempt_fails(stage):
    """the called host boots, and the first attempt at its rules fails"""
    server = stage.server
    server.run("mv /usr/bin/baremesh /usr/bin/baremesh.real")
    server.write("usr/bin/baremesh", FAILS_ONCE, 0o755)
    # To remember that it has been run.
    server.write(BOOT_DROP_IN, "[Service]\nReadWritePaths=/run\n")
    reboot(stage)
    stage.report.check("an attempt has failed, and the unit has not", server.succeeds("test -e /run/tried") and server.is_active("baremesh-boot"))
    server.run(f"mv /usr/bin/baremesh.real /usr/bin/baremesh; rm -r /{BOOT_DROP_IN.rpartition('/')[0]}; systemctl daemon-reload")


def reboot(stage):
    """the called host boots: its rules stand before its services"""
    report, server = stage.report, stage.server
    stage.reboot(server)
    stage.heals("calls go on after a boot", lambda: stage.flows("the load flows", count=1))
    rules = int(server.run("systemctl show -p ExecMainExitTimestampMonotonic --value baremesh-boot"))
    shop = int(server.run("systemctl show -p ExecMainStartTimestampMonotonic --value shop"))
    report.check(f"the rules of the last run stood {(shop - rules) / 1e6:.2f} s before the service started", 0 < rules < shop, f"{rules} {shop}")
