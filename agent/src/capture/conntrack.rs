//! How full the kernel's table of tracked connections is. A redirected connection needs a place in it. A full table
//! gives places up that were never answered; when none of those is left the kernel drops what is new, before any rule
//! of ours sees it: nothing goes past the agent then, but nothing new comes to it either, and no program is told why.

use std::fmt;
use std::fs;

/// Tenths of the table from which on it is worth a warning.
const NEARLY_FULL: u64 = 9;

/// How full the table is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tracked {
    /// Connections of this network namespace.
    pub entries: u64,
    /// How many it may have: `net.netfilter.nf_conntrack_max`, which is one for all namespaces of the machine.
    pub limit: u64,
}

impl Tracked {
    /// Reads both; `None` where nothing is tracked, or the kernel does not tell.
    pub fn read() -> Option<Self> {
        let number = |name: &str| {
            let text = fs::read_to_string(format!("/proc/sys/net/netfilter/{name}")).ok()?;
            text.trim().parse().ok()
        };
        Some(Self { entries: number("nf_conntrack_count")?, limit: number("nf_conntrack_max")? })
    }

    /// Whether new connections are about to be dropped. A limit of 0 is none.
    pub fn is_nearly_full(self) -> bool {
        self.limit > 0 && self.entries.saturating_mul(10) >= self.limit.saturating_mul(NEARLY_FULL)
    }
}

impl fmt::Display for Tracked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the kernel tracks {} connections of the {} that it may, and drops new ones beyond: raise net.netfilter.nf_conntrack_max",
            self.entries, self.limit
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nine_tenths_are_nearly_full() {
        let check = |entries, limit, expected| {
            assert_eq!(Tracked { entries, limit }.is_nearly_full(), expected, "{entries} of {limit}");
        };
        check(0, 0, false);
        check(0, 262_144, false);
        check(89, 100, false);
        check(90, 100, true);
        check(101, 100, true);
        check(u64::MAX, u64::MAX, true);
    }
}
