//! The way in: a method for each verb.
//!
//! A verb finds its SR, takes the SR's lock, drives the world to a goal, and says what was done. Everything else is in
//! [`plan`](mod@crate::plan) and the engine. A change that a crash cut short is finished or undone by the next verb
//! that changes the same SR.

mod describe;
mod dump;
mod extents;
mod find;
mod flatten;
mod growth;
mod local;
mod sr;
mod thick;
mod vdi;
mod work;
mod world;

pub use dump::SrRestore;
pub use growth::{SrGrow, Tended};
pub use sr::{SrCreate, SrDestroy, SrIntroduce};
pub use vdi::{VdiClone, VdiCreate, VdiIntroduce};
pub use work::Work;

use crate::Outcome;
use crate::catalog::BlockMedia;
use crate::dm::KernelDm;
use crate::engine::{Done, Mode, Session, World};
use crate::error::{Error, Result};
use crate::host::{DirectBlocks, Lock, Locks, SystemHost};
use crate::lvm::LvmCommand;
use crate::origins::Origins;
use crate::thin::MetadataReader;
use serde::Serialize;
use std::path::PathBuf;

/// How a controller works.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where locks are and what is remembered until the next boot.
    pub run_dir: PathBuf,
    /// Where the links to VDIs' devices are.
    pub dev_dir: PathBuf,
    /// Only tell what would be done.
    pub dry_run: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { run_dir: "/run/thinorigin".into(), dev_dir: "/dev/thinorigin".into(), dry_run: false }
    }
}

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum StepState {
    /// It would be done.
    Planned,
    /// It was done.
    Changed,
    /// It was as wanted already.
    Unchanged,
}

/// A step, for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct StepReport {
    /// What it does, as a sentence that begins with a verb.
    pub step: String,
    /// What became of it.
    pub state: StepState,
}

/// What a verb did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report<T> {
    /// The steps, in order.
    pub steps: Vec<StepReport>,
    /// The SR or VDI as it is now; `None` if it is gone, or would come to be only without `dry_run`.
    pub record: Option<T>,
    /// What somebody should look after, in sentences.
    pub warnings: Vec<String>,
}

impl<T> Report<T> {
    fn new(done: Vec<Done>, record: Option<T>) -> Self {
        let report = |(step, outcome): Done| StepReport {
            step: step.to_string(),
            state: match outcome {
                None => StepState::Planned,
                Some(Outcome::Changed) => StepState::Changed,
                Some(Outcome::Unchanged) => StepState::Unchanged,
            },
        };
        Self { steps: done.into_iter().map(report).collect(), record, warnings: Vec::new() }
    }

    fn with_warnings(mut self, warnings: Vec<String>) -> Self {
        self.warnings = warnings;
        self
    }

    /// Whether anything was changed.
    pub fn changed(&self) -> bool {
        self.steps.iter().any(|step| step.state == StepState::Changed)
    }
}

/// Drives SRs and VDIs.
pub struct Controller {
    world: World,
    locks: Locks,
    dev_dir: PathBuf,
    mode: Mode,
}

impl std::fmt::Debug for Controller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Controller").field("mode", &self.mode).finish_non_exhaustive()
    }
}

impl Controller {
    /// A controller of this host's SRs.
    ///
    /// # Errors
    /// The caller is not root, or the kernel has no device-mapper.
    pub fn open(options: &Options, origins: Box<dyn Origins>) -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            return Err(Error::failed("smctl needs root, for device-mapper and LVM"));
        }
        let world = World {
            lvm: Box::new(LvmCommand::new(&options.run_dir)),
            dm: Box::new(KernelDm::open()?),
            host: Box::new(SystemHost::new(&options.run_dir, &options.dev_dir)),
            media: Box::new(BlockMedia),
            origins,
            thin: Box::new(MetadataReader),
            blocks: Box::new(DirectBlocks),
        };
        Ok(Self::with(world, options))
    }

    pub(crate) fn with(world: World, options: &Options) -> Self {
        Self {
            world,
            locks: Locks::new(&options.run_dir),
            dev_dir: options.dev_dir.clone(),
            mode: if options.dry_run { Mode::DryRun } else { Mode::Apply },
        }
    }
}

/// An SR that is locked and whose records are open.
struct Open {
    session: Session,
    lock: Lock,
}
