//! Hosts outside the mesh, which ServiceEntries name: called by name and by address, under routes and rules, wherever DNS
//! says that they are.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use baremesh_tests::{Answer, Host, Member, Mesh, Process, output_of, wait_until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivatePkcs8KeyDer;

use crate::name_server::NameServer;

/// Where names that are not the mesh's are asked for.
const DNS: &str = "[dns]\nupstreams = [\"10.77.0.53:53\"]\n";

/// A member whose programs call, and hosts that have no agent.
struct Outside {
    mesh: Mesh,
    web: Member,
    names: NameServer,
    /// The first two servers, at 10.77.0.65 and 10.77.0.66, on port 8080.
    servers: Vec<(Host, Process)>,
    _name_server: Host,
}

impl Outside {
    #[track_caller]
    fn new(name: &str) -> Self {
        Self::with_config(name, DNS)
    }

    #[track_caller]
    fn with_config(name: &str, config: &str) -> Self {
        let mesh = Mesh::new(name);
        let name_server = mesh.net.host("names", 53);
        let names = NameServer::on(&name_server);
        let server = |index: u8| {
            let host = mesh.net.host(&format!("outside{index}"), index);
            let process = host.serve("web", ["web", &format!("outside{index}"), "0.0.0.0:8080"]);
            (host, process)
        };
        let servers = vec![server(65), server(66)];
        let web = mesh.member_with("web", 1, &["*"], config);
        web.register("web", ["--port", "80", "--user", "0"]);
        Self { mesh, web, names, servers, _name_server: name_server }
    }

    /// Requests until one is answered by that server.
    #[track_caller]
    fn wait_for(&self, instance: &str, url: &str) -> Answer {
        let mut last = Answer::default();
        wait_until(&format!("{url} is answered by {instance}"), || {
            last = self.web.host.get(&["--timeout", "30"], url);
            last.is_ok() && last.instance.as_deref() == Some(instance)
        });
        last
    }

    /// How many requests for a path a server has seen.
    fn seen(&self, server: usize, path: &str) -> usize {
        let said = self.servers[server].1.stdout();
        said.lines().filter(|line| line.contains(&format!("\"path\":\"{path}\""))).count()
    }
}

fn entry(name: &str, fields: &str) -> String {
    format!("[[ServiceEntry]]\nname = \"{name}\"\n{fields}\n")
}

/// `api.example.com`, at 10.77.0.65.
fn listed() -> String {
    entry(
        "api",
        "hosts = [\"api.example.com\"]\nresolution = \"STATIC\"\n\
         ports = [{ number = 80, targetPort = 8080, protocol = \"HTTP\", name = \"http\" }]\n\
         endpoints = [{ address = \"10.77.0.65\" }]",
    )
}

#[test]
fn a_listed_host_is_called_by_its_name_under_routes() {
    let outside = Outside::new("egress-static");
    outside.mesh.enforce(&listed());
    outside.wait_for("outside65", "http://api.example.com/first");
    assert_eq!(outside.names.asked_for("api.example.com"), 0, "the agent itself answers for the name");
    outside.mesh.enforce(
        "[[VirtualService]]\nname = \"api\"\nhosts = [\"api.example.com\"]\n\
         http = [{ match = [{ uri = { prefix = \"/slow\" } }], timeout = \"1s\", route = [{ destination = { host = \"api.example.com\" } }] },\n\
         { retries = { attempts = 2, retryOn = \"5xx\" }, headers = { request = { set = { x-egress = \"yes\" } } }, route = [{ destination = { host = \"api.example.com\" } }] }]\n",
    );
    wait_until("the route holds", || {
        let answer = outside.web.host.get(&[], "http://api.example.com/route");
        answer.is_ok() && answer.account()["headers"]["x-egress"][0] == "yes"
    });
    let answer = outside.web.host.get(&[], "http://api.example.com/again?status=503&fail-first=1");
    assert!(answer.is_ok(), "{answer:?}");
    assert_eq!(outside.seen(0, "/again"), 2);
    let answer = outside.web.host.get(&["--timeout", "60"], "http://api.example.com/slow?delay=30");
    assert_eq!(answer.status, Some(504), "{answer:?}");
    let line = outside.web.wait_for_log("the request", |line| line["path"] == "/route");
    assert_eq!(line["upstream_cluster"], "api.example.com");
    assert_eq!(line.get("destination_principal"), None, "nobody outside has shown who it is: {line}");
    let metrics = outside.web.metrics();
    let labels = "destination_service=\"api.example.com\"";
    assert!(metrics.lines().any(|line| line.starts_with("istio_requests_total") && line.contains(labels)));
}

