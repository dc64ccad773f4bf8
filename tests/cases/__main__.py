"""Replays cases of public test suites against the built binary, as anyone would who has nothing but it: what they say comes
from elsewhere, so that the project's own reading of a rule is not its only test.

    ./test cases DIR               every suite that is found in DIR
    ./test cases DIR WORD …        those whose file or kind contains a word

A suite is known by what is in its file, not by its name: requests and where they go, policies and who gets through,
certificate chains, resources valid and not, input of analysers; and every YAML file that is no other suite's input. For each
it is said how many passed and failed, which failed, and which were left out and why. Needs root, or user namespaces: the
hosts are network namespaces."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path[:0] = [str(REPOSITORY / "bench")]

import hosts  # noqa: E402
import suites  # noqa: E402
from report import Report  # noqa: E402


def main():
    if len(sys.argv) < 2:
        sys.exit("cases: which directory?")
    directory, words = Path(sys.argv[1]).resolve(), sys.argv[2:]
    if not directory.is_dir():
        sys.exit(f"cases: {directory} is no directory")
    found = [suite for suite in suites.found_in(directory)
             if not words or any(word in f"{suite.name} {suite.kind}" for word in words)]
    if not found:
        sys.exit(f"cases: no suite in {directory}")
    binary = the_binary()
    sys.argv[0] = str(Path(__file__).resolve().parent)
    hosts.enter()
    report = Report()
    with tempfile.TemporaryDirectory(prefix="baremesh-cases-") as scratch:
        for number, suite in enumerate(found):
            place = Path(scratch) / str(number)
            place.mkdir()
            report.begin(suite.name)
            suite.run(report, binary, place)
            report.end()
    sys.exit(report.close())


def the_binary():
    binary = Path(os.environ.get("BAREMESH_BIN") or REPOSITORY / "target/debug/baremesh").resolve()
    if not binary.is_file() and not os.environ.get("BAREMESH_BIN"):
        subprocess.run(["cargo", "build", "--locked", "-p", "baremesh"], cwd=REPOSITORY, check=True)
    if not binary.is_file():
        sys.exit(f"cases: no binary at {binary}")
    return binary


main()
