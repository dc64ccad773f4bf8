//! The DNS server on real loopback sockets, with upstreams that answer, forge, truncate or keep silent.

mod tcp;
mod udp;
mod upstream;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use baremesh_model::name::Domain;
use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use super::*;

/// The bound of every wait: long enough for the busiest machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) fn config() -> DnsConfig {
    let ranges = ["240.240.0.0/16", "fd00:ba::/32"].map(|range| range.parse().expect("a range"));
    DnsConfig {
        upstreams: Upstreams::Fixed(Vec::new()),
        ..DnsConfig::new(Domain::new("mesh.internal").expect("a domain"), ranges.to_vec())
    }
}

pub(super) fn zone() -> Zone {
    let find = |name: &str| match name.strip_suffix(".mesh.internal").unwrap_or(name) {
        "orders.shop" => Found::Service {
            v4: vec![Ipv4Addr::new(240, 240, 0, 1), Ipv4Addr::new(240, 240, 0, 2)],
            v6: vec!["fd00:ba::1".parse().expect("an address")],
        },
        "_http._tcp.orders.shop" => Found::Ports(Ports {
            host: "orders.shop.mesh.internal".to_owned(),
            ports: vec![8080, 8081],
            v4: vec![Ipv4Addr::new(240, 240, 0, 1), Ipv4Addr::new(240, 240, 0, 2)],
            v6: vec!["fd00:ba::1".parse().expect("an address")],
        }),
        "shop" if name != "shop" => Found::Service { v4: Vec::new(), v6: Vec::new() },
        "gone.shop" => Found::NoSuchName,
        _ => Found::NotOurs,
    };
    let first: IpAddr = Ipv4Addr::new(240, 240, 0, 1).into();
    Zone::new(find, move |address| (address == first).then(|| "orders.shop.mesh.internal".to_owned()))
}

/// A service of 300 addresses.
pub(super) fn large_zone() -> Zone {
    let all: Vec<_> = (0..300_u32).map(|number| Ipv4Addr::from(0xf0f0_0000 + number)).collect();
    Zone::new(move |_| Found::Service { v4: all.clone(), v6: Vec::new() }, |_| None)
}

pub(super) fn question(name: &str, kind: RecordType) -> Vec<u8> {
    static IDS: AtomicU64 = AtomicU64::new(1);
    let id = IDS.fetch_add(1, Ordering::Relaxed) as u16;
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message.to_vec().expect("encodes")
}

/// What an honest upstream says to `query`: each address as a record whose owner points to the question, and the
/// query's OPT record at the end.
pub(super) fn reply_to(query: &[u8], addresses: &[&str]) -> Vec<u8> {
    let end = wire::question_end(query).expect("a question");
    let mut reply = query[..end].to_vec();
    reply[2] |= 0x80;
    reply[3] |= 0x80;
    reply[6..8].copy_from_slice(&u16::try_from(addresses.len()).expect("few").to_be_bytes());
    for address in addresses {
        let (kind, data) = match address.parse().expect("an address") {
            IpAddr::V4(address) => (1, address.octets().to_vec()),
            IpAddr::V6(address) => (28, address.octets().to_vec()),
        };
        reply.extend_from_slice(&[
            0xc0,
            12,
            0,
            kind,
            0,
            1,
            0,
            0,
            0,
            60,
            0,
            u8::try_from(data.len()).expect("short"),
        ]);
        reply.extend_from_slice(&data);
    }
    reply.extend_from_slice(&query[end..]);
    reply
}

/// A server that runs until it is dropped or stopped.
struct Running {
    address: SocketAddr,
    counters: Arc<DnsCounters>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

fn run(config: DnsConfig) -> Running {
    let dns = Dns::bind(&["127.0.0.1:0".parse().expect("an address")], config, zone()).expect("binds");
    let (address, counters) = (dns.local_addrs()[0], dns.counters());
    let (stop, stopped) = oneshot::channel();
    let serving = tokio::spawn(dns.serve(async { drop(stopped.await) }));
    Running { address, counters, stop: Some(stop), serving }
}

fn run_with(upstreams: &[SocketAddr]) -> Running {
    run(DnsConfig { upstreams: Upstreams::Fixed(upstreams.to_vec()), ..config() })
}

impl Running {
    async fn client(&self) -> UdpSocket {
        let socket = UdpSocket::bind("127.0.0.1:0").await.expect("binds");
        socket.connect(self.address).await.expect("connects");
        socket
    }

    /// One question over UDP, and the bytes of what comes back.
    async fn ask(&self, query: &[u8]) -> Vec<u8> {
        let client = self.client().await;
        client.send(query).await.expect("sends");
        receive(&client).await
    }
}

async fn receive(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = vec![0; 65_535];
    let length = timeout(PATIENCE, socket.recv(&mut buffer)).await.expect("an answer").expect("received");
    buffer.truncate(length);
    buffer
}

fn parsed(message: &[u8]) -> Message {
    Message::from_vec(message).expect("a whole message")
}

async fn reaches(counter: &AtomicU64, value: u64) {
    let reached = async {
        while counter.load(Ordering::Relaxed) < value {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, reached).await.expect("the counter goes up");
}

#[tokio::test]
async fn only_loopback_is_served() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
        let refused =
            Dns::bind(&[address.parse().expect("an address")], config(), zone()).expect_err(address);
        assert!(refused.to_string().contains("127.0.0.1 and ::1"), "{refused}");
    }
    assert!(Dns::bind(&[], config(), zone()).is_err());
}

#[tokio::test]
async fn a_mark_is_set_or_the_error_says_what_is_missing() {
    let marked = DnsConfig { mark: SocketMark(Some(7)), ..config() };
    match Dns::bind(&["127.0.0.1:0".parse().expect("an address")], marked, zone()) {
        Ok(_) => {
            let socket = Socket::new(socket2::Domain::IPV4, Type::DGRAM, None).expect("a socket");
            SocketMark(Some(7)).apply(&socket).expect("allowed");
            assert_eq!(socket.mark().expect("readable"), 7);
        }
        Err(refused) => assert!(refused.to_string().contains("CAP_NET_ADMIN"), "{refused}"),
    }
}

#[tokio::test]
async fn both_families_are_served() {
    let listen = ["127.0.0.1:0", "[::1]:0"].map(|address| address.parse().expect("an address"));
    let dns = Dns::bind(&listen, config(), zone()).expect("a host without IPv6 has the other");
    let addresses = dns.local_addrs();
    assert!(!addresses.is_empty());
    tokio::spawn(dns.serve(std::future::pending()));
    for address in addresses {
        let any = if address.is_ipv6() { "[::1]:0" } else { "127.0.0.1:0" };
        let client = UdpSocket::bind(any).await.expect("binds");
        client.send_to(&question("orders.shop.", RecordType::A), address).await.expect("sends");
        assert_eq!(parsed(&receive(&client).await).answers.len(), 2);
    }
}
