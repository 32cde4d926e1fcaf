//! One layer of an image with its files: reads leaf tables, and serves compressed units decoded.

use super::content::{self, Content};
use super::decode::{self, DecodeFill};
use super::flow::Flow;
use crate::error::{Error, Result};
use crate::memo::Memo;
use backends::Location;
use backends::cache::{Key, Object, Span, Spans, Store};
use bytes::Bytes;
use formats::{FileIndex, Layer, Located, Run, Runs, TableRef, Unit};
use std::ops::Range;
use std::sync::Arc;
use tokio::sync::OnceCell;

/// Decoded leaf tables kept in memory for each layer, in bytes.
const TABLES: usize = 16 << 20;
/// Decoded units kept in memory for each layer, in bytes: all there is without a cache on disk, and beside it what
/// keeps a unit larger than a cache block from being inflated once for each of its blocks.
const UNITS: usize = 32 << 20;
/// Smallest and largest block of decoded data in the cache, in bytes.
const SMALLEST_BLOCK: u64 = 4 << 10;
const LARGEST_BLOCK: u64 = 2 << 20;

/// What a layer is read from: the parsed map, its files, and what has been decoded of both.
#[derive(Debug)]
pub(crate) struct LayerFiles {
    /// Where the image is.
    pub(crate) location: Location,
    /// The parsed map.
    pub(crate) layer: Arc<dyn Layer>,
    /// Which of the disks in the file this is: the active one, or a snapshot.
    view: String,
    /// What a child records to know this layer again.
    pub(crate) content_id: Option<[u8; 16]>,
    /// The files, by [`formats::FileIndex`].
    pub(crate) files: Vec<Content>,
    /// What was gone through to reach the first file.
    pub(crate) through: Vec<String>,
    tables: Memo<TableRef, Arc<Runs>>,
    pub(super) units: Memo<Unit, Bytes>,
}

/// A layer and the cache of its decoded units, if it can have compressed data and there is a cache.
///
/// Clusters that are stored as they are are kept among the decoded ones, as the disk has them, if they are as large as blocks
/// of the files they come from: so one look says whether a part of the disk is there, whatever it is a mixture of.
#[derive(Debug)]
pub(crate) struct CachedLayer {
    pub(crate) files: Arc<LayerFiles>,
    /// Where decoded units are kept. Of a layer whose files are local it is made when the first of them is wanted: most have
    /// none, and then nothing of them is in the cache.
    decoded: OnceCell<Arc<Object<DecodeFill>>>,
    keep: Option<Keep>,
    /// Whether a block that is decoded is one unit, with nothing in it that the layer holds in another way.
    whole_units: bool,
}

/// How decoded units are kept.
#[derive(Debug)]
struct Keep {
    store: Store,
    /// Bytes in a block of the cache.
    block: u32,
    /// Whether clusters that are stored as they are are kept as well.
    stored: bool,
}

impl Keep {
    async fn object(&self, files: &Arc<LayerFiles>) -> Result<Arc<Object<DecodeFill>>> {
        let (files_of, flow) = (files.clone(), Flow::default());
        let fill = DecodeFill { files: files_of, block: self.block.into(), stored: self.stored, flow };
        let size = files.layer.virtual_size();
        Ok(self.store.object(&files.decoded_key(), size, self.block, fill).await?)
    }
}

impl LayerFiles {
    pub(crate) fn new(
        location: Location,
        layer: Arc<dyn Layer>,
        view: String,
        content_id: Option<[u8; 16]>,
        files: Vec<Content>,
        through: Vec<String>,
    ) -> Self {
        let (tables, units) = (Memo::new(TABLES), Memo::new(UNITS));
        LayerFiles { location, layer, view, content_id, files, through, tables, units }
    }

    /// The file that the parser calls `index`.
    pub(crate) fn file(&self, index: FileIndex) -> Result<&Content> {
        self.files.get(usize::from(index.0)).ok_or_else(|| {
            Error::failed(format!("{}: the image refers to file {} of itself", self.location, index.0))
        })
    }

