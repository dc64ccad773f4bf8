//! Following the catalog: its names, and the instances of each service. Up to a bound each service's changes are waited
//! for; the others are read one after the other, those that are new first.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use baremesh_registry::consul::client::Client;
use baremesh_registry::consul::query::{Consistency, Place, Read, Step};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::sleep;

use super::choice::{Choice, choose};
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

/// Follows the catalog, for ever.
pub(super) async fn follow(client: Client, tell: Sender<Heard>) {
    let (choose, chosen) = watch::channel(Choice::default());
    tokio::join!(
        Box::pin(names(client.clone(), tell.clone(), choose)),
        Box::pin(wait_for_each(client.clone(), tell.clone(), chosen.clone())),
        Box::pin(read_in_turn(client, tell, chosen)),
    );
}

async fn names(client: Client, tell: Sender<Heard>, chosen: watch::Sender<Choice>) {
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
                    let choice = choose(&answer.value, &chosen.borrow().waited);
                    let _ = tell.send(Heard::Known(News::InTurn(choice.in_turn.len()))).await;
                    // Told each time: where the names are the same, something was registered under one of them.
                    chosen.send_replace(choice);
                    news = Some(News::Names(answer.value.into_keys().collect()));
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

/// One task for each service whose changes are waited for.
async fn wait_for_each(client: Client, tell: Sender<Heard>, mut chosen: watch::Receiver<Choice>) {
    let mut tasks = JoinSet::new();
    let mut running: BTreeMap<String, AbortHandle> = BTreeMap::new();
    while chosen.changed().await.is_ok() {
        let wanted = chosen.borrow_and_update().waited.clone();
        running.retain(|name, task| {
            let stays = wanted.contains(name);
            if !stays {
                task.abort();
            }
            stays
        });
        while tasks.try_join_next().is_some() {}
        for name in wanted {
            let start = || tasks.spawn(wait_for(client.clone(), tell.clone(), name.clone()));
            running.entry(name.clone()).or_insert_with(start);
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

/// Reads the others, those that are new at once and all of them again and again.
async fn read_in_turn(client: Client, tell: Sender<Heard>, mut chosen: watch::Receiver<Choice>) {
    let mut read: BTreeSet<String> = BTreeSet::new();
    loop {
        let all = chosen.borrow_and_update().in_turn.clone();
        let still: BTreeSet<_> = all.iter().cloned().collect();
        read.retain(|name| still.contains(name));
        let (old, new): (Vec<_>, Vec<_>) = all.into_iter().partition(|name| read.contains(name));
        read_all(&client, &tell, new.iter().cloned().collect(), Duration::ZERO).await;
        read.extend(new);
        let began = tokio::time::Instant::now();
        // What is new meanwhile does not wait for the end of the round.
        for some in old.chunks(256) {
            read_all(&client, &tell, some.iter().cloned().collect(), AGAIN_PACE).await;
            let is_new = |choice: &Choice| choice.in_turn.iter().any(|name| !read.contains(name));
            if is_new(&chosen.borrow()) {
                break;
            }
        }
        let rest = ROUND.saturating_sub(began.elapsed());
        tokio::select! {
            () = sleep(rest) => {}
            changed = chosen.changed() => match changed {
                // Something was registered: perhaps one of these.
                Ok(()) => sleep(rest.min(ROUND / 10)).await,
                Err(_) => return,
            },
        }
    }
}

async fn read_all(client: &Client, tell: &Sender<Heard>, mut names: VecDeque<String>, pace: Duration) {
    let mut reading = JoinSet::new();
    loop {
        while reading.len() < SIDE_BY_SIDE
            && let Some(name) = names.pop_front()
        {
            let (client, tell) = (client.clone(), tell.clone());
            reading.spawn(async move {
                match client.instances(&name, Read::now(STALE)).await {
                    Ok(answer) => {
                        let _ = tell.send(Heard::Known(News::Instances(name, answer.value))).await;
                    }
                    Err(error) => {
                        tracing::debug!(service = name, %error, "instances are not known anew");
                        Pauses::new().pace().await;
                    }
                }
                sleep(pace * u32::try_from(SIDE_BY_SIDE).unwrap_or(1)).await;
            });
        }
        if reading.join_next().await.is_none() {
            return;
        }
    }
}
