//! Sockets of a host's network for this process: made by a helper that runs on the host, and handed over a Unix
//! socket (unix(7), `SCM_RIGHTS`). A socket stays in the network where it was made, so a test can be a peer on a
//! host with whatever protocol it likes, without entering a namespace.

use std::ffi::OsString;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use super::{Host, SOCKET};

/// How long a connection attempt may take.
const CONNECT_BOUND: Duration = Duration::from_secs(10);

/// Longer than every answer without a socket: an error number in digits.
const MAX_ANSWER: usize = 16;

impl Host {
    /// A connection from this host, made by its root.
    ///
    /// # Errors
    /// With the error of the connection attempt.
    pub fn connect(&self, address: impl Into<SocketAddr>) -> io::Result<TcpStream> {
        Ok(self.socket("connect", address.into())?.into())
    }

    /// A listening socket of this host.
    ///
    /// # Errors
    /// With the error of binding it.
    pub fn listen(&self, address: impl Into<SocketAddr>) -> io::Result<TcpListener> {
        Ok(self.socket("listen", address.into())?.into())
    }

    /// A UDP socket of this host.
    ///
    /// # Errors
    /// With the error of binding it.
    pub fn bind_udp(&self, address: impl Into<SocketAddr>) -> io::Result<UdpSocket> {
        Ok(self.socket("udp", address.into())?.into())
    }

    fn socket(&self, kind: &str, address: SocketAddr) -> io::Result<OwnedFd> {
        hand_over(self.baremesh([SOCKET, kind, &address.to_string()]))
    }
}

fn hand_over(mut command: Command) -> io::Result<OwnedFd> {
    let (near, far) = UnixStream::pair()?;
    command.stdin(OwnedFd::from(far)).stdout(Stdio::null());
    let mut child = command.spawn()?;
    // The command holds the far end too: only without it does the helper's end show.
    drop(command);
    let received = receive(&near);
    child.wait()?;
    received
}

fn receive(near: &UnixStream) -> io::Result<OwnedFd> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut answer = [0; MAX_ANSWER];
    let message =
        recvmsg(near, &mut [IoSliceMut::new(&mut answer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    if message.flags.contains(ReturnFlags::CTRUNC) {
        return Err(io::Error::other("no descriptor is free for a host's socket"));
    }
    let mut sockets = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(sockets) => Some(sockets),
        _ => None,
    });
    if let Some(socket) = sockets.next().and_then(|mut sockets| sockets.next()) {
        return Ok(socket);
    }
    let number = std::str::from_utf8(&answer[..message.bytes]).ok().and_then(|digits| digits.parse().ok());
    Err(number.map_or_else(|| io::Error::other("the host made no socket"), io::Error::from_raw_os_error))
}

/// `demo-socket connect|listen|udp ADDRESS`, with a Unix socket as standard input.
pub(crate) fn make_socket(args: &[OsString]) -> Result<()> {
    let [kind, address] = args else { bail!("this verb is for the demo's own use") };
    let address: SocketAddr =
        address.to_str().unwrap_or_default().parse().context("no address with a port")?;
    let made: io::Result<OwnedFd> = match kind.to_str() {
        Some("connect") => TcpStream::connect_timeout(&address, CONNECT_BOUND).map(OwnedFd::from),
        Some("listen") => TcpListener::bind(address).map(OwnedFd::from),
        Some("udp") => UdpSocket::bind(address).map(OwnedFd::from),
        _ => bail!("no kind of socket: {}", kind.display()),
    };
    let stdin = io::stdin();
    let near = stdin.as_fd();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    match made {
        Ok(socket) => {
            let sockets = [socket.as_fd()];
            ancillary.push(SendAncillaryMessage::ScmRights(&sockets));
            sendmsg(near, &[IoSlice::new(b"+")], &mut ancillary, SendFlags::empty())
        }
        Err(error) => {
            // A timeout of our own has no number.
            let number =
                error.raw_os_error().unwrap_or(rustix::io::Errno::TIMEDOUT.raw_os_error()).to_string();
            sendmsg(near, &[IoSlice::new(number.as_bytes())], &mut ancillary, SendFlags::empty())
        }
    }
    .context("nobody waits for the socket")?;
    Ok(())
}
