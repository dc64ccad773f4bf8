use baremesh_model::health::Health;

use super::*;
use crate::containers::Engine;
use crate::registration::file::Written;

const CART: &str = "name = \"cart\"\nports = [{ port = 81, deliver = \"container:7000\" }]\ncontainerLabels = [\"app=cart\"]\n";
const TILL: &str = "name = \"till\"\nports = [{ port = 82 }]\ncontainerLabels = [\"tier\"]\n";
const FIXED: &str = "name = \"fixed\"\nports = [{ port = 83 }]\ninterface = \"br0\"\nsources = [\"172.17.0.2\", \"172.17.0.9\"]\n";

fn registration(text: &str) -> Arc<LocalService> {
    let written: Written = toml::from_str(text).expect("a registration");
    Arc::new(LocalService::try_from(&written).expect("a registration that is taken"))
}

/// `NAME CREATED LABEL,LABEL BRIDGE=ADDRESS BRIDGE=ADDRESS`
fn running(line: &str) -> Running {
    let mut words = line.split(' ');
    let (name, created) = (words.next().expect("a name"), words.next().expect("a time"));
    let label = |label: &str| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        (key.to_owned(), value.to_owned())
    };
    let labels = words.next().expect("labels").split(',').map(label).collect();
    let place = |place: &str| {
        let (bridge, address) = place.split_once('=').expect("a place");
        Container {
            interface: bridge.parse().expect("a bridge"),
            addresses: vec![address.parse().expect("an address")],
        }
    };
    Running {
        id: format!("id-{name}"),
        name: name.to_owned(),
        created: created.parse().expect("a time"),
        labels,
        places: words.map(place).collect(),
    }
}

fn known(following: Following, lines: &[&str]) -> Known {
    let containers = lines.iter().map(|line| running(line)).collect();
    Known { engines: [("docker".to_owned(), Engine { containers, following })].into() }
}

fn text(places: &[Container]) -> String {
    let on = |place: &Container| {
        let addresses: Vec<_> = place.addresses.iter().map(ToString::to_string).collect();
        format!("{} {}", place.interface, addresses.join("+"))
    };
    places.iter().map(on).collect::<Vec<_>>().join(", ")
}

/// What is settled of each: its sources, what is suspended, and where it is delivered, in brackets where it is not.
fn check(registrations: &[&str], known: &Known, expected: &[(&str, &str, &str)]) -> Vec<Arc<LocalService>> {
    let registered: Vec<_> = registrations.iter().map(|text| registration(text)).collect();
    let settled = in_containers(&registered, known);
    for (local, (sources, suspended, deliver)) in settled.iter().zip(expected) {
        let own = local.container.as_ref().expect("a container");
        assert_eq!(text(&own.sources), *sources, "sources of {}", local.key);
        assert_eq!(text(&own.suspended), *suspended, "suspended of {}", local.key);
        let port = &local.ports[0];
        let delivered =
            if port.is_known() { port.deliver.to_string() } else { format!("[{}]", port.deliver) };
        assert_eq!(delivered, *deliver, "{}", local.key);
    }
    assert_eq!(settled.len(), expected.len());
    // The order of registrations decides nothing.
    let reversed: Vec<_> = registered.iter().rev().cloned().collect();
    let again: Vec<_> = in_containers(&reversed, known).into_iter().rev().collect();
    let standing = |all: &[Arc<LocalService>]| -> Vec<bool> {
        all.iter()
            .map(|local| matches!(local.container.as_ref().expect("one").standing, Standing::Contested(_)))
            .collect()
    };
    assert_eq!(standing(&again), standing(&settled));
    // Nor does it matter what was known before.
    assert_eq!(in_containers(&settled, known), settled);
    let without = in_containers(&settled, &Known::default());
    assert_eq!(in_containers(&without, known), settled);
    settled
}

fn standing(local: &LocalService) -> &Standing {
    &local.container.as_ref().expect("a container").standing
}

