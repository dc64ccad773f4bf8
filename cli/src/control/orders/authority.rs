//! Orders about what signs: replacing the intermediate or the root, dropping a root.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use baremesh_ca::authority::{AuthorityError, Installed, Standing};
use baremesh_ca::federation::to_spiffe;
use baremesh_ca::issued::chain_from_pem;
use baremesh_ca::service::Force;
use baremesh_ca::tls::Fingerprint;
use http::StatusCode;
use serde_json::{Value, json};

use super::{blocking, told};
use crate::control::report::{
    AuthorityReport, BundleAnswer, ChainOrder, DropOrder, Replaced, RequestAnswer, RootReport, RotateOrder,
};
use crate::control::socket::Denial;
use crate::control::{Server, trust};
use crate::output::to_unix;

/// How long the next root waits at most for hosts that are there and do not say that they know it.
const PATIENCE: Duration = Duration::from_secs(3600);
/// The longest that it can be made to wait.
const MAX_PATIENCE: Duration = Duration::from_secs(30 * 86_400);

impl From<AuthorityError> for Denial {
    fn from(error: AuthorityError) -> Self {
        let status = match error {
            AuthorityError::NoSuchRoot(_) => StatusCode::NOT_FOUND,
            AuthorityError::File(_) | AuthorityError::Library(_) | AuthorityError::Ledger(_) => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
            _ => StatusCode::CONFLICT,
        };
        Self::new(status, error.to_string())
    }
}

/// How the authority stands.
pub(super) fn show(server: &Server) -> Result<Value, Denial> {
    let report = server.ca.authority_report(SystemTime::now())?;
    told(AuthorityReport {
        roots: report
            .roots
            .into_iter()
            .map(|root| RootReport {
                fingerprint: root.fingerprint.to_string(),
                standing: match root.standing {
                    Standing::Signs => "signs",
                    Standing::Next => "next",
                    Standing::Before => "before",
                }
                .to_owned(),
                not_after: to_unix(root.not_after),
                in_use: root.in_use,
            })
            .collect(),
        intermediate_not_after: to_unix(report.issuing_not_after),
        switches_by: report.switches_by.map(to_unix),
        federated: server.federation.report(),
    })
}

/// The roots of this trust domain, for others.
pub(super) fn bundle(server: &Server) -> Result<Value, Denial> {
    let bundle = server.ca.bundle()?;
    told(BundleAnswer {
        trust_domain: bundle.trust_domain().to_string(),
        pem: bundle.to_pem(),
        spiffe: to_spiffe(bundle.roots()),
    })
}

/// Replaces what signs.
pub(super) async fn rotate(server: Arc<Server>, wanted: RotateOrder, who: String) -> Result<Value, Denial> {
    let patience = patience(wanted.within_seconds)?;
    match wanted.what {
        Replaced::Intermediate => {
            let rotating =
                move |server: &Server| Ok(server.ca.rotate_intermediate(&who, SystemTime::now())?);
            blocking(server.clone(), rotating).await?;
        }
        Replaced::Root => {
            alone(&server).await?;
            not_told_yet(&server);
            let by = who.clone();
            let staging =
                move |server: &Server| Ok(server.ca.stage_root(patience, &by, SystemTime::now())?);
            let staged = blocking(server.clone(), staging).await?;
            agree(&server, staged, who).await?;
            tell(&server).await?;
        }
    }
    blocking(server, show).await
}

/// A signing request for an intermediate that somebody else is to sign.
pub(super) fn request(server: &Server, who: &str) -> Result<Value, Denial> {
    told(RequestAnswer { request: server.ca.request_intermediate(who, SystemTime::now())? })
}

