//! The shop's service `reviews`, which speaks HTTP: `web` asks it by name, and each of its two versions, on a host of its
//! own, tells of every request that it has seen.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::hosts::Process;
use super::member::Member;
use super::stage::{DOMAIN, Stage, run};

/// Where each version takes orders about its behaviour: no port of the service, so that nothing of the mesh is between.
pub(crate) const ORDERS: &str = "127.0.0.1:9900";
/// How long the program on `web` waits for an answer, in seconds.
pub(crate) const CLIENT_PATIENCE: &str = "10";

/// One of the two versions.
#[derive(Clone, Copy)]
pub(crate) struct Version<'s> {
    pub(crate) name: &'static str,
    pub(crate) member: &'s Member,
    program: &'s Process,
    stage: &'s Stage<'s>,
}

/// What the program on `web` was answered.
#[derive(Clone, Debug)]
pub(crate) struct Answer(Value);

impl Answer {
    /// Whether this version answered, and well.
    pub(crate) fn is_of(&self, version: Version<'_>) -> bool {
        self.0["status"] == 200 && self.0["instance"] == version.name && self.0.get("error").is_none()
    }

    /// Its status; 0 where there was no answer.
    pub(crate) fn status(&self) -> u64 {
        self.0["status"].as_u64().unwrap_or_default()
    }

    /// How long it took, in milliseconds.
    pub(crate) fn milliseconds(&self) -> u64 {
        self.0["ms"].as_u64().unwrap_or_default()
    }
}

impl Version<'_> {
    /// Has it do something else with all requests that follow; nothing for what is usual.
    pub(crate) fn behave(&self, query: &str) -> Result<()> {
        let url = format!("http://{ORDERS}/behave?{query}");
        let order = self.member.host.shop(["get", "--method", "POST", &url]);
        let said = run(&self.stage.patience, order)?.success("an order for the server")?;
        let taken: Value = serde_json::from_str(&said).context("the client writes JSON")?;
        ensure!(taken["status"] == 200, "{} does not take the order {query:?}: {said}", self.name);
        Ok(())
    }

    /// Its accounts of the requests for `path` that it has seen.
    pub(crate) fn seen(&self, path: &str) -> Vec<Value> {
        let said = self.program.stdout();
        let accounts = said.lines().filter(|line| line.starts_with('{') && line.contains(path));
        let accounts = accounts.filter_map(|line| serde_json::from_str::<Value>(line).ok());
        accounts.filter(|account| account["path"] == path).collect()
    }

    /// The requests for `path` that the agent of `web` has sent to it, by that agent's log.
    pub(crate) fn logged(&self, path: &str) -> usize {
        let address = format!("{}:", self.member.host.v4());
        let is_it = |line: &super::member::Line| {
            line.text("reporter") == "source"
                && line.text("path") == path
                && line.text("upstream_host").starts_with(&address)
        };
        self.stage.web.log().into_iter().filter(is_it).count()
    }
}

/// A header's first value in an account.
pub(crate) fn header<'a>(account: &'a Value, name: &str) -> &'a str {
    account["headers"][name][0].as_str().unwrap_or_default()
}

/// An answer of something else than was expected, in words.
pub(crate) fn expect_all(answers: &[Answer], version: Version<'_>) -> Result<()> {
    let other = answers.iter().find(|answer| !answer.is_of(version));
    other
        .map_or(Ok(()), |other| Err(anyhow::anyhow!("not answered by {}, but so: {}", version.name, other.0)))
}

/// How long the slowest took, in milliseconds.
pub(crate) fn slowest(answers: &[Answer]) -> u64 {
    answers.iter().map(Answer::milliseconds).max().unwrap_or_default()
}

impl Stage<'_> {
    /// The old version, and the new one.
    pub(crate) fn versions(&self) -> Result<[Version<'_>; 2]> {
        let version = |name, member| -> Result<Version<'_>> {
            let program = self.program(member, "reviews").context("reviews does not run")?;
            Ok(Version { name, member, program, stage: self })
        };
        Ok([version("v1", &self.one)?, version("v2", &self.two)?])
    }

    /// A program on `web` asks for `path` so many times over kept connections, with these options of `get`.
    pub(crate) fn ask(&self, count: usize, options: &[&str], path: &str) -> Result<Vec<Answer>> {
        self.ask_from(&self.web, count, options, path)
    }

    /// The same of another host.
    pub(crate) fn ask_from(
        &self,
        member: &Member,
        count: usize,
        options: &[&str],
        path: &str,
    ) -> Result<Vec<Answer>> {
        let (count, url) = (count.to_string(), format!("http://reviews.{DOMAIN}{path}"));
        let usual = ["get", "--brief", "--keep", "--timeout", CLIENT_PATIENCE, "--count", &count];
        let said = run(&self.patience, member.host.shop(usual.iter().chain(options).chain([&url.as_str()])))?;
        let answers: serde_json::Result<Vec<Value>> = said.stdout.lines().map(serde_json::from_str).collect();
        let answers = answers.with_context(|| format!("the client says: {}", said.stdout))?;
        ensure!(!answers.is_empty(), "the client says nothing but: {}", said.stderr);
        Ok(answers.into_iter().map(Answer).collect())
    }
}
