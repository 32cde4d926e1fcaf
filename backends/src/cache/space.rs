//! Space of a file: given to it before it is written, and found wherever it has some.
//!
//! Where the kernel finds a place on the disk for each page as it is written, that takes a third of the time of the write. So
//! space for much is asked for at once. After power was lost some of it may never have been written: it reads as zeros and
//! is no data (lseek(2)), but is taken all the same, so that whoever looks for what could be given back must ask for extents.

use rustix::fs::{FallocateFlags, SeekFrom, fallocate, fstatfs, seek};
use rustix::io::Errno;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;

/// The file system that gains by it: ext4 (statfs(2)). XFS asks for more than is written by itself, Btrfs finds places later.
const EXT4: i64 = 0xef53;

/// Bytes from which on it is worth a system call.
const WORTH: u64 = 128 << 10;

/// Whether space is given to `file` before it is written.
pub(super) fn is_given(file: &File) -> bool {
    fstatfs(file).is_ok_and(|status| status.f_type == EXT4)
}

/// Gives `file` the space for `len` bytes from `at` on, which are written next, if that is worth it.
pub(super) fn give(file: &File, at: u64, len: u64) {
    if len >= WORTH {
        // If there is none the write will tell.
        let _ = fallocate(file, FallocateFlags::KEEP_SIZE, at, len);
    }
}

/// The next stretch of `file` at or after `from` that takes space, written or not; up to the end of the file where a file
/// system cannot tell. `len` is the length of the file.
pub(super) fn next(file: &File, from: u64, len: u64) -> Option<Range<u64>> {
    match extent(file, from, len) {
        Ok(extent) => extent,
        Err(_) => data(file, from, len),
    }
}

/// As [`next`], but only what was written.
pub(super) fn data(file: &File, from: u64, len: u64) -> Option<Range<u64>> {
    let begin = match seek(file, SeekFrom::Data(from)) {
        Ok(begin) => begin,
        Err(Errno::NXIO) => return None,
        // No holes on this file system: everything takes space.
        Err(_) => return Some(from..len),
    };
    Some(begin..seek(file, SeekFrom::Hole(begin)).unwrap_or(len))
}

/// `struct fiemap` with room for one extent (linux/fiemap.h).
#[repr(C)]
#[derive(Default)]
struct Fiemap {
    start: u64,
    length: u64,
    flags: u32,
    mapped_extents: u32,
    extent_count: u32,
    reserved: u32,
    extent: FiemapExtent,
}

/// `struct fiemap_extent` (linux/fiemap.h).
#[repr(C)]
#[derive(Default)]
struct FiemapExtent {
    logical: u64,
    physical: u64,
    length: u64,
    reserved64: [u64; 2],
    flags: u32,
    reserved: [u32; 3],
}

/// `FS_IOC_FIEMAP`, `_IOWR('f', 11, struct fiemap)`, whose size is that of what stands before the extents.
const FS_IOC_FIEMAP: u64 = 0xc020_660b;

/// As [`next`], where extents can be asked for.
fn extent(file: &File, from: u64, len: u64) -> io::Result<Option<Range<u64>>> {
    let mut map = Fiemap { start: from, length: u64::MAX - from, extent_count: 1, ..Fiemap::default() };
    // SAFETY: the kernel writes no more extents behind the head than `extent_count`, and `map` has room for that one.
    let asked = unsafe { libc::ioctl(file.as_raw_fd(), FS_IOC_FIEMAP as _, &raw mut map) };
    if asked != 0 {
        return Err(io::Error::last_os_error());
    }
    let FiemapExtent { logical, length, .. } = map.extent;
    let end = logical.saturating_add(length).min(len);
    Ok((map.mapped_extents > 0 && logical.max(from) < end).then_some(logical.max(from)..end))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Maker, expect, key, read};
    use super::super::{Span, Spans, Store};
    use super::*;
    use rustix::io::pwrite;
    use std::time::{Duration, Instant};

    const MIB: u64 = 1 << 20;

    #[test]
    fn space_is_found_whether_it_was_written_or_not() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 * MIB).unwrap();
        give(&file, MIB, 2 * MIB);
        give(&file, 4 * MIB, WORTH - 1);
        pwrite(&file, &[1; 65536], 6 * MIB).unwrap();
        if !is_given(&file) {
            assert_eq!(next(&file, 0, 8 * MIB).is_some(), data(&file, 0, 8 * MIB).is_some());
            return;
        }
        let written = Some(6 * MIB..6 * MIB + 65536);
        for from in [0, MIB, 2 * MIB] {
            let found = next(&file, from, 8 * MIB).unwrap();
            assert_eq!(found.start, from.max(MIB));
            // The disk may have had no room for it in one piece.
            let mut end = found.end;
            while end < 3 * MIB {
                let more = next(&file, end, 8 * MIB).unwrap();
                assert_eq!(more.start, end);
                end = more.end;
            }
            assert_eq!(end, 3 * MIB);
        }
        assert_eq!(next(&file, 3 * MIB, 8 * MIB), written, "so little was not given");
        assert_eq!(data(&file, 0, 8 * MIB), written);
        assert_eq!(next(&file, 7 * MIB, 8 * MIB), None);
        file.sync_all().unwrap();
        assert_eq!(next(&file, 3 * MIB, 8 * MIB), written);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn space_that_was_never_written_is_given_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 8 * MIB).unwrap();
        let object = store.object(&key("a"), 64 * MIB, 65536, Maker::new()).await.unwrap();
        assert!(object.warm(0..65536).await.unwrap());
        let mut spans = Spans::new();
        assert!(object.peek(0..65536, &mut spans));
        let Some(Span::File { lease, .. }) = spans.pop() else { panic!("not in the file") };
        if !is_given(&lease) {
            return;
        }
        // As if power had been lost before it was written.
        give(&lease, 40 * MIB, 6 * MIB);
        let file = lease.try_clone().unwrap();
        drop(lease);
        let (began, mut at) = (Instant::now(), MIB);
        while next(&file, 40 * MIB, 64 * MIB).is_some() {
            assert!(began.elapsed() < Duration::from_secs(120), "it is not given back");
            let range = at..at + 65536;
            assert!(read(&object, range.clone()).await.unwrap() == expect(range));
            at = MIB + (at + 65536) % (16 * MIB);
        }
    }
}
