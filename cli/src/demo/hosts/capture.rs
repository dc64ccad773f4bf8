//! Recording packets as evidence: a packet socket (packet(7)) over all interfaces of a namespace, all ports and all
//! families, into a pcap file that other tools read too.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader, BufWriter, ErrorKind, Read as _, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use rustix::event::{PollFd, PollFlags, poll};
use socket2::{Domain, Protocol, Socket, Type};

use super::CAPTURE;
use super::held::READY;
use super::pcap::{MAX_FRAME, Pcap, write_header, write_packet};

/// `ETH_P_ALL` of if_ether.h: every protocol.
const ALL_PROTOCOLS: u16 = 3;

/// How much the kernel keeps for the recorder while it writes. Ordinary users get less: `net.core.rmem_max`.
const RECEIVE_BUFFER: usize = 64 << 20;

/// A running recorder. Dropping it ends it; [`Capture::stop`] also reads what it has recorded.
pub struct Capture {
    child: Child,
    file: PathBuf,
}

impl Capture {
    /// Starts the recorder with `baremesh`, a command that runs this binary in the namespaces to record, and returns
    /// when no packet escapes it any more.
    pub(crate) fn start(mut baremesh: Command, directory: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        let file = directory.join(format!("capture-{}.pcap", COUNT.fetch_add(1, Ordering::Relaxed)));
        let output = File::create(&file).with_context(|| format!("cannot write {}", file.display()))?;
        baremesh.arg(CAPTURE).stdin(Stdio::piped()).stdout(output).stderr(Stdio::piped());
        let mut child = baremesh.spawn().context("cannot start the packet recorder")?;
        let mut said = String::new();
        if let Some(stderr) = child.stderr.take() {
            BufReader::new(stderr).read_line(&mut said).context("cannot read from the packet recorder")?;
        }
        let capture = Self { child, file };
        match said.trim() {
            READY => Ok(capture),
            why => bail!("packets cannot be recorded: {why}"),
        }
    }

    /// Ends the recording with all packets that were sent before this call.
    ///
    /// # Errors
    /// If the recorder failed on the way, or its file cannot be read.
    pub fn stop(mut self) -> Result<Pcap> {
        drop(self.child.stdin.take());
        let status = self.child.wait().context("cannot wait for the packet recorder")?;
        if !status.success() {
            bail!("the packet recorder ended with {status}");
        }
        Pcap::read(&self.file)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `demo-capture`: writes to standard output until standard input ends.
pub(crate) fn capture_into(_args: &[OsString]) -> Result<()> {
    let protocol = Protocol::from(i32::from(ALL_PROTOCOLS.to_be()));
    let socket =
        Socket::new(Domain::PACKET, Type::RAW, Some(protocol)).context("cannot open a packet socket")?;
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, RECEIVE_BUFFER).is_err() {
        socket.set_recv_buffer_size(RECEIVE_BUFFER).context("cannot set a receive buffer")?;
    }
    socket.set_nonblocking(true).context("cannot make the packet socket non-blocking")?;
    let mut file = BufWriter::new(io::stdout().lock());
    write_header(&mut file).context("cannot write packets")?;
    writeln!(io::stderr(), "{READY}").context("nobody waits for the recording")?;

    let mut frame = vec![0; MAX_FRAME];
    let stdin = io::stdin();
    loop {
        let mut ready = [PollFd::new(&socket, PollFlags::IN), PollFd::new(&stdin, PollFlags::IN)];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("cannot wait for packets")?,
        };
        // Asked before the queue is emptied: all that was sent before the end is then in the file.
        let over = !ready[1].revents().is_empty();
        drain(&socket, &mut frame, &mut file).context("cannot record packets")?;
        if over {
            return file.flush().context("cannot write packets");
        }
    }
}

fn drain(mut socket: &Socket, frame: &mut [u8], file: &mut impl Write) -> io::Result<()> {
    loop {
        match socket.read(frame) {
            Ok(length) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
                write_packet(file, now, &frame[..length])?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // An interface went down; the others go on.
            Err(error) if error.kind() == ErrorKind::NetworkDown => {}
            Err(error) => return Err(error),
        }
    }
}
