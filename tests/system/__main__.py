"""System tests: baremesh from its packages, on booted hosts with a real systemd. What it does there that no namespace has:
packages, units, boots, firewalls, and calls that go on through all of it.

    ./test system              every scenario
    ./test system NAME …       these
    ./test system --list       their names

Each prints what it does, a line for each statement that held, and its figures; the first that does not hold ends it, with
the journals of all hosts. Ends with 77 where this machine cannot boot hosts. BAREMESH_PACKAGE_BIN names a program to pack
instead of a debug build."""

import signal
import sys
import time
import traceback

sys.dont_write_bytecode = True

import packages  # noqa: E402
from hosts import try_machine  # noqa: E402
from report import Broken, NotKnown, Report  # noqa: E402
from scenarios import beside, hostile, install, rpm, trixie, under_load, units  # noqa: E402

SCENARIOS = {
    "install": install.run,
    "load": under_load.gentle,
    "restart": under_load.abrupt,
    "units": units.run,
    "trixie": trixie.run,
    "rpm": rpm.run,
    "capture": beside.capture,
    "churn": beside.churn,
    "hostile": hostile.run,
    **hostile.ALONE,
}
# Run by name alone.
LEFT_OUT = tuple(hostile.ALONE)


def main(names):
    if names == ["--list"]:
        print("\n".join(SCENARIOS))
        return 0
    unknown = [name for name in names if name not in SCENARIOS]
    if unknown:
        print(f"system: there is no scenario {', '.join(unknown)}: {', '.join(SCENARIOS)} are known", file=sys.stderr)
        return 2
    # So that hosts are put away then as well.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    try:
        begin = time.monotonic()
        try_machine()
        made = packages.build()
        print(f"system: a host boots, and packages stand, after {time.monotonic() - begin:.0f} s", flush=True)
    except NotKnown as why:
        print(f"system: {why}: nothing is known of it", file=sys.stderr)
        return 77
    failed = []
    for name in names or [name for name in SCENARIOS if name not in LEFT_OUT]:
        scenario = SCENARIOS[name]
        report = Report(name, scenario.__doc__.split("\n\n")[0].replace("\n    ", " "))
        try:
            scenario(report, made)
            print(f"--- {name}: {report.count} statements held, {report.seconds():.0f} s", flush=True)
        except KeyboardInterrupt:
            print("system: interrupted", file=sys.stderr)
            return 130
        except Exception as broken:  # noqa: BLE001
            if not isinstance(broken, (Broken, NotKnown)):
                traceback.print_exc()
            failed.append(f"--- {name}: FAILED after {report.seconds():.0f} s: {broken}")
            print(failed[-1], flush=True)
    if failed:
        # Once more: journals and other scenarios lie between.
        print("\n".join(["system: failed:", *failed]))
        return 1
    return 0


sys.exit(main(sys.argv[1:]))
