//! What the fuzzer starts from, and what it once found, through the check that it makes.

use std::fs;
use std::path::Path;

#[path = "../../fuzz/checks/certificate.rs"]
mod certificate;

#[test]
fn seeds_of_certificates_hold() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/certificate");
    let mut count = 0;
    for entry in fs::read_dir(&seeds).expect("the target has seeds") {
        let path = entry.expect("an entry").path();
        // Shown only when the check fails.
        eprintln!("{}", path.display());
        certificate::check(&fs::read(&path).expect("a seed"));
        count += 1;
    }
    assert!(count >= 5, "only {count} seeds in {}", seeds.display());
}
