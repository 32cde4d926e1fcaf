//! Plans for whole SRs.

use super::growth::{self, Growth};
use super::restore::{RestoreSeen, Restored, restore};
use super::step::{Step, size_text};
use crate::dm::{Device, PoolMode, PoolStatus, Target};
use crate::error::{Error, Result};
use crate::host::{Attached, Disk};
use crate::lvm::{Lv, PoolSpec, Vg};
use crate::names;
use std::path::PathBuf;
use uuid::Uuid;

/// The smallest block of a pool, in bytes; every block size is a multiple (thin-provisioning.rst).
const CHUNK_MIN: u64 = 64 << 10;

/// The largest block of a pool, in bytes.
const CHUNK_MAX: u64 = 1 << 30;

/// Size of the volume for the records. Ten thousand records take about 10 MiB.
pub(super) const META_SIZE: u64 = 64 << 20;

/// The least metadata that a pool is given.
const POOL_METADATA_MIN: u64 = 8 << 20;

/// The most metadata that the kernel uses: 255 bitmaps of 16 × 1020 blocks of 4096 bytes, less what LVM leaves.
pub(super) const POOL_METADATA_MAX: u64 = 255 * 16_320 * 4096;

/// Metadata per block of the pool: 48 bytes, and as much again, because running out of it is far worse than running
/// out of data.
const METADATA_PER_CHUNK: u64 = 96;

/// The most data that blocks of 64 KiB can address with all the metadata there can be.
const CHUNK_MIN_REACH: u64 = 15 << 40;

/// A pool's share of a group that is the SR's own, at first. It can grow but never shrink, and preallocated VDIs need room.
const POOL_SHARE: u64 = 4;

/// An SR that is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SrSpec {
    pub(crate) uuid: Uuid,
    pub(crate) name: String,
    pub(crate) vg: String,
    /// The devices of the group; empty where the group is somebody else's.
    pub(crate) devices: Vec<PathBuf>,
    /// Size of the pool, in bytes; a quarter of the group if not given.
    pub(crate) pool_size: Option<u64>,
    /// Block size of the pool, in bytes.
    pub(crate) chunk: Option<u64>,
    /// An empty pool of the group that is taken instead of a new one.
    pub(crate) adopt: Option<String>,
    /// Whether the pool grows by itself.
    pub(crate) grows: bool,
}

impl SrSpec {
    pub(crate) fn owns_vg(&self) -> bool {
        !self.devices.is_empty()
    }

    /// What is on everything of the SR's, so that it is found again without its records being read.
    pub(super) fn tags(&self) -> Vec<String> {
        vec![
            names::TAG.into(),
            names::sr_tag(self.uuid),
            names::name_tag(&self.name),
            names::pool_tag(&self.pool_lv()),
        ]
    }

    pub(crate) fn pool_lv(&self) -> String {
        self.adopt.clone().unwrap_or_else(|| names::pool_lv(self.uuid))
    }
}

/// What is wanted of an SR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SrGoal {
    /// It exists and is attached.
    Created(SrSpec),
    /// Its volumes are active and it is remembered.
    Attached { name: String },
    /// Nothing of it is active.
    Detached,
    /// Its records are those of a dump, and it is attached.
    Restored(Box<Restored>),
    /// Its pool has room, or the size that somebody wants.
    Grown(Growth),
    /// Nothing of it exists, except a group and a pool that were there before it.
    Destroyed { owns_vg: bool, owns_pool: bool },
}

/// What there is of an SR.
#[derive(Clone, Debug)]
pub(crate) struct SrSeen {
    pub(crate) uuid: Uuid,
    pub(crate) vg_name: String,
    pub(crate) pool_lv: String,
    pub(crate) group: Option<Vg>,
    /// Physical volumes in no group.
    pub(crate) free: Vec<PathBuf>,
    /// The devices that are to become the group.
    pub(crate) disks: Vec<Disk>,
    /// The pool's device and how it does; `None` unless it is active.
    pub(crate) pool: Option<(Device, PoolStatus)>,
    /// Whose records are on the metadata volume; `None` unless it is active.
    pub(crate) records: Option<Option<Uuid>>,
    /// What is in the place of records that are to be restored; `None` for other goals.
    pub(crate) restore: Option<RestoreSeen>,
    /// Whether the SR is remembered as attached.
    pub(crate) remembered: Option<Attached>,
    /// The SR's own device-mapper devices.
    pub(crate) devices: Vec<String>,
    /// VDIs that have a link.
    pub(crate) links: Vec<Uuid>,
    /// Templates under VDIs that do not answer; looked at only where the pool is about to grow.
    pub(crate) hung: Vec<Uuid>,
}

