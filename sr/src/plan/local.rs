//! Plans for templates that are copied into the SR, and for VDIs that become independent of theirs.

use super::step::{Step, size_text};
use super::vdi::{ORIGIN_LEN, OriginSeen, Seen, map, open_device, open_origin, release_origin};
use crate::dm::{DeviceNumber, SECTOR, Segment, Table, Target};
use crate::error::{Error, Result};
use crate::names;
use crate::record::{LocalCopy, Run, Vdi};
use std::ops::Range;
use uuid::Uuid;

/// Most runs of a local copy. Each is a target in the table of the template's device, and a few bytes in its record.
const RUNS_MAX: usize = 1024;

/// What runs are rounded outwards to at least, in bytes.
const GRANULE: u64 = 64 << 10;

/// The volume group, as to a local copy.
#[derive(Clone, Debug)]
pub(crate) struct Room {
    /// Whether the copy's volume is there.
    pub(crate) exists: bool,
    /// What no volume uses, in bytes.
    pub(crate) free: u64,
    /// Size of an extent, in bytes.
    pub(crate) extent: u64,
}

/// The copy of a template whose data is in `data`: as little as fits in a table of a reasonable size.
pub(crate) fn layout(data: &[Range<u64>], virtual_size: u64) -> LocalCopy {
    let mut granule = GRANULE;
    loop {
        let mut runs: Vec<Run> = Vec::new();
        for range in data {
            let start = range.start / granule * granule;
            let end = range.end.next_multiple_of(granule).min(virtual_size);
            match runs.last_mut() {
                Some(last) if last.start + last.len >= start => {
                    last.len = last.len.max(end.saturating_sub(last.start));
                }
                _ if start < end => runs.push(Run { start, len: end - start }),
                _ => {}
            }
        }
        if runs.len() <= RUNS_MAX {
            return LocalCopy { ready: false, runs };
        }
        granule *= 2;
    }
}

impl LocalCopy {
    /// How much is copied, in bytes.
    pub(crate) fn bytes(&self) -> u64 {
        self.runs.iter().map(|run| run.len).sum()
    }
}

/// The volume of a template's local copy.
pub(super) fn volume(seen: &Seen, template: Uuid) -> String {
    names::local_lv(seen.sr.uuid, template)
}

/// The table of a template's padded device on the block device that the server makes: the image, then zeros.
fn origin_table(template: &Vdi, device: DeviceNumber) -> Table {
    let whole = Run { start: 0, len: template.virtual_size };
    packed_table(&[whole], device)
}

/// A table that shows `runs`, which are one after another on `device`, and zeros between and beyond.
fn packed_table(runs: &[Run], device: DeviceNumber) -> Table {
    let mut segments = Vec::new();
    let (mut at, mut offset) = (0, 0);
    for run in runs {
        if run.start > at {
            segments.push(Segment { sectors: (run.start - at) / SECTOR, target: Target::Zero });
        }
        let target = Target::Linear { device, offset: offset / SECTOR };
        segments.push(Segment { sectors: run.len / SECTOR, target });
        at = run.start + run.len;
        offset += run.len;
    }
    segments.push(Segment { sectors: (ORIGIN_LEN - at) / SECTOR, target: Target::Zero });
    Table(segments)
}

impl OriginSeen {
    /// The table that the padded device must have; `None` while what it stands on is not there.
    pub(crate) fn table(&self) -> Option<Table> {
        match self.template.local_ready() {
            Some(copy) => Some(packed_table(&copy.runs, self.local.as_ref()?.number)),
            None => Some(origin_table(&self.template, self.device?.0)),
        }
    }
}

/// Makes a template ready under its VDIs whose copy in the SR is what they read. Its server is not asked; a block device
/// that the server still shows is let go once nobody reads it.
pub(super) fn open(origin: &OriginSeen, seen: &Seen) -> Vec<Step> {
    let template = &origin.template;
    let mut steps = Vec::new();
    if origin.local.is_none() {
        steps.push(Step::ActivateLocal {
            template: template.uuid,
            name: template.name.clone(),
            vg: seen.sr.vg.clone(),
            lv: volume(seen, template.uuid),
        });
    }
    let right = match (&origin.pad, origin.table()) {
        (Some(pad), Some(table)) => pad.table.as_ref() == Some(&table) && !pad.suspended,
        _ => false,
    };
    if !right {
        steps.push(Step::MapOrigin { template: template.uuid });
    }
    if origin.device.is_some() {
        steps.push(Step::CloseOrigin { template: template.uuid });
    }
    steps
}

fn seen_template(seen: &Seen) -> Result<&OriginSeen> {
    let vdi = seen.vdi()?;
    seen.origin.as_ref().filter(|_| vdi.is_template()).ok_or_else(|| {
        Error::refused(format!("'{}' is a disk, and only templates are copied into an SR", vdi.name))
    })
}

fn put(template: &Vdi, copy: Option<LocalCopy>) -> Step {
    Step::Put(Box::new(template.with_local(copy)))
}

/// The record first, then the volume: a crash leaves no volume that no record knows.
pub(super) fn make_room(copy: &LocalCopy, seen: &Seen) -> Result<Vec<Step>> {
    let origin = seen_template(seen)?;
    let template = &origin.template;
    let Some(room) = &origin.room else {
        return Err(Error::failed(format!("the volume group {} was not looked at", seen.sr.vg)));
    };
    let mut steps = Vec::new();
    let size = copy.bytes().max(1).next_multiple_of(room.extent.max(SECTOR));
    if !room.exists && size > room.free {
        return Err(Error::refused(format!(
            "the volume group {} has {} free, and a copy of template '{}' needs {}",
            seen.sr.vg,
            size_text(room.free),
            template.name,
            size_text(size)
        )));
    }
    if template.local() != Some(copy) {
        steps.push(put(template, Some(copy.clone())));
    }
    let (vg, lv, name) = (seen.sr.vg.clone(), volume(seen, template.uuid), template.name.clone());
    if !room.exists {
        steps.push(Step::CreateLocal { vg, lv, name, size });
    } else if origin.local.is_none() {
        steps.push(Step::ActivateLocal { template: template.uuid, name, vg, lv });
    }
    Ok(steps)
}

