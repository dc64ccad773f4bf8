//! The process that runs commands, from its start to the end of the agent.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream as Socket;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::io::BufReader;
use tokio::net::UnixStream;
use tokio::net::unix::OwnedReadHalf;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};

use super::QUEUE;
use super::wire::{Asked, Said, receive, send};
use crate::config::Directories;
use crate::health::probe::exec;
use crate::health::probe::{MAX_COMMANDS, RunAs};
use crate::privileges;
use crate::registration::check::{Exec, Probe};
use crate::registration::file;

/// Serves the agent at the other end of the standard input, and ends with it. To be called before there is a second
/// thread.
pub fn serve(directories: &Directories) -> io::Result<()> {
    // Refused only where the process leads a group already: nothing that ends the agent's reaches this one.
    let _ = rustix::process::setsid();
    privileges::keep(privileges::OF_COMMANDS)?;
    let socket = Socket::from(io::stdin().as_fd().try_clone_to_owned()?);
    socket.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // Whoever ends the agent ends this; handled rather than ignored, since commands inherit what is ignored.
        let _taken = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()].map(signal);
        let registered = Registered::new(directories.registrations());
        answer(UnixStream::from_std(socket)?, registered, RunAs::of_this_process()).await
    })
}

async fn answer(socket: UnixStream, mut registered: Registered, run_as: RunAs) -> io::Result<()> {
    let (from, mut to) = socket.into_split();
    let (tell, mut asked) = mpsc::channel(QUEUE);
    tokio::spawn(listen(from, tell));
    let mut running = HashMap::<u64, AbortHandle>::new();
    let mut commands = JoinSet::new();
    loop {
        tokio::select! {
            asked = asked.recv() => match asked {
                None => break,
                Some(Asked::Leave { id }) => running.remove(&id).iter().for_each(AbortHandle::abort),
                Some(Asked::Run { id, service }) => {
                    let check = match registered.command(&service) {
                        _ if commands.len() >= MAX_COMMANDS => Err("too many commands run at once".to_owned()),
                        None => Err(format!("no command is registered for {service}")),
                        Some(check) => Ok(check.clone()),
                    };
                    running.insert(id, commands.spawn(async move {
                        let result = match check {
                            Ok((command, limit)) => run(run_as, &command, limit).await,
                            Err(reason) => Err(reason),
                        };
                        Said { id, failed: result.err() }
                    }));
                }
            },
            // One that was given up has nothing to say.
            Some(ended) = commands.join_next() => if let Ok(said) = ended {
                running.remove(&said.id);
                send(&mut to, &said).await?;
            },
        }
    }
    // What still runs is killed.
    commands.shutdown().await;
    Ok(())
}

async fn listen(from: OwnedReadHalf, tell: mpsc::Sender<Asked>) {
    let mut from = BufReader::new(from);
    // What cannot be read ends it as the agent's end does: nothing behind it could be trusted.
    while let Ok(Some(asked)) = receive(&mut from).await {
        if tell.send(asked).await.is_err() {
            return;
        }
    }
}

/// Runs a command as whoever its registration names, or as nobody.
pub async fn run(run_as: RunAs, Exec { command, user }: &Exec, limit: Duration) -> Result<(), String> {
    let user = match run_as.user(*user)? {
        Some(uid) => Some(exec::User::of(uid).await),
        None => None,
    };
    exec::run(command, user, limit).await
}

/// The commands of this host's registrations, as their files say them.
struct Registered {
    directory: PathBuf,
    known: HashMap<String, Known>,
}

struct Known {
    path: PathBuf,
    written: Option<SystemTime>,
    check: Option<(Exec, Duration)>,
}

impl Registered {
    fn new(directory: PathBuf) -> Self {
        Self { directory, known: HashMap::new() }
    }

    /// The command of a service's check, and how long it may take. A file that has become unreadable says what it said,
    /// as it does for the agent.
    fn command(&mut self, service: &str) -> Option<&(Exec, Duration)> {
        let is_current = |known: &Known| known.written.is_some() && known.written == written(&known.path);
        if !self.known.get(service).is_some_and(is_current) {
            self.read();
        }
        self.known.get(service)?.check.as_ref()
    }

