//! Policies about requests: each is judged for itself, in whatever way it is spelled, and ended alone when that changes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use baremesh_tests::{Instance, Member, Refusal, WAIT_BOUND, wait_until};
use http::{Request, StatusCode};
use serde_json::Value;

use crate::pair::{WEB, virtual_addresses};
use crate::peer::{Tunnel, agent_of, authority, config, stolen};
use crate::town::{REVIEWS, Town};

/// An AuthorizationPolicy for the service `reviews`, with further lines.
fn policy(name: &str, lines: &str) -> String {
    format!(
        "[[AuthorizationPolicy]]\nname = \"{name}\"\nselector = {{ matchLabels = {{ app = \"reviews\" }} }}\n{lines}\n"
    )
}

fn to(operation: &str) -> String {
    format!("rules = [{{ to = [{{ operation = {{ {operation} }} }}] }}]")
}

/// Mesh-wide settings with a way to normalise paths.
fn normalizing(mode: &str) -> String {
    format!("[[MeshConfig]]\npathNormalization = {{ normalization = \"{mode}\" }}\n")
}

#[test]
fn each_request_is_judged_for_itself() {
    let town = Town::new("each-request", 1);
    let [v1] = town.open();
    let allow = format!(
        "rules = [{{ from = [{{ source = {{ principals = [\"{WEB}\"] }} }}], to = [{{ operation = {{ methods = [\"GET\"], paths = [\"/books/{{*}}\", \"/private/*\"] }} }}] }}]"
    );
    let deny = format!(
        "action = \"DENY\"\nresponse = {{ status = 404, body = \"no such page\" }}\n{}",
        to("paths = [\"/private/*\"]")
    );
    let watched = format!("action = \"AUDIT\"\n{}", to("paths = [\"/books/7\"]"));
    let planned = format!("action = \"DENY\"\ndryRun = true\n{}", to("paths = [\"/books/8\"]"));
    town.mesh.enforce(
        &[policy("a", &allow), policy("b", &deny), policy("c", &watched), policy("d", &planned)].concat(),
    );
    for options in [&[][..], &["--http2"]] {
        let get = |path: &str| town.web.host.get(options, &format!("{REVIEWS}{path}"));
        assert!(get("/books/7?to=/private/").is_ok() && get("/books/8").is_ok());
        let refused = get("/books/7/pages");
        assert_eq!((refused.status, &*refused.body), (Some(403), "RBAC: access denied"));
        let posted = town.web.host.get(&[options, &["--data", "x"]].concat(), &format!("{REVIEWS}/books/7"));
        assert_eq!(posted.status, Some(403), "{posted:?}");
        let refused = get("/private/1");
        assert_eq!((refused.status, &*refused.body), (Some(404), "no such page"));
    }
    assert_eq!((v1.seen("/books/7/pages"), v1.seen("/private/1")), (0, 0), "its program never saw them");
    let store = &town.hosts[0];
    let line = |path: &'static str| store.wait_for_log(path, |line| line["path"] == path);
    assert_eq!(
        line("/private/1")["response_code_details"],
        "rbac_access_denied_matched_policy[ns[default]-policy[b]-rule[0]]"
    );
    assert_eq!(line("/private/1")["response_flags"], "UAEX");
    assert_eq!(line("/books/7/pages")["response_code_details"], "rbac_access_denied_matched_policy[none]");
    assert_eq!(line("/books/7?to=/private/")["policy_notes"][0], "default/c: audit");
    assert_eq!(line("/books/8")["policy_notes"][0], "default/d: would deny");
    assert_eq!(
        line("/books/8")["policy_dry_run"],
        "would be refused: denied by AuthorizationPolicy default/d"
    );
    let metrics = store.metrics();
    assert!(metrics.contains("baremesh_policy_dry_run_refused_total 2"), "{metrics}");
    // A caller whom no request would let in is turned away at the door.
    let nobody = "rules = [{ from = [{ source = { principals = [\"nobody\"] } }], to = [{ operation = { methods = [\"GET\"] } }] }]";
    town.mesh.enforce(&policy("a", nobody));
    let refused = town.web.host.get(&[], &format!("{REVIEWS}/books/9"));
    assert_eq!((refused.status, &*refused.body), (Some(403), "RBAC: access denied"));
    wait_until("the connection itself is refused, once those that were open are gone", || {
        let refused = town.web.host.get(&[], &format!("{REVIEWS}/books/9"));
        assert_eq!((refused.status, &*refused.body), (Some(403), "RBAC: access denied"));
        store.log().iter().any(|line| line["response_code_details"] == "denied")
    });
}

