"""What a scenario says while it runs: a line for each statement that held, and its figures. The first that does not hold
ends it."""

import time


class Broken(Exception):
    """A statement that does not hold, with what was seen instead."""


class NotKnown(Exception):
    """This machine cannot show it: nothing is known of it."""


class Report:
    def __init__(self, name, about):
        self.begin = time.monotonic()
        self.count = 0
        print(f"=== {name}: {about}", flush=True)

    def holds(self, statement):
        """A statement that was seen to hold."""
        self.count += 1
        print(f"  ok    {statement}", flush=True)

    def check(self, statement, true, seen=""):
        """A statement that has to hold; `seen` is printed where it does not."""
        if not true:
            raise Broken(f"{statement}: it does not hold{f': {seen}' if seen != '' else ''}")
        self.holds(statement)

    def figure(self, text):
        print(f"        {text}", flush=True)

    def seconds(self):
        return time.monotonic() - self.begin


def until(what, condition, patience=90):
    """Waits until `condition()` is true, and returns its value. `patience` is in seconds, and far longer than it takes."""
    end = time.monotonic() + patience
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > end:
            raise Broken(f"it never came: {what}")
        time.sleep(0.1)
