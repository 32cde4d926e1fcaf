//! The ports on the simulated world.

use super::thin::HELD_ROOT;
use super::{Mutation, Records, Sim, SimDevice, SimLv, node};
use crate::catalog::{Catalog, Media};
use crate::dm::{Device, DeviceNumber, Dm, DmError, DmResult, Guard, PoolMessage, Table, Target};
use crate::error::{Error, Result};
use crate::host::{Attached, Disk, Host, Survey};
use crate::lvm::{Found, Lv, Lvm, PoolSpec, Pv, Vg};
use crate::names::{self, DmName, Role};
use crate::record::{Change, Intent, Ledger, SrRecord, Vdi};
use crate::{Content, Extent, OriginDevice, OriginError, OriginHealth, Origins, Outcome, Pinned, Probed};
use std::cell::{RefCell, RefMut};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, SystemTime};
use uuid::Uuid;

pub(super) const DM: u32 = 253;
pub(super) const NBD: u32 = 43;
pub(super) const EXTENT: u64 = 2 * super::CHUNK;
const GROUP: u64 = 10 << 30;

/// Size of every template.
const TEMPLATE: u64 = 2 * super::CHUNK;

pub(super) struct Port(pub(super) Rc<RefCell<Sim>>);

impl Port {
    pub(super) fn sim(&self) -> RefMut<'_, Sim> {
        self.0.borrow_mut()
    }

    fn effect(&self, run: impl FnOnce(&mut Sim)) -> Result<()> {
        self.sim().effect(run).ok_or_else(|| Error::failed("the process died"))
    }
}

fn lv_name(sim: &Sim, lv: &str) -> String {
    names::lv_device(sim.group.as_ref().map_or("", |group| &group.0), lv)
}

pub(super) fn activate(sim: &mut Sim, lv: &str) {
    let name = lv_name(sim, lv);
    let kind = sim
        .group
        .as_ref()
        .and_then(|group| group.2.iter().find(|it| it.name == lv))
        .map(|lv| lv.kind.clone());
    let kind = kind.unwrap_or_default();
    // A pool stands on volumes of LVM's own.
    let metadata = (kind == "thin-pool").then(|| (metadata_of(&name), "linear".into()));
    for (name, kind) in [(name, kind)].into_iter().chain(metadata) {
        let volume = (kind != "linear" || !name.ends_with("_tmeta")).then(|| lv.to_owned());
        let target = Target::Other { kind, parameters: String::new() };
        sim.next_minor += 1;
        let minor = sim.next_minor;
        sim.devices.entry(name).or_insert(SimDevice {
            minor,
            uuid: "LVM-".into(),
            live: Some((Table::single(1 << 20, target), false)),
            lv: volume,
            ..SimDevice::default()
        });
    }
}

pub(super) fn deactivate(sim: &mut Sim, lv: &str) {
    let name = lv_name(sim, lv);
    sim.devices.remove(&metadata_of(&name));
    sim.devices.remove(&name);
}

fn metadata_of(pool: &str) -> String {
    format!("{pool}_tmeta")
}

/// What a new part of a volume holds: anything.
fn litter(sim: &mut Sim, lv: &str, from: u64) {
    let Some(volume) = sim.volume_mut(lv).filter(|volume| volume.name.contains("-thick-")) else { return };
    for chunk in from / super::CHUNK..volume.size / super::CHUNK {
        volume.bytes.insert(chunk, 0xee);
    }
}

