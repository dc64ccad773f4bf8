use std::fs;
use std::os::unix::fs::PermissionsExt;

use rcgen::BasicConstraints::{Constrained, Unconstrained};
use rcgen::{CertificateParams, CustomExtension, KeyUsagePurpose, PublicKeyData};

use super::*;
use crate::file::{SECRET, write_atomically};
use crate::issued::chain_to_pem;
use crate::key::PrivateKey;
use crate::leaf::peer_leaf_facts;
use crate::testing::{DAY, Forger, MINUTE, Place, bundle, domain, identity, issue, now};
use crate::tls::{PeerVerifier, Purpose};

fn verified(authority: &Authority, leaf: &SignedLeaf, at: SystemTime) -> Result<Identity, rustls::Error> {
    let verifier = PeerVerifier::new(bundle(authority));
    verifier.verify(&leaf.chain[0], &leaf.chain[1..], Purpose::Server, at)
}

fn sign(authority: &Authority, lifetime: Duration, at: SystemTime) -> Result<SignedLeaf, AuthorityError> {
    let key = PrivateKey::generate().expect("a key");
    authority.sign(&key.public(), &identity("ns/shop/sa/orders"), lifetime, at)
}

#[test]
fn signs_what_peers_verify_and_keeps_keys_to_itself() {
    let place = Place::new();
    let authority = place.authority();
    let leaf = sign(&authority, DAY, now()).expect("signed");
    assert_eq!(verified(&authority, &leaf, now()), Ok(identity("ns/shop/sa/orders")));
    assert_eq!(leaf.chain.len(), 2, "leaf and intermediate, no root");
    let facts = peer_leaf_facts(&leaf.chain[0]).expect("facts");
    assert_eq!(
        (facts.serial, facts.not_before, facts.not_after),
        (leaf.serial, leaf.not_before, leaf.not_after)
    );
    for (name, mode) in
        [("root.key", 0o600), ("intermediate.key", 0o600), ("root.crt", 0o644), ("intermediate.crt", 0o644)]
    {
        let found = fs::metadata(place.path("ca").join(name)).expect("a file").permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{name}");
    }
    let mode = fs::metadata(place.path("ca")).expect("a directory").permissions().mode() & 0o7777;
    assert_eq!(mode, 0o700);
}

#[test]
fn takes_nothing_from_a_request_but_its_key() {
    let place = Place::new();
    let authority = place.authority();
    let pair = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["evil.example".to_owned()]).expect("names");
    params
        .subject_alt_names
        .push(rcgen::SanType::URI("spiffe://mesh.test/ns/control/sa/control".try_into().expect("ascii")));
    params.is_ca = rcgen::IsCa::Ca(Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning];
    let request = params.serialize_request(&pair).expect("a request");
    let key = PublicKey::from_request(request.der()).expect("a key");
    let leaf = authority.sign(&key, &identity("ns/shop/sa/orders"), DAY, now()).expect("signed");
    let parsed = crate::leaf::parse(&leaf.chain[0]).expect("a certificate");
    assert_eq!(parsed.public_key().subject_public_key.data.as_ref(), pair.der_bytes());
    assert_eq!(parsed.subject().iter().count(), 0);
    assert!(!parsed.is_ca());
    let names = parsed.subject_alternative_name().expect("names").expect("names");
    assert_eq!(names.value.general_names.len(), 1);
    let usage = parsed.extended_key_usage().expect("usage").expect("usage").value;
    assert!(usage.server_auth && usage.client_auth && !usage.code_signing && !usage.any);
    let usage = parsed.key_usage().expect("usage").expect("usage").value;
    assert_eq!(usage.flags, 1, "digitalSignature alone");
}

#[test]
fn tolerates_a_clock_that_is_a_minute_behind() {
    let place = Place::new();
    let authority = place.authority();
    let leaf = sign(&authority, DAY, now()).expect("signed");
    assert!(verified(&authority, &leaf, now() - MINUTE).is_ok());
    let refused = verified(&authority, &leaf, now() - 10 * MINUTE).expect_err("refused");
    let text = crate::tls::describe(&refused);
    assert!(text.contains("becomes valid in 8 min") && text.contains("clock"), "{text}");
}

