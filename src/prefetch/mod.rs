//! Fetching in the background what somebody is going to read.

mod room;

use crate::error::Result;
use crate::image::{self, Image};
use crate::size::Size;
use crate::trace;
use backends::Location;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use room::Room;
use std::collections::VecDeque;
use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// The most that one request of the background asks for, in bytes.
const STEP: u64 = 1 << 20;

/// The most that is fetched for a trace that nobody named, in bytes: it comes from a server that need not be trusted, and a
/// boot reads a fraction of this.
const UNASKED: u64 = 4 << 30;

/// How long to rest when a server does not answer, at first and at most.
const REST: Duration = Duration::from_secs(5);
const LONGEST_REST: Duration = Duration::from_secs(60);

/// What is fetched in the background of a served image.
#[derive(Clone, Debug, Default)]
pub(crate) struct Wishes {
    /// Where the trace to follow is.
    pub(crate) trace: Option<Location>,
    /// Whether everything is fetched in the end.
    pub(crate) whole: bool,
    /// Whether a trace published beside the image is followed when the cache has nothing of the image.
    pub(crate) published: bool,
}

/// Fetching under way. It ends when this is dropped.
#[derive(Debug)]
pub(crate) struct Background(tokio::task::JoinHandle<()>);

impl Drop for Background {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Background {
    /// Begins to fetch of `image` what `wishes` say. Does nothing for an image of which nothing goes through a cache.
    pub(crate) fn begin(image: Arc<Image>, wishes: Wishes, sources: backends::Options) -> Background {
        Background(tokio::spawn(async move {
            if !image.has_cache() {
                return;
            }
            if let Some(plan) = traced(&image, &wishes, &sources).await {
                patiently(&image, plan).await;
            }
            if wishes.whole {
                whole(&image).await;
            }
        }))
    }
}

/// What the trace to follow names, in order.
async fn traced(image: &Image, wishes: &Wishes, sources: &backends::Options) -> Option<Vec<Range<u64>>> {
    let size = image.virtual_size();
    if let Some(location) = &wishes.trace {
        let plan = trace::plan_at(location, sources, size).await;
        return plan.map_err(|error| tracing::warn!("{error}")).ok();
    }
    if !wishes.published || !image.is_fresh() {
        return None;
    }
    let location = image.location();
    let beside = location.sibling(&format!("{}.trace", location.file_name()))?;
    // Most images have none.
    let found =
        backends::open(&beside, sources).await.inspect_err(|error| tracing::debug!("no trace: {error}"));
    let plan = trace::plan_of(&beside, &found.ok()?, size).await;
    let mut plan = plan.map_err(|error| tracing::warn!("{error}; nothing is fetched for it")).ok()?;
    if shorten(&mut plan, UNASKED) {
        tracing::warn!(
            "{beside}: it names more than {}: what comes after that is passed over",
            Size(UNASKED)
        );
    }
    tracing::info!(%location, "what its trace names is fetched first");
    Some(plan)
}

/// Leaves the first `most` bytes of `plan`. Says whether there were more.
fn shorten(plan: &mut Vec<Range<u64>>, mut most: u64) -> bool {
    for (at, range) in plan.iter_mut().enumerate() {
        let len = range.end - range.start;
        if len > most {
            range.end = range.start + most;
            plan.truncate(at + usize::from(most > 0));
            return true;
        }
        most -= len;
    }
    false
}

/// Everything that is stored, in the order of the disk.
async fn whole(image: &Arc<Image>) {
    let mut rest = REST;
    loop {
        match stored(image, 0..image.virtual_size()).await {
            Ok(ranges) => break patiently(image, ranges).await,
            Err(error) => tracing::debug!("{error}"),
        }
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(LONGEST_REST);
    }
    match image.complete().await {
        Ok(true) => tracing::info!(location = %image.location(), "all of it is local"),
        Ok(false) => tracing::warn!(location = %image.location(), "the cache has no room for all of it"),
        Err(error) => tracing::warn!("{error}"),
    }
}

/// The parts of `range` that are not known to be zero.
pub(crate) async fn stored(image: &Image, range: Range<u64>) -> Result<Vec<Range<u64>>> {
    Ok(stretches(image, range).await?.into_iter().map(|(part, _)| part).collect())
}

/// The parts of `range` that are not known to be zero, and whether each is compressed.
pub(crate) async fn stretches(image: &Image, range: Range<u64>) -> Result<Vec<(Range<u64>, bool)>> {
    let mut stretches = Vec::new();
    let mut walk = image.walk(range.start, range.end.min(image.virtual_size()));
    while let Some(stretch) = walk.next().await? {
        if !stretch.zero {
            stretches.push((stretch.start..stretch.start + stretch.len, stretch.compressed));
        }
    }
    Ok(stretches)
}

/// Fetches `ranges`, in their order, however long a server is away.
async fn patiently(image: &Image, ranges: Vec<Range<u64>>) {
    let mut left = VecDeque::from(ranges);
    let mut rest = REST;
    while let Err((undone, error)) = fetch(image, &mut left).await {
        tracing::warn!("fetching in the background rests for {} s: {error}", rest.as_secs());
        undone.into_iter().for_each(|range| left.push_front(range));
        tokio::time::sleep(rest).await;
        rest = (rest * 2).min(LONGEST_REST);
    }
}

/// Fetches what is `left`, from its front, until it is empty; or until something fails: then what was under way is to be
/// fetched again.
async fn fetch(
    image: &Image,
    left: &mut VecDeque<Range<u64>>,
) -> std::result::Result<(), (Vec<Range<u64>>, crate::error::Error)> {
    let mut under_way = FuturesUnordered::new();
    let (mut bytes, mut undone) = (0, Vec::new());
    let (mut failure, mut room) = (None, Room::default());
    loop {
        // Steps that hold nothing end at once, and there may be any number of them.
        tokio::task::consume_budget().await;
        let mut calm = pin!(image::calm());
        calm.as_mut().enable();
        let (most, again) = room.at(Instant::now(), image.waiting() > 0, image.others_wait());
        while failure.is_none()
            && bytes < most
            && let Some(range) = take_step(left)
        {
            bytes += range.end - range.start;
            under_way.push(async move {
                let fetched = image.warm(range.start, range.end - range.start).await;
                (range, fetched)
            });
        }
        let waits = !left.is_empty() && failure.is_none();
        if under_way.is_empty() && !waits {
            break;
        }
        let (range, fetched) = tokio::select! {
            Some(ended) = under_way.next() => ended,
            () = calm, if waits => continue,
            () = tokio::time::sleep(again.unwrap_or_default()), if waits && again.is_some() => continue,
        };
        bytes -= range.end - range.start;
        if let Err(error) = fetched {
            undone.push(range);
            failure = Some(error);
        }
    }
    failure.map_or(Ok(()), |error| Err((undone, error)))
}

/// The first step of what is `left`.
fn take_step(left: &mut VecDeque<Range<u64>>) -> Option<Range<u64>> {
    let mut range = left.pop_front()?;
    let step = range.start..range.end.min(range.start.saturating_add(STEP));
    range.start = step.end;
    if !range.is_empty() {
        left.push_front(range);
    }
    Some(step)
}

/// `range` in steps.
pub(crate) fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    std::iter::successors(Some(range.start), |at| Some(at + STEP))
        .take_while(move |&at| at < end)
        .map(move |at| at..(at + STEP).min(end))
}

#[cfg(test)]
mod tests;
