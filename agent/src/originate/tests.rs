//! Handshakes with a server of an authority of its own, over a loopback socket.

use std::fs;

use baremesh_model::mesh::{Mesh, Parts};
use baremesh_model::name::Label;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use super::*;
use crate::snapshot::Host;

/// A directory with an authority, a server's certificate for `db.example` and a client's.
struct Files {
    directory: tempfile::TempDir,
    server: (CertificateDer<'static>, Vec<u8>),
    root: CertificateDer<'static>,
}

impl Files {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a root");
        let leaf = |names: &[&str], usage| {
            let names: Vec<String> = names.iter().map(ToString::to_string).collect();
            let mut params = CertificateParams::new(names).expect("names");
            params.extended_key_usages = vec![usage];
            let key = KeyPair::generate().expect("a key");
            (params.signed_by(&key, &root).expect("a certificate"), key)
        };
        let (server, key) = leaf(&["db.example"], ExtendedKeyUsagePurpose::ServerAuth);
        let (client, client_key) = leaf(&["web.example"], ExtendedKeyUsagePurpose::ClientAuth);
        let folder = directory.path().join("db");
        fs::create_dir(&folder).expect("a folder");
        for (name, text) in
            [("ca.crt", root.pem()), ("tls.crt", client.pem()), ("tls.key", client_key.serialize_pem())]
        {
            fs::write(folder.join(name), text).expect("a file");
        }
        let server = (server.der().clone(), key.serialize_der());
        Self { server, root: root.der().clone(), directory }
    }

    /// A server that sends back what comes, and asks for a client certificate if it is to.
    async fn serve(&self, mutual: bool) -> std::net::SocketAddr {
        let provider = Arc::new(default_provider());
        let config = ServerConfig::builder_with_provider(Arc::clone(&provider));
        let config = config.with_safe_default_protocol_versions().expect("versions");
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).expect("a root");
        let config = if mutual {
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            config.with_client_cert_verifier(verifier.expect("a verifier"))
        } else {
            config.with_no_client_auth()
        };
        let key = PrivatePkcs8KeyDer::from(self.server.1.clone());
        let config = config.with_single_cert(vec![self.server.0.clone()], key.into()).expect("a certificate");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("bound");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(socket).await else { continue };
                let mut word = [0; 5];
                if stream.read_exact(&mut word).await.is_ok() {
                    let _ = stream.write_all(&word).await;
                    let _ = stream.shutdown().await;
                }
            }
        });
        address
    }

    /// A snapshot whose one rule asks for this TLS.
    fn snapshot(&self, tls: &ClientTls) -> Snapshot {
        use baremesh_registry::format::{Form, encode};
        use baremesh_registry::resource::Resource;
        let text = "[[Service]]\nname = \"db\"\nports = [{ port = 1, protocol = \"tcp\" }]\n[[DestinationRule]]\nname = \"db\"\nhost = \"db\"\n";
        let parsed = Form::Toml.parse(text, "x");
        let mut resources = parsed.resources;
        for located in &mut resources {
            if let Resource::DestinationRule(rule) = &mut located.value {
                rule.policy.tls = Some(tls.clone());
                assert!(encode(&located.value).to_string().contains(tls.mode()));
            }
        }
        let mesh: Mesh = baremesh_registry::set::assemble(resources, Vec::new()).expect("a mesh").mesh;
        assert_ne!(*mesh, Parts::default());
        let host = Host {
            name: Label::new("h1").expect("a label"),
            addresses: vec![],
            why: "".into(),
            network: None,
        };
        Snapshot::build(&mesh, &[], &host, 15008, None).expect("a snapshot")
    }

    /// Whether a word comes back.
    async fn exchange(&self, tls: &ClientTls, name: &str, mutual: bool) -> Result<(), String> {
        let originations = Originations::new(self.directory.path().to_owned());
        assert_eq!(originations.of(tls).err(), Some(OriginationError::NotLoaded));
        originations.load(&self.snapshot(tls));
        let config = originations.of(tls).map_err(|error| error.to_string())?;
        let socket = TcpStream::connect(self.serve(mutual).await).await.expect("a connection");
        let mut stream = connect(config, name, socket).await.map_err(|error| error.to_string())?;
        let mut heard = [0; 5];
        stream.write_all(b"hello").await.map_err(|error| error.to_string())?;
        stream.read_exact(&mut heard).await.map_err(|error| error.to_string())?;
        assert_eq!(&heard, b"hello");
        Ok(())
    }
}

fn credential() -> ServerCheck {
    ServerCheck { trust: Trust::Credential("db".into()), ..ServerCheck::default() }
}

#[tokio::test]
async fn the_server_must_show_what_was_asked_for() {
    let files = Files::new();
    let simple = ClientTls::Simple(credential());
    assert_eq!(files.exchange(&simple, "db.example", false).await, Ok(()));
    let error = files.exchange(&simple, "other.example", false).await.expect_err("another name");
    assert!(error.contains("not valid for"), "{error}");
    let named = |names: &[&str]| {
        let subject_alt_names = names.iter().map(|name| Arc::from(*name)).collect();
        ClientTls::Simple(ServerCheck { subject_alt_names, ..credential() })
    };
    assert_eq!(files.exchange(&named(&["x.example", "db.example"]), "other.example", false).await, Ok(()));
    assert!(files.exchange(&named(&["x.example"]), "db.example", false).await.is_err());
    let strangers = rcgen::generate_simple_self_signed(vec!["x".to_owned()]).expect("a certificate");
    let path = files.directory.path().join("others.pem");
    fs::write(&path, strangers.cert.pem()).expect("a file");
    let trust = Trust::File(path.display().to_string().as_str().into());
    let others = ClientTls::Simple(ServerCheck { trust: trust.clone(), ..ServerCheck::default() });
    assert!(files.exchange(&others, "db.example", false).await.is_err(), "another authority");
    let anybody = ClientTls::Simple(ServerCheck { trust, verify: Verify::Nothing, ..ServerCheck::default() });
    assert_eq!(files.exchange(&anybody, "other.example", false).await, Ok(()));
}

#[tokio::test]
async fn a_client_certificate_is_shown_where_it_is_asked_for() {
    let files = Files::new();
    let mutual = ClientTls::Mutual(ClientCertificate::Credential("db".into()), credential());
    assert_eq!(files.exchange(&mutual, "db.example", true).await, Ok(()));
    let error = files.exchange(&ClientTls::Simple(credential()), "db.example", true).await;
    assert!(error.is_err(), "without a certificate");
    let missing = ClientTls::Mutual(ClientCertificate::Credential("none".into()), credential());
    let error = files.exchange(&missing, "db.example", true).await.expect_err("no such folder");
    assert!(error.contains("none/tls.key"), "{error}");
}

#[test]
fn the_last_good_files_stay_in_force() {
    let files = Files::new();
    let tls = ClientTls::Simple(credential());
    let snapshot = files.snapshot(&tls);
    let originations = Originations::new(files.directory.path().to_owned());
    originations.load(&snapshot);
    let first = originations.of(&tls).expect("loaded");
    fs::write(files.directory.path().join("db/ca.crt"), "nothing").expect("a file");
    originations.load(&snapshot);
    assert!(Arc::ptr_eq(&first, &originations.of(&tls).expect("still there")));
    let fresh = Originations::new(files.directory.path().to_owned());
    fresh.load(&snapshot);
    assert!(matches!(fresh.of(&tls), Err(OriginationError::File { .. })));
}
