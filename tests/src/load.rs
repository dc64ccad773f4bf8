//! Calls without end, and what became of each.

use std::collections::BTreeSet;

use crate::{Host, Process, wait_until};

/// A program that calls an echo again and again, each time over a new connection, until this is dropped.
pub struct Load {
    process: Process,
    stop: std::path::PathBuf,
}

impl Load {
    /// Starts calling `name` at `port` from `host`, and returns when a call has gone well.
    #[track_caller]
    pub fn start(host: &Host, name: &str, port: u16) -> Self {
        Self::start_with_timeout(host, name, port, 10)
    }

    /// As `start`, with the seconds that a call waits for anything.
    #[track_caller]
    pub fn start_with_timeout(host: &Host, name: &str, port: u16, seconds: u32) -> Self {
        let flag = format!("/run/baremesh/stop-load-{name}-{port}");
        let stop = host.path(&flag);
        let _ = std::fs::remove_file(&stop);
        let line = format!(
            "n=0; while [ ! -e {flag} ]; do n=$((n+1)); \
             said=$(baremesh demo-shop call --timeout {seconds} {name} {port} call-$n); code=$?; \
             if [ \"$said\" = call-$n ]; then echo done $n; else echo failed $n: code $code, at $(date +%s); fi; done; echo stopped"
        );
        let load = Self { process: host.spawn("load", host.sh(&line)), stop };
        load.wait_for_more(1);
        load
    }

    /// How many calls went well so far.
    pub fn done(&self) -> usize {
        self.process.stdout().lines().filter(|line| line.starts_with("done ")).count()
    }

    /// The calls that did not go well so far.
    pub fn failures(&self) -> Vec<String> {
        let all = self.process.stdout();
        all.lines().filter(|line| line.starts_with("failed ")).map(str::to_owned).collect()
    }

    /// Waits until so many more calls went well.
    #[track_caller]
    pub fn wait_for_more(&self, calls: usize) {
        let before = self.done();
        wait_until(&format!("{calls} more calls go well"), || self.done() >= before + calls);
    }

    /// Lets the call that is under way end, and returns those that did not go well.
    #[track_caller]
    pub fn stop(self) -> Vec<String> {
        std::fs::write(&self.stop, "").expect("the host's runtime directory");
        self.process.wait_for_output("stopped");
        self.failures()
    }
}

/// All that the runs of the program `label` on `host` wrote to their standard error.
pub fn errors_of(host: &Host, label: &str) -> String {
    let entries = std::fs::read_dir(host.directory().join("log")).into_iter().flatten().flatten();
    let of_label = |name: &str| {
        let run = name.strip_prefix(label).and_then(|rest| rest.strip_suffix(".err"));
        run.is_some_and(|run| {
            run.is_empty() || run.strip_prefix('.').is_some_and(|n| n.parse::<u32>().is_ok())
        })
    };
    let paths: BTreeSet<_> = entries
        .filter(|entry| entry.file_name().to_str().is_some_and(of_label))
        .map(|entry| entry.path())
        .collect();
    paths.iter().filter_map(|path| std::fs::read_to_string(path).ok()).collect()
}

/// Waits until the program `label` on `host` has written each of `texts` to its standard error.
#[track_caller]
pub fn wait_for_errors(host: &Host, label: &str, texts: &[&str]) {
    wait_until(&format!("{label} on {} writes {texts:?}", host.name()), || {
        let errors = errors_of(host, label);
        texts.iter().all(|text| errors.contains(text))
    });
}
