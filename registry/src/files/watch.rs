//! Following a directory: events of the file system say when to look, a slow poll catches what they miss, and what is
//! published is always the last set that held together.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};

use super::read::{Fingerprint, MAX_FILES, folders};
use super::{ResourceDirectory, Sizes};
use crate::set::{Loaded, Refused};

/// How often the directory is looked at when no event says so.
pub const POLL_INTERVAL: Duration = Duration::from_secs(5);

/// How long the directory must be quiet before it is read: editors write a file in several steps.
const QUIET: Duration = Duration::from_millis(100);

/// How long a directory that is never quiet, or a file that is never closed, is waited for.
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// How following goes.
#[derive(Debug, Clone, Default)]
pub struct Status {
    /// Sets that were taken, the first included.
    pub loads: u64,
    /// Sets that were refused.
    pub errors: u64,
    /// Why the directory as it is now is not the set in force; `None` if it is.
    pub last_error: Option<Arc<Refused>>,
}

/// A directory that is followed until this is dropped.
#[derive(Debug)]
pub struct Watch {
    /// The set in force.
    pub current: watch::Receiver<Arc<Loaded>>,
    /// How following goes.
    pub status: watch::Receiver<Status>,
    task: JoinHandle<()>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ResourceDirectory {
    /// Follows the directory, starting with what it holds. Where that is refused, `last_good` starts, if there is one.
    /// Must be called within a Tokio runtime; reads the directory before it returns.
    pub fn watch(&self, last_good: Option<Arc<Loaded>>) -> Result<Watch, Refused> {
        let had_resources = last_good.as_ref().is_some_and(|loaded| !loaded.places.is_empty());
        let changed = Arc::new(Events::default());
        let mut follower = Follower::new(self.clone(), &changed, had_resources);
        follower.follow_folders();
        let (loaded, status) = match (follower.reload(), last_good) {
            (Ok(loaded), _) => (Arc::new(loaded), Status { loads: 1, ..Status::default() }),
            (Err(refused), Some(last_good)) => {
                tracing::error!(directory = %self.path().display(), "resources are refused, the last good set stays in force: {refused}");
                (last_good, Status { errors: 1, last_error: Some(Arc::new(refused)), loads: 0 })
            }
            (Err(refused), None) => return Err(refused),
        };
        let (current_out, current) = watch::channel(loaded);
        let (status_out, status) = watch::channel(status);
        let outlet = Outlet { current: current_out, status: status_out };
        let task = tokio::spawn(run(follower, changed, outlet));
        Ok(Watch { current, status, task })
    }
}

struct Outlet {
    current: watch::Sender<Arc<Loaded>>,
    status: watch::Sender<Status>,
}

impl Outlet {
    fn publish(&self, result: Result<Loaded, Refused>, directory: &Path) {
        match result {
            Ok(loaded) => {
                self.current.send_if_modified(|current| {
                    let differs = **current != loaded;
                    if differs {
                        *current = Arc::new(loaded);
                    }
                    differs
                });
                self.status.send_modify(|status| {
                    status.loads += 1;
                    status.last_error = None;
                });
                tracing::info!(directory = %directory.display(), "resources are taken");
            }
            Err(refused) => {
                tracing::error!(directory = %directory.display(), "resources are refused, the last good set stays in force: {refused}");
                self.status.send_modify(|status| {
                    status.errors += 1;
                    status.last_error = Some(Arc::new(refused));
                });
            }
        }
    }
}

async fn run(mut follower: Follower, changed: Arc<Events>, outlet: Outlet) {
    loop {
        let event = timeout(POLL_INTERVAL, changed.came.notified()).await.is_ok();
        if event {
            settle(&changed).await;
        }
        let (directory, had_resources) = (follower.directory.clone(), follower.had_resources);
        let step = tokio::task::spawn_blocking(move || {
            let result = follower.step(event);
            (follower, result)
        });
        match step.await {
            Ok((same, result)) => {
                follower = same;
                if let Some(result) = result {
                    outlet.publish(result, follower.directory.path());
                }
            }
            // The runtime is going down, or reading panicked: following goes on in either case.
            Err(error) => {
                tracing::error!("reading the resources failed: {error}");
                sleep(QUIET).await;
                follower = Follower::new(directory, &changed, had_resources);
            }
        }
    }
}

/// Waits until no event has come for a moment, and no file is half written.
async fn settle(changed: &Events) {
    let end = Instant::now() + LONGEST_WAIT;
    while Instant::now() < end {
        let quiet = timeout(QUIET, changed.came.notified()).await.is_err();
        if quiet && !changed.writing() {
            return;
        }
    }
    // Whoever holds a file open this long writes no resource into it.
    changed.forget();
}

/// What the file system has told.
#[derive(Default)]
struct Events {
    came: Notify,
    /// Files that were changed and not yet closed: the first half of a file may read well, and mean another thing.
    open: Mutex<BTreeSet<PathBuf>>,
}

impl Events {
    fn writing(&self) -> bool {
        !self.lock().is_empty()
    }

