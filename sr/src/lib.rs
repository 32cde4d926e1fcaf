//! Storage repositories (SRs) and virtual disks (VDIs) on LVM and dm-thin.
//!
//! An SR is a volume group with a thin pool and a small volume of records. A VDI is a *template* (an image elsewhere,
//! never copied), a *thin* device in the pool whose unmapped blocks show a template through (the template is its
//! *external origin*), or a *preallocated* logical volume.
//!
//! The idea is observe, plan, apply: planning is a pure function from what is wanted and what is there to
//! the steps that are left, the engine does the first, and looks again. A crash leaves no special case; recovery is
//! the same loop over every record. What ties the records to the pool is the pool's transaction id (see
//! [`record::Ledger`]).
//!
//! The crate is synchronous and knows no network. Templates come through the [`Origins`] port; LVM, device-mapper, the
//! host, the records and the pool's metadata have ports too ([`lvm::Lvm`], [`dm::Dm`], [`host::Host`],
//! [`catalog::Catalog`], [`thin::ThinMetadata`]), so that the whole of it runs on a simulated world in the tests.
//!
//! [`Controller`] is the way in.

pub mod catalog;
mod controller;
pub mod dm;
mod dump;
mod engine;
mod error;
mod extents;
pub mod host;
pub mod lvm;
pub mod names;
mod origins;
mod plan;
pub mod record;
mod sizes;
pub mod thin;
mod tree;
mod view;
mod volumes;

pub use controller::{
    Controller, Options, Report, SrCreate, SrDestroy, SrGrow, SrIntroduce, SrRestore, StepReport, StepState,
    Tended, VdiClone, VdiCreate, VdiIntroduce, Work,
};
pub use dump::Dump;
pub use error::{Error, ErrorKind, Result};
pub use extents::{Changed, Extent};
pub use origins::{Content, OriginDevice, OriginError, OriginHealth, Origins, Pinned, Probed};
pub use sizes::{PoolSizes, VolumeSizes};
pub use tree::{Node, NodeKind, Tree};
pub use view::{OriginInfo, SrInfo, VdiInfo};
pub use volumes::{HostVolume, VolumeKind};

/// Whether something had to be changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// It was changed.
    Changed,
    /// It was as wanted already.
    Unchanged,
}

impl From<bool> for Outcome {
    /// `true` is a change.
    fn from(changed: bool) -> Self {
        if changed { Self::Changed } else { Self::Unchanged }
    }
}

#[cfg(any(test, feature = "testing"))]
pub mod sim;
