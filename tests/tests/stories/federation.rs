//! Two meshes with an authority each, whose services call each other.

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use baremesh_tests::{Host, Member, Mesh, exit, exit_code_of, output_of, wait_until};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use serde_json::Value;

use crate::pair::because;
use crate::peer::{self, Tunnel, agent_of, authority};
use crate::signer::{Signer, uri};

/// Where a control host of a story has what others gave it.
const GIVEN: &str = "/run/baremesh/given";

/// `web` of one mesh, and `orders` of the other, which it calls.
struct Two {
    ours: Mesh,
    theirs: Mesh,
    web: Member,
    orders: Member,
}

impl Two {
    #[track_caller]
    fn new(name: &str, arguments: &[&str]) -> Self {
        let ours = Mesh::with_control_arguments(name, arguments);
        let theirs = ours.beside("partner.test", arguments);
        let (web, orders) = (ours.member("web", 1, &["*"]), theirs.member("orders", 2, &["*"]));
        web.register("web", ["--port", "80", "--user", "0"]);
        orders.host.serve("echo", ["echo", "127.0.0.1:7000"]);
        orders.register("orders", ["--port", "80:7000"]);
        Self { ours, theirs, web, orders }
    }

    /// The same, with the roots of each given to the other as a file, and `orders` known to `web`.
    #[track_caller]
    fn federated(name: &str) -> Self {
        let two = Self::new(name, &[]);
        two.theirs.federate("mesh.internal", &given(&two.theirs, &two.ours, "spiffe"));
        two.ours.federate("partner.test", &given(&two.ours, &two.theirs, "pem"));
        two.declare();
        two
    }

    /// Says where `orders` is.
    #[track_caller]
    fn declare(&self) {
        let address = self.orders.host.v4();
        self.ours.enforce(&format!(
            "[[Service]]\nname = \"orders\"\nnamespace = \"partner\"\nports = [{{ port = 80, targetPort = 7000 }}]\n\
             subjectAltNames = [\"spiffe://partner.test/ns/default/sa/orders\"]\n\
             [[WorkloadEntry]]\nname = \"orders\"\nnamespace = \"partner\"\naddress = \"{address}\"\ntunnel = \"hbone\"\n\
             labels = {{ app = \"orders\" }}\n"
        ));
        self.web.wait_for_endpoints("orders.partner", 1);
    }

    fn call(&self, text: &str) -> u8 {
        exit_code_of(self.web.host.shop(["call", "--timeout", "5", "orders.partner", "80", text]))
    }

    #[track_caller]
    fn wait_for_calls(&self) {
        wait_until("calls go well", || self.call("hello") == exit::DONE);
    }
}

trait Federates {
    /// Takes identities of `domain`, whose roots are from `source`, and of nobody else besides its own.
    fn federate(&self, domain: &str, source: &str);
    /// What the settings of the mesh are with this federation.
    fn settings(&self, federation: &str);
}

impl Federates for Mesh {
    #[track_caller]
    fn federate(&self, domain: &str, source: &str) {
        self.settings(&format!("federation = [{{ trustDomain = \"{domain}\", {source} }}]"));
    }

    #[track_caller]
    fn settings(&self, federation: &str) {
        let said: Value =
            serde_json::from_str(&output_of(self.control.baremesh(["status", "-o", "json"]))).expect("JSON");
        let own = said["control"]["trustDomain"].as_str().expect("a trust domain");
        let text = format!("[[MeshConfig]]\nname = \"baremesh\"\ntrustDomain = \"{own}\"\n{federation}\n");
        self.enforce(&text);
    }
}

/// The roots of one mesh in a file of the other's control host, as the field of `federation` that names it.
#[track_caller]
fn given(to: &Mesh, of: &Mesh, format: &str) -> String {
    let bundle = output_of(of.control.baremesh(["ca", "bundle", "--format", format]));
    fs::write(to.control.path(GIVEN), bundle).expect("written");
    format!("bundleFile = \"{GIVEN}\", refresh = \"10s\"")
}

/// What `baremesh ca` says of the one federated domain.
fn federated(mesh: &Mesh) -> Value {
    let said = output_of(mesh.control.baremesh(["ca", "-o", "json"]));
    let said: Value = serde_json::from_str(&said).expect("JSON");
    said["federated"][0].clone()
}

/// Waits until the agents of a mesh go by the roots that its control server has.
#[track_caller]
fn wait_for_roots(mesh: &Mesh) {
    wait_until("there are roots", || {
        federated(mesh)["roots"].as_array().is_some_and(|roots| !roots.is_empty())
    });
    mesh.wait_until_in_force();
}

