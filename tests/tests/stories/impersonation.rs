//! Other users of a host, and callers through the mesh, reach neither keys nor administration.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use baremesh_tests::{Host, Member, Mesh, errors_of, exit, exit_code_of, needs_root, output_of, run};

use crate::impostor::{bundle_of, stolen};
use crate::pair::{because, counted};
use crate::raw_peer;

const STRANGER: u32 = 4711;

/// What a stranger's `baremesh` says when it is refused.
#[track_caller]
fn refused(host: &Host, arguments: &[&str]) -> String {
    let mut command = host.command_as(STRANGER, "baremesh");
    command.args(arguments);
    let output = run(command);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "{arguments:?} by a stranger was carried out");
    said
}

#[test]
fn another_user_administers_neither_the_agent_nor_the_mesh() {
    needs_root!("two uids");
    let mesh = Mesh::new("stranger");
    let web = mesh.member("web", 1, &["web"]);
    for arguments in
        [&["status"][..], &["certs"], &["capture", "plan"], &["capture", "apply"], &["capture", "remove"]]
    {
        let said = refused(&web.host, arguments).to_lowercase();
        assert!(said.contains("permi"), "{arguments:?}: {said}");
    }
    refused(&web.host, &["service", "register", "web", "--port", "80"]);
    assert_eq!(output_of(web.host.baremesh(["service", "list", "-o", "json"])), "[]");

    let resources = output_of(mesh.control.baremesh(["get", "-o", "json"]));
    let file = mesh.control.path("/run/baremesh/evil.toml");
    std::fs::write(&file, "[[HostGrant]]\nname = \"evil\"\nhost = \"*\"\nservices = [\"*.*\"]\n")
        .expect("written");
    for arguments in [
        &["apply", "-f", "/run/baremesh/evil.toml"][..],
        &["delete", "PeerAuthentication", "default", "-n", "mesh-system"],
        &["token", "create"],
        &["host", "revoke", "web"],
        &["get"],
    ] {
        let said = refused(&mesh.control, arguments).to_lowercase();
        assert!(said.contains("permi"), "{arguments:?}: {said}");
    }
    assert_eq!(output_of(mesh.control.baremesh(["get", "-o", "json"])), resources);
    for socket in [web.host.path("/run/baremesh/agent.sock"), mesh.control.path("/run/baremesh/control.sock")]
    {
        let found = std::fs::metadata(&socket).expect("a socket");
        assert_eq!((found.permissions().mode() & 0o007, found.uid()), (0, 0), "{}", socket.display());
    }
}

/// All files below `directory`.
fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).expect("a directory").flatten();
    let below = entries.flat_map(|entry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files(&entry.path()),
        Ok(kind) if kind.is_file() => vec![entry.path()],
        _ => Vec::new(),
    });
    below.collect()
}

#[test]
fn another_user_reads_no_key() {
    needs_root!("two uids");
    let mesh = Mesh::new("keys");
    let web = mesh.member("web", 1, &["web"]);
    web.register("web", ["--port", "80"]);
    let mut keys = 0;
    for host in [&web.host, &mesh.control] {
        for path in ["/etc/baremesh", "/run/baremesh", "/var/lib/baremesh"]
            .map(|place| files(&host.path(place)))
            .concat()
        {
            let secret = std::fs::read(&path)
                .is_ok_and(|bytes| String::from_utf8_lossy(&bytes).contains("PRIVATE KEY"));
            let database =
                path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("control.db"));
            if !secret && !database {
                continue;
            }
            keys += usize::from(secret);
            let mode = std::fs::metadata(&path).expect("a file").permissions().mode();
            assert_eq!(mode & 0o077, 0, "{} has mode {mode:o}", path.display());
        }
        let listed = run({
            let mut command = host.command_as(STRANGER, "sh");
            command.args([
                "-c",
                "cat /var/lib/baremesh/*/*.pem /var/lib/baremesh/*/*.key /var/lib/baremesh/control.db",
            ]);
            command
        });
        assert!(!listed.status.success() && listed.stdout.is_empty());
    }
    // The node's, the host's and the service's; the root's, and the intermediate's.
    assert!(keys >= 5, "{keys} keys were looked at");
}

