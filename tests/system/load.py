"""A constant load of six kinds from one host on a service of another: HTTP/1.1 over kept connections, a connection for each
request, long TCP streams, TCP whose server speaks first, WebSockets, and gRPC streams both ways."""

import json
import time
from pathlib import Path

from mesh import call, service_unit
from report import Broken, until

PROGRAMS = Path(__file__).resolve().parent / "programs"
COUNTS = "/run/callers.json"
PORTS = "--port 7000 --protocol http --port 7001 --protocol tcp --port 7002 --protocol grpc --port 7003 --protocol tcp"
SERVICES = ("shop", "callers")
# Of each kind; as in programs/callers.py.
CALLERS = 4


class Load:
    """The unit `shop.service` on `server` is the service shop, and `callers.service` on `caller` calls it. Both hosts are
    granted what SERVICES names."""

    def __init__(self, caller, server):
        self.caller, self.server = caller, server
        server.copy(PROGRAMS / "shop.py", "/srv/shop.py")
        caller.copy(PROGRAMS / "callers.py", "/srv/callers.py")
        service_unit(server, "shop", "/usr/bin/python3 /srv/shop.py")
        server.run(f"baremesh service register shop {PORTS} --unit shop.service")
        caller.run("baremesh service register callers --port 9000 --unit callers.service")
        until("the shop is called", lambda: call(caller, "callers", "shop.mesh.internal", 7001).returncode == 0)
        service_unit(caller, "callers", f"/usr/bin/python3 /srv/callers.py shop.mesh.internal {COUNTS}",
                     "TimeoutStopSec=90\n")
        until("the load flows", self.flows)

    def flows(self):
        counts = self.written()["counts"]
        return counts and all(found["done"] >= 20 for found in counts.values())

    def written(self):
        """What is in the file: the counts, and the moment of which they are, on the machine's monotonic clock."""
        said = self.caller.tries(f"cat {COUNTS}")
        return json.loads(said.stdout) if said.returncode == 0 else {"at": 0.0, "counts": {}}

    def counts(self):
        """The counts of a moment after now."""
        now = time.monotonic()
        try:
            return until("the load is counted", lambda: (written := self.written())["at"] > now and written["counts"])
        except Broken as error:
            raise Broken(f"{error}: {self.caller.journal('callers', '-n 20')}") from error

    def goes_on(self):
        """Waits until each kind has had answers since now, twice as many as it has callers."""
        before = self.counts()
        until("the load goes on", lambda: all(found["done"] >= before[kind]["done"] + 2 * CALLERS for kind, found in self.counts().items()))

    def end(self):
        """Lets every caller end what it has begun; the last counts."""
        self.caller.run("systemctl stop callers.service")
        return self.written()["counts"]


LOSSES = ("failed", "refused", "cut", "unnamed")


def losses(counts, of=LOSSES):
    """What was lost of a load: a line for each kind that lost something, with the first errors."""
    return [f"{kind}: " + "; ".join(f"{found[loss]} {loss}: {found['errors'].get(loss)}" for loss in of if found[loss])
            for kind, found in counts.items() if any(found[loss] for loss in of)]


def figures(report, counts):
    for kind, found in counts.items():
        lost = ", ".join(f"{found[loss]} {loss}" for loss in LOSSES)
        report.figure(f"{kind:12} {found['done']:6} exchanges over {found['opened']:5} connections; {lost}; the slowest took {found['slowest']:.2f} s")
