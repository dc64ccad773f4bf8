//! Older forms of fields, which are still taken.

use baremesh_model::mesh::Kind;

use super::known::Known;
use super::report::Report;
use crate::diagnostic::Code;

/// Fields by their paths or how those end, with what to write now.
const OLDER: [(Kind, &str, &str); 6] = [
    (Kind::VirtualService, "http[].fault.delay.percent", "percentage: { value: … }"),
    (Kind::VirtualService, "http[].fault.abort.percent", "percentage: { value: … }"),
    (Kind::VirtualService, "http[].mirrorPercent", "mirrorPercentage: { value: … }"),
    (Kind::VirtualService, "http[].corsPolicy.allowOrigin", "allowOrigins: [{ exact: … }]"),
    (Kind::DestinationRule, "loadBalancer.warmupDurationSecs", "warmup: { duration: … }"),
    (
        Kind::DestinationRule,
        "loadBalancer.consistentHash.minimumRingSize",
        "ringHash: { minimumRingSize: … }",
    ),
];

pub(super) fn analyze(known: &Known<'_>, report: &mut Report<'_>) {
    let routes = known.parts.virtual_services.iter().map(|service| (Kind::VirtualService, &service.key));
    let rules = known.parts.destination_rules.iter().map(|rule| (Kind::DestinationRule, &rule.key));
    for (kind, key) in routes.chain(rules) {
        for (path, span) in report.keys_of(kind, key) {
            let older = OLDER.iter().find(|(of, end, _)| *of == kind && path.ends_with(end));
            let Some((_, end, newer)) = older else { continue };
            let name = end.rsplit_once('.').map_or(*end, |(_, name)| name);
            let (message, help) =
                (format!("`{name}` is the older form of the field"), format!("write `{newer}`"));
            report.warning_at((kind, key), span, (Code::Deprecated, message, &help));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::fields_of;

    /// The tables of fields say which forms are older.
    #[test]
    fn all_older_forms_are_listed() {
        for kind in [Kind::VirtualService, Kind::DestinationRule] {
            for field in fields_of(kind) {
                let older =
                    field.note.starts_with("the old form of") || field.note.starts_with("the older name of");
                let listed = OLDER.iter().any(|(of, end, _)| *of == kind && field.path.ends_with(end));
                assert_eq!(older, listed, "{kind} {}", field.path);
            }
        }
    }
}
