use baremesh_model::health::Health;

use super::*;
use crate::registration::file::Written;

fn registration(text: &str) -> Arc<LocalService> {
    let written: Written = toml::from_str(text).expect("a registration");
    Arc::new(LocalService::try_from(&written).expect("a registration that is taken"))
}

fn groups(text: &str) -> BTreeMap<Key, Arc<WorkloadGroup>> {
    let parsed = baremesh_registry::format::toml::parse(text, "groups.toml");
    assert!(!parsed.failed(), "{:?}", parsed.findings);
    let read = parsed.resources.into_iter().map(|located| match located.value {
        baremesh_registry::resource::Resource::WorkloadGroup(group) => (group.key.clone(), Arc::new(*group)),
        other => panic!("{other:?} is no WorkloadGroup"),
    });
    read.collect()
}

const ORDERS: &str =
    "name = \"orders\"\ngroup = \"vm\"\nports = [{ port = 80, targetPort = 8080, name = \"http\" }]\n";
const GROUP: &str = "[[WorkloadGroup]]\nname = \"vm\"\nmetadata = { labels = { tier = \"back\", version = \"v1\" } }\n\
    [WorkloadGroup.template]\nserviceAccount = \"shop\"\nweight = 7\nlocality = \"eu/west\"\nlabels = { version = \"v2\" }\n";

fn standing(local: &LocalService) -> &Standing {
    &local.group.as_ref().expect("it is in a group").standing
}

fn label<'a>(local: &'a LocalService, name: &str) -> Option<&'a str> {
    local.labels.get(name).map(|value| &**value)
}

#[test]
fn what_a_registration_leaves_unsaid_its_group_says() {
    let groups = groups(GROUP);
    let plain = registration(ORDERS).in_group(&groups);
    assert_eq!(standing(&plain), &Standing::InForce);
    assert_eq!((plain.service_account.as_str(), plain.weight, plain.health), ("shop", 7, Health::Healthy));
    assert_eq!(plain.locality.as_ref().map(ToString::to_string).as_deref(), Some("eu/west"));
    assert_eq!((label(&plain, "tier"), label(&plain, "version")), (Some("back"), Some("v2")));
    let said = format!(
        "{ORDERS}serviceAccount = \"mine\"\nweight = 1\nlocality = \"us\"\n[labels]\nversion = \"v3\"\n"
    );
    let said = registration(&said).in_group(&groups);
    assert_eq!((said.service_account.as_str(), said.weight), ("mine", 1));
    assert_eq!(said.locality.as_ref().map(ToString::to_string).as_deref(), Some("us"));
    assert_eq!((label(&said, "tier"), label(&said, "version")), (Some("back"), Some("v3")));
    assert_eq!(said.in_group(&groups), said, "doing it twice changes nothing");
}

#[test]
fn a_group_that_changes_is_followed_and_one_that_goes_is_remembered() {
    let first = registration(ORDERS).in_group(&groups(GROUP));
    let changed = first.in_group(&groups(&GROUP.replace("weight = 7", "weight = 3")));
    assert_eq!((changed.weight, standing(&changed)), (3, &Standing::InForce));
    let gone = changed.in_group(&BTreeMap::new());
    assert_eq!((gone.weight, standing(&gone), gone.health), (3, &Standing::Gone, Health::Healthy));
    let read_again = registration(ORDERS).remembering(Some(&gone)).in_group(&BTreeMap::new());
    assert_eq!((read_again.weight, standing(&read_again)), (3, &Standing::Gone));
    // Another group is another's word.
    let other = registration(&ORDERS.replace("vm", "other")).remembering(Some(&gone));
    assert_eq!(standing(&other.in_group(&groups(GROUP))), &Standing::Missing);
}

#[test]
fn who_misses_its_group_takes_no_calls_until_it_is_there() {
    let checked = format!("{ORDERS}[check]\ntcpSocket = {{}}\n");
    for text in [ORDERS, &checked] {
        let missing = registration(text).in_group(&BTreeMap::new());
        assert!(missing.misses_its_group());
        assert_eq!((missing.health, missing.check.is_none()), (Health::Unhealthy, true));
        let there = missing.in_group(&groups(GROUP));
        assert!(!there.misses_its_group());
        // What has a check passes that first.
        let expected = if there.check.is_some() { Health::Unhealthy } else { Health::Healthy };
        assert_eq!(there.health, expected);
    }
}

#[test]
fn a_probe_looks_at_ports_of_the_registration_alone() {
    let check = |probe: &str, expected: Result<&str, &str>| {
        let groups = groups(&format!("{GROUP}[WorkloadGroup.probe]\n{probe}\n"));
        let local = registration(ORDERS).in_group(&groups);
        assert_eq!(local.health, Health::Unhealthy, "{probe}: nothing was found yet");
        match (expected, standing(&local)) {
            (Ok(kind), Standing::InForce) => {
                assert_eq!(local.check.as_ref().map(|check| check.probe.kind()), Some(kind), "{probe}");
            }
            (Err(part), Standing::Unusable(reason)) => assert!(reason.contains(part), "{probe}: {reason}"),
            (_, standing) => panic!("{probe}: {standing}"),
        }
    };
    check("httpGet = { path = \"/healthz\" }", Ok("httpGet"));
    check("httpGet = { port = \"http\" }\nperiodSeconds = 5", Ok("httpGet"));
    check("tcpSocket = { port = 8080 }", Ok("tcpSocket"));
    check("grpc = { port = 80, service = \"a.b\" }", Ok("grpc"));
    check("ttl = \"30s\"", Ok("ttl"));
    check("tcpSocket = { port = 5432 }", Err("none of the registration's"));
    check("tcpSocket = { port = \"admin\" }", Err("no port named `admin`"));
}

#[test]
fn a_check_of_the_registration_s_own_goes_before_the_group_s() {
    let groups = groups(&format!("{GROUP}[WorkloadGroup.probe]\nttl = \"30s\"\n"));
    let own = format!("{ORDERS}[check]\nexec = {{ command = [\"/bin/true\"] }}\n");
    let local = registration(&own).in_group(&groups);
    assert_eq!(local.check.as_ref().map(|check| check.probe.kind()), Some("exec"));
}

#[test]
fn a_registration_begins_with_the_ports_of_its_group_as_the_service_declares_them() {
    let text = format!("{GROUP}ports = {{ http = 8080, other = 9000 }}\n");
    let groups = groups(&text);
    let group = groups.values().next().expect("the group");
    let service =
        registration("name = \"orders\"\nports = [{ port = 80, name = \"http\", protocol = \"http\" }]\n");
    let ports = ports_of(group, Some(&service.implied_service()));
    let shown: Vec<_> = ports
        .iter()
        .map(|port| (port.port.get(), port.target_port.map(NonZeroU16::get), port.protocol.as_deref()))
        .collect();
    assert_eq!(shown, [(80, Some(8080), Some("http")), (9000, None, None)]);
}