#[test]
fn a_container_is_found_by_its_labels_on_all_its_bridges() {
    let followed = |lines: &[&str]| known(Following::Followed, lines);
    let found = followed(&[
        "a 5 app=cart,x br1=172.18.0.2 br0=172.17.0.2 br0=fd17::2",
        "b 4 app=other br0=172.17.0.3",
    ]);
    let settled =
        check(&[CART], &found, &[("br0 172.17.0.2+fd17::2, br1 172.18.0.2", "", "172.17.0.2:7000")]);
    assert_eq!((standing(&settled[0]), settled[0].health), (&Standing::Found, Health::Healthy));
    let absent = check(&[CART], &followed(&["b 4 app=other br0=172.17.0.3"]), &[("", "", "[0.0.0.0:7000]")]);
    assert_eq!((standing(&absent[0]), absent[0].health), (&Standing::Absent, Health::Unhealthy));
    let moved =
        check(&[CART], &followed(&["a 5 app=cart br0=fd17::7"]), &[("br0 fd17::7", "", "[fd17::7]:7000")]);
    assert_eq!(standing(&moved[0]), &Standing::Found);
}

#[test]
fn of_several_the_one_that_was_made_first_is_delivered_to() {
    let lines =
        ["new 9 app=cart br0=172.17.0.2", "old 5 app=cart br0=172.17.0.8", "same 5 app=cart br0=172.17.0.1"];
    let all = "br0 172.17.0.1+172.17.0.2+172.17.0.8";
    check(&[CART], &known(Following::Followed, &lines), &[(all, "", "172.17.0.8:7000")]);
    check(&[CART], &known(Following::Followed, &lines[..1]), &[("br0 172.17.0.2", "", "172.17.0.2:7000")]);
    // One that is on no bridge of this host has no address to be called at.
    let hidden = ["old 5 app=cart", lines[0]];
    check(&[CART], &known(Following::Followed, &hidden), &[("br0 172.17.0.2", "", "172.17.0.2:7000")]);
}

#[test]
fn what_nobody_stands_by_is_nobody_and_held() {
    let lines = ["a 5 app=cart br0=172.17.0.2"];
    let lingering =
        check(&[CART], &known(Following::Lingering, &lines), &[("", "br0 172.17.0.2", "172.17.0.2:7000")]);
    assert_eq!((standing(&lingering[0]), lingering[0].health), (&Standing::Unfollowed, Health::Healthy));
    let lost =
        check(&[CART], &known(Following::Lost, &lines), &[("", "br0 172.17.0.2", "[172.17.0.2:7000]")]);
    assert_eq!((standing(&lost[0]), lost[0].health), (&Standing::Unfollowed, Health::Unhealthy));
    let never = check(&[CART], &Known::default(), &[("", "", "[0.0.0.0:7000]")]);
    assert_eq!(standing(&never[0]), &Standing::Unfollowed);
    // One engine that is followed says nothing of another's containers.
    let mut both = known(Following::Lost, &lines);
    let podman =
        Engine { containers: vec![running("p 9 app=cart br1=10.88.0.2")], following: Following::Followed };
    both.engines.insert("podman".to_owned(), podman);
    let settled = check(&[CART], &both, &[("br1 10.88.0.2", "br0 172.17.0.2", "10.88.0.2:7000")]);
    assert_eq!(standing(&settled[0]), &Standing::Found);
}

