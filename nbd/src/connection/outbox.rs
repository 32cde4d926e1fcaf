//! What waits to be sent on one connection, as parts that need not be in memory.
//!
//! Headers and small payloads are gathered in one buffer, or left where they are mapped, so that many small replies leave with
//! one system call; larger payloads are queued as they are.

use super::disk;
use crate::wire::Sink;
use crate::{Errno, FileBytes, Segment};
use bytes::Bytes;
use smallvec::SmallVec;
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use tokio::sync::OwnedSemaphorePermit;

/// A stretch of a file shorter than this is read into the buffer, or sent from where it is mapped: one system call for many
/// replies is worth more than a copy saved. A longer one goes to the socket without a copy.
pub(super) const SENDFILE_MIN: u32 = 32 << 10;
/// A shorter stretch is always read into the buffer: what is noted of one that is mapped is not small beside it.
const MAPPED_MIN: u32 = 512;
/// Bytes in memory up to this many are copied into the buffer.
const COPY_MAX: usize = 4 << 10;
/// When a gathering buffer holds this many bytes, the next is begun, so that none grows without end.
const BUFFER_MAX: usize = 256 << 10;
/// Most slices in one system call: two for each small reply.
const SLICES: usize = 128;
/// Most bytes of a header that lies between two stretches of files.
const HEADER: usize = 44;
/// What zeros are sent from.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// A gathering buffer: all of `bytes` is initialised once, `filled` of it is in use, `sent` of that is gone.
#[derive(Default)]
struct Gathered {
    bytes: Vec<u8>,
    filled: usize,
    sent: usize,
}

impl Gathered {
    /// Room for `len` more bytes.
    fn room(&mut self, len: usize) -> &mut [u8] {
        let end = self.filled + len;
        if self.bytes.len() < end {
            self.bytes.resize(end.max(self.bytes.len() * 2), 0);
        }
        &mut self.bytes[self.filled..end]
    }
}

enum Part {
    Gathered(Gathered),
    /// `bytes[sent..filled]`.
    Header {
        bytes: [u8; HEADER],
        filled: u8,
        sent: u8,
    },
    Bytes(Bytes),
    File {
        file: Arc<dyn FileBytes>,
        offset: u64,
        left: u32,
        /// Where on the disk that is served the first byte left is.
        disk: u64,
        /// Whether to send it from where it is mapped.
        mapped: bool,
    },
    Zero(usize),
    /// Memory to give back when everything before it has been sent.
    Permit {
        _permit: OwnedSemaphorePermit,
    },
}

