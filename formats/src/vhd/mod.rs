//! vhd: fixed, dynamic and differencing (Microsoft, Virtual Hard Disk Image Format 1.0).
//!
//! The block allocation table is the root. A block's sector bitmap is a leaf, read only in differencing disks: in
//! dynamic ones a sector that the bitmap calls unused has never been written and holds zeros, so that the bitmap
//! adds a read and no knowledge. XenServer's batmap is a hint that other tools overwrite, and is not read.

mod footer;
mod parent;

use crate::fields::be32s;
use crate::known::{Step, Table, View};
use crate::probe::{HEAD, IMAGE};
use crate::{
    Damage, Format, FormatError, Info, Layer, Located, Mapping, Opened, Result, Run, Runs, TableRef, limits,
};
use footer::{COOKIE, FOOTER_BYTES, Footer, HEADER_BYTES, Header, Kind};
use std::sync::Arc;

/// An entry of the table whose block is not there.
const ABSENT: u32 = u32::MAX;

/// Bytes of a sector, the unit of the table and of the bitmaps.
const SECTOR: u64 = 512;

/// The footers of a file: the copy at the front and the one at the end, with where the latter begins.
struct Footers {
    front: Option<Footer>,
    end: Option<(Footer, u64)>,
    /// Whether the file begins like a footer, valid or not.
    cookie: bool,
}

fn footers(view: View<'_>) -> Step<Footers> {
    let head = view.upto(IMAGE, 0, HEAD)?;
    let len = view.len(IMAGE);
    let front = head.get(..512).and_then(Footer::read).filter(|_| len > FOOTER_BYTES);
    let mut end = None;
    for bytes in [FOOTER_BYTES, FOOTER_BYTES.saturating_sub(1)] {
        if let Some(at) = len.checked_sub(bytes)
            && end.is_none()
        {
            end = Footer::read(view.upto(IMAGE, at, bytes)?).map(|footer| (footer, at));
        }
    }
    Ok(Footers { front, end, cookie: head.starts_with(COOKIE) })
}

/// Whether the file is a vhd: a valid footer stands at its end, a valid copy at its front, or it at least begins like
/// one.
pub(crate) enum Signature {
    None,
    /// The file begins with a footer's cookie, but no footer in it is valid.
    Cookie,
    /// A footer at the end, which a guest cannot have written there in a whole image.
    End,
    /// A copy at the front.
    Front,
    /// Both, and they are of different disks.
    Contradiction,
}

/// Looks for a vhd's signatures.
pub(crate) fn probe(view: View<'_>) -> Step<Signature> {
    let footers = footers(view)?;
    Ok(match (footers.front, footers.end) {
        (Some(front), Some((end, _))) if (front.id, front.kind()) != (end.id, end.kind()) => {
            Signature::Contradiction
        }
        (Some(_), _) => Signature::Front,
        // The end of a raw disk is the guest's too: a footer there has to describe this very file.
        (None, Some((end, at))) => match end.kind() {
            Ok(Kind::Fixed) if end.size().is_ok_and(|size| size <= at) => Signature::End,
            Ok(Kind::Dynamic | Kind::Differencing) => Signature::End,
            _ => Signature::None,
        },
        (None, None) if footers.cookie => Signature::Cookie,
        (None, None) => Signature::None,
    })
}

/// Opens a vhd.
pub(crate) fn open(view: View<'_>) -> Step<Opened> {
    let footers = footers(view)?;
    let (footer, data_end) = match (footers.end, footers.front) {
        (Some((footer, at)), _) => (footer, at),
        (None, Some(footer)) => (footer, view.len(IMAGE)),
        (None, None) if footers.cookie => {
            return Err(FormatError::Checksum { what: "vhd footer", at: 0 }.into());
        }
        (None, None) => return Err(FormatError::Signature { format: Format::Vhd }.into()),
    };
    let (kind, size) = (footer.kind()?, footer.size()?);
    let mut info = info(&footer, kind);
    if kind == Kind::Fixed {
        if size > data_end {
            let (what, file_len) = ("fixed disk", view.len(IMAGE));
            return Err(FormatError::Truncated { what, at: 0, len: size, file_len }.into());
        }
        let vhd = Vhd { size, bitmap: 0, block: 0, bat: None, differencing: false, info };
        return Ok(Opened { layer: Arc::new(vhd), parent: None, content_id: Some(footer.id) });
    }
    if footers.end.is_none() {
        info.warnings
            .push("the footer at the end is missing or damaged: its copy at the front was used".to_owned());
    } else if footers.front.is_none() {
        info.warnings.push("the footer's copy at the front is missing or damaged".to_owned());
    }
    let bytes = view.exact(IMAGE, footer.data_offset, HEADER_BYTES, "vhd dynamic disk header")?;
    let header = Header::read(bytes, footer.data_offset)?;
    info.cluster_size = Some(header.block);
    let entries = size.div_ceil(header.block);
    if u64::from(header.entries) < entries {
        let (what, rule) = ("vhd max_table_entries", "the table is too small for the size of the disk");
        return Err(FormatError::Field { what, value: header.entries.into(), rule }.into());
    }
    let what = "vhd block allocation table";
    // The table may have room for a larger disk. No more of it is read than this one needs, but all of it has to be there.
    let (at, len, file_len) =
        (header.table_offset, u64::from(header.entries).saturating_mul(4), view.len(IMAGE));
    if at.checked_add(len).is_none_or(|end| end > file_len) {
        return Err(FormatError::Truncated { what, at, len, file_len }.into());
    }
    let bat = view.table(IMAGE, at, entries.saturating_mul(4), what)?;
    let bitmap = header.block.div_ceil(SECTOR.saturating_mul(8)).next_multiple_of(SECTOR);
    let vhd = Vhd {
        size,
        bitmap,
        block: header.block,
        bat: Some(bat),
        differencing: kind == Kind::Differencing,
        info,
    };
    vhd.check_blocks(view.len(IMAGE), footer.data_offset, header.table_offset)?;
    let parent = match kind {
        Kind::Differencing => Some(parent::read(view, bytes, header.parent_id)?),
        _ => None,
    };
    Ok(Opened { layer: Arc::new(vhd), parent, content_id: Some(footer.id) })
}

