"""What stands on the disk: no room, no writing, damage, and keys that others could read."""

import time

from report import until

from .stage import doctor_names, is_well, metric, now, ready, says, setting, status

STATE = "/var/lib/baremesh"
LOGS = "/var/log/baremesh"


def on_its_own(host, where, size):
    """Puts a directory of the agent's on a small file system of its own."""
    host.run(f"systemctl stop baremesh && cp -a {where} /srv/aside && mount -t tmpfs -o size={size},mode=0700 tmpfs {where} && "
             f"cp -a /srv/aside/. {where}/ && rm -r /srv/aside && systemctl start baremesh")


def back(host, where):
    host.run(f"systemctl stop baremesh && cp -a {where} /srv/aside && umount {where} && cp -a /srv/aside/. {where}/ && "
             "rm -r /srv/aside && systemctl start baremesh")


def change_the_mesh(stage):
    """A change that reaches every agent: a state that has to be kept."""
    stage.changes = getattr(stage, "changes", 0) + 1
    stage.control.write("/root/change.toml", f'[[ServiceEntry]]\nname = "change"\nhosts = ["change{stage.changes}.example"]\n'
                        'ports = [{ number = 80, name = "http", protocol = "HTTP" }]\nlocation = "MESH_EXTERNAL"\nresolution = "NONE"\n')
    stage.control.run("baremesh apply -f /root/change.toml")
    return stage.changes


def disk_full(stage):
    """the disk of the state directory is full"""
    report, server = stage.report, stage.server
    on_its_own(server, STATE, "24M")
    stage.flows("the load flows over a small disk")
    begin, moment = time.monotonic(), now()
    server.refuses(f"cat /dev/zero >{STATE}/filler")
    change_the_mesh(stage)
    line = says(server, "the state is in force and not on disk", moment)
    report.check("the log names the file and the reason", f"cannot write {STATE}/last-good.state" in line and "No space left" in line, line)
    doctor_names(stage, server, "disk_full")
    report.check("it is ready all the same", ready(server)[0] == "200", ready(server))
    stage.undisturbed("calls go on over a full disk", begin)
    moment = now()
    server.run("systemctl restart baremesh")
    stage.flows("calls go on after a restart on a full disk")
    report.holds("an agent that restarts on a full disk serves")
    server.run(f"rm {STATE}/filler")
    stage.heals("once there is room the state is on the disk", lambda: is_well(server))
    back(server, STATE)
    stage.flows("the load flows")


def logs_full(stage):
    """the disk of the access log is full"""
    report, server = stage.report, stage.server
    setting(server, "access_log", f'"{LOGS}/access.log"')
    on_its_own(server, LOGS, "1M")
    stage.flows("the load flows")
    begin, moment = time.monotonic(), now()
    server.refuses(f"cat /dev/zero >{LOGS}/filler")
    line = says(server, "access log lines could not be written", moment)
    report.check("the log says so with the reason", "No space left on device" in line, line)
    lost = until("lines are counted", lambda: metric(server, "baremesh_dropped_log_lines_total"))
    report.check("lines that are lost are counted in baremesh_dropped_log_lines_total", lost > 0, lost)
    stage.flows("calls go on")
    stage.undisturbed("calls go on with no room for the access log", begin)
    server.run(f"rm {LOGS}/filler")
    size = int(server.run(f"stat -c %s {LOGS}/access.log"))
    stage.heals("once there is room lines are written again", lambda: int(server.run(f"stat -c %s {LOGS}/access.log")) > size)
    server.run(f"cp /srv/agent.toml /etc/baremesh/agent.toml && systemctl restart baremesh && umount -l {LOGS}")
    stage.flows("the load flows")


def read_only(stage):
    """the state directory is read-only"""
    report, server = stage.report, stage.server
    on_its_own(server, STATE, "24M")
    stage.flows("the load flows")
    begin, moment = time.monotonic(), now()
    server.run(f"mount -o remount,ro {STATE}")
    change_the_mesh(stage)
    line = says(server, "the state is in force and not on disk", moment)
    report.check("the log names the file and the reason", f"cannot write {STATE}/last-good.state" in line and "Read-only file system" in line, line)
    found = doctor_names(stage, server, "state_unwritable")
    report.check("doctor says that it is mounted so", "is mounted read-only" in found["state_unwritable"], found)
    stage.undisturbed("calls go on", begin)
    server.run(f"mount -o remount,rw {STATE}")
    stage.heals("once it can be written to doctor has nothing to say", lambda: is_well(server))
    server.run(f"mount -o remount,ro {STATE} && systemctl restart baremesh")
    stage.flows("calls go on after a restart")
    report.holds("an agent that restarts with a read-only state directory serves")
    # systemd gives each start mounts of its own, as they are then.
    server.run(f"mount -o remount,rw {STATE} && systemctl reload baremesh")
    stage.heals("it writes again after a reload", lambda: is_well(server))
    back(server, STATE)
    stage.flows("the load flows")