#[test]
fn what_dns_says_of_a_host_is_followed_and_the_last_answer_stays() {
    let outside = Outside::new("egress-dns");
    outside.names.say("api.example.com", &[[10, 77, 0, 65]]);
    outside.mesh.enforce(&entry(
        "api",
        "hosts = [\"api.example.com\"]\nresolution = \"DNS\"\nports = [{ number = 8080, protocol = \"HTTP\" }]",
    ));
    let url = "http://api.example.com:8080/";
    outside.wait_for("outside65", url);
    outside.names.say("api.example.com", &[[10, 77, 0, 66]]);
    outside.wait_for("outside66", url);
    // Two addresses are two endpoints.
    outside.names.say("api.example.com", &[[10, 77, 0, 65], [10, 77, 0, 66]]);
    wait_until("both are called", || outside.web.host.counts(16, &[], url).len() == 2);
    outside.names.say("api.example.com", &[]);
    let before = outside.names.asked_for("api.example.com");
    wait_until("it is asked for again", || outside.names.asked_for("api.example.com") > before + 2);
    assert!(outside.web.host.get(&[], url).is_ok(), "the last addresses stay");
    assert!(outside.web.metrics().contains("baremesh_resolutions_total{outcome=\"failed\"}"));
    // Nobody is led to the agent's own host.
    outside.names.say("api.example.com", &[[127, 0, 0, 1], [10, 77, 0, 66]]);
    outside.wait_for("outside66", url);
    wait_until("what is left out is counted", || {
        outside
            .web
            .metrics()
            .lines()
            .any(|line| line.starts_with("baremesh_resolutions_addresses_left_out") && !line.ends_with(" 0"))
    });
}

#[test]
fn addresses_in_a_block_are_called_as_they_are_dialled() {
    let outside = Outside::new("egress-none");
    outside.mesh.enforce(&entry(
        "partner",
        "hosts = [\"partner.example.com\"]\naddresses = [\"10.77.0.64/26\"]\nports = [{ number = 8080, protocol = \"HTTP\" }]",
    ));
    for server in ["65", "66"] {
        let instance = format!("outside{server}");
        wait_until("the block is captured", || {
            let answer = outside.web.host.get(&[], &format!("http://10.77.0.{server}:8080/{server}"));
            assert_eq!(answer.instance.as_deref(), Some(&*instance), "{answer:?}");
            outside.web.log().iter().any(|line| line["path"] == format!("/{server}"))
        });
        let line = outside.web.wait_for_log("the request", |line| line["path"] == format!("/{server}"));
        assert_eq!(line["upstream_cluster"], "partner.example.com");
        assert_eq!(line["upstream_host"], format!("10.77.0.{server}:8080"));
    }
    // Other ports and addresses are left alone.
    let rules = output_of(outside.web.host.sh("nft list set inet baremesh external4"));
    assert!(rules.contains("10.77.0.64/26 . 8080"), "{rules}");
}

