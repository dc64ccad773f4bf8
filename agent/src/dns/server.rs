//! The sockets that clients talk to: a loop for datagrams, and one for connections with a task each.

use arc_swap::ArcSwap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::select;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::answer::{Decision, DropReason, Outcome, Transport, answer};
use super::config::{DRAIN_TIMEOUT, DnsConfig, MAX_PIPELINED};
use super::counters::{DnsCounters, LogGate, count};
use super::forward::{Forwarder, servfail};
use super::framing::{read_message, write_message};
use super::wire::{self, Asked, Reason};
use super::zone::Zone;

/// The wait after a socket failed to give us the next message or connection, as when descriptors are exhausted.
const PAUSE: Duration = Duration::from_millis(100);

const OVER_LIMIT: Reason = Reason { code: 14, text: "too many questions wait for upstream name servers" };

/// What all sockets share.
#[derive(Debug)]
pub(super) struct Server {
    pub(super) config: ArcSwap<DnsConfig>,
    pub(super) zone: Zone,
    pub(super) forwarder: Forwarder,
    pub(super) counters: Arc<DnsCounters>,
    pub(super) waiting: Arc<Semaphore>,
    pub(super) connections: Arc<Semaphore>,
    pub(super) log: LogGate,
}

/// What is left to do about a message that has been counted.
enum Step {
    Send(Vec<u8>),
    Ask(Asked, OwnedSemaphorePermit),
    Nothing,
}

impl Server {
    fn step(&self, query: &[u8], transport: Transport) -> Step {
        let counters = &self.counters;
        match answer(query, transport, &self.zone, &self.config.load()) {
            Decision::Reply { message, outcome } => {
                count(match outcome {
                    Outcome::Answered => &counters.answered,
                    Outcome::NoSuchName => &counters.nxdomain,
                    Outcome::NoData => &counters.nodata,
                    Outcome::Malformed => &counters.refused_malformed,
                    Outcome::KindRefused => &counters.refused_kind,
                    Outcome::Failed => &counters.servfail,
                });
                Step::Send(message)
            }
            Decision::Forward(forward) => match self.waiting.clone().try_acquire_owned() {
                Ok(permit) => {
                    count(&counters.forwarded);
                    Step::Ask(forward.asked, permit)
                }
                Err(_) => Step::Send(self.over_limit(query)),
            },
            Decision::Drop(reason) => {
                count(match reason {
                    DropReason::NoHeader => &counters.refused_malformed,
                    DropReason::Response => &counters.dropped_responses,
                });
                Step::Nothing
            }
        }
    }

    fn over_limit(&self, query: &[u8]) -> Vec<u8> {
        count(&self.counters.over_limit);
        if self.log.opens() {
            tracing::warn!(
                limit = self.config.load().limits.forwarded,
                "as many questions as may wait for upstream name servers do: is one slow, or a local resolver asked upstream whose own questions come back here?"
            );
        }
        servfail(query, OVER_LIMIT)
    }

    fn sent(&self, result: io::Result<usize>) {
        if let Err(error) = result {
            count(&self.counters.unsent);
            tracing::debug!(%error, "cannot send an answer");
        }
    }

