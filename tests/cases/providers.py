"""Providers of external authorization for policies that ask them: each lets through what says `x-ext-authz: allow`, as the
suites have it, and refuses all else."""

import json
import sys

import mesh

PORT = 8098
REFUSED = "denied by ext_authz for not found header `x-ext-authz: allow` in the request"

SERVER = """
import http.server, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def check(self):
        allowed = self.headers.get("x-ext-authz") == "allow"
        body = b"" if allowed else sys.argv[2].encode()
        self.send_response(200 if allowed else 403)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    do_GET = do_POST = do_PUT = do_DELETE = check
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler)
print("listening", flush=True)
server.serve_forever()
"""


def named(policy_sets):
    """The providers that CUSTOM policies of these sets name."""
    names = {policy["spec"]["provider"]["name"] for policies in policy_sets for policy in policies
             if policy["kind"] == "AuthorizationPolicy" and policy["spec"].get("action") == "CUSTOM"}
    return sorted(names)


def config(names):
    """What the MeshConfig says of them."""
    if not names:
        return ""
    entries = [f"""{{ name = {json.dumps(name)}, envoyExtAuthzHttp = {{ service = "{mesh.CONTROL_ADDRESS}", port = {PORT}, """
               """includeRequestHeadersInCheck = ["x-ext-authz"] } }""" for name in names]
    return f"extensionProviders = [{', '.join(entries)}]\n"


def serve(town):
    """Starts the program that all of them are."""
    town.control.spawn(sys.executable, "-c", SERVER, str(PORT), REFUSED, log="providers")
    log = town.control.log_dir / f"{town.control.name}-providers.log"
    mesh.wait_until("the providers listen", lambda: "listening" in log.read_text())
