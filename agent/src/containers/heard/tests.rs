use baremesh_model::health::Health;
use tokio::io::DuplexStream;

use super::*;
use crate::containers::Running;
use crate::originate::Originations;
use crate::registration::{Container, LocalService};
use crate::snapshot::tests::{host, mesh, registration};
use crate::telemetry::metrics::Metrics;

const CART: &str = "name = \"cart\"\nports = [{ port = 81, deliver = \"container:7000\" }]\ncontainerLabels = [\"app=cart\"]\n";

fn heard() -> (Arc<Publisher>, Arc<Heard>) {
    let originations = Arc::new(Originations::new("/nowhere".into()));
    let registered = [registration(CART)];
    let publisher =
        Publisher::new((mesh(""), 1), &registered, (host(), 15008), originations, Metrics::new("mesh"));
    let publisher = publisher.expect("published");
    (Arc::clone(&publisher), Heard::new(publisher))
}

fn list(engine: &str, address: &str) -> Vec<u8> {
    let running = Running {
        id: "4d50".into(),
        name: "cart".into(),
        created: 1,
        labels: [("app".to_owned(), "cart".to_owned())].into(),
        places: vec![Container {
            interface: "br0".parse().expect("a bridge"),
            addresses: vec![address.parse().expect("an address")],
        }],
    };
    let mut line = serde_json::to_vec(&Told::new(engine, [running].iter())).expect("JSON");
    line.push(b'\n');
    line
}

/// A follower's end of a connection.
struct Speaking(BufReader<DuplexStream>);

impl Speaking {
    fn to(heard: &Arc<Heard>) -> Self {
        let (ours, theirs) = tokio::io::duplex(1 << 20);
        heard.spawn(Arc::clone(heard).hear(theirs));
        Self(BufReader::new(ours))
    }

    /// What is answered: nothing where it is taken, else why not.
    async fn say(&mut self, line: &[u8]) -> Option<String> {
        self.0.get_mut().write_all(line).await.expect("it listens");
        let answer = read_line(&mut self.0, MAX_LINE).await.expect("it answers").expect("a line");
        serde_json::from_slice::<Answer>(&answer).expect("an answer").refused
    }
}

fn cart(publisher: &Publisher) -> Arc<LocalService> {
    Arc::clone(&publisher.snapshot().load().registrations[0])
}

fn is_cart(publisher: &Publisher, address: &str) -> bool {
    publisher.snapshot().load().container(address.parse().expect("an address")).is_some()
}

