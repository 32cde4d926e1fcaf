//! A simulated kernel, LVM, host and template server, which can die before and after every effect.
//!
//! It models what is outside this crate, not the engine: names that are taken, devices that are busy, thin devices
//! that forget their origin, transaction ids that must match. What a step of ours gets wrong shows as wrong bytes, a
//! leaked device id or a device that nobody knows.

#[cfg(test)]
mod allocation;
mod blocks;
#[cfg(test)]
mod check;
#[cfg(test)]
mod health;
#[cfg(test)]
mod lost_records;
#[cfg(test)]
mod maps;
mod ports;
mod rig;
#[cfg(all(test, feature = "scale"))]
mod scale;
#[cfg(test)]
mod tests;
mod thin;
#[cfg(test)]
mod told;

pub use rig::{Event, Rig};

use crate::dm::{Table, Target};
use crate::host::Attached;
use crate::record::{Ledger, SrRecord, Vdi};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const CHUNK: u64 = 65536;

/// An order of effects that is wrong, to see that the tests notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(test), expect(dead_code, reason = "only the tests of this crate put the engine to the test"))]
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
    /// Whether guests use every device of a VDI.
    guests: bool,
    /// Who uses the disk that an SR may be made on, and what is on it.
    disk_users: Vec<String>,
    disk_signatures: Vec<String>,
    /// Chunks of device ids that were mapped and are lost with the power.
    unsynced: BTreeSet<(u32, u64)>,
    /// Devices that go on when the process ends.
    guarded: BTreeSet<String>,
    /// How much of each template is local, in bytes; all of it if it is not here.
    cached: BTreeMap<u8, u64>,
    /// Whether templates can be opened.
    server: bool,
    records: Option<Records>,
    /// Whether they are those of a later version.
    later: bool,
    /// What was committed and is not durable yet, under `LateIntent`.
    late: Option<Records>,
    early: Option<crate::dm::PoolMessage>,
    remembered: BTreeMap<Uuid, Attached>,
    links: BTreeMap<Uuid, PathBuf>,
    /// Templates that are block devices, by minor number of NBD.
    origins: BTreeMap<Uuid, u32>,
}

/// What every byte of the template at `location` is: the number that is the last part of its path.
fn content(location: &str) -> Option<u8> {
    location.rsplit('/').next()?.parse().ok()
}

/// The bytes of the template at `location`.
fn template_byte(location: &str, chunk: u64) -> u8 {
    // Templates have two chunks; what is beyond is padding.
    if chunk < 2 { content(location).unwrap_or(0) } else { 0 }
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
            guests: false,
            disk_users: Vec::new(),
            disk_signatures: Vec::new(),
            unsynced: BTreeSet::new(),
            guarded: BTreeSet::new(),
            cached: BTreeMap::new(),
            server: true,
            records: None,
            later: false,
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
                        Some(template_byte(vdi.location()?, chunk))
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
