//! Several control processes sign side by side, with one ledger in a real Consul.

use std::fs;
use std::process::{Command, Output};

use baremesh_tests::{Host, Mesh, Net, Process, errors_of, net, output_of, run, wait_for_errors, wait_until};
use serde_json::Value;

/// Where the control hosts find Consul.
const FILE: &str = "/etc/baremesh/ledger.toml";

/// The Consul that stories meet.
#[track_caller]
fn consul(host: &Host) -> Process {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/peers/consul");
    let program = output_of(Command::new(script));
    let mut command = host.command(program.trim());
    let address = host.v4().to_string();
    command.args([
        "agent",
        "-dev",
        "-node",
        "consul",
        "-bind",
        &address,
        "-client",
        &address,
        "-log-level",
        "err",
    ]);
    let process = host.spawn("consul", command);
    let leader = || {
        let mut asked = host.command(program.trim());
        asked.args(["operator", "raft", "list-peers", &format!("-http-addr=http://{address}:8500")]);
        String::from_utf8_lossy(&run(asked).stdout).contains("leader")
    };
    wait_until("Consul has a leader", leader);
    process
}

fn told_of_consul(host: &Host, consul: &Host) {
    let text = format!("[consul]\naddresses = [\"http://{}:8500\"]\nallow_plaintext = true\n", consul.v4());
    fs::create_dir_all(host.path("/etc/baremesh")).expect("the host's configuration");
    fs::write(host.path(FILE), text).expect("the host's configuration");
}

/// Two control hosts of one mesh.
struct Two {
    mesh: Mesh,
    second: Host,
    second_server: Process,
    consul: Process,
    _store: Host,
}

impl Two {
    #[track_caller]
    fn new(name: &str) -> Self {
        let net: Net = net(name);
        let (store, first, second) =
            (net.host("consul", 150), net.host("control", 200), net.host("control2", 201));
        let consul = consul(&store);
        output_of(first.baremesh(["init"]));
        told_of_consul(&first, &store);
        told_of_consul(&second, &store);
        output_of(first.baremesh(["ca", "share", FILE]));
        let serve =
            |host: &Host| host.baremesh(["control", "--shared-ledger", FILE, "--node-lifetime", "20"]);
        let command = serve(&first);
        let mesh = Mesh::served(net, first, command);
        let archive = "/etc/baremesh/mesh.tar";
        output_of(mesh.control.baremesh(["backup", archive]));
        fs::copy(mesh.control.path(archive), second.path(archive)).expect("the backup");
        output_of(second.baremesh(["restore", archive]));
        let second_server = second.spawn("control", serve(&second));
        wait_until("the second control server answers", || {
            run(second.baremesh(["host", "list"])).status.success()
        });
        output_of(second.baremesh(["ca", "rotate", "--intermediate"]));
        Self { mesh, second, second_server, consul, _store: store }
    }
}

fn join(host: &Host, control: &Host, token: &str) -> Output {
    run(host.baremesh(["join", &control.v4().to_string(), "--token", token, "--host", host.name()]))
}

fn token_of(control: &Host, services: &[&str]) -> String {
    let granted = services.iter().flat_map(|service| ["--service", service]);
    let command = control.baremesh(["token", "create", "--output", "json"].into_iter().chain(granted));
    let made: Value = serde_json::from_str(&output_of(command)).expect("JSON");
    made["token"].as_str().expect("a token").to_owned()
}

/// A host's state as a control server lists it.
fn listed(control: &Host, host: &str) -> Option<Value> {
    let said = run(control.baremesh(["host", "list", "--output", "json"])).stdout;
    let listed: Value = serde_json::from_slice(&said).ok()?;
    let all = listed.as_array().or_else(|| listed["hosts"].as_array())?;
    all.iter().find(|one| one["name"] == host || one["host"] == host).cloned()
}

