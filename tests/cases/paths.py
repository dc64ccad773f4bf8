"""Paths as they are sent, and as policies and the program behind see them: a request of each goes through real agents, under a
policy that allows the paths that are expected and no other."""

import json
import sys

import mesh
from hosts import CommandFailed
from mesh import Mesh

# Paths that no request may have here, with the reason.
REFUSED = {"#": "a `#` in a request's path is answered with 400: servers cut it off or do not"}

MESH = """
[[MeshConfig]]
name = "cases"
"""

# Sends a path as it stands, which no client library does, and prints the answer's status and body.
RAW = """
import json, socket, sys
with socket.create_connection((sys.argv[1], 80), timeout=20) as stream:
    stream.sendall(f"GET {sys.argv[2]} HTTP/1.1\\r\\nHost: app\\r\\nConnection: close\\r\\n\\r\\n".encode())
    data = b""
    while chunk := stream.recv(65536):
        data += chunk
head, _, body = data.decode().partition("\\r\\n\\r\\n")
print(json.dumps([head.split(" ")[1:2], body]))
"""


def run(report, suite, binary, scratch):
    cases = suite.cases
    with Mesh(binary, scratch, {"mesh.toml": MESH}) as town:
        caller = town.join("caller", "10.0.0.11", ["caller.default"])
        caller.baremesh("service", "register", "caller", "--user", "0", "--port", "1")
        app = town.join("app", "10.0.0.12", ["app.default"])
        app.spawn_web("web", "app", ["127.0.0.1:8080"])
        app.baremesh("service", "register", "app", "--port", "80:8080", "--protocol", "http")
        mesh.wait_until("the caller knows the service", lambda: caller.endpoints("app.default"))
        for mode in dict.fromkeys(case["mode"] for case in cases):
            of_mode = [case for case in cases if case["mode"] == mode]
            put_in_force(town, mode, of_mode)
            for case in of_mode:
                label = f"{mode}:{case['in']}"
                reason = next((reason for text, reason in REFUSED.items() if text in case["in"]), None)
                if reason is not None:
                    report.left_out(reason, label)
                    continue
                try:
                    report.check(label, fault_of(caller, case))
                except (CommandFailed, ValueError) as error:
                    report.failed(label, error)


def put_in_force(town, mode, cases):
    paths = sorted({case["out"] for case in cases})
    config = {"kind": "MeshConfig", "ns": "default", "name": "cases",
              "spec": {"pathNormalization": {"normalization": mode}}}
    policy = {"kind": "AuthorizationPolicy", "ns": "default", "name": "paths", "spec": {
        "selector": {"matchLabels": {"app": "app"}}, "rules": [{"to": [{"operation": {"paths": paths}}]}]}}
    town.apply([policy])
    town.operate("apply", "-f", "-", stdin=manifest_of_mesh(config))
    town.wait_until_in_force()


def manifest_of_mesh(config):
    return json.dumps({"apiVersion": "baremesh.io/v1", "kind": "MeshConfig", "metadata": {"name": config["name"]},
                       "spec": config["spec"]})


def fault_of(caller, case):
    said = caller.host.run(sys.executable, "-c", RAW, caller.address_of("app.default"), case["in"])
    status, body = json.loads(said)
    if status != ["200"]:
        return f"refused: {said}"
    seen = json.loads(body)["path"]
    return None if seen == case["out"] else f"should be {case['out']}: {seen}"
