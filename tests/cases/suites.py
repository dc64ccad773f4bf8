"""Which suites are in a directory: each is known by the shape of what is in its file."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import analysis
import authorization
import chains
import paths
import resources
import routing
import tokens

# Directories beside a suite's file whose YAML files are its input.
INPUTS = {"validation", "analyze"}


@dataclass
class Suite:
    """Cases of one file, or the YAML files of one directory."""

    name: str
    kind: str
    # What was read, and the directory it stands in.
    cases: Any
    place: Path

    def run(self, report, binary, scratch):
        if self.kind == "unknown":
            report.failed(self.name, "its form is none that is known here")
        else:
            RUNNERS[self.kind](report, self, binary, scratch)


RUNNERS = {
    "routing": routing.run,
    "authorization": authorization.run,
    "chains": chains.run,
    "tokens": tokens.run,
    "paths": paths.run,
    "validation": resources.run_validation,
    "analysis": analysis.run,
    "yaml": resources.run_yaml,
}


def found_in(directory):
    """All suites below a directory, in the order of their names."""
    suites, taken = [], set()
    for path in sorted(directory.rglob("*.json")):
        if set(path.relative_to(directory).parts[:-1]) & INPUTS:
            continue
        try:
            content = json.loads(path.read_text())
        except ValueError:
            content = None
        kind, cases = kind_of(content)
        suites.append(Suite(str(path.relative_to(directory)), kind, cases, path.parent))
    for path in sorted(directory.rglob("*.yaml")):
        parts = path.relative_to(directory).parts
        if set(parts[:-1]) & INPUTS:
            continue
        root = directory / parts[0] if len(parts) > 1 else directory
        if root not in taken:
            taken.add(root)
            suites.append(Suite(f"{root.relative_to(directory)}/*.yaml", "yaml", None, root))
    return suites


def kind_of(content):
    """What a file's cases are, and the cases."""
    first = {}
    if isinstance(content, list):
        first = content[0] if content and isinstance(content[0], dict) else {}
        return ("validation", content) if "error_contains" in first else ("unknown", content)
    if not isinstance(content, dict):
        return "unknown", content
    schema = str(content.get("schema", ""))
    if schema.startswith("routing-cases/"):
        return "routing", content
    if schema.startswith("authz-cases/"):
        return "authorization", content
    if "testcases" in content:
        return "chains", content["testcases"]
    if "testGroups" in content:
        return "tokens", content["testGroups"]
    cases = content.get("cases") or [{}]
    if "analyzer" in cases[0]:
        return "analysis", cases
    if {"mode", "in", "out"} <= set(cases[0]):
        return "paths", cases
    return "unknown", content
