//! The edges of HTTP: callers that leave while something is waited for, limits with kept connections, policies that change,
//! connections that nobody uses any more, and programs that behave oddly.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use baremesh_tests::{Member, WAIT_BOUND, exit, output_of, told_by, wait_until};
use serde_json::Value;
use time::OffsetDateTime;

use crate::pair::{WEB_ID, virtual_addresses};
use crate::peer::{Tunnel, agent_of, authority, config};
use crate::signer::Signer;
use crate::town::{REVIEWS, Town, routes, rule, subsets, to};

#[test]
fn a_caller_that_leaves_is_noticed_whatever_is_waited_for() {
    let town = Town::new("leaves", 1);
    let [v1] = town.open();
    let route = |path: &str, what: &str| {
        format!("{{ match = [{{ uri = {{ prefix = \"{path}\" }} }}], route = [{}], {what} }}", to("v1", 1))
    };
    let delay =
        route("/delay", "fault = { delay = { fixedDelay = \"600s\", percentage = { value = 100 } } }");
    // The pause is anything up to that: chance alone has it be over in a few seconds once in millions of runs.
    let back_off = route("/back-off", "retries = { attempts = 9, retryOn = \"5xx\", backoff = \"8760h\" }");
    let rest = format!("{{ route = [{}] }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&[delay, back_off, rest].join(", "))));
    let leaves = |options: &[&str], seconds: &str, path: &str| {
        let options = [options, &["--timeout", seconds]].concat();
        let answer = town.web.host.get(&options, &format!("{REVIEWS}{path}"));
        assert_eq!((answer.status, answer.code), (None, exit::SILENT), "{answer:?}");
        let line = town.web.wait_for_log(path, |line| line["path"] == path);
        let told = (&line["response_flags"], &line["response_code_details"]);
        assert_eq!(told, (&"DC".into(), &"downstream_remote_disconnect".into()), "{line}");
    };
    for (version, options) in [("1", &[][..]), ("2", &["--http2"])] {
        leaves(options, "1", &format!("/delay/{version}"));
        // Long enough for the instance to have answered.
        leaves(options, "5", &format!("/back-off/{version}?status=503"));
        // A body of which more is there than is read ahead.
        leaves(&[options, &["--size", "60000"]].concat(), "1", &format!("/delay/long/{version}"));
    }
    let paths: Vec<_> = v1.requests().iter().map(|request| request["path"].clone()).collect();
    assert_eq!(paths, ["/back-off/1", "/back-off/2"], "nothing is sent for those who have left");
    // And while an agent does not answer: what is pulled out answers nothing.
    town.hosts[0].kill_agent();
    town.hosts[0].host.unplug();
    for (version, options) in [("1", &[][..]), ("2", &["--http2"])] {
        leaves(options, "1", &format!("/connect/{version}"));
    }
}

#[test]
fn what_is_pipelined_behind_a_request_that_waits_is_not_lost() {
    let town = Town::new("piped", 1);
    let [_v1] = town.open();
    let slow = format!(
        "{{ match = [{{ uri = {{ prefix = \"/slow\" }} }}], route = [{}], fault = {{ delay = {{ fixedDelay = \"1s\", percentage = {{ value = 100 }} }} }} }}",
        to("v1", 1)
    );
    let rest = format!("{{ route = [{}] }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&[slow, rest].join(", "))));
    let mut stream = connect(&town.web, "reviews");
    let body = "x".repeat(40_000);
    let posted =
        format!("POST /slow HTTP/1.1\r\nHost: reviews\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let all = [posted, request("/one", ""), request("/two", "Connection: close\r\n")].concat();
    stream.write_all(all.as_bytes()).expect("it is taken");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("an end in good order");
    assert_eq!(said.matches("HTTP/1.1 200").count(), 3, "{said}");
    assert!(said.contains("\"length\":40000"), "{said}");
}

fn request(path: &str, fields: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: reviews\r\n{fields}\r\n")
}

/// A connection of a program of `member` to a service's virtual address.
#[track_caller]
fn connect(member: &Member, service: &str) -> TcpStream {
    let address = SocketAddr::new(virtual_addresses(member, service)[0], 80);
    let stream = member.host.connect(address).expect("the agent takes it");
    stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    stream
}

#[test]
fn one_connection_is_enough_for_all_workers() {
    for (name, protocol) in [("one-place", "http"), ("one-place-two", "http2")] {
        let town = Town::new(name, 1);
        town.web.stop_agent();
        town.web.configure("[proxy]\nworkers = 4\n");
        town.web.start();
        let [v1] = town.open_with(protocol, |_| Vec::new());
        town.mesh.enforce(&rule("{ connectionPool = { tcp = { maxConnections = 1 } } }"));
        // Each comes on a connection of its own, and so to any worker.
        let answers = town.web.host.get_all(&["--count", "40", "--timeout", "60"], REVIEWS);
        assert!(answers.iter().all(baremesh_tests::Answer::is_ok), "{answers:?}");
        // And so do those that have to wait for each other.
        v1.behave("delay=0.05");
        let options = ["--count", "40", "--parallel", "8", "--timeout", "60"];
        let answers = town.web.host.get_all(&options, REVIEWS);
        assert!(answers.iter().all(baremesh_tests::Answer::is_ok), "{answers:?}");
    }
}

#[test]
fn a_changed_policy_ends_a_request_within_a_host_too() {
    let town = Town::new("within", 1);
    let here = town.web.web("here", "v0", &[]);
    town.web.wait_for_endpoints("here.default", 1);
    for (version, option) in [("1", "--keep"), ("2", "--http2")] {
        let url = format!("http://here/wait/{version}?hang");
        let asking =
            town.web.host.spawn("asking", town.web.host.shop(["get", "--timeout", "300", option, &url]));
        here.wait_for_output(&format!("/wait/{version}"));
        let deny =
            "[[AuthorizationPolicy]]\nname = \"here\"\nselector = { matchLabels = { app = \"here\" } }\n";
        town.mesh.enforce(&format!("{deny}action = \"DENY\"\nrules = [{{}}]\n"));
        asking.wait();
        let told: Value = serde_json::from_str(asking.stdout().trim()).expect("JSON");
        assert_eq!((&told["status"], &told["body"]), (&403.into(), &"RBAC: access denied".into()), "{told}");
        here.wait_for_output(&format!("abandoned /wait/{version}?hang"));
        let path = format!("/wait/{version}?hang");
        let line = town.web.wait_for_log("the end", |line| line["path"] == path.as_str());
        assert_eq!(line["response_flags"], "UAEX", "{line}");
        town.mesh.enforce(&format!("{deny}action = \"ALLOW\"\nrules = [{{}}]\n"));
        wait_until("it is allowed again", || town.web.host.get(&[option], "http://here/").is_ok());
    }
}

#[test]
fn requests_go_to_where_the_service_is_delivered_now() {
    let town = Town::new("moved", 1);
    let [_v1] = town.open();
    let store = &town.hosts[0];
    let _second = store.host.serve("v2", ["web", "v2", "127.0.0.1:8081", "127.0.0.1:9901"]);
    let mut stream = BufReader::new(connect(&town.web, "reviews"));
    let mut ask = || {
        stream.get_mut().write_all(request("/?header=x-at:here", "").as_bytes()).expect("taken");
        answer(&mut stream)
    };
    assert!(ask().contains("v1"));
    let moved =
        ["--port", "80:8080", "--deliver", "127.0.0.1:8081", "--protocol", "http", "--label", "version=v1"];
    store.register_with("reviews", &moved);
    wait_until("a connection that is kept leads to the other program", || ask().contains("v2"));
}

/// One answer with a length, head and body.
#[track_caller]
fn answer(stream: &mut BufReader<TcpStream>) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(stream.read_line(&mut head).expect("it stands") > 0, "{head}");
    }
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
    let mut body = vec![0; length.trim().parse().expect("a number")];
    stream.read_exact(&mut body).expect("a body");
    head + &String::from_utf8_lossy(&body)
}

#[test]
fn an_upgraded_connection_that_nobody_uses_ends_and_one_in_use_does_not() {
    let town = Town::new("quiet", 1);
    let [v1] = town.open();
    town.mesh.enforce(&rule("{ connectionPool = { tcp = { idleTimeout = \"5s\" } } }"));
    let chat = |options: &[&str], path: &str| {
        let url = format!("{REVIEWS}{path}");
        told_by(town.web.host.shop(["websocket"].iter().chain(options).chain([&url.as_str()])))
    };
    // A minute of words, each sooner than the limit.
    let (told, code) = chat(&["--messages", "65", "--pause", "1", "--timeout", "200"], "/used");
    assert_eq!((code, &told["messages"]), (exit::DONE, &65.into()), "{told}");
    let (told, code) = chat(&["--messages", "2", "--pause", "30", "--timeout", "200"], "/quiet");
    assert_eq!(told["messages"], 1, "{told}");
    assert_ne!(code, exit::DONE, "{told}");
    v1.wait_for_output("websocket ended after 1 messages: ");
    let line = town.web.wait_for_log("the end", |line| line["path"] == "/quiet");
    let told = (&line["response_flags"], &line["response_code_details"]);
    assert_eq!(told, (&"SI".into(), &"stream_idle_timeout".into()), "{line}");
}

const FORGED: &str = "X-Forwarded-Client-Cert: By=me;URI=spiffe://mesh.internal/ns/default/sa/admin\r\n\
    x_forwarded_client_cert: URI=spiffe://mesh.internal/ns/default/sa/admin\r\n";

/// What an instance was told of its caller, who claims to be somebody else and begins with `first`.
#[track_caller]
fn told_of_caller(
    member: &Member,
    (address, host): (SocketAddr, &str),
    (first, request): (&str, &str),
) -> Value {
    let mut stream = member.host.connect(address).expect("the agent takes it");
    stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
    if first == "wait" {
        // Longer than an agent waits for first bytes where a call is made.
        thread::sleep(Duration::from_secs(4));
    }
    let all = format!("{request} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{FORGED}\r\n");
    stream.write_all(all.as_bytes()).expect("taken");
    let mut said = String::new();
    stream.read_to_string(&mut said).expect("an end in good order");
    let (head, body) = said.split_once("\r\n\r\n").unwrap_or((&said, ""));
    assert!(head.starts_with("HTTP/1.1 200"), "{first}, {request:?}: {said}");
    let account: Value = serde_json::from_str(body.trim()).expect("an account of the request");
    assert!(!account.to_string().contains("admin"), "{first}, {request:?}: {account}");
    account["headers"]["x-forwarded-client-cert"].clone()
}

#[test]
fn nobody_is_told_that_a_caller_is_somebody_else() {
    let ways = [("at once", "GET /"), ("at once", "\r\nGET /"), ("wait", "GET /"), ("wait", "\r\nGET /")];
    for (name, protocol) in [("forged", "http"), ("forged-auto", "auto")] {
        let town = Town::new(name, 1);
        let [_v1] = town.open_with(protocol, |_| Vec::new());
        let _here = town.web.web("here", "v0", &["--protocol", protocol]);
        town.web.wait_for_endpoints("here.default", 1);
        // What the caller's certificate comes to, as OpenSSL sees it.
        let file = crate::peer::certificate_file(&town.web, "web");
        let sum = format!("openssl x509 -in {} -outform DER | sha256sum", file.display());
        let mut shell = std::process::Command::new("sh");
        shell.args(["-c", &sum]);
        let sum = output_of(shell);
        let hash = sum.split(' ').next().unwrap_or_default();
        let id = |service: &str| format!("spiffe://mesh.internal/ns/default/sa/{service}");
        let over_the_wire = format!("By={};Hash={hash};Subject=\"\";URI={WEB_ID}", id("reviews"));
        let within = format!("By={};Subject=\"\";URI={WEB_ID}", id("here"));
        let virtually = |service| SocketAddr::new(virtual_addresses(&town.web, service)[0], 80);
        let cases = [
            ("reviews", virtually("reviews"), &over_the_wire),
            ("reviews", SocketAddr::new(town.hosts[0].host.v4().into(), 8080), &over_the_wire),
            ("here", virtually("here"), &within),
            ("here", SocketAddr::new(town.web.host.v4().into(), 8080), &within),
            ("here", ([127, 0, 0, 1], 8080).into(), &within),
        ];
        for (host, address, expected) in cases {
            for way in ways {
                let told = told_of_caller(&town.web, (address, host), way);
                assert_eq!(told, serde_json::json!([expected]), "{protocol} at {address}, {way:?}");
            }
        }
        for reporter in ["source", "destination"] {
            let member = if reporter == "source" { &town.web } else { &town.hosts[0] };
            member.wait_for_log("the request", |line| line["reporter"] == reporter && line["path"] == "/");
        }
    }
}

#[test]
fn servers_that_speak_first_are_not_kept_waiting_at_ports_that_do_not_say_what_they_speak() {
    let town = Town::new("greets", 1);
    let store = &town.hosts[0];
    let listener = store.host.listen(([127, 0, 0, 1], 7000));
    store.register_with("greeter", &["--port", "80:7000", "--protocol", "auto"]);
    town.web.wait_for_endpoints("greeter.default", 1);
    thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..2 {
                let (mut stream, _) = listener.accept().expect("the agent delivers");
                stream.write_all(b"220 ready\r\n").expect("taken");
                let mut line = String::new();
                let _ = BufReader::new(&stream).read_line(&mut line);
                stream.write_all(format!("250 {line}").as_bytes()).expect("taken");
            }
        });
        for word in ["EHLO me\r\n", "GET / HTTP/1.1\r\n"] {
            let mut stream = BufReader::new(connect(&town.web, "greeter"));
            let mut line = String::new();
            stream.read_line(&mut line).expect("it speaks first");
            assert_eq!(line, "220 ready\r\n");
            stream.get_mut().write_all(word.as_bytes()).expect("taken");
            line.clear();
            stream.read_line(&mut line).expect("it answers");
            assert_eq!(line, format!("250 {word}"));
        }
    });
}

