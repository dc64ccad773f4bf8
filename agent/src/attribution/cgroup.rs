//! From a cgroup's id to its place in the hierarchy. Ids are remembered, so the data path asks a table; an id not
//! seen before costs one walk through the hierarchy, off the data path, which learns every cgroup at once. A
//! unit that restarts gets a new cgroup with a new id, and a cgroup of version 2 never moves, so nothing that is
//! remembered goes stale.

use std::collections::{HashMap, HashSet, VecDeque};
use std::io::ErrorKind;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustix::io::Errno;
use tokio::sync::Mutex;

use super::place::{CgroupPath, Place};
use super::sock_diag::CgroupId;
use crate::mounts::{self, Mount};

/// Cgroups that one walk visits and that are remembered. Hosts have some hundreds, container hosts some thousands.
pub const MAX_CGROUPS: usize = 32_768;
/// Ids of removed cgroups that are remembered, so that they do not cost a walk each time.
const MAX_REMOVED: usize = 1_024;
/// What statfs says of a cgroup2 file system: CGROUP2_SUPER_MAGIC of linux/magic.h.
const CGROUP2_MAGIC: u64 = 0x6367_7270;

/// Why a cgroup's place is not known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CgroupError {
    /// There is no cgroup2 hierarchy in sight.
    #[error(
        "no cgroup2 file system is mounted, so units and cgroups cannot be told apart: mount one (systemd does, in unified and hybrid mode), and use `nsenter --net=` in place of `ip netns exec`, which hides it"
    )]
    NoHierarchy,
    /// A directory of the hierarchy cannot be read.
    #[error("{} cannot be read ({kind}): the agent must see the cgroups of its services", path.display())]
    Unreadable {
        /// The directory or file.
        path: PathBuf,
        /// What went wrong.
        kind: ErrorKind,
    },
    /// The cgroup is in no directory: removed, or outside the agent's cgroup namespace.
    #[error(
        "cgroup {} of the connection's socket was removed, or lies outside the agent's cgroup namespace", .0.0
    )]
    Removed(CgroupId),
    /// The hierarchy is larger than a walk may be.
    #[error("the host has more than {MAX_CGROUPS} cgroups, and the connection's is not among the first")]
    TooMany,
    /// The walk did not come to its end.
    #[error("the walk through the cgroup hierarchy was cut off")]
    CutOff,
}

/// Where the cgroup2 hierarchy is mounted and who manages it.
#[derive(Debug, Clone)]
pub struct Hierarchy {
    /// The directory at which it can be seen.
    pub directory: PathBuf,
    /// The cgroup that this directory is.
    pub path: CgroupPath,
    /// The cgroup below which the system's service manager puts its units.
    pub manager: CgroupPath,
}

impl Hierarchy {
    /// Finds it among this process's mounts: at /sys/fs/cgroup, at /sys/fs/cgroup/unified on hybrid systems, or
    /// elsewhere.
    pub fn find() -> Result<Self, CgroupError> {
        let mountinfo = read("/proc/self/mountinfo")?;
        // What is mounted over a hierarchy hides it, so the file system is asked as well.
        let visible = |(directory, _): &(PathBuf, CgroupPath)| {
            rustix::fs::statfs(directory).is_ok_and(|seen| seen.f_type as u64 == CGROUP2_MAGIC)
        };
        let mounts = mounts::of(&mountinfo).filter_map(cgroup2).filter(visible);
        let (directory, path) =
            mounts.min_by_key(|(_, path)| path.depth()).ok_or(CgroupError::NoHierarchy)?;
        // Without systemd as first process there is no manager, and whoever makes cgroups makes them below the root.
        let manager =
            read("/proc/1/cgroup").ok().and_then(|text| manager_root(&text)).unwrap_or(CgroupPath::root());
        Ok(Self { directory, path, manager })
    }
}

impl Hierarchy {
    /// Its cgroups as far as they can be seen now, and below which of them more may be.
    pub fn survey(&self) -> Result<Survey, CgroupError> {
        Ok(Walk::new(self, MAX_CGROUPS)?.run())
    }
}

