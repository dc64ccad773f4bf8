"""The rpm, with dnf: on a Debian host, with small packages that stand for what Debian itself has there."""

from hosts import Network
from load import SERVICES, Load, figures, losses
from mesh import PROGRAM, drain_for, install, join, program_of
from report import until

# What the rpm asks for, by names that it has on Fedora and RHEL.
STAND_INS = """\
Name: stand-ins
Version: 1
Release: 1
Summary: What Debian has, by the names of other distributions
License: Apache-2.0
BuildArch: noarch
Provides: nftables, iproute, systemd, ca-certificates, /bin/sh, libc.so.6(GLIBC_2.34)(64bit), libgcc_s.so.1(GCC_4.2.0)(64bit)
%description
Stands for them.
%files
"""
REPOSITORY = """\
[local]
name=local
baseurl=file:///srv/repository
gpgcheck=0
metadata_expire=0
"""
DNF = "dnf --assumeyes --quiet --releasever=9 --setopt=module_platform_id=platform:el9"


def run(report, packages):
    """the rpm with dnf from a repository: installed, upgraded under load, downgraded, removed"""
    first, second, third = packages
    with Network() as network:
        control, server, host = network.boot("control", "server", "rpmhost")
        for other in (control, server):
            install(other, first)
        control.run(f"baremesh init --address {control.address}:15012 && systemctl enable --now baremesh-control")
        shop, callers = SERVICES
        join(control, server, [shop])

        repository(host, first, second)
        host.refuses("test -e /usr/bin/baremesh")
        said = host.run(f"{DNF} repoquery --requires baremesh")
        report.check("the repository has it, with what it asks for", "nftables" in said and "systemd" in said, said)
        host.run(f"{DNF} install baremesh-{first.version}")
        report.check("dnf installs it with what it asks for", version(host) == first.version and host.succeeds("rpm -q stand-ins"))
        for unit in ("baremesh", "baremesh-control"):
            host.refuses(f"systemctl is-enabled {unit}")
            host.refuses(f"systemctl is-active {unit}")
        host.run("getent group baremesh && test -d /var/lib/baremesh && rpm -V baremesh")
        report.holds("nothing is enabled or runs, and everything is there")

        join(control, host, [callers])
        for member in (server, host):
            drain_for(member, 600)
            member.run("systemctl reload baremesh")
        load = Load(host, server)
        for package, how in ((second, "upgrade baremesh"), (third, f"upgrade ./{third.rpm.name}"), (first, f"downgrade ./{first.rpm.name}")):
            replaced(report, host, load, package, how)
        counts = load.end()
        figures(report, counts)
        report.check("nothing of the load was lost over two upgrades and a downgrade", not losses(counts), losses(counts))
        report.check("a changed agent.toml stayed, and the new one is beside it",
                     host.succeeds("grep -q '^drain_seconds = 600' /etc/baremesh/agent.toml && test -s /etc/baremesh/agent.toml.rpmnew"))
        removed(report, host, first)


def repository(host, *packages):
    host.write("/root/stand-ins.spec", STAND_INS)
    host.run("rpmbuild -bb --quiet --define '_rpmdir /srv/repository' /root/stand-ins.spec")
    for package in packages:
        host.copy(package.rpm, f"/srv/repository/{package.rpm.name}")
    host.run("createrepo_c -q /srv/repository")
    host.write("/etc/yum.repos.d/local.repo", REPOSITORY)


def version(host):
    return host.run("rpm -q --queryformat '%{VERSION}' baremesh")


def replaced(report, host, load, package, how):
    """Another version, under a running agent, which it takes over from."""
    host.copy(package.rpm, f"/srv/{package.rpm.name}")
    host.run(f"cd /srv && {DNF} {how}")
    until(f"the agent's program is that of {package.version}", lambda: program_of(host, "baremesh") == package.digest)
    load.goes_on()
    lost = losses(load.counts())
    report.check(f"`dnf {how}`: the agent of {package.version} has taken over, and nothing is lost", version(host) == package.version and not lost, lost)


def removed(report, host, package):
    said = host.run(f"{DNF.replace(' --quiet', '')} remove baremesh")
    host.refuses("systemctl is-active baremesh")
    host.refuses("nft list tables | grep baremesh")
    host.refuses(f"test -e {PROGRAM}")
    host.run("test -s /var/lib/baremesh/node/node.pem && test -s /etc/baremesh/registrations.d/default.callers.toml")
    report.check("a removal takes agent and rules, keeps keys and registrations, and says so", "rm -r /var/lib/baremesh /etc/baremesh" in said, said)
    host.run(f"cd /srv && {DNF} install ./{package.rpm.name} && systemctl start baremesh && baremesh status")
    report.holds("when the rpm comes back, the host is a member again")
