//! Decoding of compressed units, with the output capped by what the unit says it holds.

use crate::{Codec, FormatError, Result, limits};
use flate2::{Decompress, FlushDecompress};
use libdeflater::Decompressor;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

/// Largest zstd window that is accepted, as a power of two: twice the largest qcow2 cluster. A frame that asks for
/// more could make the decoder allocate more than the unit itself.
const ZSTD_WINDOW_LOG: u32 = 23;

/// Bytes of a vmdk grain marker in front of the data.
const MARKER_BYTES: usize = 12;

/// Decoder state that is kept between units: making it anew costs more than inflating a small cluster. One per
/// thread.
pub struct Inflater {
    /// Fast, where the stream ends with the unit. Nearly all do.
    whole: Decompressor,
    deflate: Decompress,
    zlib: Decompress,
    zstd: Option<Decoder<'static>>,
}

impl Default for Inflater {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Inflater {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflater").finish_non_exhaustive()
    }
}

impl Inflater {
    /// Fresh state.
    pub fn new() -> Self {
        Inflater {
            whole: Decompressor::new(),
            deflate: Decompress::new(false),
            zlib: Decompress::new(true),
            zstd: None,
        }
    }

    /// Decodes the unit that is stored as `stored` into exactly `decoded` bytes.
    ///
    /// `stored` are the [`Unit::len`](crate::Unit::len) bytes at [`Unit::at`](crate::Unit::at), fewer where the file
    /// ends sooner; `decoded` is [`Unit::decoded`](crate::Unit::decoded). What follows the compressed stream is
    /// ignored, and so is what the stream holds past `decoded` bytes. A stream that ends sooner is an error; what is stored
    /// as it is and ends sooner goes on with zeros.
    pub fn decode(&mut self, codec: Codec, stored: &[u8], decoded: u32) -> Result<Vec<u8>> {
        let mut clear = vec![0; limits::unit_length(decoded)?];
        self.decode_into(codec, stored, &mut clear)?;
        Ok(clear)
    }

    /// Like [`decode`](Self::decode), into memory that the caller has: all of `clear` is filled, or an error is
    /// returned and its content is undefined.
    pub fn decode_into(&mut self, codec: Codec, stored: &[u8], clear: &mut [u8]) -> Result<()> {
        match codec {
            Codec::Stored => {
                let len = stored.len().min(clear.len());
                let (inside, beyond) = clear.split_at_mut(len);
                inside.copy_from_slice(stored.split_at(len).0);
                beyond.fill(0);
                Ok(())
            }
            Codec::Deflate => {
                if self.whole.deflate_decompress(stored, clear) == Ok(clear.len()) {
                    return Ok(());
                }
                self.deflate.reset(false);
                inflate(&mut self.deflate, stored, clear)
            }
            Codec::Zlib => self.zlib(stored, clear),
            Codec::Grain { lba } => self.zlib(grain(stored, lba)?, clear),
            Codec::Zstd => self.zstd(stored, clear),
        }
    }

    fn zlib(&mut self, stored: &[u8], clear: &mut [u8]) -> Result<()> {
        if self.whole.zlib_decompress(stored, clear) == Ok(clear.len()) {
            return Ok(());
        }
        self.zlib.reset(true);
        inflate(&mut self.zlib, stored, clear)
    }

    fn zstd(&mut self, stored: &[u8], clear: &mut [u8]) -> Result<()> {
        let decoder = match &mut self.zstd {
            Some(decoder) => decoder,
            none => none.insert(
                new_zstd().map_err(|_| FormatError::Compressed { rule: "zstd could not be started" })?,
            ),
        };
        decoder.reinit().map_err(|_| FormatError::Compressed { rule: "zstd could not be reset" })?;
        let broken =
            FormatError::Compressed { rule: "the zstd frame is damaged or needs too large a window" };
        let mut input = InBuffer::around(stored);
        let size = clear.len();
        let mut output = OutBuffer::around(clear);
        while output.pos() < size {
            let before = (input.pos(), output.pos());
            decoder.run(&mut input, &mut output).map_err(|_| broken)?;
            if (input.pos(), output.pos()) == before {
                return Err(FormatError::Compressed { rule: "the zstd data ends too soon" });
            }
        }
        Ok(())
    }
}

fn new_zstd() -> std::io::Result<Decoder<'static>> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))?;
    Ok(decoder)
}

/// Fills `clear` from `stored`, where a stream may hold more than that or be cut off behind it. A stream of exactly this
/// length is followed to its end, where zlib has its checksum.
fn inflate(stream: &mut Decompress, stored: &[u8], clear: &mut [u8]) -> Result<()> {
    stream
        .decompress(stored, clear, FlushDecompress::Finish)
        .map_err(|_| FormatError::Compressed { rule: "the deflate stream or its checksum is damaged" })?;
    if usize::try_from(stream.total_out()).ok() != Some(clear.len()) {
        return Err(FormatError::Compressed { rule: "the deflate stream ends too soon" });
    }
    Ok(())
}

/// The data behind a grain marker (VMware Virtual Disk Format 1.1, "Compressed grains").
fn grain(stored: &[u8], lba: u32) -> Result<&[u8]> {
    let Some((marker, data)) = stored.split_first_chunk::<MARKER_BYTES>() else {
        return Err(FormatError::Compressed { rule: "the file ends inside the grain's marker" });
    };
    let [l0, l1, l2, l3, _, _, _, _, s0, s1, s2, s3] = *marker;
    if u32::from_le_bytes([l0, l1, l2, l3]) != lba {
        return Err(FormatError::Compressed { rule: "the grain's marker names another sector" });
    }
    let size = usize::try_from(u32::from_le_bytes([s0, s1, s2, s3])).unwrap_or(usize::MAX);
    if size == 0 {
        return Err(FormatError::Compressed { rule: "the grain's marker says that it is empty" });
    }
    data.get(..size)
        .ok_or(FormatError::Compressed { rule: "the grain's marker says more bytes than there are" })
}