#[test]
fn what_a_rewrite_makes_of_a_path_is_judged_in_its_one_form() {
    let town = Town::new("rewritten", 1);
    let [v1] = town.open();
    let deny = policy("a", &format!("action = \"DENY\"\n{}", to("paths = [\"/admin*\"]")));
    let rewrite = "[[VirtualService]]\nname = \"reviews\"\nhosts = [\"reviews\"]\nhttp = [{ match = [{ uri = { prefix = \"/api\" } }], rewrite = { uri = \"/\" }, route = [{ destination = { host = \"reviews\" } }] }]\n";
    town.mesh.enforce(&[&*deny, rewrite].concat());
    // From another host, and from the service's own, whose agent is both sides'.
    for member in [&town.web, &town.hosts[0]] {
        let get = |path: &str| member.host.get(&[], &format!("{REVIEWS}{path}"));
        assert!(get("/api").is_ok() && get("/apibooks").is_ok());
        for path in ["/apiadmin", "/api./admin", "/api../admin", "/api%2e/admin", "/api.%2e/admin"] {
            assert_eq!(get(path).status, Some(403), "{path}");
        }
    }
    assert!(v1.requests().iter().all(|request| !request["path"].to_string().contains("admin")));
}

/// What becomes of a request.
#[derive(Debug, PartialEq)]
enum Fate {
    Refused,
    Malformed,
    /// Its program saw this path.
    Seen(String),
}

/// A tunnel to the called side's agent of somebody who has the key of `web`, and where its program is in it.
fn thief(town: &Town) -> (Tunnel, String) {
    let store = &town.hosts[0].host;
    let key = config(&town.mesh, stolen(&town.web, "web"));
    let tunnel = Tunnel::open(&town.web.host, agent_of(store), key, None).expect("a tunnel");
    (tunnel, authority(store.v4(), 8080))
}

/// Sends a request as it stands to the called side's agent, with no calling agent before. What is refused is in that
/// agent's log with its reason, and counted.
fn judged(
    store: &Member,
    (tunnel, authority): (&Tunnel, &str),
    head: &str,
    program: &Instance<'_>,
    expected: &Fate,
) {
    let send = || assert_eq!(&sent(tunnel, authority, head, program), expected, "{head}");
    match expected {
        Fate::Refused => {
            let by_policy = ["rbac_access_denied_matched_policy["];
            store.refuses(&Refusal::of_request("destination", "403", &by_policy), 1, send);
        }
        Fate::Malformed => store.refuses(&Refusal::of_request("destination", "400", &["http1."]), 1, send),
        Fate::Seen(_) => send(),
    }
}

/// The same, and says what became of it.
fn sent(tunnel: &Tunnel, authority: &str, head: &str, program: &Instance<'_>) -> Fate {
    let before = program.requests().len();
    let mut stream = tunnel.connect(authority).expect("a stream");
    tunnel.say(&mut stream, format!("{head}Connection: close\r\n\r\n")).expect("taken");
    let heard = tunnel.hear(&mut stream).expect("an answer, and an end in good order");
    let after = program.requests();
    match heard.split(' ').nth(1) {
        Some("403") if after.len() == before => Fate::Refused,
        Some("400") if after.len() == before => Fate::Malformed,
        Some("200") => {
            Fate::Seen(after.last().and_then(|request| request["path"].as_str()).expect("a path").to_owned())
        }
        _ => panic!("{head}: {heard}"),
    }
}

