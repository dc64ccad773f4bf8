//! Authorization: who is denied, and what happens to connections that are open when a policy changes.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, ensure};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::demo::member::Line;
use crate::demo::shop::exit;
use crate::demo::stage::{Said, Stage, identity_of, identity_of_host};

/// Lets the checkout alone call orders.
const ONLY_CHECKOUT: &str = "\
[[AuthorizationPolicy]]
name = \"orders\"
selector = { matchLabels = { app = \"orders\" } }
rules = [{ from = [{ source = { serviceAccounts = [\"default/checkout\"] } }] }]
";

/// Shuts the checkout out of support, and nobody else.
const NOT_CHECKOUT: &str = "\
[[AuthorizationPolicy]]
name = \"support\"
selector = { matchLabels = { app = \"support\" } }
action = \"DENY\"
rules = [{ from = [{ source = { serviceAccounts = [\"default/checkout\"] } }] }]
";

/// Whether a client was turned away: the connection did not come about, or was reset before an answer.
pub(super) fn is_turned_away(said: &Said) -> bool {
    said.ended_with(exit::CUT) || said.ended_with(exit::NO_CONNECTION)
}

pub(super) fn unlisted_is_denied(stage: &Stage<'_>) -> Result<Vec<String>> {
    let (guest, orders) = (identity_of_host("guest"), identity_of("orders"));
    // Otherwise it would be no news that it is denied afterwards.
    stage.order(&stage.guest)?.success("the call of the guest, before there is a policy")?;
    stage.apply("orders", ONLY_CHECKOUT)?;
    // Both agents of orders have it when neither lets the guest in: each call goes to either of them.
    let denied = |line: &Line| line.is(&guest, &orders, "denied");
    let refused_by_both =
        || [&stage.one, &stage.two].into_iter().all(|member| member.log().iter().any(denied));
    stage.patience.wait("both hosts of orders deny the guest", || {
        let _ = stage.order(&stage.guest);
        refused_by_both()
    })?;
    let said = stage.order(&stage.guest)?;
    ensure!(
        is_turned_away(&said),
        "the guest's call ended with {}: {}{}",
        said.status,
        said.stdout,
        said.stderr
    );
    let answer = stage.order(&stage.web)?.success("the call of the checkout, which the policy lists")?;
    let line = stage.one.log().into_iter().rfind(denied).context("the line was there a moment ago")?;
    Ok(vec![
        "the policy in force: orders may be called by default/checkout, and by nobody else".to_owned(),
        format!("guest, which could call before: \"{}\"", said.stderr),
        format!("log of one: {guest}, {}", line.text("connection_termination_details")),
        format!("web, which is listed: \"{answer}\""),
    ])
}

pub(super) fn open_connection_is_ended(stage: &Stage<'_>) -> Result<Vec<String>> {
    let (checkout, guest) = (identity_of("checkout"), identity_of_host("guest"));
    let support = identity_of("support");
    let hold = |member: &crate::demo::member::Member| -> Result<_> {
        let held = member.host.spawn("hold", member.host.shop(["hold", "support.mesh.internal", "80"]))?;
        stage
            .patience
            .wait("a connection to support is open", || held.has_said("open") || !held.is_running())?;
        ensure!(held.is_running(), "support cannot be called: {}{}", held.stdout(), held.stderr());
        Ok(held)
    };
    let (cut, kept) = (hold(&stage.web)?, hold(&stage.guest)?);
    let applied = SystemTime::now();
    stage.apply("support", NOT_CHECKOUT)?;
    let ended = |line: &Line| line.is(&checkout, &support, "no_longer_allowed");
    let line = stage.patience.wait_for("the open connection is ended, and the log says so", || {
        stage.one.log().into_iter().find(ended)
    })?;
    stage.patience.wait("the program notices", || !cut.is_running())?;
    let code = cut.exit_status().and_then(|status| status.code());
    ensure!(
        code == Some(exit::CUT.into()),
        "the held connection ended otherwise: {}{}",
        cut.stdout(),
        cut.stderr()
    );
    let after = end_of(&line)?.duration_since(applied).unwrap_or_default();
    let others = stage.one.log().iter().any(|line| line.is(&guest, &support, "no_longer_allowed"));
    ensure!(
        kept.is_running() && !others,
        "a connection that is still allowed was ended too: {}",
        kept.stdout()
    );
    kept.kill();
    stage.withdraw("support")?;
    Ok(vec![
        format!(
            "web held a connection to support; it was ended {} ms after `baremesh apply` began",
            after.as_millis()
        ),
        format!("the program says: \"{}\"", cut.stdout().lines().last().unwrap_or_default()),
        format!("log of one: {}", line.text("connection_termination_details")),
        "guest's connection to support, which is still allowed, went on".to_owned(),
    ])
}

/// When the connection of a log line ended.
fn end_of(line: &Line) -> Result<SystemTime> {
    let started =
        OffsetDateTime::parse(line.text("start_time"), &Rfc3339).context("the line has no start")?;
    let nanoseconds = u64::try_from(started.unix_timestamp_nanos()).context("a start before 1970")?;
    let lasted = line.number("duration").context("the line has no duration")?;
    Ok(UNIX_EPOCH + Duration::from_nanos(nanoseconds) + Duration::from_millis(lasted))
}
