"""Hosts with a real systemd, booted by systemd-nspawn on overlays of one root file system, joined by a bridge. Each has a
network namespace of its own, with IPv4 and IPv6, which is new at each boot as a machine's is.

    with Network() as network:
        h1, h2 = network.boot("h1", "h2")
        h1.run("systemctl is-system-running")

However the block is left, hosts, namespaces, mounts and control groups are gone afterwards."""

import contextlib
import itertools
import os
import re
import shlex
import shutil
import signal
import subprocess
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from report import Broken, NotKnown, until

REPOSITORY = Path(__file__).resolve().parents[2]
# How long a command on a host may take, in seconds.
PATIENCE = 300


# Of networks that this process makes.
numbers = itertools.count(1)


def ip(*words):
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def the_root(release):
    """The root file system of hosts of a Debian release, made if it is not there."""
    if os.geteuid() != 0:
        raise NotKnown("only root can boot hosts")
    for tool in ("systemd-nspawn", "ip", "nsenter", "unshare", "objcopy"):
        if not shutil.which(tool):
            raise NotKnown(f"there is no {tool} on this machine")
    made = subprocess.run([REPOSITORY / ".ci/booted-root", release], capture_output=True, text=True)
    if made.returncode:
        raise NotKnown(made.stderr.strip())
    return Path(made.stdout.strip())


def cgroup2():
    """Where this machine has its hierarchy of version 2."""
    for line in Path("/proc/mounts").read_text().splitlines():
        _, where, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(where)
    raise NotKnown("this machine has no cgroup v2")


def try_machine():
    """Boots a host and puts it away: raises NotKnown on a machine that cannot."""
    with Network() as network:
        network.boot("trial")


class Network:
    """A bridge, and the hosts on it, of one Debian release."""

    def __init__(self, release="bookworm"):
        self.tag = f"bms{os.getpid()}-{next(numbers)}"
        self.hosts = []
        self.root = the_root(release)
        # Where the machine's controllers are of version 1, BPF's are the only ones that a host's systemd has; a unit of which it
        # has none is noted nowhere.
        self.powers = ["--capability=CAP_NET_ADMIN"] if release == "bookworm" else ["--capability=CAP_NET_ADMIN,CAP_BPF", "--system-call-filter=bpf"]

    def __enter__(self):
        self.cgroup = cgroup2() / self.tag
        self.place = Path(tempfile.mkdtemp(prefix="baremesh-system-"))
        try:
            self.cgroup.mkdir()
            ip("netns", "add", f"{self.tag}-sw")
            ip("-n", f"{self.tag}-sw", "link", "add", "br0", "type", "bridge", "forward_delay", "0")
            ip("-n", f"{self.tag}-sw", "link", "set", "br0", "up")
        except (subprocess.CalledProcessError, OSError) as error:
            self.put_away()
            raise NotKnown(f"no network of hosts can be made: {getattr(error, 'stderr', None) or error}") from error
        return self

    def __exit__(self, kind, error, trace):
        if kind is not None and not issubclass(kind, (NotKnown, KeyboardInterrupt)):
            for host in self.hosts:
                host.print_journal()
        self.put_away()

    def put_away(self):
        for host in self.hosts:
            host.put_away()
        subprocess.run(["ip", "netns", "del", f"{self.tag}-sw"], capture_output=True)
        with contextlib.suppress(Broken):
            # What was killed is in its control group until the kernel has seen to it.
            until("its control groups are empty", self.remove_cgroup, 20)
        # On its own file system alone: a mount that could not be undone is not gone into.
        subprocess.run(["find", self.place, "-xdev", "-depth", "-delete"], capture_output=True)

    def remove_cgroup(self):
        for directory, _, _ in os.walk(self.cgroup, topdown=False):
            with contextlib.suppress(OSError):
                os.rmdir(directory)
        return not self.cgroup.exists()

    def boot(self, *names):
        """Hosts of these names, side by side; the first ever has the addresses …1, the second …2."""
        new = [Host(self, name, len(self.hosts) + number) for number, name in enumerate(names, 1)]
        self.hosts += new
        with ThreadPoolExecutor() as pool:
            list(pool.map(Host.power_on, new))
        return new


