//! `baremesh apply`.

use std::io::Read;
use std::path::{Path, PathBuf};

use baremesh_registry::files::MAX_FILE_BYTES;
use clap::Args;

use super::mtls::say_flows;
use super::place::{Done, Place, changes_json, remark_version, say_changes, shown};
use super::server::Remote;
use super::{Global, block_on};
use crate::control::report::{ApplyRequest, Changes, FlowsReport, WrittenForm};
use crate::output::{Output, remark, say, say_json, usage};

const LONG_ABOUT: &str = "\
Put resources in force: from TOML, or Istio's YAML as it is. A resource that is there already is replaced. The whole
resulting set is checked first: when something is wrong with a file nothing of it is applied, and the message shows the
line. Several files are applied one after the other.

It goes through the control server of this host; on a host without one that reads its resources from files
(agent.toml: `[registry] source = \"files\"`), into that directory.";

const EXAMPLES: &str = "\
Examples:
  baremesh apply -f policy.toml                 from a file
  baremesh apply -f policy.yaml --dry-run       show what would change, line by line
  baremesh apply -f policy.yaml --simulate      say who of the last hour would be cut off, and who let in
  baremesh get AuthorizationPolicy orders -n shop -o toml | sed … | baremesh apply -f -

A policy that lets only `web` call `orders`:
  [[AuthorizationPolicy]]
  name = \"orders\"
  namespace = \"shop\"
  selector = { matchLabels = { app = \"orders\" } }
  rules = [{ from = [{ source = { serviceAccounts = [\"shop/web\"] } }] }]";

/// Put resources in force
#[derive(Debug, Args)]
#[command(long_about = LONG_ABOUT, after_help = EXAMPLES)]
pub struct Apply {
    #[command(flatten)]
    remote: Remote,
    /// A file with resources, `-` for the standard input; can be given several times
    #[arg(short, long = "file", value_name = "FILE", required = true)]
    file: Vec<PathBuf>,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Say which connections of the last hour the policies in the file would treat otherwise, and change nothing
    #[arg(long, conflicts_with = "dry_run")]
    simulate: bool,
    /// The form of the text, where neither the file's ending nor the text shows it
    #[arg(long, value_enum)]
    form: Option<WrittenForm>,
}

impl Apply {
    pub(super) fn run(self, global: &Global) -> anyhow::Result<()> {
        // Read first: a file that is missing must not leave half of the command done.
        let requests: Vec<_> = self.file.iter().map(|file| self.request(file)).collect::<Result<_, _>>()?;
        let place = Place::of(&global.directories(), &self.remote)?;
        if self.simulate {
            return requests.iter().try_for_each(|request| self.simulated(&place, request, global.output));
        }
        let mut done: Vec<Changes> = Vec::new();
        for request in &requests {
            let before = if self.dry_run { &[][..] } else { &done };
            let changes = shown(global.output, block_on(place.apply(request)), &Done::Changed(before))?;
            // At once: what a later file is refused for does not undo it.
            if global.output != Output::Json {
                self.say(&place, &changes)?;
            }
            done.push(changes);
        }
        match global.output {
            Output::Json => say_json(&changes_json(&done)),
            _ => Ok(()),
        }
    }

    fn simulated(&self, place: &Place, request: &ApplyRequest, output: Output) -> anyhow::Result<()> {
        let report: FlowsReport = shown(output, block_on(place.simulate(request)), &Done::Asking)?;
        say_flows(&report, output, &request.name)
    }

    fn request(&self, file: &Path) -> anyhow::Result<ApplyRequest> {
        let (name, text) = read(file)?;
        Ok(ApplyRequest { text, name, form: self.form, dry_run: self.dry_run })
    }

    fn say(&self, place: &Place, changes: &Changes) -> anyhow::Result<()> {
        if !changes.warning_text.is_empty() {
            remark(changes.warning_text.trim_end());
        }
        if self.dry_run {
            for change in &changes.changes {
                say(format_args!(
                    "{} {}/{} would be {}",
                    change.kind, change.namespace, change.name, change.effect
                ))?;
                say(&change.diff)?;
            }
            return Ok(());
        }
        say(say_changes(changes))?;
        remark_version(changes);
        if let Some(consequence) = place.consequence(changes) {
            remark(consequence);
        }
        Ok(())
    }
}

/// Reads a file, or the standard input, within the bound that resource files have.
pub(super) fn read(file: &Path) -> anyhow::Result<(String, String)> {
    let stdin = file == Path::new("-");
    let name = if stdin { "standard input".to_owned() } else { file.display().to_string() };
    let mut bytes = Vec::new();
    let read = if stdin {
        std::io::stdin().lock().take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes))
    };
    read.map_err(|error| usage(format!("{name} cannot be read: {error}")))?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(usage(format!(
            "{name} is larger than {MAX_FILE_BYTES} bytes: is it a file of resources?"
        )));
    }
    let text = String::from_utf8(bytes).map_err(|_| usage(format!("{name} is not UTF-8 text")))?;
    Ok((name, text))
}