/// Waits for a state that other tasks bring about; time stands still meanwhile.
async fn until(mut holds: impl FnMut() -> bool) {
    while !holds() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_told_holds_while_somebody_stands_by_it() {
    let (publisher, heard) = heard();
    assert!(!cart(&publisher).ports[0].is_known());
    let mut follower = Speaking::to(&heard);
    assert_eq!(follower.say(&list("docker", "172.17.0.2")).await, None);
    assert!(is_cart(&publisher, "172.17.0.2"));
    assert_eq!(cart(&publisher).ports[0].deliver.to_string(), "172.17.0.2:7000");
    // The whole list takes the place of the one before.
    assert_eq!(follower.say(&list("docker", "172.17.0.3")).await, None);
    assert!(is_cart(&publisher, "172.17.0.3") && !is_cart(&publisher, "172.17.0.2"));

    drop(follower);
    until(|| !is_cart(&publisher, "172.17.0.3")).await;
    let lingering = cart(&publisher);
    assert!(
        lingering.ports[0].is_known() && lingering.health == Health::Healthy,
        "for a moment it is called still"
    );
    assert!(publisher.snapshot().load().suspended("172.17.0.3".parse().expect("an address")).is_some());
    tokio::time::sleep(LINGER + Duration::from_millis(1)).await;
    until(|| !cart(&publisher).ports[0].is_known()).await;
    assert_eq!(cart(&publisher).health, Health::Unhealthy);

    let mut again = Speaking::to(&heard);
    assert_eq!(again.say(&list("docker", "172.17.0.4")).await, None);
    assert!(is_cart(&publisher, "172.17.0.4") && cart(&publisher).ports[0].is_known());
}

#[tokio::test(start_paused = true)]
async fn a_follower_that_says_nothing_any_more_is_gone() {
    let (publisher, heard) = heard();
    let mut follower = Speaking::to(&heard);
    assert_eq!(follower.say(&list("docker", "172.17.0.2")).await, None);
    for _ in 0..4 {
        tokio::time::sleep(SILENCE / 2).await;
        follower.0.get_mut().write_all(b"\n").await.expect("it listens");
        tokio::task::yield_now().await;
        assert!(is_cart(&publisher, "172.17.0.2"), "an empty line stands by the list");
    }
    tokio::time::sleep(SILENCE * 2).await;
    until(|| !is_cart(&publisher, "172.17.0.2")).await;
}

#[tokio::test(start_paused = true)]
async fn one_speaks_for_an_engine_at_a_time() {
    let (publisher, heard) = heard();
    let (mut first, mut second) = (Speaking::to(&heard), Speaking::to(&heard));
    assert_eq!(first.say(&list("docker", "172.17.0.2")).await, None);
    assert_eq!(second.say(&list("docker", "172.17.0.3")).await, None);
    let refused = first.say(&list("docker", "172.17.0.2")).await.expect("a reason");
    assert!(refused.contains("another follower"), "{refused}");
    // That it ended takes nothing back of what the second said.
    drop(first);
    tokio::time::sleep(LINGER + Duration::from_secs(1)).await;
    assert!(is_cart(&publisher, "172.17.0.3"));
    let mut other = Speaking::to(&heard);
    assert_eq!(other.say(&list("podman", "10.88.0.2")).await, None);
    let refused = other.say(&list("docker", "10.88.0.2")).await.expect("a reason");
    assert!(refused.contains("one engine"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn what_is_no_list_takes_back_what_was_told() {
    let (publisher, heard) = heard();
    let mut follower = Speaking::to(&heard);
    assert_eq!(follower.say(&list("docker", "172.17.0.2")).await, None);
    let refused = follower.say(b"{\"engine\":\"docker\",\"containers\":7}\n").await.expect("a reason");
    assert!(refused.contains("no list of containers"), "{refused}");
    until(|| !is_cart(&publisher, "172.17.0.2")).await;
    for number in 0..MAX_ENGINES {
        let engine = if number == 0 { "docker".to_owned() } else { format!("engine-{number}") };
        assert_eq!(Speaking::to(&heard).say(&list(&engine, "172.17.0.2")).await, None, "{engine}");
    }
    let refused = Speaking::to(&heard).say(&list("one-more", "172.17.0.2")).await.expect("a reason");
    assert!(refused.contains("more than 8 engines"), "{refused}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_hands_what_it_was_told_to_the_next() {
    let (before, first) = heard();
    let mut follower = Speaking::to(&first);
    assert_eq!(follower.say(&list("docker", "172.17.0.2")).await, None);
    first.end_all();
    assert!(read_line(&mut follower.0, MAX_LINE).await.is_ok_and(|line| line.is_none()), "its stream ends");

    let (after, second) = heard();
    assert_eq!(second.resume(&first.last()), Ok(()));
    assert!(is_cart(&after, "172.17.0.2") && cart(&after).ports[0].is_known());
    // Both stand by it for as long as by a follower that is silent.
    tokio::time::sleep(SILENCE - Duration::from_millis(1)).await;
    assert!(is_cart(&before, "172.17.0.2") && is_cart(&after, "172.17.0.2"));
    let mut back = Speaking::to(&second);
    assert_eq!(back.say(&list("docker", "172.17.0.2")).await, None);
    tokio::time::sleep(Duration::from_millis(2)).await;
    until(|| !is_cart(&before, "172.17.0.2")).await;
    assert!(cart(&before).ports[0].is_known(), "for a moment it is called still");
    // The follower that came back is not taken for the one that was waited for.
    tokio::time::sleep(LINGER + Duration::from_millis(2)).await;
    assert!(is_cart(&after, "172.17.0.2") && !cart(&before).ports[0].is_known());

    // An agent that hands on what nobody stood by hands on that too, and what a follower has told goes before it.
    let (third, fourth) = (heard(), heard());
    assert_eq!(third.1.resume(&first.last()), Ok(()));
    assert!(!is_cart(&third.0, "172.17.0.2"));
    assert!(third.0.snapshot().load().suspended("172.17.0.2".parse().expect("an address")).is_some());
    let mut newer = Speaking::to(&fourth.1);
    assert_eq!(newer.say(&list("docker", "172.17.0.7")).await, None);
    assert_eq!(fourth.1.resume(&second.last()), Ok(()));
    assert!(is_cart(&fourth.0, "172.17.0.7") && !is_cart(&fourth.0, "172.17.0.2"));
}

#[tokio::test(start_paused = true)]
async fn what_is_handed_on_is_lost_where_no_follower_comes_back() {
    let (publisher, second) = heard();
    let first = heard().1;
    assert_eq!(Speaking::to(&first).say(&list("docker", "172.17.0.2")).await, None);
    first.end_all();
    assert_eq!(second.resume(&first.last()), Ok(()));
    tokio::time::sleep(SILENCE + Duration::from_millis(1)).await;
    until(|| !is_cart(&publisher, "172.17.0.2")).await;
    assert!(cart(&publisher).ports[0].is_known());
    tokio::time::sleep(LINGER).await;
    until(|| !cart(&publisher).ports[0].is_known()).await;
    let more = serde_json::json!({ "engines": [], "guests": [] });
    for nonsense in [serde_json::json!(7), more] {
        assert!(second.resume(&nonsense).expect_err("nonsense").contains("no lists of containers"));
    }
    assert_eq!(second.resume(&heard().1.last()), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn what_a_followed_engine_says_takes_the_place_of_what_a_lost_one_said() {
    let (publisher, heard) = heard();
    let addresses = |engine: &str| {
        let known = publisher.containers();
        known.engines[engine].containers[0].places[0]
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect::<Vec<_>>()
    };
    let mut before = Speaking::to(&heard);
    assert_eq!(before.say(&list("docker", "172.17.0.2")).await, None);
    let mut after = Speaking::to(&heard);
    assert_eq!(after.say(&list("podman", "172.17.0.2")).await, None);
    assert_eq!(addresses("docker"), ["172.17.0.2"], "both stand by it");
    drop(before);
    until(|| addresses("docker").is_empty()).await;
    assert_eq!(addresses("podman"), ["172.17.0.2"]);
    // It does not come back with the end of what took its place.
    assert_eq!(after.say(&list("podman", "172.17.0.3")).await, None);
    assert!(is_cart(&publisher, "172.17.0.3"));
    assert!(publisher.snapshot().load().suspended("172.17.0.2".parse().expect("an address")).is_none());
}

#[tokio::test]
async fn a_line_has_an_end_and_a_limit() {
    for (text, expected) in
        [("a\nb\n", vec!["a", "b"]), ("\n\nc\n", vec!["", "", "c"]), ("cut off", vec![]), ("", vec![])]
    {
        let mut reader = BufReader::with_capacity(2, text.as_bytes());
        for line in expected {
            let read = read_line(&mut reader, 16).await.expect("read");
            assert_eq!(read.as_deref(), Some(line.as_bytes()), "{text:?}");
        }
        assert_eq!(read_line(&mut reader, 16).await.expect("read"), None, "{text:?}");
    }
    assert!(read_line(&mut "0123456789\n".as_bytes(), 9).await.is_err());
    assert!(read_line(&mut "0123456789".as_bytes(), 9).await.is_err());
}
