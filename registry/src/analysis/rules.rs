//! DestinationRules: for hosts that are there, with subsets that select something, TLS that is held to an authority, and
//! ejection and failover that can happen.

use baremesh_model::destination_rule::{ClientTls, DestinationRule, LoadBalancer, Spread, Trust, Verify};
use baremesh_model::mesh::Kind;
use baremesh_model::outlier::OutlierDetection;
use baremesh_model::service::Service;
use baremesh_model::workload::selects;

use super::known::{Known, Named};
use super::report::{Place, Report};
use crate::diagnostic::{Code, quote};
use crate::format::place::Step;

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    for rule in &known.parts.destination_rules {
        tls(report, rule);
        failover(report, rule);
        // What a wildcard is for changes with the mesh.
        if rule.host.suffix().is_some() {
            continue;
        }
        match known.host(rule.host.as_str(), &rule.key.namespace) {
            // Where it leads is the entry's to say, or DNS's.
            Named::Service(service) if service.key.as_host().is_some() => {}
            Named::Service(service) => {
                subsets(known, report, rule, service);
                ejection(known, report, rule, service);
            }
            Named::Unsure => {}
            Named::Nothing => {
                let message =
                    format!("{} is no service: the rule holds for nothing", quote(rule.host.as_str()));
                let help = known.instead_of(rule.host.as_str(), &rule.key.namespace);
                report.warning(&place(rule).field("host"), Code::UnknownRuleHost, message, &help);
            }
        }
    }
}

fn place(rule: &DestinationRule) -> Place {
    Place::of(Kind::DestinationRule, &rule.key)
}

fn subsets(known: &Known<'_>, report: &mut Report<'_>, rule: &DestinationRule, service: &Service) {
    if !known.is_whole() {
        return;
    }
    let endpoints = known.endpoints(&service.key);
    for (index, subset) in rule.subsets.iter().enumerate() {
        if endpoints.iter().any(|workload| selects(&subset.labels, &workload.labels)) {
            continue;
        }
        let of = match endpoints.len() {
            0 => format!("Service {} has no endpoint", service.key),
            1 => format!("the one endpoint of Service {} does not carry its labels", service.key),
            many => format!("none of the {many} endpoints of Service {} carries its labels", service.key),
        };
        let message = format!("the subset {} is empty: {of}", quote(&subset.name));
        let place = place(rule).field("subsets").item(index);
        let place = if subset.labels.is_empty() { place.field("name") } else { place.field("labels") };
        let help = "compare the labels with those of `baremesh get WorkloadEntry`";
        report.warning(&place, Code::EmptySubset, message, help);
    }
}

/// A server is held to an authority that somebody named.
fn tls(report: &mut Report<'_>, rule: &DestinationRule) {
    let own = std::iter::once((place(rule).field("trafficPolicy"), &rule.policy));
    let subsets = rule.subsets.iter().enumerate().filter_map(|(index, subset)| {
        Some((place(rule).field("subsets").item(index).field("trafficPolicy"), subset.policy.as_ref()?))
    });
    for (at, policy) in own.chain(subsets) {
        if let Some(tls) = &policy.tls {
            authority(report, &at.field("tls"), tls, Code::NoAuthority, rule);
        }
        for (port, settings) in &policy.ports {
            let at = at.field("portLevelSettings").step(Step::OfPort(*port)).field("tls");
            if let Some(tls) = &settings.tls {
                authority(report, &at, tls, Code::NoAuthorityForPort, rule);
            }
        }
    }
}

fn authority(report: &mut Report<'_>, place: &Place, tls: &ClientTls, code: Code, rule: &DestinationRule) {
    let (ClientTls::Simple(check) | ClientTls::Mutual(_, check)) = tls else { return };
    let whom = match (&check.verify, &check.trust) {
        (Verify::Nothing, _) => "whoever answers is taken, with `insecureSkipVerify`",
        (Verify::Full, Trust::System) => "every authority that the system trusts may vouch for it",
        (Verify::Full, Trust::File(_) | Trust::Credential(_)) => return,
    };
    let message = format!(
        "mode {} names no authority for the server of {}: {whom}",
        tls.mode(),
        quote(rule.host.as_str())
    );
    report.warning(place, code, message, "set `caCertificates`, or `credentialName` with a ca.crt in it");
}

