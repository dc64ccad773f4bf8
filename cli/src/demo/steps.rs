//! What the demo shows, one claim a step, in plain words. A step gathers its evidence from the wire, the logs and the
//! programs' own words, and fails when any of it is missing: nothing is taken for granted.

mod calls;
mod losses;
mod policy;
mod wire;

use anyhow::Result;

use super::stage::Stage;

/// One claim, and what has to be seen for it.
pub(crate) struct Step {
    /// The claim.
    pub(crate) title: &'static str,
    /// The hosts whose logs help when it does not hold.
    pub(crate) hosts: &'static [&'static str],
    /// Returns the evidence, a line each.
    pub(crate) show: fn(&Stage<'_>) -> Result<Vec<String>>,
}

/// All of them, in the order in which each finds what it needs.
pub(crate) const STEPS: [Step; 7] = [
    Step { title: "a call by name works", hosts: &["web", "one", "two"], show: calls::by_name },
    Step {
        title: "what the program sent is in no packet between the hosts",
        hosts: &["web", "one", "two"],
        show: wire::no_payload_between_hosts,
    },
    Step {
        title: "the called side knows who calls",
        hosts: &["web", "one", "two"],
        show: calls::callers_are_named,
    },
    Step {
        title: "a caller that the policy does not list is denied",
        hosts: &["control", "web", "guest", "one", "two"],
        show: policy::unlisted_is_denied,
    },
    Step {
        title: "a policy change ends an open connection",
        hosts: &["control", "web", "guest", "one"],
        show: policy::open_connection_is_ended,
    },
    Step {
        title: "a host is killed and its endpoint is left out",
        hosts: &["control", "web", "two"],
        show: losses::of_a_host,
    },
    Step {
        title: "the control server dies and calls go on",
        hosts: &["control", "web", "guest"],
        show: losses::of_the_control_server,
    },
];
