//! Transactions in a file. The guard and a pending change must be able to act when nothing else of the agent works
//! any more, so what they will do is written down before: nft text, split where it does not fit into one message,
//! and what becomes of the routes. The file is plain nft input as well (`nft -f FILE` does all but the routes).

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::Path;

use ipnet::IpNet;

use super::CaptureError;
use super::command::Tools;
use super::route;

const ROUTES: &str = "# routes:";
/// The first line of a transaction about something that may be gone meanwhile, and then needs no rule.
pub(super) const IF_IT_IS_THERE: &str = "# if it is there\n";
/// The first line of a transaction that not every kernel and nft takes.
pub(super) const WHERE_IT_IS_KNOWN: &str = "# where such sets are known\n";
/// The first line of a transaction that is left out where the agent's listening sockets are kept for the next one.
pub(super) const UNLESS_KEPT: &str = "# unless the listeners are kept\n";
const SEPARATOR: &str = "# next transaction\n";

/// What becomes of the local routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Routes {
    /// They stay as they are.
    Keep,
    /// They are removed, before the rules change.
    Withdraw,
    /// These and no others stand, after the rules have changed.
    Place(Vec<IpNet>),
}

/// What to do, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Batch {
    pub(super) routes: Routes,
    pub(super) transactions: Vec<String>,
}

impl Batch {
    /// Does it. Doing it twice is the same as once.
    pub(super) fn run(&self, tools: &Tools) -> Result<(), CaptureError> {
        if self.routes == Routes::Withdraw {
            route::withdraw(tools)?;
        }
        for transaction in &self.transactions {
            match tools.apply(transaction) {
                Err(CaptureError::Refused { stderr, .. }) if transaction.starts_with(IF_IT_IS_THERE) => {
                    tracing::warn!(stderr, "what a rule is about is not there any more");
                }
                Err(CaptureError::Refused { stderr, .. }) if transaction.starts_with(WHERE_IT_IS_KNOWN) => {
                    tracing::warn!(stderr, "the sets of units cannot be placed");
                }
                applied => applied?,
            }
        }
        if let Routes::Place(ranges) = &self.routes {
            route::place(tools, ranges)?;
        }
        Ok(())
    }

    /// Reads one from a file; `None` if there is no such file.
    pub(super) fn read(path: &Path) -> Result<Option<Self>, CaptureError> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(CaptureError::File { action: "read", path: path.to_owned(), source }),
        };
        let damaged =
            |detail: &str| CaptureError::Damaged { path: path.to_owned(), detail: detail.to_owned() };
        Self::parse(&text).map(Some).map_err(damaged)
    }

    /// Writes it so that a reader finds the old file or the new one, whatever happens meanwhile.
    pub(super) fn write(&self, path: &Path) -> Result<(), CaptureError> {
        write_atomically(path, &self.to_string()).map_err(|source| CaptureError::File {
            action: "write",
            path: path.to_owned(),
            source,
        })
    }

    fn parse(text: &str) -> Result<Self, &'static str> {
        let (first, rest) = text.split_once('\n').ok_or("it is empty")?;
        let words = first.strip_prefix(ROUTES).ok_or("it does not begin with `# routes:`")?;
        let routes = match words.split_whitespace().collect::<Vec<_>>()[..] {
            ["keep"] => Routes::Keep,
            ["withdraw"] => Routes::Withdraw,
            ["place", ref ranges @ ..] => {
                let ranges: Result<_, _> = ranges.iter().map(|range| range.parse()).collect();
                Routes::Place(ranges.map_err(|_| "a route in its first line is not a range of addresses")?)
            }
            _ => return Err("its first line does not say what becomes of the routes"),
        };
        let rest = rest.strip_suffix("# end\n").ok_or("its end is missing")?;
        Ok(Self { routes, transactions: rest.split(SEPARATOR).map(str::to_owned).collect() })
    }
}

impl fmt::Display for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.routes {
            Routes::Keep => writeln!(f, "{ROUTES} keep")?,
            Routes::Withdraw => writeln!(f, "{ROUTES} withdraw")?,
            Routes::Place(ranges) => {
                write!(f, "{ROUTES} place")?;
                ranges.iter().try_for_each(|range| write!(f, " {range}"))?;
                writeln!(f)?;
            }
        }
        f.write_str(&self.transactions.join(SEPARATOR))?;
        f.write_str("# end\n")
    }
}

/// Written aside, synced, renamed. The directory is on a tmpfs, so it needs no sync of its own.
pub(super) fn write_atomically(path: &Path, text: &str) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(format!(".{}", std::process::id()));
    let mut file = File::create(&aside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_reads_back_as_written() {
        let check = |routes: Routes, transactions: &[&str]| {
            let batch =
                Batch { routes, transactions: transactions.iter().map(|t| (*t).to_owned()).collect() };
            assert_eq!(Batch::parse(&batch.to_string()), Ok(batch));
        };
        check(Routes::Keep, &["a\n"]);
        check(Routes::Withdraw, &["a\n", "b\nc\n"]);
        let ranges = ["240.240.0.0/16", "fd00::/64"].map(|range| range.parse().expect("a range"));
        check(Routes::Place(ranges.to_vec()), &["a\n"]);
        check(Routes::Place(Vec::new()), &[""]);
    }

    #[test]
    fn half_a_file_is_refused() {
        let whole =
            Batch { routes: Routes::Keep, transactions: vec!["a\n".into(), "b\n".into()] }.to_string();
        for end in 0..whole.len() {
            assert!(Batch::parse(&whole[..end]).is_err(), "{}", &whole[..end]);
        }
        assert!(Batch::parse("# routes: elsewhere\n# end\n").is_err());
        assert!(Batch::parse("# routes: place nowhere\n# end\n").is_err());
    }
}
