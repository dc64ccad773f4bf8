//! Reading and changing a directory of resources, as the administration socket and the command line both do it, and
//! what they tell of it.

use std::net::IpAddr;
use std::sync::Arc;

use baremesh_model::mesh::{Kind, ResourceId};
use baremesh_model::name::TrustDomain;
use baremesh_model::service::Service;
use baremesh_registry::analysis::{self, Subject};
use baremesh_registry::control::server::MAX_RESOURCE;
use baremesh_registry::diagnostic::{Code, Diagnostic};
use baremesh_registry::files::{Applied, Change, ResourceDirectory};
use baremesh_registry::format::source::{Source, Span};
use baremesh_registry::format::{self, Form, Parsed};
use baremesh_registry::resource::{Located, Origin, Resource};
use baremesh_registry::set::{Loaded, Refused};

use super::difference::word;
use super::report::{
    Analysis, AnalyzeRequest, ApplyRequest, ChangeReport, Changes, ResourceReport, WrittenForm,
};

/// Bytes that a resource's key takes in a message at most: a kind, and two names of 63 bytes.
const MAX_KEY: usize = 256;

/// Whether the change is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// It is.
    Change,
    /// It is only said what would be done.
    DryRun,
}

impl Mode {
    /// The mode that a flag asks for.
    pub fn of_dry_run(dry_run: bool) -> Self {
        if dry_run { Self::DryRun } else { Self::Change }
    }
}

/// What there is besides a directory.
#[derive(Debug, Default)]
pub struct Beside<'a> {
    /// The trust domain of the authority, where a control server asks.
    pub served: Option<&'a TrustDomain>,
    /// The services and workloads that hosts registered.
    pub registered: Vec<Located<Resource>>,
}

/// A resource that a host registered, which stands in no file.
pub fn registered(value: Resource) -> Located<Resource> {
    let source = Arc::new(Source::new("registrations", ""));
    Located { value, origin: Origin { source, span: Span::default() } }
}

/// A change as it was made, or would be.
#[derive(Debug)]
pub struct Made {
    /// What is told of it.
    pub report: Changes,
    /// What it does to each resource and its file.
    pub changes: Vec<Change>,
}

/// The resources of a request's text, as far as they can be read.
pub(super) fn parsed(request: &ApplyRequest) -> Parsed {
    let name = name_with_form(request);
    Form::of_file(&name).unwrap_or_else(|| Form::of_text(&request.text)).parse(&request.text, &name)
}

/// Applies a text to a directory. Beside the warnings of reading it stands what an analysis of the resulting set says of
/// the resources in it; nothing is refused for that.
pub fn apply(
    directory: &ResourceDirectory,
    request: &ApplyRequest,
    beside: Beside<'_>,
) -> Result<Made, Refused> {
    let name = name_with_form(request);
    if let Some(served) = beside.served {
        let parsed = parsed(request);
        let faults = parsed.resources.iter().filter_map(|located| {
            let fault = unservable(&located.value, served)?;
            let finding = Diagnostic::at_origin(&located.origin, fault.code, fault.message);
            Some(finding.with_resource(Some(located.value.id())).with_help(fault.help))
        });
        let faults: Vec<_> = faults.collect();
        if !faults.is_empty() {
            return Err(Refused(faults));
        }
    }
    refuse_taken(directory, request, &name, &beside)?;
    let applied = match Mode::of_dry_run(request.dry_run) {
        Mode::DryRun => directory.plan(&request.text, &name)?,
        Mode::Change => directory.apply(&request.text, &name)?,
    };
    let Applied { changes, mut warnings, mut resulting } = applied;
    resulting.extend(beside.registered);
    let is_about =
        |finding: &Diagnostic| changes.iter().any(|change| finding.resource.as_ref() == Some(&change.id));
    let found = analysis::analyze(resulting, &[]).into_iter().filter(is_about);
    warnings.extend(found.map(Diagnostic::into_warning));
    Ok(Made { report: report_of(&changes, &warnings), changes })
}

