"""What else an operator has on a host beside the mesh: an open ssh session, firewalls, and rules of their own."""

import json
import re
import time

from hosts import Network
from load import PROGRAMS
from mesh import PROGRAM, bring, call, has_certificate, install, join, make, service_unit, token_in, upgrade
from report import Broken, until

ROUNDS = 50


def capture(report, packages):
    """a long connection to port 22 lives through everything; rules come back after whatever takes them"""
    first, later, _ = packages
    with Network() as network:
        control, web, host = network.boot("control", "web1", "host1")
        install(control, first)
        control.run(f"baremesh init --address {control.address}:15012 && systemctl enable --now baremesh-control")
        session = Session(control, host)
        ssh_lives(report, control, host, session, first, later)
        install(web, first)
        join(control, web, ["web"])
        web.run("baremesh service register web --port 80 --unit web.service")
        service_unit(host, "echo", f"{PROGRAM} demo-shop echo 0.0.0.0:7000")
        host.run("baremesh service register echo --port 7000 --unit echo.service")
        until("web is let into the mesh", lambda: has_certificate(web, "web"))
        until("the echo is called", lambda: call(web, "web", "echo.mesh.internal", 7000).returncode == 0)
        rules_come_back(report, web, host)
        session.end(report)


class Session:
    """An operator's ssh session from one host to another: a command that writes a line a second, whose lines come in, and
    whose input is answered."""

    def __init__(self, client, server):
        self.client = client
        server.run("mkdir -p /run/sshd && ssh-keygen -A && systemctl start ssh")
        client.run("ssh-keygen -q -t ed25519 -N '' -f /root/.ssh/id_ed25519")
        server.write("/root/.ssh/authorized_keys", client.run("cat /root/.ssh/id_ed25519.pub") + "\n", 0o600)
        client.copy(PROGRAMS / "session.py", "/srv/session.py")
        client.run(f"systemd-run --quiet --unit=session --property=StandardOutput=journal python3 /srv/session.py {server.address}")
        self.lives("the session begins")

    def count(self):
        said = self.client.run("cat /run/session 2>/dev/null || true")
        if said.startswith("ended"):
            raise Broken(f"the ssh session ended: {said}")
        return int(said or 0)

    def lives(self, when):
        """Waits until two more lines have gone there and come back."""
        before = self.count()
        until(f"the ssh session goes on: {when}", lambda: self.count() >= before + 2)

    def end(self, report):
        report.check("it is the same session from beginning to end", self.client.is_active("session"))
        report.figure(f"{self.count()} lines went there and came back in it")


def ssh_lives(report, control, host, session, first, later):
    def step(what, *commands):
        for command in commands:
            host.run(command)
        session.lives(what)
        report.holds(f"the session lives through {what}")

    step("an installation", f"apt install -y {bring(host, first)}")
    token = token_in(control.run("baremesh token create --service echo"))
    step("a join and the agent's start", f"baremesh join {control.address} --token {token} && systemctl enable --now baremesh",
         "nft list table inet baremesh")
    step("`capture remove` and `capture apply`", "baremesh capture remove", "baremesh capture apply")
    step("`systemctl disable --now` and `enable --now`", "systemctl disable --now baremesh", "systemctl enable --now baremesh")
    step("`capture.outbound = \"all\"`", "cp /etc/baremesh/agent.toml /root/agent.toml",
         "sed -i 's/^# outbound = \"registered\"/outbound = \"all\"/' /etc/baremesh/agent.toml && grep -q '^outbound = \"all\"' /etc/baremesh/agent.toml",
         "systemctl restart baremesh", "cp /root/agent.toml /etc/baremesh/agent.toml", "systemctl reload baremesh")
    host.run("echo 'nonsense = [' >>/etc/baremesh/agent.toml")
    host.refuses("systemctl reload baremesh")
    host.run("systemctl is-active baremesh")
    session.lives("a reload with a broken agent.toml")
    host.run("systemctl restart --no-block baremesh")
    # The refused reload has said so too.
    until("the agent fails to start", lambda: int(host.run("systemctl show -p NRestarts --value baremesh")) >= 1
          and "nonsense" in host.journal("baremesh", "-n 30") and not host.is_active("baremesh"))
    session.lives("a broken agent.toml")
    host.run("cp /root/agent.toml /etc/baremesh/agent.toml")
    until("the agent starts with the old agent.toml", lambda: host.is_active("baremesh"))
    report.holds("the session lives through a broken agent.toml, with which a reload is refused and a start fails")
    upgrade(host, later)
    until("the agent is ready", lambda: "ready         yes" in host.run("baremesh status || true"))
    session.lives("an upgrade")
    report.holds("the session lives through an upgrade")
    step("a purge", "apt purge -y baremesh")
    step("an installation over the state that was kept", f"apt install -y /srv/{later.deb.name}", "systemctl enable --now baremesh")


def restored(host):
    """How often the agent has put rules back."""
    said = host.run("python3 -c 'import urllib.request; print(urllib.request.urlopen(\"http://127.0.0.1:15020/metrics\").read().decode())'")
    found = re.search(r"^baremesh_capture_restored_total (\d+)", said, re.MULTILINE)
    return int(found.group(1)) if found else 0


