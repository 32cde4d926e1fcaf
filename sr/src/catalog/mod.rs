//! The records of an SR, on its metadata logical volume.
//!
//! A [`Catalog`] is a handful of look-ups and one way to change anything: a list of changes that all become durable
//! or none does. [`Media`] finds, makes and opens catalogs; the real one keeps them in redb on a block device
//! (`store`), behind a superblock that says whose records they are (`superblock`).

mod area;
mod migrate;
mod store;
pub(crate) mod superblock;
mod view;

pub use store::BlockMedia;

use crate::error::Result;
use crate::record::{Change, Ledger, SrRecord, Vdi};
use std::path::Path;
use uuid::Uuid;

/// The records of one SR, open.
///
/// Whoever holds one holds the SR's lock, so there is one user at a time.
pub trait Catalog {
    /// The SR's own record.
    ///
    /// # Errors
    /// The records cannot be read.
    fn sr(&self) -> Result<SrRecord>;

    /// The ledger.
    ///
    /// # Errors
    /// The records cannot be read.
    fn ledger(&self) -> Result<Ledger>;

    /// One VDI.
    ///
    /// # Errors
    /// The records cannot be read.
    fn vdi(&self, uuid: Uuid) -> Result<Option<Vdi>>;

    /// The VDIs that have this name.
    ///
    /// # Errors
    /// The records cannot be read.
    fn named(&self, name: &str) -> Result<Vec<Uuid>>;

    /// How many VDIs have this template as their origin.
    ///
    /// # Errors
    /// The records cannot be read.
    fn descendants(&self, template: Uuid) -> Result<u64>;

    /// Every VDI, by UUID.
    ///
    /// # Errors
    /// The records cannot be read.
    fn vdis(&self) -> Result<Vec<Vdi>>;

    /// Makes all the changes durable, or none of them.
    ///
    /// # Errors
    /// The device cannot be written, or is full; then nothing has changed.
    fn commit(&mut self, changes: &[Change]) -> Result<()>;
}

/// Where catalogs are kept.
pub trait Media {
    /// Whose records are on the device; `None` if it holds none.
    ///
    /// # Errors
    /// The device cannot be read; `Refused` for records of a format that this version does not know.
    fn identify(&mut self, device: &Path) -> Result<Option<Uuid>>;

    /// Writes a catalog of these records. The device counts as holding one only once everything is durable.
    ///
    /// # Errors
    /// The device cannot be written or is too small.
    fn format(&mut self, device: &Path, sr: &SrRecord, ledger: &Ledger, vdis: &[Vdi]) -> Result<()>;

    /// Opens the records of `sr`. Those of an older schema become those of this version.
    ///
    /// # Errors
    /// `Refused` for records of another SR, or of a later version; `Failed` if there are none, or they are damaged.
    fn open(&mut self, device: &Path, sr: Uuid) -> Result<Box<dyn Catalog>>;

    /// Opens the records of `sr` to look at them: nothing is written to the device, and nothing can be committed.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    fn look(&mut self, device: &Path, sr: Uuid) -> Result<Box<dyn Catalog>>;
}

#[cfg(test)]
mod migration_tests;
#[cfg(test)]
mod tests;
