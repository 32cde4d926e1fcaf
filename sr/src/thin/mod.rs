//! Reading a thin pool's metadata: how much each thin device has mapped, where, and how two of them differ.
//!
//! The metadata is read as the kernel writes it (Linux, drivers/md/dm-thin-metadata.c and persistent-data/), from the
//! pool's metadata device, and never written. The tools that print it as XML (`thin_dump`, `thin_ls`, `thin_delta`)
//! read all of it for any question; here a question costs the blocks that hold its answer, and what two devices share
//! is passed over unread.
//!
//! A pool in use writes its metadata all the time, by copies: until it commits, what its last superblock leads to
//! stays. So a reader may begin at one of two places, see [`Root`].

mod block;
mod tree;

use crate::error::{Error, Result};
use block::{Blocks, Superblock};
use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use tree::Tree;

/// Where a reader begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Root {
    /// At the pool's superblock, as it was committed last, which is a second ago at most. Good for a quick look: if the
    /// pool commits meanwhile, what was read may have been overwritten, and the answer is that it moved.
    Live,
    /// At the metadata snapshot that the pool holds, which begins at this metadata block. It stays as it is.
    Held(u64),
}

/// An answer, or that the pool committed while it was looked for, so that nothing is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Seen<T> {
    /// The answer.
    Whole(T),
    /// The pool committed again and again.
    Moved,
}

/// Reads the metadata of thin pools. `device` is a pool's metadata device; ranges are in bytes of the thin device,
/// sorted, not empty, and adjacent ones are one.
pub trait ThinMetadata {
    /// Bytes mapped of every thin device, by id.
    ///
    /// # Errors
    /// The metadata cannot be read or is damaged.
    fn usage(&mut self, device: &Path, root: Root) -> Result<Seen<BTreeMap<u32, u64>>>;

    /// Bytes mapped of the thin device `id`; `None` if there is none.
    ///
    /// # Errors
    /// The metadata cannot be read or is damaged.
    fn usage_of(&mut self, device: &Path, root: Root, id: u32) -> Result<Seen<Option<u64>>>;

    /// What the thin device `id` has mapped. The answer takes no more memory than these mappings take in the metadata.
    ///
    /// # Errors
    /// There is no such thin device; or the metadata cannot be read or is damaged.
    fn mapped(&mut self, device: &Path, root: Root, id: u32) -> Result<Seen<Vec<Range<u64>>>>;

    /// Where the thin devices `a` and `b` do not have the same block mapped: it is mapped in one of them only, or they
    /// have different ones. Costs the metadata that they do not share.
    ///
    /// # Errors
    /// As [`mapped`](Self::mapped).
    fn changed(&mut self, device: &Path, root: Root, a: u32, b: u32) -> Result<Seen<Vec<Range<u64>>>>;
}

/// How often a live answer is looked for before it is said to have moved.
const TRIES: u32 = 4;

/// Reads metadata from block devices (or files, which serve as well).
#[derive(Debug, Default)]
pub struct MetadataReader;

/// The metadata from one superblock on.
struct Metadata<'a> {
    blocks: &'a Blocks,
    superblock: Superblock,
}

impl MetadataReader {
    fn ask<T>(device: &Path, root: Root, question: impl Fn(&Metadata<'_>) -> Result<T>) -> Result<Seen<T>> {
        let blocks = Blocks::open(device)?;
        let at = match root {
            Root::Held(block) => {
                let superblock = blocks.superblock(block)?;
                return question(&Metadata { blocks: &blocks, superblock }).map(Seen::Whole);
            }
            Root::Live => 0,
        };
        for _ in 0..TRIES {
            // A superblock that is just being written may be torn; then it is another one the next time.
            let before = blocks.superblock(at);
            let answer = match &before {
                Ok(superblock) => question(&Metadata { blocks: &blocks, superblock: superblock.clone() }),
                Err(e) => Err(Error::failed(e.message.clone())),
            };
            // Blocks that a superblock leads to are overwritten only once the next one is there. So what was read
            // between two looks at the same one is whole, and so is what was found wrong with it.
            match (&before, blocks.superblock(at)) {
                (Ok(before), Ok(after)) if *before == after => return answer.map(Seen::Whole),
                (Err(_), Err(e)) => return Err(e),
                _ => {}
            }
        }
        Ok(Seen::Moved)
    }
}

impl ThinMetadata for MetadataReader {
    fn usage(&mut self, device: &Path, root: Root) -> Result<Seen<BTreeMap<u32, u64>>> {
        Self::ask(device, root, |metadata| {
            let mut usage = BTreeMap::new();
            metadata.details().walk(&mut |id, details| {
                usage.insert(thin_id(id)?, metadata.bytes(details[0])?);
                Ok(())
            })?;
            Ok(usage)
        })
    }

