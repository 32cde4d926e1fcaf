//! The storage of a host as one list: what there is, and what stands on what.
//!
//! The words are those that virtualisation knows. A *volume* is what can be given away whole; a *pool* is what volumes
//! are made in. Some are both: a disk is a volume, and with partitions a pool of them. *Network* is what has its data
//! on another machine; *shared* is what other machines may use at the same time, so that this host alone cannot say
//! that it is free.

use crate::host::{BlockDevice, Mount, Survey};
use crate::lvm::{Found, Lv, Vg};
use crate::names;
use serde::Serialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use uuid::Uuid;

/// What a [`HostVolume`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeKind {
    /// A whole disk.
    Disk,
    /// A part of a disk.
    Partition,
    /// Several disks as one, by the kernel's MD driver.
    Raid,
    /// A file as a block device.
    Loop,
    /// A block device of a network block server.
    Nbd,
    /// A template's device under thin disks: its image, and zeros beyond it.
    Origin,
    /// The device of an attached VDI.
    Vdi,
    /// A device-mapper device of somebody else, as of LUKS or multipath.
    DeviceMapper,
    /// An LVM volume group.
    VolumeGroup,
    /// An LVM logical volume.
    LogicalVolume,
    /// An LVM thin pool.
    ThinPool,
    /// A mounted file system.
    FileSystem,
}

/// One thing of a host that holds data. The field names are what `--json` prints, and stay.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct HostVolume {
    /// Names it among the volumes of one list: a device's kernel name, `VG`, `VG/LV`, or what is mounted.
    pub id: String,
    /// What it is.
    pub kind: VolumeKind,
    /// Its device node, or where it is mounted first; `None` for what has neither.
    pub path: Option<PathBuf>,
    /// Its size, in bytes; `None` where nobody can tell without asking a server.
    pub size: Option<u64>,
    /// What of it no volume uses, in bytes, where it is a pool that knows.
    pub free: Option<u64>,
    /// `local` or `network`.
    pub location: &'static str,
    /// `private` or `shared`.
    pub access: &'static str,
    /// Whether volumes are, or can be, made in it.
    pub pool: bool,
    /// Whether it can be given away whole.
    pub volume: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// The file system, or LVM's word for a logical volume.
    pub format: Option<String>,
    /// Where a file system is mounted.
    pub mounted: Vec<PathBuf>,
    /// What is mounted, of a network file system; the file, of a loop device.
    pub source: Option<String>,
    /// The SR that it belongs to.
    pub sr: Option<Uuid>,
    /// The VDI or template that it is the device of.
    pub vdi: Option<Uuid>,
    /// What it is made of or in: the `id` of each.
    pub on: Vec<String>,
    /// What is made of it or in it: the `id` of each.
    pub holds: Vec<String>,
}

/// The list, from what the kernel and LVM tell. What stands on something comes after it.
pub(crate) fn list(survey: &Survey, lvm: &Found) -> Vec<HostVolume> {
    let lvs = Lvs::of(survey, lvm);
    let mut volumes: Vec<HostVolume> = Vec::new();
    for block in &survey.blocks {
        if !lvs.is_internal(block) && lvs.by_block(&block.name).is_none() {
            volumes.push(of_block(block, &lvs));
        }
    }
    for group in &lvm.groups {
        volumes.push(of_group(group, survey, &lvs));
        volumes.extend(group.lvs.iter().map(|lv| of_lv(group, lv, survey, &lvs)));
    }
    volumes.extend(survey.mounts.iter().map(|mount| of_mount(mount, survey, &lvs)));
    inherit(&mut volumes);
    tie(&mut volumes);
    sorted(volumes)
}

/// Which block devices are LVM's.
struct Lvs {
    /// `VG/LV` by the kernel's name of its device.
    ids: BTreeMap<String, String>,
    /// Devices that LVM has for parts of its volumes, with the volumes or devices that these are made of.
    internal: BTreeMap<String, Vec<String>>,
}