#[test]
fn the_mesh_says_how_requests_are_tried_again_where_no_route_does() {
    let town = Town::new("retries-of-mesh", 1);
    let [v1] = town.open();
    let ask = |path: &str| {
        let answer =
            town.web.host.get(&["--timeout", "60"], &format!("{REVIEWS}{path}?status=503&fail-first=1"));
        (answer.status, v1.seen(path))
    };
    assert_eq!(ask("/built-in"), (Some(503), 1));
    town.mesh.enforce(
        "[[MeshConfig]]\ndefaultHttpRetryPolicy = { attempts = 1, retryOn = \"503\", backoff = \"1ms\" }\n",
    );
    assert_eq!(ask("/of-mesh"), (Some(200), 2));
    let route = format!("{{ route = [{}], retries = {{ attempts = 0 }} }}", to("v1", 1));
    town.mesh.enforce(&(subsets() + &routes(&route)));
    assert_eq!(ask("/of-route"), (Some(503), 1));
    town.mesh.enforce(&(subsets() + &routes(&format!("{{ route = [{}] }}", to("v1", 1)))));
    assert_eq!(ask("/of-mesh-again"), (Some(200), 2));
}

#[test]
fn the_log_is_in_istios_text_where_the_mesh_says_so() {
    let town = Town::new("text-log", 1);
    let [_v1] = town.open();
    town.mesh.enforce("[[MeshConfig]]\naccessLogEncoding = \"TEXT\"\n");
    let forged = "user-agent: a\" 200 - via_upstream \\";
    assert!(town.web.host.get(&["--header", forged], &format!("{REVIEWS}/logged?x")).is_ok());
    for member in [&town.web, &town.hosts[0]] {
        wait_until("the line is there", || text_of_log(member).contains("/logged?x"));
        let text = text_of_log(member);
        let line = text.lines().find(|line| line.contains("/logged?x")).expect("the line");
        let middle = " \"GET /logged?x HTTP/1.1\" 200 - via_upstream - \"-\" 0 ";
        assert!(line.starts_with("[20") && line.contains(middle), "{line}");
        assert!(line.contains(" \"a\\\" 200 - via_upstream \\\\\" \""), "{line}");
        assert!(line.contains("Z] \"GET") && line.contains(" \"reviews\" \""), "{line}");
    }
    town.mesh.enforce(
        "[[MeshConfig]]\naccessLogEncoding = \"TEXT\"\naccessLogFormat = \"only %REQ(:PATH)% %RESPONSE_CODE%\"\n",
    );
    assert!(town.web.host.get(&[], &format!("{REVIEWS}/short")).is_ok());
    town.mesh.enforce("[[MeshConfig]]\naccessLogEncoding = \"JSON\"\n");
    assert!(town.web.host.get(&[], &format!("{REVIEWS}/json")).is_ok());
    town.web.wait_for_log("JSON again", |line| line["path"] == "/json");
    assert!(text_of_log(&town.web).lines().any(|line| line == "only /short 200"));
}

