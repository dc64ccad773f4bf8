//! An instance that fails: hidden by asking another, and left out until it is well.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use crate::demo::reviews::{Version, expect_all, header, slowest};
use crate::demo::stage::Stage;

/// What the instance is told to do.
const FAILING: &str = "status=503";
/// Requests while an instance fails. Chance alone keeps all of them from it once in 2^40 shows.
const REQUESTS: usize = 40;
/// After so many failures that are no reason to leave an instance out it is sure that there is none.
const FAR_TOO_MANY: usize = 20;
/// Requests while it is left out.
const WHILE_OUT: usize = 20;
/// What an agent says of an endpoint when it begins to leave it out.
const LEFT_OUT: &str = "left out";

/// Shows something while the new version fails, and lets it be well again whatever came of that.
fn while_it_fails<T>(stage: &Stage<'_>, show: impl FnOnce([Version<'_>; 2]) -> Result<T>) -> Result<T> {
    let [well, failing] = stage.versions()?;
    failing.behave(FAILING)?;
    let outcome = show([well, failing]);
    failing.behave("")?;
    outcome
}

pub(super) fn hidden_by_a_retry(stage: &Stage<'_>) -> Result<Vec<String>> {
    while_it_fails(stage, |[well, failing]| {
        let answers = stage.ask(REQUESTS, &[], "/retried")?;
        expect_all(&answers, well).context("web sees the failure")?;
        let (failed, answered) = (failing.seen("/retried"), well.seen("/retried"));
        ensure!(!failed.is_empty(), "v2 was not asked, and so nothing was hidden");
        ensure!(answered.len() == REQUESTS, "v1 was asked {} times", answered.len());
        let first = failed.first().context("at least one")?;
        let id = header(first, "x-request-id");
        let again = answered.iter().find(|request| header(request, "x-request-id") == id);
        let again = again.with_context(|| format!("v1 was not asked for {id}, which v2 has refused"))?;
        let attempts = [first, again].map(|request| header(request, "x-envoy-attempt-count"));
        ensure!(attempts == ["1", "2"], "the attempts for {id} are {attempts:?}");
        Ok(vec![
            format!(
                "v2 answers everything with 503, and was asked for {} of {REQUESTS} requests",
                failed.len()
            ),
            format!("web has {REQUESTS} good answers, all of v1, after {} ms at most", slowest(&answers)),
            format!("request {id}: attempt 1 at v2, attempt 2 at v1"),
        ])
    })
}

pub(super) fn left_out_and_back(stage: &Stage<'_>) -> Result<Vec<String>> {
    let (mut evidence, out_since) = while_it_fails(stage, |versions| {
        // On a slow machine it may be back too early: it is left out for longer each time.
        loop {
            leave_out(stage, versions)?;
            let out_since = Instant::now();
            if let Some(evidence) = shown_while_out(stage, versions)? {
                return Ok((evidence, out_since));
            }
        }
    })?;
    let [_, well_again] = stage.versions()?;
    let before = well_again.seen("/back").len();
    let mut answers = Vec::new();
    stage.patience.wait("v2 is asked again", || {
        answers.extend(stage.ask(1, &[], "/back").unwrap_or_default());
        well_again.seen("/back").len() > before
    })?;
    ensure!(
        answers.last().is_some_and(|answer| answer.is_of(well_again)),
        "v2 is asked, and does not answer well"
    );
    evidence.push(format!(
        "told to be well again, it was asked {:.1} s after it was left out, and answered",
        out_since.elapsed().as_secs_f64()
    ));
    Ok(evidence)
}

/// Sends requests until the agent of `web` leaves out the version that fails.
fn leave_out(stage: &Stage<'_>, [_, failing]: [Version<'_>; 2]) -> Result<()> {
    let mut failures = 0;
    while !is_out(stage, failing) {
        stage.patience.check()?;
        ensure!(failures < FAR_TOO_MANY, "v2 has failed {failures} times, and is not left out");
        let before = failing.seen("/failing").len();
        stage.ask(1, &[], "/failing")?;
        failures += failing.seen("/failing").len() - before;
    }
    Ok(())
}

/// What is seen during one ejection; nothing if it ended before all was seen.
fn shown_while_out(stage: &Stage<'_>, [well, failing]: [Version<'_>; 2]) -> Result<Option<Vec<String>>> {
    let address = failing.member.host.v4().to_string();
    let sayings = || -> Vec<String> {
        let said = stage.web.remarks();
        let sayings = said.lines().filter(|line| line.contains(&address));
        sayings.filter_map(|line| line.find(LEFT_OUT).map(|at| line[at..].to_owned())).collect()
    };
    let (before, asked) = (sayings(), failing.seen("/out").len());
    let answers = stage.ask(WHILE_OUT, &[], "/out")?;
    if !is_out(stage, failing) || sayings().len() != before.len() {
        return Ok(None);
    }
    expect_all(&answers, well).context("while v2 is left out")?;
    let asked = failing.seen("/out").len() - asked;
    ensure!(asked == 0, "v2 was asked {asked} times while it was left out");
    let saying = before.last().with_context(|| format!("web's agent does not say {LEFT_OUT:?}"))?;
    Ok(Some(vec![
        format!("log of web: {saying}"),
        format!("{WHILE_OUT} requests while it is out: v1 has answered all, v2 has counted none"),
    ]))
}

fn is_out(stage: &Stage<'_>, version: Version<'_>) -> bool {
    let address = version.member.host.v4();
    stage.web.service("reviews").is_some_and(|reviews| {
        let mut endpoints = reviews.endpoints.iter();
        endpoints.any(|endpoint| endpoint.address.ip() == address && endpoint.health == "ejected")
    })
}
