//! A compressed file, read block by block.
//!
//! Blocks are decoded whole. What was decoded goes to the cache on disk where there is one; in memory, a few blocks
//! are kept so that neighbouring reads do not decode the same block again.

use super::content::Content;
use super::flow::Flow;
use crate::error::{Error, Result};
use crate::memo::Memo;
use backends::Identity;
use backends::cache::{Fill, Key, Object, Pieces, Span, Spans, Store};
use bytes::{Bytes, BytesMut};
use formats::container::Packed;
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::Semaphore;

/// Decoded blocks kept in memory for each file, in bytes; the newest block is kept whatever its size.
const MEMORY: usize = 32 << 20;
/// Decoded bytes that go to the cache as one, in bytes.
const CACHE_BLOCK: u32 = 64 << 10;
/// How many blocks of one file are decoded at a time. Each may take three times its size of memory.
const DECODERS: usize = 2;

/// A compressed file and what has been decoded of it.
#[derive(Debug)]
pub(super) struct PackedFile {
    blocks: Arc<Blocks>,
    decoded: Option<Arc<Object<BlockFill>>>,
}

#[derive(Debug)]
struct Blocks {
    inner: Content,
    packed: Arc<Packed>,
    memory: Memo<u64, Bytes>,
    decoders: Semaphore,
}

/// Fills the cache with decoded bytes.
#[derive(Debug)]
struct BlockFill {
    blocks: Arc<Blocks>,
    flow: Flow,
}

impl Fill for BlockFill {
    async fn fill(&self, range: Range<u64>) -> std::result::Result<Pieces, backends::Error> {
        let spans = self.blocks.get(range.clone()).await?;
        let bytes = match spans.as_slice() {
            [Span::Bytes(bytes)] => bytes.clone(),
            spans => {
                let mut out = BytesMut::new();
                for span in spans {
                    if let Span::Bytes(bytes) = span {
                        out.extend_from_slice(bytes);
                    }
                }
                out.freeze()
            }
        };
        let pieces = vec![(range.start, bytes)];
        self.flow.count(&pieces);
        Ok(pieces)
    }
}

impl PackedFile {
    /// The file that `inner` holds compressed as `packed` says.
    pub(super) async fn new(inner: Content, packed: Packed, store: Option<&Store>) -> Result<Self> {
        let key = Key {
            identity: inner.identity().clone(),
            part: format!("unpacked from {}, {}", packed.packing(), inner.place()),
        };
        let (len, memory, decoders) = (packed.len(), Memo::new(MEMORY), Semaphore::new(DECODERS));
        let blocks = Arc::new(Blocks { inner, packed: Arc::new(packed), memory, decoders });
        let decoded = match store {
            Some(store) => {
                let fill = BlockFill { blocks: blocks.clone(), flow: Flow::default() };
                Some(store.object(&key, len, CACHE_BLOCK, fill).await?)
            }
            None => None,
        };
        Ok(PackedFile { blocks, decoded })
    }

    pub(super) fn len(&self) -> u64 {
        self.blocks.packed.len()
    }

    pub(super) fn identity(&self) -> &Identity {
        self.blocks.inner.identity()
    }

    pub(super) fn place(&self) -> String {
        format!("{} at {}", self.blocks.packed.packing(), self.blocks.inner.place())
    }

    pub(super) fn peek(&self, range: Range<u64>, out: &mut Spans) -> bool {
        match &self.decoded {
            Some(object) => object.peek(range, out),
            None => self.blocks.peek(range, out),
        }
    }

    pub(super) async fn get(&self, range: Range<u64>, out: &mut Spans) -> Result<()> {
        match &self.decoded {
            Some(object) => object.get(range, out).await?,
            None => out.extend(self.blocks.get(range).await?),
        }
        Ok(())
    }

    pub(super) fn has_cache(&self) -> bool {
        self.decoded.is_some()
    }

    /// How many bytes of it come into the cache per second, at present. What it is made from does not count.
    pub(super) fn rate(&self) -> u64 {
        self.decoded.as_ref().map_or(0, |object| object.source().flow.rate())
    }

    pub(super) fn spoil(&self, range: &Range<u64>) {
        if let Some(object) = &self.decoded {
            object.spoil(range);
        }
    }

    pub(super) async fn take_stock(&self) {
        if let Some(object) = &self.decoded {
            object.take_stock().await;
        }
    }

    pub(super) fn locality(&self, range: &Range<u64>) -> (bool, u64) {
        self.decoded.as_ref().map_or((false, range.end - range.start), |object| object.locality(range))
    }

    pub(super) fn is_fresh(&self) -> bool {
        self.blocks.inner.is_fresh()
    }

    pub(super) fn mark_complete(&self) {
        if let Some(object) = &self.decoded {
            object.mark_complete();
        }
        self.blocks.inner.mark_complete();
    }

    pub(super) async fn warm(&self, range: Range<u64>) -> Result<bool> {
        match &self.decoded {
            Some(object) => Ok(object.warm(range).await?),
            None => Ok(false),
        }
    }
}

impl Blocks {
    fn peek(&self, mut range: Range<u64>, out: &mut Spans) -> bool {
        while !range.is_empty() {
            let Some((_, block)) = self.packed.find(range.start) else { return false };
            let Some(bytes) = self.memory.peek(&block.at) else { return false };
            let bytes = cut(block.start, &bytes, &range);
            range.start += bytes.len() as u64;
            out.push(Span::Bytes(bytes));
        }
        true
    }

    async fn get(&self, mut range: Range<u64>) -> Result<Spans> {
        let mut out = Spans::new();
        while !range.is_empty() {
            let (_, block) = self.packed.find(range.start).ok_or_else(|| {
                Error::failed(format!("{}: ends before {:#x}", self.identity().location, range.start))
            })?;
            let bytes = self.memory.get(block.at, || self.decode(block)).await?;
            let bytes = cut(block.start, &bytes, &range);
            range.start += bytes.len() as u64;
            out.push(Span::Bytes(bytes));
        }
        Ok(out)
    }

    async fn decode(&self, block: formats::container::Block) -> Result<Bytes> {
        let _turn = self.decoders.acquire().await.map_err(|_| Error::failed("no decoder is left"))?;
        // Boxed, because a compressed file may hold another one.
        let stored = Box::pin(self.inner.read_uncached(block.at..block.at + u64::from(block.len))).await?;
        let packed = self.packed.clone();
        let decoded = tokio::task::spawn_blocking(move || packed.decode(&block, &stored)).await;
        let decoded = decoded.map_err(|_| Error::failed("an unpacking task ended before its time"))?;
        decoded.map(Bytes::from).map_err(|error| {
            let Identity { location, .. } = self.identity();
            Error::failed(format!("{location}: the block at {:#x}: {error}", block.at))
        })
    }

    fn identity(&self) -> &Identity {
        self.inner.identity()
    }
}

/// The part of `range` that lies in the block of `bytes` which begins at `start`.
fn cut(start: u64, bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let from = usize::try_from(range.start - start).unwrap_or(usize::MAX).min(bytes.len());
    let to = usize::try_from(range.end - start).unwrap_or(usize::MAX).min(bytes.len());
    bytes.slice(from..to)
}