    /// Whether all of them are local.
    pub(crate) fn is_local(&self) -> bool {
        self.files.iter().all(Content::is_local)
    }

    /// The decoded runs of `table`, if they are in memory.
    pub(crate) fn peek_table(&self, table: &TableRef) -> Option<Arc<Runs>> {
        self.tables.peek(table)
    }

    /// The runs of `table`, read and decoded if need be.
    pub(crate) async fn table(&self, table: TableRef) -> Result<Arc<Runs>> {
        self.tables
            .get(table, || async {
                let bytes = self.file(table.file)?.read(table.at, table.len).await?;
                let runs = self.layer.decode(table, &bytes).map_err(|error| self.parse_error(error))?;
                Ok(Arc::new(runs))
            })
            .await
    }

    /// The run of this layer alone that covers `at`, at most `max` bytes of it.
    pub(super) async fn run(&self, at: u64, max: u64) -> Result<Run> {
        let run = match self.layer.locate(at).map_err(|error| self.parse_error(error))? {
            Located::Run(run) => run.slice(at, max),
            Located::Table(table) => self.table(table).await?.find(at, max),
        };
        run.ok_or_else(|| Error::failed(format!("{}: no run covers guest offset {at:#x}", self.location)))
    }

    /// What decoded bytes of this layer are kept under: everything they depend on, and what blocks there are. A block that is
    /// neither a unit nor a stored cluster is not among them, so that one which is there can be read without looking at a table
    /// ([`CachedLayer::peek_whole`]). Who keeps anything but bytes of the disk in a block has to change the name.
    fn decoded_key(&self) -> Key {
        let others: Vec<_> = self.files.iter().skip(1).map(Content::identity).collect();
        let format = self.layer.format();
        let place =
            if self.through.is_empty() { String::new() } else { format!(" at {}", self.files[0].place()) };
        let part = format!("decoded units of {format}{place}, {} {others:?}", self.view);
        Key { identity: self.files[0].identity().clone(), part }
    }

    pub(crate) fn parse_error(&self, error: formats::FormatError) -> Error {
        Error::failed(format!("{}: {error}", self.location))
    }
}

impl CachedLayer {
    /// Adds to `files` a place in `store` for decoded units, if the layer can have any.
    pub(crate) async fn new(files: Arc<LayerFiles>, store: Option<&Store>) -> Result<Self> {
        let info = files.layer.info();
        let block = info.cluster_size.unwrap_or(SMALLEST_BLOCK).clamp(SMALLEST_BLOCK, LARGEST_BLOCK);
        let block = u32::try_from(block.next_power_of_two()).unwrap_or(1 << 16);
        let whole_units = info.aligned_units && info.cluster_size == Some(block.into());
        let remote = files.files.iter().all(Content::is_remote);
        let stored = whole_units && info.whole_clusters && block == content::BLOCK && remote;
        let keep =
            store.filter(|_| info.compressed).map(|store| Keep { store: store.clone(), block, stored });
        let decoded = match &keep {
            Some(keep) if !files.is_local() => OnceCell::new_with(Some(keep.object(&files).await?)),
            _ => OnceCell::new(),
        };
        Ok(CachedLayer { files, decoded, keep, whole_units })
    }

    /// Where decoded units are kept, made if need be; none without a cache.
    async fn decoded(&self) -> Result<Option<&Arc<Object<DecodeFill>>>> {
        let Some(keep) = &self.keep else { return Ok(None) };
        Ok(Some(self.decoded.get_or_try_init(async || keep.object(&self.files).await).await?))
    }

    /// Somebody is going to ask what is local of a compressed unit.
    pub(crate) async fn expect_decoded(&self) -> Result<()> {
        if !self.decoded.initialized()
            && let Some(object) = self.decoded().await?
        {
            object.take_stock().await;
        }
        Ok(())
    }

