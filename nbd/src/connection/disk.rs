//! Stretches of files: those that the page cache holds, and those that a disk has yet to give.
//!
//! The threads that serve never wait for a disk: who reads what is at hand is not to wait for somebody who reads what is
//! not, and a disk is fastest when it is asked for many things at once.

use crate::{Segment, Segments};
use rustix::fs::fstatfs;
use rustix::io::{Errno, ReadWriteFlags, pread, preadv2};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long a disk may take. With the 25 seconds that an export may take to get the bytes elsewhere, that is less than the
/// kernel's timer.
const PATIENCE: Duration = Duration::from_secs(4);

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
            // Not every file system can promise not to wait: before Linux 6.6 one in memory cannot (preadv2(2)).
            Err(Errno::OPNOTSUPP) if is_in_memory(file) => {
                return read_exact(file, &mut buffer[done..], offset + done as u64).map(|()| true);
            }
            Err(Errno::OPNOTSUPP) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(true)
}

/// Whether the page cache seems to hold `len` bytes from `offset` of `file` on: their first and their last.
pub(super) fn is_resident(file: BorrowedFd<'_>, offset: u64, len: u32) -> io::Result<bool> {
    let mut byte = [0];
    let last = offset + u64::from(len.saturating_sub(1));
    Ok(read_resident(file, &mut byte, offset)? && read_resident(file, &mut byte, last)?)
}

fn is_in_memory(file: BorrowedFd<'_>) -> bool {
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

/// `segments` with the bytes of files in memory, read by a thread that may wait. An error where they cannot be read, or
/// not in time.
pub(super) async fn load(segments: Segments) -> io::Result<Segments> {
    let read = |segment| match segment {
        Segment::File { file, offset, len } => {
            let mut bytes = vec![0; len as usize];
            read_exact(file.as_fd(), &mut bytes, offset)?;
            Ok(Segment::Bytes(bytes.into()))
        }
        other => Ok(other),
    };
    let loading = spawn_blocking(move || segments.into_iter().map(read).collect());
    match timeout(PATIENCE, loading).await {
        Ok(loaded) => loaded.map_err(io::Error::other)?,
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the disk does not answer")),
    }
}
