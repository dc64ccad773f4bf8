//! What is wrong on the command line ends with a code that scripts can trust, and a message that names the way out.

use baremesh_tests::{Host, Mesh, net, output_of, run, wait_until};

/// A command, the code that it ends with, and what it says.
type Case<'a> = (&'a str, u8, &'a [&'a str]);

#[track_caller]
fn check(host: &Host, (line, code, texts): Case<'_>) {
    let output = run(host.sh(&format!("baremesh {line}")));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code.into()), "baremesh {line}: {said}");
    for text in texts {
        assert!(said.contains(text), "baremesh {line} does not say {text:?}: {said}");
    }
    assert!(output.stdout.is_empty(), "baremesh {line}: errors do not belong on the standard output");
    assert!(!said.contains("panicked") && !said.contains("RUST_BACKTRACE"), "baremesh {line}: {said}");
}

const TOKEN: &str = "bm1.AAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA.AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

#[test]
fn a_host_that_is_in_no_mesh_is_told_what_to_do() {
    let net = net("cli");
    let host = net.host("web", 1);
    let unreachable = format!("join 10.77.0.200 --token {TOKEN}");
    let no_name = format!("join nosuch.example --token {TOKEN}");
    let cases: &[Case<'_>] = &[
        ("", 2, &["Usage"]),
        ("agnet", 2, &["agent"]),
        ("agent", 1, &["baremesh join ADDRESS --token TOKEN"]),
        ("status", 3, &["baremesh agent"]),
        ("certs", 3, &["baremesh agent"]),
        ("capture plan", 3, &["baremesh agent"]),
        ("capture confirm", 1, &[]),
        ("control", 1, &["baremesh init"]),
        ("token create", 3, &["baremesh control"]),
        ("host list", 3, &["baremesh control"]),
        ("get", 3, &["baremesh control"]),
        ("join 10.77.0.200", 2, &["--token"]),
        ("join 10.77.0.200 --token abc", 2, &["baremesh token create", "bm1"]),
        ("join 10.77.0.200 --token-file /nosuch", 2, &["/nosuch"]),
        (&unreachable, 3, &["10.77.0.200:15012", "baremesh control"]),
        (&no_name, 2, &["nosuch.example"]),
        ("init --trust-domain UPPER", 2, &["--trust-domain"]),
        ("init --ca-cert /nosuch --ca-key /nosuch", 1, &["/nosuch"]),
        ("service register web", 2, &["--port"]),
        ("service register web --port 0", 2, &["1 to 65535"]),
        ("service register web --port http", 2, &["80:8080"]),
        ("service register Web --port 80", 2, &["Web"]),
        ("service register web --port 15008", 1, &["agent's own"]),
        ("service register web --port 80 --user nobody-of-that-name", 1, &["nobody-of-that-name"]),
        ("service register web --port 80 --namespace hosts", 1, &["mesh's own"]),
        ("service deregister web", 1, &["baremesh service list"]),
        ("apply -f /nosuch.toml", 2, &["/nosuch.toml"]),
        ("apply", 2, &["--file", "-f"]),
        ("token create --expires never", 2, &["15m"]),
        ("capture apply --confirm soon", 2, &["15m"]),
        ("-o yaml status", 2, &["`get`"]),
        ("-o xml get", 2, &["table", "json"]),
    ];
    cases.iter().for_each(|case| check(&host, *case));
}

