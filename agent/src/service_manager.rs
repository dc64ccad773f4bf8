//! What the service manager does for the agent, where it is systemd: it keeps the listening sockets over the end of the
//! process, says whether a stop is the first half of a restart, and ends an agent whose data path stands still. Outside
//! systemd there is nobody who does, and nothing here has an effect.

/// Sockets that outlive the process.
pub mod store;
/// The watchdog, and what feeds it.
pub mod watchdog;

use std::time::Duration;

use crate::capture::CaptureError;
use crate::capture::command::Tools;

/// How long the answer is waited for: on a host that has no time a restart is one still.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether the service is being stopped only to be started anew. Where that cannot be told, it is not.
pub async fn is_starting_anew() -> bool {
    let asked = tokio::task::spawn_blocking(|| -> Result<bool, CaptureError> {
        let Some(unit) = std::fs::read_to_string("/proc/self/cgroup").ok().and_then(|text| unit_of(&text))
        else {
            return Ok(false);
        };
        let jobs = Tools::find()?.systemctl(&["list-jobs", "--no-legend", "--no-pager", "--plain"])?;
        Ok(jobs.lines().any(|line| is_restart(line, &unit)))
    });
    let error = match tokio::time::timeout(PATIENCE, asked).await {
        Ok(Ok(Ok(is_restart))) => return is_restart,
        Ok(Ok(Err(error))) => error.to_string(),
        Ok(Err(panicked)) => panicked.to_string(),
        Err(late) => late.to_string(),
    };
    tracing::warn!(error, "whether this is a restart is not known: it is taken for a stop");
    false
}

/// The unit in which a process runs, from its /proc/PID/cgroup: of the unified hierarchy, or of systemd's own.
fn unit_of(proc_cgroup: &str) -> Option<String> {
    let path = |line: &str| -> Option<String> {
        let (_, rest) = line.split_once(':')?;
        let (_, path) = rest.split_once(':').filter(|(of, _)| matches!(*of, "" | "name=systemd"))?;
        path.rsplit('/').find(|name| name.ends_with(".service")).map(str::to_owned)
    };
    proc_cgroup.lines().find_map(path)
}

/// Whether a line of `systemctl list-jobs` is of a restart of `unit`: the job's number, the unit, the job's type and state.
fn is_restart(line: &str, unit: &str) -> bool {
    let mut words = line.split_whitespace().skip(1);
    words.next() == Some(unit) && words.next() == Some("restart")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_unit_is_read_from_either_hierarchy() {
        let unit = |text: &str| unit_of(text);
        assert_eq!(unit("0::/system.slice/baremesh.service\n").as_deref(), Some("baremesh.service"));
        let hybrid = "2:cpu:/\n1:name=systemd:/system.slice/mesh-agent.service\n0::/\n";
        assert_eq!(unit(hybrid).as_deref(), Some("mesh-agent.service"));
        let delegated = "0::/machine.slice/box.scope/payload/system.slice/baremesh.service/inner\n";
        assert_eq!(unit(delegated).as_deref(), Some("baremesh.service"));
        assert_eq!(unit("0::/init\n"), None);
        assert_eq!(unit("1:cpu:/system.slice/a.service\n"), None);
        assert_eq!(unit("garbage"), None);
    }

    #[test]
    fn a_restart_is_told_from_a_stop() {
        assert!(is_restart(" 1234 baremesh.service restart running", "baremesh.service"));
        assert!(!is_restart("1234 baremesh.service stop running", "baremesh.service"));
        assert!(!is_restart("1234 other.service restart running", "baremesh.service"));
        assert!(!is_restart("No jobs running.", "baremesh.service"));
        assert!(!is_restart("", "baremesh.service"));
    }
}