def damaged(stage):
    """the last good state is damaged, and certificates are cut short"""
    report, server = stage.report, stage.server
    moment = now()
    server.run(f"systemctl stop baremesh && printf x | dd of={STATE}/last-good.state bs=1 seek=300 conv=notrunc status=none && systemctl start baremesh")
    line = says(server, "the last good state cannot be used; the control server is asked for a new one", moment)
    report.check("the log names the file", f"{STATE}/last-good.state is damaged" in line, line)
    stage.heals("with a new state from the control server it serves", lambda: stage.flows("the load flows", count=1))
    doctor_names(stage, server)

    certificate = f"{STATE}/certificates/default.shop.pem"
    moment = now()
    server.run(f"systemctl stop baremesh && truncate -s 100 {certificate} && systemctl start baremesh")
    line = says(server, "a kept certificate", moment)
    report.check("a certificate that is cut short is named", certificate in line and "is damaged" in line, line)
    stage.heals("with a new certificate it serves", lambda: stage.flows("the load flows", count=1))
    stage.heals("the new certificate is in the file", lambda: server.succeeds(f"test $(stat -c %s {certificate}) -gt 500"))

    credential = f"{STATE}/node/node.pem"
    moment, begin = now(), time.monotonic()
    server.run(f"cp -p {credential} /srv/node.pem && systemctl stop baremesh && truncate -s 100 {credential} && systemctl start --no-block baremesh")
    line = says(server, credential, moment)
    report.check("without the whole node credential the agent does not start, and says how the host joins again",
                 "join the mesh again with a token made by `baremesh token create --rejoin`" in line, line)
    until("the unit is started again and again", lambda: int(server.run("systemctl show -p NRestarts --value baremesh")) >= 2)
    code, said = status(server)
    report.check("`baremesh status` ends with 3: nobody answers", code == 3, f"{code}: {said}")
    doctor_names(stage, server, "agent_down", "rules_gone")
    server.run(f"cp -p /srv/node.pem {credential}")
    stage.heals("with the file as it was the agent starts by itself", lambda: stage.flows("the load flows", count=1))
    stage.refused_meanwhile("while no agent ran", begin)


def exposed(stage):
    """keys have another owner, or a mode that lets others read them"""
    report, server = stage.report, stage.server
    credential, certificate = f"{STATE}/node/node.pem", f"{STATE}/certificates/default.shop.pem"
    for what, spoil, mend, text in (
        ("mode 0644", f"chmod 644 {credential}", f"chmod 600 {credential}", f"so others than its owner can use this secret: run `chmod 600 {credential}`"),
        ("another owner", f"chown nobody {credential}", f"chown root {credential}", f"cannot read {credential}: Permission denied"),
    ):
        moment, begin = now(), time.monotonic()
        server.run(f"{spoil} && systemctl restart --no-block baremesh")
        line = says(server, text, moment)
        report.check(f"a node credential with {what} keeps the agent from starting: {text}", text in line, line)
        until("closed services are refused", lambda: stage.lines(begin) and not stage.lines(begin)[-1].ok())
        server.run(mend)
        stage.heals("with the mode and owner that it should have the agent starts by itself", lambda: stage.flows("the load flows", count=1))
        stage.refused_meanwhile("while no agent ran", begin)
    moment, begin = now(), time.monotonic()
    server.run(f"chmod 644 {certificate} && systemctl restart baremesh")
    line = says(server, "a kept certificate is not used", moment)
    report.check("a service's certificate with mode 0644 is not used, and named", f"run `chmod 600 {certificate}`" in line, line)
    stage.heals("with a new certificate it serves", lambda: stage.flows("the load flows", count=1))
    stage.heals("the file is the agent's alone again", lambda: server.run(f"stat -c %a {certificate}") == "600")
