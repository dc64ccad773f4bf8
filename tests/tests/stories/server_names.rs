//! `connection.sni` in policies: the name that the caller's own TLS asks for, where some is carried.

use std::net::SocketAddr;
use std::sync::Arc;

use baremesh_tests::{Member, wait_until};
use rustls::{ClientConfig, ClientConnection, RootCertStore};

use crate::attack::{End, Line, Program};
use crate::pair::{Pair, because, counted, virtual_addresses};
use crate::peer::{Tunnel, agent_of, authority, config, stolen};

/// The first message of a TLS client that asks for `name`.
fn hello(name: &str) -> Vec<u8> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let mut config =
        config.expect("versions").with_root_certificates(RootCertStore::empty()).with_no_client_auth();
    config.enable_sni = !name.is_empty();
    let name = if name.is_empty() { "nobody.example" } else { name };
    let name = name.to_owned().try_into().expect("a name");
    let mut client = ClientConnection::new(config.into(), name).expect("a client");
    let mut first = Vec::new();
    client.write_tls(&mut first).expect("written");
    first
}

fn policy(service: &str, action: &str, name: &str) -> String {
    format!(
        "[[AuthorizationPolicy]]\nname = \"{service}\"\nselector = {{ matchLabels = {{ app = \"{service}\" }} }}\n\
         action = \"{action}\"\nrules = [{{ when = [{{ key = \"connection.sni\", values = [\"{name}\"] }}] }}]\n"
    )
}

/// A service of bytes, whose program says nothing.
struct Vault<'a> {
    pair: &'a Pair,
    program: Program,
    service: &'static str,
    port: u16,
    tunnel: Tunnel,
}

impl<'a> Vault<'a> {
    fn new(pair: &'a Pair, service: &'static str, (port, protocol): (u16, &str)) -> Self {
        let program = Program::start(pair.store.host.listen(([127, 0, 0, 1], port)), |_, _| Ok(()));
        pair.store.register(service, ["--port", &port.to_string(), "--protocol", protocol]);
        pair.web.wait_for_endpoints(&format!("{service}.default"), 1);
        let name = format!("{service}.default.mesh.internal");
        let key = config(&pair.mesh, stolen(&pair.web, "web"));
        let tunnel = Tunnel::open(&pair.web.host, agent_of(&pair.store.host), key, Some(&name));
        Self { pair, program, service, port, tunnel: tunnel.expect("a tunnel") }
    }

    fn dial(&self, member: &Member) -> Line<'static> {
        let address = SocketAddr::new(virtual_addresses(member, self.service)[0], self.port);
        Line::Socket(member.host.connect(address).expect("the agent takes it"))
    }

    /// A program of another host, a thief in a tunnel, and a program of the service's own host.
    fn lines(&self) -> [Line<'_>; 3] {
        let stream =
            self.tunnel.connect(&authority(self.pair.store.host.v4(), self.port)).expect("an answer");
        assert_eq!(stream.status, 200, "what is to come decides");
        let thief = Line::Tunnel(&self.tunnel, Box::new(stream));
        [self.dial(&self.pair.web), thief, self.dial(&self.pair.store)]
    }

    #[track_caller]
    fn passes(&self, what: &str, parts: &[&[u8]]) {
        for mut line in self.lines() {
            self.program.forget();
            for part in parts {
                assert!(line.say(part), "{what}");
            }
            wait_until(&format!("{what} arrives as it was sent"), || {
                self.program.seen().iter().any(|sent| sent.bytes == parts.concat())
            });
        }
    }

    #[track_caller]
    fn is_cut(&self, what: &str, bytes: &[u8]) {
        for mut line in self.lines() {
            self.program.forget();
            line.say(bytes);
            let (heard, end) = line.hear_to_the_end();
            assert_eq!((&*heard, end), ("", End::Reset), "{what}");
            assert!(self.program.seen().is_empty(), "{what}: its program saw something");
        }
    }
}

#[test]
fn a_policy_goes_by_the_name_that_the_callers_own_tls_asks_for() {
    let pair = Pair::new("own-tls");
    let vault = Vault::new(&pair, "vault", (8443, "tls"));
    pair.mesh.enforce(&policy("vault", "ALLOW", "*.vault.example"));
    let good = hello("A.vault.example");
    vault.passes("the name that is allowed", &[&good]);
    let bytes: Vec<&[u8]> = good.chunks(1).collect();
    vault.passes("the same byte by byte", &bytes);
    vault.is_cut("another name", &hello("other.example"));
    vault.is_cut(
        "the service's own name, which is not what TLS asks for",
        &hello("vault.default.mesh.internal"),
    );
    vault.is_cut("no name", &hello(""));
    vault.is_cut("no TLS", b"GET / HTTP/1.1\r\nHost: a.vault.example\r\n\r\n");
    vault.is_cut("a record that holds no first message", b"\x16\x03\x01\x00\x04\x02\x00\x00\x00");
    pair.store.wait_for_log("the refusal", because("denied"));
    assert!(counted(&pair.store, "denied") > 0, "it is counted");
    pair.mesh.enforce(&policy("vault", "DENY", "secret.example"));
    vault.is_cut("the name that is denied", &hello("SECRET.example"));
    vault.is_cut("what nobody can tell", b"\x80\x2e\x01\x03\x01");
    vault.passes("another name", &[&hello("other.example")]);
    vault.passes("no name", &[&hello("")]);
}

#[test]
fn without_tls_of_the_callers_own_the_name_is_the_services() {
    let pair = Pair::new("no-tls");
    let any = Vault::new(&pair, "any", (9443, "auto"));
    for name in ["any.default.mesh.internal", "outbound_.9443_._.any.default.svc.cluster.local"] {
        pair.mesh.enforce(&policy("any", "ALLOW", name));
        any.passes("bytes that are no TLS", &[b"\x00\x01\x02\x03\n"]);
        any.is_cut("TLS for somebody else", &hello("other.example"));
    }
    pair.mesh.enforce(&policy("any", "ALLOW", "other.example"));
    any.passes("TLS for whom the policy names", &[&hello("other.example")]);
    any.is_cut("bytes that are no TLS", b"\x00\x01\x02\x03\n");
    // A server that speaks first speaks no TLS, and is not kept waiting.
    pair.mesh.enforce(&policy("greets", "ALLOW", "greets.default.mesh.internal"));
    let greeting = |stream: &mut std::net::TcpStream| std::io::Write::write_all(stream, b"220 ready\r\n");
    let listener = pair.store.host.listen(([127, 0, 0, 1], 9025));
    std::thread::spawn(move || {
        let mut kept = Vec::new();
        for mut stream in listener.incoming().map_while(Result::ok) {
            let _ = greeting(&mut stream);
            kept.push(stream);
        }
    });
    pair.register("greets", 9025);
    let address = SocketAddr::new(virtual_addresses(&pair.web, "greets")[0], 9025);
    let mut line = Line::Socket(pair.web.host.connect(address).expect("the agent takes it"));
    assert_eq!(line.hear_until("ready\r\n"), "220 ready\r\n");
}
