//! xz: the index at the end of each stream says where its blocks are (The .xz File Format 1.2).

use super::{Blocks, Note};
use crate::fields::{Fields, length};
use crate::known::{Step, Stop, View};
use crate::probe::IMAGE;
use crate::{FormatError, limits};

pub(super) const MAGIC: &[u8] = b"\xfd7zXZ\0";

/// Bytes of a stream's header, and of its footer.
pub(super) const EDGE: u64 = 12;

/// Where a stream's index is, and what its footer says.
struct Footer {
    index_at: u64,
    index_len: u64,
    flags: [u8; 2],
}

/// One record of an index: bytes of a block without its padding, and decoded.
struct Record {
    unpadded: u64,
    decoded: u64,
}

/// Finds the blocks of all streams, and the flags they have in common.
pub(super) fn blocks(view: View<'_>) -> Step<([u8; 2], Blocks)> {
    // Streams are found from the last to the first.
    let mut streams = Vec::new();
    let mut flags = None;
    let mut end = view.len(IMAGE);
    while end > 0 {
        if streams.len() >= limits::STREAMS {
            return Err(refused("the xz file", "it has more streams than are read"));
        }
        let footer = footer(view, end)?;
        if *flags.get_or_insert(footer.flags) != footer.flags {
            return Err(refused("the xz file", "its streams have different checks"));
        }
        let records = index(view, &footer)?;
        let stored: Option<u64> =
            records.iter().try_fold(0u64, |sum, record| sum.checked_add(padded(record.unpadded)?));
        let first = stored.and_then(|stored| footer.index_at.checked_sub(stored));
        let Some((first, start)) = first.and_then(|first| Some((first, first.checked_sub(EDGE)?))) else {
            return Err(refused("the xz index", "its blocks are larger than what lies in front of it"));
        };
        let header = view.upto(IMAGE, start, EDGE)?;
        if !header.starts_with(MAGIC) || header.get(6..8) != Some(&footer.flags) {
            return Err(refused("the xz index", "no stream begins where its first block says"));
        }
        streams.push((first, records));
        end = start;
    }
    let mut blocks = Blocks::default();
    for (mut at, records) in streams.into_iter().rev() {
        for record in records {
            let stored = padded(record.unpadded).unwrap_or(u64::MAX);
            let [padding, ..] = stored.saturating_sub(record.unpadded).to_le_bytes();
            blocks.push(at, stored, record.decoded, Note::Padding(padding)).map_err(too_large)?;
            at = at.saturating_add(stored);
        }
    }
    Ok((flags.unwrap_or_default(), blocks))
}

fn refused(what: &'static str, rule: &'static str) -> Stop {
    FormatError::Refused { what, rule }.into()
}

/// A block that is too large is what a file without blocks has.
fn too_large(error: FormatError) -> Stop {
    match error {
        FormatError::TooLarge { .. } => refused(
            "the file is compressed with xz in blocks of more than 64 MiB, of which no byte can be had without unpacking all of the block",
            "unpack it, or compress it with xz --block-size=1MiB",
        ),
        other => other.into(),
    }
}

/// A block's length with its padding.
fn padded(unpadded: u64) -> Option<u64> {
    unpadded.checked_next_multiple_of(4)
}

/// Reads the footer of the stream that ends at `end`, behind zeros that pad it (2.2).
fn footer(view: View<'_>, mut end: u64) -> Step<Footer> {
    let broken = || {
        refused(
            "the xz stream footer",
            "there is none where the file ends, or it is damaged: the file may be cut off",
        )
    };
    loop {
        let Some(at) = end.checked_sub(EDGE) else { return Err(broken()) };
        let bytes = view.exact(IMAGE, at, EDGE, "xz stream footer")?;
        if bytes.ends_with(&[0; 4]) {
            end = end.saturating_sub(4);
            continue;
        }
        let fields = Fields::new(bytes, "the xz stream footer");
        let covered = fields.slice(4, 6)?;
        if !bytes.ends_with(b"YZ") || fields.le32(0)? != libdeflater::crc32(covered) {
            return Err(broken());
        }
        let index_len = u64::from(fields.le32(4)?).saturating_add(1).saturating_mul(4);
        let Some(index_at) = at.checked_sub(index_len) else { return Err(broken()) };
        return Ok(Footer { index_at, index_len, flags: fields.array(8)? });
    }
}

/// Reads an index (4).
fn index(view: View<'_>, footer: &Footer) -> Step<Vec<Record>> {
    let what = "xz index";
    let table = view.table(IMAGE, footer.index_at, footer.index_len, what)?;
    let Some((body, sum)) = table.bytes().split_last_chunk::<4>() else {
        return Err(refused("the xz index", "it is shorter than its checksum"));
    };
    if libdeflater::crc32(body) != u32::from_le_bytes(*sum) {
        return Err(FormatError::Checksum { what, at: footer.index_at }.into());
    }
    let broken = || refused("the xz index", "a number in it is damaged");
    let mut rest = body.strip_prefix(&[0]).ok_or_else(broken)?;
    let count = number(&mut rest).ok_or_else(broken)?;
    let mut records = Vec::new();
    for _ in 0..count {
        let (unpadded, decoded) = number(&mut rest).zip(number(&mut rest)).ok_or_else(broken)?;
        records.push(Record { unpadded, decoded });
    }
    Ok(records)
}

/// Takes a number of variable length (1.2) off the front of `bytes`.
pub(super) fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0u64;
    for shift in (0..63).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift)?;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A whole stream with `block`, of which `padding` bytes are padding, as its only one, so that any reader can decode
/// it.
pub(super) fn stream(flags: [u8; 2], block: &[u8], padding: u8, decoded: u64) -> Vec<u8> {
    let mut stream = MAGIC.to_vec();
    stream.extend(flags);
    stream.extend(libdeflater::crc32(&flags).to_le_bytes());
    stream.extend(block);
    let mut index = vec![0, 1];
    for number in [length(block.len()).saturating_sub(padding.into()), decoded] {
        put_number(&mut index, number);
    }
    index.resize(index.len().next_multiple_of(4), 0);
    index.extend(libdeflater::crc32(&index).to_le_bytes());
    let backward = u32::try_from(index.len() / 4).unwrap_or_default().saturating_sub(1);
    stream.extend(&index);
    let covered = [&backward.to_le_bytes()[..], &flags].concat();
    stream.extend(libdeflater::crc32(&covered).to_le_bytes());
    stream.extend(covered);
    stream.extend(b"YZ");
    stream
}

fn put_number(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.extend((value & 0x7f | 0x80).to_le_bytes().first());
        value >>= 7;
    }
    out.extend(value.to_le_bytes().first());
}
