//! What users are shown. The field names are what `--json` prints, and stay.

use serde::Serialize;
use std::path::PathBuf;
use uuid::Uuid;

/// A VDI, as `smctl vdi list` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VdiInfo {
    /// The VDI.
    pub uuid: Uuid,
    /// What people call it.
    pub name: String,
    /// `template` or `disk`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it can be attached read-only only.
    pub read_only: bool,
    /// Size that its user sees, in bytes.
    pub virtual_size: u64,
    /// Bytes that are allocated for it, what it shares with others included: now, while it is attached, else as of the
    /// pool's last commit, which is a second ago at most. `None` where that is not known.
    pub physical_utilisation: Option<u64>,
    /// The VDI that it was cloned from.
    pub parent: Option<Uuid>,
    /// Where a template's image is.
    pub location: Option<String>,
    /// For how many seconds reads of a template wait for its server while that is away, where that was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub patience: Option<u64>,
    /// The template whose data shows where the VDI has none of its own.
    pub origin: Option<Uuid>,
    /// Whether it has a device.
    pub attached: bool,
    /// Its device, while it is attached.
    pub device: Option<PathBuf>,
    /// The VDI that it is a snapshot of.
    pub snapshot_of: Option<Uuid>,
    /// Whether all its space was allocated when it was made.
    pub preallocated: bool,
    /// Bytes of its template that it still shows, holes of the image included: what it has not mapped. At least so many, if
    /// it is larger than its template. `None` without a template, or where what it has mapped is not known.
    pub from_template: Option<u64>,
    /// The same, of what it would show if it had mapped nothing, in percent.
    pub from_template_percent: Option<u64>,
    /// Of a template: whether it is read from a copy in the SR, without its location.
    pub local_copy: Option<bool>,
}

/// A template under attached VDIs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct OriginInfo {
    /// The template.
    pub uuid: Uuid,
    /// What people call it.
    pub name: String,
    /// Where its image is.
    pub location: String,
    /// Its block device, as `/dev/nbd0`, or the volume that it was copied to; `None` if it has lost it.
    pub device: Option<PathBuf>,
    /// Devices of VDIs that stand on it.
    pub users: u32,
    /// Whether it answers reads, as far as anybody has asked; `None` where its server cannot be asked.
    pub answers: Option<bool>,
    /// When it began not to answer, in RFC 3339.
    pub silent_since: Option<String>,
    /// How much of the image can be read while its server is away, in percent; `None` where that cannot be said now.
    pub local_percent: Option<u64>,
}

/// An SR, as `smctl sr list` and `smctl sr info` show it.
///
/// What only an attached SR can tell is `None` for one that is not, and `origins`, `warnings` are empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SrInfo {
    /// The SR.
    pub uuid: Uuid,
    /// What people call it.
    pub name: String,
    /// `attached`; `detached`, as is one whose detaching was cut short; `incomplete` (its making or its destruction was cut
    /// short); or `unreadable`: it is attached, and its records or its pool cannot be read. What is done to it all the same
    /// fails or is refused with the reason that `error` has.
    pub state: &'static str,
    /// Why it is `unreadable`, in a sentence.
    pub error: Option<String>,
    /// The volume group.
    pub vg: String,
    /// The logical volume that is the thin pool.
    pub pool: String,
    /// The devices under the volume group.
    pub devices: Vec<PathBuf>,
    /// Whether the volume group goes with the SR.
    pub owns_vg: bool,
    /// Size of the volume group, in bytes.
    pub vg_size: Option<u64>,
    /// What no logical volume uses, in bytes.
    pub vg_free: Option<u64>,
    /// Size of the pool, in bytes.
    pub pool_size: Option<u64>,
    /// Bytes of the pool that are mapped.
    pub pool_used: Option<u64>,
    /// Whether the pool grows by itself into what the volume group has free.
    pub pool_grows: Option<bool>,
    /// Block size of the pool, in bytes.
    pub chunk_size: Option<u64>,
    /// Size of the pool's metadata, in bytes.
    pub metadata_size: Option<u64>,
    /// Bytes of it that are in use.
    pub metadata_used: Option<u64>,
    /// Sum of the sizes that the users of the SR's disks see, in bytes.
    pub virtual_allocation: Option<u64>,
    /// Sum of what the SR's disks have allocated, in bytes; what several share counts for each of them.
    pub physical_allocation: Option<u64>,
    /// Templates.
    pub templates: Option<u64>,
    /// Disks.
    pub disks: Option<u64>,
    /// Templates that are under attached VDIs.
    pub origins: Vec<OriginInfo>,
    /// What somebody should look after, in sentences.
    pub warnings: Vec<String>,
}
