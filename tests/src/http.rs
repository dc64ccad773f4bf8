//! HTTP for stories: instances of services that answer with what they were asked, and clients with typed answers. The
//! programs are the shop's (`web`, `get`); a request's query says how its server is to misbehave.

use std::collections::BTreeMap;
use std::process::Command;

use serde_json::Value;

use crate::{Host, Member, Process, describe, exit, run, wait_until};

/// Where an instance listens for the agent.
const SERVED: &str = "127.0.0.1:8080";
/// Where it takes orders: not registered, so that nothing of the mesh is between.
const ORDERS: &str = "127.0.0.1:9900";

/// An instance of a service: an HTTP server on a member's loopback address.
pub struct Instance<'m> {
    host: &'m Host,
    process: Process,
}

/// What became of a request.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// The status; `None` where no head came.
    pub status: Option<u16>,
    /// The instance that answered; `None` where it was an agent.
    pub instance: Option<String>,
    /// As `HTTP/1.1`.
    pub version: String,
    /// Every header with its values.
    pub headers: BTreeMap<String, Vec<String>>,
    /// Every trailer with its values.
    pub trailers: BTreeMap<String, Vec<String>>,
    /// The statuses of informational answers before this one.
    pub informational: Vec<u64>,
    /// The body, where it is text and not too long.
    pub body: String,
    /// How long the body was.
    pub length: u64,
    /// The body's checksum.
    pub checksum: String,
    /// The client's exit code for this request; see [`exit`].
    pub code: u8,
    /// Why it did not go as it should.
    pub error: Option<String>,
    /// Which of the client's connections it was on, from 1.
    pub connection: u64,
    /// How long it took, in milliseconds.
    pub ms: u64,
}

impl Answer {
    fn of(line: &str) -> Self {
        let told: Value = serde_json::from_str(line).expect("a client writes JSON");
        let text = |name: &str| told[name].as_str().map(str::to_owned);
        let number = |name: &str| told[name].as_u64().unwrap_or_default();
        let informational = told["informational"].as_array().cloned().unwrap_or_default();
        Self {
            status: told["status"].as_u64().and_then(|status| u16::try_from(status).ok()),
            instance: text("instance"),
            version: text("version").unwrap_or_default(),
            headers: lists(&told["headers"]),
            trailers: lists(&told["trailers"]),
            informational: informational.iter().filter_map(Value::as_u64).collect(),
            body: text("body").unwrap_or_default(),
            length: number("length"),
            checksum: text("checksum").unwrap_or_default(),
            code: u8::try_from(number("code")).unwrap_or(u8::MAX),
            error: text("error"),
            connection: number("connection"),
            ms: number("ms"),
        }
    }

    /// A header's values, joined; empty without it.
    pub fn header(&self, name: &str) -> String {
        self.headers.get(name).map(|values| values.join(",")).unwrap_or_default()
    }

    /// The instance's account of the request.
    ///
    /// # Panics
    /// If the body is none.
    #[track_caller]
    pub fn account(&self) -> Value {
        match serde_json::from_str(&self.body) {
            Ok(account) => account,
            Err(error) => panic!("no account of the request: {error}: {self:?}"),
        }
    }

    /// Whether an instance answered, and well.
    pub fn is_ok(&self) -> bool {
        self.status == Some(200) && self.error.is_none()
    }
}

fn lists(value: &Value) -> BTreeMap<String, Vec<String>> {
    let texts = |values: &Value| {
        let values = values.as_array().into_iter().flatten();
        values.filter_map(|value| value.as_str().map(str::to_owned)).collect()
    };
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(name, values)| (name.clone(), texts(values))).collect()
}

