//! Headers, region tables and metadata (MS-VHDX 2.2 and 2.6).

use super::crc32c;
use super::log::Log;
use crate::fields::{Fields, index};
use crate::known::{Step, View};
use crate::probe::IMAGE;
use crate::{Format, FormatError, Result};
use std::borrow::Cow;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Regions and metadata items, as their GUIDs are stored.
const BAT: [u8; 16] = guid(0x2dc2_7766, 0xf623, 0x4200, 0x9d64_115e_9bfd_4a08);
const METADATA: [u8; 16] = guid(0x8b7c_a206, 0x4790, 0x4b9a, 0xb8fe_575f_050f_886e);
const FILE_PARAMETERS: [u8; 16] = guid(0xcaa1_6737, 0xfa36, 0x4d43, 0xb3b6_33f0_aa44_e76b);
const VIRTUAL_DISK_SIZE: [u8; 16] = guid(0x2fa5_4224, 0xcd1b, 0x4876, 0xb211_5dbe_d83b_f4b8);
const VIRTUAL_DISK_ID: [u8; 16] = guid(0xbeca_12ab, 0xb2e6, 0x4523, 0x93ef_c309_e000_c746);
const LOGICAL_SECTOR_SIZE: [u8; 16] = guid(0x8141_bf1d, 0xa96f, 0x4709, 0xba47_f233_a8fa_ab5f);
const PHYSICAL_SECTOR_SIZE: [u8; 16] = guid(0xcda3_48c7, 0x445d, 0x4471, 0x9cc9_e988_5251_c556);
const PARENT_LOCATOR: [u8; 16] = guid(0xa8d3_5f2d, 0xb30b, 0x454d, 0xabf7_d3d8_4834_ab0c);

/// A GUID in its stored form: the first three numbers little-endian, the rest as written.
const fn guid(a: u32, b: u16, c: u16, d: u64) -> [u8; 16] {
    let ([a0, a1, a2, a3], [b0, b1], [c0, c1]) = (a.to_le_bytes(), b.to_le_bytes(), c.to_le_bytes());
    let [d0, d1, d2, d3, d4, d5, d6, d7] = d.to_be_bytes();
    [a0, a1, a2, a3, b0, b1, c0, c1, d0, d1, d2, d3, d4, d5, d6, d7]
}

/// The current header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    sequence: u64,
    pub(crate) data_write: [u8; 16],
    pub(crate) log_guid: [u8; 16],
    pub(crate) log_len: u64,
    pub(crate) log_at: u64,
}

/// Reads both headers and takes the valid one with the higher sequence number.
pub(crate) fn read(view: View<'_>) -> Step<Header> {
    if !view.upto(IMAGE, 0, crate::probe::HEAD)?.starts_with(b"vhdxfile") {
        return Err(FormatError::Signature { format: Format::Vhdx }.into());
    }
    // Headers and region tables together, in one read.
    let _ahead = view.upto(IMAGE, 64 * KIB, 256 * KIB)?;
    let mut best: Option<Header> = None;
    for at in [64 * KIB, 128 * KIB] {
        let bytes = view.upto(IMAGE, at, 4 * KIB)?;
        let fields = Fields::new(bytes, "the vhdx header");
        if !bytes.starts_with(b"head") || fields.le32(4)? != crc32c::of_structure(bytes) || bytes.len() < 4096
        {
            continue;
        }
        let header = Header {
            sequence: fields.le64(8)?,
            data_write: fields.array(32)?,
            log_guid: fields.array(48)?,
            log_len: fields.le32(68)?.into(),
            log_at: fields.le64(72)?,
        };
        if best.is_none_or(|best| header.sequence > best.sequence) {
            let (log_version, version) = (fields.le16(64)?, fields.le16(66)?);
            if version != 1 || log_version != 0 {
                let (what, rule) = ("vhdx version", "only version 1 with log version 0 is read");
                return Err(FormatError::Field { what, value: version.into(), rule }.into());
            }
            best = Some(header);
        }
    }
    Ok(best.ok_or(FormatError::Checksum { what: "vhdx header, in both copies,", at: 64 * KIB })?)
}

