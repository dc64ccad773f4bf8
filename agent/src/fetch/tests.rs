//! Fetching from servers on loopback, which the tests allow and nobody else does.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::jwt::keys::KeySet;
use crate::jwt::testing::{Signer, ok, serve};

const PATIENCE: Duration = Duration::from_secs(60);

fn fetcher(allow: &[&str]) -> Fetcher {
    let allow = allow.iter().map(|block| block.parse().expect("a block")).collect();
    Fetcher { mark: Mark(None), allow, allowed_by: "`jwks.allow`", authorities: None }
}

async fn fetch(fetcher: &Fetcher, url: &str, timeout: Duration) -> Result<usize, FetchError> {
    let url = KeyUrl::new(url).expect("a URL");
    let fetched = fetcher.fetch(&url, &VirtualRanges::default(), timeout).await;
    fetched.map(|text| KeySet::parse(&text).expect("a set").keys.len())
}

#[test]
fn loopback_is_somebodys_and_metadata_is_nobodys() {
    for (address, is_called) in [
        ("127.0.0.1", true),
        ("::1", true),
        ("10.0.0.1", true),
        ("fd00::1", true),
        ("169.254.169.254", false),
        ("::ffff:169.254.169.254", false),
        ("64:ff9b::169.254.169.254", false),
        ("fe80::1", false),
        ("fd00:ec2::254", false),
        ("fd20:ce::254", false),
        ("100.100.100.200", false),
        ("168.63.129.16", false),
        ("168.63.129.17", true),
        ("192.0.0.192", false),
        ("::ffff:0:168.63.129.16", false),
        ("64:ff9b:1::169.254.169.254", false),
        ("224.0.0.1", false),
    ] {
        let found = is_nobodys(address.parse().expect("an address"));
        assert_eq!(found.is_none(), is_called, "{address} {found:?}");
    }
}

#[test]
fn addresses_of_this_host_its_link_and_the_mesh_are_kept_from() {
    let check = |address: &str, expected: bool| {
        let found = kept_from(address.parse().expect("an address"), &VirtualRanges::default());
        assert_eq!(found.is_some(), expected, "{address}: {found:?}");
    };
    for address in [
        "127.0.0.1",
        "127.9.9.9",
        "0.0.0.0",
        "0.1.2.3",
        "169.254.169.254",
        "224.0.0.1",
        "255.255.255.255",
        "100.100.100.200",
        "240.240.0.7",
        "::1",
        "::",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::127.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "::ffff:0:127.0.0.1",
        "64:ff9b:1::7f00:1",
        "64:ff9b:1:a9fe:a9:fe00::",
        "64:ff9b:1:a9:fe:a9fe::",
        "64:ff9b:1:0:a9:fea9:fe00:0",
        "2002:7f00:1::",
        "fe80::1",
        "febf::1",
        "ff02::1",
        "fd00:ec2::254",
        "fdba:4e3e:5400::1",
    ] {
        check(address, true);
    }
    for address in [
        "10.0.0.1",
        "192.168.1.1",
        "1.1.1.1",
        "fd00::1",
        "2606:4700::1",
        "64:ff9b::a00:1",
        "64:ff9b:1::a00:1",
        "2002:a00:1::",
    ] {
        check(address, false);
    }
}