    fn read(&mut self) {
        let Ok(paths) = file::paths_in(&self.directory) else { return };
        self.known.retain(|_, known| paths.contains(&known.path));
        for path in paths {
            let written = written(&path);
            let Ok((_, local)) = file::read(&path) else { continue };
            let check = local.check.as_ref().and_then(|check| match &check.probe {
                Probe::Exec(exec) => Some((exec.clone(), check.schedule.timeout)),
                _ => None,
            });
            self.known.insert(local.key.to_string(), Known { path, written, check });
        }
    }
}

fn written(path: &Path) -> Option<SystemTime> {
    std::fs::metadata(path).and_then(|metadata| metadata.modified()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHECKED: &str =
        "name = \"orders\"\nports = [{ port = 8080 }]\n[check]\nexec = { command = [\"/bin/true\"] }\n";

    fn pair(directory: &Path) -> (UnixStream, tokio::task::JoinHandle<io::Result<()>>) {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let registered = Registered::new(directory.to_owned());
        (ours, tokio::spawn(answer(theirs, registered, RunAs::of_this_process())))
    }

    async fn ask(socket: &mut UnixStream, id: u64, service: &str) -> Option<String> {
        send(socket, &Asked::Run { id, service: service.to_owned() }).await.expect("asked");
        let said: Said = receive(&mut BufReader::new(socket)).await.expect("read").expect("an answer");
        assert_eq!(said.id, id);
        said.failed
    }

    #[tokio::test]
    async fn runs_what_is_registered_and_nothing_else() {
        let place = tempfile::tempdir().expect("a directory");
        let path = place.path().join("any.toml");
        std::fs::write(&path, CHECKED).expect("written");
        let (mut socket, ended) = pair(place.path());
        assert_eq!(ask(&mut socket, 1, "orders.default").await, None);
        let refused = ask(&mut socket, 2, "web.default").await.expect("refused");
        assert_eq!(refused, "no command is registered for web.default");
        std::fs::write(&path, "broken").expect("written");
        assert_eq!(ask(&mut socket, 3, "orders.default").await, None, "it says what it said");
        std::fs::write(&path, CHECKED.replace("true", "false")).expect("written");
        assert!(ask(&mut socket, 4, "orders.default").await.expect("failed").contains("exit status: 1"));
        std::fs::remove_file(&path).expect("removed");
        assert!(ask(&mut socket, 5, "orders.default").await.expect("refused").starts_with("no command"));
        drop(socket);
        ended.await.expect("no panic").expect("a good end");
    }

    #[tokio::test]
    async fn what_is_given_up_is_killed_and_so_is_all_at_the_end() {
        let place = tempfile::tempdir().expect("a directory");
        let pid = place.path().join("pid");
        let (out, path) = (pid.display(), place.path().join("slow.toml"));
        let command = format!("[\"/bin/sh\", \"-c\", \"echo $$ > {out}; exec sleep 1000\"]");
        std::fs::write(&path, CHECKED.replace("[\"/bin/true\"]", &command)).expect("written");
        // Nobody writes there too.
        std::fs::set_permissions(place.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777))
            .expect("open");
        let begun = async || loop {
            match std::fs::read_to_string(&pid).map(|text| text.trim().parse::<i32>()) {
                Ok(Ok(pid)) => break rustix::process::Pid::from_raw(pid).expect("a process"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let gone = async |pid| {
            while rustix::process::test_kill_process(pid).is_ok() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        let (mut socket, ended) = pair(place.path());
        send(&mut socket, &Asked::Run { id: 1, service: "orders.default".to_owned() }).await.expect("asked");
        let first = begun().await;
        send(&mut socket, &Asked::Leave { id: 1 }).await.expect("asked");
        gone(first).await;
        std::fs::remove_file(&pid).expect("removed");
        send(&mut socket, &Asked::Run { id: 2, service: "orders.default".to_owned() }).await.expect("asked");
        let second = begun().await;
        drop(socket);
        ended.await.expect("no panic").expect("a good end");
        gone(second).await;
    }
}
