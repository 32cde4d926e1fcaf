//! The steps that plans are made of.
//!
//! A step is idempotent: done twice, the second time changes nothing and says so. It names what it is about, not how
//! the world looked when it was planned; whoever applies it looks again.

use crate::host::Attached;
use crate::lvm::PoolSpec;
use crate::record::{Intent, Vdi};
use std::fmt;
use std::path::PathBuf;
use uuid::Uuid;

/// One effect on the world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Makes a volume group of the devices.
    CreateGroup { vg: String, devices: Vec<PathBuf>, tags: Vec<String> },
    /// Makes the logical volume for the records.
    CreateMeta { vg: String, lv: String, size: u64, tags: Vec<String> },
    /// Makes the thin pool.
    CreatePool { vg: String, pool: PoolSpec, tags: Vec<String> },
    /// Moves a fresh pool's transaction id from 0 to 1, so that LVM makes no volumes in it.
    Fence { vg: String, pool_lv: String },
    /// Gives a pool that was lent back to LVM.
    Release { vg: String, pool_lv: String, from: u64 },
    /// Lets go of a metadata snapshot that the pool holds for a reader who died.
    ReleaseSnapshot { vg: String, pool_lv: String },
    /// Writes empty records.
    Format { lv: String },
    /// Writes the records of a dump.
    WriteRecords { lv: String, vdis: usize },
    /// Activates a logical volume.
    Activate { vg: String, lv: String },
    /// Deactivates a logical volume.
    Deactivate { vg: String, lv: String },
    /// Removes a logical volume.
    RemoveVolume { vg: String, lv: String },
    /// Removes a volume group.
    RemoveGroup { vg: String },
    /// Takes LVM's label off a device.
    RemoveLabel { device: PathBuf },
    /// Remembers that the SR is attached.
    Remember(Attached),
    /// Forgets that the SR is attached.
    Forget { sr: Uuid },

    /// Records an operation on the pool before it begins.
    RecordIntent(Intent),
    /// Does the recorded operation on the pool and moves the transaction id.
    Perform(Intent),
    /// Undoes whatever of the recorded operation was done, and forgets it. One step, because what was done in the pool
    /// cannot be seen.
    Undo(Intent),
    /// Records the outcome of the operation.
    Commit(Intent),
    /// Writes a VDI's record.
    Put(Box<Vdi>),
    /// Removes a VDI's record.
    RemoveRecord { vdi: Uuid, name: String },

    /// Makes a template a block device.
    OpenOrigin { template: Uuid, name: String, location: String },
    /// Takes a template's block device away.
    CloseOrigin { template: Uuid },
    /// Makes the template's padded device, or lets it lead to another block device.
    MapOrigin { template: Uuid },
    /// Removes the template's padded device.
    UnmapOrigin { template: Uuid },
    /// Gives the thin pool this much data, in bytes.
    GrowPool { vg: String, pool_lv: String, size: u64 },
    /// Gives the thin pool this much metadata, in bytes.
    GrowMetadata { vg: String, pool_lv: String, size: u64 },
    /// Says in the SR's record whether the pool grows by itself.
    SetGrows { grows: bool },

    /// Makes the volume of a preallocated VDI, which may hold anything.
    CreateThick { vg: String, lv: String, name: String, size: u64 },
    /// Makes the volume of a preallocated VDI longer by what may hold anything.
    ExtendThick { vg: String, lv: String, name: String, size: u64 },
    /// Cuts off what is beyond the recorded size of a preallocated VDI.
    ReduceThick { vg: String, lv: String, name: String, size: u64 },
    /// Zeroes part of the volume of a preallocated VDI.
    Zero { vdi: Uuid, name: String, bytes: u64 },
    /// Makes the volume for a template's local copy.
    CreateLocal { vg: String, lv: String, name: String, size: u64 },
    /// Activates the volume of a template's local copy.
    ActivateLocal { template: Uuid, name: String, vg: String, lv: String },
    /// Copies a template to its volume and reads the copy back.
    FillLocal { template: Uuid, name: String },
    /// Copies what a VDI still reads from its template into its thin device.
    Flatten { vdi: Uuid, name: String },
    /// Removes the devices that were there while a VDI was flattened.
    RemoveScratch { vdi: Uuid },
    /// Makes the VDI's device, or changes its table.
    MapVdi { vdi: Uuid, name: String, read_only: bool },
    /// Lets a suspended device of the VDI go on.
    Resume { vdi: Uuid },
    /// Removes the VDI's device.
    UnmapVdi { vdi: Uuid, name: String },
    /// Makes the VDI's link.
    Link { vdi: Uuid },
    /// Removes the VDI's link.
    Unlink { vdi: Uuid },
}

