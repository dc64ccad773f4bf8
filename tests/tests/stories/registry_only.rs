//! REGISTRY_ONLY holds: what a service that is told by its user or its cgroup sends to what the registry does not have
//! never leaves its host, by whatever protocol, port or family, whether the agent runs or was killed. And what the
//! registry has is reached.

use std::net::IpAddr;
use std::process::Command;

use baremesh_tests::{Host, Member, Mesh, Pcap, exit, exit_code_of, needs_root, output_of, run, wait_until};

use crate::pair::{because, is_cut, shop_as};

/// Whose processes are the service `jail`.
const HELD: u32 = 4242;
/// The system's, which every user may run.
const PYTHON: &str = "/usr/bin/python3";
/// Somebody else.
const FREE: u32 = 4243;

/// Sends whatever a process can send to the addresses that it is given, and minds no refusal. With the power to do so
/// it makes packets by hand too: of protocols that nobody knows, with IPv6 extensions, in fragments.
const SENDER: &str = r#"
import socket, struct, sys
def tried(act):
    try:
        act()
    except OSError as error:
        print(error)
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def tcp(address, port):
    with socket.socket(family(address), socket.SOCK_STREAM) as s:
        s.settimeout(2)
        s.connect((address, port))
        s.sendall(b"smuggled-by-tcp")
def udp(address, port, options=()):
    with socket.socket(family(address), socket.SOCK_DGRAM) as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        for option in options:
            s.setsockopt(*option)
        s.sendto(b"smuggled-by-udp" * 400, (address, port))
        s.sendto(b"smuggled-by-udp", (address, port))
def ping(address, kind):
    v6 = ":" in address
    with socket.socket(family(address), kind, socket.IPPROTO_ICMPV6 if v6 else socket.IPPROTO_ICMP) as s:
        s.sendto(struct.pack("!BBHHH", 128 if v6 else 8, 0, 0, 7, 7) + b"smuggled-by-ping", (address, 0))
def raw(address, protocol):
    with socket.socket(family(address), socket.SOCK_RAW, protocol) as s:
        s.sendto(b"smuggled-raw" * 4, (address, 0))
def fragment(source, address, protocol, flags):
    payload = struct.pack("!HHHH", 7, 9999, 32, 0) + b"smuggled-in-fragments..."
    header = struct.pack("!BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 77, flags, 64, protocol, 0,
                         socket.inet_aton(source), socket.inet_aton(address))
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as s:
        s.sendto(header + payload, (address, 0))
source, by_hand, targets = sys.argv[1], sys.argv[2] == "by-hand", sys.argv[3:]
hop_by_hop = (socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, b"\0\0\x01\x04\0\0\0\0")
for target in targets:
    for port in (22, 53, 80, 123, 443, 15008, 9999):
        tried(lambda: tcp(target, port))
        tried(lambda: udp(target, port))
    tried(lambda: ping(target, socket.SOCK_DGRAM))
    if by_hand:
        tried(lambda: ping(target, socket.SOCK_RAW))
        for protocol in (6, 17, 47, 132, 253):
            tried(lambda: raw(target, protocol))
        if ":" in target:
            tried(lambda: udp(target, 9999, [hop_by_hop]))
        else:
            for flags in (0x2000, 0x0010):
                tried(lambda: fragment(source, target, 17, flags))
for group, port in (("224.0.0.251", 5353), ("255.255.255.255", 9999), ("ff02::fb", 5353)):
    tried(lambda: udp(group, port))
print("all was tried")
"#;

/// A host whose service `jail` is held, one that serves `echo` in the mesh, and one that is outside.
struct Jail {
    web: Member,
    store: Member,
    outside: Host,
    mesh: Mesh,
}

impl Jail {
    fn new(name: &str, outbound: &str, told_by: &[&str]) -> Self {
        let mesh = Mesh::new(name);
        let config = format!("[capture]\noutbound = \"{outbound}\"\n");
        let web = mesh.member_with("web", 1, &["*"], &config);
        let store = mesh.member("store", 2, &["*"]);
        let outside = mesh.net.host("outside", 9);
        store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
        store.register("echo", ["--port", "7000"]);
        // Everybody may ping.
        output_of(web.host.sh("echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"));
        // Whoever asks is answered, so that what gets through is seen at once.
        for port in ["80", "9999", "7100", "22"] {
            outside.serve(&format!("outside-{port}"), ["echo", &format!("[::]:{port}")]);
        }
        let told_by: Vec<String> = told_by.iter().map(|word| (*word).to_owned()).collect();
        let words: Vec<&str> =
            ["--port", "81"].into_iter().chain(told_by.iter().map(String::as_str)).collect();
        web.register_with("jail", &words);
        web.wait_for_endpoints("echo.default", 1);
        Self { web, store, outside, mesh }
    }

