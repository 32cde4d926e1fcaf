//! One object's files: `meta`, `index` and `data`.
//!
//! Format version 1. `meta` is JSON: magic, version, the key, size and block size, written to a temporary name and
//! renamed. `index` is an array of little-endian 64-bit checksums (XXH3 of the block's bytes, seeded with its number;
//! 0 is stored as 1), where 0 means that the block is not there. `data` is longer than the object by a byte and has holes where no
//! block is, or, after power was lost, space that was never written.

use super::lock::is_at;
use super::{Key, Lease, space};
use crate::Buffer;
use bytes::Bytes;
use rustix::fs::{FallocateFlags, Mode, OFlags};
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;
use twox_hash::{XxHash3_64, XxHash3_128};

const MAGIC: &str = "thinorigin cache";
const VERSION: u32 = 1;

/// Most bytes that are read at a time to compare them with their checksums, where no block is larger: a part of a processor's
/// own cache.
const LARGEST_READ: u64 = 256 << 10;

/// What `data` is longer than its object: no write of a block makes it so long again, once it was cut.
const BEHIND: u64 = 1;

/// The largest `meta` that is read: locations are at most 4 KiB.
const MAX_META: u64 = 64 << 10;

/// Most blocks of an object that is kept: of 64 KiB each they are 128 TiB, and to note which are there takes 6 MiB at first.
const MAX_BLOCKS: u64 = 1 << 31;

/// Size and block size: where block number `n` is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct Geometry {
    pub(super) size: u64,
    pub(super) block: u64,
}

impl Geometry {
    pub(super) fn blocks(&self) -> u64 {
        self.size.div_ceil(self.block)
    }

    /// Whether it is of a size that is kept. What a server or an image says its size is costs nothing but words.
    pub(super) fn is_kept(&self) -> bool {
        self.blocks() <= MAX_BLOCKS
    }

    /// The bytes of `blocks`.
    pub(super) fn bytes(&self, blocks: &Range<u64>) -> Range<u64> {
        blocks.start * self.block..(blocks.end * self.block).min(self.size)
    }

    /// The blocks that `range` touches.
    pub(super) fn touched(&self, range: &Range<u64>) -> Range<u64> {
        if range.is_empty() { 0..0 } else { range.start / self.block..range.end.div_ceil(self.block) }
    }
}

#[derive(serde::Serialize, serde::Deserialize)]
struct Meta {
    magic: String,
    version: u32,
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    geometry: Geometry,
}

/// The directory name of an object.
pub(super) fn name(key: &Key, geometry: Geometry) -> String {
    let text = meta(key, geometry);
    format!("{:032x}", XxHash3_128::oneshot(text.as_bytes()))
}

fn meta(key: &Key, geometry: Geometry) -> String {
    let meta = Meta { magic: MAGIC.to_owned(), version: VERSION, key: key.clone(), geometry };
    // Strings and numbers only: nothing that could fail to be written.
    serde_json::to_string(&meta).unwrap_or_default()
}