impl Lvs {
    fn of(survey: &Survey, lvm: &Found) -> Self {
        let mut ids = BTreeMap::new();
        let mut groups = Vec::new();
        for group in &lvm.groups {
            groups.push(format!("{}-", group.name.replace('-', "--")));
            for lv in &group.lvs {
                let name = names::lv_device(&group.name, &lv.name);
                let named = |block: &&BlockDevice| block.dm_name.as_ref() == Some(&name);
                if let Some(block) = survey.blocks.iter().find(named) {
                    ids.insert(block.name.clone(), id_of(group, lv));
                }
            }
        }
        let internal = survey.blocks.iter().filter(|block| {
            let name = block.dm_name.as_deref().unwrap_or_default();
            block.is_lvm()
                && !ids.contains_key(&block.name)
                && groups.iter().any(|group| name.starts_with(group.as_str()))
        });
        let internal = internal.map(|block| (block.name.clone(), block.slaves.clone())).collect();
        Self { ids, internal }
    }

    fn is_internal(&self, block: &BlockDevice) -> bool {
        self.internal.contains_key(&block.name)
    }

    fn by_block(&self, name: &str) -> Option<&String> {
        self.ids.get(name)
    }

    /// What a device called `name` is in the list.
    fn id(&self, name: &str) -> String {
        self.by_block(name).cloned().unwrap_or_else(|| name.to_owned())
    }
}

fn id_of(group: &Vg, lv: &Lv) -> String {
    format!("{}/{}", group.name, lv.name)
}

fn empty(id: String, kind: VolumeKind) -> HostVolume {
    HostVolume {
        id,
        kind,
        path: None,
        size: None,
        free: None,
        location: "local",
        access: "private",
        pool: false,
        volume: true,
        read_only: false,
        format: None,
        mounted: Vec::new(),
        source: None,
        sr: None,
        vdi: None,
        on: Vec::new(),
        holds: Vec::new(),
    }
}

fn of_block(block: &BlockDevice, lvs: &Lvs) -> HostVolume {
    let ours = block.dm_name.as_ref().and_then(|name| names::owner(name));
    let kind = match (&ours, block) {
        (Some((_, names::Role::Vdi(_))), _) => VolumeKind::Vdi,
        (Some((_, names::Role::Origin(_))), _) => VolumeKind::Origin,
        (Some((_, names::Role::Scratch(_))), _) => VolumeKind::DeviceMapper,
        (None, block) if block.is_lvm() => VolumeKind::LogicalVolume,
        (None, BlockDevice { dm_name: Some(_), .. }) => VolumeKind::DeviceMapper,
        (None, BlockDevice { partition_of: Some(_), .. }) => VolumeKind::Partition,
        (None, BlockDevice { file: Some(_), .. }) => VolumeKind::Loop,
        (None, block) if block.name.starts_with("nbd") => VolumeKind::Nbd,
        (None, block) if block.name.starts_with("md") => VolumeKind::Raid,
        (None, _) => VolumeKind::Disk,
    };
    let on: BTreeSet<_> = block.slaves.iter().chain(&block.partition_of).map(|below| lvs.id(below)).collect();
    HostVolume {
        path: Some(block.path.clone()),
        size: Some(block.size),
        location: if block.network { "network" } else { "local" },
        access: if block.network { "shared" } else { "private" },
        // What has its own image at its own size is given away; an origin is only ever under others.
        volume: kind != VolumeKind::Origin,
        read_only: block.read_only,
        source: block.file.as_ref().map(|file| file.display().to_string()),
        sr: ours.map(|(sr, _)| sr),
        vdi: ours.map(|(_, role)| match role {
            names::Role::Vdi(vdi) | names::Role::Origin(vdi) | names::Role::Scratch(vdi) => vdi,
        }),
        on: on.into_iter().collect(),
        ..empty(block.name.clone(), kind)
    }
}

fn of_group(group: &Vg, survey: &Survey, lvs: &Lvs) -> HostVolume {
    let device = |pv: PathBuf| {
        let block = survey.blocks.iter().find(|block| block.path == pv);
        block.map_or_else(|| pv.display().to_string(), |block| lvs.id(&block.name))
    };
    HostVolume {
        size: Some(group.size),
        free: Some(group.free),
        access: if group.shared { "shared" } else { "private" },
        pool: true,
        volume: false,
        sr: group.tags.iter().find_map(|tag| names::sr_of_tag(tag)),
        on: group.devices().into_iter().map(device).collect(),
        ..empty(group.name.clone(), VolumeKind::VolumeGroup)
    }
}

