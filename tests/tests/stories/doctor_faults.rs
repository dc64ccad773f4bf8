//! Faults that `baremesh doctor` names, each made for real: the finding comes with the fault, and goes with it.

use std::fs;
use std::path::Path;
use std::process::Command;

use baremesh_tests::{Host, Member, Mesh, exit, exit_code_of, needs_root, output_of, run};

use crate::diagnosed::{CODES, diagnosed, explains, named, named_by, over, said_by, seen, well};
use crate::pair::because;

/// Fewer connections than a machine of tests has descriptors for.
const FEW: &str = "[proxy]\nmax_connections = 500\n";

/// A member with one service whose program listens, and nothing wrong with it.
#[track_caller]
fn member(mesh: &Mesh) -> Member {
    let web = mesh.member_with("web", 1, &["*"], FEW);
    web.host.serve("own", ["echo", "127.0.0.1:80"]);
    web.register("web", ["--port", "80", "--user", "0"]);
    well(&web.host, &[]);
    web
}

/// Changes the rules until the agent, which puts them back at once, but not time after time at once, is caught without them.
#[track_caller]
fn named_in_a_fight(host: &Host, change: &str, code: &str) {
    let found = named_by(code, || {
        run(host.sh(change));
        diagnosed(host, &[])
    });
    assert!(seen(&found).len() > 10, "it says what is not so: {found:#}");
    output_of(host.baremesh(["capture", "apply"]));
    over(host, &[code]);
}

#[test]
fn doctor_names_what_is_wrong_with_the_rules() {
    let mesh = Mesh::new("doctor-rules");
    let web = member(&mesh);
    let host = &web.host;

    output_of(host.baremesh(["capture", "apply", "--confirm", "10m"]));
    let found = named(host, "rules_off", &[]);
    assert!(seen(&found).contains("on trial"), "{found:#}");
    output_of(host.baremesh(["capture", "confirm"]));
    well(host, &[]);
    output_of(host.baremesh(["capture", "remove"]));
    let found = named(host, "rules_off", &[]);
    assert!(seen(&found).contains("capture is off"), "{found:#}");
    output_of(host.baremesh(["capture", "apply"]));
    well(host, &[]);

    named_in_a_fight(host, "nft add chain inet baremesh of_others", "rules_altered");
    named_in_a_fight(host, "nft delete table inet baremesh", "rules_missing");

    web.kill_agent();
    let found = named(host, "rules_gone", &[]);
    assert!(seen(&found).contains("gone agent"), "{found:#}");
    named(host, "agent_down", &[]);
    assert_eq!(exit_code_of(host.baremesh(["explain", "tcp://web:80"])), 3, "nobody answers");
    web.start();
    over(host, &["rules_gone", "agent_down"]);
}

#[test]
fn doctor_names_what_a_host_lacks() {
    let mesh = Mesh::new("doctor-lacks");
    let web = member(&mesh);
    let host = &web.host;

    let old = || {
        let mut doctor = host.command("setarch");
        doctor.args(["--uname-2.6", "baremesh", "doctor", "-o", "json"]);
        said_by(doctor)
    };
    let found = named_by("kernel_old", old);
    assert!(seen(&found).contains("Linux 2.6"), "{found:#}");

    // Neither is found in PATH, nor where systems have it.
    let tool = "for file in /usr/sbin/nft /sbin/nft /usr/bin/nft; do [ -f $file ] &&";
    output_of(host.sh(&format!("{tool} mount --bind /dev/null $file; done; true")));
    let found = named(host, "tool_missing", &[]);
    assert!(seen(&found).contains("`nft` was not found"), "{found:#}");
    output_of(host.sh("while umount /usr/sbin/nft; do :; done 2>/dev/null; true"));
    over(host, &["tool_missing"]);

    output_of(host.baremesh(["service", "register", "placed", "--port", "7300", "--unit", "nosuch.service"]));
    let mounted = output_of(host.sh("grep -m1 ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5"));
    output_of(host.sh(&format!("mount -t tmpfs tmpfs {mounted}")));
    named(host, "cgroup_missing", &[]);
    output_of(host.sh(&format!("umount {mounted}")));
    output_of(host.baremesh(["service", "deregister", "placed"]));
    well(host, &[]);

    // The limit is one for the whole machine: this host alone reads another. Its own connections are counted.
    let limit = "/proc/sys/net/netfilter/nf_conntrack_max";
    output_of(host.sh(&format!("echo 1 > /run/limit && mount --bind /run/limit {limit}")));
    let found = named(host, "conntrack_full", &[]);
    assert!(seen(&found).ends_with("of 1"), "{found:#}");
    output_of(host.sh(&format!("umount {limit}")));

    output_of(host.baremesh(["service", "register", "far", "--port", "7301", "--address", "10.77.0.99"]));
    let found = named(host, "address_elsewhere", &[]);
    assert!(seen(&found).contains("10.77.0.99"), "{found:#}");
    output_of(host.baremesh(["service", "deregister", "far"]));
    well(host, &[]);

    named_by("state_not_kept", || {
        // One that came a moment ago may be written yet.
        let _ = fs::remove_file(host.path("/var/lib/baremesh/last-good.state"));
        diagnosed(host, &[])
    });
    mesh.enforce("[[Service]]\nname = \"another\"\nports = [{ port = 7302 }]\n");
    well(host, &[]);

    mesh.kill_control();
    output_of(host.baremesh(["service", "register", "late", "--port", "7303"]));
    let found = named(host, "certificate_missing", &[]);
    assert!(seen(&found).contains("sa/late"), "{found:#}");
    mesh.start_control();
    over(host, &["certificate_missing", "registry_away"]);
}

