//! Traces: which parts of a disk were read, in the order of their first reading. What a machine reads while it boots is
//! nearly the same every time, so the trace of one boot tells what to fetch before the next one asks.
//!
//! A trace is text: a line `thinorigin trace 1`, a line `size N` with the disk's size in bytes, and for each first
//! reading a line of three numbers: milliseconds since the first one, guest offset and length in bytes.

mod plan;
mod record;

pub(crate) use record::Recorder;

use crate::error::{Error, Result};
use backends::{AnySource, Location, Source};
use std::fmt::Write as _;
use std::ops::Range;
use tokio::sync::Semaphore;

/// The first line.
const MAGIC: &str = "thinorigin trace 1";

/// The largest trace that is read, in bytes. A published one comes from a server that need not be trusted.
const MAX_LEN: u64 = 16 << 20;

/// The most readings of one trace: no more are written down, and none with more is read.
const MAX_TOUCHES: usize = 400_000;

/// What a plan is rounded to, in bytes: the cache's own blocks are seldom smaller.
const BLOCK: u64 = 64 << 10;

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
struct Trace {
    /// Size of the disk in bytes.
    size: u64,
    touches: Vec<Touch>,
}

/// What the trace at `location` has to be fetched of a disk of `size` bytes, in order: whole blocks of [`BLOCK`] bytes, each
/// once. What the trace names beyond the disk is passed over, with a warning.
pub(crate) async fn plan_at(
    location: &Location,
    sources: &backends::Options,
    size: u64,
) -> Result<Vec<Range<u64>>> {
    plan_of(location, &backends::open(location, sources).await?, size).await
}

/// As [`plan_at`], of the trace that `source` is, which was found at `location`.
pub(crate) async fn plan_of(location: &Location, source: &AnySource, size: u64) -> Result<Vec<Range<u64>>> {
    /// One at a time: a trace may take some 50 MB of memory until it is a plan, and a server may publish many.
    static TURN: Semaphore = Semaphore::const_new(1);
    let wrong = |what: String| Error::failed(format!("{location}: not a trace: {what}"));
    if source.len() > MAX_LEN {
        return Err(wrong(format!("{} bytes, more than the {MAX_LEN} of the longest", source.len())));
    }
    let bytes = source.read(0..source.len()).await?;
    let turn = TURN.acquire().await;
    let planned = tokio::task::spawn_blocking(move || {
        let trace = Trace::parse(std::str::from_utf8(&bytes).map_err(|_| "not UTF-8".to_owned())?)?;
        Ok((trace.size, trace.plan(size, BLOCK)))
    });
    let planned = planned.await.map_err(|_| Error::failed("reading a trace ended before its time"))?;
    drop(turn);
    let (traced, plan) = planned.map_err(wrong)?;
    if traced > size {
        tracing::warn!(
            "{location}: a trace of {traced} bytes of disk: what is beyond the {size} there are is passed over"
        );
    }
    Ok(plan)
}

impl Trace {
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
        let touches = touches.take(MAX_TOUCHES + 1).collect::<std::result::Result<Vec<_>, _>>()?;
        if touches.len() > MAX_TOUCHES {
            return Err(format!("it has more than {MAX_TOUCHES} lines of parts"));
        }
        Ok(Trace { size, touches })
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
    fn plan(&self, size: u64, block: u64) -> Vec<Range<u64>> {
        plan::plan(&self.touches, size, block)
    }
}

/// Digits only: `parse` would take a sign.
fn number(text: &str) -> Option<u64> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests;
