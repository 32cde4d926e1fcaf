//! L1 and L2 table entries (qcow2 specification, "Cluster mapping" and "Extended L2 entries").

use crate::{Codec, Damage, FileIndex, Mapping, Run, Unit};

/// Bits 9 to 55 of an entry: the host offset.
const OFFSET: u64 = 0x00ff_ffff_ffff_fe00;
/// Bits of an L1 entry that must be 0: all but the offset and the COPIED flag.
const L1_RESERVED: u64 = 0x7f00_0000_0000_01ff;
/// L2 entry: the cluster is stored once and only here.
const COPIED: u64 = 1 << 63;
/// L2 entry: the cluster is compressed.
const COMPRESSED: u64 = 1 << 62;
/// Standard L2 entry of version 3: the cluster reads as zeros.
const ZERO: u64 = 1;
/// Subclusters of a cluster.
const SUBCLUSTERS: u64 = 32;

/// What the entries of an image have in common.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) cluster_bits: u32,
    pub(crate) cluster: u64,
    pub(crate) extended: bool,
    /// Version 3: bit 0 of a standard entry is the zero flag.
    pub(crate) zero_flag: bool,
    pub(crate) codec: Codec,
    /// The file that holds the data, and whether that is an external data file.
    pub(crate) data: FileIndex,
    pub(crate) external: bool,
    /// Length of that file.
    pub(crate) data_len: u64,
    /// The active L1 table's place, which no data may alias.
    pub(crate) l1: (u64, u64),
}

/// What an L1 entry says.
pub(crate) enum L1 {
    /// No L2 table: nothing under it is allocated.
    Empty,
    /// The L2 table's offset.
    Table(u64),
    /// Neither.
    Damaged(Damage),
}

impl Shape {
    /// Decodes an L1 entry of an image file that is `file_len` bytes long.
    pub(crate) fn l1(&self, entry: u64, file_len: u64) -> L1 {
        let offset = entry & OFFSET;
        if entry & L1_RESERVED != 0 {
            L1::Damaged(Damage::RootReserved)
        } else if offset == 0 {
            L1::Empty
        } else if !offset.is_multiple_of(self.cluster) {
            L1::Damaged(Damage::TableUnaligned)
        } else if offset >= file_len {
            L1::Damaged(Damage::TablePastEnd)
        } else {
            L1::Table(offset)
        }
    }

    /// Decodes a standard L2 entry for the cluster at `guest`; `table` is the place of the L2 table itself.
    pub(crate) fn standard(&self, entry: u64, guest: u64, table: u64) -> Mapping {
        if entry & COMPRESSED != 0 {
            return self.compressed(entry, guest);
        }
        if entry & ZERO != 0 {
            // Version 2 knows no zero flag, so that there the bit is one that must be 0.
            return if self.zero_flag { Mapping::Zero } else { Mapping::Damaged(Damage::State) };
        }
        self.host(entry, table).map_or_else(Mapping::Damaged, |at| match at {
            Some(at) => Mapping::Data { file: self.data, at },
            None => Mapping::Parent,
        })
    }

    /// Decodes an extended L2 entry into runs for the cluster at `guest`.
    pub(crate) fn extended(
        &self,
        entry: u64,
        bitmap: u64,
        guest: u64,
        table: u64,
        mut push: impl FnMut(Run),
    ) {
        let mut whole = |mapping| push(Run { start: guest, len: self.cluster, mapping });
        if entry & COMPRESSED != 0 {
            return whole(self.compressed(entry, guest));
        }
        let (allocated, zero) = (bitmap & u64::from(u32::MAX), bitmap >> 32);
        if allocated & zero != 0 {
            return whole(Mapping::Damaged(Damage::Contradiction));
        }
        let at = match self.host(entry, table) {
            Ok(Some(at)) => at,
            Ok(None) if allocated != 0 => return whole(Mapping::Damaged(Damage::Contradiction)),
            Ok(None) => 0,
            Err(damage) => return whole(Mapping::Damaged(damage)),
        };
        let len = self.cluster.checked_div(SUBCLUSTERS).unwrap_or(0);
        for subcluster in 0..SUBCLUSTERS {
            let skip = subcluster.saturating_mul(len);
            let bit = 1u64.checked_shl(u32::try_from(subcluster).unwrap_or(0)).unwrap_or(0);
            let mapping = if allocated & bit != 0 {
                Mapping::Data { file: self.data, at: at.saturating_add(skip) }
            } else if zero & bit != 0 {
                Mapping::Zero
            } else {
                Mapping::Parent
            };
            push(Run { start: guest.saturating_add(skip), len, mapping });
        }
    }

    /// The host offset in an uncompressed entry; `None` if nothing is allocated.
    fn host(&self, entry: u64, table: u64) -> Result<Option<u64>, Damage> {
        let at = entry & OFFSET;
        // Offset 0 is the header, except in an external data file, where COPIED tells data from nothing.
        if at == 0 && !(self.external && entry & COPIED != 0) {
            return Ok(None);
        }
        if !at.is_multiple_of(self.cluster) {
            return Err(Damage::Unaligned);
        }
        if at >= self.data_len {
            return Err(Damage::PastEnd);
        }
        let (l1, l1_end) = self.l1;
        let aliases_l1 = at < l1_end && l1 < at.saturating_add(self.cluster);
        if !self.external && (at == table || aliases_l1) {
            return Err(Damage::Metadata);
        }
        Ok(Some(at))
    }

    /// A compressed entry: the low `x` bits are the offset of the first byte, the bits up to 61 the number of
    /// further 512-byte sectors that the data touches, with x = 62 - (cluster_bits - 8).
    fn compressed(&self, entry: u64, guest: u64) -> Mapping {
        if self.external {
            return Mapping::Damaged(Damage::Compressed);
        }
        let x = 62u32.saturating_add(8).saturating_sub(self.cluster_bits);
        let low = 1u64.checked_shl(x).unwrap_or(0).wrapping_sub(1);
        let at = entry & low;
        let further = (entry & (COMPRESSED.wrapping_sub(1))).checked_shr(x).unwrap_or(0);
        let bytes = further.saturating_add(1).saturating_mul(512).saturating_sub(at & 511);
        let (Ok(len), Ok(decoded)) = (u32::try_from(bytes), u32::try_from(self.cluster)) else {
            return Mapping::Damaged(Damage::State);
        };
        if at >= self.data_len {
            return Mapping::Damaged(Damage::PastEnd);
        }
        Mapping::Compressed(Unit { file: self.data, at, len, codec: self.codec, guest, decoded })
    }
}