impl Step {
    /// Whether LVM does it. What LVM says of an SR's group is as before after every other step of an SR's plan.
    pub(crate) fn is_lvms(&self) -> bool {
        !matches!(
            self,
            Self::Fence { .. }
                | Self::Release { .. }
                | Self::ReleaseSnapshot { .. }
                | Self::Format { .. }
                | Self::WriteRecords { .. }
                | Self::Remember(_)
                | Self::Forget { .. }
                | Self::Unlink { .. }
        )
    }
}

/// A size for people: exact where it is a round number of binary units, else with one decimal.
pub(crate) fn size_text(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut scale = 1024;
    let mut unit = UNITS[0];
    for next in &UNITS[1..] {
        if bytes / scale < 1024 {
            break;
        }
        scale *= 1024;
        unit = next;
    }
    if bytes.is_multiple_of(scale) {
        return format!("{} {unit}", bytes / scale);
    }
    let tenths = (u128::from(bytes) * 10).div_ceil(u128::from(scale));
    format!("{}.{} {unit}", tenths / 10, tenths % 10)
}

/// A size for people that others may want to reckon with: rounded, and to the byte.
pub(crate) fn exact_size_text(bytes: u64) -> String {
    if bytes < 1024 {
        return size_text(bytes);
    }
    format!("{} ({bytes} bytes)", size_text(bytes))
}

