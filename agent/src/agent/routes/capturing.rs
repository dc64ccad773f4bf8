//! The administration socket's routes about the capture rules.

use std::time::Duration;

use http::{Method, StatusCode};

use super::Agent;
use crate::admin::report::capture::{CaptureReport, ChangeReport, FlowReport, PlanReport};
use crate::admin::server::{Answer, json, text};
use crate::attribution::look_up::list_sockets;
use crate::attribution::sock_diag::dump::Listed;
use crate::capture::flows::{Direction, Fate, OpenFlow, from_before, untranslated};
use crate::capture::{CaptureError, CapturePlan, render};
use crate::snapshot::{Route, Snapshot};
use crate::steward::Steward;

/// The longest trial of capture rules.
const MAX_TRIAL: Duration = Duration::from_secs(3600);
/// How many open connections are listed.
const MAX_FLOWS: usize = 1_000;

impl Agent {
    pub(super) async fn capture(&self, method: &Method, path: &str, query: &str) -> Answer {
        let Some(steward) = &self.steward else {
            return text(StatusCode::CONFLICT, "this agent cannot capture: `nft` or `ip` is missing\n");
        };
        match (method, path) {
            (&Method::GET, "/capture/plan") => self.capture_plan(steward).await,
            (&Method::GET, "/capture/status") => {
                answer(steward.status().await.map(|(status, unconfirmed)| {
                    CaptureReport::of(&status, Some(steward.mode().word()), unconfirmed)
                }))
            }
            (&Method::POST, "/capture/confirm") => answer(steward.confirm().await),
            (&Method::POST, "/capture/remove") => answer(steward.remove().await),
            (&Method::POST, "/capture/apply") => {
                match query.strip_prefix("confirm=").map(str::parse::<u64>) {
                    None if query.is_empty() => {
                        answer(steward.keep_from_now().await.map(|applied| ChangeReport::of(&applied, None)))
                    }
                    Some(Ok(seconds)) if (1..=MAX_TRIAL.as_secs()).contains(&seconds) => {
                        try_out(steward, seconds).await
                    }
                    _ => text(StatusCode::BAD_REQUEST, "confirm takes 1 to 3600 seconds\n"),
                }
            }
            _ => text(StatusCode::NOT_FOUND, "no such route\n"),
        }
    }

    async fn capture_plan(&self, steward: &Steward) -> Answer {
        let plan = steward.plan();
        let snapshot = self.publisher.snapshot().load_full();
        let listed = tokio::task::spawn_blocking(move || {
            let mut report = PlanReport {
                rules: render(&plan),
                flows: Vec::new(),
                flows_left_out: 0,
                flows_unknown: None,
            };
            list_flows(&plan, &snapshot, &mut report);
            report
        });
        match listed.await {
            Ok(report) => json(&report),
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        }
    }
}

async fn try_out(steward: &Steward, seconds: u64) -> Answer {
    let Ok(exe) = std::env::current_exe() else {
        return text(StatusCode::INTERNAL_SERVER_ERROR, "the agent's own binary is gone\n");
    };
    let tried = steward.try_out(exe, Duration::from_secs(seconds)).await;
    answer(tried.map(|applied| ChangeReport::of(&applied, Some(seconds))))
}

fn answer<T: serde::Serialize>(result: Result<T, CaptureError>) -> Answer {
    match result {
        Ok(report) => json(&report),
        Err(error) => text(StatusCode::CONFLICT, error.to_string()),
    }
}

fn list_flows(plan: &CapturePlan, snapshot: &Snapshot, report: &mut PlanReport) {
    let sockets = match list_sockets(Listed::Open) {
        Ok(sockets) => sockets,
        Err(error) => return report.flows_unknown = Some(error.to_string()),
    };
    let flows = from_before(plan, &untranslated(plan, sockets.entries));
    report.flows_left_out = sockets.left_out + flows.len().saturating_sub(MAX_FLOWS);
    report.flows = flows.into_iter().take(MAX_FLOWS).map(|flow| flow_report(flow, snapshot)).collect();
}

fn flow_report(flow: OpenFlow, snapshot: &Snapshot) -> FlowReport {
    let of_endpoint = || match snapshot.route(flow.to) {
        Ok(Route::Endpoint(service, ..) | Route::Unheld(service, _)) => Some(service.key.clone()),
        _ => None,
    };
    FlowReport {
        direction: match flow.direction {
            Direction::Incoming => "incoming",
            Direction::Within => "within",
            Direction::Outgoing => "outgoing",
        }
        .to_owned(),
        service: flow.service.or_else(of_endpoint).map(|service| service.to_string()),
        from: flow.from,
        to: flow.to,
        uid: flow.uid,
        under_the_rules: match flow.fate {
            Fate::Ended => "ended",
            Fate::GoesOn => "goes-on",
        }
        .to_owned(),
    }
}
