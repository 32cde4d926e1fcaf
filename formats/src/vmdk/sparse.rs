//! Sparse extents of all three kinds as a grain directory over grain tables.

use crate::fields::{le32s, le64s, length};
use crate::known::{Step, Table, View};
use crate::probe::{HEAD, IMAGE};
use crate::{Codec, Damage, FileIndex, Located, Mapping, Result, Run, Runs, TableRef, Unit, limits};

/// Bytes of a sector, the unit of all fields.
pub(crate) const SECTOR: u64 = 512;

/// How much of the beginning of an extent in a file of its own is read at once. There may be a thousand of them, whose
/// tables are seldom so near that more would save a read.
const EXTENT_HEAD: u64 = 4 << 10;

/// The beginning of the extent in `file`, with its header.
pub(crate) fn head(view: View<'_>, file: FileIndex) -> Step<&[u8]> {
    view.upto(file, 0, if file == IMAGE { HEAD } else { EXTENT_HEAD })
}

/// How a hosted sparse extent stores its grains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    Plain,
    /// A zlib stream behind a marker that says how long it is.
    Marked,
    /// A zlib stream alone.
    Bare,
}

/// What the entries of directory and tables mean.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Entries {
    /// 32-bit sector numbers: hosted sparse and COWD.
    Sectors {
        stored: Stored,
        /// Whether entry 1 means zeros.
        zeroed: bool,
    },
    /// 64-bit numbers of a table and of a grain, each with a type in the highest bits: seSparse.
    Typed {
        /// Where the grain tables begin.
        tables: u64,
        /// Where the grains begin.
        grains: u64,
    },
}

/// A sparse extent. Lengths in bytes.
#[derive(Debug)]
pub(crate) struct Sparse {
    pub(crate) file: FileIndex,
    pub(crate) file_len: u64,
    pub(crate) capacity: u64,
    pub(crate) grain: u64,
    /// Entries of a grain table.
    pub(crate) table_entries: u64,
    pub(crate) directory: Table,
    pub(crate) entries: Entries,
}

/// What a directory entry says.
enum Directory {
    Empty,
    Table(u64),
    Damaged(Damage),
}

impl Sparse {
    /// Bytes of an entry.
    fn entry_bytes(&self) -> u64 {
        match self.entries {
            Entries::Sectors { .. } => 4,
            Entries::Typed { .. } => 8,
        }
    }

    /// Bytes of the extent that one grain table speaks for.
    fn table_covers(&self) -> u64 {
        self.table_entries.saturating_mul(self.grain).max(1)
    }

