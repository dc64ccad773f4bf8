//! Names of the mesh, answered from the state in force.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use baremesh_model::mesh::Mesh;
use baremesh_model::virtual_address::VirtualRanges;
use tokio::net::{TcpListener, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::handover::{Sockets, Use};
use super::prepare::Prepared;
use super::{AgentError, doing, holder, until};
use crate::config::{AgentConfig, DnsMode};
use crate::dns::{self, Both, Dns, DnsConfig, DnsCounters, Resolver, SocketMark, Upstreams, Zone};
use crate::proxy::Phase;
use crate::proxy::socket::Mark;
use crate::publish::Publisher;

/// Takes the DNS port, or what another agent hands over of it, unless names are not answered.
pub fn bind(
    config: &AgentConfig,
    prepared: &Prepared,
    publisher: &Publisher,
    (mark, given): (Mark, &mut Sockets),
) -> Result<Option<Dns>, AgentError> {
    if config.dns == DnsMode::Off {
        return Ok(None);
    }
    let mut settings = settings(config, &prepared.initial, mark);
    settings.bridges = config.interfaces.iter().cloned().collect();
    settings.bridge_port = config.dns_port;
    if crate::capture::ipv6_is_off().is_some() {
        settings.ipv6 = dns::Ipv6Answers::Withheld;
    }
    let (forwards, backwards) = (publisher.snapshot(), publisher.snapshot());
    let short = config.short_names;
    let zone = Zone::new(
        move |name| forwards.load().find_name(name, short),
        move |address| backwards.load().find_address(address),
    );
    let dns = match taken_over(config, given).map_err(doing("taking over the sockets of names"))? {
        taken if taken.is_empty() => Dns::bind(&listeners(config), settings, zone),
        taken => Dns::over(taken, settings, zone),
    };
    dns.map(Some).map_err(holder::blame(&[config.dns_port]))
}

/// The sockets of names that another agent hands over, as far as they are at the port that is configured.
fn taken_over(config: &AgentConfig, given: &mut Sockets) -> io::Result<Vec<Both>> {
    let mut udp: Vec<std::net::UdpSocket> = given.take(Use::DnsUdp);
    let mut tcp: Vec<std::net::TcpListener> = given.take(Use::DnsTcp);
    // The service manager gives them in no order.
    udp.sort_by_key(|socket| socket.local_addr().ok());
    tcp.sort_by_key(|listener| listener.local_addr().ok());
    let of_port = |(udp, _): &(std::net::UdpSocket, std::net::TcpListener)| {
        udp.local_addr().is_ok_and(|address| address.port() == config.dns_port)
    };
    let both = udp.into_iter().zip(tcp).filter(of_port);
    both.map(|(udp, tcp)| Ok((UdpSocket::from_std(udp)?, TcpListener::from_std(tcp)?))).collect()
}

/// Looks names up for the agent itself, where the server's questions go as well.
pub fn resolver(config: &AgentConfig, mesh: &Mesh, mark: Mark) -> Resolver {
    Resolver::new(&settings(config, mesh, mark), listeners(config).into())
}

fn settings(config: &AgentConfig, mesh: &Mesh, mark: Mark) -> DnsConfig {
    let of_mesh = &mesh.config;
    let mut settings = DnsConfig::new(of_mesh.domain.clone(), as_list(&of_mesh.virtual_ranges));
    settings.mark = SocketMark(mark.0);
    if !config.upstreams.is_empty() {
        settings.upstreams = Upstreams::Fixed(config.upstreams.clone());
    }
    settings
}

fn listeners(config: &AgentConfig) -> [SocketAddr; 2] {
    let (v4, v6) = (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST);
    [SocketAddr::from((v4, config.dns_port)), SocketAddr::from((v6, config.dns_port))]
}

/// Answers until the agent closes; what is asked is counted.
pub fn serve(
    dns: Dns,
    publisher: &Arc<Publisher>,
    phase: watch::Receiver<Phase>,
) -> (Arc<DnsCounters>, [JoinHandle<()>; 2]) {
    let counters = dns.counters();
    let following = tokio::spawn(follow_mesh(dns.settings(), Arc::clone(publisher)));
    let serving = tokio::spawn(dns.serve(until(phase, Phase::Closing)));
    (counters, [following, serving])
}

/// Keeps the DNS server's domain and ranges those of the mesh: a host that has just joined learns them late.
async fn follow_mesh(settings: dns::Settings, publisher: Arc<Publisher>) {
    let mut changed = publisher.changed();
    loop {
        let snapshot = publisher.snapshot().load_full();
        let config = &snapshot.mesh.config;
        settings.set(&config.domain, &as_list(&config.virtual_ranges));
        if changed.changed().await.is_err() {
            return;
        }
    }
}

fn as_list(ranges: &VirtualRanges) -> Vec<ipnet::IpNet> {
    std::iter::once(ranges.v4.into()).chain(ranges.v6.map(Into::into)).collect()
}
