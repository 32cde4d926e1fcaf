//! tar archives: ustar with the long names of pax and GNU (POSIX.1-2017, pax, "ustar Interchange Format").

use crate::fields::{index, length};
use crate::known::{Step, View};
use crate::probe::IMAGE;
use crate::{FormatError, limits};

/// Bytes of a header, and what everything is padded to.
const BLOCK: u64 = 512;
/// Headers are read together with what is around them, in aligned windows of this many bytes: headers that follow
/// each other then cost one read. A walk begins anew after each read, so its time grows with the square of their
/// number, which this and [`limits::OPEN_BYTES`] bound. A multiple of [`BLOCK`], so that no header lies in two windows.
const WINDOW: u64 = 32 << 10;
/// Most headers of any kind: a file has one of its own and may have a few extended ones, and there are directories.
const HEADERS: usize = 4 * limits::MEMBERS;

/// A file in an archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its name as it stands in the archive, with what is no text made readable. Only to be compared and shown.
    pub name: String,
    /// Where its bytes begin in the archive's file.
    pub at: u64,
    /// How many there are.
    pub len: u64,
    /// Whether its bytes are not simply all there (GNU sparse files).
    sparse: bool,
}

/// What an archive holds: its files, in their order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Archive {
    members: Vec<Member>,
}

/// Why no member was picked. The message names those there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PickError {
    /// Nothing looks like a disk.
    #[error(
        "the archive holds no file that is named like a disk image; name one of its files with --member: {0}"
    )]
    NoDisk(String),
    /// More than one does.
    #[error("the archive holds several disk images; name one with --member: {0}")]
    Several(String),
    /// No member, or more than one, has the name that was given.
    #[error("the archive holds no file {name:?}, or more than one; its files are: {members}")]
    Unknown {
        /// The name.
        name: String,
        /// The members' names.
        members: String,
    },
    /// The member is stored in a way that cannot be read in place.
    #[error("{0:?} is stored as a sparse file in the archive, which is not read: unpack it")]
    Sparse(String),
    /// The member is one of several pieces of a disk (OVF 7.1, `ovf:chunkSize`).
    #[error(
        "{0:?} is one of several pieces that the disk is cut into, which are not put together: unpack the archive and join them"
    )]
    Pieces(String),
}

impl Archive {
    /// All files.
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The member called `name`, or without a name the only one that is named like a disk image.
    pub fn pick(&self, name: Option<&str>) -> Result<&Member, PickError> {
        let wanted: Vec<&Member> = match name {
            Some(name) => self.members.iter().filter(|member| member.name == name).collect(),
            None => self.members.iter().filter(|member| is_disk(&member.name)).collect(),
        };
        let member = match (wanted.as_slice(), name) {
            ([member], _) => *member,
            (_, Some(name)) => {
                return Err(PickError::Unknown { name: name.to_owned(), members: names(&self.members) });
            }
            ([], None) => return Err(PickError::NoDisk(names(&self.members))),
            ([first, ..], None) if is_piece(&first.name) => {
                return Err(PickError::Pieces(first.name.clone()));
            }
            (several, None) => return Err(PickError::Several(names(several.iter().copied()))),
        };
        if member.sparse {
            return Err(PickError::Sparse(member.name.clone()));
        }
        Ok(member)
    }
}