    /// How many grains `bytes` of the extent take.
    fn grains(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.grain.max(1))
    }

    fn directory(&self, number: u64) -> Directory {
        let len = self.table_entries.saturating_mul(self.entry_bytes());
        let at = match self.entries {
            Entries::Sectors { .. } => match self.directory.entry(number).map_or(0, u32::from_le_bytes) {
                0 => return Directory::Empty,
                sector => u64::from(sector).saturating_mul(SECTOR),
            },
            Entries::Typed { tables, .. } => match self.directory.entry(number).map_or(0, u64::from_le_bytes)
            {
                0 => return Directory::Empty,
                entry if entry >> 32 == 0x1000_0000 => {
                    tables.saturating_add((entry & u64::from(u32::MAX)).saturating_mul(len))
                }
                _ => return Directory::Damaged(Damage::RootReserved),
            },
        };
        if at >= self.file_len { Directory::Damaged(Damage::TablePastEnd) } else { Directory::Table(at) }
    }

    /// Maps offset `at` of the extent. The extent begins at guest offset `base` and `size` bytes of it are used.
    pub(crate) fn locate(&self, at: u64, base: u64, size: u64) -> Located {
        let covers = self.table_covers();
        let number = at.checked_div(covers).unwrap_or(0);
        let start = number.saturating_mul(covers);
        let end = start.saturating_add(covers).min(size);
        let run = |end: u64, mapping| {
            let (start, len) = (base.saturating_add(start), end.saturating_sub(start));
            Located::Run(Run { start, len, mapping })
        };
        match self.directory(number) {
            Directory::Damaged(damage) => run(end, Mapping::Damaged(damage)),
            Directory::Empty => {
                let last = number.saturating_add(limits::MERGED_ENTRIES);
                let mut next = number.saturating_add(1);
                while next < last
                    && next.saturating_mul(covers) < size
                    && matches!(self.directory(next), Directory::Empty)
                {
                    next = next.saturating_add(1);
                }
                run(next.saturating_mul(covers).min(size), Mapping::Parent)
            }
            Directory::Table(table) => {
                let (first, table, after) = self.neighbours(number, table, size);
                let start = first.saturating_mul(covers);
                let covers = after.saturating_mul(covers).min(size).saturating_sub(start);
                let len = self.grains(covers).saturating_mul(self.entry_bytes());
                Located::Table(TableRef {
                    file: self.file,
                    at: table,
                    len: u32::try_from(len).unwrap_or(limits::LEAF_BYTES),
                    start: base.saturating_add(start),
                    covers,
                })
            }
        }
    }

    /// The grain tables that lie in the file one behind the other around table `number`, which is at `table`: the
    /// first one's number and place, and the number after the last one. They are read as one leaf, because some writers
    /// make all tables of a disk in advance, and reading 16 million entries of an empty disk 512 at a time takes long.
    fn neighbours(&self, number: u64, table: u64, size: u64) -> (u64, u64, u64) {
        let len = self.table_entries.saturating_mul(self.entry_bytes()).max(1);
        let group = u64::from(limits::LEAF_BYTES).checked_div(len).unwrap_or(1).max(1);
        // Groups have fixed borders, so that every offset in one leads to the same leaf.
        let begin = number.checked_div(group).unwrap_or(0).saturating_mul(group);
        let is_at = |number, at| matches!(self.directory(number), Directory::Table(table) if table == at);
        let (mut first, mut place) = (number, table);
        while first > begin
            && let Some(before) = place.checked_sub(len)
            && is_at(first.saturating_sub(1), before)
        {
            (first, place) = (first.saturating_sub(1), before);
        }
        let (mut after, mut end) = (number.saturating_add(1), table.saturating_add(len));
        while after < begin.saturating_add(group)
            && after.saturating_mul(self.table_covers()) < size
            && is_at(after, end)
        {
            (after, end) = (after.saturating_add(1), end.saturating_add(len));
        }
        (first, place, after)
    }

    /// Decodes a grain table of the extent that begins at guest offset `base`.
    pub(crate) fn decode(&self, table: TableRef, bytes: &[u8], base: u64) -> Result<Runs> {
        let mut runs = Runs::new();
        let end = table.start.saturating_add(table.covers);
        let bounds = Bounds::new(self, bytes);
        let mut guest = table.start;
        let mut push = |mapping: Mapping, len: u64| {
            let mapping = match mapping {
                // No writer leaves a grain short: where the file ends inside one, it was cut.
                Mapping::Data { at, .. } if at.saturating_add(len) > self.file_len => {
                    Mapping::Damaged(Damage::PastEnd)
                }
                other => other,
            };
            let _contiguous = runs.push(Run { start: guest, len, mapping });
            guest = guest.saturating_add(len);
            guest
        };
        // Tables that were made in advance and never used are most of the tables of a large disk.
        if length(bytes.len()) == u64::from(table.len) && bytes.iter().all(|&byte| byte == 0) {
            push(Mapping::Parent, table.covers);
            return Ok(runs);
        }
        let mut at = table.start;
        match self.entries {
            Entries::Sectors { zeroed, .. } => {
                for entry in le32s(bytes) {
                    let len = self.grain.min(end.saturating_sub(at));
                    let mapping = match entry {
                        0 => Mapping::Parent,
                        1 if zeroed => Mapping::Zero,
                        1 => Mapping::Damaged(Damage::Metadata),
                        sector => self.stored(sector, at, len, base, &bounds),
                    };
                    at = push(mapping, len);
                }
            }
            Entries::Typed { grains, .. } => {
                for entry in le64s(bytes) {
                    let len = self.grain.min(end.saturating_sub(at));
                    at = push(self.typed(entry, grains), len);
                }
            }
        }
        push(Mapping::Damaged(Damage::TablePastEnd), end.saturating_sub(at));
        Ok(runs)
    }

    /// What a seSparse entry says: its type is in the highest four bits.
    fn typed(&self, entry: u64, grains: u64) -> Mapping {
        match (entry >> 60, entry) {
            (0, 0) => Mapping::Parent,
            // Unmapped by the guest, and zeroed.
            (1 | 2, _) => Mapping::Zero,
            (3, _) => {
                let number = ((entry >> 48) & 0xfff) | ((entry & 0x0000_ffff_ffff_ffff) << 12);
                Mapping::Data {
                    file: self.file,
                    at: grains.saturating_add(number.saturating_mul(self.grain)),
                }
            }
            _ => Mapping::Damaged(Damage::State),
        }
    }

    /// What lies at `sector`, which holds the grain at guest offset `guest` of the extent that begins at `base`.
    fn stored(&self, sector: u32, guest: u64, len: u64, base: u64, bounds: &Bounds) -> Mapping {
        let at = u64::from(sector).saturating_mul(SECTOR);
        let lba = guest.saturating_sub(base) >> 9;
        let codec = match bounds.stored {
            Stored::Plain => return Mapping::Data { file: self.file, at },
            Stored::Marked => Codec::Grain { lba: u32::try_from(lba & u64::from(u32::MAX)).unwrap_or(0) },
            Stored::Bare => Codec::Zlib,
        };
        match u32::try_from(len) {
            _ if at >= self.file_len => Mapping::Damaged(Damage::PastEnd),
            Ok(decoded) => Mapping::Compressed(Unit {
                file: self.file,
                at,
                len: bounds.of(sector),
                codec,
                guest,
                decoded,
            }),
            Err(_) => Mapping::Damaged(Damage::State),
        }
    }
}

