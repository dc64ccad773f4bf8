//! A mesh of files, without any server: hosts that read the same directory and sign with copies of one authority.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use baremesh_tests::{Host, Load, Member, Net, exit_code_of, net, output_of, wait_until};

const NONE: [String; 0] = [];
const DENY: &str = "[[AuthorizationPolicy]]\nname = \"deny\"\naction = \"DENY\"\nrules = [{ to = [{ operation = { ports = [\"7001\"] } }] }]\n";

fn resources(store: &Host) -> String {
    let (v4, v6) = (store.v4(), store.v6());
    let entry = |name: &str, address: String| {
        format!(
            "[[WorkloadEntry]]\nname = \"{name}\"\naddress = \"{address}\"\nlabels = {{ app = \"store\" }}\ntunnel = \"hbone\"\n"
        )
    };
    "[[Service]]\nname = \"store\"\nports = [{ port = 80, targetPort = 7000 }, { port = 81, targetPort = 7001 }]\n".to_owned()
        + &entry("store-4", v4.to_string())
        + &entry("store-6", v6.to_string())
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for entry in fs::read_dir(from).expect("a directory").flatten() {
        fs::copy(entry.path(), to.join(entry.file_name())).expect("a copy");
    }
}

/// A caller, and a host with the echo `store`.
fn two(net: &Net) -> (Member, Member) {
    let (web, store) = (net.host("web", 1), net.host("store", 2));
    output_of(store.baremesh(["init", "--trust-domain", "mesh.internal"]));
    fs::write(registry(&store).join("shop.toml"), resources(&store)).expect("written");
    fs::write(registry(&store).join("policy.toml"), DENY).expect("written");
    for place in ["/var/lib/baremesh/ca", "/etc/baremesh/registry"] {
        copy(&store.path(place), &web.path(place));
    }
    store.serve("echo", ["echo", "127.0.0.1:7000", "127.0.0.1:7001"]);
    output_of(store.baremesh(["service", "register", "store", "--port", "80:7000", "--port", "81:7001"]));
    let [web, store] = [web, store].map(|host| {
        host.set_nameserver([10, 77, 0, 254]);
        let (name, v4, v6) = (host.name().to_owned(), host.v4(), host.v6());
        let member = Member::of(host);
        member.configure(&format!(
            "host = \"{name}\"\naddresses = [\"{v4}\", \"{v6}\"]\n[registry]\nsource = \"files\"\n"
        ));
        member.start();
        member
    });
    (web, store)
}

fn registry(host: &Host) -> std::path::PathBuf {
    host.path("/etc/baremesh/registry")
}

fn refused_for(member: &Member, text: &str) -> bool {
    member.status().is_some_and(|status| status["source"]["last_error"].to_string().contains(text))
}

fn denied(web: &Member) -> bool {
    exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "81", "no"])) != 0
}

#[test]
fn two_hosts_with_the_same_files_are_a_mesh() {
    let net = net("files");
    let (web, store) = two(&net);
    assert_eq!(output_of(web.host.shop(["call", "store.mesh.internal", "80", "hello"])), "hello");
    assert!(denied(&web));
    let line = store.wait_for_log("the call", |line| line["response_code_details"] == "-");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/hosts/sa/web");
    assert_eq!(line["connection_security_policy"], "mutual_tls");
}

/// Whatever stands in the file while it is written, what was good stays in force.
#[test]
fn a_half_written_file_leaves_the_last_good_one_in_force() {
    let net = net("half");
    let (web, store) = two(&net);
    let path = registry(&store.host).join("policy.toml");
    assert!(denied(&web));
    fs::write(&path, &DENY[..DENY.len() - 9]).expect("written");
    wait_until("the torn file is refused with its line", || refused_for(&store, "policy.toml:4"));
    assert!(denied(&web));
    assert!(!store.metrics().contains("baremesh_rejected_configurations_total 0\n"), "nothing was counted");
    fs::write(&path, "").expect("written");
    wait_until("the empty file is refused", || {
        refused_for(&store, "policy.toml") && !refused_for(&store, ":4")
    });
    assert!(denied(&web), "an empty file was taken for `no policy`");
    fs::write(&path, DENY).expect("written");
    wait_until("all is well again", || {
        store.status().is_some_and(|status| status["source"]["last_error"].is_null())
    });
}

/// A directory that is gone is no empty mesh.
#[test]
fn a_directory_that_is_gone_leaves_everything_in_force() {
    let net = net("gone");
    let (web, store) = two(&net);
    for member in [&web, &store] {
        fs::rename(registry(&member.host), registry(&member.host).with_file_name("away")).expect("renamed");
        wait_until("its going is noticed", || {
            member.status().is_some_and(|status| !status["source"]["last_error"].is_null())
        });
    }
    assert_eq!(output_of(web.host.shop(["call", "store", "80", "still"])), "still");
    assert!(denied(&web));
    for member in [&web, &store] {
        fs::rename(registry(&member.host).with_file_name("away"), registry(&member.host)).expect("renamed");
        wait_until("it is back", || {
            member.status().is_some_and(|status| status["source"]["last_error"].is_null())
        });
    }
    let policy = registry(&store.host).join("policy.toml");
    fs::remove_file(policy).expect("removed");
    wait_until("and followed", || !denied(&web));
}

/// A thousand changes of the directory while calls go on.
#[test]
fn a_thousand_changes_of_the_directory_cost_no_call_and_leave_nothing_behind() {
    const CHANGES: usize = 1000;
    let net = net("reloads");
    let (web, store) = two(&net);
    let load = Load::start(&web.host, "store", 80);
    load.wait_for_more(20);
    let before = Use::of(&web);
    let path = registry(&web.host).join("more.toml");
    let start = Instant::now();
    for change in 0..CHANGES {
        let aside = path.with_extension("new");
        let port = 1000 + change;
        fs::write(&aside, format!("[[Service]]\nname = \"more\"\nports = [{{ port = {port} }}]\n"))
            .expect("written");
        fs::rename(&aside, &path).expect("renamed");
        // Each reaches the agent by itself, not all of them as one; the slowest machine gets through fewer.
        if start.elapsed() < Duration::from_secs(20) {
            let wanted = format!("{port}/tcp");
            wait_until("the change is in force", || {
                web.ask("/services").unwrap_or_default().to_string().contains(&wanted)
            });
        }
    }
    fs::remove_file(&path).expect("removed");
    wait_until("the last change is in force", || {
        !web.ask("/services").unwrap_or_default().to_string().contains("\"more.default\"")
    });
    load.wait_for_more(10);
    assert_eq!(load.stop(), NONE);
    wait_until("descriptors are back", || Use::of(&web).descriptors <= before.descriptors + 8);
    let after = Use::of(&web);
    assert!(after.resident <= before.resident + (24 << 20), "{before:?}, then {after:?}");
    drop(store);
}

/// What an agent holds.
#[derive(Debug)]
struct Use {
    descriptors: usize,
    resident: usize,
}

impl Use {
    fn of(member: &Member) -> Self {
        let process = Path::new("/proc").join(member.agent_pid().to_string());
        let status = fs::read_to_string(process.join("status")).expect("a running agent");
        let resident =
            status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let resident: usize = resident.and_then(|text| text.trim().parse().ok()).expect("kibibytes");
        let descriptors = fs::read_dir(process.join("fd")).expect("a running agent").count();
        Self { descriptors, resident: resident << 10 }
    }
}