#[test]
fn services_of_two_meshes_call_each_other_as_policy_says() {
    let two = Two::new("federated", &[]);
    two.ours.federate("partner.test", &given(&two.ours, &two.theirs, "pem"));
    two.declare();
    wait_for_roots(&two.ours);
    assert_ne!(two.call("too early"), exit::DONE, "they do not know us");
    two.theirs.federate("mesh.internal", &given(&two.theirs, &two.ours, "spiffe"));
    wait_for_roots(&two.theirs);
    two.wait_for_calls();
    for (member, field, identity) in [
        (&two.orders, "source_principal", "spiffe://mesh.internal/ns/default/sa/web"),
        (&two.web, "destination_principal", "spiffe://partner.test/ns/default/sa/orders"),
    ] {
        member.wait_for_log(field, |line| line[field] == identity);
    }
    // What a policy names, it names with its trust domain.
    let policy = |rest: &str| {
        two.theirs.enforce(&format!("[[AuthorizationPolicy]]\nname = \"orders\"\n{rest}\n"));
    };
    let from = |source: &str| format!("rules = [{{ from = [{{ source = {{ {source} }} }}] }}]");
    for (rest, expected) in [
        (from("principals = [\"mesh.internal/ns/default/sa/web\"]"), true),
        (from("principals = [\"partner.test/ns/default/sa/web\"]"), false),
        (from("trustDomains = [\"mesh.internal\"]"), true),
        (from("trustDomains = [\"partner.test\"]"), false),
        (from("namespaces = [\"default\"]"), true),
        (from("namespaces = [\"default\"], trustDomains = [\"partner.test\"]"), false),
        (format!("action = \"DENY\"\n{}", from("notTrustDomains = [\"partner.test\"]")), false),
    ] {
        policy(&rest);
        assert_eq!(two.call("asked") == exit::DONE, expected, "{rest}");
    }
}

/// Whoever has the partner's authority is anybody of the partner's services, and nobody else.
#[test]
fn a_federated_authority_makes_nobody_of_this_mesh_or_of_a_third() {
    let two = Two::federated("federated-attack");
    wait_for_roots(&two.ours);
    let store = two.ours.member("store", 3, &["*"]);
    store.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    store.register("echo", ["--port", "7000"]);
    let target = authority(store.host.v4(), 7000);
    let thief = Signer::of_mesh(&two.theirs);
    let open = |identity: &str| {
        let key = thief.sign(|leaf| leaf.subject_alt_names = vec![uri(identity)]);
        let config = peer::config(&two.ours, key);
        let tunnel =
            Tunnel::open(&two.orders.host, agent_of(&store.host), config, Some("echo.default.mesh.internal"));
        tunnel.and_then(|tunnel| tunnel.echoes(&target))
    };
    assert!(open("spiffe://partner.test/ns/shop/sa/anybody").expect("it is the partner's own"));
    let refused = [
        ("spiffe://mesh.internal/ns/default/sa/web", "does not chain"),
        ("spiffe://mesh.internal/ns/hosts/sa/web", "does not chain"),
        ("spiffe://mesh.internal/ns/control/sa/control", "does not chain"),
        ("spiffe://third.test/ns/default/sa/web", "does not chain"),
        ("spiffe://partner.test/ns/control/sa/control", "no service of its mesh"),
        ("spiffe://partner.test/ns/nodes/sa/orders", "no service of its mesh"),
        ("spiffe://partner.test/ns/operators/sa/ann", "no service of its mesh"),
    ];
    for (count, (identity, reason)) in refused.iter().enumerate() {
        assert!(open(identity).is_err(), "{identity}");
        let lines = || {
            let refusal = |line: &Value| because("handshake_failed")(line);
            store.log().into_iter().filter(refusal).collect::<Vec<_>>()
        };
        wait_until("each refusal is on record", || lines().len() > count);
        let why = lines()[count]["connection_termination_details"].to_string();
        assert!(why.contains(reason), "{identity}: {why}");
    }
    // Nor a member, or an operator, for the control server.
    let port = (two.ours.control.v4(), 15012).into();
    for identity in ["spiffe://mesh.internal/ns/nodes/sa/web", "spiffe://partner.test/ns/nodes/sa/orders"] {
        let key = thief.sign(|leaf| leaf.subject_alt_names = vec![uri(identity)]);
        let opened = Tunnel::open(&two.orders.host, port, peer::config(&two.ours, key), None);
        // With TLS 1.3 the client hears of the refusal when it first reads.
        assert!(opened.and_then(|tunnel| tunnel.connect(&target)).is_err(), "{identity}");
    }
}

