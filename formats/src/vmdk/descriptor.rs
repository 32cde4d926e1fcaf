//! The descriptor: the text that lists a disk's extents and names its parent (VMware Virtual Disk Format 1.1, "The
//! Descriptor File").

use crate::{FormatError, Result, limits};

/// `parentCID` of a disk without a parent.
const NO_PARENT: u32 = u32::MAX;

/// Longest file name in a descriptor.
const NAME_BYTES: usize = 1024;

/// What an extent line declares.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Line {
    pub(crate) sectors: u64,
    pub(crate) accessible: bool,
    pub(crate) kind: Kind,
}

/// Kind of an extent.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Zeros, without a file.
    Zero,
    /// A stretch of a raw file, from `sector` on: FLAT and VMFS.
    Flat { name: String, sector: u64 },
    /// Hosted sparse: SPARSE.
    Sparse { name: String },
    /// VMFSSPARSE.
    Cowd { name: String },
    /// SESPARSE.
    SeSparse { name: String },
}

/// A descriptor, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub(crate) cid: Option<u32>,
    pub(crate) create_type: Option<String>,
    /// The parent's CID and the name under which it was last seen.
    pub(crate) parent: Option<(u32, String)>,
    pub(crate) extents: Vec<Line>,
}

/// Whether `head` begins like a descriptor: comments and blank lines, among them the title or after them the version.
pub(crate) fn is_descriptor(head: &[u8]) -> bool {
    let text = head.split(|&byte| byte == 0).next().unwrap_or_default();
    let mut comment = false;
    for line in text.split(|&byte| byte == b'\n').take(64) {
        let line = line.trim_ascii();
        match line.strip_prefix(b"#") {
            Some(title) if title.trim_ascii().eq_ignore_ascii_case(b"Disk DescriptorFile") => return true,
            Some(_) => comment = true,
            None if line.is_empty() => {}
            None => return comment && line.to_ascii_lowercase().starts_with(b"version"),
        }
    }
    false
}

/// Parses a descriptor, which ends at the first NUL.
pub(crate) fn parse(bytes: &[u8]) -> Result<Descriptor> {
    let bytes = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
    let text = decode(bytes)?;
    let mut descriptor = Descriptor::default();
    let (mut parent_cid, mut hint, mut orphan) = (None, None, false);
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(extent) = extent(line) {
            if descriptor.extents.len() >= limits::EXTENTS {
                return Err(refused("it lists more than 1024 extents"));
            }
            descriptor.extents.push(extent?);
            continue;
        }
        let Some((key, value)) = line.split_once('=') else { continue };
        let value = unquoted(value.trim());
        match key.trim().to_ascii_lowercase().as_str() {
            "cid" if descriptor.cid.is_none() => descriptor.cid = Some(cid(value)?),
            "parentcid" if parent_cid.is_none() => parent_cid = Some(cid(value)?),
            // VirtualBox names the parent by an identifier alone, which only its own registry can turn into a file.
            "ddb.uuid.parent" => orphan = value.bytes().any(|byte| byte != b'0' && byte != b'-'),
            "createtype" if descriptor.create_type.is_none() => {
                descriptor.create_type = Some(value.to_owned());
            }
            "parentfilenamehint" if hint.is_none() && !value.is_empty() => hint = Some(name(value)?),
            _ => {}
        }
    }
    descriptor.parent = match (parent_cid, hint) {
        (None | Some(NO_PARENT), _) if !orphan => None,
        (Some(cid), Some(hint)) if cid != NO_PARENT => Some((cid, hint)),
        _ => {
            let rule =
                "the disk has a parent that no parentFileNameHint names, and without it would read as zeros";
            return Err(FormatError::Refused { what: "the vmdk's parent", rule });
        }
    };
    Ok(descriptor)
}

/// The text. Descriptors say what they are encoded in; all of these encodings agree on ASCII, and outside of it only
/// names matter, of which UTF-8 and windows-1252 are read.
fn decode(bytes: &[u8]) -> Result<String> {
    if let Ok(text) = std::str::from_utf8(bytes) {
        return Ok(text.to_owned());
    }
    let said = bytes.split(|&byte| byte == b'\n').map(|line| line.trim_ascii().to_ascii_lowercase());
    let western = said.filter(|line| line.starts_with(b"encoding")).any(|line| line.ends_with(b"1252\""));
    // The bytes 0x80 to 0x9f are where windows-1252 is not Latin-1; as names they are not worth a table.
    if western && !bytes.iter().any(|byte| (0x80..0xa0).contains(byte)) {
        return Ok(bytes.iter().copied().map(char::from).collect());
    }
    Err(refused("it is neither UTF-8 nor windows-1252 text"))
}

/// Parses `line` if it declares an extent: access, sectors, type, and for most types a quoted name and an offset.
fn extent(line: &str) -> Option<Result<Line>> {
    let (access, rest) = line.split_once(|character: char| character.is_whitespace())?;
    let accessible = match access.to_ascii_uppercase().as_str() {
        "RW" | "RDONLY" => true,
        "NOACCESS" => false,
        _ => return None,
    };
    Some(extent_body(accessible, rest.trim_start()))
}

fn extent_body(accessible: bool, rest: &str) -> Result<Line> {
    let malformed = refused("an extent line is malformed");
    let (sectors, rest) = rest.split_once(|character: char| character.is_whitespace()).ok_or(malformed)?;
    let sectors = sectors.parse().map_err(|_| malformed)?;
    let rest = rest.trim_start();
    let (kind, rest) = rest.split_once(|character: char| character.is_whitespace()).unwrap_or((rest, ""));
    let named = || -> Result<(String, &str)> {
        let quoted = rest.trim_start().strip_prefix('"').ok_or(malformed)?;
        let (text, rest) = quoted.split_once('"').ok_or(malformed)?;
        Ok((name(text)?, rest.trim_start()))
    };
    let kind = match kind.to_ascii_uppercase().as_str() {
        "ZERO" => Kind::Zero,
        "FLAT" | "VMFS" => {
            let (name, rest) = named()?;
            let sector = rest.split_whitespace().next().map_or(Ok(0), str::parse).map_err(|_| malformed)?;
            Kind::Flat { name, sector }
        }
        "SPARSE" => Kind::Sparse { name: named()?.0 },
        "VMFSSPARSE" => Kind::Cowd { name: named()?.0 },
        "SESPARSE" => Kind::SeSparse { name: named()?.0 },
        "VMFSRDM" | "VMFSRDMP" | "VMFSRAW" | "VMFSPASSTHROUGHRAWDEVICEMAP" => {
            return Err(refused("an extent is a raw device, whose content is not in a file"));
        }
        _ => return Err(refused("an extent has a type that is not known")),
    };
    Ok(Line { sectors, accessible, kind })
}

/// A content identifier, as hexadecimal digits.
fn cid(value: &str) -> Result<u32> {
    u32::from_str_radix(value, 16).map_err(|_| refused("a CID is not a hexadecimal number of 32 bits"))
}

/// A file name as it may stand in a message. Empty ones are written where the extent is the file itself.
fn name(text: &str) -> Result<String> {
    if text.len() > NAME_BYTES || text.chars().any(char::is_control) {
        return Err(refused("a file name in it is longer than 1024 bytes, or holds control characters"));
    }
    Ok(text.to_owned())
}

/// `value` without the quotes around it.
fn unquoted(value: &str) -> &str {
    value.strip_prefix('"').map_or(value, |value| value.split('"').next().unwrap_or(value))
}

fn refused(rule: &'static str) -> FormatError {
    FormatError::Refused { what: "the vmdk descriptor", rule }
}