fn read(path: &str) -> Result<String, CgroupError> {
    std::fs::read_to_string(path)
        .map_err(|error| CgroupError::Unreadable { path: path.into(), kind: error.kind() })
}

/// The mount point of a cgroup2 file system, and which of its cgroups is there.
fn cgroup2(mount: Mount<'_>) -> Option<(PathBuf, CgroupPath)> {
    let root = CgroupPath::new(&mount.root).ok()?;
    (mount.kind == "cgroup2").then_some((mount.point, root))
}

/// The root of the service manager's units: systemd itself runs in `init.scope` directly below it.
fn manager_root(proc_1_cgroup: &str) -> Option<CgroupPath> {
    let own = proc_1_cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    let root = own.strip_suffix("/init.scope")?;
    if root.is_empty() { Some(CgroupPath::root()) } else { CgroupPath::new(root).ok() }
}

/// The places of all cgroups, as far as they have been asked for. Shared by all threads.
#[derive(Debug)]
pub struct Cgroups {
    /// `None`: found anew at every walk, since it may be mounted later.
    hierarchy: Option<Hierarchy>,
    known: ArcSwap<Known>,
    walk: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct Known {
    places: HashMap<CgroupId, Arc<Place>>,
    removed: HashSet<CgroupId>,
}

impl Cgroups {
    /// Those of this system.
    pub fn of_system() -> Arc<Self> {
        Arc::new(Self { hierarchy: None, known: ArcSwap::default(), walk: Arc::default() })
    }

    /// Those of a hierarchy that is already known.
    pub fn of(hierarchy: Hierarchy) -> Arc<Self> {
        Arc::new(Self { hierarchy: Some(hierarchy), known: ArcSwap::default(), walk: Arc::default() })
    }

    /// What is remembered of a cgroup: `None` means that it takes a walk to say (`find`). Never blocks.
    pub fn known(&self, id: CgroupId) -> Option<Result<Arc<Place>, CgroupError>> {
        let known = self.known.load();
        match known.places.get(&id) {
            Some(place) => Some(Ok(Arc::clone(place))),
            None => known.removed.contains(&id).then_some(Err(CgroupError::Removed(id))),
        }
    }

    /// The place of a cgroup, by a walk on a blocking thread when it is not remembered. One walk runs at a time,
    /// and answers everybody who waits for a cgroup that it saw.
    pub async fn find(self: &Arc<Self>, id: CgroupId) -> Result<Arc<Place>, CgroupError> {
        if let Some(answer) = self.known(id) {
            return answer;
        }
        let turn = Arc::clone(&self.walk).lock_owned().await;
        if let Some(answer) = self.known(id) {
            return answer;
        }
        let cgroups = Arc::clone(self);
        let walk = tokio::task::spawn_blocking(move || {
            let answer = cgroups.walk_for(id);
            drop(turn); // held to the end of the walk even when nobody waits for it any more
            answer
        });
        walk.await.unwrap_or(Err(CgroupError::CutOff))
    }

    /// Walks once, so that the first connections of running services need not, and tells how many cgroups there
    /// are.
    pub async fn learn(self: &Arc<Self>) -> Result<usize, CgroupError> {
        let turn = Arc::clone(&self.walk).lock_owned().await;
        let cgroups = Arc::clone(self);
        let walk = tokio::task::spawn_blocking(move || {
            let Survey { places, missed } = cgroups.survey()?;
            let count = places.len();
            cgroups.remember(places, None);
            drop(turn);
            missed.into_iter().next().map_or(Ok(count), |missed| Err(missed.why))
        });
        walk.await.unwrap_or(Err(CgroupError::CutOff))
    }

    fn walk_for(&self, id: CgroupId) -> Result<Arc<Place>, CgroupError> {
        let Survey { places, missed } = self.survey()?;
        let answer = match (places.get(&id), missed.into_iter().next()) {
            (Some(place), _) => Ok(Arc::clone(place)),
            (None, Some(missed)) => Err(missed.why),
            (None, None) => Err(CgroupError::Removed(id)),
        };
        self.remember(places, matches!(answer, Err(CgroupError::Removed(_))).then_some(id));
        answer
    }

