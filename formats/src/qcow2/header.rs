//! The qcow2 header, its feature bits and its extensions (qcow2 specification, "Header" and "Header extensions").

use crate::fields::{Fields, index, length, text};
use crate::known::{Step, View};
use crate::probe::{HEAD, IMAGE};
use crate::{Codec, Format, FormatError, Label, Result};

/// Incompatible feature bits (bytes 72 to 79).
mod incompatible {
    pub(super) const DIRTY: u64 = 1 << 0;
    pub(super) const CORRUPT: u64 = 1 << 1;
    pub(super) const DATA_FILE: u64 = 1 << 2;
    pub(super) const COMPRESSION: u64 = 1 << 3;
    pub(super) const EXTENDED_L2: u64 = 1 << 4;
    pub(super) const KNOWN: u64 = DIRTY | CORRUPT | DATA_FILE | COMPRESSION | EXTENDED_L2;
}

/// Autoclear feature bit 1: the external data file is a raw image by itself.
const DATA_FILE_RAW: u64 = 1 << 1;

/// Header extension types.
const EXTENSION_END: u32 = 0;
const EXTENSION_BACKING_FORMAT: u32 = 0xe279_2aca;
const EXTENSION_FEATURE_NAMES: u32 = 0x6803_f857;
const EXTENSION_DATA_FILE: u32 = 0x4441_5441;
const EXTENSION_BITMAPS: u32 = 0x2385_2875;

/// Length of the version 2 header, and of the shortest version 3 header.
const V2_BYTES: u32 = 72;
const V3_BYTES: u32 = 104;

/// Longest backing file name.
const NAME_BYTES: u32 = 1023;

/// What the header says, checked.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) version: u32,
    pub(crate) cluster_bits: u32,
    pub(crate) size: u64,
    pub(crate) l1_size: u32,
    pub(crate) l1_offset: u64,
    pub(crate) snapshots: u32,
    pub(crate) snapshots_offset: u64,
    pub(crate) codec: Codec,
    pub(crate) extended_l2: bool,
    pub(crate) dirty: bool,
    pub(crate) corrupt: bool,
    /// The external data file's name, where the image has one.
    pub(crate) data_file: Option<String>,
    pub(crate) data_file_raw: bool,
    pub(crate) bitmaps: bool,
    /// The backing file's name, and its format where it is recorded.
    pub(crate) backing: Option<(String, Option<String>)>,
}

impl Header {
    /// Bytes of a cluster.
    pub(crate) fn cluster(&self) -> u64 {
        1u64.checked_shl(self.cluster_bits).unwrap_or(1)
    }

    /// Bytes of an L2 table's entry.
    pub(crate) fn entry(&self) -> u64 {
        if self.extended_l2 { 16 } else { 8 }
    }

    /// Guest bytes that one L2 table speaks for. At most 2^39.
    pub(crate) fn table_covers(&self) -> u64 {
        self.cluster().saturating_mul(self.cluster().checked_div(self.entry()).unwrap_or(0)).max(1)
    }
}

/// Reads and checks the header.
pub(crate) fn read(view: View<'_>) -> Step<Header> {
    let head = view.upto(IMAGE, 0, HEAD)?;
    if !head.starts_with(b"QFI\xfb") {
        return Err(FormatError::Signature { format: Format::Qcow2 }.into());
    }
    let short = |len: u32| FormatError::Truncated {
        what: "qcow2 header",
        at: 0,
        len: len.into(),
        file_len: view.len(IMAGE),
    };
    let fields = Fields::new(head, "the qcow2 header");
    let version = fields.be32(4).map_err(|_| short(V2_BYTES))?;
    if version != 2 && version != 3 {
        return Err(field("qcow2 version", version, "only 2 and 3 are read").into());
    }
    let least = if version == 2 { V2_BYTES } else { V3_BYTES };
    if length(head.len()) < u64::from(least) {
        return Err(short(least).into());
    }
    let cluster_bits = fields.be32(20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Err(field("qcow2 cluster_bits", cluster_bits, "it must be 9 to 21").into());
    }
    let mut header = Header {
        version,
        cluster_bits,
        size: fields.be64(24)?,
        l1_size: fields.be32(36)?,
        l1_offset: fields.be64(40)?,
        snapshots: fields.be32(60)?,
        snapshots_offset: fields.be64(64)?,
        codec: Codec::Deflate,
        extended_l2: false,
        dirty: false,
        corrupt: false,
        data_file: None,
        data_file_raw: false,
        bitmaps: false,
        backing: None,
    };
    check_base(&fields, &header)?;
    let mut incompatible = 0;
    let mut header_length = V2_BYTES;
    if version == 3 {
        incompatible = fields.be64(72)?;
        header_length = fields.be32(100)?;
        read_v3(&fields, &mut header, header_length)?;
    }
    let first_cluster = view.upto(IMAGE, 0, header.cluster())?;
    read_extensions(
        &Fields::new(first_cluster, "the qcow2 header cluster"),
        &mut header,
        header_length,
        incompatible,
    )?;
    Ok(header)
}