class Host:
    def __init__(self, network, name, number):
        self.network, self.name, self.number = network, name, number
        self.address, self.address6 = f"10.79.0.{number}", f"fd79::{number}"
        self.place = network.place / name
        self.root = self.place / "root"
        self.cgroup = network.cgroup / name
        self.namespace = f"{network.tag}-{name}"
        self.nspawn = self.pid = None
        for part in ("up", "work", "root"):
            (self.place / part).mkdir(parents=True)
        options = f"lowerdir={network.root},upperdir={self.place}/up,workdir={self.place}/work"
        if subprocess.run(["mount", "-t", "overlay", self.namespace, "-o", options, self.root], capture_output=True).returncode:
            raise NotKnown("no overlay can be mounted")
        (self.root / "etc/hostname").write_text(name + "\n")

    # --- power ---

    def plug_in(self):
        """A network namespace without a rule in it, on the bridge."""
        switch, here = f"{self.network.tag}-sw", self.namespace
        ip("netns", "add", here)
        ip("-n", switch, "link", "add", f"p-{self.name}", "type", "veth",
           # A host's own at each boot, so that its neighbours know it.
           "peer", "name", "eth0", "address", f"02:00:00:00:00:{self.number:02x}", "netns", here)
        ip("-n", switch, "link", "set", f"p-{self.name}", "master", "br0", "up")
        for link in ("lo", "eth0"):
            ip("-n", here, "link", "set", link, "up")
        ip("-n", here, "addr", "add", f"{self.address}/24", "dev", "eth0")
        ip("-n", here, "addr", "add", f"{self.address6}/64", "dev", "eth0", "nodad")
        ip("-n", here, "route", "add", "default", "dev", "eth0")

    def power_on(self):
        """Boots it, and returns when its systemd has started everything, or has found that something does not start."""
        self.start_booting()
        until(f"{self.name} has booted", lambda: self.state() in ("running", "degraded"), 180)

    def start_booting(self):
        """Boots it, and returns when commands can be run on it."""
        self.plug_in()
        self.cgroup.mkdir(exist_ok=True)
        # A hierarchy of its own, as a machine has it: where this one has v1 beside v2, nspawn would take the former.
        outside = ("umount -R /sys/fs/cgroup; mount -t cgroup2 cgroup2 /sys/fs/cgroup || exit 9; "
                   f"echo $$ >{self.mounted_cgroup()}/cgroup.procs; exec \"$0\" \"$@\"")
        with open(self.place / "console", "ab") as console:
            self.nspawn = subprocess.Popen(
                ["unshare", "-m", "--propagation", "private", "bash", "-c", outside,
                 "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--resolv-conf=off", "--timezone=off",
                 "-D", self.root, "-M", self.name, f"--network-namespace-path=/run/netns/{self.namespace}",
                 *self.network.powers, "--console=read-only"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                env={**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "network"})
        until(f"{self.name} answers", lambda: self.finds_init() and self.state(), 180)

    def mounted_cgroup(self):
        return Path("/sys/fs/cgroup") / self.cgroup.relative_to(cgroup2())

    def finds_init(self):
        """Which process is the host's init. What becomes nspawn, and nspawn itself, have other children for a moment before it: in
        this machine's namespace of processes, where a command would be run on this machine."""
        if self.nspawn.poll() is not None:
            raise NotKnown(f"no host can be booted: {(self.place / 'console').read_text(errors='replace')[-2000:]}")
        children = subprocess.run(["pgrep", "-P", str(self.nspawn.pid)], capture_output=True, text=True).stdout.split()
        here = os.readlink("/proc/self/ns/pid")
        self.pid = None
        for pid in children:
            # It may have ended.
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{pid}/ns/pid") != here:
                    self.pid = pid
        return self.pid

    def state(self):
        try:
            asked = subprocess.run([*self.enter(), "systemctl", "is-system-running"], capture_output=True, text=True, timeout=60)
        except subprocess.TimeoutExpired:
            return ""
        return "" if asked.stdout.strip() in ("offline", "unknown") else asked.stdout.strip()

    def power_off(self):
        """Shuts it down in good order."""
        os.kill(int(self.pid), signal.SIGRTMIN + 4)
        try:
            self.nspawn.wait(PATIENCE)
        except subprocess.TimeoutExpired as error:
            raise Broken(f"{self.name} does not shut down") from error
        self.unplug()

    def cut_power(self):
        """Ends it at once, as a power failure does."""
        if self.nspawn is not None:
            # Linux 5.14. Before it, what matters is init, with which all of its namespace ends.
            with contextlib.suppress(OSError):
                (self.cgroup / "cgroup.kill").write_text("1")
            for pid in filter(None, (self.pid, self.nspawn.pid)):
                # Once nspawn has ended, its child's number may be another's.
                if self.nspawn.poll() is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(int(pid), signal.SIGKILL)
            self.nspawn.wait()
        self.unplug()

    def unplug(self):
        self.nspawn = self.pid = None
        # The kernel takes a namespace apart later, and the cable's name is wanted again.
        subprocess.run(["ip", "-n", f"{self.network.tag}-sw", "link", "del", f"p-{self.name}"], capture_output=True)
        subprocess.run(["ip", "netns", "del", self.namespace], capture_output=True)

    def reboot(self):
        self.power_off()
        self.power_on()

    def put_away(self):
        self.cut_power()
        subprocess.run(["umount", self.root], capture_output=True)

    # --- commands ---

    def enter(self):
        return ["nsenter", "-t", str(self.pid), "-m", "-u", "-i", "-n", "-p", "-C", "--",
                "env", "-i", "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "USER=root",
                "LC_ALL=C.UTF-8", "DEBIAN_FRONTEND=noninteractive"]

    def tries(self, command, patience=PATIENCE):
        """Runs a shell's command as root; what became of it, whatever that is."""
        try:
            return subprocess.run([*self.enter(), "sh", "-c", f"exec 2>&1; {command}"], stdin=subprocess.DEVNULL,
                                  stdout=subprocess.PIPE, text=True, errors="replace", timeout=patience)
        except subprocess.TimeoutExpired as error:
            raise Broken(f"{self.name}: `{command}` does not end: {error.stdout}") from error

    def run(self, command, patience=PATIENCE):
        """Runs a shell's command as root, which has to succeed; what it said."""
        done = self.tries(command, patience)
        if done.returncode:
            raise Broken(f"{self.name}: `{command}` fails with {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout.strip()

    def refuses(self, command):
        """Runs a shell's command as root, which has to fail; what it said."""
        done = self.tries(command)
        if done.returncode == 0:
            raise Broken(f"{self.name}: `{command}` should fail, and does not: {done.stdout[-2000:]}")
        return done.stdout.strip()

    def succeeds(self, command):
        return self.tries(command).returncode == 0

    def as_unit(self, unit, command):
        """Runs a shell's command in a unit of that name; what became of it, and what it said."""
        return self.tries(f"systemd-run --quiet --wait --pipe --collect --unit={unit} sh -c {shlex.quote('exec 2>&1; ' + command)}")

    # --- files and units ---

    def write(self, path, text, mode=0o644):
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def copy(self, source, path):
        """Copies a file of this machine to a place on the host."""
        place = self.root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, place)

    def main_pid(self, unit):
        return int(self.run(f"systemctl show -p MainPID --value {unit}"))

    def is_active(self, unit):
        return self.succeeds(f"systemctl is-active -q {unit}")

    def journal(self, unit, options=""):
        return self.run(f"journalctl --no-pager -o cat -u {unit} {options}")

    def counted(self):
        """The counters of the host's rules that are not 0, a line each."""
        listed = self.tries("nft list counters").stdout
        return "\n".join(f"{name}: {packets} packets" for name, packets in
                         re.findall(r"counter (\w+) \{[^}]*?packets ([1-9]\d*)", listed))

    def print_journal(self):
        print(f"--- journal of {self.name}, and what its rules counted", flush=True)
        if self.pid:
            with contextlib.suppress(Broken, OSError):
                print(self.counted(), flush=True)
                said = self.tries("journalctl --no-pager -o short-precise -n 20 -p warning; echo; journalctl --no-pager -o short-precise "
                                  "-n 4000 -u 'baremesh*' | grep -v '\"reporter\":' | tail -60; echo; journalctl --no-pager -o cat "
                                  "-n 8000 -u baremesh | grep '\"reporter\":' | grep -v '\"response_flags\":\"-\"' | tail -12", 60)
                print(said.stdout, flush=True)
                return
        with contextlib.suppress(OSError):
            print((self.place / "console").read_text(errors="replace")[-3000:], flush=True)
