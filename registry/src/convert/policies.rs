//! Intentions as policies. Consul takes the most exact intention: a destination's name counts before a source's. Ours
//! decide by denials before allowances and know no order, so for each destination it is worked out what becomes of each
//! caller, and written down without overlaps.

use std::collections::BTreeSet;

use baremesh_model::name::Label;
use serde_json::{Value as Json, json};

use super::entries::{Entries, is_http};
use super::intentions::{Act, Intention};
use super::permission::{self, MAX_TERMS};
use super::{DefaultPolicy, Findings, Options, document};

/// Rules that one policy may hold.
const MAX_RULES: usize = 2_000;

/// The policy for services that no intention names.
const OF_ALL: &str = "consul-intentions";

pub(super) fn policies(entries: &Entries, options: &Options, f: &mut Findings) -> Vec<Json> {
    let intentions = &entries.intentions;
    if intentions.is_empty() {
        return Vec::new();
    }
    twice(intentions, f);
    let names_all = |intention: &Intention| intention.source.is_none() && intention.destination.is_none();
    let leaves_open = |intention: &Intention| matches!(intention.act, Act::First(_));
    let matters = !intentions.iter().any(names_all) || intentions.iter().any(leaves_open);
    if matters && options.default_policy.is_none() {
        let reason = "some calls are decided by Consul's default policy, which entries do not say";
        let help = "give --default-policy allow or deny: `default_intention_policy`, else `acl.default_policy` of Consul's \
                    servers (allow without ACLs)";
        f.refuse("intentions", None, reason, help);
    }
    let default = options.default_policy.unwrap_or(DefaultPolicy::Deny);
    let mesh = Mesh { entries, default, namespace: &options.namespace };
    let of_all = intentions.iter().any(|intention| intention.destination.is_none());
    let mut documents = Vec::new();
    if default == DefaultPolicy::Deny || of_all {
        documents.extend(mesh.policy(OF_ALL, None, DefaultPolicy::Allow, f));
    }
    let named: BTreeSet<&Label> =
        intentions.iter().filter_map(|intention| intention.destination.as_ref()).collect();
    for destination in named {
        mesh.check(destination, f);
        if default == DefaultPolicy::Deny || of_all {
            documents.extend(mesh.policy(destination.as_str(), Some(destination), DefaultPolicy::Allow, f));
            documents.extend(mesh.exceptions(destination, f));
        } else {
            documents.extend(mesh.policy(destination.as_str(), Some(destination), DefaultPolicy::Deny, f));
        }
    }
    documents
}

fn twice(intentions: &[Intention], f: &mut Findings) {
    let mut seen = BTreeSet::new();
    for intention in intentions {
        if !seen.insert((&intention.source, &intention.destination)) {
            let reason = "another intention is for the same source and destination";
            f.refuse(&intention.entry, None, reason, "keep one of the two");
        }
    }
}

/// All intentions, and what decides where there is none.
struct Mesh<'e> {
    entries: &'e Entries,
    default: DefaultPolicy,
    namespace: &'e Label,
}

/// A caller: a service by its name, or whoever has no intention of their own.
type Caller<'e> = Option<&'e Label>;

/// Who decided on a caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Intention,
    Default,
}

