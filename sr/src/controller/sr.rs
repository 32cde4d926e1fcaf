//! The verbs of SRs.

use super::find::FoundSr;
use super::{Controller, Report};
use crate::dm::PoolStatus;
use crate::engine::{Driven, Mode, Session, SrPlace};
use crate::error::{Error, Result};
use crate::names::{self, Role, VG_NAME_MAX};
use crate::plan::{Goal, SrGoal, SrSpec};
use crate::record::Vdi;
use crate::view::SrInfo;
use std::collections::BTreeSet;
use std::path::PathBuf;
use uuid::Uuid;

/// An SR to be made on whole devices.
#[derive(Clone, Debug, Default)]
pub struct SrCreate {
    /// Its name, which is also the volume group's.
    pub name: String,
    /// The devices to use, which must be empty.
    pub devices: Vec<PathBuf>,
    /// Size of the pool at first, in bytes; a quarter of the devices if not given. It grows.
    pub pool_size: Option<u64>,
    /// Block size of the pool, in bytes; 64 KiB for pools that these can address.
    pub chunk: Option<u64>,
}

/// An SR to be made in a volume group that has other uses too.
#[derive(Clone, Debug, Default)]
pub struct SrIntroduce {
    /// Its name.
    pub name: String,
    /// The volume group.
    pub vg: String,
    /// Size of the pool to be made, in bytes.
    pub pool_size: Option<u64>,
    /// An empty pool of the group, to be taken instead.
    pub adopt_pool: Option<String>,
    /// Whether the pool grows by itself into what the group has free.
    pub grows: bool,
}

/// An SR to be destroyed.
#[derive(Clone, Debug, Default)]
pub struct SrDestroy {
    /// The SR, by UUID, name, volume group or device.
    pub sr: String,
    /// Whether the disks that it still holds go with it.
    pub force: bool,
}

impl Controller {
    /// Makes an SR on devices that become its own, and attaches it. Called again after a crash, it goes on.
    ///
    /// # Errors
    /// `Refused` if a device is in use or not empty, or the name is taken.
    pub fn sr_create(&mut self, request: &SrCreate) -> Result<Report<SrInfo>> {
        check_vg_name(&request.name)?;
        if request.devices.is_empty() {
            return Err(Error::refused("an SR needs a device"));
        }
        let _lock = self.locks.host()?;
        let mut devices = Vec::new();
        for device in &request.devices {
            devices.push(self.world.host.disk(device)?.path);
        }
        // A group of this name that was made for an SR without records is one that a crash cut short.
        let begun = self
            .scan()?
            .into_iter()
            .find(|sr| sr.owns_vg && sr.place.vg == request.name && same(&sr.place.devices, &devices));
        let uuid = match begun {
            Some(sr) if !self.has_records(&sr)? => sr.place.uuid,
            _ => Uuid::new_v4(),
        };
        let spec = SrSpec {
            uuid,
            name: request.name.clone(),
            vg: request.name.clone(),
            devices,
            pool_size: request.pool_size,
            chunk: request.chunk,
            adopt: None,
            grows: true,
        };
        let place =
            SrPlace { uuid, vg: spec.vg.clone(), pool_lv: spec.pool_lv(), devices: spec.devices.clone() };
        let driven = self.world.drive_sr(self.mode, &place, &SrGoal::Created(spec))?;
        self.sr_report(driven, uuid)
    }

