//! Plans for the volumes of preallocated VDIs.
//!
//! A preallocated VDI is a linear volume that was zeroed. That a volume is zeroed cannot be seen, so the record is what
//! says it: as many bytes of the volume as the record has, rounded up to extents, are the VDI's. A volume without a
//! record, and what is beyond the record's size, may hold anything and belongs to nobody. So the volume comes first, then
//! the zeros, then the record, and only then a longer table; what a crash leaves before the record is taken away.

use super::step::{Step, exact_size_text, size_text};
use super::vdi::{ORIGIN_LEN, Seen};
use crate::error::{Error, Result};
use crate::names;
use crate::record::{Body, Vdi};

/// The volume group, as to the volume of a preallocated VDI. Sizes are in bytes.
#[derive(Clone, Debug)]
pub(crate) struct Space {
    /// What no volume uses.
    pub(crate) free: u64,
    /// Size of an extent.
    pub(crate) extent: u64,
    /// Size of the VDI's volume, if it is there.
    pub(crate) volume: Option<u64>,
    /// Whether that was made for the SR, and has not only the name.
    pub(crate) ours: bool,
    /// Size of the thin pool.
    pub(crate) pool: u64,
}

impl Space {
    /// What a volume for `size` bytes takes of the group.
    pub(crate) fn volume_for(&self, size: u64) -> u64 {
        size.next_multiple_of(self.extent.max(1))
    }
}

fn space(seen: &Seen) -> Result<&Space> {
    let looked = seen.space.as_ref();
    looked.ok_or_else(|| Error::failed(format!("the volume group {} was not looked at", seen.sr.vg)))
}

fn volume(seen: &Seen) -> String {
    names::thick_lv(seen.sr.uuid, seen.uuid)
}

/// The volume is there, active, and long enough for `vdi`, which is not recorded with that size yet.
pub(super) fn reserve(vdi: &Vdi, seen: &Seen) -> Result<Vec<Step>> {
    let space = space(seen)?;
    if vdi.virtual_size > ORIGIN_LEN || vdi.virtual_size == 0 {
        return Err(Error::refused(format!(
            "a VDI cannot have {}: the size must be more than nothing, and at most {}",
            size_text(vdi.virtual_size),
            size_text(ORIGIN_LEN)
        )));
    }
    let size = space.volume_for(vdi.virtual_size);
    let (vg, lv, name) = (seen.sr.vg.clone(), volume(seen), vdi.name.clone());
    let mut steps = Vec::new();
    match space.volume {
        None => {
            check_room(vdi, size, space, seen)?;
            steps.push(Step::CreateThick { vg, lv, name, size });
            return Ok(steps);
        }
        Some(now) if now < size => {
            check_room(vdi, size - now, space, seen)?;
            steps.push(Step::ExtendThick { vg: vg.clone(), lv: lv.clone(), name, size });
        }
        Some(_) => {}
    }
    if seen.volume.is_none() {
        steps.push(Step::Activate { vg, lv });
    }
    Ok(steps)
}

/// Says what is needed and what there is, to the byte, and what can be done about it.
fn check_room(vdi: &Vdi, needed: u64, space: &Space, seen: &Seen) -> Result<()> {
    if needed <= space.free {
        return Ok(());
    }
    let used = seen.status.data_used.saturating_mul(seen.sr.chunk);
    Err(Error::refused(format!(
        "the volume group {vg} has {} free, and preallocated VDI '{}' needs {}: the thin pool has {}, of which {} are in \
         use, and a pool cannot shrink. Make room in the group (vgextend {vg} DEVICE, or destroy preallocated VDIs), or \
         make a thin VDI",
        exact_size_text(space.free),
        vdi.name,
        exact_size_text(needed),
        exact_size_text(space.pool),
        exact_size_text(used),
        vg = seen.sr.vg,
    )))
}

/// Nothing is there of a volume but what the record says, and it is active only under a device.
pub(super) fn trim(seen: &Seen) -> Result<Vec<Step>> {
    let space = space(seen)?;
    let (vg, lv) = (seen.sr.vg.clone(), volume(seen));
    let Some(size) = space.volume else { return Ok(Vec::new()) };
    let Some(vdi) = seen.vdi.as_ref().filter(|vdi| vdi.body == Body::Thick) else {
        return Ok(if space.ours { vec![Step::RemoveVolume { vg, lv }] } else { Vec::new() });
    };
    let mut steps = Vec::new();
    let recorded = space.volume_for(vdi.virtual_size);
    if size > recorded {
        let name = vdi.name.clone();
        steps.push(Step::ReduceThick { vg: vg.clone(), lv: lv.clone(), name, size: recorded });
    }
    if seen.device.is_none() && seen.volume.as_ref().is_some_and(|volume| volume.open_count == 0) {
        steps.push(Step::Deactivate { vg, lv });
    }
    Ok(steps)
}
