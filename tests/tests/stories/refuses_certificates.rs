//! An agent's port 15008 takes members of the mesh and nobody else, however well the certificate was made.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use baremesh_ca::issued::chain_to_pem;
use baremesh_tests::{Refusal, output_of, wait_until};
use rcgen::{
    BasicConstraints, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, SanType, SubjectPublicKeyInfo,
};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::OffsetDateTime;

use crate::pair::{Pair, WEB_ID, because, connections_of, counted};
use crate::peer::{self, Tunnel, agent_of, authority};
use crate::signer::{Signer, certified, leaf, uri};

/// The name of the service that is called.
const SNI: &str = "echo.default.mesh.internal";

/// Every certificate that is not a member's, and why.
fn impostors(pair: &Pair) -> Vec<(&'static str, Arc<CertifiedKey>)> {
    let mesh = Signer::of_mesh(&pair.mesh);
    let now = OffsetDateTime::now_utc;
    let hour = Duration::from_secs(3600);
    let own_key = KeyPair::generate().expect("a key");
    let self_signed = leaf(|_| ()).self_signed(&own_key).expect("a certificate");
    let stolen = peer::stolen(&pair.web, "web");
    vec![
        ("a certificate without its key", certified(stolen.cert.clone(), &own_key)),
        ("forged", Signer::pretender(&pair.mesh).sign(|_| ())),
        ("self-signed", certified(vec![self_signed.into()], &own_key)),
        ("expired", mesh.sign(|leaf| (leaf.not_before, leaf.not_after) = (now() - hour, now() - hour / 2))),
        (
            "not valid yet",
            mesh.sign(|leaf| (leaf.not_before, leaf.not_after) = (now() + hour, now() + 2 * hour)),
        ),
        (
            "of another trust domain",
            mesh.sign(|leaf| {
                leaf.subject_alt_names = vec![uri("spiffe://other.internal/ns/default/sa/web")];
            }),
        ),
        (
            "with two URIs",
            mesh.sign(|leaf| leaf.subject_alt_names.push(uri("spiffe://mesh.internal/ns/default/sa/echo"))),
        ),
        (
            "with two URIs, one of them foreign",
            mesh.sign(|leaf| leaf.subject_alt_names.push(uri("https://a.example/"))),
        ),
        ("without a name", mesh.sign(|leaf| leaf.subject_alt_names.clear())),
        (
            "with a DNS name",
            mesh.sign(|leaf| {
                leaf.subject_alt_names =
                    vec![SanType::DnsName("web.default.mesh.internal".try_into().expect("ASCII"))];
            }),
        ),
        (
            "with a path too many",
            mesh.sign(|leaf| leaf.subject_alt_names = vec![uri(&format!("{WEB_ID}/admin"))]),
        ),
        (
            "with an escaped name",
            mesh.sign(|leaf| {
                leaf.subject_alt_names = vec![uri("spiffe://mesh.internal/ns/default/sa/%77eb")];
            }),
        ),
        ("with a name that ends early in C", named(&mesh, &format!("{WEB_ID}\0.example"))),
        ("with a port", named(&mesh, "spiffe://mesh.internal:443/ns/default/sa/web")),
        ("with a user", named(&mesh, "spiffe://web@mesh.internal/ns/default/sa/web")),
        ("with a query", named(&mesh, &format!("{WEB_ID}?a=b"))),
        ("with a fragment", named(&mesh, &format!("{WEB_ID}#a"))),
        ("in capitals", named(&mesh, "SPIFFE://MESH.INTERNAL/ns/default/sa/web")),
        ("with an empty part", named(&mesh, "spiffe://mesh.internal/ns//default/sa/web")),
        (
            "a host's node credential",
            mesh.sign(|leaf| {
                leaf.subject_alt_names = vec![uri("spiffe://mesh.internal/ns/nodes/sa/web")];
            }),
        ),
        (
            "for servers only",
            mesh.sign(|leaf| leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]),
        ),
        ("an authority itself", mesh.sign(|leaf| leaf.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("signed by a member", {
            let pem = fs::read_to_string(peer::certificate_file(&pair.web, "web"))
                .expect("the member's certificate");
            let key = KeyPair::from_pem(&pem).expect("the member's key");
            let issuer = Issuer::from_ca_cert_der(&stolen.cert[0], key).expect("a certificate");
            Signer { issuer, chain: stolen.cert.clone() }.sign(|_| ())
        }),
    ]
}

/// What the authority would sign with this for a name.
fn named(mesh: &Signer, name: &str) -> Arc<CertifiedKey> {
    mesh.sign(|leaf| leaf.subject_alt_names = vec![uri(name)])
}

#[test]
fn refuses_every_certificate_that_is_no_members() {
    let pair = Pair::new("impostors");
    let echo = pair.serve("echo", 7000);
    let target = authority(pair.store.host.v4(), 7000);
    let try_with = |config: ClientConfig| {
        Tunnel::open(&pair.web.host, agent_of(&pair.store.host), config, Some(SNI))
            .and_then(|t| t.echoes(&target))
    };
    let good = Signer::of_mesh(&pair.mesh).sign(|_| ());
    assert!(try_with(peer::config(&pair.mesh, good)).expect("what the authority signs is taken"));
    let (served, failures) = (connections_of(&echo), || {
        pair.store.log().iter().filter(|l| because("handshake_failed")(l)).count()
    });
    let impostors = impostors(&pair);
    let refused = impostors.len() + 1;
    for (count, (what, key)) in impostors.into_iter().enumerate() {
        assert!(try_with(peer::config(&pair.mesh, key)).is_err(), "{what}");
        wait_until(&format!("the refusal of a certificate {what} is in the log"), || failures() > count);
    }
    let nothing: Arc<dyn ResolvesClientCert> = Arc::new(NoCertificate);
    let mut config = peer::config(&pair.mesh, peer::stolen(&pair.web, "web"));
    config.client_auth_cert_resolver = nothing;
    assert!(try_with(config).is_err(), "no certificate at all");
    assert_eq!(connections_of(&echo), served, "nobody reached the program");
    wait_until("each refusal is in the log, and counted", || {
        failures() >= refused && counted(&pair.store, "handshake_failed") >= failures()
    });
    assert!(try_with(peer::config(&pair.mesh, peer::stolen(&pair.web, "web"))).expect("a member still does"));
}

#[derive(Debug)]
struct NoCertificate;

impl ResolvesClientCert for NoCertificate {
    fn resolve(&self, _: &[&[u8]], _: &[rustls::SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

#[test]
fn sessions_are_not_resumed_and_old_tls_is_refused() {
    let pair = Pair::new("sessions");
    pair.serve("echo", 7000);
    let target = authority(pair.store.host.v4(), 7000);
    let open =
        |config: ClientConfig| Tunnel::open(&pair.web.host, agent_of(&pair.store.host), config, Some(SNI));
    let mut config = peer::config(&pair.mesh, peer::stolen(&pair.web, "web"));
    config.resumption = Resumption::in_memory_sessions(8);
    for turn in 1..=3 {
        // The configuration's copies share what sessions were kept.
        let tunnel = open(config.clone()).expect("a member");
        assert!(tunnel.echoes(&target).expect("a stream"), "tickets would have come by now");
        assert_ne!(tunnel.handshake, Some(HandshakeKind::Resumed), "turn {turn}");
    }
    let stolen = peer::stolen(&pair.web, "web");
    let pem = fs::read(pair.mesh.control.path("/var/lib/baremesh/ca/root.crt")).expect("the root");
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(&pem).expect("the root")).expect("an anchor");
    let mut old =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS12])
            .expect("TLS 1.2")
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(stolen)));
    old.alpn_protocols = vec![b"h2".to_vec()];
    let refusal = Refusal::of_connection("destination", &"handshake_failed");
    let refused =
        pair.store.refuses(&refusal, 1, || open(old).err().expect("TLS 1.2 is refused").to_string());
    assert!(refused.contains("ProtocolVersion"), "{refused}");
}

