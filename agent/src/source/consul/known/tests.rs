//! What is known, awaited and published.

use serde_json::json;

use super::*;

const GATHER: Duration = Duration::from_millis(200);

fn one(status: &str) -> Heard {
    let instance = json!({
        "Node": { "Node": "n", "Address": "10.0.0.1" },
        "Service": { "ID": "s", "Service": "s", "Port": 1 },
        "Checks": [{ "CheckID": "serfHealth", "Status": status }],
    });
    let instance = serde_json::from_value(instance).expect("an instance");
    Heard::Known(News::Instances("s".to_owned(), vec![instance]))
}

/// How many endpoints are held of a service whose only one fell silent, where the catalog was away for so long before.
fn held_after(away: Option<Duration>) -> usize {
    let (mut known, began) =
        (Known::new(&Followed::new(None), Subscription::All, Instant::now()), Instant::now());
    known.take(one("passing"), began);
    known.take(Heard::Fine(Part::Catalog, Some(7)), began);
    known.inputs(began);
    // Longer after the start than that itself is a reason.
    let mut now = began + Duration::from_secs(3600);
    known.inputs(now);
    if let Some(away) = away {
        known.take(Heard::Failed(Part::Catalog, "gone".to_owned()), now);
        known.take(Heard::Failed(Part::Catalog, "gone still".to_owned()), now + away / 2);
        now += away;
    }
    known.take(one("critical"), now);
    known.take(Heard::Fine(Part::Catalog, Some(7)), now);
    known.inputs(now);
    known.damper.held()
}

#[test]
fn what_comes_to_be_asked_for_is_held_when_it_was_read_anew_or_cannot_be() {
    let key = Key::read("s.default").expect("a service");
    let asked = Subscription::read(&["s.default".to_owned()]).expect("services");
    let (nobody, now) = (Subscription::default(), Instant::now());
    let start = || {
        let mut known = Known::new(&Followed::new(None), nobody.clone(), now);
        known.take(Heard::Known(News::Names(["s".to_owned()].into())), now);
        known.take(one("passing"), now);
        known
    };
    let mut known = start();
    assert!(!known.holding(now).holds(&key) && known.patience(now).is_none());
    known.ask(&asked, now);
    assert!(!known.holding(now).holds(&key), "an answer is awaited");
    assert_eq!(known.patience(now), Some(PATIENCE));
    known.take(one("passing"), now);
    assert!(known.holding(now).holds(&key) && known.patience(now).is_none(), "it was read anew");
    assert_eq!(known.publish_at(GATHER), Some(now + GATHER), "what it said was known");
    known.ask(&asked, now);
    assert!(known.holding(now).holds(&key), "nothing new is asked for");
    known.ask(&nobody, now);
    assert!(!known.holding(now).holds(&key));

    let mut other = start();
    other.ask(&asked, now);
    assert_eq!(other.publish_at(GATHER), Some(now + PATIENCE), "an answer is awaited");
    other.take(one("warning"), now);
    assert!(!other.holding(now).holds(&key), "what it says has still to be published");
    assert_eq!(other.publish_at(GATHER), Some(now + GATHER_FOR_CALL));
    other.inputs(now);
    assert!(other.holding(now).holds(&key) && other.publish_at(GATHER).is_none());

    let mut slow = start();
    slow.ask(&asked, now);
    assert!(slow.holding(now + PATIENCE).holds(&key), "what was read before is taken");
    let mut away = start();
    away.take(Heard::Failed(Part::Catalog, "gone".to_owned()), now);
    away.ask(&asked, now);
    assert!(away.holding(now).holds(&key), "nobody would answer");
}

#[test]
fn what_was_known_already_is_not_published_again() {
    let now = Instant::now();
    let mut known = Known::new(&Followed::new(None), Subscription::All, now);
    let mut is_news = |heard: Heard| {
        known.take(heard, now);
        let is_news = known.publish_at(GATHER).is_some();
        known.inputs(now);
        is_news
    };
    let names = |all: &[&str]| Heard::Known(News::Names(all.iter().map(|name| (*name).to_owned()).collect()));
    assert!(is_news(names(&["s", "No_Name"])) && !is_news(names(&["s", "No_Name"])));
    assert!(is_news(one("passing")) && !is_news(one("passing")) && is_news(one("critical")));
    let none = || Heard::Known(News::Instances("s".to_owned(), Vec::new()));
    assert!(is_news(none()) && !is_news(none()));
    assert!(!is_news(Heard::Known(News::InTurn(3))) && is_news(names(&["s"])));
}

#[test]
fn who_fell_silent_while_the_catalog_was_away_is_kept_and_otherwise_not() {
    assert_eq!(held_after(None), 0);
    assert_eq!(held_after(Some(Duration::from_secs(1))), 0);
    assert_eq!(held_after(Some(OUTAGE)), 1);
    assert_eq!(held_after(Some(Duration::from_secs(600))), 1);
}
