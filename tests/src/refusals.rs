//! That what is refused is in an agent's log, with its reason, and counted: looked at before and after, and waited for.

use serde_json::Value;

use crate::{Member, wait_until};

/// A kind of refusal, as an agent writes it down.
#[derive(Clone, Copy, Debug)]
pub struct Refusal<'a> {
    metric: &'static str,
    reporter: &'a str,
    label: &'static str,
    value: &'a str,
    /// What `response_code_details` may begin with.
    details: &'a [&'a str],
}

impl<'a> Refusal<'a> {
    /// A request that is answered with this status, for one of these reasons.
    pub fn of_request(reporter: &'a str, status: &'a str, details: &'a [&'a str]) -> Self {
        Self { metric: "istio_requests_total", reporter, label: "response_code", value: status, details }
    }

    /// A connection, a stream of a tunnel or a handshake that is not carried, for this reason.
    pub fn of_connection(reporter: &'a str, reason: &'a &'a str) -> Self {
        let details = std::slice::from_ref(reason);
        Self {
            metric: "baremesh_connection_failures_total",
            reporter,
            label: "reason",
            value: reason,
            details,
        }
    }

    fn is_said_by(&self, line: &Value) -> bool {
        let details = line["response_code_details"].as_str().unwrap_or_default();
        let status = line["response_code"].as_u64().map(|status| status.to_string());
        line["reporter"] == self.reporter
            && (self.label != "response_code" || status.as_deref() == Some(self.value))
            && self.details.iter().any(|begin| details.starts_with(begin))
    }
}

impl Member {
    /// The sum of a metric's samples that have all of these labels.
    #[track_caller]
    pub fn counted(&self, metric: &str, labels: &[(&str, &str)]) -> usize {
        let text = self.metrics();
        let samples =
            text.lines().filter_map(|line| line.strip_prefix(metric)?.strip_prefix('{')?.rsplit_once("} "));
        let has_all = |said: &str| {
            labels
                .iter()
                .all(|(name, value)| said.split(',').any(|label| label == format!("{name}=\"{value}\"")))
        };
        samples.filter(|(said, _)| has_all(said)).filter_map(|(_, number)| number.parse::<usize>().ok()).sum()
    }

    /// Does what is to be refused so often, and waits until each refusal is counted and in the log, neither twice.
    #[track_caller]
    pub fn refuses<T>(&self, refusal: &Refusal<'_>, times: usize, act: impl FnOnce() -> T) -> T {
        let before = self.noted(refusal);
        let done = act();
        self.wait_until_noted(refusal, before, times);
        done
    }

    /// How many refusals of a kind are counted, and how many are in the log.
    #[track_caller]
    pub fn noted(&self, refusal: &Refusal<'_>) -> [usize; 2] {
        let labels = [("reporter", refusal.reporter), (refusal.label, refusal.value)];
        let lines = self.log().iter().filter(|line| refusal.is_said_by(line)).count();
        [self.counted(refusal.metric, &labels), lines]
    }

    /// Waits until so many more than before are counted and in the log, and no more than that.
    #[track_caller]
    pub fn wait_until_noted(&self, refusal: &Refusal<'_>, before: [usize; 2], times: usize) {
        let wanted = before.map(|before| before + times);
        let mut noted = before;
        let what = format!("counted and logged {times} times: {refusal:?}");
        wait_until(&what, || {
            noted = self.noted(refusal);
            noted.iter().zip(wanted).all(|(noted, wanted)| *noted >= wanted)
        });
        assert_eq!(noted, wanted, "once each: {refusal:?}");
    }
}