impl<'e> Mesh<'e> {
    fn find(&self, source: Option<&Label>, destination: Option<&Label>) -> Option<&'e Intention> {
        let is = |intention: &&Intention| {
            intention.source.as_ref() == source && intention.destination.as_ref() == destination
        };
        self.entries.intentions.iter().find(is)
    }

    /// What becomes of a caller's calls to a destination; without one, to services that no intention names.
    fn act(&self, caller: Caller<'_>, destination: Option<&Label>) -> (Act, By) {
        let named = destination.and_then(|to| {
            let own = caller.and_then(|from| self.find(Some(from), Some(to)));
            own.or_else(|| self.find(None, Some(to)))
        });
        let all = || caller.and_then(|from| self.find(Some(from), None)).or_else(|| self.find(None, None));
        match named.or_else(all) {
            Some(intention) => (intention.act.clone(), By::Intention),
            None => (Act::All(self.default), By::Default),
        }
    }

    /// The services that an intention for the destination, or for all, names as callers.
    fn callers(&self, destination: Option<&Label>) -> BTreeSet<&'e Label> {
        let concerns = |intention: &&Intention| {
            intention.destination.is_none() || intention.destination.as_ref() == destination
        };
        self.entries
            .intentions
            .iter()
            .filter(concerns)
            .filter_map(|intention| intention.source.as_ref())
            .collect()
    }

    /// Refuses what Consul itself decides in two ways, and requests where there are none.
    fn check(&self, destination: &Label, f: &mut Findings) {
        if let Some(all) = self.find(None, Some(destination)) {
            for caller in self.callers(Some(destination)) {
                let (own, of_all) =
                    (self.find(Some(caller), Some(destination)), self.find(Some(caller), None));
                if let (None, Some(of_all)) = (own, of_all)
                    && of_all.act != all.act
                {
                    let reason = format!(
                        "{caller} => {destination} is decided by `* => {destination}` in Consul's documentation and its \
                         native proxies, and by `{caller} => *` in its Envoys"
                    );
                    let help = format!("write the intention {caller} => {destination} itself");
                    f.refuse(&all.entry, None, reason, help);
                }
            }
        }
        let asks = |intention: &&Intention| {
            intention.destination.as_ref() == Some(destination) && matches!(intention.act, Act::First(_))
        };
        if let Some(intention) = self.entries.intentions.iter().find(asks) {
            match self.entries.protocol(destination) {
                Some(protocol) if is_http(protocol) => {}
                Some(protocol) => {
                    let reason = format!(
                        "has Permissions, and {destination} speaks {protocol}: Consul refuses its callers"
                    );
                    f.refuse(&intention.entry, None, reason, "correct the Protocol in its service-defaults");
                }
                None => {
                    let reason = format!("has Permissions, and what {destination} speaks is not said");
                    let help =
                        format!("give the service-defaults of {destination}, or the proxy-defaults, as well");
                    f.refuse(&intention.entry, None, reason, help);
                }
            }
        }
    }

    /// The policy that lets in, or keeps out, who is to be.
    fn policy(
        &self,
        name: &str,
        destination: Option<&Label>,
        wanted: DefaultPolicy,
        f: &mut Findings,
    ) -> Option<Json> {
        let (others, by) = self.act(None, destination);
        let mut exceptions: Vec<(&Label, Act)> = Vec::new();
        for caller in self.callers(destination) {
            let (act, _) = self.act(Some(caller), destination);
            if act != others {
                exceptions.push((caller, act));
            }
        }
        let mut rules = Vec::new();
        let but: Vec<&Label> = exceptions.iter().map(|(caller, _)| *caller).collect();
        let from = self.others(by, wanted, &but);
        self.rules(&mut rules, (name, &others), wanted, from, f);
        while let Some((_, act)) = exceptions.first().cloned() {
            let (same, rest): (Vec<_>, Vec<_>) = exceptions.into_iter().partition(|(_, other)| *other == act);
            let names: Vec<&Label> = same.iter().map(|(caller, _)| *caller).collect();
            self.rules(&mut rules, (name, &act), wanted, Some(self.principals(&names)), f);
            exceptions = rest;
        }
        if rules.len() > MAX_RULES {
            let reason = format!("comes to {} rules, and {MAX_RULES} are the most", rules.len());
            f.refuse(
                &format!("intentions for {name}"),
                None,
                reason,
                "write fewer permissions, or put allowances first",
            );
        }
        match (wanted, rules.is_empty()) {
            (DefaultPolicy::Deny, true) => None,
            (DefaultPolicy::Deny, false) => Some(self.document(name, destination, "DENY", &rules)),
            (DefaultPolicy::Allow, _) => Some(self.document(name, destination, "ALLOW", &rules)),
        }
    }

    /// What the policy for all services lets in and this destination does not.
    fn exceptions(&self, destination: &Label, f: &mut Findings) -> Option<Json> {
        let allowed_elsewhere =
            |caller: Caller<'_>| matches!(self.act(caller, None).0, Act::All(DefaultPolicy::Allow));
        let name = format!("{destination}-deny");
        let callers = self.callers(Some(destination));
        let mut rules = Vec::new();
        if allowed_elsewhere(None) {
            let but: Vec<&Label> = callers.iter().copied().collect();
            let from = self.others(By::Intention, DefaultPolicy::Deny, &but);
            self.rules(
                &mut rules,
                (&name, &self.act(None, Some(destination)).0),
                DefaultPolicy::Deny,
                from,
                f,
            );
        }
        for caller in callers {
            if allowed_elsewhere(Some(caller)) {
                let act = self.act(Some(caller), Some(destination)).0;
                let from = Some(self.principals(&[caller]));
                self.rules(&mut rules, (&name, &act), DefaultPolicy::Deny, from, f);
            }
        }
        (!rules.is_empty()).then(|| self.document(&name, Some(destination), "DENY", &rules))
    }

    /// Everybody but some. Who is let in by an intention is a service; what is kept out is everybody, those without an
    /// identity included.
    fn others(&self, by: By, wanted: DefaultPolicy, but: &[&Label]) -> Option<Json> {
        let mut source = serde_json::Map::new();
        match (wanted, by) {
            (DefaultPolicy::Deny, _) => {}
            (DefaultPolicy::Allow, By::Intention) => {
                source.insert("principals".into(), json!([self.principal("*")]));
            }
            (DefaultPolicy::Allow, By::Default) => _ = source.insert("principals".into(), json!(["*"])),
        }
        if !but.is_empty() {
            let but: Vec<String> = but.iter().map(|caller| self.principal(caller.as_str())).collect();
            source.insert("notPrincipals".into(), json!(but));
        }
        (!source.is_empty()).then(|| json!([{ "source": source }]))
    }

    fn principals(&self, callers: &[&Label]) -> Json {
        let principals: Vec<String> = callers.iter().map(|caller| self.principal(caller.as_str())).collect();
        json!([{ "source": { "principals": principals } }])
    }

    /// `cluster.local` is the mesh's own trust domain, whatever its name.
    fn principal(&self, account: &str) -> String {
        format!("cluster.local/ns/{}/sa/{account}", self.namespace)
    }

    /// The rules for callers of one kind.
    fn rules(
        &self,
        rules: &mut Vec<Json>,
        (name, act): (&str, &Act),
        wanted: DefaultPolicy,
        from: Option<Json>,
        f: &mut Findings,
    ) {
        let mut rule = serde_json::Map::new();
        if let Some(from) = from {
            rule.insert("from".into(), from);
        }
        match act {
            Act::All(act) if *act == wanted => rules.push(rule.into()),
            Act::All(_) => {}
            Act::First(permissions) => match permission::region(permissions, self.default, wanted) {
                Ok(terms) => {
                    for term in &terms {
                        let (mut rule, (to, when)) = (rule.clone(), permission::of_rule(term));
                        if let Some(to) = to {
                            rule.insert("to".into(), to);
                        }
                        if !when.is_empty() {
                            rule.insert("when".into(), when.into());
                        }
                        rules.push(rule.into());
                    }
                }
                Err(permission::TooMany) => {
                    let reason =
                        format!("their permissions come to more than {MAX_TERMS} rules without an order");
                    let help =
                        "ask for fewer things in permissions that stand before others of the other action";
                    f.refuse(&format!("intentions for {name}"), Some("Permissions"), reason, help);
                }
            },
        }
    }

    fn document(&self, name: &str, destination: Option<&Label>, action: &str, rules: &[Json]) -> Json {
        let mut spec = json!({ "action": action, "rules": rules });
        if rules_are_empty(&spec) {
            spec = json!({ "action": action });
        }
        if let Some(destination) = destination {
            spec["selector"] = json!({ "matchLabels": { "app": destination.as_str() } });
        }
        document("AuthorizationPolicy", name, spec)
    }
}

fn rules_are_empty(spec: &Json) -> bool {
    spec["rules"].as_array().is_some_and(Vec::is_empty)
}
