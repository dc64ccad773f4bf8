//! One port of a service, or of one of its subsets, as a caller of this host calls it: its endpoints, the tables that choose
//! among them, the limits, and what was learnt. A choice takes no lock and no memory. What was learnt is kept from one
//! snapshot to the next.

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use baremesh_model::balance::locality::{self, Choice, Health};
use baremesh_model::balance::{Balancer, Draw, FULL, Load, Member};
use baremesh_model::destination_rule::{Algorithm, ClientTls, EffectivePolicy, HashKey, Limits};
use baremesh_model::name::Key;
use baremesh_model::outlier::{Cause, Outcome};

use super::Endpoint;
use super::endpoint::milliseconds;

/// Counts against limits.
mod limits;
/// Places of connections that nobody uses.
mod spare;
/// How the endpoints stand, for people.
mod standing;

pub(super) use limits::Counters;
pub use limits::{Held, OverLimit};
pub use spare::{Offer, Spare};
pub use standing::Standing;

/// One port of a service, or of one of its subsets, under one DestinationRule or none.
#[derive(Debug)]
pub struct Cluster {
    /// Which it is.
    pub name: ClusterName,
    /// How it is called.
    pub policy: EffectivePolicy,
    /// Its endpoints, by groups.
    endpoints: Box<[Arc<Endpoint>]>,
    groups: Box<[Group]>,
    /// Whether every endpoint's host says that it is healthy, as is the rule.
    all_healthy: bool,
    state: Arc<ClusterState>,
}

/// Which cluster it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ClusterName {
    /// The service's host name.
    pub host: Arc<str>,
    /// The port that callers name.
    pub port: u16,
    /// The subset.
    pub subset: Option<Arc<str>>,
    /// The rules that it is called by; several are one, none is the default.
    pub rules: Arc<[Key]>,
}

/// Endpoints that are as near, with their table.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) priority: u32,
    pub(super) weight: u64,
    pub(super) range: Range<usize>,
    pub(super) table: Arc<Table>,
}

/// A table with what it was made of, so that the next snapshot need not make it again.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) algorithm: Algorithm,
    pub(super) members: Box<[Member]>,
    pub(super) balancer: Balancer,
}

/// What was learnt of a cluster as a whole.
#[derive(Debug, Default)]
pub(super) struct ClusterState {
    pub(super) counters: Counters,
    /// Turns taken, for balancers that go round.
    turns: AtomicU64,
    /// Milliseconds until which some endpoint is left out.
    unwell_until: AtomicU64,
    /// Held while one is about to be left out, so that two are not where there is room for one.
    ejecting: std::sync::Mutex<()>,
}

/// Why there is no endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NoEndpoint {
    /// There is none at all.
    Empty,
    /// Those that are healthy are left out for the time being.
    Ejected,
    /// None is healthy: the checks of their own hosts fail.
    Unhealthy,
    /// Every one that could be was tried.
    Tried,
}

/// An endpoint is left out from now on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ejected {
    /// Why.
    pub cause: Cause,
    /// The how manieth time it is, not counting what is forgotten.
    pub times: u32,
}

impl Cluster {
    pub(super) fn new(
        name: ClusterName,
        policy: EffectivePolicy,
        endpoints: Vec<Arc<Endpoint>>,
        groups: Vec<Group>,
        state: Arc<ClusterState>,
    ) -> Self {
        let all_healthy = endpoints.iter().all(|endpoint| endpoint.health.is_healthy());
        Self { name, policy, endpoints: endpoints.into(), groups: groups.into(), all_healthy, state }
    }

    /// The same with other TLS towards endpoints without an agent.
    pub(super) fn with_tls(&self, tls: ClientTls) -> Self {
        let policy = EffectivePolicy { tls: Some(tls), ..self.policy.clone() };
        let group =
            |group: &Group| Group { range: group.range.clone(), table: Arc::clone(&group.table), ..*group };
        Self {
            name: self.name.clone(),
            policy,
            endpoints: self.endpoints.clone(),
            groups: self.groups.iter().map(group).collect(),
            all_healthy: self.all_healthy,
            state: Arc::clone(&self.state),
        }
    }

