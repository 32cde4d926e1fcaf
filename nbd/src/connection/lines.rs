//! Memory that begins with a line of the processor's cache.
//!
//! The kernel copies from the page cache with one instruction of the processor, which takes up to three times as long where
//! the place to copy to begins within such a line, and longest where it begins a few bytes further into its page than what
//! is copied (`docs/performance.md`).

use std::ops::{Deref, DerefMut, Range};

/// Bytes in such a line, on every processor that this is likely to run on.
const LINE: usize = 64;

/// Initialised bytes of which the first is that of a line.
#[derive(Debug, Default)]
pub(super) struct Lines {
    bytes: Vec<u8>,
    place: Range<usize>,
}

impl Lines {
    /// `len` zeros.
    pub(super) fn zeroed(len: usize) -> Lines {
        let bytes = vec![0; len + LINE - 1];
        // A place that cannot be had costs time and nothing else.
        let begin = bytes.as_ptr().align_offset(LINE).min(LINE - 1);
        Lines { bytes, place: begin..begin + len }
    }

    /// Makes it at least `len` bytes long.
    pub(super) fn grow(&mut self, len: usize) {
        if self.len() < len {
            let mut larger = Lines::zeroed(len.max(self.len() * 2));
            larger[..self.len()].copy_from_slice(self);
            *self = larger;
        }
    }
}

impl Deref for Lines {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[self.place.clone()]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[self.place.clone()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growing_keeps_what_was_there_and_the_place() {
        let mut lines = Lines::default();
        assert!(lines.is_empty());
        for len in [1, 100, 64 << 10, 300 << 10] {
            let before = lines.to_vec();
            lines.grow(len);
            assert!(lines.len() >= len);
            assert_eq!(lines.as_ptr() as usize % LINE, 0);
            assert_eq!(lines[..before.len()], before);
            lines.fill(len as u8);
        }
        let len = lines.len();
        lines.grow(len - 1);
        assert_eq!(lines.len(), len);
    }
}
