//! A Consul that lets in who shows a token and a certificate, and nobody else.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::rc::Rc;

use baremesh_tests::consul::Consul;
use baremesh_tests::{Host, Member, Mesh, net, output_of, run, wait_until};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, IsCa, Issuer, KeyPair, SanType};
use serde_json::{Value, json};

/// Where a host of the mesh keeps what it shows Consul.
const PLACE: &str = "/etc/baremesh/consul";
const TOKEN: &str = "7a1b3c5d-0000-4000-8000-00000000c0de";

/// An authority of Consul's own.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().expect("a key"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let pem = params.self_signed(&key).expect("a root").pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key, for `host` at its address.
    fn issue(&self, host: &Host) -> (String, String) {
        let (mut params, key) = (CertificateParams::default(), KeyPair::generate().expect("a key"));
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = vec![SanType::IpAddress(host.v4().into())];
        let leaf = params.signed_by(&key, &self.issuer).expect("a certificate");
        (leaf.pem(), key.serialize_pem())
    }

    /// Puts what a host needs in its place.
    fn equip(&self, host: &Host, token: &str) {
        let (certificate, key) = self.issue(host);
        fs::create_dir_all(host.path(PLACE)).expect("a directory");
        for (name, text) in [("ca.pem", self.pem.as_str()), ("tls.crt", &certificate), ("tls.key", &key)] {
            secret(host, name, text);
        }
        secret(host, "token", token);
    }
}

fn secret(host: &Host, name: &str, text: &str) {
    let path = host.path(format!("{PLACE}/{name}"));
    fs::write(&path, text).expect("written");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("changed");
}

/// What is said of Consul at `host`, with a client certificate or without.
fn config(host: &Host, shows: bool) -> String {
    let certificate = match shows {
        true => format!("certificate = \"{PLACE}/tls.crt\"\nkey = \"{PLACE}/tls.key\"\n"),
        false => String::new(),
    };
    format!(
        "[registry]\nsource = \"consul\"\n[consul]\naddresses = [\"https://{}:8501\"]\ntoken_file = \"{PLACE}/token\"\n\
         ca_certificates = \"{PLACE}/ca.pem\"\n{certificate}",
        host.v4()
    )
}

fn says(member: &Member, part: &str) -> bool {
    let status = member.status().unwrap_or_default();
    let warnings = status["warnings"].as_array().cloned().unwrap_or_default();
    warnings.iter().filter_map(Value::as_str).any(|warning| warning.contains(part))
}

/// Its configuration is read by who shows both, and by nobody else.
#[track_caller]
fn converts_with_token_and_certificate(from: &Host, server: &Host) {
    let address = format!("https://{}:8501", server.v4());
    let place = |name: &str| format!("{PLACE}/{name}");
    let (ca, token) = (place("ca.pem"), place("token"));
    let line = ["convert", "consul", "--http-addr", &address, "--ca", &ca, "--default-policy", "deny"];
    let shown = ["--cert", &place("tls.crt"), "--key", &place("tls.key")];
    let all = line.into_iter().chain(["--token-file", &token]).chain(shown);
    let said = run(from.baremesh(all));
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    for (lacking, part) in [
        (line.into_iter().chain(shown).collect::<Vec<_>>(), "may not read every"),
        (line.into_iter().chain(["--token-file", &token]).collect(), address.as_str()),
    ] {
        let refused = run(from.baremesh(&lacking));
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && refused.stdout.is_empty() && said.contains(part), "{said}");
    }
}

#[test]
fn tokens_and_certificates_are_needed_and_used_as_they_change() {
    let net = Rc::new(net("consul-secured"));
    let (authority, server) = (Authority::new(), net.host("consul", 202));
    authority.equip(&server, TOKEN);
    let tls = |name: &str| format!("{PLACE}/{name}");
    let _consul = Consul::start(
        &server,
        &json!({
            "server": true, "bootstrap_expect": 1, "ports": { "https": 8501 }, "verify_incoming_https": true,
            "ca_file": tls("ca.pem"), "cert_file": tls("tls.crt"), "key_file": tls("tls.key"),
            "acl": { "enabled": true, "default_policy": "deny", "tokens": { "master": TOKEN, "agent": TOKEN } },
        }),
    );
    let mesh = Mesh::with_registry(net, |control| {
        authority.equip(control, TOKEN);
        config(&server, true)
    });
    let orders = mesh.join(mesh.net.host("orders", 2), "orders", &["orders"]);
    authority.equip(&orders.host, "00000000-0000-4000-8000-000000000000");
    orders.configure(&config(&server, true));
    orders.start_without_waiting();
    wait_until("the agent says that its token may not", || says(&orders, "token_file"));
    secret(&orders.host, "token", TOKEN);
    orders.wait_until_ready();
    orders.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    orders.register("orders", ["--port", "80:7000"]);

    let web = mesh.join(mesh.net.host("web", 1), "web", &["web"]);
    authority.equip(&web.host, TOKEN);
    web.configure(&config(&server, false));
    web.start_without_waiting();
    wait_until("Consul refuses who shows no certificate", || {
        says(&web, "TLS with") || says(&web, "broke off")
    });
    web.kill_agent();
    web.configure(&config(&server, true));
    web.start();
    web.wait_for_endpoints("orders.default", 1);
    assert_eq!(output_of(web.host.shop(["call", "orders", "80", "hello"])), "hello");
    converts_with_token_and_certificate(&web.host, &server);
    // Another authority's certificate is shown by whoever poses as Consul.
    fs::write(web.host.path(tls("ca.pem")), &Authority::new().pem).expect("written");
    wait_until("it is not taken for Consul", || says(&web, "TLS with"));
    assert_eq!(output_of(web.host.shop(["call", "orders", "80", "hello"])), "hello");
}