    fn forget(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<PathBuf>> {
        // Nothing panics while it holds the lock.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an event of `directory` that may have changed what it holds.
    fn note(&self, event: &Event, directory: &Path) {
        if !concerns(event, directory) {
            return;
        }
        let mut open = self.lock();
        for path in &event.paths {
            match event.kind {
                EventKind::Modify(ModifyKind::Data(_)) if open.len() < MAX_FILES => {
                    open.insert(path.clone());
                }
                EventKind::Access(_) | EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_)) => {
                    open.remove(path);
                }
                _ => {}
            }
        }
        drop(open);
        self.came.notify_one();
    }
}

/// What is known of the directory between two looks at it. All of its methods block on the file system.
struct Follower {
    directory: ResourceDirectory,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeMap<PathBuf, u64>,
    seen: Option<Fingerprint>,
    sizes: Sizes,
    had_resources: bool,
}

impl Follower {
    fn new(directory: ResourceDirectory, changed: &Arc<Events>, had_resources: bool) -> Self {
        let (path, changed) = (directory.path().to_owned(), Arc::clone(changed));
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| match event {
            Ok(event) => changed.note(&event, &path),
            Err(_) => changed.came.notify_one(),
        });
        if let Err(error) = &watcher {
            tracing::warn!("file events are not available, changes are seen by polling: {error}");
        }
        let (watched, sizes) = (BTreeMap::new(), Sizes::new());
        Self { directory, watcher: watcher.ok(), watched, seen: None, sizes, had_resources }
    }

    /// One look: by an event always with reading, by a poll only if the directory looks different.
    fn step(&mut self, event: bool) -> Option<Result<Loaded, Refused>> {
        self.follow_folders();
        let seen = Fingerprint::of(self.directory.path());
        let differs = self.seen.as_ref() != Some(&seen);
        (event || differs).then(|| self.reload())
    }

    fn reload(&mut self) -> Result<Loaded, Refused> {
        // Taken before reading: what changes in between is seen by the next poll.
        self.seen = Some(Fingerprint::of(self.directory.path()));
        let (loaded, sizes) = self.directory.reload(&self.sizes, self.had_resources)?;
        self.had_resources |= !sizes.is_empty();
        self.sizes = sizes;
        Ok(loaded)
    }

    /// Asks for the events of the directory, its folders, and its parent, where a link of its name may be swapped.
    /// A folder that was replaced has another inode, and is asked for anew.
    fn follow_folders(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let mut wanted: BTreeMap<PathBuf, u64> = folders(self.directory.path()).into_iter().collect();
        if let Some(parent) = self.directory.path().parent() {
            wanted.insert(parent.to_owned(), 0);
        }
        for path in self.watched.keys().filter(|path| wanted.get(*path) != self.watched.get(*path)) {
            // It is most often gone already, and its watch with it.
            let _ = watcher.unwatch(path);
        }
        let mut watched = BTreeMap::new();
        for (path, inode) in wanted {
            let already = self.watched.get(&path) == Some(&inode);
            if already || watcher.watch(&path, RecursiveMode::NonRecursive).is_ok() {
                watched.insert(path, inode);
            }
        }
        self.watched = watched;
    }
}

/// Whether an event may have changed what the directory holds. Reading it causes events as well.
fn concerns(event: &Event, directory: &Path) -> bool {
    let read = match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => false,
        EventKind::Access(_) => true,
        _ => false,
    };
    !read
        && (event.need_rescan()
            || event.paths.is_empty()
            || event.paths.iter().any(|p| p.starts_with(directory)))
}

#[cfg(test)]
mod tests {
    use notify::event::{DataChange, RemoveKind};

    use super::*;

    #[test]
    fn a_file_is_half_written_until_it_is_closed() {
        let directory = Path::new("/registry");
        let events = Events::default();
        let note = |kind: EventKind, name: &str| {
            events.note(&Event::new(kind).add_path(directory.join(name)), directory);
            events.writing()
        };
        let modified = EventKind::Modify(ModifyKind::Data(DataChange::Any));
        let closed = |mode| EventKind::Access(AccessKind::Close(mode));
        assert!(note(modified, "a.toml"));
        assert!(note(closed(AccessMode::Read), "a.toml"), "a reader's closing says nothing");
        assert!(note(modified, "b.toml"));
        assert!(note(closed(AccessMode::Write), "a.toml"));
        assert!(!note(EventKind::Remove(RemoveKind::File), "b.toml"));
        let outside = Event::new(modified).add_path("/elsewhere".into());
        events.note(&outside, directory);
        assert!(!events.writing());
    }
}
