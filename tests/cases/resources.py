"""Single resources, valid and not, and files that users copy, through `baremesh analyze`."""

import json
import re
import subprocess

# The kinds that this version takes.
KINDS = {
    "Service", "WorkloadEntry", "VirtualService", "DestinationRule", "PeerAuthentication", "AuthorizationPolicy",
    "RequestAuthentication", "ServiceEntry", "Sidecar", "WorkloadGroup", "Gateway",
}

# What our message says where it does not use the words of the case.
SAME_THING = {
    ("PeerAuthentication", "zero-port"): "a port must be between 1 and 65535",
    ("RequestAuthentication", "multi-refs"): "`targetRefs` is refused",
    ("RequestAuthentication", "bad-target-name"): "`targetRef` is refused",
    ("RequestAuthentication", "bad-target-group"): "`targetRef` is refused",
    ("RequestAuthentication", "no-issuer"): "`jwtRules[0]`: expected a map",
    ("RequestAuthentication", "invalid-jwks"): "`jwtRules[0].jwksUri`",
    ("RequestAuthentication", "invalid-from-headers-empty-name"): "fromHeaders[0].name`: must not be empty",
    ("RequestAuthentication", "invalid-from-cookies"): "fromCookies[0]`: must not be empty",
    ("RequestAuthentication", "invalid-claim-to-header-claim-empty"):
        "outputClaimToHeaders[0].claim`: must not be empty",
    ("RequestAuthentication", "invalid-claim-to-header-bad-header"): "is not a header name",
    ("RequestAuthentication", "invalid-space-delimited-claims"): "spaceDelimitedClaims[0]`: must not be empty",
    ("WorkloadEntry", "no-spec"): "`spec` is required",
    ("WorkloadEntry", "bad-uds-dir"): "Unix sockets are not taken as an address",
    ("WorkloadEntry", "uds-with-ports"): "Unix sockets are not taken as an address",
    ("WorkloadEntry", "bad-port-name"): "`ports[@]`: is not a port name",
    ("ServiceEntry", "no-spec"): "`spec` is required",
    ("ServiceEntry", "bad-selector-value"): "wildcards are not supported in labels and selectors",
    ("ServiceEntry", "bad-port"): "a port must be between 1 and 65535",
    ("WorkloadGroup", "no-spec"): "`spec` is required",
    ("WorkloadGroup", "http-probe-invalid"): "is not a header name",
}

# Valid for Istio, and refused here on purpose.
LEFT_OUT = {
    ("WorkloadEntry", "uds-abstract"):
        "a Unix socket is reached on its own host alone, and a workload's endpoint is reached from others",
}

# Errors of an analysis, which keep nothing from being taken: a case is one file, and what it is about stands in others.
ANALYSED = {"IST0101", "IST0109", "IST0112", "BM0409"}
# Codes of findings: a field that is not enforced, a kind that is not taken.
REFUSED_FIELD, REFUSED_KIND = "BM0103", "BM0105"
NOT_YET = re.compile(r"not enforce|not read yet|not resolved yet|not supported yet|there is no Envoy here")
# No file of the cases needs a tenth of it.
SECONDS = 20


class Unexpected(Exception):
    """The program did something that no input may make it do."""


def analyze(binary, text):
    """The findings on a YAML text, and how many resources were read."""
    argv = [binary, "analyze", "-o", "json", "-"]
    done = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=SECONDS)
    if done.returncode not in (0, 1):
        raise Unexpected(f"ended with {done.returncode}: {done.stderr.strip()[-300:]}")
    findings = json.loads(done.stdout)["findings"]
    if (done.returncode == 1) != any(is_error(finding) for finding in findings):
        raise Unexpected(f"ended with {done.returncode}, and the findings are {findings}")
    argv = [binary, "analyze", "-"]
    said = subprocess.run(argv, input=text, capture_output=True, text=True, timeout=SECONDS).stderr
    held = re.search(r"^(\d+) resources in 1 files", said, re.MULTILINE)
    if not held:
        raise Unexpected(f"no count of resources in {said[-300:]!r}")
    return findings, int(held.group(1))


def is_error(finding):
    return finding["severity"] == "error"


def is_refusal(finding):
    return is_error(finding) and finding["code"] not in ANALYSED


def documents(text):
    """The documents of a YAML text as (kind, name, text): as much of YAML as the cases' files use."""
    found = []
    for part in re.split(r"^---[^\n]*$", text, flags=re.MULTILINE):
        kind = re.search(r"^kind:\s*(\S+)", part, re.MULTILINE)
        name = re.search(r"^metadata:\n(?:[ ]+.*\n)*?[ ]+name:\s*[\"']?([^\s\"']+)", part, re.MULTILINE)
        if kind:
            found.append((kind.group(1), name.group(1) if name else "", part))
    return found