impl Lvm for Port {
    fn find(&mut self, _: &[PathBuf]) -> Result<Found> {
        let sim = self.sim();
        let Some((name, tags, lvs)) = &sim.group else { return Ok(Found::default()) };
        let lvs = lvs.iter().map(|lv| Lv {
            active: sim.devices.contains_key(&names::lv_device(name, &lv.name)),
            name: lv.name.clone(),
            size: lv.size,
            kind: lv.kind.clone(),
            tags: lv.tags.clone(),
            pool: None,
            transaction_id: 0,
            chunk: super::CHUNK,
            metadata: sim.metadata.0 * 4096,
        });
        let lvs: Vec<Lv> = lvs.collect();
        let group = Vg {
            name: name.clone(),
            size: GROUP,
            free: GROUP - lvs.iter().map(|lv| lv.size).sum::<u64>(),
            extent: EXTENT,
            shared: false,
            tags: tags.clone(),
            pvs: vec![Pv { path: "/dev/sda".into(), size: GROUP }],
            lvs,
        };
        Ok(Found { groups: vec![group], free: Vec::new() })
    }

    fn create_group(&mut self, _: &[PathBuf], vg: &str, tags: &[String]) -> Result<()> {
        self.effect(|sim| sim.group = Some((vg.into(), tags.to_vec(), Vec::new())))
    }

    fn create_linear(&mut self, _: &[PathBuf], _: &str, lv: &str, size: u64, tags: &[String]) -> Result<()> {
        self.effect(|sim| {
            let lv = SimLv {
                name: lv.into(),
                kind: "linear".into(),
                size,
                tags: tags.to_vec(),
                bytes: Default::default(),
            };
            let name = lv.name.clone();
            sim.group.as_mut().expect("a group").2.push(lv);
            litter(sim, &name, 0);
            activate(sim, &name);
        })
    }

    fn extend(&mut self, _: &[PathBuf], _: &str, lv: &str, size: u64) -> Result<()> {
        self.effect(|sim| {
            let volume = sim.volume_mut(lv).expect("a volume");
            let old = std::mem::replace(&mut volume.size, size);
            let pool = volume.kind == "thin-pool";
            if size <= old {
                sim.violations.push(format!("{lv} is extended from {old} to {size}"));
            }
            if pool && sim.hung && !sim.origins.is_empty() {
                sim.violations.push("every VDI waits for a template that does not answer".into());
            }
            litter(sim, lv, old);
        })
    }

    fn extend_metadata(&mut self, _: &[PathBuf], _: &str, _: &str, size: u64) -> Result<()> {
        self.effect(|sim| {
            if sim.hung && !sim.origins.is_empty() {
                sim.violations.push("every VDI waits for a template that does not answer".into());
            }
            sim.metadata.0 = size / 4096;
        })
    }

    fn reduce(&mut self, _: &[PathBuf], _: &str, lv: &str, size: u64) -> Result<()> {
        self.effect(|sim| {
            let volume = sim.volume_mut(lv).expect("a volume");
            volume.size = size;
            volume.bytes.retain(|chunk, _| chunk * super::CHUNK < size);
        })
    }

    fn create_pool(&mut self, _: &[PathBuf], _: &str, pool: &PoolSpec, tags: &[String]) -> Result<()> {
        self.effect(|sim| {
            let lv = SimLv {
                name: pool.name.clone(),
                kind: "thin-pool".into(),
                size: pool.size,
                tags: tags.to_vec(),
                bytes: Default::default(),
            };
            sim.group.as_mut().expect("a group").2.push(lv);
            sim.metadata = (pool.metadata / 4096, 1);
            activate(sim, &pool.name);
        })
    }

    fn activate(&mut self, _: &[PathBuf], _: &str, lv: &str) -> Result<()> {
        self.effect(|sim| activate(sim, lv))
    }

    fn deactivate(&mut self, _: &[PathBuf], _: &str, lv: &str) -> Result<()> {
        self.effect(|sim| deactivate(sim, lv))
    }

    fn remove_volume(&mut self, _: &[PathBuf], _: &str, lv: &str) -> Result<()> {
        self.effect(|sim| {
            deactivate(sim, lv);
            let lvs = &mut sim.group.as_mut().expect("a group").2;
            if lvs.iter().any(|it| it.name == lv && it.kind == "thin-pool") {
                sim.thins.clear();
                sim.held = None;
                sim.transaction_id = 0;
            } else if lv.ends_with("-meta") {
                sim.records = None;
            }
            lvs.retain(|it| it.name != lv);
        })
    }

