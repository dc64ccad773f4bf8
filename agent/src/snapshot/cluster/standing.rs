//! How the endpoints of a cluster stand at a moment: the shares by which one of them is picked, told to people. It changes
//! nothing, not even whose turn it is.

use std::sync::Arc;
use std::time::{Duration, Instant};

use baremesh_model::balance::locality;

use super::{Cluster, Endpoint, Group};
use crate::snapshot::endpoint::milliseconds;

/// How an endpoint stands.
#[derive(Debug, Clone)]
pub struct Standing<'a> {
    /// The endpoint.
    pub endpoint: &'a Arc<Endpoint>,
    /// Of the group that it is in; 0 is the nearest.
    pub priority: u32,
    /// What it gets of all calls, of 1: by weight, while as much is in flight everywhere and none warms up.
    pub share: f64,
    /// For how much longer it is left out, where it is.
    pub ejected_for: Option<Duration>,
}

impl<'a> Standing<'a> {
    /// How an endpoint stands that gets all calls, well or not.
    pub fn alone(endpoint: &'a Arc<Endpoint>, now: Instant) -> Self {
        let ejected_for = endpoint.state.ejected_for(milliseconds(now));
        Self { endpoint, priority: 0, share: 1.0, ejected_for }
    }
}

impl Cluster {
    /// How every endpoint stands, in the order of the groups. The shares are those that `pick` goes by.
    pub fn standings(&self, now: Instant) -> Vec<Standing<'_>> {
        let now = milliseconds(now);
        let all_well = self.all_count_as_well(now);
        let health = |group: usize| self.health(group, now, all_well);
        let panic = |healthy, total| self.is_panic(healthy, total);
        let of_groups = locality::shares(self.groups.len(), health, panic);
        let mut standings: Vec<_> = self.groups.iter().flat_map(|group| self.members(group, now)).collect();
        for (index, share) in of_groups.iter().enumerate().filter(|(_, share)| share.of_all > 0.0) {
            let others = || (0..self.groups.len()).filter(|other| *other != index);
            let nearest = |usable: &dyn Fn(&Standing<'_>) -> bool| {
                std::iter::once(index).chain(others()).find_map(|group| {
                    let range = self.groups[group].range.clone();
                    let members: Vec<_> = range.filter(|member| usable(&standings[*member])).collect();
                    Some(members).filter(|members| !members.is_empty())
                })
            };
            let fit = |standing: &Standing<'_>| standing.endpoint.health.is_healthy();
            let well = |standing: &Standing<'_>| fit(standing) && standing.ejected_for.is_none();
            let members = match (share.any, &self.policy.outlier) {
                (true, _) => nearest(&|_| true),
                (false, Some(_)) => nearest(&well),
                // Without a rule, an endpoint that is left out is better than none.
                (false, None) => nearest(&well).or_else(|| nearest(&fit)),
            };
            let Some(members) = members else { continue };
            let weight = |member: &usize| f64::from(self.endpoints[*member].weight);
            let sum: f64 = members.iter().map(weight).sum();
            for member in members {
                standings[member].share += share.of_all * weight(&member) / sum;
            }
        }
        standings
    }

    fn members<'a>(&'a self, group: &'a Group, now: u64) -> impl Iterator<Item = Standing<'a>> {
        self.endpoints[group.range.clone()].iter().map(move |endpoint| Standing {
            endpoint,
            priority: group.priority,
            share: 0.0,
            ejected_for: endpoint.state.ejected_for(now),
        })
    }
}
