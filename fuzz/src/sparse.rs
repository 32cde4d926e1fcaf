//! Images of some MiB described by few bytes, with their checksums put right.

use std::ops::Range;

/// The longest image, in bytes.
const SIZE: usize = 8 << 20;

/// An image of zeros but for the pieces put into it. The memory is used again for the next one.
pub struct Sparse {
    bytes: Vec<u8>,
    len: usize,
    touched: Vec<Range<usize>>,
}

impl Default for Sparse {
    fn default() -> Self {
        Self::new()
    }
}

impl Sparse {
    /// An empty image.
    pub fn new() -> Self {
        Self { bytes: vec![0; SIZE], len: 0, touched: Vec::new() }
    }

    /// Puts pieces into the image: each is a place (3 bytes), a length less one (1 byte), and so many bytes, numbers
    /// little-endian. The image ends with the last of them, at the next 512 bytes.
    pub fn fill(&mut self, mut pieces: &[u8]) {
        while let Some(([low, middle, high, length], rest)) = pieces.split_first_chunk::<4>() {
            let at = usize::from(*low) | usize::from(*middle) << 8 | usize::from(*high) << 16;
            let at = at % SIZE;
            let len = (usize::from(*length) + 1).min(rest.len()).min(SIZE - at);
            let (piece, rest) = rest.split_at(len);
            self.put(at, piece);
            self.len = self.len.max(at + len).next_multiple_of(512);
            pieces = rest;
        }
    }

    /// The image.
    pub fn image(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Makes it empty again.
    pub fn clear(&mut self) {
        for range in self.touched.drain(..) {
            self.bytes[range].fill(0);
        }
        self.len = 0;
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.touched.push(at..at + bytes.len());
    }

    /// Sets the CRC-32C of the headers, the region tables and whatever looks like an entry of the log (MS-VHDX 2.2.2,
    /// 2.2.3 and 2.3.1.1).
    pub fn seal_vhdx(&mut self) {
        for (at, len) in [(64, 4), (128, 4), (192, 64), (256, 64)] {
            self.seal_crc(at << 10, len << 10);
        }
        let sectors: Vec<usize> = self.touched.iter().map(|range| range.start & !0xfff).collect();
        for at in sectors {
            if self.bytes[at..].starts_with(b"loge") {
                let len = u32::from_le_bytes(self.bytes[at + 8..at + 12].try_into().expect("4 bytes")) as usize;
                if (64..=1 << 20).contains(&len) {
                    self.seal_crc(at, len);
                }
            }
        }
    }

    fn seal_crc(&mut self, at: usize, len: usize) {
        if at + len <= self.len {
            self.put(at + 4, &[0; 4]);
            let crc = crc32c::crc32c(&self.bytes[at..at + len]);
            self.put(at + 4, &crc.to_le_bytes());
        }
    }

    /// Sets the sums of the footer at both ends and of the dynamic header it names.
    pub fn seal_vhd(&mut self) {
        let Some(end) = self.len.checked_sub(512) else { return };
        for at in [0, end] {
            let place = u64::from_be_bytes(self.bytes[at + 16..at + 24].try_into().expect("8 bytes"));
            self.seal_sum(at, 512, 64);
            if let Ok(place) = usize::try_from(place)
                && place < end
            {
                self.seal_sum(place, 1024, 36);
            }
        }
    }

    fn seal_sum(&mut self, at: usize, len: usize, field: usize) {
        if at + len <= self.len {
            self.put(at + field, &[0; 4]);
            let sum = self.bytes[at..at + len].iter().fold(0u32, |sum, &byte| sum.wrapping_add(byte.into()));
            self.put(at + field, &(!sum).to_be_bytes());
        }
    }
}
