//! Connection tracking at its limits: a full table, and connections that translation makes look alike.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tempfile::TempDir;

use super::conntrack::Tracked;
use super::flows::{from_before, untranslated};
use super::namespace::{Peer, addresses, eventually, namespace_test, plan, sh};
use super::{Capture, CapturePlan, Change};
use crate::attribution::look_up::list_sockets;
use crate::attribution::sock_diag::dump::Listed;
use crate::attribution::{Attributor, Cgroups};

/// A limit that only a lost packet reaches.
const LIMIT: Duration = Duration::from_secs(60);

const ACK: u8 = 0x10;
const RST_ACK: u8 = 0x14;

fn address(text: &str) -> SocketAddr {
    text.parse().expect("an address")
}

/// Connects from a port of its own choice, which other sockets may have chosen too.
fn dial_from(port: u16, to: &str) -> Socket {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_address(true).expect("set");
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], port)).into()).expect("bound");
    socket.set_nonblocking(true).expect("set");
    let _ = socket.connect(&address(to).into());
    socket
}

namespace_test! {
    fn connections_that_look_alike_after_translation_are_not_mixed_up() {
        let runtime = TempDir::new().expect("a directory");
        let mut capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        let agent = TcpListener::bind("127.0.0.1:15001").expect("bound");
        agent.set_nonblocking(true).expect("set");
        capture.apply(&plan()).expect("applied");
        // One port of one address towards three destinations, which all become 127.0.0.1:15001.
        let destinations = ["240.240.0.1:80", "240.240.0.2:80", "240.240.0.3:80"];
        let clients = destinations.map(|to| dial_from(40_000, to));
        let mut accepted = Vec::new();
        eventually("all of them arrive", || {
            accepted.extend(agent.accept().map(|(server, _)| server).ok());
            accepted.len() == clients.len()
        });
        let mut attributor = Attributor::new(Cgroups::of_system()).expect("a netlink socket");
        let mut known = 0;
        for mut server in accepted {
            let to = SockRef::from(&server).original_dst_v4().expect("redirected").as_socket().expect("an address");
            let client = destinations.iter().position(|at| address(at) == to).expect("one of the three");
            // Whose it is: of this very client, though the kernel gave all but one of them another port.
            let owner = attributor.owner(&server, to).unwrap_or_else(|error| panic!("{to}: {error}"));
            known += 1;
            assert_eq!(u64::from(owner.inode), rustix::fs::fstat(&clients[client]).expect("open").st_ino, "{to}");
            server.set_nonblocking(false).expect("set");
            server.write_all(&[client as u8]).expect("written");
        }
        assert_eq!(known, clients.len());
        for (number, client) in clients.into_iter().enumerate() {
            client.set_nonblocking(false).expect("set");
            let mut byte = [0];
            TcpStream::from(client).read_exact(&mut byte).expect("its own answer");
            assert_eq!(usize::from(byte[0]), number);
        }
    }
}

/// A connection through the rules, and its other end.
struct Brought {
    client: Socket,
    server: TcpStream,
}

impl Brought {
    fn dial(agent: &TcpListener, port: u16, to: &str) -> Self {
        let (client, mut accepted) = (dial_from(port, to), None);
        eventually("it arrives", || {
            accepted = agent.accept().ok();
            accepted.is_some()
        });
        Self { client, server: accepted.expect("it has arrived").0 }
    }

    /// The port that the agent sees.
    fn seen(&self) -> u16 {
        self.server.peer_addr().expect("open").port()
    }

    /// The port that it came from.
    fn port(&self) -> u16 {
        self.client.local_addr().expect("open").as_socket().expect("an address").port()
    }

    fn inode(&self) -> u64 {
        rustix::fs::fstat(&self.client).expect("open").st_ino
    }

    /// Ends it in a way that the kernel forgets soon.
    fn reset(self) {
        for end in [SockRef::from(&self.client), SockRef::from(&self.server)] {
            end.set_linger(Some(Duration::ZERO)).expect("set");
        }
    }
}

