//! Sizes in the words of libvirt, which mean the same of every kind of storage.

use crate::view::{SrInfo, VdiInfo};
use serde::Serialize;

/// The sizes of a volume, as `virsh vol-info` has them. The field names are what `--json` prints, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeSizes {
    /// What its user sees, in bytes.
    pub capacity: u64,
    /// What it takes of the SR, in bytes; `None` where that is not known. Never more than the capacity, rounded up to
    /// whole blocks, for what disks share is counted for each of them.
    pub allocation: Option<u64>,
    /// Size of its device on the host, in bytes; 0 for a template, of which nothing is on the host but a cache.
    pub physical: u64,
}

/// The sizes of a pool, as `virsh pool-info` has them: `capacity` is the sum of the others. The field names are what
/// `--json` prints, and stay.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct PoolSizes {
    /// What there is for disks, in bytes: the group, if it is the SR's own; else its pool, and what the group has free.
    pub capacity: Option<u64>,
    /// What of it is in use, in bytes; `None` unless the SR is attached.
    pub allocation: Option<u64>,
    /// What is free, in the pool and in the group, in bytes; `None` unless the SR is attached.
    pub available: Option<u64>,
}

impl From<&VdiInfo> for VolumeSizes {
    fn from(vdi: &VdiInfo) -> Self {
        let physical = match (vdi.kind, vdi.preallocated) {
            ("template", _) => 0,
            (_, true) => vdi.physical_utilisation.unwrap_or(vdi.virtual_size),
            (_, false) => vdi.virtual_size,
        };
        Self { capacity: vdi.virtual_size, allocation: vdi.physical_utilisation, physical }
    }
}

impl From<&SrInfo> for PoolSizes {
    fn from(sr: &SrInfo) -> Self {
        let capacity = match sr.owns_vg {
            true => sr.vg_size,
            false => sr.pool_size.zip(sr.vg_free).map(|(pool, free)| pool + free),
        };
        let pool_free = sr.pool_size.zip(sr.pool_used).map(|(size, used)| size.saturating_sub(used));
        let available = pool_free.zip(sr.vg_free).map(|(pool, group)| pool + group);
        let allocation =
            capacity.zip(available).map(|(capacity, available)| capacity.saturating_sub(available));
        Self { capacity, allocation, available }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sr(owns_vg: bool) -> SrInfo {
        SrInfo {
            owns_vg,
            vg_size: Some(1000),
            vg_free: Some(600),
            pool_size: Some(250),
            pool_used: Some(50),
            ..SrInfo::default()
        }
    }

    #[test]
    fn what_a_pool_has_is_in_use_or_free() {
        let own = PoolSizes::from(&sr(true));
        assert_eq!((own.capacity, own.allocation, own.available), (Some(1000), Some(200), Some(800)));
        // In somebody else's group, his volumes are not the SR's business.
        let guest = PoolSizes::from(&sr(false));
        assert_eq!((guest.capacity, guest.allocation, guest.available), (Some(850), Some(50), Some(800)));
        let detached = PoolSizes::from(&SrInfo { pool_used: None, ..sr(true) });
        assert_eq!((detached.capacity, detached.allocation, detached.available), (Some(1000), None, None));
    }
}
