//! Where a request goes: by shares, by what it says, and as a copy to somewhere else. Counted by the programs that are
//! asked.

use anyhow::{Context as _, Result, ensure};

use crate::demo::reviews::{Answer, Version, expect_all, header, slowest};
use crate::demo::stage::{DOMAIN, Stage};

/// Of so many requests the canary gets a tenth, more or less.
const REQUESTS: usize = 2000;
/// Six standard deviations: chance alone exceeds it once in a hundred million shows. A fifth would be far outside.
const SLACK: usize = 80;
/// How many connections `web` has at a time.
const PARALLEL: &str = "4";

/// Requests of each kind where all of them are to go the same way.
const EACH: usize = 20;

pub(super) fn canary(stage: &Stage<'_>) -> Result<Vec<String>> {
    let [stable, canary] = stage.versions()?;
    let answers = stage.ask(REQUESTS, &["--parallel", PARALLEL], "/canary")?;
    let answered = |version| answers.iter().filter(|answer: &&Answer| answer.is_of(version)).count();
    let (by_stable, by_canary) = (answered(stable), answered(canary));
    ensure!(
        by_stable + by_canary == REQUESTS,
        "of {REQUESTS} requests only {by_stable} and {by_canary} were answered well"
    );
    let counted = [stable, canary].map(|version| version.seen("/canary").len());
    ensure!(
        counted == [by_stable, by_canary],
        "v1 and v2 count {counted:?} requests, and web has {by_stable} and {by_canary} answers of theirs"
    );
    judge_share(by_canary)?;
    let logged = || [stable, canary].map(|version| version.logged("/canary"));
    stage.patience.wait("web's log has the same counts", || logged() == counted)?;
    let share = percent(by_canary);
    Ok(vec![
        format!("{REQUESTS} requests of web: v1 has counted {by_stable}, v2 {by_canary}, which is {share}"),
        format!("chance stays between {} and {}", percent(tenth() - SLACK), percent(tenth() + SLACK)),
        format!(
            "log of web: {} sent to {}, {} to {}",
            counted[0],
            stable.member.host.v4(),
            counted[1],
            canary.member.host.v4()
        ),
    ])
}

const fn tenth() -> usize {
    REQUESTS / 10
}

fn percent(count: usize) -> String {
    let thousandths = count * 1000 / REQUESTS;
    format!("{}.{} %", thousandths / 10, thousandths % 10)
}

/// Whether so many may well be a tenth.
fn judge_share(count: usize) -> Result<()> {
    ensure!(
        count.abs_diff(tenth()) <= SLACK,
        "v2 has counted {count} of {REQUESTS} requests, {}: that is no tenth",
        percent(count)
    );
    Ok(())
}

pub(super) fn by_header(stage: &Stage<'_>) -> Result<Vec<String>> {
    let [old, new] = stage.versions()?;
    for (user, version) in [(Some("jason"), new), (Some("jasmine"), old), (None, old)] {
        let says = user.map(|user| format!("end-user: {user}"));
        let options: Vec<&str> = says.iter().flat_map(|says| ["--header", says]).collect();
        let answers = stage.ask(EACH, &options, "/by-header")?;
        let who = user.unwrap_or("who says no name");
        expect_all(&answers, version).with_context(|| format!("the requests of {who} go astray"))?;
    }
    let jason = |version: Version<'_>| {
        let seen = version.seen("/by-header");
        (seen.iter().filter(|request| header(request, "end-user") == "jason").count(), seen.len())
    };
    let counted = [jason(old), jason(new)];
    ensure!(counted == [(0, 2 * EACH), (EACH, EACH)], "of jason, and of all: v1 and v2 count {counted:?}");
    let address = format!("{}:", new.member.host.v4());
    let line = stage.patience.wait_for("the request of jason is in web's log", || {
        stage.web.log().into_iter().find(|line| {
            line.text("route_name") == "jason" && line.text("upstream_host").starts_with(&address)
        })
    })?;
    Ok(vec![
        format!("{EACH} requests with \"end-user: jason\": v2 has counted all of them, and no other"),
        format!(
            "{EACH} with \"end-user: jasmine\" and {EACH} without: v1 has counted them, and none of jason's"
        ),
        format!("log of web: route {}, sent to {}", line.text("route_name"), line.text("upstream_host")),
    ])
}

pub(super) fn mirror(stage: &Stage<'_>) -> Result<Vec<String>> {
    let [old, new] = stage.versions()?;
    expect_all(&stage.ask(1, &["--data", "order tea"], "/mirrored")?, old)?;
    let original = old.seen("/mirrored").pop().context("v1 does not tell of the request that it answered")?;
    let copy = stage.patience.wait_for("v2 sees the copy", || new.seen("/mirrored").pop())?;
    let marked = format!("reviews.{DOMAIN}-shadow");
    ensure!(copy["authority"] == marked.as_str(), "the copy is for {}", copy["authority"]);
    let id = header(&copy, "x-request-id");
    ensure!(!id.is_empty() && id == header(&original, "x-request-id"), "the copy is of another request");
    new.behave("hang")?;
    let outcome = while_it_hangs(stage, [old, new]);
    new.behave("")?;
    let mut evidence = vec![
        format!("web asked reviews.{DOMAIN}, and v1 answered; v2 saw a copy for {marked}"),
        format!("both say x-request-id: {id}"),
    ];
    evidence.extend(outcome?);
    Ok(evidence)
}

/// The client waits less long for an answer than the agent of `web` does for that of a copy: it has one only if nobody
/// waits for the copies.
fn while_it_hangs(stage: &Stage<'_>, [old, new]: [Version<'_>; 2]) -> Result<Vec<String>> {
    let answers = stage.ask(EACH, &[], "/hanging")?;
    expect_all(&answers, old).context("while v2 hangs")?;
    stage.patience.wait("v2 has all copies", || new.seen("/hanging").len() == EACH)?;
    Ok(vec![format!(
        "v2 was told to hang: it has {EACH} more copies and answers none; v1's answers took {} ms at most",
        slowest(&answers)
    )])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The chance that so many of all requests go to a canary with this share.
    fn chance(count: usize, share: f64) -> f64 {
        let factor = |index: usize| ((REQUESTS - index) as f64 / (index + 1) as f64).ln();
        let ways: f64 = (0..count).map(factor).sum();
        (ways + count as f64 * share.ln() + (REQUESTS - count) as f64 * (1.0 - share).ln()).exp()
    }

    #[test]
    fn chance_alone_fails_no_show_and_hides_no_other_share() {
        let taken = |share| -> f64 {
            (0..=REQUESTS).filter(|count| judge_share(*count).is_ok()).map(|count| chance(count, share)).sum()
        };
        assert!((0.999_999_99..1.000_000_01).contains(&taken(0.1)), "{}", 1.0 - taken(0.1));
        for other in [0.03, 0.2, 0.5, 0.9] {
            assert!(taken(other) < 0.000_01, "{other}: {}", taken(other));
        }
    }

    #[test]
    fn shares_are_told_in_words() {
        assert_eq!(
            (percent(197), percent(2000), percent(0)),
            ("9.8 %".into(), "100.0 %".into(), "0.0 %".into())
        );
    }
}
