"""The tokens of the cases: their claims are in the fixture, the key is made here, and its public half is served to the agents
by a program on the control host."""

import base64
import json
import subprocess
import sys
import time

import mesh

PORT = 8099
KEY_ID = "cases"

# Answers one path with the keys, and every other with 404.
SERVER = """
import http.server, sys
keys = open(sys.argv[1], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        found = self.path == "/jwks"
        self.send_response(200 if found else 404)
        self.send_header("content-type", "application/json")
        self.end_headers()
        self.wfile.write(keys if found else b"")
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[2])), Handler)
print("listening", flush=True)
server.serve_forever()
"""


def encoded(data):
    """Base64url as JSON Web Tokens have it (RFC 7515, section 2)."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def with_addresses(policies):
    """The policies with where the keys are."""
    base = f"http://{mesh.CONTROL_ADDRESS}:{PORT}"
    text = json.dumps(policies).replace("${JWKS_URI_404}", f"{base}/none")
    return json.loads(text.replace("${JWKS_URI}", f"{base}/jwks"))


class Tokens:
    def __init__(self, claims, directory):
        self.claims = {name: value for name, value in claims.items() if isinstance(value, dict)}
        self.key = directory / "token.key"
        self.keys = directory / "jwks.json"
        self.made = {}

    def serve(self, town):
        """Makes the key, and serves its public half."""
        self.key.parent.mkdir(parents=True, exist_ok=True)
        openssl("genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048", "-out", str(self.key))
        text = openssl("rsa", "-in", str(self.key), "-noout", "-modulus").decode()
        modulus = bytes.fromhex(text.strip().removeprefix("Modulus="))
        key = {"kty": "RSA", "kid": KEY_ID, "alg": "RS256", "use": "sig", "e": "AQAB", "n": encoded(modulus)}
        self.keys.write_text(json.dumps({"keys": [key]}))
        town.control.spawn(sys.executable, "-c", SERVER, str(self.keys), str(PORT), log="jwks")
        log = town.control.log_dir / f"{town.control.name}-jwks.log"
        mesh.wait_until("the keys are served", lambda: "listening" in log.read_text())

    def put(self, request, headers, path):
        """Puts a case's token where it says, and returns the path; without one, nothing is changed."""
        if "token" not in request:
            return path
        kind, _, name = request.get("token_in", "Authorization: Bearer").partition(":")
        token = self.token(request["token"])
        if kind == "query":
            return f"{path}{'&' if '?' in path else '?'}{name.strip()}={token}"
        headers[kind] = f"{name.strip()} {token}".strip()
        return path

    def token(self, name):
        """A token by its name, signed; one that is none is as it stands."""
        if name not in self.claims:
            return f"{name}.token.x"
        if name not in self.made:
            now = int(time.time())
            claims = {"iat": now, "exp": now + 10 ** 8, **self.claims[name]}
            head = encoded(json.dumps({"alg": "RS256", "kid": KEY_ID, "typ": "JWT"}).encode())
            signed = f"{head}.{encoded(json.dumps(claims).encode())}"
            signature = openssl("dgst", "-sha256", "-sign", str(self.key), stdin=signed.encode())
            self.made[name] = f"{signed}.{encoded(signature)}"
        return self.made[name]

    def expected(self, value, request):
        """What a case expects to be seen, with its token in the place of words for it."""
        if not value.startswith("<") and "<token>" not in value:
            return value
        token = self.token(request["token"])
        payload = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        words = {"<base64url JWT payload segment>": payload, "<iat claim as string>": str(claims["iat"]),
                 "Bearer <token>": f"Bearer {token}"}
        return words.get(value)


def openssl(*argv, stdin=b""):
    return subprocess.run(["openssl", *argv], input=stdin, capture_output=True, check=True).stdout
