//! From the first host to the last trace of it: the demo as one course of events, which ends in good order whether it
//! is done, has failed, or is interrupted by Ctrl-C or SIGTERM.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

use super::examples::Examples;
use super::hosts::{Net, Privilege};
use super::patience::{Patience, Stopped};
use super::report::{Form, Report, show_logs, stopped};
use super::stage::Stage;
use super::steps::{STEPS, Step};
use super::try_out;
use crate::output::{Exit, Said, remark};

/// How long bringing up and all steps may take together. On an idle machine it is some 20 seconds.
const LIMIT: Duration = Duration::from_secs(300);
/// How long what was begun may take to end after that, or after an interruption. What is left then is taken away by the
/// hosts' keepers, which outlive this process.
const GRACE: Duration = Duration::from_secs(60);

/// What happens after the steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Afterwards {
    /// The end.
    Leave,
    /// The mesh stands until it is interrupted.
    Stay,
}

/// Shows everything under the resources of `examples`, and returns when nothing of it is left.
///
/// # Errors
/// If a step failed, or the machine does not allow such a mesh; the message says what to do.
pub fn run(afterwards: Afterwards, form: Form, examples: Examples) -> Result<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("the runtime does not start")?;
    let patience = Patience::new(Arc::clone(&interrupted), LIMIT);
    let (sender, finished) = oneshot::channel();
    let showing = thread::Builder::new().name("demo".to_owned()).spawn(move || {
        let outcome = show(&patience, (afterwards, form), examples);
        // Nobody waits any more only when time is over.
        let _ = sender.send(outcome);
    });
    let showing = showing.context("the demo's thread does not start")?;
    match runtime.block_on(wait(finished, &interrupted, afterwards))? {
        Some(outcome) => outcome,
        // It ended without a word: it panicked, and everything was dropped on the way.
        None => {
            let _ = showing.join();
            Err(anyhow!("the demo broke off, by a fault of its own: see above"))
        }
    }
}

/// Waits for the end, and passes on who does not want to wait for it. `None` is the end without an outcome.
async fn wait(
    mut finished: oneshot::Receiver<Result<()>>,
    interrupted: &AtomicBool,
    afterwards: Afterwards,
) -> Result<Option<Result<()>>> {
    let listen = |kind| signal(kind).context("signals cannot be listened to");
    let mut interrupt = listen(SignalKind::interrupt())?;
    let mut terminate = listen(SignalKind::terminate())?;
    let mut hang_up = listen(SignalKind::hangup())?;
    let mut deadline = (afterwards == Afterwards::Leave).then(|| Instant::now() + LIMIT + GRACE);
    loop {
        let too_late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            outcome = &mut finished => return Ok(outcome.ok()),
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
            _ = hang_up.recv() => {}
            () = too_late => return Err(anyhow!("the demo does not come to an end; its hosts' keepers clean up after it")),
        }
        if interrupted.swap(true, Ordering::Relaxed) {
            return Err(anyhow!("interrupted twice: the hosts' keepers clean up"));
        }
        remark("\nEnding the programs and removing the hosts …");
        deadline = Some(Instant::now() + GRACE);
    }
}

fn show(patience: &Patience, (afterwards, form): (Afterwards, Form), examples: Examples) -> Result<()> {
    let mut report = Report::new(form);
    let started = Instant::now();
    let net = Net::new("demo")?;
    report.head(match net.privilege() {
        Privilege::Root => "A mesh of five hosts on this machine, each a network namespace",
        _ => "A mesh of five hosts on this machine, each a network namespace, without root",
    });
    // Too slow is a fault that has to be found; interrupted is none.
    let stage = Stage::set(&net, patience, examples).inspect_err(|error| {
        if stopped(error) != Some(Stopped::Interrupted) {
            show_logs(&net, &[]);
        }
    });
    let stage = stage.map_err(|error| error.context("the mesh could not be brought up"))?;
    say_hosts(&report, &stage);
    report.say(format_args!(
        "\nUp after {:.1} s. What it does, with the evidence:\n",
        started.elapsed().as_secs_f64()
    ));
    for (number, step) in (1..).zip(&STEPS) {
        report.begin(step);
        let began = Instant::now();
        let applied = step.applies.map(|example| stage.text(example)).transpose()?;
        let outcome = see(step, &stage);
        if let Some(why) = outcome.as_ref().err().and_then(stopped) {
            report.stop();
            if why != Stopped::Interrupted {
                show_logs(&net, step.hosts);
            }
            return Err(anyhow!(why).context(format!("in step {number}, {}", step.title)));
        }
        report.end(step, applied, outcome.as_ref().map(Clone::clone), began.elapsed());
    }
    report.conclude(&net, STEPS.len())?;
    if afterwards == Afterwards::Stay {
        stay(&report, &stage)?;
    }
    match report.failed().is_empty() {
        true => Ok(()),
        false => Err(Said(Exit::Refused).into()),
    }
}

/// Puts in force what the step applies, and gathers its evidence.
fn see(step: &Step, stage: &Stage<'_>) -> Result<Vec<String>> {
    if let Some(example) = step.applies {
        stage.enforce(example)?;
    }
    (step.show)(stage)
}

fn say_hosts(report: &Report, stage: &Stage<'_>) {
    let about = [
        "checkout, which calls orders",
        "orders, catalog, support, reviews v1",
        "orders, reviews v2",
        "no service of its own",
    ];
    report.say(format_args!("\n   {:9}{:13}{}", "control", stage.control.v4(), "the control server"));
    for (member, about) in stage.members().into_iter().zip(about) {
        report.say(format_args!("   {:9}{:13}{about}", member.name(), member.host.v4()));
    }
}

/// Leaves the mesh to the person at the terminal.
fn stay(report: &Report, stage: &Stage<'_>) -> Result<()> {
    let lines = try_out::lines(stage)?;
    report.head("\nThe mesh stays up until Ctrl-C. To try, in another terminal:");
    for (what, line) in lines {
        report.note(format_args!("# {what}"));
        report.say(format_args!("   {line}"));
    }
    stage.patience.wait_for_interruption();
    Ok(())
}
