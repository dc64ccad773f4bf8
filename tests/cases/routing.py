"""Requests and where they go, through real agents: the callers and the services of the cases are programs on namespace
hosts, each configuration is put in force as an operator would, and a request is judged by what its caller was answered and
by what the services saw of it.

Gateways of the cases are such as clients come into the mesh by, which are not there yet. What is not about the listener
itself is replayed all the same: the gateway's VirtualServices are bound to the mesh instead, and the caller dials a service
`ingress` with the request's own `Host`."""

import json
import re
import time

import mesh
from hosts import CommandFailed
from town import INGRESS, Town, resolve

# The service's port that a request dials unless it names another.
PORT = 80

# How much longer a split is watched than a case asks for, so that chance does not decide it.
LONGER = 10

# How long a copy is waited for that must not come.
SETTLE_SECONDS = 1.0

GATEWAY_ONLY = "a gateway's own: that no server of it lists a host"
MERGED = "a gateway's own: VirtualServices of one host are merged there, and on the mesh the first holds"
CLAIMS = "a gateway's own: that it refuses a token itself, and routes by the tokens that it takes"

# What a request and an expectation may say here. Anything else is no reason to pass.
REQUEST = {"host", "port", "path", "method", "headers", "body", "token", "upstream", "backend_delay"}
EXPECT = {"status", "backend", "upstream_header", "upstream_absent", "upstream_host", "upstream_path", "response_header",
          "response_absent", "location", "location_path", "reached_upstream", "split", "tolerance", "same_endpoint",
          "mirrored", "attempts"}


def run(report, suite, binary, scratch):
    configurations = suite.cases["config_sets"]
    runnable = {}
    for case in suite.cases["cases"]:
        resources = configurations[case["set"]]["resources"]
        reason = why_left_out(case, resources)
        if reason:
            report.left_out(reason, case["id"])
        else:
            runnable.setdefault((case["set"], case["via"]), []).append(case)
    bound = {key: as_on_mesh(configurations[key[0]]["resources"], cases) for key, cases in runnable.items()}
    if not runnable:
        return
    with Town(binary, scratch, bound, [case for cases in runnable.values() for case in cases]) as town:
        for key, cases in runnable.items():
            run_set(report, town, bound[key], cases)


def why_left_out(case, resources):
    """Why a case cannot be replayed; None if it can."""
    kinds = {resource["kind"] for resource in resources}
    if "RequestAuthentication" in kinds or "token" in case["req"] or "@request.auth" in json.dumps(resources):
        return CLAIMS
    if case["via"] == "gateway":
        services = [resource["spec"] for resource in resources if resource["kind"] == "VirtualService"]
        host = host_of(case)
        claims = sum(any(matches(pattern, host) for pattern in spec.get("hosts", [])) for spec in services)
        if claims == 0 or not served(resources, host):
            return GATEWAY_ONLY
        if claims > 1:
            return MERGED
    return None


def served(resources, host):
    """Whether a server of a gateway lists the host."""
    servers = [server for resource in resources if resource["kind"] == "Gateway" for server in resource["spec"]["servers"]]
    return any(matches(name.rsplit("/", 1)[-1], host) for server in servers for name in server["hosts"])


def matches(pattern, host):
    return pattern == "*" or pattern == host or (pattern.startswith("*.") and host.endswith(pattern[1:]))


def host_of(case):
    """Whom a request names, without a port."""
    return case["req"].get("host", "example.com").rsplit(":", 1)[0]


def as_on_mesh(resources, cases):
    """The resources without gateways. For requests that a gateway would take, what was bound to one is bound to the mesh,
    where a host `*` is not taken and is written as what the requests name."""
    names = sorted({host_of(case) for case in cases})
    found = []
    for resource in resources:
        spec = json.loads(json.dumps(resource["spec"]))
        if resource["kind"] == "VirtualService" and cases[0]["via"] == "gateway":
            spec.pop("gateways", None)
            if "hosts" in spec:
                spec["hosts"] = [name for host in spec["hosts"] for name in (names if host == "*" else [host])]
            spec["http"] = [route for route in spec.get("http", []) if keep_at_gateway(route)]
        if resource["kind"] != "Gateway":
            found.append({**resource, "spec": spec})
    return found


