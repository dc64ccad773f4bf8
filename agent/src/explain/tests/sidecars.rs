//! What a Sidecar of the called side says of a call.

use super::*;

/// A Sidecar of the called side is in the way of what is called there, on another host and on this one.
#[test]
fn what_a_sidecar_does_not_take_is_explained_with_its_name() {
    let sidecar =
        "[[Sidecar]]\nname = \"default\"\nnamespace = \"default\"\ningress = [{ port = { number = 1 } }]\n";
    let snapshot = build(sidecar);
    let explanation = explained(&snapshot, Some("shop"), &question("http://ratings/"));
    assert_eq!((explanation.passes, explanation.outcome), (false, Outcome::Refused), "{explanation:?}");
    assert!(explanation.summary.contains("Sidecar default.default"), "{}", explanation.summary);
    let [decision] = &explanation.destinations[0].decisions[..] else { panic!("{explanation:?}") };
    assert_eq!(decision.answer.as_ref().and_then(|answer| answer.status), Some(403), "{decision:?}");
    let own = SocketAddr::new(host().addresses[0], 7000);
    let local = snapshot.advertised(own).expect("registered");
    assert!(local.refused_by.is_some());
    let explanation = explained(&snapshot, Some("shop"), &question(&format!("tcp://{own}")));
    assert_eq!(explanation.outcome, Outcome::Refused, "{explanation:?}");
    assert!(explanation.summary.contains("Sidecar default.default"), "{}", explanation.summary);
}