#[test]
fn no_spelling_goes_past_a_policy() {
    let town = Town::new("spelling", 1);
    let [v1] = town.open();
    let (tunnel, authority) = thief(&town);
    let check = |head: &str, expected: Fate| {
        judged(&town.hosts[0], (&tunnel, &authority), head, &v1, &expected);
    };
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: reviews\r\n");
    let seen = |path: &str| Fate::Seen(path.to_owned());
    town.mesh.enforce(&policy("admin", &format!("action = \"DENY\"\n{}", to("paths = [\"/admin/*\"]"))));
    for refused in [
        "/admin/x",
        "/%61dmin/x",
        "/./admin/x",
        "/y/../admin/x",
        "/y/%2e%2E/admin/x",
        "/../../admin/x",
        "/y\\..\\admin\\x",
        "/admin\\x",
        "http://reviews/admin/x",
        "/admin/x?/public",
        "/admin/;/x",
    ] {
        check(&get(refused), Fate::Refused);
    }
    for malformed in [
        "/admin%00/x",
        "/public/%00/../../admin/x",
        "/public#/admin/x",
        "/public /admin/x",
        "\\admin/x",
        "admin/x",
    ] {
        check(&get(malformed), Fate::Malformed);
    }
    // What is another path to policies is another path to the program, too.
    for (target, path) in [
        ("/Admin/x", "/Admin/x"),
        ("/admin;a/x", "/admin;a/x"),
        ("/admin%2fx", "/admin%2fx"),
        ("/admin%5Cx", "/admin%5Cx"),
        ("/y/..%2f../../admin/x", "/y/admin/x"),
        ("//admin/x", "//admin/x"),
        ("/%2561dmin/x", "/%2561dmin/x"),
        ("/%%36%31dmin/x", "/%%361dmin/x"),
        ("/a/%2e/b/../%63", "/a/c"),
        ("/public?/../admin/x", "/public"),
    ] {
        check(&get(target), seen(path));
    }
    town.mesh.enforce(&normalizing("MERGE_SLASHES"));
    check(&get("//admin/x"), Fate::Refused);
    check(&get("/y//../..//admin//x"), Fate::Refused);
    // Segments are resolved before slashes are merged, as Envoy does.
    check(&get("/y//..//../admin/x"), seen("/y/admin/x"));
    check(&get("/admin%2fx"), seen("/admin%2fx"));
    town.mesh.enforce(&normalizing("DECODE_AND_MERGE_SLASHES"));
    for refused in ["/admin%2fx", "/%2Fadmin%5cx", "/y%2f..%2fadmin/x", "/y%5C%2e%2e%5Cadmin/x"] {
        check(&get(refused), Fate::Refused);
    }
    check(&get("/admin%252fx"), seen("/admin%252fx"));
    town.mesh.enforce(&normalizing("NONE"));
    check(&get("/y/../admin/x"), seen("/y/../admin/x"));
    // The calling side's agent brings a path into the same form.
    town.mesh.enforce(&normalizing("BASE"));
    let answer = town.web.host.get(&[], &format!("{REVIEWS}/%61dmin/x"));
    assert_eq!(answer.status, Some(403), "{answer:?}");
}

#[test]
fn what_a_caller_says_of_itself_opens_nothing() {
    let town = Town::new("says", 1);
    let [v1] = town.open();
    let (tunnel, authority) = thief(&town);
    let check = |head: &str, expected: Fate| {
        judged(&town.hosts[0], (&tunnel, &authority), head, &v1, &expected);
    };
    let request = |host: &str, fields: &str| format!("GET / HTTP/1.1\r\nHost: {host}\r\n{fields}");
    let seen = || Fate::Seen("/".to_owned());
    town.mesh.enforce(&policy(
        "p",
        &format!("action = \"DENY\"\n{}", to("hosts = [\"secret.example\", \"*.inner.example\"]")),
    ));
    for host in [
        "secret.example",
        "SECRET.Example",
        "secret.example:80",
        "secret.example.",
        "secret.example.:8080",
        "a.INNER.example:1",
    ] {
        check(&request(host, ""), Fate::Refused);
    }
    check(&request("secret.example", "Host: reviews\r\n"), Fate::Malformed);
    check(&request("reviews", ""), seen());
    // No forwarding field is believed.
    town.mesh
        .enforce(&policy("p", "rules = [{ from = [{ source = { remoteIpBlocks = [\"192.0.2.7\"] } }] }]"));
    check(
        &request("reviews", "X-Forwarded-For: 192.0.2.7\r\nX-Envoy-External-Address: 192.0.2.7\r\n"),
        Fate::Refused,
    );
    // What stands in a field is what the program is told, and a forged one is not.
    let forged = "x-forwarded-client-cert: URI=spiffe://mesh.internal/ns/default/sa/admin\r\n";
    let by = |value: &str| {
        format!(
            "rules = [{{ when = [{{ key = \"request.headers[X-Forwarded-Client-Cert]\", values = [\"{value}\"] }}] }}]"
        )
    };
    town.mesh.enforce(&policy("p", &by("*/sa/admin")));
    check(&request("reviews", forged), Fate::Refused);
    town.mesh.enforce(&policy("p", &by("*/sa/web")));
    check(&request("reviews", forged), seen());
    // Neither side of a rule is talked round by a second line.
    let role = |action: &str| {
        format!(
            "action = \"{action}\"\nrules = [{{ when = [{{ key = \"request.headers[x-role]\", values = [\"user\"] }}] }}]"
        )
    };
    town.mesh.enforce(&policy("p", &role("ALLOW")));
    check(&request("reviews", "X-Role: user\r\n"), seen());
    check(&request("reviews", "X-Role: user\r\nx-role: admin\r\n"), Fate::Refused);
    town.mesh.enforce(&policy("p", &role("DENY")));
    check(&request("reviews", "X-Role: admin\r\nx-role: user\r\n"), Fate::Refused);
    check(&request("reviews", "X-Role: users\r\n"), seen());
}

