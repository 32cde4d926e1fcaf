//! A simulated kernel, LVM, host and template server, which can die before and after every effect.
//!
//! It models what is outside this crate, not the engine: names that are taken, devices that are busy, thin devices
//! that forget their origin, transaction ids that must match. What a step of ours gets wrong shows as wrong bytes, a
//! leaked device id or a device that nobody knows.

#[cfg(test)]
mod allocation;
mod blocks;
#[cfg(test)]
mod lost_records;
#[cfg(test)]
mod maps;
mod ports;
#[cfg(feature = "scale")]
mod scale;
#[cfg(test)]
mod tests;
mod thin;

use crate::controller::{Controller, Options};
use crate::dm::{Table, Target};
use crate::engine::World;
use crate::host::Attached;
use crate::names::{self, Role};
use crate::record::{Body, Ledger, SrRecord, Vdi};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use uuid::Uuid;

/// Chunks that are looked at of every disk.
const CHUNKS: u64 = 4;
const CHUNK: u64 = 65536;

/// An order of effects that is wrong, to see that the tests notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mutation {
    None,
    /// An intent becomes durable only after the message that it speaks of.
    LateIntent,
    /// The transaction id moves before the message that it speaks for.
    EarlyTransactionId,
    /// A device is mapped without its origin.
    LostOrigin,
    /// What is flattened is not made durable before the origin is given up.
    LostSync,
    /// What is flattened is written while the guest writes.
    Unheld,
    /// A pool grows without the templates being asked whether they answer.
    BlindGrowth,
}

#[derive(Clone, Debug, Default)]
struct SimDevice {
    minor: u32,
    uuid: String,
    live: Option<(Table, bool)>,
    loaded: Option<(Table, bool)>,
    suspended: bool,
    /// The logical volume that it is.
    lv: Option<String>,
}

impl SimDevice {
    fn resume(&mut self) {
        self.suspended = false;
        if let Some(loaded) = self.loaded.take() {
            self.live = Some(loaded);
        }
    }
}

#[derive(Clone, Debug)]
struct SimLv {
    name: String,
    kind: String,
    size: u64,
    tags: Vec<String>,
    /// What it holds, by chunk.
    bytes: BTreeMap<u64, u8>,
}

#[derive(Clone, Debug)]
struct Records {
    sr: SrRecord,
    ledger: Ledger,
    vdis: BTreeMap<Uuid, Vdi>,
}

#[derive(Debug)]
struct Sim {
    /// Points of death that are passed before the process dies; for ever if `None`.
    fuel: Option<u32>,
    dead: bool,
    mutation: Mutation,
    /// What must never be, and was.
    violations: Vec<String>,
    group: Option<(String, Vec<String>, Vec<SimLv>)>,
    devices: BTreeMap<String, SimDevice>,
    next_minor: u32,
    transaction_id: u64,
    /// Mapped chunks by device id.
    thins: BTreeMap<u32, BTreeMap<u64, u8>>,
    /// The metadata snapshot, as the chunks were mapped when it was made.
    held: Option<BTreeMap<u32, BTreeMap<u64, u8>>>,
    /// Chunks of volumes that were zeroed and are lost with the power, and what they hold then.
    unsynced_zeros: Vec<(String, u64, u8)>,
    /// Chunks of the pool that are in use beside those of `thins`.
    ballast: u64,
    /// Blocks of the pool's metadata, and how many are in use.
    metadata: (u64, u64),
    /// Whether templates do not answer.
    hung: bool,
    /// Chunks of device ids that were mapped and are lost with the power.
    unsynced: BTreeSet<(u32, u64)>,
    /// Devices that go on when the process ends.
    guarded: BTreeSet<String>,
    /// How much of each template is local, in bytes; all of it if it is not here.
    cached: BTreeMap<u8, u64>,
    /// Whether templates can be opened.
    server: bool,
    records: Option<Records>,
    /// What was committed and is not durable yet, under `LateIntent`.
    late: Option<Records>,
    early: Option<crate::dm::PoolMessage>,
    remembered: BTreeMap<Uuid, Attached>,
    links: BTreeMap<Uuid, PathBuf>,
    /// Templates that are block devices, by minor number of NBD.
    origins: BTreeMap<Uuid, u32>,
}

