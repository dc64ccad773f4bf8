//! The shop's clients that exchange words.

use std::io::{BufReader, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;
use std::time::Duration;

use super::connection::{Broken, Client, expect_line};
use super::say;
use super::servers::successful;

/// The pause between two exchanges on a connection that is held.
const HEARTBEAT: Duration = Duration::from_millis(100);

/// The longest text that is read to its end: an answer that never ends has to fail.
const MAX_TEXT: u64 = 16 << 20;

pub(super) fn call(client: &Client, text: &str) -> Result<(), Broken> {
    let mut stream = client.connect()?;
    writeln!(stream, "{text}")?;
    say(successful(expect_line(&mut BufReader::new(&stream))?)?);
    Ok(())
}

pub(super) fn greet(client: &Client) -> Result<(), Broken> {
    let stream = client.connect()?;
    say(expect_line(&mut BufReader::new(&stream))?);
    Ok(())
}

pub(super) fn half_close(client: &Client, text: &str) -> Result<(), Broken> {
    let mut stream = client.connect()?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.take(MAX_TEXT).read_to_string(&mut answer)?;
    say(answer);
    Ok(())
}

pub(super) fn many(client: &Client, count: usize) -> Result<(), Broken> {
    let mut streams = Vec::with_capacity(count);
    for _ in 0..count {
        streams.push(client.connect()?);
    }
    say(format_args!("opened {count}"));
    for (number, stream) in streams.iter_mut().enumerate() {
        writeln!(stream, "connection {number}")?;
    }
    for (number, stream) in streams.iter().enumerate() {
        let line = expect_line(&mut BufReader::new(stream))?;
        if line != format!("connection {number}") {
            return Err(Broken::Wrong(format!("connection {number} got {line:?}")));
        }
    }
    say(format_args!("echoed on {count} of {count}"));
    Ok(())
}

/// Returns only with an error: the end of the connection.
pub(super) fn hold(client: &Client) -> Result<(), Broken> {
    let mut stream = client.connect()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    for exchange in 1_u64.. {
        let sent = format!("exchange {exchange}");
        let received = writeln!(stream, "{sent}").and_then(|()| expect_line(&mut reader));
        match received {
            Ok(received) if received == sent => {}
            Ok(received) => return Err(Broken::Wrong(format!("sent {sent:?}, received {received:?}"))),
            Err(error) => {
                let broken = Broken::Cut(error);
                say(format_args!("ended after {} exchanges: {broken}", exchange - 1));
                return Err(broken);
            }
        }
        if exchange == 1 {
            say("open");
        }
        thread::sleep(HEARTBEAT);
    }
    Ok(())
}