def rules_come_back(report, web, host):
    """After each of these, calls go on over mutual TLS, the rules stand as they were, and it was told."""
    for what, commands in (
        ("`nft flush ruleset`", ["nft flush ruleset"]),
        ("a start of firewalld", ["systemctl start firewalld"]),
        ("a restart of firewalld", ["systemctl restart firewalld"]),
        ("a reload and a complete reload of firewalld", ["firewall-cmd -q --reload", "firewall-cmd -q --complete-reload"]),
        ("a stop of firewalld", ["systemctl stop firewalld"]),
        ("`ufw enable`, `reload` and `disable`", ["ufw allow 15008/tcp && ufw allow 22/tcp && ufw --force enable", "ufw reload", "ufw disable"]),
        ("a restart of nftables.service", ["systemctl restart nftables"]),
    ):
        before, moment = restored(host), time.time()
        for command in commands:
            host.run(command)
            until(f"rules stand after `{command}`", lambda: host.succeeds("baremesh capture status"), 90)
            if "start firewalld" in command:
                host.run("firewall-cmd -q --add-port=15008/tcp && firewall-cmd -q --permanent --add-port=15008/tcp")
            until(f"the echo is called after `{command}`", lambda: call(web, "web", "echo.mesh.internal", 7000).returncode == 0)
        report.holds(f"rules stand and calls go on after {what}")
        again = restored(host) - before
        report.figure(f"put back {again} times")
        if "flush ruleset" in commands[0]:
            report.check("that is in the metrics, in the log and in what doctor says",
                         again >= 1 and "were put back" in host.journal("baremesh", f"--since '@{moment:.6f}'")
                         and "rules_restored" in host.tries("baremesh doctor -o json").stdout)


def ruleset(host):
    """All rules of the host, without handles and counters, as JSON in one form."""
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(inner) for key, inner in value.items() if key not in ("handle", "packets", "bytes", "index", "expires")}
        return [plain(inner) for inner in value] if isinstance(value, list) else value

    found = plain(json.loads(host.run("nft -j list ruleset"))["nftables"])
    for entry in found:
        # Elements of a set have no order.
        for kind in ("set", "map"):
            if "elem" in entry.get(kind, {}):
                entry[kind]["elem"].sort(key=json.dumps)
    return [entry for entry in found if "metainfo" not in entry]


def foreign(entries):
    """Those entries that are of no table of ours."""
    ours = (("inet", "baremesh"), ("inet", "baremesh_anchor"), ("inet", "baremesh_units"))
    return [entry for entry in entries for part in entry.values() if (part["family"], part.get("table", part.get("name"))) not in ours]


def churn(report, packages):
    """50 starts, stops and removals of the rules: the same rules each time, and nobody else's are touched"""
    with Network() as network:
        control, host = network.boot("control", "host1")
        make(control, [host], {"host1": ["echo"]}, packages[0])
        service_unit(host, "echo", f"{PROGRAM} demo-shop echo 127.0.0.1:7000")
        host.run("baremesh service register echo --port 7000 --unit echo.service")
        until("there is a certificate", lambda: has_certificate(host, "echo"))
        host.run("systemctl stop baremesh && baremesh capture remove && systemctl start baremesh && systemctl stop baremesh && baremesh capture remove")
        host.write("/root/foreign.nft", FOREIGN)
        host.run("nft -f /root/foreign.nft")
        before, routes = ruleset(host), all_routes(host)
        report.check("there are rules of others, and none of ours", foreign(before) == before and len(before) > 8)
        standing = stopped = None
        for number in range(ROUNDS):
            host.run("systemctl start baremesh")
            until("the rules stand", lambda: host.succeeds("baremesh capture status"))
            now = settled(host, standing)
            standing = standing or now
            same(f"round {number + 1}: the rules of an agent that runs", now, standing)
            same(f"round {number + 1}: others' rules beside it", foreign(now), before)
            host.run("systemctl stop baremesh")
            now = ruleset(host)
            stopped = stopped or now
            same(f"round {number + 1}: the rules for a gone agent", now, stopped)
            same(f"round {number + 1}: others' rules beside them", foreign(now), before)
            host.run("baremesh capture remove")
            same(f"round {number + 1}: rules after their removal", ruleset(host), before)
            same(f"round {number + 1}: routes after it", all_routes(host), routes)
        report.holds(f"{ROUNDS} times the same {len(standing) - len(before)} of ours while the agent runs, {len(stopped) - len(before)} when it is gone, and none after a removal")
        report.holds(f"the {len(before)} of others stay as they are, a table `baremesh2` and one of family ip named `baremesh` among them")


def settled(host, wanted):
    """The rules, once they are as they were; as they are, if they do not come to that. Endpoints are told to an agent after
    it is ready."""
    reads = []

    def enough():
        reads.append(ruleset(host))
        return reads[-1] == wanted or (len(reads) >= 20 and all(read == reads[-1] for read in reads[-20:]))

    until("the rules settle", enough)
    return reads[-1]


def all_routes(host):
    return host.run("ip -4 route show table all; ip -6 route show table all; ip rule; ip -6 rule")


def same(what, now, wanted):
    if now != wanted:
        more = [entry for entry in now if entry not in wanted]
        less = [entry for entry in wanted if entry not in now]
        raise Broken(f"{what} are others: more {more!r}, less {less!r}"[:4000])


FOREIGN = """\
table ip baremesh {
    chain theirs { type filter hook input priority 5; policy accept; tcp dport 4711 counter drop; }
}
table inet baremesh2 {
    set hosts { type ipv4_addr; flags interval; elements = { 10.1.0.0/16, 10.3.0.1 }; }
    map ports { type inet_service : verdict; elements = { 99 : accept }; }
    chain input { type filter hook input priority -310; policy accept; ip saddr @hosts tcp dport vmap @ports; }
}
table inet filter {
    chain output { type filter hook output priority filter; policy accept; meta mark 0xba5e counter accept; }
    chain nat { type nat hook output priority -101; policy accept; tcp dport 4712 redirect to :4713; }
}
table ip6 nat {
    chain prerouting { type nat hook prerouting priority dstnat; policy accept; tcp dport 15001 counter accept; }
}
table arp hosts {
    chain input { type filter hook input priority 0; policy accept; }
}
"""
