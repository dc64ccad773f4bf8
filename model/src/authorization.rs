//! Who may call whom: Istio's AuthorizationPolicy on connections. Denials come before allowances; with an
//! ALLOW policy in force, what no policy allows is refused. A rule about identity fails closed on a connection
//! that has none.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::identity::Identity;
use crate::name::{Key, Label};
use crate::pattern::{Match, Pattern};
use crate::workload::{Labels, selects};

/// What a policy does when one of its rules matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Action {
    /// Lets the connection through, unless something denies it.
    Allow,
    /// Refuses the connection.
    Deny,
    /// Decides nothing; the match is recorded.
    Audit,
}

/// Whether a policy decides, or only says what it would have decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Enforcement {
    /// Decides.
    Enforced,
    /// Is logged and counted; a dry-run ALLOW grants nothing.
    DryRun,
}

/// One AuthorizationPolicy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthorizationPolicy {
    /// Namespace and name. A policy of the root namespace is for the whole mesh.
    pub key: Key,
    /// The workloads of the namespace that it is for; all of them without a selector.
    pub selector: Option<Labels>,
    /// What a match does.
    pub action: Action,
    /// Whether it decides.
    pub enforcement: Enforcement,
    /// Any of these makes a match. None at all matches nothing: `spec: {}` allows nothing.
    pub rules: Vec<Rule>,
}

/// Sources AND operations AND conditions; each list empty asks for nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Rule {
    /// Any of these.
    pub from: Vec<Source>,
    /// Any of these.
    pub to: Vec<Operation>,
    /// All of these.
    pub when: Vec<Condition>,
}

/// Who calls: every field must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Source {
    /// Principals, `<trust domain>/ns/<namespace>/sa/<service account>`.
    pub principals: Match<Pattern>,
    /// Namespaces of the caller's identity.
    pub namespaces: Match<Pattern>,
    /// Service accounts.
    pub service_accounts: Match<ServiceAccount>,
    /// Trust domains of the caller's identity.
    pub trust_domains: Match<Pattern>,
    /// Addresses that the connection comes from.
    pub ip_blocks: Match<IpNet>,
}

/// A service account in a namespace, written `<namespace>/<account>`, or `<account>` for the policy's own
/// namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceAccount {
    /// The namespace.
    pub namespace: Label,
    /// The account.
    pub account: Label,
}

impl ServiceAccount {
    fn is(&self, identity: &Identity) -> bool {
        self.namespace == *identity.namespace() && self.account == *identity.service_account()
    }
}

/// What is called: every field must hold.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    /// Ports of the workload.
    pub ports: Match<u16>,
}

/// One entry of `when`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Condition {
    /// `source.ip`, and `remote.ip`, which is the same on a connection.
    SourceIp(Match<IpNet>),
    /// `source.namespace`
    SourceNamespace(Match<Pattern>),
    /// `source.principal`
    SourcePrincipal(Match<Pattern>),
    /// `source.serviceAccount`
    SourceServiceAccount(Match<ServiceAccount>),
    /// `source.trustDomain`
    SourceTrustDomain(Match<Pattern>),
    /// `destination.ip`
    DestinationIp(Match<IpNet>),
    /// `destination.port`
    DestinationPort(Match<u16>),
}

/// The facts of a connection that policies decide on. None of them is taken from what the peer says of itself.
#[derive(Debug, Clone, Copy)]
pub struct Connection<'a> {
    /// The identity of the caller's certificate, or the attested one of a caller on this host.
    pub source: Option<&'a Identity>,
    /// Where the connection comes from.
    pub source_ip: IpAddr,
    /// The workload's address.
    pub destination_ip: IpAddr,
    /// The workload's port.
    pub destination_port: u16,
}

/// What the policies came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the connection goes on, and because of what.
    pub verdict: Verdict,
    /// AUDIT policies that matched, and dry-run policies with what each would have done.
    pub notes: Vec<Note>,
}