#[test]
fn does_not_sign_for_another_trust_domain_nor_past_its_own_end() {
    let place = Place::new();
    let authority = place.authority();
    let foreign = Identity::parse("spiffe://other.test/ns/shop/sa/orders").expect("an identity");
    let key = PrivateKey::generate().expect("a key").public();
    let refused = authority.sign(&key, &foreign, DAY, now());
    assert!(matches!(refused, Err(AuthorityError::OtherTrustDomain { .. })));
    let end = authority.issuing_not_after();
    assert_eq!(sign(&authority, 2 * DAY, end - DAY).expect("signed").not_after, end);
    assert!(matches!(sign(&authority, DAY, end + MINUTE), Err(AuthorityError::Expired(_))));
}

#[test]
fn opens_without_the_root_key_and_replaces_the_intermediate_with_it() {
    let place = Place::new();
    let (directory, old) = (place.path("ca"), place.authority());
    let early = issue(&old, &identity("ns/shop/sa/orders"), now());
    let (key, vault) = (directory.join("root.key"), place.path("vault.key"));
    fs::rename(&key, &vault).expect("moved");
    let near_end = old.issuing_not_after() - 30 * DAY;
    let mut authority = Authority::open(&directory, near_end).expect("opened");
    let Maintenance::Expiring { left, advice } = authority.maintain(near_end).expect("advice") else {
        panic!("it must warn");
    };
    assert_eq!(left, 30 * DAY);
    assert!(advice.contains("root.key"), "{advice}");
    let expired = Authority::open(&directory, old.issuing_not_after() + DAY);
    assert!(matches!(expired, Err(AuthorityError::Expired(_))));

    fs::rename(&vault, &key).expect("moved back");
    assert_eq!(authority.maintain(near_end).expect("replaced"), Maintenance::Replaced);
    assert_eq!(authority.maintain(near_end).expect("current"), Maintenance::Current);
    let leaf = sign(&authority, DAY, near_end).expect("signed");
    assert!(verified(&authority, &leaf, near_end).is_ok());
    // What the old intermediate signed stays good under the same root.
    let verifier = PeerVerifier::new(bundle(&authority));
    assert!(verifier.verify(&early.chain[0], &early.chain[1..], Purpose::Client, now()).is_ok());
    let reopened = Authority::open(&directory, near_end).expect("opened");
    assert_eq!(reopened.issuing_not_after(), authority.issuing_not_after());
}

/// A machine that started with its clock a year ahead, and has been told the time since.
#[test]
fn an_intermediate_that_was_made_while_the_clock_was_ahead_is_replaced() {
    let place = Place::new();
    let ahead = now() + 400 * DAY;
    place.authority();
    let directory = place.path("ca");
    let mut authority = Authority::open(&directory, ahead).expect("opened, and the intermediate replaced");
    assert!(verified(&authority, &sign(&authority, DAY, now()).expect("signed"), now()).is_err());
    let (key, vault) = (directory.join("root.key"), place.path("vault.key"));
    fs::rename(&key, &vault).expect("moved");
    let Maintenance::Expiring { advice, .. } = authority.maintain(now()).expect("advice") else {
        panic!("it must warn");
    };
    assert!(advice.contains("not valid yet") && advice.contains("root.key"), "{advice}");
    fs::rename(&vault, &key).expect("moved back");
    assert_eq!(authority.maintain(now()).expect("replaced"), Maintenance::Replaced);
    assert_eq!(authority.maintain(now()).expect("current"), Maintenance::Current);
    assert!(verified(&authority, &sign(&authority, DAY, now()).expect("signed"), now()).is_ok());
}