def run_validation(report, suite, binary, _scratch):
    left = {}
    for case in suite.cases:
        kind, name, expected = case["kind"], case["name"], case["error_contains"]
        label = f"{kind}/{name}"
        if kind not in KINDS:
            report.not_yet(kind, label)
            continue
        file = suite.place / "validation" / case["file"].rsplit("/", 1)[1]
        if file not in left:
            left[file] = documents(file.read_text())
        # Where documents share a name, the fault that one of them states says which is meant.
        named = [found for found in left[file] if found[:2] == (kind, name)]
        stating = [found for found in named if expected and expected in stated_fault(found[2])]
        document = next(iter(stating or named), None)
        if document is None:
            report.failed(label, f"{file.name} has no such document")
            continue
        left[file].remove(document)
        if (kind, name) in LEFT_OUT:
            report.left_out(LEFT_OUT[kind, name], label)
            continue
        text = re.sub(r"^_err:.*\n", "", document[2], flags=re.MULTILINE)
        try:
            judge(report, binary, (kind, name, expected), text)
        except (Unexpected, subprocess.TimeoutExpired) as error:
            report.failed(label, error)


def stated_fault(text):
    stated = re.search(r"^_err:\s*(.*)$", text, re.MULTILINE)
    return stated.group(1) if stated else ""


def judge(report, binary, case, text):
    kind, name, expected = case
    label = f"{kind}/{name}"
    findings, held = analyze(binary, text)
    errors = [finding for finding in findings if is_refusal(finding)]
    if expected is not None:
        report.check(label, refusal_fault(errors, SAME_THING.get((kind, name), expected)))
    elif not errors:
        report.check(label, None if held == 1 else f"{held} resources were read")
    elif all(NOT_YET.search(finding["message"] + " " + (finding["help"] or "")) for finding in errors):
        report.not_yet(f"{len(errors)} fields or values of {kind}, each refused by its name", label)
        if kind == "AuthorizationPolicy":
            judge_the_rest(report, binary, label, (text, errors))
    else:
        report.failed(label, f"refused: {[finding['message'] for finding in errors]}")


def refusal_fault(errors, expected):
    plain = lambda text: re.sub(r"[`'\"]", "", text).lower()  # noqa: E731
    if not errors:
        return f"accepted; expected was: {expected}"
    # Our paths begin below `spec`.
    expected = expected.removeprefix("spec.")
    if any(plain(expected) in plain(finding["message"]) for finding in errors):
        return None
    return f"refused for something else than {expected!r}: {[finding['message'] for finding in errors]}"


def judge_the_rest(report, binary, label, refused):
    """A policy without the fields that are refused is taken: each was refused for itself."""
    text, errors = refused
    lines = text.split("\n")
    for finding in errors:
        # Each field stands on its own line; a condition's key has its values and what they must not be behind it.
        first = finding["line"] - 1
        for line in range(first, first + 3 if "key:" in lines[first] else first + 1):
            lines[line] = ""
    findings, held = analyze(binary, "\n".join(lines))
    rest = [finding["message"] for finding in findings if is_refusal(finding)]
    report.check(f"{label}, the fields of connections", None if held == 1 and not rest else f"refused: {rest}")


def run_yaml(report, suite, binary, _scratch):
    outcomes = {}
    root = suite.place
    for file in sorted(root.rglob("*.yaml")):
        label = str(file.relative_to(root))
        text = file.read_text()
        try:
            outcome, fault = outcome_of(binary, text)
        except (Unexpected, subprocess.TimeoutExpired) as error:
            outcome, fault = "failed", error
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
        if outcome.startswith("not yet"):
            report.not_yet(outcome.removeprefix("not yet: "), label)
        else:
            report.check(label, fault)
    report.remark(", ".join(f"{outcome}: {number}" for outcome, number in sorted(outcomes.items())))


def is_field_of(finding, kind, name):
    """Whether a field of the resource, a value that a later version takes, or an address of it that is of this host alone, is
    refused by name, and the resource with it."""
    resource = finding["resource"] or {}
    is_said = re.search(r"is refused|is not supported yet|is no address of another host", finding["message"])
    return (resource.get("kind"), resource.get("name")) == (kind, name) and bool(is_said)


def outcome_of(binary, text):
    """What became of a file, and the fault if it is none of what it may be."""
    findings, held = analyze(binary, text)
    errors = [finding for finding in findings if is_refusal(finding)]
    found = documents(text)
    later, kinds = False, set()
    for kind, name, part in found:
        about = [finding for finding in errors if f"{kind} `{name}`" in finding["message"] or is_field_of(finding, kind, name)]
        if about:
            if kind == "EnvoyFilter" and "ratelimit" in part and not any("RateLimit" in (f["help"] or "") for f in about):
                return "failed", f"{kind} {name} limits requests, and RateLimit is not named"
            later |= any("not supported yet" in finding["message"] for finding in about)
            kinds.add(kind)
            errors = [finding for finding in errors if finding not in about]
        elif kind in KINDS:
            held -= 1
        else:
            return "failed", f"nothing is said about {kind} {name}"
    if errors or held != 0 or not found:
        return "failed", f"{held} more or fewer resources than documents, {[finding['message'] for finding in errors]}"
    if later:
        return f"not yet: {' '.join(sorted(kinds))}", None
    return ("refused by name" if kinds else "read with effect"), None
