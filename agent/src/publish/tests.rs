use baremesh_model::mesh::Parts;
use baremesh_model::name::Label;

use super::*;
use crate::registration::file::Written;

fn publisher(metrics: &Arc<Metrics>) -> Arc<Publisher> {
    let mesh = Mesh::assemble(Parts::default()).expect("a mesh");
    let host = Host {
        name: Label::new("h1").expect("a label"),
        addresses: vec!["10.0.0.1".parse().expect("an address")],
        why: "".into(),
        network: None,
    };
    let originations = Arc::new(Originations::new("/nowhere".into()));
    let publisher = Publisher::new((mesh, 57), &[], (host, 15008), originations, Arc::clone(metrics));
    publisher.expect("published")
}

#[test]
fn other_addresses_of_the_host_are_in_force_at_once_and_told() {
    let publisher = publisher(&Metrics::new("mesh"));
    let mut registered = publisher.registered();
    let addresses: Vec<IpAddr> = vec!["10.0.0.2".parse().expect("an address")];
    assert_eq!(publisher.take_addresses(addresses.clone(), "of eth0"), Ok(true));
    let host = publisher.snapshot().load().host.clone();
    assert_eq!((host.addresses, &*host.why), (addresses.clone(), "of eth0"));
    assert!(registered.has_changed().expect("a publisher"), "the registrations are told again");
    registered.mark_unchanged();
    assert_eq!(publisher.take_addresses(addresses, "of eth0"), Ok(false));
    assert!(!registered.has_changed().expect("a publisher"));
    assert_eq!(publisher.published().version, 57, "nothing came from the source");
}

#[test]
fn the_version_is_the_source_s_where_nothing_changed_too() {
    let metrics = Metrics::new("mesh");
    let publisher = publisher(&metrics);
    let (before, changed) = (publisher.published(), publisher.changed());
    // The control server has restarted, and counts anew.
    publisher.confirm(12);
    let after = publisher.published();
    assert_eq!((after.version, metrics.snapshot_version.get()), (12, 12));
    assert_eq!(after.taken, before.taken, "nothing new was taken");
    assert!(!changed.has_changed().expect("published"));
}

/// The registration of `web` with an account.
fn web_as(account: &str) -> [Arc<LocalService>; 1] {
    let toml = format!("name = \"web\"\nserviceAccount = \"{account}\"\nports = [{{ port = 80 }}]");
    let written: Written = toml::from_str(&toml).expect("a registration");
    [Arc::new(LocalService::try_from(&written).expect("a service"))]
}

/// A mesh whose Service `web` has this account.
fn mesh_with(account: &str) -> Mesh {
    let web = web_as(account)[0].implied_service();
    let services = [(web.key.clone(), web)].into();
    Mesh::assemble(Parts { services, ..Parts::default() }).expect("a mesh")
}

#[test]
fn what_was_refused_is_told_until_the_next_of_its_own_kind_is_taken() {
    let metrics = Metrics::new("mesh");
    let publisher = publisher(&metrics);
    let refused = || publisher.published().refused.into_keys().collect::<Vec<_>>();
    let web = web_as("web");
    publisher.take_registrations(&web).expect("taken");
    let taken = publisher.published().taken;

    publisher.refuse_registrations("default.web.toml: line 3".to_owned());
    publisher.take_mesh(mesh_with("web"), 58).expect("taken");
    assert_eq!(refused(), [News::Registrations], "the next state says nothing of the file");
    publisher.clear_refusal();
    publisher.take_health(&[(Arc::clone(&web[0]), Health::Unhealthy)]).expect("taken");
    assert_eq!(refused(), [News::Registrations]);

    publisher.take_mesh(mesh_with("clerk"), 59).expect_err("another account than the registration's");
    publisher.refuse("a resource of a later version".to_owned());
    assert_eq!(refused(), [News::Mesh, News::Registrations]);
    publisher.take_registrations(&web).expect("taken");
    assert_eq!(refused(), [News::Mesh], "the state is not in force yet");
    assert_eq!(publisher.published().version, 58);

    publisher.take_registrations(&web_as("clerk")).expect_err("another account than the Service's");
    assert_eq!(refused(), [News::Mesh, News::Registrations]);
    publisher.take_mesh(mesh_with("web"), 60).expect("taken");
    publisher.take_registrations(&web).expect("taken");
    assert!(refused().is_empty());
    assert!(publisher.published().taken >= taken && metrics.rejected_configurations.get() == 4);
}
