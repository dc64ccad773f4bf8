//! Certificates that come to their end: what this host holds, and what signs it. Each has a time before its end from which
//! on something is wrong, because it would have been replaced by then; it is logged, and shown by `status`.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, SystemTime};

use baremesh_ca::service::{INTERMEDIATE_NEAR, ROOT_NEAR};
use baremesh_ca::tls::{TrustBundle, validity};
use rustls_pki_types::CertificateDer;

/// A certificate of this host is overdue with less than this share of its life left: it renews itself at half of it.
pub const LEAF_NEAR: f64 = 0.25;
/// How often the log says it again.
const AGAIN: Duration = Duration::from_secs(3600);

/// What a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A root that is trusted.
    Root,
    /// What signed a certificate of this host.
    Intermediate,
    /// The node credential.
    Node,
    /// A service's, or the host's own.
    Leaf,
}

impl Kind {
    /// As it stands in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::Node => "node",
            Self::Leaf => "leaf",
        }
    }
}

/// A certificate, and when it ends.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ends {
    /// What it is.
    pub kind: Kind,
    /// Whose it is, of a leaf.
    pub of: String,
    /// From when on it is valid.
    pub from: SystemTime,
    /// Until when it is valid.
    pub until: SystemTime,
}

impl Ends {
    /// Whether it ought to have been replaced by now.
    pub fn is_near(&self, now: SystemTime) -> bool {
        let left = self.until.duration_since(now).unwrap_or_default();
        match self.kind {
            Kind::Root => left < ROOT_NEAR,
            Kind::Intermediate => left < INTERMEDIATE_NEAR,
            Kind::Node | Kind::Leaf => {
                let life = self.until.duration_since(self.from).unwrap_or_default();
                left < life.mul_f64(LEAF_NEAR)
            }
        }
    }

    /// What an operator is told of it.
    pub fn warning(&self, now: SystemTime) -> String {
        let when = match self.until.duration_since(now) {
            Ok(left) => format!("ends in {}", in_words(left)),
            Err(late) => format!("ended {} ago", in_words(late.duration())),
        };
        match self.kind {
            Kind::Root => {
                format!("a root of the mesh {when}: `baremesh ca rotate --root` on the control host")
            }
            Kind::Intermediate => {
                format!(
                    "the certificate that signs this host's {when}: the control server's log says what it lacks"
                )
            }
            Kind::Node => format!(
                "the node credential {when} and is not renewed: is the control server in reach, and this host not shut out?"
            ),
            Kind::Leaf => {
                format!(
                    "the certificate of {} {when} and is not renewed: is the control server in reach?",
                    self.of
                )
            }
        }
    }
}

/// The authorities that these chains and the trust bundle name, each once.
pub fn authorities<'a>(
    bundle: &TrustBundle,
    chains: impl Iterator<Item = &'a [CertificateDer<'static>]>,
) -> BTreeSet<Ends> {
    let ends = |kind: Kind, certificate: &CertificateDer<'_>| {
        let (from, until) = validity(certificate).ok()?;
        Some(Ends { kind, of: String::new(), from, until })
    };
    let roots = bundle.roots().iter().filter_map(|root| ends(Kind::Root, root));
    let signers = chains.filter_map(|chain| ends(Kind::Intermediate, chain.get(1)?));
    roots.chain(signers.collect::<Vec<_>>()).collect()
}

/// Says in the log what is near its end, now and then.
#[derive(Debug, Default)]
pub struct Reminder {
    told: BTreeSet<Ends>,
    at: Option<SystemTime>,
}

impl Reminder {
    /// The warnings, of which those go into the log that are new or have not been there for long.
    pub fn remind(&mut self, all: &BTreeSet<Ends>, now: SystemTime) -> Vec<String> {
        let near: BTreeSet<Ends> = all.iter().filter(|one| one.is_near(now)).cloned().collect();
        // Set back, the clock does not silence it.
        let again = self.at.is_none_or(|at| now.duration_since(at).map_or(true, |since| since >= AGAIN));
        for one in near.iter().filter(|one| again || !self.told.contains(one)) {
            tracing::warn!(kind = one.kind.name(), "{}", one.warning(now));
        }
        if again {
            self.at = Some(now);
        }
        self.told.clone_from(&near);
        near.iter().map(|one| one.warning(now)).collect()
    }
}

/// A duration as an operator reads it.
struct InWords(Duration);

fn in_words(duration: Duration) -> InWords {
    InWords(duration)
}

impl fmt::Display for InWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        match (seconds / 86_400, seconds / 3_600, seconds / 60) {
            (0, 0, 0) => write!(f, "{seconds} s"),
            (0, 0, minutes) => write!(f, "{minutes} min"),
            (0, hours, _) => write!(f, "{hours} h"),
            (days, _, _) => write!(f, "{days} d"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    #[test]
    fn each_kind_is_near_its_end_when_it_ought_to_have_been_replaced() {
        let now = SystemTime::now();
        let check = |kind, life: u32, left: u32, near: bool| {
            let until = now + DAY * left;
            let one = Ends { kind, of: String::new(), from: until - DAY * life, until };
            assert_eq!(one.is_near(now), near, "{kind:?} {left}");
        };
        check(Kind::Root, 3650, 181, false);
        check(Kind::Root, 3650, 179, true);
        check(Kind::Intermediate, 365, 31, false);
        check(Kind::Intermediate, 365, 29, true);
        check(Kind::Node, 30, 8, false);
        check(Kind::Node, 30, 7, true);
        check(Kind::Leaf, 4, 1, false);
        check(Kind::Leaf, 8, 1, true);
        let ended = Ends { kind: Kind::Leaf, of: "x".into(), from: now - DAY * 2, until: now - DAY };
        assert!(ended.is_near(now) && ended.warning(now).contains("ended 1 d ago"), "{}", ended.warning(now));
    }

    #[test]
    fn the_log_says_it_once_and_again_after_an_hour() {
        let now = SystemTime::now();
        let near = Ends { kind: Kind::Node, of: String::new(), from: now - DAY * 29, until: now + DAY };
        let far = Ends { until: now + DAY * 300, ..near.clone() };
        let all = BTreeSet::from([near, far]);
        let mut reminder = Reminder::default();
        assert_eq!(reminder.remind(&all, now).len(), 1);
        assert_eq!(reminder.at, Some(now));
        reminder.remind(&all, now + Duration::from_secs(60));
        assert_eq!(reminder.at, Some(now), "not again so soon");
        reminder.remind(&all, now + AGAIN);
        assert_eq!(reminder.at, Some(now + AGAIN));
    }
}
