//! What signs the mesh's certificates is replaced while the mesh is in use.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use baremesh_ca::issued::chain_to_pem;
use baremesh_tests::{Load, Member, Mesh, WAIT_BOUND, exit_code_of, output_of, wait_until};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls_pki_types::CertificateDer;
use serde_json::Value;

use crate::certificates::two;
use crate::pair::virtual_addresses;

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

/// A connection over which something is said and answered ten times a second, for as long as a story lasts.
struct Steady {
    stop: Arc<AtomicBool>,
    exchanges: JoinHandle<std::io::Result<usize>>,
}

impl Steady {
    /// `exchange` says something with a number, and reads the answer to it.
    fn start(
        stream: TcpStream,
        exchange: fn(&mut BufReader<TcpStream>, usize) -> std::io::Result<()>,
    ) -> Self {
        stream.set_read_timeout(Some(WAIT_BOUND)).expect("a timeout");
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let exchanges = std::thread::spawn(move || {
            let (mut stream, mut count) = (BufReader::new(stream), 0);
            while !stopped.load(Ordering::Relaxed) {
                exchange(&mut stream, count)?;
                count += 1;
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(count)
        });
        Self { stop, exchanges }
    }

    /// How much was said; none of it without its answer.
    #[track_caller]
    fn stop(self) -> usize {
        self.stop.store(true, Ordering::Relaxed);
        self.exchanges.join().expect("no panic").expect("one connection, from the beginning to the end")
    }
}

fn line(stream: &mut BufReader<TcpStream>, number: usize) -> std::io::Result<()> {
    let (said, mut heard) = (format!("line {number}\n"), String::new());
    stream.get_mut().write_all(said.as_bytes())?;
    stream.read_line(&mut heard)?;
    if heard == said { Ok(()) } else { Err(std::io::Error::other(format!("{heard:?} for {said:?}"))) }
}

fn request(stream: &mut BufReader<TcpStream>, number: usize) -> std::io::Result<()> {
    write!(stream.get_mut(), "GET /{number} HTTP/1.1\r\nhost: api.mesh.internal\r\n\r\n")?;
    let (mut head, mut length) = (String::new(), 0);
    while !head.ends_with("\r\n\r\n") {
        let from = head.len();
        if stream.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        let field = head[from..].to_ascii_lowercase();
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().map_err(std::io::Error::other)?;
        }
    }
    stream.read_exact(&mut vec![0; length])?;
    if head.starts_with("HTTP/1.1 200 ") { Ok(()) } else { Err(std::io::Error::other(head)) }
}

/// How many certificates of its peers a member has met, on the side that reports so.
fn serials(member: &Member, reporter: &str) -> usize {
    let log = member.log().into_iter().filter(|line| line["reporter"] == reporter);
    let met = log.filter_map(|line| line["peer_certificate_serial"].as_str().map(str::to_owned));
    met.collect::<BTreeSet<_>>().len()
}

/// Renewals of one certificate within 24 h, at the lifetime of 24 h that certificates have: at half of it, or up to a tenth
/// of it earlier.
const RENEWALS_A_DAY: usize = 2;

