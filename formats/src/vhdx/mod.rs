//! vhdx: fixed, dynamic and differencing (Microsoft, MS-VHDX).
//!
//! The block allocation table is the root. In differencing disks, a block that is there in part has a leaf: its
//! share of a sector bitmap. A log that was not replayed when the file was last closed is replayed in memory.

mod crc32c;
mod header;
mod log;
mod parent;

use crate::fields::index;
use crate::known::{Step, Table, View};
use crate::probe::IMAGE;
use crate::{
    Damage, Format, FormatError, Info, Layer, Located, Mapping, Opened, Result, Run, Runs, TableRef, limits,
};
use header::Replayed;
use log::Log;
use std::sync::Arc;

/// Alignment of blocks, and the end of the headers.
const MIB: u64 = 1 << 20;

/// Sectors that one sector bitmap block speaks for (MS-VHDX 2.5.1).
const CHUNK_SECTORS: u64 = 1 << 23;

/// Largest table that is changed by the log: for that a second copy is made.
const REPLAYED_BYTES: u64 = 16 << 20;

/// Opens a vhdx.
pub(crate) fn open(view: View<'_>) -> Step<Opened> {
    let header = header::read(view)?;
    let log = header::read_log(view, &header)?;
    let file = Replayed { view, log: &log };
    let regions = header::read_regions(&file)?;
    let metadata = header::read_metadata(&file, regions.metadata)?;
    let ratio = CHUNK_SECTORS.saturating_mul(metadata.sector).checked_div(metadata.block).unwrap_or(1).max(1);
    let blocks = metadata.size.div_ceil(metadata.block);
    // Every `ratio` blocks' entries are followed by that of their bitmap; the last bitmap is there only for a parent.
    let entries = match metadata.has_parent {
        true => blocks.div_ceil(ratio).saturating_mul(ratio.saturating_add(1)),
        false => blocks.saturating_add(blocks.saturating_sub(1).checked_div(ratio).unwrap_or(0)),
    };
    let len = entries.saturating_mul(8);
    if len > regions.bat.len {
        let (what, rule) =
            ("the length of the vhdx block allocation table", "it is too small for the disk's size");
        return Err(FormatError::Field { what, value: regions.bat.len, rule }.into());
    }
    let what = "vhdx block allocation table";
    let mut bat = view.table(IMAGE, regions.bat.at, len, what)?;
    if log.touches(regions.bat.at, len) {
        if len > REPLAYED_BYTES {
            return Err(FormatError::TooLarge { what, value: len, limit: REPLAYED_BYTES }.into());
        }
        let mut bytes = bat.bytes().to_vec();
        log.replay(regions.bat.at, &mut bytes);
        bat = Table::from(bytes);
    }
    let parent = match metadata.has_parent {
        true => Some(parent::read(metadata.locator.as_deref())?),
        false => None,
    };
    let mut info = Info { cluster_size: Some(metadata.block), ..Info::default() };
    let kind = match (metadata.has_parent, metadata.leave_allocated) {
        (true, _) => "differencing",
        (false, true) => "fixed",
        (false, false) => "dynamic",
    };
    info.features.push(kind.to_owned());
    if metadata.sector == 4096 {
        info.features.push("4K-sectors".to_owned());
    }
    if !log.is_empty() {
        info.features.push("log-replayed".to_owned());
        info.warnings.push("the image was not closed cleanly: its log was replayed in memory".to_owned());
    }
    let vhdx = Vhdx {
        size: metadata.size,
        file_len: view.len(IMAGE),
        block: metadata.block,
        sector: metadata.sector,
        ratio,
        bat,
        differencing: metadata.has_parent,
        log,
        info,
    };
    vhdx.check_log()?;
    Ok(Opened { layer: Arc::new(vhdx), parent, content_id: Some(header.data_write) })
}

#[derive(Debug)]
struct Vhdx {
    size: u64,
    file_len: u64,
    block: u64,
    sector: u64,
    /// Blocks to one sector bitmap.
    ratio: u64,
    bat: Table,
    differencing: bool,
    log: Log,
    info: Info,
}

/// What the table says of a block (MS-VHDX 2.5.1.1).
enum Block {
    Absent,
    Zero,
    Present(u64),
    /// Data and sector bitmap.
    Partial(u64, u64),
    Damaged(Damage),
}

impl Vhdx {
    /// State and offset of an entry.
    fn entry(&self, number: u64) -> (u64, u64) {
        let entry = self.bat.entry(number).map_or(0, u64::from_le_bytes);
        (entry & 7, entry & !(MIB - 1))
    }