impl Host {
    /// What the shop's client `get` says of each request that it sends.
    ///
    /// # Panics
    /// If it says nothing of one.
    #[track_caller]
    pub fn get_all(&self, options: &[&str], url: &str) -> Vec<Answer> {
        let command = self.get_command(options, url);
        let what = describe(&command);
        let output = run(command);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(!said.is_empty(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
        said.lines().map(Answer::of).collect()
    }

    /// What became of one request.
    #[track_caller]
    pub fn get(&self, options: &[&str], url: &str) -> Answer {
        let mut all = self.get_all(options, url);
        assert_eq!(all.len(), 1, "one request, one answer: {all:?}");
        all.remove(0)
    }

    /// How many of `count` requests each instance answered; what no instance answered stands under its status.
    #[track_caller]
    pub fn counts(&self, count: usize, options: &[&str], url: &str) -> BTreeMap<String, usize> {
        let count = count.to_string();
        let words = [&["--brief", "--keep", "--parallel", "4", "--count", &count], options].concat();
        let mut counts = BTreeMap::new();
        for answer in self.get_all(&words, url) {
            let none = || answer.status.map_or_else(|| "nothing".to_owned(), |status| status.to_string());
            *counts.entry(answer.instance.clone().unwrap_or_else(none)).or_default() += 1;
        }
        counts
    }

    fn get_command(&self, options: &[&str], url: &str) -> Command {
        self.shop(["get"].iter().chain(options).chain([&url]))
    }
}

impl Member {
    /// Starts an instance of `service`, and registers it with `arguments` besides its port 80, which speaks HTTP unless
    /// they say otherwise.
    #[track_caller]
    pub fn web(&self, service: &str, instance: &str, arguments: &[&str]) -> Instance<'_> {
        let process = self.host.serve(instance, ["web", instance, SERVED, ORDERS]);
        let port = ["--port", "80:8080"];
        let http: &[&str] = if arguments.contains(&"--protocol") { &[] } else { &["--protocol", "http"] };
        self.register_with(service, &[&port, http, arguments].concat());
        Instance { host: &self.host, process }
    }
}

impl Instance<'_> {
    /// Sets what it does with requests that ask for nothing themselves; nothing for the usual.
    #[track_caller]
    pub fn behave(&self, query: &str) {
        let answer = self.host.get(&["--method", "POST"], &format!("http://{ORDERS}/behave?{query}"));
        assert!(answer.is_ok(), "{query}: {answer:?}");
    }

    /// The requests that it has seen, as their heads were.
    pub fn requests(&self) -> Vec<Value> {
        let said = self.process.stdout();
        said.lines()
            .filter(|line| line.starts_with('{'))
            .filter_map(|line| serde_json::from_str(line).ok())
            .collect()
    }

    /// How many requests for this path it has seen.
    pub fn seen(&self, path: &str) -> usize {
        self.requests().iter().filter(|request| request["path"] == path).count()
    }

    /// Waits until it says `text`.
    #[track_caller]
    pub fn wait_for_output(&self, text: &str) {
        self.process.wait_for_output(text);
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }
}

/// Requests without end from a host, until this is dropped.
pub struct Requests {
    process: Process,
    stop: std::path::PathBuf,
}

impl Requests {
    /// Starts to send requests, and returns when one has gone well.
    #[track_caller]
    pub fn start(host: &Host, options: &[&str], url: &str) -> Self {
        let flag = format!("/run/baremesh/stop-requests-{}", options.concat().replace(['/', ' '], ""));
        let stop = host.path(&flag);
        let _ = std::fs::remove_file(&stop);
        let words = [&["--brief", "--until", &flag], options].concat();
        let requests = Self { process: host.spawn("requests", host.get_command(&words, url)), stop };
        requests.wait_for_more(1);
        requests
    }

    /// What became of each so far.
    pub fn answers(&self) -> Vec<Answer> {
        let said = self.process.stdout();
        // The last line may be under way.
        let whole = said.rfind('\n').map_or("", |end| &said[..end]);
        whole.lines().map(Answer::of).collect()
    }

    /// Waits until so many more have gone well.
    #[track_caller]
    pub fn wait_for_more(&self, count: usize) {
        let well = || self.answers().iter().filter(|answer| answer.is_ok()).count();
        let before = well();
        wait_until(&format!("{count} more requests go well"), || well() >= before + count);
    }

    /// Lets what is under way end, and returns what became of all of them.
    #[track_caller]
    pub fn stop(self) -> Vec<Answer> {
        std::fs::write(&self.stop, "").expect("the host's runtime directory");
        self.process.wait();
        self.answers()
    }
}

/// What a client other than `get` says: one line of JSON, and the code with which it ended.
#[track_caller]
pub fn told_by(command: Command) -> (Value, u8) {
    let what = describe(&command);
    let output = run(command);
    let code = output.status.code().and_then(|code| u8::try_from(code).ok());
    let said = String::from_utf8_lossy(&output.stdout);
    match (serde_json::from_str(said.trim()), code) {
        (Ok(told), Some(code)) => (told, code),
        _ if code == Some(exit::SILENT) => (Value::Null, exit::SILENT),
        _ => panic!("{what}: {}: {said}{}", output.status, String::from_utf8_lossy(&output.stderr)),
    }
}