#[test]
fn two_control_processes_let_one_host_in_by_one_token_and_one_of_them_is_enough() {
    let two = Two::new("side");
    let (first, second) = (&two.mesh.control, &two.second);
    for round in 0..3_u8 {
        let token = token_of(if round == 1 { second } else { first }, &["web"]);
        let hosts = [0, 1].map(|side| two.mesh.net.host(&format!("h{round}-{side}"), 1 + 2 * round + side));
        let answers = std::thread::scope(|scope| {
            let at = [first, second];
            let both = [0, 1].map(|side| {
                let (host, control, token) = (&hosts[side], at[side], &token);
                scope.spawn(move || join(host, control, token))
            });
            both.map(|one| one.join().expect("no panic"))
        });
        let said = answers.each_ref().map(|answer| String::from_utf8_lossy(&answer.stderr).into_owned());
        let let_in = answers.iter().filter(|answer| answer.status.success()).count();
        assert_eq!(let_in, 1, "{said:?}");
        assert!(said.iter().any(|said| said.contains("used already")), "{said:?}");
    }
    let token = token_of(first, &["web"]);
    two.mesh.kill_control();
    let late = two.mesh.net.host("late", 30);
    let answer = join(&late, second, &token);
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    // The killed one comes back to what happened meanwhile.
    let _back = first.spawn("control", first.baremesh(["control", "--shared-ledger", FILE]));
    wait_until("the first knows who joined meanwhile", || listed(first, "late").is_some());
}

#[test]
fn who_joined_at_one_control_process_renews_at_the_other_until_either_shuts_it_out() {
    let two = Two::new("renews");
    let (first, second) = (&two.mesh.control, &two.second);
    let web = two.mesh.member("web1", 1, &["web"]);
    web.register("web", ["--port", "80"]);
    // Its agent goes on with the other control host: only the address is another.
    web.stop_agent();
    let file = web.host.path("/var/lib/baremesh/node/mesh.toml");
    let text = fs::read_to_string(&file).expect("the membership");
    let moved = text.replace(&first.v4().to_string(), &second.v4().to_string());
    assert_ne!(moved, text);
    fs::write(&file, moved).expect("written");
    let credential =
        || fs::read_to_string(web.host.path("/var/lib/baremesh/node/node.pem")).expect("a credential");
    let before = credential();
    web.start();
    wait_until("the second has renewed its credential", || credential() != before);

    output_of(first.baremesh(["host", "revoke", "web1"]));
    wait_for_errors(second, "control", &["host_revoked"]);
    let revoked =
        || String::from_utf8_lossy(&run(second.baremesh(["certs", "revoked"])).stdout).contains("web1");
    wait_until("the second lists what the first took back", revoked);
}

#[test]
fn a_root_is_replaced_by_a_control_process_that_is_alone_and_others_begin_with_a_backup_of_it() {
    let two = Two::new("root");
    let (first, second) = (&two.mesh.control, &two.second);
    let rotate = || run(first.baremesh(["ca", "rotate", "--root", "--within", "1s"]));
    let refused = rotate();
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("share the ledger and would not have"), "{said}");
    // An intermediate is each one's own.
    output_of(first.baremesh(["ca", "rotate", "--intermediate"]));
    two.second_server.terminate();
    two.second_server.wait();
    wait_until("the first is alone", || rotate().status.success());
    // With the state of before it does not come back, whether or not anything was signed under the new root yet.
    let serve = ["control", "--shared-ledger", FILE, "--node-lifetime", "20"];
    let lacking = run(second.baremesh(serve));
    let said = String::from_utf8_lossy(&lacking.stderr).into_owned();
    assert!(!lacking.status.success() && said.contains("lacks") && said.contains("backup"), "{said}");

    let archive = "/etc/baremesh/with-the-root.tar";
    output_of(first.baremesh(["backup", archive]));
    fs::copy(first.path(archive), second.path(archive)).expect("the backup");
    output_of(second.baremesh(["restore", "--replace", archive]));
    let _server = second.spawn("control", second.baremesh(serve));
    wait_until("the second control server answers", || {
        run(second.baremesh(["host", "list"])).status.success()
    });
    let token = token_of(second, &["web"]);
    let host = two.mesh.net.host("late", 30);
    let answer = join(&host, second, &token);
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
}

