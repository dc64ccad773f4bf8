//! The agent's own sockets: marked, so that the capture rules let them pass, and without delay.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use baremesh_model::destination_rule::Keepalive;
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// How long a listener's queue of accepted connections may grow.
const BACKLOG: i32 = 4096;
/// TCP keep-alive of the agent's own connections: a peer that vanished is noticed within about 75 seconds.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(30);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// The mark that the capture rules know the agent's sockets by, or none where nothing is captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mark(pub Option<u32>);

impl Mark {
    /// Puts the mark on a socket.
    pub fn put_on(self, socket: &SockRef<'_>) -> io::Result<()> {
        match self.0 {
            Some(mark) => socket.set_mark(mark).map_err(|error| {
                io::Error::new(error.kind(), format!("marking a socket (needs CAP_NET_ADMIN): {error}"))
            }),
            None => Ok(()),
        }
    }
}

/// Connects.
pub async fn connect(to: SocketAddr, mark: Mark, timeout: Duration) -> io::Result<TcpStream> {
    connect_from(None, to, mark, timeout).await
}

/// Connects, from one of this host's addresses where one is named.
pub async fn connect_from(
    from: Option<IpAddr>,
    to: SocketAddr,
    mark: Mark,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = socket_for(to, mark)?;
    if let Some(from) = from {
        socket.bind(SocketAddr::new(from, 0))?;
    }
    finish(socket, to, timeout).await
}

/// Connects, and has both sides send segments of `bytes` at most: what passes a network that loses large packets.
pub async fn connect_in_segments(
    to: SocketAddr,
    bytes: u32,
    mark: Mark,
    timeout: Duration,
) -> io::Result<TcpStream> {
    let socket = socket_for(to, mark)?;
    SockRef::from(&socket).set_tcp_mss(bytes)?;
    finish(socket, to, timeout).await
}

fn socket_for(to: SocketAddr, mark: Mark) -> io::Result<TcpSocket> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    mark.put_on(&SockRef::from(&socket))?;
    Ok(socket)
}

async fn finish(socket: TcpSocket, to: SocketAddr, timeout: Duration) -> io::Result<TcpStream> {
    let stream = tokio::time::timeout(timeout, socket.connect(to))
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {timeout:?}")))??;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// Has the kernel ask a quiet peer whether it lives.
pub fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let keepalive = TcpKeepalive::new().with_time(KEEPALIVE_IDLE).with_interval(KEEPALIVE_INTERVAL);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
}

/// As `keep_alive`, as a DestinationRule says. What it does not say is the system's.
pub fn keep_alive_as(stream: &TcpStream, keepalive: Keepalive) -> io::Result<()> {
    let Keepalive { probes, time, interval } = keepalive;
    // The kernel counts in seconds, and refuses none.
    let seconds = |time: Duration| Duration::from_secs(time.as_secs().max(1));
    let mut asked = TcpKeepalive::new();
    if let Some(time) = time {
        asked = asked.with_time(seconds(time));
    }
    if let Some(interval) = interval {
        asked = asked.with_interval(seconds(interval));
    }
    if let Some(probes) = probes {
        asked = asked.with_retries(probes);
    }
    SockRef::from(stream).set_tcp_keepalive(&asked)
}

/// One of several listeners on the same port, one a worker: the kernel spreads connections over them, and lets
/// no other user join.
pub fn listen(address: SocketAddr, mark: Mark) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    if address.is_ipv6() {
        // The IPv4 listener stands beside it.
        socket.set_only_v6(true)?;
    }
    mark.put_on(&SockRef::from(&socket))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.set_tcp_nodelay(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Whether a redirected connection was opened on this host: the kernel leads such a one to loopback, and one that came from a
/// bridge to the bridge's own address.
pub fn is_of_this_host(stream: &TcpStream) -> bool {
    stream.local_addr().is_ok_and(|local| canonical(local).ip().is_loopback())
}

/// Where a redirected connection was going before the rules sent it here, in canonical form. A connection that was
/// not redirected reports this very socket's address: it is an error, and carrying it would lead back here.
pub fn original_destination(stream: &TcpStream) -> io::Result<SocketAddr> {
    let local = canonical(stream.local_addr()?);
    let socket = SockRef::from(stream);
    let original = if local.is_ipv4() { socket.original_dst_v4()? } else { socket.original_dst_v6()? };
    let original = canonical(original.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?);
    if original == local { Err(io::ErrorKind::AddrInUse.into()) } else { Ok(original) }
}

/// IPv4-mapped IPv6 addresses as IPv4.
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only who administers the network may mark; without that, the reason is told.
    #[tokio::test]
    async fn connections_carry_the_mark_and_come_from_where_they_should() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let to = listener.local_addr().expect("an address");
        let patience = Duration::from_secs(60);
        let from = IpAddr::from([127, 0, 0, 9]);
        let plain = connect_from(Some(from), to, Mark(None), patience).await.expect("connected");
        assert_eq!(plain.local_addr().expect("an address").ip(), from);
        match connect(to, Mark(Some(77)), patience).await {
            Ok(marked) => assert_eq!(SockRef::from(&marked).mark().expect("read"), 77),
            Err(error) => assert!(error.to_string().contains("CAP_NET_ADMIN"), "{error}"),
        }
    }
}
