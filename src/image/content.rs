//! The bytes of one file that belongs to an image: read in place, or through the cache.

use crate::error::{Error, Result};
use backends::cache::{Fill, Key, Lease, Object, Span, Spans, Store};
use backends::{AnySource, Identity, Source};
use bytes::Bytes;
use std::ops::Range;
use std::sync::Arc;

/// Blocks of remote objects in the cache, in bytes: large enough that a cold sequential read is not all round
/// trips, small enough that a random 4 KiB read does not fetch much that nobody asked for.
const BLOCK: u32 = 64 << 10;

/// One file of a layer.
#[derive(Debug)]
pub(crate) enum Content {
    /// A local file, sent from where it lies.
    Local(Arc<AnySource>, Arc<Lease>),
    /// A remote object behind the cache.
    Cached(Arc<AnySource>, Arc<Object<SourceFill>>),
    /// A remote object without a cache: every read goes to the server.
    Remote(Arc<AnySource>),
}

/// Fills cache blocks from a source.
#[derive(Debug)]
pub(crate) struct SourceFill(Arc<AnySource>);

impl Fill for SourceFill {
    async fn fill(&self, range: Range<u64>) -> std::result::Result<Bytes, backends::Error> {
        self.0.read(range).await
    }
}

impl Content {
    /// Wraps `source`, with `store` as the cache of what is not local.
    pub(crate) fn new(source: AnySource, store: Option<&Store>) -> Result<Self> {
        let source = Arc::new(source);
        if let AnySource::File(file) = &*source {
            let lease = Lease::of(file.file().clone());
            return Ok(Content::Local(source, lease));
        }
        let Some(store) = store else { return Ok(Content::Remote(source)) };
        let key = Key { identity: source.identity().clone(), part: "raw".to_owned() };
        let object = store.object(&key, source.len(), BLOCK, SourceFill(source.clone()))?;
        Ok(Content::Cached(source, object))
    }

    /// What was pinned at open.
    pub(crate) fn identity(&self) -> &Identity {
        self.source().identity()
    }

    /// Size in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.source().len()
    }

    fn source(&self) -> &AnySource {
        match self {
            Content::Local(source, _) | Content::Cached(source, _) | Content::Remote(source) => source,
        }
    }

    /// Whether the byte at `at` is stored, or in a hole that reads as zeros, and up to where that is so. Only local
    /// files tell; elsewhere everything counts as stored.
    pub(crate) fn stored(&self, at: u64) -> (bool, u64) {
        match self {
            _ if at >= self.len() => (false, u64::MAX),
            Content::Local(source, _) if let AnySource::File(file) = &**source => file.extent(at),
            _ => (true, self.len()),
        }
    }

    /// Where `range`, which lies inside the file, is in local files, if all of it is. Does not wait.
    pub(crate) fn peek(&self, range: Range<u64>, out: &mut Spans) -> bool {
        match self {
            Content::Local(source, lease) => {
                if source.check().is_err() {
                    return false;
                }
                out.push(Span::File {
                    lease: lease.clone(),
                    offset: range.start,
                    len: range.end - range.start,
                });
                true
            }
            Content::Cached(_, object) => object.peek(range, out),
            Content::Remote(_) => false,
        }
    }

    /// Makes `range`, which lies inside the file, available and says where it is.
    pub(crate) async fn get(&self, range: Range<u64>, out: &mut Spans) -> Result<()> {
        match self {
            Content::Local(source, lease) => {
                source.check()?;
                out.push(Span::File {
                    lease: lease.clone(),
                    offset: range.start,
                    len: range.end - range.start,
                });
            }
            Content::Cached(_, object) => object.get(range, out).await?,
            Content::Remote(source) => out.push(Span::Bytes(source.read(range).await?)),
        }
        Ok(())
    }

    /// Up to `len` bytes from `at` in memory, fewer where the file ends. Remote bytes stay in the cache: this is
    /// for metadata.
    pub(crate) async fn read(&self, at: u64, len: u32) -> Result<Bytes> {
        let range = self.clip(at..at.saturating_add(u64::from(len)));
        match self {
            Content::Cached(..) if !range.is_empty() => {
                let mut spans = Spans::new();
                self.get(range, &mut spans).await?;
                gather(&spans, &self.identity().location).await
            }
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
        if let Content::Cached(_, object) = self {
            let mut spans = Spans::new();
            if object.peek(range.clone(), &mut spans) {
                return gather(&spans, &self.identity().location).await;
            }
        }
        Ok(self.source().read(range).await?)
    }

    fn clip(&self, range: Range<u64>) -> Range<u64> {
        range.start.min(self.len())..range.end.min(self.len())
    }
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