    /// What the registry has of the host outside, and that nothing else is reached.
    fn shut(&self) {
        let (v4, v6) = (self.outside.v4(), self.outside.v6());
        self.mesh.enforce(&format!(
            "[[MeshConfig]]\noutboundTrafficPolicy = {{ mode = \"REGISTRY_ONLY\" }}\n\
             [[Service]]\nname = \"listed\"\nports = [{{ port = 7100 }}]\n\
             [[WorkloadEntry]]\nname = \"listed-4\"\naddress = \"{v4}\"\nlabels = {{ app = \"listed\" }}\n\
             [[WorkloadEntry]]\nname = \"listed-6\"\naddress = \"{v6}\"\nlabels = {{ app = \"listed\" }}\n"
        ));
        self.web.wait_for_endpoints("listed.default", 2);
        // Of changes within two seconds the first alone is there at once, and an agent that is killed begins with what is there.
        let kept = self.web.host.path("/var/lib/baremesh/last-good.state");
        wait_until("the policy is on the disk", || {
            std::fs::read(&kept).is_ok_and(|state| String::from_utf8_lossy(&state).contains("REGISTRY_ONLY"))
        });
        wait_until("the rules hold the service", || {
            rules(&self.web.host).contains("held_check") || units(&self.web.host).contains("goto refuse")
        });
    }

    fn sender(&self, by_hand: bool, mut command: Command) -> Command {
        let by_hand = if by_hand { "by-hand" } else { "by-socket" };
        command.args(["-c", SENDER, &self.web.host.v4().to_string(), by_hand]);
        command.args([self.outside.v4().to_string(), self.outside.v6().to_string()]);
        command
    }

    /// What leaves the host while something is tried. What the host itself has to say, to find neighbours and to tell of
    /// groups, is left out, and so is what the agent says to its mesh.
    fn leaves(&self, act: impl FnOnce()) -> Vec<String> {
        let wire = self.web.host.capture();
        act();
        let own = [IpAddr::from(self.web.host.v4()), self.web.host.v6().into()];
        let mesh = [&self.store.host, &self.mesh.control, &self.web.host];
        let mesh: Vec<IpAddr> = mesh.iter().flat_map(|host| [host.v4().into(), host.v6().into()]).collect();
        let sent = packets(&wire.stop().off_loopback());
        let escaped =
            sent.into_iter().filter(|packet| own.contains(&packet.from) && !mesh.contains(&packet.to));
        escaped.filter(|packet| !packet.is_of_the_kernel()).map(|packet| format!("{packet:?}")).collect()
    }
}

fn rules(host: &Host) -> String {
    let mut nft = host.command("nft");
    nft.args(["list", "table", "inet", "baremesh"]);
    String::from_utf8_lossy(&run(nft).stdout).into_owned()
}

fn units(host: &Host) -> String {
    let mut nft = host.command("nft");
    nft.args(["-t", "list", "table", "inet", "baremesh_units"]);
    String::from_utf8_lossy(&run(nft).stdout).into_owned()
}

/// An IP packet as its header has it.
#[derive(Debug)]
struct Packet {
    from: IpAddr,
    to: IpAddr,
    protocol: u8,
    first: u8,
}

impl Packet {
    /// Neighbour discovery, and reports of groups, which no process writes.
    fn is_of_the_kernel(&self) -> bool {
        let found = self.protocol == 58 && (133..=136).contains(&self.first);
        found || (self.to.is_multicast() && matches!(self.protocol, 0 | 2))
    }
}

fn packets(wire: &Pcap) -> Vec<Packet> {
    let read = |frame: &[u8]| {
        let (kind, ip) = (frame.get(12..14)?, frame.get(14..)?);
        match kind {
            [0x08, 0x00] => {
                let address = |at: usize| Some(IpAddr::from(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?));
                let (protocol, header) = (*ip.get(9)?, usize::from(ip.first()? & 15) * 4);
                let first = ip.get(header).copied().unwrap_or_default();
                Some(Packet { from: address(12)?, to: address(16)?, protocol, first })
            }
            [0x86, 0xdd] => {
                let address =
                    |at: usize| Some(IpAddr::from(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?));
                let first = ip.get(40).copied().unwrap_or_default();
                Some(Packet { from: address(8)?, to: address(24)?, protocol: *ip.get(6)?, first })
            }
            _ => None,
        }
    };
    wire.packets().iter().filter_map(|packet| read(&packet.frame)).collect()
}

#[track_caller]
fn all_is_tried(command: Command) {
    let said = output_of(command);
    assert!(said.ends_with("all was tried"), "{said}");
}

/// Echo of one line over a connection that somebody outside opens to a program of the jail's.
fn is_answered_from_outside(jail: &Jail) {
    for address in [jail.web.host.v4().to_string(), jail.web.host.v6().to_string()] {
        let call = jail.outside.shop(["call", &address, "9200", "from outside"]);
        assert_eq!(output_of(call), "from outside", "{address}");
    }
}

