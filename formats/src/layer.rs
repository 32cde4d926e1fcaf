//! One image file (with its extents) as a map from guest offsets to stored bytes.

use crate::{FileIndex, Format, Result, Run, Runs};

/// A leaf table, or a slice of one, that has to be read and decoded before an offset can be located.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TableRef {
    /// The file that holds the table.
    pub file: FileIndex,
    /// Where the bytes to read begin.
    pub at: u64,
    /// How many bytes to read: never more than [`crate::limits::LEAF_BYTES`].
    pub len: u32,
    /// First guest offset that the table speaks for.
    pub start: u64,
    /// How many guest bytes it speaks for. Never 0.
    pub covers: u64,
}

/// The answer of [`Layer::locate`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Located {
    /// The run that covers the asked offset. It may begin before it.
    Run(Run),
    /// The leaf table that does: read `len` bytes at `at` and [`decode`](Layer::decode) them. If the file ends
    /// inside the table, the layer decides in `decode` what the short bytes mean.
    Table(TableRef),
}

/// What can be said of a layer without reading more of it.
#[derive(Clone, Debug, Default)]
pub struct Info {
    /// Allocation unit in bytes, where the format has one.
    pub cluster_size: Option<u64>,
    /// Whether the layer may hold compressed data.
    pub compressed: bool,
    /// Whether each compressed unit is one allocation unit, as large as `cluster_size` and beginning at a multiple of it; the
    /// disk may end in the last one.
    pub aligned_units: bool,
    /// Whether what is stored as it is fills allocation units as well, each in one piece of a file.
    pub whole_clusters: bool,
    /// Whether the layer has no allocation of its own, so that a hole in a file is a hole of the disk: raw, fixed
    /// vhd and flat vmdk.
    pub follows_file: bool,
    /// Words for what is special about the image, for people: `zstd`, `dirty`, `extended-l2`, `streamOptimized`…
    pub features: Vec<String>,
    /// Sentences about damage that does not keep the image from being read.
    pub warnings: Vec<String>,
}

/// One image, parsed. All methods are pure and cheap; none blocks.
pub trait Layer: Send + Sync + std::fmt::Debug {
    /// The image's format.
    fn format(&self) -> Format;

    /// Size of the virtual disk in bytes.
    fn virtual_size(&self) -> u64;

    /// What else is known.
    fn info(&self) -> &Info;

    /// Maps guest offset `at` (less than [`virtual_size`](Self::virtual_size)) to the run that covers it or to the
    /// leaf table that knows. A returned run or table covers `at` and is not empty, so a caller always gets ahead.
    fn locate(&self, at: u64) -> Result<Located>;

    /// Turns the bytes of `table`, as returned by [`locate`](Self::locate), into runs that begin at `table.start`
    /// and cover `table.covers` bytes without a gap. `bytes` is shorter than `table.len` only where the file ends.
    fn decode(&self, table: TableRef, bytes: &[u8]) -> Result<Runs>;
}
