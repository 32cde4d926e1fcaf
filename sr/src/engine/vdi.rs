//! Looking at VDIs and changing them.

use super::{Session, World};
use crate::Outcome;
use crate::dm::{Device, DmError, PoolMessage, PoolStatus, Table};
use crate::error::{Error, Result};
use crate::names::{self, DmName};
use crate::origins::Pinned;
use crate::plan::{Goal, OriginSeen, Seen, Step, expected_table};
use crate::record::{Body, Change, Intent, Vdi};
use uuid::Uuid;

impl World {
    /// How the pool does.
    pub(crate) fn pool_status(&mut self, session: &Session) -> Result<(Device, PoolStatus)> {
        let (name, sr) = (session.pool(), &session.sr);
        let device = self.lv_device(&sr.vg, &sr.pool_lv)?.ok_or_else(|| super::inactive(sr, &sr.pool_lv))?;
        let line = self.dm.status(&name)?;
        let status = PoolStatus::parse(&line)
            .ok_or_else(|| Error::failed(format!("{name} is not a thin pool, its status is '{line}'")))?;
        Ok((device, status))
    }

    pub(crate) fn observe_vdi(&mut self, session: &Session, uuid: Uuid, goal: &Goal) -> Result<Seen> {
        let sr = session.catalog.sr()?;
        let ledger = session.catalog.ledger()?;
        let (pool, status) = self.pool_status(session)?;
        let vdi = session.catalog.vdi(uuid)?;
        let device = self.dm.device(&names::vdi_device(sr.uuid, uuid).name)?;
        let users = match &device {
            Some(device) => self.host.users(device.number)?,
            None => Vec::new(),
        };
        let about_volume = matches!(goal, Goal::Reserved(_) | Goal::Trimmed);
        let volume = match &vdi {
            Some(vdi) if vdi.body != Body::Thick => None,
            None if !about_volume => None,
            _ => self.lv_device(&sr.vg, &names::thick_lv(sr.uuid, uuid))?,
        };
        // Asking LVM takes long, so it is asked only about volumes that are to change.
        let space = if about_volume { Some(self.space(session, uuid)?) } else { None };
        let source = match goal {
            Goal::Made { from: Some(from), .. } | Goal::Reverted { from, .. } => {
                session.catalog.vdi(*from)?
            }
            _ => None,
        };
        let suspect = match &ledger.intent {
            Some(Intent::Make { from: Some(from), .. }) => {
                self.dm.device(&names::vdi_device(sr.uuid, from.vdi).name)?.map(|device| (from.vdi, device))
            }
            _ => None,
        };
        let origin = match goal {
            Goal::Settled | Goal::Made { .. } | Goal::Reverted { .. } => None,
            Goal::Reserved(_) | Goal::Trimmed => None,
            Goal::Recorded(_) if device.is_none() => None,
            _ => self.observe_origin(session, vdi.as_ref(), goal)?,
        };
        Ok(Seen {
            uuid,
            pool: pool.number,
            status,
            device,
            users,
            link: self.host.link(sr.uuid, uuid)?,
            volume,
            origin,
            source,
            suspect,
            descendants: session.catalog.descendants(uuid)?,
            space,
            scratch: self.scratch(sr.uuid, uuid)?,
            vdi,
            sr,
            ledger,
        })
    }

