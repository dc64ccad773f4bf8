//! The `baremesh` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    // What the demo's hosts run is dispatched first: it stands in no help text.
    baremesh::demo::hidden::run(std::env::args_os()).unwrap_or_else(baremesh::verbs::run)
}
