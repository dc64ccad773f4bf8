//! A line of JSON a message, in both directions.

use std::io;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// The longest message: a name, or a reason, which are shorter.
const MAX_MESSAGE: u64 = 4096;

/// What the agent wants.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// A service's check, once.
    Run {
        /// What its result is to be called.
        id: u64,
        /// `name.namespace`.
        service: String,
    },
    /// A check is not waited for any more.
    Leave {
        /// What its result would have been called.
        id: u64,
    },
}

/// What came of a check.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
pub struct Said {
    /// What the agent called it.
    pub id: u64,
    /// Why it failed, if it did.
    pub failed: Option<String>,
}

/// Sends one message.
pub async fn send(to: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line).await
}

/// Receives one message; `None` at the end.
pub async fn receive<T: DeserializeOwned>(from: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<T>> {
    let mut line = Vec::new();
    from.take(MAX_MESSAGE).read_until(b'\n', &mut line).await?;
    if line.is_empty() {
        return Ok(None);
    }
    Ok(Some(serde_json::from_slice(&line)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_received_and_what_is_longer_is_refused() {
        let mut wire = Vec::new();
        let asked = [Asked::Run { id: 7, service: "a.b".to_owned() }, Asked::Leave { id: 7 }];
        for one in &asked {
            send(&mut wire, one).await.expect("sent");
        }
        let mut from = &wire[..];
        for one in asked {
            assert_eq!(receive(&mut from).await.expect("received"), Some(one));
        }
        assert_eq!(receive::<Asked>(&mut from).await.expect("the end"), None);
        let long = Said { id: 1, failed: Some("x".repeat(5000)) };
        wire.clear();
        send(&mut wire, &long).await.expect("sent");
        assert!(receive::<Said>(&mut &wire[..]).await.is_err());
        assert!(receive::<Said>(&mut &b"{\"id\":1"[..]).await.is_err(), "a part of one");
    }
}