impl SrSeen {
    pub(super) fn meta(&self) -> Option<&Lv> {
        self.group.as_ref()?.lv(&names::meta_lv(self.uuid))
    }

    pub(super) fn pool_volume(&self) -> Option<&Lv> {
        self.group.as_ref()?.lv(&self.pool_lv)
    }
}

/// What is left to do for `goal`.
///
/// # Errors
/// The world does not allow the goal.
pub(crate) fn plan_sr(goal: &SrGoal, seen: &SrSeen) -> Result<Vec<Step>> {
    match goal {
        SrGoal::Created(spec) => create(spec, seen),
        SrGoal::Attached { name } => attach(name, seen),
        SrGoal::Restored(wanted) => restore(wanted, seen),
        SrGoal::Detached => detach(seen),
        SrGoal::Grown(growth) => growth::grow(growth, seen),
        SrGoal::Destroyed { owns_vg, owns_pool } => destroy(*owns_vg, *owns_pool, seen),
    }
}

fn create(spec: &SrSpec, seen: &SrSeen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if spec.owns_vg() {
        steps.extend(create_group(spec, seen)?);
    } else if seen.group.is_none() {
        return Err(Error::not_found(format!("there is no volume group {}", spec.vg)));
    }
    let meta = names::meta_lv(spec.uuid);
    if seen.meta().is_none() {
        steps.push(Step::CreateMeta {
            vg: spec.vg.clone(),
            lv: meta.clone(),
            size: META_SIZE,
            tags: spec.tags(),
        });
    } else if seen.records.is_none() {
        steps.push(Step::Activate { vg: spec.vg.clone(), lv: meta.clone() });
    }
    match (seen.pool_volume(), &spec.adopt) {
        (Some(lv), _) => steps.extend(check_pool(spec, seen, lv)?),
        (None, Some(pool)) => {
            return Err(Error::not_found(format!("there is no volume {pool} in the group {}", spec.vg)));
        }
        (None, None) => steps.push(Step::CreatePool {
            vg: spec.vg.clone(),
            pool: pool_spec(spec, seen)?,
            tags: spec.tags(),
        }),
    }
    // Before anything is made in the pool it is marked, so that LVM makes nothing in it from now on.
    if seen.pool.as_ref().is_none_or(|(_, status)| status.transaction_id == 0) {
        steps.push(Step::Fence { vg: spec.vg.clone(), pool_lv: spec.pool_lv() });
    }
    // The records come last: an SR whose records can be read is whole.
    if seen.records != Some(Some(spec.uuid)) {
        steps.push(Step::Format { lv: meta });
    }
    steps.extend(remember(&spec.name, seen, &spec.devices));
    Ok(steps)
}

fn create_group(spec: &SrSpec, seen: &SrSeen) -> Result<Option<Step>> {
    if let Some(group) = &seen.group {
        if group.tags.contains(&names::sr_tag(spec.uuid)) {
            return Ok(None);
        }
        return Err(Error::refused(format!(
            "a volume group {} exists already: choose another name",
            spec.vg
        )));
    }
    for disk in &seen.disks {
        let path = disk.path.display();
        if let Some(user) = disk.users.first() {
            return Err(Error::refused(format!("{path} is in use: {user}")));
        }
        if !disk.signatures.is_empty() {
            return Err(Error::refused(format!(
                "{path} is not empty, it has signatures of {}: if nothing on it is needed, 'wipefs --all {path}' clears it",
                disk.signatures.join(", ")
            )));
        }
    }
    Ok(Some(Step::CreateGroup {
        vg: spec.vg.clone(),
        devices: seen.disks.iter().map(|disk| disk.path.clone()).collect(),
        tags: spec.tags(),
    }))
}

