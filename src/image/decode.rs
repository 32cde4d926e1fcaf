//! Decodes compressed units: reads what is stored in few large requests, and inflates off the reactor, in parallel.

use super::layer::LayerFiles;
use crate::error::{Error, Result};
use backends::Buffer;
use backends::cache::Fill;
use bytes::Bytes;
use formats::{FileIndex, Inflater, Mapping, Unit};
use futures_util::{FutureExt, StreamExt, TryStreamExt, stream};
use std::cell::RefCell;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, LazyLock};
use tokio::sync::Semaphore;

/// Stored units closer together than this are read in one request: a round trip costs more than so many bytes.
const GAP: u64 = 16 << 10;
/// Largest request for stored units, in bytes.
const LARGEST_READ: u64 = 4 << 20;
/// Least decoded bytes that are worth a task of their own.
const LEAST_WORK: u32 = 128 << 10;

/// Fills the cache's decoded blocks of one layer. Stretches of a block that the layer holds in another way than
/// compressed are left zero: nobody looks them up there.
#[derive(Debug)]
pub(crate) struct DecodeFill(pub(super) Arc<LayerFiles>);

impl Fill for DecodeFill {
    async fn fill(&self, range: Range<u64>) -> std::result::Result<Bytes, backends::Error> {
        Ok(fill(&self.0, range).await?)
    }
}

async fn fill(files: &Arc<LayerFiles>, range: Range<u64>) -> Result<Bytes> {
    let mut wanted = Vec::new();
    let mut at = range.start;
    while at < range.end {
        let run = files.run(at, range.end - at).await?;
        if let Mapping::Compressed(unit) = run.mapping {
            wanted.push(unit);
        }
        at = run.end();
    }
    wanted.dedup();
    let gaps = gaps(&wanted, &range);
    let (whole, cut): (Vec<_>, Vec<_>) = wanted.into_iter().partition(|unit| lies_in(unit, &range));
    let stored = stored(files, &whole).await?;
    // Those that other blocks want a part of as well are decoded by themselves, and remembered.
    let cut = units(files, &cut, &range).await?;
    let length =
        usize::try_from(range.end - range.start).map_err(|_| Error::failed("a fill beyond memory"))?;
    let mut buffer = Buffer::any(length);
    let filled = off_reactor(move || {
        let out = buffer.content();
        let index = |at: u64| usize::try_from(at - range.start).unwrap_or(length).min(length);
        let place = |at: &Range<u64>| index(at.start)..index(at.end);
        for gap in gaps {
            out[place(&gap)].fill(0);
        }
        for (unit, bytes) in &cut {
            let part = range.start.max(unit.guest)..range.end.min(unit.guest + u64::from(unit.decoded));
            out[place(&part)].copy_from_slice(&slice(unit, bytes, part));
        }
        for (unit, stored) in stored {
            let part = unit.guest..unit.guest + u64::from(unit.decoded);
            inflate(unit, &stored, &mut out[place(&part)])?;
        }
        Ok(buffer.freeze())
    });
    filled.await.ok_or_else(ended)?.map_err(|error| files.parse_error(error))
}

