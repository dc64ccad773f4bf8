//! What leaves the mesh through a gateway host: requests, TLS by its server name, bytes; to whom and for whom it leads, and
//! what becomes of it when the gateway, or what is said of it, is gone.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;

use baremesh_tests::{Answer, Host, Member, Mesh, output_of, run, wait_until};
use serde_json::Value;

use crate::egress::Authority;

/// The caller's address.
pub const WEB: &str = "10.77.0.1";
/// The gateway's address.
pub const GATEWAY: &str = "10.77.0.2";
/// What makes a host a gateway.
const ROLE: &str = "role = \"gateway\"\n";
/// The gateway's ports.
const PORTS: [&str; 13] = [
    "--gateway",
    "--port",
    "80",
    "--port",
    "443",
    "--port",
    "5432",
    "--protocol",
    "http",
    "--protocol",
    "tls",
    "--protocol",
    "tcp",
];

/// A caller, a gateway, and a server outside the mesh that says who comes.
pub struct Way {
    pub mesh: Mesh,
    pub web: Member,
    pub gateway: Member,
    pub outside: Host,
}

impl Way {
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::with_config(name, "")
    }

    #[track_caller]
    pub fn with_config(name: &str, config: &str) -> Self {
        let mesh = Mesh::new(name);
        let outside = mesh.net.host("outside", 65);
        says_who_comes(&outside, 8080);
        let web = mesh.member_with("web", 1, &["*"], config);
        web.register("web", ["--port", "81", "--user", "0"]);
        let gateway = mesh.member_with("gateway", 2, &["egress"], &format!("{ROLE}{config}"));
        gateway.register("egress", PORTS);
        web.wait_for_endpoints("egress.default", 3);
        Self { mesh, web, gateway, outside }
    }

    /// A request of the caller's.
    pub fn get(&self, url: &str) -> Answer {
        self.web.host.get(&["--timeout", "30"], url)
    }

    /// Waits until requests leave through the gateway.
    #[track_caller]
    pub fn wait_for_gateway(&self) {
        wait_until("requests leave through the gateway", || {
            self.get("http://api.example.com/").body.starts_with(GATEWAY)
        });
    }
}

/// A server that answers each request with who it comes from and what it was told.
fn says_who_comes(host: &Host, port: u16) {
    let listener = host.listen((Ipv4Addr::UNSPECIFIED, port));
    // Ends with the process.
    std::thread::spawn(move || {
        for mut socket in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let peer = socket.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
                let (mut told, mut piece) = (Vec::new(), [0; 4096]);
                while !told.windows(4).any(|end| end == b"\r\n\r\n") {
                    match socket.read(&mut piece) {
                        Ok(read) if read > 0 => told.extend_from_slice(&piece[..read]),
                        _ => return,
                    }
                }
                let body = format!("{peer}\n{}", String::from_utf8_lossy(&told));
                let _ = write!(
                    socket,
                    "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            });
        }
    });
}

/// `api.example.com`, and how it leaves.
pub fn api() -> String {
    "[[ServiceEntry]]\nname = \"api\"\nhosts = [\"api.example.com\"]\nresolution = \"STATIC\"\n\
     ports = [{ number = 80, targetPort = 8080, protocol = \"HTTP\", name = \"http\" }]\n\
     endpoints = [{ address = \"10.77.0.65\" }]\n\
     [[VirtualService]]\nname = \"api\"\nhosts = [\"api.example.com\"]\ngateways = [\"mesh\", \"leaving\"]\n\
     http = [{ match = [{ gateways = [\"mesh\"] }], route = [{ destination = { host = \"egress\", port = { number = 80 } } }] },\n\
     { match = [{ gateways = [\"leaving\"] }], route = [{ destination = { host = \"api.example.com\", port = { number = 80 } } }] }]\n"
        .to_owned()
}