/// Refuses services that state a virtual address which another one was assigned. Written, such a set could not come into
/// force, and neither could any other change until somebody takes it back.
fn refuse_taken(
    directory: &ResourceDirectory,
    request: &ApplyRequest,
    name: &str,
    beside: &Beside<'_>,
) -> Result<(), Refused> {
    let stated: Vec<_> = parsed(request).resources.into_iter().filter_map(stating).collect();
    if stated.is_empty() {
        return Ok(());
    }
    let resulting: Vec<_> =
        directory.plan(&request.text, name)?.resulting.into_iter().filter_map(stating).collect();
    let assigned = beside.registered.iter().cloned().filter_map(stating);
    // What states its own addresses is held against the others of the set when that is read.
    let assigned: Vec<_> =
        assigned.filter(|(_, other)| resulting.iter().all(|(_, stating)| stating.key != other.key)).collect();
    let faults = stated.iter().flat_map(|(origin, service)| {
        let taken = |address: &IpAddr| {
            let (_, other) = assigned
                .iter()
                .find(|(_, other)| other.key != service.key && other.addresses.contains(address))?;
            let message =
                format!("the virtual address {address} is assigned to Service {} already", other.key);
            let id = ResourceId { kind: Kind::Service, key: service.key.clone() };
            Some(
                Diagnostic::at_origin(origin, Code::Conflict, message)
                    .with_resource(Some(id))
                    .with_help("choose another in `addresses`, or leave it out: one is assigned"),
            )
        };
        service.addresses.iter().filter_map(taken).collect::<Vec<_>>()
    });
    let faults: Vec<_> = faults.collect();
    if faults.is_empty() { Ok(()) } else { Err(Refused(faults)) }
}

/// A service that has addresses of its own choice, or of the mesh's where it is one that is published.
fn stating(located: Located<Resource>) -> Option<(Origin, Service)> {
    match located.value {
        Resource::Service(service) if !service.addresses.is_empty() => Some((located.origin, *service)),
        _ => None,
    }
}

/// Analyses what a directory holds, with texts put over it.
pub fn analyze(
    directory: &ResourceDirectory,
    request: &AnalyzeRequest,
    beside: Beside<'_>,
) -> Result<Analysis, Refused> {
    let (resources, findings) = directory.resources()?;
    let subject = Subject { resources, findings, beside: beside.registered };
    Ok(judged(subject, &request.texts))
}

/// What is said of a set with texts put over it.
pub fn judged(subject: Subject, texts: &[(String, String)]) -> Analysis {
    let parse = |(name, text): &(String, String)| {
        Form::of_file(name).unwrap_or_else(|| Form::of_text(text)).parse(text, name)
    };
    let subject = subject.with(texts.iter().map(parse).collect());
    let resources = subject.resources.len();
    let findings = subject.judge();
    let text: Vec<_> = findings.iter().map(ToString::to_string).collect();
    Analysis {
        resources,
        findings: findings.iter().map(Diagnostic::to_json).collect(),
        text: text.join("\n"),
    }
}

/// Deletes a resource of a directory.
pub fn delete(directory: &ResourceDirectory, id: &ResourceId, mode: Mode) -> Result<Made, Refused> {
    let change = match mode {
        Mode::DryRun => directory.plan_delete(id)?,
        Mode::Change => directory.delete(id)?,
    };
    let changes = vec![change];
    Ok(Made { report: report_of(&changes, &[]), changes })
}

/// The name that findings show, with an ending that says the form where the request says it and the name does not.
pub(super) fn name_with_form(request: &ApplyRequest) -> String {
    let name = &request.name;
    match request.form {
        Some(form) if Form::of_file(name).is_none() => match form {
            WrittenForm::Toml => format!("{name}.toml"),
            WrittenForm::Yaml => format!("{name}.yaml"),
        },
        _ => name.clone(),
    }
}

