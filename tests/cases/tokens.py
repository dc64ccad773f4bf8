"""Signed tokens with the verdicts of Wycheproof, against the verifier of requests' tokens, through `baremesh verify-token`.

The suite is about signatures: what a payload says, and when, is not looked at."""

import json
import subprocess

SECONDS = 20

# Where our verdict is another one, and why that is right. Whatever is in no list must agree, and what is in one must not.
REFUSED = [
    ("signed with a shared secret (HS256): who verifies such a token could have made it", """
        1 348 352 357 358 359 372 373 376 377"""),
    ("the key says that it is for `ES521`, which is no algorithm: key and token must agree", """
        347 351"""),
    ("the key says that it is for PS256 and the token that it is PS384: key and token must agree", """
        346 350"""),
]


def run(report, suite, binary, scratch):
    others = {int(id): reason for reason, ids in REFUSED for id in ids.split()}
    for group in suite.cases:
        key = group.get("public") or group["private"]
        (scratch / "keys.json").write_text(json.dumps({"keys": [key]}))
        for case in group["tests"]:
            number = case["tcId"]
            name = f"{number} {group['comment']} {case['comment']}"
            expected, reason = case["result"] == "valid", others.pop(number, None)
            try:
                taken, said = verify(binary, case["jws"], scratch)
            except subprocess.TimeoutExpired:
                report.failed(name, f"no verdict after {SECONDS} s")
                continue
            if taken is None:
                report.failed(name, said)
            elif reason and not expected:
                report.failed(name, "stands in a list of those whose verdict differs, for the verdict that it should have")
            elif taken != (expected and not reason):
                report.failed(name, f"{'taken' if taken else 'refused'}, and should not be: {said}")
            elif reason:
                report.left_out(f"refused: {reason}", name)
            else:
                report.passed()
    for number in others:
        report.failed(str(number), "stands in a list of those whose verdict differs, and is no case")


def verify(binary, token, scratch):
    """Whether it is taken (None is neither), and what was said."""
    (scratch / "token").write_text(token if isinstance(token, str) else json.dumps(token))
    argv = [binary, "verify-token", "--jwks", scratch / "keys.json", "--token", scratch / "token"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=SECONDS)
    said = (done.stderr or done.stdout).strip()
    taken = {0: True, 1: False}.get(done.returncode)
    return taken, said if taken is not None else f"ended with {done.returncode}: {said}"
