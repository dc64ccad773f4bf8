//! What agents are told of certificates, with the state: the roots that they trust, and the list of those that are
//! revoked. A root that is to sign next signs when all of them have heard of it.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use baremesh_ca::service::Refusal;
use baremesh_ca::tls::{TrustBundle, control_server_config};
use baremesh_registry::control::{REVOKED, ROOTS, STATEMENT_PEM};
use serde_json::json;
use tokio::time::{Instant, sleep};
use tokio_rustls::TlsAcceptor;

use super::Server;
use super::certificate::OwnCertificate;

/// How often the list is looked at for certificates that have ended.
const LOOK: Duration = Duration::from_secs(300);
/// How often the log says what of the authority is near its end.
const REMIND: Duration = Duration::from_secs(3600);
/// How often it is looked whether the next root may sign.
const TICK: Duration = Duration::from_millis(500);

/// What takes connections of hosts that are verified against `bundle`.
pub(super) fn acceptor(certificate: &Arc<OwnCertificate>, bundle: TrustBundle) -> TlsAcceptor {
    TlsAcceptor::from(Arc::new(control_server_config(certificate.clone(), Arc::new(bundle))))
}

/// Tells every agent what is trusted and what is revoked now. What is the same as before reaches nobody. One at a time: what
/// was asked for first must not be said last. The roots are said even where the list cannot be signed.
pub(super) async fn publish(server: &Arc<Server>) -> anyhow::Result<()> {
    tell(server).await?.context("the list of revoked certificates cannot be signed")
}

/// Says what holds when the server starts. That no list can be signed does not keep it from serving: the one of before goes
/// on.
pub(super) async fn begin(server: &Arc<Server>) -> anyhow::Result<()> {
    if let Err(error) = tell(server).await? {
        tracing::error!(%error, "the list of revoked certificates cannot be signed: what is revoked from now on is taken by agents all the same");
    }
    Ok(())
}

/// Tells agents what is trusted, and which list is in force; the error within is about the list alone.
async fn tell(server: &Arc<Server>) -> anyhow::Result<Result<(), Refusal>> {
    let _turn = server.publishing.lock().await;
    let ca = server.ca.clone();
    let asking = move || {
        let (list, failed) = match ca.revocation_list(SystemTime::now()) {
            Ok(list) => (list, Ok(())),
            Err(error) => (ca.kept_revocation_list()?, Err(error)),
        };
        anyhow::Ok((ca.bundle()?, list, failed))
    };
    let (bundle, list, failed) = tokio::task::spawn_blocking(asking).await??;
    let roots = json!({ STATEMENT_PEM: bundle.to_pem() });
    // Who shows what is signed under a root is taken before anybody is told that there is such a root.
    server.tls.send_replace(acceptor(&server.certificate, bundle));
    server.control.say(ROOTS, Some(roots)).await?;
    server.control.say(REVOKED, list.map(|list| json!({ STATEMENT_PEM: list }))).await?;
    server.told.store(server.control.state_version(), Ordering::SeqCst);
    Ok(failed)
}

/// Keeps the list to what has not ended, and has the next root sign when its time has come, for as long as the server
/// runs.
pub(super) async fn keep(server: Arc<Server>) {
    let (mut looked, mut reminded) = (Instant::now(), Instant::now());
    loop {
        sleep(TICK).await;
        if let Err(error) = switch_if_due(&server).await {
            tracing::error!("the next root cannot sign: {error:#}");
            sleep(LOOK).await;
        }
        if reminded.elapsed() >= REMIND {
            reminded = Instant::now();
            warnings(&server).iter().for_each(|warning| tracing::warn!("{warning}"));
        }
        if looked.elapsed() >= LOOK {
            looked = Instant::now();
            if let Err(error) = publish(&server).await {
                tracing::error!("agents are not told what is revoked: {error:#}");
            }
        }
    }
}

/// What of the authority, and of federated ones, an operator ought to look at.
pub(super) fn warnings(server: &Server) -> Vec<String> {
    let now = SystemTime::now();
    server.ca.ending(now).into_iter().chain(server.federation.warnings(now)).collect()
}

async fn switch_if_due(server: &Arc<Server>) -> anyhow::Result<()> {
    let Some(by) = server.ca.switches_by() else { return Ok(()) };
    // Who reads what is trusted in Consul is not heard of: the time alone says that all have it.
    let all_are_heard = server.consul.is_none();
    let why = match (
        all_are_heard && server.control.all_have(server.told.load(Ordering::SeqCst)),
        SystemTime::now() >= by,
    ) {
        (true, _) => "every host that is there knows it",
        (false, true) => "its time has come, though not every host that is there knows it",
        (false, false) => return Ok(()),
    };
    let ca = server.ca.clone();
    tokio::task::spawn_blocking(move || ca.switch_root(why, SystemTime::now())).await??;
    server.certificate.renew().await?;
    publish(server).await
}
