"""Policies and who then gets through, for real: the fixture's workloads are services of namespace hosts, the callers too,
and whether a connection is open or closed is what the client sees and what the destination's log says of it.

HTTP is carried as TCP here, so a case of HTTP is run where its policies speak of connections alone: 200 is then an open
connection, 403 a closed one. Other policies are refused by the fields' names, which is checked, and are `not yet`."""

import mesh
from hosts import CommandFailed
from mesh import Mesh
from resources import KINDS, NOT_YET, REFUSED_FIELD, REFUSED_KIND, Unexpected, analyze, is_refusal

# Cases that seem wrong, by id, with the reason.
LEFT_OUT = {}

# What an open or a closed connection is, in the cases' words.
OPEN, CLOSED = {200, "open"}, {403, "closed"}

# `response_code_details` of a connection that policy ended, by the caller.
REFUSALS = {"denied", "plaintext_refused"}

# Root namespace and trust domain are the fixture's. Its mode is Istio's, where `init` would write STRICT.
MESH = """
[[MeshConfig]]
name = "cases"
trustDomain = "{trust_domain}"
rootNamespace = "{root_namespace}"
"""
BASELINE = """
[[PeerAuthentication]]
name = "default"
namespace = "{root_namespace}"
mtls = {{ mode = "PERMISSIVE" }}
"""


def run(report, cases, binary, scratch):
    suite = cases.cases
    later = {name: fields_not_yet(report, binary, name, policies)
             for name, policies in suite["policy_sets"].items()}
    runnable = []
    for case in suite["cases"]:
        if case["id"] in LEFT_OUT:
            report.left_out(LEFT_OUT[case["id"]], case["id"])
        elif later[case["set"]] is not None:
            report.not_yet(later[case["set"]], case["id"])
        elif case["expect"] not in OPEN | CLOSED or not plain_of_http(case):
            report.not_yet("HTTP", case["id"])
        else:
            runnable.append(case)
    with Town(binary, scratch / "authorization", suite["fixture"], runnable) as town:
        for name in dict.fromkeys(case["set"] for case in runnable):
            town.run_set(report, suite["policy_sets"][name], [case for case in runnable if case["set"] == name])


def plain_of_http(case):
    """Whether nothing but the connection decides: no token, and nothing to be seen in headers."""
    return not case.get("checks") and not {"token", "headers", "xff"} & set(case["req"])


def fields_not_yet(report, binary, name, policies):
    """What of a set this version refuses; None if it takes all of it. That it is refused by name is a case in itself."""
    try:
        findings, _ = analyze(binary, mesh.manifest(policies))
    except Unexpected as error:
        report.failed(f"the policies {name}", error)
        return "policies that could not be read"
    errors = [finding for finding in findings if is_refusal(finding)]
    if not errors:
        return None
    for finding in errors:
        said = f"{finding['message']} {finding['help'] or ''}"
        named = "`" in finding["message"] and finding["code"] in (REFUSED_FIELD, REFUSED_KIND)
        if not named or not NOT_YET.search(said):
            report.failed(f"the policies {name}", f"refused, and not for what is not enforced yet: {said}")
            return "policies that are refused for no good reason"
    kinds = {policy["kind"] for policy in policies} - KINDS
    return " ".join(sorted(kinds)) or "HTTP fields of AuthorizationPolicy, refused by name"