#[test]
fn names_below_a_wildcard_are_looked_up_as_they_are_asked_for() {
    let outside = Outside::new("egress-dynamic");
    outside.names.say("a.example.com", &[[10, 77, 0, 65]]);
    outside.names.say("b.example.com", &[[10, 77, 0, 66]]);
    outside.names.say("inward.example.com", &[[127, 0, 0, 1]]);
    outside.mesh.enforce(&entry(
        "all",
        "hosts = [\"*.example.com\"]\nresolution = \"DYNAMIC_DNS\"\n\
         ports = [{ number = 8080, protocol = \"HTTP\" }, { number = 443, protocol = \"TLS\" }]",
    ));
    outside.wait_for("outside65", "http://a.example.com:8080/");
    outside.wait_for("outside66", "http://b.example.com:8080/");
    for (name, why) in [("inward", "no address"), ("nowhere", "no such name")] {
        let path = format!("/{name}");
        let answer = outside.web.host.get(&[], &format!("http://{name}.example.com:8080{path}"));
        assert_eq!(answer.status, Some(503), "{answer:?}");
        let line = outside.web.wait_for_log("why", |line| line["path"] == path.as_str());
        assert!(line.to_string().contains(why), "{line}");
    }
    // Whatever the authority says, only names below the wildcard are looked up.
    let asked = ["--header", "Host: elsewhere.test"];
    let answer = outside.web.host.get(&asked, "http://a.example.com:8080/elsewhere");
    assert_eq!(answer.status, Some(503), "{answer:?}");
    assert_eq!(outside.names.asked_for("elsewhere.test"), 0);
    // TLS is passed through by the name that it asks for.
    let authority = Authority::new();
    let _server = authority.serve(&outside.servers[1].0, 443, "b.example.com");
    let answer = authority.get(&outside.web.host, ("a.example.com", 443), "b.example.com");
    assert!(answer.ends_with("hello from b.example.com"), "{answer}");
}

#[test]
fn plain_http_leaves_as_tls_to_the_server_that_proves_its_name() {
    let outside = Outside::new("egress-tls");
    let authority = Authority::new();
    let _server = authority.serve(&outside.servers[0].0, 8443, "api.example.com");
    let ca = "/etc/baremesh/outside-ca.pem";
    fs::write(outside.web.host.path(ca), &authority.pem).expect("the authority's certificate");
    let with_names = |names: &str| {
        entry(
            "api",
            &format!(
                "hosts = [\"api.example.com\"]\nresolution = \"STATIC\"\n\
                 ports = [{{ number = 80, targetPort = 8443, protocol = \"HTTP\", name = \"http\" }}]\n\
                 endpoints = [{{ address = \"10.77.0.65\" }}]\n{names}"
            ),
        ) + &format!(
            "[[DestinationRule]]\nname = \"api\"\nhost = \"api.example.com\"\n\
             trafficPolicy = {{ tls = {{ mode = \"SIMPLE\", caCertificates = \"{ca}\" }} }}\n"
        )
    };
    outside.mesh.enforce(&with_names(""));
    let get = || outside.web.host.get(&["--timeout", "30"], "http://api.example.com/");
    wait_until("TLS is made", || get().body == "hello from api.example.com");
    outside.mesh.enforce(&with_names("subjectAltNames = [\"other.example.com\"]"));
    wait_until("another name is refused", || get().status == Some(503));
    outside.mesh.enforce(&with_names("subjectAltNames = [\"other.example.com\", \"api.example.com\"]"));
    wait_until("one of several is enough", || get().body == "hello from api.example.com");
}

#[test]
fn a_host_for_other_namespaces_is_none_here() {
    let outside = Outside::new("egress-export");
    outside.mesh.enforce(&listed());
    outside.wait_for("outside65", "http://api.example.com/");
    let elsewhere = listed().replace("name = \"api\"\n", "name = \"api\"\nexportTo = [\"elsewhere\"]\n");
    outside.names.say("api.example.com", &[[10, 77, 0, 66]]);
    outside.mesh.enforce(&elsewhere);
    outside.wait_for("outside66", "http://api.example.com:8080/");
    assert!(outside.names.asked_for("api.example.com") > 0, "the real answer is the right one");
}

