//! Decodes compressed units: reads what is stored in few large requests, and inflates off the reactor, in parallel.

use super::layer::LayerFiles;
use crate::error::{Error, Result};
use backends::cache::Fill;
use bytes::{Bytes, BytesMut};
use formats::{FileIndex, Inflater, Mapping, Unit};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::Arc;

/// Stored units closer together than this are read in one request: a round trip costs more than so many bytes.
const GAP: u64 = 16 << 10;
/// Largest request for stored units, in bytes.
const LARGEST_READ: u64 = 4 << 20;

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
    let length =
        usize::try_from(range.end - range.start).map_err(|_| Error::failed("a fill beyond memory"))?;
    let mut out = BytesMut::zeroed(length);
    for (unit, bytes) in units(files, &wanted).await? {
        let start = range.start.max(unit.guest);
        let end = range.end.min(unit.guest + u64::from(unit.decoded));
        let place = usize::try_from(start - range.start).unwrap_or(length);
        let piece = slice(&unit, &bytes, start..end);
        out[place..place + piece.len()].copy_from_slice(&piece);
    }
    Ok(out.freeze())
}

/// The bytes of `range`, which lies inside `unit`, out of its decoded bytes.
pub(super) fn slice(unit: &Unit, decoded: &Bytes, range: Range<u64>) -> Bytes {
    let index =
        |at: u64| usize::try_from(at.saturating_sub(unit.guest)).unwrap_or(usize::MAX).min(decoded.len());
    decoded.slice(index(range.start)..index(range.end))
}

/// The decoded bytes of each of `units`, in their order.
pub(super) async fn units(files: &Arc<LayerFiles>, units: &[Unit]) -> Result<Vec<(Unit, Bytes)>> {
    let missing: Vec<Unit> = units.iter().filter(|unit| files.units.peek(unit).is_none()).copied().collect();
    let groups = group(missing);
    let fetched: Vec<Vec<(Unit, Bytes)>> = stream::iter(groups)
        .map(|group| {
            let files = files.clone();
            async move {
                let stored = read_group(&files, &group).await?;
                Ok::<_, Error>(stored)
            }
        })
        .buffer_unordered(8)
        .try_collect()
        .await?;
    let stored: std::collections::HashMap<Unit, Bytes> = fetched.into_iter().flatten().collect();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    stream::iter(units.iter().copied())
        .map(|unit| {
            let (files, stored) = (files.clone(), stored.get(&unit).cloned());
            async move { Ok((unit, decode_one(&files, unit, stored).await?)) }
        })
        .buffered(cores)
        .try_collect()
        .await
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

/// The decoded bytes of `unit`, from memory or inflated from `stored`.
async fn decode_one(files: &Arc<LayerFiles>, unit: Unit, stored: Option<Bytes>) -> Result<Bytes> {
    let make = || async {
        let stored = match stored {
            Some(stored) => stored,
            None => {
                let range = unit.at..unit.at.saturating_add(u64::from(unit.len));
                files.file(unit.file)?.read_uncached(range).await?
            }
        };
        let decoded = tokio::task::spawn_blocking(move || inflate(unit, &stored)).await;
        let decoded = decoded.map_err(|_| Error::failed("an inflating task ended before its time"))?;
        Ok(Bytes::from(decoded.map_err(|error| files.parse_error(error))?))
    };
    files.units.get(unit, make).await
}

/// Inflates `unit`, with state that each thread keeps.
fn inflate(unit: Unit, stored: &[u8]) -> formats::Result<Vec<u8>> {
    thread_local! {
        static INFLATER: RefCell<Inflater> = RefCell::new(Inflater::new());
    }
    INFLATER.with_borrow_mut(|inflater| inflater.decode(unit.codec, stored, unit.decoded))
}