    /// Makes an SR in a volume group that stays its owner's, and attaches it. No other volume of the group is touched.
    ///
    /// # Errors
    /// `NotFound` if there is no such group; `Refused` without a size or a pool, for a pool that is not empty or that
    /// LVM makes volumes in, and for a name that another SR of the group has.
    pub fn sr_introduce(&mut self, request: &SrIntroduce) -> Result<Report<SrInfo>> {
        if request.pool_size.is_some() == request.adopt_pool.is_some() {
            return Err(Error::refused(
                "an SR in an existing group needs either a size for its pool or a pool to adopt",
            ));
        }
        let _lock = self.locks.host()?;
        let candidates = self.world.host.candidates()?;
        let groups = self.world.lvm.find(&candidates)?.groups;
        let Some(group) = groups.into_iter().find(|group| group.name == request.vg) else {
            return Err(Error::not_found(format!("there is no volume group {}", request.vg)));
        };
        let len = group.name.len() + group.name.matches('-').count();
        if len > VG_NAME_MAX {
            return Err(Error::refused(format!(
                "the name of the group {} is too long: with its hyphens counted twice it has {len} characters, of at most {VG_NAME_MAX}",
                group.name
            )));
        }
        let mut uuid = Uuid::new_v4();
        for sr in self.scan()?.into_iter().filter(|sr| sr.place.vg == group.name) {
            let pool = Some(&sr.place.pool_lv) == request.adopt_pool.as_ref();
            if sr.name != request.name && !pool {
                continue;
            }
            // One that a crash cut short goes on; it has the name, and took the same pool or none.
            if sr.name == request.name
                && sr.owns_pool == request.adopt_pool.is_none()
                && !self.has_records(&sr)?
            {
                uuid = sr.place.uuid;
                continue;
            }
            return Err(Error::refused(format!(
                "SR '{}' ({}) in the group {} has this name or this pool already",
                sr.name, sr.place.uuid, group.name
            )));
        }
        let spec = SrSpec {
            uuid,
            name: request.name.clone(),
            vg: group.name.clone(),
            devices: Vec::new(),
            pool_size: request.pool_size,
            chunk: None,
            adopt: request.adopt_pool.clone(),
            grows: request.grows,
        };
        let place =
            SrPlace { uuid, vg: group.name.clone(), pool_lv: spec.pool_lv(), devices: group.devices() };
        let driven = self.world.drive_sr(self.mode, &place, &SrGoal::Created(spec))?;
        self.sr_report(driven, uuid)
    }

    /// Whether the SR was ever made wholly. Records on a volume that is not active count as there.
    fn has_records(&mut self, sr: &FoundSr) -> Result<bool> {
        if !sr.whole {
            return Ok(false);
        }
        let Some(device) = self.world.lv_device(&sr.place.vg, &names::meta_lv(sr.place.uuid))? else {
            return Ok(true);
        };
        Ok(self.world.media.identify(&device.number.dm_node())?.is_some())
    }

    pub(super) fn sr_report(&mut self, driven: Driven, uuid: Uuid) -> Result<Report<SrInfo>> {
        let record = match (self.mode, driven.group) {
            (Mode::DryRun, _) => None,
            (Mode::Apply, Some(group)) => Some(self.info_in(&group, uuid)?),
            (Mode::Apply, None) => Some(self.sr_info(&uuid.to_string())?),
        };
        let warnings = record.as_ref().map(|sr| sr.warnings.clone()).unwrap_or_default();
        Ok(Report::new(driven.done, record).with_warnings(warnings))
    }

    /// Activates an SR's volumes and mends what a crash left.
    ///
    /// # Errors
    /// `NotFound`; `Failed` if the pool or the records are damaged.
    pub fn sr_attach(&mut self, sr: &str) -> Result<Report<SrInfo>> {
        let _host = self.locks.host()?;
        let found = self.find_sr(sr)?;
        let lock = self.locks.sr(found.place.uuid)?;
        let goal = SrGoal::Attached { name: found.name.clone() };
        let mut driven = self.world.drive_sr(self.mode, &found.place, &goal)?;
        let mut warnings = Vec::new();
        if self.mode == Mode::Apply {
            let attached = self.find_attached(&found.place.uuid.to_string())?;
            let mut session = self.world.open(&attached)?;
            let group = driven.group.clone();
            driven.extend(self.mend(&mut session)?);
            let untidy = match &group {
                Some(group) => self.untidy_volumes(&session, group)?,
                None => Vec::new(),
            };
            driven.extend(self.trim(&mut session, untidy)?);
            let mut grown = Vec::new();
            warnings = self.tend_open(&session, &mut grown);
            driven.extend(grown);
        }
        // The report takes the lock for itself.
        drop(lock);
        let report = self.sr_report(driven, found.place.uuid)?;
        Ok(if warnings.is_empty() { report } else { report.with_warnings(warnings) })
    }

