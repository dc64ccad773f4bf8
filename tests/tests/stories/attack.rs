//! What stories about attacks begin with: a service that speaks HTTP, whose program is the test itself and keeps what
//! reaches it, and lines on which an attacker says whatever it likes: the socket of a program of `web`, or a stream in a
//! tunnel, for which a member's key was stolen.

use std::fs;
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use baremesh_tests::{Member, WAIT_BOUND, wait_until};

use crate::pair::{Pair, virtual_addresses};
use crate::peer::{Stream, Tunnel, agent_of, authority, config, stolen};

/// Where the program listens.
const PROGRAM: u16 = 8080;
/// How long a line that says nothing more is listened to. Nothing depends on it but how long a story takes.
const QUIET: Duration = Duration::from_millis(300);

/// A service `shop` that speaks HTTP, and what its program was sent.
pub struct Target {
    pub pair: Pair,
    pub program: Program,
}

/// A program that keeps what it is sent, by connection, in the order in which they came.
#[derive(Clone)]
pub struct Program {
    connections: Arc<Mutex<Vec<Sent>>>,
}

/// What came on one connection.
#[derive(Clone, Debug, Default)]
pub struct Sent {
    /// All bytes.
    pub bytes: Vec<u8>,
    /// How it ended, once it has: in good order, or not.
    pub ended: Option<Result<(), ErrorKind>>,
}

impl Sent {
    /// As text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes).into_owned()
    }
}

/// What a program does with a connection: it is given all that has come so far, and what it has said is told by how
/// often it was asked.
pub type Answers = fn(&mut TcpStream, &Sent) -> io::Result<()>;

/// Answers the last request once it is whole.
pub fn answers_each(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    match is_whole(&sent.bytes) {
        true => stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"),
        false => Ok(()),
    }
}

/// The same, for requests whose path begins with `/other`: all others wait for their answers without end.
pub fn answers_others(stream: &mut TcpStream, sent: &Sent) -> io::Result<()> {
    match sent.text().rsplit_once(" HTTP/1.1\r\n").is_some_and(|(before, _)| before.ends_with(" /other")) {
        true => answers_each(stream, sent),
        false => Ok(()),
    }
}

/// Whether the last request is whole, in the form in which agents send it.
pub fn is_whole(bytes: &[u8]) -> bool {
    let text = String::from_utf8_lossy(bytes);
    let last = text.rfind(" HTTP/1.1\r\n").map_or("", |at| &text[at..]);
    let Some((head, body)) = last.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse::<usize>().ok());
    match length {
        // A byte that is no text may have become three.
        Some(length) => body.len() >= length,
        None if head.contains("transfer-encoding: chunked") => {
            (body.starts_with("0\r\n") || body.contains("\r\n0\r\n")) && body.ends_with("\r\n\r\n")
        }
        None => true,
    }
}

impl Program {
    /// Serves a listener until the test ends.
    pub fn start(listener: TcpListener, answers: Answers) -> Self {
        let program = Self { connections: Arc::default() };
        let shared = program.clone();
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let number = shared.with(|connections| {
                    connections.push(Sent::default());
                    connections.len() - 1
                });
                let program = shared.clone();
                thread::spawn(move || program.hear(stream, number, answers));
            }
        });
        program
    }

    fn hear(&self, mut stream: TcpStream, number: usize, answers: Answers) {
        let mut part = vec![0; 64 * 1024];
        let ended = loop {
            match stream.read(&mut part) {
                Ok(0) => break Ok(()),
                Ok(read) => {
                    let sent = self.with(|connections| {
                        connections[number].bytes.extend_from_slice(&part[..read]);
                        connections[number].clone()
                    });
                    if let Err(error) = answers(&mut stream, &sent) {
                        break Err(error.kind());
                    }
                }
                Err(error) => break Err(error.kind()),
            }
        };
        self.with(|connections| connections[number].ended = Some(ended));
    }

    fn with<T>(&self, look: impl FnOnce(&mut Vec<Sent>) -> T) -> T {
        look(&mut self.connections.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The connections so far that were sent anything.
    pub fn seen(&self) -> Vec<Sent> {
        self.with(|connections| connections.iter().filter(|sent| !sent.bytes.is_empty()).cloned().collect())
    }

    /// Everything that was sent so far.
    pub fn heard(&self) -> String {
        self.seen().iter().map(Sent::text).collect()
    }

    /// How many connections there were, and how many stand.
    pub fn counts(&self) -> (usize, usize) {
        self.with(|connections| {
            (connections.len(), connections.iter().filter(|sent| sent.ended.is_none()).count())
        })
    }

    /// Forgets what was sent.
    pub fn forget(&self) {
        self.with(|connections| connections.iter_mut().for_each(|sent| sent.bytes.clear()));
    }
}

impl Target {
    /// A mesh with a program that answers every request.
    #[track_caller]
    pub fn new(name: &str) -> Self {
        Self::with(Pair::new(name), answers_each)
    }

    /// The same for a mesh that stands, and a program that does as it likes.
    #[track_caller]
    pub fn with(pair: Pair, answers: Answers) -> Self {
        let program = Program::start(pair.store.host.listen(([127, 0, 0, 1], PROGRAM)), answers);
        pair.store.register("shop", ["--port", "80:8080", "--protocol", "http"]);
        pair.web.wait_for_endpoints("shop.default", 1);
        pair.mesh.wait_until_in_force();
        Self { pair, program }
    }

    /// Where programs of `web` reach the service.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(virtual_addresses(&self.pair.web, "shop")[0], 80)
    }

    /// A program's connection.
    #[track_caller]
    pub fn dial(&self) -> Line<'static> {
        Line::Socket(self.pair.web.host.connect(self.address()).expect("the agent takes it"))
    }

    /// A tunnel of somebody who has the key of `web`.
    #[track_caller]
    pub fn tunnel(&self) -> Tunnel {
        let key = stolen(&self.pair.web, "web");
        let to = agent_of(&self.pair.store.host);
        let name = Some("shop.default.mesh.internal");
        Tunnel::open(&self.pair.web.host, to, config(&self.pair.mesh, key), name).expect("a tunnel")
    }

    /// A stream in it to the service.
    #[track_caller]
    pub fn enter<'t>(&self, tunnel: &'t Tunnel) -> Line<'t> {
        let stream = tunnel.connect(&self.authority()).expect("an answer");
        assert_eq!(stream.status, 200, "the agent takes it");
        Line::Tunnel(tunnel, Box::new(stream))
    }

    /// What a CONNECT asks for.
    pub fn authority(&self) -> String {
        authority(self.pair.store.host.v4(), PROGRAM)
    }

    /// Both agents.
    pub fn agents(&self) -> [&Member; 2] {
        [&self.pair.web, &self.pair.store]
    }
}

