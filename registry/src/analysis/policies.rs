//! AuthorizationPolicies, PeerAuthentications and RequestAuthentications: for workloads that are there, about callers that are there.

use std::collections::{BTreeMap, BTreeSet};

use baremesh_model::authorization::{AuthorizationPolicy, Source};
use baremesh_model::external_authorization::CheckProtocol;
use baremesh_model::identity::RESERVED_NAMESPACES;
use baremesh_model::mesh::Kind;
use baremesh_model::name::{Key, Label};
use baremesh_model::pattern::Pattern;
use baremesh_model::service::Service;
use baremesh_model::workload::{Labels, Workload, selects};

use super::known::Known;
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};
use crate::resource::mesh_config_key;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    // What could not be read may be what a policy is for, or about.
    if !known.is_whole() {
        return;
    }
    let facts = Facts { namespaces: known.namespaces(), accounts: accounts(known), served: known.served() };
    for policy in &known.parts.authorization_policies {
        let place = Place::of(Kind::AuthorizationPolicy, &policy.key);
        let root = policy.key.namespace == known.parts.config.root_namespace;
        let workloads: Vec<&Workload> = match root {
            true => known.parts.workloads.values().map(|workload| &**workload).collect(),
            false => known.workloads_in(&policy.key.namespace).to_vec(),
        };
        let selected = selected(&workloads, policy.selector.as_ref());
        // One for the whole mesh is for what comes, too.
        if selected.is_empty() && (policy.selector.is_some() || !root) {
            selects_nothing(report, &place, policy.selector.as_ref(), &policy.key.namespace);
        }
        rules(known, report, (policy, &place), (&selected, &facts));
        provider(known, report, policy, &place);
    }
    for policy in &known.parts.peer_authentications {
        let Some(selector) = &policy.selector else { continue };
        if selected(known.workloads_in(&policy.key.namespace), Some(selector)).is_empty() {
            let place = Place::of(Kind::PeerAuthentication, &policy.key);
            selects_nothing(report, &place, Some(selector), &policy.key.namespace);
        }
    }
    for policy in &known.parts.request_authentications {
        let Some(selector) = &policy.selector else { continue };
        let of_all: Vec<&Workload>;
        let workloads = if policy.key.namespace == known.parts.config.root_namespace {
            of_all = known.parts.workloads.values().map(|workload| &**workload).collect();
            &of_all
        } else {
            known.workloads_in(&policy.key.namespace)
        };
        if selected(workloads, Some(selector)).is_empty() {
            let place = Place::of(Kind::RequestAuthentication, &policy.key);
            selects_nothing(report, &place, Some(selector), &policy.key.namespace);
        }
    }
    claims(known, report);
    providers(known, report);
}

/// Who is asked by a CUSTOM policy.
fn provider(known: &Known<'_>, report: &mut Report<'_>, policy: &AuthorizationPolicy, place: &Place) {
    let Some(name) = &policy.provider else { return };
    let all = &known.parts.config.extension_providers;
    if all.iter().any(|provider| provider.name == *name) {
        return;
    }
    let message = format!("there is no provider {}: whatever the policy matches is refused", quote(name));
    let help = match all.iter().map(|provider| quote(&provider.name)).collect::<Vec<_>>() {
        none if none.is_empty() => "add it to `extensionProviders` of the MeshConfig".to_owned(),
        names => format!("the MeshConfig has {}", names.join(", ")),
    };
    report.error(&place.field("provider").field("name"), Code::UnknownProvider, message, &help);
}

/// Providers that are services of the mesh, of which there are none.
fn providers(known: &Known<'_>, report: &mut Report<'_>) {
    let config = &known.parts.config;
    for (index, provider) in config.extension_providers.iter().enumerate() {
        let Some(key) = provider.service(&config.domain) else { continue };
        if known.parts.services.contains_key(&key) || known.is_unread(&key) {
            continue;
        }
        let place = Place::of(Kind::MeshConfig, &mesh_config_key());
        let kind = match provider.protocol {
            CheckProtocol::Http(_) => "envoyExtAuthzHttp",
            CheckProtocol::Grpc => "envoyExtAuthzGrpc",
        };
        let place = place.field("extensionProviders").item(index).field(kind).field("service");
        let message = format!(
            "there is no service {}: the provider {} cannot be asked",
            quote(&key.to_string()),
            quote(&provider.name)
        );
        let help =
            "correct it; names of one or two labels and those in the mesh's domain are services of the mesh";
        report.error(&place, Code::MissingReference, message, help);
    }
}

/// Routes by claims that nobody verifies.
fn claims(known: &Known<'_>, report: &mut Report<'_>) {
    let verified = known.parts.request_authentications.iter().any(|policy| !policy.rules.is_empty());
    let asking = known.parts.virtual_services.iter().filter(|service| !verified && service.asks_for_claims());
    for service in asking {
        let place = Place::of(Kind::VirtualService, &service.key).name();
        let message = "it asks for claims of tokens, and no RequestAuthentication has any verified";
        let help =
            "write a RequestAuthentication for the workloads that call: their agents choose the routes";
        report.warning(&place, Code::ClaimsUnverified, message.to_owned(), help);
    }
}

/// What rules are about.
struct Facts<'p> {
    namespaces: BTreeSet<&'p str>,
    accounts: BTreeSet<(&'p Label, &'p Label)>,
    /// The services of each workload.
    served: BTreeMap<&'p Key, Vec<&'p Service>>,
}

