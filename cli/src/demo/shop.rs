//! The shop: programs as they run on any host, with plain sockets and names from the system's resolver. They know
//! nothing of the mesh, so whatever they can do with each other through it is its merit alone. Each is a role of
//! the hidden subcommand `demo-shop`:
//!
//! | role | what it does |
//! |---|---|
//! | `echo ADDRESS…` | sends back what comes, and the end of it |
//! | `sink ADDRESS…` | reads to the end, then answers with length and checksum |
//! | `source ADDRESS…` | reads a number in a line, and sends so many bytes |
//! | `catalog ADDRESS…` | speaks first; then `price ITEM` |
//! | `orders CATALOG PORT ADDRESS…` | `order ITEM`: asks the catalog by name |
//! | `checkout ORDERS PORT ADDRESS…` | `buy ITEM`: asks orders by name |
//! | `call NAME PORT TEXT` | sends a line, prints the line that comes back |
//! | `greet NAME PORT` | sends nothing, prints the line that comes |
//! | `half-close NAME PORT TEXT` | sends, closes its half, prints the rest |
//! | `send NAME PORT BYTES` | bulk to a sink, checked |
//! | `fetch NAME PORT BYTES` | bulk from a source, checked |
//! | `slow NAME PORT BYTES` | the same, reading in small sips |
//! | `stall NAME PORT BYTES COUNT` | asks a source on many connections and never reads |
//! | `many NAME PORT COUNT` | opens connections to an echo, and uses each after the last has opened |
//! | `web NAME ADDRESS…` | HTTP/1 and HTTP/2: answers with what it was asked, and misbehaves as its query says |
//! | `hold NAME PORT` | exchanges lines with an echo until the connection ends, and says why it did |
//! | `get [OPTION…] URL` | HTTP requests, a line of JSON for each answer |
//! | `stream [OPTION…] URL` | a call in gRPC's form whose messages come back one by one |
//! | `websocket [OPTION…] URL` | upgrades, and exchanges messages one by one |
//!
//! Clients take `--timeout SECONDS` before the name, for each wait. How they end: [`exit`].

mod bulk;
mod checksum;
mod clients;
mod connection;
mod http;
mod servers;

use std::ffi::OsString;
use std::fmt;
use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use super::hidden::USAGE;
use connection::{Broken, Client};

/// The hidden subcommand.
pub(crate) const SHOP: &str = "demo-shop";

/// What a server writes, an address after it, when it can be reached.
pub const LISTENING: &str = "listening on";

/// How long a client waits for anything unless it is told otherwise.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// How the shop's clients end.
pub mod exit {
    /// All went as it should.
    pub const DONE: u8 = 0;
    /// The other end answered, but with an error or with the wrong bytes.
    pub const WRONG: u8 = 1;
    /// The name stands for no address.
    pub const NO_NAME: u8 = 10;
    /// No connection: refused, unreachable, or no answer to the attempt.
    pub const NO_CONNECTION: u8 = 11;
    /// The connection ended, by a close or a reset, before all was said.
    pub const CUT: u8 = 12;
    /// The connection stood, but nothing came in time.
    pub const SILENT: u8 = 13;
}

/// Runs a role; the value is the exit code.
pub(crate) fn run(args: &[OsString]) -> u8 {
    let args: Vec<&str> = args.iter().filter_map(|arg| arg.to_str()).collect();
    let Some((role, rest)) = args.split_first() else {
        return usage("no role");
    };
    raise_descriptor_limit();
    let outcome = match *role {
        "echo" | "sink" | "source" | "catalog" | "orders" | "checkout" => servers::run(role, rest),
        "web" => http::serve(rest),
        "get" => http::get(rest),
        "stream" => http::stream(rest),
        "websocket" => http::websocket(rest),
        _ => Client::parse(rest, DEFAULT_TIMEOUT).and_then(|(client, rest)| run_client(role, &client, rest)),
    };
    match outcome {
        Ok(()) => exit::DONE,
        Err(Broken::Usage(why)) => usage(&why),
        Err(broken) => {
            // Without standard error the exit code still tells.
            let _ = writeln!(io::stderr(), "{role}: {broken}");
            broken.code()
        }
    }
}

fn run_client(role: &str, client: &Client, rest: &[&str]) -> Result<(), Broken> {
    match (role, rest) {
        ("call", [text]) => clients::call(client, text),
        ("greet", []) => clients::greet(client),
        ("half-close", [text]) => clients::half_close(client, text),
        ("hold", []) => clients::hold(client),
        ("many", [count]) => clients::many(client, number(count)?),
        ("send", [bytes]) => bulk::send(client, number(bytes)?),
        ("fetch", [bytes]) => bulk::fetch(client, number(bytes)?),
        ("slow", [bytes]) => bulk::slow(client, number(bytes)?),
        ("stall", [bytes, count]) => bulk::stall(client, number(bytes)?, number(count)?),
        _ => Err(Broken::Usage(format!("no role {role} with {} further arguments", rest.len()))),
    }
}

fn usage(why: &str) -> u8 {
    let _ = writeln!(io::stderr(), "demo-shop: {why}");
    USAGE
}

fn number<N: FromStr>(text: &str) -> Result<N, Broken> {
    text.parse().map_err(|_| Broken::Usage(format!("{text:?} is not a number")))
}

fn addresses(texts: &[&str]) -> Result<Vec<SocketAddr>, Broken> {
    if texts.is_empty() {
        return Err(Broken::Usage("a server needs an address to listen on".into()));
    }
    let parse =
        |text: &&str| text.parse().map_err(|_| Broken::Usage(format!("{text:?} is no address with a port")));
    texts.iter().map(parse).collect()
}

/// Writes a line to standard output at once; who no longer reads it is not waited for.
fn say(line: impl fmt::Display) {
    let mut out = io::stdout().lock();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

/// Thousands of connections need as many descriptors as the hard limit allows.
fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
