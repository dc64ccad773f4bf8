//! Where a process stands in the cgroup hierarchy, and which unit of the system's own service manager that is.
//! Pure: paths in, names out.

use std::sync::Arc;

/// Bytes that a unit's name may have (systemd.unit(5)).
const MAX_UNIT_NAME: usize = 255;
/// Bytes that a cgroup's path may have: PATH_MAX.
const MAX_PATH: usize = 4096;

/// Why a unit's name or a cgroup's path cannot name callers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlaceError {
    /// Neither a service's nor a scope's name.
    #[error("`{0}` is no unit that runs programs: write the unit's full name, such as `orders.service`")]
    Unit(String),
    /// A template, not an instance of it.
    #[error("`{0}` is a template: name its instance, such as `orders@1.service`")]
    Template(String),
    /// The unit in which a user's own service manager runs.
    #[error("`{0}` runs whatever its user wants, so it cannot be a service: name the user instead")]
    UserManager(String),
    /// Not an absolute path without empty, `.` and `..` parts.
    #[error(
        "`{0}` is not a cgroup's path: write it as /proc/PID/cgroup shows it after `0::`, such as `/machine.slice/shop.scope`"
    )]
    Path(String),
}

/// The name of a service or scope of the system's service manager, such as `orders.service`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UnitName(Arc<str>);

impl UnitName {
    /// Checks and takes a name as written. Templates are refused, and so are the managers of users' own units.
    pub fn new(text: &str) -> Result<Self, PlaceError> {
        let stem = text.strip_suffix(".service").or_else(|| text.strip_suffix(".scope")).unwrap_or_default();
        let allowed = |b: u8| b.is_ascii_alphanumeric() || b":-_.\\@".contains(&b);
        if stem.is_empty() || text.len() > MAX_UNIT_NAME || !text.bytes().all(allowed) {
            Err(PlaceError::Unit(text.to_owned()))
        } else if stem.ends_with('@') {
            Err(PlaceError::Template(text.to_owned()))
        } else if stem.starts_with("user@") {
            Err(PlaceError::UserManager(text.to_owned()))
        } else {
            Ok(Self(text.into()))
        }
    }

    /// The name's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A cgroup's path as /proc/PID/cgroup shows it after `0::`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CgroupPath(Arc<str>);

impl CgroupPath {
    /// Checks and takes a path as written; one trailing slash is dropped.
    pub fn new(text: &str) -> Result<Self, PlaceError> {
        let trimmed = text.strip_suffix('/').unwrap_or(text);
        let parts = trimmed.split('/').skip(1);
        let plain = |part: &str| !matches!(part, "" | "." | "..") && !part.contains(['\n', '\0']);
        let valid = text.starts_with('/') && text.len() <= MAX_PATH && parts.into_iter().all(plain);
        if valid { Ok(Self(trimmed.into())) } else { Err(PlaceError::Path(text.to_owned())) }
    }

    /// The hierarchy's root, `/`.
    pub fn root() -> Self {
        Self("".into())
    }

    /// Whether this is the hierarchy's root, in which every process is.
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The cgroup `name` directly below this one.
    pub(super) fn child(&self, name: &str) -> Self {
        Self(format!("{}/{name}", self.0).into())
    }

    /// The text, empty for the root.
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// The part below `ancestor`, empty for `ancestor` itself; `None` when this lies elsewhere.
    pub fn below(&self, ancestor: &Self) -> Option<&str> {
        let rest = self.0.strip_prefix(&*ancestor.0)?;
        (rest.is_empty() || rest.starts_with('/')).then_some(rest)
    }

    /// This path and those above it, without the root, each with its depth (1 is directly below the root).
    pub(super) fn lineage(&self) -> impl Iterator<Item = (usize, &str)> {
        let ends = self.0.match_indices('/').map(|(at, _)| at).skip(1).chain([self.0.len()]);
        ends.enumerate().map(|(above, end)| (above + 1, &self.0[..end])).filter(|(_, path)| !path.is_empty())
    }

    /// The number of names in the path.
    pub fn depth(&self) -> usize {
        self.0.matches('/').count()
    }
}

impl std::fmt::Display for CgroupPath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.is_root() { "/" } else { &self.0 })
    }
}

/// A cgroup's place: its path and the system unit that it belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where it is.
    pub path: CgroupPath,
    /// The unit whose cgroup this is or lies in, with the depth of the unit's own cgroup.
    pub unit: Option<(UnitName, usize)>,
}

impl Place {
    /// The place of `path`, on a system whose service manager owns what is below `manager`.
    pub fn new(path: CgroupPath, manager: &CgroupPath) -> Self {
        let unit = path.below(manager).and_then(unit_in);
        Self { unit: unit.map(|(name, depth)| (name, depth + manager.depth())), path }
    }
}

