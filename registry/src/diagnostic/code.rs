//! The kinds of findings: a stable code each, what it is about, and what to do. The table in docs/analysis.md is written
//! from here.

use std::fmt;
use std::fmt::Write;

/// What kind of finding it is: Istio's code where Istio has one for the fault, otherwise one of our own. `BM01` is reading,
/// `BM02` the set, `BM03` files, `BM04` analysis.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)] // The table below says what each is.
pub enum Code {
    Deprecated,
    MissingReference,
    InvalidValue,
    HostConflict,
    SidecarsOverlap,
    SidecarsWithoutSelectors,
    PortNeeded,
    InvalidRegex,
    NoWorkloads,
    NoAuthority,
    NoAuthorityForPort,
    UnreachableRoute,
    IneffectiveMatch,
    AddressesRequired,
    ClaimsUnverified,
    EmptySubset,
    UnknownRuleHost,
    ProtocolsDiffer,
    Syntax,
    UnknownField,
    RefusedField,
    NoEffect,
    RefusedKind,
    TooLarge,
    Duplicate,
    Conflict,
    FromNewer,
    Unreadable,
    Vanished,
    SharedFile,
    NothingToEject,
    OrderDecides,
    PortNotServed,
    ServesNothing,
    UnknownAccount,
    FailoverWithoutEjection,
    UnknownRoutedHost,
    OtherProtocol,
    UnknownProvider,
    LeadsNowhere,
    NobodyLetIn,
    NotInGateway,
    GatewaysConflict,
    GatewayPort,
}

/// Every code, in the order of the table.
const ALL: [Code; 44] = [
    Code::Deprecated,
    Code::MissingReference,
    Code::InvalidValue,
    Code::HostConflict,
    Code::SidecarsOverlap,
    Code::SidecarsWithoutSelectors,
    Code::PortNeeded,
    Code::InvalidRegex,
    Code::NoWorkloads,
    Code::NoAuthority,
    Code::NoAuthorityForPort,
    Code::UnreachableRoute,
    Code::IneffectiveMatch,
    Code::NotInGateway,
    Code::AddressesRequired,
    Code::GatewaysConflict,
    Code::ClaimsUnverified,
    Code::GatewayPort,
    Code::EmptySubset,
    Code::UnknownRuleHost,
    Code::ProtocolsDiffer,
    Code::Syntax,
    Code::UnknownField,
    Code::RefusedField,
    Code::NoEffect,
    Code::RefusedKind,
    Code::TooLarge,
    Code::Duplicate,
    Code::Conflict,
    Code::FromNewer,
    Code::Unreadable,
    Code::Vanished,
    Code::SharedFile,
    Code::NothingToEject,
    Code::OrderDecides,
    Code::PortNotServed,
    Code::ServesNothing,
    Code::UnknownAccount,
    Code::FailoverWithoutEjection,
    Code::UnknownRoutedHost,
    Code::OtherProtocol,
    Code::UnknownProvider,
    Code::LeadsNowhere,
    Code::NobodyLetIn,
];