    /// Brings an attached SR, after whatever crash, to a state without anything half made.
    ///
    /// # Errors
    /// `NotFound`; `NotAttached` if it is not attached.
    pub fn sr_recover(&mut self, sr: &str) -> Result<Report<SrInfo>> {
        self.sr_attach(sr)
    }

    /// The same loop over every VDI that has anything on this host.
    pub(super) fn mend(&mut self, session: &mut Session) -> Result<Vec<crate::engine::Done>> {
        let sr = session.sr.uuid;
        let mut done = self.world.drive_vdi(self.mode, session, Uuid::nil(), &Goal::Settled)?;
        let mut vdis = BTreeSet::new();
        for name in self.world.dm.names()? {
            match names::role(sr, &name) {
                Some(Role::Vdi(vdi) | Role::Origin(vdi) | Role::Scratch(vdi)) => {
                    vdis.insert(vdi);
                }
                None => {}
            }
        }
        vdis.extend(self.world.host.links(sr)?);
        for vdi in session.catalog.vdis()? {
            if vdi.local().is_some() {
                vdis.insert(vdi.uuid);
            }
        }
        for (template, _) in self
            .world
            .origins
            .attached()
            .map_err(|e| Error::failed("cannot tell which templates are open").because(e))?
        {
            if session.catalog.vdi(template)?.is_some() {
                vdis.insert(template);
            }
        }
        // Disks before templates: what stands on a template keeps it.
        let (mut disks, mut templates) = (Vec::new(), Vec::new());
        for vdi in vdis {
            match session.catalog.vdi(vdi)? {
                Some(record) if record.is_template() => templates.push(vdi),
                _ => disks.push(vdi),
            }
        }
        for vdi in disks {
            done.extend(self.world.drive_vdi(self.mode, session, vdi, &Goal::Mended)?);
        }
        for template in templates {
            // Who copies it looks after it.
            if let Some(alone) = self.locks.try_work(template)? {
                done.extend(self.world.drive_vdi(self.mode, session, template, &Goal::Mended)?);
                alone.retire()?;
            }
        }
        Ok(done)
    }

    /// Deactivates everything of an SR.
    ///
    /// # Errors
    /// `Refused` while VDIs are attached.
    pub fn sr_detach(&mut self, sr: &str) -> Result<Report<SrInfo>> {
        let _host = self.locks.host()?;
        let found = self.find_sr(sr)?;
        let lock = self.locks.sr(found.place.uuid)?;
        self.refuse_allocating(&found)?;
        let driven = self.world.drive_sr(self.mode, &found.place, &SrGoal::Detached)?;
        drop(lock);
        self.sr_report(driven, found.place.uuid)
    }

    /// Destroys an SR: its pool, its records, and the volume group if it was made for it.
    ///
    /// # Errors
    /// `Refused` while VDIs are attached, while there are disks (unless `force`), or if the group that would go has
    /// volumes that are not the SR's.
    pub fn sr_destroy(&mut self, request: &SrDestroy) -> Result<Report<SrInfo>> {
        let _host = self.locks.host()?;
        let found = self.find_sr(&request.sr)?;
        let lock = self.locks.sr(found.place.uuid)?;
        self.refuse_allocating(&found)?;
        if !request.force {
            self.refuse_disks(&found)?;
        }
        let mut done = Vec::new();
        if !found.owns_pool {
            done.extend(self.empty_pool(&found)?);
        }
        let goal = SrGoal::Destroyed { owns_vg: found.owns_vg, owns_pool: found.owns_pool };
        done.extend(self.world.drive_sr(self.mode, &found.place, &goal)?.done);
        if self.mode == Mode::Apply {
            lock.retire()?;
        }
        Ok(Report::new(done, None))
    }

    /// Destroys the disks in a pool that was lent, for the pool stays.
    fn empty_pool(&mut self, found: &FoundSr) -> Result<Vec<crate::engine::Done>> {
        let mut done = Vec::new();
        if !found.whole {
            return Ok(done);
        }
        if self.world.lv_device(&found.place.vg, &names::meta_lv(found.place.uuid))?.is_none() {
            return Err(Error::refused(format!(
                "SR '{}' is not attached, and its disks are in a pool that is not its own: attach it first",
                found.name
            )));
        }
        if self.has_records(found)? && self.may_hold_disks(found)? {
            let mut session = self.records(&found.as_attached())?;
            // A disk that was being destroyed when a crash came has no record any more, and is still in the pool.
            done.extend(self.world.drive_vdi(self.mode, &mut session, Uuid::nil(), &Goal::Settled)?);
            for disk in session.catalog.vdis()?.into_iter().filter(|vdi| !vdi.is_template()) {
                done.extend(self.world.drive_vdi(self.mode, &mut session, disk.uuid, &Goal::Gone)?);
            }
        }
        Ok(done)
    }

