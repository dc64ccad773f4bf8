//! Local routes for the virtual ranges. Without one, a packet to a virtual address has no way out and never comes
//! to the rule that redirects it. Our routes carry a protocol number of their own, by which they are told from
//! everybody else's; they stand only while the rules do.

use std::fs;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::CaptureError;
use super::command::Tools;
use super::plan::CapturePlan;

/// The routing protocol number on our routes: none that `/etc/iproute2/rt_protos` assigns.
const PROTOCOL: &str = "151";

/// The ranges that a plan wants routed here, IPv6 left out where the host has none.
pub(super) fn ranges_of(plan: &CapturePlan) -> Vec<IpNet> {
    let v6 = plan.virtual_v6.filter(|_| ipv6_is_off().is_none());
    [Some(IpNet::V4(plan.virtual_v4.trunc())), v6.map(|range| IpNet::V6(range.trunc()))]
        .into_iter()
        .flatten()
        .collect()
}

/// Why this host has no IPv6, if it has none.
pub fn ipv6_is_off() -> Option<&'static str> {
    match fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6") {
        Err(_) => Some("the kernel has no IPv6"),
        Ok(text) if text.trim() == "1" => Some("net.ipv6.conf.lo.disable_ipv6 is 1"),
        Ok(_) => None,
    }
}

/// Makes these and no others our routes. Those that stand are left as they are, with what an operator has set for them.
pub(super) fn place(tools: &Tools, ranges: &[IpNet]) -> Result<(), CaptureError> {
    let standing = standing(tools)?;
    for stale in standing.iter().filter(|range| !ranges.contains(range)) {
        change(tools, "del", *stale)?;
    }
    let mut missing = ranges.iter().filter(|range| !standing.contains(range));
    missing.try_for_each(|range| change(tools, "replace", *range))
}

/// Removes all of ours.
pub(super) fn withdraw(tools: &Tools) -> Result<(), CaptureError> {
    for family in families() {
        tools.ip(&[family, "route", "flush", "table", "local", "type", "local", "protocol", PROTOCOL])?;
    }
    Ok(())
}

/// Those of ours that stand.
pub(super) fn standing(tools: &Tools) -> Result<Vec<IpNet>, CaptureError> {
    let mut found = Vec::new();
    for family in families() {
        let arguments =
            [family, "-j", "route", "show", "table", "local", "type", "local", "protocol", PROTOCOL];
        let text = tools.ip(&arguments)?;
        let unreadable = |detail: String| CaptureError::Unreadable {
            command: format!("ip {}", arguments.join(" ")),
            detail,
        };
        let routes: Vec<Value> = if text.trim().is_empty() {
            Vec::new()
        } else {
            serde_json::from_str(&text).map_err(|error| unreadable(error.to_string()))?
        };
        for route in &routes {
            let destination = route.get("dst").and_then(Value::as_str).and_then(range);
            found.push(destination.ok_or_else(|| unreadable(format!("no destination in {route}")))?);
        }
    }
    Ok(found)
}

fn families() -> impl Iterator<Item = &'static str> {
    ["-4"].into_iter().chain(ipv6_is_off().is_none().then_some("-6"))
}

fn change(tools: &Tools, verb: &str, range: IpNet) -> Result<(), CaptureError> {
    let family = if matches!(range, IpNet::V4(_)) { "-4" } else { "-6" };
    let range = range.to_string();
    let route = ["local", &range, "dev", "lo", "table", "local", "protocol", PROTOCOL];
    tools.ip(&[&[family, "route", verb][..], &route].concat()).map(drop)
}

/// `ip` writes a range of one address without its length.
fn range(text: &str) -> Option<IpNet> {
    text.parse().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}
