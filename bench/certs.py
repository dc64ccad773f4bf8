"""The certificates of one run: a root and one ECDSA P-256 leaf a host, each with a SPIFFE ID as its only name,
made with the openssl program in the run's own directory."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

TRUST_DOMAIN = "bench.internal"
CLIENT_ID = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/client"
SERVER_ID = f"spiffe://{TRUST_DOMAIN}/ns/default/sa/server"


@dataclass(frozen=True)
class Credentials:
    """One leaf's files, the root that it trusts, and the SPIFFE ID that it carries."""

    certificate: Path
    key: Path
    root: Path
    identity: str


def make(directory):
    """Makes the root and both leaves below `directory`; returns the client's and the server's credentials."""
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    root, root_key = directory / "root.pem", directory / "root.key"
    _openssl("req", "-x509", *_new_key(root_key), "-out", root, "-days", "2", "-subj", "/O=baremesh bench",
             "-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign,cRLSign")
    return tuple(_leaf(directory, name, identity, (root, root_key))
                 for name, identity in (("client", CLIENT_ID), ("server", SERVER_ID)))


def _leaf(directory, name, identity, issuer):
    certificate, key, request = (directory / f"{name}.{end}" for end in ("pem", "key", "csr"))
    extensions = directory / f"{name}.ext"
    extensions.write_text(
        f"subjectAltName=critical,URI:{identity}\nbasicConstraints=critical,CA:FALSE\n"
        "keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n")
    root, root_key = issuer
    _openssl("req", "-new", *_new_key(key), "-out", request, "-subj", "/")
    _openssl("x509", "-req", "-in", request, "-CA", root, "-CAkey", root_key, "-CAcreateserial",
             "-out", certificate, "-days", "1", "-extfile", extensions)
    return Credentials(certificate, key, root, identity)


def _new_key(path):
    return ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", path)


def _openssl(*argv):
    subprocess.run(["openssl", *map(str, argv)], check=True, capture_output=True)
