"""What lies between the hosts: DNS, links, addresses, packets, families, and who fills queues."""

import time

from hosts import ip
from load import PROGRAMS
from report import until

from .stage import PORT, SHOP, doctor_finds, doctor_names, is_well, metric, now, says, setting, status


def dns_dead(stage):
    """no upstream name server answers"""
    report, caller = stage.report, stage.caller
    # An address of the network that nobody has: whoever asks there waits.
    setting(caller, "upstreams", '["10.79.0.99:53"]')
    # Whoever else on the host asks for a name may have it say so first.
    moment = now()
    caller.run("systemctl reload baremesh")
    stage.flows("the load flows")
    begin = time.monotonic()
    asked = caller.tries("dig +time=20 +tries=1 @127.0.0.1 -p 15053 other.example")
    took = time.monotonic() - begin
    report.check(f"another name is answered with SERVFAIL after {took:.1f} s, and the reason", "SERVFAIL" in asked.stdout and
                 "no upstream name server answered the mesh agent" in asked.stdout, asked.stdout)
    line = says(caller, "no upstream name server answers", moment)
    report.check("the log says that no upstream answers, and which were asked", "10.79.0.99:53" in line, line)
    stage.flows("names of the mesh are answered")
    # What was open at the reload may end now.
    stage.undisturbed("names of the mesh are answered, and calls go on", begin, ("name4", "name6", "address"))
    # Somebody who answers there.
    stage.control.copy(PROGRAMS / "nameserver.py", "/srv/nameserver.py")
    ip("-n", stage.control.namespace, "addr", "add", "10.79.0.99/24", "dev", "eth0")
    stage.control.run("systemd-run --quiet --unit=nameserver python3 /srv/nameserver.py 10.79.0.99")
    stage.heals("names are answered as soon as the name server is", lambda: "192.0.2.7" in
                caller.tries("dig +short +time=5 +tries=1 @127.0.0.1 -p 15053 other.example").stdout)
    stage.control.run("systemctl stop nameserver")
    ip("-n", stage.control.namespace, "addr", "del", "10.79.0.99/24", "dev", "eth0")
    caller.run("cp /srv/agent.toml /etc/baremesh/agent.toml && systemctl reload baremesh")
    stage.flows("the load flows")


def link_down(stage):
    """the called host's cable is out for 20 seconds"""
    report, server = stage.report, stage.server
    begin = time.monotonic()
    switch, port = f"{stage.network.tag}-sw", f"p-{server.name}"
    ip("-n", switch, "link", "set", port, "down")
    time.sleep(20)
    errors = stage.errors(begin)
    report.check("calls fail meanwhile", errors and not any(line.ok() and line.at > begin + 6 for line in stage.lines(begin)), errors)
    report.figure(f"what programs see: {errors}")
    found = doctor_finds(server, {"registry_away", "control_silent", "control_route"}.intersection, "that the control server is out of reach")
    report.holds("doctor on the host without a cable finds that the control server is out of reach")
    report.figure(f"doctor there: {sorted(found)}")
    ip("-n", switch, "link", "set", port, "up")
    stage.heals("calls go on once the cable is in", lambda: stage.flows("the load flows", count=1))
    stage.heals("doctor has nothing to say on either host", lambda: is_well(server) and is_well(stage.caller))


def readdress(host, before, after):
    """Replaces an address of IPv4, or takes it away, or adds one, as a lease that is another one does."""
    if before:
        ip("-n", host.namespace, "addr", "del", f"{before}/24", "dev", "eth0")
    if after:
        ip("-n", host.namespace, "addr", "add", f"{after}/24", "dev", "eth0")
        # Went with the last address.
        ip("-n", host.namespace, "route", "replace", "default", "dev", "eth0")