    /// Whether clusters that are stored as they are are kept where decoded units are.
    pub(crate) fn keeps_stored(&self) -> bool {
        self.keep.as_ref().is_some_and(|keep| keep.stored)
    }

    /// Where the guest bytes of `range` are, if all of them are in this layer and kept in the cache as the disk has them; else
    /// appends nothing and says false. Looks at no table. Does not wait.
    pub(crate) fn peek_whole(&self, range: Range<u64>, out: &mut Spans) -> bool {
        self.whole_units && self.decoded.get().is_some_and(|object| object.peek(range, out))
    }

    /// Where the decoded guest bytes of `range`, which lies inside `unit`, are at hand. Does not wait.
    pub(crate) fn peek_decoded(&self, unit: &Unit, range: Range<u64>, out: &mut Spans) -> bool {
        match self.decoded.get() {
            Some(object) => object.peek(range, out),
            // It is looked for there by who waits.
            None if self.keep.is_some() => false,
            None => match self.files.units.peek(unit) {
                Some(bytes) => {
                    out.push(Span::Bytes(decode::slice(unit, &bytes, range)));
                    true
                }
                None => false,
            },
        }
    }

    /// Where the guest bytes of `range`, which are stored as they are, are at hand as the disk has them. Does not wait.
    pub(crate) fn peek_stored(&self, range: Range<u64>, out: &mut Spans) -> bool {
        self.decoded.get().is_some_and(|object| object.source().stored && object.peek(range, out))
    }

    /// Decodes what is missing of the guest range `range`, and says where it is. Without a cache, `units` cover it without a
    /// gap; with one, stored clusters may be among them where those are kept.
    pub(crate) async fn get_decoded(&self, units: &[Unit], range: Range<u64>, out: &mut Spans) -> Result<()> {
        let Some(object) = self.decoded().await? else {
            out.extend(decode::units(&self.files, units, &range).await?.into_iter().map(Span::Bytes));
            return Ok(());
        };
        Ok(object.get(range, out).await?)
    }

    /// Whether something of it can go to the cache.
    pub(crate) fn has_cache(&self) -> bool {
        self.keep.is_some() || self.files.files.iter().any(Content::has_cache)
    }

    /// How many bytes of it come into the cache per second, at present.
    pub(crate) fn rate(&self) -> u64 {
        let files = self.files.files.iter().map(Content::rate).sum();
        self.decoded.get().map_or(0, |object| object.source().flow.rate()).saturating_add(files)
    }

    /// Finds out what earlier processes left in the cache, for the localities of this layer.
    pub(crate) async fn take_stock(&self) {
        for file in &self.files.files {
            file.take_stock().await;
        }
        if let Some(object) = self.decoded.get() {
            object.take_stock().await;
        }
    }

    /// Whether the first decoded byte of `range`, which is not empty, is on this machine, and for how many of its bytes
    /// the same holds.
    pub(crate) fn decoded_locality(&self, range: &Range<u64>) -> (bool, u64) {
        self.decoded.get().map_or((false, range.end - range.start), |object| object.locality(range))
    }

    /// Notes that the cache has all that is needed of this layer. Waits for the disk.
    pub(crate) fn mark_complete(&self) {
        if let Some(object) = self.decoded.get() {
            object.mark_complete();
        }
        self.files.files.iter().for_each(Content::mark_complete);
    }

    /// The cache did not give the decoded bytes of `range`: they are made again at the next use.
    pub(crate) fn spoil_decoded(&self, range: &Range<u64>) {
        if let Some(object) = self.decoded.get() {
            object.spoil(range);
        }
    }

    /// Makes the decoded bytes of `range` local. Says whether they are.
    pub(crate) async fn warm_decoded(&self, range: Range<u64>) -> Result<bool> {
        match self.decoded().await? {
            Some(object) => Ok(object.warm(range).await?),
            None => Ok(false),
        }
    }
}
