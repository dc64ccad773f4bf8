use std::time::SystemTime;

use rcgen::BasicConstraints::Unconstrained;

use super::*;
use crate::authority::Authority;
use crate::issued::chain_to_pem;
use crate::testing::{Forger, Place, now};

fn list_of(authority: &Authority, serials: &[&str]) -> String {
    let serials: Vec<(String, SystemTime)> = serials.iter().map(|one| ((*one).to_owned(), now())).collect();
    authority.sign_revocations(&serials, 7, now()).expect("a list")
}

fn fault(text: &str, roots: &[CertificateDer<'_>]) -> String {
    Revoked::read(text, roots).expect_err("refused").to_string()
}

#[test]
fn a_list_says_what_was_written_into_it() {
    let place = Place::new();
    let authority = place.authority();
    let roots = [authority.root().clone()];
    // With the highest bit set, and with zeros in front: the numbers are those of the certificates.
    let serials = ["ff00000000000000000000000000ab01", "1", "ab0"];
    let read = Revoked::read(&list_of(&authority, &serials), &roots).expect("read");
    let found: std::collections::BTreeSet<_> = read.iter().collect();
    assert_eq!((found, read.number()), (serials.into_iter().collect(), 7));
    assert!(read.contains("1") && !read.contains("01") && !read.contains("2"));
    assert!(Revoked::read(&list_of(&authority, &[]), &roots).expect("read").is_empty());
}

#[test]
fn a_list_of_the_largest_size_fits_a_message_and_is_read() {
    let place = Place::new();
    let authority = place.authority();
    let serials: Vec<_> = (0..MAX_REVOKED).map(|n| (format!("ff{n:030x}"), now())).collect();
    let text = authority.sign_revocations(&serials, u64::MAX, now()).expect("a list");
    assert!(text.len() < 800 * 1024, "{}", text.len());
    let read = Revoked::read(&text, &[authority.root().clone()]).expect("read");
    assert_eq!((read.len(), read.number()), (MAX_REVOKED, u64::MAX));
}

#[test]
fn refuses_a_list_that_the_authority_did_not_sign() {
    let place = Place::new();
    let authority = place.authority();
    let roots = [authority.root().clone()];
    let good = list_of(&authority, &["ab"]);
    let (list, chain) = good.split_at(good.find("-----BEGIN CERTIFICATE").expect("a certificate"));
    let other = Place::new();
    let foreign = list_of(&other.authority(), &["ab"]);
    assert!(fault(&foreign, &roots).contains("do not lead to a root"));
    // Another authority's list with this one's certificates.
    let (foreign_list, _) = foreign.split_at(foreign.find("-----BEGIN CERTIFICATE").expect("a certificate"));
    assert!(fault(&format!("{foreign_list}{chain}"), &roots).contains("signature does not hold"));
    assert!(fault(list, &roots).contains("without a certificate"));
    assert!(fault(chain, &roots).contains("not one list"));
    assert!(fault(&format!("{list}{good}"), &roots).contains("not one list"));
    assert!(fault("", &roots).contains("not one list"));
    assert!(fault(&good.replace("X509 CRL", "PRIVATE KEY"), &roots).contains("not one list"));
    // A member's leaf signs nothing.
    let leaf = crate::testing::issue(&authority, &crate::testing::identity("ns/shop/sa/web"), now());
    assert!(fault(&format!("{list}{}", chain_to_pem(&leaf.chain)), &roots).contains("no authority"));
    let root = Forger::new("root", Unconstrained);
    assert!(fault(&format!("{list}{}", chain_to_pem(&[root.root])), &roots).contains("do not lead"));
    assert!(fault(&format!("{list}{}", chain.repeat(MAX_CHAIN + 1)), &roots).contains("too many"));
}

#[test]
fn no_mangled_list_panics_or_is_taken() {
    let place = Place::new();
    let authority = place.authority();
    let roots = [authority.root().clone()];
    let good = list_of(&authority, &["ab", "cd"]);
    for at in 0..good.len() {
        let mut mangled = good.clone().into_bytes();
        mangled[at] ^= 1;
        let Ok(mangled) = String::from_utf8(mangled) else { continue };
        if let Ok(read) = Revoked::read(&mangled, &roots) {
            // What is around the blocks, and the padding of the last line, is nobody's.
            assert_eq!(read.len(), 2, "{at}");
        }
        let _ = Revoked::read(&good[..at], &roots);
    }
}