/// What a user can tell of a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Face {
    template: bool,
    size: u64,
    attached: bool,
    bytes: Vec<u8>,
    /// Whether a disk shows a template, and a template is copied into the SR.
    dependent: bool,
    local: bool,
    thick: bool,
}

type State = BTreeMap<String, Face>;

/// The bytes of the template at `location`, which is a number.
fn template_byte(location: &str, chunk: u64) -> u8 {
    // Templates have two chunks; what is beyond is padding.
    if chunk < 2 { location.parse().unwrap_or(0) } else { 0 }
}

impl Sim {
    fn new() -> Self {
        Self {
            fuel: None,
            dead: false,
            mutation: Mutation::None,
            violations: Vec::new(),
            group: None,
            devices: BTreeMap::new(),
            next_minor: 1,
            transaction_id: 0,
            thins: BTreeMap::new(),
            held: None,
            unsynced_zeros: Vec::new(),
            ballast: 0,
            metadata: (0, 0),
            hung: false,
            unsynced: BTreeSet::new(),
            guarded: BTreeSet::new(),
            cached: BTreeMap::new(),
            server: true,
            records: None,
            late: None,
            early: None,
            remembered: BTreeMap::new(),
            links: BTreeMap::new(),
            origins: BTreeMap::new(),
        }
    }

    /// An effect with a point of death on either side of it. `None` if the process is dead.
    fn effect<T>(&mut self, run: impl FnOnce(&mut Self) -> T) -> Option<T> {
        self.point()?;
        let value = run(self);
        self.point()?;
        Some(value)
    }

    fn point(&mut self) -> Option<()> {
        if self.dead {
            return None;
        }
        match &mut self.fuel {
            Some(0) => {
                self.dead = true;
                self.late = None;
                self.early = None;
                None
            }
            Some(fuel) => {
                *fuel -= 1;
                Some(())
            }
            None => Some(()),
        }
    }

    /// A new process; after a reboot nothing is left but what is on disks.
    fn restart(&mut self, reboot: bool) {
        self.dead = false;
        self.fuel = None;
        for name in std::mem::take(&mut self.guarded) {
            if let Some(device) = self.devices.get_mut(&name) {
                device.resume();
            }
        }
        if reboot {
            for (lv, chunk, byte) in std::mem::take(&mut self.unsynced_zeros).into_iter().rev() {
                if let Some(volume) = self.volume_mut(&lv) {
                    volume.bytes.insert(chunk, byte);
                }
            }
            for (id, chunk) in std::mem::take(&mut self.unsynced) {
                if let Some(thin) = self.thins.get_mut(&id) {
                    thin.remove(&chunk);
                }
            }
            self.devices.clear();
            self.remembered.clear();
            self.links.clear();
            self.origins.clear();
        }
    }

    fn records(&self) -> Option<&Records> {
        self.late.as_ref().or(self.records.as_ref())
    }

    fn device_of_minor(&self, minor: u32) -> Option<&SimDevice> {
        self.devices.values().find(|device| device.minor == minor)
    }

    fn open_count(&self, minor: u32) -> u32 {
        let uses = |device: &&SimDevice| {
            let Some((table, _)) = &device.live else { return false };
            table.0.iter().any(|segment| match &segment.target {
                Target::Linear { device, .. } => device.major == ports::DM && device.minor == minor,
                Target::Thin { origin, .. } => origin.is_some_and(|origin| origin.minor == minor),
                _ => false,
            })
        };
        self.devices.values().filter(uses).count() as u32
    }

    /// What a device reads at a chunk, through its tables as they are.
    fn read(&self, device: &SimDevice, chunk: u64) -> Option<u8> {
        let (table, _) = device.live.as_ref()?;
        let mut start = 0;
        for segment in &table.0 {
            let end = start + segment.sectors * 512 / CHUNK;
            if chunk < end {
                return match &segment.target {
                    Target::Zero => Some(0),
                    Target::Linear { device, .. } if device.major == ports::NBD => {
                        let (template, _) = self.origins.iter().find(|(_, minor)| **minor == device.minor)?;
                        let vdi = self.records()?.vdis.get(template)?;
                        Some(template_byte(&crate::controller::location_of(vdi)?, chunk))
                    }
                    Target::Linear { device, offset } => {
                        let chunk = chunk - start + offset * 512 / CHUNK;
                        let device = self.device_of_minor(device.minor)?;
                        match &device.lv {
                            Some(lv) => self.volume(lv)?.bytes.get(&chunk).copied(),
                            None => self.read(device, chunk),
                        }
                    }
                    Target::Thin { id, origin, .. } => match self.thins.get(id)?.get(&chunk) {
                        Some(byte) => Some(*byte),
                        None => match origin {
                            Some(origin) => self.read(self.device_of_minor(origin.minor)?, chunk),
                            None => Some(0),
                        },
                    },
                    Target::Other { .. } => None,
                };
            }
            start = end;
        }
        None
    }