/// Without a control server the same is done in the directory itself, and nothing needs to run.
#[test]
fn a_refusal_says_what_stands_of_the_files_before_it() {
    let net = net("cli-files");
    let host = net.host("web", 1);
    let own = |file: &str| host.path("/etc/baremesh").join(file);
    let write = |file: &str, text: &str| std::fs::write(own(file), text).expect("a file of the host");
    std::fs::create_dir_all(own("registry")).expect("the host's directory");
    write("agent.toml", "[registry]\nsource = \"files\"\n");
    for (file, key) in [("a.toml", "port"), ("b.toml", "prot")] {
        let name = &file[..1];
        write(file, &format!("[[Service]]\nname = \"{name}\"\nports = [{{ {key} = 80 }}]\n"));
    }
    let line =
        |options: &str| format!("baremesh apply {options} -f /etc/baremesh/a.toml -f /etc/baremesh/b.toml");
    let check = |options: &str, stdout: &str, stderr: &str| {
        let output = run(host.sh(&line(options)));
        let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
        let (said, remarked) = (text(&output.stdout), text(&output.stderr));
        assert_eq!(output.status.code(), Some(1), "{options}: {said}{remarked}");
        assert!(said.contains(stdout), "{options}: {said}");
        assert!(remarked.contains(stderr), "{options}: {remarked}");
        said
    };
    check("--dry-run", "Service default/a would be created", "nothing was changed");
    let text = check("-o json --dry-run", "prot", "");
    assert!(!text.contains("created"), "{text}");
    check("", "Service default/a created", "nothing more was changed: what is listed above is done");
    let answer: serde_json::Value = serde_json::from_str(&check("-o json", "prot", "")).expect("one answer");
    assert_eq!(
        (&answer["changes"][0]["name"], &answer["changes"][0]["effect"]),
        (&"a".into(), &"unchanged".into())
    );
    write("registry/broken.toml", "[[Service]]\n");
    let asked = run(host.sh("baremesh get"));
    let said = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(asked.status.code() == Some(1) && said.contains("broken.toml"), "{said}");
    assert!(!said.contains("changed"), "who asks changes nothing, and needs no telling: {said}");
}

#[test]
fn a_mesh_says_what_it_does_not_do() {
    let mesh = Mesh::new("cli-mesh");
    let web = mesh.member("web", 1, &["web"]);
    let bad = mesh.control.path("/run/baremesh/bad.toml");
    std::fs::write(bad, "[[Service]]\nname = \"x\"\nports = [{ prot = 80 }]\n").expect("written");
    let control: &[Case<'_>] = &[
        ("init", 1, &["/var/lib/baremesh"]),
        ("apply -f /run/baremesh/bad.toml", 1, &["bad.toml:3", "prot", "nothing was changed"]),
        ("delete Service nosuch", 1, &["nosuch"]),
        ("get Service nosuch", 1, &["nosuch"]),
        ("delete Pod x", 2, &["HostGrant"]),
        ("token delete nosuch", 1, &["baremesh token list"]),
        ("token delete ../x", 2, &["baremesh token list"]),
        ("host revoke nosuch", 1, &["nosuch"]),
        ("token create --host a --rejoin b", 2, &["--rejoin"]),
        ("token create --expires 31d", 1, &["30 days"]),
    ];
    control.iter().for_each(|case| check(&mesh.control, *case));
    let again = format!("join 10.77.0.200 --token {}", mesh.token(&[]));
    let member: &[Case<'_>] = &[
        (&again, 1, &["member already", "--rejoin web"]),
        ("agent", 1, &["already"]),
        ("capture apply --confirm 2h", 1, &["3600"]),
        ("capture confirm", 1, &[]),
        ("service register web --port 80 --deliver 0.0.0.0:80", 1, &["no address to deliver to"]),
    ];
    member.iter().for_each(|case| check(&web.host, *case));
    web.configure("[dns]\nmode = \"magic\"\n");
    web.stop_agent();
    check(&web.host, ("agent", 2, &["agent.toml", "line 2"]));
}

/// The agent reads what is registered before it can be told of more: here there is much time in between, as somebody has
/// one of its ports.
#[test]
fn a_service_that_is_registered_while_the_agent_starts_is_not_forgotten() {
    let mesh = Mesh::new("cli-start");
    let web = mesh.member("web", 1, &["web"]);
    web.stop_agent();
    let port = web.host.listen((web.host.v4(), 15008));
    web.start_without_waiting();
    wait_until("the agent has come as far as its ports", || {
        !run(web.host.sh("ss --no-header --listening --udp --numeric 'sport = :15053'")).stdout.is_empty()
    });
    let registered = run(web.host.baremesh(["service", "register", "web", "--port", "80"]));
    let said = String::from_utf8_lossy(&registered.stderr).into_owned();
    assert!(registered.status.success() && said.contains("no agent runs here"), "{said}");
    drop(port);
    web.wait_until_ready();
    wait_until("the agent has the service", || {
        let services = web.status().map(|status| status["services"].clone()).unwrap_or_default();
        services[0]["service"] == "web.default" && services[0]["certificate"] == true
    });
    assert_eq!(output_of(web.host.baremesh(["service", "list"])).lines().count(), 2);
}
