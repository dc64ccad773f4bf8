//! User names to numbers, once, when a service is registered.

use std::time::Duration;

use super::sock_diag::Uid;

/// The local users' database.
const PASSWD: &str = "/etc/passwd";
/// How long a directory service may take to answer for a user.
const GETENT_LIMIT: Duration = Duration::from_secs(10);
/// Bytes that a user's name may have.
const MAX_USER_NAME: usize = 256;

/// Why a user's number could not be told.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    /// The name cannot be a user's.
    #[error("`{0}` is not a user's name")]
    Name(String),
    /// Nobody knows the name.
    #[error("no user `{0}` is known on this host: create it first, or give its number")]
    Unknown(String),
    /// The user database did not answer.
    #[error("the user `{name}` could not be looked up with `getent passwd`: {source}")]
    Getent {
        /// The name that was asked for.
        name: String,
        /// What went wrong.
        source: std::io::Error,
    },
}

/// The number of the user `name`, which may be a number itself: from /etc/passwd, or from `getent` for users of
/// a directory service. Waits up to 10 seconds, so this is for registration and never for the data path.
pub async fn uid_of(name: &str) -> Result<Uid, UserError> {
    if let Ok(number) = name.parse() {
        return Ok(Uid(number));
    }
    let plain = |c: char| !c.is_control() && !c.is_whitespace() && c != ':';
    if name.is_empty() || name.len() > MAX_USER_NAME || name.starts_with('-') || !name.chars().all(plain) {
        return Err(UserError::Name(name.to_owned()));
    }
    let local = tokio::fs::read_to_string(PASSWD).await.unwrap_or_default();
    if let Some(uid) = find(&local, name) {
        return Ok(uid);
    }
    let mut getent = tokio::process::Command::new("getent");
    getent.args(["passwd", name]).stdin(std::process::Stdio::null()).kill_on_drop(true);
    let output = match tokio::time::timeout(GETENT_LIMIT, getent.output()).await {
        Ok(Ok(output)) => output,
        // Systems without getent have no directory service either.
        Ok(Err(source)) if source.kind() == std::io::ErrorKind::NotFound => {
            return Err(UserError::Unknown(name.to_owned()));
        }
        Ok(Err(source)) => return Err(UserError::Getent { name: name.to_owned(), source }),
        Err(elapsed) => return Err(UserError::Getent { name: name.to_owned(), source: elapsed.into() }),
    };
    let lines = String::from_utf8_lossy(&output.stdout);
    find(&lines, name).ok_or_else(|| UserError::Unknown(name.to_owned()))
}

/// The main group of a user of this host's own database; `None` for one of a directory service, or none.
pub async fn main_group(uid: Uid) -> Option<u32> {
    let lines = tokio::fs::read_to_string(PASSWD).await.ok()?;
    group_in(&lines, uid)
}

/// The main group of `uid` in lines of passwd(5).
fn group_in(lines: &str, Uid(uid): Uid) -> Option<u32> {
    lines.lines().find_map(|line| {
        let mut numbers = line.split(':').skip(2);
        let found = numbers.next()?.parse() == Ok(uid);
        let group = numbers.next()?;
        found.then(|| group.parse().ok()).flatten()
    })
}

/// The number of `name` in lines of passwd(5).
fn find(lines: &str, name: &str) -> Option<Uid> {
    lines.lines().find_map(|line| {
        let mut fields = line.split(':');
        let found = fields.next()? == name;
        let number = fields.nth(1)?;
        found.then(|| number.parse().ok().map(Uid)).flatten()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_lines_of_passwd() {
        let lines = "root:x:0:0:root:/root:/bin/sh\nbroken\norders:x:997:99::/:/bin/false\nbad:x:-1:0::/:\n";
        for (name, expected) in
            [("orders", Some(997)), ("root", Some(0)), ("order", None), ("bad", None), ("", None)]
        {
            assert_eq!(find(lines, name), expected.map(Uid), "{name}");
        }
        for (uid, expected) in [(0, Some(0)), (997, Some(99)), (998, None)] {
            assert_eq!(group_in(lines, Uid(uid)), expected, "{uid}");
        }
    }

    #[tokio::test]
    async fn users_of_this_host_have_numbers() {
        assert_eq!(uid_of("root").await.ok(), Some(Uid(0)));
        assert_eq!(uid_of("4242").await.ok(), Some(Uid(4242)));
        assert!(matches!(uid_of("nobody-has-this-name").await, Err(UserError::Unknown(_))));
        for bad in ["", "-s", "a:b", "a b", "a\nb"] {
            assert!(matches!(uid_of(bad).await, Err(UserError::Name(_))), "{bad}");
        }
    }
}
