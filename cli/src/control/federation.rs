//! The roots of other trust domains: read and fetched in the background, kept on the disk, and told to agents with the
//! state. What is known stays in force until its source gives something else, or the federation is taken back.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use baremesh_agent::fetch::{FetchError, Fetcher, MAX_BODY};
use baremesh_agent::proxy::socket::Mark;
use baremesh_ca::federation::{Bundle, BundleFormatError};
use baremesh_ca::file::{FileError, PUBLIC, write_atomically};
use baremesh_ca::issued::chain_to_pem;
use baremesh_ca::ledger::{AuditRecord, Outcome};
use baremesh_ca::tls::Fingerprint;
use baremesh_model::federation::{BundleSource, Federated, REFRESH, REFRESH_BOUNDS};
use baremesh_model::mesh_config::MeshConfig;
use baremesh_model::name::TrustDomain;
use baremesh_model::virtual_address::VirtualRanges;
use baremesh_registry::control::FEDERATED;
use ipnet::IpNet;
use serde_json::{Map, Value};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::report::FederatedReport;
use super::{Server, make_directory};
use crate::output::{in_words, to_unix};

/// The directory of what is kept, in the state directory.
pub const DIRECTORY: &str = "federation";
/// How long a server may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How often files are read of which nobody says how often.
const REREAD: Duration = Duration::from_secs(60);
/// What failed is tried again after so long, and twice as long each time, up to `MOST_PATIENT`.
const FIRST_RETRY: Duration = Duration::from_secs(2);
const MOST_PATIENT: Duration = Duration::from_secs(300);
/// The longest that nothing is looked at.
const LONGEST: Duration = Duration::from_secs(3600);

/// Why there are no roots from a source.
#[derive(Debug, thiserror::Error)]
enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{path} cannot be read: {source}", path = .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("what {0} has is not taken: {1}")]
    Content(String, BundleFormatError),
}

/// What is known of one trust domain.
#[derive(Debug)]
struct Known {
    source: BundleSource,
    refresh: Option<Duration>,
    bundle: Option<Bundle>,
    /// When it was read last.
    read_at: Option<SystemTime>,
    failure: Option<String>,
    failures: u32,
    next: Instant,
    is_asking: bool,
}

/// What is known of all.
#[derive(Debug)]
pub(super) struct Federation {
    known: Mutex<BTreeMap<TrustDomain, Known>>,
    directory: PathBuf,
    allow: Vec<IpNet>,
}

/// What asking a source came to.
type Asked = (TrustDomain, BundleSource, Result<Bundle, ReadError>);

