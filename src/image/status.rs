//! What the disk holds, without reading it: for `map`, block status and export.

use super::Image;
use crate::error::Result;
use formats::{Extent, Format, Kind};

/// A stretch of the disk with one status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Guest offset of the first byte.
    pub start: u64,
    /// Length in bytes.
    pub len: u64,
    /// Which layer decides the content: 0 is the image itself, 1 its parent, and so on.
    pub layer: usize,
    /// Whether any layer holds it.
    pub present: bool,
    /// Whether it is known to read as zeros.
    pub zero: bool,
    /// Whether it has to be read to know its content.
    pub data: bool,
    /// Whether it is stored compressed.
    pub compressed: bool,
}

/// Walks the disk's status from an offset on; adjacent equal stretches come merged.
#[derive(Debug)]
pub struct Walk<'a> {
    image: &'a Image,
    at: u64,
    end: u64,
    ahead: Option<Stretch>,
}

impl Image {
    /// The status of `start..end`, which lies inside the disk. Reads leaf tables, no data.
    pub fn walk(&self, start: u64, end: u64) -> Walk<'_> {
        Walk { image: self, at: start, end, ahead: None }
    }
}

impl Walk<'_> {
    /// The next stretch; `None` at the end. An error ends the walk where the image's tables cannot be read.
    pub async fn next(&mut self) -> Result<Option<Stretch>> {
        let mut current = match self.ahead.take() {
            Some(stretch) => stretch,
            None => match self.single().await? {
                Some(stretch) => stretch,
                None => return Ok(None),
            },
        };
        while let Some(next) = self.single().await? {
            if !current.same_status(&next) {
                self.ahead = Some(next);
                break;
            }
            current.len += next.len;
        }
        Ok(Some(current))
    }

    /// The next stretch as the chain tells it, not merged with its neighbours.
    async fn single(&mut self) -> Result<Option<Stretch>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let extent = self.image.extent(self.at, self.end - self.at).await?;
        let stretch = self.image.stretch(extent)?;
        self.at += stretch.len;
        Ok(Some(stretch))
    }
}

impl Image {
    /// The status of `extent`, or of its first part.
    fn stretch(&self, extent: Extent) -> Result<Stretch> {
        let mut stretch = Stretch::from(extent);
        let layer = &self.layer(extent.layer)?.files;
        if let Kind::Data { file, at } = extent.kind
            && layer.layer.info().follows_file
        {
            let (stored, end) = layer.file(file)?.stored(at);
            stretch.len = stretch.len.min(end.saturating_sub(at)).max(1);
            stretch.zero = !stored;
            // Only where there is no format at all does a hole count as "no data".
            stretch.data = stored || layer.layer.format() != Format::Raw;
        }
        Ok(stretch)
    }
}

impl Stretch {
    fn same_status(&self, other: &Stretch) -> bool {
        (self.layer, self.present, self.zero, self.data, self.compressed)
            == (other.layer, other.present, other.zero, other.data, other.compressed)
    }
}

impl From<Extent> for Stretch {
    fn from(extent: Extent) -> Self {
        let Extent { start, len, layer, kind } = extent;
        let present = kind != Kind::Unallocated;
        let zero = matches!(kind, Kind::Zero | Kind::Unallocated);
        let compressed = matches!(kind, Kind::Compressed(_));
        Stretch { start, len, layer, present, zero, data: !zero, compressed }
    }
}
