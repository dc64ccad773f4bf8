//! Three servers of one Consul, whose leader is lost or cut off from the others.

use std::fs;
use std::rc::Rc;

use baremesh_tests::consul::{Consul, ask, register_foreign};
use baremesh_tests::{Host, Load, Member, Mesh, Net, net, output_of, wait_until};
use serde_json::json;

use crate::consul::{ALLOW_WEB, NONE, is_connected, orders, patiently};

/// A host with a Consul agent beside it, of the servers at `join`.
fn beside(mesh: &Mesh, name: &str, index: u8, join: &[String]) -> (Member, Consul) {
    let host = mesh.net.host(name, index);
    let consul = Consul::start(&host, &json!({ "retry_join": join, "retry_interval": "1s" }));
    let member = mesh.join(host, name, &["orders", "web"]);
    member.configure("[registry]\nsource = \"consul\"\n");
    member.start();
    (member, consul)
}

/// Three servers of one Consul, each on a host of its own.
struct Three {
    hosts: Vec<Host>,
    servers: Vec<Consul>,
    /// Their addresses.
    join: Vec<String>,
}

impl Three {
    #[track_caller]
    fn new(net: &Net) -> Self {
        let hosts: Vec<Host> =
            [201, 202, 203].into_iter().map(|n| net.host(&format!("consul-{n}"), n)).collect();
        let join: Vec<String> = hosts.iter().map(|host| host.v4().to_string()).collect();
        let config =
            json!({ "server": true, "bootstrap_expect": 3, "retry_join": join, "retry_interval": "1s" });
        let servers = hosts.iter().map(|host| Consul::start_without_waiting(host, &config)).collect();
        hosts.iter().for_each(|host| Consul::wait_for_leader(host));
        Self { hosts, servers, join }
    }

    /// Who leads, as that server knows it; nothing where it knows of none.
    fn leader(&self, of: usize) -> Option<usize> {
        let (_, leader) = ask(&self.hosts[of], "GET", "/v1/status/leader", None)?;
        self.join.iter().position(|address| leader.contains(&format!("\"{address}:")))
    }

    /// Parts a server from the two others, and from nobody else.
    #[track_caller]
    fn cut_off(&self, one: usize) {
        let others: Vec<_> =
            self.join.iter().filter(|address| **address != self.join[one]).map(String::as_str).collect();
        let others = others.join(", ");
        let rules = format!(
            "table ip cut {{\n\
             chain in {{ type filter hook input priority 0; ip saddr {{ {others} }} drop; }}\n\
             chain out {{ type filter hook output priority 0; ip daddr {{ {others} }} drop; }}\n}}\n"
        );
        fs::write(self.hosts[one].path("/run/cut.nft"), rules).expect("written");
        let mut nft = self.hosts[one].command("nft");
        nft.args(["-f", "/run/cut.nft"]);
        output_of(nft);
    }

    #[track_caller]
    fn heal(&self, one: usize) {
        let mut nft = self.hosts[one].command("nft");
        nft.args(["delete", "table", "ip", "cut"]);
        output_of(nft);
    }
}

/// Which of Consul's addresses an agent has its answers from, and who leads, as `baremesh status` says it.
fn answering(member: &Member) -> (String, String) {
    let consul = &member.status().unwrap_or_default()["source"]["consul"];
    let text = |name: &str| consul[name].as_str().unwrap_or_default().to_owned();
    (text("address"), text("leader"))
}

#[test]
fn a_leader_that_was_cut_off_is_not_believed_and_nothing_changes() {
    let net = Rc::new(net("consul-cut"));
    let three = Three::new(&net);
    let old = three.leader(0).expect("a leader");
    let other = (old + 1) % 3;
    let mesh = Mesh::of_consul(net, &three.servers[other]);
    let orders = orders(&mesh, &three.servers[other], "orders", 2);
    // The leader is asked first; what runs here is registered where it stays.
    let (asked, stays) = (&three.join[old], &three.join[other]);
    let config = format!(
        "[registry]\nsource = \"consul\"\n[consul]\naddresses = [\"http://{asked}:8500\", \"http://{stays}:8500\"]\n\
         agent = \"http://{stays}:8500\"\nallow_plaintext = true\n"
    );
    let web = mesh.member_with("web", 1, &["web"], &config);
    web.wait_for_endpoints("orders.default", 1);
    wait_until("the leader answers", || answering(&web).0.contains(&format!("{asked}:")));
    assert!(answering(&web).1.contains(&format!("{asked}:")), "{:?}", answering(&web));
    let load = Load::start(&web.host, "orders", 80);

    three.cut_off(old);
    wait_until("there is another leader", || three.leader(other).is_some_and(|now| now != old));
    register_foreign(
        &three.hosts[other],
        &json!({ "ID": "l", "Name": "legacy", "Address": three.hosts[other].v4().to_string(), "Port": 7100 }),
    );
    // Who was cut off still says how it was, to whoever takes stale answers.
    let (status, said) =
        ask(&three.hosts[old], "GET", "/v1/catalog/services?stale", None).expect("an answer");
    assert!(status == 200 && said.contains("orders") && !said.contains("legacy"), "{status} {said}");
    patiently("what changed since is known", || web.endpoints("legacy.default") == Some(1));
    wait_until("the other's answers count", || answering(&web).0.contains(&format!("{stays}:")));
    assert!(!answering(&web).1.contains(&format!("{asked}:")), "{:?}", answering(&web));
    let version = || web.status().unwrap_or_default()["source"]["version"].as_u64();
    let before = version();
    mesh.apply(&ALLOW_WEB.replace("sa/web", "sa/*").replace("ns/default", "ns/hosts"));
    patiently("a new policy is in force", || version() > before);
    three.heal(old);
    patiently("the one that was cut off follows", || three.leader(old).is_some_and(|now| now != old));
    wait_until("everybody is in reach", || is_connected(&web) && is_connected(&orders));
    assert_eq!(web.endpoints("orders.default"), Some(1));
    load.wait_for_more(20);
    assert_eq!(load.stop(), NONE);
}

#[test]
fn a_leader_that_is_lost_is_followed_by_another_and_nothing_changes() {
    let net = Rc::new(net("consul-leader"));
    let three = Three::new(&net);
    let (servers, join) = (&three.servers, &three.join);
    let mesh = Mesh::of_consul(net, &servers[0]);
    let (web, _one) = beside(&mesh, "web", 1, join);
    let (shop, _two) = beside(&mesh, "orders", 2, join);
    shop.host.serve("echo", ["echo", "127.0.0.1:7000"]);
    shop.register("orders", ["--port", "80:7000"]);
    web.wait_for_endpoints("orders.default", 1);
    let load = Load::start(&web.host, "orders", 80);
    let first = three.leader(0).expect("a leader");
    servers[first].kill();
    let other = (first + 1) % 3;
    wait_until("there is another leader", || three.leader(other).is_some_and(|now| now != first));
    load.wait_for_more(20);
    wait_until("everybody is in reach", || is_connected(&web) && is_connected(&shop));
    assert_eq!((web.endpoints("orders.default"), load.stop()), (Some(1), NONE.to_vec()));
}
