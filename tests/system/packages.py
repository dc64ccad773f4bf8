"""The packages of three versions, made of one program. Each version's program has a section of its own, so that it can be
told which of them a process is; its manual pages and the comment at the end of agent.toml are its own too."""

import hashlib
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

from report import NotKnown

REPOSITORY = Path(__file__).resolve().parents[2]
VERSIONS = ("0.1.0", "0.1.1", "0.2.0")


@dataclass(frozen=True)
class Package:
    version: str
    deb: Path
    rpm: Path
    program: Path
    digest: str  # SHA-256 of its /usr/bin/baremesh


def target():
    return Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target")).resolve()


def build():
    """Makes the packages, unless those of the same program and the same packaging are there. A debug build that this makes,
    or the program that BAREMESH_PACKAGE_BIN names."""
    named = os.environ.get("BAREMESH_PACKAGE_BIN")
    program = Path(named) if named else target() / "debug/baremesh"
    if not named:
        subprocess.run(["cargo", "build", "--locked", "--quiet", "-p", "baremesh"], cwd=REPOSITORY, check=True)
    if not program.is_file():
        raise NotKnown(f"there is no program at {program}")
    out = target() / "system/packages"
    stamp = out / "made-of"
    made_of = digest_of_inputs(program)
    if not stamp.is_file() or stamp.read_text() != made_of:
        stamp.unlink(missing_ok=True)
        out.mkdir(parents=True, exist_ok=True)
        for version in VERSIONS:
            pack(program, version, out / version)
        stamp.write_text(made_of)
    return [found(version, out / version) for version in VERSIONS]


def digest_of_inputs(program):
    digest = hashlib.sha256(program.read_bytes())
    tracked = subprocess.run(["git", "ls-files", "-z", "package", "packaging", "systemd", "docs", "examples", "cli/Cargo.toml", __file__],
                             cwd=REPOSITORY, check=True, capture_output=True).stdout
    for name in filter(None, tracked.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            digest.update(name.encode() + (REPOSITORY / name).read_bytes())
    return digest.hexdigest()


def pack(program, version, place):
    place.mkdir(exist_ok=True)
    for old in place.glob("*"):
        old.unlink()
    marked, mark = place / "baremesh", place / "mark"
    mark.write_text(version)
    subprocess.run(["objcopy", "--strip-debug", "--add-section", f".baremesh.packaged={mark}", program, marked], check=True)
    mark.unlink()
    # Its time is of no matter here, and without a commit there would be none.
    environment = {"SOURCE_DATE_EPOCH": "1700000000", **os.environ}
    package = [REPOSITORY / "package", "--draft", "--version", version]
    quiet = {"env": environment, "check": True, "stdout": subprocess.DEVNULL}
    subprocess.run([*package, "--stage", "--binary", marked], **quiet)
    settings = target() / "package/release/package/common/etc/baremesh/agent.toml"
    settings.write_text(settings.read_text() + f"# As version {version} has it.\n")
    subprocess.run([*package, "--staged", "--out", place], **quiet)


def found(version, place):
    program = place / "baremesh"
    return Package(version, next(place.glob("*.deb")), next(place.glob("*.rpm")), program,
                   hashlib.sha256(program.read_bytes()).hexdigest())
