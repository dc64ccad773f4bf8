//! One host of the fleet: it joins with a token, and follows the control server as an agent does, over a connection from its
//! own address.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use baremesh_agent::admin::client::Socket;
use baremesh_ca::client::{Dial, join_by};
use baremesh_ca::key::PrivateKey;
use baremesh_ca::tls::{Expected, client_config, placeholder_server_name};
use baremesh_ca::token::Token;
use baremesh_model::identity::Identity;
use baremesh_registry::control::PROTOCOL;
use baremesh_registry::control::client::backoff;
use baremesh_registry::control::codec::{FrameReader, FrameWriter};
use baremesh_registry::control::leases::RENEWALS;
use baremesh_registry::control::message::{
    Ack, Finding, FromControl, Health, Hello, Register, Renew, Unknown, frame,
};
use baremesh_registry::control::ownership::{ADDRESSES_PATH, AddressQuestion};
use baremesh_registry::control::stream::{StreamReader, StreamWriter};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use rustls::ClientConfig;
use rustls::sign::SingleCertAndKey;
use serde_json::{Value, json};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_rustls::TlsConnector;

use crate::board::Board;
use crate::held::{Held, Keys};
use crate::mesh::{self, Size};

/// How long connecting, the handshake and each first answer may take; an agent's.
const PATIENCE: Duration = Duration::from_secs(10);
/// A connection that stood this long was a good one: the next pause is the first again. An agent's.
const STEADY: Duration = Duration::from_secs(30);
/// Orders that wait for one agent.
pub const ORDERS: usize = 4;

/// What an agent is told to do.
#[derive(Debug)]
pub enum Order {
    /// Tell a change of health of its first service.
    Health(&'static str),
    /// Register one more service, by its number.
    Serve(usize),
}

/// What all agents share.
#[derive(Debug)]
pub struct Fleet {
    pub control: SocketAddr,
    pub size: Size,
    pub board: Board,
    pub keys: Keys,
    pub unknown: Unknown,
}

/// A host that has joined.
pub struct Member {
    number: usize,
    tls: Arc<ClientConfig>,
}

impl Member {
    /// Which of all it is.
    pub fn number(&self) -> usize {
        self.number
    }

    /// Joins with a token that is made over the control server's socket.
    pub async fn join(fleet: &Fleet, socket: &Path, number: usize) -> Result<Self> {
        let socket = Socket { path: socket, program: "baremesh control" };
        let order = serde_json::to_vec(&json!({ "host": mesh::host(number).as_str() }))?;
        let answer: Value = serde_json::from_slice(&socket.call(Method::POST, "/token", order).await?)?;
        let token = Token::parse(answer["token"].as_str().context("no token in the answer")?)?;
        let key = PrivateKey::generate()?;
        let dial: Arc<Dial> = Arc::new(move |to| Box::pin(async move { connect(number, to).await }));
        let address = fleet.control.to_string();
        let joined = Box::pin(join_by(&address, &token, &mesh::host(number), &key, &*dial)).await?;
        let control = Identity::control(joined.bundle.trust_domain().clone());
        let certified = Arc::unwrap_or_clone(joined.node.certified_key()?);
        let resolver = Arc::new(SingleCertAndKey::from(certified));
        let mut tls = client_config(resolver, Arc::new(joined.bundle), Expected::exactly(control));
        tls.enable_sni = false;
        Ok(Self { number, tls: Arc::new(tls) })
    }

    /// Follows the control server, and connects again whenever the connection ends, with an agent's pauses.
    pub async fn follow(self, fleet: Arc<Fleet>, mut orders: mpsc::Receiver<Order>) {
        let mut held = Held::default();
        let mut served: Vec<Value> =
            fleet.size.registrations(self.number).iter().map(|one| one.written()).collect();
        let mut attempt = 0;
        loop {
            let began = Instant::now();
            let mut session = Session {
                member: &self,
                fleet: &fleet,
                held: &mut held,
                served: &mut served,
                is_whole: false,
            };
            if let Err(error) = Box::pin(session.run(&mut orders)).await {
                fleet.board.failed(format!("{error:#}"));
            }
            if session.is_whole {
                fleet.board.lost();
            }
            attempt = if began.elapsed() >= STEADY { 0 } else { attempt + 1 };
            sleep(backoff(attempt, rand::random())).await;
        }
    }

    /// Opens a connection from the host's own address, and shows that it is its own.
    async fn open(&self, control: SocketAddr) -> Result<SendRequest<Bytes>> {
        let stream = timeout(PATIENCE, connect(self.number, control)).await.context("nothing answers")??;
        stream.set_nodelay(true)?;
        let shaking = TlsConnector::from(self.tls.clone()).connect(placeholder_server_name(), stream);
        let tls = timeout(PATIENCE, shaking).await.context("no handshake in time")??;
        let (requests, connection) = h2::client::handshake(tls).await?;
        tokio::spawn(async move {
            // Whoever waits for an answer learns that it broke.
            let _ = connection.await;
        });
        let question = AddressQuestion { addresses: vec![IpAddr::V4(mesh::address(self.number))] };
        let mut requests = requests.ready().await?;
        let (response, mut send) = requests.send_request(request(ADDRESSES_PATH)?, false)?;
        send.send_data(serde_json::to_vec(&question)?.into(), true)?;
        let response = timeout(PATIENCE, response).await.context("no answer about addresses in time")??;
        if response.status() != StatusCode::OK {
            bail!("asked about addresses it answered {}", response.status());
        }
        Ok(requests)
    }
}

async fn connect(number: usize, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind((mesh::address(number), 0).into())?;
    socket.connect(to).await
}

fn request(path: &str) -> Result<Request<()>, http::Error> {
    Request::builder().method(Method::POST).uri(format!("https://control{path}")).body(())
}

/// One connection.
struct Session<'a> {
    member: &'a Member,
    fleet: &'a Fleet,
    held: &'a mut Held,
    /// What the host registers, as it is written.
    served: &'a mut Vec<Value>,
    is_whole: bool,
}