/// What the object in `directory` is, if it is one of this version.
pub(super) fn read_meta(directory: &Path) -> io::Result<(Key, Geometry)> {
    let mut text = String::new();
    File::open(directory.join("meta"))?.take(MAX_META).read_to_string(&mut text)?;
    let meta: Meta = serde_json::from_str(&text)?;
    let sane = meta.magic == MAGIC && meta.version == VERSION && meta.geometry.block.is_power_of_two();
    if sane { Ok((meta.key, meta.geometry)) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
}

/// Notes that the object in `directory` is opened now; eviction asks for it with [`opened`].
pub(super) fn touch(directory: &Path) -> io::Result<()> {
    File::options().write(true).open(directory.join("meta"))?.set_modified(SystemTime::now())
}

/// The file that says that all of an object was local once. Without it, or with it and blocks missing, nothing is wrong
/// that the object's server could not mend; it says only that the server need not be asked when the object is opened.
const COMPLETE: &str = "complete";

/// Notes that all of the object in `directory` is local.
pub(super) fn set_complete(directory: &Path) -> io::Result<()> {
    File::options().write(true).create(true).truncate(true).mode(0o600).open(directory.join(COMPLETE))?;
    File::open(directory)?.sync_all()
}

/// Forgets that note, before the first block goes.
pub(super) fn clear_complete(directory: &Path) -> io::Result<()> {
    match std::fs::remove_file(directory.join(COMPLETE)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether it stands.
pub(super) fn is_complete(directory: &Path) -> bool {
    directory.join(COMPLETE).exists()
}

/// When the object in `directory` was last opened. Nothing, which is before all times, if that cannot be said.
pub(super) fn opened(directory: &Path) -> Option<SystemTime> {
    directory.join("meta").metadata().and_then(|meta| meta.modified()).ok()
}

#[derive(Debug)]
pub(super) struct Disk {
    data: Arc<File>,
    /// None if the object has no identity and its data is gone when it is closed.
    index: Option<File>,
    geometry: Geometry,
    /// Nothing was on disk when it was opened, so that there is nothing to look for.
    pub(super) fresh: bool,
    /// Whether space is given to `data` before it is written.
    given: bool,
}

impl Disk {
    /// Opens or makes the object in `directory`, for the store's owner.
    pub(super) fn own(directory: &Path, key: &Key, geometry: Geometry) -> io::Result<Disk> {
        let fresh = match read_meta(directory) {
            Ok((k, g)) if k == *key && g == geometry => false,
            // Another format's, another object's with the same hash, or torn: none of its blocks can be used.
            _ => {
                match std::fs::remove_dir_all(directory) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                std::fs::create_dir_all(directory)?;
                true
            }
        };
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let data = Arc::new(open_data(&options, directory)?);
        let index = Some(options.open(directory.join("index"))?);
        let given = space::is_given(&data);
        let disk = Disk { data, index, geometry, fresh, given };
        disk.data.set_len(geometry.size + BEHIND)?;
        if let Some(index) = &disk.index {
            index.set_len(geometry.blocks() * 8)?;
        }
        if fresh {
            point("files made");
            // Last, so that a directory without it is known to be half made.
            let temporary = directory.join("meta.tmp");
            let mut file =
                File::options().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            file.write_all(meta(key, geometry).as_bytes())?;
            point("meta written");
            file.sync_all()?;
            std::fs::rename(&temporary, directory.join("meta"))?;
            point("meta named");
            File::open(directory)?.sync_all()?;
        }
        Ok(disk)
    }

    /// Opens what another process keeps in `directory`, for reading.
    pub(super) fn read_only(directory: &Path, key: &Key, geometry: Geometry) -> io::Result<Disk> {
        if read_meta(directory)? != (key.clone(), geometry) {
            return Err(io::Error::from(io::ErrorKind::InvalidData));
        }
        let data = Arc::new(open_data(File::options().read(true), directory)?);
        let index = Some(File::open(directory.join("index"))?);
        Ok(Disk { data, index, geometry, fresh: false, given: false })
    }

    /// An object in a nameless file below `directory`, which ends with this process.
    pub(super) fn nameless(directory: &Path, geometry: Geometry) -> io::Result<Disk> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let data = File::from(rustix::fs::open(directory, flags, Mode::RUSR | Mode::WUSR)?);
        data.set_len(geometry.size + BEHIND)?;
        let given = space::is_given(&data);
        Ok(Disk { data: Arc::new(data), index: None, geometry, fresh: true, given })
    }

    pub(super) fn data(&self) -> &Arc<File> {
        &self.data
    }

    /// Whether `lease` is one on this `data`.
    pub(super) fn is_of(&self, lease: &Lease) -> bool {
        Arc::ptr_eq(&lease.file, &self.data)
    }

    /// Whether `data` is as long as it was made. If it became shorter, and then longer again by a write, what lies between
    /// would be zeros that nobody stored.
    pub(super) fn is_whole(&self) -> bool {
        self.data.metadata().is_ok_and(|metadata| metadata.len() > self.geometry.size)
    }

    /// Whether `data` is what lies in `directory`.
    pub(super) fn is_in(&self, directory: &Path) -> bool {
        is_at(&self.data, &directory.join("data"))
    }

    /// Reads `blocks`, and calls `each` with the number and the bytes of every one that is there and whole.
    pub(super) fn read(&self, blocks: Range<u64>, mut each: impl FnMut(u64, Bytes)) {
        let Some(sums) = self.sums(&blocks) else { return };
        let most = (LARGEST_READ / self.geometry.block).max(1) as usize;
        let mut at = blocks.start;
        for part in sums.chunks(most) {
            for run in part.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
                let end = at + run.len() as u64;
                if run[0] != 0 {
                    self.read_run(at..end, run, &mut each);
                }
                at = end;
            }
        }
    }

    /// As [`read`](Self::read), for blocks that lie in a row and have the checksums `sums`.
    fn read_run(&self, blocks: Range<u64>, sums: &[u64], each: &mut impl FnMut(u64, Bytes)) {
        let range = self.geometry.bytes(&blocks);
        let mut buffer = Buffer::any((range.end - range.start) as usize);
        if self.data.read_exact_at(buffer.content(), range.start).is_err() {
            // It may be one of them only.
            if blocks.end - blocks.start > 1 {
                for (block, sum) in blocks.zip(sums) {
                    self.read_run(block..block + 1, &[*sum], each);
                }
            }
            return;
        }
        let bytes = buffer.freeze();
        for (block, sum) in blocks.zip(sums) {
            let place = self.geometry.bytes(&(block..block + 1));
            let bytes = bytes.slice((place.start - range.start) as usize..(place.end - range.start) as usize);
            if checksum(block, &bytes) == *sum {
                each(block, bytes);
            }
        }
    }

    /// What the index has for each of `blocks`: a checksum, or 0.
    fn sums(&self, blocks: &Range<u64>) -> Option<Vec<u64>> {
        let mut sums = vec![0; (blocks.end - blocks.start) as usize * 8];
        self.index.as_ref()?.read_exact_at(&mut sums, blocks.start * 8).ok()?;
        Some(sums.as_chunks::<8>().0.iter().map(|sum| u64::from_le_bytes(*sum)).collect())
    }

    /// The runs of blocks that the index has checksums for.
    pub(super) fn recorded(&self) -> io::Result<Vec<Range<u64>>> {
        let Some(index) = &self.index else { return Ok(Vec::new()) };
        let mut runs: Vec<Range<u64>> = Vec::new();
        let (mut block, mut sums) = (0, vec![0; 64 << 10]);
        let len = self.geometry.blocks() * 8;
        while block < self.geometry.blocks() {
            // Of a large object of which little is here, the index is nearly all hole.
            let Some(next) = space::data(index, block * 8, len) else { break };
            block = next.start / 8;
            let count = (self.geometry.blocks() - block).min(sums.len() as u64 / 8);
            let part = &mut sums[..count as usize * 8];
            index.read_exact_at(part, block * 8)?;
            for (number, sum) in (block..).zip(part.as_chunks::<8>().0) {
                match runs.last_mut() {
                    _ if *sum == [0; 8] => {}
                    Some(last) if last.end == number => last.end += 1,
                    _ => runs.push(number..number + 1),
                }
            }
            block += count;
        }
        Ok(runs)
    }

    /// Whether the index has a checksum for `block` now.
    pub(super) fn is_recorded(&self, block: u64) -> io::Result<bool> {
        let Some(index) = &self.index else { return Ok(false) };
        let mut sum = [0; 8];
        index.read_exact_at(&mut sum, block * 8)?;
        Ok(sum != [0; 8])
    }

    /// Writes `bytes`, whole blocks from `first` on, and returns their checksums, to be recorded when they are durable.
    /// Blocks of zeros become holes: they take no space.
    pub(super) fn store(&self, first: u64, bytes: &[u8]) -> io::Result<Vec<(u64, u64)>> {
        let block = self.geometry.block;
        let blocks = || (first..).zip(bytes.chunks(block as usize));
        let mut at = first * block;
        for run in bytes.chunks(block as usize).collect::<Vec<_>>().chunk_by(|a, b| is_zero(a) == is_zero(b))
        {
            let len: usize = run.iter().map(|block| block.len()).sum();
            let start = (at - first * block) as usize;
            if !is_zero(run[0]) || self.make_hole(at, len as u64).is_err() {
                if self.given {
                    space::give(&self.data, at, len as u64);
                }
                write(&self.data, "data", &bytes[start..start + len], at)?;
            }
            at += len as u64;
        }
        Ok(blocks().map(|(block, bytes)| (block, checksum(block, bytes))).collect())
    }

    /// Makes whole blocks from `at` on, `len` bytes up to the end of the object, a hole.
    fn make_hole(&self, at: u64, len: u64) -> io::Result<()> {
        // To the end of the last block, for only whole file system blocks are given back.
        let len = len.next_multiple_of(self.geometry.block);
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        rustix::fs::fallocate(&self.data, flags, at, len)?;
        #[cfg(test)]
        super::crash::punched(&self.data, at, len);
        point("data punched");
        Ok(())
    }

    /// Makes stored data durable, then the checksums that vouch for it. In the other order a crash would leave
    /// checksums without their data: no wrong bytes, but blocks to be read in vain.
    pub(super) fn record(&self, sums: &[(u64, u64)]) -> io::Result<()> {
        let Some(index) = &self.index else { return Ok(()) };
        sync(&self.data, "data")?;
        for run in sums.chunk_by(|a, b| a.0 + 1 == b.0) {
            let bytes: Vec<u8> = run.iter().flat_map(|(_, sum)| sum.to_le_bytes()).collect();
            write(index, "index", &bytes, run[0].0 * 8)?;
        }
        sync(index, "index")
    }

    /// Takes `blocks` out of the file. The index entries go first, so that nobody looks for what is gone.
    pub(super) fn punch(&self, blocks: &Range<u64>) -> io::Result<()> {
        if let Some(index) = &self.index {
            let nothing = vec![0; ((blocks.end - blocks.start) * 8) as usize];
            write(index, "index", &nothing, blocks.start * 8)?;
            give_pages_back(index, &(blocks.start * 8..blocks.end * 8));
        }
        let bytes = self.geometry.bytes(blocks);
        self.make_hole(bytes.start, bytes.end - bytes.start)
    }

    /// The next run of blocks at or after `from` that take space on disk.
    pub(super) fn stored(&self, from: u64) -> Option<Range<u64>> {
        if from >= self.geometry.blocks() {
            return None;
        }
        let next = if self.given { space::next } else { space::data };
        let Range { start, end } = next(&self.data, from * self.geometry.block, self.geometry.size)?;
        let Geometry { block, .. } = self.geometry;
        Some(start / block..end.div_ceil(block).min(self.geometry.blocks()))
    }

    /// How much disk space the object takes.
    pub(super) fn allocated(&self) -> u64 {
        let of = |file: &File| file.metadata().map_or(0, |metadata| metadata.blocks() * 512);
        of(&self.data) + self.index.as_ref().map_or(0, |index| of(index) + OVERHEAD)
    }
}

/// Pages of an index, which the file system gives and takes.
const PAGE: u64 = 4096;

/// Gives back the pages of an index that bytes `changed` are in, if nothing is in them any more. Nobody else may write to it
/// meanwhile.
fn give_pages_back(index: &File, changed: &Range<u64>) {
    let mut page = [0; PAGE as usize];
    for at in (changed.start / PAGE * PAGE..changed.end).step_by(PAGE as usize) {
        let empty = match index.read_at(&mut page, at) {
            Ok(len) => is_zero(&page[..len]),
            Err(_) => false,
        };
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        // Where it cannot be done it takes its space, as it did.
        if empty && rustix::fs::fallocate(index, flags, at, PAGE).is_ok() {
            #[cfg(test)]
            super::crash::punched(index, at, PAGE);
        }
    }
}

/// Opens `data` of an object. Nobody asks when it was last read, and to keep count of that takes a thirtieth of the time of a
/// small read.
fn open_data(options: &OpenOptions, directory: &Path) -> io::Result<File> {
    let path = directory.join("data");
    let flags = i32::try_from(OFlags::NOATIME.bits()).unwrap_or_default();
    match options.clone().custom_flags(flags).open(&path) {
        // Only the file's owner may say so (open(2)).
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => options.open(&path),
        opened => opened,
    }
}

/// A place where tests may end the process.
#[inline]
fn point(_name: &str) {
    #[cfg(test)]
    super::crash::point(_name);
}

/// Writes to the file called `_name`. Tests see it, and may end the process when half is written.
fn write(file: &File, _name: &str, bytes: &[u8], at: u64) -> io::Result<()> {
    #[cfg(test)]
    super::crash::half(file, _name, bytes, at);
    file.write_all_at(bytes, at)?;
    #[cfg(test)]
    super::crash::written(file, _name, bytes, at);
    Ok(())
}

/// Makes durable what was written to the file called `_name`. Tests see it.
fn sync(file: &File, _name: &str) -> io::Result<()> {
    #[cfg(test)]
    super::crash::syncing(file)?;
    file.sync_data()?;
    #[cfg(test)]
    super::crash::synced(file, _name);
    Ok(())
}

/// What a directory and its `meta` take, rounded up.
pub(super) const OVERHEAD: u64 = 8192;

/// What storing `len` bytes in blocks of `block` bytes may take beside them until it is known better: pages of the index, and
/// what the file system notes of a new place.
pub(super) fn beside(len: u64, block: u64) -> u64 {
    (len.div_ceil(block) * 8).next_multiple_of(PAGE) + 2 * PAGE
}

/// As [`Disk::allocated`], for an object that is not open.
pub(super) fn allocated(directory: &Path) -> u64 {
    let of =
        |name: &str| std::fs::metadata(directory.join(name)).map_or(0, |metadata| metadata.blocks() * 512);
    of("data") + of("index") + OVERHEAD
}

/// The objects' directories of the store under `root`.
pub(super) fn directories(root: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(root)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

/// Whether all of `bytes` is zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    // Most blocks that are not show it at once; the others are compared with themselves, one word further on, which is
    // as fast as memory.
    match bytes.first_chunk::<16>() {
        Some(head) => *head == [0; 16] && bytes[16..] == bytes[..bytes.len() - 16],
        None => bytes.iter().all(|byte| *byte == 0),
    }
}

fn checksum(block: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(block, bytes).max(1)
}
