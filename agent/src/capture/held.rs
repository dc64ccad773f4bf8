//! Processes and containers that are held to the registry (`outboundTrafficPolicy: REGISTRY_ONLY`): whatever they send goes to this
//! host itself, through the agent, or nowhere. Their TCP is brought to the agent, which knows what the registry has;
//! a chain after it refuses every other packet of theirs, of whatever protocol and to whatever port, SSH's, DHCP's and
//! NTP's included: those are exempt for the host's own daemons, and would be a way out for these.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::bridged::{Containers, End, matches};
use super::plan::CapturePlan;
use super::rules::OPENS_NOT;
use super::sets::{Element, NamedSet};
use crate::attribution::cgroup::{Hierarchy, Missed, Survey};
use crate::attribution::{CgroupError, Matcher, Uid};

/// Below this directory nft looks for cgroups.
const NFT_LOOKS_BELOW: &str = "/sys/fs/cgroup";

/// Whose packets are held.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Held {
    /// Everything that these users run.
    pub users: BTreeSet<u32>,
    /// Everything in these cgroups and below them, as they are now.
    pub cgroups: BTreeSet<HeldCgroup>,
    /// Everything that comes from these addresses on these interfaces, captured or not.
    pub containers: Containers,
}

/// A cgroup that stands now.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct HeldCgroup {
    /// Where nft finds it, without a slash at its beginning.
    path: String,
    /// How many names its path in the hierarchy has.
    level: usize,
    /// Its id: another one under the same path is another cgroup.
    id: u64,
}

impl HeldCgroup {
    /// A cgroup; `None` where its path could say something else to nft than where it is.
    pub fn new(path: &str, level: usize, id: u64) -> Option<Self> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"/_-.:@\\".contains(&b);
        let path = path.trim_start_matches('/');
        let fits = !path.is_empty() && path.bytes().all(plain) && (1..=255).contains(&level);
        fits.then(|| Self { path: path.to_owned(), level, id })
    }
}

impl Held {
    /// Whether nobody is.
    pub fn is_empty(&self) -> bool {
        self.has_no_processes() && self.containers.is_empty()
    }

    fn has_no_processes(&self) -> bool {
        self.users.is_empty() && self.cgroups.is_empty()
    }

    /// Adds the users that these matchers name, and the cgroups that they describe and that stand now. A user is held
    /// as a whole, so that a unit that has just been started again is held from its first packet on. Fails where a
    /// cgroup that is described may stand and cannot be seen; those that can be seen are added all the same.
    pub fn add<'a>(&mut self, matchers: impl IntoIterator<Item = &'a Matcher>) -> Result<(), CgroupError> {
        let matchers: Vec<&Matcher> = matchers.into_iter().collect();
        self.users.extend(matchers.iter().filter_map(|matcher| matcher.user()).map(|Uid(uid)| uid));
        if !matchers.iter().any(|matcher| matcher.names_a_place()) {
            return Ok(());
        }
        let hierarchy = Hierarchy::find()?;
        let Survey { places, missed } = hierarchy.survey()?;
        let hidden = |missed: &Missed| {
            matchers.iter().any(|matcher| matcher.may_begin_below(&missed.below, &hierarchy.manager))
        };
        let unseen = missed.into_iter().find(hidden).map(|missed| missed.why);
        for place in places.into_values() {
            if !matchers.iter().any(|matcher| matcher.begins_at(&place)) {
                continue;
            }
            let Some(below) = place.path.below(&hierarchy.path) else { continue };
            let directory = hierarchy.directory.join(below.trim_start_matches('/'));
            // One that has been removed meanwhile has no processes.
            let Ok(metadata) = std::fs::metadata(&directory) else { continue };
            let relative = directory.strip_prefix(Path::new(NFT_LOOKS_BELOW)).ok().and_then(Path::to_str);
            match relative.and_then(|path| HeldCgroup::new(path, place.path.depth(), metadata.ino())) {
                Some(cgroup) => _ = self.cgroups.insert(cgroup),
                None => tracing::error!(
                    cgroup = %place.path,
                    "nft cannot name this cgroup, so no packet rule holds its processes: register the service with --user"
                ),
            }
        }
        unseen.map_or(Ok(()), Err)
    }

    /// One match for each kind: users by a set, cgroups one by one.
    pub(super) fn matches(&self) -> Vec<String> {
        self.users_match().into_iter().chain(self.cgroups.iter().map(HeldCgroup::to_match)).collect()
    }

    pub(super) fn users_match(&self) -> Option<String> {
        (!self.users.is_empty()).then(|| format!("meta skuid @{HELD_USERS}"))
    }

    pub(super) fn set(&self) -> Option<NamedSet> {
        let elements = self.users.iter().map(|uid| (Element::Number(*uid), None)).collect();
        (!self.users.is_empty()).then(|| NamedSet::new(HELD_USERS, "uid", elements))
    }
}

