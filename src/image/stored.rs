//! The stored bytes of compressed units: fetched in few large requests, or read from the page cache by the thread that
//! inflates them, so that they never leave that processor's own cache.

use super::content::Content;
use super::layer::LayerFiles;
use crate::error::{Error, Result};
use backends::Buffer;
use bytes::Bytes;
use formats::{FileIndex, Unit};
use futures_util::{StreamExt, TryStreamExt, stream};
use std::ops::Range;
use std::sync::Arc;

/// Stored units closer together than this are read in one request: a round trip costs more than so many bytes.
const GAP: u64 = 16 << 10;
/// Largest request for stored units, in bytes.
const LARGEST_FETCH: u64 = 4 << 20;
/// Most bytes that are read from the page cache at a time: a part of a processor's own cache.
const LARGEST_READ: u64 = 256 << 10;
/// How many requests for the units of one read are under way.
const CONCURRENT: usize = 8;

/// Whether the stored bytes of `unit` are in a local file.
pub(super) fn is_local(files: &LayerFiles, unit: &Unit) -> bool {
    files.file(unit.file).is_ok_and(Content::is_local)
}

/// The stored bytes of each of `units`, in any order.
pub(super) async fn fetch(files: &Arc<LayerFiles>, units: &[Unit]) -> Result<Vec<(Unit, Bytes)>> {
    let fetched: Vec<Vec<_>> = stream::iter(group(units.to_vec(), LARGEST_FETCH))
        .map(|group| async move {
            let bytes = files.file(group.file)?.read_uncached(group.range.clone()).await?;
            let cut = |unit: &Unit| (*unit, bytes.slice(group.place(unit, bytes.len())));
            Ok::<Vec<_>, Error>(group.units.iter().map(cut).collect())
        })
        .buffer_unordered(CONCURRENT)
        .try_collect()
        .await?;
    Ok(fetched.into_iter().flatten().collect())
}

/// Calls `each` with every unit of `units` whose stored bytes lie in a local file and in the page cache, and those bytes.
/// Returns the others. Does not wait.
pub(super) fn resident(
    files: &LayerFiles,
    units: Vec<Unit>,
    mut each: impl FnMut(&Unit, &[u8]),
) -> Vec<Unit> {
    let mut left = Vec::new();
    for group in group(units, LARGEST_READ) {
        match group.read_resident(files) {
            Some(mut buffer) => {
                let bytes = buffer.content();
                group.units.iter().for_each(|unit| each(unit, &bytes[group.place(unit, bytes.len())]));
            }
            None => left.extend(group.units),
        }
    }
    left
}

/// A read of the stored bytes of several units.
struct Group {
    file: FileIndex,
    range: Range<u64>,
    units: Vec<Unit>,
}

impl Group {
    /// Where `unit` is among the `len` bytes that were read: they are fewer than asked for where the file ends.
    fn place(&self, unit: &Unit, len: usize) -> Range<usize> {
        let begin = usize::try_from(unit.at - self.range.start).unwrap_or(usize::MAX).min(len);
        begin..begin.saturating_add(unit.len as usize).min(len)
    }

    fn read_resident(&self, files: &LayerFiles) -> Option<Buffer> {
        let content = files.file(self.file).ok()?;
        let end = self.range.end.min(content.len());
        let mut buffer = Buffer::any(usize::try_from(end.checked_sub(self.range.start)?).ok()?);
        content.read_resident(self.range.start, buffer.content()).then_some(buffer)
    }
}

/// Merges the stored ranges of `units` that lie close together, into reads of no more than `largest` bytes where no
/// unit is larger.
fn group(mut units: Vec<Unit>, largest: u64) -> Vec<Group> {
    units.sort_by_key(|unit| (unit.file, unit.at));
    units.dedup();
    let mut groups: Vec<Group> = Vec::new();
    for unit in units {
        let end = unit.at.saturating_add(u64::from(unit.len));
        match groups.last_mut() {
            Some(last)
                if last.file == unit.file
                    && unit.at <= last.range.end.saturating_add(GAP)
                    && end.saturating_sub(last.range.start) <= largest =>
            {
                last.range.end = last.range.end.max(end);
                last.units.push(unit);
            }
            _ => groups.push(Group { file: unit.file, range: unit.at..end, units: vec![unit] }),
        }
    }
    groups
}
