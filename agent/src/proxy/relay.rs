//! Bytes from one side to the other, both ways at once: half-close is passed on as half-close, a reset as a
//! reset, and a side that does not read stops the other from being read. Memory follows what moves: an idle
//! connection holds no buffer.

/// Between a tunnel and what is no socket.
mod onward;
/// What moved.
mod meter;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use h2::{Reason, RecvStream, SendStream};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio::task::coop::consume_budget;
use tokio_rustls::client::TlsStream;

pub use meter::Meter;
pub use onward::{tunnel_to_tls, tunnel_to_tunnel};

/// The first read of a connection asks for this much: a small request or a greeting.
const SMALL_READ: usize = 4 * 1024;
/// Once a connection has moved `MEDIUM_AFTER` bytes one way.
const MEDIUM_READ: usize = 32 * 1024;
const MEDIUM_AFTER: u64 = 64 * 1024;
/// Once a connection has moved `LARGE_AFTER` bytes one way. The most that one direction holds at a time: with a
/// frame's head it fits four records of TLS.
pub(super) const LARGE_READ: usize = 64 * 1024 - 64;
const LARGE_AFTER: u64 = 2 * 1024 * 1024;
/// The most DATA frames written to a socket with one system call.
pub(super) const GATHER: usize = 16;

/// Which leg broke.
#[derive(Debug)]
pub enum Broken {
    /// The caller's.
    Client(io::Error),
    /// The called side's.
    Upstream(io::Error),
    /// Nothing moved for the idle timeout.
    Idle,
}

/// One HBONE stream after its 200.
pub struct TunnelStream {
    /// Towards the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub receive: RecvStream,
}

/// Carries a caller's socket over a tunnel until both directions have ended.
pub async fn client_to_tunnel(
    client: &mut TcpStream,
    tunnel: &mut TunnelStream,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    // The socket is the caller's, the stream the called side's.
    let leg = |broken| match broken {
        Side::Socket(error) => Broken::Client(error),
        Side::Stream(error) => Broken::Upstream(error),
    };
    let TunnelStream { send, receive } = tunnel;
    let (read, write) = client.split();
    let up = async { socket_to_stream(read, send, |n| meter.sent(n)).await.map_err(leg) };
    let down = async { stream_to_socket(receive, write.as_ref(), |n| meter.answered(n)).await.map_err(leg) };
    let ended = both(up, down, meter, idle).await;
    after(&ended, client, Some(&mut tunnel.send));
    ended
}

/// Delivers a tunnel's stream to the called program's socket until both directions have ended.
pub async fn tunnel_to_upstream(
    tunnel: &mut TunnelStream,
    upstream: &mut TcpStream,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    // The stream is the caller's, the socket the called side's.
    let leg = |broken| match broken {
        Side::Stream(error) => Broken::Client(error),
        Side::Socket(error) => Broken::Upstream(error),
    };
    let TunnelStream { send, receive } = tunnel;
    let (read, write) = upstream.split();
    let up = async { stream_to_socket(receive, write.as_ref(), |n| meter.sent(n)).await.map_err(leg) };
    let down = async { socket_to_stream(read, send, |n| meter.answered(n)).await.map_err(leg) };
    let ended = both(up, down, meter, idle).await;
    after(&ended, upstream, Some(&mut tunnel.send));
    ended
}

/// Carries between two sockets of this host until both directions have ended.
pub async fn client_to_upstream(
    client: &mut TcpStream,
    upstream: &mut TcpStream,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    let (from_client, to_client) = client.split();
    let (from_upstream, to_upstream) = upstream.split();
    let up = async {
        socket_to_socket(from_client, to_upstream.as_ref(), |n| meter.sent(n)).await.map_err(|broken| {
            match broken {
                Ends::From(error) => Broken::Client(error),
                Ends::To(error) => Broken::Upstream(error),
            }
        })
    };
    let down = async {
        socket_to_socket(from_upstream, to_client.as_ref(), |n| meter.answered(n)).await.map_err(|broken| {
            match broken {
                Ends::From(error) => Broken::Upstream(error),
                Ends::To(error) => Broken::Client(error),
            }
        })
    };
    let ended = both(up, down, meter, idle).await;
    after(&ended, client, None);
    after(&ended, upstream, None);
    ended
}