class Town:
    """The fixture's workloads as hosts of one mesh, as far as the cases need them."""

    def __init__(self, binary, directory, fixture, cases):
        self.workloads = fixture["workloads"]
        self.trust_domain = fixture["trust_domain"]
        self.root_namespace = fixture["root_namespace"]
        names = {key: fixture[key] for key in ("trust_domain", "root_namespace")}
        self.mesh = Mesh(binary, directory, {"mesh.toml": MESH.format(**names), "mtls.toml": BASELINE.format(**names)})
        self.names = list(dict.fromkeys(name for case in cases for name in (case["from"], case["to"])))
        self.hosts = {}

    def __enter__(self):
        self.mesh.__enter__()
        try:
            self.build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def build(self):
        for name in self.names:
            workload = self.workloads[name]
            if "sa" in workload:
                self.hosts[name] = self.member(name, workload)
            else:
                self.hosts[name] = self.mesh.host(mesh.label(name), workload["ip"])
        self.members = {name: host for name, host in self.hosts.items() if isinstance(host, mesh.Member)}
        for name, host in self.members.items():
            wanted = {f"{self.workloads[other]['sa']}.{self.workloads[other]['ns']}" for other in self.members}
            mesh.wait_until(f"{name} knows every service", lambda: wanted <= {
                service["service"] for service in host.ask("/services") or [] if service["endpoints"]})
        self.mesh.wait_until_in_force()

    def member(self, name, workload):
        service = f"{workload['sa']}.{workload['ns']}"
        member = self.mesh.join(mesh.label(name), workload["ip"], [service])
        # A caller without ports needs one to be a service; nothing listens there.
        ports = [str(port) for port in workload.get("ports", {"none": 1}).values()]
        if "ports" in workload:
            member.serve(name, ports)
        labels = [word for pair in workload["labels"].items() for word in ("--label", "=".join(pair))]
        # The calling program is the host's only one; in a user namespace there is but one user to run it as.
        member.baremesh("service", "register", workload["sa"], "-n", workload["ns"], "--user", "0", *labels,
                        *[word for port in ports for word in ("--port", port)])
        mesh.wait_until(f"{service} has its certificate", lambda: any(
            known["service"] == service and known["certificate"]
            for known in (member.ask("/status") or {}).get("services", [])))
        return member

    def __exit__(self, *_):
        for host in self.hosts.values():
            if not isinstance(host, mesh.Member):
                host.close()
        self.mesh.__exit__()

    def run_set(self, report, policies, cases):
        labels = {case["id"]: f"{case['id']} ({case['set']})" for case in cases}
        try:
            self.mesh.apply(policies)
            for case in cases:
                fault = self.fault(case)
                report.check(labels.pop(case["id"]), fault)
            self.take_back(policies)
        except CommandFailed as error:
            for label in labels.values() or [f"{cases[0]['set']}, afterwards"]:
                report.failed(label, error)

    def take_back(self, policies):
        """Leaves the mesh as it was before the set."""
        baseline = {"kind": "PeerAuthentication", "ns": self.root_namespace, "name": "default",
                    "spec": {"mtls": {"mode": "PERMISSIVE"}}}
        for policy in policies:
            if any(policy[key] != baseline[key] for key in ("kind", "ns", "name")):
                self.mesh.delete(policy)
        self.mesh.apply([baseline])

    def fault(self, case):
        """What is not as it should be about one call."""
        caller, callee = self.hosts[case["from"]], self.hosts[case["to"]]
        before = len(callee.log())
        is_member = isinstance(caller, mesh.Member)
        port = self.workloads[case["to"]]["ports"][case["port"]]
        said = mesh.call(caller.host if is_member else caller, callee.address, port)
        line = mesh.wait_until(f"{case['id']}: a line of the destination's log", lambda: next(
            (line for line in callee.log()[before:] if line["reporter"] == "destination"), None))
        principal = line.get("source_principal")
        expected = self.principal(case["from"]) if is_member else None
        security = line["connection_security_policy"]
        if principal != expected or security != ("mutual_tls" if is_member else "none"):
            return f"{said}; the caller was {principal} over {security}"
        if case["expect"] in OPEN:
            return None if said == f"answered {case['to']}:hello" else f"should be open: {said}: {line}"
        if said.startswith("closed") or said == "answered nothing":
            reason = line["response_code_details"]
            return None if reason in REFUSALS else f"closed by something else than policy: {reason}"
        return f"should be closed: {said}: {line}"

    def principal(self, name):
        workload = self.workloads[name]
        return f"spiffe://{self.trust_domain}/ns/{workload['ns']}/sa/{workload['sa']}"
