"""Chains of certificates with the verdicts of x509-limbo, against the verifier of peers, through `baremesh verify-chain`.

The verifier takes a chain for a member of a mesh where its leaf names one by a URI; what is compared here is everything
else: signatures, authorities, constraints, dates, purpose."""

import datetime
import os
import subprocess

# What no chain may cost, the program's start included, in a build without optimisation.
CPU_SECONDS = 0.1
SECONDS = 20

# Where our verdict is another one, and why that is right. Whatever is in no list must agree, and what is in one must not.
TAKEN = [
    ("no CRLs are read: what is revoked stands in a list of the mesh's own that comes with its state", """
        crl::revoked-certificate-with-crl crl::crlnumber-missing crl::crlnumber-critical crl::issuer-missing-crlsign"""),
    ("there is one limit of depth, and no caller sets another", """
        pathlen::max-chain-depth-0-exhausted pathlen::max-chain-depth-1-exhausted"""),
    ("well-formed, and within the limit of cost: the case has it refused for what it might cost", """
        pathological::nc-dos-3"""),
    ("DNS and IP names are not compared with what was dialled: a peer is who its URI name says, and a leaf has one", """
        rfc5280::san::noncritical-with-empty-subject rfc5280::san::underscore-dns rfc5280::san::ip-in-dns
        webpki::cn::ipv4-hex-mismatch webpki::cn::ipv4-leading-zeros-mismatch webpki::cn::ipv6-uppercase-mismatch
        webpki::cn::ipv6-uncompressed-mismatch webpki::cn::ipv6-non-rfc5952-mismatch webpki::cn::punycode-not-in-san
        webpki::cn::utf8-vs-punycode-mismatch webpki::cn::not-in-san webpki::cn::case-mismatch
        webpki::san::mismatch-domain-san webpki::san::mismatch-subdomain-san webpki::san::mismatch-subdomain-apex-san
        webpki::san::mismatch-apex-subdomain-san webpki::san::public-suffix-wildcard-san
        webpki::san::public-suffix-multi-label-wildcard-san webpki::san::public-suffix-private-namespace-wildcard-san
        webpki::san::wildcard-embedded-leftmost-san webpki::san::wildcard-not-in-leftmost-san
        webpki::san::wildcard-match-across-labels-san webpki::san::wildcard-embedded-ulabel-san
        webpki::san::unicode-emoji-san webpki::san::no-san webpki::san::san-critical-with-nonempty-subject
        webpki::san::san-wildcard-only webpki::san::san-wildcard-only-tld"""),
    ("a root is a name, a key and its name constraints (RFC 5280, section 6.1.1); the operator's choice of it stands for "
     "the rest, and what the mesh's own authority signs ends with it", """
        rfc5280::aki::critical-aki rfc5280::aki::cross-signed-root-missing-aki rfc5280::ski::root-missing-ski
        rfc5280::validity::expired-root rfc5280::ca-empty-subject rfc5280::unknown-critical-extension-root
        rfc5280::root-missing-basic-constraints rfc5280::root-non-critical-basic-constraints
        rfc5280::root-inconsistent-ca-extensions rfc5280::nc::permitted-dns-match-noncritical
        webpki::aki::root-with-aki-missing-keyidentifier webpki::aki::root-with-aki-authoritycertissuer
        webpki::aki::root-with-aki-authoritycertserialnumber webpki::aki::root-with-aki-all-fields
        webpki::aki::root-with-aki-ski-mismatch webpki::eku::root-has-eku"""),
    ("a rule for those who issue: key identifiers only help to find a path, and it was found", """
        rfc5280::aki::leaf-missing-aki rfc5280::aki::intermediate-missing-aki rfc5280::ski::critical-ski
        rfc5280::ski::intermediate-missing-ski"""),
    ("a rule for those who issue, which gives nobody more than it had", """
        rfc5280::serial::too-long rfc5280::serial::zero rfc5280::pc::ica-noncritical-pc webpki::malformed-aia
        webpki::eku::ee-critical-eku"""),
    ("any purpose beside the right one: the right one is named", """
        webpki::eku::ee-anyeku"""),
    ("a leaf is no authority, whatever its other extensions say: nothing that it signs is taken", """
        rfc5280::nc::not-allowed-in-ee-noncritical rfc5280::nc::not-allowed-in-ee-critical
        rfc5280::leaf-ku-keycertsign"""),
    ("constrains what it says, or nothing where it says nothing", """
        rfc5280::nc::invalid-dnsname-leading-period webpki::nc::intermediate-permitted-excluded-subtrees-both-null
        webpki::nc::intermediate-permitted-excluded-subtrees-both-empty-sequences"""),
    ("a leaf's key is judged when it signs the handshake, where a weak or unknown kind has no signature scheme", """
        webpki::forbidden-p192-leaf webpki::forbidden-dsa-leaf webpki::forbidden-weak-rsa-in-leaf"""),
    ("an RSA key of odd length beyond 2048 bits is no weaker", """
        webpki::forbidden-rsa-not-divisible-by-8-in-root webpki::forbidden-rsa-key-not-divisible-by-8-in-leaf"""),
]
REFUSED = [
    ("an authority is nobody's identity, whatever its place in the chain", """
        pathlen::validation-ignores-pathlen-in-leaf rfc5280::ca-as-leaf"""),
    ("self-issued authorities count and are constrained like others", """
        pathlen::self-issued-certs-pathlen rfc5280::nc::permitted-self-issued"""),
    ("a leaf says what it is for", """
        rfc5280::eku::ee-without-eku"""),
    ("constraints on names of a kind that is not compared refuse all of them", """
        rfc5280::nc::permitted-dn-match rfc5280::nc::nc-permits-email-exact rfc5280::nc::nc-permits-email-domain
        rfc5280::nc::nc-permits-email-literal-asterisk-exact-match
        rfc5280::nc::nc-permits-email-literal-double-asterisk rfc5280::nc::nc-permits-email-literal-mid-asterisk"""),
    ("more certificates than a member shows are refused before a path is looked for among them", """
        cve::cve-2024-0567"""),
]


