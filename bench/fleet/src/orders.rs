//! What the process is told to do: one order a line, one answer in JSON a line.

use std::io::{self, BufRead as _, Write as _};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use baremesh_registry::control::message::Unknown;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::board::Board;
use crate::held::Keys;
use crate::member::{Fleet, Member, ORDERS, Order};
use crate::mesh::Size;

/// Hosts that join at once.
const JOINING: usize = 16;
/// How often it is looked whether what is awaited has come; the moments themselves are noted when they are.
const LOOK: Duration = Duration::from_millis(20);

/// Carries orders out until there are no more.
pub fn follow(control: SocketAddr, socket: PathBuf, size: Size) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let fleet = Arc::new(Fleet {
        control,
        size,
        board: Board::default(),
        keys: Keys::default(),
        unknown: Unknown::default(),
    });
    let mut hosts = Hosts { fleet, socket, members: Vec::new(), orders: Vec::new() };
    for line in io::stdin().lock().lines() {
        let answer = runtime.block_on(hosts.carry_out(&line?));
        let answer = answer.unwrap_or_else(|error| json!({ "error": format!("{error:#}") }));
        let mut out = io::stdout().lock();
        writeln!(out, "{answer}").and_then(|()| out.flush()).context("nobody reads the answers")?;
    }
    Ok(())
}

struct Hosts {
    fleet: Arc<Fleet>,
    socket: PathBuf,
    /// Those that have joined and do not follow yet.
    members: Vec<Member>,
    orders: Vec<mpsc::Sender<Order>>,
}

impl Hosts {
    async fn carry_out(&mut self, line: &str) -> Result<Value> {
        let words: Vec<&str> = line.split_whitespace().collect();
        let board = &self.fleet.board;
        match words[..] {
            ["join"] => self.join().await,
            ["connect"] => {
                board.mark();
                for member in self.members.drain(..) {
                    let (order, orders) = mpsc::channel(ORDERS);
                    self.orders.push(order);
                    tokio::spawn(member.follow(Arc::clone(&self.fleet), orders));
                }
                Ok(board.report())
            }
            ["mark"] => {
                board.mark();
                Ok(board.report())
            }
            ["report"] => Ok(board.report()),
            ["await-whole", seconds] => self.await_whole(seconds.parse()?).await,
            ["watch", ..] if words.len() % 2 == 1 => {
                let form = |form: &[&str]| (form[0].to_owned(), form[1].to_owned());
                board.watch(words[1..].chunks_exact(2).map(form).collect());
                Ok(json!({}))
            }
            ["await-seen", seconds, agents] => self.await_seen(seconds.parse()?, agents.parse()?).await,
            ["healthy", agent] => self.order(agent, Order::Health("healthy")).await,
            ["unhealthy", agent] => self.order(agent, Order::Health("unhealthy")).await,
            ["serve", agent, service] => self.order(agent, Order::Serve(service.parse()?)).await,
            _ => bail!("{line:?} is no order"),
        }
    }

    async fn join(&mut self) -> Result<Value> {
        let (began, places) = (Instant::now(), Arc::new(Semaphore::new(JOINING)));
        let mut joining = JoinSet::new();
        for number in 0..self.fleet.size.agents {
            let (fleet, socket, places) = (Arc::clone(&self.fleet), self.socket.clone(), Arc::clone(&places));
            joining.spawn(async move {
                let _place = places.acquire().await?;
                let socket: &Path = &socket;
                let joined = Member::join(&fleet, socket, number).await;
                joined.with_context(|| format!("host {number} cannot join"))
            });
        }
        while let Some(joined) = joining.join_next().await {
            self.members.push(joined??);
        }
        // Orders name them by their numbers, in whichever order they joined.
        self.members.sort_unstable_by_key(Member::number);
        Ok(json!({ "joined": self.members.len(), "seconds": began.elapsed().as_secs_f64() }))
    }

    /// Waits until every agent holds all that it asked for, or for so long.
    async fn await_whole(&self, seconds: f64) -> Result<Value> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while self.fleet.board.whole() < self.fleet.size.agents && Instant::now() < until {
            sleep(LOOK).await;
        }
        Ok(self.fleet.board.report())
    }

    /// Waits until so many agents have acknowledged what is awaited, or for so long.
    async fn await_seen(&self, seconds: f64, agents: usize) -> Result<Value> {
        let until = Instant::now() + Duration::from_secs_f64(seconds);
        while self.fleet.board.seen().len() < agents && Instant::now() < until {
            sleep(LOOK).await;
        }
        let seen = self.fleet.board.seen();
        // Of those who have not seen it nothing is known but that they have not.
        let part = |share: usize| seen.get(agents.saturating_sub(1) * share / 100).map(Duration::as_secs_f64);
        Ok(json!({ "seen": seen.len(), "p50": part(50), "p99": part(99), "max": part(100) }))
    }

    async fn order(&self, agent: &str, order: Order) -> Result<Value> {
        let to = self.orders.get(agent.parse::<usize>()?).context("there is no such agent")?;
        to.send(order).await.map_err(|_| anyhow::anyhow!("the agent has ended"))?;
        Ok(json!({}))
    }
}