#[test]
fn a_container_of_two_services_is_neither() {
    let both = known(
        Following::Followed,
        &["a 5 app=cart,tier br0=172.17.0.3 br1=172.18.0.3", "b 6 tier br0=172.17.0.4"],
    );
    let settled = check(
        &[CART, TILL],
        &both,
        &[
            ("", "br0 172.17.0.3, br1 172.18.0.3", "[172.17.0.3:7000]"),
            ("br0 172.17.0.4", "br0 172.17.0.3, br1 172.18.0.3", "127.0.0.1:82"),
        ],
    );
    for (local, other) in settled.iter().zip(["till.default", "cart.default"]) {
        let said = standing(local).to_string();
        assert!(said.contains(other) && said.contains("container a at 172.17.0.3"), "{said}");
    }
    // An engine that is not followed contests nothing of one that is.
    for following in [Following::Lost, Following::Lingering] {
        let mut known = known(following, &["a 5 tier br0=172.17.0.3 br1=172.18.0.3"]);
        let containers = vec![running("b 6 app=cart br0=172.17.0.3")];
        known.engines.insert("podman".to_owned(), Engine { containers, following: Following::Followed });
        check(
            &[CART, TILL],
            &known,
            &[("br0 172.17.0.3", "", "172.17.0.3:7000"), ("", "br1 172.18.0.3", "127.0.0.1:82")],
        );
    }
    // By its address it is one service, and by its labels another.
    let found = known(Following::Followed, &["a 5 app=cart br0=172.17.0.2 br1=172.18.0.2"]);
    check(
        &[CART, FIXED],
        &found,
        &[
            ("", "br0 172.17.0.2, br1 172.18.0.2", "[172.17.0.2:7000]"),
            ("br0 172.17.0.9", "br0 172.17.0.2", "127.0.0.1:83"),
        ],
    );
    check(&[FIXED], &found, &[("br0 172.17.0.2+172.17.0.9", "", "127.0.0.1:83")]);
    // What nobody stands by any more may be anybody's.
    let lost = known(Following::Lost, &["a 5 app=cart br0=172.17.0.2"]);
    check(
        &[CART, FIXED],
        &lost,
        &[("", "br0 172.17.0.2", "[172.17.0.2:7000]"), ("br0 172.17.0.9", "br0 172.17.0.2", "127.0.0.1:83")],
    );
}

#[test]
fn containers_that_share_a_network_are_one() {
    let shared = known(Following::Followed, &["a 5 app=cart br0=172.17.0.3", "side 6 x br0=172.17.0.3"]);
    check(&[CART, TILL], &shared, &[("br0 172.17.0.3", "", "172.17.0.3:7000"), ("", "", "127.0.0.1:82")]);
    let shared = known(Following::Followed, &["a 5 app=cart br0=172.17.0.3", "side 6 tier br0=172.17.0.3"]);
    check(
        &[CART, TILL],
        &shared,
        &[("", "br0 172.17.0.3", "[172.17.0.3:7000]"), ("", "br0 172.17.0.3", "127.0.0.1:82")],
    );
}

#[test]
fn nothing_is_delivered_where_another_service_is() {
    let neighbour = "name = \"db\"\nports = [{ port = 5432, deliver = \"172.17.0.3:7000\" }]\n";
    let found = known(Following::Followed, &["a 5 app=cart br0=172.17.0.3"]);
    let registered = [registration(CART), registration(neighbour)];
    let settled = in_containers(&registered, &found);
    assert!(!settled[0].ports[0].is_known());
    assert!(standing(&settled[0]).to_string().contains("db.default is delivered to 172.17.0.3:7000"));
    assert!(Arc::ptr_eq(&settled[1], &registered[1]));
}

#[test]
fn a_check_goes_where_the_container_is_and_begins_anew() {
    let checked = format!("{CART}[check]\ntcpSocket = {{}}\n");
    let at = |local: &LocalService| match &local.check.as_ref().expect("a check").probe {
        crate::registration::check::Probe::TcpSocket { at } => at.to_string(),
        other => panic!("{other:?}"),
    };
    let found = |address: &str| known(Following::Followed, &[&format!("a 5 app=cart br0={address}")]);
    let settled = in_containers(&[registration(&checked)], &found("172.17.0.2"));
    assert_eq!((at(&settled[0]).as_str(), settled[0].health), ("172.17.0.2:7000", Health::Unhealthy));
    let well = Arc::new(LocalService { health: Health::Healthy, ..LocalService::clone(&settled[0]) });
    let same = in_containers(std::slice::from_ref(&well), &found("172.17.0.2"));
    assert!(Arc::ptr_eq(&same[0], &well));
    let moved = in_containers(std::slice::from_ref(&well), &found("172.17.0.3"));
    assert_eq!((at(&moved[0]).as_str(), moved[0].health), ("172.17.0.3:7000", Health::Unhealthy));
    // Where no container is certain to be it nothing is looked at that is somebody else's.
    let lost = in_containers(&[well], &known(Following::Lost, &["a 5 app=cart br0=172.17.0.2"]));
    assert_eq!((at(&lost[0]).as_str(), lost[0].health), ("0.0.0.0:7000", Health::Unhealthy));
}