/// Takes the chain for that request.
pub(super) async fn install(server: Arc<Server>, wanted: ChainOrder, who: String) -> Result<Value, Denial> {
    let patience = patience(wanted.within_seconds)?;
    let known = server.ca.bundle()?;
    let root = chain_from_pem(wanted.chain.as_bytes()).unwrap_or_default().pop();
    if root.is_some_and(|root| !known.roots().contains(&root)) {
        alone(&server).await?;
        not_told_yet(&server);
    }
    let by = who.clone();
    let installing = move |server: &Server| {
        Ok(server.ca.install_chain(wanted.chain.as_bytes(), patience, &by, SystemTime::now())?)
    };
    if let Installed::Staged(staged) = blocking(server.clone(), installing).await? {
        agree(&server, staged, who).await?;
    }
    tell(&server).await?;
    blocking(server, show).await
}

/// How long a new root waits for hosts.
fn patience(seconds: Option<u64>) -> Result<Duration, Denial> {
    let patience = seconds.map_or(PATIENCE, Duration::from_secs);
    if patience > MAX_PATIENCE {
        let days = MAX_PATIENCE.as_secs() / 86_400;
        return Err(Denial::new(StatusCode::BAD_REQUEST, format!("a root waits for {days} days at most")));
    }
    Ok(patience)
}

/// Trusts a root no more.
pub(super) async fn drop_root(server: Arc<Server>, wanted: DropOrder, who: String) -> Result<Value, Denial> {
    let force = if wanted.force { Force::Yes } else { Force::No };
    let dropping = move |server: &Server| {
        Ok(server.ca.drop_root(&wanted.fingerprint, force, &who, SystemTime::now())?)
    };
    let dropped = blocking(server.clone(), dropping).await?;
    // Its chain no longer leads there.
    server.certificate.renew().await.map_err(|error| Denial::failed(&format_args!("{error:#}")))?;
    tell(&server).await?;
    Ok(json!({ "dropped": dropped.to_string() }))
}

/// Refuses a new root while other processes share the ledger: they would not have it, and their hosts would not trust what is
/// signed under it.
async fn alone(server: &Server) -> Result<(), Denial> {
    let Some(processes) = &server.processes else { return Ok(()) };
    let others = processes.others().await.map_err(|error| {
        Denial::new(
            StatusCode::SERVICE_UNAVAILABLE,
            format!("which other control processes share the ledger is not known: {error}"),
        )
    })?;
    if others.is_empty() {
        return Ok(());
    }
    let hosts: Vec<_> = others.iter().map(|other| other.host.as_str()).collect();
    Err(Denial::new(
        StatusCode::CONFLICT,
        format!(
            "control processes on {} share the ledger and would not have the new root: stop them, replace the root here, and start \
             each from a `baremesh backup` of this one (docs/shared-ledger.md)",
            hosts.join(", ")
        ),
    ))
}

/// What hosts put in force until now says nothing of the root that is made next.
fn not_told_yet(server: &Server) {
    server.told.store(u64::MAX, Ordering::SeqCst);
}

/// Lets the others know of a new root before any host is told. It is taken back where one began to share the ledger meanwhile, or
/// nobody can tell: of two that say something and then look, one sees the other.
async fn agree(server: &Arc<Server>, staged: Fingerprint, who: String) -> Result<(), Denial> {
    let Some(processes) = &server.processes else { return Ok(()) };
    let said = processes.announce(&server.ca).await;
    let agreed = match said.map_err(|error| Denial::failed(&format_args!("{error:#}"))) {
        Ok(()) => alone(server).await,
        Err(denial) => Err(denial),
    };
    let Err(denial) = agreed else { return Ok(()) };
    let dropping = move |server: &Server| {
        Ok(server.ca.drop_root(&staged.to_string(), Force::No, &who, SystemTime::now())?)
    };
    blocking(server.clone(), dropping).await?;
    // That it is gone is said by `processes::keep` within moments.
    Err(denial)
}

async fn tell(server: &Arc<Server>) -> Result<(), Denial> {
    trust::publish(server).await.map_err(|error| Denial::failed(&format_args!("{error:#}")))
}