/// Whether the pool that is there is the one that is wanted; the step that activates it if need be.
fn check_pool(spec: &SrSpec, seen: &SrSeen, lv: &Lv) -> Result<Option<Step>> {
    let path = format!("{}/{}", spec.vg, lv.name);
    if lv.kind != "thin-pool" {
        return Err(Error::refused(format!("{path} is not a thin pool, LVM calls it {}", lv.kind)));
    }
    let users: Vec<_> = seen
        .group
        .iter()
        .flat_map(|group| &group.lvs)
        .filter(|other| other.pool.as_ref() == Some(&lv.name))
        .map(|other| other.name.as_str())
        .collect();
    if !users.is_empty() || lv.transaction_id != 0 {
        return Err(Error::refused(format!(
            "the thin pool {path} is LVM's to make volumes in (transaction id {}, volumes: {}): only an empty pool can be taken",
            lv.transaction_id,
            if users.is_empty() { "none".into() } else { users.join(", ") }
        )));
    }
    match &seen.pool {
        None => Ok(Some(Step::Activate { vg: spec.vg.clone(), lv: lv.name.clone() })),
        // Our own mark is 1 and comes before the records; anything beyond is somebody else's work.
        Some((_, status))
            if seen.records != Some(Some(spec.uuid))
                && (status.transaction_id > 1 || status.data_used > 0) =>
        {
            Err(Error::refused(format!(
                "the thin pool {path} is not empty: its transaction id is {} and {} of its blocks are in use",
                status.transaction_id, status.data_used
            )))
        }
        Some(_) => Ok(None),
    }
}

/// The pool for a group, which may not be made yet.
fn pool_spec(spec: &SrSpec, seen: &SrSeen) -> Result<PoolSpec> {
    let (size, free, extent) = match &seen.group {
        Some(group) => (group.size, group.free, group.extent),
        None => {
            // LVM's default: extents of 4 MiB after the first 1 MiB of each device.
            let extent = 4 << 20;
            let usable = |disk: &Disk| disk.size.saturating_sub(1 << 20) / extent * extent;
            let size: u64 = seen.disks.iter().map(usable).sum();
            (size, size, extent)
        }
    };
    let chunk = match spec.chunk {
        Some(chunk) if chunk % CHUNK_MIN == 0 && (CHUNK_MIN..=CHUNK_MAX).contains(&chunk) => chunk,
        Some(chunk) => {
            return Err(Error::refused(format!(
                "a pool cannot have blocks of {chunk} bytes: the size must be a multiple of 64 KiB, and at most 1 GiB"
            )));
        }
        None => size.div_ceil(CHUNK_MIN_REACH).next_power_of_two() * CHUNK_MIN,
    };
    // Metadata cannot be taken from data later without pain, so it is made for a pool that has grown to the group.
    let metadata = (size / chunk)
        .saturating_mul(METADATA_PER_CHUNK)
        .clamp(POOL_METADATA_MIN, POOL_METADATA_MAX)
        .next_multiple_of(extent);
    let meta = if seen.meta().is_none() { META_SIZE.next_multiple_of(extent) } else { 0 };
    // LVM keeps a spare as large as the metadata, for repairs.
    let room = free.saturating_sub(meta + 2 * metadata) / extent * extent;
    let wanted = spec.pool_size.unwrap_or((size / POOL_SHARE).max(64 << 20)).next_multiple_of(extent);
    let pool = if spec.pool_size.is_none() { wanted.min(room) } else { wanted };
    if pool > room || pool == 0 {
        return Err(Error::refused(format!(
            "the volume group {} has no room for a pool of {}: {} are free, and records and metadata take {}",
            spec.vg,
            size_text(wanted),
            size_text(free),
            size_text(meta + 2 * metadata)
        )));
    }
    Ok(PoolSpec { name: names::pool_lv(spec.uuid), size: pool, metadata, chunk })
}

pub(super) fn remember(name: &str, seen: &SrSeen, devices: &[PathBuf]) -> Option<Step> {
    let want = Attached {
        uuid: seen.uuid,
        name: name.into(),
        vg: seen.vg_name.clone(),
        pool_lv: seen.pool_lv.clone(),
        devices: seen.group.as_ref().map_or_else(|| devices.to_vec(), Vg::devices),
    };
    (seen.remembered.as_ref() != Some(&want)).then_some(Step::Remember(want))
}

fn attach(name: &str, seen: &SrSeen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    let (Some(meta), Some(pool)) = (seen.meta(), seen.pool_volume()) else {
        return Err(Error::failed(format!(
            "SR {} is not whole: the group {} lacks its volumes",
            seen.uuid, seen.vg_name
        )));
    };
    for (lv, active) in [(meta, seen.records.is_some()), (pool, seen.pool.is_some())] {
        if !active {
            steps.push(Step::Activate { vg: seen.vg_name.clone(), lv: lv.name.clone() });
        }
    }
    match seen.records {
        None => {}
        Some(Some(uuid)) if uuid == seen.uuid => {}
        Some(_) => {
            return Err(Error::failed(format!(
                "{}/{} does not hold the records of SR {}: it was never made wholly, and 'smctl sr destroy' removes what there is",
                seen.vg_name, meta.name, seen.uuid
            )));
        }
    }
    if let Some((device, status)) = &seen.pool {
        check_health(seen, device, status)?;
    }
    steps.extend(release_snapshot(seen));
    steps.extend(remember(name, seen, &[]));
    Ok(steps)
}

