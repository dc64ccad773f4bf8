//! Asking the providers of CUSTOM policies, before anything else is decided of a request or of a connection of bytes. All
//! whose policies match must allow it; one that says nothing is gone by as its `failOpen` has it.

/// Reaching a provider.
mod reach;

use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

use baremesh_model::authorization::{Carried, Hello, Request};
use baremesh_model::external_authorization::{
    BodyInCheck, Changes, CheckAnswer, CheckProtocol, LongerBody, OnFailure,
};
use baremesh_model::http::{RequestHead, ResponseHead};
use baremesh_model::identity::Identity;
use bytes::Bytes;

use super::body::{Answer, BodyError};
use super::downstream::Exchange;
use super::reply::Reply;
use super::upload::{RoomAhead, UnreadAhead, Upload};
use crate::external_authorization::question::{Peers, Question, Shown};
use crate::external_authorization::{Provider, Tally};
use crate::proxy::Worker;
use crate::proxy::error::ProxyError;
use crate::snapshot::LocalEndpoint;
use crate::telemetry::request_record::RequestRecord;
use crate::telemetry::{Record, Security};

/// What allows a request, and what becomes of its answer.
#[derive(Debug, Default)]
pub struct Admitted {
    /// The providers that were asked, and allow it.
    pub by: Vec<Arc<str>>,
    answer: Option<Box<Changes>>,
}

impl Admitted {
    /// Changes the answer as the providers want it.
    pub fn mark(&self, head: &mut ResponseHead) {
        if let Some(changes) = &self.answer {
            changes.mark_answer(&mut head.headers);
        }
    }

    fn take(&mut self, name: &Arc<str>, changes: &Changes) {
        self.by.push(Arc::clone(name));
        if !changes.answer.is_empty() {
            self.answer.get_or_insert_default().then(changes);
        }
    }
}

/// In a box: a check is a request of its own, which may be routed, and only some calls have one.
pub type Asking<'a, T, E> = Pin<Box<dyn Future<Output = Result<T, E>> + Send + 'a>>;

