//! Reaching one endpoint: over a tunnel where an agent is there, by a socket where none is, on this host under the
//! policies of the service itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use arc_swap::ArcSwap;
use baremesh_model::authorization::{Carried, Hello, Request};
use baremesh_model::destination_rule::ClientTls;
use baremesh_model::http::{Headers, RequestHead};
use baremesh_model::identity::Identity;
use baremesh_model::token::Token;

use super::Caller;
use super::tries::Miss;
use crate::proxy::error::ProxyError;
use crate::proxy::http::authentication::authenticate;
use crate::proxy::http::bytes::{self, ByteReader, ByteWriter};
use crate::proxy::http::downstream::Exchange;
use crate::proxy::http::external::Admitted;
use crate::proxy::http::forwarded_cert::{Proved, introduce};
use crate::proxy::http::forwarded_for;
use crate::proxy::http::reply::Reply;
use crate::proxy::http::upstream::{UpstreamKey, Via};
use crate::proxy::open::{Delivered, Entry, RequestWatch};
use crate::proxy::socket;
use crate::proxy::tunnel::{Peer, Place};
use crate::snapshot::endpoint::Agent;
use crate::snapshot::{Cluster, Endpoint, LocalEndpoint, Snapshot, Transport};
use crate::telemetry::request_record::RequestRecord;
use crate::telemetry::{Record, Security};

/// What a check is told that nobody answers.
const UNAVAILABLE: u16 = 503;

/// Both directions to an endpoint, with the place in the tunnel that they take.
pub struct Dialled {
    /// What comes back.
    pub reader: ByteReader,
    /// What is sent.
    pub writer: ByteWriter,
    /// The stream's place in its tunnel.
    pub place: Option<Place>,
}

impl Dialled {
    fn socket(stream: tokio::net::TcpStream) -> Self {
        let (reader, writer) = bytes::of_socket(stream);
        Self { reader, writer, place: None }
    }
}

/// A request to a service of this host, under way.
pub struct Watched {
    entry: Entry,
    delivered: Delivered,
}

impl Watched {
    /// Whether another state than that by which the request was decided is in force, and forbids it.
    pub fn is_forbidden(
        &self,
        decided_by: &Arc<Snapshot>,
        request: &Request<'_>,
        in_force: &ArcSwap<Snapshot>,
    ) -> bool {
        let now = in_force.load();
        !Arc::ptr_eq(&now, decided_by)
            && self.delivered.no_longer_allowed(&now, Carried::Request(request)).is_some()
    }

    /// Ends when the connection is to be closed, or the policies no longer allow the request, with the reason.
    pub async fn until_closed(
        &self,
        watch: &mut RequestWatch,
        request: &Request<'_>,
        in_force: &ArcSwap<Snapshot>,
    ) -> ProxyError {
        tokio::select! {
            reason = self.entry.until_closed() => reason,
            reason = watch.until_forbidden((&self.delivered, request), in_force) => reason,
        }
    }
}

/// The endpoint of an attempt, with what must hold before anything is sent there.
pub struct Target<'a> {
    /// The state that the request is decided by.
    pub snapshot: &'a Snapshot,
    /// The endpoint.
    pub endpoint: &'a Arc<Endpoint>,
    /// The identity that it must show.
    pub identity: &'a Identity,
    /// How its service is called.
    pub cluster: &'a Cluster,
}

impl Caller {
    /// Which kept connections may carry a request there.
    pub(super) fn key(&self, target: &Target<'_>) -> UpstreamKey {
        UpstreamKey {
            source: self.identity.clone(),
            destination: target.identity.clone(),
            address: target.endpoint.address,
            via: match (&target.endpoint.transport, self.local(target)) {
                (_, Some(local)) => Via::Local(local.deliver),
                (Transport::Hbone(agent), None) => Via::Tunnel(agent.clone()),
                (Transport::Plain | Transport::Local(_), None) => {
                    Via::Socket(target.cluster.tls().map(|tls| {
                        // Hosts at one address may be asked for under one rule.
                        (tls.clone(), Arc::clone(&target.cluster.name.host))
                    }))
                }
            },
        }
    }