/// What is to be sent next.
#[expect(clippy::large_enum_variant, reason = "made once per system call and never moved")]
pub(super) enum Next<'a> {
    /// These bytes; `more` when a file follows at once.
    Slices { slices: SmallVec<[IoSlice<'a>; SLICES]>, more: bool },
    /// This stretch of a file.
    File { file: BorrowedFd<'a>, offset: u64, len: u32 },
}

/// A place in the queue to go back to when a reply turns out not to be possible.
pub(super) struct Mark {
    parts: usize,
    filled: usize,
    pending: u64,
}

/// The queue.
#[derive(Default)]
pub(super) struct Outbox {
    parts: VecDeque<Part>,
    pending: u64,
    spare: Vec<u8>,
    /// Where on the disk the next segment is.
    disk: u64,
    /// Whether the file that is to be sent next cannot be read.
    broken: bool,
    /// Whether a segment was refused because a disk has yet to give it.
    cold: bool,
    /// Whether the disk has just been read for the segments that follow.
    fetched: bool,
    /// Whether nobody but the kernel reads what is to be sent.
    by_kernel: bool,
}

impl Outbox {
    /// One whose bytes are given to system calls as they are, so that they may be where a file is mapped.
    pub(super) fn by_kernel() -> Self {
        Self { by_kernel: true, ..Self::default() }
    }

    /// How many bytes wait.
    pub(super) const fn pending(&self) -> u64 {
        self.pending
    }

    /// Gives `permit` back when everything queued so far has been sent.
    pub(super) fn release_after(&mut self, permit: OwnedSemaphorePermit) {
        if !self.parts.is_empty() {
            self.parts.push_back(Part::Permit { _permit: permit });
        }
    }

    /// The segments that follow are those of the disk from `offset` on. If they were `fetched` a moment ago it is not looked
    /// whether the page cache still has those that leave from there.
    pub(super) fn begin_read(&mut self, offset: u64, fetched: bool) {
        self.disk = offset;
        self.fetched = fetched;
    }

    /// The file that is to be sent next cannot be read: nothing is sent until [`mend`](Self::mend) was called.
    pub(super) fn break_off(&mut self) {
        self.broken = true;
    }

    /// What of the disk has to come from elsewhere before anything can be sent: offset and length.
    pub(super) fn broken(&self) -> Option<(u64, u32)> {
        match self.parts.front() {
            Some(Part::File { disk, left, .. }) if self.broken => Some((*disk, *left)),
            _ => None,
        }
    }

    /// `bytes` are those that [`broken`](Self::broken) told of.
    pub(super) fn mend(&mut self, bytes: Bytes) {
        if let Some(front) = self.parts.front_mut() {
            *front = Part::Bytes(bytes);
        }
        self.broken = false;
    }

    /// The place where the next reply begins.
    pub(super) fn mark(&self) -> Mark {
        let filled = match self.parts.back() {
            Some(Part::Gathered(gathered)) => gathered.filled,
            Some(Part::Header { filled, .. }) => usize::from(*filled),
            _ => 0,
        };
        Mark { parts: self.parts.len(), filled, pending: self.pending }
    }

    /// Takes back everything queued since `mark`, of which nothing has been sent. Whether that is because a segment is in a
    /// file, and a disk has yet to give it.
    pub(super) fn rollback(&mut self, mark: &Mark) -> bool {
        self.parts.truncate(mark.parts);
        match self.parts.back_mut() {
            Some(Part::Gathered(gathered)) => gathered.filled = mark.filled,
            Some(Part::Header { filled, .. }) => *filled = mark.filled as u8,
            _ => {}
        }
        self.pending = mark.pending;
        std::mem::take(&mut self.cold)
    }

    /// Room for `len` more bytes in the gathering buffer.
    fn gather(&mut self, len: usize) -> &mut Gathered {
        let fits = matches!(self.parts.back(), Some(Part::Gathered(g)) if g.filled + len <= BUFFER_MAX);
        if !fits {
            let bytes = std::mem::take(&mut self.spare);
            self.parts.push_back(Part::Gathered(Gathered { bytes, filled: 0, sent: 0 }));
        }
        match self.parts.back_mut() {
            Some(Part::Gathered(gathered)) => gathered,
            _ => unreachable!("a gathering buffer is at the end: it was there or has just been pushed"),
        }
    }

    /// What to send next, if anything.
    pub(super) fn next(&self) -> Option<Next<'_>> {
        if self.broken {
            return None;
        }
        let mut slices = SmallVec::new();
        let mut more = false;
        for part in &self.parts {
            match part {
                Part::Gathered(gathered) => {
                    slices.push(IoSlice::new(&gathered.bytes[gathered.sent..gathered.filled]));
                }
                Part::Header { bytes, filled, sent } => {
                    slices.push(IoSlice::new(&bytes[usize::from(*sent)..usize::from(*filled)]));
                }
                Part::Bytes(bytes) => slices.push(IoSlice::new(bytes)),
                Part::Zero(len) => {
                    let mut left = *len;
                    while left > 0 && slices.len() < SLICES {
                        let here = left.min(ZEROS.len());
                        slices.push(IoSlice::new(&ZEROS[..here]));
                        left -= here;
                    }
                }
                Part::File { file, offset, left, mapped, .. } => {
                    let memory = mapped.then(|| file.memory(*offset, *left)).flatten();
                    match memory {
                        Some(memory) => slices.push(memory),
                        None if slices.is_empty() => {
                            return Some(Next::File { file: file.as_fd(), offset: *offset, len: *left });
                        }
                        None => {
                            more = true;
                            break;
                        }
                    }
                }
                Part::Permit { .. } => {}
            }
            if slices.len() >= SLICES {
                break;
            }
        }
        (!slices.is_empty()).then_some(Next::Slices { slices, more })
    }

    /// Notes that `sent` bytes of what [`next`](Self::next) told have been sent.
    pub(super) fn advance(&mut self, sent: usize) {
        self.pending = self.pending.saturating_sub(sent as u64);
        let mut sent = sent;
        while let Some(part) = self.parts.front_mut() {
            let len = match part {
                Part::Gathered(gathered) => gathered.filled - gathered.sent,
                Part::Header { filled, sent, .. } => usize::from(*filled - *sent),
                Part::Bytes(bytes) => bytes.len(),
                Part::File { left, .. } => *left as usize,
                Part::Zero(left) => *left,
                Part::Permit { .. } => 0,
            };
            if sent < len {
                match part {
                    Part::Gathered(gathered) => gathered.sent += sent,
                    Part::Header { sent: before, .. } => *before += sent as u8,
                    Part::Bytes(bytes) => drop(bytes.split_to(sent)),
                    Part::File { offset, left, disk, .. } => {
                        *offset += sent as u64;
                        *disk += sent as u64;
                        *left -= sent as u32;
                    }
                    Part::Zero(left) => *left -= sent,
                    Part::Permit { .. } => {}
                }
                return;
            }
            sent -= len;
            if let Some(Part::Gathered(gathered)) = self.parts.pop_front()
                && gathered.bytes.len() > self.spare.len()
            {
                self.spare = gathered.bytes;
            }
        }
    }

    /// Nothing that is queued is sent from where it is mapped any more; whether anything was to be.
    pub(super) fn unmap(&mut self) -> bool {
        let mut any = false;
        for part in &mut self.parts {
            if let Part::File { mapped, .. } = part {
                any |= std::mem::take(mapped);
            }
        }
        any
    }

    /// Queues a stretch of a file, if the page cache holds it; whether it does.
    fn push_file(&mut self, file: &Arc<dyn FileBytes>, offset: u64, len: u32) -> io::Result<bool> {
        if self.by_kernel && (MAPPED_MIN..SENDFILE_MIN).contains(&len) && file.in_memory(offset, len) {
            self.push_stretch(file, offset, len, true);
            return Ok(true);
        }
        if len < SENDFILE_MIN {
            let gathered = self.gather(len as usize);
            let resident = disk::read_resident(file.as_fd(), gathered.room(len as usize), offset)?;
            gathered.filled += if resident { len as usize } else { 0 };
            return Ok(resident);
        }
        let resident = self.fetched || disk::is_resident(file.as_fd(), offset, len)?;
        if resident {
            self.push_stretch(file, offset, len, false);
        }
        Ok(resident)
    }

    fn push_stretch(&mut self, file: &Arc<dyn FileBytes>, offset: u64, len: u32, mapped: bool) {
        let (file, disk) = (Arc::clone(file), self.disk);
        self.parts.push_back(Part::File { file, offset, left: len, disk, mapped });
    }

    /// Puts `bytes` between two stretches of files, or behind the last one, where no buffer is needed for them; whether it
    /// did.
    fn push_header(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() <= HEADER && matches!(self.parts.back(), Some(Part::File { .. })) {
            self.parts.push_back(Part::Header { bytes: [0; HEADER], filled: 0, sent: 0 });
        }
        let Some(Part::Header { bytes: room, filled, .. }) = self.parts.back_mut() else { return false };
        let Some(room) = room.get_mut(usize::from(*filled)..).and_then(|room| room.get_mut(..bytes.len()))
        else {
            return false;
        };
        room.copy_from_slice(bytes);
        *filled += bytes.len() as u8;
        true
    }
}

impl Sink for Outbox {
    fn bytes(&mut self, bytes: &[u8]) {
        if !self.push_header(bytes) {
            let gathered = self.gather(bytes.len());
            gathered.room(bytes.len()).copy_from_slice(bytes);
            gathered.filled += bytes.len();
        }
        self.pending += bytes.len() as u64;
    }

    fn segment(&mut self, segment: &Segment) -> Result<(), Errno> {
        let len = u64::from(segment.len());
        match segment {
            Segment::Bytes(bytes) if bytes.len() <= COPY_MAX => {
                self.bytes(bytes);
                self.pending -= len;
            }
            Segment::Bytes(bytes) => self.parts.push_back(Part::Bytes(bytes.clone())),
            Segment::File { len: 0, .. } | Segment::Zero(0) => {}
            Segment::File { file, offset, len } => match self.push_file(file, *offset, *len) {
                Ok(true) => {}
                Ok(false) => {
                    self.cold = true;
                    return Err(Errno::Io);
                }
                Err(error) => {
                    tracing::debug!(%error, "{len} bytes at {offset:#x} cannot be read from a local file");
                    return Err(Errno::Io);
                }
            },
            Segment::Zero(len) => self.parts.push_back(Part::Zero(*len as usize)),
        }
        self.pending += len;
        self.disk += len;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
