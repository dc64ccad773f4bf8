"""Input of analysers, and the codes that they find in it, through `baremesh analyze`. Upstream runs one analyser a case, so
only findings with its codes are looked at: all of them, and no others, have to be there."""

import subprocess
from collections import Counter

from resources import REFUSED_KIND, Unexpected, analyze

# What each analyser finds.
CODES = {
    "virtualservice.ConflictingMeshGatewayHostsAnalyzer": {"IST0109"},
    "virtualservice.DestinationHostAnalyzer": {"IST0101", "IST0112"},
    "virtualservice.DestinationRuleAnalyzer": {"IST0101"},
    "virtualservice.GatewayAnalyzer": {"IST0101", "IST0132"},
    "virtualservice.JWTClaimRouteAnalyzer": {"IST0149"},
    "virtualservice.RegexAnalyzer": {"IST0122"},
    "authz.AuthorizationPoliciesAnalyzer": {"IST0101", "IST0127"},
    "destinationrule.CaCertificateAnalyzer": {"IST0128", "IST0129"},
    "destinationrule.PodNotSelectedAnalyzer": {"IST0173"},
}

# The kinds of later versions whose analysers have nothing to say yet, by the first word of their names.
LATER = {"gateway": "Gateway", "sidecar": "Sidecar", "telemetry": "Telemetry", "serviceentry": "ServiceEntry"}

# Analysers that `analyze` does not have yet: what they would find is left out, and that they find nothing is checked.
MISSING = {
    "virtualservice.ConflictingMeshGatewayHostsAnalyzer", "virtualservice.DestinationHostAnalyzer",
    "virtualservice.DestinationRuleAnalyzer", "virtualservice.GatewayAnalyzer", "authz.AuthorizationPoliciesAnalyzer",
    "destinationrule.CaCertificateAnalyzer", "destinationrule.PodNotSelectedAnalyzer",
}


def run(report, suite, binary, _scratch):
    for case in suite.cases:
        later = LATER.get(case["analyzer"].split(".")[0])
        if later:
            report.not_yet(later, repr(case["name"]))
            continue
        if case["expect"] and case["analyzer"] in MISSING:
            report.not_yet(f"analysis: {case['analyzer']}", repr(case["name"]))
            continue
        try:
            report.check(repr(case["name"]), fault_of(binary, suite.place / "analyze", case))
        except (OSError, Unexpected, subprocess.TimeoutExpired) as error:
            report.failed(repr(case["name"]), error)


def fault_of(binary, inputs, case):
    """What is found and should not be, and the other way round."""
    codes = CODES.get(case["analyzer"]) or {code for code, _ in case["expect"]}
    text = "\n---\n".join((inputs / path.rsplit("/", 1)[1]).read_text() for path in case["inputs"])
    findings, _ = analyze(binary, text)
    found = Counter()
    for finding in findings:
        if finding["code"] in codes:
            resource = finding["resource"] or {"kind": "?", "namespace": "?", "name": "?"}
            found[finding["code"], resource["kind"], f"{resource['namespace']}/{resource['name']}"] += 1
    expected = Counter()
    for code, resource in case["expect"]:
        kind, name = resource.split(" ", 1)
        expected[code, kind, name if "/" in name else f"default/{name}"] += 1
    refused = sorted({finding["message"] for finding in findings if finding["code"] == REFUSED_KIND})
    if found == expected:
        return None
    missing, surplus = [*(expected - found)], [*(found - expected)]
    return f"missing: {missing}, too many: {surplus}" + (f"; {'; '.join(refused)}" if refused else "")
