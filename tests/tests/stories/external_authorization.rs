//! CUSTOM policies: a provider that nobody here wrote for (Python's http.server, PyPI's grpcio) is asked about requests and
//! connections, over HTTP and gRPC, and what it says is done.

use std::fs;
use std::path::Path;

use baremesh_tests::{Answer, Host, Member, Process, exit, exit_code_of, run, wait_until};
use serde_json::Value;

use crate::pair::{Pair, WEB_ID, because};
use crate::town::{REVIEWS, Town};

const REVIEWS_ID: &str = "spiffe://mesh.internal/ns/default/sa/reviews";
/// Where the provider listens, on loopback.
pub const HTTP: &str = "127.0.0.1:9100";
/// The same for gRPC.
pub const GRPC: &str = "127.0.0.1:9101";

/// A provider on a host, and what it was asked.
pub struct Provider<'h> {
    host: &'h Host,
    process: Process,
}

impl<'h> Provider<'h> {
    #[track_caller]
    pub fn start(host: &'h Host) -> Self {
        let mut python = host.command("python3");
        python.args(["-c", "import grpc"]);
        assert!(run(python).status.success(), "this story needs python3 with grpcio: `pip install grpcio`");
        let mut python = host.command("python3");
        python.arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("peers/ext_authz.py"));
        python.args([HTTP, GRPC]).arg(host.path("/run/baremesh/asked"));
        let process = host.spawn("provider", python);
        process.wait_for_output("listening on");
        Self { host, process }
    }

    /// What it was asked, in order.
    pub fn asked(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.host.path("/run/baremesh/asked")).unwrap_or_default();
        text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()
    }

    /// What it was asked last.
    #[track_caller]
    pub fn last(&self) -> Value {
        self.asked().pop().expect("it was asked")
    }

    #[track_caller]
    fn kill(self) {
        self.process.kill();
        self.process.wait();
    }
}

/// A MeshConfig with a provider `p` that is asked over HTTP.
pub fn over_http(service: &str, port: u16, more: &str) -> String {
    config(
        "envoyExtAuthzHttp",
        service,
        port,
        &format!("includeRequestHeadersInCheck = [\"x-ext-authz\"]{more}"),
    )
}

/// The same over gRPC.
pub fn over_grpc(service: &str, port: u16, more: &str) -> String {
    config("envoyExtAuthzGrpc", service, port, more)
}

fn config(kind: &str, service: &str, port: u16, more: &str) -> String {
    let more = if more.is_empty() { String::new() } else { format!(", {}", more.trim_start_matches(", ")) };
    format!(
        "[[MeshConfig]]\nextensionProviders = [{{ name = \"p\", {kind} = {{ service = \"{service}\", port = {port}{more} }} }}]\n"
    )
}

/// A policy for the service `reviews` that has `p` asked.
pub fn ask(rules: &str) -> String {
    ask_of("p", "reviews", rules)
}

fn ask_of(provider: &str, app: &str, rules: &str) -> String {
    format!(
        "[[AuthorizationPolicy]]\nname = \"ask-{provider}\"\nselector = {{ matchLabels = {{ app = \"{app}\" }} }}\naction = \"CUSTOM\"\nprovider = {{ name = \"{provider}\" }}\nrules = {rules}\n"
    )
}

/// Rules that match everything.
pub const ALL: &str = "[{}]";

/// A request with `x-ext-authz`, and further options.
#[track_caller]
fn call(member: &Member, says: &str, options: &[&str], path: &str) -> Answer {
    let field = format!("x-ext-authz: {says}");
    member.host.get(&[&["--header", &field], options].concat(), &format!("{REVIEWS}{path}"))
}

