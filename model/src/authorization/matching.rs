//! Whether a rule matches: one pure function of the rule and the facts, which `explain` asks, too.

use std::net::IpAddr;

use ipnet::IpNet;

use super::facts::{Carried, Facts, Request, ServerName};
use super::rule::{Condition, Operation, Rule, ServiceAccount, Source};
use super::{Action, AuthorizationPolicy};
use crate::http::RequestHead;
use crate::identity::Identity;
use crate::pattern::{Match, Pattern};
use crate::token::Claim;

/// What a rule asks for and a call does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet<'a> {
    /// `from`: the caller is none of these.
    From(&'a [Source]),
    /// `to`: it is none of these that is called.
    To(&'a [Operation]),
    /// `when`: this does not hold.
    When(&'a Condition),
}

impl AuthorizationPolicy {
    /// For each rule the first thing that a call does not have of it; none where the rule matches.
    pub fn unmet<'a>(&'a self, facts: Facts<'a>) -> impl Iterator<Item = Option<Unmet<'a>>> + 'a {
        let judging = Judging { facts, action: self.action };
        self.rules.iter().map(move |rule| judging.unmet(rule))
    }

    /// Whether the rule of this index is there and matches.
    pub(super) fn rule_matches(&self, rule: usize, facts: Facts<'_>) -> bool {
        let judging = Judging { facts, action: self.action };
        self.rules.get(rule).is_some_and(|rule| judging.unmet(rule).is_none())
    }
}

/// One policy's look at a call.
#[derive(Clone, Copy)]
struct Judging<'f> {
    facts: Facts<'f>,
    action: Action,
}