    fn survey(&self) -> Result<Survey, CgroupError> {
        let hierarchy = self.hierarchy.clone().map_or_else(Hierarchy::find, Ok)?;
        hierarchy.survey()
    }

    /// What a walk found takes the place of what earlier ones did: cgroups that are gone are forgotten.
    fn remember(&self, places: HashMap<CgroupId, Arc<Place>>, removed: Option<CgroupId>) {
        let mut all_removed = self.known.load().removed.clone();
        if all_removed.len() >= MAX_REMOVED {
            all_removed.clear();
        }
        all_removed.extend(removed);
        self.known.store(Arc::new(Known { places, removed: all_removed }));
    }
}

/// What a walk found.
#[derive(Debug)]
pub struct Survey {
    /// The cgroups that it saw.
    pub places: HashMap<CgroupId, Arc<Place>>,
    /// What it did not see.
    pub missed: Vec<Missed>,
}

/// A part of the hierarchy that a walk did not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missed {
    /// The cgroup below which it is.
    pub below: CgroupPath,
    /// Why it was not seen.
    pub why: CgroupError,
}

/// A breadth-first walk through a hierarchy. What users made is visited last, so that a user with very many
/// cgroups cannot hide those of the system's units behind the bound.
struct Walk<'a> {
    hierarchy: &'a Hierarchy,
    /// The system's directories, then those of users.
    queues: [VecDeque<(PathBuf, CgroupPath)>; 2],
    survey: Survey,
    /// How many cgroups it visits.
    limit: usize,
}

impl<'a> Walk<'a> {
    fn new(hierarchy: &'a Hierarchy, limit: usize) -> Result<Self, CgroupError> {
        let top = &hierarchy.directory;
        let id = match std::fs::metadata(top) {
            Ok(metadata) => CgroupId(metadata.ino()),
            Err(error) => return Err(CgroupError::Unreadable { path: top.clone(), kind: error.kind() }),
        };
        let place = Arc::new(Place::new(hierarchy.path.clone(), &hierarchy.manager));
        let queues = [VecDeque::from([(top.clone(), hierarchy.path.clone())]), VecDeque::new()];
        Ok(Self {
            hierarchy,
            queues,
            survey: Survey { places: HashMap::from([(id, place)]), missed: Vec::new() },
            limit,
        })
    }

    fn run(mut self) -> Survey {
        while let Some((queue, (directory, path))) = self.next() {
            if let Err(error) = self.visit(queue, &directory, &path) {
                // A cgroup may be removed while it is read: ENOENT at opening, ENODEV afterwards.
                let removed = [Errno::NOENT, Errno::NODEV].map(|errno| Some(errno.raw_os_error()));
                if !removed.contains(&error.raw_os_error()) {
                    let why = CgroupError::Unreadable { path: directory, kind: error.kind() };
                    self.survey.missed.push(Missed { below: path, why });
                }
            }
            if self.survey.places.len() >= self.limit {
                let below = self.hierarchy.path.clone();
                self.survey.missed.push(Missed { below, why: CgroupError::TooMany });
                break;
            }
        }
        self.survey
    }

    fn next(&mut self) -> Option<(usize, (PathBuf, CgroupPath))> {
        let queue = self.queues.iter().position(|queue| !queue.is_empty())?;
        self.queues[queue].pop_front().map(|next| (queue, next))
    }