/// The access log as it was written.
fn text_of_log(member: &Member) -> String {
    let logs = std::fs::read_dir(member.host.directory().join("log")).expect("logs");
    let agents = logs.flatten().map(|file| file.path()).filter(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.starts_with("agent") && name.ends_with(".out")
    });
    agents.filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// A program of the first host, `serve` for each of its connections, as the service `odd`.
fn odd(town: &Town, serve: impl Fn(TcpStream) + Send + Sync + 'static) {
    let listener: TcpListener = town.hosts[0].host.listen(([127, 0, 0, 1], 7000));
    let serve = std::sync::Arc::new(serve);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let serve = std::sync::Arc::clone(&serve);
            thread::spawn(move || serve(stream));
        }
    });
    town.hosts[0].register_with("odd", &["--port", "80:7000", "--protocol", "http"]);
    town.web.wait_for_endpoints("odd.default", 1);
}

/// Reads a request without a body; nothing at the connection's end.
fn read_head(stream: &mut BufReader<&TcpStream>) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if stream.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

#[test]
fn answers_without_end_before_the_answer_end_the_request() {
    let town = Town::new("endless", 1);
    odd(&town, |stream| {
        if read_head(&mut BufReader::new(&stream)).is_some() {
            while (&stream).write_all(b"HTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n").is_ok() {}
        }
    });
    for options in [&[][..], &["--http2"]] {
        let answer = town.web.host.get(&[options, &["--timeout", "60"]].concat(), "http://odd/");
        assert_eq!(answer.status, Some(502), "{answer:?}");
        assert!(answer.informational.len() <= 16, "{answer:?}");
    }
    town.hosts[0].wait_for_log("why", |line| line["response_flags"] == "UPE");
}