#[tokio::test]
async fn what_is_served_is_judged_by_where_it_is_and_bounded() {
    let jwks = Signer::jwks(&[&Signer::es256("a")]);
    let (address, _serving) = serve(move |path| match path {
        "/keys" => ok(&jwks),
        "/once" => b"HTTP/1.1 302 Found\r\nlocation: /keys\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/loop" => b"HTTP/1.1 302 Found\r\nlocation: /loop\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/metadata" => {
            b"HTTP/1.1 302 Found\r\nlocation: http://169.254.169.254/latest\r\ncontent-length: 0\r\n\r\n"
                .to_vec()
        }
        "/file" => {
            b"HTTP/1.1 302 Found\r\nlocation: file:///etc/passwd\r\ncontent-length: 0\r\n\r\n".to_vec()
        }
        "/nowhere" => b"HTTP/1.1 302 Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
        "/huge" => ok(&" ".repeat(MAX_BODY + 1)),
        "/endless" => [&b"HTTP/1.1 200 OK\r\n\r\n"[..], &vec![b' '; 4 * MAX_BODY]].concat(),
        "/head" => format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "a".repeat(1 << 20)).into_bytes(),
        "/bytes" => b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n\xff".to_vec(),
        "/short" => b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}".to_vec(),
        "/empty" => Vec::new(),
        _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
    })
    .await;
    let open = fetcher(&["127.0.0.0/8"]);
    let at = |path: &str| format!("http://{address}{path}");
    assert_eq!(fetch(&open, &at("/keys"), PATIENCE).await.expect("keys"), 1);
    assert_eq!(fetch(&open, &at("/once"), PATIENCE).await.expect("keys"), 1);
    assert_eq!(
        fetch(&open, &format!("http://localhost:{}/keys", address.port()), PATIENCE).await.expect("keys"),
        1
    );
    for (path, reason) in [
        ("/loop", "redirect"),
        ("/metadata", "blocked_address"),
        ("/file", "redirect"),
        ("/nowhere", "status"),
        ("/huge", "too_large"),
        ("/endless", "too_large"),
        ("/head", "http"),
        ("/bytes", "no_text"),
        ("/short", "http"),
        ("/empty", "http"),
        ("/other", "status"),
    ] {
        let error = fetch(&open, &at(path), PATIENCE).await.expect_err(path);
        assert_eq!(error.reason(), reason, "{path}: {error}");
    }
    let closed = fetcher(&["127.0.0.2/32"]);
    for host in ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"] {
        let error = fetch(&closed, &format!("http://{host}:{}/keys", address.port()), PATIENCE).await;
        let error = error.expect_err(host);
        assert_eq!(error.reason(), "blocked_address", "{host}: {error}");
        assert!(error.to_string().contains("jwks.allow"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_says_nothing_is_given_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/keys", listener.local_addr().expect("an address"));
    let error =
        fetch(&fetcher(&["127.0.0.0/8"]), &url, Duration::from_secs(1)).await.expect_err("nobody answers");
    assert_eq!(error.reason(), "timeout", "{error}");
    drop(listener);
    let error = fetch(&fetcher(&["127.0.0.0/8"]), &url, PATIENCE).await.expect_err("nobody listens");
    assert_eq!(error.reason(), "connect", "{error}");
}

/// A server over TLS, which answers everything so, and the authority that signed its certificate.
async fn serve_tls(answer: Vec<u8>) -> (u16, String) {
    let authority = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("names");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = params.self_signed(&authority).expect("a certificate");
    let key = KeyPair::generate().expect("a key");
    let leaf = CertificateParams::new(vec!["localhost".to_owned()]).expect("names");
    let leaf = leaf.signed_by(&key, &Issuer::from_params(&params, &authority)).expect("a certificate");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config =
        config.expect("versions").with_no_client_auth().with_single_cert(vec![leaf.der().clone()], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a configuration")));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            // A client that does not trust it ends the handshake.
            let Ok(mut stream) = acceptor.accept(socket).await else { continue };
            let mut head = [0; 4096];
            let _ = stream.read(&mut head).await;
            let _ = stream.write_all(&answer).await;
            let _ = stream.shutdown().await;
        }
    });
    (port, root.pem())
}

#[tokio::test]
async fn a_server_over_tls_proves_who_it_is_and_leads_to_nothing_without() {
    let scratch = tempfile::tempdir().expect("a directory");
    let trusting = |root: &str| {
        let file = scratch.path().join("roots.pem");
        std::fs::write(&file, root).expect("written");
        Fetcher { authorities: Some(file), ..fetcher(&["127.0.0.0/8"]) }
    };
    let (port, root) = serve_tls(ok(&Signer::jwks(&[&Signer::es256("a")]))).await;
    assert_eq!(
        fetch(&trusting(&root), &format!("https://localhost:{port}/"), PATIENCE).await.expect("keys"),
        1
    );
    let error = fetch(&trusting(&root), &format!("https://127.0.0.1:{port}/"), PATIENCE)
        .await
        .expect_err("no such name");
    assert_eq!(error.reason(), "tls", "{error}");
    let (_, other) = serve_tls(Vec::new()).await;
    let error = fetch(&trusting(&other), &format!("https://localhost:{port}/"), PATIENCE)
        .await
        .expect_err("no trust");
    assert_eq!(error.reason(), "tls", "{error}");
    let down = b"HTTP/1.1 302 Found\r\nlocation: http://localhost:1/\r\ncontent-length: 0\r\n\r\n".to_vec();
    let (port, root) = serve_tls(down).await;
    let error = fetch(&trusting(&root), &format!("https://localhost:{port}/"), PATIENCE)
        .await
        .expect_err("plaintext");
    assert_eq!(error.reason(), "redirect", "{error}");
}
