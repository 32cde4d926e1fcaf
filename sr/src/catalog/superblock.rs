//! The first block of a metadata device: what it is and whose.
//!
//! ```text
//! 0x00  8  magic "THINORSR"
//! 0x08  4  format version, little-endian
//! 0x0c 16  UUID of the SR
//! 0x1c  4  CRC-32 of the 28 bytes before
//! ```
//!
//! It is written last when a device is formatted and never changed, so a device with a valid one has whole records
//! behind it. The length of those records is kept apart, in [`area`](super::area).

use crate::error::{Error, Result};
use uuid::Uuid;

/// Bytes read and written at the start of the device.
pub(crate) const LEN: usize = 4096;

const MAGIC: [u8; 8] = *b"THINORSR";

/// The layout that this version reads and writes.
pub(crate) const VERSION: u32 = 1;

/// A block that says the device holds `sr`'s records.
pub(crate) fn encode(sr: Uuid) -> [u8; LEN] {
    let mut block = [0; LEN];
    block[..8].copy_from_slice(&MAGIC);
    block[8..12].copy_from_slice(&VERSION.to_le_bytes());
    block[12..28].copy_from_slice(sr.as_bytes());
    let sum = crc32fast::hash(&block[..28]);
    block[28..32].copy_from_slice(&sum.to_le_bytes());
    block
}

/// The SR that the block names, or `None` if it is no superblock.
///
/// # Errors
/// `Refused` for a version that is not known; `Failed` if the block is damaged.
pub(crate) fn decode(block: &[u8; LEN]) -> Result<Option<Uuid>> {
    if block[..8] != MAGIC {
        return Ok(None);
    }
    let word = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&block[at..at + 4]);
        u32::from_le_bytes(bytes)
    };
    if word(28) != crc32fast::hash(&block[..28]) {
        return Err(Error::failed("the superblock of the records is damaged: its checksum is wrong"));
    }
    if word(8) != VERSION {
        return Err(Error::refused(format!(
            "the records have format version {}, and this smctl knows version {VERSION}",
            word(8)
        )));
    }
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&block[12..28]);
    Ok(Some(Uuid::from_bytes(uuid)))
}
