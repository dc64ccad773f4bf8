//! The `baremesh` command.

use std::process::ExitCode;

/// Relayed data is allocated and freed in buffers of many sizes, which the system's allocator gives back to the kernel
/// and asks for again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    // What the demo's hosts run is dispatched first: it stands in no help text.
    baremesh::demo::hidden::run(std::env::args_os()).unwrap_or_else(baremesh::verbs::run)
}
