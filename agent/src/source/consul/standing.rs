//! How Consul stands, for `baremesh status`: which of its addresses answers, who leads its servers, how old each part is.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use baremesh_registry::consul::catalog::Leader;
use baremesh_registry::consul::client::Client;
use tokio::sync::mpsc::Sender;
use tokio::time::sleep;

use super::{Heard, Part};
use crate::admin::report::{ConsulPartReport, ConsulReport};

/// How often it is asked who leads.
const ASK: Duration = Duration::from_secs(10);

/// How Consul stands.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Who leads, and who says so; nothing where nobody answered last.
    leader: Option<Leader>,
    /// A part that nothing was heard of yet is not there.
    parts: BTreeMap<Part, PartStanding>,
}

#[derive(Debug, Clone, Default)]
struct PartStanding {
    index: Option<u64>,
    answered: Option<Instant>,
    /// What went wrong last, whether or not it goes well now.
    failed: Option<(Instant, String)>,
    is_well: bool,
}

impl Standing {
    /// Takes who leads.
    pub(super) fn lead(&mut self, leader: Option<Leader>) {
        self.leader = leader;
    }

    /// Takes that a part was answered, at an index where it has one.
    pub(super) fn answered(&mut self, part: Part, index: Option<u64>, now: Instant) {
        let standing = self.parts.entry(part).or_default();
        (standing.index, standing.answered, standing.is_well) = (index, Some(now), true);
    }

    /// Takes that a part was not. An index is Consul's own: it goes on from there perhaps.
    pub(super) fn failed(&mut self, part: Part, reason: String, now: Instant) {
        let standing = self.parts.entry(part).or_default();
        (standing.failed, standing.is_well) = (Some((now, reason)), false);
    }

    /// The same as it is reported.
    pub fn report(&self, now: Instant) -> ConsulReport {
        let ago = |at: Instant| now.saturating_duration_since(at).as_secs();
        let part = |(part, standing): (&Part, &PartStanding)| ConsulPartReport {
            part: part.in_words().to_owned(),
            connected: standing.is_well,
            index: standing.index,
            answered_seconds_ago: standing.answered.map(ago),
            last_error: standing.failed.as_ref().map(|(_, reason)| reason.clone()),
            failed_seconds_ago: standing.failed.as_ref().map(|(at, _)| ago(*at)),
        };
        ConsulReport {
            address: self.leader.as_ref().map(|leader| leader.asked.clone()),
            leader: self.leader.as_ref().and_then(|leader| leader.leader.clone()),
            parts: self.parts.iter().map(part).collect(),
        }
    }
}

/// Asks again and again who leads, for ever. That nobody answers is said by those who need the answers.
pub(super) async fn follow(client: Client, tell: Sender<Heard>) {
    loop {
        let leader = match Box::pin(client.leader()).await {
            Ok(leader) => Some(leader),
            Err(error) => {
                tracing::debug!(%error, "who leads Consul's servers is not known");
                None
            }
        };
        let _ = tell.send(Heard::Leader(leader)).await;
        sleep(ASK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_last_is_told_beside_what_goes_well_again() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut standing = Standing::default();
        assert_eq!(standing.report(began), ConsulReport::default());
        standing.answered(Part::Catalog, Some(7), at(0));
        standing.failed(Part::Catalog, "gone".to_owned(), at(5));
        let shown = |standing: &Standing| {
            let part = standing.report(at(10)).parts.remove(0);
            (part.connected, part.index, part.answered_seconds_ago, part.failed_seconds_ago)
        };
        assert_eq!(shown(&standing), (false, Some(7), Some(10), Some(5)));
        standing.answered(Part::Catalog, Some(9), at(8));
        assert_eq!(shown(&standing), (true, Some(9), Some(2), Some(5)));
        assert_eq!(standing.report(at(10)).parts[0].last_error.as_deref(), Some("gone"));
        standing.answered(Part::Registrations, None, at(8));
        assert_eq!(standing.report(at(10)).parts[1].index, None);
        let leader = Leader { asked: "http://a:8500".to_owned(), leader: None };
        standing.lead(Some(leader));
        let report = standing.report(at(10));
        assert_eq!((report.address.as_deref(), report.leader), (Some("http://a:8500"), None));
    }
}
