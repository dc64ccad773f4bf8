//! See the check.

#![no_main]

#[path = "../checks/forwarded_cert.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
