//! The stories that only root can run. Each is named here, so that leaving out one more is a decision that everybody
//! sees, and each says at run time that it was left out, so that no list can differ from what happened.

use std::env;
use std::fs::OpenOptions;
use std::io::Write as _;

use crate::is_root;

/// Every story that an ordinary user may leave out, in the order of the alphabet.
const ROOT_ONLY: &[&str] = &[
    "agent_killed::another_user_who_takes_the_ports_of_a_dead_agent_receives_nothing",
    "container_labels::a_container_is_its_service_by_label_wherever_the_engine_puts_it",
    "container_labels::a_container_of_two_services_is_neither",
    "container_labels::an_image_says_nothing_of_who_its_containers_are",
    "container_labels::root_alone_says_which_containers_run",
    "container_labels::who_nobody_stands_by_any_more_is_nobody",
    "demo_tells_the_truth::every_claim_is_shown_to_an_ordinary_user_with_nothing_but_the_binary",
    "doctor::who_may_not_look_is_told_what_was_not_looked_at",
    "doctor_faults::doctor_names_an_agent_that_is_near_its_limit_of_memory",
    "hosts_are_real::a_program_runs_as_another_user",
    "hosts_are_real::a_program_runs_in_a_cgroup_of_its_host",
    "identities::neighbours_on_the_host_are_held_to_the_policy_too",
    "identities::tells_two_cgroups_of_one_user_apart",
    "identities::tells_two_users_of_one_host_apart",
    "impersonation::another_user_administers_neither_the_agent_nor_the_mesh",
    "impersonation::another_user_reads_no_key",
    "local_attackers::a_local_user_gets_nothing_of_the_agents_ports",
    "local_attackers::who_is_gone_before_it_is_known_is_taken_for_nobody_else",
    "memory_limit::connections_beyond_the_memory_of_the_unit_are_refused_and_nobody_is_killed",
    "privileges::a_low_port_is_bound_with_the_one_capability_that_it_takes",
    "privileges::what_is_not_needed_is_given_up_and_everything_still_works",
    "registry_only::a_service_that_is_told_by_its_cgroup_does_not_get_out_as_root",
    "registry_only::a_service_that_is_told_by_its_user_reaches_the_registry_and_nothing_else",
    "registry_only::a_unit_that_systemd_noted_is_held_before_the_agent_has_found_it",
    "registry_only::it_is_the_same_where_everything_that_leaves_is_captured",
];

/// Names a file to which a story that is left out appends its line, for whoever runs the stories to show at the end:
/// test harnesses keep to themselves what passing tests print.
const LIST_VARIABLE: &str = "BAREMESH_LEFT_OUT";

/// Whether a story, given by the path of an item within it, is to end here, because it is not run as root. It is then
/// listed.
///
/// # Panics
/// If the story is none of those that may be left out, or cannot be listed.
#[track_caller]
pub fn is_left_out(item: &str, reason: &str) -> bool {
    let story = story_of(item);
    assert!(ROOT_ONLY.contains(&story), "{story} is left out without being named in tests/src/root_only.rs");
    if is_root() {
        return false;
    }
    let line = format!("{story}: {reason}\n");
    if let Some(list) = env::var_os(LIST_VARIABLE) {
        // One write: stories that run side by side append whole lines.
        let written = OpenOptions::new().append(true).create(true).open(&list);
        if let Err(error) = written.and_then(|mut file| file.write_all(line.as_bytes())) {
            panic!("cannot write to {}, where stories that are left out are listed: {error}", list.display());
        }
    }
    // Without standard error nobody reads it.
    let _ = write!(std::io::stderr(), "not runnable as an ordinary user: {line}");
    true
}

/// The story's name as the test harness has it, from `stories::identities::tells_them_apart::here`.
fn story_of(item: &str) -> &str {
    let inside = item.split_once("::").map_or(item, |(_, inside)| inside);
    inside.strip_suffix("::here").unwrap_or(inside)
}

/// Ends the story here, and lists it, when it is not run as root. As root it does nothing: there, every story runs.
///
/// ```no_run
/// fn tells_two_users_apart() {
///     baremesh_tests::needs_root!("two uids");
/// }
/// ```
#[macro_export]
macro_rules! needs_root {
    ($reason:expr) => {{
        fn here() {}
        if $crate::is_left_out(::std::any::type_name_of_val(&here), $reason) {
            return;
        }
    }};
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_in_order_and_names_each_story_once() {
        assert!(ROOT_ONLY.is_sorted_by(|a, b| a < b), "{ROOT_ONLY:?}");
    }

    #[test]
    fn a_story_is_named_as_the_harness_names_it() {
        for (item, story) in [
            ("stories::identities::tells::here", "identities::tells"),
            ("stories::a::b::c::here", "a::b::c"),
            ("stories", "stories"),
        ] {
            assert_eq!(story_of(item), story);
        }
    }

    #[test]
    #[should_panic(expected = "without being named")]
    fn a_story_that_is_not_named_may_not_be_left_out() {
        is_left_out("stories::module::some_other_story::here", "no reason");
    }
}