impl Worker {
    /// Asks about a request for a service of this host, and changes it as those who allow it want; or what its caller is told.
    pub fn ask_about_request<'a>(
        self: &'a Arc<Self>,
        local: &'a LocalEndpoint,
        (source, remote_ip): (Option<&'a Identity>, IpAddr),
        exchange: &'a mut Exchange<'_>,
        record: &'a mut RequestRecord,
    ) -> Asking<'a, Admitted, Box<Reply>> {
        Box::pin(async move {
            let mut admitted = Admitted::default();
            let Exchange { head, upload, answer } = exchange;
            let client = record.peers.client;
            let peers =
                Peers { local, source, client, server_name: server_name(local, source, &record.peers) };
            loop {
                let asked = Request { head, token: None, remote_ip, allowed_by: &admitted.by };
                let from = (source, client.ip());
                let Some(asks) = local.asks(from, (Carried::Request(&asked), &Hello::Unread), &admitted.by)
                else {
                    return Ok(admitted);
                };
                let Some(provider) = local.providers.get(asks.provider).cloned() else {
                    record.fault = Some(format!("{asks}, which the MeshConfig does not have"));
                    return Err(Box::new(Reply::not_answered_for(FORBIDDEN)));
                };
                let shown = match provider.definition.body {
                    Some(wanted) => {
                        let exchange = (&mut **head, &mut *upload, &mut *answer);
                        Some(self.show((&provider, client.ip()), wanted, exchange).await?)
                    }
                    None => None,
                };
                // A request without a body has none to show, as Envoy sees it.
                let shown = shown.as_ref().filter(|(bytes, is_cut)| *is_cut || !bytes.is_empty());
                let asked = Shown { head, body: shown, length: upload.length() };
                let question = Question::of_request(&provider.definition, peers, asked, SystemTime::now());
                let gone = async {
                    tokio::select! {
                        () = upload.gone() => {}
                        () = answer.gone() => {}
                    }
                };
                let said = tokio::select! {
                    biased;
                    said = self.ask(&provider, peers, question) => said,
                    () = gone => return Err(Box::new(Reply::caller_gone())),
                };
                self.go_by(&provider, &said, (head, upload, record), &mut admitted)?;
            }
        })
    }

    /// Goes by what a provider said of a request.
    fn go_by(
        &self,
        provider: &Provider,
        said: &CheckAnswer,
        (head, upload, record): (&mut RequestHead, &mut Upload<'_>, &mut RequestRecord),
        admitted: &mut Admitted,
    ) -> Result<(), Box<Reply>> {
        let (tally, definition) = (&provider.tally, &provider.definition);
        let none = Changes::default();
        let changes = match said {
            CheckAnswer::Allowed(changes) => {
                Tally::count(&tally.allowed);
                changes
            }
            CheckAnswer::Denied(denial) => {
                Tally::count(&tally.denied);
                record.fault = Some(format!("the provider {} refused it", definition.name));
                return Err(Box::new(Reply::denied_by_provider(denial)));
            }
            CheckAnswer::Failed(why) => {
                let words = format!("the provider {}: {why}", definition.name);
                match definition.on_failure {
                    OnFailure::Refuse(status) => {
                        Tally::count(&tally.failed);
                        record.fault = Some(words);
                        return Err(Box::new(Reply::not_answered_for(status)));
                    }
                    OnFailure::Allow => {
                        Tally::count(&tally.failed_open);
                        record.peers.notes.push(format!("{words}: it goes on, failOpen"));
                        &none
                    }
                }
            }
        };
        // Whether it answered or not: what only it may say, the caller has not said.
        let patterns = match &definition.protocol {
            CheckProtocol::Http(check) => {
                check.strip(&mut head.headers);
                &*check.to_upstream
            }
            CheckProtocol::Grpc => &[],
        };
        upload.vouched_for(patterns, changes);
        let refused = changes.apply(head).len();
        if refused > 0 {
            let words = format!("the provider {}: {refused} fields that are not its to set", definition.name);
            record.peers.notes.push(words);
        }
        admitted.take(&definition.name, changes);
        Ok(())
    }

    /// As much of a request's body as a provider is to see, and whether there is more.
    async fn show(
        &self,
        (provider, host): (&Provider, IpAddr),
        wanted: BodyInCheck,
        (head, upload, answer): (&mut RequestHead, &mut Upload<'_>, &mut Answer<'_>),
    ) -> Result<(Bytes, bool), Box<Reply>> {
        let most = wanted.max_bytes as usize;
        if !upload.is_whole() {
            // Who waits for this to send the body would wait for what is asked about the body.
            if head.headers.lists("expect", "100-continue") {
                head.headers.remove("expect");
                let interim = ResponseHead { status: 100, ..ResponseHead::default() };
                answer.interim(&interim).await.map_err(|_| Box::new(Reply::caller_gone()))?;
            }
            // A message of gRPC holds the body as well.
            let times = if provider.definition.protocol == CheckProtocol::Grpc { 2 } else { 1 };
            let room = RoomAhead { room: &provider.room, host, times };
            let reading =
                tokio::time::timeout(self.shared.limits.body_timeout, upload.read_ahead(most, room));
            let read = tokio::select! {
                read = reading => read,
                () = answer.gone() => return Err(Box::new(Reply::caller_gone())),
            };
            match read {
                Ok(Ok(())) => {}
                Ok(Err(UnreadAhead::NoRoom)) => return Err(Box::new(Reply::overflow())),
                Ok(Err(UnreadAhead::Body(BodyError::Broken(_)))) => {
                    return Err(Box::new(Reply::caller_gone()));
                }
                Ok(Err(UnreadAhead::Body(BodyError::Malformed(why)))) => {
                    return Err(Box::new(Reply::malformed(400, why)));
                }
                Err(_) => {
                    return Err(Box::new(Reply::new(408, "stream timeout", "SI", "request_body_timeout")));
                }
            }
        }
        let (bytes, is_cut) = upload.start(most);
        match (is_cut, wanted.longer) {
            (true, LongerBody::Refused) => Err(Box::new(Reply::body_too_long())),
            _ => Ok((bytes, is_cut)),
        }
    }

    /// Asks about a connection of bytes for a service of this host; gives back who allows it.
    pub fn ask_about_bytes<'a>(
        self: &'a Arc<Self>,
        local: &'a LocalEndpoint,
        (source, hello): (Option<&'a Identity>, &'a Hello),
        record: &'a mut Record,
    ) -> Asking<'a, Vec<Arc<str>>, ProxyError> {
        Box::pin(async move {
            let (mut allowed_by, client) = (Vec::new(), record.client);
            let peers = Peers { local, source, client, server_name: server_name(local, source, record) };
            loop {
                let asks = local.asks((source, client.ip()), (Carried::Bytes, hello), &allowed_by);
                let Some(asks) = asks else { return Ok(allowed_by) };
                let failed = |why: &str| {
                    Err(ProxyError::NoProvidersAnswer {
                        provider: asks.provider.to_owned(),
                        why: why.to_owned(),
                    })
                };
                let Some(provider) = local.providers.get(asks.provider) else {
                    return failed("the MeshConfig does not have it");
                };
                let (tally, definition) = (&provider.tally, &provider.definition);
                let Some(question) = Question::of_bytes(definition, peers, SystemTime::now()) else {
                    Tally::count(&tally.failed);
                    // Whatever failOpen says, as in Istio: there is nothing that could be asked.
                    return failed("it is asked over HTTP, and bytes are no request");
                };
                match &*self.ask(provider, peers, question).await {
                    CheckAnswer::Allowed(_) => Tally::count(&tally.allowed),
                    CheckAnswer::Denied(_) => {
                        Tally::count(&tally.denied);
                        return Err(ProxyError::DeniedByProvider(asks.provider.to_owned()));
                    }
                    CheckAnswer::Failed(why) if definition.on_failure == OnFailure::Allow => {
                        Tally::count(&tally.failed_open);
                        let words = format!("the provider {}: {why}: it goes on, failOpen", definition.name);
                        record.notes.push(words);
                    }
                    CheckAnswer::Failed(why) => {
                        Tally::count(&tally.failed);
                        return failed(why);
                    }
                }
                allowed_by.push(Arc::clone(&definition.name));
            }
        })
    }

    /// What a provider says, or said of the same lately.
    async fn ask(
        self: &Arc<Self>,
        provider: &Provider,
        peers: Peers<'_>,
        question: Question,
    ) -> Arc<CheckAnswer> {
        let kept = provider.cache.as_ref().map(|cache| (cache, question.key(peers)));
        if let Some(known) = kept.as_ref().and_then(|(cache, key)| cache.find(key, Instant::now())) {
            Tally::count(&provider.tally.cached);
            return known;
        }
        let said = Arc::new(self.put(provider, peers.local, question).await);
        if let Some((cache, key)) = kept {
            cache.keep(key, &said, Instant::now());
        }
        said
    }

    /// Puts a question to a provider, within its time, within the number of those that are under way, and not at all while it
    /// is left alone.
    async fn put(
        self: &Arc<Self>,
        provider: &Provider,
        local: &LocalEndpoint,
        question: Question,
    ) -> CheckAnswer {
        let failed = |why: &str| CheckAnswer::Failed(why.to_owned());
        let Ok(_place) = provider.places.try_acquire() else {
            return failed("too many checks are under way");
        };
        if !provider.circuit().may_ask(Instant::now()) {
            return failed("it gave no answer for a while, and is left alone for a moment");
        }
        let limit = provider.definition.timeout;
        match tokio::time::timeout(limit, self.send(provider, local, question)).await {
            Ok(Ok(said)) => {
                provider.circuit().answered();
                said.read(&provider.definition.protocol)
            }
            Ok(Err(why)) => {
                provider.circuit().failed(Instant::now());
                CheckAnswer::Failed(why)
            }
            Err(_) => {
                provider.circuit().failed(Instant::now());
                CheckAnswer::Failed(format!("no answer within {limit:?}"))
            }
        }
    }
}

/// What a refused request is told where no provider says it.
const FORBIDDEN: u16 = 403;

/// The server name of the mesh's own TLS, where the connection came in it.
fn server_name<'a>(local: &'a LocalEndpoint, source: Option<&Identity>, record: &Record) -> Option<&'a str> {
    let is_tunnel = source.is_some() && record.security == Security::MutualTls;
    local.server_names.first().filter(|_| is_tunnel).map(|name| &**name)
}

/// An address of this host's own, from which a check goes out.
fn own_address(local: &LocalEndpoint) -> SocketAddr {
    SocketAddr::new(local.advertised.ip(), 0)
}
