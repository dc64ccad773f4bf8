"""How the bench starts baremesh: the one place that knows the binary's command line."""

import json
import re
import shutil
import time
from pathlib import Path

from hosts import CommandFailed

# Where the services are dialled: addresses of their own, so that no name server is part of the measurement.
ADDRESSES = {"web": "240.240.0.10", "bulk": "240.240.0.11", "streams": "240.240.0.12"}
READY_SECONDS = 30
# Of `many_policies`.
POLICIES, RULES = 1000, 20
# What an agent counts of a port that speaks it.
COUNTER = {"tcp": "istio_tcp_connections_opened_total", "http": "istio_requests_total", "http2": "istio_requests_total"}


class BaremeshLacks(Exception):
    """The binary is missing, or cannot yet do what the bench asks of it."""


def start_baremesh(hosts, binary, services, policies=""):
    """Makes a mesh of the two hosts and puts capture in place on both. `services` are (port, declared protocol) by their
    names in ADDRESSES; `policies` are resources that are in force besides.

    The mesh is one of files: both hosts read the same resources, and sign with copies of one certificate authority, so
    that no control server takes part in the measurement. On the server's host the servers listen on every address,
    loopback included.

    Returns what to dial by service, the agents' pids on the client's and on the server's host, and `evidence`.
    """
    if not Path(binary).is_file():
        raise BaremeshLacks(f"no baremesh binary at {binary}: cargo build --release, or name one with --baremesh")
    base = Path(hosts.log_dir) / "baremesh"
    shutil.rmtree(base, ignore_errors=True)
    authority = flags(base / "authority")
    hosts.client.run(binary, *authority, "init", "--trust-domain", "mesh.internal")
    resources = resources_text(hosts.server.address, services) + policies
    agents = {}
    for name, host in (("client", hosts.client), ("server", hosts.server)):
        place = base / name
        (place / "config" / "registry").mkdir(parents=True)
        (place / "config" / "registrations.d").mkdir()
        shutil.copytree(base / "authority" / "state" / "ca", place / "state" / "ca")
        (place / "config" / "registry" / "mesh.toml").write_text(resources)
        (place / "config" / "agent.toml").write_text(agent_text(name, host.address))
        if name == "server":
            for service, (port, speaks) in services.items():
                registration = f'name = "{service}"\nports = [{{ port = {port}, protocol = "{speaks}" }}]\n'
                (place / "config" / "registrations.d" / f"default.{service}.toml").write_text(registration)
        agents[name] = host.spawn(binary, *flags(place), "agent", log=f"baremesh-{name}")
    for name, host in (("client", hosts.client), ("server", hosts.server)):
        wait_until_ready(host, name)
    dialled = {service: (ADDRESSES[service], port) for service, (port, _) in services.items()}
    counter = COUNTER[services["web"][1]]
    return dialled, [agents["client"].pid], [agents["server"].pid], lambda: evidence(hosts, counter)


def flags(place):
    return ["--config-dir", str(place / "config"), "--state-dir", str(place / "state"), "--run-dir", str(place / "run")]


def agent_text(name, address):
    return (
        f'host = "{name}"\naddresses = ["{address}"]\n[registry]\nsource = "files"\n'
        f'[dns]\nmode = "off"\n[telemetry]\naccess_log = "off"\n'
    )


def resources_text(server, services):
    text = '[[PeerAuthentication]]\nname = "default"\nnamespace = "mesh-system"\nmtls = { mode = "STRICT" }\n'
    for name, (port, protocol) in services.items():
        text += (
            f'[[Service]]\nname = "{name}"\naddresses = ["{ADDRESSES[name]}"]\nports = [{{ port = {port}, protocol = "{protocol}" }}]\n'
            f'[[WorkloadEntry]]\nname = "{name}-server"\naddress = "{server}"\nlabels = {{ app = "{name}" }}\ntunnel = "hbone"\n'
        )
    return text


