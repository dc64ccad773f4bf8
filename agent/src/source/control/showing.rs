//! Showing the control server which addresses are this host's. It takes those from which it sees the host speak. Over
//! the session that is one; from each of the others a connection is opened, which asks the same question.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use baremesh_registry::control::ownership::{ADDRESSES_PATH, AddressAnswer, AddressQuestion, MAX_ASKED};
use baremesh_registry::control::registration::Registration;
use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::time::timeout;

use super::line::Line;

/// How long all addresses together may take: registering waits for it.
const SHOW_TIMEOUT: Duration = Duration::from_secs(8);
/// How long one connection may take, of those that show a further address.
const ONE_TIMEOUT: Duration = Duration::from_secs(2);
/// How many of the control server's addresses are tried from one of this host's.
const MAX_TRIED: usize = 4;
/// How often addresses that could not be shown are tried again: sooner than refused registrations are.
const SHOW_AGAIN: Duration = Duration::from_secs(20);
/// Most bytes of an answer.
const MAX_ANSWER: usize = 64 * 1024;

/// What is known of this host's addresses while a connection stands.
pub(super) struct Showing {
    line: Line,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The connection of the session, over which questions are asked.
    requests: Option<SendRequest<Bytes>>,
    /// What the control server would refuse.
    unknown: BTreeSet<IpAddr>,
}

impl Showing {
    pub(super) fn over(line: Line) -> Arc<Self> {
        Arc::new(Self { line, state: Mutex::default() })
    }

    /// Asks over this connection from now on, or over none.
    pub(super) fn connected(&self, requests: Option<SendRequest<Bytes>>) {
        *self.state() = State { requests, unknown: BTreeSet::new() };
    }

    /// Shows what of these registrations' addresses the control server does not know yet. Without a connection there is
    /// nobody to be shown anything.
    pub(super) async fn show(&self, registrations: &[Registration]) {
        let requests = self.state().requests.clone();
        let Some(requests) = requests else { return };
        let wanted: BTreeSet<IpAddr> =
            registrations.iter().flat_map(|one| one.addresses.iter().copied()).take(MAX_ASKED).collect();
        if wanted.is_empty() {
            return;
        }
        let shown = timeout(SHOW_TIMEOUT, Box::pin(self.show_all(requests, &wanted))).await;
        let (unknown, reasons) = match shown {
            Ok(Ok(shown)) => shown,
            Ok(Err(reason)) => (wanted, vec![reason]),
            Err(_) => (wanted, vec![format!("it took longer than {} s", SHOW_TIMEOUT.as_secs())]),
        };
        let before = std::mem::replace(&mut self.state().unknown, unknown.clone());
        if unknown != before {
            // What is refused for want of it is told with the registrations, too.
            for reason in reasons {
                tracing::info!(reason, "not every address of this host can be shown to the control server");
            }
        }
    }

    /// Asks once more when the session stands, since what was known before may have been of the one before it; then goes on with
    /// addresses that could not be shown, for as long as it is polled.
    pub(super) async fn keep_showing(&self, registrations: impl Fn() -> Vec<Registration>) {
        tokio::time::sleep(SHOW_AGAIN).await;
        self.show(&registrations()).await;
        loop {
            tokio::time::sleep(SHOW_AGAIN).await;
            if !self.state().unknown.is_empty() {
                self.show(&registrations()).await;
            }
        }
    }

    /// Returns what is unknown after it, and why.
    async fn show_all(
        &self,
        requests: SendRequest<Bytes>,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<(BTreeSet<IpAddr>, Vec<String>), String> {
        let mut reasons = Vec::new();
        let Some(first) = ask(requests, wanted).await? else { return Ok((BTreeSet::new(), reasons)) };
        let mut unknown: BTreeSet<IpAddr> = first.unknown.iter().copied().collect();
        if unknown.is_empty() {
            return Ok((unknown, reasons));
        }
        // The control server's name may know addresses of it that it does not see itself.
        let named = self.line.resolve().await.unwrap_or_default();
        let controls: Vec<SocketAddr> = named.into_iter().chain(first.control).collect();
        for address in first.unknown {
            match self.show_anywhere(address, &controls, wanted).await {
                Ok(left) => unknown = left,
                Err(reason) => reasons.push(format!("{address}: {reason}")),
            }
        }
        Ok((unknown, reasons))
    }

    /// Speaks from `address` to whichever address of the control server takes it. Returns what is unknown after it.
    async fn show_anywhere(
        &self,
        address: IpAddr,
        controls: &[SocketAddr],
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<BTreeSet<IpAddr>, String> {
        let mut reason = "the control server has no address of its family".to_owned();
        let same_family = |control: &&SocketAddr| control.is_ipv4() == address.is_ipv4();
        for control in controls.iter().filter(same_family).take(MAX_TRIED) {
            reason = match self.show_one(address, *control, wanted).await {
                Ok(left) if !left.contains(&address) => return Ok(left),
                Ok(_) => format!("the control server at {control} sees another one: is there NAT between?"),
                Err(error) => error,
            };
        }
        Err(reason)
    }

    /// Speaks from `address`. Returns what is unknown after it.
    async fn show_one(
        &self,
        address: IpAddr,
        control: SocketAddr,
        wanted: &BTreeSet<IpAddr>,
    ) -> Result<BTreeSet<IpAddr>, String> {
        let speaking = async {
            let open = self.line.open_from(address, control, ONE_TIMEOUT).await?;
            let answer = ask(open.requests.clone(), wanted).await?;
            answer.ok_or_else(|| "the control server does not answer as it did".to_owned())
        };
        let answer = timeout(ONE_TIMEOUT, Box::pin(speaking)).await;
        let answer =
            answer.map_err(|_| format!("no answer at {control} within {} s", ONE_TIMEOUT.as_secs()))??;
        Ok(answer.unknown.into_iter().collect())
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Asks which addresses are not known to be this host's. `None`: a control server of an earlier version, which takes
/// all.
async fn ask(
    requests: SendRequest<Bytes>,
    wanted: &BTreeSet<IpAddr>,
) -> Result<Option<AddressAnswer>, String> {
    let question = AddressQuestion { addresses: wanted.iter().copied().collect() };
    let question = serde_json::to_vec(&question).map_err(|error| error.to_string())?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://control{ADDRESSES_PATH}"))
        .body(())
        .map_err(|error| error.to_string())?;
    let text = |error: h2::Error| error.to_string();
    let mut requests = requests.ready().await.map_err(text)?;
    let (response, mut send) = requests.send_request(request, false).map_err(text)?;
    send.send_data(question.into(), true).map_err(text)?;
    let response = response.await.map_err(text)?;
    match response.status() {
        StatusCode::OK => {}
        StatusCode::NOT_FOUND => return Ok(None),
        status => return Err(format!("it answered {status}")),
    }
    let mut body = response.into_body();
    let mut answer = BytesMut::new();
    while let Some(data) = body.data().await {
        let data = data.map_err(text)?;
        body.flow_control().release_capacity(data.len()).map_err(text)?;
        answer.extend_from_slice(&data);
        if answer.len() > MAX_ANSWER {
            return Err(format!("an answer of more than {MAX_ANSWER} bytes"));
        }
    }
    serde_json::from_slice(&answer).map(Some).map_err(|error| error.to_string())
}
