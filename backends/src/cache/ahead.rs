//! Reading ahead: which blocks are fetched because a reader will probably ask for them next.
//!
//! A read that begins where another one ended, or within what was read ahead for it, goes on with that one's stream, and
//! more is fetched behind it: twice as much as the last time, up to a bound. A read that goes on with no stream begins
//! one, and nothing is fetched for it: readers at random cost nothing.

use std::ops::Range;

/// How many streams are followed, of as many readers. The one that was not heard of for longest gives way.
const STREAMS: usize = 16;

/// How much is fetched ahead at first, and at most, in bytes.
const FIRST: u64 = 512 << 10;
const MOST: u64 = 8 << 20;

/// What part of the store one reader may fill with what it has not asked for.
const SHARE: u64 = 32;

/// The streams of one object. All positions are numbers of blocks.
#[derive(Debug)]
pub(super) struct Streams {
    /// How many there are.
    blocks: u64,
    /// How many are fetched ahead at first, and at most.
    first: u64,
    most: u64,
    streams: Vec<Stream>,
    clock: u64,
}

#[derive(Debug)]
struct Stream {
    /// Behind what was asked for.
    next: u64,
    /// Behind what is being fetched for it.
    fetched: u64,
    /// How much is fetched at a time.
    window: u64,
    heard: u64,
}

impl Streams {
    /// For an object of `blocks` blocks of `block` bytes, in a store that holds `room` bytes.
    pub(super) fn new(block: u64, blocks: u64, room: u64) -> Streams {
        let most = (MOST.min(room / SHARE) / block).max(1);
        let first = (FIRST / block).clamp(1, most);
        Streams { blocks, first, most, streams: Vec::new(), clock: 0 }
    }

    /// A reader asks for `asked`. Returns what to fetch ahead, and the block at whose reading more is to be asked for.
    pub(super) fn read(&mut self, asked: &Range<u64>) -> Option<(Range<u64>, u64)> {
        self.clock += 1;
        let most = self.most;
        // Requests of one reader may overtake each other by a little.
        let little = 2 * (asked.end - asked.start);
        let mine = |stream: &&mut Stream| {
            let near = stream.next.saturating_sub(little)..=stream.fetched.max(stream.next) + little;
            near.contains(&asked.start) && asked.end > stream.next
        };
        let Some(stream) = self.streams.iter_mut().find(mine) else {
            self.begin(asked);
            return None;
        };
        stream.heard = self.clock;
        stream.next = asked.end;
        let start = stream.fetched.max(stream.next);
        let end = (stream.next + stream.window).min(self.blocks);
        // Little requests are not worth it; there will be another occasion before the reader is there.
        if end <= start || (end - start) * 2 < stream.window && end < self.blocks {
            return None;
        }
        stream.fetched = end;
        stream.window = (stream.window * 2).min(most);
        Some((start..end, start))
    }

    fn begin(&mut self, asked: &Range<u64>) {
        let little = 2 * (asked.end - asked.start);
        let overtaken =
            |stream: &Stream| (stream.next.saturating_sub(little)..stream.next).contains(&asked.start);
        if self.streams.iter().any(overtaken) {
            return;
        }
        if self.streams.len() == STREAMS
            && let Some(oldest) = (0..STREAMS).min_by_key(|&number| self.streams[number].heard)
        {
            self.streams.swap_remove(oldest);
        }
        self.streams.push(Stream {
            next: asked.end,
            fetched: asked.end,
            window: self.first,
            heard: self.clock,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 64 << 10;

    /// Reads `len` blocks from each of `starts` in turn, 4 at a time, and returns how many blocks were fetched ahead, and in
    /// how many pieces.
    fn read(starts: &[u64], len: u64) -> (u64, usize) {
        let mut streams = Streams::new(BLOCK, 1 << 20, u64::MAX);
        let (mut ahead, mut pieces) = (0, 0);
        for at in (0..len).step_by(4) {
            for start in starts {
                if let Some((range, mark)) = streams.read(&(start + at..start + at + 4)) {
                    assert!(
                        range.start >= start + at + 4 && mark == range.start,
                        "only what is still to come"
                    );
                    ahead += range.end - range.start;
                    pieces += 1;
                }
            }
        }
        (ahead, pieces)
    }

    #[test]
    fn a_sequential_reader_is_read_ahead_for_in_growing_pieces() {
        let (ahead, pieces) = read(&[1000], 4096);
        assert!((4000..4096 + 200).contains(&ahead), "{ahead}");
        assert!(pieces < 4096 / 4 / 8, "{pieces} pieces");
        // Each of several has its own stream.
        let (ahead, _) = read(&[0, 100_000, 200_000, 300_000, 400_000, 500_000], 1024);
        assert!((6 * 900..6 * 1300).contains(&ahead), "{ahead}");
    }

    #[test]
    fn readers_at_random_cost_nothing() {
        let mut streams = Streams::new(BLOCK, 1 << 20, u64::MAX);
        let mut state = 1u64;
        let ahead: u64 = (0..10_000)
            .filter_map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let at = (state >> 33) % (1 << 20);
                streams.read(&(at..at + 1)).map(|(range, _)| range.end - range.start)
            })
            .sum();
        assert!(ahead < 200, "{ahead} blocks");
    }

    #[test]
    fn nothing_is_fetched_past_the_end() {
        let mut streams = Streams::new(BLOCK, 100, u64::MAX);
        let ranges: Vec<_> = (0..25).filter_map(|i| streams.read(&(i * 4..i * 4 + 4))).collect();
        assert!(ranges.iter().all(|(range, _)| range.end <= 100 && !range.is_empty()));
        assert_eq!(ranges.last().map(|(range, _)| range.end), Some(100));
    }

    #[test]
    fn requests_that_overtake_each_other_are_one_stream() {
        let mut streams = Streams::new(BLOCK, 1 << 20, u64::MAX);
        let mut ahead = 0;
        for i in (0..1000).step_by(2) {
            for at in [i + 1, i] {
                ahead += streams.read(&(at * 4..at * 4 + 4)).map_or(0, |(range, _)| range.end - range.start);
            }
        }
        assert!((3000..4400).contains(&ahead), "{ahead}");
        assert!(streams.streams.len() <= 2, "{:?}", streams.streams);
    }
}
