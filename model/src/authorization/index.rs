//! Finding the rules that may match, among thousands. Each rule stands under values of one field that it cannot match
//! without: the field under whose values the fewest other rules stand. A call is compared with the rules under its own
//! values alone, and with those that stand under none.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use super::AuthorizationPolicy;
use super::facts::{Carried, Facts};
use super::matching::host_of;
use super::path::PathPattern;
use super::rule::{Operation, Rule, Source};
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
    /// Whole paths.
    paths: HashMap<Arc<str>, Vec<RuleRef>>,
    /// Starts of paths, and the lengths that they have.
    prefixes: HashMap<Arc<str>, Vec<RuleRef>>,
    lengths: Vec<usize>,
    /// In lower case.
    hosts: HashMap<Arc<str>, Vec<RuleRef>>,
    rest: Vec<RuleRef>,
    /// Whether these are rules that deny or have somebody asked, which match some calls of which too little is known.
    denies: bool,
}

/// A value that a rule stands under.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Anchor {
    Account(Label, Label),
    Namespace(Label),
    Port(u16),
    Path(Arc<str>),
    Prefix(Arc<str>),
    Host(Arc<str>),
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
        let mut index = Self { denies, ..Self::default() };
        for (at, anchors) in anchored {
            let crowded = |values: &Vec<Anchor>| values.iter().map(|value| crowd[value]).max();
            match anchors.into_iter().min_by_key(crowded) {
                Some(values) => values.into_iter().for_each(|value| index.put(value, at)),
                None => index.rest.push(at),
            }
        }
        index.lengths = index.prefixes.keys().map(|prefix| prefix.len()).collect();
        index.lengths.sort_unstable();
        index.lengths.dedup();
        index
    }

    fn put(&mut self, anchor: Anchor, at: RuleRef) {
        let list = match anchor {
            Anchor::Account(namespace, account) => {
                self.accounts.entry(namespace).or_default().entry(account).or_default()
            }
            Anchor::Namespace(namespace) => self.namespaces.entry(namespace).or_default(),
            Anchor::Port(port) => self.ports.entry(port).or_default(),
            Anchor::Path(path) => self.paths.entry(path).or_default(),
            Anchor::Prefix(prefix) => self.prefixes.entry(prefix).or_default(),
            Anchor::Host(host) => self.hosts.entry(host).or_default(),
        };
        list.push(at);
    }

    /// Whether there are no rules at all.
    pub(super) fn is_empty(&self) -> bool {
        let keyed = !(self.accounts.is_empty() && self.namespaces.is_empty() && self.ports.is_empty());
        !keyed
            && self.paths.is_empty()
            && self.prefixes.is_empty()
            && self.hosts.is_empty()
            && self.rest.is_empty()
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
        let request = match facts.carried {
            Carried::Request(request) => request,
            // What of requests is asked does not keep these from matching, see `Carried`.
            Carried::Bytes if self.denies => return self.of_requests(take),
            Carried::Requests if !self.denies => return self.of_requests(take),
            Carried::Bytes | Carried::Requests => return,
        };
        let path = request.head.path();
        if let Some(list) = self.paths.get(path) {
            take(list);
        }
        for length in self.lengths.iter().take_while(|length| **length <= path.len()) {
            let list = path.get(..*length).and_then(|start| self.prefixes.get(start));
            list.into_iter().for_each(|list| take(list));
        }
        if !self.hosts.is_empty() {
            let (host, authority) = (host_of(request.head), &*request.head.authority);
            in_lower_case(host, |host| self.hosts.get(host).into_iter().for_each(|list| take(list)));
            if host != authority {
                in_lower_case(authority, |host| self.hosts.get(host).into_iter().for_each(|list| take(list)));
            }
        }
    }

    fn of_requests(&self, mut take: impl FnMut(&[RuleRef])) {
        let lists = self.paths.values().chain(self.prefixes.values()).chain(self.hosts.values());
        lists.for_each(|list| take(list));
    }
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
        of_all(&rule.from, |source: &Source| {
            exact(&source.namespaces, |text| Label::new(text).ok().map(Anchor::Namespace))
        }),
        of_all(&rule.to, |operation: &Operation| all(&operation.ports, |port| Some(Anchor::Port(*port)))),
        of_all(&rule.to, |operation: &Operation| {
            all(&operation.paths, |path| match path {
                PathPattern::Plain(Pattern::Exact(path)) => Some(Anchor::Path(Arc::clone(path))),
                PathPattern::Plain(Pattern::Prefix(start)) => Some(Anchor::Prefix(Arc::clone(start))),
                _ => None,
            })
        }),
        of_all(&rule.to, |operation: &Operation| {
            exact(&operation.hosts, |host| Some(Anchor::Host(host.to_ascii_lowercase().into())))
        }),
    ];
    found.into_iter().flatten().collect()
}

/// Callers by name, in both ways of writing them.
fn of_callers(source: &Source) -> Option<Vec<Anchor>> {
    let principal = |text: &str| {
        let [_, "ns", namespace, "sa", account] = text.split('/').collect::<Vec<_>>()[..] else {
            return None;
        };
        Some(Anchor::Account(Label::new(namespace).ok()?, Label::new(account).ok()?))
    };
    exact(&source.principals, principal).or_else(|| {
        let account = |named: &super::ServiceAccount| {
            Some(Anchor::Account(named.namespace.clone(), named.account.clone()))
        };
        all(&source.service_accounts, account)
    })
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
