//! Every story, in one test binary: it links once, and stories run side by side.

#[path = "stories/agent_killed.rs"]
mod agent_killed;
#[path = "stories/calls_by_name.rs"]
mod calls_by_name;
#[path = "stories/capture_rules.rs"]
mod capture_rules;
#[path = "stories/certificates.rs"]
mod certificates;
#[path = "stories/command_line.rs"]
mod command_line;
#[path = "stories/control_away.rs"]
mod control_away;
#[path = "stories/disk_full.rs"]
mod disk_full;
#[path = "stories/draining.rs"]
mod draining;
#[path = "stories/enrolment.rs"]
mod enrolment;
#[path = "stories/files.rs"]
mod files;
#[path = "stories/hosts_are_real.rs"]
mod hosts_are_real;
#[path = "stories/impersonation.rs"]
mod impersonation;
#[path = "stories/impostor.rs"]
mod impostor;
#[path = "stories/names.rs"]
mod names;
#[path = "stories/raw_peer.rs"]
mod raw_peer;
#[path = "stories/shop_without_a_mesh.rs"]
mod shop_without_a_mesh;
#[path = "stories/telemetry.rs"]
mod telemetry;
