//! Commands: run as nobody in particular, in a process group of their own, and killed with all of it when their time is
//! over. Of what they print, the end of the first few hundred bytes goes into the reason, and the rest nowhere.

use std::io;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, geteuid, kill_process_group};
use rustix::thread::set_thread_res_uid;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use super::super::MAX_REASON;
use super::too_late;
use crate::attribution::{Uid, main_group};

/// The user that a command runs as where the service names none: the kernel's overflow uid, which owns nothing.
const NOBODY: u32 = 65534;
/// How long what a command printed last may take to be read after its end: processes that it left behind may hold the
/// pipe open.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// What commands find programs by.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Bits of `CapEff` in /proc/self/status: CAP_SETGID and CAP_SETUID.
const CHANGES_USER: u64 = 1 << 6 | 1 << 7;

/// As whom commands can be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RunAs {
    /// As any user.
    Anybody,
    /// As this user alone, which the agent runs as.
    Oneself {
        /// The user.
        uid: u32,
        /// Whether that is what there is: an ordinary user, or a namespace that has no other. If not, the agent is root
        /// and was not left the capabilities to become another user, and a command must not be root because of it.
        is_harmless: bool,
    },
}

impl RunAs {
    /// What the agent's own user and capabilities come to.
    pub fn of_this_process() -> Self {
        let read = |path| std::fs::read_to_string(path).unwrap_or_default();
        Self::of(geteuid().as_raw(), &read("/proc/self/uid_map"), &read("/proc/self/status"))
    }

    fn of(uid: u32, uid_map: &str, status: &str) -> Self {
        let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        let effective = effective.and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok()).unwrap_or(0);
        let has_nobody = uid_map.lines().any(|line| {
            let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
            let (first, _, count) = (numbers.next(), numbers.next(), numbers.next());
            first.zip(count).is_some_and(|(first, count)| {
                (first..first.saturating_add(count)).contains(&u64::from(NOBODY))
            })
        });
        match has_nobody && effective & CHANGES_USER == CHANGES_USER {
            true => Self::Anybody,
            false => Self::Oneself { uid, is_harmless: uid != 0 || !has_nobody },
        }
    }

    /// The user to change to for a service that names `wanted` or none; `None` is no change.
    pub(in crate::health) fn user(self, wanted: Option<u32>) -> Result<Option<u32>, String> {
        match (self, wanted) {
            (Self::Anybody, wanted) => Ok(Some(wanted.unwrap_or(NOBODY))),
            (Self::Oneself { uid, .. }, Some(wanted)) if uid == wanted => Ok(None),
            (Self::Oneself { is_harmless: true, .. }, None) => Ok(None),
            (Self::Oneself { .. }, wanted) => Err(format!(
                "the agent cannot run it as uid {}: its unit must leave it CAP_SETUID and CAP_SETGID",
                wanted.unwrap_or(NOBODY)
            )),
        }
    }
}

/// A user to change to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::health) struct User {
    uid: u32,
    group: u32,
}

impl User {
    /// In its main group, or in one that owns nothing where the host's own database does not know it.
    pub(in crate::health) async fn of(uid: u32) -> Self {
        Self { uid, group: main_group(Uid(uid)).await.unwrap_or(NOBODY) }
    }
}

