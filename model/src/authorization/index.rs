//! Finding the rules that may match, among thousands. Each rule stands under values of one field that it cannot match
//! without: the field under whose values the fewest other rules stand. A call is compared with the rules under its own
//! values alone, and with those that stand under none.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::AuthorizationPolicy;
use super::facts::{Carried, Facts, Request};
use super::matching::host_of;
use super::path::PathPattern;
use super::rule::{Condition, Operation, Rule, ServiceAccount, Source};
use crate::name::Label;
use crate::pattern::{Match, Pattern};

/// A rule by the indices of its policy and of itself. Ordered as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RuleRef(u32, u32);

impl RuleRef {
    pub(super) fn policy(self) -> usize {
        self.0 as usize
    }

    pub(super) fn rule(self) -> usize {
        self.1 as usize
    }
}

/// Rules of one action, each list in their order.
#[derive(Debug, Clone, Default)]
pub(super) struct RuleIndex {
    /// By namespace and account of callers.
    accounts: HashMap<Label, HashMap<Label, Vec<RuleRef>>>,
    namespaces: HashMap<Label, Vec<RuleRef>>,
    ports: HashMap<u16, Vec<RuleRef>>,
    /// Networks that callers come from.
    networks: Networks,
    /// Whole paths.
    paths: Texts,
    /// Starts of paths, and ends of them.
    starts: Affixes,
    ends: Affixes,
    /// In lower case.
    hosts: Texts,
    /// By the name of a field and its value.
    fields: HashMap<Arc<str>, Texts>,
    /// Who tokens name, `<issuer>/<subject>`.
    request_principals: Texts,
    rest: Vec<RuleRef>,
    /// Whether these are rules that deny or have somebody asked, which match some calls of which too little is known.
    denies: bool,
    rules: usize,
}

type Texts = HashMap<Arc<str>, Vec<RuleRef>>;

/// Starts, or ends, of texts, and the lengths that there are, ascending.
#[derive(Debug, Clone, Default)]
struct Affixes {
    texts: Texts,
    lengths: Vec<usize>,
}

/// Networks, and the lengths of their prefixes that there are, each beside one for each family of addresses.
#[derive(Debug, Clone, Default)]
struct Networks {
    lists: HashMap<IpNet, Vec<RuleRef>>,
    lengths: Vec<u8>,
}

/// A value that a rule stands under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Anchor {
    Account(Label, Label),
    Namespace(Label),
    Network(IpNet),
    Port(u16),
    Path(Arc<str>),
    Start(Arc<str>),
    End(Arc<str>),
    Host(Arc<str>),
    Field(Arc<str>, Arc<str>),
    RequestPrincipal(Arc<str>),
}

impl RuleIndex {
    /// Indexes the rules of the policies that are `chosen`.
    pub(super) fn new(
        policies: &[Arc<AuthorizationPolicy>],
        chosen: impl Fn(&AuthorizationPolicy) -> bool,
    ) -> Self {
        let mut anchored = Vec::new();
        let mut crowd: HashMap<Anchor, u32> = HashMap::new();
        let mut denies = false;
        for (policy, number) in policies.iter().zip(0..).filter(|(policy, _)| chosen(policy)) {
            denies |= policy.action.fails_closed();
            for (rule, own) in policy.rules.iter().zip(0..) {
                let anchors = anchors(rule);
                anchors.iter().flatten().for_each(|anchor| *crowd.entry(anchor.clone()).or_default() += 1);
                anchored.push((RuleRef(number, own), anchors));
            }
        }
        let mut index = Self { denies, rules: anchored.len(), ..Self::default() };
        for (at, anchors) in anchored {
            let crowded = |values: &Vec<Anchor>| values.iter().map(|value| crowd[value]).max();
            match anchors.into_iter().min_by_key(crowded) {
                Some(values) => values.into_iter().for_each(|value| index.put(value, at)),
                None => index.rest.push(at),
            }
        }
        index.starts.measure();
        index.ends.measure();
        index.networks.lengths = ascending(index.networks.lists.keys().map(IpNet::prefix_len));
        index
    }

    fn put(&mut self, anchor: Anchor, at: RuleRef) {
        let list = match anchor {
            Anchor::Account(namespace, account) => {
                self.accounts.entry(namespace).or_default().entry(account).or_default()
            }
            Anchor::Namespace(namespace) => self.namespaces.entry(namespace).or_default(),
            Anchor::Network(network) => self.networks.lists.entry(network).or_default(),
            Anchor::Port(port) => self.ports.entry(port).or_default(),
            Anchor::Path(path) => self.paths.entry(path).or_default(),
            Anchor::Start(start) => self.starts.texts.entry(start).or_default(),
            Anchor::End(end) => self.ends.texts.entry(end).or_default(),
            Anchor::Host(host) => self.hosts.entry(host).or_default(),
            Anchor::Field(name, value) => self.fields.entry(name).or_default().entry(value).or_default(),
            Anchor::RequestPrincipal(name) => self.request_principals.entry(name).or_default(),
        };
        list.push(at);
    }

