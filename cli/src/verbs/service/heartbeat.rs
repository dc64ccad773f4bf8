//! `baremesh service heartbeat`.

use baremesh_agent::admin::client::{AT_ONCE, Socket};
use baremesh_agent::admin::report::{HeartbeatAnswer, HeartbeatOrder, HeartbeatStatus};
use baremesh_agent::config::Directories;
use baremesh_model::name::{Key, Label, default_namespace};
use clap::{Args, ValueEnum};
use http::Method;

use super::super::block_on;
use crate::output::{Output, say, say_json};

const LONG_ABOUT: &str = "\
Say that a service of this host is well, or that it is not. It counts for services that are registered with --check-ttl:
one of which nothing is heard for that long takes no new calls until it is heard of again. What is said holds at once.";

const EXAMPLES: &str = "\
Examples:
  baremesh service heartbeat orders
  baremesh service heartbeat orders --status failing --note 'the database is gone'";

/// Longest note, in bytes.
const MAX_NOTE: usize = 1024;

/// Say that a service of this host is well, or that it is not
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub(super) struct Heartbeat {
    /// Its name
    #[arg(value_parser = Label::new)]
    name: Label,
    /// Its namespace
    #[arg(short, long, default_value_t = default_namespace(), value_parser = Label::new)]
    namespace: Label,
    /// How it is
    #[arg(long, value_enum, value_name = "STATUS", default_value_t)]
    status: Status,
    /// Why, for `status` and the log
    #[arg(long, value_name = "TEXT", value_parser = note)]
    note: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, ValueEnum)]
enum Status {
    /// It is well
    #[default]
    Passing,
    /// It is to take no new calls
    Failing,
}

fn note(text: &str) -> Result<String, String> {
    match text.len() {
        0..=MAX_NOTE => Ok(text.to_owned()),
        long => Err(format!("{long} bytes, and the limit is {MAX_NOTE}: write less")),
    }
}

impl Heartbeat {
    pub(super) fn run(self, directories: &Directories, output: Output) -> anyhow::Result<()> {
        let path = directories.agent_socket();
        let socket = Socket { path: &path, program: "baremesh agent" };
        let order = HeartbeatOrder {
            service: Key::new(self.namespace, self.name).to_string(),
            status: match self.status {
                Status::Passing => HeartbeatStatus::Passing,
                Status::Failing => HeartbeatStatus::Failing,
            },
            note: self.note,
        };
        let body = serde_json::to_vec(&order)?;
        let answer =
            block_on(async { Ok(socket.call_within(AT_ONCE, Method::POST, "/heartbeat", body).await?) })?;
        let answer: HeartbeatAnswer = serde_json::from_slice(&answer)?;
        match output {
            Output::Json => say_json(&answer),
            _ => say(format_args!("{} is {}", answer.service, answer.health)),
        }
    }
}