/// Namespaces and accounts of everything that runs as one.
fn accounts<'p>(known: &Known<'p>) -> BTreeSet<(&'p Label, &'p Label)> {
    let services = known.parts.services.values();
    let workloads = known.parts.workloads.values();
    let of_services = services.map(|service| (&service.key.namespace, &service.service_account));
    let of_workloads =
        workloads.filter_map(|workload| Some((&workload.key.namespace, workload.service_account.as_ref()?)));
    of_services.chain(of_workloads).collect()
}

fn selected<'p>(workloads: &[&'p Workload], selector: Option<&Labels>) -> Vec<&'p Workload> {
    let matches = |workload: &&&Workload| selector.is_none_or(|selector| selects(selector, &workload.labels));
    workloads.iter().filter(matches).copied().collect()
}

fn selects_nothing(report: &mut Report<'_>, place: &Place, selector: Option<&Labels>, namespace: &Label) {
    let (place, message, help) = match selector {
        Some(labels) => {
            let labels: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
            let message = format!("no workload carries {}", quote(&labels.join(",")));
            (
                place.field("selector").field("matchLabels"),
                message,
                "compare the labels with those of `baremesh get WorkloadEntry`",
            )
        }
        None => {
            let message = format!("there is no workload in the namespace {}", quote(namespace.as_str()));
            (place.name(), message, "a policy is for the workloads of its own namespace")
        }
    };
    report.warning(&place, Code::NoWorkloads, message, help);
}

fn rules(
    known: &Known<'_>,
    report: &mut Report<'_>,
    (policy, place): (&AuthorizationPolicy, &Place),
    (selected, facts): (&[&Workload], &Facts<'_>),
) {
    for (index, rule) in policy.rules.iter().enumerate() {
        let place = place.field("rules").item(index);
        for (index, source) in rule.from.iter().enumerate() {
            let place = place.field("from").item(index).field("source");
            namespaces(report, &place, source, facts);
            callers(known, report, (&place, source), facts);
        }
        for (index, operation) in rule.to.iter().enumerate() {
            let place = place.field("to").item(index).field("operation").field("ports");
            ports(report, &place, &operation.ports.any_of, (selected, facts));
        }
    }
}

fn namespaces(report: &mut Report<'_>, place: &Place, source: &Source, facts: &Facts<'_>) {
    let lists = [("namespaces", &source.namespaces.any_of), ("notNamespaces", &source.namespaces.none_of)];
    for (list, patterns) in lists {
        for (index, pattern) in patterns.iter().enumerate() {
            if facts.namespaces.iter().any(|namespace| pattern.matches(namespace)) {
                continue;
            }
            let message =
                format!("the namespace {} is not found: nothing is in it", quote(&pattern.to_string()));
            let help = "correct it; namespaces are those that a Service or a workload is in";
            report.error(&place.field(list).item(index), Code::MissingReference, message, help);
        }
    }
}

/// Callers by name, in both ways of writing them.
fn callers(
    known: &Known<'_>,
    report: &mut Report<'_>,
    (place, source): (&Place, &Source),
    facts: &Facts<'_>,
) {
    let is_there = |namespace: &Label, account: &Label| {
        // Hosts have namespaces of their own, and are not among the resources.
        RESERVED_NAMESPACES.contains(&namespace.as_str())
            || facts.accounts.contains(&(namespace, account))
            || known.is_unread(&Key::new(namespace.clone(), account.clone()))
    };
    let mut say = |place: Place, namespace: &Label, account: &Label| {
        let message = format!("no service runs as {}", quote(&format!("{namespace}/{account}")));
        let help = "correct it: an account is the service's name, unless its `serviceAccount` is set";
        report.warning(&place, Code::UnknownAccount, message, help);
    };
    for (index, account) in source.service_accounts.any_of.iter().enumerate() {
        if !is_there(&account.namespace, &account.account) {
            say(place.field("serviceAccounts").item(index), &account.namespace, &account.account);
        }
    }
    for (index, principal) in source.principals.any_of.iter().enumerate() {
        let Pattern::Exact(text) = principal else { continue };
        let parts: Vec<&str> = text.split('/').collect();
        let [trust_domain, "ns", namespace, "sa", account] = parts[..] else { continue };
        let labels = (Label::new(namespace), Label::new(account));
        if let (Ok(namespace), Ok(account), true) =
            (labels.0, labels.1, trust_domain == known.parts.config.trust_domain.as_str())
            && !is_there(&namespace, &account)
        {
            say(place.field("principals").item(index), &namespace, &account);
        }
    }
}

/// Ports that the policy's workloads serve.
fn ports(
    report: &mut Report<'_>,
    place: &Place,
    asked: &[u16],
    (selected, facts): (&[&Workload], &Facts<'_>),
) {
    if asked.is_empty() || selected.is_empty() {
        return;
    }
    let (mut serves, mut dialled) = (BTreeSet::new(), BTreeMap::new());
    for workload in selected {
        for port in facts.served.get(&workload.key).into_iter().flatten().flat_map(|service| &service.ports) {
            let at = workload.endpoint(port).port();
            serves.insert(at);
            dialled.insert(port.port.get(), at);
        }
    }
    if serves.is_empty() || asked.iter().any(|port| serves.contains(port)) {
        return;
    }
    let listed: Vec<String> = asked.iter().map(u16::to_string).collect();
    let message =
        format!("no workload of the policy serves port {}: the rule matches nothing", listed.join(" or "));
    let help = match asked.iter().find_map(|port| Some((port, dialled.get(port)?))) {
        Some((port, at)) => format!("callers dial {port}, and the workload serves it at {at}: write {at}"),
        None => format!("they serve {}", serves.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")),
    };
    report.warning(place, Code::PortNotServed, message, &help);
}
