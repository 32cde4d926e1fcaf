//! The on-disk block cache: one store per host, sparse files named by identity.
//!
//! Each object has a directory with three files. `data` is sparse and holds the object's blocks at the object's own
//! offsets, so that a block can be sent straight from it. `index` holds one 64-bit checksum per block, 0 for a block
//! that is not there. `meta` says whose blocks these are. Nothing but the checksum decides whether a block on disk is
//! good: it is verified when a block is first used after the object was opened, so that whatever a crash, a failing
//! disk or another program left there costs a fetch at worst. After that a bit in memory says that the block is ready.
//!
//! A missing block is fetched once however many ask for it. The fetch is a task of its own, which nobody's departure
//! cancels; those who wait get the bytes from memory, and the file is written behind them. Where it is much at a time the
//! file is written first, and they get it from there, unless the disk is behind. Checksums are written to
//! the index only after the data they speak for is durable, in batches, by a thread that also evicts.
//!
//! What goes wrong with the disk is never an error to a reader: the bytes are then fetched and passed through.
//!
//! # Reading ahead
//!
//! Where somebody reads in sequence, blocks are fetched before they are asked for, in large pieces.
//! The first block of such a piece is marked; when it is read, out of the cache like any other, the next piece is begun, so
//! that a reader who never misses a block is still read ahead for.
//!
//! # Several processes
//!
//! The first process that opens a store owns it, by a lock that the kernel drops when the process ends. Others read
//! what is there, verifying every block at every use since the owner may evict it at any time, and write nothing;
//! one of them becomes the owner within seconds when the owner ends.
//!
//! # Eviction and blocks being sent
//!
//! A span handed out holds a [`Lease`]. To evict, the ready bits of the victims are cleared first, then the object's
//! current lease is replaced. Whoever took the old lease may have seen the bits; whoever takes the new one cannot
//! have. So once the old lease and those before it are gone nobody uses the victims, and only then are they punched
//! out of the file.

mod ahead;
mod bits;
mod core;
#[cfg(test)]
mod crash;
mod disk;
mod flight;
mod health;
mod keeper;
mod lock;
mod mapped;
mod object;
mod recent;
mod space;
mod stock;
mod store;
mod writer;

pub use object::Object;
pub use stock::{Stock, Stored, Verified};
pub use store::Store;

use crate::Error;
use bytes::Bytes;
use mapped::Mapped;
use smallvec::SmallVec;
use std::fs::File;
use std::io::IoSlice;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

/// A file whose bytes stay where they are while this is held: while a span is being sent its blocks are not evicted.
#[derive(Debug)]
pub struct Lease {
    file: Arc<File>,
    mapped: Arc<Mapped>,
}

impl Lease {
    /// A lease on a file that nothing is ever evicted from, such as a local image.
    pub fn of(file: Arc<File>) -> Arc<Lease> {
        let mapped = Arc::new(Mapped::of(&file));
        Arc::new(Lease { file, mapped })
    }

    /// Another one on the same file.
    fn renewed(&self) -> Arc<Lease> {
        if self.is_worn() {
            return Lease::of(self.file.clone());
        }
        Arc::new(Lease { file: self.file.clone(), mapped: self.mapped.clone() })
    }

    /// Whether it should be renewed for what of the file is mapped.
    fn is_worn(&self) -> bool {
        self.mapped.is_worn()
    }

    /// Whether `range` of the file is mapped and was in memory a moment ago. To ask is also to say that it is going to be
    /// read: busy files, or parts of them, are mapped. Does not wait, and allocates once for a file.
    pub fn holds(&self, range: Range<u64>) -> bool {
        self.mapped.holds(&self.file, range)
    }

    /// Where `range` of the file is mapped, for a system call to take its bytes from; none where [`holds`](Self::holds) was
    /// false for all ranges so far, or if the file has become shorter. Nobody else may read what this returns: where the
    /// disk fails, or the file has become shorter, that ends the process, but to a system call it is an error, EFAULT.
    pub fn memory(&self, range: Range<u64>) -> Option<IoSlice<'_>> {
        self.mapped.memory(&self.file, range)
    }
}

impl std::ops::Deref for Lease {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl AsFd for Lease {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Where a piece of a range is.
#[derive(Clone, Debug)]
pub enum Span {
    /// In a local file. The lease is held until the bytes were used.
    File {
        /// The cache file, or the source file itself.
        lease: Arc<Lease>,
        /// First byte.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// In memory: just fetched, or not to be had from the cache.
    Bytes(Bytes),
}

impl Span {
    /// How many bytes it is.
    pub fn len(&self) -> u64 {
        match self {
            Span::File { len, .. } => *len,
            Span::Bytes(bytes) => bytes.len() as u64,
        }
    }

    /// Whether it is no bytes at all.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Its bytes `range`, which lies inside it.
    fn slice(&self, range: Range<u64>) -> Span {
        match self {
            Span::File { lease, offset, .. } => Span::File {
                lease: lease.clone(),
                offset: offset + range.start,
                len: range.end - range.start,
            },
            Span::Bytes(bytes) => Span::Bytes(bytes.slice(range.start as usize..range.end as usize)),
        }
    }
}

/// Consecutive spans that together are a range.
pub type Spans = SmallVec<[Span; 4]>;

/// Bytes of an object, each piece with its offset: whole blocks (the last one cut at the object's size), in order.
pub type Pieces = Vec<(u64, Bytes)>;

/// How blocks that are not in the cache come about.
pub trait Fill: Send + Sync + 'static {
    /// The bytes of `range`, which covers whole blocks (the last one cut at the object's size), in one piece or several. It
    /// may leave out blocks that no reader can ask for.
    fn fill(&self, range: Range<u64>) -> impl Future<Output = Result<Pieces, Error>> + Send;
}

/// What names a cached object: equal keys hold equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct Key {
    /// The source's identity.
    pub identity: crate::Identity,
    /// What of it: `raw` for its own bytes, or a name for something decoded from it.
    pub part: String,
}

#[cfg(test)]
mod tests;