/// The fields that both versions have.
fn check_base(fields: &Fields<'_>, header: &Header) -> Result<()> {
    match fields.be32(32)? {
        0 => {}
        1 => return Err(encrypted("AES encryption: it has to be converted with the key first")),
        2 => return Err(encrypted("LUKS encryption: it has to be converted with the key first")),
        other => {
            return Err(field("qcow2 crypt_method", other, "only 0, an image without encryption, is read"));
        }
    }
    if header.size > i64::MAX.unsigned_abs() {
        return Err(FormatError::Field {
            what: "qcow2 size",
            value: header.size,
            rule: "it must be below 2^63",
        });
    }
    aligned("qcow2 l1_table_offset", header.l1_offset, header.cluster())?;
    // The refcounts do not matter to a reader, but an image whose sizes make no sense is not what it seems.
    aligned("qcow2 refcount_table_offset", fields.be64(48)?, header.cluster())?;
    let refcount_clusters = fields.be32(56)?;
    if u64::from(refcount_clusters).saturating_mul(header.cluster()) > 8 << 20 {
        return Err(field(
            "qcow2 refcount_table_clusters",
            refcount_clusters,
            "the table would be more than 8 MiB",
        ));
    }
    if header.snapshots > 65536 {
        return Err(field("qcow2 nb_snapshots", header.snapshots, "it must be at most 65536"));
    }
    aligned("qcow2 snapshots_offset", header.snapshots_offset, header.cluster())
}

/// The fields that version 3 added.
fn read_v3(fields: &Fields<'_>, header: &mut Header, header_length: u32) -> Result<()> {
    if header_length < V3_BYTES
        || !header_length.is_multiple_of(8)
        || u64::from(header_length) > header.cluster()
    {
        let rule = "it must be a multiple of 8 from 104 to the cluster size";
        return Err(field("qcow2 header_length", header_length, rule));
    }
    let refcount_order = fields.be32(96)?;
    if refcount_order > 6 {
        return Err(field("qcow2 refcount_order", refcount_order, "it must be at most 6"));
    }
    let bits = fields.be64(72)?;
    header.dirty = bits & incompatible::DIRTY != 0;
    header.corrupt = bits & incompatible::CORRUPT != 0;
    header.extended_l2 = bits & incompatible::EXTENDED_L2 != 0;
    header.data_file_raw = fields.be64(88)? & DATA_FILE_RAW != 0;
    if header.extended_l2 && header.cluster_bits < 14 {
        let rule = "extended L2 entries need clusters of at least 16 KiB";
        return Err(field("qcow2 cluster_bits", header.cluster_bits, rule));
    }
    let compression = if header_length > V3_BYTES { fields.u8(104)? } else { 0 };
    header.codec = match (compression, bits & incompatible::COMPRESSION != 0) {
        (0, false) => Codec::Deflate,
        (1, true) => Codec::Zstd,
        (0 | 1, _) => {
            let rule = "it contradicts the incompatible feature bit for the compression type";
            return Err(field("qcow2 compression_type", compression.into(), rule));
        }
        _ => {
            return Err(field(
                "qcow2 compression_type",
                compression.into(),
                "only 0 (zlib) and 1 (zstd) are known",
            ));
        }
    };
    Ok(())
}

