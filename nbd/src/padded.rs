//! An export with zeros behind its end.

use crate::{Errno, Export, ExportInfo, Extent, ExtentFlags, Failure, Segment, Segments};
use bytes::Bytes;
use std::sync::Arc;

/// Size of a sector of the Linux kernel, in bytes.
const SECTOR: u64 = 512;

/// An export rounded up to whole sectors: behind the end of the disk it holds zeros.
///
/// The Linux kernel measures block devices in sectors of 512 bytes and would cut off the last bytes of a disk whose size
/// is no multiple of that.
#[derive(Debug)]
pub struct Padded<E> {
    export: Arc<E>,
    /// Size of `export`.
    size: u64,
}

impl<E: Export> Padded<E> {
    /// `export`, rounded up.
    pub fn new(export: Arc<E>) -> Self {
        let size = export.info().size;
        Self { export, size }
    }

    /// How much of `offset..offset + len` lies inside the disk, and how much behind it.
    fn split(&self, offset: u64, len: u64) -> (u64, u64) {
        let inside = self.size.saturating_sub(offset).min(len);
        (inside, len - inside)
    }
}

impl<E: Export> Export for Padded<E> {
    fn info(&self) -> ExportInfo {
        let info = self.export.info();
        ExportInfo { size: self.size.next_multiple_of(SECTOR), ..info }
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        let (inside, behind) = self.split(offset, u64::from(len));
        let result = if inside == 0 { Ok(()) } else { self.export.try_read(offset, inside as u32, out)? };
        if behind > 0 && result.is_ok() {
            out.push(Segment::Zero(behind as u32));
        }
        Some(result)
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Segments, Failure> {
        let (inside, behind) = self.split(offset, u64::from(len));
        let mut segments =
            if inside == 0 { Segments::new() } else { self.export.read(offset, inside as u32).await? };
        if behind > 0 {
            segments.push(Segment::Zero(behind as u32));
        }
        Ok(segments)
    }

    async fn reread(&self, offset: u64, len: u32) -> Result<Bytes, Errno> {
        // What is behind the disk is in no file.
        self.export.reread(offset, len).await
    }

    async fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Errno> {
        let (inside, behind) = self.split(offset, len);
        if inside > 0 {
            return self.export.block_status(offset, inside, max).await;
        }
        let flags = ExtentFlags::HOLE | ExtentFlags::ZERO;
        Ok(vec![Extent { len: behind, flags, depth: 0, local: true }])
    }

    async fn prefetch(&self, offset: u64, len: u64) {
        let (inside, _) = self.split(offset, len);
        if inside > 0 {
            self.export.prefetch(offset, inside).await;
        }
    }
}

#[cfg(test)]
mod tests;
