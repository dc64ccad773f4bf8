//! Putting the rules in place and taking them away. Rules go in before the routes that make virtual addresses
//! reachable, and routes go before the rules: at no moment does a virtual address lead to a local process.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::CaptureError;
use super::batch::{Batch, Routes, write_atomically};
use super::command::Tools;
use super::gone::{ANCHOR_TABLE, batch_of_gone, removal};
use super::listing::Listing;
use super::plan::{CapturePlan, LocalService};
use super::route;
use super::rules::{self, Ruleset, ruleset, skeleton, transaction};
use super::sets::{
    Destinations, ELEMENTS_PER_TRANSACTION, NamedSet, SEAL, SEAL_OF_STRUCTURE, TABLE, difference, loading,
};
use super::status::{Status, seal_is_broken};
use super::units::{self, UNITS_TABLE, Units};
use crate::attribution::sock_diag::dump::Family;
use crate::attribution::{self, Forgotten};

/// The file with the rules for a gone agent, in the runtime directory.
const GONE_FILE: &str = "gone.nft";
/// How old the copy for the next boot may be where other things than services of this host have changed.
const BOOT_GAP: Duration = Duration::from_secs(60);

/// The capture rules of this host.
#[derive(Debug)]
pub struct Capture {
    pub(super) tools: Tools,
    runtime: PathBuf,
    pub(super) standing: Option<Standing>,
    /// What stands of the sets of units, and why not what should.
    pub(super) units: Option<units::Written>,
    pub(super) units_failed: Option<String>,
    /// What somebody else had made of the rules, until they stand again.
    found: Option<String>,
    /// The copy of the rules for a gone agent that is for the next boot.
    boot: Option<ForBoot>,
}

/// A copy of the rules for a gone agent that outlives a reboot.
#[derive(Debug)]
struct ForBoot {
    file: PathBuf,
    /// The services of this host that it was written with.
    services: Vec<LocalService>,
    units: Units,
    written: Option<Instant>,
}

/// What this process put in place last.
#[derive(Debug)]
pub(super) struct Standing {
    skeleton: String,
    sets: Vec<NamedSet>,
    /// What the kernel's listing hashed to.
    structure: u64,
}

/// What a change came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applied {
    /// How much was changed.
    pub change: Change,
    /// Why virtual IPv6 addresses are not reachable, if the plan has such and the host has no IPv6.
    pub without_ipv6: Option<&'static str>,
    /// What somebody else had made of the rules, where that was undone.
    pub found: Option<String>,
}

/// Whether what this process put in place before is taken to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Doubt {
    /// It is read back.
    ReadBack,
    /// Unless nft says otherwise.
    None,
}

/// How much was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// The rules were those of the plan already.
    None,
    /// Only elements of sets.
    Elements {
        /// So many came.
        added: usize,
        /// So many went.
        removed: usize,
    },
    /// The whole table.
    Replaced,
    /// The whole table, because somebody else had changed it or taken it away.
    Restored,
    /// To the rules for a gone agent: the state of the mesh is not known yet.
    Held,
}

/// What becomes of the anchor table when the rules are removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Anchor {
    /// It stays, and with it the routes, so that connections through the agent can end in peace. New connections
    /// to virtual addresses are refused, all others flow as without a mesh. `Remove` follows when the agent has
    /// drained.
    Keep,
    /// It goes too, and nothing of capture is left. Redirected connections that are still open break.
    Remove,
}

impl Capture {
    /// Capture with its state files in `runtime`, a directory that exists, is writable for us alone and does not
    /// outlive a reboot. Fails if `nft` or `ip` is not installed.
    pub fn new(runtime: &Path) -> Result<Self, CaptureError> {
        Ok(Self {
            tools: Tools::find()?.ending_with_us(),
            runtime: runtime.to_owned(),
            standing: None,
            units: None,
            units_failed: None,
            found: None,
            boot: None,
        })
    }

    /// Keeps a copy of the rules for a gone agent in `file`, which outlives a reboot: they are applied at the next boot, before
    /// there is an agent.
    pub fn keeping_for_boot(self, file: PathBuf) -> Self {
        Self {
            boot: Some(ForBoot { file, services: Vec::new(), units: Units::new(), written: None }),
            ..self
        }
    }