def many_policies():
    """1,000 AuthorizationPolicies of 20 rules each, all for every workload of the namespace. Six tenths allow and the
    others deny. Callers, paths, hosts and ports are those of tenants that nobody of the bench is, but for the last rule,
    which lets the loaders in. Each rule names something that it is found by. One that names nothing of that kind (only
    starts of a field's value, say) is compared with every request, for 35 to 80 ns.
    """
    text = []
    for policy in range(POLICIES):
        action = "ALLOW" if policy % 10 < 6 else "DENY"
        rules = [tenant_rule(policy * RULES + number) for number in range(RULES)]
        if policy % 10 == 9:
            rules[7] = f'{{ to = [{{ operation = {{ methods = ["GET"], paths = ["*.tenant{policy}"] }} }}] }}'
        if policy == POLICIES - 5:
            rules[-1] = '{ from = [{ source = { namespaces = ["hosts"] } }] }'
        text.append(f'[[AuthorizationPolicy]]\nname = "policy{policy}"\naction = "{action}"\nrules = [\n'
                    + "".join(f"  {rule},\n" for rule in rules) + "]\n")
    return "".join(text)


def tenant_rule(number):
    """One of five kinds of rules as they are written for services: by caller, namespace, path, host or field."""
    tenant = f"tenant{number}"
    source, operation, when = [
        (f'serviceAccounts = ["{tenant}/web"]', 'methods = ["GET", "POST"]', ""),
        (f'namespaces = ["{tenant}"]', f'paths = ["/{tenant}/*"]', ""),
        (f'notNamespaces = ["{tenant}"]', f'paths = ["/{tenant}/admin", "/{tenant}/admin/*"]', ""),
        ('ipBlocks = ["10.0.0.0/8"]', f'hosts = ["{tenant}.example.org"], methods = ["PUT"]', ""),
        (f'principals = ["mesh.internal/ns/{tenant}/sa/orders"]', 'paths = ["/{*}/orders/{**}"]',
         ', when = [{ key = "request.headers[x-tenant]", values = ["' + tenant + '"] }]'),
    ][number % 5]
    return f"{{ from = [{{ source = {{ {source} }} }}], to = [{{ operation = {{ {operation} }} }}]{when} }}"


def wait_until_ready(host, name):
    until = time.monotonic() + READY_SECONDS
    while True:
        try:
            if "ready" == get(host, 15021, "/healthz/ready").strip():
                return
        except CommandFailed:
            pass
        if time.monotonic() > until:
            raise BaremeshLacks(f"the agent on {name} is not ready after {READY_SECONDS} s: see its log with --logs")
        time.sleep(0.05)


def get(host, port, path):
    """A GET on the host's loopback, by its own Python: the bench itself is in no host's network."""
    script = f"import urllib.request as u; print(u.urlopen('http://127.0.0.1:{port}{path}', timeout=5).read().decode())"
    return host.run("/usr/bin/env", "python3", "-c", script)


def evidence(hosts, counter):
    """Connections or requests that both agents carried over mutual TLS; none, or any other way, spoils the sample."""
    from peers import NotTaken

    facts = {}
    for name, host in (("client", hosts.client), ("server", hosts.server)):
        text = get(host, 15020, "/metrics")
        opened = [line for line in text.splitlines() if line.startswith(counter + "{")]
        by_policy = {}
        for line in opened:
            policy = re.search(r'connection_security_policy="(\w+)"', line).group(1)
            by_policy[policy] = by_policy.get(policy, 0) + int(float(line.rsplit(" ", 1)[1]))
        # `unknown` was not carried at all: a loader that ends cuts off connections before anybody has looked at them.
        if set(by_policy) - {"unknown"} != {"mutual_tls"}:
            raise NotTaken(f"the agent on {name} carried {json.dumps(by_policy)}")
        facts[name] = by_policy["mutual_tls"]
    return facts