#[test]
fn finishes_a_replacement_that_a_crash_cut_short() {
    let place = Place::new();
    place.authority();
    let directory = place.path("ca");
    let (key, next) = (directory.join("intermediate.key"), directory.join("intermediate.key.next"));
    // The certificate has taken its place, its key has not.
    fs::rename(&key, &next).expect("moved");
    write_atomically(&key, PrivateKey::generate().expect("a key").to_pem().as_bytes(), SECRET)
        .expect("written");
    let authority = Authority::open(&directory, now()).expect("opened");
    assert!(verified(&authority, &sign(&authority, DAY, now()).expect("signed"), now()).is_ok());
    assert!(!next.exists());
}

#[test]
fn refuses_a_directory_that_is_taken_empty_or_exposed() {
    let place = Place::new();
    let directory = place.path("ca");
    assert!(matches!(Authority::open(&directory, now()), Err(AuthorityError::Missing(_))));
    place.authority();
    assert!(matches!(Authority::create(&directory, &domain(), now()), Err(AuthorityError::Exists(_))));
    let key = directory.join("intermediate.key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).expect("exposed");
    let refused = Authority::open(&directory, now()).expect_err("refused");
    assert!(refused.to_string().contains("chmod 600"), "{refused}");
}

/// Adopts the authority `chain[0]` with `key`; the files lie in `place`.
fn adopt(place: &Place, chain: &[CertificateDer<'static>], key: &str) -> Result<Authority, AuthorityError> {
    let (certificates, key_path) = (place.path("given.crt"), place.path("given.key"));
    fs::write(&certificates, chain_to_pem(chain)).expect("written");
    write_atomically(&key_path, key.as_bytes(), SECRET).expect("written");
    Authority::adopt(place.path("ca"), &certificates, &key_path, &domain(), now())
}

fn check_adopted(chain: &[&Forger], above_leaf: usize) {
    let place = Place::new();
    let certificates: Vec<_> = chain.iter().map(|forger| forger.root.clone()).collect();
    let authority = adopt(&place, &certificates, &chain[0].issuer.key().serialize_pem()).expect("adopted");
    let leaf = sign(&authority, DAY, now()).expect("signed");
    assert_eq!(leaf.chain.len(), above_leaf);
    assert!(verified(&authority, &leaf, now()).is_ok());
    assert_eq!(authority.root(), certificates.last().expect("a root"));
    assert!(!place.path("ca").join("root.key").exists(), "the given key is not kept as the root's");
    Authority::open(place.path("ca"), now()).expect("opened again");
}

#[test]
fn adopts_roots_and_intermediates_with_and_without_room_below() {
    let root = Forger::new("root", Unconstrained);
    check_adopted(&[&root], 2);
    check_adopted(&[&root.below("with room", Unconstrained), &root], 3);
    check_adopted(&[&root.below("without room", Constrained(0)), &root], 2);
    check_adopted(&[&Forger::new("small root", Constrained(0))], 1);
    let narrow = Forger::new("narrow root", Constrained(1));
    check_adopted(&[&narrow.below("unlimited itself", Unconstrained), &narrow], 2);
    for algorithm in [&rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_RSA_SHA256] {
        let key = KeyPair::generate_for(algorithm).expect("a key");
        check_adopted(&[&Forger::with_key("other kind", Unconstrained, key)], 2);
    }
}

fn check_not_adopted(chain: &[&Forger], key: &KeyPair, expected: &str) {
    let place = Place::new();
    let certificates: Vec<_> = chain.iter().map(|forger| forger.root.clone()).collect();
    let refused = adopt(&place, &certificates, &key.serialize_pem()).expect_err("refused").to_string();
    assert!(refused.contains(expected), "{refused}");
    assert!(!place.path("ca").join("root.crt").exists());
}

#[test]
fn refuses_to_adopt_what_would_not_work() {
    let (root, other) = (Forger::new("root", Unconstrained), Forger::new("other", Unconstrained));
    let below = root.below("below", Unconstrained);
    check_not_adopted(&[&root], other.issuer.key(), "does not belong");
    check_not_adopted(&[&below], below.issuer.key(), "append its issuers");
    check_not_adopted(&[&below, &other], below.issuer.key(), "not signed by the certificate after it");
    let leafs_only = Forger::new("leafs only", Constrained(0));
    let too_deep = leafs_only.below("too deep", Unconstrained);
    check_not_adopted(&[&too_deep, &leafs_only], too_deep.issuer.key(), "pathLenConstraint");
    let ed25519 = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let ed25519 = Forger::with_key("ed25519", Unconstrained, ed25519);
    check_not_adopted(&[&ed25519], ed25519.issuer.key(), "kind is not supported");

    let spoilt = |change: fn(&mut CertificateParams)| {
        let (mut params, key) =
            (Forger::params("spoilt", Unconstrained), KeyPair::generate().expect("a key"));
        change(&mut params);
        let root = params.self_signed(&key).expect("a root").into();
        Forger { root, issuer: Issuer::new(params, key) }
    };
    let expired = spoilt(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1));
    check_not_adopted(&[&expired], expired.issuer.key(), "expired");
    let future = spoilt(|params| params.not_before = rcgen::date_time_ymd(2090, 1, 1));
    check_not_adopted(&[&future], future.issuer.key(), "not valid before");
    let plain = spoilt(|params| params.is_ca = rcgen::IsCa::ExplicitNoCa);
    check_not_adopted(&[&plain], plain.issuer.key(), "no certificate authority");
    let mute = spoilt(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]);
    check_not_adopted(&[&mute], mute.issuer.key(), "keyUsage");
    // Name constraints on URIs (RFC 5280, section 4.2.1.10), here to `mesh.test`: webpki takes none.
    let constrained = spoilt(|params| {
        let mut subtrees = vec![0x30, 0x0f, 0xa0, 0x0d, 0x30, 0x0b, 0x86, 0x09];
        subtrees.extend(b"mesh.test");
        params.custom_extensions = vec![CustomExtension::from_oid_content(&[2, 5, 29, 30], subtrees)];
    });
    check_not_adopted(&[&constrained], constrained.issuer.key(), "cannot issue for the mesh");
}

