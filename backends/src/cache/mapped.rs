//! A file's bytes in memory, for small reads that are asked for again and again.
//!
//! Most of what a reply of a few KiB costs is to take its bytes out of the page cache: a system call for each, which finds
//! the page and copies it. Where a stretch of a file is busy it is mapped instead, and the socket takes the bytes of many
//! replies from there with one system call.
//!
//! Nobody may wait for a disk by that. So it is looked every [`PERIOD`] which pages of a busy stretch are in memory
//! (mincore(2), which costs as much as a small read or more), and only those are said to be. One that the kernel took away
//! since makes the system call that sends it wait for the disk, once.
//!
//! The process itself never reads what is mapped: where a disk fails, or a file has become shorter, that is a signal, but to
//! a system call an error (EFAULT).

use super::bits::Bits;
use rustix::fs::{FileType, fstat, fstatfs};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::ffi::c_void;
use std::fs::File;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::ops::{Range, RangeInclusive};
use std::ptr::{NonNull, null_mut};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Bytes whose pages are looked at together.
const CHUNK: u64 = 2 << 20;
/// Most pages in a chunk.
const PAGES: usize = 512;
/// How long a look is good for, in milliseconds. Under the greatest pressure the kernel keeps for longer what was just read.
const PERIOD: u32 = 200;
/// How long after a look at the clock what it said is used, in milliseconds.
const LATE: u32 = 10_000;
/// How many reads of a chunk in a period are worth a look, and how many after the first one.
const BUSY: u32 = 16;
const STILL_BUSY: u32 = 8;
/// How many reads of a file in a period are worth mapping it.
const BUSY_FILE: u32 = 1000;
/// Most chunks of one file of which something is known at a time.
const KNOWN: u64 = 2048;
/// How many chunks may have been busy before all is forgotten: what the kernel notes of each, 4 KiB, stays as long as the map.
const WORN: u32 = 4096;
/// Who owns what a user namespace has no name for (user_namespaces(7)): nobody knows whose it is.
const OVERFLOW: u32 = 65534;

/// File systems on disks of this host and in memory, by their magic numbers (statfs(2)): ext, XFS, Btrfs, tmpfs. With others
/// a page that was in memory may take a server to come back.
const LOCAL: [i64; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994];

/// A file that is mapped when it is busy.
#[derive(Debug)]
pub(super) struct Mapped {
    /// How much of the file can be mapped.
    len: u64,
    reads: Rate,
    memory: OnceLock<Option<Memory>>,
    /// When it was last seen that the file is as long as it was.
    seen: AtomicU32,
    short: AtomicBool,
}

/// Whether `file` is on a file system that has no server to ask.
pub(super) fn is_local(file: &File) -> bool {
    fstatfs(file).is_ok_and(|status| LOCAL.contains(&status.f_type))
}

impl Mapped {
    /// `file`, if the kernel tells this process what of it is in memory: to others than its owner it says that all is.
    pub(super) fn of(file: &File) -> Mapped {
        let told = |stat: &rustix::fs::Stat| {
            let user = rustix::process::geteuid().as_raw();
            FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
                && stat.st_uid == user
                && user != OVERFLOW
                && is_local(file)
        };
        let len = fstat(file).ok().filter(told).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
        let (reads, memory, seen, short) = Default::default();
        Mapped { len, reads, memory, seen, short }
    }

    /// Whether `range` of `file` is mapped, and the page cache held it a moment ago. `file` is the one this was made of.
    pub(super) fn holds(&self, file: &File, range: Range<u64>) -> bool {
        if range.is_empty() || range.end > self.len {
            return false;
        }
        let now = now();
        let memory = match self.memory.get() {
            Some(memory) => memory,
            None if self.reads.count(now).is_some_and(|reads| reads >= BUSY_FILE) => {
                self.memory.get_or_init(|| Memory::of(file, self.len))
            }
            None => return false,
        };
        memory.as_ref().is_some_and(|memory| memory.holds(range, now)) && !self.is_short(file, now)
    }