    fn remove_group(&mut self, _: &[PathBuf], _: &str) -> Result<()> {
        self.effect(|sim| sim.group = None)
    }

    fn remove_label(&mut self, _: &Path) -> Result<()> {
        self.effect(|_| ())
    }
}

fn refuse(request: &str, errno: i32) -> DmError {
    DmError { request: request.into(), errno }
}

impl Port {
    fn dm(&self, request: &str, run: impl FnOnce(&mut Sim) -> Result<(), i32>) -> DmResult<()> {
        match self.sim().effect(run) {
            None => Err(refuse("the process died", libc::EIO)),
            Some(result) => result.map_err(|errno| refuse(request, errno)),
        }
    }
}

fn message(sim: &mut Sim, message: PoolMessage) -> Result<(), i32> {
    match message {
        PoolMessage::CreateThin(id) => match sim.thins.contains_key(&id) {
            true => return Err(libc::EEXIST),
            false => drop(sim.thins.insert(id, Default::default())),
        },
        PoolMessage::CreateSnap { id, from } => {
            if sim.thins.contains_key(&id) {
                return Err(libc::EEXIST);
            }
            let uses = |device: &SimDevice| matches!(&device.live, Some((table, _)) if matches!(table.only(), Some(Target::Thin { id, .. }) if *id == from));
            if sim.devices.values().any(|device| uses(device) && !device.suspended) {
                sim.violations.push(format!("a snapshot of device {from} while it is written to"));
            }
            let copy = sim.thins.get(&from).cloned().ok_or(libc::ENODATA)?;
            sim.thins.insert(id, copy);
        }
        PoolMessage::Delete(id) => {
            let uses = |device: &SimDevice| matches!(&device.live, Some((table, _)) if matches!(table.only(), Some(Target::Thin { id: used, .. }) if *used == id));
            if sim.devices.values().any(uses) {
                return Err(libc::EBUSY);
            }
            sim.thins.remove(&id).ok_or(libc::ENODATA)?;
        }
        PoolMessage::SetTransactionId { from, to } => {
            if sim.transaction_id != from {
                return Err(libc::EINVAL);
            }
            sim.transaction_id = to;
        }
        PoolMessage::ReserveMetadataSnap => {
            if sim.held.is_some() {
                return Err(libc::EBUSY);
            }
            sim.held = Some(sim.thins.clone());
        }
        PoolMessage::ReleaseMetadataSnap => drop(sim.held.take().ok_or(libc::EINVAL)?),
    }
    Ok(())
}

/// Dropped in a process that lives, it lets the device go on; one that died leaves that to its end.
struct Guarded(Rc<RefCell<Sim>>, String);

impl Guard for Guarded {}

impl Drop for Guarded {
    fn drop(&mut self) {
        let mut sim = self.0.borrow_mut();
        if sim.guarded.remove(&self.1)
            && let Some(device) = sim.devices.get_mut(&self.1)
        {
            device.resume();
        }
    }
}

impl Dm for Port {
    fn device(&mut self, name: &str) -> DmResult<Option<Device>> {
        let sim = self.sim();
        let guest = sim.guests && matches!(names::owner(name), Some((_, Role::Vdi(_))));
        Ok(sim.devices.get(name).map(|device| Device {
            number: DeviceNumber { major: DM, minor: device.minor },
            uuid: device.uuid.clone(),
            open_count: sim.open_count(device.minor) + u32::from(guest),
            suspended: device.suspended,
            read_only: device.live.as_ref().is_some_and(|(_, read_only)| *read_only),
            table: device.live.as_ref().map(|(table, _)| table.clone()),
        }))
    }

    fn names(&mut self) -> DmResult<Vec<String>> {
        Ok(self.sim().devices.keys().cloned().collect())
    }

