//! The shop's servers. Each connection has a thread, as in many a program that a mesh has to carry; the number of
//! connections is bounded by the descriptors that the process may open.

use std::io::{self, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use super::checksum::{Checksum, Pattern};
use super::connection::{Broken, Client, expect_line, read_line};
use super::{DEFAULT_TIMEOUT, LISTENING, addresses, number, say};

/// Enough for a handler, and little enough for thousands.
const STACK: usize = 128 * 1024;

/// How many connections may wait to be taken: more than std's 128, so that a burst of them is not slowed by SYNs that
/// have to be sent again.
pub(super) const BACKLOG: i32 = 4096;

/// How many bytes are read or made at once; a multiple of eight, as [`Pattern::fill`] asks.
pub(super) const CHUNK: usize = 64 * 1024;

/// How many bytes an echo reads at once.
const SIP: usize = 16 * 1024;

/// The pause after a connection that could not be taken, when descriptors have run out.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What the catalog says before it is asked.
pub(super) const GREETING: &str = "catalog: ask for a price";

/// What is for sale, and its price in pence.
const ITEMS: &[(&str, u32)] = &[("tea", 350), ("coffee", 420), ("lamp", 2900), ("kettle", 3150)];

/// The mark of a line that reports a failure.
pub(super) const ERROR: &str = "error: ";

/// What a server does with a connection.
#[derive(Clone)]
enum Trade {
    Echo,
    Sink,
    Source,
    Catalog,
    Orders(Client),
    Checkout(Client),
}

pub(super) fn run(role: &str, args: &[&str]) -> Result<(), Broken> {
    let (trade, rest) = match role {
        "echo" => (Trade::Echo, args),
        "sink" => (Trade::Sink, args),
        "source" => (Trade::Source, args),
        "catalog" => (Trade::Catalog, args),
        "orders" => {
            Client::parse(args, DEFAULT_TIMEOUT).map(|(catalog, rest)| (Trade::Orders(catalog), rest))?
        }
        _ => Client::parse(args, DEFAULT_TIMEOUT).map(|(orders, rest)| (Trade::Checkout(orders), rest))?,
    };
    let mut listeners = Vec::new();
    for address in addresses(rest)? {
        let explain =
            |error: io::Error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"));
        let listener = TcpListener::bind(address).map_err(explain).map_err(Broken::Own)?;
        // A second call changes the length of the queue.
        rustix::net::listen(&listener, BACKLOG).map_err(|error| Broken::Own(error.into()))?;
        listeners.push(listener);
    }
    // Only when all of them listen: whoever waits for a line may then use any address.
    for listener in &listeners {
        say(format_args!("{LISTENING} {}", listener.local_addr().map_err(Broken::Own)?));
    }
    thread::scope(|scope| {
        for listener in &listeners {
            scope.spawn(|| accept(listener, &trade));
        }
    });
    Ok(())
}

fn accept(listener: &TcpListener, trade: &Trade) {
    loop {
        let (stream, peer) = match listener.accept() {
            Ok(accepted) => accepted,
            Err(error) => {
                say(format_args!("cannot accept: {error}"));
                thread::sleep(ACCEPT_PAUSE);
                continue;
            }
        };
        say(format_args!("connection from {peer}"));
        let trade = trade.clone();
        let started = thread::Builder::new().stack_size(STACK).spawn(move || {
            if let Err(error) = trade.handle(&stream) {
                say(format_args!("connection from {peer} broke: {error}"));
            }
        });
        if let Err(error) = started {
            say(format_args!("connection from {peer} dropped: {error}"));
        }
    }
}

impl Trade {
    fn handle(&self, stream: &TcpStream) -> io::Result<()> {
        match self {
            Self::Echo => echo(stream),
            Self::Sink => sink(stream),
            Self::Source => source(stream),
            Self::Catalog => {
                writeln!(&*stream, "{GREETING}")?;
                answer_lines(stream, price)
            }
            Self::Orders(catalog) => answer_lines(stream, |line| order(catalog, line)),
            Self::Checkout(orders) => answer_lines(stream, |line| buy(orders, line)),
        }
    }
}

fn echo(mut stream: &TcpStream) -> io::Result<()> {
    let mut writer = stream;
    // On the stack, which is there already: thousands of threads with a large allocation each take gigabytes.
    let mut buffer = [0; SIP];
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.shutdown(Shutdown::Write),
            n => writer.write_all(&buffer[..n])?,
        }
    }
}

fn sink(mut stream: &TcpStream) -> io::Result<()> {
    let mut checksum = Checksum::default();
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => checksum.add(&buffer[..n]),
        }
    }
    say(format_args!("read {checksum}"));
    writeln!(stream, "{checksum}")
}

fn source(mut stream: &TcpStream) -> io::Result<()> {
    let line = expect_line(&mut BufReader::new(stream))?;
    let mut left: usize = number(&line).map_err(|broken| io::Error::other(broken.to_string()))?;
    let mut pattern = Pattern::new();
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let length = left.min(CHUNK);
        pattern.fill(&mut buffer[..length]);
        stream.write_all(&buffer[..length])?;
        left -= length;
    }
    stream.shutdown(Shutdown::Write)
}

fn answer_lines(mut stream: &TcpStream, answer: impl Fn(&str) -> Result<String, Broken>) -> io::Result<()> {
    let mut reader = BufReader::new(stream);
    while let Some(line) = read_line(&mut reader)? {
        say(format_args!("asked: {line}"));
        match answer(&line) {
            Ok(answer) => writeln!(stream, "{answer}")?,
            Err(broken) => writeln!(stream, "{ERROR}{broken}")?,
        }
    }
    Ok(())
}

fn item<'a>(line: &'a str, verb: &str) -> Result<&'a str, Broken> {
    let item = line.strip_prefix(verb).and_then(|rest| rest.strip_prefix(' '));
    item.ok_or_else(|| Broken::Wrong(format!("ask: {verb} ITEM")))
}

fn price(line: &str) -> Result<String, Broken> {
    let wanted = item(line, "price")?;
    match ITEMS.iter().find(|(name, _)| *name == wanted) {
        Some((name, price)) => Ok(format!("{name}: {price} pence")),
        None => Err(Broken::Wrong(format!("no {wanted} in the catalog"))),
    }
}

fn order(catalog: &Client, line: &str) -> Result<String, Broken> {
    let wanted = item(line, "order")?;
    let mut stream = catalog.connect()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let greeting = expect_line(&mut reader)?;
    if greeting != GREETING {
        return Err(Broken::Wrong(format!("this is no catalog: it says {greeting:?}")));
    }
    writeln!(stream, "price {wanted}")?;
    let price = successful(expect_line(&mut reader)?)?;
    Ok(format!("ordered {price}"))
}

fn buy(orders: &Client, line: &str) -> Result<String, Broken> {
    let wanted = item(line, "buy")?;
    let mut stream = orders.connect()?;
    writeln!(stream, "order {wanted}")?;
    let ordered = successful(expect_line(&mut BufReader::new(&stream))?)?;
    Ok(format!("thank you: {ordered}"))
}

/// A line that is not an error report.
pub(super) fn successful(line: String) -> Result<String, Broken> {
    match line.strip_prefix(ERROR) {
        None => Ok(line),
        Some(why) => Err(Broken::Wrong(why.to_owned())),
    }
}