#[test]
fn who_is_given_the_address_of_a_host_that_it_does_not_see_is_passed_on_by_its_name() {
    let outside = Outside::new("egress-unseen");
    // A neighbour sees the host, so that DNS answers for it, whoever asks.
    let neighbour =
        ["service", "register", "neighbour", "--namespace", "elsewhere", "--port", "81", "--user", "12321"];
    output_of(outside.web.host.baremesh(neighbour));
    outside.names.say("api.example.com", &[[10, 77, 0, 66]]);
    outside.mesh.enforce(&entry(
        "api",
        "namespace = \"elsewhere\"\nexportTo = [\".\"]\nhosts = [\"api.example.com\"]\nresolution = \"DNS\"\n\
         ports = [{ number = 8080, protocol = \"TCP\" }]",
    ));
    let of_mesh = |address: &str| address.starts_with("240.240.") || address.starts_with("[fdba:4e3e:5400:");
    let passed_on = |line: &serde_json::Value| {
        line["upstream_cluster"] == "PassthroughCluster"
            && line["upstream_host"] == "10.77.0.66:8080"
            && line["downstream_local_address"].as_str().is_some_and(of_mesh)
    };
    wait_until("a call to the virtual address is passed on", || {
        outside.web.host.get(&["--timeout", "30"], "http://api.example.com:8080/").is_ok()
            && outside.web.log().iter().any(passed_on)
    });
    outside.wait_for("outside66", "http://api.example.com:8080/");
}

/// Somebody who signs certificates outside the mesh.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    certificate: rustls_pki_types::CertificateDer<'static>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).expect("a certificate");
        let (pem, der) = (certificate.pem(), certificate.der().clone());
        Self { issuer: Issuer::new(params, key), pem, certificate: der }
    }

    /// Its own certificate, as PEM.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// A server of HTTPS on a host, which says hello under its name.
    pub fn serve(&self, host: &Host, port: u16, name: &'static str) -> std::thread::JoinHandle<()> {
        let key = KeyPair::generate().expect("a key");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("parameters");
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a certificate with its key");
        let (config, listener) = (Arc::new(config), host.listen((Ipv4Addr::UNSPECIFIED, port)));
        // Ends with the process.
        std::thread::spawn(move || {
            for socket in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a server");
                let mut stream = StreamOwned::new(connection, socket);
                // All of it: what is not read when the socket closes resets the connection.
                let (mut request, mut part) = (Vec::new(), [0; 4096]);
                while !request.ends_with(b"\r\n\r\n") {
                    match stream.read(&mut part) {
                        Ok(read) if read > 0 => request.extend_from_slice(&part[..read]),
                        _ => break,
                    }
                }
                if request.ends_with(b"\r\n\r\n") {
                    let body = format!("hello from {name}");
                    let _ = write!(
                        stream,
                        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
                        body.len()
                    );
                    stream.conn.send_close_notify();
                    let _ = stream.flush();
                }
            }
        })
    }

    /// A request in the caller's own TLS to wherever DNS says that `dialled` is.
    fn get(&self, host: &Host, dialled: (&str, u16), name: &'static str) -> String {
        self.try_get(host, dialled, name).expect("an answer")
    }

    /// The same; nothing where the connection is closed.
    pub fn try_get(&self, host: &Host, (dialled, port): (&str, u16), name: &'static str) -> Option<String> {
        let found = output_of(host.sh(&format!("getent ahostsv4 {dialled}")));
        let address: IpAddr =
            found.split_whitespace().next().and_then(|text| text.parse().ok()).expect("an address");
        let mut roots = RootCertStore::empty();
        roots.add(self.certificate.clone()).expect("an authority");
        let config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots)
            .with_no_client_auth();
        let connection = ClientConnection::new(Arc::new(config), name.try_into().expect("a name"));
        let socket = host.connect(SocketAddr::new(address, port)).expect("the agent takes it");
        let mut stream = StreamOwned::new(connection.expect("a client"), socket);
        write!(stream, "GET / HTTP/1.1\r\nHost: {name}\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
