//! Whether the control server is in reach, step by step as a connection is made: its name, a way there, TLS, who it is, its
//! answer, and whether large packets pass. What fails is told apart, since each has another remedy.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use baremesh_ca::tls::{PeerError, describe_io};
use baremesh_registry::control::reach::{MAX_PADDING, REACH_PATH, ReachAsked, ReachTold};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use rustls::{CertificateError, Error as TlsError};
use serde::Deserialize;
use tokio::time::timeout;

use super::line::{Line, Open};
use crate::admin::report::doctor::{ReachReport, Step};
use crate::identity::NodeCredential;
use crate::membership::Membership;
use crate::proxy::socket::{self, Mark};
use crate::trust::Trust;

/// How long each step may take.
const STEP: Duration = Duration::from_secs(5);
/// How long the answer to a question of several packets may take, after a small one was answered: twice the first
/// repetitions of TCP.
const LARGE: Duration = Duration::from_secs(6);
/// Bytes of a segment that passes any network.
const SMALL: u32 = 536;
/// The largest answer that is read: with its padding.
const MAX_ANSWER: usize = 2 * MAX_PADDING;

/// A way to find out whether the control server is in reach.
#[derive(Clone)]
pub struct Probe(Line);

/// How large packets may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packets {
    /// As the kernel makes them.
    AsTheyCome,
    /// Small enough for any network.
    Small,
}

/// What came of one question.
enum Asked {
    Told(ReachTold, i64),
    Status(StatusCode, String),
}

/// A refusal as the control server writes it.
#[derive(Deserialize)]
struct Refusal {
    #[serde(default)]
    message: String,
}

impl Probe {
    pub(super) fn over(line: Line) -> Self {
        Self(line)
    }

    /// The way of a host whose agent does not run. Fails, in words, where its credential cannot be used.
    pub fn of(membership: &Membership) -> Result<Self, String> {
        let credential = NodeCredential::new(&membership.node).map_err(|error| error.to_string())?;
        let trust = Trust::new(Arc::clone(&membership.bundle), None).follow();
        let control = membership.control.clone();
        Ok(Self(Line { control, trust, credential: Some(credential), mark: Mark(None) }))
    }

    /// Tries it. Where a connection is taken and then nothing comes, which the first large packet may be the reason of, it is
    /// tried again with small ones.
    pub async fn run(&self) -> ReachReport {
        let report = Box::pin(self.attempt(Packets::AsTheyCome)).await;
        if report.step != Step::LargePackets {
            return report;
        }
        let small = Box::pin(self.attempt(Packets::Small)).await;
        match small.step {
            Step::Done | Step::Refused => ReachReport { step: report.step, detail: report.detail, ..small },
            _ => ReachReport { step: Step::Answer, ..report },
        }
    }

    async fn attempt(&self, packets: Packets) -> ReachReport {
        let mut report = ReachReport { control: self.0.control.clone(), ..ReachReport::default() };
        match Box::pin(self.open(packets, &mut report)).await {
            Ok(open) => Box::pin(ask_all(&open, &mut report)).await,
            Err((step, detail)) => report.failed(step, detail),
        }
        report
    }

    async fn open(&self, packets: Packets, report: &mut ReachReport) -> Result<Open, (Step, String)> {
        let resolved = timeout(STEP, self.0.resolve()).await;
        let addresses = resolved.unwrap_or_else(|_| Err(late(STEP))).map_err(|error| (Step::Name, error))?;
        let mut last = (Step::Name, "the name has no address".to_owned());
        for address in addresses {
            report.address = Some(address);
            let connected = match packets {
                Packets::AsTheyCome => socket::connect(address, self.0.mark, STEP).await,
                Packets::Small => socket::connect_in_segments(address, SMALL, self.0.mark, STEP).await,
            };
            match connected {
                Ok(stream) => {
                    let shaken = timeout(STEP, self.0.shake_hands(stream)).await;
                    // The first thing that is said is too long for a small packet.
                    let silent =
                        |_| (Step::LargePackets, format!("it takes the connection, and then {}", late(STEP)));
                    let tls = shaken.map_err(silent)?;
                    let tls = tls.map_err(|error| (step_of_handshake(&error), describe_io(&error)))?;
                    let spoken = timeout(STEP, Line::speak(tls)).await;
                    let open = spoken.map_err(|_| (Step::Answer, late(STEP)))?;
                    return open.map_err(|error| (Step::Answer, error.to_string()));
                }
                Err(error) => last = (step_of_connect(&error), error.to_string()),
            }
        }
        Err(last)
    }
}

