//! What stories share: hosts made of namespaces, the real binary, and waiting for conditions.
//!
//! A story is a plain `#[test]`, about 25 lines, run by `cargo test` and `cargo nextest` alike. The test process never
//! enters a namespace: hosts are held by keepers, and programs run there through `nsenter` (see
//! [`baremesh::demo::hosts`]), so threads, parallel stories and ordinary users need nothing special. As root every
//! story runs; as an ordinary user, one that needs several uids or cgroups begins with [`needs_root!`] and is listed
//! as not runnable.
//!
//! The binary has to be built before: `cargo build -p baremesh`, or name another one in `BAREMESH_BIN`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, bail};

/// Clocks that run fast.
pub mod clock;
/// A real Consul.
pub mod consul;
mod hosts;
mod http;
mod load;
mod mesh;
mod refusals;
mod root_only;

pub use baremesh::demo::hosts::{Pcap, Privilege, WAIT_BOUND};
pub use baremesh::demo::shop::exit;
pub use hosts::{Capture, Host, Net, Process};
pub use http::{Answer, Instance, Requests, told_by};
pub use load::{Load, errors_of, wait_for_errors};
pub use mesh::{Member, Mesh};
pub use refusals::Refusal;
pub use root_only::is_left_out;

/// Names the binary that the stories are about, if it is not the one that was built beside them.
const BINARY_VARIABLE: &str = "BAREMESH_BIN";

/// A network for the hosts of a story. Its name appears in the names of directories and cgroups.
///
/// # Panics
/// If the machine cannot have one, saying why.
#[track_caller]
pub fn net(name: &str) -> Net {
    match binary().and_then(|binary| baremesh::demo::hosts::Net::with_binary(name, &binary)) {
        Ok(net) => Net::from(net),
        Err(error) => panic!("no network for the story {name}: {error:#}"),
    }
}

/// The binary that the stories are about.
///
/// # Errors
/// If it is not there, telling how to build it.
pub fn binary() -> Result<PathBuf> {
    if let Some(named) = env::var_os(BINARY_VARIABLE) {
        let named = PathBuf::from(named);
        return match named.is_file() {
            true => std::path::absolute(&named).context("no working directory"),
            false => bail!("{BINARY_VARIABLE} names {}, which is no file", named.display()),
        };
    }
    // Test executables are in `deps`, beside which the package's binaries are.
    let test = env::current_exe().context("cannot find the path of the test executable")?;
    let built = test.parent().and_then(Path::parent).map(|directory| directory.join("baremesh"));
    match built {
        Some(built) if built.is_file() => Ok(built),
        _ => bail!("the binary is not built: run `cargo build -p baremesh` first, or set {BINARY_VARIABLE}"),
    }
}

/// Waits until `condition` holds.
///
/// # Panics
/// After [`WAIT_BOUND`], naming `what` was waited for.
#[track_caller]
pub fn wait_until(what: &str, condition: impl FnMut() -> bool) {
    if let Err(error) = baremesh::demo::hosts::wait_until(what, condition) {
        panic!("{error:#}");
    }
}

/// Runs `command` to its end and takes what it wrote.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn run(mut command: Command) -> Output {
    match command.stdin(Stdio::null()).output() {
        Ok(output) => output,
        Err(error) => panic!("cannot start {}: {error}", describe(&command)),
    }
}

/// The program and its arguments, without the environment that `Debug` adds.
pub fn describe(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// What `command` wrote to standard output, without the last line's end.
///
/// # Panics
/// If it cannot be started or does not succeed.
#[track_caller]
pub fn output_of(command: Command) -> String {
    let what = describe(&command);
    let Output { status, stdout, stderr } = run(command);
    let stdout = String::from_utf8_lossy(&stdout).trim_end().to_owned();
    assert!(status.success(), "{what} ended with {status}: {stdout}{}", String::from_utf8_lossy(&stderr));
    stdout
}

/// The code with which `command` ended; see [`exit`] for the shop's.
///
/// # Panics
/// If it cannot be started, or was ended by a signal.
#[track_caller]
pub fn exit_code_of(command: Command) -> u8 {
    let what = describe(&command);
    let status = run(command).status;
    match status.code().and_then(|code| u8::try_from(code).ok()) {
        Some(code) => code,
        None => panic!("{what} ended with {status}"),
    }
}

/// Whether the stories run as root.
pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}
