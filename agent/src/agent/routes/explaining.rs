//! The route that explains a call: from the state in force, with what this agent has learnt of endpoints.

use std::time::SystemTime;

use baremesh_model::identity::Identity;
use bytes::Bytes;
use http::StatusCode;

use super::Agent;
use crate::admin::report::explain::Question;
use crate::admin::server::{Answer, json, text};
use crate::explain::{Caller, explain};

impl Agent {
    pub(super) fn explain(&self, body: &Bytes) -> Answer {
        let question: Question = match serde_json::from_slice(body) {
            Ok(question) => question,
            Err(error) => return text(StatusCode::BAD_REQUEST, format!("not a question: {error}")),
        };
        let snapshot = self.publisher.snapshot().load_full();
        let credentials = self.credentials.load();
        let certified = |identity: &Identity| credentials.of(identity, SystemTime::now()).is_some();
        let caller = Caller::registered(&snapshot, question.from.as_deref());
        match caller.and_then(|caller| explain(&snapshot, &caller, &question, &certified)) {
            Ok(mut explanation) => {
                explanation.notes.extend(self.besides());
                json(&explanation)
            }
            Err(error) => text(StatusCode::BAD_REQUEST, error.to_string()),
        }
    }

    /// What may have calls go otherwise than the state in force says.
    fn besides(&self) -> Vec<String> {
        let published = self.publisher.published();
        let age = published.taken.elapsed().unwrap_or_default().as_secs();
        let state = format!("explained by version {}, taken {age} s ago", published.version);
        let mut notes = Vec::new();
        if let Some(error) = &published.last_error {
            notes.push(format!("{state}: this host refused the last state: {error}"));
        } else if !*self.connected.borrow() {
            notes.push(format!(
                "{state}: no newer one can come, the source of resources is away; `baremesh doctor` says why"
            ));
        }
        let missing = self.not_ready().into_iter();
        notes.extend(
            missing.map(|missing| format!("this agent is not ready: {missing}; `baremesh doctor` says why")),
        );
        notes
    }
}