fn of_lv(group: &Vg, lv: &Lv, survey: &Survey, lvs: &Lvs) -> HostVolume {
    let id = id_of(group, lv);
    let is_pool = lv.kind == "thin-pool";
    let block = survey.blocks.iter().find(|block| lvs.by_block(&block.name) == Some(&id));
    let on = match &lv.pool {
        Some(pool) => format!("{}/{pool}", group.name),
        None => group.name.clone(),
    };
    HostVolume {
        path: block.map(|_| PathBuf::from(format!("/dev/{id}"))),
        size: Some(lv.size),
        access: if group.shared { "shared" } else { "private" },
        pool: is_pool,
        volume: !is_pool,
        read_only: block.is_some_and(|block| block.read_only),
        format: Some(lv.kind.clone()),
        sr: lv.tags.iter().find_map(|tag| names::sr_of_tag(tag)),
        on: vec![on],
        ..empty(id, if is_pool { VolumeKind::ThinPool } else { VolumeKind::LogicalVolume })
    }
}

fn of_mount(mount: &Mount, survey: &Survey, lvs: &Lvs) -> HostVolume {
    let below = survey
        .blocks
        .iter()
        .find(|block| block.number == Some(mount.number) || block.path.as_os_str() == mount.source.as_str());
    let source = mount.is_network().then(|| mount.source.clone());
    HostVolume {
        path: mount.places.first().cloned(),
        size: below.map(|block| block.size),
        location: if mount.is_network() { "network" } else { "local" },
        access: if mount.is_shared() { "shared" } else { "private" },
        pool: true,
        volume: false,
        format: Some(mount.kind.clone()),
        mounted: mount.places.clone(),
        source,
        on: below.map(|block| lvs.id(&block.name)).into_iter().collect(),
        ..empty(mount_id(mount), VolumeKind::FileSystem)
    }
}

fn mount_id(mount: &Mount) -> String {
    if mount.is_network() {
        return mount.source.clone();
    }
    let place = mount.places.first().map(|place| place.display().to_string());
    place.unwrap_or_else(|| mount.source.clone())
}

/// What stands on something of another machine has its data there as well. An origin's data is what it shows; a
/// thin disk's own data is in its pool.
fn inherit(volumes: &mut [HostVolume]) {
    // One pass for each level is enough, and no chain is longer than the list.
    for _ in 0..volumes.len() {
        let network: BTreeSet<_> = volumes
            .iter()
            .filter(|volume| volume.location == "network" && volume.kind != VolumeKind::Origin)
            .map(|volume| volume.id.clone())
            .collect();
        let mut changed = false;
        for volume in volumes.iter_mut() {
            let below = volume.on.iter().any(|on| network.contains(on));
            if below && volume.location == "local" {
                volume.location = "network";
                changed = true;
            }
        }
        if !changed {
            return;
        }
    }
}

/// Fills in what each holds, and that a disk with partitions is a pool of them.
fn tie(volumes: &mut [HostVolume]) {
    let mut holds: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut divided = BTreeSet::new();
    for volume in volumes.iter() {
        for on in &volume.on {
            holds.entry(on.clone()).or_default().push(volume.id.clone());
            if volume.kind == VolumeKind::Partition {
                divided.insert(on.clone());
            }
        }
    }
    for volume in volumes {
        volume.holds = holds.remove(&volume.id).unwrap_or_default();
        volume.holds.sort();
        volume.pool |= divided.contains(&volume.id);
    }
}

/// What stands on something after it, and by name otherwise.
fn sorted(mut volumes: Vec<HostVolume>) -> Vec<HostVolume> {
    volumes.sort_by(|a, b| a.id.cmp(&b.id));
    let known: BTreeSet<_> = volumes.iter().map(|volume| volume.id.clone()).collect();
    let mut placed: BTreeSet<String> = BTreeSet::new();
    let mut order = Vec::with_capacity(volumes.len());
    while !volumes.is_empty() {
        let ready =
            |volume: &HostVolume| volume.on.iter().all(|on| placed.contains(on) || !known.contains(on));
        let (now, later): (Vec<_>, Vec<_>) = volumes.into_iter().partition(ready);
        volumes = later;
        if now.is_empty() {
            // Devices changed while they were looked at, and the picture has a loop: as it is, then.
            order.append(&mut volumes);
        }
        placed.extend(now.iter().map(|volume| volume.id.clone()));
        order.extend(now);
    }
    order
}

#[cfg(test)]
mod tests;
