"""Input of analysers, and the codes that they find in it, through `baremesh analyze`. Upstream runs one analyser a case, so
only findings with its codes are looked at: all of them, and no others, have to be there."""

import re
import subprocess
from collections import Counter

from resources import REFUSED_FIELD, REFUSED_KIND, Unexpected, analyze

# What each analyser finds: its codes, and where several share one, what its messages are about.
CODES = {
    "virtualservice.ConflictingMeshGatewayHostsAnalyzer": {"IST0109": ""},
    "virtualservice.DestinationHostAnalyzer": {"IST0101": r"destination's (host|port)", "IST0112": ""},
    "virtualservice.DestinationRuleAnalyzer": {"IST0101": r"the subset"},
    "virtualservice.JWTClaimRouteAnalyzer": {"IST0149": ""},
    "virtualservice.RegexAnalyzer": {"IST0122": ""},
    "authz.AuthorizationPoliciesAnalyzer": {"IST0101": r"the namespace", "IST0127": ""},
    "gateway.ConflictingGatewayAnalyzer": {"IST0145": ""},
    "gateway.IngressGatewayPortAnalyzer": {"IST0162": ""},
    "virtualservice.GatewayAnalyzer": {"IST0101": r"the Gateway", "IST0132": ""},
    "destinationrule.CaCertificateAnalyzer": {"IST0128": "", "IST0129": ""},
    "destinationrule.PodNotSelectedAnalyzer": {"IST0173": "", "IST0174": ""},
    "sidecar.SelectorAnalyzer": {"IST0101": r"no workload of the namespace carries", "IST0110": "", "IST0111": ""},
}

# What is said of namespaces in Istio's ambient mode, which there is nothing of here: Sidecars are in force on every host.
AMBIENT = "IST0167"

# Kinds of later versions, by the analysers that are about them, or by their first words.
LATER = {
    "gateway.SecretAnalyzer": "certificates of gateways into the mesh",
    "gateway.CertificateAnalyzer": "certificates of gateways into the mesh",
    "telemetry": "Telemetry",
    "virtualservice.JWTClaimRouteAnalyzer": "routes by claims, bound to a gateway into the mesh",
}

# What is otherwise here on purpose, by the names of cases.
LEFT_OUT = {
    "gatewayBadPort": "which gateways there are is for hosts to say: without any in the set nothing is said of their ports",
    "gatewayCustomIngressGateway": "a gateway's port is the one that callers name, and nothing listens at another behind it",
    "virtualServiceKubernetesGateways": "Kubernetes' Gateway is refused by name",
}

# What a case needs beside what its analyser is about: without it its input is another one.
NEEDED = {
    "Kubernetes' annotation that says who sees a Service": re.compile(r"^ +networking\.istio\.io/exportTo:", re.MULTILINE),
}


def run(report, suite, binary, _scratch):
    for case in suite.cases:
        name, analyzer = repr(case["name"]), case["analyzer"]
        later = LATER.get(analyzer) or LATER.get(analyzer.split(".")[0])
        if later:
            report.not_yet(later, name)
            continue
        if case["name"] in LEFT_OUT:
            report.left_out(LEFT_OUT[case["name"]], name)
            continue
        try:
            text = "\n---\n".join(
                (suite.place / "analyze" / path.rsplit("/", 1)[1]).read_text() for path in case["inputs"])
            needed = [what for what, is_in in NEEDED.items() if is_in.search(text)]
            if needed and analyzer == "virtualservice.DestinationHostAnalyzer":
                report.not_yet(needed[0], name)
                continue
            report.check(name, fault_of(binary, case, text))
        except (OSError, Unexpected, subprocess.TimeoutExpired) as error:
            report.failed(name, error)


