//! Internal snapshots (qcow2 specification, "Snapshots"): each has an L1 table of its own.

use super::header::Header;
use crate::fields::{Fields, index};
use crate::known::{Step, View};
use crate::probe::IMAGE;
use crate::{FormatError, Result};

/// Most bytes of snapshot table that are read. With names and ids of usual length that is some 10 000 snapshots.
const TABLE_BYTES: u64 = 1 << 20;

/// The L1 table of a snapshot, and the size that the disk had.
#[derive(Debug)]
pub(crate) struct Snapshot {
    pub(crate) l1_offset: u64,
    pub(crate) l1_size: u32,
    pub(crate) size: u64,
}

/// The snapshot with this id or, if there is none, with this name.
pub(crate) fn find(view: View<'_>, header: &Header, wanted: &str) -> Step<Snapshot> {
    let bytes = view.upto(IMAGE, header.snapshots_offset, TABLE_BYTES)?;
    let table = Fields::new(bytes, "the qcow2 snapshot table");
    let mut at = 0;
    let mut by_name = None;
    for _ in 0..header.snapshots {
        let entry = entry(&table, at, header)?;
        if entry.id == wanted.as_bytes() {
            return Ok(entry.snapshot);
        }
        if entry.name == wanted.as_bytes() && by_name.is_none() {
            by_name = Some(entry.snapshot);
        }
        at = entry.next;
    }
    let rule = "the image has no internal snapshot of that id or name";
    by_name.ok_or(FormatError::Refused { what: "the snapshot", rule }.into())
}

struct Entry<'a> {
    id: &'a [u8],
    name: &'a [u8],
    snapshot: Snapshot,
    next: u64,
}

/// The entry at `at` of the table: 40 bytes, extra data, id and name, padded to a multiple of 8.
fn entry<'a>(table: &Fields<'a>, at: u64, header: &Header) -> Result<Entry<'a>> {
    let field = |offset: u64| index(at.saturating_add(offset));
    let id_len = u64::from(table.be16(field(12))?);
    let name_len = u64::from(table.be16(field(14))?);
    let extra_len = u64::from(table.be32(field(36))?);
    let id_at = extra_len.saturating_add(40);
    let name_at = id_at.saturating_add(id_len);
    let l1_offset = table.be64(field(0))?;
    if !l1_offset.is_multiple_of(header.cluster()) || l1_offset > i64::MAX.unsigned_abs() {
        let (what, rule) =
            ("the L1 table offset of a qcow2 snapshot", "it must be a multiple of the cluster size");
        return Err(FormatError::Field { what, value: l1_offset, rule });
    }
    // Extra data of version 3 begins with the sizes of the machine's state and of the disk.
    let size = if extra_len >= 16 { table.be64(field(48))? } else { header.size };
    Ok(Entry {
        id: table.slice(field(id_at), index(id_len))?,
        name: table.slice(field(name_at), index(name_len))?,
        snapshot: Snapshot { l1_offset, l1_size: table.be32(field(8))?, size },
        next: at.saturating_add(name_at.saturating_add(name_len)).next_multiple_of(8),
    })
}