/// The same files, as a start of the control server finds them.
fn reopened(place: &Place) -> Authority {
    Authority::open(place.path("ca"), now()).expect("opened")
}

/// Whether somebody who trusts these roots alone takes the leaf.
fn is_taken(leaf: &SignedLeaf, roots: Vec<CertificateDer<'static>>) -> bool {
    let bundle = TrustBundle::new(domain(), roots).expect("a bundle");
    let verifier = PeerVerifier::new(std::sync::Arc::new(bundle));
    [Purpose::Server, Purpose::Client]
        .iter()
        .all(|purpose| verifier.verify(&leaf.chain[0], &leaf.chain[1..], *purpose, now()).is_ok())
}

#[test]
fn an_intermediate_is_replaced_on_command_where_the_root_key_is_at_hand() {
    let place = Place::new();
    let mut authority = place.authority();
    let early = sign(&authority, DAY, now()).expect("signed");
    authority.rotate_intermediate(now()).expect("replaced");
    let late = sign(&authority, DAY, now()).expect("signed");
    assert_ne!(early.chain[1], late.chain[1]);
    for leaf in [&early, &late] {
        assert!(is_taken(leaf, authority.roots()));
    }
    assert_eq!(sign(&reopened(&place), DAY, now()).expect("signed").chain[1], late.chain[1]);
    fs::rename(place.path("ca").join("root.key"), place.path("vault.key")).expect("moved");
    let refused = authority.rotate_intermediate(now()).expect_err("refused").to_string();
    assert!(refused.contains("root.key"), "{refused}");
}

