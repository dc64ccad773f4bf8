//! The resources that steps put in force: the files of `examples/demo`, which the binary holds, so that it needs none. A
//! directory that is named at the start goes before them: what the demo says of other resources is then for all to see,
//! and a test can give it such under which a claim does not hold.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

/// A file of `examples/demo`.
pub(crate) struct Example {
    /// Its name there.
    pub(crate) file: &'static str,
    text: &'static str,
}

macro_rules! example {
    ($file:literal) => {
        Example { file: $file, text: include_str!(concat!("../../../examples/demo/", $file)) }
    };
}

pub(crate) static CANARY: Example = example!("canary.toml");
pub(crate) static BY_HEADER: Example = example!("by-header.toml");
pub(crate) static RETRIES: Example = example!("retries.toml");
pub(crate) static OUTLIERS: Example = example!("outliers.toml");
pub(crate) static MIRROR: Example = example!("mirror.toml");
pub(crate) static RATE_LIMIT: Example = example!("rate-limit.toml");

/// Where the resources come from.
#[derive(Debug, Default)]
pub struct Examples {
    directory: Option<PathBuf>,
}

impl Examples {
    /// Those of `directory` that are there, and the binary's own otherwise.
    pub fn preferring(directory: Option<PathBuf>) -> Self {
        Self { directory }
    }

    /// What an example says.
    pub(crate) fn text(&self, example: &Example) -> Result<String> {
        let path = self.directory.as_ref().map(|directory| directory.join(example.file));
        match path.filter(|path| path.exists()) {
            Some(path) => {
                fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
            }
            None => Ok(example.text.to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_goes_before_what_the_binary_holds() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        fs::write(directory.path().join(CANARY.file), "other").expect("ours");
        let examples = Examples::preferring(Some(directory.path().to_owned()));
        let text = |example| examples.text(example).expect("a text");
        assert_eq!((text(&CANARY).as_str(), text(&MIRROR).as_str()), ("other", MIRROR.text));
        assert!(Examples::default().text(&CANARY).expect("a text").contains("weight = 90"));
    }
}