/// How many bytes a compressed grain can take at most. Its length is known only to the marker in front of it; but
/// grains do not overlap, so that it ends before the next one begins, and zlib makes nothing much larger.
struct Bounds {
    stored: Stored,
    /// Sectors at which the table's grains begin, sorted. Empty for uncompressed extents.
    begins: Vec<u32>,
    largest: u32,
}

impl Bounds {
    fn new(sparse: &Sparse, bytes: &[u8]) -> Self {
        let stored = match sparse.entries {
            Entries::Sectors { stored, .. } => stored,
            Entries::Typed { .. } => Stored::Plain,
        };
        let mut begins: Vec<u32> = if stored == Stored::Plain { Vec::new() } else { le32s(bytes).collect() };
        begins.sort_unstable();
        // The marker, stored blocks of deflate with their headers, and the padding to a sector.
        let largest = sparse.grain.saturating_add(sparse.grain >> 4).saturating_add(2 * SECTOR);
        Bounds { stored, begins, largest: u32::try_from(largest).unwrap_or(u32::MAX) }
    }

    fn of(&self, sector: u32) -> u32 {
        let after = self.begins.partition_point(|&begin| begin <= sector);
        let next = self.begins.get(after).and_then(|next| next.checked_sub(sector));
        next.and_then(|sectors| sectors.checked_mul(512)).map_or(self.largest, |gap| gap.min(self.largest))
    }
}

/// Whether a directory of 32-bit sector numbers can be one: it has entries, and all lie inside the file.
pub(crate) fn plausible(directory: &Table, file_len: u64) -> bool {
    let mut used = le32s(directory.bytes()).filter(|&entry| entry != 0).peekable();
    used.peek().is_some() && used.all(|entry| u64::from(entry).saturating_mul(SECTOR) < file_len)
}

/// Bytes of a directory with entries of `entry` bytes for `capacity` bytes of extent.
pub(crate) fn directory_bytes(capacity: u64, grain: u64, table_entries: u64, entry: u64) -> u64 {
    let covers = grain.saturating_mul(table_entries).max(1);
    capacity.div_ceil(covers).saturating_mul(entry)
}
