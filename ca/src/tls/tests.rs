use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::TrustDomain;
use rcgen::BasicConstraints::Unconstrained;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose};
use rustls::{ClientConfig, ProtocolVersion, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;
use crate::clock::to_verification_time;
use crate::issued::{Issued, MAX_CHAIN};
use crate::testing::{DAY, Forger, MINUTE, Place, bundle, identity, issue, now};

/// What both sides of a handshake come to, as text: who the server found the client to be, or why it failed.
struct Met {
    client: Result<(), String>,
    server: Result<Option<String>, String>,
}

/// A whole handshake in memory, with a byte each way: with TLS 1.3 a client learns only then that it was refused.
async fn meet(client: ClientConfig, server: ServerConfig) -> Met {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let serve = async move {
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(far).await?;
        let (_, connection) = stream.get_ref();
        assert_eq!(connection.protocol_version(), Some(ProtocolVersion::TLSv1_3));
        assert_eq!(connection.alpn_protocol(), Some(ALPN));
        let group = connection.negotiated_key_exchange_group().map(|group| group.name());
        assert_eq!(group, Some(rustls::NamedGroup::X25519MLKEM768));
        let peer = connection.peer_certificates().and_then(|chain| peer_identity(&chain[0]).ok());
        let byte = stream.read_u8().await?;
        stream.write_u8(byte).await?;
        stream.flush().await?;
        Ok(peer.map(|peer| peer.to_string()))
    };
    let call = async move {
        let connector = TlsConnector::from(Arc::new(client));
        let mut stream = connector.connect(placeholder_server_name(), near).await?;
        stream.write_u8(7).await?;
        stream.flush().await?;
        assert_eq!(stream.read_u8().await?, 7);
        assert!(!stream.get_ref().1.is_handshaking());
        Ok(())
    };
    let (server, client): (std::io::Result<_>, std::io::Result<()>) = tokio::join!(serve, call);
    Met {
        client: client.map_err(|error| describe_io(&error)),
        server: server.map_err(|error| describe_io(&error)),
    }
}

fn caller(who: &Issued, bundle: Arc<TrustBundle>, expected: Expected) -> ClientConfig {
    client_config(single_certificate(who.certified_key().expect("a key")), bundle, expected)
}

fn listener(who: &Issued, bundle: Arc<TrustBundle>) -> ServerConfig {
    server_config(single_certificate(who.certified_key().expect("a key")), bundle)
}

#[tokio::test]
async fn members_meet_and_know_each_other() {
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let web = issue(&authority, &identity("ns/shop/sa/web"), now());
    let orders = issue(&authority, &identity("ns/shop/sa/orders"), now());
    let expected = Expected::exactly(orders.identity.clone());
    let met = meet(caller(&web, trust.clone(), expected), listener(&orders, trust)).await;
    assert_eq!(met.client, Ok(()));
    assert_eq!(met.server, Ok(Some(web.identity.to_string())));
}

#[tokio::test]
async fn a_caller_takes_only_whom_it_called() {
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let web = issue(&authority, &identity("ns/shop/sa/web"), now());
    let other = issue(&authority, &identity("ns/shop/sa/payments"), now());
    let expected = Expected::exactly(identity("ns/shop/sa/orders"));
    let met = meet(caller(&web, trust.clone(), expected), listener(&other, trust.clone())).await;
    let said = met.client.expect_err("refused");
    assert!(said.contains("is spiffe://mesh.test/ns/shop/sa/payments, not"), "{said}");
    assert!(met.server.is_err());
    let nobody = Expected::OneOf(Arc::from([]));
    assert!(meet(caller(&web, trust.clone(), nobody), listener(&other, trust)).await.client.is_err());
}

/// A revoked certificate is refused by both sides; the others of the same authority are not.
#[tokio::test]
async fn what_is_revoked_is_refused_on_both_sides() {
    let place = Place::new();
    let authority = place.authority();
    let web = issue(&authority, &identity("ns/shop/sa/web"), now());
    let revoked = issue(&authority, &identity("ns/shop/sa/web"), now());
    let trust = Arc::new(bundle(&authority).refusing([revoked.serial.clone()].into_iter().collect()));
    check_refused_on_both_sides(&revoked, &trust, &web, "was revoked").await;
    let met = meet(caller(&web, trust.clone(), Expected::Anyone), listener(&web, trust)).await;
    assert_eq!((met.client, met.server), (Ok(()), Ok(Some(web.identity.to_string()))));
}

/// The roots of a federated trust domain vouch for services of that domain, and for nobody else.
#[tokio::test]
async fn a_federated_root_vouches_for_services_of_its_own_domain_alone() {
    let place = Place::new();
    let authority = place.authority();
    let (partner, third) = (Forger::new("partner", Unconstrained), Forger::new("third", Unconstrained));
    let domain = |name: &str| TrustDomain::new(name).expect("a domain");
    let federated = [("partner.test", &partner), ("third.test", &third)];
    let federated = federated.map(|(name, forger)| (domain(name), vec![forger.root.clone()]));
    let ours = bundle(&authority);
    let trust = Arc::new(ours.with_federated(federated.into()).expect("a bundle"));
    let web = issue(&authority, &identity("ns/shop/sa/web"), now());
    let leaf = |forger: &Forger, name: &str| forger.leaf(&[&format!("spiffe://{name}")], |_| ());

    let clerk = leaf(&partner, "partner.test/ns/shop/sa/clerk");
    let met = meet(caller(&clerk, trust.clone(), Expected::Anyone), listener(&web, trust.clone())).await;
    assert_eq!(met.server, Ok(Some("spiffe://partner.test/ns/shop/sa/clerk".to_owned())));
    let exactly = Identity::parse("spiffe://partner.test/ns/shop/sa/clerk").expect("an identity");
    let expecting = caller(&web, trust.clone(), Expected::exactly(exactly));
    assert_eq!(meet(expecting, listener(&clerk, trust.clone())).await.client, Ok(()));

    let not_ours = "does not chain to a root";
    for (bad, reason) in [
        (leaf(&partner, "mesh.test/ns/shop/sa/web"), not_ours),
        (leaf(&partner, "mesh.test/ns/control/sa/control"), not_ours),
        (leaf(&partner, "third.test/ns/shop/sa/web"), not_ours),
        (leaf(&third, "partner.test/ns/shop/sa/clerk"), not_ours),
        (leaf(&partner, "fourth.test/ns/shop/sa/web"), not_ours),
        (leaf(&partner, "partner.test/ns/control/sa/control"), "no service of its mesh"),
        (leaf(&partner, "partner.test/ns/nodes/sa/h1"), "no service of its mesh"),
        (leaf(&partner, "partner.test/ns/operators/sa/ann"), "no service of its mesh"),
    ] {
        check_refused_on_both_sides(&bad, &trust, &web, reason).await;
    }
    let two = ["spiffe://partner.test/ns/shop/sa/clerk", "spiffe://mesh.test/ns/shop/sa/web"];
    check_refused_on_both_sides(&partner.leaf(&two, |_| ()), &trust, &web, not_ours).await;
    // Without the federation, and at a control server, it is a stranger.
    check_client_refused(&clerk, ours, &web, not_ours).await;
    let shown = single_certificate(web.certified_key().expect("a key"));
    let met =
        meet(caller(&clerk, trust.clone(), Expected::Anyone), control_server_config(shown, trust)).await;
    assert!(met.server.expect_err("refused").contains(not_ours));
}

#[test]
fn the_roots_of_others_are_bounded_and_never_those_of_this_mesh() {
    let place = Place::new();
    let ours = bundle(&place.authority());
    let root = Forger::new("partner", Unconstrained).root;
    let with = |names: &[String], roots: usize| {
        let domain = |name: &String| TrustDomain::new(name).expect("a domain");
        let federated = names.iter().map(|name| (domain(name), vec![root.clone(); roots])).collect();
        ours.with_federated(federated)
    };
    let names: Vec<_> = (0..=MAX_FEDERATED).map(|number| format!("d{number}.test")).collect();
    assert_eq!(with(&names[1..], 1).expect("a bundle").federated().len(), MAX_FEDERATED);
    assert_eq!(with(&names, 1), Err(BundleError::TooManyFederated(MAX_FEDERATED + 1)));
    assert_eq!(with(&names[..1], 0), Err(BundleError::Count(0)));
    assert_eq!(with(&names[..1], MAX_ROOTS + 1), Err(BundleError::Count(MAX_ROOTS + 1)));
    assert!(matches!(with(&["mesh.test".to_owned()], 1), Err(BundleError::FederatedSelf(_))));
    let (one, other) = (with(&names[..1], 1).expect("a bundle"), with(&names[..1], 2).expect("a bundle"));
    assert!(one == one.clone() && one != other && one != *ours);
}

/// A listener refuses this client, for this reason.
async fn check_client_refused(client: &Issued, trust: Arc<TrustBundle>, server: &Issued, reason: &str) {
    let met = meet(caller(client, trust.clone(), Expected::Anyone), listener(server, trust)).await;
    let said = met.server.expect_err("refused");
    assert!(said.contains(reason), "{said}");
    assert!(met.client.is_err(), "the client must not believe that it was heard");
}

/// A caller refuses this server, for this reason.
async fn check_server_refused(server: &Issued, trust: Arc<TrustBundle>, client: &Issued, reason: &str) {
    let met = meet(caller(client, trust.clone(), Expected::Anyone), listener(server, trust)).await;
    let said = met.client.expect_err("refused");
    assert!(said.contains(reason), "{said}");
    assert!(met.server.is_err());
}

async fn check_refused_on_both_sides(bad: &Issued, trust: &Arc<TrustBundle>, good: &Issued, reason: &str) {
    check_client_refused(bad, trust.clone(), good, reason).await;
    check_server_refused(bad, trust.clone(), good, reason).await;
}

const GOOD: &str = "spiffe://mesh.test/ns/shop/sa/web";

#[tokio::test]
async fn bad_certificates_are_refused_on_both_sides() {
    let forger = Forger::new("root", Unconstrained);
    let trust = forger.bundle();
    let good = forger.leaf(&[GOOD], |_| {});
    let met = meet(caller(&good, trust.clone(), Expected::Anyone), listener(&good, trust.clone())).await;
    assert_eq!(met.server, Ok(Some(GOOD.to_owned())), "the unspoilt one passes");

    let stranger = Forger::new("root", Unconstrained);
    let day = |at: SystemTime| time::OffsetDateTime::from(at);
    type Spoil = Box<dyn FnOnce(&mut CertificateParams)>;
    let cases: Vec<(Issued, &str)> = vec![
        (forger.leaf(&["spiffe://other.test/ns/shop/sa/web"], |_| {}), "trust domain is mesh.test"),
        (forger.leaf(&[], |_| {}), "0 URI names"),
        (forger.leaf(&[GOOD, GOOD], |_| {}), "2 URI names"),
        (forger.leaf(&["https://mesh.test/ns/shop/sa/web"], |_| {}), "names no one"),
        (forger.leaf(&["spiffe://mesh.test/ns/shop/sa/web/more"], |_| {}), "names no one"),
        (forger.leaf(&[GOOD], |p| p.not_after = day(now() - 2 * DAY)), "expired 2 d 0 h ago"),
        (forger.leaf(&[GOOD], |p| p.not_before = day(now() + DAY)), "becomes valid in"),
        (forger.leaf(&[GOOD], |p| p.extended_key_usages.clear()), "not meant for this side"),
        (stranger.leaf(&[GOOD], |_| {}), "does not chain to a root"),
    ];
    for (bad, reason) in &cases {
        check_refused_on_both_sides(bad, &trust, &good, reason).await;
    }
    let one_sided: [(ExtendedKeyUsagePurpose, bool); 2] =
        [(ExtendedKeyUsagePurpose::ServerAuth, true), (ExtendedKeyUsagePurpose::ClientAuth, false)];
    for (purpose, is_server) in one_sided {
        let spoil: Spoil = Box::new(|p| p.extended_key_usages = vec![purpose]);
        let leaf = forger.leaf(&[GOOD], spoil);
        match is_server {
            true => check_client_refused(&leaf, trust.clone(), &good, "not meant for this side").await,
            false => check_server_refused(&leaf, trust.clone(), &good, "not meant for this side").await,
        }
    }
}

#[tokio::test]
async fn self_signed_and_forged_chains_are_refused() {
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let good = issue(&authority, &identity("ns/shop/sa/orders"), now());

    // Signed by its own key under the name of nobody.
    let own = Forger::new("own", Unconstrained);
    let mut self_signed = own.leaf(&[GOOD], |_| {});
    let key = rcgen::KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![rcgen::SanType::URI(GOOD.try_into().expect("ascii"))];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    self_signed.chain = vec![params.self_signed(&key).expect("signed").into()];
    self_signed.key = rustls_pki_types::PrivatePkcs8KeyDer::from(key.serialize_der()).into();
    check_refused_on_both_sides(&self_signed, &trust, &good, "does not chain to a root").await;

    // A forger's leaf, with the mesh's real intermediate and root beside it.
    let mut dressed = own.leaf(&[GOOD], |_| {});
    dressed.chain.push(good.chain[1].clone());
    dressed.chain.push(authority.root().clone());
    check_refused_on_both_sides(&dressed, &trust, &good, "does not chain to a root").await;

    // A forger that bears the real intermediate's name.
    let name = crate::leaf::parse(&good.chain[1])
        .expect("parsed")
        .subject()
        .iter_common_name()
        .next()
        .and_then(|name| name.as_str().ok())
        .expect("a name")
        .to_owned();
    let mut named = Forger::new(&name, Unconstrained).leaf(&[GOOD], |_| {});
    named.chain.push(good.chain[1].clone());
    check_refused_on_both_sides(&named, &trust, &good, "does not chain to a root").await;

    // A member's leaf as an authority: it signs, and nobody listens.
    let member = rcgen::KeyPair::try_from(good.key.secret_der()).expect("a key");
    let issuer = rcgen::Issuer::from_ca_cert_der(&good.chain[0], member).expect("an issuer");
    let below = Forger { root: good.chain[0].clone(), issuer };
    let mut issued_by_member = below.leaf(&[GOOD], |_| {});
    issued_by_member.chain.extend(good.chain.iter().cloned());
    let verifier = PeerVerifier::new(trust);
    let chain = &issued_by_member.chain;
    assert!(verifier.verify(&chain[0], &chain[1..], Purpose::Client, now()).is_err());
}

/// Authorities of one name, each of which could have signed any other: every order of them is a path to be tried.
#[test]
fn chains_that_are_costly_to_search_are_refused_unsearched() {
    let root = Forger::new("root", Unconstrained);
    let below = |count: usize| {
        let mut authorities = vec![root.below("same", Unconstrained)];
        for _ in 1..count {
            authorities.push(authorities[authorities.len() - 1].below("same", Unconstrained));
        }
        let leaf = authorities[count - 1].leaf(&[GOOD], |_| {});
        let above = authorities.iter().rev().map(|authority| authority.root.clone());
        leaf.chain.into_iter().chain(above).collect::<Vec<_>>()
    };
    let check = |shown: &[CertificateDer<'_>], expected: Result<(), &str>| {
        let verified =
            PeerVerifier::new(root.bundle()).verify(&shown[0], &shown[1..], Purpose::Client, now());
        let said = verified.map(drop).map_err(|error| describe(&error));
        match expected {
            Ok(()) => assert_eq!(said, Ok(())),
            Err(part) => assert!(said.as_ref().is_err_and(|said| said.contains(part)), "{said:?}"),
        }
        let roots = [root.root.clone()];
        let anonymous = verify_anonymous_chain(&shown[0], &shown[1..], &roots, Purpose::Client, now());
        assert_eq!(anonymous.is_ok(), expected.is_ok());
    };
    check(&below(3), Ok(()));
    let mut padded = below(3);
    padded.resize(MAX_CHAIN, padded[1].clone());
    check(&padded, Ok(()));
    padded.push(padded[1].clone());
    check(&padded, Err("the peer shows 8 certificates"));
    let mut unconnected = vec![Forger::new("same", Unconstrained).leaf(&[GOOD], |_| {}).chain[0].clone()];
    unconnected.extend(below(20).into_iter().skip(1));
    check(&unconnected, Err("the peer shows 21 certificates"));
}

/// As many certificates as may be shown, every order of which is a path that leads to no root: the search has an end.
#[test]
fn a_search_for_a_path_that_is_not_there_costs_little() {
    /// Of one search; CPU time of this thread, in a build without optimisation.
    const MOST: Duration = Duration::from_millis(30);
    const SEARCHES: u32 = 20;
    let (stranger, root) = (Forger::new("root", Unconstrained), Forger::new("root", Unconstrained));
    let mut authorities = vec![stranger.below("same", Unconstrained)];
    for _ in 2..MAX_CHAIN {
        authorities.push(authorities[authorities.len() - 1].below("same", Unconstrained));
    }
    let leaf = authorities[authorities.len() - 1].leaf(&[GOOD], |_| {});
    let above = authorities.iter().map(|authority| authority.root.clone());
    let shown: Vec<_> = leaf.chain.into_iter().chain(above).collect();
    assert!(shown.len() >= MAX_CHAIN, "{}", shown.len());
    let shown = &shown[..MAX_CHAIN];
    let verifier = PeerVerifier::new(root.bundle());
    let spent = || {
        // Nanoseconds on a processor come first (proc(5)).
        let told = std::fs::read_to_string("/proc/thread-self/schedstat").expect("this thread's account");
        Duration::from_nanos(told.split(' ').next().and_then(|text| text.parse().ok()).expect("a number"))
    };
    let before = spent();
    for _ in 0..SEARCHES {
        assert!(verifier.verify(&shown[0], &shown[1..], Purpose::Client, now()).is_err());
    }
    let each = (spent() - before) / SEARCHES;
    assert!(each < MOST, "{each:?} each");
}

/// The check without an identity lets a chain pass that names nobody, and is as strict in everything else.
#[test]
fn an_anonymous_chain_is_verified_like_any_other() {
    let root = Forger::new("root", Unconstrained);
    let check = |leaf: Issued, purpose: Purpose, at: SystemTime, expected: bool| {
        let roots = [root.root.clone()];
        let verified = verify_anonymous_chain(&leaf.chain[0], &leaf.chain[1..], &roots, purpose, at);
        assert_eq!(verified.is_ok(), expected, "{verified:?}");
    };
    check(root.leaf(&[], |_| {}), Purpose::Server, now(), true);
    check(Forger::new("root", Unconstrained).leaf(&[], |_| {}), Purpose::Server, now(), false);
    check(root.leaf(&[], |p| p.extended_key_usages.clear()), Purpose::Server, now(), false);
    let client =
        |p: &mut CertificateParams| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    check(root.leaf(&[], client), Purpose::Client, now(), true);
    check(root.leaf(&[], client), Purpose::Server, now(), false);
    let past = |p: &mut CertificateParams| p.not_after = (now() - DAY).into();
    check(root.leaf(&[], past), Purpose::Server, now(), false);
    check(root.leaf(&[], past), Purpose::Server, now() - 2 * DAY, true);
}

#[tokio::test]
async fn a_node_credential_opens_the_control_server_only() {
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let node = issue(&authority, &identity("ns/nodes/sa/h1"), now());
    let orders = issue(&authority, &identity("ns/shop/sa/orders"), now());
    check_client_refused(&node, trust.clone(), &orders, "for the control server only").await;

    let control = place.service().control_certificate(now()).expect("a certificate");
    let key = single_certificate(control.certified_key().expect("a key"));
    let expected = Expected::exactly(control.identity.clone());
    let met = meet(caller(&node, trust.clone(), expected), control_server_config(key, trust)).await;
    assert_eq!((met.client, met.server), (Ok(()), Ok(Some(node.identity.to_string()))));
}

#[tokio::test]
async fn an_operator_s_credential_opens_the_control_server_only_and_serves_nothing() {
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let operator = issue(&authority, &identity("ns/operators/sa/alice"), now());
    let orders = issue(&authority, &identity("ns/shop/sa/orders"), now());
    check_client_refused(&operator, trust.clone(), &orders, "for the control server only").await;

    let control = place.service().control_certificate(now()).expect("a certificate");
    let key = single_certificate(control.certified_key().expect("a key"));
    let expected = Expected::exactly(control.identity.clone());
    let met =
        meet(caller(&operator, trust.clone(), expected), control_server_config(key, trust.clone())).await;
    assert_eq!((met.client, met.server), (Ok(()), Ok(Some(operator.identity.to_string()))));

    let met = meet(caller(&orders, trust.clone(), Expected::Anyone), listener(&operator, trust)).await;
    assert!(met.client.expect_err("refused").contains("not meant for this side of TLS"));
}

async fn join_meets(server: &Issued, fingerprint: Fingerprint, trust: Arc<TrustBundle>) -> Met {
    let key = single_certificate(server.certified_key().expect("a key"));
    meet(join_client_config(fingerprint), control_server_config(key, trust)).await
}

#[tokio::test]
async fn joining_takes_the_control_server_under_the_pinned_root_only() {
    let place = Place::new();
    let service = place.service();
    let (authority, trust) = (place.authority(), Arc::new(service.bundle().expect("a bundle")));
    let control = service.control_certificate(now()).expect("a certificate");
    let pin = Fingerprint::of(authority.root());
    let met = join_meets(&control, pin, trust.clone()).await;
    assert_eq!((met.client, met.server), (Ok(()), Ok(None)));
    let found = pinned_bundle(&control.chain, pin, to_verification_time(now())).expect("pinned");
    assert_eq!(found, *trust);

    let wrong_pin = join_meets(&control, Fingerprint::from_bytes([0; 32]), trust.clone()).await;
    assert!(wrong_pin.client.expect_err("refused").contains("fingerprint of the token"));

    let mut member = issue(&authority, &identity("ns/shop/sa/orders"), now());
    member.chain.push(authority.root().clone());
    let posing = join_meets(&member, pin, trust.clone()).await;
    let said = posing.client.expect_err("refused");
    assert!(said.contains("not spiffe://mesh.test/ns/control/sa/control"), "{said}");

    let mut forged =
        Forger::new("root", Unconstrained).leaf(&["spiffe://mesh.test/ns/control/sa/control"], |_| {});
    forged.chain.push(authority.root().clone());
    let posing = join_meets(&forged, pin, trust.clone()).await;
    assert!(posing.client.expect_err("refused").contains("does not chain to a root"));

    let rootless = Issued { chain: control.chain[..2].to_vec(), ..control };
    assert!(join_meets(&rootless, pin, trust).await.client.is_err());
}

#[tokio::test]
async fn a_mesh_member_cannot_pose_as_the_control_server_to_a_joined_host() {
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let node = issue(&authority, &identity("ns/nodes/sa/h1"), now());
    let control = Expected::exactly(identity("ns/control/sa/control"));
    for path in ["ns/shop/sa/control", "ns/hosts/sa/control", "ns/nodes/sa/control"] {
        let member = issue(&authority, &identity(path), now());
        let key = single_certificate(member.certified_key().expect("a key"));
        let server = control_server_config(key, trust.clone());
        let met = meet(caller(&node, trust.clone(), control.clone()), server).await;
        assert!(met.client.expect_err("refused").contains("ns/control/sa/control"), "{path}");
    }
}

#[tokio::test]
async fn a_control_listener_verifies_the_certificate_that_is_shown() {
    let place = Place::new();
    let service = place.service();
    let trust = Arc::new(service.bundle().expect("a bundle"));
    let control = service.control_certificate(now()).expect("a certificate");
    let forged = Forger::new("root", Unconstrained).leaf(&["spiffe://mesh.test/ns/nodes/sa/h1"], |_| {});
    let key = single_certificate(control.certified_key().expect("a key"));
    let server = control_server_config(key, trust.clone());
    let met = meet(caller(&forged, trust, Expected::Anyone), server).await;
    assert!(met.server.expect_err("refused").contains("does not chain to a root"));
}

#[test]
fn skewed_clocks_are_named_with_their_distance() {
    let place = Place::new();
    let authority = place.authority();
    let leaf = issue(&authority, &identity("ns/shop/sa/web"), now());
    let verifier = PeerVerifier::new(bundle(&authority));
    let at = |time| verifier.verify(&leaf.chain[0], &leaf.chain[1..], Purpose::Client, time);
    assert!(at(now() - MINUTE).is_ok());
    for (time, words) in [
        (leaf.not_before - 5 * MINUTE, "becomes valid in 5 min 0 s"),
        (leaf.not_after + 90 * MINUTE, "expired 1 h 30 min ago"),
    ] {
        let said = describe(&at(time).expect_err("refused"));
        assert!(said.contains(words) && said.contains("timedatectl"), "{said}");
    }
    let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateExpired);
    assert!(describe(&alert).contains("clocks"));
}

