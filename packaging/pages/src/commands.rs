//! One page a command: `baremesh(1)`, `baremesh-service(1)`, `baremesh-service-register(1)`. What `--help` says, with the
//! examples in a section of their own and the pages beside it named.

use anyhow::Context;
use clap::Command;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, roman};

use crate::text;

/// Name and content of each page, hidden commands left out.
///
/// # Errors
/// When a page cannot be rendered.
pub fn pages(mut command: Command, date: &str) -> anyhow::Result<Vec<(String, Vec<u8>)>> {
    command.build();
    let mut pages = Vec::new();
    collect(&command, None, date, &mut pages)?;
    Ok(pages)
}

fn collect(
    command: &Command,
    parent: Option<&str>,
    date: &str,
    pages: &mut Vec<(String, Vec<u8>)>,
) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name());
    pages.push((format!("{name}.1"), page(command, parent, date).with_context(|| name.to_owned())?));
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        collect(below, Some(name), date, pages)?;
    }
    Ok(())
}

fn page(command: &Command, parent: Option<&str>, date: &str) -> anyhow::Result<Vec<u8>> {
    let man = Man::new(command.clone())
        .date(date)
        .source(format!("baremesh {}", env!("CARGO_PKG_VERSION")))
        .manual("baremesh manual");
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        section(&mut page, "DESCRIPTION", |roff| {
            text::write_paragraphs(roff, &text::paragraphs(&about.to_string()));
        })?;
    }
    if command.get_arguments().any(|argument| !argument.is_hide_set()) {
        man.render_options_section(&mut page)?;
    }
    let below: Vec<&Command> = command.get_subcommands().filter(|below| !below.is_hide_set()).collect();
    if !below.is_empty() {
        let heading = "COMMANDS";
        section(&mut page, heading, |roff| {
            for command in &below {
                roff.control("TP", []);
                let name = command.get_display_name().unwrap_or_else(|| command.get_name());
                roff.text([roman(format!("{name}(1)"))]);
                roff.text([roman(command.get_about().map(ToString::to_string).unwrap_or_default())]);
            }
        })?;
    }
    if let Some(after) = command.get_after_long_help().or_else(|| command.get_after_help()) {
        let after = after.to_string();
        for (heading, paragraphs) in text::sections(&after) {
            section(&mut page, &heading, |roff| text::write_paragraphs(roff, &paragraphs))?;
        }
    }
    section(&mut page, "SEE ALSO", |roff| {
        roff.text([roman(see_also(command, parent).join(", "))]);
        roff.control("PP", []);
        roff.text([roman("The manual: /usr/share/doc/baremesh/docs, from README.md on.")]);
    })?;
    Ok(page)
}

fn section(page: &mut Vec<u8>, heading: &str, write: impl FnOnce(&mut Roff)) -> anyhow::Result<()> {
    let mut roff = Roff::default();
    roff.control("SH", [heading]);
    write(&mut roff);
    // Without the preamble, which the title has brought already.
    let text = roff.to_roff();
    page.extend_from_slice(text.as_bytes());
    Ok(())
}

fn see_also(command: &Command, parent: Option<&str>) -> Vec<String> {
    let mut pages = vec![format!("{}(1)", parent.unwrap_or("baremesh-agent"))];
    match command.get_name() {
        "baremesh" => pages.extend(["baremesh-control(1)".to_owned(), "baremesh-agent.toml(5)".to_owned()]),
        "agent" => pages.push("baremesh-agent.toml(5)".to_owned()),
        _ => {}
    }
    pages
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn all() -> Vec<(String, String)> {
        let command = baremesh::verbs::Cli::command().disable_help_subcommand(true);
        let pages = pages(command, "2026-11-29").expect("they are rendered");
        pages.into_iter().map(|(name, page)| (name, String::from_utf8(page).expect("UTF-8"))).collect()
    }

    #[test]
    fn every_command_that_is_shown_has_a_page() {
        let pages = all();
        let has = |name: &str| pages.iter().any(|(page, _)| page == name);
        for name in ["baremesh.1", "baremesh-agent.1", "baremesh-service.1", "baremesh-service-register.1"] {
            assert!(has(name), "{name}");
        }
        for name in ["baremesh-verify-chain.1", "baremesh-health-commands.1", "baremesh-help.1"] {
            assert!(!has(name), "{name}");
        }
    }

    #[test]
    fn pages_say_what_help_says() {
        for (name, page) in all() {
            assert_eq!(page.lines().filter(|line| line.starts_with(".TH ")).count(), 1, "{name}");
            for heading in [".SH NAME", ".SH SYNOPSIS", ".SH DESCRIPTION", ".SH \"SEE ALSO\""] {
                assert!(page.contains(heading), "{name}: {heading}");
            }
            assert!(page.contains("\\-\\-config\\-dir"), "{name}: the options of every command");
        }
        let pages = all();
        let join = &pages.iter().find(|(name, _)| name == "baremesh-join.1").expect("its page").1;
        assert!(join.contains(".SH EXAMPLES\n.nf\n"), "{join}");
        assert!(pages[0].1.contains(".SH \"EXIT CODES\""), "{}", pages[0].1);
    }
}