    fn usage_of(&mut self, device: &Path, root: Root, id: u32) -> Result<Seen<Option<u64>>> {
        Self::ask(device, root, |metadata| {
            let details = metadata.details().get(u64::from(id))?;
            details.map(|details| metadata.bytes(details[0])).transpose()
        })
    }

    fn mapped(&mut self, device: &Path, root: Root, id: u32) -> Result<Seen<Vec<Range<u64>>>> {
        Self::ask(device, root, |metadata| {
            let mut runs = Runs::new(metadata.superblock.chunk);
            metadata.mappings(id)?.walk(&mut |block, _| runs.push(block))?;
            Ok(runs.ranges)
        })
    }

    fn changed(&mut self, device: &Path, root: Root, a: u32, b: u32) -> Result<Seen<Vec<Range<u64>>>> {
        Self::ask(device, root, |metadata| {
            let mut runs = Runs::new(metadata.superblock.chunk);
            let same = |a: &[u64], b: &[u64]| data_block(a[0]) == data_block(b[0]);
            let (a, b) = (metadata.mappings(a)?, metadata.mappings(b)?);
            Tree::differences(&a, &b, &same, &mut |block| runs.push(block))?;
            Ok(runs.ranges)
        })
    }
}

impl<'a> Metadata<'a> {
    /// The tree of `struct disk_device_details`, by device id.
    fn details(&self) -> Tree<'a> {
        Tree { blocks: self.blocks, root: self.superblock.details, value_len: 24 }
    }

    /// The mappings of a device: where a block of its own is in the pool, by number.
    fn mappings(&self, id: u32) -> Result<Tree<'a>> {
        let devices = Tree { blocks: self.blocks, root: self.superblock.mappings, value_len: 8 };
        match devices.get(u64::from(id))? {
            Some(root) => Ok(Tree { root: root[0], ..devices }),
            None => Err(Error::failed(format!("the pool has no thin device {id}"))),
        }
    }

    fn bytes(&self, blocks: u64) -> Result<u64> {
        blocks
            .checked_mul(self.superblock.chunk)
            .ok_or_else(|| out_of_range("a number of mapped blocks", blocks))
    }
}

/// Where a mapping leads: the upper 40 bits; the others say when it was made.
fn data_block(mapping: u64) -> u64 {
    mapping >> 24
}

fn thin_id(key: u64) -> Result<u32> {
    u32::try_from(key).map_err(|_| out_of_range("a device id", key))
}

fn out_of_range(what: &str, value: u64) -> Error {
    Error::failed(format!("the pool's metadata is damaged: it has {what} of {value:#x}"))
}

/// Collects block numbers in ascending order as ranges of bytes.
struct Runs {
    chunk: u64,
    ranges: Vec<Range<u64>>,
}

impl Runs {
    fn new(chunk: u64) -> Self {
        Self { chunk, ranges: Vec::new() }
    }

    fn push(&mut self, block: u64) -> Result<()> {
        let start = block.checked_mul(self.chunk);
        let Some((start, end)) = start.and_then(|start| Some((start, start.checked_add(self.chunk)?))) else {
            return Err(out_of_range("a block number", block));
        };
        match self.ranges.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => self.ranges.push(start..end),
        }
        Ok(())
    }
}
