//! LVM: the port, and what it reports.
//!
//! LVM owns volume groups and logical volumes, the thin pool among them; we own what is inside the pool. Every request
//! names the devices that LVM may look at, so that it never scans a template or a guest's disk: there may be physical
//! volumes of a guest in them, and a template whose server hangs would hang LVM.

mod command;
mod report;

pub use command::LvmCommand;

use crate::error::Result;
use crate::names;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A physical volume in a volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pv {
    /// Its device.
    pub path: PathBuf,
    /// Usable size, in bytes.
    pub size: u64,
}

/// A logical volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lv {
    /// Its name.
    pub name: String,
    /// Its size, in bytes.
    pub size: u64,
    /// LVM's word for what it is, as `linear` or `thin-pool`.
    pub kind: String,
    /// Its tags.
    pub tags: Vec<String>,
    /// Whether it is active on this host.
    pub active: bool,
    /// The pool that it is a thin volume of, by LVM's account.
    pub pool: Option<String>,
    /// The transaction id that LVM has recorded for a pool.
    pub transaction_id: u64,
    /// Block size of a pool, in bytes.
    pub chunk: u64,
    /// Metadata size of a pool, in bytes.
    pub metadata: u64,
}

impl Lv {
    /// Whether it was made for the SR. A name alone would not do, for anybody can give a volume any name; everything of
    /// ours is made with a tag, in the same step.
    pub fn is_of(&self, sr: Uuid) -> bool {
        names::sr_of_lv(&self.name) == Some(sr) && self.tags.iter().any(|tag| tag == names::TAG)
    }
}

/// A volume group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vg {
    /// Its name.
    pub name: String,
    /// Its size, in bytes.
    pub size: u64,
    /// What no logical volume uses, in bytes.
    pub free: u64,
    /// Size of an extent, in bytes.
    pub extent: u64,
    /// Whether several hosts may use it at once, by lvmlockd or clvmd.
    pub shared: bool,
    /// Its tags.
    pub tags: Vec<String>,
    /// Its physical volumes.
    pub pvs: Vec<Pv>,
    /// Its logical volumes, without LVM's internal ones.
    pub lvs: Vec<Lv>,
}

impl Vg {
    /// The logical volume called `name`.
    pub fn lv(&self, name: &str) -> Option<&Lv> {
        self.lvs.iter().find(|lv| lv.name == name)
    }

    /// The devices under the group.
    pub fn devices(&self) -> Vec<PathBuf> {
        self.pvs.iter().map(|pv| pv.path.clone()).collect()
    }
}

/// What LVM finds on some devices.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Volume groups.
    pub groups: Vec<Vg>,
    /// Physical volumes that are in no group, which hold nothing.
    pub free: Vec<PathBuf>,
}

/// A thin pool to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolSpec {
    /// The logical volume's name.
    pub name: String,
    /// Data, in bytes.
    pub size: u64,
    /// Metadata, in bytes.
    pub metadata: u64,
    /// Block size, in bytes.
    pub chunk: u64,
}

/// LVM, one request a method. `devices` is what LVM may look at.
pub trait Lvm {
    /// What is on the devices.
    ///
    /// # Errors
    /// LVM is missing or fails.
    fn find(&mut self, devices: &[PathBuf]) -> Result<Found>;

    /// Makes a volume group of exactly these devices.
    ///
    /// # Errors
    /// LVM refuses.
    fn create_group(&mut self, devices: &[PathBuf], vg: &str, tags: &[String]) -> Result<()>;

    /// Makes an active linear volume whose first bytes are zeros.
    ///
    /// # Errors
    /// LVM refuses, as it does without room.
    fn create_linear(
        &mut self,
        devices: &[PathBuf],
        vg: &str,
        lv: &str,
        size: u64,
        tags: &[String],
    ) -> Result<()>;

    /// Makes an active thin pool that zeroes new blocks and errors when it is full.
    ///
    /// # Errors
    /// LVM refuses, as it does without room.
    fn create_pool(&mut self, devices: &[PathBuf], vg: &str, pool: &PoolSpec, tags: &[String]) -> Result<()>;

    /// Makes a linear volume or the data of a pool this long. Its users wait while the table changes; a pool's are all thin
    /// devices, each until its I/O under way has ended.
    ///
    /// # Errors
    /// LVM refuses, as it does without room.
    fn extend(&mut self, devices: &[PathBuf], vg: &str, lv: &str, size: u64) -> Result<()>;

    /// Makes the metadata of a pool this long; else as [`extend`](Lvm::extend).
    ///
    /// # Errors
    /// LVM refuses, as it does without room for the metadata and its spare.
    fn extend_metadata(&mut self, devices: &[PathBuf], vg: &str, pool: &str, size: u64) -> Result<()>;

    /// Makes a linear volume this long, and what was beyond is lost.
    ///
    /// # Errors
    /// LVM refuses.
    fn reduce(&mut self, devices: &[PathBuf], vg: &str, lv: &str, size: u64) -> Result<()>;

    /// Activates a volume; nothing happens if it is active.
    ///
    /// # Errors
    /// LVM refuses, as it does if the pool's metadata is damaged.
    fn activate(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()>;

    /// Deactivates a volume; nothing happens if it is not active.
    ///
    /// # Errors
    /// LVM refuses, as it does while the volume is open.
    fn deactivate(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()>;

    /// Removes a volume and what is in it.
    ///
    /// # Errors
    /// LVM refuses, as it does while the volume is open.
    fn remove_volume(&mut self, devices: &[PathBuf], vg: &str, lv: &str) -> Result<()>;

    /// Removes a group that has no volumes.
    ///
    /// # Errors
    /// LVM refuses.
    fn remove_group(&mut self, devices: &[PathBuf], vg: &str) -> Result<()>;

    /// Takes LVM's label off a device that is in no group.
    ///
    /// # Errors
    /// LVM refuses.
    fn remove_label(&mut self, device: &Path) -> Result<()>;
}

#[cfg(test)]
mod tests;
