//! What a server exports: the port between the protocol and whatever holds the bytes.

use crate::Client;
use bytes::Bytes;
use smallvec::SmallVec;
use std::fmt::Debug;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::AsFd;
use std::sync::Arc;

/// A file whose bytes can be sent. Whoever implements it may keep them in place for as long as it lives: a reply holds on
/// to it until it has been sent.
pub trait FileBytes: AsFd + Send + Sync + Debug {
    /// Whether `len` bytes from `offset` on are mapped, and are not to be waited for as far as can be known. They are going to
    /// be sent. Must not wait.
    fn in_memory(&self, offset: u64, len: u32) -> bool {
        let _ = (offset, len);
        false
    }

    /// Where `len` bytes from `offset` on, a part of what [`in_memory`](Self::in_memory) was true for, are mapped. They are
    /// given to system calls and not read, so that they need not be readable: then a system call fails with EFAULT, and
    /// the file is asked.
    fn memory(&self, offset: u64, len: u32) -> Option<IoSlice<'_>> {
        let _ = (offset, len);
        None
    }
}

impl FileBytes for File {}

/// Where bytes of a reply are. A READ is answered with segments, not with a buffer, so that what is in a local file
/// goes to the socket without a copy in user space.
#[derive(Clone, Debug)]
pub enum Segment {
    /// In memory.
    Bytes(Bytes),
    /// In a file. Where it cannot be read, or not within four seconds, [`Export::reread`] is asked. The bytes are sent from
    /// the page cache without a copy, and the client may take them any time later, so the range must not be overwritten
    /// with other bytes even when the reply has been sent; punching it out or unlinking the file is safe then. What the
    /// page cache does not hold yet is read by a thread of its own.
    File {
        /// The file.
        file: Arc<dyn FileBytes>,
        /// First byte.
        offset: u64,
        /// How many.
        len: u32,
    },
    /// This many zeros.
    Zero(u32),
}

impl Segment {
    /// Its length in bytes. What is longer than a request can ask for counts as the longest there is.
    pub fn len(&self) -> u32 {
        match self {
            Self::Bytes(bytes) => u32::try_from(bytes.len()).unwrap_or(u32::MAX),
            Self::File { len, .. } | Self::Zero(len) => *len,
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether it is zeros by its kind; bytes are not looked at.
    pub const fn is_zero(&self) -> bool {
        matches!(self, Self::Zero(_))
    }
}

/// The segments of one reply, in order.
pub type Segments = SmallVec<[Segment; 4]>;

/// Error numbers of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted.
    Perm = 1,
    /// Input/output error.
    Io = 5,
    /// Cannot allocate memory.
    NoMem = 12,
    /// Invalid argument.
    Inval = 22,
    /// No space left on device.
    NoSpc = 28,
    /// Value too large.
    Overflow = 75,
    /// Operation not supported.
    NotSup = 95,
    /// Server is in the process of being shut down.
    Shutdown = 108,
}

impl Errno {
    /// Its number on the wire.
    pub const fn number(self) -> u32 {
        self as u32
    }

    /// What a structured reply says of it to people.
    pub const fn text(self) -> &'static str {
        match self {
            Self::Perm => "the export is read-only",
            Self::Io => "input/output error",
            Self::NoMem => "out of memory",
            Self::Inval => "invalid request",
            Self::NoSpc => "out of space",
            Self::Overflow => "the answer does not fit in one chunk",
            Self::NotSup => "not supported",
            Self::Shutdown => "the server is shutting down",
        }
    }
}

/// Why a read failed, and where on the disk, if that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What is said of it on the wire.
    pub errno: Errno,
    /// The first byte that cannot be read. A client with structured replies is told of it.
    pub at: Option<u64>,
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Failure { errno, at: None }
    }
}

bitflags::bitflags! {
    /// Flags of `base:allocation`.
    #[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
    pub struct ExtentFlags: u32 {
        /// `NBD_STATE_HOLE`: nothing is allocated for it.
        const HOLE = 1;
        /// `NBD_STATE_ZERO`: it reads as zeros.
        const ZERO = 2;
    }
}

/// A stretch of the disk with one status. Never of length 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Length in bytes.
    pub len: u64,
    /// Its `base:allocation` flags.
    pub flags: ExtentFlags,
    /// Its `qemu:allocation-depth`: 0 where unallocated, 1 in the top layer, 2 in its parent, and so on.
    pub depth: u32,
    /// Whether all of it can be read without asking a server.
    pub local: bool,
}

/// What negotiation tells a client of an export.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportInfo {
    /// Size in bytes.
    pub size: u64,
    /// Preferred block size in bytes, a power of two of at least 512.
    pub preferred_block: u32,
    /// For people.
    pub description: String,
}

/// A read-only disk. Offsets and lengths that reach it lie inside [`ExportInfo::size`].
pub trait Export: Send + Sync + 'static {
    /// What negotiation tells of it.
    fn info(&self) -> ExportInfo;

    /// Answers a read from what is at hand: no waiting, no task, no allocation beyond `out`. `None` declines, leaves
    /// `out` as it was, and [`read`](Self::read) is called instead.
    fn try_read(&self, offset: u64, len: u32, out: &mut Segments) -> Option<Result<(), Failure>>;

    /// The bytes `offset..offset + len`: the segments' lengths add up to `len`. May wait for a server. Dropping the
    /// future abandons the read.
    fn read(&self, offset: u64, len: u32) -> impl Future<Output = Result<Segments, Failure>> + Send;

    /// The bytes `offset..offset + len` again, which a [`Segment::File`] told of before and which could not be read from
    /// there: from elsewhere, in memory. An error ends the connection. Without an implementation there is nowhere else.
    fn reread(&self, offset: u64, len: u32) -> impl Future<Output = Result<Bytes, Errno>> + Send {
        tracing::debug!(offset, len, "nothing but the file has these bytes");
        async { Err(Errno::Io) }
    }

    /// What `offset..offset + len` holds: at least one extent, from `offset` on, adjacent equal ones merged, at most
    /// `max` of them, together not beyond `offset + len` (the answer may stop sooner, never before the first).
    fn block_status(
        &self,
        offset: u64,
        len: u64,
        max: usize,
    ) -> impl Future<Output = Result<Vec<Extent>, Errno>> + Send;

    /// Brings `offset..offset + len` to where reads are fast, as far as is cheap. Failure is not an error.
    fn prefetch(&self, offset: u64, len: u64) -> impl Future<Output = ()> + Send;
}

/// The exports of a server, by name. Consulted at every negotiation, so it may change while the server runs.
pub trait Exports: Send + Sync + 'static {
    /// Their type.
    type Export: Export;

    /// The export called `name`, if `client` may have it; the empty name is the default export.
    fn lookup(&self, name: &str, client: &Client) -> impl Future<Output = Option<Arc<Self::Export>>> + Send;

    /// All names that `client` may know, for `NBD_OPT_LIST`.
    fn names(&self, client: &Client) -> Vec<String>;
}
