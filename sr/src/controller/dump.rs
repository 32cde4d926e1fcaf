//! The records of an SR as text, and back.

use super::{Controller, Report};
use crate::dump::Dump;
use crate::engine::{Mode, SrPlace};
use crate::error::{Error, Result};
use crate::plan::{Goal, Restored, SrGoal};
use crate::view::SrInfo;
use uuid::Uuid;

/// Records to be restored.
#[derive(Clone, Debug)]
pub struct SrRestore {
    /// The records.
    pub dump: Dump,
    /// Whether to go on although the pool has thin devices that the dump does not know. They stay in the pool.
    pub leave_unknown: bool,
}

impl Controller {
    /// The records of an attached SR. An operation that a crash cut short is finished or undone first, so that there is
    /// nothing half made in them.
    ///
    /// # Errors
    /// `NotFound`; `NotAttached` if the SR is not attached.
    pub fn sr_dump(&mut self, sr: &str) -> Result<Dump> {
        let mut open = self.open_sr(sr)?;
        self.world.drive_vdi(Mode::Apply, &mut open.session, Uuid::nil(), &Goal::Settled)?;
        let catalog = &open.session.catalog;
        let ledger = catalog.ledger()?;
        Ok(Dump::new(catalog.sr()?, ledger.transaction_id, ledger.next_thin_id, catalog.vdis()?))
    }

    /// Writes the records of an SR anew whose volume of records is lost or damaged, and attaches it. What is in the pool
    /// is not touched. Called again after a crash, it goes on.
    ///
    /// # Errors
    /// `NotFound` if the volume group or the pool is not there. `Refused` if there are records that can be read and say
    /// something else; if the pool lacks a thin device of the dump, or has others (unless they are to be left), or its
    /// transaction id is before the dump's; and if a template's location is not complete.
    pub fn sr_restore(&mut self, request: SrRestore) -> Result<Report<SrInfo>> {
        if let Some(template) = request.dump.withheld().first() {
            return Err(Error::refused(format!(
                "the dump does not hold the whole location of template {template}, which has a secret: give it with '--location {template}=LOCATION'"
            )));
        }
        let _host = self.locks.host()?;
        let sr = &request.dump.sr;
        let candidates = self.world.host.candidates()?;
        let groups = self.world.lvm.find(&candidates)?.groups;
        let Some(group) = groups.into_iter().find(|group| group.name == sr.vg) else {
            return Err(Error::not_found(format!("there is no volume group {}", sr.vg)));
        };
        let uuid = sr.uuid;
        let place =
            SrPlace { uuid, vg: sr.vg.clone(), pool_lv: sr.pool_lv.clone(), devices: group.devices() };
        let lock = self.locks.sr(uuid)?;
        let goal =
            SrGoal::Restored(Box::new(Restored { dump: request.dump, leave_unknown: request.leave_unknown }));
        let mut driven = self.world.drive_sr(self.mode, &place, &goal)?;
        if self.mode == Mode::Apply {
            let attached = self.find_attached(&uuid.to_string())?;
            let mut session = self.world.open(&attached)?;
            driven.extend(self.mend(&mut session)?);
        }
        // The report takes the lock for itself.
        drop(lock);
        self.sr_report(driven, uuid)
    }
}
