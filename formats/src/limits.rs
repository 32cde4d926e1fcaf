//! Caps on everything that is read from an image before it is allocated or looped over.

use crate::{FormatError, Result};

/// Most bytes of root tables (L1, grain directory, BAT) in one [`Ask`](crate::Ask).
pub const ROOT_BYTES: u32 = 32 << 20;

/// Most bytes of one leaf table slice.
pub const LEAF_BYTES: u32 = 64 << 10;

/// Most bytes that are read in all to open one layer.
pub const OPEN_BYTES: u64 = 48 << 20;

/// Most [`Ask`](crate::Ask)s to open one layer.
pub const OPEN_ASKS: u32 = 4096;

/// Most bytes that one compressed unit decodes to.
pub const UNIT_BYTES: u32 = 16 << 20;

/// `decoded`, the bytes that a compressed unit decodes to, as a length of memory.
///
/// # Errors
/// It is more than [`UNIT_BYTES`].
pub fn unit_length(decoded: u32) -> Result<usize> {
    if decoded > UNIT_BYTES {
        let (what, value, limit) = ("a compressed unit", u64::from(decoded), u64::from(UNIT_BYTES));
        return Err(FormatError::TooLarge { what, value, limit });
    }
    Ok(usize::try_from(decoded).unwrap_or_default())
}

/// Most layers in a chain.
pub const CHAIN_DEPTH: usize = 64;

/// Most extents of a vmdk.
pub const EXTENTS: usize = 1024;

/// Most bytes of a vmdk descriptor.
pub const DESCRIPTOR_BYTES: u64 = 1 << 20;

/// Most entries of a root table that one [`Layer::locate`](crate::Layer::locate) looks at to merge neighbours that
/// hold nothing.
pub const MERGED_ENTRIES: u64 = 256;

/// Most bytes that one block of a compressed file has, stored or decoded.
pub const BLOCK_BYTES: u32 = 64 << 20;

/// Most xz streams in a file.
pub const STREAMS: usize = 256;

/// Most files in an archive.
pub const MEMBERS: usize = 1024;

/// Most bytes of an extended header in an archive.
pub const NAMES_BYTES: u64 = 64 << 10;
