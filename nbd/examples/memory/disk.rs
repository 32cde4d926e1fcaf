//! A disk that is at hand: in memory, or in a file.

use bytes::Bytes;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use thinorigin_nbd::{
    Client, Errno, Export, ExportInfo, Exports, Extent, ExtentFlags, Failure, FileBytes, Segment, Segments,
};

const BLOCK: u64 = 64 << 10;

/// A disk: what it holds, block by block, and the file it came from.
pub(crate) struct Disk {
    size: u64,
    /// `None` is a hole.
    blocks: Vec<Option<Bytes>>,
    file: Option<Arc<dyn FileBytes>>,
}

impl Disk {
    /// `size` bytes: those of `file`, or a pattern.
    pub(crate) fn open(size: u64, file: Option<File>) -> std::io::Result<Self> {
        let mut blocks = Vec::new();
        for start in (0..size).step_by(BLOCK as usize) {
            let mut block = vec![0; BLOCK.min(size - start) as usize];
            if let Some(file) = &file {
                file.read_exact_at(&mut block, start)?;
            } else {
                // Every second block is a hole; in the others every eight bytes are their own offset.
                for (offset, word) in (start..).step_by(8).zip(block.chunks_mut(8)) {
                    if (start / BLOCK).is_multiple_of(2) {
                        word.copy_from_slice(&offset.to_be_bytes()[..word.len()]);
                    }
                }
            }
            blocks.push(block.iter().any(|byte| *byte != 0).then(|| Bytes::from(block)));
        }
        Ok(Self { size, blocks, file: file.map(|file| Arc::new(file) as _) })
    }

    /// The stretches of `offset..offset + len` that lie in one block each.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (Option<&Bytes>, u64, u64)> {
        let end = offset + len;
        let blocks = self.blocks.iter().enumerate().skip((offset / BLOCK) as usize);
        blocks.map_while(move |(index, block)| {
            let start = index as u64 * BLOCK;
            let (from, to) = (start.max(offset), (start + BLOCK).min(end));
            (from < to).then(|| (block.as_ref(), from, to - from))
        })
    }
}

impl Export for Disk {
    fn info(&self) -> ExportInfo {
        ExportInfo { size: self.size, preferred_block: BLOCK as u32, description: "a disk in memory".into() }
    }

    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>> {
        for (block, offset, len) in self.pieces(offset, u64::from(len)) {
            let within = (offset % BLOCK) as usize;
            match (block, &self.file, out.last_mut()) {
                (None, _, Some(Segment::Zero(last))) => *last += len as u32,
                (None, _, _) => out.push(Segment::Zero(len as u32)),
                (Some(_), Some(_), Some(Segment::File { len: last, .. })) => *last += len as u32,
                (Some(_), Some(file), _) => {
                    out.push(Segment::File { file: Arc::clone(file), offset, len: len as u32 });
                }
                (Some(bytes), None, _) => {
                    out.push(Segment::Bytes(bytes.slice(within..within + len as usize)));
                }
            }
        }
        Some(Ok(()))
    }

    async fn read(&self, offset: u64, len: u32) -> Result<Segments, Failure> {
        let mut out = Segments::new();
        self.try_read(offset, len, &mut out).unwrap_or(Err(Errno::Io.into()))?;
        Ok(out)
    }

    async fn block_status(&self, offset: u64, len: u64, max: usize) -> Result<Vec<Extent>, Errno> {
        let mut extents: Vec<Extent> = Vec::new();
        for (block, _, len) in self.pieces(offset, len) {
            let flags =
                if block.is_none() { ExtentFlags::HOLE | ExtentFlags::ZERO } else { ExtentFlags::empty() };
            let full = extents.len() == max;
            match extents.last_mut() {
                Some(last) if last.flags == flags => last.len += len,
                _ if full => break,
                _ => extents.push(Extent { len, flags, depth: u32::from(block.is_some()), local: true }),
            }
        }
        Ok(extents)
    }

    async fn prefetch(&self, _offset: u64, _len: u64) {}
}

/// One export under two names.
pub(crate) struct One(pub(crate) Arc<Disk>);

impl Exports for One {
    type Export = Disk;

    async fn lookup(&self, name: &str, _client: &Client) -> Option<Arc<Disk>> {
        matches!(name, "" | "disk").then(|| Arc::clone(&self.0))
    }

    fn names(&self, _client: &Client) -> Vec<String> {
        vec!["disk".into()]
    }
}