fn caller_and_callee(mesh: &Mesh) -> (Member, Member) {
    let (web, store) = (mesh.member("web", 1, &["web"]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    web.register("web", ["--port", "81", "--user", "0"]);
    web.wait_for_endpoints("store.default", 1);
    (web, store)
}

#[test]
fn administration_cannot_be_reached_through_the_mesh() {
    let mesh = Mesh::new("inside");
    let (web, store) = caller_and_callee(&mesh);
    let certificate = stolen(&web.host.path("/var/lib/baremesh/certificates/default.web.pem"));
    let connect = |authority: &str| {
        raw_peer::connect(&web.host, store.host.v4(), "store", &certificate, bundle_of(&mesh), authority)
    };
    assert_eq!(connect("10.77.0.2:7000"), Some(200), "the way as such is open");
    for port in [15001, 15006, 15008, 15012, 15014, 15020, 15021, 15053, 22] {
        for host in ["10.77.0.2", "127.0.0.1", "[::1]", "store.default.mesh.internal"] {
            let answer = connect(&format!("{host}:{port}"));
            assert!(answer.is_none_or(|status| status >= 400), "{host}:{port} was answered with {answer:?}");
        }
        assert_ne!(
            exit_code_of(web.host.shop(["call", "--timeout", "5", "store", &port.to_string(), "GET /"])),
            exit::DONE
        );
        let target = format!("80:{port}");
        let refused = run(store.host.baremesh(["service", "register", "back-door", "--port", &target]));
        assert_eq!(refused.status.code(), Some(1), "{target}");
    }
    let deliver = ["service", "register", "back-door", "--port", "82", "--deliver", "127.0.0.1:15020"];
    assert_eq!(run(store.host.baremesh(deliver)).status.code(), Some(1));
    store.wait_for_log("the refusal", because("not_registered"));
    assert!(counted(&store, "not_registered") > 0, "it is counted");
}

#[test]
fn no_key_is_in_any_dump_or_log() {
    let mesh = Mesh::new("dumps");
    let (web, store) = caller_and_callee(&mesh);
    output_of(web.host.shop(["call", "store", "80", "x"]));
    let kept = files(&store.host.path("/var/lib/baremesh"));
    let secrets: Vec<String> = kept
        .iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .filter(|text| text.contains("PRIVATE KEY"))
        .filter_map(|text| Some(text.split("PRIVATE KEY-----").nth(1)?.lines().nth(2)?.to_owned()))
        .collect();
    assert!(secrets.len() >= 3 && secrets.iter().all(|line| line.len() > 20), "{secrets:?}");
    let mut dumps = ["/status", "/services", "/certificates"]
        .map(|target| store.ask(target).expect("an answer").to_string())
        .to_vec();
    dumps.push(store.metrics());
    dumps.push(errors_of(&store.host, "agent"));
    dumps.extend(store.log().iter().map(ToString::to_string));
    for arguments in
        [&["status"][..], &["certs", "-o", "json"], &["capture", "plan"], &["service", "list", "-o", "json"]]
    {
        dumps.push(output_of(store.host.baremesh(arguments)));
    }
    for arguments in
        [&["get", "-o", "json"][..], &["token", "list", "-o", "json"], &["host", "list", "-o", "json"]]
    {
        dumps.push(output_of(mesh.control.baremesh(arguments)));
    }
    for dump in dumps {
        let leaked = secrets.iter().find(|secret| dump.contains(&***secret));
        assert!(leaked.is_none() && !dump.contains("PRIVATE KEY"), "{dump}");
    }
}