/// What is told of changes.
pub(super) fn report_of(changes: &[Change], warnings: &[Diagnostic]) -> Changes {
    let text: Vec<_> = warnings.iter().map(ToString::to_string).collect();
    Changes {
        changes: changes.iter().map(change_report).collect(),
        warnings: warnings.iter().map(Diagnostic::to_json).collect(),
        warning_text: text.join("\n"),
        in_force: false,
        version: None,
    }
}

fn change_report(change: &Change) -> ChangeReport {
    ChangeReport {
        kind: change.id.kind.name().to_owned(),
        namespace: change.id.key.namespace.to_string(),
        name: change.id.key.name.to_string(),
        effect: word(change.effect).to_owned(),
        file: change.file.display().to_string(),
        diff: change.diff(),
    }
}

/// Which resources are asked for.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Of this kind.
    pub kind: Option<Kind>,
    /// Of this namespace.
    pub namespace: Option<String>,
    /// Of this name.
    pub name: Option<String>,
}

impl Filter {
    fn takes(&self, id: &ResourceId) -> bool {
        self.kind.is_none_or(|kind| kind == id.kind)
            && self.namespace.as_deref().is_none_or(|namespace| namespace == id.key.namespace.as_str())
            && self.name.as_deref().is_none_or(|name| name == id.key.name.as_str())
    }
}

/// The resources of a set that are asked for.
pub fn list(loaded: &Loaded, filter: &Filter) -> Vec<ResourceReport> {
    let resources = loaded.resources();
    let asked = resources.iter().filter(|resource| filter.takes(&resource.id()));
    let report = |resource: &Resource| {
        let id = resource.id();
        ResourceReport {
            kind: id.kind.name().to_owned(),
            namespace: id.key.namespace.to_string(),
            name: id.key.name.to_string(),
            place: loaded.places.get(&id).map(|place| place.to_string()),
            document: format::encode(resource),
        }
    };
    asked.map(report).collect()
}

/// Why a control server cannot serve a set that holds together by itself.
#[derive(Debug, Clone)]
pub struct Unservable {
    code: Code,
    /// What is wrong.
    pub message: String,
    help: String,
}

