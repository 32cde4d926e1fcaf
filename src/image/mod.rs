//! A virtual disk: a chain of layers over sources, opened by location and read by guest offset.
//!
//! [`Image`] is where `formats` (what the bytes mean) and `backends` (where they are) meet. Reads are answered with
//! [`Piece`]s that say where bytes are, so that what is in a local file is never copied in user space.

mod container;
mod content;
mod decode;
mod flow;
mod gate;
mod json_name;
mod layer;
mod open;
mod packed;
mod read;
mod status;
mod stored;
mod waiting;
mod workers;

pub(crate) use content::gather;
pub use gate::Gate;
pub use open::OpenOptions;
pub use read::{Piece, Pieces};
pub use status::{Coverage, Stretch, Walk};
pub(crate) use waiting::calm;

use crate::error::{Error, Result};
use backends::{Identity, Location};
use formats::{Chain, Extent, Kind, Runs, TableCache, TableRef};
use layer::CachedLayer;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

/// An open image with its parents. Cheap to share; all methods take `&self`.
#[derive(Debug)]
pub struct Image {
    location: Location,
    chain: Chain,
    layers: Vec<CachedLayer>,
    /// Reads under way that nothing local answered.
    waiting: AtomicUsize,
}

impl Image {
    /// Opens the image at `location` and every parent it needs. Fails if any of them is missing, damaged, or not
    /// let through by the gate; nothing is served of an image that is not whole.
    pub async fn open(location: &Location, options: &OpenOptions) -> Result<Image> {
        let files = open::open_chain(location, options).await?;
        let chain = Chain::new(files.iter().map(|files| files.layer.clone()).collect())
            .map_err(|error| Error::failed(format!("{location}: {error}")))?;
        let mut layers = Vec::with_capacity(files.len());
        for files in files {
            layers.push(CachedLayer::new(files, options.store.as_ref()).await?);
        }
        Ok(Image { location: location.clone(), chain, layers, waiting: AtomicUsize::new(0) })
    }

    /// Where the image is.
    pub fn location(&self) -> &Location {
        &self.location
    }

    /// Size of the virtual disk in bytes.
    pub fn virtual_size(&self) -> u64 {
        self.chain.virtual_size()
    }

    /// The layers' locations and parsers, top first.
    pub fn layers(&self) -> impl Iterator<Item = (&Location, &dyn formats::Layer)> {
        self.layers.iter().map(|layer| (&layer.files.location, &*layer.files.layer))
    }

    /// Identities of every file the disk is made of: the top image first, each layer's extents after it. The disk's
    /// content is fixed by these together.
    pub fn identities(&self) -> impl Iterator<Item = &Identity> {
        self.layers.iter().flat_map(|layer| layer.files.files.iter().map(content::Content::identity))
    }

    /// Whether its files are local, so that nothing of it goes through the cache but what is compressed.
    pub fn is_local(&self) -> bool {
        self.layers.iter().all(|layer| layer.files.is_local())
    }

    /// Whether something of it can go to a cache.
    pub fn has_cache(&self) -> bool {
        self.layers.iter().any(CachedLayer::has_cache)
    }

    /// How many bytes of it come into the cache per second, at present: in this process, by way of this opening of it. Takes
    /// next to no time.
    pub fn rate(&self) -> u64 {
        self.layers.iter().map(CachedLayer::rate).sum()
    }

    /// Whether the cache had nothing of the image's own file when it was opened.
    pub fn is_fresh(&self) -> bool {
        self.layers
            .first()
            .and_then(|layer| layer.files.files.first())
            .is_some_and(content::Content::is_fresh)
    }

    /// Notes that the cache has all that is needed of the image, so that the next opening asks no server, if that is so.
    /// Says whether it is.
    pub async fn complete(self: &Arc<Self>) -> Result<bool> {
        let Coverage { data, local } = self.coverage().await?;
        if local < data {
            return Ok(false);
        }
        let image = self.clone();
        let marked =
            tokio::task::spawn_blocking(move || image.layers.iter().for_each(CachedLayer::mark_complete));
        marked.await.map_err(|_| Error::failed("saving the cache ended before its time"))?;
        Ok(true)
    }

    /// The image's own format.
    pub fn format(&self) -> formats::Format {
        self.layers.first().map_or(formats::Format::Raw, |layer| layer.files.layer.format())
    }

    /// What was gone through to reach the top image, in words for people: an archive's member, a compression.
    pub fn through(&self) -> &[String] {
        self.layers.first().map_or(&[], |layer| &layer.files.through)
    }

    /// The identity of every file the disk is made of, as one text: equal pins, equal content.
    pub fn pin(&self) -> String {
        let identities: Vec<_> = self.identities().collect();
        serde_json::to_string(&identities).unwrap_or_default()
    }

    /// Fails if what `extent` refers to begins past the end of its file: only the last piece of an image may be cut
    /// short, so that is damage.
    pub fn bounds(&self, extent: &Extent) -> Result<()> {
        let (file, at) = match extent.kind {
            Kind::Data { file, at } => (file, at),
            Kind::Compressed(unit) => (unit.file, unit.at),
            Kind::Zero | Kind::Unallocated => return Ok(()),
        };
        let file = self.layer(extent.layer)?.files.file(file)?;
        if at < file.len() {
            return Ok(());
        }
        Err(Error::failed(format!(
            "guest offset {:#x} is mapped to {at:#x} of {}, which ends at {:#x}",
            extent.start,
            file.identity().location,
            file.len()
        )))
    }

    fn layer(&self, index: usize) -> Result<&CachedLayer> {
        self.layers
            .get(index)
            .ok_or_else(|| Error::failed(format!("{}: there is no layer {index}", self.location)))
    }
}

impl TableCache for Image {
    fn table(&self, layer: usize, table: &TableRef) -> Option<Arc<Runs>> {
        self.layers.get(layer)?.files.peek_table(table)
    }
}