    fn observe_origin(
        &mut self,
        session: &Session,
        vdi: Option<&Vdi>,
        goal: &Goal,
    ) -> Result<Option<OriginSeen>> {
        let template = match vdi {
            Some(vdi) if vdi.is_template() => vdi.clone(),
            Some(Vdi { origin: Some(origin), .. }) => session
                .catalog
                .vdi(*origin)?
                .ok_or_else(|| Error::failed(format!("the records lack template {origin}")))?,
            _ => return Ok(None),
        };
        let attached = self.origins.attached().map_err(|e| unavailable(&template, &e))?;
        let device = match attached.into_iter().find(|(uuid, _)| *uuid == template.uuid) {
            None => None,
            Some((_, device)) => Some((self.host.number(&device.path)?, device.size)),
        };
        let name = names::origin_device(session.sr.uuid, template.uuid).name;
        let local = match template.local() {
            Some(_) => self.lv_device(&session.sr.vg, &names::local_lv(session.sr.uuid, template.uuid))?,
            None => None,
        };
        // Asking LVM takes long, so it is asked only about what is done to the template itself.
        let itself = vdi.is_some_and(Vdi::is_template);
        let room = match goal {
            Goal::RoomMade(_) => Some(self.local_room(session, &template)?),
            Goal::Delocalised | Goal::Gone | Goal::Mended if itself && template.local().is_some() => {
                Some(self.local_room(session, &template)?)
            }
            _ => None,
        };
        Ok(Some(OriginSeen { device, pad: self.dm.device(&name)?, template, local, room }))
    }

    pub(crate) fn apply_vdi(&mut self, step: &Step, seen: &Seen, session: &mut Session) -> Result<Outcome> {
        let sr = seen.sr.uuid;
        match step {
            Step::RecordIntent(intent) => {
                let mut ledger = seen.ledger.clone();
                ledger.intent = Some(intent.clone());
                let mut changes = Vec::new();
                match intent {
                    Intent::Make { vdi, .. } => {
                        ledger.next_thin_id = ledger.next_thin_id.max(vdi.thin_id().unwrap_or_default() + 1);
                    }
                    // From here on nobody can attach it, so it can be deleted whenever.
                    Intent::Drop { .. } => changes.push(Change::Remove(seen.uuid)),
                }
                changes.push(Change::Ledger(ledger));
                session.catalog.commit(&changes)?;
            }
            Step::Perform(intent) => self.perform(intent, seen, session)?,
            Step::Undo(intent) => {
                if let Intent::Make { vdi, .. } = intent {
                    self.delete_thin(session, vdi.thin_id().unwrap_or_default())?;
                }
                let mut ledger = seen.ledger.clone();
                ledger.intent = None;
                session.catalog.commit(&[Change::Ledger(ledger)])?;
            }
            Step::Commit(intent) => {
                let mut ledger = seen.ledger.clone();
                ledger.transaction_id += 1;
                ledger.intent = None;
                let mut changes = Vec::new();
                if let Intent::Make { vdi, replaces, .. } = intent {
                    changes.push(Change::Put(vdi.as_ref().clone()));
                    ledger.intent = replaces.map(|id| Intent::Drop { id });
                }
                changes.push(Change::Ledger(ledger));
                session.catalog.commit(&changes)?;
            }
            Step::Put(vdi) => session.catalog.commit(&[Change::Put(vdi.as_ref().clone())])?,
            Step::RemoveRecord { vdi, .. } => session.catalog.commit(&[Change::Remove(*vdi)])?,
            Step::OpenOrigin { .. } => self.open_origin(seen)?,
            Step::CloseOrigin { template } => {
                return self
                    .origins
                    .detach(*template)
                    .map_err(|e| Error::failed(format!("cannot close template {template}")).because(e));
            }
            Step::MapOrigin { .. } => return self.map_origin(seen),
            Step::UnmapOrigin { template } => self.unmap(&names::origin_device(sr, *template))?,
            Step::CreateThick { vg, lv, size, .. } => {
                self.lvm.create_linear(&session.sr.devices, vg, lv, *size, &[names::TAG.into()])?;
            }
            Step::ExtendThick { vg, lv, size, .. } => {
                self.lvm.extend(&session.sr.devices, vg, lv, *size)?;
            }
            Step::ReduceThick { vg, lv, size, .. } => {
                self.lvm.reduce(&session.sr.devices, vg, lv, *size)?;
            }
            Step::CreateLocal { vg, lv, size, .. } => {
                self.lvm.create_linear(&session.sr.devices, vg, lv, *size, &[names::TAG.into()])?;
            }
            Step::ActivateLocal { template, name, vg, lv } => {
                self.activate_local(session, *template, name, vg, lv)?;
            }
            Step::RemoveScratch { vdi } => self.remove_scratch(sr, *vdi)?,
            Step::MapVdi { vdi, read_only, .. } => return self.map_vdi(seen, *vdi, *read_only),
            Step::Resume { vdi } => self.dm.resume(&names::vdi_device(sr, *vdi).name)?,
            Step::UnmapVdi { vdi, .. } => self.unmap(&names::vdi_device(sr, *vdi))?,
            Step::Link { vdi } => {
                let device = self.dm.device(&names::vdi_device(sr, *vdi).name)?;
                let device =
                    device.ok_or_else(|| Error::failed(format!("VDI {vdi} has no device to link")))?;
                return self.host.set_link(sr, *vdi, &device.number.dm_node());
            }
            Step::Unlink { vdi } => return self.host.remove_link(sr, *vdi),
            Step::Activate { vg, lv } => self.lvm.activate(&session.sr.devices, vg, lv)?,
            Step::Deactivate { vg, lv } => self.lvm.deactivate(&session.sr.devices, vg, lv)?,
            Step::RemoveVolume { vg, lv } => {
                let found = self.lvm.find(&session.sr.devices)?;
                let there = found.groups.iter().any(|group| group.name == *vg && group.lv(lv).is_some());
                if !there {
                    return Ok(Outcome::Unchanged);
                }
                self.lvm.remove_volume(&session.sr.devices, vg, lv)?;
            }
            other => return Err(Error::failed(format!("a VDI's plan has the step '{other}'"))),
        }
        Ok(Outcome::Changed)
    }

