//! The ground that all other stories stand on: hosts are hosts, evidence is evidence, and nothing stays behind.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::process::{Command, Stdio};

use baremesh_tests::{Host, exit, exit_code_of, needs_root, net, output_of, wait_until};

/// Addresses of `host` in both families, with `port`.
fn both(host: &Host, port: u16) -> [SocketAddr; 2] {
    [IpAddr::from(host.v4()), IpAddr::from(host.v6())].map(|address| SocketAddr::new(address, port))
}

fn any(port: u16) -> String {
    format!("[::]:{port}")
}

#[test]
fn two_hosts_reach_each_other_over_both_families() {
    let net = net("reach");
    let (web, orders) = (net.host("web", 1), net.host("orders", 0x2a));
    orders.serve("echo", ["echo", &any(80)]);
    for address in both(&orders, 80) {
        let (ip, port) = (address.ip().to_string(), "80");
        assert_eq!(output_of(web.shop(["call", &ip, port, "hello"])), "hello");
        assert_eq!(exit_code_of(web.shop(["call", &ip, "81", "hello"])), exit::NO_CONNECTION);
    }
    orders.unplug();
    let pulled = web.shop(["call", "--timeout", "1", &orders.v4().to_string(), "80", "hello"]);
    assert_eq!(exit_code_of(pulled), exit::NO_CONNECTION);
    orders.plug_in();
    assert_eq!(output_of(web.shop(["call", &orders.v4().to_string(), "80", "again"])), "again");
}

#[test]
fn a_host_has_its_own_name_and_resolver() {
    let net = net("names");
    let (web, orders) = (net.host("web", 1), net.host("orders", 2));
    let before = fs::read("/etc/hosts").ok();
    web.set_nameserver([10, 77, 0, 2]);
    web.add_to_hosts("orders.mesh.internal", orders.v4());
    orders.serve("echo", ["echo", &any(80)]);

    let read = |host: &Host, path| output_of(host.sh(&format!("cat {path}")));
    assert_eq!(read(&web, "/etc/resolv.conf"), "nameserver 10.77.0.2");
    assert!(!read(&orders, "/etc/resolv.conf").contains("\nnameserver"));
    assert_eq!(read(&web, "/proc/sys/kernel/hostname"), "web");
    assert_eq!(read(&orders, "/etc/hostname"), "orders");
    assert_eq!(output_of(web.shop(["call", "orders.mesh.internal", "80", "hello"])), "hello");
    assert_eq!(exit_code_of(orders.shop(["call", "orders.mesh.internal", "80", "hello"])), exit::NO_NAME);
    assert_eq!(fs::read("/etc/hosts").ok(), before, "the machine's own file is untouched");
}

#[test]
fn a_host_takes_rules_and_routes_of_its_own() {
    let net = net("rules");
    let web = net.host("web", 1);
    web.serve("echo", ["echo", "127.0.0.1:15001", "[::1]:15001"]);
    let rules = web.path("/run/baremesh/rules");
    let redirect = "table inet story {\n chain out {\n type nat hook output priority -100\n \
                    tcp dport 80 redirect to :15001\n }\n}\n";
    fs::write(&rules, redirect).expect("a file of the host");
    for command in [
        "nft -f /run/baremesh/rules",
        "ip route add local 240.240.0.0/16 dev lo",
        "ip route add local fd00:77::/64 dev lo",
    ] {
        output_of(web.sh(command));
    }
    for address in ["240.240.0.1", "fd00:77::1"] {
        assert_eq!(output_of(web.shop(["call", address, "80", "redirected"])), "redirected");
    }
}

