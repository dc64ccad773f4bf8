//! A question goes upstream as the client wrote it, under another id, and the upstream's bytes come back. Nothing is
//! cached: hosts that want a cache have one behind us or in front of us, and it knows better when an answer is stale.

use arc_swap::ArcSwap;
use std::io::{self, Read};
use std::net::SocketAddr;
use std::sync::Arc;

use ipnet::IpNet;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpSocket, UdpSocket};
use tokio::time::timeout;

use super::answer::Transport;
use super::config::{Limits, SocketMark, UPSTREAM_ATTEMPTS};
use super::counters::{DnsCounters, LogGate, count};
use super::framing::{read_message, write_message};
use super::judge::{Verdict, judge};
use super::upstreams::UpstreamList;
use super::wire::{self, Asked, Rcode, Reason};

const NO_UPSTREAM: Reason = Reason { code: 22, text: "the mesh agent knows no upstream name server" };
const NO_ANSWER: Reason = Reason { code: 23, text: "no upstream name server answered the mesh agent" };
const VIRTUAL: Reason =
    Reason { code: 17, text: "the upstream's answer points into the mesh's virtual addresses" };

/// Asks upstreams.
#[derive(Debug)]
pub(super) struct Forwarder {
    pub(super) upstreams: Arc<UpstreamList>,
    pub(super) ranges: ArcSwap<Vec<IpNet>>,
    pub(super) mark: SocketMark,
    pub(super) limits: Limits,
    pub(super) counters: Arc<DnsCounters>,
    pub(super) log: LogGate,
}

/// How one attempt at one upstream ended.
enum Said {
    Answer(Vec<u8>),
    InVirtualRange,
}

impl Forwarder {
    /// The message for the client: an upstream's, or SERVFAIL. Ends within the attempts' time together.
    pub(super) async fn forward(&self, query: &[u8], asked: Asked, transport: Transport) -> Vec<u8> {
        let servers = self.upstreams.servers();
        let start = self.upstreams.turn();
        let mut refused = None;
        for attempt in 0..UPSTREAM_ATTEMPTS {
            let turn = start.wrapping_add(attempt);
            let Some(&server) = turn.checked_rem(servers.len()).and_then(|place| servers.get(place)) else {
                return self.no_upstream(query);
            };
            let asking = self.ask(server, query, transport);
            match timeout(self.limits.upstream_timeout, asking).await {
                Ok(Ok(Said::Answer(reply))) if is_refusal(&reply) => {
                    // This server cannot say; another may. It is alive, so later questions still start with it.
                    refused = Some(reply);
                    if attempt + 1 >= servers.len() {
                        break;
                    }
                    continue;
                }
                Ok(Ok(Said::Answer(reply))) => return self.finish(query, reply, asked, transport),
                Ok(Ok(Said::InVirtualRange)) => {
                    count(&self.counters.dropped_in_virtual_range);
                    return servfail(query, VIRTUAL);
                }
                Ok(Err(error)) => {
                    count(&self.counters.upstream_errors);
                    tracing::debug!(%server, %error, "cannot ask an upstream name server");
                }
                Err(_) => {
                    count(&self.counters.upstream_timeouts);
                    tracing::debug!(%server, "an upstream name server did not answer in time");
                }
            }
            self.upstreams.failed(turn);
        }
        match refused {
            Some(reply) => self.finish(query, reply, asked, transport),
            None => self.no_answer(query),
        }
    }

    fn no_upstream(&self, query: &[u8]) -> Vec<u8> {
        count(&self.counters.servfail);
        if self.log.opens() {
            tracing::warn!(
                "no upstream name server is known, so that only the mesh's names resolve: set `dns.upstreams`, or name one other than this agent in resolv.conf"
            );
        }
        servfail(query, NO_UPSTREAM)
    }

    fn no_answer(&self, query: &[u8]) -> Vec<u8> {
        count(&self.counters.servfail);
        if self.log.opens() {
            let servers = self.upstreams.servers();
            tracing::warn!(
                ?servers,
                "no upstream name server answers: is a firewall between, or is `dns.upstreams` out of date?"
            );
        }
        servfail(query, NO_ANSWER)
    }

