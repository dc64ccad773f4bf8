"""A mesh of booted hosts, made with the packages and the commands that the manual gives."""

import re
import shlex

PROGRAM = "/usr/bin/baremesh"


def bring(host, package):
    """Lays a package into the host's /srv, and says where."""
    host.copy(package.deb, f"/srv/{package.deb.name}")
    return f"/srv/{package.deb.name}"


def install(host, package):
    return host.run(f"apt install -y {bring(host, package)}")


def upgrade(host, package):
    """Installs over what is there. Who answers nobody's questions says beforehand that a changed agent.toml stays."""
    return host.run(f"apt install -y --allow-downgrades -o Dpkg::Options::=--force-confold {bring(host, package)}")


def token_in(said):
    return re.search(r"bm1\.\S+", said).group()


def make(control, members, services, package):
    """A mesh: `control` is its control host, and `members` join; `services` are the names that each member is granted,
    by host name."""
    for host in (control, *members):
        install(host, package)
    control.run(f"baremesh init --address {control.address}:15012 && systemctl enable --now baremesh-control")
    for host in members:
        join(control, host, services.get(host.name, ()))


def join(control, host, services):
    granted = " ".join(f"--service {name}" for name in services)
    # It speaks with the control server over IPv4, which so knows nothing of its other address.
    token = token_in(control.run(f"baremesh token create {granted} --address {host.address6}"))
    host.run(f"baremesh join {control.address} --token {token} && systemctl enable --now baremesh")


def drain_for(host, seconds):
    """Has the agent carry what is open for so long when it stops or hands over, from its next start or reload on."""
    host.run(f"sed -i 's/^#* *drain_seconds = .*/drain_seconds = {seconds}/' /etc/baremesh/agent.toml && "
             f"grep -q '^drain_seconds = {seconds}$' /etc/baremesh/agent.toml")
    host.write("/etc/systemd/system/baremesh.service.d/drain.conf", f"[Service]\nTimeoutStopSec={seconds + 60}\n")
    host.run("systemctl daemon-reload")


def grant(control, host, *services):
    """Grants a member services besides those of its token."""
    names = ", ".join(f'"{name}.default"' for name in services)
    control.write("/root/grant.toml", f'[[HostGrant]]\nname = "{host.name}"\nhost = "{host.name}"\nservices = [{names}]\n')
    control.run("baremesh apply -f /root/grant.toml")


def has_certificate(host, service):
    """Whether the agent holds a certificate for a service that is registered on its host."""
    rows = [line.split() for line in host.run("baremesh status || true").splitlines()]
    return any(row[:1] == [f"{service}.default"] and "yes" in row for row in rows)


def service_unit(host, name, command, settings=""):
    """Lays a unit down and starts it; `settings` are lines of its `[Service]`."""
    host.write(f"/etc/systemd/system/{name}.service",
               f"[Unit]\nDescription={name}\n\n[Service]\nExecStart={command}\n{settings}\n[Install]\nWantedBy=multi-user.target\n")
    host.run(f"systemctl daemon-reload && systemctl enable --now {name}.service")


def call(host, unit, name, port, text="hello"):
    """Sends a line to an echo of the mesh from a unit of this host; what became of it, and what came back."""
    return host.as_unit(unit, f"{PROGRAM} demo-shop call {name} {port} {shlex.quote(text)}")


def access_log(host, **values):
    """Lines of the agent's access log in which all of these stand, by field."""
    lines = []
    for line in host.journal("baremesh", "-n 5000").splitlines():
        if all(f'"{field}":"{value}"' in line for field, value in values.items()):
            lines.append(line)
    return lines


def program_of(host, unit):
    """SHA-256 of the program that is the unit's main process; empty while there is none."""
    pid = host.main_pid(unit)
    return host.tries(f"sha256sum <\"/proc/{pid}/exe\"").stdout.split(" ")[0] if pid else ""


def installed_version(host):
    return host.run("dpkg-query -W -f '${Version}' baremesh")
