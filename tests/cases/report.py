"""What became of each case, and the account of it."""


class Report:
    """Counts by suite; says at once what failed, and at a suite's end what was left out and why."""

    def __init__(self):
        self.total_passed = 0
        self.total_failed = 0

    def begin(self, suite):
        self.suite = suite
        self.passes = 0
        self.failures = []
        self.apart = {}
        self.remarks = []

    def passed(self):
        self.passes += 1

    def failed(self, case, why):
        self.failures.append(case)
        print(f"FAILED {self.suite}: {case}: {why}", flush=True)

    def check(self, case, fault):
        """Failed with `fault`, or passed where it is None."""
        self.passed() if fault is None else self.failed(case, fault)

    def not_yet(self, kind, case):
        """A case of what this version does not do."""
        self.left_out(f"not yet: {kind}", case)

    def left_out(self, reason, case):
        """A case that is not to be held against the program, for a reason that the lists here give."""
        self.apart.setdefault(reason, []).append(case)

    def remark(self, text):
        self.remarks.append(text)

    def end(self):
        apart = sum(len(cases) for cases in self.apart.values())
        print(f"{self.suite}: {self.passes} passed, {len(self.failures)} failed" + (f", {apart} left out" if apart else ""))
        if self.failures:
            print(f"  failed: {' '.join(self.failures)}")
        for reason, cases in self.apart.items():
            print(f"  left out: {len(cases)}: {reason}: {' '.join(cases)}")
        for text in self.remarks:
            print(f"  {text}")
        print(end="", flush=True)
        self.total_passed += self.passes
        self.total_failed += len(self.failures)

    def close(self):
        """The closing line; returns what the program ends with."""
        print(f"{self.total_passed} passed, {self.total_failed} failed")
        # A run that checked nothing has not passed.
        return 1 if self.total_failed or not self.total_passed else 0
