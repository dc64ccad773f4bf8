//! Following the catalog: its names, and the instances of each service. Up to a bound the changes of services that are called
//! from this host, and of those of the mesh, are waited for; further ones are read one after the other, those that are new
//! first, and what nobody here calls is read seldom.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use baremesh_registry::consul::client::Client;
use baremesh_registry::consul::query::{Consistency, Place, Read, Step};
use baremesh_registry::control::subscription::Subscription;
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::choice::{Choice, Reading, choose};
use super::known::News;
use super::store::{Pauses, say};
use super::{Heard, Part, WAIT};

/// How stale the catalog may be read: it is asked by every host, and so of any server.
const STALE: Consistency = Consistency::Stale(Duration::from_secs(10));
/// How many are read side by side.
const SIDE_BY_SIDE: usize = 8;
/// The pause after each that is read again, so that a large catalog costs little: 50 a second.
const AGAIN_PACE: Duration = Duration::from_millis(20);
/// The shortest time from one round to the next.
const ROUND: Duration = Duration::from_secs(30);
/// How old what is known of a service may be that nobody here calls.
const SELDOM: Duration = Duration::from_secs(600);
/// How soon one of those is read again that is new, or could not be read.
const SOON: Duration = Duration::from_secs(10);
/// So many are read in turn before it is looked for new ones.
const AT_A_TIME: usize = 32;
/// The shortest time from one of those to the next.
const SELDOM_PACE: Duration = Duration::from_millis(250);

/// Follows the catalog, for ever. The endpoints of the services of `asked` are asked for on this host.
pub(super) async fn follow(client: Client, tell: Sender<Heard>, asked: watch::Receiver<Subscription>) {
    let (name, named) = watch::channel(Names::default());
    let (choose, chosen) = watch::channel(Choice::default());
    tokio::join!(
        Box::pin(names(client.clone(), tell.clone(), name)),
        Box::pin(choose_anew(named, asked, tell.clone(), choose)),
        Box::pin(wait_for_each(client.clone(), tell.clone(), chosen.clone())),
        Box::pin(read_in_turn(client.clone(), tell.clone(), chosen.clone())),
        Box::pin(read_seldom(client, tell, chosen)),
    );
}

/// The names in the catalog with their tags.
type Names = BTreeMap<String, Vec<String>>;

async fn names(client: Client, tell: Sender<Heard>, named: watch::Sender<Names>) {
    let (mut place, mut pauses) = (Place::default(), Pauses::new());
    loop {
        match client.services(place.read(STALE, WAIT)).await {
            Ok(answer) => {
                let step = place.advance(answer.index);
                if step == Step::Reset {
                    let _ = tell.send(Heard::Known(News::BeganAnew)).await;
                }
                let mut news = None;
                if step != Step::Same {
                    news = Some(News::Names(answer.value.keys().cloned().collect()));
                    // Told each time: where the names are the same, something was registered under one of them.
                    named.send_replace(answer.value);
                }
                say(&tell, Part::Catalog, Ok((news, Some(place.last())))).await;
                pauses.pace().await;
            }
            Err(error) => {
                place.reset();
                say(&tell, Part::Catalog, Err(error.to_string())).await;
                pauses.after_failure().await;
            }
        }
    }
}

async fn choose_anew(
    mut named: watch::Receiver<Names>,
    mut asked: watch::Receiver<Subscription>,
    tell: Sender<Heard>,
    chosen: watch::Sender<Choice>,
) {
    loop {
        tokio::select! {
            Ok(()) = named.changed() => {}
            Ok(()) = asked.changed() => {}
            else => return,
        }
        let choice = choose(&named.borrow_and_update(), &chosen.borrow().waited, &asked.borrow_and_update());
        let _ = tell.send(Heard::Known(News::InTurn(choice.in_turn.len()))).await;
        chosen.send_replace(choice);
    }
}

/// One task for each service whose changes are waited for.
async fn wait_for_each(client: Client, tell: Sender<Heard>, mut chosen: watch::Receiver<Choice>) {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<Reading, AbortHandle> = BTreeMap::new();
    while chosen.changed().await.is_ok() {
        let wanted = chosen.borrow_and_update().waited.clone();
        running.retain(|reading, task| {
            let stays = wanted.contains(reading);
            if !stays {
                task.abort();
            }
            stays
        });
        while tasks.try_join_next().is_some() {}
        for reading in wanted {
            let start = || tasks.spawn(wait_for(client.clone(), tell.clone(), reading.name.clone()));
            running.entry(reading.clone()).or_insert_with(start);
        }
    }
}

