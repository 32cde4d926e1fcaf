//! Observe, plan, apply, and again, until nothing is left to do.

mod flatten;
mod growth;
mod local;
mod restore;
mod sr;
mod thick;
mod thin;
mod vdi;

use crate::Outcome;
use crate::catalog::{Catalog, Media};
use crate::dm::{Device, Dm};
use crate::error::{Error, Result};
use crate::host::{Attached, Blocks, Host};
use crate::lvm::{Found, Lvm, Vg};
use crate::names;
use crate::origins::Origins;
use crate::plan::{Goal, SrGoal, Step, plan_sr, plan_vdi};
use crate::thin::ThinMetadata;
use std::path::PathBuf;
use std::time::Instant;
use uuid::Uuid;

pub(crate) use flatten::Flattening;
pub(crate) use local::Filling;
pub(crate) use sr::SrPlace;

/// Everything outside this crate, by its ports.
pub(crate) struct World {
    pub(crate) lvm: Box<dyn Lvm>,
    pub(crate) dm: Box<dyn Dm>,
    pub(crate) host: Box<dyn Host>,
    pub(crate) media: Box<dyn Media>,
    pub(crate) origins: Box<dyn Origins>,
    pub(crate) thin: Box<dyn ThinMetadata>,
    pub(crate) blocks: Box<dyn Blocks>,
}

/// An attached SR with its records open. Whoever has one holds the SR's lock.
pub(crate) struct Session {
    pub(crate) sr: Attached,
    pub(crate) catalog: Box<dyn Catalog>,
}

impl Session {
    /// The device-mapper name of the pool.
    pub(crate) fn pool(&self) -> String {
        names::lv_device(&self.sr.vg, &self.sr.pool_lv)
    }
}

/// How long a piece of work that takes long goes on.
pub(crate) struct Slice<'a> {
    pub(crate) until: Instant,
    /// Whether the work is to stop before.
    pub(crate) stop: &'a dyn Fn() -> bool,
}

/// How to go about a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Do it.
    Apply,
    /// Only tell what would be done.
    DryRun,
}

/// A step and what became of it; `None` for a step that was only planned.
pub(crate) type Done = (Step, Option<Outcome>);

/// What was done to an SR, and its group as it was found in the end.
pub(crate) struct Driven {
    pub(crate) done: Vec<Done>,
    pub(crate) group: Option<Vg>,
}

/// Plans and applies until nothing is left. `look` observes and plans; `apply` is given what was observed.
fn drive<C, S>(
    context: &mut C,
    mode: Mode,
    look: impl Fn(&mut C) -> Result<(S, Vec<Step>)>,
    apply: impl Fn(&mut C, &Step, &S) -> Result<Outcome>,
) -> Result<(Vec<Done>, S)> {
    let mut done: Vec<Done> = Vec::new();
    loop {
        let (seen, steps) = look(context)?;
        if mode == Mode::DryRun {
            return Ok((steps.into_iter().map(|step| (step, None)).collect(), seen));
        }
        let Some(step) = steps.into_iter().next() else {
            return Ok((done, seen));
        };
        // The same step twice in a row means that it does not bring about what it is planned for.
        if done.last().is_some_and(|(last, _)| *last == step) {
            return Err(Error::failed(format!("it did not help to {step}")));
        }
        tracing::info!("{step}");
        let outcome = apply(context, &step, &seen)?;
        done.push((step, Some(outcome)));
    }
}

/// The error of an SR one of whose volumes is not active.
fn inactive(sr: &Attached, lv: &str) -> Error {
    Error::not_attached(format!(
        "SR '{}' is not attached: {}/{lv} is not active, and 'smctl sr attach' activates it",
        sr.name, sr.vg
    ))
}

impl Driven {
    /// Adds what was done besides, after which the group may be another.
    pub(crate) fn extend(&mut self, done: Vec<Done>) {
        if !done.is_empty() {
            self.group = None;
        }
        self.done.extend(done);
    }
}

impl World {
    /// The device of an active logical volume.
    pub(crate) fn lv_device(&mut self, vg: &str, lv: &str) -> Result<Option<Device>> {
        let device = self.dm.device(&names::lv_device(vg, lv))?;
        Ok(device.filter(|device| device.table.is_some()))
    }

    /// Opens the records of an attached SR.
    pub(crate) fn open(&mut self, sr: &Attached) -> Result<Session> {
        let device = self.records_device(sr)?;
        Ok(Session { sr: sr.clone(), catalog: self.media.open(&device, sr.uuid)? })
    }

    /// Opens the records of an attached SR to look at them only.
    pub(crate) fn look(&mut self, sr: &Attached) -> Result<Session> {
        let device = self.records_device(sr)?;
        Ok(Session { sr: sr.clone(), catalog: self.media.look(&device, sr.uuid)? })
    }

    fn records_device(&mut self, sr: &Attached) -> Result<PathBuf> {
        let meta = names::meta_lv(sr.uuid);
        let device = self.lv_device(&sr.vg, &meta)?.ok_or_else(|| inactive(sr, &meta))?;
        Ok(device.number.dm_node())
    }

    /// Brings an SR to the goal.
    pub(crate) fn drive_sr(&mut self, mode: Mode, place: &SrPlace, goal: &SrGoal) -> Result<Driven> {
        let lvm = None::<Found>;
        let (done, seen) = drive(
            &mut (self, lvm),
            mode,
            |(world, lvm)| {
                // Asking LVM takes longer than everything else, so it is asked again only after it has changed something.
                let found = match lvm.take() {
                    Some(found) => found,
                    None => world.lvm.find(&place.devices)?,
                };
                *lvm = Some(found.clone());
                let seen = world.observe_sr(place, goal, found)?;
                let steps = plan_sr(goal, &seen)?;
                Ok((seen, steps))
            },
            |(world, lvm), step, seen| {
                if step.is_lvms() {
                    *lvm = None;
                }
                world.apply_sr(step, place, goal, seen)
            },
        )?;
        Ok(Driven { done, group: seen.group })
    }

    /// Brings a VDI to the goal.
    pub(crate) fn drive_vdi(
        &mut self,
        mode: Mode,
        session: &mut Session,
        uuid: Uuid,
        goal: &Goal,
    ) -> Result<Vec<Done>> {
        drive(
            &mut (self, session),
            mode,
            |(world, session)| {
                let seen = world.observe_vdi(session, uuid, goal)?;
                let steps = plan_vdi(goal, &seen)?;
                Ok((seen, steps))
            },
            |(world, session), step, seen| world.apply_vdi(step, seen, session),
        )
        .map(|(done, _)| done)
    }
}
