//! Hosted sparse extents: monolithicSparse, twoGbMaxExtentSparse and streamOptimized (VMware Virtual Disk Format 1.1,
//! "Hosted Sparse Extents" and "Stream-Optimized Compressed Sparse Extents").

use super::sparse::{Entries, SECTOR, Sparse, Stored, directory_bytes, head, plausible};
use crate::fields::Fields;
use crate::known::{Step, Stop, Table, View};
use crate::{FileIndex, Format, FormatError, Result, limits};

/// Magic of header and footer.
pub(crate) const MAGIC: &[u8] = b"KDMV";

/// Header flags.
const NEWLINE_TEST: u32 = 1 << 0;
const REDUNDANT: u32 = 1 << 1;
const ZEROED_GRAINS: u32 = 1 << 2;
const COMPRESSED: u32 = 1 << 16;
const MARKERS: u32 = 1 << 17;

/// `gdOffset` of a header whose directory is named by a footer at the end of the file.
const AT_END: u64 = u64::MAX;

/// How much of the file's end is searched for the footer behind padding.
const TAIL: u64 = 64 << 10;

/// The header's fields, checked as far as they can be alone. Offsets in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    version: u32,
    flags: u32,
    /// Size of the extent in bytes; 0 in a file that holds nothing but a descriptor.
    pub(crate) capacity: u64,
    grain: u64,
    /// Place and length of the embedded descriptor; length 0 if there is none.
    pub(crate) descriptor: (u64, u64),
    table_entries: u64,
    redundant: u64,
    directory: u64,
    overhead: u64,
    pub(crate) unclean: bool,
    pub(crate) stored: Stored,
}

impl Header {
    fn parse(bytes: &[u8]) -> Result<Header> {
        let fields = Fields::new(bytes, "the vmdk header");
        if !bytes.starts_with(MAGIC) {
            return Err(FormatError::Signature { format: Format::Vmdk });
        }
        let version = fields.le32(4)?;
        if !(1..=3).contains(&version) {
            return Err(field("vmdk version", version.into(), "only 1, 2 and 3 are read"));
        }
        let flags = fields.le32(8)?;
        // A transfer in text mode changes these bytes, and with them data all over the file.
        if flags & NEWLINE_TEST != 0 && fields.slice(73, 4)? != b"\n \r\n" {
            return Err(refused("its line end characters are changed: the file was transferred as text"));
        }
        let grain_sectors = fields.le64(20)?;
        if !grain_sectors.is_power_of_two() || grain_sectors > 1 << 21 {
            return Err(field(
                "vmdk grainSize",
                grain_sectors,
                "it must be a power of two of sectors up to 1 GiB",
            ));
        }
        let table_entries = fields.le32(44)?;
        if !(1..=512).contains(&table_entries) {
            return Err(field("vmdk numGTEsPerGT", table_entries.into(), "it must be 1 to 512"));
        }
        let stored = match (fields.le16(77)?, flags & COMPRESSED != 0, flags & MARKERS != 0) {
            (0, false, _) => Stored::Plain,
            (1, _, true) => Stored::Marked,
            (1, _, false) => Stored::Bare,
            (algorithm, ..) => {
                return Err(field("vmdk compressAlgorithm", algorithm.into(), "only 1 (deflate) is known"));
            }
        };
        let grain = grain_sectors.saturating_mul(SECTOR);
        if stored != Stored::Plain && grain > limits::UNIT_BYTES.into() {
            return Err(field("vmdk grainSize", grain_sectors, "compressed grains are read up to 16 MiB"));
        }
        let bytes = |what, sectors: u64| {
            sectors.checked_mul(SECTOR).ok_or(field(what, sectors, "it is larger than any file or disk"))
        };
        let directory = match fields.le64(56)? {
            AT_END => AT_END,
            sectors => bytes("vmdk gdOffset", sectors)?,
        };
        Ok(Header {
            version,
            flags,
            capacity: bytes("vmdk capacity", fields.le64(12)?)?,
            grain,
            descriptor: (
                bytes("vmdk descriptorOffset", fields.le64(28)?)?,
                bytes("vmdk descriptorSize", fields.le64(36)?)?,
            ),
            table_entries: table_entries.into(),
            redundant: bytes("vmdk rgdOffset", fields.le64(48)?)?,
            directory,
            overhead: bytes("vmdk overHead", fields.le64(64)?)?,
            unclean: fields.u8(72)? != 0,
            stored,
        })
    }