/// All of the story: `command` starts a program as the service, `by_hand` where it may make packets itself.
fn holds(jail: &Jail, by_hand: bool, command: impl Fn(&str) -> Command) {
    let call = |to: &str, port: &str| {
        let mut call = command("baremesh");
        call.args(["demo-shop", "call", "--timeout", "5", to, port, "hello"]);
        call
    };
    let (v4, v6) = (jail.outside.v4().to_string(), jail.outside.v6().to_string());
    let mut server = command("baremesh");
    server.args(["demo-shop", "echo", "[::]:9200"]);
    jail.web.host.spawn("jail", server).wait_for_output("listening on");
    assert_eq!(output_of(call(&v4, "9999")), "hello", "nothing is held yet");
    // The proof that the question is asked rightly: what is sent now is seen.
    let sent = jail.leaves(|| all_is_tried(jail.sender(by_hand, command(PYTHON))));
    for wanted in ["protocol: 6,", "protocol: 17,", "protocol: 1,", "protocol: 58,", &v4, &v6] {
        assert!(sent.iter().any(|packet| packet.contains(wanted)), "{wanted}: {sent:?}");
    }
    // A connection from before, over which the outside sends something every tenth of a second.
    let mut old = command(PYTHON);
    old.args(["-u", "-c", OLD, &v4]);
    let old = jail.web.host.spawn("old", old);
    old.wait_for_output("it stands");
    jail.shut();
    old.wait_for_output("it was cut");

    let escaped = jail.leaves(|| all_is_tried(jail.sender(by_hand, command(PYTHON))));
    assert_eq!(escaped, Vec::<String>::new(), "while the agent runs");
    assert!(is_cut(call(&v4, "9999")) && is_cut(call(&v6, "9999")));
    // The connection from before was cut for the same reason, and was let out once where everything is captured.
    let line = jail.web.wait_for_log("the refusal", |line| {
        because("not_in_registry")(line) && line["upstream_cluster"] == "BlackHoleCluster"
    });
    assert_eq!(line["response_flags"], "UH", "{line}");
    assert!(jail.web.metrics().contains("destination_service_name=\"BlackHoleCluster\""));
    for (to, port) in [("echo", "7000"), ("listed", "7100"), (&*v4, "7100"), (&*v6, "7100")] {
        assert_eq!(output_of(call(to, port)), "hello", "{to} is in the registry");
    }
    is_answered_from_outside(jail);
    // Others of the host are as free as before.
    let free = |to: &str| shop_as(&jail.web.host, FREE, &["call", to, "9999", "hello"]);
    assert_eq!((output_of(free(&v4)), output_of(free(&v6))), ("hello".to_owned(), "hello".to_owned()));

    jail.web.kill_agent();
    wait_until("the guard closes", || rules(&jail.web.host).contains("closed_ports"));
    wait_until("the guard holds the service", || rules(&jail.web.host).contains("jump held_check"));
    let escaped = jail.leaves(|| all_is_tried(jail.sender(by_hand, command(PYTHON))));
    assert_eq!(escaped, Vec::<String>::new(), "while the agent is dead");
    assert_ne!(exit_code_of(call(&v4, "9999")), exit::DONE);
    is_answered_from_outside(jail);
    assert_eq!((output_of(free(&v4)), output_of(free(&v6))), ("hello".to_owned(), "hello".to_owned()));
    jail.web.start();
    wait_until("calls go well again", || exit_code_of(call("echo", "7000")) == exit::DONE);
    let escaped = jail.leaves(|| all_is_tried(jail.sender(by_hand, command(PYTHON))));
    assert_eq!(escaped, Vec::<String>::new(), "with the agent back");
}

/// Writes once in a while over a connection from before the policy, until somebody cuts it.
const OLD: &str = r#"
import socket, sys, time
s = socket.create_connection((sys.argv[1], 9999))
s.settimeout(60)
print("it stands")
try:
    while True:
        s.sendall(b"hello\n")
        if not s.recv(4096):
            break
        time.sleep(0.1)
except OSError:
    pass
print("it was cut")
"#;

#[test]
fn a_service_that_is_told_by_its_user_reaches_the_registry_and_nothing_else() {
    needs_root!("two uids");
    let jail = Jail::new("held-user", "registered", &["--user", "4242"]);
    holds(&jail, false, |program| jail.web.host.command_as(HELD, program));
}

#[test]
fn it_is_the_same_where_everything_that_leaves_is_captured() {
    needs_root!("two uids");
    let jail = Jail::new("held-all", "all", &["--user", "4242"]);
    holds(&jail, false, |program| jail.web.host.command_as(HELD, program));
}