/// A Gateway for the gateway, with servers.
pub fn leaving(servers: &str) -> String {
    format!(
        "[[Gateway]]\nname = \"leaving\"\nselector = {{ istio = \"egressgateway\" }}\nservers = [{servers}]\n"
    )
}

/// The server for `api.example.com`.
pub const API: &str =
    "{ port = { number = 80, name = \"http\", protocol = \"HTTP\" }, hosts = [\"api.example.com\"] }";

#[test]
fn requests_leave_through_the_gateway_in_its_name_and_nothing_is_told_of_who_sends_them() {
    let way = Way::new("gw-http");
    way.mesh.enforce(&(api() + &leaving(API)));
    way.wait_for_gateway();
    let asked = ["--timeout", "30", "--header", "X-Forwarded-For: 192.0.2.7"];
    let answer = way.web.host.get(&asked, "http://api.example.com/told");
    assert!(answer.is_ok() && answer.body.starts_with(GATEWAY), "{answer:?}");
    let told = answer.body.to_ascii_lowercase();
    for secret in [WEB, "192.0.2.7", "x-forwarded-for", "x-forwarded-client-cert", "spiffe://"] {
        assert!(!told.contains(secret), "{secret}: {told}");
    }
    // One record there, of who called, through what, to where.
    let line = way.gateway.wait_for_log("the request", |line| line["path"] == "/told");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/default/sa/web", "{line}");
    assert_eq!(line["destination_principal"], "spiffe://mesh.internal/ns/default/sa/egress", "{line}");
    assert_eq!(
        (&line["upstream_cluster"], &line["upstream_host"]),
        (&"api.example.com".into(), &"10.77.0.65:8080".into())
    );
    assert_eq!(
        line["downstream_remote_address"].as_str().map(|from| from.starts_with(WEB)),
        Some(true),
        "{line}"
    );
    assert_eq!(way.gateway.log().iter().filter(|line| line["path"] == "/told").count(), 1);
    let metrics = way.gateway.metrics();
    let counted = |line: &str| {
        line.starts_with("istio_requests_total")
            && [
                "source_workload=\"web",
                "destination_workload=\"egress",
                "destination_service=\"api.example.com\"",
            ]
            .iter()
            .all(|label| line.contains(label))
    };
    assert!(metrics.lines().any(counted), "{metrics}");
    // What no server lists does not leave, whatever a caller writes.
    let elsewhere = ["--timeout", "30", "--header", "Host: other.example.com"];
    let refused = way.web.host.get(&elsewhere, "http://egress:80/elsewhere");
    assert_eq!(refused.status, Some(404), "{refused:?}");
    let line = way.gateway.wait_for_log("the refusal", |line| line["path"] == "/elsewhere");
    assert_eq!(
        (&line["response_flags"], &line["response_code_details"]),
        (&"NR".into(), &"not_at_gateway".into())
    );
    assert!(line.to_string().contains("no Gateway has `other.example.com` leave"), "{line}");
    // The way is explained.
    let explained = output_of(way.web.host.baremesh(["explain", "http://api.example.com/"]));
    assert!(explained.contains("egress") && explained.contains("leaves through"), "{explained}");
}

#[test]
fn policies_on_the_gateway_say_who_leaves_for_where() {
    let way = Way::new("gw-policy");
    let batch = way.mesh.member("batch", 3, &["batch"]);
    batch.register("batch", ["--port", "82", "--user", "0"]);
    let policy = "[[AuthorizationPolicy]]\nname = \"leaving\"\nselector = { matchLabels = { istio = \"egressgateway\" } }\n\
                  action = \"ALLOW\"\n\
                  rules = [{ from = [{ source = { principals = [\"mesh.internal/ns/default/sa/web\"] } }], \
                  to = [{ operation = { hosts = [\"api.example.com\"], paths = [\"/free/*\"] } }] }]\n";
    way.mesh.enforce(&(api() + &leaving(API)));
    way.wait_for_gateway();
    way.mesh.enforce(policy);
    wait_until("the policy holds", || way.get("http://api.example.com/else").status == Some(403));
    let answer = way.get("http://api.example.com/free/a");
    assert!(answer.is_ok() && answer.body.starts_with(GATEWAY), "{answer:?}");
    let refused = batch.host.get(&["--timeout", "30"], "http://api.example.com/free/b");
    assert_eq!(refused.status, Some(403), "{refused:?}");
    let of_batch = |line: &Value| line["source_principal"] == "spiffe://mesh.internal/ns/default/sa/batch";
    let line = way.gateway.wait_for_log("the refusal", of_batch);
    assert_eq!(line["response_code_details"], "denied", "{line}");
}

