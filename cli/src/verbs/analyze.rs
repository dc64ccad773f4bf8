//! `baremesh analyze`.

use std::path::{Path, PathBuf};

use baremesh_registry::diagnostic::Diagnostic;
use baremesh_registry::format::{Form, Parsed};
use baremesh_registry::set::assemble;
use clap::Args;

use super::Global;
use super::apply::read;
use crate::output::{Exit, Output, Said, remark, say_findings, usage};

const LONG_ABOUT: &str = "\
Check files of resources without putting them in force: each by itself, and all of them as one set. Nothing needs to
run. Exits with 0 where nothing is wrong or there are warnings alone, 1 on an error, 2 where a file cannot be read.";

const EXAMPLES: &str = "\
Examples:
  baremesh analyze policy.toml services.yaml
  baremesh analyze /etc/baremesh/registry
  baremesh analyze -o json . | jq '.findings[].code'";

/// Check resource files without putting them in force
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Analyze {
    /// Files, directories of files, or `-` for the standard input
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
}

impl Analyze {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        let (parsed, count) = read_all(&self.files)?;
        let held = parsed.resources.len();
        let findings = match assemble(parsed.resources, parsed.findings) {
            Ok(loaded) => loaded.warnings,
            Err(refused) => refused.0,
        };
        if global.output == Output::Json || !findings.is_empty() {
            say_findings(global.output, &findings)?;
        }
        let errors = findings.iter().filter(|finding| finding.is_error()).count();
        if global.output != Output::Json {
            let warnings = findings.len() - errors;
            remark(format_args!("{held} resources in {count} files: {errors} errors, {warnings} warnings"));
        }
        match findings.iter().any(Diagnostic::is_error) {
            true => Err(Said(Exit::Refused).into()),
            false => Ok(()),
        }
    }
}

/// What files and directories hold, and how many files that is.
pub(super) fn read_all(files: &[PathBuf]) -> anyhow::Result<(Parsed, usize)> {
    let (mut all, mut count) = (Parsed::default(), 0);
    for file in files.iter().map(|file| expand(file)).collect::<Result<Vec<_>, _>>()?.concat() {
        let (name, text) = read(&file)?;
        let form = Form::of_file(&name).unwrap_or_else(|| Form::of_text(&text));
        let parsed = form.parse(&text, &name);
        all.resources.extend(parsed.resources);
        all.findings.extend(parsed.findings);
        count += 1;
    }
    Ok((all, count))
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