#[test]
fn doctor_names_a_kernel_that_cannot_be_asked_for_ports_before_translation() {
    let mesh = Mesh::new("doctor-tracking");
    let web = member(&mesh);
    let host = &web.host;
    let without = |arguments: &[&str]| {
        let mut python = host.command("python3");
        python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/without_tracking.py")).arg("baremesh");
        python.args(arguments);
        python
    };
    let found = named_by("conntrack_silent", || said_by(without(&["doctor", "-o", "json"])));
    assert!(seen(&found).contains("Protocol not supported"), "{found:#}");

    let call = || output_of(host.shop(["call", "web.mesh.internal", "80", "hello"]));
    assert_eq!(call(), "hello");
    let status = || output_of(host.baremesh(["status"]));
    assert!(!status().contains("caller_unknown"), "{}", status());
    web.stop_agent();
    host.spawn("agent", without(&["agent"]));
    web.wait_until_ready();
    assert!(
        status().contains("calls of this host's programs are refused (`caller_unknown`)"),
        "{}",
        status()
    );
    assert_ne!(
        exit_code_of(host.shop(["call", "web.mesh.internal", "80", "hello"])),
        exit::DONE,
        "as it says"
    );
    web.wait_for_log("why", because("caller_unknown"));
}

#[test]
fn doctor_names_an_agent_that_stands_still() {
    let mesh = Mesh::new("doctor-silent");
    let web = member(&mesh);
    let host = &web.host;
    let signal = |name: &str| output_of(host.sh(&format!("kill {name} {}", web.agent_pid())));
    signal("-STOP");
    let status = run(host.baremesh(["status"]));
    let said = String::from_utf8_lossy(&status.stderr).into_owned();
    assert!(said.contains("has not answered at") && said.contains("systemctl restart baremesh"), "{said}");
    assert_eq!(status.status.code(), Some(3), "{said}");
    let found = named(host, "agent_down", &[]);
    assert!(seen(&found).contains("has not answered at"), "{found:#}");
    signal("-CONT");
    over(host, &["agent_down"]);
}

#[test]
fn doctor_names_an_agent_that_is_near_its_limit_of_memory() {
    needs_root!("cgroups");
    let mesh = Mesh::new("doctor-memory");
    let web = member(&mesh);
    let host = &web.host;
    web.stop_agent();
    host.spawn("agent", host.in_cgroup("agent", &host.baremesh(["agent"])));
    web.wait_until_ready();
    well(host, &[]);
    // Machines that have version 1 beside version 2 limit memory there: this host alone reads a limit in the agent's cgroup.
    let mounted = output_of(host.sh("grep -m1 ' - cgroup2 ' /proc/self/mountinfo | cut -d' ' -f5"));
    let place = format!("{}{}", mounted.trim(), host.cgroup("agent"));
    let write = format!("echo 200000000 > {place}/memory.max && echo 190000000 > {place}/memory.current");
    output_of(host.sh(&format!("mount -t tmpfs tmpfs {place} && {write}")));
    let found = named(host, "memory_low", &[]);
    assert_eq!(seen(&found), "181 of 190 MiB", "{found:#}");
    output_of(host.sh(&format!("echo max > {place}/memory.max")));
    over(host, &["memory_low"]);
    output_of(host.sh(&format!("umount {place}")));
}