def address_changed(stage):
    """the called host's IPv4 address is another one from now on"""
    report, server = stage.report, stage.server
    moment = now()
    other = "10.79.0.33"
    readdress(server, server.address, other)
    says(server, "this host has other addresses", moment)
    stage.heals("calls by name go to the new address", lambda: stage.flows("the load flows", ("name4", "name6", "kept"), count=3))
    said = status(server)[1]
    report.check("`baremesh status` shows the new address, and no other of IPv4", other in said and f"{server.address} " not in said, said)
    until("the caller's rules lead there", lambda: f"{other} . {PORT}" in stage.caller.run("nft list table inet baremesh"))
    report.holds("the caller's rules capture the new address")
    doctor_names(stage, server)
    readdress(server, other, server.address)
    stage.heals("and back", lambda: stage.flows("the load flows", count=3))


def small_packets(stage):
    """the called host's interface takes packets of 1280 bytes at most"""
    report, caller, server = stage.report, stage.caller, stage.server
    caller.copy(PROGRAMS / "bulk.py", "/srv/bulk.py")

    def bulk(what):
        for address in (SHOP, f"{server.address}"):
            done = caller.as_unit("bulk", f"python3 /srv/bulk.py {address} {PORT} 1000000")
            report.check(f"a megabyte there and back to {address}, {what}: {done.stdout.strip()}", done.returncode == 0, done.stdout)

    bulk("before")
    begin = time.monotonic()
    ip("-n", server.namespace, "link", "set", "eth0", "mtu", "1280")
    bulk("over tunnels from before and new ones")
    stage.undisturbed("calls go on with packets of 1280 bytes", begin)
    server.run("systemctl restart baremesh")
    stage.flows("the load flows")
    bulk("after a restart")
    doctor_names(stage, server)
    ip("-n", server.namespace, "link", "set", "eth0", "mtu", "1500")
    bulk("with 1500 again")


def only_ipv6(stage):
    """neither host has an IPv4 address any more"""
    report, caller, server = stage.report, stage.caller, stage.server
    moment = now()
    for host in (caller, server):
        readdress(host, host.address, None)
    says(server, "this host has other addresses", moment)
    stage.heals("calls by name go on over IPv6 alone, those to virtual addresses of IPv4 too",
                lambda: stage.flows("the load flows", ("name4", "name6", "kept"), count=3))
    said = status(server)[1]
    report.check("`baremesh status` shows the address of IPv6 alone", server.address6 in said and server.address not in said, said)
    until("the control server is followed over IPv6", lambda: is_well(server) and is_well(caller))
    report.holds("the control server is followed over IPv6, and doctor has nothing to say on either host")
    for host in (caller, server):
        readdress(host, None, host.address)
    stage.heals("with both families again every way is open", lambda: stage.flows("the load flows", count=3))
    until("the hosts announce both", lambda: server.address in status(server)[1] and caller.address in status(caller)[1])


def half_open(stage):
    """10,000 half-open connections, and 10,000 that say nothing"""
    report, server = stage.report, stage.server
    stage.control.copy(PROGRAMS / "crowd.py", "/srv/crowd.py")
    for port, what in ((15008, "the tunnels' port"), (PORT, "the shop's port, which the rules lead to 15006")):
        begin = time.monotonic()
        said = stage.control.run(f"python3 /srv/crowd.py half-open {server.address} {port} 10000")
        stage.flows("the load flows")
        stage.undisturbed(f"10,000 SYNs without an end to {what} disturb nobody: {said}", begin)
    said = stage.control.tries(f"python3 /srv/crowd.py silent {server.address} 15006 20").stdout.strip()
    report.check("15006 itself takes nobody from outside", said.startswith("0 of 20"), said)
    for port, what in ((15008, "the tunnels' port"), (PORT, "the shop's port")):
        begin, before = time.monotonic(), metric(server, "baremesh_connection_failures_total") or 0
        said = stage.control.run(f"ulimit -n 20000 && python3 /srv/crowd.py silent {server.address} {port} 10000", 900)
        stage.flows("the load flows")
        failures = (metric(server, "baremesh_connection_failures_total") or 0) - before
        report.figure(f"{said}; {failures:.0f} of them are counted in baremesh_connection_failures_total")
        stage.undisturbed(f"10,000 connections to {what} that say nothing disturb nobody", begin)
        stage.heals("none of them is open any more", lambda: int(server.run(
            f"ss -Htn state established '( sport = :{port} or sport = :15006 )' | grep -c {stage.control.address}: || true")) == 0)
