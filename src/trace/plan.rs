//! What to fetch for a trace, and in which order.
//!
//! A trace may come from a server that means no good, and the size of a disk is what its image says it is. So nothing here
//! takes time or memory for the size of a disk or of what is named: all of it is counted in lines of the trace.

use super::Touch;
use std::collections::BTreeMap;
use std::ops::Range;

/// How much is put in order together, in bytes: at first little, for somebody may be waiting.
const FIRST: u64 = 256 << 10;
const MOST: u64 = 4 << 20;

/// What to fetch of a disk of `size` bytes for `touches`; `Trace::plan` says in which order.
pub(super) fn plan(touches: &[Touch], size: u64, block: u64) -> Vec<Range<u64>> {
    let mut named = Named::default();
    let mut windows = Windows { plan: Vec::new(), window: Vec::new(), held: 0, most: (FIRST / block).max(1) };
    let largest = (MOST / block).max(1);
    for touch in touches {
        let end = touch.start.saturating_add(touch.len).min(size);
        named.add(touch.start / block..end.div_ceil(block), |part| windows.take(part, largest));
    }
    windows.flush();
    let bytes = |blocks: Range<u64>| blocks.start * block..blocks.end.saturating_mul(block).min(size);
    windows.plan.into_iter().map(bytes).collect()
}

/// Blocks that were named: ranges, by where they begin, that neither overlap nor touch each other.
#[derive(Debug, Default)]
struct Named(BTreeMap<u64, u64>);

impl Named {
    /// Adds `range`, and tells `new` of the parts of it that were not there, in order.
    ///
    /// Each call leaves one range more at most, and takes a step for each that it removes: so all calls together take no more
    /// steps than twice their number, whatever they name.
    fn add(&mut self, range: Range<u64>, mut new: impl FnMut(Range<u64>)) {
        if range.is_empty() {
            return;
        }
        let (mut start, mut end, mut at) = (range.start, range.end, range.start);
        if let Some((&before, &its_end)) = self.0.range(..start).next_back()
            && its_end >= start
        {
            start = before;
        }
        while let Some((&known, &known_end)) = self.0.range(start..=end).next() {
            self.0.remove(&known);
            if at < known {
                new(at..known);
            }
            at = at.max(known_end);
            end = end.max(known_end);
        }
        if at < range.end {
            new(at..range.end);
        }
        self.0.insert(start, end);
    }
}

/// Puts blocks that are named close together in time in the order of the disk, window by window.
#[derive(Debug)]
struct Windows {
    plan: Vec<Range<u64>>,
    window: Vec<Range<u64>>,
    /// How many blocks are in the window, and how many it takes.
    held: u64,
    most: u64,
}

impl Windows {
    fn take(&mut self, mut part: Range<u64>, largest: u64) {
        while !part.is_empty() {
            let len = part.end - part.start;
            // What fills windows alone is in order already, and one range however many it would fill.
            if self.held == 0 && self.most == largest && len >= largest {
                self.plan.push(part);
                return;
            }
            let taken = len.min(self.most - self.held);
            self.window.push(part.start..part.start + taken);
            self.held += taken;
            part.start += taken;
            if self.held == self.most {
                self.flush();
                self.most = (self.most * 2).min(largest);
            }
        }
    }

    fn flush(&mut self) {
        self.window.sort_unstable_by_key(|range| range.start);
        let begun = self.plan.len();
        for range in self.window.drain(..) {
            match self.plan[begun..].last_mut() {
                Some(last) if last.end == range.start => last.end = range.end,
                _ => self.plan.push(range),
            }
        }
        self.held = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_named_is_new_once() {
        let mut named = Named::default();
        let mut add = |range: Range<u64>| {
            let mut new = Vec::new();
            named.add(range, |part| new.push((part.start, part.end)));
            (new, named.0.len())
        };
        assert_eq!(add(10..20), (vec![(10, 20)], 1));
        assert_eq!(add(30..40), (vec![(30, 40)], 2));
        assert_eq!(add(12..18), (vec![], 2));
        assert_eq!(add(5..35), (vec![(5, 10), (20, 30)], 1));
        assert_eq!(add(40..41), (vec![(40, 41)], 1));
        assert_eq!(add(0..3), (vec![(0, 3)], 2));
        assert_eq!(add(3..5), (vec![(3, 5)], 1));
        assert_eq!(add(7..7), (vec![], 1));
        assert_eq!(add(0..u64::MAX), (vec![(41, u64::MAX)], 1));
    }

    #[test]
    fn any_names_are_new_where_no_bit_was_set() {
        let mut state = 7_u64;
        let mut random = |below: u64| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let (mut named, mut bits) = (Named::default(), [false; 64]);
            for _ in 0..30 {
                let start = random(64);
                let range = start..start + random(65 - start);
                let mut expected: Vec<_> = range.clone().filter(|&at| !bits[at as usize]).collect();
                range.clone().for_each(|at| bits[at as usize] = true);
                let mut new = Vec::new();
                named.add(range, |part| new.extend(part));
                expected.sort_unstable();
                assert_eq!(new, expected);
            }
        }
    }
}