def keep_at_gateway(route):
    """Takes the gateways out of a route's conditions; false if it was for the mesh alone."""
    if "match" not in route:
        return True
    route["match"] = [match for match in route["match"] if match.pop("gateways", ["any"]) != ["mesh"]]
    return bool(route["match"])


def run_set(report, town, resources, cases):
    try:
        town.mesh.apply(resources)
    except CommandFailed as error:
        for case in cases:
            report.failed(case["id"], error)
        return
    for case in cases:
        try:
            report.check(case["id"], fault_of(town, resources, case))
        except (CommandFailed, OSError, ValueError) as error:
            report.failed(case["id"], error)
    for resource in resources:
        town.mesh.delete(resource)
    town.mesh.wait_until_in_force()


def fault_of(town, resources, case):
    """What is not as it should be about a case's requests; None if nothing is."""
    expected, request = case["expect"], case["req"]
    strange = (set(request) - REQUEST) | (set(expected) - EXPECT)
    if strange:
        return f"nobody here knows what it means: {' '.join(sorted(strange))}"
    trouble = Trouble(town, resources, request)
    count = case.get("n", 1)
    # A case that allows chance its part is watched for longer, for the same share.
    longer = LONGER if expected.get("tolerance") else 1
    before = town.seen()
    with trouble:
        answers = [send(town, case) for _ in range(count * longer)]
        wanted = expected.get("mirrored", {})
        seen = watch(town, before, wanted)
    faults = [fault for answer in answers for fault in faults_of_answer(expected, answer, request)]
    faults += faults_of_all(expected, answers, seen, longer)
    if "mirrored" in expected:
        copies = {name: sum(1 for record in seen if record["instance"] in named(name) and is_copy(record)) for name in wanted}
        faults += [f"{copies[name]} copies for {name}, not {most}" for name, most in wanted.items() if copies[name] != most]
    return f"{faults[0]} ({len(faults)} faults): {json.dumps(answers[0])[:700]}" if faults else None


def is_copy(record):
    return (record["authority"] or "").split(":")[0].endswith("-shadow")


def watch(town, before, wanted):
    """What the services saw of the requests, when the copies that are to come have come, and others had time to."""
    def since():
        return [record for name, records in town.seen().items() for record in records[len(before.get(name, [])):]]
    if any(wanted.values()):
        mesh.wait_until("copies of requests", lambda: sum(map(is_copy, since())) >= sum(wanted.values()))
    elif wanted:
        time.sleep(SETTLE_SECONDS)
    return since()


def send(town, case):
    """One request as the case says, and what its caller was answered."""
    request = case["req"]
    port, name = request.get("port", PORT), request.get("host", "example.com")
    dialled = resolve(host_of(case), "default") if case["via"] == "mesh" else INGRESS
    words = ["--method", request.get("method", "GET"), "--header", f"Host: {name}"]
    for key, value in request.get("headers", {}).items():
        words += ["--header", f"{key}: {value}"]
    if "body" in request:
        words += ["--data", request["body"]]
    return town.get(case.get("from", "a"), dialled, port, [*words, f"http://{name}{request.get('path', '/')}"])


class Trouble:
    """What befalls the services for the time of a case, if it says so."""

    def __init__(self, town, resources, request):
        self.town = town
        self.names = destinations(resources, request)
        self.orders = ["literal"]
        self.refused = 0
        if "backend_delay" in request:
            self.orders.append(f"delay={request['backend_delay'].removesuffix('s')}")
        if "upstream" in request:
            self.read(request["upstream"])

    def read(self, text):
        if found := re.fullmatch(r"([1-5]\d\d) always", text):
            self.orders.append(f"status={found[1]}")
        elif found := re.fullmatch(r"([1-5]\d\d) first (\d+)(?: times)?", text):
            self.orders += [f"status={found[1]}", f"fail-first={found[2]}"]
        elif found := re.fullmatch(r"refuse first (\d+) TCP connects", text):
            self.refused = int(found[1])
        else:
            raise ValueError(f"nobody here knows how to do: {text}")

    def __enter__(self):
        for name in self.names:
            if self.orders != ["literal"]:
                self.town.behave(name, self.orders)
            if self.refused:
                self.town.refuse_connections(name, self.refused)

    def __exit__(self, *_):
        self.town.refuse_no_more()
        if self.orders != ["literal"]:
            for name in self.names:
                self.town.behave(name, ["literal"])