    /// Reads the header of `file`, and where the directory is at the end, its footer.
    pub(crate) fn read(view: View<'_>, file: FileIndex) -> Step<Header> {
        let head = head(view, file)?;
        if !head.starts_with(MAGIC) {
            return Err(FormatError::Signature { format: Format::Vmdk }.into());
        }
        view.inside(file, 0, SECTOR, "vmdk header")?;
        let mut header = Header::parse(head)?;
        if header.directory == AT_END {
            header.directory = footer(view, file, &header)?;
        }
        Ok(header)
    }
}

/// The directory's place from the footer: a second header in front of the end-of-stream marker, which is a sector of
/// zeros. Padding behind it looks the same, so that the footer is the last sector that is not all zeros.
fn footer(view: View<'_>, file: FileIndex, header: &Header) -> Step<u64> {
    let len = view.len(file);
    let start = len.saturating_sub(TAIL) & !(SECTOR - 1);
    let tail = view.upto(file, start, len.saturating_sub(start))?;
    let missing =
        refused("the grain directory is said to be at the end, and no footer is there: the file is cut");
    let sectors = tail.as_chunks::<512>().0;
    let last = sectors.iter().rposition(|sector| sector.iter().any(|&byte| byte != 0)).ok_or(missing)?;
    let found = sectors.get(last).filter(|sector| sector.starts_with(MAGIC)).ok_or(missing)?;
    // The marker in front of it: one sector of metadata, type 3.
    let marker = last.checked_sub(1).and_then(|before| sectors.get(before)).ok_or(missing)?;
    if marker.get(..16) != Some(&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0]) {
        return Err(refused("the footer has no footer marker in front of it").into());
    }
    let footer = Header::parse(found)?;
    let same = |header: &Header| {
        (header.version, header.capacity, header.grain, header.table_entries, header.stored)
    };
    if same(&footer) != same(header) || footer.directory == AT_END {
        return Err(refused("the footer contradicts the header").into());
    }
    Ok(footer.directory)
}

/// Opens the extent in `file`, whose header has been read. Adds what is odd about it to `warnings`.
pub(crate) fn open(
    view: View<'_>,
    file: FileIndex,
    header: &Header,
    warnings: &mut Vec<String>,
) -> Step<Sparse> {
    let file_len = view.len(file);
    if header.overhead > file_len {
        let (at, len) = (0, header.overhead);
        return Err(FormatError::Truncated { what: "vmdk metadata", at, len, file_len }.into());
    }
    if header.unclean {
        warnings.push("the image was not closed cleanly".to_owned());
    }
    let stored = header.stored;
    Ok(Sparse {
        file,
        file_len,
        capacity: header.capacity,
        grain: header.grain,
        table_entries: header.table_entries,
        directory: directory(view, file, header, warnings)?,
        entries: Entries::Sectors { stored, zeroed: header.flags & ZEROED_GRAINS != 0 },
    })
}

/// The grain directory, or where that cannot be one, the redundant copy.
fn directory(view: View<'_>, file: FileIndex, header: &Header, warnings: &mut Vec<String>) -> Step<Table> {
    let len = directory_bytes(header.capacity, header.grain, header.table_entries, 4);
    let what = "vmdk grain directory";
    let primary = match view.table(file, header.directory, len, what) {
        Err(Stop::Failed(error @ FormatError::Truncated { .. })) => Err(error),
        Err(other) => return Err(other),
        Ok(table) => Ok(table),
    };
    let file_len = view.len(file);
    let suspect = primary.as_ref().map_or(true, |table| !plausible(table, file_len));
    if suspect && header.flags & REDUNDANT != 0 && header.redundant != 0 {
        match view.table(file, header.redundant, len, what) {
            Ok(copy) if plausible(&copy, file_len) => {
                warnings.push("the grain directory is damaged: its redundant copy was used".to_owned());
                return Ok(copy);
            }
            Err(Stop::Need) => return Err(Stop::Need),
            _ => {}
        }
    }
    Ok(primary?)
}

fn field(what: &'static str, value: u64, rule: &'static str) -> FormatError {
    FormatError::Field { what, value, rule }
}

fn refused(rule: &'static str) -> FormatError {
    FormatError::Refused { what: "the vmdk image", rule }
}