/// What is open is closed when the roots that it leads to are trusted no more, in both directions.
#[test]
fn a_federation_that_is_taken_back_closes_what_is_open() {
    let two = Two::federated("federated-end");
    wait_for_roots(&two.ours);
    wait_for_roots(&two.theirs);
    two.wait_for_calls();
    let held = two.web.host.spawn("held", two.web.host.shop(["hold", "orders.partner", "80"]));
    held.wait_for_output("open");
    two.theirs.settings("federation = []");
    two.orders.wait_for_log("it is closed", because("certificate_revoked"));
    wait_until("nothing is carried any more", || two.call("late") == exit::CUT);
    // And by the caller's side, which then takes no such callee.
    two.theirs.federate("mesh.internal", &given(&two.theirs, &two.ours, "pem"));
    wait_for_roots(&two.theirs);
    two.wait_for_calls();
    // Roots that are exchanged for others are as good as none, for whoever led to the former ones.
    let before = federated(&two.ours)["roots"].clone();
    let stranger = given(&two.ours, &two.ours, "pem");
    assert!(stranger.contains(GIVEN));
    wait_until("the file is read", || federated(&two.ours)["roots"] != before);
    two.ours.wait_until_in_force();
    wait_until("the callee is refused", || two.call("elsewhere") == exit::CUT);
    let audit = output_of(two.ours.control.baremesh(["audit", "-o", "json"]));
    assert!(audit.contains("take roots of partner.test"), "{audit}");
}

/// What a server of bundles says, until it is told to say nothing.
type Served = Arc<Mutex<Option<String>>>;

/// A server of bundles on `host`, and the authority in PEM by which its certificate is known.
fn serve_bundle(host: &Host, port: u16) -> (Served, String) {
    let authority = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).expect("a root");
    let (mut leaf, key) = (CertificateParams::default(), KeyPair::generate().expect("a key"));
    leaf.subject_alt_names = vec![SanType::IpAddress(host.v4().into())];
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&params, &authority)).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    let config =
        config.expect("versions").with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key);
    let config = Arc::new(config.expect("a configuration"));
    let listener = host.listen((Ipv4Addr::UNSPECIFIED, port));
    let served = Served::default();
    let said = Arc::clone(&served);
    // Ends with the process: the listener belongs to a host that does.
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let body = said.lock().expect("no thread panics with it").clone();
            let (Some(body), Ok(connection)) = (body, ServerConnection::new(Arc::clone(&config))) else {
                continue;
            };
            let _ = stream.set_read_timeout(Some(Duration::from_secs(5)));
            let mut tls = StreamOwned::new(connection, stream);
            // All of it: what is not read when the socket closes resets the connection.
            let (mut request, mut part) = (Vec::new(), [0; 4096]);
            while !request.ends_with(b"\r\n\r\n") {
                match tls.read(&mut part) {
                    Ok(read) if read > 0 => request.extend_from_slice(&part[..read]),
                    _ => break,
                }
            }
            let _ = write!(tls, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
            tls.conn.send_close_notify();
            let _ = tls.flush();
        }
    });
    (served, root.pem())
}

/// A server of bundles is asked again and again; when it is down, or says nonsense, what it said last holds, over a
/// restart of the control server as well.
#[test]
fn roots_from_a_url_outlive_its_server() {
    let two = Two::new("federated-url", &[]);
    two.theirs.federate("mesh.internal", &given(&two.theirs, &two.ours, "pem"));
    let (served, root) = serve_bundle(&two.theirs.control, 8443);
    let say = |said: Option<&str>| *served.lock().expect("no panic") = said.map(str::to_owned);
    fs::write(two.ours.control.path("/run/baremesh/web-pki"), root).expect("written");
    let address = two.theirs.control.v4();
    let url = format!("bundleUrl = \"https://{address}:8443/bundle\", refresh = \"10s\"");
    let source = format!("{url}, bundleAuthorities = \"/run/baremesh/web-pki\"");
    two.ours.federate("partner.test", &source);
    two.declare();
    let warning = |text: &str| output_of(two.ours.control.baremesh(["status"])).contains(text);
    wait_until("it is said that there are no roots", || warning("there are no roots of partner.test"));
    assert_ne!(two.call("too early"), exit::DONE);
    let bundle = output_of(two.theirs.control.baremesh(["ca", "bundle", "--format", "spiffe"]));
    say(Some(&bundle));
    wait_for_roots(&two.ours);
    two.wait_for_calls();
    for said in [None, Some("<html>"), Some("{\"keys\": []}")] {
        say(said);
        wait_until("it fails", || federated(&two.ours)["failure"].is_string());
        assert!(warning("cannot be read anew"), "{said:?}");
        assert_eq!(two.call("still"), exit::DONE);
        say(Some(&bundle));
        wait_until("it is well again", || federated(&two.ours)["failure"].is_null());
    }
    say(None);
    two.ours.kill_control();
    two.ours.start_control();
    wait_until("the host is back", || {
        two.web.status().is_some_and(|status| status["source"]["connected"] == true)
    });
    two.ours.wait_until_in_force();
    assert_eq!(two.call("after a restart"), exit::DONE);
    // The address that is asked is judged: the link's and one's own are not connected to.
    two.ours.federate("partner.test", "bundleUrl = \"https://169.254.169.254/latest\"");
    wait_until("it is not asked", || {
        federated(&two.ours)["failure"].as_str().is_some_and(|failure| failure.contains("--federation-allow"))
    });
    assert_eq!(two.call("with the roots of before"), exit::DONE);
}
