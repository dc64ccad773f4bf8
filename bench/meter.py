"""What the kernel says of a process: processor time and resident memory. Read from /proc, so that it is the same
measure for every peer, whatever the peer reports of itself."""

import os
import time
from pathlib import Path

TICKS = os.sysconf("SC_CLK_TCK")
MIB = 1024 * 1024


def cpu_seconds(pids):
    """User and system time of the processes with all their threads, ended ones included, in seconds."""
    total = 0
    for pid in pids:
        # The name in the second field may hold spaces and brackets: count from the last bracket.
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += int(after_name[11]) + int(after_name[12])
    return total / TICKS


def machine_seconds():
    """Time that the run's cores were busy with anything, soft interrupts included, in seconds. On a machine that is
    shared this counts the others too."""
    busy = 0
    cores = {f"cpu{core}" for core in os.sched_getaffinity(0)}
    for line in Path("/proc/stat").read_text().splitlines():
        name, *fields = line.split()
        if name in cores:
            user, nice, system, _idle, _iowait, irq, softirq = map(int, fields[:7])
            busy += user + nice + system + irq + softirq
    return busy / TICKS


def resident_mib(pids):
    """Resident memory of the processes together, in MiB, file pages (the program itself) included."""
    return sum(_kib(f"/proc/{pid}/smaps_rollup", "Rss:") for pid in pids) * 1024 / MIB


def peak_mib(pids):
    """The highest resident memory that the processes ever had, in MiB."""
    return sum(_kib(f"/proc/{pid}/status", "VmHWM:") for pid in pids) * 1024 / MIB


def _kib(path, key):
    for line in Path(path).read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise ValueError(f"{path} has no {key}")


class Watch:
    """Processor time spent between its making and `stop`, by the proxies and by the whole machine."""

    def __init__(self, pids):
        self.pids = pids
        self._proxies, self._machine = cpu_seconds(pids), machine_seconds()

    def stop(self):
        self.proxies = cpu_seconds(self.pids) - self._proxies
        self.machine = machine_seconds() - self._machine
        return self


def others_share(seconds):
    """The share of the run's cores that was busy while the run itself waited for `seconds`: what other programs take."""
    began, busy = time.monotonic(), machine_seconds()
    time.sleep(seconds)
    return (machine_seconds() - busy) / (time.monotonic() - began) / len(os.sched_getaffinity(0))
