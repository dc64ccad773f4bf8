//! The host's addresses followed while the agent runs, where the configuration does not say them: a lease that is another one,
//! an interface that comes late, a family that is gone.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use super::prepare::resolve;
use crate::addresses;
use crate::publish::Publisher;

/// How often it is looked. What has changed counts when it was seen twice: an address that is replaced is gone for a moment.
const LOOK: Duration = Duration::from_secs(1);

/// What the interfaces have, and what was made of it last.
#[derive(Debug, Default)]
struct Seen {
    last: BTreeSet<IpAddr>,
    taken: BTreeSet<IpAddr>,
}

impl Seen {
    /// Whether what is there `now` has come to rest, and was not taken yet. A host without any address keeps what it has: it
    /// is cut off, and will come back.
    fn is_news(&mut self, now: BTreeSet<IpAddr>) -> bool {
        let rests = self.last == now;
        self.last = now;
        let is_news = rests && self.last != self.taken && !self.last.is_empty();
        if is_news {
            self.taken.clone_from(&self.last);
        }
        is_news
    }
}

/// Follows them for ever, as those of the interface that leads to `control`.
pub(super) async fn follow(publisher: Arc<Publisher>, control: Option<String>) {
    // What was found at the start may be old already.
    let mut seen = Seen::default();
    loop {
        tokio::time::sleep(LOOK).await;
        let Ok(now) = addresses::own() else { continue };
        if !seen.is_news(now.into_iter().collect()) {
            continue;
        }
        let control = control.clone();
        let looking = move || addresses::detect(control.as_deref().and_then(resolve));
        let detected = match tokio::task::spawn_blocking(looking).await {
            Ok(Ok(detected)) if !detected.addresses.is_empty() => detected,
            _ => continue,
        };
        match publisher.take_addresses(detected.addresses.clone(), &detected.why) {
            Ok(false) => {}
            Ok(true) => {
                tracing::warn!(addresses = ?detected.addresses, why = detected.why, "this host has other addresses: its services are announced there from now on");
            }
            Err(reason) => {
                tracing::error!(addresses = ?detected.addresses, reason, "this host has other addresses, and its services cannot be announced there");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_come_to_rest_is_news_once_and_nothing_is_none() {
        let of = |texts: &[&str]| texts.iter().map(|text| text.parse().expect("an address")).collect();
        let mut seen = Seen { last: of(&["10.0.0.1"]), taken: of(&["10.0.0.1"]) };
        let mut is_news = |texts: &[&str]| seen.is_news(of(texts));
        assert!(!is_news(&["10.0.0.1"]));
        assert!(!is_news(&[]) && !is_news(&[]), "it is cut off");
        assert!(!is_news(&["10.0.0.1"]) && !is_news(&["10.0.0.1"]), "and is back as it was");
        assert!(!is_news(&["10.0.0.2"]), "it may change yet");
        assert!(is_news(&["10.0.0.2"]));
        assert!(!is_news(&["10.0.0.2"]));
    }
}
