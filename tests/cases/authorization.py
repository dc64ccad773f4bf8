"""Policies and who then gets through, for real: the fixture's workloads are services of namespace hosts, the callers too.
Whether a connection is open or closed is what the client sees and what the destination's log says of it; a request is judged
by its answer, and by what the program behind saw of it. Policies of which this version refuses a field by its name, which is
checked, are `not yet`.

A gateway into the mesh is a listener of a later version. Here it is a service like others, whose policies are asked all
the same."""

import json

import mesh
import providers
import signing
from hosts import CommandFailed
from mesh import Mesh
from resources import KINDS, NOT_YET, REFUSED_FIELD, REFUSED_KIND, Unexpected, analyze, is_refusal

# The protocols of ports, by their names in the fixture; others carry bytes.
PROTOCOLS = {"http": "http", "http2": "http2", "grpc": "grpc"}

# `response_code_details` of a connection that policy ended, by the caller.
REFUSALS = {"denied", "plaintext_refused"}

# The set whose keys cannot be had.
WITHOUT_KEYS = "invalid-jwks"

# What refused callers are told: by policies, by rules for tokens, by providers.
REFUSED = ("RBAC: access denied", "Audiences in Jwt are not allowed", providers.REFUSED)

# What a request and the checks of its answer may say here. Anything else is no reason to pass.
REQUEST = {"host", "path", "method", "headers", "token", "token_in", "xff"}
CHECKS = {"upstream_header", "upstream_absent"}