    /// Whether there may be disks in the pool. Where there are none it may have been given back already, and be no pool
    /// that goes with these records any more.
    fn may_hold_disks(&mut self, found: &FoundSr) -> Result<bool> {
        let session = self.world.look(&found.as_attached())?;
        let catalog = &session.catalog;
        Ok(catalog.ledger()?.intent.is_some() || !catalog.vdis()?.iter().all(Vdi::is_template))
    }

    fn refuse_disks(&mut self, found: &FoundSr) -> Result<()> {
        let meta = self.world.lv_device(&found.place.vg, &names::meta_lv(found.place.uuid))?;
        if meta.is_none() {
            if found.whole {
                return Err(Error::refused(format!(
                    "SR '{}' is not attached, so its records cannot tell whether it holds disks: attach it first, or force",
                    found.name
                )));
            }
            return Ok(());
        }
        if !self.has_records(found)? {
            return self.refuse_used_pool(found);
        }
        let session = self.world.look(&found.as_attached())?;
        let disks: Vec<_> = session.catalog.vdis()?.into_iter().filter(|vdi| !vdi.is_template()).collect();
        match disks.first() {
            None => Ok(()),
            Some(disk) => Err(Error::refused(format!(
                "SR '{}' still holds {} {}, as '{}': destroy them first, or force",
                found.name,
                disks.len(),
                if disks.len() == 1 { "disk" } else { "disks" },
                disk.name
            ))),
        }
    }

    /// An SR that was never made wholly has no records, and nothing in its pool; one that has lost them has.
    fn refuse_used_pool(&mut self, found: &FoundSr) -> Result<()> {
        if !found.whole {
            return Ok(());
        }
        let (vg, pool) = (&found.place.vg, &found.place.pool_lv);
        let line = match self.world.lv_device(vg, pool)? {
            Some(_) => self.world.dm.status(&names::lv_device(vg, pool))?,
            None => String::new(),
        };
        match PoolStatus::parse(&line) {
            Some(status) if status.transaction_id <= 1 && status.data_used == 0 => Ok(()),
            _ => Err(Error::refused(format!(
                "SR '{}' has no records any more, and its pool may not be empty: 'smctl sr restore' writes those of a dump, force gives all of it up",
                found.name
            ))),
        }
    }
}

impl FoundSr {
    fn as_attached(&self) -> crate::host::Attached {
        crate::host::Attached {
            uuid: self.place.uuid,
            name: self.name.clone(),
            vg: self.place.vg.clone(),
            pool_lv: self.place.pool_lv.clone(),
            devices: self.place.devices.clone(),
        }
    }
}

fn same(a: &[PathBuf], b: &[PathBuf]) -> bool {
    a.len() == b.len() && a.iter().all(|path| b.contains(path))
}

/// Whether LVM takes the name for a volume group (lvm(8), "Valid names"), and it leaves room for what follows it.
fn check_vg_name(name: &str) -> Result<()> {
    let letters = |c: char| c.is_ascii_alphanumeric() || "+_.-".contains(c);
    let valid = !name.is_empty()
        && !name.starts_with('-')
        && name != "."
        && name != ".."
        && name.chars().all(letters);
    if !valid {
        return Err(Error::refused(format!(
            "'{name}' cannot be the name of a volume group: it takes letters, digits and + _ . -, and does not begin with -"
        )));
    }
    let len = name.len() + name.matches('-').count();
    if len > VG_NAME_MAX {
        return Err(Error::refused(format!(
            "'{name}' is too long a name: with its hyphens counted twice it has {len} characters, of at most {VG_NAME_MAX}"
        )));
    }
    Ok(())
}