/// Reads the log of a file whose header names one.
pub(crate) fn read_log(view: View<'_>, header: &Header) -> Step<Log> {
    if header.log_guid == [0; 16] {
        return Ok(Log::default());
    }
    if header.log_len == 0 || !header.log_len.is_multiple_of(MIB) || !header.log_at.is_multiple_of(MIB) {
        let (what, rule) = ("the length of the vhdx log", "place and length must be multiples of 1 MiB");
        return Err(FormatError::Field { what, value: header.log_len, rule }.into());
    }
    let table = view.table(IMAGE, header.log_at, header.log_len, "vhdx log")?;
    Ok(Log::read(table, header.log_guid, view.len(IMAGE))?)
}

/// The file as it is once the log has been replayed.
pub(crate) struct Replayed<'a> {
    pub(crate) view: View<'a>,
    pub(crate) log: &'a Log,
}

impl<'a> Replayed<'a> {
    /// Bytes `at..at + len`, the structure called `what`.
    pub(crate) fn exact(&self, at: u64, len: u64, what: &'static str) -> Step<Cow<'a, [u8]>> {
        let bytes = self.view.exact(IMAGE, at, len, what)?;
        if !self.log.touches(at, len) {
            return Ok(Cow::Borrowed(bytes));
        }
        let mut bytes = bytes.to_vec();
        self.log.replay(at, &mut bytes);
        Ok(Cow::Owned(bytes))
    }
}

/// A part of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// The two regions that every file has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Regions {
    pub(crate) bat: Region,
    pub(crate) metadata: Region,
}

/// Reads the region table, or where that is damaged, its copy.
pub(crate) fn read_regions(file: &Replayed<'_>) -> Step<Regions> {
    let what = "vhdx region table";
    for at in [192 * KIB, 256 * KIB] {
        let Ok(()) = file.view.inside(IMAGE, at, 64 * KIB, what) else { continue };
        let bytes = file.exact(at, 64 * KIB, what)?;
        let stored = Fields::new(&bytes, what).le32(4)?;
        if bytes.starts_with(b"regi") && stored == crc32c::of_structure(&bytes) {
            return Ok(parse_regions(&bytes)?);
        }
    }
    Err(FormatError::Checksum { what: "vhdx region table, in both copies,", at: 192 * KIB }.into())
}

fn parse_regions(bytes: &[u8]) -> Result<Regions> {
    let fields = Fields::new(bytes, "the vhdx region table");
    let count = fields.le32(8)?;
    if count > 2047 {
        return Err(field("the number of vhdx regions", count.into(), "it must be at most 2047"));
    }
    let (mut bat, mut metadata, mut all) = (None, None, Vec::new());
    for number in 0..count {
        let at = index(u64::from(number).saturating_mul(32).saturating_add(16));
        let id: [u8; 16] = fields.array(at)?;
        let region = Region {
            at: fields.le64(at.saturating_add(16))?,
            len: fields.le32(at.saturating_add(24))?.into(),
        };
        if region.at < MIB || !region.at.is_multiple_of(MIB) || !region.len.is_multiple_of(MIB) {
            return Err(field(
                "the place of a vhdx region",
                region.at,
                "it must be a multiple of 1 MiB, and its length",
            ));
        }
        all.push(region);
        match id {
            BAT => bat = Some(region),
            METADATA => metadata = Some(region),
            _ if fields.le32(at.saturating_add(28))? & 1 != 0 => {
                return Err(refused("the vhdx region table", "it has a required region that is not known"));
            }
            _ => {}
        }
    }
    all.sort_unstable_by_key(|region| region.at);
    if all.array_windows().any(|[first, second]| first.at.saturating_add(first.len) > second.at) {
        return Err(refused("the vhdx region table", "its regions overlap"));
    }
    let missing = refused("the vhdx region table", "the block allocation table or the metadata is missing");
    Ok(Regions { bat: bat.ok_or(missing)?, metadata: metadata.ok_or(missing)? })
}

