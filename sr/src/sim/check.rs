//! What must hold in the simulated world, what its users can tell, and how it lives on.

use super::{CHUNK, Sim, ports, template_byte};
use crate::names::{self, Role};
use crate::record::{Body, Vdi};
use std::collections::{BTreeMap, BTreeSet};

/// Chunks that are looked at of every disk.
pub(super) const CHUNKS: u64 = 4;

/// What a user can tell of a VDI.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Face {
    pub(super) template: bool,
    pub(super) size: u64,
    pub(super) attached: bool,
    pub(super) bytes: Vec<u8>,
    /// Whether a disk shows a template, and a template is copied into the SR.
    pub(super) dependent: bool,
    pub(super) local: bool,
    pub(super) thick: bool,
}

pub(super) type State = BTreeMap<String, Face>;

impl Sim {
    /// A new process; after a reboot nothing is left but what is on disks.
    pub(super) fn restart(&mut self, reboot: bool) {
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

    /// What the users of the SR can tell, by name, and whether anything is as it must not be.
    pub(super) fn state(&self) -> Result<State, String> {
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
                let shown = origin.and_then(|uuid| records.vdis.get(&uuid)).and_then(Vdi::location);
                Ok(own.copied().unwrap_or_else(|| shown.map_or(0, |at| template_byte(at, chunk))))
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
    pub(super) fn check(&self) -> Result<State, String> {
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
    pub(super) fn write(&mut self, name: &str, chunk: u64, byte: u8) {
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
