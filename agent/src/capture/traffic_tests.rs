//! What the rules do to real connections: on this host and from another one at the end of a cable.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tempfile::TempDir;

use super::namespace::{Peer, addresses, eventually, namespace_test, plan, service, sh};
use super::plan::AGENT_MARK;
use super::{Anchor, Capture, CapturePlan, DnsCapture, Outbound, Strictness, Waiting, WhenGone, apply_gone};

/// A limit that only a lost packet reaches.
const LIMIT: Duration = Duration::from_secs(60);

fn capture() -> (Capture, TempDir) {
    let runtime = TempDir::new().expect("a directory");
    (Capture::new(runtime.path()).expect("nft and ip are installed"), runtime)
}

fn listen(address: &str) -> TcpListener {
    TcpListener::bind(address).unwrap_or_else(|error| panic!("{address}: {error}"))
}

fn connect(address: &str) -> std::io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().expect("an address"), LIMIT)?;
    stream.set_read_timeout(Some(LIMIT))?;
    Ok(stream)
}

/// Connects as the agent does, or as one who only has its mark.
fn connect_with_mark(address: &str) -> std::io::Result<TcpStream> {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_mark(AGENT_MARK)?;
    socket.connect(&SockAddr::from(address))?;
    Ok(socket.into())
}

/// That a byte goes from the client to whoever accepts at `listener`, and one back.
fn meets(client: std::io::Result<TcpStream>, listener: &TcpListener) -> (TcpStream, TcpStream) {
    let mut client = client.expect("a connection");
    let (mut server, _) = listener.accept().expect("it arrives here");
    server.set_read_timeout(Some(LIMIT)).expect("a timeout");
    echo(&mut client, &mut server);
    (client, server)
}

fn echo(client: &mut TcpStream, server: &mut TcpStream) {
    let mut byte = [0];
    client.write_all(b"x").expect("written");
    server.read_exact(&mut byte).expect("arrives");
    server.write_all(b"x").expect("written");
    client.read_exact(&mut byte).expect("arrives");
}

/// Sends a SYN and waits for nothing.
fn straight(address: &str) -> Socket {
    let address: SocketAddr = address.parse().expect("an address");
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).expect("a socket");
    socket.set_nonblocking(true).expect("set");
    let _ = socket.connect(&address.into());
    socket
}

fn is_reset(result: std::io::Result<usize>) -> bool {
    matches!(result, Err(error) if matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe))
}

fn packets(capture: &Capture, counter: &str) -> u64 {
    capture.status().expect("status").counters[counter].packets
}

fn orders() -> super::LocalService {
    service("orders", 8080, Strictness::Strict, WhenGone::Closed)
}