#[test]
fn without_consul_nobody_is_let_in_and_the_log_says_why() {
    let two = Two::new("noconsul");
    let token = token_of(&two.mesh.control, &[]);
    two.consul.kill();
    let host = two.mesh.net.host("web1", 1);
    let answer = join(&host, &two.second, &token);
    let said = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert_eq!(answer.status.code(), Some(1), "{said}");
    assert!(said.contains("cannot answer right now"), "{said}");
    wait_for_errors(
        &two.second,
        "control",
        &["that control processes share is out of reach", "nothing is signed"],
    );
    assert!(!host.path("/var/lib/baremesh/node/node.pem").exists());
    assert!(!errors_of(&two.second, "control").contains("joined"));
}

#[test]
fn resources_go_from_files_to_consul_and_back_the_same() {
    let net = net("migrate");
    let (store, host) = (net.host("consul", 150), net.host("control", 200));
    let _consul = consul(&store);
    told_of_consul(&host, &store);
    let example = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/shop.toml");
    fs::create_dir_all(host.path("/etc/baremesh/from")).expect("a directory");
    fs::copy(example, host.path("/etc/baremesh/from/shop.toml")).expect("an example");
    let (from, consul, to) =
        ("files:/etc/baremesh/from", format!("consul:{FILE}"), "files:/etc/baremesh/back");
    let migrate = |from: &str, to: &str, more: &[&str]| {
        let line = ["registry", "migrate", "--from", from, "--to", to];
        run(host.baremesh(line.iter().chain(more)))
    };
    #[track_caller]
    fn done(output: &Output) -> String {
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
    let would = done(&migrate(from, &consul, &["--dry-run"]));
    assert!(would.contains("would be created"), "{would}");
    assert!(!migrate(&consul, to, &[]).status.success(), "a dry run wrote something");
    let created = done(&migrate(from, &consul, &[]));
    assert_eq!(created.lines().count(), would.lines().count());
    done(&migrate(&consul, to, &[]));
    // Another set over it is refused, and with --replace put in its place; and back again.
    fs::create_dir_all(host.path("/etc/baremesh/other")).expect("a directory");
    let other = "[[Service]]\nname = \"other\"\nports = [{ port = 80 }]\n";
    fs::write(host.path("/etc/baremesh/other/a.toml"), other).expect("written");
    let refused = migrate("files:/etc/baremesh/other", &consul, &[]);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(!refused.status.success() && said.contains("--replace"), "{said}");
    let refused = migrate(&consul, "files:/etc/baremesh/other", &[]);
    assert!(!refused.status.success());
    assert_eq!(fs::read_to_string(host.path("/etc/baremesh/other/a.toml")).expect("as it was"), other);
    done(&migrate("files:/etc/baremesh/other", &consul, &["--replace"]));
    done(&migrate(to, &consul, &["--replace"]));
    done(&migrate(&consul, "files:/etc/baremesh/other", &["--replace"]));
    // The same set, byte for byte, however it went.
    let same = done(&migrate(from, &consul, &["--output", "json"]));
    let same: Value = serde_json::from_str(&same).expect("JSON");
    let changes = same["changes"].as_array().expect("changes");
    assert!(!changes.is_empty() && changes.iter().all(|change| change["effect"] == "unchanged"), "{same}");
    let read = |directory: &str| {
        let mut files: Vec<_> = fs::read_dir(host.path(format!("/etc/baremesh/{directory}")))
            .expect("a directory")
            .map(|entry| entry.expect("an entry").path())
            .map(|path| (path.file_name().map(ToOwned::to_owned), fs::read_to_string(path).expect("a file")))
            .collect();
        files.sort();
        files
    };
    assert_eq!(read("back"), read("other"));
    // What does not hold together goes nowhere.
    let broken = "[[WorkloadEntry]]\nname = \"w\"\naddress = \"10.0.0.1\"\nservice = \"nobody\"\n";
    fs::write(host.path("/etc/baremesh/from/broken.toml"), broken).expect("written");
    let refused = migrate(from, &consul, &["--replace"]);
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("holds no set"));
}