/// An RSA key of 1024 bits, made for this test.
const WEAK_KEY: &str = "\
-----BEGIN PRIVATE KEY-----
MIICdwIBADANBgkqhkiG9w0BAQEFAASCAmEwggJdAgEAAoGBAM6xDrrTzICCuP6n
bu2VEZJM7Hf5C22AeIH8IKGKJJFBifcWfq6RhGBf6kPKg9b5pvnzgCKbNIvm5Utl
1MhpVbQZAMRCrFKNUUTuNA+zX9nFpYTepNurF1DUN60CUzln5oTjm46A7Q5B2Wwf
99s9PJJ4gIbqYs3loN0J44nYekS5AgMBAAECgYEAyNDqGMbTOEDJ8FFIy3g73EL0
tRO48KkTbGdEZO7M3HwqyXCHoKAtV12ZREgsk993Rf45DmZxRUQOn5TOifEdm9/p
GQ2Ypm8uDtZOpgI+z0it49Nwtswlr5b3XUEnS+HUXvTGedK9+taptJeuSRIrUTiG
BlfHRoIK6JhX8iniViECQQDx7cI9Irc3Vp68DPbS3XqxiKXVOPXjUJTSaQAhocvn
FiaJc7OvU2cL45opmJqvBVH+g0FQOTTyWX33VhzjNkhtAkEA2rahJj/Us2ORS8X2
DEn7Z6dTk71oZvw/f4xJy4DAbNCnpiECboEU6TcTVn17r9l/Khr+7lY3MOpDNquV
0JrV/QJBANX4LeH6UUcdUjkJ0kd/YWOhcuIZhcftXiKWgWo9emTAv4a0EUjQoAPw
4klF0hFXyEQs/FgisIRjyDg4LkZ6nSUCQDPkErXdfRyWqfldXXQq9V/xXi32SVft
zy723OdQg9cNZklPGaGYNJrke00Q9pCRPM+Dmip4AB415n6JFUFqCw0CQDJiYj0a
Y/nKdrNuTsIW2CxiYSyGpaC3ryXE1CwHBq+Ml6cfySbkoWbWS67tDViMQf64NdEh
TXRhSjGaIEB8jUw=
-----END PRIVATE KEY-----
";
const WEAK_PUBLIC_KEY: &str = "\
-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQDOsQ6608yAgrj+p27tlRGSTOx3
+QttgHiB/CChiiSRQYn3Fn6ukYRgX+pDyoPW+ab584AimzSL5uVLZdTIaVW0GQDE
QqxSjVFE7jQPs1/ZxaWE3qTbqxdQ1DetAlM5Z+aE45uOgO0OQdlsH/fbPTySeICG
6mLN5aDdCeOJ2HpEuQIDAQAB
-----END PUBLIC KEY-----
";