    /// Writes that copy: at once where services of this host came, went or changed, and now and then for what else changes, which
    /// is endpoints of others.
    fn copy_for_boot(&mut self, plan: &CapturePlan) {
        let gone_file = self.gone_file();
        let Some(boot) = &mut self.boot else { return };
        let is_recent = boot.written.is_some_and(|written| written.elapsed() < BOOT_GAP);
        if is_recent && boot.services == plan.local && boot.units == plan.units {
            return;
        }
        let copied = fs::read_to_string(gone_file).and_then(|text| {
            write_atomically(&boot.file, &text)?;
            // It is to be there when the power has gone.
            boot.file.parent().map_or(Ok(()), |directory| fs::File::open(directory)?.sync_all())
        });
        match copied {
            Ok(()) => {
                (boot.services, boot.units) = (plan.local.clone(), plan.units.clone());
                boot.written = Some(Instant::now());
            }
            // A full disk is no reason to leave the host without rules now.
            Err(error) => {
                tracing::error!(%error, file = %boot.file.display(), "the rules for the next boot cannot be written: closed services may be reached before the agent runs then");
            }
        }
    }

    /// Has the kernel's notices of this process's own changes told from those of others in whatever PID namespace it runs. Only
    /// for the process that owns the runtime directory. Without it they are told by the numbers of processes.
    pub fn by_own_name(mut self) -> Self {
        match self.tools.clone().naming_nft(&self.runtime) {
            Ok(tools) => self.tools = tools,
            Err(error) => tracing::warn!(%error, "nft has no name of its own in {}", self.runtime.display()),
        }
        self
    }

    /// The file with the rules for when the agent is gone, written by every `apply`.
    pub fn gone_file(&self) -> PathBuf {
        self.runtime.join(GONE_FILE)
    }

    pub(super) fn runtime(&self) -> &Path {
        &self.runtime
    }

    /// Makes the rules those of the plan: by a transaction of elements where nothing else differs from what this
    /// process put in place before, by replacing the table otherwise. Then reads them back.
    pub fn apply(&mut self, plan: &CapturePlan) -> Result<Applied, CaptureError> {
        self.make(plan, Doubt::ReadBack)
    }

    /// As `apply`, for a plan that is another: elements that come and go are not read back with all the others, of which there
    /// may be tens of thousands. Whether the rules still stand as a whole is what `apply` finds out, now and then.
    pub fn follow(&mut self, plan: &CapturePlan) -> Result<Applied, CaptureError> {
        self.make(plan, Doubt::None)
    }

    fn make(&mut self, plan: &CapturePlan, doubt: Doubt) -> Result<Applied, CaptureError> {
        // First, so that an agent that dies in the middle of this is followed by the right rules.
        batch_of_gone(plan).write(&self.gone_file())?;
        self.place_units(plan, doubt);
        let ruleset = ruleset(plan);
        let skeleton = skeleton(&ruleset);
        // Until all of it has succeeded nothing is known to stand, and the next attempt replaces everything.
        let before = self.standing.take();
        let standing = before.as_ref().filter(|standing| standing.skeleton == skeleton);
        let changed = standing.map(|standing| {
            let changed = self.change_elements(standing, &ruleset, doubt);
            changed.map(|change| (change, standing.structure))
        });
        if let Some(Err(found)) = &changed {
            self.found.get_or_insert_with(|| found.clone());
        }
        let (change, structure) = match changed {
            Some(Ok(unchanged)) => unchanged,
            _ if self.found.is_some() => (Change::Restored, self.replace(&skeleton, &ruleset)?),
            _ => (Change::Replaced, self.replace(&skeleton, &ruleset)?),
        };
        forget_leftovers(change, before.as_ref(), &ruleset);
        route::place(&self.tools, &route::ranges_of(plan))?;
        self.standing = Some(Standing { skeleton, sets: ruleset.sets, structure });
        // Last, as it waits for a disk.
        self.copy_for_boot(plan);
        let without_ipv6 = plan.virtual_v6.and_then(|_| route::ipv6_is_off());
        Ok(Applied { change, without_ipv6, found: self.found.take() })
    }

    /// Changes elements alone. What nft does not take, or is not what was meant when it is read back, somebody else changed:
    /// the table is to be replaced, and the error says what was found.
    fn change_elements(
        &self,
        standing: &Standing,
        ruleset: &Ruleset,
        doubt: Doubt,
    ) -> Result<Change, String> {
        let (text, added, removed) = difference(&standing.sets, &ruleset.sets);
        let change = if text.is_empty() { Change::None } else { Change::Elements { added, removed } };
        if !text.is_empty() {
            self.tools.apply(&text).map_err(|error| error.to_string())?;
            if doubt == Doubt::None {
                return Ok(change);
            }
        }
        // Even if there was nothing to change: applying a plan again is how one finds out whether it still stands.
        let listing = Listing::read(&self.tools).map_err(|error| error.to_string())?;
        let listing = listing.ok_or("the table was not there")?;
        let mut found = listing.differences(ruleset);
        found.extend(seal_is_broken(&listing));
        if found.is_empty() && listing.structure != standing.structure {
            found.push("its chains and rules were not those that were put in place".to_owned());
        }
        if found.is_empty() { Ok(change) } else { Err(found.join("; ")) }
    }

