//! Copies of requests for other services: sent and forgotten. They take nothing from the original, neither time nor its
//! fate; when there are too many of them, further ones are dropped and counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::authorization::Request;
use baremesh_model::http::RequestHead;
use baremesh_model::virtual_service::{Destination, RouteOptions};

use super::Caller;
use super::dial::Target;
use super::plan;
use crate::proxy::http::attempt::{Download, Leg, Order, Verdict, attempt};
use crate::proxy::http::body::Answer;
use crate::proxy::http::downstream::Exchange;
use crate::proxy::http::upload::Upload;
use crate::proxy::http::upstream::Connection;
use crate::snapshot::Snapshot;
use crate::telemetry::request_record::RequestRecord;

/// Copies that a worker has under way; further ones are dropped.
pub const MAX_COPIES: usize = 128;
/// How long a copy may take.
const COPY_TIMEOUT: Duration = Duration::from_secs(15);

/// Copies that a request's route asks for.
pub(super) struct Copies {
    to: Vec<Destination>,
    head: RequestHead,
}

impl Caller {
    /// The copies that the route asks for, of a request as the original's service sees it.
    pub(super) fn copies(&self, options: &RouteOptions, head: &RequestHead) -> Option<Copies> {
        // A copy would be checked in its turn, and might never end.
        if self.checks() {
            return None;
        }
        let drawn = options.mirrors.iter().filter(|mirror| mirror.percentage.takes(rand::random()));
        let to: Vec<Destination> = drawn.map(|mirror| mirror.destination.clone()).collect();
        if to.is_empty() {
            return None;
        }
        let mut head = head.clone();
        let (host, port) = match head.authority.rsplit_once(':') {
            Some((_, port)) if head.host().len() < head.authority.len() => (head.host(), format!(":{port}")),
            _ => (head.host(), String::new()),
        };
        // Whoever logs hosts can tell copies apart (Envoy's suffix).
        head.authority = format!("{host}-shadow{port}");
        Some(Copies { to, head })
    }

    /// Sends copies, each in a task of its own. A request whose body was not kept whole has none.
    pub(super) fn send_copies(&self, copies: Option<&Copies>, exchange: &Exchange<'_>) {
        let Some(copies) = copies else { return };
        for to in &copies.to {
            let place = Arc::clone(&self.worker.copies).try_acquire_owned();
            let (Ok(place), Some(upload)) = (place, exchange.upload.copy()) else {
                self.worker.telemetry.metrics().dropped_mirrors.inc();
                continue;
            };
            let caller = Self::new(
                Arc::clone(&self.worker),
                (self.identity.clone(), self.registration.clone()),
                self.dialled.clone(),
                self.peers.again(),
            );
            let (to, head) = (to.clone(), copies.head.clone());
            tokio::spawn(async move {
                let sent = async {
                    // The state of now: the request may have been under way for long.
                    match caller.state_with(&to).await {
                        Some(snapshot) => caller.send_copy(&snapshot, &to, head, upload).await,
                        None => _ = caller.worker.telemetry.metrics().dropped_mirrors.inc(),
                    }
                };
                // What it is answered is for nobody.
                let _ = tokio::time::timeout(COPY_TIMEOUT, sent).await;
                drop(place);
            });
        }
    }

    /// The state in force, as soon as it has the endpoints of a destination; nothing where they do not come.
    async fn state_with(&self, to: &Destination) -> Option<Arc<Snapshot>> {
        let began = Instant::now();
        loop {
            let snapshot = self.worker.shared.snapshot.load_full();
            let caller = (self.dialled.1, self.index(&snapshot));
            let unknown = match plan::destination(&snapshot, caller, to) {
                Some((service, _, cluster)) => service.call(self.worker.connect_timeout(cluster)).err(),
                // What there is not is not sent to.
                None => None,
            };
            let Some(unknown) = unknown else { return Some(snapshot) };
            self.worker.shared.demand.wait(unknown, began).await.ok()?;
        }
    }

    async fn send_copy(
        self,
        snapshot: &Arc<Snapshot>,
        to: &Destination,
        mut head: RequestHead,
        mut upload: Upload<'static>,
    ) {
        let caller = (self.dialled.1, self.index(snapshot));
        let Some((service, _, cluster)) = plan::destination(snapshot, caller, to) else { return };
        // What left through a gateway goes to no other, or copies of copies would have no end.
        if snapshot.is_gateway(&self.dialled.0) && snapshot.is_gateway(&service.key) {
            return;
        }
        let Ok(endpoint) = cluster.pick(&[], None, Instant::now(), rand::random()) else { return };
        let target = Target { snapshot, endpoint, identity: &service.identity, cluster };
        let remote_ip = self.introduce(&target, &mut head.headers);
        upload.hold_to(snapshot.here(endpoint).and_then(|local| local.tokens.as_ref()));
        let mut record = RequestRecord::new(self.peers.again(), &head);
        let mut exchange = Exchange { head: &mut head, upload, answer: Answer::Nobody };
        let Ok(external) = self.ask(&target, (&mut exchange, remote_ip), &mut record).await else { return };
        let Exchange { head, mut upload, .. } = exchange;
        let admitted = self.admit(&target, (head, &external.by), remote_ip, &mut record);
        let Ok(token) = admitted else { return };
        let watched = self.watch(&target, snapshot);
        let request = Request { head, token: token.as_ref(), remote_ip, allowed_by: &external.by };
        // While a provider was asked, another state may have come into force.
        if watched
            .as_ref()
            .is_some_and(|watched| watched.is_forbidden(snapshot, &request, &self.worker.shared.snapshot))
        {
            return;
        }
        let Ok(dialled) = self.dial(&target, &mut record.peers).await else { return };
        let mut connection = Connection::new(dialled.reader, dialled.writer, (dialled.place, None));
        let order = Order::unlimited(head, COPY_TIMEOUT);
        let (leg, mut answer) = (Leg::Http1(&mut connection), Answer::Nobody);
        let mut judge = |_: &mut _, _| Verdict::Relay;
        let _ = attempt(leg, order, &mut upload, &mut answer, &mut Download::default(), &mut judge).await;
    }
}