/// A connection on which anything can be said.
pub enum Line<'t> {
    /// A program's socket.
    Socket(TcpStream),
    /// A stream in a tunnel.
    Tunnel(&'t Tunnel, Box<Stream>),
}

/// How a line ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// In good order.
    Closed,
    /// It was broken off.
    Reset,
    /// It did not.
    Open,
}

impl Line<'_> {
    /// Says something; whether it could still be said.
    pub fn say(&mut self, bytes: &[u8]) -> bool {
        match self {
            Self::Socket(socket) => socket.write_all(bytes).is_ok(),
            Self::Tunnel(tunnel, stream) => tunnel.send(stream, bytes).is_ok(),
        }
    }

    /// Says that nothing more comes.
    pub fn say_end(&mut self) {
        match self {
            Self::Socket(socket) => _ = socket.shutdown(Shutdown::Write),
            Self::Tunnel(tunnel, stream) => _ = tunnel.end(stream),
        }
    }

    /// What comes next, for so long; nothing at its end.
    pub fn hear_within(&mut self, patience: Duration) -> io::Result<Vec<u8>> {
        match self {
            Self::Socket(socket) => {
                socket.set_read_timeout(Some(patience))?;
                let mut part = vec![0; 64 * 1024];
                let read = socket.read(&mut part)?;
                part.truncate(read);
                Ok(part)
            }
            Self::Tunnel(tunnel, stream) => tunnel.receive(stream, patience),
        }
    }

    /// All that comes until the line ends, or is quiet for `patience`.
    pub fn hear_all_within(&mut self, patience: Duration) -> (Vec<u8>, End) {
        let mut heard = Vec::new();
        loop {
            match self.hear_within(patience) {
                Ok(part) if part.is_empty() => return (heard, End::Closed),
                Ok(part) => heard.extend_from_slice(&part),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                    return (heard, End::Open);
                }
                Err(_) => return (heard, End::Reset),
            }
        }
    }

    /// All that comes until the line ends, as text.
    pub fn hear_to_the_end(&mut self) -> (String, End) {
        let (heard, end) = self.hear_all_within(WAIT_BOUND);
        (String::from_utf8_lossy(&heard).into_owned(), end)
    }

    /// All that comes until nothing more seems to.
    pub fn hear_for_now(&mut self) -> (String, End) {
        let (heard, end) = self.hear_all_within(QUIET);
        (String::from_utf8_lossy(&heard).into_owned(), end)
    }

    /// What comes until it contains `text`.
    #[track_caller]
    pub fn hear_until(&mut self, text: &str) -> String {
        let mut heard = Vec::new();
        loop {
            let so_far = String::from_utf8_lossy(&heard).into_owned();
            if so_far.contains(text) {
                return so_far;
            }
            match self.hear_within(WAIT_BOUND) {
                Ok(part) if !part.is_empty() => heard.extend_from_slice(&part),
                ended => panic!("{text:?} did not come: {so_far:?}, {ended:?}"),
            }
        }
    }
}

/// The status with which an answer of HTTP/1 begins.
pub fn status_of(answer: &str) -> Option<u16> {
    answer.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()
}

/// The memory of a process (proc(5)).
pub fn memory_of(member: &Member) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", member.agent_pid())).expect("the agent runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("a field");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// Waits until the memory of agents no longer grows, and says by how much each is above what it was.
pub fn growth_of(agents: [&Member; 2], before: [u64; 2]) -> [u64; 2] {
    const SETTLED: u64 = 1 << 20;
    let mut last = [0; 2];
    wait_until("memory no longer grows", || {
        let now = agents.map(memory_of);
        let settled = (0..2).all(|at| now[at] <= last[at] + SETTLED);
        last = now;
        if !settled {
            thread::sleep(Duration::from_millis(500));
        }
        settled
    });
    [last[0].saturating_sub(before[0]), last[1].saturating_sub(before[1])]
}
