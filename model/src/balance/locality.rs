//! Near endpoints before far ones, in two steps: `groups` sorts the endpoints when they change, and `choose` takes one of
//! the groups by how many in each are well. As Istio and Envoy have it: a group that is well in part keeps that part of
//! its calls, with two fifths to spare, and the next nearest takes the rest.

use crate::destination_rule::{Distribute, LocalitySetting, PriorityLabel, RegionFailover, Spread};
use crate::workload::{Labels, Locality};

/// Where something stands, as balancing knows it.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Region, zone and sub-zone.
    pub locality: &'a Locality,
    /// Its labels.
    pub labels: &'a Labels,
    /// Its share; a caller has none.
    pub weight: u32,
}

/// Endpoints that are as near.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// 0 is the nearest.
    pub priority: u32,
    /// Its share among groups that are as near.
    pub weight: u64,
    /// Indices of its endpoints.
    pub members: Vec<usize>,
}

/// The groups, the nearest first. `failover` is whether endpoints that fail are left out at all: without that nobody
/// would ever notice that the near ones have failed, and all are as near.
pub fn groups(
    endpoints: &[Place<'_>],
    caller: Place<'_>,
    setting: Option<&LocalitySetting>,
    failover: bool,
) -> Vec<Group> {
    let everything = || {
        let weight = endpoints.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
        vec![Group { priority: 0, weight, members: (0..endpoints.len()).collect() }]
    };
    let default = LocalitySetting::default();
    let setting = setting.unwrap_or(&default);
    if setting.enabled == Some(false) {
        return everything();
    }
    match &setting.spread {
        Spread::Distribute(rules) => {
            let rule = rules.iter().find(|rule| rule.from.matches(caller.locality));
            rule.map_or_else(everything, |rule| distributed(endpoints, rule))
        }
        Spread::Failover { regions, priority } if failover => {
            by_priority(endpoints, |endpoint| {
                let by_label = shared(priority, caller, endpoint);
                let by_place = distance(caller.locality, endpoint.locality, regions);
                // Where labels decide, the region does so only if it is asked to.
                if !priority.is_empty() && regions.is_empty() { (by_label, 0) } else { (by_label, by_place) }
            })
        }
        Spread::Failover { .. } => everything(),
    }
}

/// By weights. What no pattern names takes nothing; one that names several localities shares its weight among them by
/// the endpoints' own, so that the most exact pattern of an endpoint counts alone.
fn distributed(endpoints: &[Place<'_>], rule: &Distribute) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    let mut placed = vec![false; endpoints.len()];
    let mut patterns: Vec<_> = rule.to.iter().collect();
    // `eu/a/*` before `eu/*` before `*`: exact places first.
    patterns.sort_by_key(|(pattern, _)| std::cmp::Reverse(pattern.depth()));
    for (pattern, weight) in patterns {
        let inside = |index: &usize| !placed[*index] && pattern.matches(endpoints[*index].locality);
        let members: Vec<usize> = (0..endpoints.len()).filter(inside).collect();
        members.iter().for_each(|index| placed[*index] = true);
        if !members.is_empty() {
            groups.push(Group { priority: 0, weight: u64::from(*weight), members });
        }
    }
    groups
}

/// How many steps away: 0 the same sub-zone, 1 the zone, 2 the region, 3 elsewhere, 4 elsewhere than where the region's
/// calls are to go.
fn distance(caller: &Locality, endpoint: &Locality, failover: &[RegionFailover]) -> u32 {
    if caller.region != endpoint.region {
        let to = failover.iter().find(|rule| rule.from == caller.region).map(|rule| &rule.to);
        return if to.is_none_or(|to| *to == endpoint.region) { 3 } else { 4 };
    }
    match (caller.zone == endpoint.zone, caller.subzone == endpoint.subzone) {
        (true, true) => 0,
        (true, false) => 1,
        (false, _) => 2,
    }
}

/// How many of the labels, from the first that differs on, are not shared with the caller.
fn shared(labels: &[PriorityLabel], caller: Place<'_>, endpoint: &Place<'_>) -> u32 {
    let same = labels.iter().take_while(|label| {
        let own = value_of(endpoint, &label.key);
        match &label.value {
            Some(value) => own == Some(&**value),
            None => own == value_of(&caller, &label.key),
        }
    });
    u32::try_from(labels.len() - same.count()).unwrap_or(u32::MAX)
}

/// A label's value; the names that stand for the locality are as Kubernetes and Istio have them.
fn value_of<'a>(place: &Place<'a>, key: &str) -> Option<&'a str> {
    let written = place.labels.get(key).map(|value| &**value);
    let part = match key {
        "topology.kubernetes.io/region" | "failure-domain.beta.kubernetes.io/region" => {
            &place.locality.region
        }
        "topology.kubernetes.io/zone" | "failure-domain.beta.kubernetes.io/zone" => &place.locality.zone,
        "topology.istio.io/subzone" => &place.locality.subzone,
        _ => return written,
    };
    written.or(Some(&**part))
}