/// The first names, for a message.
fn names<'a>(members: impl IntoIterator<Item = &'a Member>) -> String {
    let mut members = members.into_iter();
    let shown: Vec<String> = members.by_ref().take(20).map(|member| format!("{:?}", member.name)).collect();
    let more = members.count();
    match (shown.is_empty(), more) {
        (true, _) => "(none)".to_owned(),
        (false, 0) => shown.join(", "),
        (false, more) => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Whether a name ends as disk images' names do. A compressed one counts, and so does a piece of one.
fn is_disk(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let name = if is_piece(&name) {
        name.trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('.')
    } else {
        &name
    };
    let name = [".gz", ".xz", ".zst"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(name);
    [".vmdk", ".vhd", ".vhdx", ".qcow2", ".img", ".raw"].iter().any(|end| name.ends_with(end))
}

/// Whether a name ends in nine digits, as the pieces of a disk do (OVF 7.1).
fn is_piece(name: &str) -> bool {
    name.rsplit_once('.')
        .is_some_and(|(_, end)| end.len() == 9 && end.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Whether `head` begins with the header of a member.
pub(super) fn is_header(head: &[u8]) -> bool {
    head.first_chunk().is_some_and(|header| header_type(header).is_some())
}

/// The type of the member that `header` describes, if it is a header: the signature and the checksum fit.
fn header_type(header: &[u8; 512]) -> Option<u8> {
    if header.get(257..262)? != b"ustar" {
        return None;
    }
    // The checksum counts its own eight bytes as blanks.
    let total = |bytes: &[u8]| bytes.iter().map(|&byte| u64::from(byte)).sum::<u64>();
    let field = header.get(148..156)?;
    let sum = total(header).saturating_sub(total(field)).saturating_add(8 * u64::from(b' '));
    if number(field)? != sum {
        return None;
    }
    header.get(156).copied()
}

/// A number in octal digits, or in base 256 where the first bit is set (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if let Some((first @ 0x80.., rest)) = field.split_first() {
        let high = u64::from(first & 0x7f);
        return rest.iter().try_fold(high, |value, &byte| value.checked_mul(256)?.checked_add(byte.into()));
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches([' ', '\0']);
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

/// What extension headers said about the member that comes next.
#[derive(Default)]
struct Ahead {
    name: Option<String>,
    size: Option<u64>,
    sparse: bool,
}

/// Reads all headers.
pub(super) fn read(view: View<'_>) -> Step<Archive> {
    let file_len = view.len(IMAGE);
    let mut archive = Archive::default();
    let mut ahead = Ahead::default();
    let mut at = 0u64;
    let mut headers = 0usize;
    while at < file_len {
        let skip = at % WINDOW;
        let window = view.upto(IMAGE, at.saturating_sub(skip), WINDOW)?;
        let Some(header) = window.get(index(skip)..).and_then(|rest| rest.first_chunk::<512>()) else {
            break;
        };
        if header.iter().all(|&byte| byte == 0) {
            break;
        }
        if headers == HEADERS {
            return Err(
                FormatError::TooMany { what: "headers in the archive", limit: length(HEADERS) }.into()
            );
        }
        headers = headers.saturating_add(1);
        let Some(kind) = header_type(header) else {
            return Err(FormatError::Checksum { what: "tar header", at }.into());
        };
        let what = "the size in a tar header";
        let size = number(header.get(124..136).unwrap_or_default()).ok_or(FormatError::Field {
            what,
            value: at,
            rule: "it is no number",
        })?;
        let size = match kind {
            // Links and directories have no bytes, whatever their size says.
            b'1'..=b'6' => 0,
            _ => ahead.size.unwrap_or(size),
        };
        let data = at.saturating_add(BLOCK);
        if data.checked_add(size).is_none_or(|end| end > file_len) {
            return Err(FormatError::Truncated {
                what: "member of the archive",
                at: data,
                len: size,
                file_len,
            }
            .into());
        }
        match kind {
            b'L' => ahead.name = Some(text(view.exact(IMAGE, data, named(size)?, "long name")?)),
            b'x' => pax(view.exact(IMAGE, data, named(size)?, "extended header")?, &mut ahead),
            // Global headers and long names of links say nothing about where files are.
            b'g' | b'K' => {}
            b'0' | b'\0' | b'7' | b'S' => {
                if archive.members.len() == limits::MEMBERS {
                    let (what, limit) = ("files in the archive", length(limits::MEMBERS));
                    return Err(FormatError::TooMany { what, limit }.into());
                }
                let Ahead { name, sparse, .. } = std::mem::take(&mut ahead);
                let name = name.unwrap_or_else(|| short_name(header));
                archive.members.push(Member { name, at: data, len: size, sparse: sparse || kind == b'S' });
            }
            _ => ahead = Ahead::default(),
        }
        at = data.saturating_add(size.next_multiple_of(BLOCK));
    }
    Ok(archive)
}

/// Checks the length of a name or extended header.
fn named(size: u64) -> Result<u64, FormatError> {
    let limit = limits::NAMES_BYTES;
    let what = "an extended header of the archive";
    if size > limit { Err(FormatError::TooLarge { what, value: size, limit }) } else { Ok(size) }
}

/// The name in the header itself.
fn short_name(header: &[u8; 512]) -> String {
    let name = text(header.get(..100).unwrap_or_default());
    // GNU's own variant has other things where the prefix would be.
    let prefix = match header.get(257..263) {
        Some(b"ustar\0") => text(header.get(345..500).unwrap_or_default()),
        _ => String::new(),
    };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned()
}

/// Reads the records of an extended header: each is its length in decimal, a blank, `key=value` and a line end.
fn pax(mut records: &[u8], ahead: &mut Ahead) {
    while let Some(blank) = records.iter().position(|&byte| byte == b' ') {
        let (digits, _) = records.split_at(blank);
        let whole = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<usize>().ok());
        let Some((record, rest)) = whole.and_then(|whole| records.split_at_checked(whole)) else { return };
        let record = record.get(blank.saturating_add(1)..).unwrap_or_default();
        let record = record.strip_suffix(b"\n").unwrap_or(record);
        let text = String::from_utf8_lossy(record);
        match text.split_once('=') {
            Some(("path", name)) => ahead.name = Some(name.to_owned()),
            Some(("size", size)) => ahead.size = size.parse().ok(),
            Some((key, _)) if key.starts_with("GNU.sparse.") => ahead.sparse = true,
            _ => {}
        }
        if rest.len() == records.len() {
            return;
        }
        records = rest;
    }
}

#[cfg(test)]
mod tests {
    use super::{HEADERS, WINDOW};
    use crate::container::{Look, Unpacking};
    use crate::{Ask, FormatError};

    /// How many reads it takes to look at an archive of `count` headers that are `apart` bytes from each other,
    /// and how that ends.
    fn walk(count: usize, apart: usize) -> (usize, Result<(), FormatError>) {
        let mut archive = vec![0; count * apart + 1024];
        for at in (0..count).map(|nth| nth * apart) {
            let header = &mut archive[at..at + 512];
            header[0] = b'd';
            let size = format!("{:011o}", apart - 512);
            header[124..135].copy_from_slice(size.as_bytes());
            header[148..156].fill(b' ');
            // Global headers may be any number, of any size, and are no files.
            header[156] = b'g';
            header[257..262].copy_from_slice(b"ustar");
            let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
            header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
        let mut unpacking = Unpacking::new(archive.len() as u64, "a.tar");
        for reads in 0.. {
            match unpacking.poll() {
                Ok(Look::Need(Ask::Bytes { at, len, .. })) => {
                    let at = at as usize;
                    unpacking.supply_bytes(archive[at..at + len as usize].to_vec());
                }
                Ok(Look::Done(_)) => return (reads, Ok(())),
                Ok(other) => panic!("{other:?}"),
                Err(error) => return (reads, Err(error)),
            }
        }
        unreachable!()
    }

    #[test]
    fn headers_that_follow_each_other_are_read_together() {
        let (reads, end) = walk(HEADERS, 512);
        assert_eq!(end, Ok(()));
        assert!(reads <= HEADERS * 512 / WINDOW as usize + 8, "{reads} reads");
    }

    #[test]
    fn headers_that_are_no_files_are_counted_too() {
        let (reads, end) = walk(HEADERS + 1, 512);
        assert!(matches!(end, Err(FormatError::TooMany { what, .. }) if what.contains("headers")), "{end:?}");
        assert!(reads <= HEADERS * 512 / WINDOW as usize + 8, "{reads} reads");
        assert!(walk(200, 2 * WINDOW as usize).0 <= 200 + 8, "far apart, each costs one read");
    }
}