#[test]
fn what_a_program_says_of_its_own_connection_is_for_the_agent() {
    let town = Town::new("closes", 1);
    odd(&town, |stream| {
        let mut reader = BufReader::new(&stream);
        if let Some(head) = read_head(&mut reader) {
            let status = if head.starts_with("GET /304") { "304 Not Modified" } else { "200 OK" };
            let (length, body) = match &head {
                head if head.starts_with("HEAD") => ("Content-Length: 7\r\n", ""),
                head if head.starts_with("GET /304") => ("Content-Length: 7\r\n", ""),
                head if head.contains("cookie: a=1; b=2\r\n") => ("Content-Length: 6\r\n", "joined"),
                _ => ("Content-Length: 5\r\n", "plain"),
            };
            let answer = format!("HTTP/1.1 {status}\r\n{length}Connection: close\r\n\r\n{body}");
            let _ = (&stream).write_all(answer.as_bytes());
        }
        // The connection is closed here, after one request.
    });
    for option in ["--keep", "--http2"] {
        let kept = ["--keep", option, "--count", "20", "--timeout", "60"];
        let many = town.web.host.get_all(&kept, "http://odd/");
        assert!(many.iter().all(|answer| answer.is_ok() && answer.body == "plain"), "{many:?}");
        assert_eq!(many.iter().map(|answer| answer.connection).max(), Some(1), "the caller's is kept");
        let one = |options: &[&str], path: &str| {
            town.web.host.get(&[&[option, "--timeout", "60"], options].concat(), &format!("http://odd{path}"))
        };
        let head = one(&["--method", "HEAD"], "/");
        assert_eq!((head.status, head.length, &head.error), (Some(200), 0, &None), "{head:?}");
        assert_eq!(head.header("content-length"), "7");
        let unchanged = one(&[], "/304");
        assert_eq!(
            (unchanged.status, unchanged.length, &unchanged.error),
            (Some(304), 0, &None),
            "{unchanged:?}"
        );
    }
    let crumbs = ["--http2", "--header", "cookie: a=1", "--header", "cookie: b=2"];
    assert_eq!(town.web.host.get(&crumbs, "http://odd/").body, "joined");
}