impl Judging<'_> {
    fn unmet<'a>(&self, rule: &'a Rule) -> Option<Unmet<'a>> {
        if !rule.from.is_empty() && !rule.from.iter().any(|source| self.source(source)) {
            return Some(Unmet::From(&rule.from));
        }
        if !rule.to.is_empty() && !rule.to.iter().any(|operation| self.operation(operation)) {
            return Some(Unmet::To(&rule.to));
        }
        rule.when.iter().find(|condition| !self.condition(condition)).map(Unmet::When)
    }

    fn source(&self, source: &Source) -> bool {
        self.principal(&source.principals)
            && self.named(&source.namespaces, |identity| identity.namespace().as_str())
            && self.account(&source.service_accounts)
            && self.named(&source.trust_domains, |identity| identity.trust_domain().as_str())
            && address(&source.ip_blocks, self.facts.connection.source_ip)
            && self.remote(&source.remote_ip_blocks)
            && self.request_principal(&source.request_principals)
    }

    fn operation(&self, operation: &Operation) -> bool {
        operation.ports.allows(|port| *port == self.facts.connection.destination_port)
            && self.of_request(&operation.methods, |request| {
                operation.methods.allows(|pattern| pattern.matches(&request.head.method))
            })
            && self.of_request(&operation.paths, |request| {
                let path = request.head.path();
                operation.paths.allows(|pattern| pattern.matches(path))
            })
            && self.of_request(&operation.hosts, |request| {
                operation.hosts.allows(|pattern| is_host(pattern, request.head))
            })
    }

    fn condition(&self, condition: &Condition) -> bool {
        let connection = &self.facts.connection;
        match condition {
            Condition::SourceIp(blocks) => address(blocks, connection.source_ip),
            Condition::RemoteIp(blocks) => self.remote(blocks),
            Condition::SourceNamespace(names) => self.named(names, |identity| identity.namespace().as_str()),
            Condition::SourcePrincipal(names) => self.principal(names),
            Condition::SourceServiceAccount(accounts) => self.account(accounts),
            Condition::SourceTrustDomain(names) => {
                self.named(names, |identity| identity.trust_domain().as_str())
            }
            Condition::DestinationIp(blocks) => address(blocks, connection.destination_ip),
            Condition::DestinationPort(ports) => ports.allows(|port| *port == connection.destination_port),
            Condition::ConnectionSni(names) => self.server_name(names),
            Condition::RequestHeader(name, values) => {
                self.of_request(values, |request| self.header(name, values, request.head))
            }
            Condition::RequestPrincipal(names) => self.request_principal(names),
            Condition::RequestAudiences(names) => self.of_request(names, |request| {
                let audiences = request.token.map_or(&[][..], |token| &token.audiences);
                names.allows(|pattern| audiences.iter().any(|audience| pattern.matches(audience)))
            }),
            Condition::RequestPresenter(names) => self.of_request(names, |request| {
                let presenter = request.token.and_then(|token| token.presenter.as_deref());
                names.allows(|pattern| presenter.is_some_and(|presenter| pattern.matches(presenter)))
            }),
            Condition::RequestClaim(path, values) => self.of_request(values, |request| {
                let claim = request.token.and_then(|token| token.claim(path));
                let has = |pattern: &Pattern| {
                    claim.is_some_and(|claim: &Claim| claim.any_text(|text| pattern.matches(text)))
                };
                values.allows(has)
            }),
        }
    }

    /// Something of a request: what it means where there is none to be seen is said at `Carried`.
    fn of_request<T>(&self, asked: &Match<T>, holds: impl FnOnce(&Request<'_>) -> bool) -> bool {
        if asked.is_empty() {
            return true;
        }
        match (self.facts.carried, self.action) {
            (Carried::Request(request), _) => holds(request),
            (Carried::Bytes, Action::Deny | Action::Custom) | (Carried::Requests, Action::Allow) => true,
            (Carried::Bytes, Action::Allow | Action::Audit)
            | (Carried::Requests, Action::Deny | Action::Audit | Action::Custom) => false,
        }
    }

    /// The lines of one field. A rule that denies is about each of them, one that allows about all: whoever adds a second
    /// line gets no more for it. A line is compared as a whole, commas included.
    fn header(&self, name: &str, asked: &Match<Pattern>, head: &RequestHead) -> bool {
        let passes =
            |line: &[u8]| asked.allows(|pattern| *pattern == Pattern::Present || pattern.matches_bytes(line));
        let single = match name {
            ":authority" | "host" => Some(&*head.authority),
            ":method" => Some(&*head.method),
            ":path" => Some(&*head.target),
            ":scheme" => Some(head.scheme.name()),
            _ => None,
        };
        if let Some(text) = single {
            return passes(text.as_bytes());
        }
        let mut lines = head.headers.get_all(name).peekable();
        if lines.peek().is_none() {
            return asked.any_of.is_empty();
        }
        match self.action {
            Action::Allow => lines.all(passes),
            Action::Deny | Action::Audit | Action::Custom => lines.any(passes),
        }
    }

    /// Where a request comes from; of bytes, where the connection does.
    fn remote(&self, blocks: &Match<IpNet>) -> bool {
        match self.facts.carried {
            Carried::Bytes => address(blocks, self.facts.connection.source_ip),
            Carried::Requests | Carried::Request(_) => {
                self.of_request(blocks, |request| address(blocks, request.remote_ip))
            }
        }
    }

    fn request_principal(&self, asked: &Match<Pattern>) -> bool {
        self.of_request(asked, |request| {
            asked.allows(|pattern| {
                request
                    .token
                    .is_some_and(|token| pattern.matches_parts(&[&token.issuer, "/", &token.subject]))
            })
        })
    }

    fn server_name(&self, asked: &Match<Pattern>) -> bool {
        match self.facts.connection.server_name {
            ServerName::None => asked.any_of.is_empty(),
            ServerName::Service(names) => {
                asked.allows(|pattern| names.iter().any(|name| pattern.matches(name)))
            }
            ServerName::Asked(name) => asked.allows(|pattern| pattern.matches(name)),
            ServerName::Pending => asked.is_empty() || self.action == Action::Allow,
            ServerName::Unread => asked.is_empty() || self.fails_closed(),
        }
    }

    fn principal(&self, asked: &Match<Pattern>) -> bool {
        self.of_identity(asked, |pattern, identity| {
            let (domain, namespace) = (identity.trust_domain().as_str(), identity.namespace().as_str());
            let account = identity.service_account().as_str();
            pattern.matches_parts(&[domain, "/ns/", namespace, "/sa/", account])
        })
    }

    fn named(&self, asked: &Match<Pattern>, field: impl Fn(&Identity) -> &str) -> bool {
        self.of_identity(asked, |pattern, identity| pattern.matches(field(identity)))
    }

    fn of_identity(&self, asked: &Match<Pattern>, matches: impl Fn(&Pattern, &Identity) -> bool) -> bool {
        if asked.is_empty() {
            return true;
        }
        match self.facts.connection.source {
            Some(identity) => asked.allows(|pattern| matches(pattern, identity)),
            // `*` asks whether there is an identity at all, which is known: there is none.
            None if asked.any_of.iter().all(|pattern| *pattern == Pattern::Present) => {
                asked.any_of.is_empty()
            }
            None => self.fails_closed(),
        }
    }

    fn account(&self, asked: &Match<ServiceAccount>) -> bool {
        if asked.is_empty() {
            return true;
        }
        match self.facts.connection.source {
            Some(identity) => asked.allows(|account| account.is(identity)),
            None if asked.any_of.is_empty() => true,
            None => self.fails_closed(),
        }
    }

    /// Whether a rule matches that names what is not known.
    fn fails_closed(&self) -> bool {
        self.action.fails_closed()
    }
}

impl Action {
    /// Whether a rule matches that names what is not known: one that denies, or has somebody asked, takes it for what it
    /// names, one that allows for something else.
    pub(super) fn fails_closed(self) -> bool {
        matches!(self, Self::Deny | Self::Custom)
    }
}

fn address(blocks: &Match<IpNet>, address: IpAddr) -> bool {
    let canonical = address.to_canonical();
    blocks.allows(|block| block.contains(&canonical))
}

/// Whether a request is for a host. Case does not count, nor does the dot of a name in full; the port does where the
/// pattern has one.
fn is_host(pattern: &Pattern, head: &RequestHead) -> bool {
    pattern.matches_in_any_case(host_of(head)) || pattern.matches_in_any_case(&head.authority)
}

/// The host without port and the dot of a name in full.
pub(super) fn host_of(head: &RequestHead) -> &str {
    let host = head.host();
    host.strip_suffix('.').unwrap_or(host)
}
