//! The host's DNS server. It answers for the mesh's names from the snapshot and relays all other questions to the
//! upstreams unchanged, so that a host can send it everything: as its name server, or by capture of port 53.
//!
//! Three rules hold whatever comes in. A name in the mesh's domain never goes upstream. An upstream never gets an
//! address of the virtual ranges past us. And only processes of this host and containers on its bridges are served: the
//! sockets are on loopback and on the bridges, where captured questions arrive too, so that nobody can have us send answers
//! to a third party.

mod answer;
mod bridges;
mod config;
mod counters;
mod forward;
mod framing;
mod judge;
mod own_reply;
mod resolver;
mod reverse;
mod server;
mod upstreams;
mod wire;
mod zone;

#[cfg(test)]
mod tests;

pub use answer::{Decision, DropReason, Forward, Outcome, Transport, answer};
pub use config::{
    ANSWER_TTL, DRAIN_TIMEOUT, DnsConfig, IDLE_TIMEOUT, Ipv6Answers, Limits, MAX_ADDRESSES, MAX_CONNECTIONS,
    MAX_FORWARDED, MAX_PIPELINED, MAX_UDP_ANSWER, MAX_UPSTREAMS, NEGATIVE_TTL, RELOAD_INTERVAL, SocketMark,
    UPSTREAM_ATTEMPTS, UPSTREAM_TIMEOUT, Upstreams,
};
pub use counters::DnsCounters;
pub use judge::{Verdict, judge};
pub use resolver::{Addresses, LookUpError, Resolver};
pub use reverse::domains_of;
pub use upstreams::{STUBS, name_servers};
pub use zone::{Found, Ports, Zone};

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use arc_swap::ArcSwap;
use baremesh_model::name::Domain as Name;
use ipnet::IpNet;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use counters::LogGate;
use forward::Forwarder;
use server::Server;
use upstreams::UpstreamList;

/// The two sockets of an address.
pub type Both = (UdpSocket, TcpListener);

/// A DNS server whose sockets are bound, and which answers nothing yet.
#[derive(Debug)]
pub struct Dns {
    sockets: Vec<Both>,
    server: Arc<Server>,
}

impl Dns {
    /// Binds a UDP and a TCP socket to each address; with port 0 both get the same free one. An IPv6 address that
    /// this host has not is left out with a warning, as long as another is left.
    ///
    /// # Errors
    /// An address that is not loopback, an address in use, no address at all, or a mark that may not be set, each
    /// with what to do about it.
    pub fn bind(listen: &[SocketAddr], config: DnsConfig, zone: Zone) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for address in listen {
            match bind_both(*address) {
                Ok(pair) => sockets.push(pair),
                Err(error) if address.is_ipv6() && is_without_ipv6(&error) => {
                    tracing::warn!(%address, "this host has no IPv6: no DNS there");
                }
                Err(error) => {
                    let text = format!("cannot serve DNS on {address}: {error}");
                    return Err(io::Error::new(error.kind(), text));
                }
            }
        }
        Self::over(sockets, config, zone)
    }

    /// A server over sockets that are bound.
    pub fn over(sockets: Vec<Both>, config: DnsConfig, zone: Zone) -> io::Result<Self> {
        if sockets.is_empty() {
            return Err(invalid("no address to serve DNS on: give 127.0.0.1 with a port"));
        }
        // A mark that may not be set is found out now, and not by the first question.
        config.mark.apply(&Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))?)?;

        let own = sockets.iter().map(|(udp, _)| udp.local_addr()).collect::<io::Result<_>>()?;
        let counters = Arc::new(DnsCounters::default());
        let forwarder = Forwarder {
            upstreams: Arc::new(UpstreamList::load(config.upstreams.clone(), own)),
            ranges: ArcSwap::from_pointee(config.virtual_ranges.clone()),
            mark: config.mark,
            limits: config.limits,
            counters: counters.clone(),
            log: LogGate::new(),
        };
        let server = Arc::new(Server {
            waiting: Arc::new(Semaphore::new(config.limits.forwarded)),
            connections: Arc::new(Semaphore::new(config.limits.connections)),
            config: ArcSwap::from_pointee(config),
            zone,
            forwarder,
            counters,
            log: LogGate::new(),
        });
        Ok(Self { sockets, server })
    }

    /// The sockets.
    pub fn sockets(&self) -> &[Both] {
        &self.sockets
    }

    /// Where questions are taken, UDP and TCP alike.
    pub fn local_addrs(&self) -> Vec<SocketAddr> {
        self.sockets.iter().filter_map(|(udp, _)| udp.local_addr().ok()).collect()
    }

    /// The counts, which go on while the server runs.
    pub fn counters(&self) -> Arc<DnsCounters> {
        self.server.counters.clone()
    }

    /// By which the mesh's settings are changed while the server runs.
    pub fn settings(&self) -> Settings {
        Settings(self.server.clone())
    }

    /// Serves until `shutdown` is done. Datagrams that wait for upstreams then have [`DRAIN_TIMEOUT`] to be answered;
    /// connections are closed.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let (stopping, stop) = watch::channel(false);
        let mut loops = JoinSet::new();
        for (udp, tcp) in self.sockets {
            loops.spawn(self.server.clone().serve_udp(udp, stop.clone()));
            loops.spawn(self.server.clone().serve_tcp(tcp, stop.clone()));
        }
        let config = self.server.config.load_full();
        if !config.bridges.is_empty() {
            let bridges = (config.bridges.clone(), config.bridge_port);
            loops.spawn(bridges::serve(self.server.clone(), bridges, stop.clone()));
        }
        let watching = tokio::spawn(self.server.forwarder.upstreams.clone().watch());
        shutdown.await;
        let _ = stopping.send(true);
        watching.abort();
        while loops.join_next().await.is_some() {}
    }
}

