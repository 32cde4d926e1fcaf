//! The verbs of SRs.

use super::find::FoundSr;
use super::{Controller, Report};
use crate::dm::Device;
use crate::engine::{Mode, Session, SrPlace};
use crate::error::{Error, ErrorKind, Result};
use crate::names::{self, Role, VG_NAME_MAX};
use crate::origins::OriginHealth;
use crate::plan::{Goal, SrGoal, SrSpec};
use crate::record::Vdi;
use crate::view::{OriginInfo, SrInfo};
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
        let done = self.world.drive_sr(self.mode, &place, &SrGoal::Created(spec))?;
        self.sr_report(done, uuid)
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
        let done = self.world.drive_sr(self.mode, &place, &SrGoal::Created(spec))?;
        self.sr_report(done, uuid)
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

    pub(super) fn sr_report(&mut self, done: Vec<crate::engine::Done>, uuid: Uuid) -> Result<Report<SrInfo>> {
        let record = match self.mode {
            Mode::Apply => Some(self.sr_info(&uuid.to_string())?),
            Mode::DryRun => None,
        };
        let warnings = record.as_ref().map(|sr| sr.warnings.clone()).unwrap_or_default();
        Ok(Report::new(done, record).with_warnings(warnings))
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
        let mut done = self.world.drive_sr(self.mode, &found.place, &goal)?;
        let mut warnings = Vec::new();
        if self.mode == Mode::Apply {
            let attached = self.find_attached(&found.place.uuid.to_string())?;
            let mut session = self.world.open(&attached)?;
            done.extend(self.mend(&mut session)?);
            let untidy = self.untidy_volumes(&session, &found)?;
            done.extend(self.trim(&mut session, untidy)?);
            warnings = self.tend_open(&session, &mut done);
        }
        // The report takes the lock for itself.
        drop(lock);
        let report = self.sr_report(done, found.place.uuid)?;
        Ok(if warnings.is_empty() { report } else { report.with_warnings(warnings) })
    }

    /// Brings an attached SR, after whatever crash, to a state without anything half made.
    ///
    /// # Errors
    /// `NotFound`; `Refused` if it is not attached.
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
        let done = self.world.drive_sr(self.mode, &found.place, &SrGoal::Detached)?;
        drop(lock);
        self.sr_report(done, found.place.uuid)
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
        done.extend(self.world.drive_sr(self.mode, &found.place, &goal)?);
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
            return Ok(());
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

    /// Every SR on this host, attached or not.
    ///
    /// # Errors
    /// LVM fails.
    pub fn sr_list(&mut self) -> Result<Vec<SrInfo>> {
        let mut infos = Vec::new();
        for found in self.scan()? {
            infos.push(self.describe(&found)?);
        }
        Ok(infos)
    }

    /// The SRs on a device or in a volume group; none if it holds none.
    ///
    /// # Errors
    /// LVM fails.
    pub fn sr_probe(&mut self, target: &str) -> Result<Vec<SrInfo>> {
        let path = std::path::Path::new(target);
        let mut infos = Vec::new();
        for found in self.scan()? {
            let on = |device: &PathBuf| {
                device == path || std::fs::canonicalize(path).is_ok_and(|it| it == *device)
            };
            if found.place.vg == target || found.place.devices.iter().any(on) {
                infos.push(self.describe(&found)?);
            }
        }
        Ok(infos)
    }

    /// One SR, attached or not.
    ///
    /// # Errors
    /// `NotFound`, or LVM fails.
    pub fn sr_info(&mut self, sr: &str) -> Result<SrInfo> {
        let found = self.find_sr(sr)?;
        self.describe(&found)
    }

    fn describe(&mut self, found: &FoundSr) -> Result<SrInfo> {
        let state = if found.attached {
            "attached"
        } else if found.whole {
            "detached"
        } else {
            "incomplete"
        };
        let mut info = SrInfo {
            uuid: found.place.uuid,
            name: found.name.clone(),
            state,
            vg: found.place.vg.clone(),
            pool: found.place.pool_lv.clone(),
            devices: found.place.devices.clone(),
            owns_vg: found.owns_vg,
            vg_size: Some(found.group.size),
            vg_free: Some(found.group.free),
            ..SrInfo::default()
        };
        if let Some(pool) = found.group.lv(&found.place.pool_lv) {
            info.pool_size = Some(pool.size);
            info.chunk_size = Some(pool.chunk);
            info.metadata_size = Some(pool.metadata);
        }
        if found.attached {
            self.describe_attached(&mut info)?;
        }
        Ok(info)
    }

    fn describe_attached(&mut self, info: &mut SrInfo) -> Result<()> {
        let looked = match self.look_at_sr(&info.uuid.to_string()) {
            Ok(open) => self.world.pool_status(&open.session).map(|(_, status)| (open, status)),
            Err(e) => Err(e),
        };
        let (open, status) = match looked {
            Ok(looked) => looked,
            // It is being detached, or that was cut short: no reason to tell nothing of it, or of the others.
            Err(e) if e.kind == ErrorKind::Refused => {
                info.state = "detached";
                info.warnings.push(e.to_string());
                return Ok(());
            }
            Err(e) => return Err(e),
        };
        let vdis = open.session.catalog.vdis()?;
        let (templates, disks): (Vec<_>, Vec<_>) = vdis.into_iter().partition(Vdi::is_template);
        info.virtual_allocation = Some(disks.iter().map(|vdi| vdi.virtual_size).sum());
        let usage = self.known_usage(&open.session);
        let physical = |vdi: &Vdi| match vdi.thin_id() {
            Some(id) => usage.get(&id).copied(),
            None => Some(vdi.virtual_size),
        };
        info.physical_allocation = disks.iter().map(physical).sum();
        info.templates = Some(templates.len() as u64);
        info.disks = Some(disks.len() as u64);
        info.pool_used = Some(status.data_used * info.chunk_size.unwrap_or_default());
        info.metadata_used = Some(status.metadata_used * 4096);
        let record = open.session.catalog.sr()?;
        info.pool_grows = Some(record.grows());
        info.warnings = super::growth::shortage(&status, &record);
        self.describe_origins(&open.session, &templates, info)?;
        drop(open.lock);
        Ok(())
    }

    fn describe_origins(&mut self, session: &Session, templates: &[Vdi], info: &mut SrInfo) -> Result<()> {
        let names = self.world.dm.names()?;
        let origins: BTreeSet<_> = names
            .iter()
            .filter_map(|name| match names::role(session.sr.uuid, name) {
                Some(Role::Origin(template)) => Some(template),
                _ => None,
            })
            .collect();
        if origins.is_empty() {
            return Ok(());
        }
        let open = match self.world.origins.attached() {
            Ok(open) => open,
            Err(e) => {
                info.warnings.push(format!("the state of the templates is not known: {e}"));
                Vec::new()
            }
        };
        let health = self.world.origins.health().unwrap_or_default();
        for template in templates.iter().filter(|vdi| origins.contains(&vdi.uuid)) {
            let name = names::origin_device(session.sr.uuid, template.uuid).name;
            let device: Option<Device> = self.world.dm.device(&name)?;
            let node = open.iter().find(|(uuid, _)| *uuid == template.uuid);
            // A copy of its own needs no server.
            let copied = template.local_ready().is_some();
            if node.is_none() && !copied {
                info.warnings.push(format!(
                    "nobody serves template '{}' ({}): what VDIs have not read of it gives errors",
                    template.name, template.uuid
                ));
            }
            let health = health.iter().find(|(uuid, _)| *uuid == template.uuid).map(|(_, health)| *health);
            let silent_since = health.and_then(|health| health.silent_since).map(rfc3339);
            if let (Some(OriginHealth { answers: false, .. }), Some(since)) = (health, &silent_since) {
                info.warnings.push(format!(
                    "template '{}' ({}) has not answered since {since}: VDIs read what is local, and errors elsewhere",
                    template.name, template.uuid
                ));
            }
            info.origins.push(OriginInfo {
                uuid: template.uuid,
                name: template.name.clone(),
                location: super::vdi::location(template).unwrap_or_default(),
                device: match node {
                    Some((_, device)) => Some(device.path.clone()),
                    None if copied => {
                        let lv = names::local_lv(session.sr.uuid, template.uuid);
                        Some(format!("/dev/{}/{lv}", session.sr.vg).into())
                    }
                    None => None,
                },
                users: device.map_or(0, |device| device.open_count),
                answers: health.map(|health| health.answers),
                silent_since,
                local_percent: match copied {
                    true => Some(100),
                    false => health.and_then(OriginHealth::local_percent),
                },
            });
        }
        Ok(())
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

fn rfc3339(time: std::time::SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
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