/// Endpoints by how near they are; priorities are counted from 0 without a gap.
fn by_priority<'a>(endpoints: &[Place<'a>], nearness: impl Fn(&Place<'a>) -> (u32, u32)) -> Vec<Group> {
    let mut sorted: Vec<((u32, u32), usize)> =
        endpoints.iter().enumerate().map(|(index, endpoint)| (nearness(endpoint), index)).collect();
    sorted.sort_unstable();
    let mut groups: Vec<Group> = Vec::new();
    let mut last = None;
    for (near, index) in sorted {
        if last.replace(near) != Some(near) {
            let priority = u32::try_from(groups.len()).unwrap_or(u32::MAX);
            groups.push(Group { priority, weight: 0, members: Vec::new() });
        }
        if let Some(group) = groups.last_mut() {
            group.weight += u64::from(endpoints[index].weight);
            group.members.push(index);
        }
    }
    groups
}

/// How many of a group are well, of how many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    /// The group's priority.
    pub priority: u32,
    /// The group's weight.
    pub weight: u64,
    /// Endpoints that are well.
    pub healthy: usize,
    /// All.
    pub total: usize,
}

impl Health {
    /// How much of its calls it can take, in per cent: with two fifths to spare, as Envoy has it. One of very many that is
    /// well is more than nothing.
    fn availability(self) -> u64 {
        const OVERPROVISIONING: usize = 140;
        let available = self.healthy.saturating_mul(OVERPROVISIONING) / self.total.max(1);
        u64::try_from(available.max(usize::from(self.healthy > 0))).unwrap_or(u64::MAX).min(100)
    }

    fn with(self, other: Self) -> Self {
        Self { healthy: self.healthy + other.healthy, total: self.total + other.total, ..self }
    }
}

/// What was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    /// This group's endpoints that are well.
    Healthy(usize),
    /// This group's endpoints, well or not: too few are.
    Any(usize),
}

/// Chooses a group; `None` where nothing is well and nothing says to go on regardless. `is_panic` says whether so few of
/// a priority are well that all of it is used. Nothing is allocated.
pub fn choose(
    groups: usize,
    random: u64,
    health: impl Fn(usize) -> Health,
    is_panic: impl Fn(usize, usize) -> bool,
) -> Option<Choice> {
    let (chosen, total) = priority(groups, random, &health)?;
    let level = level(groups, chosen, &health);
    let panic = total < 100 && is_panic(level.healthy, level.total);
    let weight = |index: usize| weight_in(chosen, health(index), panic);
    let sum: u64 = (0..groups).map(weight).fold(0, u64::saturating_add);
    let mut left = super::hash::mix(random).checked_rem(sum)?;
    let index = (0..groups).find(|index| {
        let own = weight(*index);
        let found = left < own;
        left = left.saturating_sub(own);
        found
    })?;
    Some(if panic { Choice::Any(index) } else { Choice::Healthy(index) })
}

/// A group's weight when it is `chosen` priority's turn.
fn weight_in(chosen: u32, group: Health, panic: bool) -> u64 {
    if group.priority != chosen {
        0
    } else if panic {
        group.weight
    } else {
        group.weight.saturating_mul(group.availability())
    }
}

/// What a group gets of all calls.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Share {
    /// Of 1.
    pub of_all: f64,
    /// Whether all of its endpoints are used, well or not.
    pub any: bool,
}

/// The shares by which [`choose`] chooses, a group each. All are 0 where it chooses none.
pub fn shares(
    groups: usize,
    health: impl Fn(usize) -> Health,
    is_panic: impl Fn(usize, usize) -> bool,
) -> Vec<Share> {
    let mut shares = vec![Share::default(); groups];
    let Some((first, last)) = priorities(groups, &health) else { return shares };
    let total = available_in(groups, first..=last, &health);
    let mut left = total;
    for priority in first..=last {
        let level = level(groups, priority, &health);
        let own = level.availability().min(left);
        left -= own;
        let load = match total {
            0 => f64::from(u8::from(priority == first)),
            total => own as f64 / total as f64,
        };
        let any = total < 100 && is_panic(level.healthy, level.total);
        let weights = (0..groups).map(|index| weight_in(priority, health(index), any));
        let sum = weights.clone().fold(0, u64::saturating_add);
        for (share, weight) in shares.iter_mut().zip(weights).filter(|(_, weight)| *weight > 0) {
            *share = Share { of_all: load * (weight as f64 / sum as f64), any };
        }
    }
    shares
}

