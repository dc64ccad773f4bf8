//! Certificates of this host's services, the host's own, and the node credential.

use std::collections::BTreeMap;
use std::time::Duration;

use baremesh_ca::tls::NODE_GRACE;

use crate::admin::report::CertificateReport;
use crate::doctor::Check;
use crate::doctor::code::Code;
use crate::identity::expiry::LEAF_NEAR;

/// What is held, and what is not.
#[derive(Debug, Clone, Default)]
pub struct Held<'a> {
    /// Certificates of services and of the host.
    pub certificates: &'a [CertificateReport],
    /// The node credential, where there is one and it can be seen.
    pub node: Option<&'a CertificateReport>,
    /// Why the last attempt to get one failed, by identity.
    pub missing: Option<&'a BTreeMap<String, String>>,
    /// Identities that the host was not granted.
    pub not_granted: &'a [String],
}

/// How certificates stand at `now`, in seconds since 1970.
pub fn certificates(held: &Held<'_>, now: u64) -> Check {
    let mut check = Check::new("certificates");
    let next = held.certificates.iter().map(|one| one.not_after).min();
    check.seen = match next {
        Some(next) => format!("{} held, the first ends in {}", held.certificates.len(), until(next, now)),
        None => "none held".to_owned(),
    };
    for one in held.certificates {
        judge(one, now, &mut check);
    }
    for (identity, reason) in held.missing.into_iter().flatten() {
        let is_held = held.certificates.iter().any(|one| one.identity == *identity && now <= one.not_after);
        let code = match (held.not_granted.contains(identity), is_held) {
            (true, _) => Code::NotGranted,
            (false, true) => Code::RenewalFails,
            (false, false) => Code::CertificateMissing,
        };
        check.found(code, format!("{identity}: {reason}"));
    }
    match held.node {
        Some(node) if now > node.not_after => {
            let since = now - node.not_after;
            let left = NODE_GRACE.as_secs().saturating_sub(since);
            let said = format!("it ended {} ago, and renews itself for {} more", words(since), words(left));
            check.found(Code::NodeEnded, said);
        }
        Some(node) if is_near(node, now) => {
            check.found(
                Code::CertificateNearEnd,
                format!("the node credential ends in {}", until(node.not_after, now)),
            );
        }
        _ => {}
    }
    check
}

fn judge(one: &CertificateReport, now: u64, check: &mut Check) {
    let identity = &one.identity;
    if now > one.not_after {
        check.found(
            Code::CertificateEnded,
            format!("{identity}: it ended {} ago", words(now - one.not_after)),
        );
    } else if now < one.not_before {
        check.found(
            Code::CertificateEarly,
            format!("{identity}: it is valid in {}", until(one.not_before, now)),
        );
    } else if is_near(one, now) {
        check
            .found(Code::CertificateNearEnd, format!("{identity}: it ends in {}", until(one.not_after, now)));
    }
}

/// Whether it ought to have been replaced by now: at half of its life.
fn is_near(one: &CertificateReport, now: u64) -> bool {
    let life = one.not_after.saturating_sub(one.not_before) as f64;
    (one.not_after.saturating_sub(now) as f64) < life * LEAF_NEAR
}

fn until(moment: u64, now: u64) -> String {
    words(moment.saturating_sub(now))
}

fn words(seconds: u64) -> String {
    let seconds = Duration::from_secs(seconds).as_secs();
    match (seconds / 86_400, seconds / 3600, seconds / 60) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, minutes) => format!("{minutes} min"),
        (0, hours, _) => format!("{hours} h"),
        (days, ..) => format!("{days} d"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn one(identity: &str, from: u64, until: u64) -> CertificateReport {
        let (identity, serial) = (identity.to_owned(), "01".to_owned());
        CertificateReport { identity, serial, not_before: from, not_after: until }
    }

    #[test]
    fn tells_what_ended_from_what_will() {
        let check = |of: &[CertificateReport],
                     node: Option<&CertificateReport>,
                     missing: &[(&str, &str)],
                     expected: &[Code]| {
            let missing = missing.iter().map(|(a, b)| ((*a).to_owned(), (*b).to_owned())).collect();
            let not_granted = ["u".to_owned()];
            let held = Held { certificates: of, node, missing: Some(&missing), not_granted: &not_granted };
            let check = certificates(&held, NOW);
            let codes: Vec<_> = check.findings.iter().map(|finding| finding.code).collect();
            assert_eq!(codes, expected, "{held:?}");
        };
        let good = one("a", NOW - 100, NOW + 100);
        let (ended, near) = (one("n", 0, NOW - 86_400), one("n", NOW - 100, NOW + 10));
        check(std::slice::from_ref(&good), Some(&good), &[], &[]);
        check(&[one("a", NOW - 100, NOW - 1)], None, &[], &[Code::CertificateEnded]);
        check(&[one("a", NOW + 10, NOW + 100)], None, &[], &[Code::CertificateEarly]);
        check(&[one("a", NOW - 100, NOW + 30)], None, &[], &[Code::CertificateNearEnd]);
        check(std::slice::from_ref(&good), None, &[("a", "away")], &[Code::RenewalFails]);
        check(std::slice::from_ref(&good), None, &[("b", "away")], &[Code::CertificateMissing]);
        check(std::slice::from_ref(&good), None, &[("u", "not granted")], &[Code::NotGranted]);
        check(
            &[one("a", 0, NOW - 1)],
            None,
            &[("a", "x")],
            &[Code::CertificateEnded, Code::CertificateMissing],
        );
        check(&[], Some(&ended), &[], &[Code::NodeEnded]);
        check(&[], Some(&near), &[], &[Code::CertificateNearEnd]);
    }
}
