//! The configuration of a Consul that runs, read instead of files.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Context;
use baremesh_registry::consul::client::plain_dial;
use baremesh_registry::consul::exported::KINDS;
use baremesh_registry::consul::{Client, Settings};
use clap::Args;
use serde::Deserialize as _;
use serde_json::json;

use crate::output::{remark, usage};

#[derive(Debug, Args)]
#[command(next_help_heading = "A Consul that runs, instead of files")]
pub(super) struct Live {
    /// Where Consul is asked, such as http://127.0.0.1:8500
    #[arg(long, value_name = "URL")]
    http_addr: Option<String>,
    /// The file with the ACL token, of mode 0600
    #[arg(long, value_name = "FILE", requires = "http_addr", conflicts_with = "files")]
    token_file: Option<PathBuf>,
    /// The authority of Consul's certificates, in PEM; needed with https
    #[arg(long, value_name = "FILE", requires = "http_addr", conflicts_with = "files")]
    ca: Option<PathBuf>,
    /// A client certificate with its chain, in PEM
    #[arg(long, value_name = "FILE", requires_all = ["http_addr", "key"], conflicts_with = "files")]
    cert: Option<PathBuf>,
    /// Its key, of mode 0600
    #[arg(long, value_name = "FILE", requires = "cert", conflicts_with = "files")]
    key: Option<PathBuf>,
    /// The name in Consul's certificate, where it is not that of the address
    #[arg(long, value_name = "NAME", requires = "http_addr", conflicts_with = "files")]
    server_name: Option<String>,
    /// Another datacenter than that of the asked Consul agent
    #[arg(long, value_name = "NAME", requires = "http_addr", conflicts_with = "files")]
    datacenter: Option<String>,
    /// Let http go to another machine: who is on the way can then read the token, and change what is read
    #[arg(long, requires = "http_addr", conflicts_with = "files")]
    allow_plaintext: bool,
    /// Do not read entries of this kind, such as ingress-gateway; can be given several times
    #[arg(long, value_name = "KIND", requires = "http_addr", conflicts_with = "files", value_parser = KINDS)]
    without: Vec<String>,
}

impl Live {
    /// Where Consul is; nothing where files are read.
    pub(super) fn settings(&self) -> anyhow::Result<Option<Settings>> {
        let Some(address) = &self.http_addr else { return Ok(None) };
        let mut written = json!({ "addresses": [address], "allow_plaintext": self.allow_plaintext });
        let texts = [("server_name", &self.server_name), ("datacenter", &self.datacenter)];
        let files = [
            ("token_file", &self.token_file),
            ("ca_certificates", &self.ca),
            ("certificate", &self.cert),
            ("key", &self.key),
        ];
        let files = files.into_iter().filter_map(|(name, file)| Some((name, json!(file.as_ref()?))));
        let texts = texts.into_iter().filter_map(|(name, text)| Some((name, json!(text.as_ref()?))));
        for (name, value) in texts.chain(files) {
            written[name] = value;
        }
        // The words are those of [consul], of which each is a flag here.
        let settings = Settings::deserialize(written).map_err(|error| usage(in_flags(&error.to_string())))?;
        Ok(Some(settings))
    }

    /// What Consul has, as texts with their names.
    pub(super) async fn read(&self, settings: Settings) -> anyhow::Result<Vec<(String, String)>> {
        let client = Client::new(settings, plain_dial());
        let without: BTreeSet<String> = self.without.iter().cloned().collect();
        let exported = client.exported(&without).await.context("Consul's configuration cannot be read")?;
        if !exported.is_complete {
            remark(
                "Consul does not say whether the token may read all there is: what it may not read is not in what is made",
            );
        }
        Ok(exported.texts)
    }
}

/// A complaint about `[consul]` in the words of this command line.
fn in_flags(said: &str) -> String {
    let words = [
        ("ca_certificates", "--ca"),
        ("allow_plaintext = true", "--allow-plaintext"),
        ("datacenter:", "--datacenter:"),
    ];
    words.into_iter().fold(said.to_owned(), |said, (word, flag)| said.replace(word, flag))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[arg(id = "files")]
        _files: Vec<String>,
        #[command(flatten)]
        live: Live,
    }

    #[test]
    fn flags_are_the_settings_that_files_have() {
        let read = |line: &str| Line::try_parse_from(line.split(' ')).expect("a line").live.settings();
        assert_eq!(read("c").expect("nothing"), None);
        let line = "c --http-addr https://c:8501 --ca /ca --cert /c --key /k --token-file /t --datacenter d --server-name s";
        let file = "addresses = [\"https://c:8501\"]\nca_certificates = \"/ca\"\ncertificate = \"/c\"\nkey = \"/k\"\n\
            token_file = \"/t\"\ndatacenter = \"d\"\nserver_name = \"s\"\n";
        let expected: Settings = toml::from_str(file).expect("settings");
        assert_eq!(read(line).expect("settings"), Some(expected));
        for (line, part) in [
            ("c --http-addr https://c:8501", "--ca"),
            ("c --http-addr http://10.0.0.1:8500", "--allow-plaintext"),
            ("c --http-addr consul", "write it as"),
        ] {
            let error = format!("{:#}", read(line).expect_err(line));
            assert!(error.contains(part), "{line}: {error}");
        }
        assert!(read("c --http-addr http://10.0.0.1:8500 --allow-plaintext").is_ok());
    }
}