    fn status(&mut self, name: &str) -> DmResult<String> {
        let sim = self.sim();
        let device = sim.devices.get(name).ok_or_else(|| refuse("status", libc::ENXIO))?;
        Ok(match device.live.as_ref().and_then(|(table, _)| table.only()) {
            Some(Target::Thin { id, .. }) => format!("{} -", sim.thins[id].len() * 128),
            _ => {
                let used = sim.ballast + sim.thins.values().map(|thin| thin.len() as u64).sum::<u64>();
                let total = sim.pool_chunks();
                let mode = if used < total { "rw" } else { "out_of_data_space" };
                format!(
                    "{} {}/{} {used}/{total} {} {mode} discard_passdown error_if_no_space - 9",
                    sim.transaction_id,
                    sim.metadata.1,
                    sim.metadata.0,
                    sim.held.as_ref().map_or("-", |_| HELD_ROOT)
                )
            }
        })
    }

    fn create(&mut self, device: &DmName) -> DmResult<()> {
        self.dm("create", |sim| {
            if sim.devices.contains_key(&device.name) {
                return Err(libc::EBUSY);
            }
            sim.next_minor += 1;
            let made = SimDevice { minor: sim.next_minor, uuid: device.uuid.clone(), ..SimDevice::default() };
            sim.devices.insert(device.name.clone(), made);
            Ok(())
        })
    }

    fn load(&mut self, name: &str, table: &Table, read_only: bool) -> DmResult<()> {
        self.dm("load", |sim| {
            let mut table = table.clone();
            if let (Mutation::LostOrigin, Target::Thin { origin, .. }) =
                (sim.mutation, &mut table.0[0].target)
            {
                *origin = None;
            }
            let device = sim.devices.get_mut(name).ok_or(libc::ENXIO)?;
            device.loaded = Some((table, read_only));
            Ok(())
        })
    }

    fn suspend(&mut self, name: &str) -> DmResult<()> {
        self.dm("suspend", |sim| {
            sim.devices.get_mut(name).ok_or(libc::ENXIO)?.suspended = true;
            Ok(())
        })
    }

    fn hold(&mut self, name: &str) -> DmResult<()> {
        if self.sim().mutation == Mutation::Unheld {
            return Ok(());
        }
        self.suspend(name)
    }

    fn guard(&mut self, name: &str) -> DmResult<Box<dyn Guard>> {
        self.dm("guard", |sim| {
            sim.guarded.insert(name.into());
            Ok(())
        })?;
        Ok(Box::new(Guarded(Rc::clone(&self.0), name.into())))
    }

    fn resume(&mut self, name: &str) -> DmResult<()> {
        self.dm("resume", |sim| {
            let device = sim.devices.get_mut(name).ok_or(libc::ENXIO)?;
            device.resume();
            Ok(())
        })
    }

    fn remove(&mut self, name: &str) -> DmResult<()> {
        self.dm("remove", |sim| {
            let minor = sim.devices.get(name).ok_or(libc::ENXIO)?.minor;
            if sim.open_count(minor) > 0 {
                return Err(libc::EBUSY);
            }
            sim.devices.remove(name);
            Ok(())
        })
    }

    fn message(&mut self, _: &str, sent: PoolMessage) -> DmResult<()> {
        let makes = matches!(sent, PoolMessage::CreateThin(_) | PoolMessage::CreateSnap { .. });
        if makes && self.sim().mutation == Mutation::EarlyTransactionId {
            self.sim().early = Some(sent);
            return Ok(());
        }
        self.dm(&sent.to_string(), |sim| message(sim, sent))?;
        let early = self.sim().early.take();
        if let Some(early) = early {
            self.dm(&early.to_string(), |sim| message(sim, early))?;
        }
        let mut sim = self.sim();
        if let Some(late) = sim.late.take() {
            sim.records = Some(late);
        }
        Ok(())
    }
}

impl Host for Port {
    fn number(&mut self, device: &Path) -> Result<DeviceNumber> {
        let (major, minor) = node(device).ok_or_else(|| Error::not_found("no device"))?;
        Ok(DeviceNumber { major, minor })
    }

