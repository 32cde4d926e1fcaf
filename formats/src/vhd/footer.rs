//! The footer and the dynamic disk header (Virtual Hard Disk Image Format 1.0).

use crate::fields::Fields;
use crate::{FormatError, Result};

/// Length of a footer.
pub(crate) const FOOTER_BYTES: u64 = 512;

/// Length of the dynamic disk header.
pub(crate) const HEADER_BYTES: u64 = 1024;

/// Cookie of a footer.
pub(crate) const COOKIE: &[u8] = b"conectix";

/// Most sectors of a disk: 2040 GiB.
const MAX_SECTORS: u64 = 0xff00_0000;

/// Sectors of the largest geometry that the footer can hold; disks of that size and larger all have it.
const MAX_GEOMETRY: u64 = 65535 * 16 * 255;

/// What kind of disk the file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Fixed,
    Dynamic,
    Differencing,
}

/// A footer whose cookie and checksum are right.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Footer {
    kind: u32,
    version: u32,
    current_size: u64,
    creator: [u8; 4],
    creator_version: u32,
    geometry: u64,
    pub(crate) data_offset: u64,
    pub(crate) id: [u8; 16],
    pub(crate) saved_state: bool,
    pub(crate) temporary: bool,
}

impl Footer {
    /// Reads a footer of 512 bytes, or of the 511 that Virtual PC wrote before 2004. `None` if it is none, or damaged.
    pub(crate) fn read(bytes: &[u8]) -> Option<Footer> {
        let fields = Fields::new(bytes, "the vhd footer");
        if !bytes.starts_with(COOKIE) || fields.be32(64).ok()? != checksum(bytes, 64) {
            return None;
        }
        Self::parse(&fields).ok()
    }

    fn parse(fields: &Fields<'_>) -> Result<Footer> {
        let cylinders = u64::from(fields.be16(56)?);
        let (heads, sectors) = (u64::from(fields.u8(58)?), u64::from(fields.u8(59)?));
        Ok(Footer {
            temporary: fields.be32(8)? & 1 != 0,
            version: fields.be32(12)?,
            data_offset: fields.be64(16)?,
            creator: fields.array(28)?,
            creator_version: fields.be32(32)?,
            current_size: fields.be64(48)?,
            geometry: cylinders.saturating_mul(heads).saturating_mul(sectors),
            kind: fields.be32(60)?,
            id: fields.array(68)?,
            saved_state: fields.u8(84)? != 0,
        })
    }

    /// The kind of disk; an error if it is none of the three that the specification defines.
    pub(crate) fn kind(&self) -> Result<Kind> {
        if self.version >> 16 != 1 {
            let (what, rule) = ("vhd file format version", "only major version 1 is read");
            return Err(FormatError::Field { what, value: self.version.into(), rule });
        }
        match self.kind {
            2 => Ok(Kind::Fixed),
            3 => Ok(Kind::Dynamic),
            4 => Ok(Kind::Differencing),
            other => {
                let (what, rule) =
                    ("vhd disk type", "only 2 (fixed), 3 (dynamic) and 4 (differencing) are read");
                Err(FormatError::Field { what, value: other.into(), rule })
            }
        }
    }

    /// Size of the virtual disk in bytes.
    ///
    /// Virtual PC presents a disk of cylinders × heads × sectors, a little less than the size in the footer, and
    /// qemu writes images that way unless told otherwise; everybody else means the size. Which one the image means
    /// shows only in its creator.
    pub(crate) fn size(&self) -> Result<u64> {
        let by_geometry = matches!(&self.creator, b"vpc " | b"qemu") && self.geometry != MAX_GEOMETRY;
        let size = match by_geometry && self.geometry != 0 {
            true => self.geometry.saturating_mul(512),
            false => self.current_size,
        };
        let limit = MAX_SECTORS.saturating_mul(512);
        if size > limit {
            return Err(FormatError::TooLarge { what: "the virtual disk of a vhd", value: size, limit });
        }
        Ok(size)
    }

    /// Who wrote the image, for [`crate::Info`].
    pub(crate) fn creator(&self) -> String {
        self.creator.iter().take_while(|&&byte| byte != 0).map(|&byte| printable(byte)).collect::<String>()
    }

    /// Whether XenServer's tools wrote the image, with a batmap behind the block allocation table.
    pub(crate) fn has_batmap(&self) -> bool {
        &self.creator == b"tap\0" && self.creator_version == 0x0001_0003
    }
}

fn printable(byte: u8) -> char {
    if byte.is_ascii_graphic() || byte == b' ' { char::from(byte) } else { '?' }
}

/// The dynamic disk header.
#[derive(Debug)]
pub(crate) struct Header {
    pub(crate) table_offset: u64,
    pub(crate) entries: u32,
    pub(crate) block: u64,
    pub(crate) parent_id: [u8; 16],
}

impl Header {
    /// Reads and checks the header that stands at `at`.
    pub(crate) fn read(bytes: &[u8], at: u64) -> Result<Header> {
        let what = "vhd dynamic disk header";
        if !bytes.starts_with(b"cxsparse") {
            return Err(FormatError::Refused { what, rule: "it does not begin with cxsparse" });
        }
        let fields = Fields::new(bytes, what);
        if fields.be32(36)? != checksum(bytes, 36) {
            return Err(FormatError::Checksum { what, at });
        }
        let block = fields.be32(32)?;
        if !block.is_power_of_two() || !(512..=256 << 20).contains(&block) {
            let (what, rule) = ("vhd block size", "it must be a power of two from 512 bytes to 256 MiB");
            return Err(FormatError::Field { what, value: block.into(), rule });
        }
        Ok(Header {
            table_offset: fields.be64(16)?,
            entries: fields.be32(28)?,
            block: block.into(),
            parent_id: fields.array(40)?,
        })
    }
}

/// The complement of the sum of all bytes but the four of the checksum itself, which stand at `at`.
fn checksum(bytes: &[u8], at: usize) -> u32 {
    let own = at..at.saturating_add(4);
    let counted = bytes.iter().enumerate().filter(|(index, _)| !own.contains(index));
    !counted.fold(0u32, |sum, (_, &byte)| sum.wrapping_add(byte.into()))
}