/// What the metadata says of the disk.
#[derive(Debug, Default)]
pub(crate) struct Metadata {
    pub(crate) block: u64,
    pub(crate) leave_allocated: bool,
    pub(crate) has_parent: bool,
    pub(crate) size: u64,
    pub(crate) sector: u64,
    /// The parent locator's bytes.
    pub(crate) locator: Option<Vec<u8>>,
}

/// Reads the metadata region.
pub(crate) fn read_metadata(file: &Replayed<'_>, region: Region) -> Step<Metadata> {
    let what = "vhdx metadata table";
    let table = file.exact(region.at, 64 * KIB, what)?;
    let fields = Fields::new(&table, "the vhdx metadata table");
    if !table.starts_with(b"metadata") {
        return Err(refused("the vhdx metadata table", "its signature is missing").into());
    }
    let count = fields.le16(10)?;
    if count > 2047 {
        return Err(
            field("the number of vhdx metadata items", count.into(), "it must be at most 2047").into()
        );
    }
    let mut metadata = Metadata::default();
    for number in 0..usize::from(count) {
        let at = number.saturating_mul(32).saturating_add(32);
        let id: [u8; 16] = fields.array(at)?;
        let (offset, len) = (fields.le32(at.saturating_add(16))?, fields.le32(at.saturating_add(20))?);
        let required = fields.le32(at.saturating_add(24))? & 4 != 0;
        let item = || -> Step<Cow<'_, [u8]>> {
            let fits = u64::from(offset).saturating_add(len.into()) <= region.len;
            if offset < 64 << 10 || !fits || len > 1 << 20 {
                let (what, rule) =
                    ("the place of a vhdx metadata item", "it must lie in the region, behind the table");
                return Err(field(what, offset.into(), rule).into());
            }
            file.exact(region.at.saturating_add(offset.into()), len.into(), "vhdx metadata item")
        };
        let number = || -> Step<u64> { Ok(Fields::new(&item()?, "a vhdx metadata item").le32(0)?.into()) };
        match id {
            FILE_PARAMETERS => {
                let item = item()?;
                let fields = Fields::new(&item, "the vhdx file parameters");
                metadata.block = fields.le32(0)?.into();
                metadata.leave_allocated = fields.le32(4)? & 1 != 0;
                metadata.has_parent = fields.le32(4)? & 2 != 0;
            }
            VIRTUAL_DISK_SIZE => {
                metadata.size = Fields::new(&item()?, "the vhdx virtual disk size").le64(0)?;
            }
            LOGICAL_SECTOR_SIZE => metadata.sector = number()?,
            PARENT_LOCATOR => metadata.locator = Some(item()?.into_owned()),
            VIRTUAL_DISK_ID | PHYSICAL_SECTOR_SIZE => {}
            _ if required => {
                return Err(
                    refused("the vhdx metadata table", "it has a required item that is not known").into()
                );
            }
            _ => {}
        }
    }
    check_metadata(&metadata)?;
    Ok(metadata)
}

fn check_metadata(metadata: &Metadata) -> Result<()> {
    if !metadata.block.is_power_of_two() || !(MIB..=256 * MIB).contains(&metadata.block) {
        return Err(field(
            "vhdx block size",
            metadata.block,
            "it must be a power of two from 1 MiB to 256 MiB",
        ));
    }
    if metadata.sector != 512 && metadata.sector != 4096 {
        return Err(field("vhdx logical sector size", metadata.sector, "it must be 512 or 4096"));
    }
    if !metadata.size.is_multiple_of(metadata.sector) || metadata.size > 64 << 40 {
        let rule = "it must be a multiple of the logical sector size up to 64 TiB";
        return Err(field("vhdx virtual disk size", metadata.size, rule));
    }
    Ok(())
}

fn field(what: &'static str, value: u64, rule: &'static str) -> FormatError {
    FormatError::Field { what, value, rule }
}

fn refused(what: &'static str, rule: &'static str) -> FormatError {
    FormatError::Refused { what, rule }
}
