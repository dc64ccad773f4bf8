//! See the check.

#![no_main]

#[path = "../checks/spiffe_id.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
