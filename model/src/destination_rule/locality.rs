//! Near endpoints before far ones, as a DestinationRule says it.

use std::fmt;
use std::sync::Arc;

use crate::workload::Locality;

/// Near endpoints before far ones.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LocalitySetting {
    /// Off switches it off for the service; without it, the mesh's setting.
    pub enabled: Option<bool>,
    /// How.
    pub spread: Spread,
}

/// How connections are spread over localities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spread {
    /// By weights; first match by the caller's locality.
    Distribute(Vec<Distribute>),
    /// The nearest that are well, with outlier detection alone. Without either, by region, zone and sub-zone.
    Failover {
        /// Where a region's calls go when it fails.
        regions: Vec<RegionFailover>,
        /// Labels that endpoints share with the caller, the most important first.
        priority: Vec<PriorityLabel>,
    },
}

impl Default for Spread {
    fn default() -> Self {
        Self::Failover { regions: Vec::new(), priority: Vec::new() }
    }
}

/// Weights of the localities that calls from one go to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Distribute {
    /// The caller's.
    pub from: LocalityPattern,
    /// The endpoints', with weights of 1 to 100 that make up 100.
    pub to: Vec<(LocalityPattern, u32)>,
}

/// Where a region's calls go when it fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegionFailover {
    /// The caller's region.
    pub from: Arc<str>,
    /// The one that takes its calls; another one.
    pub to: Arc<str>,
}

/// A label by which endpoints are near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PriorityLabel {
    /// The label, or one of the names that stand for the locality, such as `topology.kubernetes.io/region`.
    pub key: Arc<str>,
    /// The value; without it, the caller's own.
    pub value: Option<Arc<str>>,
}

/// A locality, or the localities within one: `eu`, `eu/a/*`, `*`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LocalityPattern(Arc<str>);

/// A text that is not a pattern of localities.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a locality: write `region`, `region/zone`, `region/zone/sub-zone`, or `*` in the last place"
)]
pub struct NotALocality(pub String);

impl LocalityPattern {
    /// Reads a pattern.
    pub fn new(text: &str) -> Result<Self, NotALocality> {
        let parts: Vec<&str> = text.split('/').collect();
        let (last, before) = parts.split_last().expect("a split has a part");
        let plain = |part: &&str| !part.is_empty() && !part.contains('*');
        let valid = parts.len() <= 3 && before.iter().all(plain) && (*last == "*" || plain(last));
        if valid { Ok(Self(text.into())) } else { Err(NotALocality(text.to_owned())) }
    }

    /// How many parts are named exactly.
    pub fn depth(&self) -> usize {
        self.0.split('/').filter(|part| *part != "*").count()
    }

    /// Whether a locality is meant.
    pub fn matches(&self, locality: &Locality) -> bool {
        let mut parts = self.0.split('/');
        let mut of = |value: &str| parts.next().is_none_or(|part| part == "*" || part == value);
        of(&locality.region) && of(&locality.zone) && of(&locality.subzone)
    }
}

impl fmt::Display for LocalityPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_match_what_lies_within() {
        let check = |pattern: &str, locality: &str, expected: Option<bool>| {
            let found = LocalityPattern::new(pattern).ok();
            let found = found.map(|pattern| pattern.matches(&Locality::parse(locality)));
            assert_eq!(found, expected, "{pattern} on {locality}");
        };
        check("*", "eu/a/r1", Some(true));
        check("*", "", Some(true));
        check("eu", "eu/a", Some(true));
        check("eu/*", "eu/a/r1", Some(true));
        check("eu/a/*", "eu/b/r1", Some(false));
        check("eu/a/r1", "eu/a/r1", Some(true));
        check("eu/a/r1", "eu/a", Some(false));
        for bad in ["", "*/a", "eu//r1", "e*", "eu/a/r1/x", "eu/"] {
            check(bad, "eu", None);
        }
    }
}
