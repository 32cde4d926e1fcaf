//! Preallocated VDIs: a volume each, zeroed before anybody may read it.
//!
//! Zeroing takes long, so the SR is not locked meanwhile; the lock of the work on the VDI is held instead. A volume without
//! a record that nobody works on is what a crash left, and goes.

use super::{Controller, Open, Report, VdiCreate, Work};
use crate::Outcome;
use crate::engine::{Done, Mode, Session};
use crate::error::{Error, ErrorKind, Result};
use crate::lvm::Vg;
use crate::names;
use crate::plan::{Goal, Step};
use crate::record::{Body, Vdi};
use crate::view::VdiInfo;
use std::collections::BTreeSet;
use std::ops::Range;
use uuid::Uuid;

impl Controller {
    /// Makes a disk whose space is all allocated: a volume of the group, zeroed before the disk is there for anybody.
    /// Other verbs of the SR go on meanwhile.
    ///
    /// A stop or an error leaves nothing; what a crash leaves, the next verb that changes the SR takes away.
    ///
    /// # Errors
    /// `Refused` for a size that cannot be or that the group has no room for; `Cancelled` if it was asked to stop; `Failed`
    /// if the volume cannot be made or written.
    pub fn vdi_preallocate(
        &mut self,
        sr: &str,
        request: &VdiCreate,
        work: &mut Work<'_>,
    ) -> Result<Report<VdiInfo>> {
        let open = self.open_sr(sr)?;
        let vdi = Vdi {
            uuid: Uuid::new_v4(),
            name: request.name.clone(),
            body: Body::Thick,
            virtual_size: super::vdi::whole_sectors(request.size)?,
            origin: None,
            parent: None,
            snapshot_of: None,
            read_only: false,
        };
        self.allocate(open, None, &vdi, work)
    }

    /// Gives a preallocated disk the size in `new`: what is added is zeroed before it can be seen.
    pub(super) fn grow_thick(
        &mut self,
        open: Open,
        old: &Vdi,
        new: &Vdi,
        work: &mut Work<'_>,
    ) -> Result<Report<VdiInfo>> {
        self.allocate(open, Some(old), new, work)
    }