def fault_of(binary, case, text):
    """What is found and should not be, and the other way round."""
    codes = CODES.get(case["analyzer"]) or {code: "" for code, _ in case["expect"]}
    findings, _ = analyze(binary, without_refused_fields(binary, translated(text)))
    found = Counter()
    for finding in findings:
        if finding["code"] in codes and re.search(codes[finding["code"]], finding["message"]):
            resource = finding["resource"] or {"kind": "?", "namespace": "?", "name": "?"}
            found[finding["code"], resource["kind"], f"{resource['namespace']}/{resource['name']}"] += 1
    expected = Counter()
    for code, resource in case["expect"]:
        if code == AMBIENT:
            continue
        kind, name = resource.split(" ", 1)
        # Of policies and rules, the root namespace goes by both names.
        if kind in ("AuthorizationPolicy", "DestinationRule"):
            name = name.replace("istio-system/", "mesh-system/")
        expected[code, kind, name if "/" in name else f"default/{name}"] += 1
    refused = sorted({finding["message"] for finding in findings if finding["code"] == REFUSED_KIND})
    if found == expected:
        return None
    missing, surplus = [*(expected - found)], [*(found - expected)]
    return f"missing: {missing}, too many: {surplus}" + (f"; {'; '.join(refused)}" if refused else "")


def translated(text):
    """Kubernetes' kinds as what takes their place here: a Pod is a workload; a namespace is there when something is in it, so
    it is given a workload that nothing selects; what starts Pods and what they run on is left out."""
    parts = []
    for number, part in enumerate(re.split(r"^---[^\n]*$", text, flags=re.MULTILINE)):
        kind = re.search(r"^kind:\s*(\S+)", part, re.MULTILINE)
        kind = kind[1] if kind else ""
        if kind in ("Deployment", "Node"):
            continue
        if kind in ("Pod", "Namespace"):
            part = workload(kind, part, number)
        parts.append(part)
    return "\n---\n".join(parts)


def workload(kind, part, number):
    metadata = re.search(r"^metadata:\n((?:[ ]+.*\n)*)", part, re.MULTILINE)[1]
    field = lambda name: (re.search(rf"^\s+{name}:\s*(\S+)", metadata, re.MULTILINE) or [None, "default"])[1]  # noqa: E731
    labels = re.search(r"^  labels:\n((?:    .*\n)*)", metadata, re.MULTILINE) if kind == "Pod" else None
    namespace = field("namespace") if kind == "Pod" else field("name")
    lines = ["apiVersion: networking.istio.io/v1", "kind: WorkloadEntry", "metadata:", f"  name: {field('name')}",
             f"  namespace: {namespace}", "spec:", f"  address: 10.0.0.{number + 1}"]
    if labels:
        lines += ["  labels:", *labels[1].rstrip("\n").split("\n")]
    return "\n" + "\n".join(lines) + "\n"


def without_refused_fields(binary, text):
    """A policy with fields that are refused by name until they are enforced is not in force, and nothing is said of what it
    selects. Without those fields, each on a line of its own in the cases, the rest is looked at."""
    findings, _ = analyze(binary, text)
    refused = [finding for finding in findings if finding["code"] == REFUSED_FIELD]
    if not refused:
        return text
    lines = text.split("\n")
    for finding in refused:
        remove(lines, finding["line"] - 1)
    return "\n".join(lines)


def remove(lines, first):
    """Takes out a field with what is below it, and the item or map that has nothing else in it."""
    depth = lambda line: len(line) - len(line.lstrip(" -"))  # noqa: E731
    last = first + 1
    while last < len(lines) and (not lines[last].strip() or depth(lines[last]) > depth(lines[first])
                                 or ("key:" in lines[first] and depth(lines[last]) == depth(lines[first]))):
        last += 1
    starts_item = lines[first].lstrip().startswith("- ")
    lines[first:last] = [""] * (last - first)
    above = first - 1
    while above >= 0 and not lines[above].strip():
        above -= 1
    below = last
    while below < len(lines) and not lines[below].strip():
        below += 1
    # Nothing is left below the key above: it goes as well.
    opens = above >= 0 and lines[above].rstrip().endswith(":")
    left = below < len(lines) and (depth(lines[below]) > depth(lines[above])
                                   or (starts_item and lines[below].lstrip().startswith("- ")
                                       and depth(lines[below]) == depth(lines[above]) + 2))
    if opens and not left:
        remove(lines, above)