    fn visit(&mut self, queue: usize, directory: &Path, path: &CgroupPath) -> std::io::Result<()> {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if !entry.file_type()?.is_dir() || self.survey.places.len() >= self.limit {
                continue;
            }
            // A name that is not UTF-8 can be in no registration: its cgroup counts as part of the one above.
            let child = entry.file_name().to_str().map_or_else(|| path.clone(), |name| path.child(name));
            let users = child.below(&self.hierarchy.manager) == Some("/user.slice");
            let place = Place::new(child.clone(), &self.hierarchy.manager);
            // The inode number in a directory entry is the cgroup's id, so no entry needs a stat of its own.
            self.survey.places.insert(CgroupId(entry.ino()), Arc::new(place));
            self.queues[if users { 1 } else { queue }].push_back((entry.path(), child));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_wherever_they_are() {
        let check = |line: &str, expected: Option<(&str, &str)>| {
            let found = mounts::of(line).find_map(cgroup2);
            let found = found.map(|(directory, root)| (directory, root.to_string()));
            assert_eq!(
                found,
                expected.map(|(directory, root)| (directory.into(), root.to_owned())),
                "{line}"
            );
        };
        check(
            "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw",
            Some(("/sys/fs/cgroup", "/")),
        );
        let hybrid = "41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        check(hybrid, Some(("/sys/fs/cgroup/unified", "/")));
        check("9 8 0:26 /a /with\\040space rw master:1 - cgroup2 none rw", Some(("/with space", "/a")));
        check("9 8 0:26 /../.. /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None);
        check("40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd", None);
    }

    #[test]
    fn the_managers_root_is_read_from_the_first_process() {
        let root = |text: &str| manager_root(text).map(|path| path.to_string());
        assert_eq!(root("1:name=systemd:/init.scope\n0::/init.scope\n").as_deref(), Some("/"));
        assert_eq!(
            root("0::/machine.slice/box.scope/payload/init.scope\n").as_deref(),
            Some("/machine.slice/box.scope/payload")
        );
        assert_eq!(root("0::/\n"), None);
        assert_eq!(root(""), None);
    }

    /// Any directory tree has inode numbers, so one that is not of cgroups shows how a walk goes.
    fn walk(limit: usize, make: impl FnOnce(&Path)) -> Survey {
        let directory = tempfile::tempdir().expect("a temporary directory");
        make(directory.path());
        let [path, manager] = [CgroupPath::root(), CgroupPath::root()];
        Walk::new(&Hierarchy { directory: directory.path().into(), path, manager }, limit)
            .expect("readable")
            .run()
    }

    #[test]
    fn what_a_user_made_does_not_crowd_out_the_systems_units() {
        let survey = walk(100, |top| {
            let user = top.join("user.slice/user-1000.slice/user@1000.service");
            std::fs::create_dir_all(&user).expect("writable");
            for number in 0..100 {
                std::fs::create_dir(user.join(number.to_string())).expect("writable");
            }
            std::fs::create_dir_all(top.join("z.slice/z-y.slice/z-y-x.slice/orders.service"))
                .expect("writable");
        });
        assert_eq!(survey.missed, [Missed { below: CgroupPath::root(), why: CgroupError::TooMany }]);
        assert_eq!(survey.places.len(), 100);
        let orders = |place: &Arc<Place>| {
            place.unit.as_ref().is_some_and(|(name, _)| name.as_str() == "orders.service")
        };
        assert_eq!(survey.places.values().filter(|place| orders(place)).count(), 1);
    }

    #[test]
    fn a_name_that_is_no_text_counts_as_the_cgroup_above() {
        use std::os::unix::ffi::OsStrExt;
        let survey = walk(MAX_CGROUPS, |top| {
            let odd = top.join("a.slice").join(std::ffi::OsStr::from_bytes(b"\xff"));
            std::fs::create_dir_all(odd.join("b")).expect("writable");
        });
        let mut paths: Vec<_> = survey.places.values().map(|place| place.path.to_string()).collect();
        paths.sort();
        assert_eq!(paths, ["/", "/a.slice", "/a.slice", "/a.slice/b"]);
    }

    #[tokio::test]
    async fn a_hierarchy_that_is_missing_is_reported() {
        let directory = PathBuf::from("/no/such/directory");
        let [path, manager] = [CgroupPath::root(), CgroupPath::root()];
        let cgroups = Cgroups::of(Hierarchy { directory: directory.clone(), path, manager });
        let expected = Err(CgroupError::Unreadable { path: directory, kind: ErrorKind::NotFound });
        assert_eq!(cgroups.find(CgroupId(1)).await, expected);
        assert!(cgroups.known(CgroupId(1)).is_none(), "the next connection tries again");
    }
}