#[test]
fn a_root_is_trusted_before_it_signs_and_the_one_before_until_it_is_dropped() {
    let place = Place::new();
    let mut authority = place.authority();
    let old = authority.root().clone();
    let early = sign(&authority, DAY, now()).expect("signed");
    let next = authority.stage_root(now() + DAY, now()).expect("made");
    assert!(authority.next_is_vouched_for());
    let kinds = |authority: &Authority| -> Vec<Standing> {
        authority.standing().into_iter().map(|(_, standing)| standing).collect()
    };
    assert_eq!(kinds(&authority), [Standing::Signs, Standing::Next]);
    assert!(matches!(authority.stage_root(now() + DAY, now()), Err(AuthorityError::Rotating(_))));
    let leaf = sign(&authority, DAY, now()).expect("signed");
    assert!(
        is_taken(&leaf, vec![old.clone()]) && leaf.root == Fingerprint::of(&old),
        "nothing has changed yet"
    );
    // A restart in between forgets nothing.
    let mut authority = reopened(&place);
    assert!(authority.switches_by().is_some_and(|by| by > now()));
    assert!(authority.switch().expect("switched") && !authority.switch().expect("nothing to do"));
    for mut authority in [authority, reopened(&place)] {
        assert_eq!(kinds(&authority), [Standing::Signs, Standing::Before]);
        let leaf = sign(&authority, DAY, now()).expect("signed");
        assert_eq!((leaf.root, Fingerprint::of(authority.root())), (next, next));
        // By those who have heard of the new root, and by those who have not.
        for roots in [vec![authority.root().clone()], vec![old.clone()], authority.roots()] {
            assert!(is_taken(&leaf, roots));
        }
        assert!(is_taken(&early, authority.roots()));
        // Its key is at hand for intermediates.
        authority.rotate_intermediate(now()).expect("replaced");
    }
    let mut authority = reopened(&place);
    assert!(is_taken(&sign(&authority, DAY, now()).expect("signed"), vec![old.clone()]));
    assert!(matches!(authority.drop_root(next), Err(AuthorityError::RootSigns(_))));
    authority.drop_root(Fingerprint::of(&old)).expect("dropped");
    for authority in [authority, reopened(&place)] {
        assert_eq!(kinds(&authority), [Standing::Signs]);
        let leaf = sign(&authority, DAY, now()).expect("signed");
        assert!(is_taken(&leaf, authority.roots()) && !is_taken(&leaf, vec![old.clone()]));
        assert!(!is_taken(&early, authority.roots()));
    }
    let keys = fs::read_dir(place.path("ca")).expect("files").flatten();
    let keys = keys.filter(|file| file.file_name().to_string_lossy().ends_with(".key")).count();
    assert_eq!(keys, 2, "the old root's key is gone");
}

#[test]
fn roots_are_named_by_their_fingerprints_and_are_few() {
    let place = Place::new();
    let mut authority = place.authority();
    authority.stage_root(now(), now()).expect("made");
    authority.switch().expect("switched");
    let next = authority.stage_root(now(), now()).expect("made").to_string();
    let found = |text: &str| authority.find_root(text).ok().map(|(_, standing)| standing);
    assert_eq!(found(&next), Some(Standing::Next));
    assert_eq!(found(&next[..8].to_uppercase()), Some(Standing::Next));
    assert_eq!((found(&next[..7]), found(""), found("zz")), (None, None, None));
    authority.switch().expect("switched");
    assert!(matches!(authority.stage_root(now(), now()), Err(AuthorityError::TooManyRoots)));
    // Three roots, and who knows the first alone still verifies what the third signs.
    let leaf = sign(&authority, DAY, now()).expect("signed");
    for root in authority.roots() {
        assert!(is_taken(&leaf, vec![root]));
    }
    assert!(leaf.chain.len() + authority.roots().len() <= crate::issued::MAX_CHAIN);
}

#[test]
fn a_root_that_is_dropped_before_the_switch_never_signs() {
    let place = Place::new();
    let mut authority = place.authority();
    let next = authority.stage_root(now(), now()).expect("made");
    authority.drop_root(next).expect("dropped");
    assert!(!authority.switch().expect("nothing to do"));
    assert!(!place.path("ca").join("next").exists());
    assert_eq!(reopened(&place).roots().len(), 1);
}