/// Runs a command that is to end with 0.
pub(in crate::health) async fn run(
    words: &[String],
    user: Option<User>,
    limit: Duration,
) -> Result<(), String> {
    let (program, arguments) = words.split_first().ok_or("there is no command")?;
    let mut command = Command::new(program);
    command.args(arguments);
    // Nothing of the agent's is told, such as the socket on which systemd hears from it.
    command.env_clear().env("PATH", PATH).current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.process_group(0).kill_on_drop(true);
    if let Some(User { uid, group }) = user {
        // With a change of user, the standard library gives up all further groups.
        command.uid(uid).gid(group);
    }
    let mut child = command.spawn().map_err(|error| format!("{program}: {error}"))?;
    let group = Group::of(&child, user);
    let said = Said::default();
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let listening = async {
        tokio::join!(said.listen(output), said.listen(errors));
    };
    tokio::pin!(listening);
    let mut heard = false;
    let ending = async {
        loop {
            tokio::select! {
                ended = child.wait() => break ended,
                () = &mut listening, if !heard => heard = true,
            }
        }
    };
    let ended = timeout(limit, ending).await;
    let Ok(ended) = ended else {
        drop(group);
        // Reaped at once, so that nobody else is given its number meanwhile.
        let _ = child.wait().await;
        return Err(said.after(&too_late(limit)));
    };
    group.leave();
    match ended {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => {
            if !heard {
                let _ = timeout(LAST_WORDS, listening).await;
            }
            Err(said.after(&status.to_string()))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// The processes of a command that has not ended. They are killed when this is dropped, however the look ends.
struct Group {
    leader: Option<Pid>,
    user: Option<User>,
}

impl Group {
    fn of(child: &Child, user: Option<User>) -> Self {
        let leader = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Self { leader, user }
    }

    fn leave(mut self) {
        self.leader = None;
    }

    /// As the user that the command runs as: that takes no capability beyond the one with which it became that user. The
    /// change is this thread's alone, and is over before anything else runs on it.
    fn kill(&self, leader: Pid) -> io::Result<()> {
        let Some(User { uid, .. }) = self.user else { return Ok(kill_process_group(leader, Signal::KILL)?) };
        let own = geteuid();
        set_thread_res_uid(None, rustix::process::Uid::from_raw(uid), None)?;
        let killed = kill_process_group(leader, Signal::KILL);
        set_thread_res_uid(None, own, None)?;
        Ok(killed?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Its first process has not been waited for, so that the number is no other group's.
        if let Some(leader) = self.leader
            && let Err(error) = self.kill(leader)
        {
            tracing::warn!(%error, "a check's command cannot be killed");
        }
    }
}

/// The beginning of what a command printed.
#[derive(Default)]
struct Said(Arc<Mutex<Vec<u8>>>);

impl Said {
    /// Reads to the end, and keeps little: a command that prints a lot must not be held up by a full pipe.
    async fn listen(&self, from: Option<impl AsyncRead + Unpin>) {
        let Some(mut from) = from else { return };
        let mut buffer = [0; 4096];
        while let Ok(read @ 1..) = from.read(&mut buffer).await {
            let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let room = MAX_REASON.saturating_sub(kept.len());
            kept.extend_from_slice(&buffer[..read.min(room)]);
        }
    }

    fn after(&self, what: &str) -> String {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match String::from_utf8_lossy(&kept).trim() {
            "" => what.to_owned(),
            said => format!("{what}: {said}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_run_as_the_service_s_user_or_as_nobody_and_never_as_root_by_chance() {
        let all = "CapInh:\t0\nCapEff:\t000001ffffffffff\n";
        let (host, only_me) = ("         0          0 4294967295\n", "         0       1000          1\n");
        assert_eq!(RunAs::of(0, host, all), RunAs::Anybody);
        let packaged_without = RunAs::of(0, host, "CapEff:\t0000000000001001\n");
        assert_eq!(packaged_without, RunAs::Oneself { uid: 0, is_harmless: false });
        let in_namespace = RunAs::of(0, only_me, all);
        assert_eq!(in_namespace, RunAs::Oneself { uid: 0, is_harmless: true });
        let ordinary = RunAs::of(1000, host, "CapEff:\t0000000000000000\n");
        for (run_as, wanted, expected) in [
            (RunAs::Anybody, None, Ok(Some(NOBODY))),
            (RunAs::Anybody, Some(997), Ok(Some(997))),
            (packaged_without, None, Err("CAP_SETUID")),
            (packaged_without, Some(997), Err("uid 997")),
            // Who registers a service that runs as root says so.
            (packaged_without, Some(0), Ok(None)),
            (in_namespace, None, Ok(None)),
            (in_namespace, Some(997), Err("uid 997")),
            (ordinary, None, Ok(None)),
            (ordinary, Some(1000), Ok(None)),
            (ordinary, Some(997), Err("uid 997")),
        ] {
            match (run_as.user(wanted), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{run_as:?} for {wanted:?}"),
                (Err(found), Err(part)) => assert!(found.contains(part), "{found} should say {part}"),
                (found, expected) => panic!("{run_as:?} for {wanted:?}: {found:?}, not {expected:?}"),
            }
        }
    }
}
