//! What a layer says about a stretch of the virtual disk.

/// Index of a file that belongs to one layer: 0 is the file the layer was opened from; vmdk extents and qcow2
/// external data files follow in the order in which [`crate::Opening`] asked for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileIndex(pub u16);

/// How a compressed unit is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Codec {
    /// As it is. No layer says so of a unit; it is for who handles clusters that are not compressed as units.
    Stored,
    /// Raw deflate without header (qcow2, compression type 0).
    Deflate,
    /// A zlib stream, RFC 1950 (vmdk streamOptimized).
    Zlib,
    /// A Zstandard frame (qcow2, compression type 1).
    Zstd,
    /// A vmdk grain with its marker in front: the grain's sector number (8 bytes), the length of the data (4 bytes),
    /// then a zlib stream. How long the data is stands only there, so [`Unit::len`] is an upper bound.
    Grain {
        /// The low 32 bits of the sector number that the marker must carry.
        lba: u32,
    },
}

/// What is wrong with a stretch of the disk that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum Damage {
    /// A root table's entry has bits set that must be 0.
    #[error("the root table's entry has reserved bits set")]
    RootReserved,
    /// A root table's entry does not point at a multiple of the allocation unit.
    #[error("the leaf table is not aligned to the allocation unit")]
    TableUnaligned,
    /// A leaf table lies past the end of its file.
    #[error("the leaf table lies past the end of the file")]
    TablePastEnd,
    /// A leaf table's entry does not point at a multiple of the allocation unit.
    #[error("the data is not aligned to the allocation unit")]
    Unaligned,
    /// Stored data lies past the end of its file: the file was cut, or the entry is wrong.
    #[error("the stored data lies past the end of the file")]
    PastEnd,
    /// An entry points at the image's own metadata.
    #[error("the entry points at the image's own metadata")]
    Metadata,
    /// An entry's bits contradict each other.
    #[error("the table's entry contradicts itself")]
    Contradiction,
    /// An entry has a state that the format does not define.
    #[error("the table's entry has an undefined state")]
    State,
    /// A compressed entry where the image cannot have one.
    #[error("the entry is compressed in an image that has no compressed data")]
    Compressed,
    /// A vmdk extent that is declared not accessible.
    #[error("the extent is declared not accessible")]
    NoAccess,
}

/// A piece of the disk that is stored compressed and can only be decoded as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Unit {
    /// The file that holds the stored bytes.
    pub file: FileIndex,
    /// Where the stored bytes begin in that file.
    pub at: u64,
    /// How many stored bytes there are at most; the stream may end sooner, and the file may end sooner.
    pub len: u32,
    /// How they are compressed.
    pub codec: Codec,
    /// Guest offset of the first decoded byte.
    pub guest: u64,
    /// How many bytes the unit decodes to.
    pub decoded: u32,
}

/// Where the content of a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mapping {
    /// Stored as it is, contiguously, from `at` in `file`. Bytes past the end of the file read as zeros.
    Data {
        /// The file that holds the bytes.
        file: FileIndex,
        /// Where the run's first byte is in that file.
        at: u64,
    },
    /// Zeros, whatever a parent holds; the layer says so explicitly.
    Zero,
    /// Not in this layer: the parent's content, or zeros where there is no parent.
    Parent,
    /// Inside a compressed unit, at `start - unit.guest` of its decoded bytes.
    Compressed(Unit),
    /// Not readable; the rest of the disk is.
    Damaged(Damage),
}

/// A stretch `start..start + len` of the virtual disk with one mapping. `len` is never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Run {
    /// Guest offset of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Where the content is.
    pub mapping: Mapping,
}

/// Runs that are sorted, contiguous and coalesced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    runs: Vec<Run>,
    /// Where each begins, once more: what is looked through for one of a table of compressed clusters is then an eighth as
    /// large, and stays in a processor's own cache.
    starts: Vec<u64>,
}

impl Run {
    /// The guest offset just past the run.
    pub fn end(&self) -> u64 {
        self.start.saturating_add(self.len)
    }

    /// The part of the run from guest offset `at`, at most `max` bytes of it; `None` if `at` lies outside or `max`
    /// is 0.
    pub fn slice(&self, at: u64, max: u64) -> Option<Run> {
        let skip = at.checked_sub(self.start)?;
        let len = self.len.checked_sub(skip)?.min(max);
        if len == 0 {
            return None;
        }
        let mapping = match self.mapping {
            Mapping::Data { file, at: stored } => Mapping::Data { file, at: stored.checked_add(skip)? },
            other => other,
        };
        Some(Run { start: at, len, mapping })
    }

    /// Whether `next` continues this run so that both can be one.
    fn continues_into(&self, next: &Run) -> bool {
        if self.end() != next.start {
            return false;
        }
        match (self.mapping, next.mapping) {
            (Mapping::Data { file, at }, Mapping::Data { file: next_file, at: next_at }) => {
                file == next_file && at.checked_add(self.len) == Some(next_at)
            }
            (left, right) => left == right,
        }
    }
}

impl Runs {
    /// No runs; push to fill.
    pub fn new() -> Self {
        Runs::default()
    }

    /// Appends `run`, merging it with the last one where that is possible. Runs of length 0 are dropped. Returns
    /// false, and appends nothing, if `run` does not begin where the last one ended.
    #[must_use]
    pub fn push(&mut self, run: Run) -> bool {
        if run.len == 0 {
            return true;
        }
        if let Some(last) = self.runs.last_mut() {
            if last.end() != run.start {
                return false;
            }
            if last.continues_into(&run) {
                last.len = last.len.saturating_add(run.len);
                return true;
            }
        }
        self.starts.push(run.start);
        self.runs.push(run);
        true
    }

    /// The part of the run that covers `at`, from `at` on and at most `max` bytes; `None` if no run covers it.
    pub fn find(&self, at: u64, max: u64) -> Option<Run> {
        let after = self.starts.partition_point(|start| *start <= at);
        self.runs.get(after.checked_sub(1)?)?.slice(at, max)
    }

    /// The runs in order.
    pub fn iter(&self) -> std::slice::Iter<'_, Run> {
        self.runs.iter()
    }

    /// How many runs there are.
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes of memory the runs take.
    pub fn footprint(&self) -> usize {
        let starts = self.starts.capacity().saturating_mul(size_of::<u64>());
        self.runs.capacity().saturating_mul(size_of::<Run>()).saturating_add(starts)
    }
}

impl<'a> IntoIterator for &'a Runs {
    type Item = &'a Run;
    type IntoIter = std::slice::Iter<'a, Run>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}
