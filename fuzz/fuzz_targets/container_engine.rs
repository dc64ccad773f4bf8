//! See the check.

#![no_main]

#[path = "../checks/container_engine.rs"]
mod check;

libfuzzer_sys::fuzz_target!(|data: &[u8]| check::check(data));