    /// Whether there are no rules at all.
    pub(super) fn is_empty(&self) -> bool {
        self.rules == 0
    }

    /// The first rule that may match and does.
    pub(super) fn first(&self, facts: Facts<'_>, matches: impl Fn(RuleRef) -> bool) -> Option<RuleRef> {
        let mut best: Option<RuleRef> = None;
        self.lists(facts, |list| {
            let before = list.iter().take_while(|at| best.is_none_or(|best| **at < best));
            best = before.copied().find(|at| matches(*at)).or(best);
        });
        best
    }

    /// Every rule that may match, in no order, and some perhaps twice.
    pub(super) fn each(&self, facts: Facts<'_>, mut take: impl FnMut(RuleRef)) {
        self.lists(facts, |list| list.iter().copied().for_each(&mut take));
    }

    /// The lists of rules that may match.
    fn lists(&self, facts: Facts<'_>, mut take: impl FnMut(&[RuleRef])) {
        take(&self.rest);
        let connection = &facts.connection;
        if let Some(list) = self.ports.get(&connection.destination_port) {
            take(list);
        }
        match connection.source {
            Some(identity) => {
                let (namespace, account) = (identity.namespace(), identity.service_account());
                let accounts = self.accounts.get(namespace).and_then(|accounts| accounts.get(account));
                accounts.into_iter().chain(self.namespaces.get(namespace)).for_each(|list| take(list));
            }
            // To a rule that denies, a caller that is not known may be any.
            None if self.denies => {
                let accounts = self.accounts.values().flat_map(HashMap::values);
                accounts.chain(self.namespaces.values()).for_each(|list| take(list));
            }
            None => {}
        }
        self.networks.of(connection.source_ip.to_canonical(), &mut take);
        let request = match facts.carried {
            Carried::Request(request) => request,
            // What of requests is asked does not keep these from matching, see `Carried`.
            Carried::Bytes if self.denies => return self.of_requests(take),
            Carried::Requests if !self.denies => return self.of_requests(take),
            Carried::Bytes | Carried::Requests => return,
        };
        self.of_request(request, take);
    }

    fn of_request(&self, request: &Request<'_>, mut take: impl FnMut(&[RuleRef])) {
        let head = request.head;
        let path = head.path();
        if let Some(list) = self.paths.get(path) {
            take(list);
        }
        self.starts.of(path, |length| path.get(..length), &mut take);
        self.ends.of(path, |length| path.get(path.len() - length..), &mut take);
        if !self.hosts.is_empty() {
            let (host, authority) = (host_of(head), &*head.authority);
            in_lower_case(host, |host| self.hosts.get(host).into_iter().for_each(|list| take(list)));
            if host != authority {
                in_lower_case(authority, |host| self.hosts.get(host).into_iter().for_each(|list| take(list)));
            }
        }
        for (name, values) in &self.fields {
            let lines = head.headers.get_all(name).filter_map(|line| std::str::from_utf8(line).ok());
            lines.filter_map(|line| values.get(line)).for_each(|list| take(list));
        }
        if let Some(token) = request.token.filter(|_| !self.request_principals.is_empty()) {
            self.request_principals.get(&*token.principal()).into_iter().for_each(|list| take(list));
        }
    }

    /// Whatever stands under a value of requests.
    fn of_requests(&self, mut take: impl FnMut(&[RuleRef])) {
        let fields = self.fields.values().flat_map(HashMap::values);
        let paths = self.paths.values().chain(self.starts.texts.values()).chain(self.ends.texts.values());
        let lists = paths.chain(self.hosts.values()).chain(fields).chain(self.request_principals.values());
        lists.for_each(|list| take(list));
    }
}

impl Affixes {
    fn measure(&mut self) {
        self.lengths = ascending(self.texts.keys().map(|text| text.len()));
    }

    /// Calls `take` for what stands under a start, or an end, of `text`, as `part` cuts it.
    fn of<'t>(&self, text: &str, part: impl Fn(usize) -> Option<&'t str>, mut take: impl FnMut(&[RuleRef])) {
        for length in self.lengths.iter().take_while(|length| **length <= text.len()) {
            part(*length).and_then(|part| self.texts.get(part)).into_iter().for_each(|list| take(list));
        }
    }
}

impl Networks {
    fn of(&self, address: IpAddr, mut take: impl FnMut(&[RuleRef])) {
        for length in &self.lengths {
            let Ok(network) = IpNet::new(address, *length) else { return };
            self.lists.get(&network.trunc()).into_iter().for_each(|list| take(list));
        }
    }
}

fn ascending<T: Ord>(values: impl Iterator<Item = T>) -> Vec<T> {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.dedup();
    values
}

/// Hosts seldom come in upper case.
fn in_lower_case(host: &str, look_up: impl FnOnce(&str)) {
    match host.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => look_up(&host.to_ascii_lowercase()),
        false => look_up(host),
    }
}

