//! `thinorigin cat` and `thinorigin warm`: both read the disk from end to end.

use super::args::{Cat, Warm};
use super::reading;
use crate::error::{Error, Result};
use crate::image::{Image, Piece};
use crate::output;
use crate::prefetch::{self, steps};
use crate::size::Size;
use crate::trace;
use futures_util::{StreamExt, TryStreamExt, stream};
use serde::Serialize;
use std::ops::Range;

/// How many reads are under way.
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
            async move { Ok::<_, Error>((step.start, image.read(step.start, step.end - step.start).await?)) }
        })
        .buffered(AHEAD);
    let zeros = vec![0; 64 << 10];
    let location = image.location().to_string();
    while let Some((mut at, pieces)) = reads.try_next().await? {
        for piece in pieces {
            let len = piece.len();
            match piece {
                Piece::Zero(mut len) => {
                    while len > 0 {
                        let chunk = len.min(zeros.len() as u64);
                        output::write_stdout(&zeros[..chunk as usize])?;
                        len -= chunk;
                    }
                }
                Piece::Span(span) => {
                    let bytes = match crate::image::gather(&[span].into_iter().collect(), &location).await {
                        Ok(bytes) => bytes,
                        Err(_) => image.reread(at, len).await?,
                    };
                    output::write_stdout(&bytes)?;
                }
            }
            at += len;
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
    if let Some(trace) = &args.trace {
        ranges = trace::plan_at(&reading::parse(trace)?, image.sources(), image.virtual_size()).await?;
    }
    let whole = ranges.is_empty() && args.trace.is_none();
    if whole {
        ranges.push(0..image.virtual_size());
    }
    let mut stored = Vec::new();
    for range in ranges {
        stored.extend(prefetch::stretches(&image, range).await?);
    }
    // What is not compressed is read where it is, if that is here.
    if image.is_local() && stored.iter().any(|(_, compressed)| *compressed) {
        image.writable()?;
    }
    let stored: Vec<_> = stored.into_iter().map(|(range, _)| range).collect();
    let total = stored.iter().map(|range| range.end - range.start).sum();
    let bar = output::progress(total, "warming");
    let reads = stream::iter(stored.into_iter().flat_map(steps)).map(|step| {
        let (image, bar): (&Image, _) = (&image, &bar);
        async move {
            let local = image.warm(step.start, step.end - step.start).await?;
            bar.add(step.end - step.start);
            Ok::<_, Error>(local)
        }
    });
    let local: u64 =
        reads.buffer_unordered(AHEAD).try_fold(0, |sum, local| async move { Ok(sum + local) }).await?;
    bar.clear();
    let location = image.location().to_string();
    if whole && local == total {
        image.complete().await?;
    }
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

fn parse_range(text: &str) -> Result<Range<u64>> {
    let parsed = text.split_once('-').and_then(|(from, to)| {
        let (from, to) = (from.parse::<Size>().ok()?, to.parse::<Size>().ok()?);
        (from < to).then_some(from.0..to.0)
    });
    parsed.ok_or_else(|| Error::usage(format!("{text:?} is not a range: use A-B with A below B (0-64M)")))
}