    /// Sends the message of a recorded operation, and then moves the transaction id. The order is the commit protocol
    /// of [`Ledger`](crate::record::Ledger): with the id moved first, a crash in between would make recovery record a
    /// device that is not there.
    fn perform(&mut self, intent: &Intent, seen: &Seen, session: &mut Session) -> Result<()> {
        let pool = session.pool();
        match intent {
            Intent::Make { vdi, from, .. } => {
                let id = vdi.thin_id().unwrap_or_default();
                let made = match from {
                    None => self.dm.message(&pool, PoolMessage::CreateThin(id)),
                    Some(from) => {
                        let message = PoolMessage::CreateSnap { id, from: from.id };
                        let name = names::vdi_device(seen.sr.uuid, from.vdi).name;
                        self.message_suspended(&pool, message, &name)
                    }
                };
                if let Err(e) = made {
                    // Ids are recorded before use and never used twice, so one that is taken is not ours to delete:
                    // the intent goes at once, and nothing is undone later.
                    if e.errno == libc::EEXIST {
                        let mut ledger = seen.ledger.clone();
                        ledger.intent = None;
                        session.catalog.commit(&[Change::Ledger(ledger)])?;
                    }
                    return Err(e.into());
                }
            }
            Intent::Drop { id } => {
                self.delete_thin(session, *id)?;
            }
        }
        let from = seen.ledger.transaction_id;
        let message = PoolMessage::SetTransactionId { from, to: from + 1 };
        self.dm.message(&pool, message)?;
        Ok(())
    }

    /// Sends a message while the device called `name`, if it is there, is suspended: a snapshot of a device that is
    /// written to meanwhile is not of one moment.
    fn message_suspended(&mut self, pool: &str, message: PoolMessage, name: &str) -> Result<(), DmError> {
        let active = self.dm.device(name)?.is_some_and(|device| device.table.is_some());
        if !active {
            return self.dm.message(pool, message);
        }
        let _guard = self.dm.guard(name)?;
        self.dm.suspend(name)?;
        let sent = self.dm.message(pool, message);
        // Whatever came of the message, the guest goes on.
        let resumed = self.dm.resume(name);
        sent.and(resumed)
    }