# Root namespace and trust domain are the fixture's. Its mode is Istio's, where `init` would write STRICT.
MESH = """
[[MeshConfig]]
name = "cases"
trustDomain = "{trust_domain}"
rootNamespace = "{root_namespace}"
defaultConfig = {{ gatewayTopology = {{ numTrustedProxies = {num_trusted_proxies_at_gateway} }} }}
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
        if later[case["set"]] is not None:
            report.not_yet(later[case["set"]], case["id"])
        else:
            runnable.append(case)
    if not runnable:
        return
    asked = providers.named(suite["policy_sets"][case["set"]] for case in runnable)
    with Town(binary, scratch / "authorization", suite["fixture"], (runnable, asked)) as town:
        for name in dict.fromkeys(case["set"] for case in runnable):
            town.run_set(report, name, suite["policy_sets"][name], [case for case in runnable if case["set"] == name])


def fields_not_yet(report, binary, name, policies):
    """What of a set this version refuses; None if it takes all of it. That it is refused by name is a case in itself."""
    try:
        findings, _ = analyze(binary, mesh.manifest(signing.with_addresses(policies)))
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
    return " ".join(sorted(kinds)) or "fields of AuthorizationPolicy, refused by name"


class Town:
    """The fixture's workloads as hosts of one mesh, as far as the cases need them."""

    def __init__(self, binary, directory, fixture, cases_and_providers):
        cases, self.providers = cases_and_providers
        self.workloads = fixture["workloads"]
        self.trust_domain = fixture["trust_domain"]
        self.root_namespace = fixture["root_namespace"]
        names = {"num_trusted_proxies_at_gateway": 0, **fixture}
        self.mesh = Mesh(binary, directory, {"mesh.toml": MESH.format(**names) + providers.config(self.providers), "mtls.toml": BASELINE.format(**names)})
        self.names = list(dict.fromkeys(name for case in cases for name in (case["from"], case["to"])))
        self.hosts = {}
        self.tokens = signing.Tokens(fixture["tokens"], directory)
        self.fixture_tokens = any("token" in case["req"] for case in cases)

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
        if self.fixture_tokens:
            self.tokens.serve(self.mesh)
        if self.providers:
            providers.serve(self.mesh)
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
        ports = workload.get("ports", {"none": 1})
        of_bytes = [str(port) for name, port in ports.items() if name not in PROTOCOLS]
        of_requests = [f"127.0.0.1:{port}" for name, port in ports.items() if name in PROTOCOLS]
        if "ports" in workload and of_bytes:
            member.serve(name, of_bytes)
        if of_requests:
            member.spawn_web("web", name, of_requests)
        labels = [word for pair in workload["labels"].items() for word in ("--label", "=".join(pair))]
        # The calling program is the host's only one; in a user namespace there is but one user to run it as.
        member.baremesh("service", "register", workload["sa"], "-n", workload["ns"], "--user", "0", *labels,
                        *[word for name, port in ports.items()
                          for word in ("--port", str(port), "--protocol", PROTOCOLS.get(name, "tcp"))])
        mesh.wait_until(f"{service} has its certificate", lambda: any(
            known["service"] == service and known["certificate"]
            for known in (member.ask("/status") or {}).get("services", [])))
        return member

    def __exit__(self, *_):
        for host in self.hosts.values():
            if not isinstance(host, mesh.Member):
                host.close()
        self.mesh.__exit__()

    def run_set(self, report, name, policies, cases):
        labels = {case["id"]: f"{case['id']} ({case['set']})" for case in cases}
        policies = signing.with_addresses(policies)
        try:
            self.mesh.apply(policies)
            if name != WITHOUT_KEYS:
                self.wait_for_keys({case["to"] for case in cases})
            for case in cases:
                fault = self.fault(case)
                report.check(labels.pop(case["id"]), fault)
            self.take_back(policies)
        except CommandFailed as error:
            for label in labels.values() or [f"{cases[0]['set']}, afterwards"]:
                report.failed(label, error)

    def wait_for_keys(self, names):
        """Keys are fetched in the background, once there are rules for them."""
        for name in names & self.members.keys():
            mesh.wait_until(f"{name} has the keys of every issuer",
                            lambda: self.members[name].metric("baremesh_token_key_sources_without_keys") == 0)

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
        of_requests = case["port"] in PROTOCOLS and case["expect"] not in ("open", "closed")
        return self.fault_of_request(case) if of_requests else self.fault_of_connection(case)

    def fault_of_request(self, case):
        request, checks = case["req"], case.get("checks", {})
        strange = (set(request) - REQUEST) | (set(checks) - CHECKS)
        if strange:
            return f"nobody here knows what it means: {' '.join(sorted(strange))}"
        caller, callee = self.hosts[case["from"]], self.hosts[case["to"]]
        port = self.workloads[case["to"]]["ports"][case["port"]]
        # By its name, as programs call: what is dialled by a workload's own address is carried as bytes by the caller's agent.
        workload = self.workloads[case["to"]]
        is_member = isinstance(caller, mesh.Member)
        address = caller.address_of(f"{workload['sa']}.{workload['ns']}") if is_member else callee.address
        name, path = request.get("host", f"{workload['sa']}.{workload['ns']}:{port}"), request.get("path", "/")
        headers = {"Host": name, **request.get("headers", {})}
        if "xff" in request:
            headers["X-Forwarded-For"] = request["xff"]
        is_grpc = str(case["expect"]).startswith("grpc:")
        if is_grpc:
            headers |= {"content-type": "application/grpc", "te": "trailers"}
        path = self.tokens.put(request, headers, path)
        words = ["--connect", f"http://{address}:{port}", "--timeout", "20",
                 "--method", request.get("method", "GET"), *(["--http2"] if case["port"] in ("http2", "grpc") else []),
                 *[word for pair in headers.items() for word in ("--header", ": ".join(pair))], f"http://{name}{path}"]
        answer = mesh.get(caller, self.mesh.binary, words)
        if is_grpc:
            found = [*answer.get("headers", {}).get("grpc-status", []), *answer.get("trailers", {}).get("grpc-status", [])]
            return None if found == [case["expect"].removeprefix("grpc:")] else f"should be {case['expect']}: {answer}"
        if answer.get("status") != case["expect"]:
            return f"should be {case['expect']}: {answer}"
        if case["expect"] == 403 and answer.get("body") not in REFUSED:
            return f"refused in other words: {answer}"
        if not checks:
            return None
        seen = json.loads(answer["body"])["headers"]
        for key in checks.get("upstream_absent", []):
            if key in seen:
                return f"{key} was to be taken out: {seen}"
        for key, value in checks.get("upstream_header", {}).items():
            value = self.tokens.expected(value, request)
            if value is None or seen.get(key) != [value]:
                return f"{key} should be {value}: {seen}"
        return None

    def fault_of_connection(self, case):
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
        if case["expect"] == "open":
            return None if said == f"answered {case['to']}:hello" else f"should be open: {said}: {line}"
        if said.startswith("closed") or said == "answered nothing":
            reason = line["response_code_details"]
            return None if reason in REFUSALS else f"closed by something else than policy: {reason}"
        return f"should be closed: {said}: {line}"

    def principal(self, name):
        workload = self.workloads[name]
        return f"spiffe://{self.trust_domain}/ns/{workload['ns']}/sa/{workload['sa']}"