namespace_test! {
    fn virtual_addresses_lead_to_the_agent_and_nowhere_else() {
        let (mut capture, _runtime) = capture();
        let bystander = listen("0.0.0.0:80");
        bystander.set_nonblocking(true).expect("set");
        let (v4, v6) = (listen("127.0.0.1:15001"), listen("[::1]:15001"));
        capture.apply(&plan()).expect("applied");
        meets(connect("240.240.7.7:80"), &v4);
        meets(connect("[fd00:240::7]:80"), &v6);
        assert_eq!(packets(&capture, "outbound_virtual"), 2);
        // SSH is never captured, and a virtual address must not lead to this host's own sshd either. Nor does the
        // agent's own connection, which would come back to it.
        let _sshd = listen("0.0.0.0:22");
        assert_eq!(connect("240.240.7.7:22").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
        assert_eq!(connect_with_mark("240.240.7.7:80").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
        assert!(packets(&capture, "virtual_stray") >= 2);
        for (own, address) in [("0.0.0.0:0", "240.240.7.7:9"), ("[::]:0", "[fd00:240::7]:9")] {
            let _echo = UdpSocket::bind(own.replace(":0", ":9")).expect("bound");
            let socket = UdpSocket::bind(own).expect("bound");
            socket.connect(address).expect("connected");
            eventually("a datagram is refused", || socket.send(b"x").is_err());
        }
        assert!(packets(&capture, "virtual_protocol") >= 2);
        assert_eq!(bystander.accept().expect_err("nothing came").kind(), ErrorKind::WouldBlock);
    }
}

namespace_test! {
    fn virtual_addresses_are_not_reached_from_other_hosts() {
        let (mut capture, _runtime) = capture();
        let peer = Peer::new();
        let _bystander = listen("0.0.0.0:80");
        capture.apply(&plan()).expect("applied");
        let _waiting = peer.there(|| {
            sh("ip route add 240.240.0.0/16 via 10.9.0.1");
            straight("240.240.7.7:80")
        });
        eventually("it is dropped", || packets(&capture, "virtual_from_outside") > 0);
    }
}

namespace_test! {
    fn endpoints_are_captured_and_ssh_never_is() {
        let (mut capture, _runtime) = capture();
        let peer = Peer::new();
        let there = |address: &'static str| peer.there(|| listen(address));
        let (app, app6, sshd_there, other) =
            (there("10.9.0.2:8080"), there("[fd09::2]:8080"), there("10.9.0.2:22"), there("10.9.0.2:9999"));
        let (agent, agent6) = (listen("127.0.0.1:15001"), listen("[::1]:15001"));
        let mut old = connect("10.9.0.2:8080").expect("before the capture");
        let (mut accepted, _) = app.accept().expect("before the capture");
        let endpoints = addresses(&["10.9.0.2:8080", "[fd09::2]:8080", "10.9.0.2:22"]);
        let local = vec![service("shell", 22, Strictness::Strict, WhenGone::Closed)];
        let mut plan = CapturePlan { endpoints, local, ..plan() };
        capture.apply(&plan).expect("applied");
        meets(connect("10.9.0.2:8080"), &agent);
        meets(connect("[fd09::2]:8080"), &agent6);
        meets(connect("10.9.0.2:22"), &sshd_there);
        meets(connect("10.9.0.2:9999"), &other);
        meets(connect_with_mark("10.9.0.2:8080"), &app);
        meets(connect_with_mark("[fd09::2]:8080"), &app6);
        echo(&mut old, &mut accepted);
        // Somebody else's connection to this host's own sshd, with port 22 registered as a strict service.
        let sshd = listen("0.0.0.0:22");
        peer.there(|| meets(connect("10.9.0.1:22"), &sshd));
        meets(connect("127.0.0.1:22"), &sshd);
        // The mark without the uid exempts nothing.
        plan.agent_uid = 990;
        capture.apply(&plan).expect("applied");
        meets(connect_with_mark("10.9.0.2:8080"), &agent);
        // Everything else is captured only if that is asked for.
        plan.outbound = Outbound::All;
        capture.apply(&plan).expect("applied");
        meets(connect("10.9.0.2:9999"), &agent);
        meets(connect("10.9.0.2:22"), &sshd_there);
    }
}

namespace_test! {
    fn neighbours_cannot_go_round_the_agent() {
        let (mut capture, _runtime) = capture();
        let _peer = Peer::new();
        let (app, app6) = (listen("0.0.0.0:8080"), listen("[::1]:8080"));
        let (agent, agent6) = (listen("127.0.0.1:15001"), listen("[::1]:15001"));
        let (mut old, mut server) = meets(connect("127.0.0.1:8080"), &app);
        capture.apply(&CapturePlan { local: vec![orders()], ..plan() }).expect("applied");
        // A connection from before is ended, and its client is told.
        let _ = old.write(b"x");
        assert!(is_reset(old.read(&mut [0])), "the caller from before the capture is reset");
        assert!(packets(&capture, "local_stray") > 0);
        server.set_nonblocking(true).expect("set");
        assert!(!matches!(server.read(&mut [0]), Ok(1)), "its byte does not arrive");
        for address in ["127.0.0.1:8080", "127.4.5.6:8080", "10.9.0.1:8080"] {
            meets(connect(address), &agent);
        }
        for address in ["[::1]:8080", "[fd09::1]:8080"] {
            meets(connect(address), &agent6);
        }
        meets(connect_with_mark("127.0.0.1:8080"), &app);
        meets(connect_with_mark("[::1]:8080"), &app6);
    }
}

namespace_test! {
    fn what_the_agent_sent_before_it_closed_arrives() {
        let (mut capture, _runtime) = capture();
        let app = listen("127.0.0.1:8080");
        capture.apply(&CapturePlan { local: vec![orders()], ..plan() }).expect("applied");
        let mut agent = connect_with_mark("127.0.0.1:8080").expect("connected");
        let (mut server, _) = app.accept().expect("accepted");
        server.set_read_timeout(Some(LIMIT)).expect("a timeout");
        agent.set_nonblocking(true).expect("set");
        let mut sent = 0;
        while let Ok(count) = agent.write(&[7; 1 << 16]) {
            sent += count;
        }
        // Both buffers are full: the rest, and the end, leave a socket that nobody owns any more.
        drop(agent);
        assert_eq!(server.read_to_end(&mut Vec::new()).expect("all of it, and the end"), sent);
        assert_eq!(packets(&capture, "local_stray"), 0);
    }
}

namespace_test! {
    fn a_stray_packet_sent_ahead_does_not_lead_round_the_agent() {
        let (mut capture, _runtime) = capture();
        let peer = Peer::new();
        let app = listen("0.0.0.0:9090");
        let carts = service("carts", 9090, Strictness::Permissive, WhenGone::Open);
        capture.apply(&CapturePlan { local: vec![carts], ..plan() }).expect("applied");
        // On a host whose firewall swallows resets, connection tracking goes on to take this acknowledgement of
        // nothing for a connection from before the capture, and what follows it for a part of that.
        sh("nft 'table inet foreign { chain c { type filter hook output priority -300; tcp flags & rst == rst drop; }; }'");
        let _waiting = peer.there(|| {
            let raw = Socket::new(Domain::IPV4, Type::RAW, Some(Protocol::TCP)).expect("a raw socket");
            let to: SocketAddr = "10.9.0.1:0".parse().expect("an address");
            raw.send_to(&acknowledgement(40_000, 9090), &to.into()).expect("sent");
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
            let from: SocketAddr = "10.9.0.2:40000".parse().expect("an address");
            socket.bind(&from.into()).expect("bound");
            socket.set_nonblocking(true).expect("set");
            let to: SocketAddr = "10.9.0.1:9090".parse().expect("an address");
            let _ = socket.connect(&to.into());
            socket
        });
        eventually("refused", || packets(&capture, "inbound_stray") > 0);
        app.set_nonblocking(true).expect("set");
        assert_eq!(app.accept().expect_err("nobody came").kind(), ErrorKind::WouldBlock);
    }
}

/// A TCP header with the ACK flag, from 10.9.0.2 to 10.9.0.1.
fn acknowledgement(from: u16, to: u16) -> Vec<u8> {
    let words = [from, to, 0, 1, 0, 1, 0x5010, 1024, 0, 0];
    // RFC 9293, section 3.1: over the addresses, the protocol, the length and the header.
    let pseudo = [0x0a09, 0x0002, 0x0a09, 0x0001, 6, 20];
    let sum: u32 = words.iter().chain(&pseudo).map(|word| u32::from(*word)).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let mut header: Vec<u8> = words.iter().flat_map(|word: &u16| word.to_be_bytes()).collect();
    header[16..18].copy_from_slice(&(!folded as u16).to_be_bytes());
    header
}

namespace_test! {
    fn other_hosts_come_through_the_agent() {
        let (mut capture, _runtime) = capture();
        let peer = Peer::new();
        let dial = |address: &'static str| peer.there(|| connect(address));
        let (strict, permissive) = (listen("0.0.0.0:8080"), listen("[::]:9090"));
        let (inbound, outbound, hbone) = (listen("[::]:15006"), listen("[::]:15001"), listen("[::]:15008"));
        let (mut old_strict, _server) = meets(dial("10.9.0.1:8080"), &strict);
        let (mut old_permissive, mut server) = meets(dial("[fd09::1]:9090"), &permissive);
        let carts = service("carts", 9090, Strictness::Permissive, WhenGone::Open);
        capture.apply(&CapturePlan { local: vec![orders(), carts], ..plan() }).expect("applied");
        for address in ["10.9.0.1:8080", "[fd09::1]:8080", "10.9.0.1:9090", "[fd09::1]:9090"] {
            meets(dial(address), &inbound);
        }
        meets(dial("10.9.0.1:15008"), &hbone);
        echo(&mut old_permissive, &mut server);
        let _ = old_strict.write(b"x");
        assert!(is_reset(old_strict.read(&mut [0])), "a strict service's connection from before is ended");
        assert!(packets(&capture, "strict_stray") > 0);
        // Straight to the ports of captured traffic: dropped, from here and from there.
        let _from_there = peer.there(|| ["10.9.0.1:15006", "[fd09::1]:15001"].map(straight));
        eventually("dropped", || packets(&capture, "listener_stray") >= 2);
        let _from_here = ["127.0.0.1:15001", "[::1]:15006"].map(straight);
        eventually("dropped", || packets(&capture, "listener_stray") >= 4);
        for listener in [inbound, outbound] {
            listener.set_nonblocking(true).expect("set");
            assert_eq!(listener.accept().expect_err("nobody came").kind(), ErrorKind::WouldBlock);
        }
    }
}

namespace_test! {
    fn dns_questions_come_to_the_agent() {
        let (mut capture, _runtime) = capture();
        let (udp, tcp) = (UdpSocket::bind("127.0.0.1:15053").expect("bound"), listen("127.0.0.1:15053"));
        udp.set_read_timeout(Some(LIMIT)).expect("a timeout");
        let real = UdpSocket::bind("127.0.0.53:53").expect("bound");
        real.set_read_timeout(Some(LIMIT)).expect("a timeout");
        capture.apply(&CapturePlan { dns: DnsCapture::Port53, ..plan() }).expect("applied");
        let ask = |mark: u32| {
            let socket = UdpSocket::bind("127.0.0.1:0").expect("bound");
            socket2::SockRef::from(&socket).set_mark(mark).expect("marked");
            socket.send_to(b"?", "127.0.0.53:53").expect("sent");
            socket.set_read_timeout(Some(LIMIT)).expect("a timeout");
            socket
        };
        let client = ask(0);
        let (_, from) = udp.recv_from(&mut [0]).expect("captured");
        udp.send_to(b"!", from).expect("answered");
        let (_, answered) = client.recv_from(&mut [0]).expect("the answer");
        assert_eq!(answered.to_string(), "127.0.0.53:53", "the client sees the server that it asked");
        meets(connect("127.0.0.53:53"), &tcp);
        let _agent = ask(AGENT_MARK);
        real.recv_from(&mut [0]).expect("the agent's own question goes where it was sent");
    }
}

namespace_test! {
    fn open_connections_survive_changes_of_the_rules() {
        let (mut capture, _runtime) = capture();
        let agent = listen("127.0.0.1:15001");
        capture.apply(&plan()).expect("applied");
        let (mut client, mut server) = meets(connect("240.240.7.7:80"), &agent);
        let more = CapturePlan { endpoints: addresses(&["10.0.0.1:80"]), ..plan() };
        capture.apply(&more).expect("elements");
        echo(&mut client, &mut server);
        capture.apply(&CapturePlan { dns: DnsCapture::Port53, ..more }).expect("replaced");
        echo(&mut client, &mut server);
        let (mut another, _runtime) = self::capture();
        another.apply(&plan()).expect("replaced by a restarted agent");
        echo(&mut client, &mut server);
        // While the agent drains, what is open goes on, and a new connection reaches no local process instead.
        let _bystander = listen("0.0.0.0:80");
        capture.remove(Anchor::Keep).expect("removed");
        echo(&mut client, &mut server);
        assert_eq!(connect("240.240.7.7:80").expect_err("refused").kind(), ErrorKind::ConnectionRefused);
        capture.apply(&plan()).expect("applied again");
        echo(&mut client, &mut server);
        meets(connect("240.240.7.7:80"), &agent);
    }
}

namespace_test! {
    fn when_the_agent_is_gone_open_is_open_and_closed_is_closed() {
        let (mut capture, _runtime) = capture();
        let peer = Peer::new();
        let dial = |address: &'static str| peer.there(|| connect(address));
        let (closed, open) = (listen("[::]:8080"), listen("[::]:9090"));
        let carts = service("carts", 9090, Strictness::Strict, WhenGone::Open);
        let plan = CapturePlan { local: vec![orders(), carts.clone()], ..plan() };
        capture.apply(&plan).expect("applied");
        apply_gone(&capture.gone_file(), Waiting::Reset).expect("applied");
        apply_gone(&capture.gone_file(), Waiting::Reset).expect("applied again");
        assert_eq!(capture.status().expect("status").state, super::State::Gone);
        // Whoever takes the agent's ports now receives nothing.
        let thieves = [listen("[::]:15001"), listen("[::]:15006"), listen("[::]:15008")];
        let refused = |client: std::io::Result<TcpStream>| {
            assert_eq!(client.expect_err("refused").kind(), ErrorKind::ConnectionRefused);
        };
        for address in ["127.0.0.1:8080", "[::1]:8080", "10.9.0.1:8080", "240.240.7.7:80", "[fd00:240::7]:80"] {
            refused(connect(address));
            refused(connect_with_mark(address));
        }
        for address in ["10.9.0.1:8080", "[fd09::1]:8080", "10.9.0.1:15001", "10.9.0.1:15006", "[fd09::1]:15008"] {
            refused(dial(address));
        }
        meets(dial("10.9.0.1:9090"), &open);
        meets(connect("[::1]:9090"), &open);
        for listener in thieves.into_iter().chain([closed]) {
            listener.set_nonblocking(true).expect("set");
            assert_eq!(listener.accept().expect_err("nobody came").kind(), ErrorKind::WouldBlock);
        }
        // The agent is back.
        let agent = listen("127.0.0.1:15301");
        let mut back = plan;
        back.ports.outbound = 15301;
        capture.apply(&back).expect("applied");
        meets(connect("240.240.7.7:80"), &agent);
        // With open services alone nothing stays.
        back.local = vec![carts];
        capture.apply(&back).expect("applied");
        apply_gone(&capture.gone_file(), Waiting::Reset).expect("applied");
        assert_eq!(sh("nft list tables"), "");
        assert_eq!(capture.status().expect("status").state, super::State::Missing);
    }
}