    fn block(&self, number: u64) -> Block {
        let chunk = number.checked_div(self.ratio).unwrap_or(0);
        let (state, at) = self.entry(number.saturating_add(chunk));
        let inside = |at: u64, len: u64| match at {
            _ if at < MIB => Err(Damage::Metadata),
            _ if at.saturating_add(len) > self.file_len => Err(Damage::PastEnd),
            _ => Ok(()),
        };
        let used = self.block.min(self.size.saturating_sub(number.saturating_mul(self.block)));
        match state {
            0 => Block::Absent,
            // Undefined, zero, unmapped, and what earlier versions called unmapped.
            1 | 2 | 3 | 5 => Block::Zero,
            6 => inside(at, used).map_or_else(Block::Damaged, |()| Block::Present(at)),
            7 if self.differencing => {
                let after =
                    chunk.saturating_add(1).saturating_mul(self.ratio.saturating_add(1)).saturating_sub(1);
                let (state, bitmap) = self.entry(after);
                match inside(at, used).and_then(|()| inside(bitmap, MIB)) {
                    Ok(()) if state == 6 => Block::Partial(at, bitmap),
                    Ok(()) => Block::Damaged(Damage::State),
                    Err(damage) => Block::Damaged(damage),
                }
            }
            _ => Block::Damaged(Damage::State),
        }
    }

    /// A log speaks of metadata. One that also holds a guest's data could not be laid over what is read as data.
    fn check_log(&self) -> Result<()> {
        if self.log.is_empty() {
            return Ok(());
        }
        for number in 0..self.size.div_ceil(self.block) {
            if let Block::Present(at) | Block::Partial(at, _) = self.block(number)
                && self.log.touches(at, self.block)
            {
                let (what, rule) = ("the vhdx log", "it holds data of the disk: let Hyper-V replay it first");
                return Err(FormatError::Refused { what, rule });
            }
        }
        Ok(())
    }
}

impl Layer for Vhdx {
    fn format(&self) -> Format {
        Format::Vhdx
    }

    fn virtual_size(&self) -> u64 {
        self.size
    }

    fn info(&self) -> &Info {
        &self.info
    }

    fn locate(&self, at: u64) -> Result<Located> {
        if at >= self.size {
            return Err(FormatError::Outside { at });
        }
        let number = at.checked_div(self.block).unwrap_or(0);
        let start = number.saturating_mul(self.block);
        let covers = self.block.min(self.size.saturating_sub(start));
        let run = |len, mapping| Ok(Located::Run(Run { start, len, mapping }));
        match self.block(number) {
            Block::Zero => run(covers, Mapping::Zero),
            Block::Damaged(damage) => run(covers, Mapping::Damaged(damage)),
            Block::Present(at) => run(covers, Mapping::Data { file: IMAGE, at }),
            Block::Absent => {
                let last = number.saturating_add(limits::MERGED_ENTRIES);
                let mut next = number.saturating_add(1);
                while next < last
                    && next.saturating_mul(self.block) < self.size
                    && matches!(self.block(next), Block::Absent)
                {
                    next = next.saturating_add(1);
                }
                run(next.saturating_mul(self.block).min(self.size).saturating_sub(start), Mapping::Parent)
            }
            Block::Partial(_, bitmap) => {
                let bytes = self.block.checked_div(self.sector.saturating_mul(8)).unwrap_or(0);
                let skip = number.checked_rem(self.ratio).unwrap_or(0).saturating_mul(bytes);
                let len = u32::try_from(bytes).unwrap_or(limits::LEAF_BYTES);
                let at = bitmap.saturating_add(skip);
                Ok(Located::Table(TableRef { file: IMAGE, at, len, start, covers }))
            }
        }
    }

    /// A block's share of the sector bitmap: least significant bit first, 1 where the sector is in this file.
    fn decode(&self, table: TableRef, bytes: &[u8]) -> Result<Runs> {
        let number = table.start.checked_div(self.block).unwrap_or(0);
        let Block::Partial(data, _) = self.block(number) else {
            return Err(FormatError::Outside { at: table.start });
        };
        let mut bitmap = bytes.to_vec();
        self.log.replay(table.at, &mut bitmap);
        let mut runs = Runs::new();
        for sector in 0..table.covers.div_ceil(self.sector) {
            let skip = sector.saturating_mul(self.sector);
            let mask = 1u8.rotate_left(u32::try_from(sector & 7).unwrap_or(0));
            let mapping = match bitmap.get(index(sector >> 3)) {
                Some(byte) if byte & mask != 0 => {
                    Mapping::Data { file: IMAGE, at: data.saturating_add(skip) }
                }
                Some(_) => Mapping::Parent,
                None => Mapping::Damaged(Damage::TablePastEnd),
            };
            let len = self.sector.min(table.covers.saturating_sub(skip));
            let _contiguous = runs.push(Run { start: table.start.saturating_add(skip), len, mapping });
        }
        Ok(runs)
    }
}