#[test]
fn a_changed_policy_ends_the_requests_that_it_denies_and_no_others() {
    let town = Town::new("ends-some", 1);
    let [v1] = town.open_with("http2", |_| Vec::new());
    let address = SocketAddr::new(virtual_addresses(&town.web, "reviews")[0], 80);
    let stream = town.web.host.connect(address).expect("the agent takes it");
    stream.set_nonblocking(true).expect("a socket");
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("one");
    let in_time = |step: tokio::task::JoinHandle<(StatusCode, bool)>| {
        let ended = runtime.block_on(async { tokio::time::timeout(WAIT_BOUND, step).await });
        ended.expect("in time").expect("no panic")
    };
    let sender = runtime.block_on(async {
        let stream = tokio::net::TcpStream::from_std(stream).expect("a socket");
        let (sender, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        sender
    });
    let heads = Arc::new(AtomicUsize::new(0));
    // The status, and whether the whole of the body came.
    let ask = |target: &str| {
        let (mut sender, uri) = (sender.clone(), format!("{REVIEWS}{target}"));
        let heads = Arc::clone(&heads);
        runtime.spawn(async move {
            let request = Request::get(uri).body(()).expect("a request");
            let (answer, _) = sender.send_request(request, true).expect("a stream");
            let answer = answer.await.expect("a head");
            heads.fetch_add(1, Ordering::Relaxed);
            let (status, mut body) = (answer.status(), answer.into_body());
            while let Some(chunk) = body.data().await {
                let Ok(chunk) = chunk else { return (status, false) };
                let _ = body.flow_control().release_capacity(chunk.len());
            }
            (status, true)
        })
    };
    let waits = ask("/ended/waits?hang");
    let streams = ask("/ended/streams?size=100000&body-delay=600");
    let kept = ask("/kept?delay=20");
    for path in ["/ended/waits", "/ended/streams", "/kept"] {
        wait_until(path, || v1.seen(path) == 1);
    }
    // Of the three, one alone has an answer before its time.
    wait_until("an answer has begun", || heads.load(Ordering::Relaxed) == 1);
    town.mesh.enforce(&policy("p", &format!("action = \"DENY\"\n{}", to("paths = [\"/ended/*\"]"))));
    assert_eq!(in_time(waits), (StatusCode::FORBIDDEN, true), "no head had come: it is told");
    assert_eq!(in_time(streams), (StatusCode::OK, false), "its body breaks off");
    v1.wait_for_output("abandoned http://reviews/ended/waits");
    for path in ["/ended/waits?hang", "/ended/streams?size=100000&body-delay=600"] {
        let is_it = |line: &Value| line["path"] == path && line["response_flags"] == "UAEX";
        town.hosts[0].wait_for_log("why", is_it);
    }
    assert_eq!(in_time(kept), (StatusCode::OK, true), "its neighbour on the connection goes on");
}
