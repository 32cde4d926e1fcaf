//! Stretches of files: those that the page cache holds, and those that a disk has yet to give.
//!
//! The threads that serve never wait for a disk: who reads what is at hand is not to wait for somebody who reads what is
//! not, and a disk is fastest when it is asked for many things at once.

use super::lines::Lines;
use super::outbox::SENDFILE_MIN;
use crate::wire::Request;
use crate::{Segment, Segments};
use rustix::fs::{Advice, fadvise, fstatfs};
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use std::io::{self, IoSliceMut};
use std::num::NonZeroU64;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long a disk may take. With the 25 seconds that an export may take to get the bytes elsewhere, that is less than the
/// kernel's timer.
const PATIENCE: Duration = Duration::from_secs(4);

/// Most reads in one batch, and most bytes of several.
const BATCH: usize = 32;
const BATCH_BYTES: u64 = 1 << 20;
/// How much is read at a time of what the page cache is to hold.
const PIECE: usize = 64 << 10;

/// Magic numbers of file systems in memory (statfs(2)), and of overlayfs, of which it cannot be said.
const NOT_ON_DISK: [i64; 3] = [0x0102_1994, 0x8584_58f6, 0x794c_7630];

/// Fills `buffer` from `offset` of `file` on, if the page cache holds all of it; whether it does.
pub(super) fn read_resident(file: BorrowedFd<'_>, buffer: &mut [u8], offset: u64) -> io::Result<bool> {
    let mut done = 0;
    while done < buffer.len() {
        let mut slices = [IoSliceMut::new(&mut buffer[done..])];
        match preadv2(file, &mut slices, offset + done as u64, ReadWriteFlags::NOWAIT) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(false),
            // Not every file system can promise not to wait (preadv2(2)); one in memory need not.
            Err(Errno::OPNOTSUPP) if is_in_memory(file) => {
                return read_exact(file, &mut buffer[done..], offset + done as u64).map(|()| true);
            }
            Err(Errno::OPNOTSUPP) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Whether the page cache seems to hold `len` bytes from `offset` of `file` on: their last one, which the kernel reads ahead
/// after all others. To look at their first as well costs a twentieth of a copy.
pub(super) fn is_resident(file: BorrowedFd<'_>, offset: u64, len: u32) -> io::Result<bool> {
    read_resident(file, &mut [0], offset + u64::from(len.saturating_sub(1)))
}

/// Whether it lies in a file system where nothing is late, as far as that can be said.
pub(super) fn is_in_memory(file: BorrowedFd<'_>) -> bool {
    fstatfs(file).is_ok_and(|status| NOT_ON_DISK.contains(&status.f_type))
}

/// Fills `buffer` from `offset` of `file` on, however long a disk takes for that.
pub(super) fn read_exact(file: BorrowedFd<'_>, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        match pread(file, &mut *buffer, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => {
                buffer = &mut buffer[read..];
                offset += read as u64;
            }
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Reads that wait to be made together.
#[derive(Default)]
pub(super) struct Batch {
    reads: Vec<(Request, Segments)>,
    bytes: u64,
}

/// What came of the reads of a batch: each with segments that are at hand now, or why that cannot be.
pub(super) type Loaded = Vec<(Request, io::Result<Segments>)>;

impl Batch {
    /// Adds one.
    pub(super) fn push(&mut self, request: Request, segments: Segments) {
        self.bytes += request.length;
        self.reads.push((request, segments));
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.reads.is_empty()
    }

    /// Whether another one of `len` bytes is too much.
    pub(super) fn is_full_for(&self, len: u64) -> bool {
        self.reads.len() >= BATCH || !self.is_empty() && self.bytes + len > BATCH_BYTES
    }

    /// How many bytes they ask for.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Makes them, on a thread that may wait.
    pub(super) async fn load(self) -> Loaded {
        let requests: Vec<Request> = self.reads.iter().map(|(request, _)| *request).collect();
        let loading = spawn_blocking(move || {
            if self.reads.len() > 1 {
                // So that the disk has all of them to do at once.
                self.reads.iter().flat_map(|(_, segments)| segments).for_each(announce);
            }
            let load = |(request, segments): (_, Segments)| {
                (request, segments.into_iter().map(read).collect::<io::Result<_>>())
            };
            self.reads.into_iter().map(load).collect()
        });
        let why = match timeout(PATIENCE, loading).await {
            Ok(Ok(loaded)) => return loaded,
            Ok(Err(_)) => "the runtime is shutting down",
            Err(_) => "the disk does not answer",
        };
        let failed = |request| (request, Err(io::Error::new(io::ErrorKind::TimedOut, why)));
        requests.into_iter().map(failed).collect()
    }
}

/// Tells the kernel that these bytes are going to be read.
fn announce(segment: &Segment) {
    if let Segment::File { file, offset, len } = segment {
        // Nothing comes of it but time if it fails.
        let _ = fadvise(file, *offset, NonZeroU64::new(u64::from(*len)), Advice::WillNeed);
    }
}

/// `segment` in memory, or, where the page cache has it then and it leaves from there, as it was.
fn read(segment: Segment) -> io::Result<Segment> {
    let Segment::File { file, offset, len } = segment else { return Ok(segment) };
    if len < SENDFILE_MIN {
        let mut bytes = vec![0; len as usize];
        read_exact(file.as_fd(), &mut bytes, offset)?;
        return Ok(Segment::Bytes(bytes.into()));
    }
    // To copy it into the processor's own cache costs less than memory for it.
    let mut bytes = Lines::zeroed(PIECE.min(len as usize));
    for at in (offset..offset + u64::from(len)).step_by(PIECE) {
        let piece = (offset + u64::from(len) - at).min(bytes.len() as u64) as usize;
        read_exact(file.as_fd(), &mut bytes[..piece], at)?;
    }
    Ok(Segment::File { file, offset, len })
}