/// What a control server cannot serve: another trust domain than its authority's, or more than a message holds.
pub fn unservable(resource: &Resource, served: &TrustDomain) -> Option<Unservable> {
    if let Resource::MeshConfig(config) = resource
        && config.trust_domain != *served
    {
        let message = format!(
            "the trust domain `{}` is not that of the certificate authority, `{served}`",
            config.trust_domain
        );
        let help =
            format!("write `trustDomain = \"{served}\"`: identities that were issued cannot be renamed");
        return Some(Unservable { code: Code::Conflict, message, help });
    }
    let size = format::encode(resource).to_string().len();
    (size > MAX_RESOURCE - MAX_KEY).then(|| Unservable {
        code: Code::TooLarge,
        message: format!("{size} bytes are more than a message to the agents holds, {MAX_RESOURCE}"),
        help: "split it into several resources".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ORDERS: &str = "[[Service]]\nname = \"orders\"\nports = [{ port = 80 }]\n";

    fn request(text: &str, name: &str, form: Option<WrittenForm>, dry_run: bool) -> ApplyRequest {
        ApplyRequest { text: text.to_owned(), name: name.to_owned(), form, dry_run }
    }

    fn serving(served: &TrustDomain) -> Beside<'_> {
        Beside { served: Some(served), ..Beside::default() }
    }

    #[test]
    fn applying_shows_what_an_analysis_says_of_it_and_refuses_nothing_for_that() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        let routes = "[[VirtualService]]\nname = \"orders\"\nhosts = [\"orders\"]\n\
            http = [{ route = [{ destination = { host = \"orders\", subset = \"v9\" } }] }]\n";
        let check = |registered: Vec<Located<Resource>>, expected: &[&str]| {
            let beside = Beside { registered, ..Beside::default() };
            let made = apply(&directory, &request(routes, "r.toml", None, true), beside).expect("applied");
            let changes = made.report;
            let said = changes.warnings.iter().map(|finding| {
                assert_eq!(finding["severity"], "warning");
                finding["code"].as_str().expect("a code")
            });
            assert_eq!(said.collect::<Vec<_>>(), expected, "{}", changes.warning_text);
        };
        check(Vec::new(), &["IST0101", "BM0407"]);
        let orders =
            Form::Toml.parse(&ORDERS.replace("port = 80", "port = 80, protocol = \"http\""), "o.toml");
        let orders = orders.resources.into_iter().map(|located| registered(located.value));
        check(orders.collect(), &["IST0101"]);
    }

    #[test]
    fn texts_are_looked_at_as_if_they_were_in_force() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        apply(&directory, &request(ORDERS, "o.toml", None, false), Beside::default()).expect("applied");
        let analyzed = |texts: &[(&str, &str)]| {
            let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned())).collect();
            analyze(&directory, &AnalyzeRequest { texts }, Beside::default()).expect("an analysis")
        };
        assert!(analyzed(&[]).findings.is_empty());
        let routes = "[[VirtualService]]\nname = \"orders\"\nhosts = [\"orders\"]\n\
            tcp = [{ route = [{ destination = { host = \"orders\", port = { number = 81 } } }] }]\n";
        let found = analyzed(&[("r.toml", routes)]);
        assert!(found.text.starts_with("r.toml:4:"), "{}", found.text);
        assert_eq!((found.findings.len(), found.resources), (1, 2));
        // The Service as it would be replaces the one that is in force.
        let moved = ORDERS.replace("80", "81");
        assert!(analyzed(&[("r.toml", routes), ("o.toml", &moved)]).findings.is_empty());
    }

    #[test]
    fn applies_lists_and_deletes() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        let dry = apply(&directory, &request(ORDERS, "-", None, true), Beside::default()).expect("a plan");
        let dry = dry.report;
        assert_eq!(dry.changes[0].effect, "created");
        assert!(dry.changes[0].diff.contains("+[[Service]]"));
        assert!(directory.load().expect("a set").places.is_empty(), "a dry run changes nothing");
        apply(&directory, &request(ORDERS, "-", Some(WrittenForm::Toml), false), Beside::default())
            .expect("applied");
        let filter = Filter { kind: Some(Kind::Service), ..Filter::default() };
        let listed = list(&directory.load().expect("a set"), &filter);
        assert_eq!(listed.len(), 1);
        assert_eq!(
            format::decode(&listed[0].document).expect("a resource").key().to_string(),
            "orders.default"
        );
        let named = Filter { name: Some("nobody".to_owned()), ..Filter::default() };
        assert!(list(&directory.load().expect("a set"), &named).is_empty());
        let id = format::decode(&listed[0].document).expect("a resource").id();
        let deleted = delete(&directory, &id, Mode::Change).expect("deleted");
        assert_eq!(deleted.report.changes[0].effect, "deleted");
        assert!(delete(&directory, &id, Mode::Change).is_err());
    }

    #[test]
    fn refuses_what_it_could_not_serve() {
        let place = tempfile::tempdir().expect("a directory");
        let directory = ResourceDirectory::new(place.path());
        let served = TrustDomain::new("mesh.test").expect("a domain");
        let other = "# a comment\n[[MeshConfig]]\ntrustDomain = \"other.test\"\n";
        let refused =
            apply(&directory, &request(other, "m.toml", None, false), serving(&served)).expect_err("refused");
        let headline = refused.0[0].headline();
        assert!(
            headline.starts_with("m.toml:2:1: Error [BM0202]") && headline.contains("mesh.test"),
            "{headline}"
        );
        assert!(directory.load().expect("a set").places.is_empty());
        let same = other.replace("other.test", "mesh.test");
        apply(&directory, &request(&same, "m.toml", None, false), serving(&served)).expect("applied");
    }
}
