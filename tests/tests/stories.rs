//! Every story, in one test binary: it links once, and stories run side by side.

#[path = "stories/calls_by_name.rs"]
mod calls_by_name;
#[path = "stories/demo_tells_the_truth.rs"]
mod demo_tells_the_truth;
#[path = "stories/hosts_are_real.rs"]
mod hosts_are_real;
#[path = "stories/shop_without_a_mesh.rs"]
mod shop_without_a_mesh;