fn info(footer: &Footer, kind: Kind) -> Info {
    let mut info = Info { follows_file: kind == Kind::Fixed, ..Info::default() };
    let kind = match kind {
        Kind::Fixed => "fixed",
        Kind::Dynamic => "dynamic",
        Kind::Differencing => "differencing",
    };
    info.features.extend([kind.to_owned(), format!("creator {}", footer.creator().trim_end())]);
    if footer.has_batmap() {
        info.features.push("batmap".to_owned());
    }
    if footer.saved_state {
        info.warnings.push("the disk belongs to a machine in saved state".to_owned());
    }
    if footer.temporary {
        info.warnings.push("the disk is marked temporary".to_owned());
    }
    info
}

#[derive(Debug)]
struct Vhd {
    size: u64,
    /// Bytes of a block's sector bitmap, with padding. The data follows it.
    bitmap: u64,
    block: u64,
    /// `None` for a fixed disk.
    bat: Option<Table>,
    differencing: bool,
    info: Info,
}

impl Vhd {
    /// Every block lies whole inside the file and apart from the structures at its front. Checked at open, because a
    /// cut file would otherwise only show where a guest happens to read.
    fn check_blocks(&self, file_len: u64, header: u64, table: u64) -> Result<()> {
        let bat = self.bat.as_ref().map_or(&[][..], Table::bytes);
        let taken = [
            (0, FOOTER_BYTES),
            (header, header.saturating_add(HEADER_BYTES)),
            (table, table.saturating_add(crate::fields::length(bat.len()))),
        ];
        let len = self.bitmap.saturating_add(self.block);
        for entry in be32s(bat).filter(|&entry| entry != ABSENT) {
            let at = u64::from(entry).saturating_mul(SECTOR);
            let end = at.saturating_add(len);
            if end > file_len {
                return Err(FormatError::Truncated { what: "vhd block", at, len, file_len });
            }
            if taken.iter().any(|&(start, stop)| at < stop && start < end) {
                let (what, rule) =
                    ("vhd block allocation table entry", "the block overlaps the image's metadata");
                return Err(FormatError::Field { what, value: entry.into(), rule });
            }
        }
        Ok(())
    }

    /// Where block `number` is in the file: its bitmap.
    fn block(&self, bat: &Table, number: u64) -> Option<u64> {
        let entry = bat.entry(number).map_or(ABSENT, u32::from_be_bytes);
        (entry != ABSENT).then(|| u64::from(entry).saturating_mul(SECTOR))
    }

    /// The end of the run of absent blocks that begins with block `number`.
    fn absent_until(&self, bat: &Table, number: u64) -> u64 {
        let last = number.saturating_add(limits::MERGED_ENTRIES);
        let mut next = number.saturating_add(1);
        while next < last && next.saturating_mul(self.block) < self.size && self.block(bat, next).is_none() {
            next = next.saturating_add(1);
        }
        next.saturating_mul(self.block).min(self.size)
    }
}

impl Layer for Vhd {
    fn format(&self) -> Format {
        Format::Vhd
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
        let Some(bat) = &self.bat else {
            let mapping = Mapping::Data { file: IMAGE, at: 0 };
            return Ok(Located::Run(Run { start: 0, len: self.size, mapping }));
        };
        let number = at.checked_div(self.block).unwrap_or(0);
        let start = number.saturating_mul(self.block);
        let Some(bitmap) = self.block(bat, number) else {
            let len = self.absent_until(bat, number).saturating_sub(start);
            // A dynamic disk has no parent: what is absent is zeros, and the layer says so.
            let mapping = if self.differencing { Mapping::Parent } else { Mapping::Zero };
            return Ok(Located::Run(Run { start, len, mapping }));
        };
        let covers = self.block.min(self.size.saturating_sub(start));
        if self.differencing {
            let len = u32::try_from(self.bitmap).unwrap_or(limits::LEAF_BYTES);
            return Ok(Located::Table(TableRef { file: IMAGE, at: bitmap, len, start, covers }));
        }
        let mapping = Mapping::Data { file: IMAGE, at: bitmap.saturating_add(self.bitmap) };
        Ok(Located::Run(Run { start, len: covers, mapping }))
    }

    /// The sector bitmap of a differencing disk's block: most significant bit first, 1 where the sector is here.
    fn decode(&self, table: TableRef, bytes: &[u8]) -> Result<Runs> {
        let mut runs = Runs::new();
        let data = table.at.saturating_add(self.bitmap);
        let sectors = table.covers.div_ceil(SECTOR);
        let mut bits =
            bytes.iter().flat_map(|&byte| (0..8).map(move |bit| byte.rotate_left(bit) & 0x80 != 0));
        for sector in 0..sectors {
            let skip = sector.saturating_mul(SECTOR);
            let mapping = match bits.next() {
                Some(true) => Mapping::Data { file: IMAGE, at: data.saturating_add(skip) },
                Some(false) => Mapping::Parent,
                None => Mapping::Damaged(Damage::TablePastEnd),
            };
            let len = SECTOR.min(table.covers.saturating_sub(skip));
            let _contiguous = runs.push(Run { start: table.start.saturating_add(skip), len, mapping });
        }
        Ok(runs)
    }
}