    /// Serves datagrams until told to stop, then lets the questions end that are on their way upstream.
    pub(super) async fn serve_udp(self: Arc<Self>, socket: UdpSocket, mut stop: watch::Receiver<bool>) {
        let socket = Arc::new(socket);
        let mut buffer = vec![0; wire::MAX_MESSAGE];
        let mut asking = JoinSet::new();
        loop {
            let received = select! {
                _ = stop.changed() => break,
                Some(_) = asking.join_next() => continue,
                received = socket.recv_from(&mut buffer) => received,
            };
            let (query, client) = match received {
                Ok((length, client)) => (buffer.get(..length).unwrap_or_default(), client),
                Err(error) => {
                    tracing::debug!(%error, "cannot receive questions");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            match self.step(query, Transport::Udp) {
                Step::Send(reply) => self.sent(socket.send_to(&reply, client).await),
                Step::Ask(asked, permit) => {
                    let (server, socket, query) = (self.clone(), socket.clone(), query.to_vec());
                    asking.spawn(async move {
                        let reply = server.forwarder.forward(&query, asked, Transport::Udp).await;
                        server.sent(socket.send_to(&reply, client).await);
                        drop(permit);
                    });
                }
                Step::Nothing => {}
            }
        }
        let _ = timeout(DRAIN_TIMEOUT, async { while asking.join_next().await.is_some() {} }).await;
    }

    /// Takes connections until told to stop, then closes them all: their clients ask again.
    pub(super) async fn serve_tcp(self: Arc<Self>, listener: TcpListener, mut stop: watch::Receiver<bool>) {
        let mut open = JoinSet::new();
        loop {
            let accepted = select! {
                _ = stop.changed() => break,
                Some(_) = open.join_next() => continue,
                accepted = listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::debug!(%error, "cannot accept a connection");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            match self.connections.clone().try_acquire_owned() {
                Ok(permit) => {
                    let server = self.clone();
                    open.spawn(async move {
                        server.serve_connection(stream).await;
                        drop(permit);
                    });
                }
                Err(_) => count(&self.counters.connections_refused),
            }
        }
    }

    async fn serve_connection(self: Arc<Self>, stream: TcpStream) {
        // An answer waits for nothing to be sent along with it.
        let _ = stream.set_nodelay(true);
        let (reading, writing) = stream.into_split();
        let (replies, queue) = mpsc::channel(MAX_PIPELINED);
        let server = self.clone();
        let result = {
            let read = server.read_queries(reading, replies);
            let write = self.write_replies(writing, queue);
            tokio::pin!(write);
            select! {
                result = &mut write => result,
                result = read => result.and(write.await),
            }
        };
        if let Err(error) = result {
            count(&self.counters.connections_cut);
            tracing::debug!(%error, "a DNS connection is cut");
        }
    }

    /// Reads until the client has no more questions, then waits for the answers that are still on their way.
    async fn read_queries(
        self: Arc<Self>,
        mut stream: OwnedReadHalf,
        replies: mpsc::Sender<Vec<u8>>,
    ) -> io::Result<()> {
        let mut asking = JoinSet::new();
        let result = loop {
            while asking.try_join_next().is_some() {}
            // The next question stays in the socket until one of these is answered.
            while asking.len() >= MAX_PIPELINED {
                asking.join_next().await;
            }
            let query = match timeout(self.config.load().limits.idle_timeout, read_message(&mut stream)).await
            {
                Ok(Ok(Some(query))) => query,
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(error)) => break Err(error),
                Err(_) => break Err(io::ErrorKind::TimedOut.into()),
            };
            match self.step(&query, Transport::Tcp) {
                // The writer is gone only when the connection is being cut.
                Step::Send(reply) => drop(replies.send(reply).await),
                Step::Ask(asked, permit) => {
                    let (server, replies) = (self.clone(), replies.clone());
                    asking.spawn(async move {
                        let reply = server.forwarder.forward(&query, asked, Transport::Tcp).await;
                        drop((replies.send(reply).await, permit));
                    });
                }
                Step::Nothing => {}
            }
        };
        while asking.join_next().await.is_some() {}
        result
    }

    async fn write_replies(
        &self,
        mut stream: OwnedWriteHalf,
        mut queue: mpsc::Receiver<Vec<u8>>,
    ) -> io::Result<()> {
        while let Some(reply) = queue.recv().await {
            let written =
                timeout(self.config.load().limits.idle_timeout, write_message(&mut stream, &reply)).await;
            if let Err(error) = written.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                count(&self.counters.unsent);
                return Err(error);
            }
        }
        Ok(())
    }
}
