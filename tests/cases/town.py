"""A mesh for cases about routing: hosts for the callers, and hosts on which every service runs that a case names."""

import json
import urllib.parse

import mesh
from hosts import CommandFailed
from mesh import Mesh

# Its services are known as NAME.default and, as the cases call some of them, as NAME.example.com.
DOMAIN = "example.com"
RESOURCES = f"""
[[MeshConfig]]
name = "cases"
domain = "{DOMAIN}"
"""

# Dialled by requests that a gateway would take.
INGRESS = "ingress.default"

# The hosts of the services, and their last numbers. Where a service runs at one endpoint, it is on the first.
BACKENDS = {"one": 21, "two": 22, "three": 23}
CALLERS = 11

# Programs listen from here on, each service's ports after another's.
FIRST_PORT = 20000
# Beside each, where it takes orders.
ORDERS = 20000


def resolve(host, namespace):
    """The service that a host names, as NAME.NAMESPACE."""
    for suffix in (".svc.cluster.local", f".{DOMAIN}"):
        if host.endswith(suffix):
            host = host.removesuffix(suffix)
            namespace = "default" if suffix == f".{DOMAIN}" else namespace
            break
    return host if "." in host else f"{host}.{namespace}"


class Town:
    """A context manager: nothing of it stays."""

    def __init__(self, binary, directory, configurations, cases):
        self.services = services_of(configurations, cases)
        self.spread = {resolve(case["req"]["host"].rsplit(":", 1)[0], "default")
                       for case in cases if case["expect"].get("same_endpoint")}
        self.labels = labels_of(configurations)
        self.callers = sorted({case.get("from", "a") for case in cases} | {"a"})
        self.mesh = Mesh(binary, directory, {"mesh.toml": RESOURCES})
        self.programs = {}
        self.targets = {}
        self.refusing = []

    def __enter__(self):
        self.mesh.__enter__()
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.mesh.__exit__()

    def build(self):
        self.hosts = {name: self.mesh.join(name, f"10.0.0.{number}", ["*.*"]) for name, number in BACKENDS.items()}
        self.at = {}
        for number, name in enumerate(self.callers):
            self.at[name] = self.mesh.join(f"from-{mesh.label(name)}", f"10.0.0.{CALLERS + number}", ["*.*"])
            self.serve(f"{name}.default", self.at[name], ["--user", "0", "--label", f"app={name}"])
        for service in self.services:
            if service.removesuffix(".default") in self.at:
                continue
            labels = self.labels.get(service, [])
            count = len(self.hosts) if service in self.spread else max(1, len(labels))
            for index, host in enumerate(list(self.hosts.values())[:count]):
                words = [word for pair in (labels[index:] or [{}])[0].items() for word in ("--label", "=".join(pair))]
                self.serve(service, host, words)
        for name, member in self.at.items():
            mesh.wait_until(f"{name} knows every service", lambda: all(
                len(member.endpoints(service)) >= len(self.of(service)) for service in self.services))
        self.mesh.wait_until_in_force()

    def serve(self, service, member, further):
        """Runs a service on a host: a program for each of its ports."""
        name, namespace = service.split(".")
        words = []
        for port in sorted(self.services.get(service, {80})):
            # The same on every host: a service's port without a name goes to one number (or the registration is refused).
            target = self.targets.setdefault((service, port), FIRST_PORT + len(self.targets))
            instance = f"{service}:{port}@{member.name}"
            process = f"web-{len(self.programs)}"
            self.programs[instance] = (member, process, target)
            self.start(instance)
            words += ["--port", f"{port}:{target}"]
        member.baremesh("service", "register", name, "-n", namespace, "--protocol", "http", *words, *further)
        mesh.wait_until(f"{service} has its certificate", lambda: any(
            known["service"] == service and known["certificate"]
            for known in (member.ask("/status") or {}).get("services", [])))

    def start(self, instance):
        member, process, target = self.programs[instance]
        member.spawn_web(process, instance, [f"127.0.0.1:{target}", f"127.0.0.1:{target + ORDERS}"])
        self.order(instance, ["literal"])

    def get(self, caller, service, port, words):
        """A request from a caller to a service's virtual address, and what it was answered."""
        member = self.at[caller]
        words = ["--connect", f"http://{member.address_of(service)}:{port}", "--timeout", "20", *words]
        answer = member.get(words)
        try:
            answer["account"] = json.loads(answer.get("body") or "")
        except ValueError:
            pass
        return answer

    def seen(self):
        """What every program has seen so far."""
        return {instance: member.requests_of(process) for instance, (member, process, _) in self.programs.items()}

    def of(self, service):
        return [(instance, *rest) for instance, rest in self.programs.items() if instance.startswith(f"{service}:")]

    def behave(self, service, orders):
        for instance, *_ in self.of(service):
            self.order(instance, orders)

    def order(self, instance, orders):
        member, _, target = self.programs[instance]
        query = "&".join(urllib.parse.quote(order, safe="=.") for order in orders)
        answer = member.get(["--method", "POST", f"http://127.0.0.1:{target + ORDERS}/behave?{query}"])
        if answer.get("status") != 200:
            raise CommandFailed(f"{instance} does not take the order {orders}: {answer}")

    def refuse_connections(self, service, count):
        """The next connections to a service's programs are refused, and those after them are not. Those that agents have kept
        end with the programs, which are started anew."""
        for instance, member, _, target in self.of(service):
            self.start(instance)
            member.host.run("nft", "-f", "-", stdin=(
                f"table inet cases {{ chain input {{ type filter hook input priority 0\n "
                f"tcp dport {target} tcp flags syn / syn,ack numgen inc mod 1000 < {count} reject with tcp reset\n }}\n }}\n"))
            if member not in self.refusing:
                self.refusing.append(member)

    def refuse_no_more(self):
        while self.refusing:
            self.refusing.pop().host.run("nft", "delete", "table", "inet", "cases")


def services_of(configurations, cases):
    """The services that the cases need, with their ports: those that requests dial, and those that resources and
    expectations name. A destination without a port is called at the port of the request (or its only one)."""
    found = {INGRESS: {80}}

    def need(service, port=None):
        ports = found.setdefault(service, set())
        if port:
            ports.add(port)

    for case in cases:
        port = case["req"].get("port", 80)
        if case["via"] == "gateway":
            need(INGRESS, port)
        else:
            need(resolve(case["req"].get("host", "b").rsplit(":", 1)[0], "default"), port)
        expected = case["expect"]
        for name in [expected.get("backend"), *expected.get("split", {}), *expected.get("mirrored", {})]:
            if name:
                host, _, number = name.partition(":")
                need(resolve(host, "default"), int(number) if number else None)
    for resources in configurations.values():
        for resource in resources:
            for route in resource["spec"].get("http", []):
                mirrors = [*route.get("mirrors", []), *([{"destination": route["mirror"]}] if "mirror" in route else [])]
                for entry in [*route.get("route", []), *mirrors]:
                    to = entry["destination"]
                    need(resolve(to["host"], resource["ns"]), to.get("port", {}).get("number"))
    for ports in found.values():
        if not ports:
            ports.add(80)
    return found


def labels_of(configurations):
    """The labels that subsets of services ask for: each is given to an endpoint."""
    found = {}
    for resources in configurations.values():
        for resource in resources:
            for subset in resource["spec"].get("subsets", []):
                known = found.setdefault(resolve(resource["spec"]["host"], resource["ns"]), [])
                if subset.get("labels") not in (None, {}, *known):
                    known.append(subset["labels"])
    return found