    /// Has the providers of CUSTOM policies asked, where the endpoint is a service of this host. Another host's agent asks
    /// its own.
    pub(super) async fn ask(
        &self,
        target: &Target<'_>,
        (exchange, remote_ip): (&mut Exchange<'_>, IpAddr),
        record: &mut RequestRecord,
    ) -> Result<Admitted, Miss> {
        match self.local(target) {
            Some(local) if local.may_ask() => {
                let from = (Some(&self.identity), remote_ip);
                if self.checks() {
                    return self.ask_about_check(local, (exchange.head, remote_ip), record);
                }
                let asking = self.worker.ask_about_request(local, from, exchange, record);
                asking.await.map_err(Miss::Refused)
            }
            _ => Ok(Admitted::default()),
        }
    }

    /// A check that a route leads to a service whose own calls are checked gets no answer: it would have to be asked about in
    /// its turn, and so without end.
    fn ask_about_check(
        &self,
        local: &LocalEndpoint,
        (head, remote_ip): (&RequestHead, IpAddr),
        record: &mut RequestRecord,
    ) -> Result<Admitted, Miss> {
        let asked = Request { head, token: None, remote_ip, allowed_by: &[] };
        let from = (Some(&self.identity), self.peers.client.ip());
        match local.asks(from, (Carried::Request(&asked), &Hello::Unread), &[]) {
            None => Ok(Admitted::default()),
            Some(asks) => {
                record.fault = Some(format!("{asks}, and nobody is asked about a check"));
                Err(Miss::Refused(Box::new(Reply::not_answered_for(UNAVAILABLE))))
            }
        }
    }

    /// Decides what a kept connection cannot vouch for: the rules for tokens, the policies and the limits of a service of this
    /// host are asked for every request. Another host's agent asks its own.
    pub(super) fn admit(
        &self,
        target: &Target<'_>,
        (head, allowed_by): (&mut RequestHead, &[Arc<str>]),
        remote_ip: IpAddr,
        record: &mut RequestRecord,
    ) -> Result<Option<Token>, Miss> {
        record.peers.security = match target.endpoint.transport {
            Transport::Hbone(_) => Security::MutualTls,
            Transport::Plain | Transport::Local(_) => Security::None,
        };
        match self.local(target) {
            Some(local) => {
                let from = (Some(&self.identity), self.peers.client.ip());
                self.worker.note_flow(local, from, &record.peers);
                local.taken().map_err(Miss::NotConnected)?;
                let token = authenticate(local, head, record).map_err(Miss::Refused)?;
                let request = Request { head, token: token.as_ref(), remote_ip, allowed_by };
                let judged = self.worker.authorize_request(local, (from, &request), &mut record.peers);
                judged.map_err(Miss::Refused)?;
                let limits = &target.snapshot.rate_limits;
                let from = (from.0, remote_ip);
                let counted = limits.on_arrival(local, (head, token.as_ref()), from, &mut record.limited);
                counted.map_err(|refusal| Miss::Refused(Box::new(Reply::rate_limited(refusal))))?;
                Ok(token)
            }
            None if matches!(target.endpoint.transport, Transport::Plain)
                && matches!(target.cluster.tls(), Some(ClientTls::IstioMutual)) =>
            {
                // What asks for TLS is never sent in plaintext.
                let address = target.endpoint.address;
                let mode = ClientTls::IstioMutual.mode();
                Err(Miss::NotConnected(ProxyError::NeedsTls { address, mode }))
            }
            None if self.worker.is_own(target.snapshot, target.endpoint.address) => {
                Err(Miss::NotConnected(ProxyError::NotMeshed(target.endpoint.address)))
            }
            None => Ok(None),
        }
    }

    /// What the endpoint is told of the caller: by its own agent, or where it is a service of this host, here. Where the
    /// request comes from is returned.
    pub(super) fn introduce(&self, target: &Target<'_>, headers: &mut Headers) -> IpAddr {
        let local = self.local(target);
        introduce(
            headers,
            local.map(|_| Proved { identity: &self.identity, certificate: None }),
            local.map_or(target.identity, |local| &local.identity),
        );
        let (trusted, peer) = (target.snapshot.mesh.config.trusted_proxies, self.peers.client.ip());
        match local {
            Some(_) => forwarded_for::tell(headers, trusted, peer),
            None => peer,
        }
    }

    /// Has a request to a service of this host end when its policies change and no longer allow it. To other hosts their
    /// own agents see to that.
    pub(super) fn watch(&self, target: &Target<'_>, snapshot: &Arc<Snapshot>) -> Option<Watched> {
        let local = Arc::clone(self.local(target)?);
        let source_ip = self.peers.client.ip();
        let delivered = Delivered {
            local,
            source: Some(self.identity.clone()),
            source_ip,
            serial: None,
            allowed_by: Vec::new(),
            hello: Hello::Unread,
        };
        let entry = self.worker.open.enter(None, Some(delivered.clone()));
        entry.judge_again(snapshot, &self.worker.shared.snapshot);
        Some(Watched { entry, delivered })
    }

    /// The service of this host that the endpoint is.
    fn local<'a>(&self, target: &'a Target<'_>) -> Option<&'a Arc<LocalEndpoint>> {
        target.snapshot.here(target.endpoint)
    }

    /// Connects to the endpoint.
    pub(super) async fn dial(&self, target: &Target<'_>, record: &mut Record) -> Result<Dialled, ProxyError> {
        let address = target.endpoint.address;
        if let Some(local) = self.local(target) {
            return Ok(Dialled::socket(self.worker.deliver(local, record).await?));
        }
        match &target.endpoint.transport {
            Transport::Hbone(agent) => self.over_tunnel(target, (agent, address), record).await,
            Transport::Plain | Transport::Local(_) => self.in_plaintext(target, address).await,
        }
    }

    async fn over_tunnel(
        &self,
        target: &Target<'_>,
        (agent, authority): (&Agent, SocketAddr),
        record: &mut Record,
    ) -> Result<Dialled, ProxyError> {
        let (credentials, source) = self.worker.certificate_of(&self.identity).await?;
        let peer = Peer { credentials: &credentials, source: &source, destination: target.identity, agent };
        let (stream, place) = self.worker.pool.open(peer, authority, Some(self.peers.client)).await?;
        record.peer_serial = Some(Arc::clone(&place.tunnel().peer_serial));
        let (reader, writer) = bytes::of_tunnel(stream);
        Ok(Dialled { reader, writer, place: Some(place) })
    }

    async fn in_plaintext(&self, target: &Target<'_>, address: SocketAddr) -> Result<Dialled, ProxyError> {
        let limits = target.cluster.limits();
        let timeout = limits.connect_timeout.unwrap_or(self.worker.shared.limits.connect_timeout);
        let stream =
            self.worker.connect_outside(target.snapshot, (address, target.endpoint.origin), timeout).await?;
        if let Some(keepalive) = limits.keepalive {
            socket::keep_alive_as(&stream, keepalive).map_err(ProxyError::UpstreamBroke)?;
        }
        match target.cluster.tls() {
            None | Some(ClientTls::Disable) => Ok(Dialled::socket(stream)),
            // What asks for TLS is never sent in plaintext.
            Some(tls @ ClientTls::IstioMutual) => Err(ProxyError::NeedsTls { address, mode: tls.mode() }),
            Some(ClientTls::Simple(server) | ClientTls::Mutual(_, server)) => {
                let stream = self.worker.in_tls(target.cluster, server, (address, stream)).await?;
                let (reader, writer) = bytes::of_tls(*stream);
                Ok(Dialled { reader, writer, place: None })
            }
        }
    }
}
