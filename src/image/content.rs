//! The bytes of one file that belongs to an image: read in place, through the cache, or out of a container.

use super::flow::Flow;
use super::packed::PackedFile;
use crate::error::{Error, Result};
use backends::cache::{Fill, Key, Lease, Object, Pieces, Span, Spans, Store};
use backends::{AnySource, Identity, Source};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// Blocks of remote objects in the cache, in bytes: large enough that a cold sequential read is not all round
/// trips, small enough that a random 4 KiB read does not fetch much that nobody asked for.
pub(super) const BLOCK: u32 = 64 << 10;

/// One file of a layer: a part of a body, which is all of it unless the file is a member of an archive. Offsets count
/// from where the part begins.
#[derive(Debug)]
pub(crate) struct Content {
    body: Body,
    part: Range<u64>,
}

/// Where the bytes come from.
#[derive(Debug)]
enum Body {
    /// A local file, sent from where it lies.
    Local(Arc<AnySource>, Arc<Lease>),
    /// A remote object behind the cache.
    Cached(Arc<AnySource>, Arc<Object<SourceFill>>),
    /// A remote object without a cache: every read goes to the server.
    Remote(Arc<AnySource>),
    /// A compressed file, decoded.
    Packed(Box<PackedFile>),
}

/// Fills cache blocks from a source.
#[derive(Debug)]
pub(crate) struct SourceFill {
    source: Arc<AnySource>,
    flow: Flow,
}

impl Fill for SourceFill {
    async fn fill(&self, range: Range<u64>) -> std::result::Result<Pieces, backends::Error> {
        let pieces = vec![(range.start, self.source.read(range).await?)];
        self.flow.count(&pieces);
        Ok(pieces)
    }
}

impl Content {
    /// Wraps `source`, with `store` as the cache of what is not local.
    pub(crate) async fn new(source: AnySource, store: Option<&Store>) -> Result<Self> {
        let source = Arc::new(source);
        let part = 0..source.len();
        let body = match (&*source, store) {
            (AnySource::File(file), _) => {
                let lease = Lease::of(file.file().clone());
                Body::Local(source, lease)
            }
            (_, None) => Body::Remote(source),
            (_, Some(store)) => {
                let key = Key { identity: source.identity().clone(), part: "raw".to_owned() };
                let fill = SourceFill { source: source.clone(), flow: Flow::default() };
                let object = store.object(&key, source.len(), BLOCK, fill).await?;
                Body::Cached(source, object)
            }
        };
        Ok(Content { body, part })
    }

    /// The decoded bytes of a compressed file.
    pub(crate) fn unpacked(file: PackedFile) -> Self {
        let part = 0..file.len();
        Content { body: Body::Packed(Box::new(file)), part }
    }

    /// The part `at..at + len` of this content, which lies inside it.
    pub(crate) fn member(self, at: u64, len: u64) -> Self {
        let start = self.part.start + at;
        Content { part: start..start + len, ..self }
    }

    /// What was pinned at open: the identity of the outermost file.
    pub(crate) fn identity(&self) -> &Identity {
        match &self.body {
            Body::Local(source, _) | Body::Cached(source, _) | Body::Remote(source) => source.identity(),
            Body::Packed(file) => file.identity(),
        }
    }

    /// What tells this content from others inside the same outermost file.
    pub(crate) fn place(&self) -> String {
        let Range { start, end } = self.part;
        match &self.body {
            Body::Packed(file) => format!("{start}..{end} of {}", file.place()),
            _ => format!("{start}..{end}"),
        }
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.part.end - self.part.start
    }

    /// Whether the byte at `at` is stored, or in a hole that reads as zeros, and up to where that is so. Only local
    /// files tell; elsewhere everything counts as stored.
    pub(crate) fn stored(&self, at: u64) -> (bool, u64) {
        match &self.body {
            _ if at >= self.len() => (false, u64::MAX),
            Body::Local(source, _) if let AnySource::File(file) = &**source => {
                let (stored, end) = file.extent(self.part.start + at);
                (stored, end.min(self.part.end) - self.part.start)
            }
            _ => (true, self.len()),
        }
    }

    /// Whether it is a local file, which is read in place and never cached.
    pub(crate) fn is_local(&self) -> bool {
        matches!(self.body, Body::Local(..))
    }

    /// Whether it is read from a server through the cache, block by block.
    pub(crate) fn is_remote(&self) -> bool {
        matches!(self.body, Body::Cached(..))
    }

    /// Whether it goes through the cache.
    pub(crate) fn has_cache(&self) -> bool {
        match &self.body {
            Body::Cached(..) => true,
            Body::Packed(file) => file.has_cache(),
            Body::Local(..) | Body::Remote(_) => false,
        }
    }

