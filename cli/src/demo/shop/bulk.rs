//! The shop's clients that move many bytes, or refuse to.

use std::io::{BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::thread;
use std::time::Duration;

use super::checksum::{Checksum, Pattern};
use super::connection::{Broken, Client, expect_line};
use super::say;
use super::servers::CHUNK;

/// A slow reader's sip, and its pause after it.
const SIP: usize = 4096;
const SIP_PAUSE: Duration = Duration::from_millis(5);

pub(super) fn send(client: &Client, bytes: u64) -> Result<(), Broken> {
    let mut stream = client.connect()?;
    let mut sent = Checksum::default();
    each_chunk(bytes, |chunk| {
        sent.add(chunk);
        stream.write_all(chunk).map_err(Broken::Cut)
    })?;
    stream.shutdown(Shutdown::Write)?;
    let received = expect_line(&mut BufReader::new(&stream))?;
    compare(&sent, &received)
}

pub(super) fn fetch(client: &Client, bytes: u64) -> Result<(), Broken> {
    read_all(client, bytes, CHUNK, Duration::ZERO)
}

pub(super) fn slow(client: &Client, bytes: u64) -> Result<(), Broken> {
    read_all(client, bytes, SIP, SIP_PAUSE)
}

/// Never returns of itself: the connections stand until the process is ended.
pub(super) fn stall(client: &Client, bytes: u64, count: usize) -> Result<(), Broken> {
    let streams: Result<Vec<TcpStream>, Broken> = (0..count).map(|_| ask(client, bytes)).collect();
    let streams = streams?;
    say(format_args!("stalled {}", streams.len()));
    loop {
        thread::park();
    }
}

fn ask(client: &Client, bytes: u64) -> Result<TcpStream, Broken> {
    let mut stream = client.connect()?;
    writeln!(stream, "{bytes}")?;
    Ok(stream)
}

fn read_all(client: &Client, bytes: u64, sip: usize, pause: Duration) -> Result<(), Broken> {
    let mut stream = ask(client, bytes)?;
    let mut received = Checksum::default();
    let mut buffer = vec![0; sip];
    loop {
        match stream.read(&mut buffer)? {
            0 => break,
            n => received.add(&buffer[..n]),
        }
        thread::sleep(pause);
    }
    let mut expected = Checksum::default();
    each_chunk(bytes, |chunk| {
        expected.add(chunk);
        Ok(())
    })?;
    compare(&expected, &received.to_string())
}

/// The first `bytes` of the pattern, piece by piece.
fn each_chunk(bytes: u64, mut take: impl FnMut(&[u8]) -> Result<(), Broken>) -> Result<(), Broken> {
    let mut pattern = Pattern::new();
    let mut buffer = vec![0; CHUNK];
    let mut left = bytes;
    while left > 0 {
        let length = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        pattern.fill(&mut buffer[..length]);
        take(&buffer[..length])?;
        left -= length as u64;
    }
    Ok(())
}

fn compare(sent: &Checksum, received: &str) -> Result<(), Broken> {
    if sent.to_string() != received {
        return Err(Broken::Wrong(format!("sent {sent}, but {received} arrived")));
    }
    say(format_args!("moved {sent}"));
    Ok(())
}
