//! What the demo shows, one claim a step, in plain words. A step gathers its evidence from the wire, the logs and the
//! programs' own words, and fails when any of it is missing: nothing is taken for granted.

mod calls;
mod failures;
mod limits;
mod losses;
mod policy;
mod routes;
mod wire;

use anyhow::Result;

use super::examples::{BY_HEADER, CANARY, Example, MIRROR, OUTLIERS, RATE_LIMIT, RETRIES};
use super::stage::Stage;

/// One claim, and what has to be seen for it.
pub(crate) struct Step {
    /// The claim.
    pub(crate) title: &'static str,
    /// The hosts whose logs help when it does not hold.
    pub(crate) hosts: &'static [&'static str],
    /// What is in force while it is shown.
    pub(crate) applies: Option<&'static Example>,
    /// Returns the evidence, a line each.
    pub(crate) show: fn(&Stage<'_>) -> Result<Vec<String>>,
}

/// Who may know why a claim about `reviews` does not hold.
const OF_REVIEWS: &[&str] = &["control", "web", "one", "two"];

/// All of them, in the order in which each finds what it needs.
pub(crate) const STEPS: [Step; 13] = [
    Step {
        title: "a call by name works",
        hosts: &["web", "one", "two"],
        applies: None,
        show: calls::by_name,
    },
    Step {
        title: "what the program sent is in no packet between the hosts",
        hosts: &["web", "one", "two"],
        applies: None,
        show: wire::no_payload_between_hosts,
    },
    Step {
        title: "the called side knows who calls",
        hosts: &["web", "one", "two"],
        applies: None,
        show: calls::callers_are_named,
    },
    Step {
        title: "a caller that the policy does not list is denied",
        hosts: &["control", "web", "guest", "one", "two"],
        applies: None,
        show: policy::unlisted_is_denied,
    },
    Step {
        title: "a policy change ends an open connection",
        hosts: &["control", "web", "guest", "one"],
        applies: None,
        show: policy::open_connection_is_ended,
    },
    Step {
        title: "a tenth of the requests goes to a canary",
        hosts: OF_REVIEWS,
        applies: Some(&CANARY),
        show: routes::canary,
    },
    Step {
        title: "a request's header chooses the version",
        hosts: OF_REVIEWS,
        applies: Some(&BY_HEADER),
        show: routes::by_header,
    },
    Step {
        title: "a retry hides an instance that fails",
        hosts: OF_REVIEWS,
        applies: Some(&RETRIES),
        show: failures::hidden_by_a_retry,
    },
    Step {
        title: "an instance that fails is left out, and comes back",
        hosts: OF_REVIEWS,
        applies: Some(&OUTLIERS),
        show: failures::left_out_and_back,
    },
    Step {
        title: "a mirror gets copies, and holds nothing up",
        hosts: OF_REVIEWS,
        applies: Some(&MIRROR),
        show: routes::mirror,
    },
    Step {
        title: "a caller is held to its rate limit, and no other is",
        hosts: &["control", "web", "guest", "one"],
        applies: Some(&RATE_LIMIT),
        show: limits::of_a_caller,
    },
    Step {
        title: "a host is killed and its endpoint is left out",
        hosts: &["control", "web", "two"],
        applies: None,
        show: losses::of_a_host,
    },
    Step {
        title: "the control server dies and calls go on",
        hosts: &["control", "web", "guest"],
        applies: None,
        show: losses::of_the_control_server,
    },
];
