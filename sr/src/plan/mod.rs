//! Plans: what is left to do, from what is wanted and what is there.
//!
//! Planning is pure. A plan is recomputed after each step from a new look at the world, so nothing is remembered
//! across a step: a crash leaves no special case, and recovery is the same planning for every record. A plan lists all
//! that is left, in order, so it is also what `--dry-run` shows.

pub(crate) mod growth;
mod local;
mod restore;
mod sr;
mod step;
mod thick;
mod vdi;

pub(crate) use growth::Growth;
pub(crate) use local::{Room, layout};
pub(crate) use restore::{RestoreSeen, Restored};
pub(crate) use sr::{SrGoal, SrSeen, SrSpec, plan_sr};
pub(crate) use step::{Step, size_text};
pub(crate) use thick::Space;
pub(crate) use vdi::{Goal, OriginSeen, Seen, expected_table, plan_vdi};
