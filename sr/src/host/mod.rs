//! The host: block devices and who uses them, the links that we make, what is remembered until the next boot.

mod blocks;
mod lock;
mod pulse;
mod survey;
mod system;

pub use blocks::{Block, Blocks, DirectBlocks};
pub use lock::{Lock, Locks};
pub use survey::{BlockDevice, Mount, Survey};
pub use system::SystemHost;

use crate::Outcome;
use crate::dm::DeviceNumber;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

/// A block device that somebody wants to give to an SR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk {
    /// Its node, links resolved.
    pub path: PathBuf,
    /// Its size, in bytes.
    pub size: u64,
    /// Who uses it, in words, as `mounted at /home`; empty if nobody does.
    pub users: Vec<String>,
    /// What is on it, in words, as `ext4`; empty if nothing that is known.
    pub signatures: Vec<String>,
}

/// An SR that is attached to this host, as remembered until the next boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attached {
    /// The SR.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// Its volume group.
    pub vg: String,
    /// The logical volume that is its pool.
    pub pool_lv: String,
    /// The devices under the volume group: what LVM may look at.
    pub devices: Vec<PathBuf>,
}

/// What the controller needs of the host.
pub trait Host {
    /// The number of a block device.
    ///
    /// # Errors
    /// There is no block device of that path.
    fn number(&mut self, device: &Path) -> Result<DeviceNumber>;

    /// What a block device is and who uses it.
    ///
    /// # Errors
    /// There is no block device of that path, or it cannot be read.
    fn disk(&mut self, device: &Path) -> Result<Disk>;

    /// Who uses a block device, in words.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    fn users(&mut self, device: DeviceNumber) -> Result<Vec<String>>;

    /// Of each device-mapper device, whether it answers within `patience` to a read in its range of bytes, and to what was
    /// asked of it before. An error is an answer.
    ///
    /// # Errors
    /// That cannot be tried.
    fn answer(&mut self, devices: &[(DeviceNumber, Range<u64>)], patience: Duration) -> Result<Vec<bool>>;

    /// Every block device and mounted file system. Nothing is opened.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    fn survey(&mut self) -> Result<Survey>;

    /// Every block device that may hold a physical volume: no NBD device, none of ours, and nothing that stands on one.
    ///
    /// # Errors
    /// The kernel's tables cannot be read.
    fn candidates(&mut self) -> Result<Vec<PathBuf>>;

    /// Where a VDI's link leads, if there is one.
    ///
    /// # Errors
    /// The link cannot be read.
    fn link(&mut self, sr: Uuid, vdi: Uuid) -> Result<Option<PathBuf>>;

    /// The VDIs of the SR that have a link.
    ///
    /// # Errors
    /// The directory cannot be read.
    fn links(&mut self, sr: Uuid) -> Result<Vec<Uuid>>;

    /// Makes a VDI's link lead to `target`, whatever it was before.
    ///
    /// # Errors
    /// The link cannot be made.
    fn set_link(&mut self, sr: Uuid, vdi: Uuid, target: &Path) -> Result<Outcome>;

    /// Removes a VDI's link.
    ///
    /// # Errors
    /// The link cannot be removed.
    fn remove_link(&mut self, sr: Uuid, vdi: Uuid) -> Result<Outcome>;

    /// The SRs that are attached.
    ///
    /// # Errors
    /// What is remembered cannot be read.
    fn attached(&mut self) -> Result<Vec<Attached>>;

    /// Remembers an attached SR, in place of what was remembered of it.
    ///
    /// # Errors
    /// It cannot be written.
    fn remember(&mut self, sr: &Attached) -> Result<()>;

    /// Forgets an attached SR, and its directory of links if that is empty.
    ///
    /// # Errors
    /// It cannot be removed.
    fn forget(&mut self, sr: Uuid) -> Result<()>;
}

#[cfg(test)]
mod tests;