async fn wait_for(client: Client, tell: Sender<Heard>, name: String) {
    let (mut place, mut pauses) = (Place::default(), Pauses::new());
    loop {
        match client.instances(&name, place.read(STALE, WAIT)).await {
            Ok(answer) => {
                if place.advance(answer.index) != Step::Same {
                    let _ = tell.send(Heard::Known(News::Instances(name.clone(), answer.value))).await;
                }
                pauses.pace().await;
            }
            // How the catalog stands is said by whoever follows its names.
            Err(error) => {
                tracing::debug!(service = name, %error, "instances are not known anew");
                place.reset();
                pauses.after_failure().await;
            }
        }
    }
}

/// Reads some, those that are new at once and all of them again and again.
async fn read_in_turn(client: Client, tell: Sender<Heard>, mut chosen: watch::Receiver<Choice>) {
    let mut read: BTreeSet<Reading> = BTreeSet::new();
    loop {
        let all = chosen.borrow_and_update().in_turn.clone();
        read.retain(|reading| all.contains(reading));
        let new: BTreeSet<_> = all.difference(&read).cloned().collect();
        let old: Vec<_> = std::mem::take(&mut read).into_iter().collect();
        let failed = read_all(&client, &tell, &new, Duration::ZERO).await;
        read = all;
        read.retain(|reading| !failed.contains(&reading.name));
        let began = tokio::time::Instant::now();
        // What is new meanwhile does not wait for the end of the round.
        let is_new = |choice: &Choice| {
            choice.in_turn.iter().any(|one| !read.contains(one) && !failed.contains(&one.name))
        };
        for some in old.chunks(AT_A_TIME) {
            read_all(&client, &tell, some, AGAIN_PACE).await;
            if is_new(&chosen.borrow()) {
                break;
            }
        }
        let rest = ROUND.saturating_sub(began.elapsed());
        tokio::select! {
            () = sleep(rest) => {}
            changed = chosen.changed() => match changed {
                // Something was registered: perhaps one of these.
                Ok(()) if is_new(&chosen.borrow()) => {}
                Ok(()) => sleep(rest.min(ROUND / 10)).await,
                Err(_) => return,
            },
        }
    }
}

/// Reads what nobody here calls: what is new at once, and the others at leisure.
async fn read_seldom(client: Client, tell: Sender<Heard>, mut chosen: watch::Receiver<Choice>) {
    /// When each is read next.
    type Due = BTreeMap<Reading, Instant>;
    let mut due = Due::new();
    loop {
        let all = chosen.borrow_and_update().seldom.clone();
        due.retain(|reading, _| all.contains(reading));
        let new: Vec<_> = all.into_iter().filter(|reading| !due.contains_key(reading)).collect();
        read_all(&client, &tell, &new, Duration::ZERO).await;
        // A server that lags behind may not have known what the names spoke of.
        due.extend(new.into_iter().map(|reading| (reading, Instant::now() + SOON)));
        let first = due.iter().min_by_key(|(_, at)| **at).map(|(reading, at)| (reading.clone(), *at));
        let wait = first.as_ref().map_or(SELDOM, |(_, at)| at.saturating_duration_since(Instant::now()));
        tokio::select! {
            // However many are due, one is read at a time.
            () = sleep(wait.max(SELDOM_PACE)) => if let Some((reading, _)) = first {
                let failed = read_all(&client, &tell, std::slice::from_ref(&reading), Duration::ZERO).await;
                let next = if failed.is_empty() { SELDOM } else { SOON };
                due.insert(reading, Instant::now() + next);
            },
            changed = chosen.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// Reads some services, and returns the names of those that could not be read.
async fn read_all<'a>(
    client: &Client,
    tell: &Sender<Heard>,
    all: impl IntoIterator<Item = &'a Reading>,
    pace: Duration,
) -> BTreeSet<String> {
    let mut failed = BTreeSet::new();
    let mut reading = JoinSet::new();
    let mut all = all.into_iter();
    loop {
        while reading.len() < SIDE_BY_SIDE
            && let Some(next) = all.next()
        {
            let (client, tell, name) = (client.clone(), tell.clone(), next.name.clone());
            reading.spawn(async move {
                let failed = match client.instances(&name, Read::now(STALE)).await {
                    Ok(answer) => {
                        let _ = tell.send(Heard::Known(News::Instances(name, answer.value))).await;
                        None
                    }
                    Err(error) => {
                        tracing::debug!(service = name, %error, "instances are not known anew");
                        Pauses::new().pace().await;
                        Some(name)
                    }
                };
                sleep(pace * u32::try_from(SIDE_BY_SIDE).unwrap_or(1)).await;
                failed
            });
        }
        match reading.join_next().await {
            Some(read) => failed.extend(read.ok().flatten()),
            None => return failed,
        }
    }
}
