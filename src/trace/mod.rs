//! Traces: which parts of a disk were read, in the order of their first reading. What a machine reads while it boots is
//! nearly the same every time, so the trace of one boot tells what to fetch before the next one asks.
//!
//! A trace is text: a line `thinorigin trace 1`, a line `size N` with the disk's size in bytes, and for each first
//! reading a line of three numbers: milliseconds since the first one, guest offset and length in bytes.

mod record;

pub(crate) use record::Recorder;

use crate::error::{Error, Result};
use backends::{Location, Source};
use std::fmt::Write as _;
use std::ops::Range;

/// The first line.
const MAGIC: &str = "thinorigin trace 1";

/// The largest trace that is read, in bytes. A published one comes from a server that need not be trusted.
const MAX_LEN: u64 = 16 << 20;

/// What a trace tells places apart by, in bytes: what it notes is as much as this, or a multiple.
const GRAIN: u64 = 4 << 10;

/// A part of the disk that was read for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Touch {
    /// Milliseconds since the first one.
    after: u64,
    start: u64,
    len: u64,
}

/// What was read of a disk, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trace {
    /// Size of the disk in bytes.
    size: u64,
    touches: Vec<Touch>,
}

impl Trace {
    /// The trace at `location`.
    pub(crate) async fn read(location: &Location, sources: &backends::Options) -> Result<Trace> {
        let source = backends::open(location, sources).await?;
        let wrong = |what: String| Error::failed(format!("{location}: not a trace: {what}"));
        if source.len() > MAX_LEN {
            return Err(wrong(format!("{} bytes, more than the {MAX_LEN} of the longest", source.len())));
        }
        let bytes = source.read(0..source.len()).await?;
        let text = std::str::from_utf8(&bytes).map_err(|_| wrong("not UTF-8".to_owned()))?;
        Trace::parse(text).map_err(wrong)
    }

    fn parse(text: &str) -> std::result::Result<Trace, String> {
        let mut lines = text.lines();
        if lines.next() != Some(MAGIC) {
            return Err(format!("its first line is not {MAGIC:?}"));
        }
        let size = lines.next().and_then(|line| line.strip_prefix("size ")).and_then(number);
        let size = size.ok_or("its second line is not \"size N\"")?;
        let touch = |line: &str| {
            let mut numbers = line.split(' ').map(number);
            let mut next = || numbers.next().flatten();
            let touch = Touch { after: next()?, start: next()?, len: next()? };
            let inside = touch.len > 0 && touch.start.checked_add(touch.len).is_some_and(|end| end <= size);
            (inside && numbers.next().is_none()).then_some(touch)
        };
        let touches = (3..).zip(lines).map(|(line_number, line)| {
            touch(line).ok_or_else(|| format!("line {line_number} is not a part of a disk of {size} bytes"))
        });
        Ok(Trace { size, touches: touches.collect::<std::result::Result<_, _>>()? })
    }

    fn text(&self) -> String {
        let mut text = format!("{MAGIC}\nsize {}\n", self.size);
        for Touch { after, start, len } in &self.touches {
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{after} {start} {len}");
        }
        text
    }

    /// What to fetch of a disk of `size` bytes, in which order: whole multiples of `block` bytes, each once. What the trace
    /// has close together in time comes in the order of the disk and in one piece where it is in one, at first little at a
    /// time, for somebody may be waiting, then more.
    pub(crate) fn plan(&self, size: u64, block: u64) -> Vec<Range<u64>> {
        /// How much is put in order together, in bytes.
        const FIRST: u64 = 256 << 10;
        const MOST: u64 = 4 << 20;
        let mut seen = vec![0_u64; usize::try_from(size.div_ceil(block * 64)).unwrap_or(0)];
        let mut new = |at: u64| {
            let (word, bit) = (at / 64, 1 << (at % 64));
            let Some(word) = usize::try_from(word).ok().and_then(|word| seen.get_mut(word)) else {
                return false;
            };
            let new = *word & bit == 0;
            *word |= bit;
            new
        };
        let mut plan: Vec<Range<u64>> = Vec::new();
        let (mut window, mut most) = (Vec::new(), FIRST / block);
        let mut flush = |window: &mut Vec<u64>| {
            window.sort_unstable();
            let begun = plan.len();
            for at in window.drain(..) {
                let range = at * block..((at + 1) * block).min(size);
                match plan[begun..].last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => plan.push(range),
                }
            }
        };
        for touch in &self.touches {
            let end = (touch.start + touch.len).min(size);
            for at in touch.start / block..end.div_ceil(block) {
                if new(at) {
                    window.push(at);
                }
                if window.len() as u64 >= most.max(1) {
                    flush(&mut window);
                    most = (most * 2).min(MOST / block);
                }
            }
        }
        flush(&mut window);
        plan
    }
}

/// Digits only: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests;