impl Session<'_> {
    /// Runs to its end, which is always an error: a fleet's host never says goodbye.
    async fn run(&mut self, orders: &mut mpsc::Receiver<Order>) -> Result<()> {
        let board = &self.fleet.board;
        let mut requests = self.member.open(self.fleet.control).await?;
        let (response, send) = requests.send_request(request("/v1/state")?, false)?;
        let response = timeout(PATIENCE, response).await.context("no answer in time")??;
        if response.status() != StatusCode::OK {
            bail!("asked for the state it answered {}", response.status());
        }
        board.connects.fetch_add(1, Ordering::Relaxed);
        let mut reader = FrameReader::new(StreamReader::new(response.into_body()));
        let mut writer = FrameWriter::new(StreamWriter::new(send));
        self.held.begin();
        let hello = Hello {
            protocol: PROTOCOL,
            agent_version: "fleet".to_owned(),
            capabilities: Vec::new(),
            resume: self.held.resume(),
            subscribe: self.fleet.size.subscription(self.member.number),
        };
        writer.send(&frame(&hello)).await?;
        let Some(FromControl::Welcome(welcome)) = self.hear(&mut reader).await? else {
            bail!("the first message was not Welcome");
        };
        let period = Duration::from_secs(welcome.lease_seconds.max(1)) / RENEWALS;
        let mut registered = 1;
        let register = Register { number: registered, registrations: self.served.clone() };
        writer.send(&frame(&register)).await?;
        let mut renewal = Instant::now() + period;
        let mut sees = false;
        loop {
            tokio::select! {
                message = self.hear(&mut reader) => match message? {
                    Some(FromControl::Upsert(upsert)) => {
                        let watched = board.watched();
                        sees |= watched.is_some_and(|watched| watched.is(&upsert.key, upsert.value.get()));
                        board.upserts.fetch_add(1, Ordering::Relaxed);
                        self.held.upsert(&self.fleet.keys, &upsert);
                    }
                    Some(FromControl::Delete(delete)) => {
                        board.deletes.fetch_add(1, Ordering::Relaxed);
                        self.held.delete(&self.fleet.keys, &delete.key);
                    }
                    Some(FromControl::Complete(complete)) => {
                        self.held.complete(&complete, welcome.epoch)?;
                        writer.send(&frame(&Ack { version: complete.version })).await?;
                        board.versions.fetch_add(1, Ordering::Relaxed);
                        board.fulls.fetch_add(complete.full.into(), Ordering::Relaxed);
                        if std::mem::take(&mut sees) && let Some(watched) = board.watched() {
                            watched.saw(self.member.number);
                        }
                        let all = self.held.endpoints() >= self.fleet.size.expected(self.member.number);
                        if all && !self.is_whole {
                            self.is_whole = true;
                            board.became_whole();
                        }
                    }
                    Some(FromControl::RegisterResult(result)) => {
                        if let Some(fault) = result.results.iter().find_map(|outcome| outcome.fault()) {
                            bail!("a registration was refused: {fault}");
                        }
                    }
                    Some(FromControl::Refused(refused)) => bail!("refused: {}", refused.reason),
                    Some(FromControl::Welcome(_)) => bail!("a second Welcome"),
                    Some(FromControl::Renewed(_)) => _ = board.renewals.fetch_add(1, Ordering::Relaxed),
                    None => {}
                },
                () = sleep_until(renewal) => {
                    writer.send(&frame(&Renew {})).await?;
                    renewal = Instant::now() + period;
                }
                Some(order) = orders.recv() => match order {
                    Order::Health(word) => {
                        let service = self.served[0]["service"].as_str().unwrap_or_default().to_owned();
                        let changes = vec![Finding { service, health: word.to_owned() }];
                        writer.send(&frame(&Health { changes })).await?;
                    }
                    Order::Serve(service) => {
                        self.served.push(mesh::registration(service, self.member.number).written());
                        registered += 1;
                        let register = Register { number: registered, registrations: self.served.clone() };
                        writer.send(&frame(&register)).await?;
                    }
                },
            }
        }
    }

    async fn hear(&self, reader: &mut FrameReader<StreamReader>) -> Result<Option<FromControl>> {
        let next = reader.next().await?.ok_or_else(|| anyhow!("the control server closed the session"))?;
        self.fleet.board.bytes.fetch_add(next.len() as u64, Ordering::Relaxed);
        Ok(FromControl::read(&next, &self.fleet.unknown)?)
    }
}
