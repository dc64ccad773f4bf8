//! Before the mesh's state is known. An agent that has neither a saved state nor one from its control server knows
//! neither the endpoints of the mesh nor its policies: rules rendered from that would let plaintext go to endpoints,
//! and callers past policies. So it is held to what stands when there is no agent: the rules for a gone agent that
//! its predecessor left, and with them all that the predecessor knew. Where there are none, those that this host's
//! own registrations come to: closed services are refused, and more is not known.

use super::CaptureError;
use super::apply::Capture;
use super::batch::Batch;
use super::gone::{Waiting, additions_of_gone, apply_gone, batch_of_gone};
use super::listing::Listing;
use super::plan::CapturePlan;
use super::status::{State, Status};
use super::units;

/// The first line of the transaction that adds what was registered since the predecessor's rules were written.
const ADDITIONS: &str = "# registered since\n";

/// The same of sets for units: nothing about who is held, which is not known yet.
const UNITS: &str = "# where such sets are known\n# registered since\n";

impl Capture {
    /// Makes sure that the rules for a gone agent stand, without anything that would open what they close. `apply`
    /// replaces them in one transaction once the mesh's state is known.
    pub fn hold(&mut self, plan: &CapturePlan) -> Result<(), CaptureError> {
        (self.standing, self.units) = (None, None);
        if !self.gone_stands()? {
            // What a predecessor left whose guard died with it: its rules lead to the agent's ports still.
            apply_gone(&self.gone_file(), Waiting::Reset)?;
        }
        if !self.gone_stands()? {
            let batch = batch_of_gone(plan);
            batch.write(&self.gone_file())?;
            return batch.run(&self.tools);
        }
        let additions = format!("{ADDITIONS}{}", additions_of_gone(plan));
        let units = format!("{UNITS}{}", units::sets(plan));
        self.tools.apply(&additions)?;
        if let Err(error) = self.tools.apply(&units) {
            tracing::warn!(%error, "the sets of units cannot be placed");
        }
        // An agent that dies before it knows more is followed by the same. Without the file nothing is applied then,
        // and what stands stays.
        if let Some(mut batch) = Batch::read(&self.gone_file())? {
            let is_older =
                |transaction: &String| [ADDITIONS, UNITS].iter().any(|first| transaction.starts_with(first));
            batch.transactions.retain(|transaction| !is_older(transaction));
            batch.transactions.extend([additions, units]);
            batch.write(&self.gone_file())?;
        }
        Ok(())
    }

    fn gone_stands(&self) -> Result<bool, CaptureError> {
        let listing = Listing::read(&self.tools)?;
        Ok(Status::of(listing.as_ref(), Vec::new()).state == State::Gone)
    }
}