    fn disk(&mut self, device: &Path) -> Result<Disk> {
        let sim = self.sim();
        let (users, signatures) = (sim.disk_users.clone(), sim.disk_signatures.clone());
        Ok(Disk { path: device.into(), size: GROUP + (1 << 20), users, signatures })
    }

    fn users(&mut self, _: DeviceNumber) -> Result<Vec<String>> {
        let guest = self.sim().guests.then(|| "a guest has it open".to_owned());
        Ok(guest.into_iter().collect())
    }

    fn answer(&mut self, devices: &[(DeviceNumber, Range<u64>)], _: Duration) -> Result<Vec<bool>> {
        let sim = self.sim();
        let blind = sim.mutation == Mutation::BlindGrowth;
        Ok(devices.iter().map(|_| blind || !sim.hung).collect())
    }

    fn survey(&mut self) -> Result<Survey> {
        Ok(Survey::default())
    }

    fn candidates(&mut self) -> Result<Vec<PathBuf>> {
        Ok(vec!["/dev/sda".into()])
    }

    fn link(&mut self, _: Uuid, vdi: Uuid) -> Result<Option<PathBuf>> {
        Ok(self.sim().links.get(&vdi).cloned())
    }

    fn links(&mut self, _: Uuid) -> Result<Vec<Uuid>> {
        Ok(self.sim().links.keys().copied().collect())
    }

    fn set_link(&mut self, _: Uuid, vdi: Uuid, target: &Path) -> Result<Outcome> {
        self.effect(|sim| drop(sim.links.insert(vdi, target.into()))).map(|()| Outcome::Changed)
    }

    fn remove_link(&mut self, _: Uuid, vdi: Uuid) -> Result<Outcome> {
        self.effect(|sim| drop(sim.links.remove(&vdi))).map(|()| Outcome::Changed)
    }

    fn attached(&mut self) -> Result<Vec<Attached>> {
        Ok(self.sim().remembered.values().cloned().collect())
    }

    fn remember(&mut self, sr: &Attached) -> Result<()> {
        self.effect(|sim| drop(sim.remembered.insert(sr.uuid, sr.clone())))
    }

    fn forget(&mut self, sr: Uuid) -> Result<()> {
        self.effect(|sim| drop(sim.remembered.remove(&sr)))
    }
}

impl Media for Port {
    fn identify(&mut self, _: &Path) -> Result<Option<Uuid>> {
        let sim = self.sim();
        if sim.later {
            return Err(Error::refused("the records have format version 9"));
        }
        Ok(sim.records.as_ref().map(|records| records.sr.uuid))
    }

    fn format(&mut self, _: &Path, sr: &SrRecord, ledger: &Ledger, vdis: &[Vdi]) -> Result<()> {
        let vdis = vdis.iter().map(|vdi| (vdi.uuid, vdi.clone())).collect();
        let records = Records { sr: sr.clone(), ledger: ledger.clone(), vdis };
        self.effect(|sim| sim.records = Some(records))
    }

    fn open(&mut self, device: &Path, _: Uuid) -> Result<Box<dyn Catalog>> {
        self.identify(device)?;
        Ok(Box::new(Port(Rc::clone(&self.0))))
    }

    fn look(&mut self, device: &Path, sr: Uuid) -> Result<Box<dyn Catalog>> {
        self.open(device, sr)
    }
}

impl Port {
    fn records(&self) -> Result<Records> {
        self.sim().records().cloned().ok_or_else(|| Error::failed("no records"))
    }
}

impl Catalog for Port {
    fn sr(&self) -> Result<SrRecord> {
        Ok(self.records()?.sr)
    }

    fn ledger(&self) -> Result<Ledger> {
        Ok(self.records()?.ledger)
    }

    fn vdi(&self, uuid: Uuid) -> Result<Option<Vdi>> {
        Ok(self.records()?.vdis.remove(&uuid))
    }