#[test]
fn doctor_names_what_is_wrong_with_the_way_to_the_control_server_and_what_comes_from_there() {
    // Leases that a few seconds without a network end.
    let mesh = Mesh::with_control_arguments("doctor-source", &["--lease", "9"]);
    let host = mesh.net.host("web", 1);
    let control = mesh.control.v4();
    let hosts = fs::read_to_string(host.path("/etc/hosts")).unwrap_or_default();
    host.add_to_hosts("control.shop.example", control);
    host.set_nameserver([10, 77, 0, 254]);
    let token = mesh.token(&["*"]);
    output_of(host.baremesh(["join", "control.shop.example", "--token", &token, "--host", "web"]));
    let web = Member::of(host);
    let host = &web.host;
    web.configure(FEW);
    web.start();
    host.serve("own", ["echo", "127.0.0.1:80"]);
    web.register("web", ["--port", "80", "--user", "0"]);
    well(host, &[]);

    fs::write(host.path("/etc/hosts"), &hosts).expect("the name is forgotten");
    let found = named(host, "control_name", &[]);
    assert!(seen(&found).contains("control.shop.example"), "{found:#}");
    host.add_to_hosts("control.shop.example", control);
    over(host, &["control_name"]);

    // What listens there speaks no TLS.
    mesh.control.serve("echo", ["echo", "0.0.0.0:9"]);
    for line in [
        "add table ip led",
        "add chain ip led out { type nat hook output priority -90; }",
        &format!("add rule ip led out ip daddr {control} tcp dport 15012 dnat to {control}:9"),
    ] {
        output_of(host.sh(&format!("nft '{line}'")));
    }
    named(host, "control_handshake", &[]);
    output_of(host.sh("nft delete table ip led"));
    over(host, &["control_handshake"]);

    let pid = mesh.control_pid().to_string();
    let signal = |name: &str| {
        let mut kill = Command::new("kill");
        kill.args([name, &pid]);
        output_of(kill);
    };
    signal("-STOP");
    let found = named(host, "control_answer", &[]);
    assert!(seen(&found).contains("no answer within"), "{found:#}");
    signal("-CONT");
    over(host, &["control_answer", "registry_away"]);

    let bad = mesh.control.path("/etc/baremesh/registry/bad.toml");
    fs::write(&bad, "[[Service]]\nname = \"x\"\nprots = []\n").expect("written");
    let found = named(&mesh.control, "resources_refused", &[]);
    assert!(seen(&found).contains("bad.toml"), "{found:#}");
    fs::remove_file(&bad).expect("removed");
    over(&mesh.control, &["resources_refused"]);

    // The host's own registration says another account than the Service now does.
    mesh.apply("[[Service]]\nname = \"web\"\nserviceAccount = \"clerk\"\nports = [{ port = 80 }]\n");
    for code in ["state_refused", "registry_behind"] {
        named(host, code, &[]);
    }
    explains(host, &["tcp://web:80"], "this host refused the last state");
    let found = named(&mesh.control, "host_refuses", &[]);
    assert!(seen(&found).starts_with("web: ") && seen(&found).contains("clerk"), "{found:#}");
    output_of(mesh.control.baremesh(["delete", "Service", "web"]));
    over(host, &["state_refused", "registry_behind"]);
    over(&mesh.control, &["host_refuses"]);

    let others = [mesh.member_with("a", 2, &[], FEW), mesh.member_with("b", 3, &[], FEW)];
    let all = || [host, &others[0].host, &others[1].host];
    all().into_iter().for_each(Host::unplug);
    let found = named(&mesh.control, "control_alarm", &[]);
    assert!(seen(&found).contains("3 of 3"), "{found:#}");
    all().into_iter().for_each(Host::plug_in);
    over(&mesh.control, &["control_alarm"]);
}

/// Stories about findings, as text.
const STORIES: [&str; 4] = [
    include_str!("doctor.rs"),
    include_str!("doctor_faults.rs"),
    include_str!("sidecars.rs"),
    include_str!("container_labels.rs"),
];

#[test]
fn every_code_is_made_for_real() {
    for code in CODES.keys() {
        let quoted = format!("\"{code}\"");
        assert!(STORIES.iter().any(|story| story.contains(&quoted)), "no story makes {code}");
    }
}

/// The text of the story of that name.
fn story(name: &str) -> &'static str {
    let begin = format!("\nfn {name}() {{");
    let found = STORIES.iter().find_map(|text| text.split_once(&begin));
    let Some((_, rest)) = found else { panic!("{name} is no story about what is wrong") };
    rest.split("\n}\n").next().unwrap_or(rest)
}

#[test]
fn every_broken_set_up_of_the_documents_is_made_by_the_story_that_it_names() {
    let (_, table) = include_str!("../../../docs/troubleshooting.md")
        .split_once("| set-up | doctor | explain | test |\n|---|---|---|---|\n")
        .expect("the table of broken set-ups");
    let rows: Vec<_> = table.lines().take_while(|line| line.starts_with("| ")).collect();
    assert!(rows.len() >= 20, "{}", rows.len());
    for row in rows {
        let [_, set_up, doctor, explain, test, _] = row.split('|').map(str::trim).collect::<Vec<_>>()[..]
        else {
            panic!("{row}");
        };
        let text = story(test.trim_matches('`'));
        let codes: Vec<_> = doctor.split('`').skip(1).step_by(2).collect();
        for code in &codes {
            assert!(CODES.contains_key(code), "{set_up}: {code} is none");
            assert!(text.contains(&format!("\"{code}\"")), "{set_up}: {test} looks for no {code}");
        }
        let is_explained = ["explains(", "explained(", "\"explain\""].iter().any(|call| text.contains(call));
        assert!(explain.is_empty() || is_explained, "{set_up}: {test} explains nothing");
        assert!(!codes.is_empty() || !explain.is_empty(), "{set_up} is named by nobody");
    }
}