#[test]
fn a_callers_own_tls_leaves_by_its_server_name_for_those_who_may() {
    let way = Way::new("gw-tls");
    let batch = way.mesh.member("batch", 3, &["batch"]);
    batch.register("batch", ["--port", "82", "--user", "0"]);
    let authority = Authority::new();
    let _server = authority.serve(&way.outside, 8443, "secure.example.com");
    let entry = "[[ServiceEntry]]\nname = \"secure\"\nhosts = [\"*.example.com\"]\nresolution = \"STATIC\"\n\
                 ports = [{ number = 443, targetPort = 8443, protocol = \"TLS\", name = \"tls\" }]\n\
                 endpoints = [{ address = \"10.77.0.65\" }]\n\
                 [[VirtualService]]\nname = \"secure\"\nhosts = [\"*.example.com\"]\ngateways = [\"mesh\", \"leaving\"]\n\
                 tls = [{ match = [{ gateways = [\"mesh\"], sniHosts = [\"*.example.com\"] }], route = [{ destination = { host = \"egress\", port = { number = 443 } } }] },\n\
                 { match = [{ gateways = [\"leaving\"], sniHosts = [\"secure.example.com\"] }], route = [{ destination = { host = \"secure.example.com\", port = { number = 443 } } }] }]\n";
    let server = "{ port = { number = 443, protocol = \"TLS\" }, hosts = [\"secure.example.com\"], tls = { mode = \"PASSTHROUGH\" } }";
    way.mesh.enforce(&(entry.to_owned() + &leaving(server)));
    let get = |from: &Host, name: &'static str| authority.try_get(from, ("secure.example.com", 443), name);
    wait_until("TLS leaves through the gateway", || {
        get(&way.web.host, "secure.example.com")
            .is_some_and(|answer| answer.ends_with("hello from secure.example.com"))
            && way.gateway.log().iter().any(|line| line["upstream_cluster"] == "*.example.com")
    });
    let line = way.gateway.wait_for_log("the connection", |line| line["upstream_cluster"] == "*.example.com");
    assert_eq!(
        (&line["upstream_host"], &line["protocol"]),
        (&"10.77.0.65:8443".into(), &"TCP".into()),
        "{line}"
    );
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/default/sa/web", "{line}");
    // Another name is not listed, and its connection is closed.
    assert_eq!(get(&way.web.host, "other.example.com"), None);
    let line =
        way.gateway.wait_for_log("the refusal", |line| line["response_code_details"] == "not_at_gateway");
    assert!(line.to_string().contains("`other.example.com`"), "{line}");
    // By who calls and the name that is asked for.
    way.mesh.enforce(
        "[[AuthorizationPolicy]]\nname = \"leaving\"\nselector = { matchLabels = { istio = \"egressgateway\" } }\n\
         action = \"ALLOW\"\nrules = [{ from = [{ source = { principals = [\"mesh.internal/ns/default/sa/web\"] } }], \
         when = [{ key = \"connection.sni\", values = [\"secure.example.com\"] }] }]\n",
    );
    wait_until("others are refused", || get(&batch.host, "secure.example.com").is_none());
    assert!(get(&way.web.host, "secure.example.com").is_some());
}