fn list(paths: &[PathBuf]) -> String {
    let words: Vec<_> = paths.iter().map(|path| path.display().to_string()).collect();
    words.join(" ")
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateGroup { vg, devices, .. } => {
                write!(f, "make the volume group {vg} of {}", list(devices))
            }
            Self::CreateMeta { vg, lv, size, .. } => {
                write!(f, "make the volume {vg}/{lv} of {} for the records", size_text(*size))
            }
            Self::CreatePool { vg, pool, .. } => write!(
                f,
                "make the thin pool {vg}/{} of {} with {} of metadata and blocks of {}",
                pool.name,
                size_text(pool.size),
                size_text(pool.metadata),
                size_text(pool.chunk)
            ),
            Self::Fence { vg, pool_lv } => {
                write!(f, "mark the thin pool {vg}/{pool_lv} as not LVM's to make volumes in")
            }
            Self::Release { vg, pool_lv, .. } => {
                write!(f, "mark the thin pool {vg}/{pool_lv} as LVM's to make volumes in again")
            }
            Self::ReleaseSnapshot { vg, pool_lv } => {
                write!(f, "let go of the metadata snapshot that the thin pool {vg}/{pool_lv} still holds")
            }
            Self::Format { lv } => write!(f, "write empty records on {lv}"),
            Self::WriteRecords { lv, vdis } => write!(f, "write the records of {vdis} VDIs on {lv}"),
            Self::Activate { vg, lv } => write!(f, "activate {vg}/{lv}"),
            Self::Deactivate { vg, lv } => write!(f, "deactivate {vg}/{lv}"),
            Self::RemoveVolume { vg, lv } => write!(f, "remove {vg}/{lv} and what is in it"),
            Self::RemoveGroup { vg } => write!(f, "remove the volume group {vg}"),
            Self::RemoveLabel { device } => write!(f, "take LVM's label off {}", device.display()),
            Self::Remember(sr) => write!(f, "remember that SR {} is attached", sr.uuid),
            Self::Forget { sr } => write!(f, "forget that SR {sr} is attached"),
            Self::RecordIntent(intent) => write!(f, "record that it is about to {}", Doing(intent)),
            Self::Perform(intent) => write!(f, "{}", Doing(intent)),
            Self::Undo(intent) => write!(f, "undo an unfinished attempt to {}", Doing(intent)),
            Self::Commit(Intent::Make { vdi, .. }) => {
                write!(f, "record VDI '{}' ({})", vdi.name, vdi.uuid)
            }
            Self::Commit(Intent::Drop { id }) => write!(f, "record that thin device {id} is gone"),
            Self::Put(vdi) => write!(f, "record VDI '{}' ({})", vdi.name, vdi.uuid),
            Self::RemoveRecord { vdi, name } => write!(f, "remove the record of VDI '{name}' ({vdi})"),
            Self::OpenOrigin { template, name, location } => {
                write!(f, "open template '{name}' ({template}) at {location} as a block device")
            }
            Self::CloseOrigin { template } => write!(f, "close the block device of template {template}"),
            Self::MapOrigin { template } => write!(f, "map the padded device of template {template}"),
            Self::UnmapOrigin { template } => {
                write!(f, "remove the padded device of template {template}")
            }
            Self::GrowPool { vg, pool_lv, size } => {
                write!(f, "grow the thin pool {vg}/{pool_lv} to {}", size_text(*size))
            }
            Self::GrowMetadata { vg, pool_lv, size } => {
                write!(f, "grow the metadata of the thin pool {vg}/{pool_lv} to {}", size_text(*size))
            }
            Self::SetGrows { grows: true } => write!(f, "record that the pool grows by itself"),
            Self::SetGrows { grows: false } => write!(f, "record that the pool does not grow by itself"),
            Self::CreateThick { vg, lv, name, size } => {
                write!(f, "make the volume {vg}/{lv} of {} for preallocated VDI '{name}'", size_text(*size))
            }
            Self::ExtendThick { vg, lv, name, size } => {
                write!(f, "extend the volume {vg}/{lv} of preallocated VDI '{name}' to {}", size_text(*size))
            }
            Self::ReduceThick { vg, lv, name, size } => write!(
                f,
                "cut the volume {vg}/{lv} of preallocated VDI '{name}' back to {}",
                size_text(*size)
            ),
            Self::Zero { vdi, name, bytes } => {
                write!(f, "zero {} of preallocated VDI '{name}' ({vdi})", size_text(*bytes))
            }
            Self::CreateLocal { vg, lv, name, size } => {
                write!(f, "make the volume {vg}/{lv} of {} for a copy of template '{name}'", size_text(*size))
            }
            Self::ActivateLocal { name, vg, lv, .. } => {
                write!(f, "activate {vg}/{lv}, the local copy of template '{name}'")
            }
            Self::FillLocal { template, name } => {
                write!(f, "copy template '{name}' ({template}) to its volume and read the copy back")
            }
            Self::Flatten { vdi, name } => {
                write!(f, "copy what VDI '{name}' ({vdi}) still reads from its template")
            }
            Self::RemoveScratch { vdi } => {
                write!(f, "remove the devices through which VDI {vdi} was flattened")
            }
            Self::MapVdi { vdi, name, read_only } => {
                let how = if *read_only { " read-only" } else { "" };
                write!(f, "map the device of VDI '{name}' ({vdi}){how}")
            }
            Self::Resume { vdi } => write!(f, "resume the device of VDI {vdi}"),
            Self::UnmapVdi { vdi, name } => write!(f, "remove the device of VDI '{name}' ({vdi})"),
            Self::Link { vdi } => write!(f, "link the device of VDI {vdi}"),
            Self::Unlink { vdi } => write!(f, "remove the link of VDI {vdi}"),
        }
    }
}

/// An intent as the rest of a sentence that begins with "to".
struct Doing<'a>(&'a Intent);

impl fmt::Display for Doing<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Intent::Make { vdi, from, .. } => {
                let id = vdi.thin_id().unwrap_or_default();
                match from {
                    Some(source) => write!(f, "make thin device {id} as a snapshot of {}", source.id),
                    None => write!(f, "make thin device {id}"),
                }
            }
            Intent::Drop { id } => write!(f, "delete thin device {id}"),
        }
    }
}