    /// The same towards other endpoints, under the name of `host`: those that a caller asks for by itself. What is counted is
    /// counted together.
    pub fn toward(&self, host: &Arc<str>, endpoints: Vec<Arc<Endpoint>>) -> Self {
        let member = |endpoint: &Arc<Endpoint>| Member {
            id: baremesh_model::balance::hash::of_endpoint(endpoint.address),
            weight: endpoint.weight,
        };
        let members: Box<[Member]> = endpoints.iter().map(member).collect();
        // No table is worth making for one call.
        let algorithm = Algorithm::default();
        let balancer = Balancer::new(&algorithm, &members);
        let table = Arc::new(Table { algorithm, members, balancer });
        let groups = vec![Group { priority: 0, weight: 1, range: 0..endpoints.len(), table }];
        let name = ClusterName { host: Arc::clone(host), ..self.name.clone() };
        Self::new(name, self.policy.clone(), endpoints, groups, Arc::clone(&self.state))
    }

    /// Its endpoints. Those that no locality's weight covers are not among them.
    pub fn endpoints(&self) -> &[Arc<Endpoint>] {
        &self.endpoints
    }

    pub(super) fn groups(&self) -> &[Group] {
        &self.groups
    }

    pub(super) fn state(&self) -> &Arc<ClusterState> {
        &self.state
    }

    /// Limits in force.
    pub fn limits(&self) -> &Limits {
        &self.policy.limits
    }

    /// TLS towards endpoints without an agent.
    pub fn tls(&self) -> Option<&ClientTls> {
        self.policy.tls.as_ref()
    }

    /// What a consistent hash is taken of, where the rule has one: `HashKey::of_request` is the hash of a request.
    pub fn hash_key(&self) -> Option<&HashKey> {
        match &self.policy.load_balancer.algorithm {
            Algorithm::ConsistentHash(hash) => Some(&hash.key),
            _ => None,
        }
    }

    /// The hash of a connection that is not HTTP's, where the rule has its balancer hash the caller's address.
    pub fn hash_of_connection(&self, source: IpAddr) -> Option<u64> {
        self.hash_key().and_then(|key| key.of_connection(source))
    }

    /// The endpoint for a connection or request, leaving out those in `tried`. `hash` is that of its key, where it has
    /// one. Without a rule, an endpoint that is left out is better than none. One whose own checks fail is not: it is used
    /// only where `minHealthPercent` says so.
    pub fn pick(
        &self,
        tried: &[SocketAddr],
        hash: Option<u64>,
        now: Instant,
        random: u64,
    ) -> Result<&Arc<Endpoint>, NoEndpoint> {
        let now = milliseconds(now);
        let untried = |endpoint: &Endpoint| !tried.contains(&endpoint.address);
        let fit = |endpoint: &Endpoint| untried(endpoint) && endpoint.health.is_healthy();
        let is_well =
            |endpoint: &Endpoint| endpoint.health.is_healthy() && !endpoint.state.is_ejected_at(now);
        let well = |endpoint: &Endpoint| untried(endpoint) && is_well(endpoint);
        let (group, panic) = match self.choose(now, random) {
            Some(Choice::Healthy(group)) => (group, false),
            Some(Choice::Any(group)) => (group, true),
            None if self.endpoints.is_empty() => return Err(NoEndpoint::Empty),
            None => return Err(self.unfit()),
        };
        let draw = |hash| Draw { random, turn: 0, hash };
        let picked = match (panic, &self.policy.outlier) {
            (true, _) => self.pick_from(group, draw(hash), now, &untried),
            (false, Some(_)) => self.pick_from(group, draw(hash), now, &well),
            (false, None) => self
                .pick_from(group, draw(hash), now, &well)
                .or_else(|| self.pick_from(group, draw(hash), now, &fit)),
        };
        picked.ok_or_else(|| match self.endpoints.iter().any(|endpoint| is_well(endpoint)) {
            _ if self.endpoints.is_empty() => NoEndpoint::Empty,
            true => NoEndpoint::Tried,
            false => self.unfit(),
        })
    }

    /// Why none of its endpoints can be used, of which there are some.
    fn unfit(&self) -> NoEndpoint {
        match self.endpoints.iter().any(|endpoint| endpoint.health.is_healthy()) {
            true => NoEndpoint::Ejected,
            false => NoEndpoint::Unhealthy,
        }
    }

    /// One of the group's endpoints that may be used, else one of the others', the nearest first.
    fn pick_from(
        &self,
        first: usize,
        draw: Draw,
        now: u64,
        usable: &impl Fn(&Endpoint) -> bool,
    ) -> Option<&Arc<Endpoint>> {
        let others = (0..self.groups.len()).filter(|group| *group != first);
        std::iter::once(first).chain(others).find_map(|group| {
            let Group { range, table, .. } = &self.groups[group];
            let turn = match table.balancer {
                Balancer::RoundRobin(_) => self.state.turns.fetch_add(1, Ordering::Relaxed),
                _ => 0,
            };
            let members = &self.endpoints[range.clone()];
            let load = |index: usize| self.load(&members[index], now, usable);
            table.balancer.pick(Draw { turn, ..draw }, load).map(|index| &members[index])
        })
    }