/// A code's text, what it is about, and what to do.
struct Row(&'static str, &'static str, &'static str);

impl Code {
    /// The stable text.
    pub fn as_str(self) -> &'static str {
        self.row().0
    }

    fn row(self) -> Row {
        match self {
            Self::Deprecated => Row(
                "IST0002",
                "a field's older form, which is still taken",
                "write the newer one, which the finding names",
            ),
            Self::MissingReference => Row(
                "IST0101",
                "something is named that is not there: the host, port or subset of a route's destination, a delegate, a Gateway, the \
                 namespace in an AuthorizationPolicy's source, the Service of a WorkloadEntry, the \
                 workloads that a Sidecar selects",
                "correct the name, or add what it names; `--live` takes what hosts registered into account",
            ),
            Self::InvalidValue => Row(
                "IST0106",
                "a value that its field does not take",
                "the finding says what the field takes",
            ),
            Self::HostConflict => Row(
                "IST0109",
                "VirtualServices on the mesh are for the same host and the same callers: they are not merged, and the first by \
                 namespace and name holds alone",
                "merge them into one, or let the one delegate to the others",
            ),
            Self::SidecarsOverlap => Row(
                "IST0110",
                "Sidecars of a namespace select the same workload: the first by name holds for it",
                "let each workload be selected by one",
            ),
            Self::SidecarsWithoutSelectors => Row(
                "IST0111",
                "several Sidecars of a namespace have no `workloadSelector`: the first by name holds",
                "merge them, or let all but one select workloads",
            ),
            Self::PortNeeded => Row(
                "IST0112",
                "a destination names no port, and its service has several. A warning where every port that callers can dial is \
                 one of them: then that one is taken",
                "add `port: { number: … }` to the destination",
            ),
            Self::InvalidRegex => Row(
                "IST0122",
                "a regular expression that is not one of RE2's",
                "correct it; look-around and back-references do not exist there",
            ),
            Self::NoWorkloads => Row(
                "IST0127",
                "an AuthorizationPolicy, PeerAuthentication or RequestAuthentication selects no workload",
                "compare the labels with those of `baremesh get WorkloadEntry`",
            ),
            Self::NoAuthority => Row(
                "IST0128",
                "a DestinationRule originates TLS without `caCertificates` or `credentialName`: the server is held to the \
                 authorities that the system trusts, or with `insecureSkipVerify` to nothing",
                "name the authority that signs the server's certificate",
            ),
            Self::NoAuthorityForPort => Row(
                "IST0129",
                "the same in `portLevelSettings`",
                "name the authority that signs the server's certificate",
            ),
            Self::UnreachableRoute => Row(
                "IST0130",
                "a route that takes nothing, because routes before it take everything that it matches",
                "put the more special routes first, and the one without `match` last",
            ),
            Self::IneffectiveMatch => Row(
                "IST0131",
                "a block of `match` that takes nothing, because one before it takes all of it",
                "remove it, or put it before the other",
            ),
            Self::NotInGateway => Row(
                "IST0132",
                "a VirtualService is bound to a Gateway that lists none of its hosts: nothing is routed there",
                "list one of them in `servers[].hosts`, or correct it",
            ),
            Self::GatewaysConflict => Row(
                "IST0145",
                "two Gateways have the same hosts at one port of the same gateways",
                "let one Gateway list a host at a port",
            ),
            Self::GatewayPort => Row(
                "IST0162",
                "a Gateway's port that the gateways which it selects do not have",
                "name a port of the gateway, or register it there (`baremesh service register --gateway`)",
            ),
            Self::AddressesRequired => Row(
                "IST0134",
                "a ServiceEntry has a port of plain bytes and no addresses: its hosts are reached by the virtual addresses that \
                 DNS has for their names, and with resolution NONE not told from others at all",
                "set `addresses`, or the port's `protocol`",
            ),
            Self::ClaimsUnverified => Row(
                "IST0149",
                "a VirtualService asks for claims of tokens, and no RequestAuthentication has any verified",
                "write one for the workloads that call: their agents choose the routes",
            ),
            Self::EmptySubset => Row(
                "IST0173",
                "a subset of a DestinationRule that no endpoint of the service is in: a route to it fails",
                "compare its labels with those of `baremesh get WorkloadEntry`",
            ),
            Self::UnknownRuleHost => Row(
                "IST0174",
                "a DestinationRule for a host that is no service",
                "correct `host`; names without a namespace are read in the rule's own",
            ),
            Self::ProtocolsDiffer => Row(
                "IST0177",
                "ServiceEntries say of one host and port that they speak different protocols, to the same callers",
                "agree on one",
            ),
            Self::Syntax => Row(
                "BM0101",
                "a file that is not TOML or YAML, or not of the shape that resources have",
                "the finding shows the place",
            ),
            Self::UnknownField => Row(
                "BM0102",
                "a key that the kind does not have",
                "correct or remove it: `baremesh reference` lists the fields",
            ),
            Self::RefusedField => Row(
                "BM0103",
                "a field that the mesh does not enforce, in a place where that would be dangerous",
                "the finding says what to use instead",
            ),
            Self::NoEffect => Row(
                "BM0104",
                "a field that is taken and does nothing",
                "remove it, or see the finding for what there is instead",
            ),
            Self::RefusedKind => {
                Row("BM0105", "a kind that the mesh does not take", "the finding says what to use instead")
            }
            Self::TooLarge => {
                Row("BM0106", "more than the bounds on files, nesting or values allow", "split it")
            }
            Self::Duplicate => Row(
                "BM0201",
                "two resources of one kind, namespace and name",
                "rename or remove one of the two",
            ),
            Self::Conflict => Row(
                "BM0202",
                "resources that do not hold together: addresses that are taken, accounts that disagree, routes of a delegate \
                 that its root does not give",
                "the finding names both",
            ),
            Self::FromNewer => Row(
                "BM0203",
                "a resource of a newer control server that this agent does not understand in full",
                "upgrade the agent",
            ),
            Self::Unreadable => Row(
                "BM0301",
                "a file or directory that cannot be read or written",
                "look at its owner, its mode and the disk",
            ),
            Self::Vanished => Row(
                "BM0302",
                "files that were there are gone in a way that nobody means",
                "is a file system not mounted? To have no resources, leave a file with a comment",
            ),
            Self::SharedFile => Row(
                "BM0303",
                "a resource that stands among others in a file that a person wrote, and is to be changed or deleted",
                "change it there, or move it to a file of its own",
            ),
            Self::NothingToEject => Row(
                "BM0401",
                "`outlierDetection` that can leave nothing out: `maxEjectionPercent` of so few endpoints is less than one",
                "raise `maxEjectionPercent`, or run more endpoints",
            ),
            Self::OrderDecides => Row(
                "BM0402",
                "two PeerAuthentications of one level for the same workloads, or two DestinationRules for the same host and \
                 callers: the first by name decides",
                "merge the two",
            ),
            Self::PortNotServed => Row(
                "BM0403",
                "an AuthorizationPolicy, or `ingress` of a Sidecar, names ports that none of its workloads serves; they are the workload's (`targetPort`), not \
                 those that callers dial",
                "write the port that the workload is advertised at",
            ),
            Self::ServesNothing => Row(
                "BM0404",
                "a WorkloadEntry that is an endpoint of no service",
                "set `service`, or a label that a Service or a ServiceEntry selects",
            ),
            Self::UnknownAccount => Row(
                "BM0405",
                "an AuthorizationPolicy names a caller that no service runs as",
                "correct the account: it is the service's name unless `serviceAccount` is set",
            ),
            Self::FailoverWithoutEjection => Row(
                "BM0406",
                "`failover` or `failoverPriority` without `outlierDetection`: it is not in force",
                "add `outlierDetection: {}` beside it",
            ),
            Self::UnknownRoutedHost => Row(
                "BM0407",
                "a VirtualService on the mesh for a host that is no service: nothing is routed by it",
                "correct the host; names without a namespace are read in the resource's own",
            ),
            Self::OtherProtocol => Row(
                "BM0408",
                "routes that no port of the service can use: `http` where no port speaks HTTP, `tls` where none speaks TLS, `tcp` \
                 where all speak HTTP; a Gateway's server for a port that is registered for something else",
                "declare the port's protocol in the Service (`protocol = \"http\"`), or write the other kind of route",
            ),
            Self::UnknownProvider => Row(
                "BM0409",
                "a CUSTOM policy names a provider that the MeshConfig does not have: whatever it matches is refused",
                "correct `provider.name`, or add it to `extensionProviders`",
            ),
            Self::LeadsNowhere => Row(
                "BM0410",
                "a ServiceEntry without ports, or whose endpoints are none: calls to its hosts fail",
                "add `ports` or `endpoints`, or compare the labels of `workloadSelector`",
            ),
            Self::NobodyLetIn => Row(
                "BM0411",
                "an entry of a Sidecar's `ingress` says another `protocol` than the Service does for the port: nobody is let in by it",
                "leave `protocol` out, or write that of the Service",
            ),
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// All codes as a table in Markdown.
pub fn table() -> String {
    let mut out = "| code | what it is about | what to do |\n|---|---|---|\n".to_owned();
    for Row(code, about, what_to_do) in ALL.map(Code::row) {
        _ = writeln!(out, "| {code} | {about} | {what_to_do} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_is_in_the_table_once() {
        // The last of the enumeration: one that is added behind it and not to the table is seen here.
        assert_eq!(ALL.len(), Code::GatewayPort as usize + 1);
        let mut codes: Vec<_> = ALL.map(Code::as_str).to_vec();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes.len(), ALL.len());
    }

    /// `UPDATE_GOLDEN=1` writes the table anew.
    #[test]
    fn the_table_of_codes_is_the_documented_one() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/analysis.md");
        let text = std::fs::read_to_string(path).expect("docs/analysis.md");
        let start = text.find("| code |").expect("a table of codes");
        let end = text[start..].find("\n\n").map_or(text.len(), |end| start + end + 1);
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            let anew = format!("{}{}{}", &text[..start], table(), &text[end..]);
            std::fs::write(path, anew).expect("the table can be written");
            return;
        }
        assert!(text[start..end] == table(), "docs/analysis.md: run with UPDATE_GOLDEN=1:\n{}", table());
    }
}