#[test]
fn what_a_host_writes_is_its_own_and_outlives_it() {
    let net = net("files");
    let (web, orders) = (net.host("web", 1), net.host("orders", 2));
    for directory in ["/etc/baremesh", "/run/baremesh", "/var/lib/baremesh"] {
        output_of(web.sh(&format!("touch {directory}/mark")));
        assert!(web.path(directory).join("mark").exists(), "{directory} is seen from outside");
        assert!(!orders.path(directory).join("mark").exists(), "{directory} is not shared");
        assert!(
            !std::path::Path::new(directory).join("mark").exists(),
            "{directory} of the machine is untouched"
        );
    }
    drop(web);
    let web = net.host("web", 1);
    assert!(web.path("/var/lib/baremesh/mark").exists());
    assert!(!web.path("/run/baremesh/mark").exists(), "/run is empty after a reboot");
}

#[test]
fn a_capture_finds_what_was_sent_and_nothing_else() {
    let net = net("capture");
    let (web, orders) = (net.host("web", 1), net.host("orders", 2));
    orders.serve("echo", ["echo", &any(80), "127.0.0.1:81"]);
    let (wire, local) = (net.capture(), orders.capture());
    for address in both(&orders, 80) {
        let secret = format!("secret for {}", address.ip());
        assert_eq!(output_of(web.shop(["call", &address.ip().to_string(), "80", &secret])), secret);
    }
    assert_eq!(output_of(orders.shop(["call", "127.0.0.1", "81", "never leaves"])), "never leaves");

    let (wire, local) = (wire.stop(), local.stop());
    assert_eq!(wire.holes() + local.holes(), 0);
    for address in both(&orders, 80) {
        let secret = format!("secret for {}", address.ip());
        let sighting = wire.find(&secret).expect("the payload is on the wire");
        assert!(sighting.flow.is_some_and(|flow| flow.destination == address), "{sighting}");
        assert!(local.clone().off_loopback().contains(&secret));
    }
    assert!(local.contains("never leaves"));
    assert!(!wire.contains("never leaves") && !local.off_loopback().contains("never leaves"));
    assert!(!wire.contains("secret for nobody"));
}

#[test]
fn a_text_is_found_across_packets() {
    let net = net("spread");
    let (web, orders) = (net.host("web", 1), net.host("orders", 2));
    orders.serve("echo", ["echo", &any(80)]);
    let wire = net.capture();
    let mut stream = web.connect((orders.v4(), 80)).expect("a connection from the host");
    let mut echoed = [0; 4];
    for part in ["pass", "word"] {
        stream.write_all(part.as_bytes()).expect("it is open");
        stream.read_exact(&mut echoed).expect("it is echoed before the next part is sent");
    }
    let sighting = wire.stop().find("password").expect("it was sent");
    assert!(!sighting.in_one_packet, "{sighting}");
}

#[test]
fn the_test_can_be_a_peer_on_a_host() {
    let net = net("peer");
    let (web, orders) = (net.host("web", 1), net.host("orders", 2));
    let listener = orders.listen((orders.v6(), 15008));
    let stream = web.connect((orders.v6(), 15008)).expect("a connection");
    let (_, peer) = listener.accept().expect("a peer");
    assert_eq!(peer, stream.local_addr().expect("it is bound"));
    assert_eq!(peer.ip(), IpAddr::from(web.v6()));
    let refused = web.connect((orders.v6(), 15009)).expect_err("nothing listens");
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
    let (a, b) = (web.bind_udp((web.v4(), 53)), orders.bind_udp((orders.v4(), 0)));
    b.send_to(b"query", (web.v4(), 53)).expect("it can be sent");
    let (_, from) = a.recv_from(&mut [0; 16]).expect("it arrives");
    assert_eq!(from, b.local_addr().expect("it is bound"));
}

#[test]
fn nothing_is_left_of_hosts_that_are_dropped() {
    let net = net("dropped");
    let directory = net.directory().to_owned();
    let web = net.host("web", 1);
    let tracked = web.serve("echo", ["echo", &any(80)]);
    let daemon = daemon_on(&web);
    assert!(is_alive(daemon) && tracked.is_running());
    drop(web);
    assert!(!is_alive(daemon), "a process that left its group and its parent");
    assert!(!tracked.is_running());
    assert!(directory.exists());
    drop(net);
    assert!(!directory.exists());
}