/// The nearest priority, and the farthest.
fn priorities(groups: usize, health: &impl Fn(usize) -> Health) -> Option<(u32, u32)> {
    let first = (0..groups).map(|index| health(index).priority).min()?;
    let last = (0..groups).map(|index| health(index).priority).max()?;
    Some((first, last))
}

/// How much some priorities together can take, in per cent.
fn available_in(
    groups: usize,
    mut priorities: std::ops::RangeInclusive<u32>,
    health: &impl Fn(usize) -> Health,
) -> u64 {
    let most = priorities.try_fold(0_u64, |sum, priority| {
        let sum = sum + level(groups, priority, health).availability();
        if sum < 100 { Ok(sum) } else { Err(sum) }
    });
    most.unwrap_or(100)
}

/// All groups of one priority together.
fn level(groups: usize, priority: u32, health: &impl Fn(usize) -> Health) -> Health {
    let of = (0..groups).map(health).filter(|group| group.priority == priority);
    of.fold(Health { priority, ..Health::default() }, Health::with)
}

/// The priority whose turn it is, and how much all together can take.
fn priority(groups: usize, random: u64, health: &impl Fn(usize) -> Health) -> Option<(u32, u64)> {
    let (first, last) = priorities(groups, health)?;
    let available = |priority| level(groups, priority, health).availability();
    let total = available_in(groups, first..=last, health);
    let mut left = random.checked_rem(total).unwrap_or(0);
    let chosen = (first..=last).find(|priority| {
        let own = available(*priority);
        let found = left < own;
        left = left.saturating_sub(own);
        found
    });
    // Nothing is available anywhere: it is the nearest's to say whether to go on.
    Some((chosen.unwrap_or(first), total))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::destination_rule::LocalityPattern;

    fn check(setting: &LocalitySetting, failover: bool, caller: &str, expected: &[(u32, u64, &[usize])]) {
        const PLACES: [&str; 6] = ["eu/a/r1", "eu/a/r2", "eu/b/r1", "us/a/r1", "ap/a/r1", ""];
        let labels: Vec<Labels> = (0..6).map(|n| [("v".into(), ["1", "2"][n % 2].into())].into()).collect();
        let localities = PLACES.map(Locality::parse);
        let places = localities.iter().zip(&labels);
        let places: Vec<Place<'_>> =
            places.map(|(locality, labels)| Place { locality, labels, weight: 2 }).collect();
        let locality = Locality::parse(caller);
        let own = [("v".into(), "2".into())].into();
        let caller_at = Place { locality: &locality, labels: &own, weight: 0 };
        let found = groups(&places, caller_at, Some(setting), failover);
        let found: Vec<_> =
            found.iter().map(|group| (group.priority, group.weight, &group.members[..])).collect();
        assert_eq!(found, expected, "{setting:?} from {caller}");
    }

    fn failover(regions: &[(&str, &str)], labels: &[(&str, Option<&str>)]) -> LocalitySetting {
        let regions =
            regions.iter().map(|(from, to)| RegionFailover { from: (*from).into(), to: (*to).into() });
        let label = |(key, value): &(&str, Option<&str>)| PriorityLabel {
            key: (*key).into(),
            value: value.map(Into::into),
        };
        let priority = labels.iter().map(label).collect();
        LocalitySetting { enabled: None, spread: Spread::Failover { regions: regions.collect(), priority } }
    }

    #[test]
    fn the_nearest_first() {
        let default = LocalitySetting::default();
        let all: &[(u32, u64, &[usize])] = &[(0, 12, &[0, 1, 2, 3, 4, 5])];
        check(&default, true, "eu/a/r1", &[(0, 2, &[0]), (1, 2, &[1]), (2, 2, &[2]), (3, 6, &[3, 4, 5])]);
        check(&default, true, "us/b/r1", &[(0, 2, &[3]), (1, 10, &[0, 1, 2, 4, 5])]);
        check(&default, false, "eu/a/r1", all);
        check(&LocalitySetting { enabled: Some(false), ..default }, true, "eu/a/r1", all);
        let to_us = failover(&[("eu", "us")], &[]);
        check(
            &to_us,
            true,
            "eu/a/r1",
            &[(0, 2, &[0]), (1, 2, &[1]), (2, 2, &[2]), (3, 2, &[3]), (4, 4, &[4, 5])],
        );
        check(&to_us, true, "ap/x/y", &[(0, 2, &[4]), (1, 10, &[0, 1, 2, 3, 5])]);
    }

    #[test]
    fn labels_as_asked() {
        check(&failover(&[], &[("v", None)]), true, "eu", &[(0, 6, &[1, 3, 5]), (1, 6, &[0, 2, 4])]);
        check(
            &failover(&[], &[("v", Some("1")), ("topology.kubernetes.io/region", None)]),
            true,
            "eu/a/r1",
            &[(0, 4, &[0, 2]), (1, 2, &[4]), (2, 6, &[1, 3, 5])],
        );
        // The later label counts only where the earlier one is shared.
        check(
            &failover(&[], &[("topology.kubernetes.io/region", None), ("v", None)]),
            true,
            "eu",
            &[(0, 2, &[1]), (1, 4, &[0, 2]), (2, 6, &[3, 4, 5])],
        );
    }

    #[test]
    fn weights_as_asked() {
        let pattern = |text: &str| LocalityPattern::new(text).expect("a pattern");
        let to = |list: &[(&str, u32)]| list.iter().map(|(text, weight)| (pattern(text), *weight)).collect();
        let rules = vec![
            Distribute { from: pattern("eu/a/*"), to: to(&[("eu/*", 30), ("eu/a/r1", 50), ("us/*", 20)]) },
            Distribute { from: pattern("*"), to: to(&[("*", 100)]) },
        ];
        let setting = LocalitySetting { enabled: None, spread: Spread::Distribute(rules.clone()) };
        check(&setting, false, "eu/a/r9", &[(0, 50, &[0]), (0, 30, &[1, 2]), (0, 20, &[3])]);
        check(&setting, false, "us", &[(0, 100, &[0, 1, 2, 3, 4, 5])]);
        let none = LocalitySetting { enabled: None, spread: Spread::Distribute(rules[..1].to_vec()) };
        check(&none, true, "us", &[(0, 12, &[0, 1, 2, 3, 4, 5])]);
    }

    /// How often of a hundred each group is chosen; `None` is the last. The shares that are told agree with it.
    fn drawn(groups: &[(u32, u64, usize, usize)], min_health: usize) -> Vec<usize> {
        let health = |index: usize| {
            let (priority, weight, healthy, total) = groups[index];
            Health { priority, weight, healthy, total }
        };
        let mut counts = vec![0; groups.len() + 1];
        for random in 0..10_000 {
            let panic = |healthy: usize, total: usize| healthy * 100 < min_health * total;
            match choose(groups.len(), random, health, panic) {
                Some(Choice::Healthy(index) | Choice::Any(index)) => counts[index] += 1,
                None => counts[groups.len()] += 1,
            }
        }
        let panic = |healthy: usize, total: usize| healthy * 100 < min_health * total;
        for (share, count) in shares(groups.len(), health, panic).iter().zip(&counts) {
            let drawn = f64::from(u32::try_from(*count).expect("a count")) / 10_000.0;
            assert!((share.of_all - drawn).abs() < 0.02, "{share:?} told and {drawn} drawn: {groups:?}");
        }
        counts.into_iter().map(|count: usize| (count + 50) / 100).collect()
    }

    #[test]
    fn the_next_takes_what_the_nearest_cannot() {
        assert_eq!(drawn(&[(0, 1, 10, 10), (1, 1, 10, 10)], 0), [100, 0, 0]);
        assert_eq!(drawn(&[(0, 1, 8, 10), (1, 1, 10, 10)], 0), [100, 0, 0], "two fifths to spare");
        assert_eq!(drawn(&[(0, 1, 5, 10), (1, 1, 10, 10)], 0), [70, 30, 0]);
        assert_eq!(drawn(&[(0, 1, 0, 10), (1, 1, 10, 10)], 0), [0, 100, 0]);
        assert_eq!(drawn(&[(0, 1, 0, 10), (1, 1, 0, 10)], 0), [0, 0, 100]);
        assert_eq!(drawn(&[(0, 1, 0, 10), (1, 1, 0, 10)], 50), [100, 0, 0], "panic");
        assert_eq!(drawn(&[(0, 1, 1, 1000)], 0), [100, 0], "one is left");
        assert_eq!(drawn(&[(0, 1, 0, 10), (1, 1, 1, 1000)], 0), [0, 100, 0], "one is left, and far away");
        assert_eq!(drawn(&[], 50), [100], "nobody");
    }

    #[test]
    fn weights_follow_what_is_well() {
        let found = drawn(&[(0, 80, 5, 5), (0, 20, 5, 5)], 0);
        assert!((78..=82).contains(&found[0]), "{found:?}");
        let found = drawn(&[(0, 80, 0, 5), (0, 20, 5, 5)], 0);
        assert_eq!(found, [0, 100, 0]);
    }
}
