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
    /// Whether it can be read without asking a server. Told only by [`Image::walk_local`].
    pub local: bool,
}

/// How much of a disk is on this machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Bytes that are not known to be zero.
    pub data: u64,
    /// How many of them can be read without asking a server.
    pub local: u64,
}

/// Walks the disk's status from an offset on; adjacent equal stretches come merged.
#[derive(Debug)]
pub struct Walk<'a> {
    image: &'a Image,
    at: u64,
    end: u64,
    ahead: Option<Stretch>,
    /// Whether what is local and what is not are told apart.
    locality: bool,
}

impl Image {
    /// The status of `start..end`, which lies inside the disk. Reads leaf tables, no data.
    pub fn walk(&self, start: u64, end: u64) -> Walk<'_> {
        Walk { image: self, at: start, end, ahead: None, locality: false }
    }

    /// As [`walk`](Self::walk), telling also what is local.
    pub async fn walk_local(&self, start: u64, end: u64) -> Walk<'_> {
        for layer in &self.layers {
            layer.take_stock().await;
        }
        Walk { locality: true, ..self.walk(start, end) }
    }

    /// How much of the disk is local. Reads every leaf table, which may mean asking a server for it.
    pub async fn coverage(&self) -> Result<Coverage> {
        let mut coverage = Coverage::default();
        let mut walk = self.walk_local(0, self.virtual_size()).await;
        while let Some(stretch) = walk.next().await? {
            if !stretch.zero {
                coverage.data += stretch.len;
                coverage.local += if stretch.local { stretch.len } else { 0 };
            }
        }
        Ok(coverage)
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
        // A disk may have millions of stretches that nothing waits for, and others are to be served meanwhile.
        tokio::task::consume_budget().await;
        let extent = self.image.extent(self.at, self.end - self.at).await?;
        let mut stretch = self.image.stretch(extent)?;
        if self.locality {
            if stretch.compressed {
                self.image.layer(stretch.layer)?.expect_decoded().await?;
            }
            let (local, len) = self.image.locality(&Extent { len: stretch.len, ..extent })?;
            stretch = Stretch { local: local || stretch.zero, len, ..stretch };
        }
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

impl Image {
    /// Whether `extent` is local, and for how many of its bytes that holds.
    fn locality(&self, extent: &Extent) -> Result<(bool, u64)> {
        let layer = self.layer(extent.layer)?;
        Ok(match extent.kind {
            Kind::Zero | Kind::Unallocated => (true, extent.len),
            Kind::Compressed(_) => layer.decoded_locality(&(extent.start..extent.start + extent.len)),
            Kind::Data { file, at } => {
                let mut most = extent.len;
                if layer.keeps_stored() {
                    let (local, len) = layer.decoded_locality(&(extent.start..extent.start + extent.len));
                    if local {
                        return Ok((true, len));
                    }
                    // It may also be where it was read to find out what the image is.
                    most = len;
                }
                let file = layer.files.file(file)?;
                match file.len().saturating_sub(at).min(most) {
                    // Past the file's end are zeros.
                    0 => (true, most),
                    inside => match file.locality(at..at + inside) {
                        (true, len) if len == inside => (true, most),
                        locality => locality,
                    },
                }
            }
        })
    }
}

impl Stretch {
    fn same_status(&self, other: &Stretch) -> bool {
        Stretch { start: other.start, len: other.len, ..*self } == *other
    }
}

impl From<Extent> for Stretch {
    fn from(extent: Extent) -> Self {
        let Extent { start, len, layer, kind } = extent;
        let present = kind != Kind::Unallocated;
        let zero = matches!(kind, Kind::Zero | Kind::Unallocated);
        let compressed = matches!(kind, Kind::Compressed(_));
        Stretch { start, len, layer, present, zero, data: !zero, compressed, local: false }
    }
}
