//! qcow, version 1 of what became qcow2 (QEMU, block/qcow.c; no specification was written).
//!
//! As in qcow2 there are two levels of tables, but how many entries an L2 table has is a field of its own, nothing
//! needs to be aligned, and a compressed cluster's length stands in its entry in bytes.

use crate::fields::{Fields, be64s, index, text};
use crate::known::{Step, Table, View};
use crate::probe::{HEAD, IMAGE};
use crate::{
    Codec, Damage, Format, FormatError, Info, Layer, Located, Mapping, Opened, ParentCheck, ParentRef,
    Result, Run, Runs, TableRef, Unit, limits,
};
use std::sync::Arc;

/// Bytes of the header.
const HEADER_BYTES: u64 = 48;

/// Longest backing file name.
const NAME_BYTES: u32 = 1023;

/// L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 63;

/// Opens a qcow image of version 1.
pub(crate) fn open(view: View<'_>) -> Step<Opened> {
    let head = view.upto(IMAGE, 0, HEAD)?;
    if !head.starts_with(b"QFI\xfb\0\0\0\x01") {
        return Err(FormatError::Signature { format: Format::Qcow }.into());
    }
    let fields = Fields::new(view.exact(IMAGE, 0, HEADER_BYTES, "qcow header")?, "the qcow header");
    let (cluster_bits, l2_bits) = (u32::from(fields.u8(32)?), u32::from(fields.u8(33)?));
    let bits = |what, value: u32, rule| FormatError::Field { what, value: value.into(), rule };
    if !(9..=16).contains(&cluster_bits) {
        return Err(bits("qcow cluster_bits", cluster_bits, "it must be 9 to 16").into());
    }
    if !(6..=13).contains(&l2_bits) {
        return Err(bits("qcow l2_bits", l2_bits, "it must be 6 to 13").into());
    }
    match fields.be32(36)? {
        0 => {}
        1 => {
            let rule = "AES encryption: it has to be converted with the key first";
            return Err(FormatError::Refused { what: "the image is encrypted", rule }.into());
        }
        other => {
            return Err(
                bits("qcow crypt_method", other, "only 0, an image without encryption, is read").into()
            );
        }
    }
    let size = fields.be64(24)?;
    if size > i64::MAX.unsigned_abs() {
        return Err(
            FormatError::Field { what: "qcow size", value: size, rule: "it must be below 2^63" }.into()
        );
    }
    let cluster = 1u64 << cluster_bits;
    let covers = cluster << l2_bits;
    let l1_at = fields.be64(40)?;
    let l1 = view.table(IMAGE, l1_at, size.div_ceil(covers).saturating_mul(8), "qcow L1 table")?;
    let info = Info {
        cluster_size: Some(cluster),
        compressed: true,
        aligned_units: true,
        whole_clusters: true,
        features: vec!["v1".to_owned()],
        ..Info::default()
    };
    let layer = Qcow { size, file_len: view.len(IMAGE), cluster_bits, cluster, l2_bits, covers, l1, info };
    let parent = parent(view, &fields)?;
    Ok(Opened { layer: Arc::new(layer), parent, content_id: None })
}

/// The backing file; its format is not recorded.
fn parent(view: View<'_>, fields: &Fields<'_>) -> Step<Option<ParentRef>> {
    let (at, len) = (fields.be64(8)?, fields.be32(16)?);
    if at == 0 || len == 0 {
        return Ok(None);
    }
    if len > NAME_BYTES {
        let (what, rule) = ("qcow backing_file_size", "it must be at most 1023");
        return Err(FormatError::Field { what, value: len.into(), rule }.into());
    }
    let name = view.exact(IMAGE, at, len.into(), "qcow backing file name")?;
    let names = vec![text("the qcow backing file name", name)?];
    Ok(Some(ParentRef { names, format: None, check: ParentCheck::None }))
}

#[derive(Debug)]
struct Qcow {
    size: u64,
    file_len: u64,
    cluster_bits: u32,
    cluster: u64,
    l2_bits: u32,
    /// Guest bytes under one L1 entry.
    covers: u64,
    l1: Table,
    info: Info,
}

impl Qcow {
    /// What an L2 entry says of the cluster at `guest`.
    fn mapping(&self, entry: u64, guest: u64) -> Mapping {
        if entry & COMPRESSED == 0 {
            return match entry {
                0 => Mapping::Parent,
                at if at >= self.file_len => Mapping::Damaged(Damage::PastEnd),
                at => Mapping::Data { file: IMAGE, at },
            };
        }
        // The length is above the offset, and has as many bits as a cluster's offsets have.
        let shift = 63u32.saturating_sub(self.cluster_bits);
        let at = entry & 1u64.checked_shl(shift).unwrap_or(0).wrapping_sub(1);
        let len = entry.checked_shr(shift).unwrap_or(0) & self.cluster.wrapping_sub(1);
        match (u32::try_from(len), u32::try_from(self.cluster)) {
            _ if at >= self.file_len => Mapping::Damaged(Damage::PastEnd),
            (Ok(len), Ok(decoded)) => {
                Mapping::Compressed(Unit { file: IMAGE, at, len, codec: Codec::Deflate, guest, decoded })
            }
            _ => Mapping::Damaged(Damage::State),
        }
    }

    fn l1(&self, number: u64) -> u64 {
        self.l1.entry(number).map_or(0, u64::from_be_bytes)
    }

    /// The number of the first L1 entry from `number` on that is not empty, if it is near.
    fn next_used(&self, number: u64) -> u64 {
        let far = number.saturating_add(limits::MERGED_ENTRIES);
        (number..far)
            .find(|&next| next.saturating_mul(self.covers) >= self.size || self.l1(next) != 0)
            .unwrap_or(far)
    }
}

impl Layer for Qcow {
    fn format(&self) -> Format {
        Format::Qcow
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
        let number = at.checked_div(self.covers).unwrap_or(0);
        let start = number.saturating_mul(self.covers);
        let until = |number: u64| number.saturating_mul(self.covers).min(self.size).saturating_sub(start);
        let run = |len, mapping| Ok(Located::Run(Run { start, len, mapping }));
        let next = number.saturating_add(1);
        match self.l1(number) {
            0 => run(until(self.next_used(next)), Mapping::Parent),
            table if table >= self.file_len => run(until(next), Mapping::Damaged(Damage::TablePastEnd)),
            table => Ok(Located::Table(TableRef {
                file: IMAGE,
                at: table,
                len: 8u32.checked_shl(self.l2_bits).unwrap_or(limits::LEAF_BYTES),
                start,
                covers: until(next),
            })),
        }
    }

    fn decode(&self, table: TableRef, bytes: &[u8]) -> Result<Runs> {
        let mut runs = Runs::new();
        let end = table.start.saturating_add(table.covers);
        let mut guest = table.start;
        for entry in be64s(bytes).take(index(table.covers.div_ceil(self.cluster.max(1)))) {
            let len = self.cluster.min(end.saturating_sub(guest));
            let _contiguous = runs.push(Run { start: guest, len, mapping: self.mapping(entry, guest) });
            guest = guest.saturating_add(self.cluster);
        }
        let len = end.saturating_sub(guest);
        let _contiguous =
            runs.push(Run { start: guest, len, mapping: Mapping::Damaged(Damage::TablePastEnd) });
        Ok(runs)
    }
}