/// Certificates of 8 s instead of 24 h, and all that hangs on their lifetime (renewal at half of it, tunnels that are
/// replaced) in the same proportion. Three such days of renewals and more pass on both sides; in the first the intermediate
/// is replaced, in the second the root, which is then dropped. No new connection fails, no request of a kept connection,
/// and a connection that is open all the time is never cut, although every certificate that it was opened under has ended
/// long before. What this does not show is a day of the clock: what leaks or drifts by the hour.
#[test]
fn days_of_certificates_pass_under_load_with_new_roots_and_nothing_fails() {
    let mesh = Mesh::with_control_arguments("new-root", &["--workload-lifetime", "8"]);
    let (web, store) = two(&mesh);
    let api = mesh.member("api", 3, &["api"]);
    let _v1 = api.web("api", "v1", &[]);
    web.wait_for_endpoints("api.default", 1);
    let dial = |service| {
        let address = (virtual_addresses(&web, service)[0], 80);
        web.host.connect(address).expect("a connection to the agent")
    };
    let (lines, requests) = (Steady::start(dial("store"), line), Steady::start(dial("api"), request));
    let load = Load::start(&web.host, "store", 80);
    let met = || serials(&store, "destination").min(serials(&web, "source"));
    let day = |number: usize| {
        wait_until(&format!("{number} days of renewals"), || met() > number * RENEWALS_A_DAY);
    };
    ca(&mesh, ["rotate", "--intermediate"]);
    day(1);
    let before = roots(&mesh)[0].1.clone();
    ca(&mesh, ["rotate", "--root", "--within", "1h"]);
    day(2);
    wait_until("the new root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    let drop = || mesh.control.baremesh(["ca", "drop-root", &before[..16]]);
    wait_until("the root of before can be dropped", || exit_code_of(drop()) == 0);
    let dropped = met();
    day(3);
    wait_until("certificates of the new root alone are in use", || met() >= dropped + RENEWALS_A_DAY);
    load.wait_for_more(10);
    assert_eq!(load.stop(), Vec::<String>::new());
    // Ten a second and 12 s at the least, on a machine that may be slow.
    let (lines, requests) = (lines.stop(), requests.stop());
    assert!(lines > 30 && requests > 30, "{lines} lines and {requests} requests");
}

/// The intermediate and then the root are replaced, and the old root is dropped, each seen at every member. No call fails.
#[test]
fn intermediate_and_root_are_replaced_under_load_and_no_call_fails() {
    let mesh = Mesh::with_control_arguments("new-root-seen", &["--workload-lifetime", "8"]);
    let (web, store) = two(&mesh);
    let load = Load::start(&web.host, "store", 80);
    let serials = |member: &Member| serials(member, "destination");
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
        std::time::SystemTime::now() > end + Duration::from_secs(1)
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

/// The authority's keys are sealed by a passphrase, and the root's is on another medium: all goes on but replacing the
/// intermediate, which asks for it. The root is replaced all the same, and what is made is sealed.
#[test]
fn a_sealed_authority_with_its_root_elsewhere_serves_and_rotates() {
    let net = baremesh_tests::net("sealed");
    let control = net.host("control", 200);
    let secret = |name: &str, text: &str| {
        let path = control.path("/run/baremesh").join(name);
        baremesh_ca::file::write_atomically(&path, text.as_bytes(), baremesh_ca::file::SECRET)
            .expect("written");
        format!("/run/baremesh/{name}")
    };
    let (first, second) =
        (secret("first", "correct horse battery\n"), secret("second", "staple battery horse\n"));
    let medium = "/run/baremesh/medium.key";
    output_of(control.baremesh(["init", "--ca-passphrase-file", &first, "--offline-root", medium]));
    let keys = control.path("/var/lib/baremesh/ca");
    assert!(!keys.join("root.key").exists(), "the root's key was never here");
    let is_sealed = |path: &std::path::Path| {
        fs::read_to_string(path).expect("a key").starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----")
    };
    assert!(is_sealed(&keys.join("intermediate.key")) && is_sealed(&control.path(medium)));
    for (arguments, reason) in [
        (vec!["control"], "--ca-passphrase-file"),
        (vec!["control", "--ca-passphrase-file", &second], "does not open it"),
        (vec!["ca", "seal", "--passphrase-file", &second], "--old-passphrase-file"),
    ] {
        let refused = control.baremesh(arguments.iter().copied()).output().expect("it runs");
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(reason), "{arguments:?}: {said}");
    }
    output_of(control.baremesh([
        "ca",
        "seal",
        "--passphrase-file",
        &second,
        "--old-passphrase-file",
        &first,
    ]));
    // From systemd, as the unit is told to hand it over.
    let handed = control.path("/run/baremesh/handed");
    fs::create_dir(&handed).expect("a directory");
    fs::rename(control.path(&second), handed.join("ca-passphrase")).expect("moved");
    let mut command = control.baremesh(["control"]);
    command.env("CREDENTIALS_DIRECTORY", "/run/baremesh/handed");
    let mesh = Mesh::served(net, control, command);
    let (web, _store) = two(&mesh);
    output_of(web.host.shop(["call", "store", "80", "sealed"]));
    let open =
        mesh.control.baremesh(["ca", "unseal", "--passphrase-file", "/run/baremesh/handed/ca-passphrase"]);
    let refused = refused_output(open);
    assert!(refused.contains("stop the control server first"), "{refused}");
    let refused = refused_output(mesh.control.baremesh(["ca", "rotate", "--intermediate"]));
    assert!(refused.contains("root.key"), "{refused}");
    output_of(mesh.control.baremesh([
        "certs",
        "revoke",
        "--identity",
        "spiffe://mesh.internal/ns/default/sa/web",
    ]));
    wait_until("what was revoked is issued anew", || {
        exit_code_of(web.host.shop(["call", "--timeout", "5", "store", "80", "again"])) == 0
    });
    // On the medium the key is sealed by the passphrase that there was.
    fs::copy(mesh.control.path(medium), keys.join("root.key")).expect("back for a while");
    let refused = refused_output(mesh.control.baremesh(["ca", "rotate", "--intermediate"]));
    assert!(refused.contains("does not open it"), "{refused}");
    fs::remove_file(keys.join("root.key")).expect("away again");
    let before = roots(&mesh)[0].1.clone();
    ca(&mesh, ["rotate", "--root"]);
    wait_until("the new root signs", || roots(&mesh).first().is_some_and(|(_, now)| *now != before));
    assert!(is_sealed(&keys.join("root.key")) && is_sealed(&keys.join("intermediate.key")));
    ca(&mesh, ["rotate", "--intermediate"]);
    output_of(web.host.shop(["call", "store", "80", "rotated"]));
}

/// What a command says that is refused.
#[track_caller]
fn refused_output(mut command: std::process::Command) -> String {
    let refused = command.output().expect("it runs");
    assert!(!refused.status.success());
    String::from_utf8_lossy(&refused.stderr).into_owned()
}