#[test]
fn without_the_old_key_nothing_vouches_for_the_next_root() {
    let place = Place::new();
    let mut authority = place.authority();
    let old = authority.root().clone();
    fs::rename(place.path("ca").join("root.key"), place.path("vault.key")).expect("moved");
    authority.stage_root(now(), now()).expect("made");
    assert!(!authority.next_is_vouched_for());
    authority.switch().expect("switched");
    let leaf = sign(&authority, DAY, now()).expect("signed");
    assert!(is_taken(&leaf, authority.roots()) && !is_taken(&leaf, vec![old]));
}

/// Whatever the last file was that a crash let through, the next start finds one authority and all that is trusted.
#[test]
fn a_switch_that_a_crash_cuts_short_is_finished() {
    for keep in 0..3 {
        let place = Place::new();
        let mut authority = place.authority();
        let (old, old_root) = (authority.root().clone(), place.path("ca").join("root.crt"));
        let next = authority.stage_root(now(), now()).expect("made");
        let (aside, saved) = (place.path("ca").join("next"), place.path("saved"));
        let old_pem = fs::read(&old_root).expect("a root");
        copy(&aside, &saved);
        authority.switch().expect("switched");
        // Back to where the issuing certificate had taken its place, and less than all of the rest.
        copy(&saved, &aside);
        fs::remove_file(place.path("ca").join("root.key")).expect("back in its place aside");
        if keep < 2 {
            write_atomically(&old_root, &old_pem, 0o644).expect("put back");
        }
        if keep < 1 {
            let key = place.path("ca").join(format!("root-{}.key", &Fingerprint::of(&old).to_string()[..16]));
            fs::rename(key, place.path("ca").join("root.key")).expect("put back");
        }
        let authority = reopened(&place);
        assert_eq!(Fingerprint::of(authority.root()), next, "{keep}");
        let leaf = sign(&authority, DAY, now()).expect("signed");
        assert!(
            is_taken(&leaf, vec![old.clone()]) && is_taken(&leaf, vec![authority.root().clone()]),
            "{keep}"
        );
        assert_eq!(authority.roots().len(), 2, "{keep}");
        reopened(&place).rotate_intermediate(now()).expect("the root's key is its own");
        assert!(!aside.exists(), "{keep}");
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a directory");
    for file in fs::read_dir(from).expect("files").flatten() {
        fs::copy(file.path(), to.join(file.file_name())).expect("copied");
    }
}

/// Signs a request as a company's authority would, or with faults.
fn sign_request(
    request: &str,
    signer: &Forger,
    change: impl FnOnce(&mut CertificateParams),
) -> CertificateDer<'static> {
    let der = pem::parse(request).expect("PEM").into_contents();
    let mut request = rcgen::CertificateSigningRequestParams::from_der(&der.into()).expect("a request");
    request.params.is_ca = rcgen::IsCa::Ca(Constrained(0));
    request.params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    request.params.not_after = crate::clock::to_date(now() + 100 * DAY);
    change(&mut request.params);
    request.params.signed_by(&request.public_key, &signer.issuer).expect("signed").into()
}

