//! The sparse extents of ESX: COWD (vmfsSparse, VMware Virtual Disk Format 1.1 "ESX Server Sparse Extents") and
//! seSparse (not published; its layout as read by qemu and dissect.hypervisor).

use super::sparse::{Entries, SECTOR, Sparse, Stored, directory_bytes, head};
use crate::fields::Fields;
use crate::known::{Step, View};
use crate::{FileIndex, Format, FormatError};

/// Magic of a COWD header.
pub(crate) const COWD: &[u8] = b"COWD";

/// Magic of a seSparse constant header, 0xcafebabe in 64 bits.
pub(crate) const SESPARSE: &[u8] = b"\xbe\xba\xfe\xca\0\0\0\0";

/// Magic of a seSparse volatile header, 0xcafecafe in 64 bits.
const VOLATILE: &[u8] = b"\xfe\xca\xfe\xca\0\0\0\0";

/// Entries of a grain table of both kinds.
const TABLE_ENTRIES: u64 = 4096;

/// Opens the COWD extent in `file`.
pub(crate) fn open_cowd(view: View<'_>, file: FileIndex) -> Step<Sparse> {
    let head = head(view, file)?;
    if !head.starts_with(COWD) {
        return Err(FormatError::Signature { format: Format::Vmdk }.into());
    }
    let fields = Fields::new(head, "the COWD header");
    let version = fields.le32(4)?;
    if version != 1 {
        return Err(field("COWD version", version.into(), "only 1 is read").into());
    }
    let grain_sectors = u64::from(fields.le32(16)?);
    if !grain_sectors.is_power_of_two() || grain_sectors > 1 << 21 {
        return Err(field(
            "COWD granularity",
            grain_sectors,
            "it must be a power of two of sectors up to 1 GiB",
        )
        .into());
    }
    let capacity = u64::from(fields.le32(12)?).saturating_mul(SECTOR);
    let grain = grain_sectors.saturating_mul(SECTOR);
    let len = directory_bytes(capacity, grain, TABLE_ENTRIES, 4);
    let entries = u64::from(fields.le32(24)?);
    if entries.saturating_mul(4) < len {
        return Err(field("COWD directory size", entries, "the directory is too small for the extent").into());
    }
    let at = u64::from(fields.le32(20)?).saturating_mul(SECTOR);
    Ok(Sparse {
        file,
        file_len: view.len(file),
        capacity,
        grain,
        table_entries: TABLE_ENTRIES,
        directory: view.table(file, at, len, "COWD grain directory")?,
        entries: Entries::Sectors { stored: Stored::Plain, zeroed: false },
    })
}

/// Opens the seSparse extent in `file`.
pub(crate) fn open_sesparse(view: View<'_>, file: FileIndex) -> Step<Sparse> {
    let head = head(view, file)?;
    if !head.starts_with(SESPARSE) {
        return Err(FormatError::Signature { format: Format::Vmdk }.into());
    }
    let fields = Fields::new(head, "the seSparse header");
    let fixed: [(&str, usize, u64); 4] = [
        ("seSparse version", 8, 0x2_0000_0001),
        ("seSparse grain size", 24, 8),
        ("seSparse grain table size", 32, 64),
        ("seSparse flags", 40, 0),
    ];
    for (what, at, only) in fixed {
        let value = fields.le64(at)?;
        if value != only {
            return Err(field(what, value, "it has another value in all images that are known").into());
        }
    }
    let bytes = |what, at| {
        let sectors = fields.le64(at)?;
        sectors.checked_mul(SECTOR).ok_or(field(what, sectors, "it is larger than any file or disk"))
    };
    let capacity = bytes("seSparse capacity", 16)?;
    let volatile =
        view.exact(file, bytes("seSparse volatile header", 80)?, SECTOR, "seSparse volatile header")?;
    let volatile_fields = Fields::new(volatile, "the seSparse volatile header");
    if !volatile.starts_with(VOLATILE) {
        let (what, rule) = ("the seSparse volatile header", "it does not begin with 0xcafecafe");
        return Err(FormatError::Refused { what, rule }.into());
    }
    if volatile_fields.le64(24)? != 0 {
        let (what, rule) =
            ("the seSparse journal", "it has to be replayed by ESX before the image can be read");
        return Err(FormatError::Refused { what, rule }.into());
    }
    let grain = 8 * SECTOR;
    let len = directory_bytes(capacity, grain, TABLE_ENTRIES, 8);
    if bytes("seSparse grain directory size", 136)? < len {
        let (what, rule) = ("seSparse grain directory size", "the directory is too small for the extent");
        return Err(field(what, fields.le64(136)?, rule).into());
    }
    let at = bytes("seSparse grain directory offset", 128)?;
    Ok(Sparse {
        file,
        file_len: view.len(file),
        capacity,
        grain,
        table_entries: TABLE_ENTRIES,
        directory: view.table(file, at, len, "seSparse grain directory")?,
        entries: Entries::Typed {
            tables: bytes("seSparse grain tables offset", 144)?,
            grains: bytes("seSparse grains offset", 192)?,
        },
    })
}

fn field(what: &'static str, value: u64, rule: &'static str) -> FormatError {
    FormatError::Field { what, value, rule }
}
