//! The netlink socket over which the kernel is asked. A request is answered within the sending system call, so a
//! look-up takes two calls of a few microseconds, waits for nothing and allocates nothing.

use std::os::fd::OwnedFd;

use rustix::io::{Errno, retry_on_intr};
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

use super::sock_diag::dump::{Family, Listed, PART_LEN, Part, SocketEntry, decode, encode};
use super::sock_diag::{self, ANSWER_LEN, Flow, LookupError, SocketOwner};

/// Answers to earlier requests that are skipped before a look-up gives up.
pub(super) const MAX_STALE_ANSWERS: usize = 8;

/// How many sockets a list holds: 20 MB of them.
const MAX_LISTED: usize = 200_000;

/// A list of sockets.
#[derive(Debug, Default)]
pub struct Sockets {
    /// Those that it holds.
    pub entries: Vec<SocketEntry>,
    /// So many more there are.
    pub left_out: usize,
}

/// Every TCP socket of this thread's network namespace in those states. It takes some milliseconds for each ten
/// thousand of them: not for the data path.
pub fn list_sockets(listed: Listed) -> Result<Sockets, LookupError> {
    let mut sockets = Sockets::default();
    let mut take = |entry| match sockets.entries.len() < MAX_LISTED {
        true => sockets.entries.push(entry),
        false => sockets.left_out += 1,
    };
    for family in [Family::V4, Family::V6] {
        // A socket for each: the next list begins when the one before it has been read to its end.
        let kernel = DiagSocket::open()?;
        retry_on_intr(|| rustix::net::send(&kernel.socket, &encode(listed, family), SendFlags::empty()))
            .map_err(LookupError::Refused)?;
        let mut part = vec![0; PART_LEN];
        loop {
            let length = receive(&kernel.socket, &mut part)?;
            if decode(&part[..length], &mut take)? == Part::Last {
                break;
            }
        }
    }
    Ok(sockets)
}

/// A connection to the kernel's socket diagnosis, of the network namespace in which it was opened.
#[derive(Debug)]
pub struct DiagSocket {
    socket: OwnedFd,
    sequence: u32,
    answer: [u8; ANSWER_LEN],
}

impl DiagSocket {
    /// Opens it. It is connected to the kernel, so that no process can send anything to it.
    pub fn open() -> Result<Self, LookupError> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = Some(netlink::SOCK_DIAG);
        let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, protocol)
            .map_err(LookupError::Refused)?;
        rustix::net::connect(&socket, &SocketAddrNetlink::new(0, 0)).map_err(LookupError::Refused)?;
        Ok(Self { socket, sequence: 0, answer: [0; ANSWER_LEN] })
    }

    /// The owner of the client's socket of `flow`.
    pub fn owner_of(&mut self, flow: &Flow) -> Result<SocketOwner, LookupError> {
        self.sequence = self.sequence.wrapping_add(1);
        let request = sock_diag::encode(flow, self.sequence);
        retry_on_intr(|| rustix::net::send(&self.socket, &request, SendFlags::empty()))
            .map_err(LookupError::Refused)?;
        for _ in 0..=MAX_STALE_ANSWERS {
            let length = self.receive()?;
            if let Some(owner) = sock_diag::decode(&self.answer[..length], flow, self.sequence)? {
                return Ok(owner);
            }
        }
        Err(LookupError::Malformed("only answers to earlier requests came"))
    }

    fn receive(&mut self) -> Result<usize, LookupError> {
        receive(&self.socket, &mut self.answer)
    }
}

