//! Telling the control server who came to this host's services: what is new or was seen again since it was told last. It
//! keeps it for reports and simulations of policies; nothing on this host goes by it.

use std::time::{Duration, Instant};

use baremesh_registry::control::flows::{FLOWS_PATH, FlowTold, FlowsTold, MAX_TOLD};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::time::{sleep, timeout};

use crate::flows::Flows;

/// How often it is told.
const TELL_EVERY: Duration = Duration::from_secs(15);
/// How long one call may take.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);

/// Tells for as long as it is polled: over a connection that is new, all of the last hour first.
pub(super) async fn keep_telling(flows: &Flows, requests: SendRequest<Bytes>) {
    let mut told_until = None;
    loop {
        sleep(TELL_EVERY).await;
        let now = Instant::now();
        match timeout(TELL_TIMEOUT, tell(flows, (told_until, now), requests.clone())).await {
            Ok(Ok(Taken::All)) => told_until = Some(now),
            // A control server of an earlier version has no use for it.
            Ok(Ok(Taken::Nothing)) => return std::future::pending().await,
            Ok(Err(reason)) => tracing::debug!(reason, "the control server does not take this host's flows"),
            Err(_) => tracing::debug!("the control server does not take this host's flows in time"),
        }
    }
}

enum Taken {
    All,
    Nothing,
}

async fn tell(
    flows: &Flows,
    (since, now): (Option<Instant>, Instant),
    requests: SendRequest<Bytes>,
) -> Result<Taken, String> {
    let seen = flows.since(since, now);
    let age = |last: Instant| now.saturating_duration_since(last).as_secs();
    let told: Vec<_> =
        seen.iter().map(|seen| FlowTold::new(&seen.flow, seen.count, age(seen.last))).collect();
    let mut parts: Vec<_> = told.chunks(MAX_TOLD).map(<[FlowTold]>::to_vec).collect();
    if since.is_none() && parts.is_empty() {
        // Once, that nobody came: to be told so is not to know nothing.
        parts.push(Vec::new());
    }
    for part in parts {
        let told = FlowsTold { flows: part, missed: flows.missed() };
        let body = serde_json::to_vec(&told).map_err(|error| error.to_string())?;
        match post(requests.clone(), body.into()).await.map_err(|error| error.to_string())? {
            StatusCode::OK => {}
            StatusCode::NOT_FOUND => return Ok(Taken::Nothing),
            status => return Err(format!("it answered {status}")),
        }
    }
    Ok(Taken::All)
}

async fn post(
    requests: SendRequest<Bytes>,
    body: Bytes,
) -> Result<StatusCode, Box<dyn std::error::Error + Send + Sync>> {
    let uri = format!("https://control{FLOWS_PATH}");
    let request = Request::builder().method(Method::POST).uri(uri).body(())?;
    let (response, mut send) = requests.ready().await?.send_request(request, false)?;
    send.send_data(body, true)?;
    Ok(response.await?.status())
}
