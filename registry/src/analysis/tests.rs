//! Golden files in `registry/analysis/`: a set beside what an analysis says of it, at least one for each code; and what
//! such files do not show. `UPDATE_GOLDEN=1` writes the expectations anew.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use annotate_snippets::Renderer;

use super::*;
use crate::diagnostic::render_all;
use crate::format::Form;

fn subject(texts: &[(&str, &str)]) -> Subject {
    let parse = |(name, text): &(&str, &str)| Form::of_file(name).expect("a known ending").parse(text, name);
    Subject::default().with(texts.iter().map(parse).collect())
}

fn headlines(texts: &[(&str, &str)]) -> Vec<String> {
    subject(texts).judge().iter().map(Diagnostic::headline).collect()
}

#[test]
fn every_set_is_analysed_as_the_file_beside_it_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("analysis");
    let mut codes = BTreeSet::new();
    for entry in fs::read_dir(&folder).expect("the folder of sets") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if Form::of_file(&name).is_none() {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a set");
        let findings = subject(&[(&name, &text)]).judge();
        codes.extend(findings.iter().map(|finding| finding.code));
        let said = render_all(&findings, &Renderer::plain());
        let expected = folder.join(format!("{name}.expected"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            fs::write(&expected, &said).expect("the expectation can be written");
        }
        let expected = fs::read_to_string(&expected).unwrap_or_default();
        assert!(said == expected, "{name}: run with UPDATE_GOLDEN=1 and look at the difference:\n{said}");
    }
    let analysed = [
        Code::Deprecated,
        Code::MissingReference,
        Code::HostConflict,
        Code::SidecarsOverlap,
        Code::SidecarsWithoutSelectors,
        Code::NobodyLetIn,
        Code::PortNeeded,
        Code::InvalidRegex,
        Code::NoWorkloads,
        Code::NoAuthority,
        Code::NoAuthorityForPort,
        Code::UnreachableRoute,
        Code::IneffectiveMatch,
        Code::ClaimsUnverified,
        Code::EmptySubset,
        Code::UnknownRuleHost,
        Code::NothingToEject,
        Code::OrderDecides,
        Code::PortNotServed,
        Code::ServesNothing,
        Code::UnknownAccount,
        Code::FailoverWithoutEjection,
        Code::UnknownRoutedHost,
        Code::OtherProtocol,
        Code::AddressesRequired,
        Code::ProtocolsDiffer,
        Code::LeadsNowhere,
    ];
    for code in analysed {
        assert!(codes.contains(&code), "no file shows {code}");
    }
}

const ROUTES: &str = "[[VirtualService]]\nname = \"r\"\nhosts = [\"orders\"]\n\
    http = [{ route = [{ destination = { host = \"orders\" } }] }]\n";

#[test]
fn what_could_not_be_read_is_not_said_to_be_missing() {
    let broken = "[[Service]]\nname = \"orders\"\nports = [{ port = 0 }]\n";
    let found = headlines(&[("a.toml", ROUTES), ("b.toml", broken)]);
    assert!(matches!(&found[..], [only] if only.contains("IST0106")), "{found:?}");
    // Of a text that could not be read at all nobody knows what is in it.
    let found = headlines(&[("a.toml", ROUTES), ("b.toml", "[[Service]]\nname =")]);
    assert!(matches!(&found[..], [only] if only.contains("BM0101")), "{found:?}");
    let found = headlines(&[("a.toml", ROUTES)]);
    assert!(
        matches!(&found[..], [error, warning] if error.contains("IST0101") && warning.contains("BM0407")),
        "{found:?}"
    );
}

#[test]
fn what_there_is_besides_is_known_and_what_is_written_goes_before_it() {
    let service = |protocol: &str| {
        let text =
            format!("[[Service]]\nname = \"orders\"\nports = [{{ port = 80, protocol = \"{protocol}\" }}]\n");
        Form::Toml.parse(&text, "registrations")
    };
    let judge = |beside: Parsed, texts: &[(&str, &str)]| -> Vec<Code> {
        let subject = Subject { beside: beside.resources, ..subject(texts) };
        subject.judge().iter().map(|finding| finding.code).collect()
    };
    assert_eq!(judge(service("http"), &[("a.toml", ROUTES)]), []);
    assert_eq!(judge(service("tcp"), &[("a.toml", ROUTES)]), [Code::OtherProtocol]);
    let written = "[[Service]]\nname = \"orders\"\nports = [{ port = 80, protocol = \"http\" }]\n";
    assert_eq!(judge(service("tcp"), &[("a.toml", ROUTES), ("b.toml", written)]), []);
}

#[test]
fn texts_over_a_set_replace_what_is_there_and_not_each_other() {
    let orders = "[[Service]]\nname = \"orders\"\nports = [{ port = 80, protocol = \"http\" }]\n";
    let over = |texts: &[&str]| {
        let texts = texts.iter().map(|text| Form::Toml.parse(text, "new.toml")).collect();
        subject(&[("a.toml", ROUTES), ("b.toml", orders)]).with(texts).judge().len()
    };
    assert_eq!(over(&[&orders.replace("80", "81")]), 0);
    assert_eq!(over(&[orders, orders]), 1);
}

/// A set without a fault is analysed without a finding, however its hosts are written.
#[test]
fn a_set_that_works_is_left_in_peace() {
    let yaml = "apiVersion: v1\nkind: Service\nmetadata: {name: reviews}\nspec:\n  ports: [{port: 80, name: http}]\n\
        ---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: r}\nspec:\n  hosts: [reviews]\n  \
        http:\n  - match: [{uri: {prefix: /v2}}]\n    route: [{destination: {host: reviews.default.svc.cluster.local, subset: v2}}]\n  \
        - route: [{destination: {host: reviews.mesh.internal, subset: v1}}]\n\
        ---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: r}\nspec:\n  host: reviews.default\n  \
        subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]\n";
    let workloads = "[[WorkloadEntry]]\nname = \"r-1\"\naddress = \"10.0.0.1\"\nservice = \"reviews\"\nlabels = { version = \"v1\" }\n\
        [[WorkloadEntry]]\nname = \"r-2\"\naddress = \"10.0.0.2\"\nservice = \"reviews\"\nlabels = { version = \"v2\" }\n";
    let found = headlines(&[("a.yaml", yaml), ("b.toml", workloads)]);
    assert!(found.is_empty(), "{found:?}");
}

/// A list that is longer than anybody writes does not take minutes.
#[test]
fn long_lists_are_compared_within_a_bound() {
    let blocks: Vec<String> = (0..20_000).map(|n| format!("{{ uri = {{ exact = \"/{n}\" }} }}")).collect();
    let routes = format!(
        "[[VirtualService]]\nname = \"r\"\nhosts = [\"orders\"]\nhttp = [{{ match = [{}], redirect = {{ uri = \"/\" }} }}, {{ match = [{{ uri = {{ exact = \"/0\" }} }}], redirect = {{ uri = \"/\" }} }}]\n",
        blocks.join(", ")
    );
    let found = headlines(&[("a.toml", &routes)]);
    assert!(found.iter().any(|line| line.contains("IST0130")), "{found:?}");
}
