"""What became of each case, and the account of it."""


class Report:
    """Counts by part; says at once what failed, and at a part's end what was not run and why."""

    def __init__(self):
        self.total_passed = 0
        self.total_failed = 0

    def begin(self, part):
        self.part = part
        self.counts = {"passed": 0, "failed": 0}
        self.later = {}
        self.apart = {}
        self.remarks = []

    def passed(self):
        self.counts["passed"] += 1

    def failed(self, case, why):
        self.counts["failed"] += 1
        print(f"FAILED {self.part}: {case}: {why}", flush=True)

    def check(self, case, fault):
        """Failed with `fault`, or passed where it is None."""
        self.passed() if fault is None else self.failed(case, fault)

    def not_yet(self, kind, case):
        """A case of what this version does not do."""
        self.later.setdefault(kind, []).append(case)

    def left_out(self, reason, case):
        """A case that is not to be held against the program, for a reason that the lists here give."""
        self.apart.setdefault(reason, []).append(case)

    def remark(self, text):
        self.remarks.append(text)

    def end(self):
        passed, failed = self.counts["passed"], self.counts["failed"]
        print(f"{self.part}: {passed} passed, {failed} failed, {count(self.later)} not yet, {count(self.apart)} left out")
        for text in self.remarks:
            print(f"  {text}")
        for kind, cases in self.later.items():
            print(f"  not yet: {len(cases)} ({kind}): {' '.join(cases)}")
        for reason, cases in self.apart.items():
            print(f"  left out: {len(cases)}: {reason}: {' '.join(cases)}")
        sys_flush()
        self.total_passed += passed
        self.total_failed += failed

    def close(self):
        """The closing line; returns what the program ends with."""
        print(f"{self.total_passed} passed, {self.total_failed} failed")
        # A run that checked nothing has not passed.
        return 1 if self.total_failed or not self.total_passed else 0


def count(groups):
    return sum(len(cases) for cases in groups.values())


def sys_flush():
    print(end="", flush=True)
