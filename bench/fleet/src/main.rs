//! Thousands of agents' control connections in one process, driven by lines on the standard input, one answer in JSON a line:
//! `fleet follow CONTROL SOCKET AGENTS SERVICES ENDPOINTS SUBSCRIBED`. Each connection speaks the real protocol: it joins with a
//! token, shows its address, registers, reads every message, checks every digest, acknowledges every version and renews its
//! lease. What it does not do is what an agent does with a state; `fleet snapshots SERVICES ENDPOINTS POLICIES AGENTS SUBSCRIBED` measures
//! that, in a process of its own.

/// What the hosts of the mesh run.
mod mesh;
/// What one agent holds of the state.
mod held;
/// What all have seen.
mod board;
/// One host: it joins, and follows the control server.
mod member;
/// What the process is told to do.
mod orders;
/// What an agent makes of a state of that size, and what it costs.
mod snapshots;

use std::io::{self, Write as _};
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};

use mesh::Size;

const USAGE: &str = "usage: fleet follow CONTROL SOCKET AGENTS SERVICES ENDPOINTS SUBSCRIBED|all\n       \
                     fleet snapshots SERVICES ENDPOINTS POLICIES AGENTS SUBSCRIBED|all";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The exit code tells even where this cannot be written.
            let _ = writeln!(io::stderr(), "fleet: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &[String]) -> Result<()> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["follow", control, socket, agents, services, endpoints, subscribed] => {
            let size = Size {
                agents: number(agents)?,
                services: number(services)?,
                endpoints: number(endpoints)?,
                subscribed: subscribing(subscribed)?,
            };
            size.check()?;
            orders::follow(number(control)?, socket.into(), size)
        }
        ["snapshots", services, endpoints, policies, agents, subscribed] => {
            let size = Size {
                agents: number(endpoints)?,
                services: number(services)?,
                endpoints: number(endpoints)?,
                subscribed: subscribing(subscribed)?,
            };
            size.check()?;
            snapshots::measure(size, number(policies)?, number(agents)?)
        }
        _ => bail!(USAGE),
    }
}

/// Of how many services the endpoints are asked for; none: of all.
fn subscribing(text: &str) -> Result<Option<usize>> {
    if text == "all" { Ok(None) } else { number(text).map(Some) }
}

fn number<T: FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    text.parse().with_context(|| format!("{text:?} makes no sense\n{USAGE}"))
}