#[test]
fn the_gateway_makes_tls_of_requests_and_carries_bytes_by_their_port() {
    let way = Way::new("gw-origin");
    let authority = Authority::new();
    let _server = authority.serve(&way.outside, 8443, "api.example.com");
    let ca = "/etc/baremesh/outside-ca.pem";
    fs::write(way.gateway.host.path(ca), authority.pem()).expect("the authority's certificate");
    let _echo = way.outside.serve("echo", ["echo", "0.0.0.0:7000"]);
    way.mesh.enforce(
        &(format!(
            "[[ServiceEntry]]\nname = \"api\"\nhosts = [\"api.example.com\"]\nresolution = \"STATIC\"\n\
             ports = [{{ number = 80, targetPort = 8080, protocol = \"HTTP\", name = \"http\" }}, {{ number = 443, targetPort = 8443, protocol = \"HTTP\", name = \"secure\" }}]\n\
             endpoints = [{{ address = \"10.77.0.65\" }}]\n\
             [[DestinationRule]]\nname = \"api\"\nhost = \"api.example.com\"\n\
             trafficPolicy = {{ portLevelSettings = [{{ port = {{ number = 443 }}, tls = {{ mode = \"SIMPLE\", caCertificates = \"{ca}\" }} }}] }}\n\
             [[VirtualService]]\nname = \"api\"\nhosts = [\"api.example.com\"]\ngateways = [\"mesh\", \"leaving\"]\n\
             http = [{{ match = [{{ gateways = [\"mesh\"] }}], route = [{{ destination = {{ host = \"egress\", port = {{ number = 80 }} }} }}] }},\n\
             {{ match = [{{ gateways = [\"leaving\"], port = 80 }}], route = [{{ destination = {{ host = \"api.example.com\", port = {{ number = 443 }} }} }}] }}]\n\
             [[ServiceEntry]]\nname = \"db\"\nhosts = [\"db.example.com\"]\nresolution = \"STATIC\"\n\
             ports = [{{ number = 5432, targetPort = 7000, protocol = \"TCP\", name = \"tcp\" }}]\n\
             endpoints = [{{ address = \"10.77.0.65\" }}]\n\
             [[VirtualService]]\nname = \"db\"\nhosts = [\"db.example.com\"]\ngateways = [\"mesh\", \"leaving\"]\n\
             tcp = [{{ match = [{{ gateways = [\"mesh\"] }}], route = [{{ destination = {{ host = \"egress\", port = {{ number = 5432 }} }} }}] }},\n\
             {{ match = [{{ gateways = [\"leaving\"], port = 5432 }}], route = [{{ destination = {{ host = \"db.example.com\", port = {{ number = 5432 }} }} }}] }}]\n"
        ) + &leaving(&format!("{API}, {{ port = {{ number = 5432, protocol = \"TCP\" }}, hosts = [\"*\"] }}"))),
    );
    wait_until("the gateway makes TLS", || {
        way.get("http://api.example.com/").body == "hello from api.example.com"
    });
    let call = || run(way.web.host.shop(["call", "db.example.com", "5432", "hello"]));
    wait_until("bytes leave through the gateway", || {
        call().stdout.starts_with(b"hello")
            && way.gateway.log().iter().any(|line| line["upstream_cluster"] == "db.example.com")
    });
    let line = way.gateway.wait_for_log("the bytes", |line| line["upstream_cluster"] == "db.example.com");
    assert_eq!(line["upstream_host"], "10.77.0.65:7000", "{line}");
    assert_eq!(line["source_principal"], "spiffe://mesh.internal/ns/default/sa/web", "{line}");
}