def run(report, suite, binary, scratch):
    others = {id: (verdict, reason)
              for verdict, groups in ((True, TAKEN), (False, REFUSED))
              for reason, ids in groups for id in ids.split()}
    slowest = (0.0, "none")
    for case in suite.cases:
        name = case["id"]
        expected = case["expected_result"] == "SUCCESS"
        verdict, reason = others.pop(name, (expected, None))
        try:
            taken, cpu, said = verify(binary, case, scratch)
        except subprocess.TimeoutExpired:
            report.failed(name, f"no verdict after {SECONDS} s")
            continue
        slowest = max(slowest, (cpu, name))
        if taken is None:
            report.failed(name, said)
        elif cpu > CPU_SECONDS:
            report.failed(name, f"took {cpu:.2f} s of CPU")
        elif verdict == expected and reason:
            report.failed(name, "stands in a list of those whose verdict differs, for the verdict that it should have")
        elif taken != verdict:
            report.failed(name, f"{'taken' if taken else 'refused'}, and should not be: {said}")
        elif reason:
            report.left_out(f"{'taken' if taken else 'refused'}: {reason}", name)
        else:
            report.passed()
    report.remark(f"slowest: {slowest[0] * 1000:.0f} ms of CPU, {slowest[1]}")


def verify(binary, case, scratch):
    """Whether it is taken (None is neither), CPU seconds, and what was said."""
    roots, chain = scratch / "roots.pem", scratch / "chain.pem"
    roots.write_text("\n".join(case["trusted_certs"]))
    chain.write_text("\n".join([case["peer_certificate"], *case["untrusted_intermediates"]]))
    argv = [binary, "verify-chain", "--roots", roots, "--chain", chain, "--purpose", case["validation_kind"].lower()]
    if case["validation_time"]:
        time = datetime.datetime.fromisoformat(case["validation_time"])
        argv += ["--time", str(int(time.timestamp()))]
    before = os.times()
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    said = (done.stderr or done.stdout).strip()
    # A root that cannot be one is refused as the chain below it is; 2 is a file that is none.
    taken = {0: True, 1: False}.get(done.returncode)
    return taken, cpu, said if taken is not None else f"ended with {done.returncode}: {said}"