    fn volume(&self, lv: &str) -> Option<&SimLv> {
        self.group.as_ref()?.2.iter().find(|it| it.name == lv)
    }

    /// Blocks of the pool's data.
    fn pool_chunks(&self) -> u64 {
        let volumes = self.group.iter().flat_map(|group| &group.2);
        volumes.filter(|lv| lv.kind == "thin-pool").map(|lv| lv.size / CHUNK).sum()
    }

    fn volume_mut(&mut self, lv: &str) -> Option<&mut SimLv> {
        self.group.as_mut()?.2.iter_mut().find(|it| it.name == lv)
    }

    /// What the users of the SR can tell, by name, and whether anything is as it must not be.
    fn state(&self) -> Result<State, String> {
        let Some(records) = self.records() else { return Ok(State::new()) };
        let mut state = State::new();
        for vdi in records.vdis.values() {
            let device = self.devices.get(&names::vdi_device(records.sr.uuid, vdi.uuid).name);
            let attached = device.is_some();
            let byte = |chunk: u64| -> Result<u8, String> {
                if let Some(device) = device {
                    return self.read(device, chunk).ok_or(format!("'{}' cannot be read", vdi.name));
                }
                if vdi.body == Body::Thick {
                    let volume = self.volume(&names::thick_lv(records.sr.uuid, vdi.uuid));
                    let byte = volume.and_then(|volume| volume.bytes.get(&chunk).copied());
                    return byte.ok_or(format!("'{}' has lost its volume", vdi.name));
                }
                let own = match vdi.thin_id() {
                    Some(id) => self
                        .thins
                        .get(&id)
                        .ok_or(format!("'{}' has lost its device {id}", vdi.name))?
                        .get(&chunk),
                    None => None,
                };
                let origin = if vdi.is_template() { Some(vdi.uuid) } else { vdi.origin };
                let shown =
                    origin.and_then(|uuid| records.vdis.get(&uuid)).and_then(crate::controller::location_of);
                Ok(own.copied().unwrap_or_else(|| shown.map_or(0, |at| template_byte(&at, chunk))))
            };
            let chunks = (vdi.virtual_size / CHUNK).min(CHUNKS);
            let face = Face {
                template: vdi.is_template(),
                size: vdi.virtual_size,
                attached,
                bytes: (0..chunks).map(byte).collect::<Result<_, _>>()?,
                dependent: vdi.origin.is_some(),
                local: vdi.local().is_some(),
                thick: vdi.body == Body::Thick,
            };
            state.insert(vdi.name.clone(), face);
        }
        Ok(state)
    }

