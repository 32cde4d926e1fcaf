//! Looking at whole SRs and changing them.

use super::World;
use crate::Outcome;
use crate::dm::{PoolMessage, PoolStatus};
use crate::error::{Error, Result};
use crate::lvm::Found;
use crate::names;
use crate::plan::{SrGoal, SrSeen, Step, growth};
use crate::record::{Ledger, SrRecord};
use std::path::PathBuf;
use uuid::Uuid;

/// Where an SR is, or is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SrPlace {
    pub(crate) uuid: Uuid,
    pub(crate) vg: String,
    pub(crate) pool_lv: String,
    /// What LVM may look at: the devices under the group.
    pub(crate) devices: Vec<PathBuf>,
}

impl World {
    /// What there is of an SR, of which `found` is what LVM says.
    pub(crate) fn observe_sr(&mut self, place: &SrPlace, goal: &SrGoal, found: Found) -> Result<SrSeen> {
        let group = found.groups.into_iter().find(|group| group.name == place.vg);
        let mut disks = Vec::new();
        if let SrGoal::Created(spec) = goal
            && group.is_none()
        {
            for device in &spec.devices {
                disks.push(self.host.disk(device)?);
            }
        }
        let pool = match self.lv_device(&place.vg, &place.pool_lv)? {
            None => None,
            Some(device) => {
                let line = self.dm.status(&names::lv_device(&place.vg, &place.pool_lv))?;
                // What is not a pool, because LVM has made volumes in it, is of no more use than one that has failed.
                let status = PoolStatus::parse(&line).unwrap_or(PoolStatus::FAILED);
                Some((device, status))
            }
        };
        let meta = self.lv_device(&place.vg, &names::meta_lv(place.uuid))?;
        let records = match meta {
            None => None,
            Some(device) => match (self.media.identify(&device.number.dm_node()), goal) {
                // Damage is what is to be mended, and does not keep anybody from giving the SR up.
                (Err(_), SrGoal::Restored(_) | SrGoal::Detached | SrGoal::Destroyed { .. }) => Some(None),
                (found, _) => Some(found?),
            },
        };
        let restore = match goal {
            SrGoal::Restored(_) => Some(self.observe_restore(place)?),
            _ => None,
        };
        let devices = self.dm.names()?;
        let mut seen = SrSeen {
            uuid: place.uuid,
            vg_name: place.vg.clone(),
            pool_lv: place.pool_lv.clone(),
            group,
            free: found.free,
            disks,
            pool,
            records,
            restore,
            remembered: self.host.attached()?.into_iter().find(|sr| sr.uuid == place.uuid),
            devices: devices.into_iter().filter(|name| names::role(place.uuid, name).is_some()).collect(),
            links: self.host.links(place.uuid)?,
            hung: Vec::new(),
        };
        // Asking templates takes long where one does not answer, so they are asked only before something hangs on it.
        if let SrGoal::Grown(growth) = goal
            && !growth::due(growth, &seen)?.is_empty()
        {
            seen.hung = self.hung_origins(place.uuid)?;
        }
        Ok(seen)
    }

    pub(crate) fn apply_sr(
        &mut self,
        step: &Step,
        place: &SrPlace,
        goal: &SrGoal,
        seen: &SrSeen,
    ) -> Result<Outcome> {
        let devices = place.devices.as_slice();
        match step {
            Step::CreateGroup { vg, devices, tags } => self.lvm.create_group(devices, vg, tags)?,
            Step::CreateMeta { vg, lv, size, tags } => {
                self.lvm.create_linear(devices, vg, lv, *size, tags)?;
            }
            Step::CreatePool { vg, pool, tags } => self.lvm.create_pool(devices, vg, pool, tags)?,
            Step::Fence { vg, pool_lv } => {
                let message = PoolMessage::SetTransactionId { from: 0, to: 1 };
                self.dm.message(&names::lv_device(vg, pool_lv), message)?;
            }
            Step::Release { vg, pool_lv, from } => {
                let message = PoolMessage::SetTransactionId { from: *from, to: 0 };
                self.dm.message(&names::lv_device(vg, pool_lv), message)?;
            }
            Step::ReleaseSnapshot { vg, pool_lv } => {
                self.dm.message(&names::lv_device(vg, pool_lv), PoolMessage::ReleaseMetadataSnap)?;
            }
            Step::Format { .. } => self.format(place, goal, seen)?,
            Step::WriteRecords { .. } => match goal {
                SrGoal::Restored(wanted) => self.write_records(place, wanted, seen)?,
                _ => return Err(Error::failed("only an SR that is restored is given records")),
            },
            Step::GrowPool { vg, pool_lv, size } => self.lvm.extend(devices, vg, pool_lv, *size)?,
            Step::GrowMetadata { vg, pool_lv, size } => {
                self.lvm.extend_metadata(devices, vg, pool_lv, *size)?;
            }
            Step::Activate { vg, lv } => self.lvm.activate(devices, vg, lv)?,
            Step::Deactivate { vg, lv } => self.lvm.deactivate(devices, vg, lv)?,
            Step::RemoveVolume { vg, lv } => self.lvm.remove_volume(devices, vg, lv)?,
            Step::RemoveGroup { vg } => self.lvm.remove_group(devices, vg)?,
            Step::RemoveLabel { device } => self.lvm.remove_label(device)?,
            Step::Remember(sr) => self.host.remember(sr)?,
            Step::Forget { sr } => self.host.forget(*sr)?,
            Step::Unlink { vdi } => return self.host.remove_link(place.uuid, *vdi),
            other => return Err(Error::failed(format!("an SR's plan has the step '{other}'"))),
        }
        Ok(Outcome::Changed)
    }

    fn format(&mut self, place: &SrPlace, goal: &SrGoal, seen: &SrSeen) -> Result<()> {
        let SrGoal::Created(spec) = goal else {
            return Err(Error::failed("only a new SR is given empty records"));
        };
        let meta = names::meta_lv(place.uuid);
        let (Some(device), Some((_, status)), Some(group)) =
            (self.lv_device(&place.vg, &meta)?, &seen.pool, &seen.group)
        else {
            return Err(Error::failed(format!("the volumes of SR '{}' are not active", spec.name)));
        };
        let chunk = group.lv(&place.pool_lv).map_or(0, |lv| lv.chunk);
        let record = SrRecord {
            uuid: place.uuid,
            name: spec.name.clone(),
            vg: place.vg.clone(),
            pool_lv: place.pool_lv.clone(),
            chunk,
            owns_vg: spec.owns_vg(),
            owns_pool: spec.adopt.is_none(),
            grows: Some(spec.grows),
        };
        let ledger = Ledger { transaction_id: status.transaction_id, next_thin_id: 1, intent: None };
        self.media.format(&device.number.dm_node(), &record, &ledger, &[])
    }
}