impl Federation {
    /// Begins with what was kept in the state directory of an earlier run. Servers at addresses of this host and its link are
    /// not asked unless `allow` has them.
    pub(super) fn new(state: &Path, allow: Vec<IpNet>, config: &MeshConfig) -> Self {
        let federation = Self { known: Mutex::default(), directory: state.join(DIRECTORY), allow };
        federation.reconcile(config);
        federation
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<TrustDomain, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Follows what is configured: what is new begins with what was kept, and what is gone is forgotten. A source that is
    /// another one now is asked at once; until it answers, what the former one gave stays.
    fn reconcile(&self, config: &MeshConfig) {
        let mut known = self.known();
        let is_wanted = |domain: &TrustDomain| config.federation.iter().any(|f| f.trust_domain == *domain);
        known.retain(|domain, _| {
            let wanted = is_wanted(domain);
            if !wanted {
                tracing::warn!(%domain, "a trust domain is federated no more");
                // One that never came has no file.
                let _ = fs::remove_file(self.path(domain));
            }
            wanted
        });
        for federated in &config.federation {
            match known.get_mut(&federated.trust_domain) {
                Some(one) => {
                    if one.source != federated.source {
                        (one.source, one.next, one.failures) = (federated.source.clone(), Instant::now(), 0);
                    }
                    one.refresh = federated.refresh;
                }
                None => _ = known.insert(federated.trust_domain.clone(), self.begin(federated)),
            }
        }
    }

    fn begin(&self, federated: &Federated) -> Known {
        let path = self.path(&federated.trust_domain);
        let read_at = fs::metadata(&path).and_then(|about| about.modified()).ok();
        let bundle = read_file(&path).ok().and_then(|text| Bundle::read(&text, SystemTime::now()).ok());
        Known {
            source: federated.source.clone(),
            refresh: federated.refresh,
            read_at: read_at.filter(|_| bundle.is_some()),
            bundle,
            failure: None,
            failures: 0,
            next: Instant::now(),
            is_asking: false,
        }
    }

    /// Domains are names of DNS, and so of files.
    fn path(&self, domain: &TrustDomain) -> PathBuf {
        self.directory.join(format!("{domain}.pem"))
    }

    /// What agents are told: the roots of each domain that there are some of.
    fn statement(&self) -> Option<Value> {
        let known = self.known();
        let told = known.iter().filter_map(|(domain, known)| {
            Some((domain.to_string(), Value::from(chain_to_pem(&known.bundle.as_ref()?.roots))))
        });
        let told: Map<String, Value> = told.collect();
        (!told.is_empty()).then_some(Value::Object(told))
    }

    /// How it stands.
    pub(super) fn report(&self) -> Vec<FederatedReport> {
        let report = |(domain, known): (&TrustDomain, &Known)| FederatedReport {
            trust_domain: domain.to_string(),
            source: name_of(&known.source).to_owned(),
            roots: known.bundle.iter().flat_map(fingerprints).collect(),
            not_after: known.bundle.as_ref().and_then(|bundle| Some(to_unix(bundle.ends()?.0))),
            read_at: known.read_at.map(to_unix),
            failure: known.failure.clone(),
        };
        self.known().iter().map(report).collect()
    }

    /// What an operator ought to look at, in words.
    pub(super) fn warnings(&self, now: SystemTime) -> Vec<String> {
        let mut warnings = Vec::new();
        for (domain, known) in &*self.known() {
            let ago = |at: SystemTime| in_words(now.duration_since(at).unwrap_or_default());
            match (&known.failure, known.read_at) {
                (None, _) => {}
                (Some(failure), Some(read_at)) => warnings.push(format!(
                    "the roots of {domain} are those of {} ago, and cannot be read anew: {failure}",
                    ago(read_at)
                )),
                (Some(failure), None) => {
                    warnings.push(format!(
                        "there are no roots of {domain}, and nobody of it is taken: {failure}"
                    ));
                }
            }
            let ends = known.bundle.as_ref().and_then(Bundle::ends);
            if let Some((end, life)) = ends {
                let left = end.duration_since(now).unwrap_or_default();
                if left.is_zero() {
                    warnings.push(format!("the roots of {domain} have ended: ask for newer ones"));
                } else if left < life / 4 {
                    let left = in_words(left);
                    warnings.push(format!("the last root of {domain} ends in {left}: ask for newer ones"));
                }
            }
        }
        warnings
    }

    /// Begins what is due, and says when something is next.
    fn begin_due(&self, ranges: VirtualRanges, work: &mut JoinSet<Asked>) -> Instant {
        let now = Instant::now();
        let mut next = now + LONGEST;
        for (domain, known) in self.known().iter_mut().filter(|(_, known)| !known.is_asking) {
            if known.next > now {
                next = next.min(known.next);
                continue;
            }
            known.is_asking = true;
            work.spawn(ask(domain.clone(), known.source.clone(), self.allow.clone(), ranges));
        }
        next
    }

    /// Takes what a source gave. Whether the roots are others than before, and what to write into the audit then.
    fn take(&self, (domain, source, read): Asked) -> Option<String> {
        let mut all = self.known();
        // It may have been taken back, or be another source's turn, meanwhile.
        let known = all.get_mut(&domain)?;
        known.is_asking = false;
        if known.source != source {
            return None;
        }
        match read {
            Ok(bundle) => {
                let is_file = matches!(source, BundleSource::File(_));
                let often =
                    known.refresh.or(bundle.refresh_hint).unwrap_or(if is_file { REREAD } else { REFRESH });
                let often = often.clamp(REFRESH_BOUNDS.0, REFRESH_BOUNDS.1);
                known.next = Instant::now() + often - often.mul_f64(rand::random::<f64>() / 10.0);
                (known.read_at, known.failure, known.failures) = (Some(SystemTime::now()), None, 0);
                let is_other = known.bundle.as_ref().map(|bundle| &bundle.roots) != Some(&bundle.roots);
                self.keep(&domain, &bundle);
                let roots = fingerprints(&bundle).join(", ");
                known.bundle = Some(bundle);
                is_other.then(|| format!("take roots of {domain} from {}: {roots}", name_of(&source)))
            }
            Err(error) => {
                let patience = FIRST_RETRY.saturating_mul(1 << known.failures.min(10)).min(MOST_PATIENT);
                known.next = Instant::now() + patience;
                known.failures = known.failures.saturating_add(1);
                tracing::warn!(%domain, %error, has_roots = known.bundle.is_some(), "the roots of a federated trust domain cannot be read anew");
                known.failure = Some(error.to_string());
                None
            }
        }
    }

    /// Keeps roots over a restart. Without a disk they are in force all the same.
    fn keep(&self, domain: &TrustDomain, bundle: &Bundle) {
        let kept = make_directory(&self.directory, 0o700).and_then(|()| {
            let text = chain_to_pem(&bundle.roots);
            Ok(write_atomically(&self.path(domain), text.as_bytes(), PUBLIC)
                .map_err(|error: FileError| error)?)
        });
        if let Err(error) = kept {
            tracing::warn!(%domain, "the roots of a federated trust domain are not kept over a restart: {error:#}");
        }
    }
}

/// Tells agents what was kept, before they are sent a first state: one without it would cut off who is federated.
pub(super) async fn begin(server: &Arc<Server>) -> anyhow::Result<()> {
    Ok(server.control.say(FEDERATED, server.federation.statement()).await?)
}

/// Keeps the roots of other trust domains for as long as the server runs.
pub(super) async fn keep(server: Arc<Server>) {
    let (mut in_force, mut work) = (server.in_force.clone(), JoinSet::new());
    let mut told = server.federation.statement();
    loop {
        let config = in_force.borrow_and_update().loaded.mesh.config.clone();
        server.federation.reconcile(&config);
        let now = server.federation.statement();
        if now != told {
            match server.control.say(FEDERATED, now.clone()).await {
                Ok(()) => told = now,
                Err(error) => tracing::error!("agents are not told of federated roots: {error}"),
            }
        }
        let next = server.federation.begin_due(config.virtual_ranges, &mut work);
        tokio::select! {
            changed = in_force.changed() => if changed.is_err() { return },
            Some(done) = work.join_next() => match done {
                Ok(outcome) => take(&server, outcome).await,
                Err(error) => tracing::error!(%error, "reading roots failed"),
            },
            () = sleep_until(next) => {}
        }
    }
}

async fn take(server: &Arc<Server>, outcome: Asked) {
    let server = server.clone();
    let taking = move || {
        let Some(what) = server.federation.take(outcome) else { return };
        tracing::info!(what, "the roots of a federated trust domain");
        let (at, who, outcome) = (SystemTime::now(), "control".to_owned(), Outcome::Granted);
        let record = AuditRecord { at, who, what, outcome, reason: String::new() };
        if let Err(error) = server.ca.ledger().audit(&record) {
            tracing::error!(%error, "roots that were taken could not be recorded");
        }
    };
    if let Err(error) = tokio::task::spawn_blocking(taking).await {
        tracing::error!(%error, "roots that were read are not taken");
    }
}

async fn ask(domain: TrustDomain, source: BundleSource, allow: Vec<IpNet>, ranges: VirtualRanges) -> Asked {
    let text = match &source {
        BundleSource::File(path) => {
            let path = PathBuf::from(&**path);
            let failed = path.clone();
            let reading = tokio::task::spawn_blocking(move || read_file(&path)).await;
            let read = reading.unwrap_or_else(|error| Err(io::Error::other(error)));
            read.map_err(|source| ReadError::File { path: failed, source })
        }
        BundleSource::Url { url, authorities } => {
            let fetcher = Fetcher {
                mark: Mark(None),
                allow,
                allowed_by: "`baremesh control --federation-allow`",
                authorities: authorities.as_ref().map(|path| PathBuf::from(&**path)),
            };
            fetcher.fetch(url, &ranges, TIMEOUT).await.map_err(ReadError::from)
        }
    };
    let read = text.and_then(|text| {
        let read = Bundle::read(&text, SystemTime::now());
        read.map_err(|error| ReadError::Content(name_of(&source).to_owned(), error))
    });
    (domain, source, read)
}

fn read_file(path: &Path) -> io::Result<String> {
    if !fs::metadata(path)?.is_file() {
        // A pipe's other end may never come.
        return Err(io::Error::other("it is no file"));
    }
    let mut text = String::new();
    File::open(path)?.take(MAX_BODY as u64 + 1).read_to_string(&mut text)?;
    if text.len() > MAX_BODY {
        return Err(io::Error::other("it is larger than 512 KiB"));
    }
    Ok(text)
}

fn name_of(source: &BundleSource) -> &str {
    match source {
        BundleSource::File(path) => path,
        BundleSource::Url { url, .. } => url.as_str(),
    }
}

fn fingerprints(bundle: &Bundle) -> Vec<String> {
    bundle.roots.iter().map(|root| Fingerprint::of(root).to_string()).collect()
}

#[cfg(test)]
mod tests;