/// Carries between a caller's socket and a server that is reached over TLS until both directions have ended. A server that
/// is gone without a word of farewell has broken off (RFC 8446, section 6.1): what came may not be all.
pub async fn client_to_tls(
    client: &TcpStream,
    tls: &mut TlsStream<TcpStream>,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    let (mut receive, mut send) = tokio::io::split(&mut *tls);
    let up = async {
        let mut buffer = Vec::new();
        loop {
            client.readable().await.map_err(Broken::Client)?;
            buffer.resize(MEDIUM_READ, 0);
            match client.try_read(&mut buffer) {
                Ok(0) => return send.shutdown().await.map_err(Broken::Upstream),
                Ok(read) => {
                    send.write_all(&buffer[..read]).await.map_err(Broken::Upstream)?;
                    send.flush().await.map_err(Broken::Upstream)?;
                    meter.sent(read);
                    consume_budget().await;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => buffer = Vec::new(),
                Err(error) => return Err(Broken::Client(error)),
            }
        }
    };
    let down = async {
        let mut buffer = vec![0; MEDIUM_READ];
        loop {
            let read = receive.read(&mut buffer).await.map_err(Broken::Upstream)?;
            if read == 0 {
                // As below: a side that is gone both ways says so at the next read.
                let _ = SockRef::from(client).shutdown(Shutdown::Write);
                return Ok(());
            }
            let mut chunk = [Bytes::copy_from_slice(&buffer[..read])];
            meter.answered(write_all(client, &mut chunk).await.map_err(Broken::Client)?);
        }
    };
    let ended = both(up, down, meter, idle).await;
    after(&ended, client, None);
    after(&ended, tls.get_ref().0, None);
    ended
}

/// Makes the next close of the socket a reset, so that the program behind it learns of a broken end instead of
/// taking it for a whole one.
pub fn reset_on_close(socket: &TcpStream) {
    // Fails only on a socket that is gone already.
    let _ = SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

/// Passes a break on to the legs that have not broken themselves. Programs' sockets are closed with a reset unless a
/// connection is known to be whole: the kernel, which closes those of an agent that was killed, knows nothing of it.
fn after(ended: &Result<(), Broken>, socket: &TcpStream, stream: Option<&mut SendStream<Bytes>>) {
    match (ended, stream) {
        (Ok(()), _) => {
            // Fails only on a socket that is gone already.
            let _ = SockRef::from(socket).set_linger(None);
        }
        (Err(_), None) => reset_on_close(socket),
        (Err(_), Some(stream)) => {
            reset_on_close(socket);
            stream.send_reset(Reason::CANCEL);
        }
    }
}

async fn both(
    up: impl Future<Output = Result<(), Broken>>,
    down: impl Future<Output = Result<(), Broken>>,
    meter: &Meter,
    idle: Duration,
) -> Result<(), Broken> {
    tokio::select! {
        biased;
        ended = async { tokio::try_join!(biased; up, down) } => ended.map(|_| ()),
        () = until_idle(meter, idle) => Err(Broken::Idle),
    }
}

/// Ends when nothing has moved for `idle`, give or take once as much: the meter is looked at once a period, instead
/// of a timer armed at every read.
pub(super) async fn until_idle(meter: &Meter, idle: Duration) {
    let mut seen = None;
    loop {
        let moved = meter.moved();
        if seen == Some(moved) {
            return;
        }
        seen = Some(moved);
        tokio::time::sleep(idle).await;
    }
}

/// Which of a socket and a stream broke.
enum Side {
    Socket(io::Error),
    Stream(io::Error),
}

/// Which of two sockets broke.
enum Ends {
    From(io::Error),
    To(io::Error),
}

fn read_size(moved: u64) -> usize {
    match moved {
        LARGE_AFTER.. => LARGE_READ,
        MEDIUM_AFTER.. => MEDIUM_READ,
        _ => SMALL_READ,
    }
}

/// What has arrived, without waiting; `None` where nothing has. A read that leaves room has taken all that there was,
/// and the socket is not asked again before the kernel reports more: `try_read` would ask, once for every message.
async fn read_now(socket: &mut ReadHalf<'_>, buffer: &mut impl BufMut) -> Option<io::Result<usize>> {
    poll_fn(|cx| match pin!(socket.read_buf(buffer)).poll(cx) {
        Poll::Ready(read) => Poll::Ready(Some(read)),
        Poll::Pending => Poll::Ready(None),
    })
    .await
}

async fn socket_to_stream(
    mut socket: ReadHalf<'_>,
    stream: &mut SendStream<Bytes>,
    count: impl Fn(usize),
) -> Result<(), Side> {
    let mut buffer = BytesMut::new();
    let mut moved = 0;
    loop {
        tokio::select! {
            biased;
            ready = socket.ready(Interest::READABLE) => { ready.map_err(Side::Socket)?; }
            reset = poll_fn(|cx| stream.poll_reset(cx)) => return Err(Side::Stream(reset_error(reset))),
        }
        let size = read_size(moved);
        buffer.reserve(size);
        match read_now(&mut socket, &mut (&mut buffer).limit(size)).await {
            Some(Ok(0)) => {
                return stream.send_data(Bytes::new(), true).map_err(|error| Side::Stream(h2_error(error)));
            }
            Some(Ok(read)) => {
                moved += read as u64;
                let chunk = buffer.split().freeze();
                if read < size {
                    // An idle connection keeps no buffer.
                    buffer = BytesMut::new();
                }
                send_all(stream, chunk).await.map_err(Side::Stream)?;
                count(read);
                consume_budget().await;
            }
            Some(Err(error)) => return Err(Side::Socket(error)),
            None => buffer = BytesMut::new(),
        }
    }
}

/// Hands a chunk to the stream as the peer's window allows. Capacity is asked for only once there is something
/// to send, so that an idle stream takes nothing of the connection's window.
pub(super) async fn send_all(stream: &mut SendStream<Bytes>, mut chunk: Bytes) -> io::Result<()> {
    while !chunk.is_empty() {
        stream.reserve_capacity(chunk.len());
        let capacity = match stream.capacity() {
            0 => match poll_fn(|cx| stream.poll_capacity(cx)).await {
                Some(Ok(capacity)) => capacity,
                Some(Err(error)) => return Err(h2_error(error)),
                None => return Err(io::ErrorKind::ConnectionReset.into()),
            },
            capacity => capacity,
        };
        let part = chunk.split_to(capacity.min(chunk.len()));
        stream.send_data(part, false).map_err(h2_error)?;
    }
    Ok(())
}

async fn stream_to_socket(
    stream: &mut RecvStream,
    socket: &TcpStream,
    count: impl Fn(usize),
) -> Result<(), Side> {
    let mut chunks: [Bytes; GATHER] = Default::default();
    loop {
        let gathered = poll_fn(|cx| gather(stream, &mut chunks, cx)).await.map_err(Side::Stream)?;
        let Some(filled) = gathered else {
            // The other program may have closed both ways already; its reset comes with the next read.
            let _ = SockRef::from(socket).shutdown(Shutdown::Write);
            return Ok(());
        };
        let bytes = write_all(socket, &mut chunks[..filled]).await.map_err(Side::Socket)?;
        count(bytes);
        // An error means that the stream is gone, which the next poll says with its reason.
        let _ = stream.flow_control().release_capacity(bytes);
        consume_budget().await;
    }
}

/// Takes the DATA frames that are there, up to `GATHER`. `None` at the end of the stream.
fn gather(
    stream: &mut RecvStream,
    chunks: &mut [Bytes; GATHER],
    cx: &mut std::task::Context<'_>,
) -> Poll<io::Result<Option<usize>>> {
    let mut filled = 0;
    while filled < GATHER {
        match stream.poll_data(cx) {
            Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => {}
            Poll::Ready(Some(Ok(chunk))) => {
                chunks[filled] = chunk;
                filled += 1;
            }
            // What came before the end or the break is written first; the next poll says it again.
            _ if filled > 0 => break,
            Poll::Ready(Some(Err(error))) => return Poll::Ready(Err(h2_error(error))),
            Poll::Ready(None) => return Poll::Ready(Ok(None)),
            Poll::Pending => return Poll::Pending,
        }
    }
    Poll::Ready(Ok(Some(filled)))
}

/// Writes all chunks, several a system call, and lets go of each as soon as it is written.
pub(super) async fn write_all(socket: &TcpStream, mut chunks: &mut [Bytes]) -> io::Result<usize> {
    let mut total = 0;
    while !chunks.is_empty() {
        let mut slices = [IoSlice::new(&[]); GATHER];
        for (slice, chunk) in slices.iter_mut().zip(chunks.iter()) {
            *slice = IoSlice::new(chunk);
        }
        match socket.try_write_vectored(&slices[..chunks.len().min(GATHER)]) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(mut written) => {
                total += written;
                while let Some(first) = chunks.first_mut() {
                    if written < first.len() {
                        bytes::Buf::advance(first, written);
                        break;
                    }
                    written -= first.len();
                    *first = Bytes::new();
                    chunks = &mut chunks[1..];
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => socket.writable().await?,
            Err(error) => return Err(error),
        }
    }
    Ok(total)
}

async fn socket_to_socket(mut from: ReadHalf<'_>, to: &TcpStream, count: impl Fn(usize)) -> Result<(), Ends> {
    let mut buffer = Vec::new();
    let mut moved = 0;
    loop {
        from.readable().await.map_err(Ends::From)?;
        let size = read_size(moved);
        buffer.reserve(size);
        match read_now(&mut from, &mut (&mut buffer).limit(size)).await {
            Some(Ok(0)) => {
                // As above: a side that is gone both ways says so at the next read.
                let _ = SockRef::from(to).shutdown(Shutdown::Write);
                return Ok(());
            }
            Some(Ok(read)) => {
                moved += read as u64;
                let mut rest = &buffer[..];
                while !rest.is_empty() {
                    match to.try_write(rest) {
                        Ok(written) => rest = &rest[written..],
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                            to.writable().await.map_err(Ends::To)?;
                        }
                        Err(error) => return Err(Ends::To(error)),
                    }
                }
                buffer.clear();
                if read < size {
                    buffer = Vec::new();
                }
                count(read);
                consume_budget().await;
            }
            Some(Err(error)) => return Err(Ends::From(error)),
            None => buffer = Vec::new(),
        }
    }
}

pub(super) fn h2_error(error: h2::Error) -> io::Error {
    match error.is_io() {
        true => error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionAborted.into()),
        false => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

/// Whether the peer says that it did nothing with the stream and takes no more: GOAWAY in good order, which names streams before this
/// one (RFC 9113, section 6.8). As with a stream that it refuses, its word is taken for it.
pub fn is_not_taken_up(error: &h2::Error) -> bool {
    error.is_go_away() && error.is_remote() && error.reason() == Some(Reason::NO_ERROR)
}

fn reset_error(reset: Result<Reason, h2::Error>) -> io::Error {
    match reset {
        Ok(reason) => io::Error::new(io::ErrorKind::ConnectionReset, format!("reset by the peer: {reason}")),
        Err(error) => h2_error(error),
    }
}