/// What of `range` none of `units`, which are in the order of the disk, holds.
fn gaps(units: &[Unit], range: &Range<u64>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = range.start;
    for unit in units {
        if unit.guest > at {
            gaps.push(at..unit.guest);
        }
        at = at.max(unit.guest + u64::from(unit.decoded));
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

/// The bytes of `range`, which lies inside `unit`, out of its decoded bytes.
pub(super) fn slice(unit: &Unit, decoded: &Bytes, range: Range<u64>) -> Bytes {
    let index =
        |at: u64| usize::try_from(at.saturating_sub(unit.guest)).unwrap_or(usize::MAX).min(decoded.len());
    decoded.slice(index(range.start)..index(range.end))
}

/// The decoded bytes of each of `units`, in their order. Those that lie in `asked` as a whole are the first that are
/// forgotten: who reads in sequence does not come back.
pub(super) async fn units(
    files: &Arc<LayerFiles>,
    units: &[Unit],
    asked: &Range<u64>,
) -> Result<Vec<(Unit, Bytes)>> {
    let missing: Vec<Unit> = units.iter().filter(|unit| files.units.peek(unit).is_none()).copied().collect();
    let stored: HashMap<Unit, Bytes> = stored(files, &missing).await?.into_iter().collect();
    let cores = cores();
    let least = units.first().map_or(1, |unit| LEAST_WORK.div_ceil(unit.decoded.max(1)) as usize);
    let batches: Vec<Vec<_>> = units
        .chunks(units.len().div_ceil(cores).max(least))
        .map(|units| units.iter().map(|unit| (*unit, stored.get(unit).cloned())).collect())
        .collect();
    let decoded: Vec<Vec<_>> =
        stream::iter(batches).map(|units| batch(files, units)).buffered(cores).try_collect().await?;
    units.iter().filter(|unit| lies_in(unit, asked)).for_each(|unit| files.units.demote(unit));
    Ok(decoded.into_iter().flatten().collect())
}

fn lies_in(unit: &Unit, range: &Range<u64>) -> bool {
    unit.guest >= range.start && unit.guest + u64::from(unit.decoded) <= range.end
}

/// The stored bytes of each of `units`, in any order.
async fn stored(files: &Arc<LayerFiles>, units: &[Unit]) -> Result<Vec<(Unit, Bytes)>> {
    let fetched: Vec<Vec<_>> = stream::iter(group(units.to_vec()))
        .map(|group| async move { read_group(files, &group).await })
        .buffer_unordered(8)
        .try_collect()
        .await?;
    Ok(fetched.into_iter().flatten().collect())
}

/// A read of the stored bytes of several units.
struct Group {
    file: FileIndex,
    range: Range<u64>,
    units: Vec<Unit>,
}

/// Merges the stored ranges of `units` that lie close together.
fn group(mut units: Vec<Unit>) -> Vec<Group> {
    units.sort_by_key(|unit| (unit.file, unit.at));
    units.dedup();
    let mut groups: Vec<Group> = Vec::new();
    for unit in units {
        let end = unit.at.saturating_add(u64::from(unit.len));
        match groups.last_mut() {
            Some(last)
                if last.file == unit.file
                    && unit.at <= last.range.end.saturating_add(GAP)
                    && end.saturating_sub(last.range.start) <= LARGEST_READ =>
            {
                last.range.end = last.range.end.max(end);
                last.units.push(unit);
            }
            _ => groups.push(Group { file: unit.file, range: unit.at..end, units: vec![unit] }),
        }
    }
    groups
}

async fn read_group(files: &LayerFiles, group: &Group) -> Result<Vec<(Unit, Bytes)>> {
    let bytes = files.file(group.file)?.read_uncached(group.range.clone()).await?;
    let cut = |unit: &Unit| {
        let begin = usize::try_from(unit.at - group.range.start).unwrap_or(usize::MAX).min(bytes.len());
        let end = begin.saturating_add(unit.len as usize).min(bytes.len());
        (*unit, bytes.slice(begin..end))
    };
    Ok(group.units.iter().map(cut).collect())
}

/// The decoded bytes of `units`, from memory or inflated in one task from what is stored.
async fn batch(files: &Arc<LayerFiles>, units: Vec<(Unit, Option<Bytes>)>) -> Result<Vec<(Unit, Bytes)>> {
    let stored: Vec<_> = units.iter().filter_map(|(unit, stored)| Some((*unit, stored.clone()?))).collect();
    // Begun by the first unit that nobody else has made or is making.
    let work = inflate_all(stored).shared();
    let mut decoded = Vec::with_capacity(units.len());
    let mut index = 0;
    for (unit, stored) in units {
        let make = || async {
            if stored.is_none() {
                return alone(files, unit).await;
            }
            let made = work.clone().await.and_then(|made| made.get(index).cloned());
            made.ok_or_else(ended)?.map_err(|error| files.parse_error(error))
        };
        decoded.push((unit, files.units.get(unit, make).await?));
        index += usize::from(stored.is_some());
    }
    Ok(decoded)
}

/// The decoded bytes of a unit that was in memory when it was looked for, and is no more.
async fn alone(files: &Arc<LayerFiles>, unit: Unit) -> Result<Bytes> {
    let stored = stored(files, &[unit]).await?;
    let made = inflate_all(stored).await;
    let made = made.and_then(|made| made.first().cloned()).ok_or_else(ended)?;
    made.map_err(|error| files.parse_error(error))
}

/// Inflates units off the reactor; `None` if the task ended before its time.
async fn inflate_all(units: Vec<(Unit, Bytes)>) -> Option<Arc<[Made]>> {
    let work = || {
        let make = |(unit, stored): (Unit, Bytes)| {
            let mut buffer = Buffer::any(formats::limits::unit_length(unit.decoded)?);
            inflate(unit, &stored, buffer.content())?;
            Ok(buffer.freeze())
        };
        units.into_iter().map(make).collect()
    };
    off_reactor(work).await
}

/// Runs `work` on a thread that may be busy for long; `None` if it ended before its time. There are as many at a time as
/// there are processors: more would only take each other's caches.
async fn off_reactor<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    static TURNS: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(cores()));
    let _turn = TURNS.acquire().await.ok()?;
    tokio::task::spawn_blocking(work).await.ok()
}

/// How many processors there are. Asking for it opens files, so that it is asked once.
fn cores() -> usize {
    static CORES: LazyLock<usize> =
        LazyLock::new(|| std::thread::available_parallelism().map_or(1, usize::from));
    *CORES
}

/// What came of a unit.
type Made = formats::Result<Bytes>;

fn ended() -> Error {
    Error::failed("an inflating task ended before its time")
}

/// Inflates `unit` into `clear`, with state that each thread keeps.
fn inflate(unit: Unit, stored: &[u8], clear: &mut [u8]) -> formats::Result<()> {
    thread_local! {
        static INFLATER: RefCell<Inflater> = RefCell::new(Inflater::new());
    }
    INFLATER.with_borrow_mut(|inflater| inflater.decode_into(unit.codec, stored, clear))
}