/// The system unit at or above a path that starts at the service manager's own root, and its depth there.
///
/// Slices hold units and are the manager's alone; below a unit anybody may have made directories (delegation), so
/// the first name that is no slice decides. What is below user.slice belongs to users and is never a system unit.
fn unit_in(path: &str) -> Option<(UnitName, usize)> {
    let mut parent: Option<&str> = None;
    for (above, directory) in path.split('/').skip(1).enumerate() {
        // systemd puts an underscore before names that the kernel uses itself, such as `memory.service`.
        let name = directory.strip_prefix('_').unwrap_or(directory);
        let Some(slice) = name.strip_suffix(".slice") else {
            return UnitName::new(name).ok().map(|name| (name, above + 1));
        };
        // A slice `a-b.slice` lies in `a.slice`, and nowhere else.
        let own_name = match parent {
            None => Some(slice),
            Some(parent) => slice.strip_prefix(parent).and_then(|rest| rest.strip_prefix('-')),
        };
        if own_name.is_none_or(|own| own.is_empty() || own.contains('-')) || (parent, slice) == (None, "user")
        {
            return None;
        }
        parent = Some(slice);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> CgroupPath {
        CgroupPath::new(text).expect("a path")
    }

    #[test]
    fn units_are_read_from_full_paths() {
        let check = |text: &str, expected: Option<(&str, usize)>| {
            let place = Place::new(path(text), &CgroupPath::root());
            let unit = place.unit.as_ref().map(|(name, depth)| (name.as_str(), *depth));
            assert_eq!(unit, expected, "{text}");
        };
        check("/system.slice/orders.service", Some(("orders.service", 2)));
        check("/system.slice/orders.service/worker/1", Some(("orders.service", 2)));
        check("/system.slice/system-shop.slice/shop@1.service", Some(("shop@1.service", 3)));
        check("/shop.slice/orders.service", Some(("orders.service", 2)));
        check("/init.scope", Some(("init.scope", 1)));
        check("/system.slice/_memory.service", Some(("memory.service", 2)));
        check("/machine.slice/box.scope/payload/system.slice/orders.service", Some(("box.scope", 2)));
        // A unit that may make its own cgroups cannot pose as another one.
        check("/system.slice/evil.service/orders.service", Some(("evil.service", 2)));
        check("/system.slice/evil.service/system.slice/orders.service", Some(("evil.service", 2)));
        check("/user.slice/user-1000.slice/user@1000.service/app.slice/orders.service", None);
        check("/user.slice/orders.service", None);
        check("/system.slice/user@1000.service/app.slice/orders.service", None);
        check("/a-b.slice/orders.service", None);
        check("/system.slice/other.slice/orders.service", None);
        check("/system.slice/system-.slice/orders.service", None);
        check("/docker/orders.service", None);
        check("/system.slice", None);
        check("/", None);
    }

    #[test]
    fn units_count_from_the_managers_own_root() {
        let manager = path("/machine.slice/box.scope/payload");
        let unit = |text: &str| {
            Place::new(path(text), &manager).unit.map(|(name, depth)| (name.0.to_string(), depth))
        };
        let inside = "/machine.slice/box.scope/payload/system.slice/orders.service";
        assert_eq!(unit(inside), Some(("orders.service".to_owned(), 5)));
        assert_eq!(unit("/system.slice/orders.service"), None);
        assert_eq!(unit("/machine.slice/box.scope/payload2/orders.service"), None);
    }

    #[test]
    fn names_and_paths_are_checked() {
        let unit = |text: &str| UnitName::new(text).map(|name| name.as_str().to_owned());
        assert_eq!(unit(r"a:b-c_d.e\x2d@1.service").as_deref(), Ok(r"a:b-c_d.e\x2d@1.service"));
        for bad in ["", "orders", ".service", "orders.slice", "orders.socket", "a/b.service", "a b.service"] {
            assert_eq!(unit(bad), Err(PlaceError::Unit(bad.to_owned())));
        }
        let long = format!("{}.service", "a".repeat(248));
        assert_eq!(unit(&long), Err(PlaceError::Unit(long.clone())));
        assert_eq!(unit("a@.service"), Err(PlaceError::Template("a@.service".to_owned())));
        assert_eq!(unit("user@0.service"), Err(PlaceError::UserManager("user@0.service".to_owned())));
        for bad in ["", "a", "a/b", "//", "/a//b", "/a/../b", "/a/.", "/a\nb"] {
            assert_eq!(CgroupPath::new(bad), Err(PlaceError::Path(bad.to_owned())));
        }
        assert_eq!(path("/a/b/"), path("/a/b"));
        assert!(path("/").is_root());
    }

    #[test]
    fn lineage_goes_down_to_the_path_itself() {
        let lineage = |text: &str| path(text).lineage().map(|(d, p)| format!("{d}{p}")).collect::<Vec<_>>();
        assert_eq!(lineage("/a/b/c"), ["1/a", "2/a/b", "3/a/b/c"]);
        assert_eq!(lineage("/a"), ["1/a"]);
        assert!(lineage("/").is_empty());
        assert_eq!(path("/a/b").below(&path("/a")), Some("/b"));
        assert_eq!(path("/ab").below(&path("/a")), None);
    }
}