/// As many endpoints as it takes for one to be left out.
fn ejection(known: &Known<'_>, report: &mut Report<'_>, rule: &DestinationRule, service: &Service) {
    let endpoints = known.endpoints(&service.key);
    let mut judge = |at: Place, outlier: &Option<OutlierDetection>, total: usize, whose: &str| {
        let Some(outlier) = outlier.as_ref().filter(|outlier| total > 0 && !outlier.has_room(0, total))
        else {
            return false;
        };
        let percent = outlier.max_ejection_percent;
        let number = if total == 1 { "one endpoint".to_owned() } else { format!("{total} endpoints") };
        let message =
            format!("nothing can be left out: {percent} % of the {number} of {whose} is less than one");
        let enough = 100_usize.div_ceil(total);
        let help = format!("set `maxEjectionPercent` to {enough} or more");
        report.warning(&at.field("outlierDetection"), Code::NothingToEject, message, &help);
        true
    };
    let own = place(rule).field("trafficPolicy");
    let mut said = judge(
        own.clone(),
        &rule.policy.outlier_detection,
        endpoints.len(),
        &format!("Service {}", service.key),
    );
    for (port, settings) in &rule.policy.ports {
        let at = own.field("portLevelSettings").step(Step::OfPort(*port));
        judge(at, &settings.outlier_detection, endpoints.len(), &format!("Service {}", service.key));
    }
    for (index, subset) in rule.subsets.iter().enumerate() {
        let total = endpoints.iter().filter(|workload| selects(&subset.labels, &workload.labels)).count();
        let whose = format!("the subset {}", quote(&subset.name));
        match subset.policy.as_ref().filter(|policy| policy.outlier_detection.is_some()) {
            Some(policy) => {
                let at = place(rule).field("subsets").item(index).field("trafficPolicy");
                judge(at, &policy.outlier_detection, total, &whose);
            }
            // What it inherits is said to be too little once.
            None if !said => said = judge(own.clone(), &rule.policy.outlier_detection, total, &whose),
            None => {}
        }
    }
}

/// Failover needs to know who fails.
fn failover(report: &mut Report<'_>, rule: &DestinationRule) {
    let mut judge = |at: &Place, balancer: &Option<LoadBalancer>, watched: bool| {
        let locality = balancer.as_ref().and_then(|balancer| balancer.locality.as_ref());
        let Some(Spread::Failover { regions, priority }) = locality.map(|setting| &setting.spread) else {
            return;
        };
        if watched || (regions.is_empty() && priority.is_empty()) {
            return;
        }
        let field = if regions.is_empty() { "failoverPriority" } else { "failover" };
        let message = format!("`{field}` is not in force without `outlierDetection`");
        let place = at.field("loadBalancer").field("localityLbSetting").field(field);
        report.warning(
            &place,
            Code::FailoverWithoutEjection,
            message,
            "add `outlierDetection: {}` beside `loadBalancer`",
        );
    };
    let policy = &rule.policy;
    let own = place(rule).field("trafficPolicy");
    let of_subsets = |subset: &baremesh_model::destination_rule::Subset| {
        subset.policy.as_ref().is_some_and(|policy| policy.outlier_detection.is_some())
    };
    let watched = policy.outlier_detection.is_some();
    judge(&own, &policy.load_balancer, watched || rule.subsets.iter().any(of_subsets));
    for (index, subset) in rule.subsets.iter().enumerate() {
        if let Some(policy) = &subset.policy {
            let at = place(rule).field("subsets").item(index).field("trafficPolicy");
            judge(&at, &policy.load_balancer, watched || policy.outlier_detection.is_some());
        }
    }
    for (port, settings) in &policy.ports {
        let at = own.field("portLevelSettings").step(Step::OfPort(*port));
        judge(&at, &settings.load_balancer, settings.outlier_detection.is_some());
    }
}