    /// How many bytes of it come into the cache per second, at present.
    pub(crate) fn rate(&self) -> u64 {
        match &self.body {
            Body::Cached(_, object) => object.source().flow.rate(),
            Body::Packed(file) => file.rate(),
            Body::Local(..) | Body::Remote(_) => 0,
        }
    }

    /// Finds out what earlier processes left in the cache, for [`locality`](Self::locality).
    pub(crate) async fn take_stock(&self) {
        match &self.body {
            Body::Cached(_, object) => object.take_stock().await,
            Body::Packed(file) => file.take_stock().await,
            Body::Local(..) | Body::Remote(_) => {}
        }
    }

    /// Whether the byte at `range.start` is on this machine, and for how many bytes of `range`, which lies inside the
    /// file and is not empty, the same holds.
    pub(crate) fn locality(&self, range: Range<u64>) -> (bool, u64) {
        let len = range.end - range.start;
        let range = self.place_of(range);
        match &self.body {
            Body::Local(..) => (true, len),
            Body::Cached(_, object) => object.locality(&range),
            Body::Remote(_) => (false, len),
            Body::Packed(file) => file.locality(&range),
        }
    }

    /// Has the cache keep what opening the source brought along, for the first tables that will be asked for are likely to be
    /// there. Must run in a tokio runtime.
    pub(crate) fn keep_first(&self) {
        let Body::Cached(source, object) = &self.body else { return };
        let at_hand = source.at_hand();
        let first = if at_hand == source.len() { at_hand } else { at_hand - at_hand % u64::from(BLOCK) };
        if first > 0 {
            let (source, object) = (source.clone(), object.clone());
            tokio::spawn(async move {
                // If it fails, the reads will tell.
                if object.warm(0..first).await.is_ok_and(|kept| kept) {
                    source.keep_at_hand(0);
                }
            });
        }
    }

    /// Lets go of what opening the source brought along, but for what the first read of a disk is likely to ask for.
    pub(crate) fn let_go(&self) {
        match &self.body {
            Body::Local(source, _) | Body::Cached(source, _) | Body::Remote(source) => {
                source.keep_at_hand(BLOCK.into());
            }
            Body::Packed(_) => {}
        }
    }

    /// Whether nothing of it was in the cache when it was opened; false without a cache.
    pub(crate) fn is_fresh(&self) -> bool {
        match &self.body {
            Body::Cached(_, object) => object.is_fresh(),
            Body::Packed(file) => file.is_fresh(),
            Body::Local(..) | Body::Remote(_) => false,
        }
    }

    /// Notes that the cache has all that is needed of it. Waits for the disk.
    pub(crate) fn mark_complete(&self) {
        match &self.body {
            Body::Cached(_, object) => object.mark_complete(),
            Body::Packed(file) => file.mark_complete(),
            Body::Local(..) | Body::Remote(_) => {}
        }
    }

    /// Where `range`, which lies inside the file, is at hand, if all of it is. Does not wait.
    pub(crate) fn peek(&self, range: Range<u64>, out: &mut Spans) -> bool {
        let range = self.place_of(range);
        match &self.body {
            Body::Local(source, lease) => {
                if source.check_now_and_then().is_err() {
                    return false;
                }
                out.push(local(lease, range));
                true
            }
            Body::Cached(_, object) => object.peek(range, out),
            Body::Remote(_) => false,
            Body::Packed(file) => file.peek(range, out),
        }
    }

    /// Makes `range`, which lies inside the file, available and says where it is.
    pub(crate) async fn get(&self, range: Range<u64>, out: &mut Spans) -> Result<()> {
        let range = self.place_of(range);
        match &self.body {
            Body::Local(source, lease) => {
                source.check()?;
                out.push(local(lease, range));
            }
            Body::Cached(_, object) => object.get(range, out).await?,
            Body::Remote(source) => out.push(Span::Bytes(source.read(range).await?)),
            Body::Packed(file) => file.get(range, out).await?,
        }
        Ok(())
    }

    /// The cache did not give `range`, which lies inside the file: it is fetched at the next use.
    pub(crate) fn spoil(&self, range: Range<u64>) {
        let range = self.place_of(range);
        match &self.body {
            Body::Cached(_, object) => object.spoil(&range),
            Body::Packed(file) => file.spoil(&range),
            Body::Local(..) | Body::Remote(_) => {}
        }
    }

    /// Makes `range`, which lies inside the file, local. Says whether it is.
    pub(crate) async fn warm(&self, range: Range<u64>) -> Result<bool> {
        let range = self.place_of(range);
        match &self.body {
            Body::Local(source, _) => {
                source.check()?;
                Ok(true)
            }
            Body::Cached(_, object) => Ok(object.warm(range).await?),
            Body::Remote(_) => Ok(false),
            Body::Packed(file) => file.warm(range).await,
        }
    }

