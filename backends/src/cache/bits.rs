//! A bitmap that many threads read and write, made in pieces as it is used: a large object of which little is local
//! takes little memory.

use std::ops::Range;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

const WORDS: usize = 512;
const PIECE: u64 = WORDS as u64 * 64;

type Piece = Box<[AtomicU64]>;

#[derive(Debug)]
pub(super) struct Bits {
    pieces: Box<[OnceLock<Piece>]>,
}

impl Bits {
    /// `len` bits, all clear.
    pub(super) fn new(len: u64) -> Bits {
        Bits { pieces: (0..len.div_ceil(PIECE)).map(|_| OnceLock::new()).collect() }
    }

    fn word(&self, bit: u64) -> Option<&AtomicU64> {
        let piece = self.pieces.get((bit / PIECE) as usize)?.get()?;
        piece.get((bit % PIECE / 64) as usize)
    }

    pub(super) fn get(&self, bit: u64) -> bool {
        self.word(bit).is_some_and(|word| word.load(Ordering::Acquire) >> (bit % 64) & 1 == 1)
    }

    /// Whether `bit` is set, and the first bit after it, `end` at most, that may be another.
    pub(super) fn run(&self, bit: u64, end: u64) -> (bool, u64) {
        let Some(word) = self.word(bit) else {
            let next = match self.pieces.is_empty() {
                true => u64::MAX,
                false => (bit / PIECE + 1) * PIECE,
            };
            return (false, next.min(end));
        };
        let rest = word.load(Ordering::Acquire) >> (bit % 64);
        let set = rest & 1 == 1;
        let same = if set { rest.trailing_ones() } else { rest.trailing_zeros() };
        (set, (bit + u64::from(same)).min((bit / 64 + 1) * 64).min(end))
    }

    /// Whether every bit of `range` is set.
    pub(super) fn all(&self, range: Range<u64>) -> bool {
        let mut at = range.start;
        while at < range.end {
            let mask = mask(at, range.end);
            match self.word(at) {
                Some(word) if word.load(Ordering::Acquire) & mask == mask => at = (at / 64 + 1) * 64,
                _ => return false,
            }
        }
        true
    }

    /// Sets every bit of `range`. Bits that are set already are not written, so that hot words stay shared.
    pub(super) fn set(&self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end {
            let mask = mask(at, range.end);
            let Some(piece) = self.pieces.get((at / PIECE) as usize) else { return };
            let piece = piece.get_or_init(|| (0..WORDS).map(|_| AtomicU64::new(0)).collect());
            if let Some(word) = piece.get((at % PIECE / 64) as usize)
                && word.load(Ordering::Relaxed) & mask != mask
            {
                word.fetch_or(mask, Ordering::Release);
            }
            at = (at / 64 + 1) * 64;
        }
    }

    pub(super) fn clear(&self, bit: u64) {
        if let Some(word) = self.word(bit) {
            word.fetch_and(!(1 << (bit % 64)), Ordering::AcqRel);
        }
    }

    /// Clears all.
    pub(super) fn reset(&self) {
        for word in self.pieces.iter().filter_map(OnceLock::get).flatten() {
            word.store(0, Ordering::Release);
        }
    }
}

/// The bits from `at` to the end of its word or to `end`.
fn mask(at: u64, end: u64) -> u64 {
    let low = u64::MAX << (at % 64);
    let left = end - at / 64 * 64;
    if left >= 64 { low } else { low & !(u64::MAX << left) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_whole_where_they_are_put_together() {
        for set in [0..1, 5..70, 63..64, 64..128, 32_767..32_770, 40_000..99_999] {
            let bits = Bits::new(100_000);
            bits.set(set.clone());
            let (mut at, mut found) = (0, Vec::new());
            while at < 100_000 {
                let (is_set, end) = bits.run(at, 100_000);
                assert!(end > at && (at..end).all(|bit| bits.get(bit) == is_set), "{at}..{end}");
                if is_set {
                    found.extend(at..end);
                }
                at = end;
            }
            assert_eq!(found, set.collect::<Vec<_>>());
        }
    }

    #[test]
    fn ranges_are_exact_at_every_boundary() {
        for start in [0, 1, 63, 64, 65, 32767, 32768] {
            for len in [1, 2, 63, 64, 65, 130, 40_000] {
                let bits = Bits::new(100_000);
                bits.set(start..start + len);
                assert!(bits.all(start..start + len), "{start} {len}");
                assert!(!bits.all(start..start + len + 1));
                assert!(start == 0 || !bits.get(start - 1));
                bits.clear(start + len / 2);
                assert!(!bits.all(start..start + len));
                bits.reset();
                assert!(!bits.get(start));
            }
        }
        assert!(Bits::new(0).all(0..0));
        assert_eq!(Bits::new(0).run(5, u64::MAX), (false, u64::MAX), "there is nothing to look through");
        assert!(!Bits::new(10).all(1 << 40..(1 << 40) + 1));
    }
}
