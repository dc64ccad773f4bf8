"""Hostile and broken conditions on booted hosts: what an operator sees, what calls do meanwhile, and how it heals."""

from hosts import Network

from . import attacks, files, host, network
from .stage import Stage

CONDITIONS = {
    "killed": attacks.killed,
    "reboot": attacks.reboot,
    "reboot-again": attacks.first_attempt_fails,
    "disk-full": files.disk_full,
    "logs-full": files.logs_full,
    "read-only": files.read_only,
    "clock": host.clock,
    "dns-dead": network.dns_dead,
    "no-control": host.without_control,
    "rules-flushed": host.rules_flushed,
    "port-taken": host.port_taken,
    "descriptors": host.descriptors,
    "half-open": network.half_open,
    "damaged": files.damaged,
    "exposed": files.exposed,
    "unit-renamed": host.unit_renamed,
    "stopped": host.stopped,
    "link-down": network.link_down,
    "address": network.address_changed,
    "mtu": network.small_packets,
    "hostname": host.hostname,
    "two-agents": host.two_agents,
    "ipv6": network.only_ipv6,
}


def these(conditions):
    """A scenario of these conditions, one after the other on the same hosts."""
    def scenario(report, packages):
        with Network() as network:
            stage = Stage(network, report)
            try:
                stage.set(packages[0])
                report.figure(f"the mesh stands after {report.seconds():.0f} s")
                for name, condition in conditions.items():
                    stage.go(name, condition)
            finally:
                stage.end_wire()
    scenario.__doc__ = ("hostile and broken conditions: what is seen, what calls do, how it heals" if len(conditions) > 1
                        else next(iter(conditions.values())).__doc__)
    return scenario


run = these(CONDITIONS)
# Each by itself.
ALONE = {f"hostile-{name}": these({name: condition}) for name, condition in CONDITIONS.items()}