    /// Up to `len` bytes from `at` in memory, fewer where the file ends. Remote bytes stay in the cache: this is
    /// for metadata.
    pub(crate) async fn read(&self, at: u64, len: u32) -> Result<Bytes> {
        let range = self.clip(at..at.saturating_add(u64::from(len)));
        match &self.body {
            Body::Cached(..) | Body::Packed(_) if !range.is_empty() => self.gathered(range).await,
            _ => self.read_uncached(range).await,
        }
    }

    /// The bytes of `range` in memory, fewer where the file ends, without keeping them in the cache: for what is
    /// kept decoded.
    pub(crate) async fn read_uncached(&self, range: Range<u64>) -> Result<Bytes> {
        let range = self.clip(range);
        if range.is_empty() {
            return Ok(Bytes::new());
        }
        let inside = self.place_of(range.clone());
        match &self.body {
            Body::Local(source, _) | Body::Remote(source) => Ok(source.read(inside).await?),
            Body::Cached(source, object) => match object.peek(inside.clone(), &mut Spans::new()) {
                true => self.gathered(range).await,
                false => Ok(source.read(inside).await?),
            },
            Body::Packed(_) => self.gathered(range).await,
        }
    }

    /// The bytes of `range` in memory, fewer where the file ends, if the cache has all of them as they are in the file.
    pub(crate) async fn read_cached(&self, range: Range<u64>) -> Result<Option<Bytes>> {
        let range = self.clip(range);
        match &self.body {
            Body::Cached(_, object)
                if !range.is_empty() && object.has(&self.place_of(range.clone())).await =>
            {
                Ok(Some(self.gathered(range).await?))
            }
            _ => Ok(None),
        }
    }

    /// Fills `buffer` with the bytes from `at` on if they are in a local file and the page cache holds them; else says
    /// false. Does not wait.
    pub(crate) fn read_resident(&self, at: u64, buffer: &mut [u8]) -> bool {
        let range = self.place_of(at..at + buffer.len() as u64);
        match &self.body {
            Body::Local(source, _) if let AnySource::File(file) = &**source => {
                range.end <= self.part.end
                    && file.read_resident(buffer, range.start) == buffer.len()
                    && file.check().is_ok()
            }
            _ => false,
        }
    }

    /// The bytes of `range` in memory, by way of the cache.
    async fn gathered(&self, range: Range<u64>) -> Result<Bytes> {
        let mut spans = Spans::new();
        self.get_exactly(range.clone(), &mut spans).await?;
        let location = &self.identity().location;
        if let Ok(bytes) = gather(&spans, location).await {
            return Ok(bytes);
        }
        // A disk that fails is the cache's affair.
        self.spoil(range.clone());
        spans.clear();
        self.get_exactly(range, &mut spans).await?;
        gather(&spans, location).await
    }

    /// As [`get`](Self::get), but nothing else is fetched ahead.
    async fn get_exactly(&self, range: Range<u64>, out: &mut Spans) -> Result<()> {
        match &self.body {
            Body::Cached(_, object) => Ok(object.get_exactly(self.place_of(range), out).await?),
            _ => self.get(range, out).await,
        }
    }

    fn clip(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.len())..range.end.min(self.len())
    }

    /// `range` of the part as a range of the body.
    fn place_of(&self, range: Range<u64>) -> Range<u64> {
        self.part.start + range.start..self.part.start + range.end
    }
}

/// `range` of the local file that `lease` holds.
fn local(lease: &Arc<Lease>, range: Range<u64>) -> Span {
    Span::File { lease: lease.clone(), offset: range.start, len: range.end - range.start }
}

/// Copies `spans` into memory.
pub(crate) async fn gather(spans: &Spans, location: &str) -> Result<Bytes> {
    if let [Span::Bytes(bytes)] = spans.as_slice() {
        return Ok(bytes.clone());
    }
    let (spans, location) = (spans.clone(), location.to_owned());
    let copied = tokio::task::spawn_blocking(move || copy(&spans, &location)).await;
    copied.map_err(|_| Error::failed("a reading task ended before its time"))?
}

fn copy(spans: &Spans, location: &str) -> Result<Bytes> {
    use std::os::unix::fs::FileExt;
    let mut out = Vec::new();
    for span in spans {
        match span {
            Span::Bytes(bytes) => out.extend_from_slice(bytes),
            Span::File { lease, offset, len } => {
                let begin = out.len();
                let len = usize::try_from(*len).map_err(|_| Error::failed("a span larger than memory"))?;
                out.resize(begin + len, 0);
                lease
                    .read_exact_at(&mut out[begin..], *offset)
                    .map_err(|error| Error::io("cannot read", location, &error))?;
            }
        }
    }
    Ok(Bytes::from(out))
}