/// A field as the program saw it; several values joined.
fn saw(answer: &Answer, name: &str) -> String {
    let account = answer.account();
    let values = account["headers"][name].as_array().cloned().unwrap_or_default();
    values.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn outcome(member: &Member, outcome: &str) -> u64 {
    sample(member, &format!("baremesh_ext_authz_calls_total{{provider=\"p\",outcome=\"{outcome}\"}} "))
}

fn sample(member: &Member, line: &str) -> u64 {
    member.metrics().lines().find_map(|said| said.strip_prefix(line)?.trim().parse().ok()).unwrap_or_default()
}

#[test]
fn a_provider_of_the_mesh_is_asked_over_http_and_what_it_says_is_done() {
    let town = Town::new("ext-http", 2);
    let provider = Provider::start(&town.hosts[1].host);
    let v1 = town.hosts[0].web("reviews", "v1", &["--user", "0"]);
    town.hosts[1].register("authz", ["--port", "80:9100", "--protocol", "http"]);
    town.web.wait_for_endpoints("reviews.default", 1);
    town.hosts[0].wait_for_endpoints("authz.default", 1);
    let fields = ", headersToUpstreamOnAllow = [\"x-user\", \"x-role-*\"], headersToDownstreamOnAllow = [\"x-checked\"], headersToDownstreamOnDeny = [\"x-why\"], statusOnError = \"500\", pathPrefix = \"/check\", includeAdditionalHeadersInCheck = { x-from = \"mesh\" }";
    town.mesh.enforce(
        &[over_http("authz", 80, fields), ask("[{ to = [{ operation = { notPaths = [\"/open\"] } }] }]")]
            .concat(),
    );
    // From another host, and from the service's own, whose agent is both sides'.
    for (number, member) in [&town.web, &town.hosts[0]].into_iter().enumerate() {
        for options in [&[][..], &["--http2"]] {
            let forged = [
                "--header",
                "x-user: admin",
                "--header",
                "x-role-a: root",
                "--header",
                "x_user: admin",
                "--header",
                "x.role.a: root",
                "--header",
                "x-drop: 1",
                "--header",
                "authorization: Bearer t",
                "--method",
                "PUT",
            ];
            let answer = call(member, "allow", &[options, &forged].concat(), "/books?a=b");
            assert!(answer.is_ok(), "{answer:?}");
            assert_eq!(
                [
                    saw(&answer, "x-user"),
                    saw(&answer, "x-role-a") + &saw(&answer, "x_user") + &saw(&answer, "x.role.a"),
                    saw(&answer, "x-drop"),
                    saw(&answer, "authorization")
                ],
                ["alice", "", "", "Bearer t"],
                "what only the provider may say is what it said"
            );
            assert_eq!((&*answer.header("x-checked"), &*answer.header("x-user")), ("yes", ""));
            let asked = provider.last();
            assert_eq!((&asked["method"], &asked["path"]), (&"PUT".into(), &"/check/books?a=b".into()));
            let headers = &asked["headers"];
            assert_eq!(
                [
                    &headers["host"],
                    &headers["authorization"],
                    &headers["x-from"],
                    &headers["content-length"],
                    &headers["x-user"]
                ],
                [&"reviews".into(), &"Bearer t".into(), &"mesh".into(), &"0".into(), &Value::Null],
                "{asked}"
            );
            let denied = call(member, "deny", options, "/denied");
            assert_eq!((denied.status, &*denied.body), (Some(403), "no entry"), "{denied:?}");
            assert_eq!((&*denied.header("x-why"), &*denied.header("x-secret")), ("because", ""));
            let login = call(member, "login", options, "/login-first");
            assert_eq!((login.status, &*login.header("location")), (Some(302), "/login"));
            assert_eq!(call(member, "error", options, "/broken").status, Some(500));
            let before = provider.asked().len();
            assert!(call(member, "deny", options, "/open").is_ok());
            assert_eq!(provider.asked().len(), before, "what the rules leave out is not asked about");
        }
        let answer = call(member, "overreach", &[], "/overreach");
        assert_eq!(saw(&answer, "x-user"), "mallory");
        let certificate = saw(&answer, "x-forwarded-client-cert");
        let caller = ["/sa/web", "/sa/reviews"][number];
        assert!(certificate.contains(REVIEWS_ID) && certificate.ends_with(caller), "{certificate}");
        assert_eq!(saw(&answer, "host"), "reviews");
    }
    assert_eq!((v1.seen("/denied"), v1.seen("/login-first"), v1.seen("/broken")), (0, 0, 0));
    let store = &town.hosts[0];
    let line = |path: &'static str| store.wait_for_log(path, |line| line["path"] == path);
    for (path, details) in [("/denied", "ext_authz_denied"), ("/broken", "ext_authz_error")] {
        assert_eq!(
            (&line(path)["response_code_details"], &line(path)["response_flags"]),
            (&details.into(), &"UAEX".into())
        );
    }
    assert_eq!([outcome(store, "allowed"), outcome(store, "denied"), outcome(store, "failed")], [6, 8, 4]);
    // The check itself travels as a call of the service that is called, under the provider's own policies.
    let check = town.hosts[1].wait_for_log("a check", |line| line["reporter"] == "destination");
    assert_eq!(check["source_principal"], REVIEWS_ID);
    let explained = town.web.host.baremesh(["explain", &format!("{REVIEWS}/books"), "--from", "web"]);
    let said = String::from_utf8_lossy(&run(explained).stdout).into_owned();
    assert!(said.contains("AuthorizationPolicy default/ask-p asks the provider p"), "{said}");
}

#[test]
fn a_provider_is_asked_over_grpc_with_all_that_envoy_says() {
    let town = Town::new("ext-grpc", 2);
    let provider = Provider::start(&town.hosts[1].host);
    let v1 = town.hosts[0].web("reviews", "v1", &["--user", "0", "--protocol", "auto"]);
    town.hosts[1].register("authz", ["--port", "9101", "--protocol", "grpc"]);
    town.web.wait_for_endpoints("reviews.default", 1);
    town.hosts[0].wait_for_endpoints("authz.default", 1);
    town.mesh.enforce(&[over_grpc("authz", 9101, ""), ask(ALL)].concat());
    for (number, member) in [&town.web, &town.hosts[0]].into_iter().enumerate() {
        let fields = ["--header", "x-user: admin", "--header", "x-list: a", "--header", "x-drop: 1"];
        let answer = call(member, "allow", &fields, "/books?gone=1&kept=2");
        assert!(answer.is_ok(), "{answer:?}");
        let seen = ["x-user", "x-list", "x-new", "x-drop"].map(|name| saw(&answer, name));
        assert_eq!(seen, ["alice", "a,b", "n", ""]);
        assert_eq!(answer.header("x-checked"), "yes");
        assert_eq!(answer.account()["query"], "kept=2&added=a%26b");
        let asked = provider.last();
        let caller = [WEB_ID, REVIEWS_ID][number];
        assert_eq!(
            (&asked["source_principal"], &asked["destination_principal"]),
            (&caller.into(), &REVIEWS_ID.into())
        );
        assert_eq!(
            [&asked["method"], &asked["path"], &asked["host"], &asked["scheme"], &asked["protocol"]],
            ["GET", "/books?gone=1&kept=2", "reviews", "http", "HTTP/1.1"]
        );
        assert_eq!(
            [&asked["headers"]["x-user"], &asked["headers"][":path"]],
            ["admin", "/books?gone=1&kept=2"]
        );
        assert_eq!((&asked["has_time"], &asked["destination"][1]), (&true.into(), &8080.into()), "{asked}");
        assert!(asked["source"][0].is_string(), "{asked}");
        let denied = call(member, "deny", &[], "/denied");
        assert_eq!(
            (denied.status, &*denied.body, &*denied.header("x-why")),
            (Some(403), "no entry", "because")
        );
        let login = call(member, "login", &[], "/denied");
        assert_eq!((login.status, &*login.header("location")), (Some(302), "/login"));
        assert_eq!(call(member, "plain", &[], "/denied").status, Some(403));
        assert_eq!(call(member, "error", &[], "/denied").status, Some(403));
        // Who calls by gRPC is told so.
        let grpc = [
            "--http2",
            "--method",
            "POST",
            "--header",
            "content-type: application/grpc",
            "--header",
            "te: trailers",
        ];
        let denied = call(member, "deny", &grpc, "/shop.Shop/Order");
        assert_eq!(
            (denied.status, &*denied.header("grpc-status"), &*denied.header("grpc-message")),
            (Some(200), "7", "no entry")
        );
    }
    assert_eq!((v1.seen("/denied"), v1.seen("/shop.Shop/Order")), (0, 0));
}

#[test]
fn what_nobody_answers_for_is_refused_or_goes_on_as_the_provider_has_it() {
    let town = Town::new("ext-down", 1);
    let [v1] = town.open();
    let store = &town.hosts[0];
    let provider = Provider::start(&store.host);
    // At an address of the service's own host, outside of the mesh.
    let fields = ", headersToUpstreamOnAllow = [\"x-user\"]";
    town.mesh.enforce(&[over_http("127.0.0.1", 9100, fields), ask(ALL)].concat());
    assert!(call(&town.web, "allow", &[], "/up").is_ok());
    provider.kill();
    let refused = call(&town.web, "allow", &[], "/down");
    assert_eq!((refused.status, &*refused.body), (Some(403), ""), "{refused:?}");
    let line = store.wait_for_log("it failed", |line| line["path"] == "/down");
    assert_eq!(line["response_code_details"], "ext_authz_error");
    town.mesh
        .enforce(&[over_http("127.0.0.1", 9100, &format!("{fields}, failOpen = true")), ask(ALL)].concat());
    let answer = call(&town.web, "allow", &["--header", "x-user: admin"], "/open");
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(
        saw(&answer, "x-user"),
        "",
        "what only the provider may say is not the caller's to say meanwhile"
    );
    let line = store.wait_for_log("it went on", |line| line["path"] == "/open");
    assert!(line["policy_notes"][0].as_str().is_some_and(|note| note.ends_with("failOpen")), "{line}");
    assert_eq!(outcome(store, "failed_open"), 1);
    // A provider that nobody knows refuses, and the analysis says so beforehand.
    let control = &town.mesh.control;
    fs::write(control.path("/run/baremesh/nobody.toml"), ask_of("nobody", "reviews", ALL)).expect("a file");
    let applied = run(control.baremesh(["apply", "-f", "/run/baremesh/nobody.toml"]));
    let said = String::from_utf8_lossy(&applied.stderr);
    assert!(applied.status.success() && said.contains("BM0409"), "{said}");
    town.mesh.wait_until_in_force();
    assert_eq!(call(&town.web, "allow", &[], "/unknown").status, Some(403));
    assert_eq!((v1.seen("/down"), v1.seen("/unknown")), (0, 0));
}

#[test]
fn a_provider_that_hangs_holds_up_its_own_checks_for_its_time_and_nothing_more() {
    let town = Town::new("ext-hang", 1);
    let [_v1] = town.open();
    let store = &town.hosts[0];
    let _provider = Provider::start(&store.host);
    let rules = "[{ to = [{ operation = { paths = [\"/asked*\"] } }] }]";
    town.mesh.enforce(&[over_grpc("127.0.0.1", 9101, "timeout = \"1s\""), ask(rules)].concat());
    let hung = town.web.host.counts(64, &["--header", "x-ext-authz: hang"], &format!("{REVIEWS}/asked"));
    assert_eq!(hung.get("403"), Some(&64), "{hung:?}");
    wait_until("nothing is pending", || sample(store, "baremesh_ext_authz_pending{provider=\"p\"} ") == 0);
    assert_eq!(sample(store, "baremesh_ext_authz_left_alone{provider=\"p\"} "), 1);
    // Of 64 the first few waited; the others were told at once, and most of them did not reach the provider.
    let checks = _provider.asked().len();
    assert!((16..64).contains(&checks), "{checks} checks");
    assert!(call(&town.web, "hang", &[], "/not").is_ok(), "what is not asked about goes on");
    wait_until("it is asked again when it answers", || call(&town.web, "allow", &[], "/asked").is_ok());
    assert_eq!(sample(store, "baremesh_ext_authz_left_alone{provider=\"p\"} "), 0);
}

#[test]
fn answers_are_kept_for_the_same_question_and_no_caller_gets_anothers() {
    let town = Town::new("ext-cache", 1);
    let [_v1] = town.open();
    let store = &town.hosts[0];
    let provider = Provider::start(&store.host);
    let fields = "includeRequestHeadersInCheck = [\"x-ext-authz\", \"x-session\"], headersToDownstreamOnAllow = [\"x-count\", \"set-cookie\"], cache = { ttl = \"1h\" }";
    let http = config("envoyExtAuthzHttp", "127.0.0.1", 9100, fields);
    let grpc = over_grpc("127.0.0.1", 9101, "cache = { ttl = \"1h\" }");
    for kind in [http, grpc] {
        town.mesh.enforce(&[kind.clone(), ask(ALL)].concat());
        let ask = |session: &str, says: &str, path: &str| {
            call(&town.web, says, &["--header", &format!("x-session: {session}")], path)
        };
        let count = |answer: &Answer| answer.header("x-count");
        let before = provider.asked().len();
        let first = ask("a", "allow", "/x");
        assert!(!count(&first).is_empty(), "{first:?}");
        assert_eq!(count(&ask("a", "allow", "/x")), count(&first), "the answer is known");
        assert_eq!(provider.asked().len(), before + 1);
        for (session, says, path) in [("b", "allow", "/x"), ("a", "allow", "/x?"), ("a", "allow", "/y")] {
            assert_ne!(count(&ask(session, says, path)), count(&first), "{session} {says} {path}");
        }
        assert_eq!(ask("a", "deny", "/x").status, Some(403));
        assert_eq!(ask("a", "deny", "/x").status, Some(403));
        assert_eq!(provider.asked().len(), before + 5);
        assert_eq!(ask("a", "error", "/x").status, Some(403));
        assert_eq!(ask("a", "error", "/x").status, Some(403));
        assert_eq!(provider.asked().len(), before + 7, "what is no answer is not kept");
        // Another policy, and nothing is known any more.
        town.mesh.enforce(
            &[kind, ask_of("p", "reviews", "[{ to = [{ operation = { notPaths = [\"/never\"] } }] }]")]
                .concat(),
        );
        assert_ne!(count(&ask("a", "allow", "/x")), count(&first));
    }
    town.mesh.enforce(&[config("envoyExtAuthzHttp", "127.0.0.1", 9100, fields), ask(ALL)].concat());
    let cookie = || call(&town.web, "session", &[], "/x").header("set-cookie");
    assert_ne!(cookie(), cookie(), "a session is one caller's");
}

#[test]
fn bodies_are_shown_as_far_as_they_are_to_be_and_arrive_whole() {
    let town = Town::new("ext-body", 1);
    let [v1] = town.open();
    let provider = Provider::start(&town.hosts[0].host);
    let http = |more: &str| {
        over_http(
            "127.0.0.1",
            9100,
            &format!(", includeRequestBodyInCheck = {{ maxRequestBytes = 100000{more} }}"),
        )
    };
    let post = |options: &[&str]| call(&town.web, "allow", options, "/post");
    let cases: [&[&str]; 4] = [
        &["--size", "99999"],
        &["--size", "99999", "--chunked"],
        &["--size", "99999", "--http2"],
        &["--size", "99999", "--expect"],
    ];
    town.mesh.enforce(&[http(""), ask(ALL)].concat());
    for options in cases {
        let answer = post(options);
        assert!(answer.is_ok(), "{options:?} {answer:?}");
        let asked = provider.last();
        assert_eq!(asked["body"].as_str().map(|body| body.chars().count()), Some(99_999), "{options:?}");
        assert_eq!(asked["headers"]["x-envoy-auth-partial-body"], "false");
        assert_eq!(answer.account()["body"]["length"], 99_999);
    }
    assert_eq!(post(&["--size", "100001"]).status, Some(413));
    let before = v1.seen("/post");
    town.mesh.enforce(&[http(", allowPartialMessage = true"), ask(ALL)].concat());
    // More than is shown, and more than is kept for another try.
    let whole = post(&["--size", "3000000"]);
    let sent = whole.account()["body"].clone();
    assert_eq!((whole.status, &sent["length"]), (Some(200), &3_000_000.into()), "{whole:?}");
    let asked = provider.last();
    assert_eq!(
        (
            asked["body"].as_str().map(|body| body.chars().count()),
            &asked["headers"]["x-envoy-auth-partial-body"]
        ),
        (Some(100_000), &"true".into())
    );
    assert_eq!(v1.seen("/post"), before + 1);
    town.mesh.enforce(&[over_grpc("127.0.0.1", 9101, "includeRequestBodyInCheck = { maxRequestBytes = 5, allowPartialMessage = true, packAsBytes = true }"), ask(ALL)].concat());
    assert!(post(&["--data", "hello, world"]).is_ok());
    let asked = provider.last();
    assert_eq!([&asked["raw_body"], &asked["body"]], [&"hello".into(), &Value::Null]);
}

#[test]
fn connections_of_bytes_are_asked_about_over_grpc_and_refused_where_there_is_only_http() {
    let pair = Pair::new("ext-tcp");
    pair.serve("echo", 7000);
    let provider = Provider::start(&pair.store.host);
    pair.mesh.enforce(&[over_grpc("127.0.0.1", 9101, ""), ask_of("p", "echo", ALL)].concat());
    let call = |host: &Host| exit_code_of(host.shop(["call", "echo", "7000", "hello"]));
    assert_eq!(call(&pair.web.host), exit::DONE);
    let asked = provider.last();
    assert_eq!((&asked["source_principal"], &asked["method"]), (&WEB_ID.into(), &Value::Null), "{asked}");
    // The store's own programs are its host, whom the provider does not know.
    assert_eq!(call(&pair.store.host), exit::CUT);
    let line =
        pair.store.wait_for_log("a refusal", |line| line["response_code_details"] == "ext_authz_denied");
    assert_eq!(line["response_flags"], "UAEX");
    pair.mesh
        .enforce(&[over_http("127.0.0.1", 9100, ", failOpen = true"), ask_of("p", "echo", ALL)].concat());
    assert_eq!(call(&pair.web.host), exit::CUT);
    pair.store.wait_for_log("nobody was asked", |line| line["response_code_details"] == "ext_authz_error");
}

#[test]
fn a_policy_that_comes_while_a_connection_is_open_ends_what_was_not_asked_about() {
    let pair = Pair::new("ext-live");
    let listener = pair.store.host.listen(([127, 0, 0, 1], 7000));
    pair.register("halves", 7000);
    let _provider = Provider::start(&pair.store.host);
    let (caller, _called) = pair.both_ends("halves", &listener);
    pair.mesh.enforce(&[over_grpc("127.0.0.1", 9101, ""), ask_of("p", "halves", ALL)].concat());
    let line = pair.store.wait_for_log("it was closed", because("no_longer_allowed"));
    assert!(line.to_string().contains("asks the provider p, which was not asked before"), "{line}");
    drop(caller);
    // One that was asked about stays.
    let (_caller, _called) = pair.both_ends("halves", &listener);
    pair.mesh.enforce("[[Service]]\nname = \"other\"\nports = [{ port = 1 }]\n");
    let closed =
        pair.store.log().iter().filter(|line| line["response_code_details"] == "no_longer_allowed").count();
    assert_eq!(closed, 1);
}

#[test]
fn nobody_is_asked_about_the_provider_itself() {
    let town = Town::new("ext-loop", 1);
    let [v1] = town.open();
    let provider = Provider::start(&town.hosts[0].host);
    town.hosts[0].register("authz", ["--port", "80:9100", "--protocol", "http"]);
    town.hosts[0].wait_for_endpoints("authz.default", 1);
    let everywhere = "[[AuthorizationPolicy]]\nname = \"ask\"\nnamespace = \"mesh-system\"\naction = \"CUSTOM\"\nprovider = { name = \"p\" }\nrules = [{}]\n";
    town.mesh.enforce(&[&*over_http("authz", 80, ""), everywhere].concat());
    assert!(call(&town.web, "allow", &[], "/").is_ok());
    assert_eq!((provider.asked().len(), v1.seen("/")), (1, 1));
    // Its own policies hold for checks as for any call.
    let closed =
        "[[AuthorizationPolicy]]\nname = \"closed\"\nselector = { matchLabels = { app = \"authz\" } }\n";
    town.mesh.enforce(closed);
    assert_eq!(call(&town.web, "allow", &[], "/").status, Some(403));
    assert_eq!((provider.asked().len(), v1.seen("/")), (1, 1));
}

#[test]
fn nobody_is_asked_about_a_check_and_nobody_has_a_copy_of_one() {
    let town = Town::new("ext-circle", 1);
    let [v1] = town.open();
    let provider = Provider::start(&town.hosts[0].host);
    town.hosts[0].register("authz", ["--port", "80:9100", "--protocol", "http"]);
    town.hosts[0].wait_for_endpoints("authz.default", 1);
    let led = |http: &str| {
        format!("[[VirtualService]]\nname = \"authz\"\nhosts = [\"authz\"]\nhttp = [{{ {http} }}]\n")
    };
    let (own, other) = ("{ destination = { host = \"authz\" } }", "{ destination = { host = \"reviews\" } }");
    let policy = || over_http("authz", 80, "") + &ask(ALL);
    // What is checked itself answers no check.
    town.mesh.enforce(&(policy() + &led(&format!("route = [{other}]"))));
    assert_eq!(call(&town.web, "allow", &[], "/led").status, Some(403));
    assert_eq!((provider.asked().len(), v1.seen("/led"), outcome(&town.hosts[0], "failed")), (0, 0, 1));
    // A copy would have a check of its own, and that one a copy.
    let mirrored = led(&format!("route = [{own}], mirrors = [{other}]"));
    town.mesh.enforce(&(policy() + &mirrored));
    for number in 1..=5 {
        assert!(call(&town.web, "allow", &[], "/copied").is_ok());
        assert_eq!((provider.asked().len(), v1.seen("/copied")), (number, number));
    }
}