    fn load(&self, endpoint: &Endpoint, now: u64, usable: &impl Fn(&Endpoint) -> bool) -> Load {
        let weight = if usable(endpoint) { endpoint.weight } else { 0 };
        let warmth = match &self.policy.load_balancer.warmup {
            Some(warmup) => warmup.warmth(endpoint.state.age(now)),
            None => FULL,
        };
        Load { active: endpoint.state.active(), weight, warmth }
    }

    /// The group whose turn it is.
    fn choose(&self, now: u64, random: u64) -> Option<Choice> {
        let all_well = self.all_count_as_well(now);
        if all_well && self.groups.len() == 1 {
            return Some(Choice::Healthy(0));
        }
        let health = |index: usize| self.health(index, now, all_well);
        locality::choose(self.groups.len(), random, health, |healthy, total| self.is_panic(healthy, total))
    }

    /// Whether no endpoint's failures count among the groups.
    fn all_count_as_well(&self, now: u64) -> bool {
        let none_ejected =
            self.policy.outlier.is_none() || self.state.unwell_until.load(Ordering::Relaxed) <= now;
        self.all_healthy && none_ejected
    }

    fn health(&self, group: usize, now: u64, all_well: bool) -> Health {
        let Group { priority, weight, range, .. } = &self.groups[group];
        let members = &self.endpoints[range.clone()];
        let (total, ejects) = (members.len(), self.policy.outlier.is_some());
        let is_well = |member: &&Arc<Endpoint>| {
            member.health.is_healthy() && !(ejects && member.state.is_ejected_at(now))
        };
        let healthy = || members.iter().filter(is_well).count();
        Health {
            priority: *priority,
            weight: *weight,
            healthy: if all_well { total } else { healthy() },
            total,
        }
    }

    fn is_panic(&self, healthy: usize, total: usize) -> bool {
        self.policy.outlier.as_ref().is_some_and(|outlier| outlier.is_panic(healthy, total))
    }

    /// Remembers how a connection or a request went at one of its endpoints. Without outlier detection an endpoint that
    /// cannot be connected to is left out for a few seconds.
    pub fn judge(&self, endpoint: &Endpoint, outcome: Outcome, now: Instant) -> Option<Ejected> {
        let Some(outlier) = &self.policy.outlier else {
            match outcome {
                Outcome::Success => endpoint.state.succeeded(),
                Outcome::LocalFailure => endpoint.state.failed(),
                Outcome::ServerError | Outcome::GatewayError => {}
            }
            return None;
        };
        let cause = endpoint.state.count(outcome, outlier)?;
        let now = milliseconds(now);
        // Rare, and never held across a wait.
        let _only = self.state.ejecting.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let ejected = self.endpoints.iter().filter(|other| other.state.is_ejected_at(now)).count();
        if endpoint.state.is_ejected_at(now) || !outlier.has_room(ejected, self.endpoints.len()) {
            return None;
        }
        let ejections = endpoint.state.eject(outlier, now);
        let until = u64::try_from(ejections.until.as_millis()).unwrap_or(u64::MAX);
        self.state.unwell_until.fetch_max(until, Ordering::Relaxed);
        Some(Ejected { cause, times: ejections.count })
    }

    /// Counts a connection for as long as the guard lives. Where no place is left, a connection that has no request gives
    /// up its own.
    pub fn connection(&self) -> Result<Held, OverLimit> {
        loop {
            match Held::connection(&self.state, self.limits()) {
                // Somebody else may take what was given up: each turn uses an offer up.
                Err(_) if self.state.counters.spares.give_up() => {}
                held => return held,
            }
        }
    }

    /// As `connection`, and beyond the limit where there is no place. Without one a worker could not call at all: it
    /// cannot use what other workers have open.
    pub fn first_connection(&self) -> Held {
        self.connection().unwrap_or_else(|_| Held::connection_beyond(&self.state))
    }

    /// Counts a request for as long as the guard lives.
    pub fn request(&self) -> Result<Held, OverLimit> {
        Held::request(&self.state, self.limits())
    }

    /// Counts a request that waits for a connection for as long as the guard lives.
    pub fn pending(&self) -> Result<Held, OverLimit> {
        Held::pending(&self.state, self.limits())
    }

    /// Counts a retry for as long as the guard lives: by the rule's budget, else by its number of retries.
    pub fn retry(&self) -> Result<Held, OverLimit> {
        Held::retry(&self.state, &self.policy)
    }
}

#[cfg(test)]
mod tests;
