//! The `baremesh` command, as a library that the binary and the stories share.

/// What is printed, and what the command ends with.
pub mod output;
/// The verbs of the command line.
pub mod verbs;
/// The control server: enrolment, certificates, the mesh's state, and its administration.
pub mod control;
/// A whole mesh on one machine.
pub mod demo;
