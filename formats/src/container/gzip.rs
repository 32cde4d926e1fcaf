//! gzip: the blocks of bgzip with their index, and files small enough to be one block (RFC 1952; the SAM format's
//! specification, 4.1 "The BGZF compression format").

use super::{Blocks, Note};
use crate::fields::{Fields, length};
use crate::known::{Step, View};
use crate::probe::IMAGE;
use crate::{FormatError, Role, limits};

pub(super) const MAGIC: &[u8] = b"\x1f\x8b\x08";

/// The flag of a header with extra fields.
const EXTRA: u8 = 4;

/// Finds the blocks of the file called `name`.
pub(super) fn blocks(view: View<'_>, name: &str) -> Step<Blocks> {
    let len = view.len(IMAGE);
    let mut blocks = Blocks::default();
    if block_len(view.upto(IMAGE, 0, 18)?).is_some() {
        indexed(view, name, &mut blocks)?;
        return Ok(blocks);
    }
    // The trailer's size counts modulo 4 GiB: a lie either way fails when the block is decoded.
    let size = Fields::new(view.upto(IMAGE, len.saturating_sub(4), 4)?, "the gzip trailer").le32(0)?;
    if size > limits::BLOCK_BYTES || len > limits::BLOCK_BYTES.into() {
        let what = "the file is compressed with gzip as a whole, so that its end can only be had by unpacking all of it";
        let rule = "unpack it, or compress it with bgzip --index";
        return Err(FormatError::Refused { what, rule }.into());
    }
    blocks.push(0, len, size.into(), Note::None)?;
    Ok(blocks)
}

/// The whole length of the bgzip block that begins with `header`.
fn block_len(header: &[u8]) -> Option<u64> {
    let fields = Fields::new(header, "the bgzip header");
    let flags = fields.u8(3).ok()?;
    let (extra, id, subfield) = (fields.le16(10).ok()?, fields.array::<2>(12).ok()?, fields.le16(14).ok()?);
    let fits = header.starts_with(MAGIC) && flags & EXTRA != 0 && extra == 6 && id == *b"BC" && subfield == 2;
    Some(u64::from(fields.le16(16).ok().filter(|_| fits)?).saturating_add(1))
}

/// Reads the index beside the file: a count, then for every block but the first where it begins, stored and decoded
/// (all 64-bit little-endian).
fn indexed(view: View<'_>, name: &str, blocks: &mut Blocks) -> Step<()> {
    let index = view.file(&format!("{name}.gzi"), Role::Index)?;
    let table = view.table(index, 0, view.len(index), "bgzip index")?;
    let (count, entries) = match table.bytes().split_first_chunk::<8>() {
        Some((count, entries)) => (u64::from_le_bytes(*count), entries.as_chunks::<16>()),
        None => (0, (&[][..], &[0][..])),
    };
    if count != length(entries.0.len()) || !entries.1.is_empty() {
        let (what, rule) = ("the number of entries in the bgzip index", "the index has another length");
        return Err(FormatError::Field { what, value: count, rule }.into());
    }
    let (mut at, mut start) = (0, 0);
    for entry in entries.0 {
        let fields = Fields::new(entry, "the bgzip index");
        let (next_at, next_start) = (fields.le64(0)?, fields.le64(8)?);
        let (Some(stored), Some(decoded)) = (next_at.checked_sub(at), next_start.checked_sub(start)) else {
            let (what, rule) = ("an entry of the bgzip index", "it lies before the entry in front of it");
            return Err(FormatError::Field { what, value: next_at, rule }.into());
        };
        blocks.push(at, stored, decoded, Note::None)?;
        (at, start) = (next_at, next_start);
    }
    // Behind the last entry there are its block and the empty one that marks the end.
    while at < view.len(IMAGE) {
        let Some(stored) = block_len(view.upto(IMAGE, at, 18)?) else {
            let (what, rule) = ("the last entry of the bgzip index", "no bgzip block begins there");
            return Err(FormatError::Field { what, value: at, rule }.into());
        };
        let end = at.saturating_add(stored);
        let size = view.exact(IMAGE, end.saturating_sub(4), 4, "bgzip block")?;
        blocks.push(at, stored, Fields::new(size, "the bgzip block").le32(0)?.into(), Note::None)?;
        at = end;
    }
    Ok(())
}