impl HeldCgroup {
    /// With its id as a comment, so that another cgroup under the same path is another rule.
    pub(super) fn to_match(&self) -> String {
        format!("socket cgroupv2 level {} \"{}\"", self.level, self.path)
    }

    pub(super) fn comment(&self) -> String {
        format!("comment \"cgroup {}\"", self.id)
    }
}

const HELD_USERS: &str = "held_users";

/// What comes after the rule for each match: the comment tells cgroups apart that have been under one path.
pub(super) fn jumps(held: &Held) -> Vec<String> {
    let users = held.users_match().map(|users| format!("{users} jump held_check"));
    let cgroups = held.cgroups.iter();
    let cgroups = cgroups.map(|cgroup| format!("{} jump held_check {}", cgroup.to_match(), cgroup.comment()));
    users.into_iter().chain(cgroups).collect()
}

/// What becomes of packets of held processes that are not the agent's to carry. What this host has and answers to what
/// others opened go on; the metadata service is exempt for everybody. No reset leaves either: it could say something.
pub(super) fn held_check() -> Vec<String> {
    passing().into_iter().chain(refusing("held_stray")).collect()
}

/// What goes on, whoever sends it.
pub(super) fn passing() -> [String; 4] {
    let [metadata_v4, metadata_v6] = super::rules::exempt_destinations();
    [
        "ct direction reply return".to_owned(),
        "fib daddr type local return".to_owned(),
        metadata_v4,
        metadata_v6,
    ]
}

/// What becomes of the rest.
pub(super) fn refusing(counter: &str) -> [String; 2] {
    [
        format!("meta l4proto tcp counter name {counter} reject with tcp reset"),
        format!("counter name {counter} reject with icmpx admin-prohibited"),
    ]
}

/// Connection tracking takes whoever it hears first in a connection from before it for the one that opened it. A held
/// process whose peer speaks first would answer such a connection, and pass. So nobody who is not known speaks first.
pub(super) fn no_stranger_speaks_first(plan: &CapturePlan) -> Option<String> {
    let rule = "meta l4proto tcp ct state new tcp flags & (fin | syn | rst | ack) != syn counter name held_midstream drop";
    (!plan.held.has_no_processes()).then(|| rule.to_owned())
}

/// What this host forwards of held containers goes to the same chain, before anything lets it pass.
pub(super) fn container_jumps(held: &Held) -> Vec<String> {
    let from = matches(&held.containers, End::Source);
    from.into_iter().map(|(_, from)| format!("{from} jump held_check")).collect()
}

/// The same of what this host forwards to held containers.
pub(super) fn no_stranger_speaks_first_to_containers(held: &Held) -> Vec<String> {
    let to = matches(&held.containers, End::Destination);
    to.into_iter()
        .map(|(_, to)| {
            format!("{to} meta l4proto tcp ct state new {OPENS_NOT} counter name held_midstream drop")
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_plain_path_reaches_no_rule() {
        let check = |path: &str, level: usize, expected: Option<&str>| {
            let found = HeldCgroup::new(path, level, 7).map(|cgroup| cgroup.to_match());
            assert_eq!(found.as_deref(), expected, "{path}");
        };
        check("/system.slice/a.service", 2, Some("socket cgroupv2 level 2 \"system.slice/a.service\""));
        check(
            "unified/a@1.service/dev-\\x2d.scope",
            2,
            Some("socket cgroupv2 level 2 \"unified/a@1.service/dev-\\x2d.scope\""),
        );
        for bad in ["", "/", "a\" accept #", "a b", "a\nb", "a;b", "a{b", "ä"] {
            check(bad, 1, None);
        }
        check("a", 0, None);
        check("a", 256, None);
    }
}