/// The record says that the copy is ready; then the padded device leads there, and the server's device goes.
pub(super) fn localise(seen: &Seen) -> Result<Vec<Step>> {
    let origin = seen_template(seen)?;
    let template = &origin.template;
    let Some(copy) = template.local() else {
        return Err(Error::failed(format!("template '{}' has no local copy any more", template.name)));
    };
    if !copy.ready {
        let ready = LocalCopy { ready: true, ..copy.clone() };
        return Ok(vec![put(template, Some(ready))]);
    }
    if origin.pad.as_ref().is_some_and(|pad| pad.open_count > 0) {
        return Ok(open_origin(origin, seen));
    }
    Ok(release_origin(seen, 0))
}

/// Before anything is taken away, the server's device is there; the record says so before the padded device leads to it,
/// and until the volume is gone.
pub(super) fn delocalise(seen: &Seen) -> Result<Vec<Step>> {
    let origin = seen_template(seen)?;
    let template = &origin.template;
    let Some(copy) = template.local() else { return Ok(Vec::new()) };
    let used = origin.pad.as_ref().is_some_and(|pad| pad.open_count > 0);
    let mut steps = Vec::new();
    if copy.ready {
        if used && origin.device.is_none() {
            steps.push(open_device(template));
        }
        steps.push(put(template, Some(LocalCopy { ready: false, ..copy.clone() })));
        if used {
            steps.push(Step::MapOrigin { template: template.uuid });
        }
    } else if used {
        steps.extend(open_origin(origin, seen));
    } else {
        steps.extend(release_origin(seen, 0));
    }
    steps.extend(discard(seen));
    steps.push(put(template, None));
    Ok(steps)
}

/// Removes the volume of a template's copy, if it is there.
pub(super) fn discard(seen: &Seen) -> Option<Step> {
    let OriginSeen { template, room: Some(room), .. } = seen.origin.as_ref()? else { return None };
    room.exists.then(|| Step::RemoveVolume { vg: seen.sr.vg.clone(), lv: volume(seen, template.uuid) })
}

/// Removes the copy of a template that is about to be forgotten.
pub(super) fn give_up(seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    if let Some(template) = &seen.vdi
        && let Some(copy) = template.local_ready()
    {
        steps.push(put(template, Some(LocalCopy { ready: false, ..copy.clone() })));
    }
    steps.extend(discard(seen));
    steps
}

/// Takes away a copy that is not ready, because its making or its end was cut short.
pub(super) fn clear(seen: &Seen) -> Vec<Step> {
    match &seen.vdi {
        Some(template) if template.local().is_some_and(|copy| !copy.ready) => {
            // A padded device that still leads to the copy is put right by whoever stands on it.
            let leads_there = seen.origin.as_ref().is_some_and(|origin| {
                let on = |segment: &Segment| match (&segment.target, &origin.local) {
                    (Target::Linear { device, .. }, Some(local)) => *device == local.number,
                    _ => false,
                };
                let table = origin.pad.as_ref().and_then(|pad| pad.table.as_ref());
                table.is_some_and(|table| table.0.iter().any(on))
            });
            if leads_there {
                return seen.origin.iter().flat_map(|origin| open_origin(origin, seen)).collect();
            }
            discard(seen).into_iter().chain([put(template, None)]).collect()
        }
        _ => Vec::new(),
    }
}

/// The record does without the template first, then the device: by then both read the same.
pub(super) fn become_independent(id: u32, seen: &Seen) -> Result<Vec<Step>> {
    let vdi = seen.vdi()?;
    if vdi.thin_id() != Some(id) {
        return Err(Error::refused(format!(
            "VDI '{}' was given another content meanwhile: flatten it again",
            vdi.name
        )));
    }
    let mut steps = Vec::new();
    if vdi.origin.is_some() {
        steps.push(Step::Put(Box::new(Vdi { origin: None, ..vdi.clone() })));
    }
    if let Some(device) = &seen.device
        && let Some(Target::Thin { origin: Some(_), .. }) = device.table.as_ref().and_then(Table::only)
    {
        steps.push(map(vdi, device.read_only));
    }
    Ok(steps)
}

/// Whether the tables are of one thin device, of which the live one has an origin that is not needed any more.
pub(super) fn differs_by_origin(live: &Table, expected: &Table) -> bool {
    match (live.only(), expected.only()) {
        (
            Some(Target::Thin { pool, id, origin: Some(_) }),
            Some(Target::Thin { pool: other, id: same, origin: None }),
        ) => pool == other && id == same,
        _ => false,
    }
}

/// What comes first wherever a flattening was killed: the guest goes on, and nobody else has the thin device.
pub(super) fn remove_scratch(seen: &Seen) -> Vec<Step> {
    let mut steps = Vec::new();
    if seen.device.as_ref().is_some_and(|device| device.suspended && device.table.is_some()) {
        steps.push(Step::Resume { vdi: seen.uuid });
    }
    steps.push(Step::RemoveScratch { vdi: seen.uuid });
    steps
}
