//! A file of resources in YAML: what an operator, or a program that writes for one, puts in force.

use baremesh_registry::format::yaml::parse;

#[path = "round_trip.rs"]
mod round_trip;

pub fn check(data: &[u8]) {
    // Files that are not UTF-8 are refused before they are parsed.
    let Ok(text) = std::str::from_utf8(data) else { return };
    round_trip::check(parse(text, "fuzz"));
}
