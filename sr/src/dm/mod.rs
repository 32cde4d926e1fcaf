//! Device-mapper: the port, and the tables and statuses that go through it.
//!
//! A table is a value: what we ask for and what the kernel reports are of one type, so they compare. Lengths are in
//! sectors of 512 bytes here and nowhere else, because that is what the kernel's interface has.

mod guard;
mod kernel;
mod status;
mod table;

pub use kernel::KernelDm;
pub use status::{PoolMode, PoolStatus, ThinStatus};
pub use table::{Segment, Table, Target};

use crate::error::Error;
use crate::names::DmName;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Bytes of a sector.
pub const SECTOR: u64 = 512;

/// Major and minor number of a block device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceNumber {
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
}

impl DeviceNumber {
    /// The node that devtmpfs makes for a device-mapper device of this number.
    pub fn dm_node(self) -> PathBuf {
        PathBuf::from(format!("/dev/dm-{}", self.minor))
    }
}

impl fmt::Display for DeviceNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.major, self.minor)
    }
}

impl FromStr for DeviceNumber {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (major, minor) = text.split_once(':').ok_or(())?;
        Ok(Self { major: major.parse().map_err(|_| ())?, minor: minor.parse().map_err(|_| ())? })
    }
}

/// A device as the kernel has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub number: DeviceNumber,
    /// Its UUID.
    pub uuid: String,
    /// How many have it open: mounts, processes, and the tables of other devices.
    pub open_count: u32,
    /// Whether its I/O is held back.
    pub suspended: bool,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// The live table; `None` between creation and the first resume.
    pub table: Option<Table>,
}

/// A message to a thin pool (Linux, thin-provisioning.rst).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMessage {
    /// Makes an empty thin device; `EEXIST` if the id is taken.
    CreateThin(u32),
    /// Makes a snapshot; the origin must be suspended if it is active.
    CreateSnap {
        /// The new id.
        id: u32,
        /// The id that it is a snapshot of.
        from: u32,
    },
    /// Deletes a thin device; `ENODATA` if there is none, `EBUSY` if it is active.
    Delete(u32),
    /// Compare-and-swap of the transaction id; `EINVAL` if the current one differs.
    SetTransactionId {
        /// What it must be.
        from: u64,
        /// What it becomes.
        to: u64,
    },
    /// Freezes a copy of the metadata for readers; `EBUSY` if there is one.
    ReserveMetadataSnap,
    /// Lets that copy go.
    ReleaseMetadataSnap,
}

impl fmt::Display for PoolMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::CreateThin(id) => write!(f, "create_thin {id}"),
            Self::CreateSnap { id, from } => write!(f, "create_snap {id} {from}"),
            Self::Delete(id) => write!(f, "delete {id}"),
            Self::SetTransactionId { from, to } => write!(f, "set_transaction_id {from} {to}"),
            Self::ReserveMetadataSnap => f.write_str("reserve_metadata_snap"),
            Self::ReleaseMetadataSnap => f.write_str("release_metadata_snap"),
        }
    }
}

/// A request that the kernel refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DmError {
    /// What was asked, as `remove smctl-…`.
    pub request: String,
    /// The error number, as `libc::EBUSY`.
    pub errno: i32,
}

impl fmt::Display for DmError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "device-mapper refused '{}': {}",
            self.request,
            std::io::Error::from_raw_os_error(self.errno)
        )
    }
}

impl std::error::Error for DmError {}

impl From<DmError> for Error {
    fn from(error: DmError) -> Self {
        Self::failed(error.to_string())
    }
}

/// The result of a device-mapper request.
pub type DmResult<T> = Result<T, DmError>;

/// Somebody who lets a suspended device go on in the end.
pub trait Guard {}

/// The kernel's device-mapper, one request a method.
///
/// Nothing here is idempotent by itself, for the kernel is not; the steps of a plan are.
pub trait Dm {
    /// The device called `name`, if there is one.
    ///
    /// # Errors
    /// The kernel refuses, as it does everyone without `CAP_SYS_ADMIN`.
    fn device(&mut self, name: &str) -> DmResult<Option<Device>>;

    /// The names of all devices.
    ///
    /// # Errors
    /// The kernel refuses.
    fn names(&mut self) -> DmResult<Vec<String>>;

    /// The status line of the device's first target; empty without a live table.
    ///
    /// # Errors
    /// `ENXIO` if there is no such device.
    fn status(&mut self, name: &str) -> DmResult<String>;

    /// Makes a device without a table.
    ///
    /// # Errors
    /// `EBUSY` if the name or the UUID is taken.
    fn create(&mut self, device: &DmName) -> DmResult<()>;

    /// Loads a table beside the live one; the next resume makes it live.
    ///
    /// # Errors
    /// Whatever the targets say to their parameters.
    fn load(&mut self, name: &str, table: &Table, read_only: bool) -> DmResult<()>;

    /// Holds back I/O, after what is under way has ended; waits for that, so a hung origin hangs this.
    ///
    /// # Errors
    /// The kernel refuses.
    fn suspend(&mut self, name: &str) -> DmResult<()>;

    /// As [`suspend`](Self::suspend), but a file system on the device is not brought to rest first: for a moment in which
    /// nothing of what is written may be under way, whatever that is.
    ///
    /// # Errors
    /// The kernel refuses.
    fn hold(&mut self, name: &str) -> DmResult<()>;

    /// Sees to it that the device goes on when the guard is dropped, or when this process ends in any way.
    ///
    /// # Errors
    /// The host has no room for another process.
    fn guard(&mut self, name: &str) -> DmResult<Box<dyn Guard>>;

    /// Makes a loaded table live and lets I/O go on.
    ///
    /// # Errors
    /// The targets refuse to start; the old table stays.
    fn resume(&mut self, name: &str) -> DmResult<()>;

    /// Takes the device away.
    ///
    /// # Errors
    /// `EBUSY` while it is open.
    fn remove(&mut self, name: &str) -> DmResult<()>;

    /// Sends a message to a thin pool; when this returns, its effect is durable.
    ///
    /// # Errors
    /// As [`PoolMessage`] says; `EOPNOTSUPP` while the pool is read-only or failed.
    fn message(&mut self, pool: &str, message: PoolMessage) -> DmResult<()>;
}

#[cfg(test)]
mod tests;