    async fn ask(&self, server: SocketAddr, query: &[u8], transport: Transport) -> io::Result<Said> {
        let mut sent = query.to_vec();
        wire::set_id(&mut sent, rand::random());
        match transport {
            Transport::Udp => self.ask_udp(server, &sent).await,
            Transport::Tcp => self.ask_tcp(server, &sent).await,
        }
    }

    /// One attempt over UDP, on a socket of its own: the kernel gives it a random port and passes on nothing but what
    /// comes from the server's address and port. Whatever else arrives is ignored until the caller's time is up.
    async fn ask_udp(&self, server: SocketAddr, sent: &[u8]) -> io::Result<Said> {
        let socket = self.socket(server, Type::DGRAM, Protocol::UDP)?;
        socket.connect(&server.into())?;
        let socket = UdpSocket::from_std(socket.into())?;
        socket.send(sent).await?;
        loop {
            // A port where nobody listens is told by an error, which makes a socket ready without being readable.
            let reply = socket.async_io(Interest::READABLE | Interest::ERROR, || receive(&socket)).await?;
            match judge(&reply, sent, &self.ranges.load()) {
                Verdict::NotTheAnswer => count(&self.counters.spoofed_ignored),
                Verdict::Malformed => count(&self.counters.malformed_ignored),
                verdict => return said(verdict, reply, sent),
            }
        }
    }

    /// One attempt over TCP, on a connection of its own: large answers are rare, and a connection that is kept would
    /// have to be watched.
    async fn ask_tcp(&self, server: SocketAddr, sent: &[u8]) -> io::Result<Said> {
        let socket = self.socket(server, Type::STREAM, Protocol::TCP)?;
        let mut stream = TcpSocket::from_std_stream(socket.into()).connect(server).await?;
        write_message(&mut stream, sent).await?;
        let reply = read_message(&mut stream).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
        let verdict = judge(&reply, sent, &self.ranges.load());
        match verdict {
            Verdict::NotTheAnswer => count(&self.counters.spoofed_ignored),
            Verdict::Malformed => count(&self.counters.malformed_ignored),
            _ => return said(verdict, reply, sent),
        }
        Err(io::Error::new(io::ErrorKind::InvalidData, "the message is not the answer to the question"))
    }

    fn socket(&self, server: SocketAddr, kind: Type, protocol: Protocol) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(server), kind.nonblocking().cloexec(), Some(protocol))?;
        self.mark.apply(&socket)?;
        Ok(socket)
    }

    fn finish(&self, query: &[u8], mut reply: Vec<u8>, asked: Asked, transport: Transport) -> Vec<u8> {
        if transport == Transport::Udp && reply.len() > usize::from(asked.payload()) {
            count(&self.counters.truncated);
            reply = wire::truncated(&reply, asked.question_end).unwrap_or_default();
        }
        wire::set_id(&mut reply, wire::u16_at(query, 0).unwrap_or_default());
        reply
    }
}

/// The next datagram. The buffer is taken only when there is one, so that a waiting question holds none.
fn receive(socket: &UdpSocket) -> io::Result<Vec<u8>> {
    let mut reply = vec![0; wire::MAX_MESSAGE];
    let length = (&*SockRef::from(socket)).read(&mut reply)?;
    reply.truncate(length);
    Ok(reply)
}

fn said(verdict: Verdict, mut reply: Vec<u8>, sent: &[u8]) -> io::Result<Said> {
    let cut = || wire::truncated(&reply, wire::question_end(sent)?);
    match verdict {
        Verdict::Relay(length) => reply.truncate(length),
        Verdict::RelayTruncated => reply = cut().ok_or(io::ErrorKind::InvalidData)?,
        Verdict::InVirtualRange => return Ok(Said::InVirtualRange),
        Verdict::NotTheAnswer | Verdict::Malformed => return Err(io::ErrorKind::InvalidData.into()),
    }
    reply.shrink_to_fit();
    Ok(Said::Answer(reply))
}

/// Whether the server says that it cannot or will not tell, which another server may.
fn is_refusal(reply: &[u8]) -> bool {
    let code = wire::flags(reply).unwrap_or_default() & wire::RCODE;
    [Rcode::ServFail, Rcode::NotImp, Rcode::Refused].iter().any(|refusal| *refusal as u16 == code)
}

pub(super) fn servfail(query: &[u8], reason: Reason) -> Vec<u8> {
    wire::error_reply(query, Rcode::ServFail, Some(reason)).unwrap_or_default()
}