#[test]
fn an_intermediate_is_signed_by_a_company_s_root_and_renewed_under_it() {
    let place = Place::new();
    let mut authority = place.authority();
    let old = authority.root().clone();
    let company = Forger::new("company root", Unconstrained);
    let policy = company.below("company policy authority", Unconstrained);
    let request = authority.request().expect("a request");
    let until = now() + DAY;
    let certificate = sign_request(&request, &policy, |_| {});
    let pem = chain_to_pem(&[certificate, policy.root.clone(), company.root.clone()]);
    let staged = authority.install(pem.as_bytes(), until, now()).expect("installed");
    assert_eq!(staged, Installed::Staged(Fingerprint::of(&company.root)));
    assert!(!place.path("ca").join("requested.key").exists());
    let mut authority = reopened(&place);
    authority.switch().expect("switched");
    for mut authority in [authority, reopened(&place)] {
        let leaf = sign(&authority, DAY, now()).expect("signed");
        assert!(is_taken(&leaf, vec![company.root.clone()]) && leaf.root == Fingerprint::of(&company.root));
        assert!(is_taken(&leaf, vec![old.clone()]), "the old root vouches for the company's");
        let refused = authority.rotate_intermediate(now()).expect_err("the company's key is not here");
        assert!(matches!(refused, AuthorityError::NoRootKey(_)), "{refused}");
    }
    // The next one, under the same root: at once.
    let mut authority = reopened(&place);
    let request = authority.request().expect("a request");
    assert_eq!(request_key(&request), request_key(&authority.request().expect("again")), "one key a request");
    let pem = chain_to_pem(&[sign_request(&request, &company, |_| {}), company.root.clone()]);
    assert_eq!(authority.install(pem.as_bytes(), until, now()).expect("installed"), Installed::Signs);
    let leaf = sign(&reopened(&place), DAY, now()).expect("signed");
    assert!(is_taken(&leaf, vec![company.root.clone()]));
    assert!(matches!(authority.install(pem.as_bytes(), until, now()), Err(AuthorityError::NotRequested)));
}

fn request_key(request: &str) -> Vec<u8> {
    let der = pem::parse(request).expect("PEM").into_contents();
    rcgen::CertificateSigningRequestParams::from_der(&der.into())
        .expect("a request")
        .public_key
        .der_bytes()
        .to_vec()
}

#[test]
fn a_chain_that_would_not_work_is_not_installed() {
    let place = Place::new();
    let mut authority = place.authority();
    let company = Forger::new("company root", Unconstrained);
    let request = authority.request().expect("a request");
    let narrow = Forger::new("signs leaves only", Constrained(0));
    let constrained = |params: &mut CertificateParams| {
        let mut subtrees = vec![0x30, 0x0f, 0xa0, 0x0d, 0x30, 0x0b, 0x86, 0x09];
        subtrees.extend(b"mesh.test");
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 30], subtrees));
    };
    let signed = |change: fn(&mut CertificateParams)| sign_request(&request, &company, change);
    let other = Forger::new("another", Unconstrained);
    let root = company.root.clone();
    for (chain, reason) in [
        (
            vec![signed(|params| params.is_ca = rcgen::IsCa::ExplicitNoCa), root.clone()],
            "no certificate authority",
        ),
        (
            vec![signed(|params| params.key_usages = vec![KeyUsagePurpose::DigitalSignature]), root.clone()],
            "keyUsage",
        ),
        (
            vec![signed(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign]), root.clone()],
            "have it signed with the key usages keyCertSign and cRLSign",
        ),
        (vec![sign_request(&request, &narrow, |_| {}), narrow.root.clone()], "pathLenConstraint"),
        (vec![sign_request(&request, &company, constrained), root.clone()], "cannot issue for the mesh"),
        (
            vec![signed(|params| params.not_after = crate::clock::to_date(now() + DAY)), root.clone()],
            "to last",
        ),
        (vec![signed(|params| params.not_after = rcgen::date_time_ymd(2020, 1, 1)), root.clone()], "expired"),
        (vec![company.below("another key", Constrained(0)).root, root.clone()], "does not belong"),
        (vec![signed(|_| {}), other.root.clone()], "not signed by the certificate after it"),
        (vec![signed(|_| {})], "append its issuers"),
        (Vec::new(), "no certificate in PEM"),
    ] {
        let pem = chain_to_pem(&chain);
        let refused = authority.install(pem.as_bytes(), now() + DAY, now()).expect_err(reason).to_string();
        assert!(refused.contains(reason), "{reason}: {refused}");
    }
    assert_eq!(reopened(&place).roots().len(), 1, "nothing has changed");
    let good = chain_to_pem(&[signed(|_| {}), root]);
    authority.install(good.as_bytes(), now() + DAY, now()).expect("the request stands still");
}
