//! What the authority has to say to every agent, with the state: no resources, and no registrations.

use serde_json::Value;

use super::memory::HostStatus;
use super::server::{Control, ControlError};

impl Control {
    /// Sends every agent a statement of the authority, or takes it back. What is the same as before is no change.
    pub async fn say(&self, name: &'static str, value: Option<Value>) -> Result<(), ControlError> {
        self.take_turn(move |shared| {
            let mut core = shared.core();
            core.say(name, value);
            let version = core.state.version();
            drop(core);
            shared.publish(version);
            Ok(())
        })
        .await
    }

    /// The newest version of what is pushed, before the first resources too.
    pub fn state_version(&self) -> u64 {
        self.0.core().state.version()
    }

    /// Whether every agent that is there has put this version in force. Those that have fallen silent are waited for until
    /// their leases end.
    pub fn all_have(&self, version: u64) -> bool {
        let there = |status: &&HostStatus| status.connected || status.lease.is_some();
        self.status().iter().filter(there).all(|status| status.acked >= version)
    }
}
