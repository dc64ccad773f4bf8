//! The `baremesh` command.
fn main() {}