#[test]
fn a_service_that_is_told_by_its_cgroup_does_not_get_out_as_root() {
    needs_root!("cgroups");
    let jail = Jail::new("held-cgroup", "registered", &["--user", "4242"]);
    let cgroup = jail.web.host.cgroup("jail");
    // What the agent cannot see elsewhere in the hierarchy hides none of its services.
    output_of(jail.web.host.in_cgroup("hidden/below", &jail.web.host.command("true")));
    let hidden = jail.web.host.cgroup("hidden");
    output_of(jail.web.host.sh(&format!(
        "chmod 0 \"$(awk '$3 == \"cgroup2\" {{ print $2; exit }}' /proc/self/mounts)\"{hidden}"
    )));
    jail.web.register("jail", ["--port", "81", "--cgroup", &cgroup]);
    holds(&jail, true, |program| jail.web.host.in_cgroup("jail", &jail.web.host.command(program)));
}

/// The unit of this name does not run as far as the agent can see, so nothing is held by its path: the cgroup in which the programs
/// are is in the set alone, where systemd puts a unit's before its first process runs.
#[test]
fn a_unit_that_systemd_noted_is_held_before_the_agent_has_found_it() {
    needs_root!("cgroups");
    let register = ["--port", "81", "--unit", "jail.service"];
    let jail = Jail::new("held-noted", "registered", &register[2..]);
    let web = &jail.web.host;
    let noted = |program: &str| web.in_cgroup("noted", &web.command(program));
    let (v4, v6) = (jail.outside.v4().to_string(), jail.outside.v6().to_string());
    let call = |to: &str, port: &str| {
        let mut call = noted("baremesh");
        call.args(["demo-shop", "call", "--timeout", "5", to, port, "hello"]);
        call
    };
    let leaves = || jail.leaves(|| all_is_tried(jail.sender(true, noted(PYTHON))));
    let is_held = |when: &str| {
        assert_eq!(leaves(), Vec::<String>::new(), "{when}");
        assert!(!rules(web).contains("held_check"), "{when}: held by the set alone");
    };
    wait_until("the set stands", || units(web).contains("set unit.default.jail"));
    assert_eq!(output_of(call(&v4, "9999")), "hello", "nothing is held yet");
    output_of(web.sh(&format!(
        "mount=$(awk '$3 == \"cgroup2\" {{ print $2; exit }}' /proc/self/mounts) && path=${{mount#/sys/fs/cgroup}}{} && \
         nft \"add element inet baremesh_units unit.default.jail {{ \\\"${{path#/}}\\\" }}\"",
        web.cgroup("noted")
    )));
    assert!(
        leaves().iter().any(|packet| packet.contains(&v4)),
        "who is noted is not held before the mesh says so"
    );
    jail.shut();
    is_held("while the agent runs");
    assert!(is_cut(call(&v4, "9999")) && is_cut(call(&v6, "9999")));
    assert_eq!(output_of(call("echo", "7000")), "hello", "what the mesh has is reached");
    let free = || shop_as(web, FREE, &["call", &v4, "9999", "hello"]);
    assert_eq!(output_of(free()), "hello", "others of the host are as free as before");

    // Who is told by a user replaces the other table.
    jail.web.register_with("more", &["--port", "82", "--user", "4242"]);
    wait_until("the other table is another", || rules(web).contains("held_users"));
    assert_eq!(leaves(), Vec::<String>::new(), "after the rules were replaced");
    output_of(web.baremesh(["service", "deregister", "more"]));
    wait_until("it is as it was", || !rules(web).contains("held_users"));

    jail.web.kill_agent();
    wait_until("the guard closes", || rules(web).contains("closed_ports"));
    is_held("while the agent is dead");
    assert_eq!(output_of(free()), "hello");
    jail.web.start();
    wait_until("calls go well again", || exit_code_of(call("echo", "7000")) == exit::DONE);
    is_held("with the agent back");

    jail.web.register_with("jail", &[register.as_slice(), &["--when-gone", "open"]].concat());
    wait_until("the rules for a gone agent know it", || {
        let gone = std::fs::read_to_string(web.path("/run/baremesh/gone.nft")).unwrap_or_default();
        gone.contains("unit.default.jail") && !gone.contains("goto refuse")
    });
    is_held("an open service, while the agent runs");
    jail.web.kill_agent();
    wait_until("the guard opens", || !units(web).contains("goto refuse"));
    assert_eq!(output_of(call(&v4, "9999")), "hello", "an open service is released");
    jail.web.start();
    wait_until("it is held again", || units(web).contains("goto refuse"));
    jail.mesh.enforce("[[MeshConfig]]\noutboundTrafficPolicy = { mode = \"ALLOW_ANY\" }\n");
    wait_until("nobody is held", || !units(web).contains("goto refuse"));
    assert_eq!(output_of(call(&v4, "9999")), "hello", "who is not held any more gets out");
}
