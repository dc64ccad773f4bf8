//! What an agent says about itself and about what it carries.

use std::process::Stdio;

use baremesh_tests::{Host, Member, Mesh, output_of, run, wait_until};

/// A caller, and the echo `store`.
fn two(mesh: &Mesh) -> (Member, Member) {
    let (web, store) = (mesh.member("web", 1, &[]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    (web, store)
}

/// The sum of a metric's series that hold `label`.
fn sum(metrics: &str, name: &str, label: &str) -> f64 {
    let of_name = metrics.lines().filter(|line| line.starts_with(name) && line.contains(label));
    of_name.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum()
}

#[test]
fn metrics_are_as_prometheus_wants_them() {
    let mesh = Mesh::new("metrics");
    let (web, store) = two(&mesh);
    output_of(web.host.shop(["call", "store", "80", "x"]));
    run(web.host.shop(["call", "--timeout", "5", "store", "81", "no such port"]));
    store.wait_for_log("the call", |line| line["reporter"] == "destination");
    let promtool = run(web.host.sh("command -v promtool")).stdout;
    assert!(!promtool.is_empty(), "promtool is missing: apt-get install prometheus");
    for member in [&web, &store] {
        let text = member.metrics();
        assert!(sum(&text, "istio_tcp_connections_opened_total", "") > 0.0, "{text}");
        let file = member.host.path("/run/baremesh/metrics");
        std::fs::write(&file, &text).expect("written");
        let mut check = member.host.sh("promtool check metrics < /run/baremesh/metrics");
        let checked = check.stdin(Stdio::null()).output().expect("promtool");
        let said =
            String::from_utf8_lossy(&checked.stderr).into_owned() + &String::from_utf8_lossy(&checked.stdout);
        assert!(checked.status.success() && said.trim().is_empty(), "{said}");
    }
}

#[test]
fn bytes_are_counted_while_a_connection_is_open() {
    let mesh = Mesh::new("bytes");
    let (web, store) = two(&mesh);
    let held = web.host.spawn("hold", web.host.shop(["hold", "store", "80"]));
    held.wait_for_output("open");
    for (member, reporter) in [(&web, "reporter=\"source\""), (&store, "reporter=\"destination\"")] {
        for name in ["istio_tcp_sent_bytes_total", "istio_tcp_received_bytes_total"] {
            let count = || sum(&member.metrics(), name, reporter);
            wait_until("the first bytes are counted", || count() > 0.0);
            let before = count();
            wait_until("more bytes are counted", || count() > before);
        }
        assert_eq!(sum(&member.metrics(), "istio_tcp_connections_closed_total", reporter), 0.0);
        assert_eq!(sum(&member.metrics(), "baremesh_open_connections", ""), 1.0);
    }
    assert!(held.is_running());
    assert!(web.log().is_empty(), "a line is written at a connection's end");
}

#[test]
fn every_connection_has_one_line_on_each_side() {
    let mesh = Mesh::new("lines");
    let (web, store) = two(&mesh);
    output_of(web.host.shop(["many", "store", "80", "50"]));
    run(web.host.shop(["call", "--timeout", "5", "store", "81", "no such port"]));
    let of = |member: &Member, reporter: &str| {
        member.log().into_iter().filter(|line| line["reporter"] == reporter).collect::<Vec<_>>()
    };
    wait_until("all lines are written", || {
        of(&web, "source").len() >= 51 && of(&store, "destination").len() >= 50
    });
    let (source, destination) = (of(&web, "source"), of(&store, "destination"));
    let refused = source.iter().filter(|line| line["response_code_details"] == "no_such_port").count();
    // A reset that comes before the caller has looked is a failed connect to it, and it tries the other family's address.
    assert!((1..=2).contains(&refused), "{refused}: {source:#?}");
    assert_eq!(
        (source.len(), destination.len()),
        (50 + refused, 50),
        "{source:#?}, and at the called side: {destination:#?}"
    );
    for line in
        source.iter().chain(&destination).filter(|line| line["response_code_details"] != "no_such_port")
    {
        assert_eq!(line["response_code_details"], "-", "{line}");
        assert!(
            line["bytes_sent"].as_u64() > Some(0) && line["bytes_sent"] == line["bytes_received"],
            "{line}"
        );
        assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/hosts/sa/web");
    }
}

/// The answer of a host's readiness port.
fn readiness(host: &Host) -> String {
    use std::io::{Read as _, Write as _};
    let mut answer = String::new();
    if let Ok(mut stream) = host.connect(([127, 0, 0, 1], 15021)) {
        let _ = stream.write_all(b"GET /healthz/ready HTTP/1.0\r\n\r\n");
        let _ = stream.read_to_string(&mut answer);
    }
    answer
}

#[test]
fn an_agent_is_ready_only_with_certificates_state_and_capture() {
    let mesh = Mesh::new("ready");
    let host = mesh.net.host("web", 1);
    output_of(host.baremesh(["join", "10.77.0.200", "--token", &mesh.token(&["web"]), "--host", "web"]));
    output_of(host.baremesh(["service", "register", "web", "--port", "80"]));
    mesh.kill_control();
    let web = Member::of(host);
    web.start_without_waiting();
    wait_until("it says what it lacks", || readiness(&web.host).contains("no certificate for"));
    let said = readiness(&web.host);
    assert!(said.starts_with("HTTP/1.0 503") || said.starts_with("HTTP/1.1 503"), "{said}");
    assert!(said.contains("sa/web") && said.contains("no state of the mesh yet"), "{said}");
    let status = run(web.host.baremesh(["status"]));
    let shown = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.status.code() == Some(1) && shown.contains("no certificate for"), "{shown}");

    mesh.start_control();
    wait_until("it is ready", || readiness(&web.host).contains(" 200 "));
    output_of(web.host.baremesh(["capture", "remove"]));
    wait_until("without its rules it is not", || readiness(&web.host).contains("capture: "));
    output_of(web.host.baremesh(["capture", "apply"]));
    wait_until("it is ready again", || readiness(&web.host).contains(" 200 "));
    output_of(web.host.baremesh(["status"]));
}

/// Connections from one port to several destinations meet at one listener, and none gets another's bytes.
#[test]
fn connections_that_share_their_ports_do_not_mix() {
    let mesh = Mesh::new("tuples");
    let (web, store) = two(&mesh);
    let addresses = web.ask("/services").expect("services")[0]["addresses"].to_string();
    let is_v4 = |text: &&str| text.contains('.') && !text.contains(':');
    let virtual_v4 = addresses.split('"').find(is_v4).expect("a virtual address").to_owned();
    let destinations = [(virtual_v4, "80"), (store.host.v4().to_string(), "7000")];
    // These come from other ports than those below: connection tracking remembers one that was refused before the capture.
    use_ports(&web, 50_000, 50_255);
    for (address, port) in &destinations {
        wait_until("it is captured", || run(web.host.shop(["call", address, port, "x"])).status.success());
    }
    // Fewer ports than connections: the kernel has to use each for several destinations.
    use_ports(&web, 40_000, 40_255);
    let many = |(address, port): &(String, &str)| {
        web.host.spawn("many", web.host.shop(["many", address, port, "150"]))
    };
    let clients: Vec<_> = destinations.iter().map(many).collect();
    for client in clients {
        assert!(client.wait().success(), "{}{}", client.stdout(), client.stderr());
        assert!(client.has_said("echoed on 150 of 150"));
    }
}

/// A connection that was refused before its destination was an endpoint is remembered by connection tracking for ten seconds,
/// untranslated. One from the same port in that time cannot be brought to the agent: it is refused and counted, and leaks nothing.
#[test]
fn a_port_that_was_used_before_the_capture_is_refused_until_it_is_forgotten() {
    let mesh = Mesh::new("reused");
    let (web, store) = (mesh.member("web", 1, &[]), mesh.member("store", 2, &["store"]));
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    let address = store.host.v4().to_string();
    let call = || run(web.host.shop(["call", &address, "7000", "x"])).status.success();
    use_ports(&web, 40_000, 40_000);
    assert!(!call(), "the host's address has nothing at this port");
    store.register("store", ["--port", "80:7000"]);
    web.wait_for_endpoints("store.default", 1);
    wait_until("it is captured, and the port forgotten", call);
    assert!(sum(&store.metrics(), "istio_tcp_connections_opened_total", "mutual_tls") > 0.0);
}

/// From which ports a host's programs connect.
fn use_ports(member: &Member, first: u16, last: u16) {
    output_of(member.host.sh(&format!("echo {first} {last} > /proc/sys/net/ipv4/ip_local_port_range")));
}