/// Whoever plans has the SR's lock, so no reader of ours is alive.
fn release_snapshot(seen: &SrSeen) -> Option<Step> {
    let (_, status) = seen.pool.as_ref()?;
    let takes_messages = matches!(status.mode, PoolMode::ReadWrite | PoolMode::OutOfDataSpace);
    (status.held_root.is_some() && takes_messages)
        .then(|| Step::ReleaseSnapshot { vg: seen.vg_name.clone(), pool_lv: seen.pool_lv.clone() })
}

fn check_health(seen: &SrSeen, device: &Device, status: &PoolStatus) -> Result<()> {
    let path = format!("{}/{}", seen.vg_name, seen.pool_lv);
    let kind = device.table.as_ref().and_then(|table| table.only());
    if !matches!(kind, Some(Target::Other { kind, .. }) if kind == "thin-pool") {
        return Err(Error::failed(format!(
            "the device of {path} is not a thin pool: LVM has made volumes in it, and it cannot be used any more"
        )));
    }
    if status.mode == PoolMode::Failed {
        return Err(Error::failed(format!(
            "the thin pool {path} has failed: 'lvconvert --repair {path}' may mend it"
        )));
    }
    Ok(())
}

fn detach(seen: &SrSeen) -> Result<Vec<Step>> {
    if !seen.devices.is_empty() {
        return Err(Error::refused(format!(
            "{} of SR {} are attached: detach the VDIs first",
            count(seen.devices.len(), "device"),
            seen.uuid
        )));
    }
    let mut steps: Vec<_> = seen.links.iter().map(|&vdi| Step::Unlink { vdi }).collect();
    for lv in seen.group.iter().flat_map(|group| &group.lvs) {
        let ours = lv.is_of(seen.uuid) || lv.name == seen.pool_lv;
        if ours && lv.active {
            steps.push(Step::Deactivate { vg: seen.vg_name.clone(), lv: lv.name.clone() });
        }
    }
    // Remembered until nothing is active, so that a crash in between leaves an SR that can be detached again.
    if seen.remembered.is_some() {
        steps.push(Step::Forget { sr: seen.uuid });
    }
    Ok(steps)
}

fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

fn destroy(owns_vg: bool, owns_pool: bool, seen: &SrSeen) -> Result<Vec<Step>> {
    let mut steps = Vec::new();
    if let Some((_, status)) = &seen.pool
        && !owns_pool
        && status.transaction_id > 0
    {
        steps.extend(release_snapshot(seen));
        let (vg, pool_lv) = (seen.vg_name.clone(), seen.pool_lv.clone());
        steps.push(Step::Release { vg, pool_lv, from: status.transaction_id });
    }
    steps.extend(detach(seen)?);
    if !owns_pool {
        // Until they are removed, the records tell whoever goes on after a crash that the pool was emptied.
        let meta = names::meta_lv(seen.uuid);
        steps.retain(|step| !matches!(step, Step::Deactivate { lv, .. } if *lv == meta));
    }
    if let Some(group) = &seen.group {
        let ours = |lv: &&Lv| lv.is_of(seen.uuid) && (owns_pool || lv.name != seen.pool_lv);
        let foreign: Vec<_> = group.lvs.iter().filter(|lv| !ours(lv)).map(|lv| lv.name.as_str()).collect();
        if owns_vg && !foreign.is_empty() {
            return Err(Error::refused(format!(
                "the volume group {} has volumes that are not the SR's: {}",
                group.name,
                foreign.join(", ")
            )));
        }
        // The records go last of the volumes, so that what a crash leaves is still known as this SR.
        let mut volumes: Vec<_> = group.lvs.iter().filter(ours).collect();
        volumes.sort_by_key(|lv| lv.name == names::meta_lv(seen.uuid));
        steps.extend(
            volumes.into_iter().map(|lv| Step::RemoveVolume { vg: group.name.clone(), lv: lv.name.clone() }),
        );
        if owns_vg {
            steps.push(Step::RemoveGroup { vg: group.name.clone() });
        }
    }
    if owns_vg {
        let labels = match &seen.group {
            Some(group) => group.devices(),
            None => seen.free.clone(),
        };
        steps.extend(labels.into_iter().map(|device| Step::RemoveLabel { device }));
    }
    Ok(steps)
}
