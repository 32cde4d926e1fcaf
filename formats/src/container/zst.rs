//! Zstandard: the seekable format's table at the end, and files of one small frame (RFC 8878; Zstandard Seekable
//! Format 0.1.0).

use super::{Blocks, Note};
use crate::fields::Fields;
use crate::known::{Step, View};
use crate::probe::{HEAD, IMAGE};
use crate::{FormatError, limits};

pub(super) const MAGIC: &[u8] = b"\x28\xb5\x2f\xfd";

/// The last bytes of a file that ends with a seek table.
const SEEKABLE: &[u8] = b"\xb1\xea\x92\x8f";
/// Bytes of the table's footer, and of the header of the skippable frame around it.
const FOOTER: u64 = 9;
const SKIPPABLE: u64 = 8;

/// Finds the frames.
pub(super) fn blocks(view: View<'_>) -> Step<Blocks> {
    let len = view.len(IMAGE);
    let footer_at = len.saturating_sub(FOOTER);
    let footer = view.upto(IMAGE, footer_at, FOOTER)?;
    let mut blocks = Blocks::default();
    if !footer.ends_with(SEEKABLE) {
        let size = frame_size(view.upto(IMAGE, 0, HEAD.min(18))?);
        match size {
            Some(size) if size.max(len) <= limits::BLOCK_BYTES.into() => {
                blocks.push(0, len, size, Note::None)?;
            }
            _ => {
                let what = "the file is compressed with zstd without a seek table, so that its end can only be had by unpacking all of it";
                let rule = "unpack it, or compress it in the seekable format (with t2sz or zeekstd)";
                return Err(FormatError::Refused { what, rule }.into());
            }
        }
        return Ok(blocks);
    }
    let fields = Fields::new(footer, "the seek table's footer");
    let (count, descriptor) = (fields.le32(0)?, fields.u8(4)?);
    if descriptor & 0x7c != 0 {
        let (what, rule) = ("the seek table's descriptor", "bits that are reserved are set");
        return Err(FormatError::Field { what, value: descriptor.into(), rule }.into());
    }
    let checked = descriptor & 0x80 != 0;
    let entry = if checked { 12 } else { 8 };
    let table_len = u64::from(count).saturating_mul(entry);
    let Some(frame_at) = footer_at.checked_sub(table_len.saturating_add(SKIPPABLE)) else {
        let (what, rule) = ("the number of frames in the seek table", "the file is too short for them");
        return Err(FormatError::Field { what, value: count.into(), rule }.into());
    };
    let whole = table_len.saturating_add(SKIPPABLE);
    let table = view.table(IMAGE, frame_at, whole, "seek table")?;
    let header = Fields::new(table.bytes(), "the seek table");
    if header.le32(0)? != 0x184d_2a5e || u64::from(header.le32(4)?) != table_len.saturating_add(FOOTER) {
        let (what, rule) = ("the seek table", "it has no frame of its own size around it");
        return Err(FormatError::Refused { what, rule }.into());
    }
    let mut at = 0u64;
    let entries = table.bytes().get(8..).unwrap_or_default();
    for entry in entries.chunks_exact(if checked { 12 } else { 8 }) {
        let fields = Fields::new(entry, "the seek table");
        let (stored, decoded) = (u64::from(fields.le32(0)?), fields.le32(4)?.into());
        let note = if checked { Note::Check(fields.le32(8)?) } else { Note::None };
        blocks.push(at, stored, decoded, note)?;
        at = at.saturating_add(stored);
    }
    if at > frame_at {
        let (what, rule) = ("the frames' sizes in the seek table", "they reach into the table itself");
        return Err(FormatError::Field { what, value: at, rule }.into());
    }
    Ok(blocks)
}

/// The content size that a frame's header tells (RFC 8878, 3.1.1.1).
fn frame_size(header: &[u8]) -> Option<u64> {
    let fields = Fields::new(header, "the frame's header");
    let descriptor = fields.u8(4).ok()?;
    let single = descriptor & 0x20 != 0;
    let dictionary = [0usize, 1, 2, 4].get(usize::from(descriptor & 3)).copied()?;
    let window = usize::from(!single);
    let at = 5usize.checked_add(window)?.checked_add(dictionary)?;
    match (descriptor >> 6, single) {
        (0, false) => None,
        (0, true) => Some(fields.u8(at).ok()?.into()),
        (1, _) => Some(u64::from(fields.le16(at).ok()?).saturating_add(256)),
        (2, _) => Some(fields.le32(at).ok()?.into()),
        _ => fields.le64(at).ok(),
    }
}