/// Whether a connection goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// No ALLOW policy is there for the workload.
    AllowedByDefault,
    /// An ALLOW policy matched.
    AllowedBy(Key),
    /// A DENY policy matched.
    DeniedBy(Key),
    /// ALLOW policies are there, and none matched.
    NotAllowed,
}

impl Verdict {
    /// Whether the connection goes on.
    pub fn allows(&self) -> bool {
        matches!(self, Self::AllowedByDefault | Self::AllowedBy(_))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AllowedByDefault => f.write_str("no ALLOW policy selects the workload"),
            Self::AllowedBy(key) => {
                write!(f, "allowed by AuthorizationPolicy {}/{}", key.namespace, key.name)
            }
            Self::DeniedBy(key) => write!(f, "denied by AuthorizationPolicy {}/{}", key.namespace, key.name),
            Self::NotAllowed => f.write_str("no ALLOW policy of the workload matches"),
        }
    }
}

/// A policy that matched without deciding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The policy.
    pub policy: Key,
    /// What it is for.
    pub action: Action,
}

/// The policies that one workload answers to, in the order of their keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PolicySet(Vec<Arc<AuthorizationPolicy>>);

impl PolicySet {
    /// Picks from `all` the policies for a workload of `namespace` with `labels`.
    pub fn select(
        all: &[Arc<AuthorizationPolicy>],
        namespace: &Label,
        labels: &Labels,
        root_namespace: &Label,
    ) -> Self {
        let chosen = |policy: &&Arc<AuthorizationPolicy>| {
            (policy.key.namespace == *root_namespace || policy.key.namespace == *namespace)
                && policy.selector.as_ref().is_none_or(|selector| selects(selector, labels))
        };
        Self(all.iter().filter(chosen).cloned().collect())
    }

    /// The policies, in the order of their keys.
    pub fn policies(&self) -> &[Arc<AuthorizationPolicy>] {
        &self.0
    }

    /// Decides on a connection: any DENY that matches refuses, then any ALLOW that matches lets through, and
    /// without an enforced ALLOW policy everything else is let through.
    pub fn decide(&self, connection: &Connection<'_>) -> Decision {
        let mut notes = Vec::new();
        let (mut denied, mut allowed, mut any_allow) = (None, None, false);
        for policy in &self.0 {
            let enforced = policy.enforcement == Enforcement::Enforced;
            any_allow |= enforced && policy.action == Action::Allow;
            if !policy.matches(connection) {
                continue;
            }
            match (policy.action, enforced) {
                (Action::Deny, true) => denied = denied.or(Some(&policy.key)),
                (Action::Allow, true) => allowed = allowed.or(Some(&policy.key)),
                (action, _) => notes.push(Note { policy: policy.key.clone(), action }),
            }
        }
        let verdict = match (denied, allowed) {
            (Some(key), _) => Verdict::DeniedBy(key.clone()),
            (None, Some(key)) => Verdict::AllowedBy(key.clone()),
            (None, None) if any_allow => Verdict::NotAllowed,
            (None, None) => Verdict::AllowedByDefault,
        };
        Decision { verdict, notes }
    }
}

impl AuthorizationPolicy {
    fn matches(&self, connection: &Connection<'_>) -> bool {
        self.unmet(connection).any(|unmet| unmet.is_none())
    }

    /// For each rule the first thing that a connection does not have of it; none where the rule matches.
    pub fn unmet<'a>(
        &'a self,
        connection: &'a Connection<'a>,
    ) -> impl Iterator<Item = Option<Unmet<'a>>> + 'a {
        let facts = Facts { connection, without_identity: self.without_identity() };
        self.rules.iter().map(move |rule| facts.unmet(rule))
    }

    fn without_identity(&self) -> WithoutIdentity {
        match self.action {
            Action::Deny => WithoutIdentity::Matches,
            Action::Allow | Action::Audit => WithoutIdentity::Differs,
        }
    }
}

/// What a named identity means for a connection that has none: a DENY rule takes it for the named one, an ALLOW
/// rule for another, so that both fail closed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum WithoutIdentity {
    Matches,
    Differs,
}