    /// Where `range` of `file` is in memory, for a system call. None unless [`holds`](Self::holds) said so of some range before,
    /// and if the file has become shorter.
    pub(super) fn memory(&self, file: &File, range: Range<u64>) -> Option<IoSlice<'_>> {
        let memory = self.memory.get()?.as_ref()?;
        let inside = range.start <= range.end && range.end <= self.len && !self.is_short(file, now());
        inside.then(|| memory.slice(range))
    }

    /// Whether the file is shorter than it was. Its last page in memory then has zeros behind the end, which no system call
    /// would tell from content, so that this is looked at whenever the clock has moved on.
    fn is_short(&self, file: &File, now: u32) -> bool {
        if self.seen.load(Ordering::Relaxed) != now {
            let len = fstat(file).map_or(0, |stat| u64::try_from(stat.st_size).unwrap_or(0));
            self.short.store(len < self.len, Ordering::Relaxed);
            self.seen.store(now, Ordering::Relaxed);
        }
        self.short.load(Ordering::Relaxed)
    }

    /// Makes it as one that has served its time; false if the file cannot be mapped.
    #[cfg(test)]
    pub(super) fn wear(&self, file: &File) -> bool {
        if self.len == 0 {
            return false;
        }
        let memory = self.memory.get_or_init(|| Memory::of(file, self.len)).as_ref().unwrap();
        memory.begun.store(WORN, Ordering::Relaxed);
        true
    }

    /// Whether it has served its time: no range is said to be in memory any more.
    pub(super) fn is_worn(&self) -> bool {
        self.memory.get().is_some_and(|memory| memory.as_ref().is_some_and(Memory::is_worn))
    }
}

/// The map of a file.
#[derive(Debug)]
struct Memory {
    base: NonNull<c_void>,
    len: usize,
    /// Bytes in a page.
    page: u64,
    /// What is known of chunks: each has one place where it can be.
    chunks: Box<[Chunk]>,
    /// Chunks that were ever busy, and how many those are.
    used: Bits,
    begun: AtomicU32,
}

// SAFETY: the map is for reading, by system calls, from any thread, and it stays until this is dropped.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `None` if it cannot be mapped.
    fn of(file: &File, len: u64) -> Option<Memory> {
        let len = usize::try_from(len).ok()?;
        // SAFETY: a new map, where the kernel chooses.
        let map = unsafe { mmap(null_mut(), len, ProtFlags::READ, MapFlags::SHARED, file, 0) };
        let map = map.inspect_err(|error| tracing::debug!(%error, "a busy file is not mapped"));
        let all = (len as u64).div_ceil(CHUNK);
        let chunks = (0..all.min(KNOWN)).map(|_| Chunk::default()).collect();
        // SAFETY: it has no preconditions. It never fails for this name (sysconf(3)).
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        let base = NonNull::new(map.ok()?)?;
        Some(Memory { base, len, page, chunks, used: Bits::new(all), begun: AtomicU32::new(0) })
    }

    fn is_worn(&self) -> bool {
        self.begun.load(Ordering::Relaxed) >= WORN
    }

    fn holds(&self, range: Range<u64>, now: u32) -> bool {
        let number = range.start / CHUNK;
        if (range.end - 1) / CHUNK != number || self.is_worn() {
            return false;
        }
        let Some(chunk) = self.chunks.get((number % self.chunks.len() as u64) as usize) else { return false };
        if !chunk.is(number, now) {
            return false;
        }
        if let Some(reads) = chunk.count(now) {
            let enough = if chunk.known.load(Ordering::Relaxed) { STILL_BUSY } else { BUSY };
            let pages = (reads >= enough).then(|| self.look(number)).flatten();
            if pages.is_some() && !self.used.get(number) {
                self.used.set(number..number + 1);
                self.begun.fetch_add(1, Ordering::Relaxed);
            }
            chunk.note(pages);
        }
        chunk.holds(range.start % CHUNK / self.page..=(range.end - 1) % CHUNK / self.page)
    }

    /// Which pages of a chunk are in memory, a bit for each.
    fn look(&self, number: u64) -> Option<[u64; PAGES / 64]> {
        let start = usize::try_from(number * CHUNK).ok()?;
        let len = self.len.checked_sub(start)?.min(CHUNK as usize);
        let mut found = [0_u8; PAGES];
        // SAFETY: the stretch lies in the map and has no more pages than `found` has bytes, for none is smaller than 4 KiB.
        let failed = unsafe { libc::mincore(self.base.as_ptr().byte_add(start), len, found.as_mut_ptr()) };
        let mut pages = [0; PAGES / 64];
        for (word, found) in pages.iter_mut().zip(found.chunks(64)) {
            *word = found.iter().rev().fold(0, |word, byte| word << 1 | u64::from(byte & 1));
        }
        (failed == 0).then_some(pages)
    }

    /// `range` lies in the file.
    fn slice(&self, range: Range<u64>) -> IoSlice<'_> {
        let len = (range.end - range.start) as usize;
        // SAFETY: the range lies in the map, which stays for as long as this is borrowed. Nobody but the kernel reads it.
        let bytes = unsafe {
            std::slice::from_raw_parts(self.base.as_ptr().cast::<u8>().add(range.start as usize), len)
        };
        IoSlice::new(bytes)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: nobody has a slice of it any more.
        let unmapped = unsafe { munmap(self.base.as_ptr(), self.len) };
        if let Err(error) = unmapped {
            tracing::debug!(%error, "a file stays mapped");
        }
    }
}