    fn named(&self, name: &str) -> Result<Vec<Uuid>> {
        Ok(self.records()?.vdis.values().filter(|vdi| vdi.name == name).map(|vdi| vdi.uuid).collect())
    }

    fn descendants(&self, template: Uuid) -> Result<u64> {
        Ok(self.records()?.vdis.values().filter(|vdi| vdi.origin == Some(template)).count() as u64)
    }

    fn vdis(&self) -> Result<Vec<Vdi>> {
        Ok(self.records()?.vdis.into_values().collect())
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        let mut next = self.records()?;
        for change in changes {
            match change.clone() {
                Change::Sr(sr) => next.sr = sr,
                Change::Ledger(ledger) => next.ledger = ledger,
                Change::Put(vdi) => drop(next.vdis.insert(vdi.uuid, vdi)),
                Change::Remove(uuid) => drop(next.vdis.remove(&uuid)),
            }
        }
        let late = self.sim().mutation == Mutation::LateIntent;
        if late && matches!(next.ledger.intent, Some(Intent::Make { .. })) {
            self.sim().late = Some(next);
            return Ok(());
        }
        self.effect(|sim| sim.records = Some(next))
    }
}

impl Origins for Port {
    fn probe(&mut self, location: &str) -> Result<Probed, OriginError> {
        Ok(Probed {
            virtual_size: TEMPLATE,
            format: "raw".into(),
            identity: location.into(),
            location: location.into(),
        })
    }

    fn extents(&mut self, _: &str, _: &str) -> Result<Vec<Extent>, OriginError> {
        Ok(vec![Extent::own(0..TEMPLATE)])
    }

    fn attach(&mut self, template: Uuid, _: Pinned<'_>) -> Result<OriginDevice, OriginError> {
        if !self.sim().server {
            return Err(OriginError::new("the server is away"));
        }
        let minor = self.sim().effect(|sim| {
            sim.next_minor += 1;
            let next = sim.next_minor;
            *sim.origins.entry(template).or_insert(next)
        });
        let minor = minor.ok_or_else(|| OriginError::new("the process died"))?;
        Ok(OriginDevice { path: format!("/dev/nbd{minor}").into(), size: TEMPLATE })
    }

    fn detach(&mut self, template: Uuid) -> Result<Outcome, OriginError> {
        let gone = self.sim().effect(|sim| sim.origins.remove(&template).is_some());
        gone.map(Outcome::from).ok_or_else(|| OriginError::new("the process died"))
    }

    fn content(&mut self, template: Uuid) -> Result<Content, OriginError> {
        let sim = self.sim();
        if !sim.origins.contains_key(&template) {
            return Err(OriginError::new("it is not open"));
        }
        let stored = TEMPLATE;
        Ok(Content { data: std::iter::once(0..stored).collect(), stored, local: local(&sim, template) })
    }

    fn attached(&mut self) -> Result<Vec<(Uuid, OriginDevice)>, OriginError> {
        let device = |minor: &u32| OriginDevice { path: format!("/dev/nbd{minor}").into(), size: TEMPLATE };
        Ok(self.sim().origins.iter().map(|(uuid, minor)| (*uuid, device(minor))).collect())
    }
    fn health(&mut self) -> Result<Vec<(Uuid, OriginHealth)>, OriginError> {
        let sim = self.sim();
        let health = |template: &Uuid| OriginHealth {
            answers: !sim.hung,
            silent_since: sim.hung.then(|| SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000)),
            data: Some(TEMPLATE),
            local: Some(local(&sim, *template)),
        };
        Ok(sim.origins.keys().map(|template| (*template, health(template))).collect())
    }
}

/// How much of a template is local, in bytes.
fn local(sim: &Sim, template: Uuid) -> u64 {
    let vdi = sim.records().and_then(|records| records.vdis.get(&template));
    let content = vdi.and_then(Vdi::location).and_then(super::content);
    content.and_then(|content| sim.cached.get(&content)).copied().unwrap_or(TEMPLATE)
}
