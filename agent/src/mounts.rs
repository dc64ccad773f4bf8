//! What is mounted where, as the kernel tells a process in /proc/PID/mountinfo (proc_pid_mountinfo(5)).

use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The directory of the file system that is seen there: for cgroups the path of one of them.
    pub root: String,
    /// Where it is seen.
    pub point: PathBuf,
    /// The kind of file system: `cgroup2`.
    pub kind: &'a str,
    /// The file system's own options, separated by commas.
    pub options: &'a str,
}

/// The mounts of a mountinfo, in its order. Lines that are none are left out.
pub fn of(mountinfo: &str) -> impl Iterator<Item = Mount<'_>> {
    mountinfo.lines().filter_map(read)
}

fn read(line: &str) -> Option<Mount<'_>> {
    // Before the dash stand fields of which some may be missing, so what is after it is not counted from the begin.
    let (mount, file_system) = line.split_once(" - ")?;
    let mut of_mount = mount.split(' ').skip(3);
    let (root, point) = (unescape(of_mount.next()?)?, unescape(of_mount.next()?)?.into());
    let mut of_system = file_system.split(' ');
    let (kind, _source, options) = (of_system.next()?, of_system.next()?, of_system.next()?);
    Some(Mount { root, point, kind, options })
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescape(text: &str) -> Option<String> {
    let mut parts = text.split('\\');
    let mut plain = parts.next()?.to_owned();
    for part in parts {
        let code = u8::from_str_radix(part.get(..3)?, 8).ok().filter(u8::is_ascii)?;
        plain.push(char::from(code));
        plain.push_str(part.get(3..)?);
    }
    Some(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_mount_whatever_its_names_are() {
        let check = |line: &str, expected: Option<(&str, &str, &str, &str)>| {
            let expected = expected.map(|(root, point, kind, options)| Mount {
                root: root.to_owned(),
                point: point.into(),
                kind,
                options,
            });
            assert_eq!(read(line), expected, "{line}");
        };
        check(
            "29 22 0:26 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate",
            Some(("/", "/sys/fs/cgroup", "cgroup2", "rw,nsdelegate")),
        );
        check("9 8 0:26 /a /b rw - cgroup none rw,memory", Some(("/a", "/b", "cgroup", "rw,memory")));
        check(
            "9 8 0:26 /of\\011tab /with\\040space\\134 rw master:1 - cgroup2 none rw",
            Some(("/of\ttab", "/with space\\", "cgroup2", "rw")),
        );
        check("9 8 0:26 / /bad\\9 rw - cgroup2 cgroup2 rw", None);
        check("9 8 0:26 / /bad\\777 rw - cgroup2 cgroup2 rw", None);
        check("9 8 - cgroup2 cgroup2 rw", None);
        check("9 8 0:26 / /b rw - cgroup2", None);
        check("", None);
    }
}
