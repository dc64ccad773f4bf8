//! What the fuzzer starts from, and what it once found, through the checks that it makes.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/checks/container_engine.rs"]
mod container_engine;
#[path = "../../fuzz/checks/dns_message.rs"]
mod dns_message;
#[path = "../../fuzz/checks/ext_authz.rs"]
mod ext_authz;
#[path = "../../fuzz/checks/forwarded_cert.rs"]
mod forwarded_cert;
#[path = "../../fuzz/checks/hbone_request.rs"]
mod hbone_request;
#[path = "../../fuzz/checks/http1_request.rs"]
mod http1_request;
#[path = "../../fuzz/checks/jwt.rs"]
mod jwt;
#[path = "../../fuzz/checks/spiffe_id.rs"]
mod spiffe_id;

fn replay(target: &str, check: fn(&[u8])) {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let mut count = 0;
    for entry in fs::read_dir(&seeds).expect("the target has seeds") {
        let path = entry.expect("an entry").path();
        // Shown only when the check fails.
        eprintln!("{}", path.display());
        check(&fs::read(&path).expect("a seed"));
        count += 1;
    }
    assert!(count >= 5, "only {count} seeds in {}", seeds.display());
}

#[test]
fn seeds_of_container_engines_hold() {
    replay("container_engine", container_engine::check);
}

#[test]
fn seeds_of_dns_messages_hold() {
    replay("dns_message", dns_message::check);
}

#[test]
fn seeds_of_answers_of_providers_hold() {
    replay("ext_authz", ext_authz::check);
}

#[test]
fn seeds_of_hbone_requests_hold() {
    replay("hbone_request", hbone_request::check);
}

#[test]
fn seeds_of_http1_requests_hold() {
    replay("http1_request", http1_request::check);
}

#[test]
fn seeds_of_tokens_hold() {
    replay("jwt", jwt::check);
}

#[test]
fn seeds_of_forwarded_certificates_hold() {
    replay("forwarded_cert", forwarded_cert::check);
}

#[test]
fn seeds_of_identities_hold() {
    replay("spiffe_id", spiffe_id::check);
}