/// Receives one message of the kernel, whole.
pub(super) fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, LookupError> {
    let received =
        retry_on_intr(|| rustix::net::recvfrom(socket, &mut *buffer, RecvFlags::DONTWAIT | RecvFlags::TRUNC));
    let (_, length, sender) = received.map_err(|errno| match errno {
        Errno::AGAIN => LookupError::Malformed("it did not come"),
        errno => LookupError::Refused(errno),
    })?;
    let sender = sender.and_then(|sender| SocketAddrNetlink::try_from(sender).ok());
    if sender.is_none_or(|sender| sender.pid() != 0) {
        return Err(LookupError::Malformed("it is not from the kernel"));
    }
    if length > buffer.len() {
        return Err(LookupError::Malformed("it is longer than any answer"));
    }
    Ok(length)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
    use std::process::Command;
    use std::time::{Duration, Instant};

    use super::super::sock_diag::{CgroupId, SocketState, Uid};
    use super::*;

    /// How long a test waits for what the kernel does in the background.
    const PATIENCE: Duration = Duration::from_secs(60);

    fn listen(address: &str) -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind(address).expect("a free port");
        let address = listener.local_addr().expect("bound");
        (listener, address)
    }

    fn look_up(client: SocketAddr, destination: SocketAddr) -> Result<SocketOwner, LookupError> {
        DiagSocket::open().expect("a netlink socket").owner_of(&Flow::new(client, destination)?)
    }

    fn inode_of(stream: &TcpStream) -> u32 {
        rustix::fs::fstat(stream).expect("open").st_ino as u32
    }

    /// Looks up until the answer is `expected`.
    fn becomes(client: SocketAddr, destination: SocketAddr, expected: LookupError) {
        let start = Instant::now();
        loop {
            let answer = look_up(client, destination);
            if answer == Err(expected) {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "still {answer:?}, not {expected:?}");
            std::thread::yield_now();
        }
    }

    #[test]
    fn finds_the_owner_over_ipv4_ipv6_and_mapped_addresses() {
        let own_cgroup = |owner: &SocketOwner| owner.cgroup.is_some_and(|CgroupId(id)| id != 0);
        for (bind, target) in
            [("127.0.0.1:0", None), ("[::1]:0", None), ("127.0.0.1:0", Some("::ffff:127.0.0.1"))]
        {
            let (listener, address) = listen(bind);
            let ip = target.map_or(address.ip(), |target| target.parse().expect("an address"));
            let client = TcpStream::connect((ip, address.port())).expect("listening");
            let (accepted, peer) = listener.accept().expect("connected");
            let owner = look_up(peer, accepted.local_addr().expect("open")).expect("held by this test");
            assert_eq!(owner.uid, Uid(rustix::process::getuid().as_raw()));
            assert_eq!((owner.inode, owner.state), (inode_of(&client), SocketState::Established));
            assert!(own_cgroup(&owner));
            // A listener on the wildcard of IPv6 shows the peer in mapped form.
            if let (SocketAddr::V4(v4), SocketAddr::V4(to)) = (peer, address) {
                let mapped = (v4.ip().to_ipv6_mapped(), v4.port()).into();
                assert_eq!(look_up(mapped, to.into()), Ok(owner));
            }
        }
    }

    #[test]
    fn the_client_is_established_when_the_connection_is_accepted() {
        let (listener, address) = listen("127.0.0.1:0");
        let clients = std::thread::spawn(move || {
            (0..2_000).map(|_| TcpStream::connect(address).expect("listening")).for_each(|mut client| {
                let _ = client.read(&mut [0]);
            });
        });
        let mut kernel = DiagSocket::open().expect("a netlink socket");
        for _ in 0..2_000 {
            let (_accepted, peer) = listener.accept().expect("connected");
            let owner = kernel.owner_of(&Flow::new(peer, address).expect("one family")).expect("held");
            assert_eq!(owner.state, SocketState::Established);
        }
        clients.join().expect("no panic");
    }

    #[test]
    fn a_client_that_half_closed_is_still_known() {
        let (listener, address) = listen("127.0.0.1:0");
        let client = TcpStream::connect(address).expect("listening");
        let (mut accepted, peer) = listener.accept().expect("connected");
        client.shutdown(Shutdown::Write).expect("open");
        assert_eq!(accepted.read(&mut [0]).expect("end of stream"), 0);
        let owner = look_up(peer, address).expect("held");
        assert!(matches!(owner.state, SocketState::FinWait1 | SocketState::FinWait2), "{owner:?}");
        assert_eq!(owner.inode, inode_of(&client));
    }

    #[test]
    fn closed_reset_and_lingering_clients_are_refused() {
        let (listener, address) = listen("127.0.0.1:0");
        let connect = || {
            let client = TcpStream::connect(address).expect("listening");
            let (accepted, peer) = listener.accept().expect("connected");
            (client, accepted, peer)
        };

        let (client, accepted, peer) = connect();
        drop(client);
        becomes(peer, address, LookupError::Orphan);
        drop(accepted);
        becomes(peer, address, LookupError::NotOpen(6));

        let (client, accepted, peer) = connect();
        socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).expect("open");
        drop(client);
        becomes(peer, address, LookupError::Gone);
        drop(accepted);

        let (client, accepted, peer) = connect();
        drop(accepted);
        becomes(peer, address, LookupError::NotOpen(8));
        drop(client);
    }

    #[test]
    fn a_listener_on_the_clients_port_is_not_taken_for_the_client() {
        let (_listener, address) = listen("127.0.0.1:0");
        let elsewhere = "127.9.9.9:443".parse().expect("an address");
        assert_eq!(look_up(address, elsewhere), Err(LookupError::OtherSocket));
        assert_eq!(look_up("127.0.0.1:1".parse().expect("an address"), elsewhere), Err(LookupError::Gone));
    }

    #[test]
    fn another_users_connection_carries_that_user() {
        if !rustix::process::geteuid().is_root() {
            return; // only root can become another user
        }
        let (listener, address) = listen("127.0.0.1:0");
        let script = format!("exec 3<>/dev/tcp/{}/{}; read <&3", address.ip(), address.port());
        let mut child = Command::new("setpriv")
            .args(["--reuid", "12345", "--clear-groups", "bash", "-c", &script])
            .spawn()
            .expect("util-linux is installed");
        let (accepted, peer) = listener.accept().expect("connected");
        let owner = look_up(peer, address);
        drop(accepted);
        child.wait().expect("started");
        assert_eq!(owner.map(|owner| owner.uid), Ok(Uid(12345)));
    }

    #[test]
    fn of_two_sockets_with_the_same_ends_the_connected_one_is_found() {
        const INSIDE: &str = "BAREMESH_TEST_INSIDE_NAMESPACE";
        if !rustix::process::geteuid().is_root() {
            return; // only root can make a network namespace without a user namespace
        }
        if std::env::var_os(INSIDE).is_some() {
            return same_ends_twice();
        }
        let this = "of_two_sockets_with_the_same_ends_the_connected_one_is_found";
        let setup = "ip link set lo up && cd /proc/sys/net/ipv4 && echo 1 >tcp_fin_timeout \
                     && echo 40000 40000 >ip_local_port_range && exec \"$0\" \"$@\"";
        let status = Command::new("unshare")
            .args(["--net", "sh", "-c", setup])
            .arg(std::env::current_exe().expect("running"))
            .args([this, "--nocapture", "--test-threads=1"])
            .env(INSIDE, "1")
            .status()
            .expect("util-linux is installed");
        assert!(status.success());
    }

    /// The older client is bound to a device and never closes. Once the other end has forgotten the connection, a
    /// client that is not bound can get the same port for the same destination.
    fn same_ends_twice() {
        use socket2::{Domain, Socket, Type};
        let socket = || Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        let (listener, address) = listen("127.0.0.1:30000");
        let older = socket();
        older.bind_device(Some(b"lo")).expect("may bind to a device");
        older.connect(&address.into()).expect("listening");
        let older = TcpStream::from(older);
        let (accepted, port) = listener.accept().expect("connected");
        let owner = look_up(port, address).expect("held");
        assert_eq!(owner.inode, inode_of(&older), "a client bound to a device is found");
        drop(accepted);
        let start = Instant::now();
        let newer = loop {
            match TcpStream::connect(address) {
                Ok(newer) => break newer,
                Err(error) => assert!(start.elapsed() < PATIENCE, "still {error}"),
            }
            std::thread::yield_now();
        };
        let (_accepted, peer) = listener.accept().expect("connected");
        assert_eq!(peer, port, "the same port");
        assert!(older.peer_addr().is_ok(), "the older client is still there");
        assert_eq!(look_up(peer, address).map(|owner| owner.inode), Ok(inode_of(&newer)));
        drop(newer);
    }

    #[test]
    fn ten_thousand_look_ups_are_timed() {
        let (listener, address) = listen("127.0.0.1:0");
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, address.port())).expect("listening");
        let (_accepted, peer) = listener.accept().expect("connected");
        let flow = Flow::new(peer, address).expect("one family");
        let mut kernel = DiagSocket::open().expect("a netlink socket");
        let mut times: Vec<Duration> = (0..10_000)
            .map(|_| {
                let start = Instant::now();
                kernel.owner_of(&flow).expect("held");
                start.elapsed()
            })
            .collect();
        times.sort();
        eprintln!("look-up: median {:?}, p99 {:?}", times[5_000], times[9_900]);
    }
}
