//! The journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL): what a line is about goes along as fields, so that
//! `journalctl BAREMESH_SERVICE=orders` finds it, and how grave it is as its priority.

use std::fmt::Debug;
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::net::UnixDatagram;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

/// Where the journal listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Bytes of a value; more of one is cut off.
const MAX_VALUE: usize = 16 * 1024;
/// The field that says of which service a line is, as `name.namespace`.
const SERVICE: &str = "service";

/// The journal, where the standard error leads there.
pub(super) struct Journal {
    socket: UnixDatagram,
}

impl Journal {
    /// The journal; nothing where the standard error is a terminal, a file, or somebody else's pipe.
    pub(super) fn behind_stderr() -> Option<Self> {
        // systemd.exec(5): device and inode of the stream that it connected.
        let announced = std::env::var("JOURNAL_STREAM").ok()?;
        let stream = std::fs::metadata("/proc/self/fd/2").ok()?;
        if announced != format!("{}:{}", stream.dev(), stream.ino()) {
            return None;
        }
        let connect = || {
            let socket = UnixDatagram::unbound()?;
            socket.connect(SOCKET)?;
            io::Result::Ok(socket)
        };
        connect().ok().map(|socket| Self { socket })
    }
}

impl<S: Subscriber> Layer<S> for Journal {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut said = Said::default();
        event.record(&mut said);
        let entry = said.entry(*event.metadata().level(), event.metadata().target());
        if self.socket.send(&entry).is_err() {
            // The journal is being started anew, or takes nothing so large: systemd still reads the standard error.
            let _ = writeln!(io::stderr(), "{}", said.line());
        }
    }
}

/// What an event says.
#[derive(Default)]
struct Said {
    message: String,
    fields: Vec<(&'static str, String)>,
}

impl Said {
    /// As one line.
    fn line(&self) -> String {
        let fields = self.fields.iter().map(|(name, value)| format!("{name}={value}"));
        std::iter::once(self.message.clone()).chain(fields).collect::<Vec<_>>().join(" ")
    }

    /// As the journal takes it.
    fn entry(&self, level: Level, target: &str) -> Vec<u8> {
        let priority = match level {
            Level::ERROR => "3",
            Level::WARN => "4",
            Level::INFO => "6",
            Level::DEBUG | Level::TRACE => "7",
        };
        let mut entry = Vec::new();
        put(&mut entry, "PRIORITY", priority);
        put(&mut entry, "SYSLOG_IDENTIFIER", "baremesh");
        put(&mut entry, "BAREMESH_MODULE", target);
        put(&mut entry, "MESSAGE", &self.line());
        for (field, value) in &self.fields {
            // Names of fields are Rust's, so upper case makes them the journal's.
            let name = format!("BAREMESH_{}", field.to_ascii_uppercase().replace('.', "_"));
            put(&mut entry, &name, plain(value));
            // A field may have several values: a service is found by its name alone as well.
            if let Some((service, _)) = plain(value).split_once('.').filter(|_| *field == SERVICE) {
                put(&mut entry, &name, service);
            }
        }
        entry
    }
}

impl Visit for Said {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "message" => value.clone_into(&mut self.message),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match field.name() {
            "message" => self.message = format!("{value:?}"),
            name => self.fields.push((name, format!("{value:?}"))),
        }
    }
}

/// A value without the quotes that a line has it in.
fn plain(value: &str) -> &str {
    let inside = value.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inside.filter(|inside| !inside.contains('\\')).unwrap_or(value)
}

fn put(entry: &mut Vec<u8>, name: &str, value: &str) {
    let most =
        (0..=value.len().min(MAX_VALUE)).rev().find(|at| value.is_char_boundary(*at)).unwrap_or_default();
    let value = &value[..most];
    entry.extend_from_slice(name.as_bytes());
    if value.contains('\n') {
        entry.push(b'\n');
        entry.extend_from_slice(&(value.len() as u64).to_le_bytes());
    } else {
        entry.push(b'=');
    }
    entry.extend_from_slice(value.as_bytes());
    entry.push(b'\n');
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    fn entry_of(say: impl FnOnce()) -> String {
        let (ours, theirs) = UnixDatagram::pair().expect("a pair");
        let journal = tracing_subscriber::registry().with(Journal { socket: ours });
        tracing::subscriber::with_default(journal, say);
        let mut entry = vec![0; 1 << 16];
        let length = theirs.recv(&mut entry).expect("an entry");
        String::from_utf8(entry[..length].to_vec()).expect("text")
    }

    #[test]
    fn a_line_has_what_it_is_about_as_fields() {
        let name = String::from("orders.shop");
        let entry = entry_of(|| tracing::warn!(service = %name, check = "tcp", times = 3, "it is unhealthy"));
        let lines: Vec<&str> = entry.lines().collect();
        for expected in [
            "PRIORITY=4",
            "SYSLOG_IDENTIFIER=baremesh",
            "MESSAGE=it is unhealthy service=orders.shop check=\"tcp\" times=3",
            "BAREMESH_SERVICE=orders.shop",
            "BAREMESH_SERVICE=orders",
            "BAREMESH_CHECK=tcp",
            "BAREMESH_TIMES=3",
        ] {
            assert!(lines.contains(&expected), "{expected}: {entry}");
        }
    }

    #[test]
    fn several_lines_and_endless_values_are_one_entry() {
        let entry = entry_of(|| tracing::error!("first\nPRIORITY=0\nsecond"));
        assert!(entry.starts_with("PRIORITY=3\n"), "{entry}");
        let value = "first\nPRIORITY=0\nsecond";
        let length = String::from_utf8((value.len() as u64).to_le_bytes().to_vec()).expect("small");
        assert!(entry.contains(&format!("MESSAGE\n{length}{value}\n")), "{entry}");
        let long = "ä".repeat(MAX_VALUE);
        let entry = entry_of(|| tracing::info!("{long}"));
        assert!(entry.len() < MAX_VALUE + 200);
    }
}
