//! An image and its parents as one disk.

use crate::{FileIndex, FormatError, Layer, Located, Mapping, Result, Runs, TableRef, Unit};
use std::sync::Arc;

/// Decoded leaf tables that are in memory.
pub trait TableCache {
    /// The runs of `table` of layer `layer` (0 is the top), if they have been decoded and kept.
    fn table(&self, layer: usize, table: &TableRef) -> Option<Arc<Runs>>;
}

/// Where the content of an [`Extent`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Stored bytes of layer [`Extent::layer`], contiguous from `at` in `file`; zeros past the file's end.
    Data {
        /// The layer's file.
        file: FileIndex,
        /// Where the extent's first byte is in it.
        at: u64,
    },
    /// Zeros, said so by the layer.
    Zero,
    /// Zeros because no layer holds the stretch.
    Unallocated,
    /// Inside a compressed unit of the layer, at `start - unit.guest` of its decoded bytes.
    Compressed(Unit),
}

/// A stretch of the disk that the whole chain has been asked about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Guest offset of the first byte.
    pub start: u64,
    /// Length in bytes, never 0.
    pub len: u64,
    /// Which layer decides the content: 0 is the top. For [`Kind::Unallocated`] the lowest one that reaches so far.
    pub layer: usize,
    /// Where the content is.
    pub kind: Kind,
}

/// The answer of [`Chain::resolve`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// What is there.
    Extent(Extent),
    /// A leaf table has to be read first.
    Table {
        /// Whose.
        layer: usize,
        /// Which.
        table: TableRef,
    },
}

/// Layers from the top image down to the one without a parent. Never empty.
#[derive(Clone, Debug)]
pub struct Chain {
    layers: Vec<Arc<dyn Layer>>,
}

impl Chain {
    /// A chain of `layers`, top first. Refuses none and more than [`crate::limits::CHAIN_DEPTH`].
    pub fn new(layers: Vec<Arc<dyn Layer>>) -> Result<Self> {
        if layers.is_empty() || layers.len() > crate::limits::CHAIN_DEPTH {
            return Err(FormatError::ChainDepth { depth: layers.len(), limit: crate::limits::CHAIN_DEPTH });
        }
        Ok(Chain { layers })
    }

    /// The layers, top first.
    pub fn layers(&self) -> &[Arc<dyn Layer>] {
        &self.layers
    }

    /// Size of the virtual disk in bytes: the top layer's.
    pub fn virtual_size(&self) -> u64 {
        self.layers.first().map_or(0, |layer| layer.virtual_size())
    }

    /// What is at guest offset `at`, for at most `max` bytes from there. `at` must lie inside the disk and `max`
    /// must not be 0. A shorter parent reads as zeros past its end.
    pub fn resolve(&self, at: u64, max: u64, tables: &impl TableCache) -> Result<Resolved> {
        let mut max = max.min(self.virtual_size().saturating_sub(at));
        let mut deepest = 0;
        for (index, layer) in self.layers.iter().enumerate() {
            let Some(inside) = layer.virtual_size().checked_sub(at).filter(|&inside| inside > 0) else {
                break;
            };
            max = max.min(inside);
            deepest = index;
            let run = match layer.locate(at)? {
                Located::Run(run) => run.slice(at, max),
                Located::Table(table) => match tables.table(index, &table) {
                    Some(runs) => runs.find(at, max),
                    None => return Ok(Resolved::Table { layer: index, table }),
                },
            };
            let run = run.ok_or(FormatError::Outside { at })?;
            max = run.len;
            let kind = match run.mapping {
                Mapping::Parent => continue,
                Mapping::Data { file, at } => Kind::Data { file, at },
                Mapping::Zero => Kind::Zero,
                Mapping::Compressed(unit) => Kind::Compressed(unit),
                Mapping::Damaged(damage) => return Err(FormatError::Damaged { at, damage }),
            };
            return Ok(Resolved::Extent(Extent { start: at, len: max, layer: index, kind }));
        }
        Ok(Resolved::Extent(Extent { start: at, len: max, layer: deepest, kind: Kind::Unallocated }))
    }
}