/// What of the configuration follows the mesh.
pub struct Settings(Arc<Server>);

impl Settings {
    /// The mesh's domain and virtual ranges from now on.
    pub fn set(&self, domain: &Name, virtual_ranges: &[IpNet]) {
        self.0.forwarder.ranges.store(Arc::new(virtual_ranges.to_vec()));
        self.0.config.rcu(|config| DnsConfig {
            domain: domain.clone(),
            virtual_ranges: virtual_ranges.to_vec(),
            ..(**config).clone()
        });
    }
}

fn bind_both(address: SocketAddr) -> io::Result<Both> {
    if !address.ip().is_loopback() {
        return Err(invalid(
            "only loopback addresses are served, 127.0.0.1 and ::1, so that no other host can use it",
        ));
    }
    bind_pair(address, None)
}

/// Binds both sockets of an address; of an interface, they take what arrives there alone.
fn bind_pair(address: SocketAddr, interface: Option<&str>) -> io::Result<Both> {
    /// Connections that the kernel keeps for us until they are accepted.
    const BACKLOG: i32 = 128;
    /// A free TCP port may be taken for UDP; then another is tried.
    const FREE_PORT_TRIES: usize = 16;
    let mut tries = if address.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        let listener = bind((address, interface), Type::STREAM, Protocol::TCP)?;
        listener.listen(BACKLOG)?;
        let listener = TcpListener::from_std(listener.into())?;
        tries -= 1;
        match bind((listener.local_addr()?, interface), Type::DGRAM, Protocol::UDP) {
            Ok(udp) => return Ok((UdpSocket::from_std(udp.into())?, listener)),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries > 0 => {}
            Err(error) => return Err(error),
        }
    }
}

fn bind(
    (address, interface): (SocketAddr, Option<&str>),
    kind: Type,
    protocol: Protocol,
) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), kind.nonblocking().cloexec(), Some(protocol))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    if protocol == Protocol::TCP {
        // A restart is not held up by the last one's connections in TIME_WAIT.
        socket.set_reuse_address(true)?;
    }
    if let Some(interface) = interface {
        socket.bind_device(Some(interface.as_bytes()))?;
    }
    socket.bind(&address.into())?;
    Ok(socket)
}

fn is_without_ipv6(error: &io::Error) -> bool {
    // EAFNOSUPPORT has no kind of its own.
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

fn invalid(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, text)
}