    /// Replaces the table, in one transaction wherever the kernel takes one of that size, reads it back, compares
    /// it with what was meant and seals it: how nft writes the rules back is not known before it has.
    fn replace(&self, skeleton: &str, ruleset: &Ruleset) -> Result<u64, CaptureError> {
        load(&self.tools, skeleton, &ruleset.sets)?;
        let listing = Listing::read(&self.tools)?.unwrap_or_default();
        let differences = listing.differences(ruleset);
        if !differences.is_empty() {
            return Err(CaptureError::NotAsMeant { differences });
        }
        let hash = listing.structure;
        self.tools.apply(&format!(
            "add element inet {TABLE} {SEAL} {{ {SEAL_OF_STRUCTURE} comment \"{hash:016x}\" }}\n"
        ))?;
        Ok(hash)
    }

    /// What stands now, whoever put it there.
    pub fn status(&self) -> Result<Status, CaptureError> {
        let mut status = Status::of(Listing::read(&self.tools)?.as_ref(), route::standing(&self.tools)?);
        status.counters.extend(Listing::counters_of_units(&self.tools)?);
        Ok(status)
    }

    /// Removes the routes, then the rules, then the file for a gone agent. Nothing that is not there is missed.
    pub fn remove(&mut self, anchor: Anchor) -> Result<(), CaptureError> {
        (self.standing, self.units) = (None, None);
        let batch = match anchor {
            Anchor::Keep => {
                let text = rules::anchor(&route::standing(&self.tools)?) + &removal(TABLE);
                Batch { routes: Routes::Keep, transactions: vec![text, removal(UNITS_TABLE)] }
            }
            Anchor::Remove => nothing_left(),
        };
        batch.run(&self.tools)?;
        remove_file(&self.gone_file())
    }

    /// What would bring back what stands now.
    pub(super) fn way_back(&self) -> Result<Batch, CaptureError> {
        let Some((text, sets)) = Listing::saved(&self.tools)? else {
            return Ok(nothing_left());
        };
        // The anchor that stands by then holds for the rules before as well.
        let skeleton = format!("{}{text}", removal(TABLE));
        let mut transactions = in_parts(&skeleton, &sets);
        transactions.push(self.units_way_back()?);
        Ok(Batch { routes: Routes::Place(route::standing(&self.tools)?), transactions })
    }
}

/// Has connection tracking forget what is left of connections to hosts that are captured now and were not before: the rules are not
/// asked about what is taken for one of them.
fn forget_leftovers(change: Change, before: Option<&Standing>, now: &Ruleset) {
    let before = match (change, before) {
        (Change::None, _) => return,
        // Who knows for how long they did not stand.
        (Change::Restored, _) | (_, None) => &[],
        (_, Some(before)) => &before.sets[..],
    };
    let anew = Destinations::between(before, &now.sets);
    for family in [Family::V4, Family::V6].into_iter().filter(|family| anew.are_of(*family)) {
        match attribution::forget_leftovers(family, |to| anew.contain(to)) {
            Ok(Forgotten { entries: 0, left_out: false }) => {}
            Ok(Forgotten { entries, left_out }) => {
                tracing::debug!(
                    ?family,
                    entries,
                    left_out,
                    "connections had been tried, or had ended, before their destination was captured"
                );
            }
            // Each may be in the way of one later connection.
            Err(error) => {
                tracing::debug!(?family, %error, "connections from before the capture are not forgotten");
            }
        }
    }
}

/// Takes away all that is of capture.
fn nothing_left() -> Batch {
    let transactions = vec![removal(TABLE) + &removal(ANCHOR_TABLE) + &removal(UNITS_TABLE)];
    Batch { routes: Routes::Withdraw, transactions }
}

/// Loads a table, split only where it must be: the table and the first elements in one transaction, the other
/// elements after.
fn load(tools: &Tools, skeleton: &str, sets: &[NamedSet]) -> Result<(), CaptureError> {
    match tools.apply(&transaction(skeleton, sets)) {
        Err(CaptureError::Refused { stderr, .. }) if stderr.contains("Message too long") => {
            in_parts(skeleton, sets).iter().try_for_each(|part| tools.apply(part))
        }
        whole => whole,
    }
}

pub(super) fn in_parts(skeleton: &str, sets: &[NamedSet]) -> Vec<String> {
    let mut parts = loading(sets, ELEMENTS_PER_TRANSACTION);
    match parts.first_mut() {
        Some(first) => first.insert_str(0, skeleton),
        None => parts.push(skeleton.to_owned()),
    }
    parts
}

pub(super) fn remove_file(path: &Path) -> Result<(), CaptureError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != std::io::ErrorKind::NotFound => {
            Err(CaptureError::File { action: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}