struct Facts<'a> {
    connection: &'a Connection<'a>,
    without_identity: WithoutIdentity,
}

/// What a rule asks for and a connection does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmet<'a> {
    /// `from`: the caller is none of these.
    From(&'a [Source]),
    /// `to`: it is none of these that is called.
    To(&'a [Operation]),
    /// `when`: this does not hold.
    When(&'a Condition),
}

impl Facts<'_> {
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
        self.text(&source.principals, |identity| identity.principal())
            && self.text(&source.namespaces, |identity| identity.namespace().to_string())
            && self.account(&source.service_accounts)
            && self.text(&source.trust_domains, |identity| identity.trust_domain().to_string())
            && address(&source.ip_blocks, self.connection.source_ip)
    }

    fn operation(&self, operation: &Operation) -> bool {
        operation.ports.allows(|port| *port == self.connection.destination_port)
    }

    fn condition(&self, condition: &Condition) -> bool {
        let connection = self.connection;
        match condition {
            Condition::SourceIp(blocks) => address(blocks, connection.source_ip),
            Condition::SourceNamespace(names) => {
                self.text(names, |identity| identity.namespace().to_string())
            }
            Condition::SourcePrincipal(names) => self.text(names, |identity| identity.principal()),
            Condition::SourceServiceAccount(accounts) => self.account(accounts),
            Condition::SourceTrustDomain(names) => {
                self.text(names, |identity| identity.trust_domain().to_string())
            }
            Condition::DestinationIp(blocks) => address(blocks, connection.destination_ip),
            Condition::DestinationPort(ports) => ports.allows(|port| *port == connection.destination_port),
        }
    }

    fn text(&self, asked: &Match<Pattern>, field: impl Fn(&Identity) -> String) -> bool {
        if asked.is_empty() {
            return true;
        }
        match self.connection.source {
            Some(identity) => {
                let text = field(identity);
                asked.allows(|pattern| pattern.matches(&text))
            }
            // `*` asks whether there is an identity at all, which is known: there is none.
            None if asked.any_of.iter().all(|pattern| *pattern == Pattern::Present) => {
                asked.any_of.is_empty()
            }
            None => self.without_identity == WithoutIdentity::Matches,
        }
    }

    fn account(&self, asked: &Match<ServiceAccount>) -> bool {
        if asked.is_empty() {
            return true;
        }
        match self.connection.source {
            Some(identity) => asked.allows(|account| account.is(identity)),
            None if asked.any_of.is_empty() => true,
            None => self.without_identity == WithoutIdentity::Matches,
        }
    }
}

