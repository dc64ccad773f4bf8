//! What a start finds that was not left in good order.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::super::report::{AuditReport, RevokedReport};
use super::*;

/// Lines of the audit of that name.
async fn lines(host: &Host, who: &str) -> Vec<AuditReport> {
    let audit: Vec<AuditReport> = host.read("/audit").await;
    audit.into_iter().filter(|line| line.who == who).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changed_while_no_server_looked_is_on_record_once() {
    let mut host = Host::started().await;
    host.apply(POLICY, "policy.toml").await.expect("applied");
    assert!(lines(&host, "found at start").await.is_empty(), "a first start finds what it begins with");
    host.stop().await;
    // By hand; and as an order leaves it that was killed after it wrote its files, and before it wrote that down.
    let registry = host.directories().registry();
    let service = "[[Service]]\nname = \"tea\"\nnamespace = \"shop\"\nports = [{ port = 80 }]\n";
    std::fs::write(registry.join("service.shop.tea.toml"), service).expect("written");
    let policy = registry.join("authorizationpolicy.default.orders.toml");
    let policy = if policy.exists() { policy } else { file_with(&registry, "AuthorizationPolicy") };
    std::fs::remove_file(policy).expect("removed");
    host.start().await;
    let found = lines(&host, "found at start").await;
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].what.contains("Service shop/tea created"), "{found:?}");
    assert!(found[0].what.contains("AuthorizationPolicy default/orders deleted"), "{found:?}");
    assert!(found[0].difference.contains("ports"), "{found:?}");
    assert!(lines(&host, "by hand").await.is_empty(), "and nobody else is said to have done it");
    // A set that cannot be read is no change; what it comes to afterwards is one.
    host.stop().await;
    std::fs::write(registry.join("broken.toml"), "[[Service]]\nname = ").expect("written");
    host.start().await;
    host.stop().await;
    std::fs::remove_file(registry.join("broken.toml")).expect("removed");
    host.start().await;
    assert_eq!(lines(&host, "found at start").await.len(), 1, "and nothing is found twice");
}

/// Identities of certificates that are revoked.
async fn revoked(host: &Host) -> Vec<String> {
    let revoked: Vec<RevokedReport> = host.read("/certificates/revoked").await;
    revoked.into_iter().map(|one| one.identity).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_granted_no_longer_is_revoked_at_once_and_at_a_start() {
    let mut host = Host::started().await;
    let member = host.join("web-1", &["own.shop"]).await;
    let grant = |services: &str| {
        format!("[[HostGrant]]\nname = \"web\"\nhost = \"web-*\"\nservices = [{services}]\n")
    };
    host.apply(&grant("\"orders.shop\", \"tea.shop\", \"own.shop\""), "grant.toml").await.expect("applied");
    let [own, orders, tea] = ["ns/shop/sa/own", "ns/shop/sa/orders", "ns/shop/sa/tea"].map(identity);
    let wanted = [own.clone(), orders.clone(), tea.clone()];
    assert!(member.issue(&host, &wanted).await.expect("answers").iter().all(Result::is_ok));
    host.apply(POLICY, "policy.toml").await.expect("applied");
    assert!(revoked(&host).await.is_empty(), "what is granted stays");
    // While no server runs; and what cannot be read grants what was granted last.
    host.stop().await;
    let registry = host.directories().registry();
    std::fs::write(file_with(&registry, "HostGrant"), grant("\"orders.shop\"")).expect("written");
    std::fs::write(registry.join("broken.toml"), "[[HostGrant]]\nname = ").expect("written");
    host.start().await;
    assert!(revoked(&host).await.is_empty(), "nothing is known to be gone");
    host.stop().await;
    std::fs::remove_file(registry.join("broken.toml")).expect("removed");
    host.start().await;
    assert_eq!(revoked(&host).await, [tea.to_string()]);
    let audit = lines(&host, "HostGrants").await;
    assert_eq!(audit.len(), 1, "{audit:?}");
    assert!(audit[0].what.contains("sa/tea of host web-1: 1 cert"), "{audit:?}");
    assert!(audit[0].what.ends_with("no longer granted: found at start"), "{audit:?}");
    // By hand, while it serves: it is broken first, and then gone.
    let file = file_with(&registry, "HostGrant");
    std::fs::write(&file, "[[HostGrant]]\nname = ").expect("written");
    wait_until("the set is refused", async || {
        let status: StatusReport = host.read("/status").await;
        status.resources_refused.is_some()
    })
    .await;
    assert_eq!(revoked(&host).await.len(), 1);
    std::fs::remove_file(&file).expect("removed");
    wait_until("it is revoked", async || revoked(&host).await.contains(&orders.to_string())).await;
    assert!(!revoked(&host).await.contains(&own.to_string()), "the token's grants stay");
    let follower = member.follow(host.address(), Vec::new());
    let list = follower.value(baremesh_registry::control::REVOKED).await;
    assert!(list.to_string().contains("CRL"), "{list}");
    let answers = member.issue(&host, &[own, orders]).await.expect("answers");
    assert!(answers[0].is_ok() && answers[1].is_err());
    assert_eq!(lines(&host, "HostGrants").await.len(), 2, "and once");
}

/// The file that holds a resource of a kind.
fn file_with(registry: &Path, kind: &str) -> PathBuf {
    let files =
        std::fs::read_dir(registry).expect("a directory").map(|entry| entry.expect("an entry").path());
    let holds = |path: &PathBuf| std::fs::read_to_string(path).is_ok_and(|text| text.contains(kind));
    files.into_iter().find(holds).expect("a file")
}

/// Gives the authority an issuing certificate that may sign leaves and nothing else, as an earlier version took it.
fn without_list_signing(host: &Host) {
    let ca = host.directories().authority();
    let root = CertificateDer::from_pem_file(ca.join("root.crt")).expect("a root");
    let key =
        KeyPair::from_pem(&std::fs::read_to_string(ca.join("root.key")).expect("a key")).expect("a key");
    let issuer = Issuer::from_ca_cert_der(&root, key).expect("an issuer");
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = rcgen::date_time_ymd(2060, 1, 1);
    let key = KeyPair::generate().expect("a key");
    let made = params.signed_by(&key, &issuer).expect("a certificate");
    std::fs::write(ca.join("intermediate.crt"), made.pem()).expect("written");
    let secret = baremesh_ca::file::SECRET;
    let path = ca.join("intermediate.key");
    baremesh_ca::file::write_atomically(&path, key.serialize_pem().as_bytes(), secret).expect("written");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_issuer_that_may_sign_no_lists_keeps_no_server_from_starting() {
    let mut host = Host::new();
    without_list_signing(&host);
    host.start().await;
    let member = host.join("h1", &["orders.shop"]).await;
    let issued = member.issue(&host, &[identity("ns/shop/sa/orders")]).await.expect("answers");
    assert!(issued[0].is_ok(), "it issues");
    let order = json!({ "identity": "spiffe://mesh.test/ns/shop/sa/orders" });
    let (_, fault) =
        host.post::<Value>("/certificates/revoke", order).await.expect_err("no list can be signed");
    assert!(fault.error.contains("list of revoked certificates cannot be signed"), "{}", fault.error);
    host.stop().await;
    host.start().await;
    let status: StatusReport = host.read("/status").await;
    let warned = |part: &str| status.warnings.iter().any(|warning| warning.contains(part));
    assert!(warned("cRLSign") && warned("ca csr"), "{:?}", status.warnings);
    assert!(member.issue(&host, &[identity("ns/shop/sa/orders")]).await.expect("answers")[0].is_ok());
}
