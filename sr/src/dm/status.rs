//! Status lines of the thin-pool and thin targets (Linux, thin-provisioning.rst, "Status").

/// What a pool lets its thin devices do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PoolMode {
    /// Everything.
    ReadWrite,
    /// Writes to blocks that are not mapped wait or fail until the pool grows.
    OutOfDataSpace,
    /// Nothing changes any more, after a failure of the metadata.
    ReadOnly,
    /// The pool does not work.
    Failed,
}

/// How a thin pool does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolStatus {
    /// The transaction id.
    pub transaction_id: u64,
    /// Metadata blocks of 4096 bytes in use.
    pub metadata_used: u64,
    /// Metadata blocks in all.
    pub metadata_total: u64,
    /// Data blocks in use.
    pub data_used: u64,
    /// Data blocks in all.
    pub data_total: u64,
    /// Where the metadata snapshot begins, in metadata blocks, while one is held.
    pub held_root: Option<u64>,
    /// What it lets its thin devices do.
    pub mode: PoolMode,
    /// Whether the metadata must be checked before the pool is written again.
    pub needs_check: bool,
}

impl PoolStatus {
    /// A pool that does not work, and tells nothing else.
    pub const FAILED: Self = Self {
        transaction_id: 0,
        metadata_used: 0,
        metadata_total: 0,
        data_used: 0,
        data_total: 0,
        held_root: None,
        mode: PoolMode::Failed,
        needs_check: true,
    };

    /// The status in the kernel's line, or `None` if the line is of another target.
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_ascii_whitespace();
        let first = words.next()?;
        if matches!(first, "Fail" | "Error") {
            return Some(Self::FAILED);
        }
        let pair = |word: &str| -> Option<(u64, u64)> {
            let (used, total) = word.split_once('/')?;
            Some((used.parse().ok()?, total.parse().ok()?))
        };
        let (metadata_used, metadata_total) = pair(words.next()?)?;
        let (data_used, data_total) = pair(words.next()?)?;
        let held_root = match words.next()? {
            "-" => None,
            root => Some(root.parse().ok()?),
        };
        let mode = match words.next()? {
            "rw" => PoolMode::ReadWrite,
            "out_of_data_space" => PoolMode::OutOfDataSpace,
            "ro" => PoolMode::ReadOnly,
            _ => return None,
        };
        Some(Self {
            transaction_id: first.parse().ok()?,
            metadata_used,
            metadata_total,
            data_used,
            data_total,
            held_root,
            mode,
            needs_check: words.any(|word| word == "needs_check"),
        })
    }
}

/// How a thin device does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThinStatus {
    /// Bytes that are mapped.
    pub mapped: u64,
}

impl ThinStatus {
    /// The status in the kernel's line; `None` if the device has failed.
    pub fn parse(line: &str) -> Option<Self> {
        let sectors: u64 = line.split_ascii_whitespace().next()?.parse().ok()?;
        Some(Self { mapped: sectors.checked_mul(super::SECTOR)? })
    }
}
