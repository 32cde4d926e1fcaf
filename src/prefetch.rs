//! Fetching in the background what somebody is going to read.

use crate::error::Result;
use crate::image::Image;
use crate::trace::Trace;
use backends::Location;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

/// What a trace's places are rounded to: the cache's own blocks are seldom smaller.
pub(crate) const BLOCK: u64 = 64 << 10;

/// The most that one request of the background asks for, in bytes.
const STEP: u64 = 1 << 20;

/// How much is asked for at a time, in bytes: enough for a long way when nobody else reads, and so little while somebody
/// waits that his requests are not held up.
const ALONE: u64 = 8 << 20;
const BESIDE: u64 = 1 << 20;

/// How often to look whether somebody is still waiting.
const LOOK_EVERY: Duration = Duration::from_millis(5);

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
    /// Begins to fetch of `image` what `wishes` say. Does nothing for an image that is local.
    pub(crate) fn begin(image: Arc<Image>, wishes: Wishes, sources: backends::Options) -> Background {
        Background(tokio::spawn(async move {
            if image.is_local() || !image.has_cache() {
                return;
            }
            if let Some(trace) = trace(&image, &wishes, &sources).await {
                patiently(&image, trace.plan(image.virtual_size(), BLOCK)).await;
            }
            if wishes.whole {
                whole(&image).await;
            }
        }))
    }
}

/// The trace to follow.
async fn trace(image: &Image, wishes: &Wishes, sources: &backends::Options) -> Option<Trace> {
    if let Some(location) = &wishes.trace {
        let trace = Trace::read(location, sources).await;
        return trace.map_err(|error| tracing::warn!("{error}")).ok();
    }
    if !wishes.published || !image.is_fresh() {
        return None;
    }
    let location = image.location();
    let beside = location.sibling(&format!("{}.trace", location.file_name()))?;
    match Trace::read(&beside, sources).await {
        Ok(trace) => {
            tracing::info!(%location, "what its trace names is fetched first");
            Some(trace)
        }
        // Most images have none.
        Err(error) => {
            tracing::debug!("no trace: {error}");
            None
        }
    }
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
    let mut stored = Vec::new();
    let mut walk = image.walk(range.start, range.end.min(image.virtual_size()));
    while let Some(stretch) = walk.next().await? {
        if !stretch.zero {
            stored.push(stretch.start..stretch.start + stretch.len);
        }
    }
    Ok(stored)
}

/// Fetches `ranges`, in their order, however long a server is away.
async fn patiently(image: &Image, ranges: Vec<Range<u64>>) {
    let mut left: VecDeque<_> = ranges.into_iter().flat_map(steps).collect();
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
    let mut failure = None;
    loop {
        let busy = image.waiting() > 0;
        let most = if busy { BESIDE } else { ALONE };
        while failure.is_none()
            && bytes < most
            && let Some(range) = left.pop_front()
        {
            bytes += range.end - range.start;
            under_way.push(async move {
                let fetched = image.warm(range.start, range.end - range.start).await;
                (range, fetched)
            });
        }
        let ended = tokio::select! {
            ended = under_way.next() => ended,
            () = tokio::time::sleep(LOOK_EVERY), if busy && !left.is_empty() && failure.is_none() => continue,
        };
        let Some((range, fetched)) = ended else { break };
        bytes -= range.end - range.start;
        if let Err(error) = fetched {
            undone.push(range);
            failure = Some(error);
        }
    }
    failure.map_or(Ok(()), |error| Err((undone, error)))
}

/// `range` in steps.
pub(crate) fn steps(range: Range<u64>) -> impl Iterator<Item = Range<u64>> {
    let end = range.end;
    std::iter::successors(Some(range.start), |at| Some(at + STEP))
        .take_while(move |&at| at < end)
        .map(move |at| at..(at + STEP).min(end))
}
