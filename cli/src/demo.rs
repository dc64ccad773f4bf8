//! A whole mesh on one machine: hosts made of namespaces, and a small shop of services that run on them.
//! `baremesh demo` and the stories in `tests/` are both told with these parts.

pub mod hosts;
pub mod shop;

pub mod hidden;

mod patience;
mod member;
mod examples;
mod stage;
mod reviews;
mod steps;
mod report;
mod try_out;
mod show;

pub use examples::Examples;
pub use report::Form;
pub use show::{Afterwards, run};