/// What is known of a chunk. Threads may change parts of it at the same time; what comes of that is at worst a look too many,
/// or a page taken for one that is in memory.
#[derive(Debug, Default)]
struct Chunk {
    /// Which one it is, and one more: 0 for none.
    number: AtomicU32,
    reads: Rate,
    /// Whether `pages` says anything.
    known: AtomicBool,
    pages: [AtomicU64; PAGES / 64],
}

impl Chunk {
    /// Whether this is the chunk called `number`, or is from now on, for another one is not asked for any more.
    fn is(&self, number: u64, now: u32) -> bool {
        let Ok(number) = u32::try_from(number + 1) else { return false };
        let present = self.number.load(Ordering::Relaxed);
        if present != number && (present == 0 || self.reads.age(now) >= 2 * PERIOD) {
            self.known.store(false, Ordering::Relaxed);
            self.reads.begin(now);
            self.number.store(number, Ordering::Relaxed);
        }
        self.number.load(Ordering::Relaxed) == number
    }

    /// As [`Rate::count`]. What was known before somebody asked again after a while is forgotten at once.
    fn count(&self, now: u32) -> Option<u32> {
        if self.reads.age(now) >= 2 * PERIOD {
            self.known.store(false, Ordering::Relaxed);
        }
        self.reads.count(now)
    }

    fn note(&self, pages: Option<[u64; PAGES / 64]>) {
        for (word, pages) in self.pages.iter().zip(pages.unwrap_or_default()) {
            word.store(pages, Ordering::Relaxed);
        }
        self.known.store(pages.is_some(), Ordering::Relaxed);
    }

    /// Whether these pages of the chunk were in memory.
    fn holds(&self, mut pages: RangeInclusive<u64>) -> bool {
        let bit = |page: u64| {
            let word = self.pages.get((page / 64) as usize);
            word.is_some_and(|word| word.load(Ordering::Relaxed) >> (page % 64) & 1 == 1)
        };
        self.known.load(Ordering::Relaxed) && pages.all(bit)
    }
}

/// How often something happens. Where threads count at the same time some are lost.
#[derive(Debug, Default)]
struct Rate {
    since: AtomicU32,
    count: AtomicU32,
}

impl Rate {
    /// Counts one more. If that is the first of another period: how many there were in each [`PERIOD`] since the last began.
    fn count(&self, now: u32) -> Option<u32> {
        let age = self.age(now);
        let count = self.count.load(Ordering::Relaxed);
        if age < PERIOD {
            self.count.store(count.saturating_add(1), Ordering::Relaxed);
            return None;
        }
        self.begin(now);
        self.count.store(1, Ordering::Relaxed);
        u32::try_from(u64::from(count) * u64::from(PERIOD) / u64::from(age)).ok()
    }

    fn begin(&self, now: u32) {
        self.since.store(now, Ordering::Relaxed);
        self.count.store(0, Ordering::Relaxed);
    }

    /// For how long it has been counted, in milliseconds.
    fn age(&self, now: u32) -> u32 {
        let age = now.wrapping_sub(self.since.load(Ordering::Relaxed));
        // Another thread may have begun it after this one looked at the clock.
        if age > u32::MAX - LATE { 0 } else { age }
    }
}

/// Milliseconds, to within a few, since some moment. They wrap.
fn now() -> u32 {
    let mut now = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: it writes one timespec. All zeros are one, too, so that nothing is lost if it writes none.
    let now = unsafe {
        libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, now.as_mut_ptr());
        now.assume_init()
    };
    (now.tv_sec as u32).wrapping_mul(1000).wrapping_add((now.tv_nsec / 1_000_000) as u32)
}

#[cfg(test)]
mod tests;