#[test]
fn a_bundle_has_usable_roots() {
    let place = Place::new();
    let trust = bundle(&place.authority());
    let again = TrustBundle::from_pem(trust.trust_domain().clone(), trust.to_pem().as_bytes());
    assert_eq!(again.as_ref(), Ok(&*trust));
    let domain = trust.trust_domain().clone();
    assert_eq!(TrustBundle::new(domain.clone(), vec![]), Err(BundleError::Count(0)));
    let broken = vec![CertificateDer::from(vec![1, 2, 3])];
    assert!(matches!(TrustBundle::new(domain, broken), Err(BundleError::Root(_))));
}

/// Only at the control server, only node credentials, and only for a while.
#[test]
fn an_ended_node_credential_is_taken_by_the_control_server_for_the_grace_alone() {
    use rustls::server::danger::ClientCertVerifier;
    let place = Place::new();
    let authority = place.authority();
    let trust = bundle(&authority);
    let (node, web) = (
        issue(&authority, &identity("ns/nodes/sa/h1"), now()),
        issue(&authority, &identity("ns/shop/sa/web"), now()),
    );
    let (control, member) = (PeerVerifier::of_control(trust.clone()), PeerVerifier::new(trust));
    let takes = |verifier: &PeerVerifier, issued: &Issued, at: SystemTime| {
        verifier.verify_client_cert(&issued.chain[0], &issued.chain[1..], to_verification_time(at)).is_ok()
    };
    let end = node.not_after;
    for (at, taken) in [
        (end - MINUTE, true),
        (end + MINUTE, true),
        (end + NODE_GRACE - MINUTE, true),
        (end + NODE_GRACE + MINUTE, false),
    ] {
        assert_eq!(takes(&control, &node, at), taken, "{at:?}");
        assert_eq!(takes(&control, &web, at), at < end, "{at:?}");
        assert!(!takes(&member, &node, at), "{at:?}");
    }
    assert!(!takes(&control, &node, node.not_before - MINUTE), "one that is yet to come is not an ended one");
}