namespace_test! {
    fn a_port_that_the_kernel_gave_is_not_taken_for_whom_it_belongs_to() {
        let runtime = TempDir::new().expect("a directory");
        let mut capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        let agent = TcpListener::bind("127.0.0.1:15001").expect("bound");
        agent.set_nonblocking(true).expect("set");
        let (first, second) = ("240.240.0.1:80", "240.240.0.2:80");
        let plan = CapturePlan { endpoints: addresses(&[second]), ..plan() };
        capture.apply(&plan).expect("applied");
        let mut attributor = Attributor::new(Cgroups::of_system()).expect("netlink sockets");
        // For a port from 512 to 1023 the kernel takes one of 600 to 1023, which makes coincidences frequent.
        let (firsts, seconds): (Vec<_>, Vec<_>) = (600..700)
            .map(|port| (Brought::dial(&agent, port, first), Brought::dial(&agent, port, second)))
            .unzip();
        assert!(seconds.iter().zip(600..).all(|(second, port)| second.seen() != port), "all were given others");
        // Instead of ten seconds, where a test may set it.
        let _ = std::fs::write("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", "1");
        firsts.into_iter().for_each(Brought::reset);
        let listed = list_sockets(Listed::Open).expect("listed").entries;
        assert!(!from_before(&plan, &listed).is_empty(), "by their ports they do not come through the agent");
        assert_eq!(from_before(&plan, &untranslated(&plan, listed)), [], "all of them do");
        let mut others = (1..=254).map(|host| format!("240.240.1.{host}:80")).cycle();
        eventually("the ports of the first are forgotten", || {
            // Each takes a port for as long, and there are not many.
            std::thread::sleep(LIMIT / 120);
            let probe = Brought::dial(&agent, 600, &others.next().expect("without end"));
            let is_free = probe.seen() == 600;
            probe.reset();
            is_free
        });
        // From each of these one can come to the same place again.
        let mut taken = seconds.iter().map(Brought::seen).filter(|port| *port >= 700);
        let mut thirds = Vec::new();
        eventually("the kernel gives a port from which another socket came to the same place", || {
            let third = Brought::dial(&agent, taken.next().expect("one of a hundred is enough"), second);
            let twin = seconds.iter().zip(600..).find(|(_, port)| third.seen() == *port).map(|(twin, _)| twin);
            for one in twin.into_iter().chain([&third]) {
                let owner = attributor.owner(&one.server, address(second)).expect("known");
                assert_eq!(u64::from(owner.inode), one.inode(), "it came from {}", one.port());
            }
            thirds.push(third);
            twin.is_some()
        });
    }
}

/// Connects from a port of its own choice at whatever address.
fn try_from_port(port: u16, to: &str) -> Socket {
    let to = address(to);
    let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).expect("a socket");
    socket.set_reuse_address(true).expect("set");
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let from = SocketAddr::new(address(any).ip(), port);
    socket.bind(&from.into()).expect("bound");
    socket.set_nonblocking(true).expect("set");
    let _ = socket.connect(&to.into());
    socket
}

namespace_test! {
    fn what_is_left_from_before_the_capture_is_not_in_the_way_of_what_comes_after() {
        let runtime = TempDir::new().expect("a directory");
        let peer = Peer::new();
        let agents = ["127.0.0.1:15001", "[::1]:15001"].map(|at| TcpListener::bind(at).expect("bound"));
        agents.iter().for_each(|agent| agent.set_nonblocking(true).expect("set"));
        let arrived = |what: &str| {
            eventually(what, || agents.iter().any(|agent| agent.accept().is_ok()));
        };
        let mut capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        capture.apply(&plan()).expect("applied");
        // Nobody has these addresses, and nobody says so. One gives up, another one is tried still.
        let (fourth, sixth) = ("10.9.0.9:7000", "[fd09::9]:7000");
        for address in ["10.9.0.9", "fd09::9"] {
            sh(&format!("ip neigh add {address} lladdr 02:00:00:00:00:09 nud permanent dev eth0"));
        }
        drop([try_from_port(40_000, fourth), try_from_port(40_000, sixth)]);
        let tried = try_from_port(40_001, fourth);
        // Somebody answers here. One connection ends by a reset, one stays open.
        let third = "10.9.0.2:7000";
        let server = peer.there(|| TcpListener::bind(third).expect("bound"));
        let serve = |port| {
            let client = try_from_port(port, third);
            (client, server.accept().expect("accepted").0)
        };
        let (reset, end) = serve(40_000);
        SockRef::from(&end).set_linger(Some(Duration::ZERO)).expect("set");
        drop(end);
        eventually("it hears of the reset", || reset.take_error().expect("asked").is_some());
        drop(reset);
        let (open, mut served) = serve(40_003);
        let captured = CapturePlan { endpoints: addresses(&[third, fourth, sixth]), ..plan() };
        let applied = capture.follow(&captured).expect("applied");
        assert!(matches!(applied.change, Change::Elements { .. }), "{applied:?}");
        let _first = [third, fourth, sixth].map(|to| {
            let socket = try_from_port(40_000, to);
            arrived(&format!("a connection to {to} from the port of before"));
            socket
        });
        arrived("what is tried still");
        drop(tried);
        open.send(b"x").expect("sent");
        served.read_exact(&mut [0]).expect("what is open goes on");

        // The same where all rules are put in place at once, as an agent does that begins.
        sh("nft delete element inet baremesh endpoints4 '{ 10.9.0.9 . 7000 }'");
        drop(try_from_port(40_002, fourth));
        let mut next = Capture::new(runtime.path()).expect("nft and ip are installed");
        assert_eq!(next.apply(&captured).expect("applied").change, Change::Replaced);
        let _second = try_from_port(40_002, fourth);
        arrived("a connection from the port of before");
    }
}