    fn allocate(
        &mut self,
        mut open: Open,
        old: Option<&Vdi>,
        new: &Vdi,
        work: &mut Work<'_>,
    ) -> Result<Report<VdiInfo>> {
        let uuid = new.uuid;
        let mut done = self.sweep(&mut open.session)?;
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Settled)?);
        let Some(alone) = self.locks.try_work(uuid)? else {
            return Err(busy(new));
        };
        let sr = open.session.sr.clone();
        let space = self.world.space(&open.session, uuid)?;
        let from = old.map_or(0, |old| space.volume_for(old.virtual_size));
        let range = from..space.volume_for(new.virtual_size);
        let zeroes = !range.is_empty();
        let step =
            Step::Zero { vdi: uuid, name: new.name.clone(), bytes: range.end.saturating_sub(range.start) };
        let reserved = self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Reserved(new.clone()));
        if self.mode == Mode::DryRun {
            done.extend(reserved?);
            if zeroes {
                done.push((step, None));
            }
            done.push((Step::Put(Box::new(new.clone())), None));
            alone.retire()?;
            return self.vdi_report(&open.session, done, uuid);
        }
        drop(open);
        let lv = names::thick_lv(sr.uuid, uuid);
        let id = sr.uuid.to_string();
        let made = reserved.and_then(|reserved| {
            done.extend(reserved);
            self.fill(&id, &sr.vg, &lv, range, (old, new), work)
        });
        match made {
            Ok((mut open, recorded)) => {
                if zeroes {
                    done.push((step, Some(Outcome::Changed)));
                }
                done.extend(recorded);
                done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Trimmed)?);
                alone.retire()?;
                self.vdi_report(&open.session, done, uuid)
            }
            Err(e) => {
                // Where this fails too, the next verb or recovery does the same again.
                let undone = self.open_sr(&id).and_then(|mut open| {
                    self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Trimmed)
                });
                match undone.and_then(|_| alone.retire()) {
                    Ok(()) if e.kind == ErrorKind::Cancelled => Err(Error::new(
                        ErrorKind::Cancelled,
                        match old {
                            None => format!("interrupted: nothing of VDI '{}' was made", new.name),
                            Some(_) => format!("interrupted: VDI '{}' is as it was", new.name),
                        },
                    )),
                    Ok(()) => Err(e),
                    Err(left) => Err(Error::new(
                        e.kind,
                        format!("{e}; what was allocated of {}/{lv} is still there: {left}", sr.vg),
                    )),
                }
            }
        }
    }

    /// Zeroes, and records what was zeroed.
    fn fill(
        &mut self,
        sr: &str,
        vg: &str,
        lv: &str,
        range: Range<u64>,
        (old, new): (Option<&Vdi>, &Vdi),
        work: &mut Work<'_>,
    ) -> Result<(Open, Vec<Done>)> {
        self.world.zero(vg, lv, range, work)?;
        let mut open = self.open_sr(sr)?;
        let now = open.session.catalog.vdi(new.uuid)?;
        // It may have been renamed meanwhile, but nobody else changes its size.
        let new = match (old, now) {
            (None, None) => new.clone(),
            (Some(_), Some(now)) => Vdi { virtual_size: new.virtual_size, ..now },
            _ => return Err(Error::refused(format!("VDI '{}' was destroyed meanwhile", new.name))),
        };
        let goal = Goal::Recorded(new.clone());
        let done = self.world.drive_vdi(self.mode, &mut open.session, new.uuid, &goal)?;
        Ok((open, done))
    }

    /// Destroys a preallocated disk: first the record, then the volume, which without a record is nobody's. What a crash
    /// leaves of that, recovery takes away.
    pub(super) fn destroy_thick(&mut self, mut open: Open, vdi: &Vdi) -> Result<Report<VdiInfo>> {
        let Some(alone) = self.locks.try_work(vdi.uuid)? else {
            return Err(busy(vdi));
        };
        let mut done = self.sweep(&mut open.session)?;
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Gone)?);
        if self.mode == Mode::DryRun {
            let (vg, lv) = (open.session.sr.vg.clone(), names::thick_lv(open.session.sr.uuid, vdi.uuid));
            done.push((Step::RemoveVolume { vg, lv }, None));
        } else {
            done.extend(self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Trimmed)?);
        }
        alone.retire()?;
        self.vdi_report(&open.session, done, vdi.uuid)
    }

    /// Trims active volumes that have no record, or no device on them, and that nobody works on: disks whose making or
    /// growing was cut short.
    pub(super) fn sweep(&mut self, session: &mut Session) -> Result<Vec<Done>> {
        let mut debris = Vec::new();
        for name in self.world.dm.names()? {
            let vdi = names::vdi_of_thick_device(&session.sr.vg, session.sr.uuid, &name);
            if let Some(vdi) = vdi
                && (session.catalog.vdi(vdi)?.is_none()
                    || self.world.dm.device(&names::vdi_device(session.sr.uuid, vdi).name)?.is_none())
            {
                debris.push(vdi);
            }
        }
        self.trim(session, debris)
    }

    /// The preallocated VDIs whose volumes in the SR's group are not as their records say.
    pub(super) fn untidy_volumes(&mut self, session: &Session, group: &Vg) -> Result<Vec<Uuid>> {
        let sr = session.sr.uuid;
        let mut untidy = Vec::new();
        for lv in &group.lvs {
            let Some(vdi) = names::vdi_of_thick_lv(sr, &lv.name) else { continue };
            let device = self.world.dm.device(&names::vdi_device(sr, vdi).name)?;
            let tidy = session.catalog.vdi(vdi)?.is_some_and(|record| {
                let size = record.virtual_size.next_multiple_of(group.extent.max(1));
                record.body == Body::Thick && lv.size <= size && (device.is_some() || !lv.active)
            });
            if !tidy {
                untidy.push(vdi);
            }
        }
        Ok(untidy)
    }

    /// Makes volumes as their records say, those left alone that somebody works on.
    pub(super) fn trim(
        &mut self,
        session: &mut Session,
        vdis: impl IntoIterator<Item = Uuid>,
    ) -> Result<Vec<Done>> {
        let mut done = Vec::new();
        for vdi in vdis {
            if let Some(alone) = self.locks.try_work(vdi)? {
                done.extend(self.world.drive_vdi(self.mode, session, vdi, &Goal::Trimmed)?);
                alone.retire()?;
            }
        }
        Ok(done)
    }

    /// Refuses to take an SR away from under a disk that is being made or made larger.
    pub(super) fn refuse_allocating(&self, sr: &super::find::FoundSr) -> Result<()> {
        let volumes: BTreeSet<_> = sr.group.lvs.iter().map(|lv| lv.name.as_str()).collect();
        for vdi in volumes.iter().filter_map(|lv| names::vdi_of_thick_lv(sr.place.uuid, lv)) {
            match self.locks.try_work(vdi)? {
                Some(lock) => lock.retire()?,
                None => {
                    return Err(Error::refused(format!(
                        "the volume of preallocated VDI {vdi} of SR '{}' is being zeroed: wait for that, or interrupt it",
                        sr.name
                    )));
                }
            }
        }
        Ok(())
    }
}

fn busy(vdi: &Vdi) -> Error {
    Error::refused(format!("VDI '{}' ({}) is being made larger already", vdi.name, vdi.uuid))
}
