//! How much a caller may ask for.

use anyhow::{Result, ensure};

use crate::demo::reviews::{Answer, expect_all};
use crate::demo::stage::Stage;

/// What the limit lets each caller ask for.
const ALLOWED: usize = 5;
/// What `web` asks for.
const ASKED: usize = 20;
const PATH: &str = "/limited";

pub(super) fn of_a_caller(stage: &Stage<'_>) -> Result<Vec<String>> {
    let [old, _] = stage.versions()?;
    let answers = stage.ask(ASKED, &[], PATH)?;
    let (served, refused): (Vec<Answer>, Vec<Answer>) =
        answers.into_iter().partition(|answer| answer.status() != 429);
    expect_all(&served, old)?;
    ensure!(
        (served.len(), refused.len()) == (ALLOWED, ASKED - ALLOWED),
        "of {ASKED} requests {} were served and {} refused, where {ALLOWED} may be served",
        served.len(),
        refused.len()
    );
    let counted = old.seen(PATH).len();
    ensure!(counted == ALLOWED, "v1 has counted {counted} requests");
    let logged = || {
        let lines = stage.one.log().into_iter();
        lines.filter(|line| line.text("response_flags") == "RL" && line.text("path") == PATH).count()
    };
    stage.patience.wait("one's log has what was refused", || logged() == ASKED - ALLOWED)?;
    expect_all(&stage.ask_from(&stage.guest, 1, &[], PATH)?, old)?;
    Ok(vec![
        format!("{ASKED} requests of web: v1 has counted {ALLOWED}, and {} were answered 429", refused.len()),
        format!("log of one: {} requests with the flag RL", ASKED - ALLOWED),
        "guest, which has asked for nothing yet, is served".to_owned(),
    ])
}