/// A process that has left its parent, its group and its session.
fn daemon_on(host: &Host) -> u32 {
    let daemon = host.sh("setsid sleep 1000 >/dev/null 2>&1 & echo $!");
    output_of(daemon).parse().expect("a process id")
}

fn is_alive(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state is the field after the name in parentheses (proc(5)); Z is a zombie.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

/// Set for the part of the next story that is killed.
const STAND: &str = "BAREMESH_STORY_STANDS_UNTIL_KILLED";

fn stand_until_killed() -> ! {
    let net = net("killed");
    let web = net.host("web", 1);
    let server = web.serve("echo", ["echo", &any(80)]);
    let mut out = std::io::stdout();
    writeln!(out, "stands {} {} {}", server.pid(), daemon_on(&web), net.directory().display())
        .expect("a reader");
    loop {
        std::thread::park();
    }
}

#[test]
fn nothing_is_left_when_the_test_is_killed() {
    if std::env::var_os(STAND).is_some() {
        stand_until_killed();
    }
    let mut child = Command::new(std::env::current_exe().expect("a path"))
        .args(["--exact", "hosts_are_real::nothing_is_left_when_the_test_is_killed", "--nocapture"])
        .env(STAND, "1")
        .stdout(Stdio::piped())
        .spawn()
        .expect("the test executable starts");
    let mut said = std::io::BufReader::new(child.stdout.take().expect("it is piped"));
    let mut line = String::new();
    while !line.contains("stands ") {
        line.clear();
        let length = std::io::BufRead::read_line(&mut said, &mut line).expect("text");
        assert!(length > 0, "it ended too soon");
    }
    let words: Vec<_> =
        line.split_once("stands ").map(|(_, rest)| rest.split_whitespace().collect()).expect("words");
    let pids: Vec<u32> = words[..2].iter().map(|word| word.parse().expect("a process id")).collect();
    assert!(pids.iter().all(|pid| is_alive(*pid)));
    child.kill().expect("it runs");
    child.wait().expect("it ends");
    wait_until("its processes are gone", || !pids.iter().any(|pid| is_alive(*pid)));
    wait_until("its directory is gone", || !std::path::Path::new(words[2]).exists());
}

#[test]
fn a_program_runs_as_another_user() {
    let net = net("users");
    if !net.privilege().has_uids() {
        needs_root!("two uids");
    }
    let web = net.host("web", 1);
    let mut id = web.command_as(1234, "id");
    id.arg("-u");
    assert_eq!(output_of(id), "1234");
    let mut shop = web.command_as(1234, "baremesh");
    shop.args(["demo-shop", "echo", &any(80)]);
    let echo = web.spawn("echo", shop);
    echo.wait_for_output("listening on");
    let uid = output_of(web.sh(&format!("grep Uid: /proc/{}/status", echo.pid())));
    assert!(uid.starts_with("Uid:\t1234\t1234"), "{uid}");
}

#[test]
fn a_program_runs_in_a_cgroup_of_its_host() {
    needs_root!("cgroups");
    let net = net("cgroups");
    let web = net.host("web", 1);
    let command = web.in_cgroup("orders", &web.shop(["echo", &any(80)]));
    let echo = web.spawn("orders", command);
    echo.wait_for_output("listening on");
    let path = web.cgroup("orders");
    assert!(path.ends_with("/web/orders"), "{path}");
    let groups = fs::read_to_string(format!("/proc/{}/cgroup", echo.pid())).expect("it runs");
    assert!(groups.lines().any(|line| line == format!("0::{path}")), "{groups}");
    let procs = output_of({
        let mut find = Command::new("find");
        find.args(["/sys/fs/cgroup", "-path", &format!("*{path}/cgroup.procs")]);
        find
    });
    assert!(!procs.is_empty());
    drop((web, net));
    assert!(!std::path::Path::new(&procs).exists(), "the cgroup is gone with its host");
}
