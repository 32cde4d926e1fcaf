//! Decoding one block of a compressed file.

use super::{Block, Note, Packing, xz};
use crate::fields::{index, length};
use crate::{FormatError, Result, limits};
use std::io::Read;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Largest zstd window as a power of two: the largest block.
const ZSTD_WINDOW_LOG: u32 = limits::BLOCK_BYTES.trailing_zeros();

const fn damaged(rule: &'static str) -> FormatError {
    FormatError::Compressed { rule }
}

/// Decodes `block` out of its `stored` bytes.
pub(super) fn block(packing: Packing, block: &Block, stored: &[u8]) -> Result<Vec<u8>> {
    if stored.len() != index(block.len.into()) {
        return Err(damaged("the file ends inside a block"));
    }
    let mut clear = vec![0; index(block.decoded.into())];
    match packing {
        Packing::Gzip => gunzip(stored, &mut clear)?,
        Packing::Xz { flags } => {
            let padding = if let Note::Padding(padding) = block.note { padding } else { 0 };
            unxz(flags, stored, padding, &mut clear)?;
        }
        Packing::Zstd => unzstd(stored, &mut clear)?,
    }
    if let Note::Check(check) = block.note {
        let [low @ .., _, _, _, _] = twox_hash::XxHash64::oneshot(0, &clear).to_le_bytes();
        if u32::from_le_bytes(low) != check {
            return Err(damaged("a frame's content has another checksum than the seek table says"));
        }
    }
    Ok(clear)
}

fn gunzip(stored: &[u8], clear: &mut [u8]) -> Result<()> {
    match libdeflater::Decompressor::new().gzip_decompress(stored, clear) {
        Ok(len) if len == clear.len() => Ok(()),
        _ => Err(damaged("the gzip data, its size or its checksum is wrong")),
    }
}

fn unxz(flags: [u8; 2], stored: &[u8], padding: u8, clear: &mut [u8]) -> Result<()> {
    let broken = damaged("the xz block or its checksum is damaged");
    check_dictionary(stored)?;
    let stream = xz::stream(flags, stored, padding, length(clear.len()));
    let mut reader = lzma_rust2::XzReader::new(stream.as_slice(), false);
    reader.read_exact(clear).map_err(|_| broken)?;
    // One byte more brings the reader to the block's check and to the end.
    match reader.read(&mut [0]) {
        Ok(0) => Ok(()),
        Ok(_) => Err(damaged("the xz block holds more than its index says")),
        Err(_) => Err(broken),
    }
}

/// Checks the block header (3.1) as far as memory depends on it: the dictionary of LZMA2 (5.3.1) is bounded.
fn check_dictionary(block: &[u8]) -> Result<()> {
    let broken = damaged("the header of the xz block is damaged");
    let (&size, rest) = block.split_first().ok_or(broken)?;
    let header = usize::from(size).checked_mul(4).and_then(|len| rest.get(..len)).ok_or(broken)?;
    let (&flags, mut rest) = header.split_first().ok_or(broken)?;
    for present in [0x40, 0x80] {
        if flags & present != 0 {
            xz::number(&mut rest).ok_or(broken)?;
        }
    }
    for _ in 0..=flags & 3 {
        let (id, len) = xz::number(&mut rest).zip(xz::number(&mut rest)).ok_or(broken)?;
        let (properties, next) = rest.split_at_checked(index(len)).ok_or(broken)?;
        if let (0x21, [bits]) = (id, properties) {
            let mantissa = 2u64 | u64::from(bits & 1);
            let dictionary = mantissa.checked_shl(u32::from(bits / 2).saturating_add(11)).unwrap_or(u64::MAX);
            if *bits > 40 || dictionary > limits::BLOCK_BYTES.into() {
                return Err(damaged("the xz block wants a dictionary of more than 64 MiB"));
            }
        }
        rest = next;
    }
    Ok(())
}

fn unzstd(stored: &[u8], clear: &mut [u8]) -> Result<()> {
    let broken = damaged("the zstd frame is damaged, or needs a window of more than 64 MiB");
    let mut decoder = Decoder::new().map_err(|_| damaged("zstd could not be started"))?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG)).map_err(|_| broken)?;
    let mut input = InBuffer::around(stored);
    let size = clear.len();
    let mut output = OutBuffer::around(clear);
    loop {
        let before = (input.pos(), output.pos());
        // Nothing is left to do when the frame has ended and its checksum, which it may have, fits.
        if decoder.run(&mut input, &mut output).map_err(|_| broken)? == 0 {
            break;
        }
        if (input.pos(), output.pos()) == before {
            return Err(damaged("the zstd frame does not end with the block"));
        }
    }
    if output.pos() != size || input.pos() != stored.len() {
        return Err(damaged("the zstd frame has another size than was said"));
    }
    Ok(())
}
