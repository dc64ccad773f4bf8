//! `baremesh analyze`.

use std::path::{Path, PathBuf};

use baremesh_registry::analysis::Subject;
use baremesh_registry::format::Form;
use clap::Args;
use serde_json::json;

use super::apply::read;
use super::place::{Done, Place, shown};
use super::server::Remote;
use super::{Global, block_on};
use crate::control::report::AnalyzeRequest;
use crate::control::resources::judged;
use crate::output::{Exit, Output, Said, remark, say_json, usage};

const LONG_ABOUT: &str = "\
Say what is wrong with resources: each by itself, all of them as one set, and what they do not do although they are
taken, such as a route to a host that is not there or a policy that selects nothing. Codes that begin with IST are
Istio's; docs/analysis.md lists all of them with what to do.

Without a file: what is in force, with what hosts registered. It is asked of the control server of this host; on a host
without one that reads its resources from files, of its directory.
With files: those alone, as one set. Nothing needs to run, and what hosts registered is not known.
With files and --live: the files as if they were applied to what is in force.

Exits with 0 where nothing is wrong or there are warnings alone, 1 on an error, 2 where a file cannot be read.";

const EXAMPLES: &str = "\
Examples:
  baremesh analyze                              what is in force
  baremesh analyze policy.toml services.yaml    these files as one set
  baremesh analyze --live canary.yaml           as if it were applied
  baremesh analyze -o json . | jq '.findings[].code'";

/// Say what is wrong with resources, in files or in force
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Analyze {
    #[command(flatten)]
    remote: Remote,
    /// Files, directories of files, or `-` for the standard input; what is in force without
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// Look at the files as if they were applied to what is in force
    #[arg(long)]
    live: bool,
}

impl Analyze {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let texts = texts(&self.files)?;
        let (live, count) = (self.live || self.files.is_empty(), texts.len());
        let analysis = if live {
            let place = Place::of(&global.directories(), &self.remote)?;
            let request = AnalyzeRequest { texts };
            shown(global.output, block_on(place.analyze(&request)), &Done::Asking)?
        } else {
            judged(Subject::default(), &texts)
        };
        let errors = analysis.findings.iter().filter(|finding| finding["severity"] == "error").count();
        if global.output == Output::Json {
            say_json(&json!({ "findings": analysis.findings }))?;
        } else {
            if !analysis.text.is_empty() {
                remark(analysis.text.trim_end());
            }
            let (held, warnings) = (analysis.resources, analysis.findings.len() - errors);
            let of = if live { "in force".to_owned() } else { format!("in {count} files") };
            let over =
                if live && count > 0 { format!(", with {count} files over them") } else { String::new() };
            remark(format_args!("{held} resources {of}{over}: {errors} errors, {warnings} warnings"));
        }
        if errors > 0 { Err(Said(Exit::Refused).into()) } else { Ok(()) }
    }
}

/// What stands in files and in the files of directories, each with its name.
pub(super) fn texts(files: &[PathBuf]) -> anyhow::Result<Vec<(String, String)>> {
    let files = files.iter().map(|file| expand(file)).collect::<Result<Vec<_>, _>>()?.concat();
    files.iter().map(|file| read(file)).collect()
}

/// A directory's files, as a host would read them: its own, and those one folder down.
fn expand(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in entries(path)? {
        if entry.is_dir() {
            files.extend(entries(&entry)?.into_iter().filter(|file| is_resource_file(file)));
        } else if is_resource_file(&entry) {
            files.push(entry);
        }
    }
    files.sort();
    Ok(files)
}

fn is_resource_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.is_file() && !name.starts_with(['.', '#']) && Form::of_file(&name).is_some()
}

fn entries(directory: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let failed = |error: std::io::Error| usage(format!("{} cannot be read: {error}", directory.display()));
    let entries = std::fs::read_dir(directory).map_err(failed)?;
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if !path.file_name().unwrap_or_default().to_string_lossy().starts_with('.') {
            paths.push(path);
        }
    }
    Ok(paths)
}
