//! What signs the mesh's certificates is replaced while the mesh is in use.

use std::fs;

use baremesh_ca::issued::chain_to_pem;
use baremesh_tests::{Load, Member, Mesh, exit_code_of, output_of, wait_until};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::certificates::two;

/// What `baremesh ca` says, with these arguments.
#[track_caller]
fn ca<const N: usize>(mesh: &Mesh, arguments: [&str; N]) -> Value {
    let arguments = ["ca"].into_iter().chain(arguments).chain(["-o", "json"]);
    serde_json::from_str(&output_of(mesh.control.baremesh(arguments))).expect("JSON")
}

/// The roots that are trusted, by what each is for.
#[track_caller]
fn roots(mesh: &Mesh) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let said = ca(mesh, ["show"]);
    let all = said["roots"].as_array().cloned().unwrap_or_default();
    all.iter().map(|root| (text(&root["standing"]), text(&root["fingerprint"]))).collect()
}

/// How many roots a member trusts.
fn trusted(member: &Member) -> usize {
    let pem = fs::read_to_string(member.host.path("/var/lib/baremesh/node/roots.pem")).unwrap_or_default();
    pem.matches("BEGIN CERTIFICATE").count()
}

/// Certificates of seconds, so that a day's renewals pass in a minute; meanwhile the intermediate and then the root are
/// replaced, and the old root is dropped. No call fails.
#[test]
fn intermediate_and_root_are_replaced_under_load_and_no_call_fails() {
    let mesh = Mesh::with_control_arguments("new-root", &["--workload-lifetime", "8"]);
    let (web, store) = two(&mesh);
    let load = Load::start(&web.host, "store", 80);
    let serials = |member: &Member| -> usize {
        let log = member
            .log()
            .into_iter()
            .filter_map(|line| line["peer_certificate_serial"].as_str().map(str::to_owned));
        log.collect::<std::collections::BTreeSet<_>>().len()
    };
    load.wait_for_more(10);
    ca(&mesh, ["rotate", "--intermediate"]);
    let seen = serials(&store);
    wait_until("certificates of the new intermediate are in use", || serials(&store) >= seen + 2);

    let before = roots(&mesh)[0].1.clone();
    ca(&mesh, ["rotate", "--root", "--within", "1h"]);
    wait_until("the new root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    assert_eq!(roots(&mesh)[1], ("before".to_owned(), before.clone()));
    for member in [&web, &store] {
        assert_eq!(trusted(member), 2, "both are trusted before anything is signed by the new one");
    }
    // Dropped when nothing in use leads to it: node credentials, too, are renewed for that.
    let drop = || mesh.control.baremesh(["ca", "drop-root", &before[..16]]);
    wait_until("the root of before can be dropped", || exit_code_of(drop()) == 0);
    mesh.wait_until_in_force();
    for member in [&web, &store] {
        assert_eq!(trusted(member), 1);
    }
    let seen = serials(&store);
    wait_until("certificates of the new root are in use", || serials(&store) >= seen + 3);
    load.wait_for_more(10);
    assert_eq!(load.stop(), Vec::<String>::new());

    // A restart on either side finds it as it was left.
    mesh.kill_control();
    store.kill_agent();
    store.start();
    web.wait_for_endpoints("store.default", 1);
    mesh.start_control();
    wait_until("hosts are back at the control server", || {
        [&web, &store]
            .iter()
            .all(|member| member.status().is_some_and(|status| status["source"]["connected"] == true))
    });
    output_of(web.host.shop(["call", "store", "80", "after"]));
}

/// A host that is away while the root is replaced finds its way back by the root that it knows; so does one with a token
/// from before. A root in use cannot be dropped by accident, nor the one that signs at all.
#[test]
fn a_host_that_was_away_while_the_root_was_replaced_comes_back() {
    let mesh = Mesh::new("away-root");
    let (web, store) = two(&mesh);
    let token = mesh.token(&["late"]);
    store.stop_agent();
    let before = roots(&mesh)[0].1.clone();
    ca(&mesh, ["rotate", "--root"]);
    wait_until("the new root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    assert_eq!(trusted(&store), 1, "it has not heard of it");
    for (root, reason) in
        [(before.as_str(), "in use"), (roots(&mesh)[0].1.as_str(), "signs"), ("0000000000", "no root")]
    {
        let refused = mesh.control.baremesh(["ca", "drop-root", root]).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(reason), "{said}");
    }
    store.start();
    wait_until("it has heard of the new root", || trusted(&store) == 2);
    web.wait_for_endpoints("store.default", 1);
    output_of(web.host.shop(["call", "store", "80", "back"]));
    let late = mesh.net.host("late", 9);
    let address = mesh.control.v4().to_string();
    output_of(late.baremesh(["join", &address, "--token", &token, "--host", "late"]));
    let late = Member::of(late);
    late.configure("");
    late.start();
    assert_eq!(trusted(&late), 2);
}

/// A company signs the intermediate with its own root, which the mesh then trusts; no call fails.
#[test]
fn a_company_s_root_signs_the_intermediate_and_no_call_fails() {
    let mesh = Mesh::with_control_arguments("company", &["--workload-lifetime", "8"]);
    let (web, store) = two(&mesh);
    let load = Load::start(&web.host, "store", 80);
    let request = output_of(mesh.control.baremesh(["ca", "csr"]));
    let (root, company) = company();
    let install = |chain: &[CertificateDer<'static>]| {
        fs::write(mesh.control.path("/run/baremesh/chain.pem"), chain_to_pem(chain)).expect("written");
        mesh.control.baremesh(["ca", "install-chain", "/run/baremesh/chain.pem"])
    };
    let (_, other) = self::company();
    let forged = install(&[signed(&request, &other), root.clone()]).output().expect("it runs");
    let said = String::from_utf8_lossy(&forged.stderr).into_owned();
    assert!(!forged.status.success() && said.contains("not signed by the certificate after it"), "{said}");
    let before = roots(&mesh)[0].1.clone();
    output_of(install(&[signed(&request, &company), root]));
    wait_until("the company's root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    let drop = || mesh.control.baremesh(["ca", "drop-root", &before[..16]]);
    wait_until("the root of before can be dropped", || exit_code_of(drop()) == 0);
    mesh.wait_until_in_force();
    load.wait_for_more(20);
    assert_eq!(load.stop(), Vec::<String>::new());
    for member in [&web, &store] {
        assert_eq!(trusted(member), 1);
    }
    // Its key is not here: the next intermediate is asked for in the same way.
    let refused = mesh.control.baremesh(["ca", "rotate", "--intermediate"]).output().expect("it runs");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("root.key"));
}

/// A company's root, and what signs with it.
fn company() -> (CertificateDer<'static>, Issuer<'static, KeyPair>) {
    let (mut params, key) = (CertificateParams::default(), KeyPair::generate().expect("a key"));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Company Root");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let root = params.self_signed(&key).expect("a root").into();
    (root, Issuer::new(params, key))
}

/// What a company makes of a request.
fn signed(request: &str, company: &Issuer<'static, KeyPair>) -> CertificateDer<'static> {
    let mut request = CertificateSigningRequestParams::from_pem(request).expect("a request");
    request.params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    request.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    request.params.signed_by(&request.public_key, company).expect("a certificate").into()
}

/// A host that was off until its node credential had ended renews it with its own key, and is a member again.
#[test]
fn a_host_whose_node_credential_has_ended_comes_back_by_itself() {
    let mesh = Mesh::with_control_arguments("grace", &["--workload-lifetime", "8", "--node-lifetime", "8"]);
    let (web, store) = two(&mesh);
    store.stop_agent();
    let kept = store.host.path("/var/lib/baremesh/node/node.pem");
    let end = crate::impostor::stolen(&kept).not_after;
    wait_until("its node credential has ended", || {
        std::time::SystemTime::now() > end + std::time::Duration::from_secs(1)
    });
    store.start();
    assert!(crate::impostor::stolen(&kept).not_after > end, "renewed");
    web.wait_for_endpoints("store.default", 1);
    output_of(web.host.shop(["call", "store", "80", "back"]));
    // Who was shut out meanwhile stays out.
    store.stop_agent();
    output_of(mesh.control.baremesh(["host", "revoke", "store"]));
    store.start_without_waiting();
    wait_until("it is told why", || {
        store.status().is_some_and(|status| status["not_ready"].to_string().contains("was revoked"))
    });
    let metrics = web.metrics();
    for kind in ["root", "intermediate", "node"] {
        let line = format!("baremesh_authority_expiry_timestamp_seconds{{kind=\"{kind}\"}}");
        assert!(metrics.contains(&line), "{line}");
    }
}

/// The keys of the authority are not in its directory, but handed over by systemd.
#[test]
fn the_authority_s_keys_are_read_from_systemd_s_credentials() {
    let mesh = Mesh::new("credentials");
    let web = mesh.member("web", 1, &["web"]);
    mesh.kill_control();
    let (ca_files, handed) =
        (mesh.control.path("/var/lib/baremesh/ca"), mesh.control.path("/run/baremesh/handed"));
    fs::create_dir(&handed).expect("a directory");
    for key in ["root.key", "intermediate.key"] {
        fs::rename(ca_files.join(key), handed.join(key)).expect("moved");
    }
    let bare = mesh.control.baremesh(["control"]).output().expect("it runs");
    assert!(!bare.status.success(), "without its key it does not serve");
    let mut command = mesh.control.baremesh(["control"]);
    command.env("CREDENTIALS_DIRECTORY", "/run/baremesh/handed");
    let _server = mesh.control.spawn("control", command);
    wait_until("it serves", || exit_code_of(mesh.control.baremesh(["ca"])) == 0);
    web.register("web", ["--port", "80"]);
    ca(&mesh, ["rotate", "--intermediate"]);
}
