//! The route that explains a call: from the state in force, with what this agent has learnt of endpoints.

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use baremesh_model::identity::Identity;
use baremesh_model::name::Key;
use bytes::Bytes;
use http::StatusCode;

use super::Agent;
use crate::admin::report::explain::{Explanation, Outcome, Question};
use crate::admin::server::{Answer, json, text};
use crate::explain::{Caller, ExplainError, explain};
use crate::publish::News;
use crate::snapshot::{ServiceEntry, Snapshot};

impl Agent {
    /// As the data path would carry it: endpoints that were not asked for are asked for first.
    pub(super) async fn explain(&self, body: &Bytes) -> Answer {
        let question: Question = match serde_json::from_slice(body) {
            Ok(question) => question,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("not a question: {error}")),
        };
        let (began, within) = (Instant::now(), self.config.limits.connect_timeout);
        loop {
            let snapshot = self.publisher.snapshot().load_full();
            let mut explanation = match self.explained(&snapshot, &question) {
                Ok(explanation) => explanation,
                Err(error) => return text(StatusCode::BAD_REQUEST, error.to_string()),
            };
            let missing = missing(&snapshot, &explanation).map(|missing| missing.unknown(within));
            let asked = match missing {
                Some(unknown) => self.demand.wait(unknown, began).await.is_ok(),
                None => false,
            };
            if !asked {
                explanation.notes.extend(self.besides());
                return json(&explanation);
            }
        }
    }

    fn explained(&self, snapshot: &Snapshot, question: &Question) -> Result<Explanation, ExplainError> {
        let credentials = self.credentials.load();
        let certified = |identity: &Identity| credentials.of(identity, SystemTime::now()).is_some();
        let caller = Caller::registered(snapshot, question.from.as_deref())?;
        explain(snapshot, &caller, question, &certified)
    }

    /// What may have calls go otherwise than the state in force says.
    fn besides(&self) -> Vec<String> {
        let published = self.publisher.published();
        let age = published.taken.elapsed().unwrap_or_default().as_secs();
        let state = format!("explained by version {}, taken {age} s ago", published.version);
        let mut notes = Vec::new();
        if let Some(error) = published.refused.get(&News::Mesh) {
            notes.push(format!("{state}: this host refused the last state: {error}"));
        } else if !*self.connected.borrow() {
            notes.push(format!(
                "{state}: no newer one can come, the source of resources is away; `baremesh doctor` says why"
            ));
        }
        let own = published.refused.iter().filter(|(news, _)| **news != News::Mesh);
        notes.extend(own.map(|(news, reason)| {
            format!("explained by what was in force on this host before; refused since: {news}: {reason}")
        }));
        let missing = self.not_ready().into_iter();
        notes.extend(
            missing.map(|missing| format!("this agent is not ready: {missing}; `baremesh doctor` says why")),
        );
        notes
    }
}

/// A service that the call is for and whose endpoints have to be asked for first.
fn missing<'a>(snapshot: &'a Snapshot, explanation: &Explanation) -> Option<&'a Arc<ServiceEntry>> {
    let dialled = explanation.service.iter().map(|called| &called.service);
    let dialled = dialled.filter(|_| explanation.outcome == Outcome::NoEndpoint);
    let destinations = explanation.destinations.iter().map(|destination| &destination.service);
    let named = destinations.chain(dialled).filter_map(|name| snapshot.service(&Key::read(name)?));
    named.into_iter().find(|service| service.elsewhere.is_some())
}
