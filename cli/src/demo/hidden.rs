//! The subcommands that `baremesh` runs for itself inside a demo host: no repository and no other program is then
//! needed. They stand in no help text, and are dispatched before the command line proper is parsed.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use super::{hosts, shop};

/// What a hidden subcommand ends with when its arguments make no sense, as in `sysexits.h`.
pub(crate) const USAGE: u8 = 64;

/// Runs the hidden subcommand that `args` (the program's name first) ask for; `None` if they ask for none.
pub fn run(args: impl IntoIterator<Item = OsString>) -> Option<ExitCode> {
    let mut args = args.into_iter().skip(1);
    let verb = args.next()?;
    let rest: Vec<OsString> = args.collect();
    let outcome = match verb.to_str()? {
        hosts::KEEPER => hosts::keep(&rest),
        hosts::CAPTURE => hosts::capture_into(&rest),
        hosts::SOCKET => hosts::make_socket(&rest),
        hosts::INTO_CGROUP => hosts::enter_cgroup(&rest),
        shop::SHOP => return Some(ExitCode::from(shop::run(&rest))),
        _ => return None,
    };
    Some(match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // A closed standard error must not turn into a panic.
            let _ = writeln!(std::io::stderr(), "baremesh {}: {error:#}", verb.display());
            ExitCode::FAILURE
        }
    })
}