fn address(blocks: &Match<IpNet>, address: IpAddr) -> bool {
    let canonical = address.to_canonical();
    blocks.allows(|block| block.contains(&canonical))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn label(text: &str) -> Label {
        Label::new(text).expect("a label")
    }

    fn patterns(any_of: &[&str], none_of: &[&str]) -> Match<Pattern> {
        let read = |texts: &[&str]| texts.iter().map(|text| Pattern::new(text)).collect();
        Match { any_of: read(any_of), none_of: read(none_of) }
    }

    fn principals(any_of: &[&str], none_of: &[&str]) -> Rule {
        let source = Source { principals: patterns(any_of, none_of), ..Source::default() };
        Rule { from: vec![source], ..Rule::default() }
    }

    fn policy(name: &str, action: Action, rules: Vec<Rule>) -> Arc<AuthorizationPolicy> {
        let key = Key::new(label("shop"), label(name));
        Arc::new(AuthorizationPolicy {
            key,
            selector: None,
            action,
            enforcement: Enforcement::Enforced,
            rules,
        })
    }

    fn check(policies: &[Arc<AuthorizationPolicy>], caller: Option<&str>, allowed: bool) -> Decision {
        let caller = caller.map(|text| Identity::parse(&format!("spiffe://td/{text}")).expect("an identity"));
        let set = PolicySet::select(policies, &label("shop"), &Labels::new(), &label("mesh-system"));
        let decision = set.decide(&Connection {
            source: caller.as_ref(),
            source_ip: "10.0.0.1".parse().expect("an address"),
            destination_ip: "10.0.0.2".parse().expect("an address"),
            destination_port: 8080,
        });
        assert_eq!(decision.verdict.allows(), allowed, "{caller:?}: {}", decision.verdict);
        decision
    }

    const WEB: Option<&str> = Some("ns/shop/sa/web");
    const OTHER: Option<&str> = Some("ns/shop/sa/other");

    #[test]
    fn denials_come_first_and_allowances_close_the_rest() {
        let allow_web = policy("allow-web", Action::Allow, vec![principals(&["td/ns/shop/sa/web"], &[])]);
        let deny_web = policy("deny-web", Action::Deny, vec![principals(&["*/sa/web"], &[])]);
        check(&[], WEB, true);
        check(std::slice::from_ref(&allow_web), WEB, true);
        check(std::slice::from_ref(&allow_web), OTHER, false);
        check(&[allow_web, deny_web], WEB, false);
        check(&[policy("nothing", Action::Allow, vec![])], WEB, false);
        check(&[policy("all", Action::Allow, vec![Rule::default()])], None, true);
    }

    #[test]
    fn identity_rules_fail_closed_without_an_identity() {
        let rule = |any_of: &[&str], none_of: &[&str]| vec![principals(any_of, none_of)];
        check(&[policy("p", Action::Allow, rule(&["td/ns/shop/sa/web"], &[]))], None, false);
        check(&[policy("p", Action::Allow, rule(&["*"], &[]))], None, false);
        check(&[policy("p", Action::Deny, rule(&["td/ns/shop/sa/web"], &[]))], None, false);
        check(&[policy("p", Action::Deny, rule(&["*"], &[]))], None, true);
        check(&[policy("p", Action::Deny, rule(&[], &["*"]))], None, false);
        check(&[policy("p", Action::Deny, rule(&[], &["*"]))], WEB, true);
        check(&[policy("p", Action::Deny, rule(&[], &["td/ns/shop/sa/web"]))], None, false);
    }

    #[test]
    fn audit_and_dry_run_decide_nothing_and_are_noted() {
        let audit = policy("audit", Action::Audit, vec![Rule::default()]);
        let mut dry = (*policy("dry", Action::Deny, vec![Rule::default()])).clone();
        dry.enforcement = Enforcement::DryRun;
        let mut dry_allow = (*policy("dry-allow", Action::Allow, vec![Rule::default()])).clone();
        dry_allow.enforcement = Enforcement::DryRun;
        let decision = check(&[audit, Arc::new(dry), Arc::new(dry_allow)], WEB, true);
        assert_eq!(decision.verdict, Verdict::AllowedByDefault);
        assert_eq!(decision.notes.len(), 3);
    }

    #[test]
    fn ports_addresses_and_conditions_hold_together() {
        let rule = |port: u16, block: &str| Rule {
            to: vec![Operation { ports: Match { any_of: vec![port], none_of: vec![] } }],
            when: vec![Condition::SourceIp(Match {
                any_of: vec![block.parse().expect("a block")],
                none_of: vec![],
            })],
            ..Rule::default()
        };
        check(&[policy("p", Action::Allow, vec![rule(8080, "10.0.0.0/8")])], WEB, true);
        check(&[policy("p", Action::Allow, vec![rule(8081, "10.0.0.0/8")])], WEB, false);
        check(&[policy("p", Action::Allow, vec![rule(8080, "192.168.0.0/16")])], WEB, false);
    }

    #[test]
    fn selection_goes_by_namespace_root_and_labels() {
        let mut other = (*policy("p", Action::Allow, vec![])).clone();
        other.key.namespace = label("elsewhere");
        check(&[Arc::new(other.clone())], WEB, true);
        other.key.namespace = label("mesh-system");
        check(&[Arc::new(other.clone())], WEB, false);
        other.selector = Some([("app".into(), "orders".into())].into());
        check(&[Arc::new(other)], WEB, true);
    }
}