async fn ask_all(open: &Open, report: &mut ReachReport) {
    match timeout(STEP, ask(open, 0)).await {
        Err(_) => return report.failed(Step::Answer, late(STEP)),
        Ok(Err(reason)) => return report.failed(Step::Answer, reason),
        // It is of before there was the question, and in reach.
        Ok(Ok(Asked::Status(StatusCode::NOT_FOUND, _))) => return report.step = Step::Done,
        // In reach, and asked too often.
        Ok(Ok(Asked::Status(StatusCode::TOO_MANY_REQUESTS, message))) => {
            return report.failed(Step::Answer, format!("it answered 429: {message}"));
        }
        Ok(Ok(Asked::Status(status, message))) => {
            return report.failed(Step::Refused, format!("it answered {}: {message}", status.as_u16()));
        }
        Ok(Ok(Asked::Told(told, skew))) => {
            report.version = told.version;
            report.skew_milliseconds = Some(skew);
        }
    }
    match timeout(LARGE, ask(open, MAX_PADDING)).await {
        Ok(Ok(_)) => report.step = Step::Done,
        Ok(Err(reason)) => report.failed(Step::LargePackets, reason),
        Err(_) => report.failed(Step::LargePackets, late(LARGE)),
    }
}

async fn ask(open: &Open, padding: usize) -> Result<Asked, String> {
    let text = |error: &dyn std::fmt::Display| error.to_string();
    let asked = ReachAsked { padding: "x".repeat(padding) };
    let body = serde_json::to_vec(&asked).map_err(|error| text(&error))?;
    let uri = format!("https://control{REACH_PATH}");
    let request = Request::builder().method(Method::POST).uri(uri).body(()).map_err(|error| text(&error))?;
    let mut requests = open.requests.clone().ready().await.map_err(|error| text(&error))?;
    let began = SystemTime::now();
    let (response, mut send) = requests.send_request(request, false).map_err(|error| text(&error))?;
    send.send_data(Bytes::from(body), true).map_err(|error| text(&error))?;
    let response = response.await.map_err(|error| text(&error))?;
    let ended = SystemTime::now();
    let status = response.status();
    let (mut stream, mut answer) = (response.into_body(), Vec::new());
    while let Some(data) = stream.data().await {
        let data = data.map_err(|error| text(&error))?;
        answer.extend_from_slice(&data[..data.len().min(MAX_ANSWER - answer.len())]);
        stream.flow_control().release_capacity(data.len()).map_err(|error| text(&error))?;
    }
    if status != StatusCode::OK {
        let said = serde_json::from_slice::<Refusal>(&answer).map(|refusal| refusal.message);
        return Ok(Asked::Status(status, said.unwrap_or_default()));
    }
    let told: ReachTold = serde_json::from_slice(&answer).map_err(|error| text(&error))?;
    let skew = told.skew(began, ended);
    Ok(Asked::Told(told, skew))
}

fn late(limit: Duration) -> String {
    format!("no answer within {} s", limit.as_secs())
}

/// What a connect that failed says of the way.
pub fn step_of_connect(error: &io::Error) -> Step {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Step::Port,
        io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::HostUnreachable
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::NetworkDown => Step::Route,
        _ => Step::Silence,
    }
}

/// What a handshake that failed says: clocks, somebody else, or anything else.
fn step_of_handshake(error: &io::Error) -> Step {
    use CertificateError::{
        BadSignature, Expired, ExpiredContext, NotValidYet, NotValidYetContext, Other, UnknownIssuer,
    };
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<TlsError>());
    match tls {
        Some(TlsError::InvalidCertificate(
            Expired | ExpiredContext { .. } | NotValidYet | NotValidYetContext { .. },
        )) => Step::Clocks,
        Some(TlsError::InvalidCertificate(UnknownIssuer | BadSignature)) => Step::Identity,
        Some(TlsError::InvalidCertificate(Other(other))) if other.0.is::<PeerError>() => Step::Identity,
        _ => Step::Handshake,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_a_missing_way_from_a_closed_port_and_from_silence() {
        use io::ErrorKind::{
            ConnectionRefused, HostUnreachable, NetworkUnreachable, PermissionDenied, TimedOut,
        };
        for (kind, step) in [
            (ConnectionRefused, Step::Port),
            (HostUnreachable, Step::Route),
            (NetworkUnreachable, Step::Route),
            (TimedOut, Step::Silence),
            (PermissionDenied, Step::Silence),
        ] {
            assert_eq!(step_of_connect(&kind.into()), step, "{kind:?}");
        }
    }

    #[test]
    fn tells_clocks_from_somebody_else() {
        let of = |error: TlsError| step_of_handshake(&io::Error::other(error));
        assert_eq!(of(TlsError::InvalidCertificate(CertificateError::Expired)), Step::Clocks);
        assert_eq!(of(TlsError::InvalidCertificate(CertificateError::UnknownIssuer)), Step::Identity);
        assert_eq!(of(TlsError::NoCertificatesPresented), Step::Handshake);
        assert_eq!(step_of_handshake(&io::ErrorKind::UnexpectedEof.into()), Step::Handshake);
    }
}
