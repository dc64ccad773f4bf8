//! The passphrase that seals the authority's keys: from a file, from the standard input, or from systemd. It is never an
//! argument or a variable of the environment, which others can see.

use std::io::Read as _;
use std::path::Path;

use anyhow::Context;
use baremesh_ca::authority::{handed_passphrase, read_passphrase};
use baremesh_ca::seal::{MAX_PASSPHRASE, Passphrase};

/// The passphrase in `file`, or on the standard input where that is `-`.
pub(super) fn read(file: &str) -> anyhow::Result<Passphrase> {
    if file != "-" {
        return Ok(read_passphrase(Path::new(file))?);
    }
    let (mut line, most) = (Vec::new(), MAX_PASSPHRASE as u64 + 2);
    std::io::stdin().take(most).read_to_end(&mut line).context("the standard input cannot be read")?;
    Ok(Passphrase::new(&line)?)
}

/// The passphrase that is named, or else what systemd hands over.
pub(super) fn find(file: Option<&str>) -> anyhow::Result<Option<Passphrase>> {
    match file {
        Some(file) => read(file).map(Some),
        None => Ok(handed_passphrase()?),
    }
}
