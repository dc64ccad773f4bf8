//! Somebody can write to Consul's key-value store, and has no key of the mesh.

use baremesh_tests::consul::{Consul, ask};
use baremesh_tests::{Host, Member, Mesh, output_of, wait_until};
use serde_json::Value;

use crate::consul::{notes, orders};
use crate::peer::{self, Tunnel, agent_of, authority};

/// Where agents read what is revoked.
const LIST: &str = "/v1/kv/baremesh/trust/RevocationList/control/revoked";

fn list(store: &Host) -> Option<Value> {
    let (status, text) = ask(store, "GET", &format!("{LIST}?raw"), None)?;
    (status == 200).then(|| serde_json::from_str(&text).ok()).flatten()
}

/// Takes back what `host` holds, and returns the list that says so.
#[track_caller]
fn revoke(mesh: &Mesh, store: &Host, host: &str) -> Value {
    let before = list(store);
    output_of(mesh.control.baremesh(["host", "revoke", host]));
    wait_until("the list in Consul is another", || list(store).is_some() && list(store) != before);
    list(store).expect("it was there a moment ago")
}

/// Whether `of` takes what `thief` holds.
fn takes(mesh: &Mesh, of: &Member, thief: &Member) -> bool {
    let config = peer::config(mesh, peer::stolen(thief, thief.host.name()));
    let name = Some("orders.default.mesh.internal");
    let tunnel = Tunnel::open(&thief.host, agent_of(&of.host), config, name);
    tunnel.and_then(|tunnel| tunnel.echoes(&authority(of.host.v4(), 7000))).unwrap_or(false)
}

fn thief(mesh: &Mesh, consul: &Consul, name: &str, index: u8) -> Member {
    let thief = mesh.member_with(name, index, &[name], &consul.config());
    thief.register(name, ["--port", "80"]);
    thief
}

fn refused_lists(member: &Member) -> u64 {
    let metrics = member.metrics();
    let line = metrics.lines().find_map(|line| line.strip_prefix("baremesh_refused_revocation_lists_total "));
    line.and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[test]
fn an_older_list_of_revoked_certificates_is_not_put_back_by_who_writes_to_the_store() {
    let (mesh, store, consul) = Mesh::in_consul("consul-replay");
    let orders = orders(&mesh, &consul, "orders", 2);
    let thieves = [("thief1", 3), ("thief2", 4)].map(|(name, index)| thief(&mesh, &consul, name, index));
    assert!(thieves.iter().all(|thief| takes(&mesh, &orders, thief)));
    let older = revoke(&mesh, &store, "thief1");
    wait_until("the first is refused", || !takes(&mesh, &orders, &thieves[0]));
    assert!(takes(&mesh, &orders, &thieves[1]), "and the other is not");
    revoke(&mesh, &store, "thief2");
    wait_until("the second is refused too", || !takes(&mesh, &orders, &thieves[1]));
    assert_eq!(refused_lists(&orders), 0);

    let put_back = || {
        let answer = ask(&store, "PUT", LIST, Some(&older));
        assert!(matches!(&answer, Some((200, said)) if said.trim() == "true"), "{answer:?}");
    };
    put_back();
    let is_noticed = || notes(&orders).contains("list of revoked certificates is an older one");
    wait_until("it is noticed", is_noticed);
    assert_eq!(refused_lists(&orders), 1);
    assert!(!takes(&mesh, &orders, &thieves[1]));
    // Nor by who waits for a restart: what is in force is on the disk.
    orders.kill_agent();
    orders.start();
    wait_until("it is noticed again", is_noticed);
    assert!(!takes(&mesh, &orders, &thieves[1]));
    // Nothing is the way out of it but a list, and that is newer.
    ask(&store, "DELETE", LIST, None).expect("an answer");
    thief(&mesh, &consul, "thief3", 5);
    revoke(&mesh, &store, "thief3");
    wait_until("the newer one is in force", || !is_noticed());
    assert!(thieves.iter().all(|thief| !takes(&mesh, &orders, thief)));
}