def destinations(resources, request):
    """The services that a set's requests may come to."""
    found = {resolve(request.get("host", "b").rsplit(":", 1)[0], "default")} if "host" in request else set()
    for resource in resources:
        for route in resource["spec"].get("http", []):
            for entry in [*route.get("route", []), *route.get("mirrors", [])]:
                found.add(resolve(entry["destination"]["host"], resource["ns"]))
    return found


def faults_of_answer(expected, answer, request):
    """What is wrong with one answer."""
    told = answer.get("account") or {}
    sent, back = told.get("headers", {}), answer.get("headers", {})

    def differ(what, wanted, found):
        if wanted != found:
            yield f"{what} is {found!r}, not {wanted!r}"

    if answer.get("status") is None:
        yield f"no answer: {answer.get('error')}"
        return
    if "status" in expected:
        yield from differ("the status", expected["status"], answer["status"])
    if "backend" in expected and answer.get("instance") not in named(expected["backend"]):
        yield f"{answer.get('instance')} answered, not {expected['backend']}"
    for name, value in expected.get("upstream_header", {}).items():
        yield from differ(f"{name} at the service", value, ",".join(sent.get(name, [])))
    for name in expected.get("upstream_absent", []):
        yield from differ(f"{name} at the service", [], sent.get(name, []))
    for name, value in expected.get("response_header", {}).items():
        yield from differ(f"{name} of the answer", value, ",".join(back.get(name, [])))
    for name in expected.get("response_absent", []):
        yield from differ(f"{name} of the answer", [], back.get(name, []))
    location = ",".join(back.get("location", []))
    if "location" in expected:
        yield from differ("the location", expected["location"], location)
    if "location_path" in expected:
        yield from differ("the location's path", expected["location_path"], "/" + location.split("://")[-1].partition("/")[2])
    if "upstream_host" in expected:
        yield from differ("the authority at the service", expected["upstream_host"], told.get("authority"))
    if "upstream_path" in expected:
        yield from differ("the path at the service", expected["upstream_path"], told.get("path"))


def faults_of_all(expected, answers, seen, longer):
    """What is wrong with several requests together."""
    if expected.get("reached_upstream") is False and seen:
        yield f"a service saw it: {seen[0]}"
    if expected.get("same_endpoint") and len({answer.get("instance") for answer in answers}) != 1:
        yield f"several answered: {sorted({str(answer.get('instance')) for answer in answers})}"
    for name, share in expected.get("split", {}).items():
        count = sum(1 for answer in answers if answer.get("instance") in named(name))
        if abs(count / longer - share) > expected.get("tolerance", 0):
            yield f"{name} answered {count} of {len(answers)}"
    if "attempts" in expected:
        told = [answer.get("account", {}).get("headers", {}).get("x-envoy-attempt-count", []) for answer in answers]
        attempts = max([len(seen), *(int(value) for values in told for value in values)])
        if attempts != expected["attempts"]:
            yield f"{attempts} attempts, not {expected['attempts']}"


class named:
    """The instances that a case means by a name: any of the service, on a port if it names one."""

    def __init__(self, text):
        host, _, port = text.partition(":")
        self.service, self.port = resolve(host, "default"), port

    def __contains__(self, instance):
        # SERVICE:PORT@HOST
        service, _, rest = (instance or "").partition(":")
        return service == self.service and self.port in ("", rest.split("@")[0])
