//! A file for redb on a block device.
//!
//! redb wants a file that grows: it asks for its length, and checks that against its own header. A block device has
//! one length for ever, so the length that redb set is kept beside the data, in two slots written in turn: a torn
//! write spoils one slot, and the other has the length before. redb makes nothing of a file that is longer than its
//! header says (it may have died between growing and committing), so the older length never matters.
//!
//! ```text
//! 0x000000  superblock
//! 0x001000  length slot 0    8 sequence, 8 length, 4 CRC-32 of both; little-endian
//! 0x002000  length slot 1
//! 0x100000  redb
//! ```

use redb::StorageBackend;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, PoisonError};

const SLOTS: [u64; 2] = [0x1000, 0x2000];
const SLOT_LEN: usize = 512;

/// Where redb's bytes begin.
const START: u64 = 0x10_0000;

/// The smallest device that is accepted: redb begins with some MiB.
pub(super) const DEVICE_MIN: u64 = 16 << 20;

#[derive(Debug)]
pub(super) struct Area {
    device: File,
    /// Bytes that redb may use.
    capacity: u64,
    length: Mutex<Length>,
}

#[derive(Clone, Copy, Debug)]
struct Length {
    sequence: u64,
    bytes: u64,
}

impl Area {
    /// The area on a device of `size` bytes, with the length that was set last.
    pub(super) fn open(device: File, size: u64) -> io::Result<Self> {
        let mut length = None::<Length>;
        for at in SLOTS {
            let mut slot = [0; SLOT_LEN];
            device.read_exact_at(&mut slot, at)?;
            if let Some(read) = decode(&slot)
                && length.is_none_or(|best| best.sequence < read.sequence)
            {
                length = Some(read);
            }
        }
        let length = length.ok_or_else(|| invalid("both slots for the length of the records are damaged"))?;
        let capacity = size.saturating_sub(START);
        if length.bytes > capacity {
            return Err(invalid("the records are longer than their device"));
        }
        Ok(Self { device, capacity, length: Mutex::new(length) })
    }

    /// Makes the area empty.
    pub(super) fn clear(device: &File) -> io::Result<()> {
        for (sequence, at) in (0..).zip(SLOTS) {
            device.write_all_at(&encode(Length { sequence, bytes: 0 }), at)?;
        }
        device.sync_data()
    }

    fn length(&self) -> Length {
        *self.length.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, offset: u64, len: usize) -> io::Result<u64> {
        let end = u64::try_from(len).ok().and_then(|len| offset.checked_add(len));
        if end.is_none_or(|end| end > self.length().bytes) {
            return Err(invalid("access beyond the end of the records"));
        }
        Ok(START + offset)
    }

    fn zero(&self, from: u64, to: u64) -> io::Result<()> {
        let zeros = [0; 1 << 16];
        let mut at = from;
        while at < to {
            let len = usize::try_from(to - at).unwrap_or(usize::MAX).min(zeros.len());
            self.device.write_all_at(&zeros[..len], START + at)?;
            at += len as u64;
        }
        Ok(())
    }
}

impl StorageBackend for Area {
    fn len(&self) -> io::Result<u64> {
        Ok(self.length().bytes)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.device.read_exact_at(out, self.check(offset, out.len())?)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        if len > self.capacity {
            return Err(io::Error::new(
                io::ErrorKind::StorageFull,
                format!("the records need {len} bytes, and their device has {}", self.capacity),
            ));
        }
        let mut length = self.length.lock().unwrap_or_else(PoisonError::into_inner);
        // The new bytes are zeros and durable before the length speaks for them.
        self.zero(length.bytes, len)?;
        self.device.sync_data()?;
        let next = Length { sequence: length.sequence + 1, bytes: len };
        let slot = if next.sequence.is_multiple_of(2) { SLOTS[0] } else { SLOTS[1] };
        self.device.write_all_at(&encode(next), slot)?;
        self.device.sync_data()?;
        *length = next;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.device.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device.write_all_at(data, self.check(offset, data.len())?)
    }
}

fn invalid(message: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, message)
}

fn encode(length: Length) -> [u8; SLOT_LEN] {
    let mut slot = [0; SLOT_LEN];
    slot[..8].copy_from_slice(&length.sequence.to_le_bytes());
    slot[8..16].copy_from_slice(&length.bytes.to_le_bytes());
    let sum = crc32fast::hash(&slot[..16]);
    slot[16..20].copy_from_slice(&sum.to_le_bytes());
    slot
}

fn decode(slot: &[u8; SLOT_LEN]) -> Option<Length> {
    let (mut sequence, mut bytes, mut sum) = ([0; 8], [0; 8], [0; 4]);
    sequence.copy_from_slice(&slot[..8]);
    bytes.copy_from_slice(&slot[8..16]);
    sum.copy_from_slice(&slot[16..20]);
    (u32::from_le_bytes(sum) == crc32fast::hash(&slot[..16]))
        .then_some(Length { sequence: u64::from_le_bytes(sequence), bytes: u64::from_le_bytes(bytes) })
}
