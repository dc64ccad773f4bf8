//! The `baremesh` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    baremesh::demo::hidden::run(std::env::args_os()).unwrap_or(ExitCode::SUCCESS)
}
