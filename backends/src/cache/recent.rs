//! Which blocks are being read at this moment, and how far.
//!
//! Whoever reads in small steps asks for a block many times in a row, and that is one use: else all that a scan passes would
//! count as used again. Of many readers at a time each is followed by the block where it is, and in it by parts, for requests
//! of one reader overtake each other.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// How many blocks are remembered, one for each remainder of a block's number.
const PLACES: u64 = 64;

/// In how many parts a block is seen.
const PARTS: u64 = 16;

/// In each place, from the lowest bit on: which parts were read, in which the last request ended, and the block's number.
#[derive(Debug)]
pub(super) struct Recent([AtomicU64; PLACES as usize]);

impl Recent {
    pub(super) fn new() -> Recent {
        Recent(std::array::from_fn(|_| AtomicU64::new(u64::MAX)))
    }

    /// Notes that bytes `within` of a block, which has `len`, are read. Whether that goes on with what was being done: false
    /// for one that was not read of late, and where somebody comes back to what was read.
    pub(super) fn goes_on(&self, block: u64, within: &Range<u64>, len: u64) -> bool {
        let part = |at: u64| (at * PARTS / len).min(PARTS - 1);
        let (first, last) = (part(within.start), part(within.end.saturating_sub(1)));
        let read = (1 << (last + 1)) - (1 << first);
        let place = &self.0[(block % PLACES) as usize];
        let before = place.load(Ordering::Relaxed);
        let (seen, at) = (before & ((1 << PARTS) - 1), before >> PARTS & (PARTS - 1));
        let goes_on = before >> 20 == block && (seen >> first & 1 == 0 || first.abs_diff(at) <= 1);
        let seen = if goes_on { seen | read } else { read };
        let now = block << 20 | last << PARTS | seen;
        if now != before {
            place.store(now, Ordering::Relaxed);
        }
        goes_on
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEN: u64 = 65536;

    /// How many uses it is that `readers` read 100 blocks each in steps of `step`, each in its part, their requests in pairs
    /// that overtake each other.
    fn uses(readers: u64, step: u64) -> usize {
        let recent = Recent::new();
        let steps = 100 * LEN / step;
        let order = (0..steps).map(|number| number ^ 1);
        let mut uses = 0;
        for at in order.map(|number| number * step) {
            for block in (0..readers).map(|reader| reader * 1001 + at / LEN) {
                let within = at % LEN..at % LEN + step;
                uses += usize::from(!recent.goes_on(block, &within, LEN));
            }
        }
        uses
    }

    #[test]
    fn small_steps_in_a_block_are_one_use() {
        for step in [512, 4096, 16384, 32768, 65536] {
            assert_eq!(uses(1, step), 100, "{step}");
            assert!((1600..1700).contains(&uses(16, step)), "{step}: {}", uses(16, step));
        }
    }

    #[test]
    fn coming_back_is_another_use() {
        let recent = Recent::new();
        let steps = || (0..16).map(|number| number * 4096..(number + 1) * 4096);
        let uses = |steps: &mut dyn Iterator<Item = Range<u64>>| {
            steps.filter(|step| !recent.goes_on(7, step, LEN)).count()
        };
        assert_eq!(uses(&mut steps()), 1);
        assert_eq!(uses(&mut steps()), 1, "from the beginning again");
        assert_eq!(uses(&mut [0..LEN, 0..LEN].into_iter()), 2, "whole, and whole again");
        assert!(!recent.goes_on(7 + PLACES, &(0..4096), LEN));
        assert!(!recent.goes_on(7, &(4096..8192), LEN), "somebody else was there since");
    }
}
