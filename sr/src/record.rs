//! What is recorded of an SR: itself, its VDIs, and the ledger that ties the records to the pool.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The SR's own record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SrRecord {
    /// The SR.
    pub uuid: Uuid,
    /// What people call it.
    pub name: String,
    /// The volume group that it lives in.
    pub vg: String,
    /// The logical volume that is its thin pool.
    pub pool_lv: String,
    /// The pool's block size, in bytes.
    pub chunk: u64,
    /// Whether the volume group was made for this SR and goes with it.
    pub owns_vg: bool,
    /// Whether the pool was made for this SR and goes with it.
    pub owns_pool: bool,
    /// Whether the pool grows by itself; where nothing is said, it does in a group that was made for the SR.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grows: Option<bool>,
}

impl SrRecord {
    /// Whether the pool grows by itself.
    pub fn grows(&self) -> bool {
        self.grows.unwrap_or(self.owns_vg)
    }
}

#[cfg(test)]
impl SrRecord {
    /// The record of an SR that owns its group.
    pub(crate) fn specimen() -> Self {
        Self {
            uuid: Uuid::new_v4(),
            name: "fast".into(),
            vg: "vg".into(),
            pool_lv: "pool".into(),
            chunk: 65536,
            owns_vg: true,
            owns_pool: true,
            grows: None,
        }
    }
}

/// What a VDI is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Body {
    /// An image elsewhere, read only.
    Template {
        /// Where the image is.
        location: String,
        /// What pins its version.
        identity: String,
        /// Its format.
        format: String,
        /// For how many seconds reads wait for its server while that is away; the server's own answer if not given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        patience: Option<u64>,
        /// Its copy in the SR, if there is one or may be one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        local: Option<LocalCopy>,
    },
    /// A thin device in the pool.
    Thin {
        /// The device id in the pool.
        id: u32,
    },
    /// A linear logical volume of its own.
    Thick,
}

/// What is recorded of a template's copy in a logical volume of the SR.
///
/// It is recorded as not ready before the volume is made, and until the volume is gone, so that no volume is ever
/// there without a record that says so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LocalCopy {
    /// Whether all of it was copied and read back. Otherwise the volume, if it is there, is of no use.
    pub ready: bool,
    /// The runs of the template that the volume holds, by offset, one after another from its first byte on; everything
    /// else reads as zeros.
    pub runs: Vec<Run>,
}

/// A run of bytes of a disk: whole sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Offset of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
}

/// The record of a VDI.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vdi {
    /// The VDI.
    pub uuid: Uuid,
    /// What people call it; need not be unique.
    pub name: String,
    /// What it is made of.
    pub body: Body,
    /// Size that its user sees, in bytes; a multiple of 512.
    pub virtual_size: u64,
    /// The template whose data shows through where nothing is mapped. Every descendant has its ancestor's.
    pub origin: Option<Uuid>,
    /// The VDI that it was cloned from.
    pub parent: Option<Uuid>,
    /// The VDI that it is a snapshot of.
    pub snapshot_of: Option<Uuid>,
    /// Whether it is attached read-only always.
    pub read_only: bool,
}

impl Vdi {
    /// The device id in the pool, for a thin VDI.
    pub fn thin_id(&self) -> Option<u32> {
        match self.body {
            Body::Thin { id } => Some(id),
            Body::Template { .. } | Body::Thick => None,
        }
    }

    /// The template's copy in the SR, where there is one, ready or not.
    pub fn local(&self) -> Option<&LocalCopy> {
        match &self.body {
            Body::Template { local, .. } => local.as_ref(),
            Body::Thin { .. } | Body::Thick => None,
        }
    }

    /// The template's copy in the SR, if that is what VDIs are to read.
    pub fn local_ready(&self) -> Option<&LocalCopy> {
        self.local().filter(|local| local.ready)
    }

    /// The template's record with this said of its copy in the SR.
    #[must_use]
    pub fn with_local(&self, copy: Option<LocalCopy>) -> Self {
        let mut template = self.clone();
        if let Body::Template { local, .. } = &mut template.body {
            *local = copy;
        }
        template
    }

    /// Where a template's image is.
    pub fn location(&self) -> Option<&str> {
        match &self.body {
            Body::Template { location, .. } => Some(location),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub(crate) fn location_mut(&mut self) -> Option<&mut String> {
        match &mut self.body {
            Body::Template { location, .. } => Some(location),
            _ => None,
        }
    }

    /// Whether this is a template.
    pub fn is_template(&self) -> bool {
        matches!(self.body, Body::Template { .. })
    }
}

/// Ties the records to the pool: the pool's transaction id is the commit mark of both.
///
/// An operation on the pool (1) records its intent with the transaction id `n` that it starts from, (2) sends the
/// message, (3) moves the pool's transaction id from `n` to `n + 1` by compare-and-swap, (4) records the outcome and
/// `n + 1`. After a crash the pool says which: at `n` the operation did not happen and is undone, at `n + 1` it did
/// and its record is written. With (2) before (1) a crash would leave a thin device that nobody knows; with (4)
/// before (3) a record of a device that is not there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ledger {
    /// The pool's transaction id that the records belong to.
    pub transaction_id: u64,
    /// The next device id; ids are never used twice.
    pub next_thin_id: u32,
    /// The operation under way, which started from `transaction_id`.
    pub intent: Option<Intent>,
}

/// The highest device id of a pool: ids have 24 bits.
pub const THIN_ID_MAX: u32 = (1 << 24) - 1;

/// An operation on the pool.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Intent {
    /// Makes a thin device and then records `vdi`.
    Make {
        /// The record, with the new device id in it.
        vdi: Box<Vdi>,
        /// The device id and VDI to snapshot; an empty thin device without one.
        from: Option<Source>,
        /// A device id that the record had before and that goes once the new one is recorded.
        replaces: Option<u32>,
    },
    /// Deletes a device id that no record has any more.
    Drop {
        /// The device id.
        id: u32,
    },
}

/// What a new thin device is a snapshot of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// The VDI, whose device is suspended meanwhile if it is attached.
    pub vdi: Uuid,
    /// Its device id.
    pub id: u32,
}

/// One change of the records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// The SR's record.
    Sr(SrRecord),
    /// The ledger.
    Ledger(Ledger),
    /// Adds a VDI's record, or replaces it.
    Put(Vdi),
    /// Removes a VDI's record, if it is there.
    Remove(Uuid),
}