#[test]
fn a_connection_in_a_tunnel_takes_no_request_after_the_end_of_a_certificate() {
    let town = Town::new("certificate-end", 1);
    let [v1] = town.open();
    let end = OffsetDateTime::now_utc() + Duration::from_secs(10);
    let key = Signer::of_mesh(&town.mesh).sign(|leaf| leaf.not_after = end);
    let store = &town.hosts[0].host;
    let tunnel =
        Tunnel::open(&town.web.host, agent_of(store), config(&town.mesh, key), None).expect("a tunnel");
    let authority = authority(store.v4(), 8080);
    let (mut idle, mut busy) =
        (tunnel.connect(&authority).expect("a stream"), tunnel.connect(&authority).expect("another"));
    assert_eq!((idle.status, busy.status), (200, 200));
    tunnel.say(&mut idle, request("/before", "")).expect("taken");
    tunnel.say(&mut busy, request("/over?delay=15", "")).expect("taken");
    let heard = tunnel.hear(&mut idle).expect("an end in good order");
    assert_eq!(heard.matches("HTTP/1.1 200").count(), 1, "{heard}");
    assert!(OffsetDateTime::now_utc() >= end - Duration::from_secs(1), "it was kept until then");
    // What was under way goes on to its end, and what follows it is not taken.
    tunnel.say(&mut busy, request("/after", "")).expect("taken");
    let heard = tunnel.hear(&mut busy).expect("an end in good order");
    assert_eq!(
        (heard.matches("HTTP/1.1 200").count(), v1.seen("/over"), v1.seen("/after")),
        (1, 1, 0),
        "{heard}"
    );
}
