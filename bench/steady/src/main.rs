//! `steady ADDRESS RATE WARM-UP SECONDS CONNECTIONS`: HTTP/1.1 requests at a constant rate, whatever becomes of them, over
//! kept connections. A request's time runs from when it fell due, and so one answer that is late shows in all requests
//! that waited behind it. What is printed at the end also tells how punctual the loader itself was.

mod connection;
mod load;
mod report;

use std::io::{self, Write as _};
use std::num::NonZeroU32;
use std::process::ExitCode;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use load::Plan;

const USAGE: &str = "usage: steady ADDRESS RATE WARM-UP-SECONDS SECONDS CONNECTIONS";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let said = plan(&arguments).and_then(|plan| Ok(report::line(&load::run(&plan)?)));
    let written = said.and_then(|line| writeln!(io::stdout(), "{line}").context("nobody reads the report"));
    match written {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The exit code tells even where this cannot be written.
            let _ = writeln!(io::stderr(), "steady: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn plan(arguments: &[String]) -> Result<Plan> {
    let [address, rate, warm_up, seconds, connections] = arguments else { bail!(USAGE) };
    let plan = Plan {
        address: parsed(address)?,
        rate: parsed::<NonZeroU32>(rate)?,
        warm_up: Duration::from_secs(parsed(warm_up)?),
        measured: Duration::from_secs(parsed(seconds)?),
        connections: parsed(connections)?,
    };
    if plan.measured.is_zero() || plan.connections == 0 {
        bail!("no time, or no connection, to measure anything in");
    }
    Ok(plan)
}

fn parsed<T: FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().with_context(|| format!("{text:?} makes no sense: {USAGE}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, is_good: bool) {
        let arguments: Vec<String> = line.split(' ').map(str::to_owned).collect();
        assert_eq!(plan(&arguments).is_ok(), is_good, "{line}");
    }

    #[test]
    fn arguments_are_read_or_refused() {
        check("10.0.0.1:80 1000 1 10 16", true);
        for bad in [
            "10.0.0.1 1000 1 10 16",
            "10.0.0.1:80 0 1 10 16",
            "10.0.0.1:80 1000 1 0 16",
            "10.0.0.1:80 1000 1 10 0",
            "x",
        ] {
            check(bad, false);
        }
    }
}
