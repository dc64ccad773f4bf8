//! The `baremesh` command, as a library that the binary and the stories share.

pub mod demo;
