//! `baremesh-pages USR DATE` writes what packages hold of the command line below a directory that stands for `/usr`: a man
//! page for each verb and for `agent.toml`, and completions. It is a program of its own, so that the one that hosts run
//! holds nothing of it, and runs on the machine that builds, whatever the packages are for.

/// Man pages of the commands.
mod commands;
/// Man pages of files, from the manual.
mod files;
/// Plain text as it stands in help texts, made into lines of a man page.
mod text;

use std::path::Path;

use anyhow::{Context, bail};
use clap::CommandFactory;
use clap_complete::Shell;

/// Where each shell looks for completions of packages, as Debian has it.
const COMPLETIONS: [(Shell, &str); 3] = [
    (Shell::Bash, "share/bash-completion/completions/baremesh"),
    (Shell::Zsh, "share/zsh/vendor-completions/_baremesh"),
    (Shell::Fish, "share/fish/vendor_completions.d/baremesh.fish"),
];

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [usr, date] = arguments.as_slice() else {
        bail!("give the directory that stands for /usr, and the date of the pages (2026-11-29)");
    };
    write_all(Path::new(usr), date)
}

/// Writes all files below `usr`, which is made where it is missing. `date` stands in the foot of each page.
///
/// # Errors
/// When a file cannot be written, or the manual has no section for a page.
fn write_all(usr: &Path, date: &str) -> anyhow::Result<()> {
    let command = baremesh::verbs::Cli::command().disable_help_subcommand(true);
    for (name, page) in commands::pages(command, date)? {
        write(&usr.join("share/man/man1").join(name), &page)?;
    }
    write(&usr.join("share/man/man5/baremesh-agent.toml.5"), &files::agent_toml(date)?)?;
    for (shell, place) in COMPLETIONS {
        let mut text = Vec::new();
        clap_complete::generate(shell, &mut baremesh::verbs::Cli::command(), "baremesh", &mut text);
        write(&usr.join(place), &text)?;
    }
    Ok(())
}

fn write(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    let directory = path.parent().context("a file has a directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("{} cannot be made", directory.display()))?;
    std::fs::write(path, content).with_context(|| format!("{} cannot be written", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_files_are_written_each_time() {
        let (first, second) =
            (tempfile::tempdir().expect("a directory"), tempfile::tempdir().expect("another"));
        for place in [&first, &second] {
            write_all(place.path(), "2026-11-29").expect("they are written");
        }
        let names = |place: &Path| {
            let mut names: Vec<_> = std::fs::read_dir(place.join("share/man/man1"))
                .expect("a directory of pages")
                .map(|entry| entry.expect("an entry").file_name().into_string().expect("a name in UTF-8"))
                .collect();
            names.sort();
            names
        };
        let pages = names(first.path());
        assert_eq!(pages, names(second.path()));
        let others = COMPLETIONS.iter().map(|(_, place)| place.to_string());
        let all = pages.iter().map(|page| format!("share/man/man1/{page}")).chain(others);
        for file in all.chain(["share/man/man5/baremesh-agent.toml.5".to_owned()]) {
            let read = |place: &Path| std::fs::read(place.join(&file)).expect("a file that was written");
            assert_eq!(read(first.path()), read(second.path()), "{file}");
        }
    }
}