/// Both ends of connections that exist in the table alone.
struct Forger {
    here: Socket,
    there: Socket,
}

impl Forger {
    const HERE: [u8; 4] = [127, 0, 0, 2];
    const THERE: [u8; 4] = [127, 0, 0, 3];

    fn new() -> Self {
        let raw = |at: [u8; 4]| {
            let socket = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("a raw socket");
            socket.bind(&SocketAddr::from((at, 0)).into()).expect("bound");
            socket
        };
        Self { here: raw(Self::HERE), there: raw(Self::THERE) }
    }

    /// A packet, its answer, and one after that. Connection tracking takes them for a connection from before it looked,
    /// and one that both ends speak in. Their checksum is wrong: no socket answers.
    fn exchange(&self, number: u32, flags: u8) -> std::io::Result<()> {
        let ports = [(number % 60_000) as u16 + 1_024, (number / 60_000) as u16 + 2_000];
        let (packet, answer) = (segment(ports, flags), segment([ports[1], ports[0]], flags));
        let (here, there) = (SocketAddr::from((Self::HERE, 0)), SocketAddr::from((Self::THERE, 0)));
        self.here.send_to(&packet, &there.into())?;
        self.there.send_to(&answer, &here.into())?;
        self.here.send_to(&packet, &there.into()).map(drop)
    }
}

/// A TCP header with sequence and acknowledgement number 1, and no valid checksum.
fn segment([from, to]: [u16; 2], flags: u8) -> Vec<u8> {
    let words = [from, to, 0, 1, 0, 1, 0x5000 | u16::from(flags), 1024, 0xdead, 0];
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

namespace_test! {
    fn a_full_table_lets_nothing_past_the_agent_and_what_is_open_goes_on() {
        let runtime = TempDir::new().expect("a directory");
        let mut capture = Capture::new(runtime.path()).expect("nft and ip are installed");
        let peer = Peer::new();
        let app = peer.there(|| TcpListener::bind("10.9.0.2:8080").expect("bound"));
        let agent = TcpListener::bind("127.0.0.1:15001").expect("bound");
        let endpoints = addresses(&["10.9.0.2:8080"]);
        capture.apply(&CapturePlan { endpoints, ..plan() }).expect("applied");
        let connect = || TcpStream::connect_timeout(&address("240.240.7.7:80"), LIMIT);
        let mut client = connect().expect("connected");
        let (mut server, _) = agent.accept().expect("accepted");
        let Some(before) = Tracked::read() else {
            assert!(sh("cat /proc/self/uid_map").split_whitespace().last() == Some("1"), "only root is told");
            return;
        };
        assert!(!before.is_nearly_full(), "{before}");

        let forger = Forger::new();
        // Enough of them for a table twice as large as it may be.
        let most = u32::try_from(before.limit * 2).expect("a limit that a test can reach");
        let forged = (1..most).take_while(|number| forger.exchange(*number, ACK).is_ok()).count();
        let tracked = Tracked::read().expect("it was there before");
        assert!(tracked.is_nearly_full(), "{tracked} after {forged}");
        let refused = Forger::new().exchange(most, ACK);
        assert_eq!(refused.expect_err("the table is full").kind(), ErrorKind::PermissionDenied);

        // What was open goes on; a new one comes neither to the agent nor past it.
        client.write_all(b"x").expect("written");
        server.read_exact(&mut [0]).expect("arrives");
        for listener in [&agent, &app] {
            listener.set_nonblocking(true).expect("set");
        }
        let _waiting = ["240.240.7.7:80", "10.9.0.2:8080"].map(|to| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            socket.set_nonblocking(true).expect("set");
            assert!(socket.connect(&address(to).into()).is_err());
            socket
        });
        for listener in [&agent, &app] {
            assert_eq!(listener.accept().expect_err("nobody came").kind(), ErrorKind::WouldBlock);
        }

        // Connections end, and there is room again.
        sh("echo 1 > /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close");
        (1..=forged as u32).for_each(|number| drop(forger.exchange(number, RST_ACK)));
        agent.set_nonblocking(false).expect("set");
        let _client = connect().expect("connected");
        agent.accept().expect("accepted");
    }
}
