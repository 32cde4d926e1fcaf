//! `thinorigin cat` and `thinorigin warm`: both read the disk from end to end.

use super::args::{Cat, Warm};
use crate::error::{Error, Result};
use crate::image::{Image, Piece};
use crate::output;
use crate::size::Size;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::ops::Range;

/// How much is read at a time, in bytes.
const STEP: u64 = 1 << 20;
/// How many such reads are under way.
const AHEAD: usize = 16;

/// Writes guest bytes to stdout.
pub(super) async fn cat(args: Cat) -> Result<()> {
    let image = args.reading.open(&args.location).await?;
    let size = image.virtual_size();
    let start = args.offset.0;
    let end = args.length.map_or(Some(size), |length| start.checked_add(length.0));
    let end = end.filter(|&end| start <= end && end <= size).ok_or_else(|| {
        Error::usage(format!(
            "{}: the disk ends at {size} bytes, before the asked range does",
            image.location()
        ))
    })?;
    let mut reads = stream::iter(steps(start..end))
        .map(|step| {
            let image: &Image = &image;
            async move { image.read(step.start, step.end - step.start).await }
        })
        .buffered(AHEAD);
    let zeros = vec![0; 64 << 10];
    let location = image.location().to_string();
    while let Some(pieces) = reads.try_next().await? {
        for piece in pieces {
            match piece {
                Piece::Zero(mut len) => {
                    while len > 0 {
                        let chunk = len.min(zeros.len() as u64);
                        output::write_stdout(&zeros[..chunk as usize])?;
                        len -= chunk;
                    }
                }
                Piece::Span(span) => {
                    let bytes = crate::image::gather(&[span].into_iter().collect(), &location).await?;
                    output::write_stdout(&bytes)?;
                }
            }
        }
    }
    drop(reads);
    image.settle().await
}

#[derive(Serialize)]
struct Warmed {
    location: String,
    /// Bytes that are not known to be zero.
    data: u64,
    /// How many of them are in the cache now.
    local: u64,
}

/// Brings an image, or ranges of it, into the cache.
pub(super) async fn warm(args: Warm, json: bool) -> Result<()> {
    let image = args.reading.open(&args.location).await?;
    if !image.is_local() {
        image.writable()?;
    }
    let mut ranges = args.ranges.iter().map(|text| parse_range(text)).collect::<Result<Vec<_>>>()?;
    if ranges.is_empty() {
        ranges.push(0..image.virtual_size());
    }
    let stored = stored_ranges(&image, &ranges).await?;
    let total = stored.iter().map(|range| range.end - range.start).sum();
    let bar = output::progress(total, "warming");
    let reads = stream::iter(stored.into_iter().flat_map(steps)).map(|step| {
        let (image, bar): (&Image, _) = (&image, &bar);
        async move {
            let local = image.warm(step.start, step.end - step.start).await?;
            bar.inc(step.end - step.start);
            Ok::<_, Error>(local)
        }
    });
    let local: u64 =
        reads.buffer_unordered(AHEAD).try_fold(0, |sum, local| async move { Ok(sum + local) }).await?;
    bar.finish_and_clear();
    let location = image.location().to_string();
    image.settle().await?;
    if json {
        output::json(&Warmed { location: location.clone(), data: total, local })?;
    } else {
        output::line(&format!("{location}: {} of {} are local", Size(local), Size(total)))?;
    }
    match total - local {
        0 => Ok(()),
        missing => Err(Error::failed(format!(
            "{location}: the cache has no room for {missing} bytes: make it larger with --cache-size"
        ))),
    }
}

/// The parts of `ranges` that are not known to be zero.
async fn stored_ranges(image: &Image, ranges: &[Range<u64>]) -> Result<Vec<Range<u64>>> {
    let mut stored = Vec::new();
    for range in ranges {
        let mut walk = image.walk(range.start, range.end.min(image.virtual_size()));
        while let Some(stretch) = walk.next().await? {
            if !stretch.zero {
                stored.push(stretch.start..stretch.start + stretch.len);
            }
        }
    }
    Ok(stored)
}

/// `range` in steps.
fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    std::iter::successors(Some(range.start), |at| Some(at + STEP))
        .take_while(move |&at| at < end)
        .map(move |at| at..(at + STEP).min(end))
}

fn parse_range(text: &str) -> Result<Range<u64>> {
    let parsed = text.split_once('-').and_then(|(from, to)| {
        let (from, to) = (from.parse::<Size>().ok()?, to.parse::<Size>().ok()?);
        (from < to).then_some(from.0..to.0)
    });
    parsed.ok_or_else(|| Error::usage(format!("{text:?} is not a range: use A-B with A below B (0-64M)")))
}