    /// What must hold whenever nothing is under way.
    fn check(&self) -> Result<State, String> {
        if let Some(violation) = self.violations.first() {
            return Err(violation.clone());
        }
        let Some(records) = &self.records else { return Ok(State::new()) };
        if records.ledger.intent.is_some() || records.ledger.transaction_id != self.transaction_id {
            return Err(format!("not settled: {:?}, pool at {}", records.ledger, self.transaction_id));
        }
        if self.held.is_some() {
            return Err("the pool holds a metadata snapshot that nobody reads".into());
        }
        let ids: BTreeSet<u32> = records.vdis.values().filter_map(Vdi::thin_id).collect();
        let there: BTreeSet<u32> = self.thins.keys().copied().collect();
        if ids != there {
            return Err(format!("records have device ids {ids:?}, and the pool {there:?}"));
        }
        let copies: BTreeSet<_> = records
            .vdis
            .values()
            .filter_map(|vdi| {
                vdi.local().map(|copy| (names::local_lv(records.sr.uuid, vdi.uuid), copy.ready))
            })
            .collect();
        let volumes = self.group.iter().flat_map(|group| &group.2).filter(|lv| lv.name.contains("-local-"));
        let volumes: BTreeSet<_> = volumes.map(|lv| (lv.name.clone(), true)).collect();
        if copies != volumes {
            return Err(format!("local copies are recorded of {copies:?}, and volumes are {volumes:?}"));
        }
        let thick = records.vdis.values().filter(|vdi| vdi.body == Body::Thick);
        let thick: BTreeSet<_> = thick
            .map(|vdi| {
                let size = vdi.virtual_size.next_multiple_of(ports::EXTENT);
                (names::thick_lv(records.sr.uuid, vdi.uuid), size)
            })
            .collect();
        let volumes = self.group.iter().flat_map(|group| &group.2).filter(|lv| lv.name.contains("-thick-"));
        let volumes: BTreeSet<_> = volumes.map(|lv| (lv.name.clone(), lv.size)).collect();
        if thick != volumes {
            return Err(format!("preallocated are by the records {thick:?}, and volumes are {volumes:?}"));
        }
        let mut pads = BTreeSet::new();
        let mut linked = BTreeSet::new();
        for (name, device) in &self.devices {
            if device.suspended {
                return Err(format!("{name} is suspended"));
            }
            match names::role(records.sr.uuid, name) {
                Some(Role::Origin(template)) => {
                    pads.insert(template);
                    if self.open_count(device.minor) == 0 {
                        return Err(format!("nobody uses {name}"));
                    }
                }
                Some(Role::Vdi(vdi)) => {
                    linked.insert(vdi);
                }
                Some(Role::Scratch(_)) => return Err(format!("{name} is left")),
                None if device
                    .lv
                    .as_ref()
                    .is_some_and(|lv| lv.contains("-local-") || lv.contains("-thick-"))
                    && self.open_count(device.minor) == 0 =>
                {
                    return Err(format!("nobody uses {name}, and it is active"));
                }
                None => {}
            }
        }
        let links: BTreeSet<_> = self.links.keys().copied().collect();
        if links != linked {
            return Err(format!("links {links:?} for devices {linked:?}"));
        }
        let open: BTreeSet<_> = self.origins.keys().copied().collect();
        // Those that have a copy need no server.
        pads.retain(|template| records.vdis.get(template).is_none_or(|vdi| vdi.local_ready().is_none()));
        if open != pads {
            return Err(format!("templates {open:?} are open, and mapped are {pads:?}"));
        }
        self.state()
    }

    /// A guest writes to a chunk of an attached disk.
    fn write(&mut self, name: &str, chunk: u64, byte: u8) {
        let records = self.records.as_ref().expect("records");
        let vdi = records.vdis.values().find(|vdi| vdi.name == name).expect("the disk");
        let Some(id) = vdi.thin_id() else {
            let lv = names::thick_lv(records.sr.uuid, vdi.uuid);
            self.volume_mut(&lv).expect("its volume").bytes.insert(chunk, byte);
            return;
        };
        self.thins.get_mut(&id).expect("its device").insert(chunk, byte);
    }
}

/// A simulated host, and controllers on it.
struct Rig {
    sim: Rc<RefCell<Sim>>,
    run: tempfile::TempDir,
}

impl Rig {
    fn new() -> Self {
        Self { sim: Rc::new(RefCell::new(Sim::new())), run: tempfile::tempdir().expect("a directory") }
    }

    /// What a new process has.
    fn controller(&self) -> Controller {
        let port = || ports::Port(Rc::clone(&self.sim));
        let world = World {
            lvm: Box::new(port()),
            dm: Box::new(port()),
            host: Box::new(port()),
            media: Box::new(port()),
            origins: Box::new(port()),
            thin: Box::new(port()),
            blocks: Box::new(port()),
        };
        let options =
            Options { run_dir: self.run.path().into(), dev_dir: "/dev/thinorigin".into(), dry_run: false };
        Controller::with(world, &options)
    }
}

fn node(path: &Path) -> Option<(u32, u32)> {
    let text = path.to_str()?;
    if let Some(minor) = text.strip_prefix("/dev/dm-") {
        return Some((ports::DM, minor.parse().ok()?));
    }
    if let Some(minor) = text.strip_prefix("/dev/nbd") {
        return Some((ports::NBD, minor.parse().ok()?));
    }
    (text == "/dev/sda").then_some((8, 0))
}