/// Each field by whose values the rule can be found: whatever it matches has one of these.
fn anchors(rule: &Rule) -> Vec<Vec<Anchor>> {
    let found = [
        of_all(&rule.from, of_callers),
        of_all(&rule.from, |source: &Source| namespaces(&source.namespaces)),
        of_all(&rule.from, |source: &Source| networks(&source.ip_blocks)),
        of_all(&rule.from, |source: &Source| request_principals(&source.request_principals)),
        of_all(&rule.to, |operation: &Operation| ports(&operation.ports)),
        of_all(&rule.to, |operation: &Operation| {
            all(&operation.paths, |path| match path {
                PathPattern::Plain(Pattern::Exact(path)) => Some(Anchor::Path(Arc::clone(path))),
                PathPattern::Plain(Pattern::Prefix(start)) => Some(Anchor::Start(Arc::clone(start))),
                PathPattern::Plain(Pattern::Suffix(end)) => Some(Anchor::End(Arc::clone(end))),
                PathPattern::Plain(Pattern::Present) | PathPattern::Template(_) => None,
            })
        }),
        of_all(&rule.to, |operation: &Operation| {
            exact(&operation.hosts, |host| Some(Anchor::Host(host.to_ascii_lowercase().into())))
        }),
    ];
    found.into_iter().flatten().chain(rule.when.iter().filter_map(of_condition)).collect()
}

fn of_condition(condition: &Condition) -> Option<Vec<Anchor>> {
    match condition {
        Condition::SourceIp(blocks) => networks(blocks),
        Condition::SourceNamespace(names) => namespaces(names),
        Condition::SourcePrincipal(names) => exact(names, principal),
        Condition::SourceServiceAccount(accounts) => all(accounts, account),
        Condition::DestinationPort(asked) => ports(asked),
        Condition::RequestPrincipal(names) => request_principals(names),
        // What is no field of its own in HTTP/2 is found otherwise.
        Condition::RequestHeader(name, values) if !name.starts_with(':') && **name != *"host" => {
            exact(values, |value| Some(Anchor::Field(Arc::clone(name), value.into())))
        }
        Condition::RequestHeader(..)
        | Condition::RemoteIp(_)
        | Condition::SourceTrustDomain(_)
        | Condition::DestinationIp(_)
        | Condition::ConnectionSni(_)
        | Condition::RequestAudiences(_)
        | Condition::RequestPresenter(_)
        | Condition::RequestClaim(..) => None,
    }
}

/// Callers by name, in both ways of writing them.
fn of_callers(source: &Source) -> Option<Vec<Anchor>> {
    exact(&source.principals, principal).or_else(|| all(&source.service_accounts, account))
}

fn principal(text: &str) -> Option<Anchor> {
    let [_, "ns", namespace, "sa", account] = text.split('/').collect::<Vec<_>>()[..] else {
        return None;
    };
    Some(Anchor::Account(Label::new(namespace).ok()?, Label::new(account).ok()?))
}

fn account(named: &ServiceAccount) -> Option<Anchor> {
    Some(Anchor::Account(named.namespace.clone(), named.account.clone()))
}

fn namespaces(names: &Match<Pattern>) -> Option<Vec<Anchor>> {
    exact(names, |text| Label::new(text).ok().map(Anchor::Namespace))
}

fn networks(blocks: &Match<IpNet>) -> Option<Vec<Anchor>> {
    all(blocks, |block| Some(Anchor::Network(block.trunc())))
}

fn request_principals(names: &Match<Pattern>) -> Option<Vec<Anchor>> {
    exact(names, |text| Some(Anchor::RequestPrincipal(text.into())))
}

fn ports(asked: &Match<u16>) -> Option<Vec<Anchor>> {
    all(asked, |port| Some(Anchor::Port(*port)))
}

/// The values of all alternatives, if each has some.
fn of_all<T>(alternatives: &[T], values: impl Fn(&T) -> Option<Vec<Anchor>>) -> Option<Vec<Anchor>> {
    let all: Vec<_> = alternatives.iter().map(values).collect::<Option<_>>()?;
    let mut all: Vec<_> = all.into_iter().flatten().collect();
    let mut seen = std::collections::HashSet::new();
    all.retain(|anchor| seen.insert(anchor.clone()));
    (!all.is_empty()).then_some(all)
}

/// The values of a list, if all of them can be looked up.
fn all<T>(asked: &Match<T>, anchor: impl Fn(&T) -> Option<Anchor>) -> Option<Vec<Anchor>> {
    let found: Vec<_> = asked.any_of.iter().map(anchor).collect::<Option<_>>()?;
    (!found.is_empty()).then_some(found)
}

/// The values of a list of patterns, if none of them has a star.
fn exact(asked: &Match<Pattern>, anchor: impl Fn(&str) -> Option<Anchor>) -> Option<Vec<Anchor>> {
    all(asked, |pattern| match pattern {
        Pattern::Exact(text) => anchor(text),
        Pattern::Prefix(_) | Pattern::Suffix(_) | Pattern::Present => None,
    })
}