#[test]
fn another_gateway_takes_over_and_without_any_nothing_leaves() {
    let way = Way::new("gw-dead");
    let second = way.mesh.member_with("second", 4, &["egress"], ROLE);
    second.register("egress", PORTS);
    way.web.wait_for_endpoints("egress.default", 6);
    way.mesh.enforce(&(api() + &leaving(API)));
    let through =
        |address: &str| way.get("http://api.example.com/").body.starts_with(&format!("{address}\n"));
    wait_until("both lead outside", || through(GATEWAY));
    wait_until("both lead outside", || through("10.77.0.4"));
    way.gateway.kill_agent();
    for _ in 0..12 {
        let answer = way.get("http://api.example.com/");
        assert!(answer.is_ok() && answer.body.starts_with("10.77.0.4\n"), "{answer:?}");
    }
    second.kill_agent();
    let answer = way.get("http://api.example.com/");
    assert_eq!(answer.status, Some(503), "nothing goes round the gateway: {answer:?}");
}

#[test]
fn a_gateway_that_is_taken_back_ends_what_is_open_and_takes_nothing_new() {
    let way = Way::new("gw-change");
    let _server = way.outside.serve("web", ["web", "outside", "0.0.0.0:8081"]);
    let _echo = way.outside.serve("echo", ["echo", "0.0.0.0:7000"]);
    let entries = api().replace("targetPort = 8080", "targetPort = 8081")
        + "[[ServiceEntry]]\nname = \"db\"\nhosts = [\"db.example.com\"]\nresolution = \"STATIC\"\n\
           ports = [{ number = 5432, targetPort = 7000, protocol = \"TCP\", name = \"tcp\" }]\n\
           endpoints = [{ address = \"10.77.0.65\" }]\n\
           [[VirtualService]]\nname = \"db\"\nhosts = [\"db.example.com\"]\ngateways = [\"mesh\", \"leaving\"]\n\
           tcp = [{ match = [{ gateways = [\"mesh\"] }], route = [{ destination = { host = \"egress\", port = { number = 5432 } } }] },\n\
           { match = [{ gateways = [\"leaving\"] }], route = [{ destination = { host = \"db.example.com\" } }] }]\n";
    way.mesh.enforce(
        &(entries
            + &leaving(&format!(
                "{API}, {{ port = {{ number = 5432, protocol = \"TCP\" }}, hosts = [\"*\"] }}"
            ))),
    );
    wait_until("requests leave", || way.get("http://api.example.com/").is_ok());
    wait_until("bytes leave", || {
        run(way.web.host.shop(["call", "db.example.com", "5432", "hello"])).stdout.starts_with(b"hello")
    });
    // A request that is under way, and a connection that stands.
    let asked = "http://api.example.com/long?delay=300";
    let request = way.web.host.spawn("long", way.web.host.shop(["get", "--timeout", "240", asked]));
    let database = output_of(way.web.host.sh("getent ahostsv4 db.example.com"));
    let database = database.split_whitespace().next().and_then(|text| text.parse::<Ipv4Addr>().ok());
    let mut open = way.web.host.connect((database.expect("an address"), 5432)).expect("the agent takes it");
    open.write_all(b"hello").expect("written");
    let mut heard = [0; 5];
    open.read_exact(&mut heard).expect("it is carried");
    wait_until("the request is there", || {
        let seen = _server.stdout();
        seen.lines().any(|line| line.contains("\"path\":\"/long\""))
    });
    output_of(way.mesh.control.baremesh(["delete", "Gateway", "leaving"]));
    way.mesh.wait_until_in_force();
    let line = way.gateway.wait_for_log("the request ends", |line| {
        line["path"].as_str().is_some_and(|path| path.starts_with("/long"))
    });
    assert_eq!(line["response_code"], 403, "{line}");
    assert!(line.to_string().contains("no Gateway has `api.example.com` leave"), "{line}");
    request.wait();
    assert!(matches!(open.read(&mut heard), Ok(0) | Err(_)), "the open connection is closed");
    way.gateway.wait_for_log("why", |line| line["response_code_details"] == "no_longer_allowed");
    let answer = way.get("http://api.example.com/after");
    assert_eq!(answer.status, Some(404), "{answer:?}");
}