/// Extensions and the backing file's name. Both lie in the first cluster; the extensions end where the name begins.
fn read_extensions(fields: &Fields<'_>, header: &mut Header, start: u32, incompatible: u64) -> Result<()> {
    let name_offset = fields.be64(8)?;
    let name_bytes = fields.be32(16)?;
    let mut end = header.cluster();
    if name_offset != 0 {
        if name_bytes > NAME_BYTES {
            return Err(field("qcow2 backing_file_size", name_bytes, "it must be at most 1023"));
        }
        let fits =
            name_offset.checked_add(name_bytes.into()).is_some_and(|name_end| name_end <= header.cluster());
        if name_offset < start.into() || !fits {
            let (what, rule) =
                ("qcow2 backing_file_offset", "the name must lie in the first cluster, after the header");
            return Err(FormatError::Field { what, value: name_offset, rule });
        }
        end = name_offset;
    }
    let mut found = Extensions::default();
    let mut at = u64::from(start);
    while at.saturating_add(8) <= end {
        // A file that ends inside its first cluster has no more extensions than it has bytes.
        let Ok(kind) = fields.be32(index(at)) else { break };
        if kind == EXTENSION_END {
            break;
        }
        let len = fields.be32(index(at.saturating_add(4)))?;
        let data = at.saturating_add(8);
        let next = data.saturating_add(u64::from(len).next_multiple_of(8));
        if data.saturating_add(len.into()) > end {
            return Err(field(
                "the length of a qcow2 header extension",
                len,
                "it reaches past the header's cluster",
            ));
        }
        found.take(kind, fields.slice(index(data), index(len.into()))?);
        at = next;
    }
    let unknown = incompatible & !incompatible::KNOWN;
    if unknown != 0 {
        let bit = unknown.trailing_zeros();
        return Err(FormatError::Feature { bit, name: feature_name(found.feature_names, bit) });
    }
    header.bitmaps = found.bitmaps;
    if name_offset != 0 && name_bytes != 0 {
        let name =
            text("the qcow2 backing file name", fields.slice(index(name_offset), index(name_bytes.into()))?)?;
        let format =
            found.backing_format.map(|format| text("the qcow2 backing format", format)).transpose()?;
        header.backing = Some((name, format.filter(|format| !format.is_empty())));
    }
    if incompatible & incompatible::DATA_FILE != 0 {
        let what = "the qcow2 external data file";
        let name =
            found.data_file.ok_or(FormatError::Refused { what, rule: "the image does not name it" })?;
        if name.is_empty() {
            return Err(FormatError::Refused { what, rule: "its name is empty" });
        }
        header.data_file = Some(text("the qcow2 external data file name", name)?);
        if header.data_file_raw && header.backing.is_some() {
            return Err(FormatError::Refused {
                what,
                rule: "it is marked raw, which a backing file contradicts",
            });
        }
    }
    Ok(())
}

/// The extensions that matter to a reader; of duplicates, the first.
#[derive(Default)]
struct Extensions<'a> {
    backing_format: Option<&'a [u8]>,
    feature_names: &'a [u8],
    data_file: Option<&'a [u8]>,
    bitmaps: bool,
}

impl<'a> Extensions<'a> {
    fn take(&mut self, kind: u32, data: &'a [u8]) {
        match kind {
            EXTENSION_BACKING_FORMAT => self.backing_format = self.backing_format.or(Some(data)),
            EXTENSION_DATA_FILE => self.data_file = self.data_file.or(Some(data)),
            EXTENSION_FEATURE_NAMES if self.feature_names.is_empty() => self.feature_names = data,
            EXTENSION_BITMAPS => self.bitmaps = true,
            _ => {}
        }
    }
}

/// What the image calls incompatible feature `bit`. An entry is the type (0 for incompatible), the bit's number and
/// 46 bytes of name.
fn feature_name(table: &[u8], bit: u32) -> Label {
    let entry = table.as_chunks::<48>().0.iter().find(|entry| entry.starts_with(&[0, bit.to_le_bytes()[0]]));
    entry.and_then(|entry| entry.get(2..)).map_or(Label::new(b"unnamed"), Label::new)
}

fn aligned(what: &'static str, value: u64, cluster: u64) -> Result<()> {
    if value.is_multiple_of(cluster) && value <= i64::MAX.unsigned_abs() {
        Ok(())
    } else {
        Err(FormatError::Field { what, value, rule: "it must be a multiple of the cluster size below 2^63" })
    }
}

fn field(what: &'static str, value: u32, rule: &'static str) -> FormatError {
    FormatError::Field { what, value: value.into(), rule }
}

fn encrypted(rule: &'static str) -> FormatError {
    FormatError::Refused { what: "the image is encrypted", rule }
}