    fn delete_thin(&mut self, session: &Session, id: u32) -> Result<Outcome> {
        match self.dm.message(&session.pool(), PoolMessage::Delete(id)) {
            Ok(()) => Ok(Outcome::Changed),
            Err(e) if e.errno == libc::ENODATA => Ok(Outcome::Unchanged),
            Err(e) => Err(e.into()),
        }
    }

    fn open_origin(&mut self, seen: &Seen) -> Result<()> {
        let Some(OriginSeen { template, .. }) = &seen.origin else {
            return Err(Error::failed(format!("VDI {} has no template to open", seen.uuid)));
        };
        let Body::Template { location, identity, patience, .. } = &template.body else {
            return Err(Error::failed(format!("VDI {} is not a template", template.uuid)));
        };
        self.origins
            .attach(template.uuid, Pinned { location, identity, patience: *patience })
            .map_err(|e| unavailable(template, &e))?;
        Ok(())
    }

    fn map_origin(&mut self, seen: &Seen) -> Result<Outcome> {
        let closed = || Error::failed(format!("the template of VDI {} is not open", seen.uuid));
        let origin = seen.origin.as_ref().ok_or_else(closed)?;
        let (template, table) = (&origin.template, origin.table().ok_or_else(closed)?);
        if let (None, Some((_, size))) = (template.local_ready(), origin.device)
            && size < template.virtual_size
        {
            return Err(Error::failed(format!(
                "the block device of template '{}' has {size} bytes, and the template {}",
                template.name, template.virtual_size
            )));
        }
        let name = names::origin_device(seen.sr.uuid, template.uuid);
        self.install(&name, origin.pad.as_ref(), &table, true)
    }

    fn map_vdi(&mut self, seen: &Seen, vdi: Uuid, read_only: bool) -> Result<Outcome> {
        let record = seen.vdi.as_ref().filter(|record| record.uuid == vdi);
        let Some(table) = record.and_then(|record| expected_table(record, seen)) else {
            return Err(Error::failed(format!("what VDI {vdi} stands on is not there")));
        };
        self.install(&names::vdi_device(seen.sr.uuid, vdi), seen.device.as_ref(), &table, read_only)
    }

    /// Makes a device with this table, or gives the one that is there this table.
    pub(super) fn install(
        &mut self,
        name: &DmName,
        device: Option<&Device>,
        table: &Table,
        read_only: bool,
    ) -> Result<Outcome> {
        if device.is_none() {
            self.dm.create(name)?;
        }
        let live = device.is_some_and(|device| device.table.is_some());
        if live && device.is_some_and(|device| device.uuid != name.uuid) {
            return Err(Error::failed(format!("the device {} is not ours", name.name)));
        }
        self.dm.load(&name.name, table, read_only)?;
        if !live {
            return Ok(self.dm.resume(&name.name).map(|()| Outcome::Changed)?);
        }
        // Users of a live device wait while its table changes, and go on with the new one, even if this process is
        // killed in between.
        let _guard = self.dm.guard(&name.name)?;
        self.dm.suspend(&name.name)?;
        self.dm.resume(&name.name)?;
        Ok(Outcome::Changed)
    }

    /// Removes a device. Whoever looks at new devices, as udev's rules do, may have it open for a moment.
    pub(super) fn unmap(&mut self, name: &DmName) -> Result<()> {
        let mut wait = std::time::Duration::from_millis(10);
        loop {
            match self.dm.remove(&name.name) {
                Err(e) if e.errno == libc::EBUSY && wait.as_secs() < 2 => {
                    std::thread::sleep(wait);
                    wait *= 2;
                }
                other => return Ok(other?),
            }
        }
    }
}

fn unavailable(template: &Vdi, error: &crate::OriginError) -> Error {
    Error::failed(format!("template '{}' ({}) cannot be used: {error}", template.name, template.uuid))
}
