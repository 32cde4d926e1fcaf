//! The on-disk block cache: one store per host, sparse files named by identity.

use crate::Error;
use bytes::Bytes;
use smallvec::SmallVec;
use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

/// A file whose bytes stay where they are while this is held: while a span is being sent its blocks are not evicted.
#[derive(Debug)]
pub struct Lease {
    file: Arc<File>,
}

impl Lease {
    /// A lease on a file that nothing is ever evicted from, such as a local image.
    pub fn of(file: Arc<File>) -> Arc<Lease> {
        Arc::new(Lease { file })
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
}

/// Consecutive spans that together are a range.
pub type Spans = SmallVec<[Span; 4]>;

/// How blocks that are not in the cache come about. A fill covers whole blocks (the last one cut at the object's
/// size), may be called for several blocks at once, and answers exactly as many bytes as were asked for.
pub trait Fill: Send + Sync + 'static {
    /// The bytes of `range`.
    fn fill(&self, range: Range<u64>) -> impl Future<Output = Result<Bytes, Error>> + Send;
}

/// The store under one directory.
#[derive(Clone, Debug)]
pub struct Store {}

/// What names a cached object: equal keys hold equal bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The source's identity.
    pub identity: crate::Identity,
    /// What of it: `raw` for its own bytes, or a name for something decoded from it.
    pub part: String,
}

/// One cached object.
#[derive(Debug)]
pub struct Object<F> {
    _fill: F,
}

impl Store {
    /// Opens, or makes, the store under `dir`, which may grow to `max_bytes`.
    pub fn open(_dir: &Path, _max_bytes: u64) -> Result<Store, Error> {
        Ok(Store {})
    }

    /// The object `key` of `size` bytes in blocks of `block` bytes (a power of two, at least 4096). What an earlier
    /// process left under this key is used. Two calls with one key share one file and one set of flights.
    pub fn object<F: Fill>(
        &self,
        _key: &Key,
        _size: u64,
        _block: u32,
        fill: F,
    ) -> Result<Arc<Object<F>>, Error> {
        Ok(Arc::new(Object { _fill: fill }))
    }
}

impl<F: Fill> Object<F> {
    /// Appends to `out` where `range` is in local files, if every block of it is there; else appends nothing and
    /// says false. Does not wait, does not allocate (beyond `out`), does not start a fetch.
    pub fn peek(&self, _range: Range<u64>, _out: &mut Spans) -> bool {
        false
    }

    /// As [`peek`](Self::peek), but fetches first what is missing, each block once however many callers wait for
    /// it. Dropping the future does not cancel fetches that others may need.
    pub async fn get(self: &Arc<Self>, _range: Range<u64>, _out: &mut Spans) -> Result<(), Error> {
        Err(Error::new(crate::Kind::Io, "unread"))
    }
}