/// Shows a certificate, whatever OpenSSL thinks of its key, and says what came of it. rustls would not sign with such a key.
const OPENSSL: &str = r#"
import socket, ssl, sys
context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
context.set_ciphers("DEFAULT:@SECLEVEL=0")
context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
context.set_alpn_protocols(["h2"])
context.load_cert_chain(sys.argv[2])
tls = context.wrap_socket(socket.create_connection((sys.argv[1], 15008), timeout=20), server_hostname="echo.default.mesh.internal")
try:
    tls.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0")
    print("answered" if tls.recv(9) else "closed")
except (OSError, ssl.SSLError) as error:
    print("refused", error)
"#;

#[test]
fn a_weak_key_is_no_members_even_under_a_certificate_that_is_right() {
    let pair = Pair::new("weak");
    pair.serve("echo", 7000);
    let mesh = Signer::of_mesh(&pair.mesh);
    let shown = |key: &str, chain: &[CertificateDer<'_>]| {
        let file = pair.web.host.path("/run/baremesh/shown.pem");
        fs::write(&file, format!("{key}{}", chain_to_pem(chain))).expect("the host's runtime directory");
        let mut python = pair.web.host.command("python3");
        python.args(["-c", OPENSSL, &pair.store.host.v4().to_string()]).arg(file);
        output_of(python)
    };
    let [key, chain] = mesh.issue(WEB_ID);
    let chain: Vec<_> =
        CertificateDer::pem_slice_iter(chain.as_bytes()).collect::<Result<_, _>>().expect("a chain");
    assert_eq!(shown(&key, &chain), "answered", "OpenSSL with a member's certificate is a member");
    let weak = SubjectPublicKeyInfo::from_pem(WEAK_PUBLIC_KEY).expect("a key");
    let weak = leaf(|_| ()).signed_by(&weak, &mesh.issuer).expect("a certificate");
    let weak = [vec![weak.into()], mesh.chain.clone()].concat();
    let refusal = Refusal::of_connection("destination", &"handshake_failed");
    let said = pair.store.refuses(&refusal, 1, || shown(WEAK_KEY, &weak));
    assert!(said.starts_with("refused"), "1024 bits: {said}");
}
