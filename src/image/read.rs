//! Reading guest bytes.
//!
//! A read goes twice over its range at most. [`Image::try_read`] answers from what is at hand, without waiting. Where
//! that fails, [`Image::read`] first resolves the whole range (loading leaf tables on the way) and then fetches all
//! of it concurrently, so that a large cold read costs one round trip, not one for each cluster.

use super::Image;
use super::content::gather;
use super::waiting::Waiting;
use crate::error::{Error, Result};
use backends::cache::{Span, Spans};
use bytes::{Bytes, BytesMut};
use formats::{Extent, Kind, Resolved, Unit};
use futures_util::{StreamExt, TryStreamExt, stream};
use smallvec::SmallVec;
use std::ops::Range;

/// Consecutive guest bytes of a reply.
#[derive(Clone, Debug)]
pub enum Piece {
    /// In a local file or in memory.
    Span(Span),
    /// So many zeros.
    Zero(u64),
}

impl Piece {
    /// How many bytes it is.
    #[expect(clippy::len_without_is_empty, reason = "no piece is empty")]
    pub fn len(&self) -> u64 {
        match self {
            Piece::Span(span) => span.len(),
            Piece::Zero(len) => *len,
        }
    }
}

/// The pieces of one read, in order.
pub type Pieces = SmallVec<[Piece; 4]>;

/// How many fetches one read has under way at a time.
const CONCURRENT: usize = 16;

/// A stretch of a read that is fetched as one.
enum Part {
    /// An extent that is stored as it is, or zero.
    Plain(Extent),
    /// A stretch of one layer that is kept as the disk has it: compressed units, and stored clusters where those are kept too.
    Kept { layer: usize, range: Range<u64>, units: Vec<Unit> },
}

impl Image {
    /// Appends to `out` where the bytes `at..at + len` are, if all of them are at hand; else leaves `out` as it was
    /// and returns false. The range must lie inside the disk. Neither waits nor allocates.
    pub fn try_read(&self, at: u64, len: u64, out: &mut Pieces) -> Result<bool> {
        let before = out.len();
        let answered = self.peek(at, len, out);
        if !matches!(answered, Ok(true)) {
            out.truncate(before);
        }
        answered
    }

    fn peek(&self, mut at: u64, mut len: u64, out: &mut Pieces) -> Result<bool> {
        let mut spans = Spans::new();
        // What the top layer holds no parent changes: it need not be found out unit by unit.
        if self.layers.first().is_some_and(|top| top.peek_whole(at..at + len, &mut spans)) {
            push_spans(out, &mut spans);
            return Ok(true);
        }
        while len > 0 {
            let resolved = self.chain.resolve(at, len, self).map_err(|error| self.parse_error(error))?;
            let Resolved::Extent(extent) = resolved else { return Ok(false) };
            let layer = self.layer(extent.layer)?;
            match extent.kind {
                Kind::Zero | Kind::Unallocated => push_zero(out, extent.len),
                Kind::Data { .. }
                    if layer.peek_stored(extent.start..extent.start + extent.len, &mut spans) =>
                {
                    push_spans(out, &mut spans);
                }
                Kind::Data { file, at: stored } => {
                    let file = layer.files.file(file)?;
                    let (inside, beyond) = split_at_end(stored, extent.len, file.len());
                    if !inside.is_empty() && !file.peek(inside, &mut spans) {
                        return Ok(false);
                    }
                    push_spans(out, &mut spans);
                    push_zero(out, beyond);
                }
                Kind::Compressed(unit) => {
                    let range = extent.start..extent.start + extent.len;
                    if !layer.peek_decoded(&unit, range, &mut spans) {
                        return Ok(false);
                    }
                    push_spans(out, &mut spans);
                }
            }
            at += extent.len;
            len -= extent.len;
        }
        Ok(true)
    }

    /// Where the bytes `at..at + len` are, fetched if need be. The range must lie inside the disk. Dropping the
    /// future abandons the read; fetches that other readers may wait for go on.
    pub async fn read(&self, at: u64, len: u64) -> Result<Pieces> {
        let _waiting = Waiting::new(self);
        let parts = self.resolve(at, len).await?;
        let fetched: Vec<Pieces> =
            stream::iter(parts).map(|part| self.fetch(part)).buffered(CONCURRENT).try_collect().await?;
        Ok(fetched.into_iter().flatten().collect())
    }

    /// The bytes `at..at + len` in memory, after the cache's disk did not give some of them: those are fetched again. The
    /// range must lie inside the disk.
    pub async fn reread(&self, at: u64, len: u64) -> Result<Bytes> {
        for part in self.resolve(at, len).await? {
            match part {
                Part::Plain(Extent { kind: Kind::Data { file, at }, len, layer, .. }) => {
                    let file = self.layer(layer)?.files.file(file)?;
                    file.spoil(split_at_end(at, len, file.len()).0);
                }
                Part::Plain(_) => {}
                Part::Kept { layer, range, .. } => self.layer(layer)?.spoil_decoded(&range),
            }
        }
        let location = self.location().to_string();
        let mut out = BytesMut::new();
        for piece in self.read(at, len).await? {
            match piece {
                Piece::Zero(len) => out.resize(out.len() + usize::try_from(len).unwrap_or(0), 0),
                Piece::Span(span) => {
                    out.extend_from_slice(&gather(&Spans::from_iter([span]), &location).await?);
                }
            }
        }
        Ok(out.freeze())
    }

    /// Makes the bytes `at..at + len` local, and returns how many of them now are; the others found no room. The
    /// range must lie inside the disk.
    pub async fn warm(&self, at: u64, len: u64) -> Result<u64> {
        let parts = self.resolve(at, len).await?;
        let warmed = stream::iter(parts).map(|part| self.warm_part(part)).buffer_unordered(CONCURRENT);
        warmed.try_fold(0, |sum, len| async move { Ok(sum + len) }).await
    }

    async fn warm_part(&self, part: Part) -> Result<u64> {
        let (local, len) = match part {
            Part::Plain(Extent { kind: Kind::Data { file, at }, len, layer, .. }) => {
                let file = self.layer(layer)?.files.file(file)?;
                let (inside, _) = split_at_end(at, len, file.len());
                (inside.is_empty() || file.warm(inside).await?, len)
            }
            Part::Plain(extent) => (true, extent.len),
            Part::Kept { layer, range, .. } => {
                let len = range.end - range.start;
                (self.layer(layer)?.warm_decoded(range).await?, len)
            }
        };
        Ok(if local { len } else { 0 })
    }

    /// The parts that `at..at + len` is made of.
    async fn resolve(&self, at: u64, len: u64) -> Result<Vec<Part>> {
        let mut parts = Vec::new();
        let mut next = at;
        while next < at + len {
            let extent = self.extent(next, at + len - next).await?;
            next += extent.len;
            let unit = match extent.kind {
                Kind::Compressed(unit) => Some(unit),
                Kind::Data { .. } if self.layer(extent.layer)?.keeps_stored() => None,
                _ => {
                    parts.push(Part::Plain(extent));
                    continue;
                }
            };
            match parts.last_mut() {
                Some(Part::Kept { layer, range, units })
                    if *layer == extent.layer && range.end == extent.start =>
                {
                    range.end = next;
                    units.extend(unit);
                }
                _ => {
                    let range = extent.start..next;
                    parts.push(Part::Kept { layer: extent.layer, range, units: unit.into_iter().collect() });
                }
            }
        }
        Ok(parts)
    }

    /// What is at guest offset `at`, at most `max` bytes of it. Reads the leaf tables this takes.
    pub async fn extent(&self, at: u64, max: u64) -> Result<Extent> {
        loop {
            match self.chain.resolve(at, max, self).map_err(|error| self.parse_error(error))? {
                Resolved::Extent(extent) => return Ok(extent),
                Resolved::Table { layer, table } => {
                    self.layer(layer)?.files.table(table).await?;
                }
            }
        }
    }

    async fn fetch(&self, part: Part) -> Result<Pieces> {
        let mut out = Pieces::new();
        let mut spans = Spans::new();
        match part {
            Part::Plain(Extent { kind: Kind::Data { file, at }, len, layer, .. }) => {
                let file = self.layer(layer)?.files.file(file)?;
                let (inside, beyond) = split_at_end(at, len, file.len());
                if !inside.is_empty() {
                    file.get(inside, &mut spans).await?;
                }
                push_spans(&mut out, &mut spans);
                push_zero(&mut out, beyond);
            }
            Part::Plain(extent) => push_zero(&mut out, extent.len),
            Part::Kept { layer, range, units } => {
                self.layer(layer)?.get_decoded(&units, range, &mut spans).await?;
                push_spans(&mut out, &mut spans);
            }
        }
        Ok(out)
    }

    pub(super) fn parse_error(&self, error: formats::FormatError) -> Error {
        let at = match error {
            formats::FormatError::Damaged { at, .. } => Some(at),
            _ => None,
        };
        Error { at, ..Error::failed(format!("{}: {error}", self.location())) }
    }
}

/// Splits `len` stored bytes at `at` into the range inside a file of `file_len` bytes and the count past its end.
fn split_at_end(at: u64, len: u64, file_len: u64) -> (Range<u64>, u64) {
    let end = at.saturating_add(len).min(file_len);
    let start = at.min(end);
    (start..end, len - (end - start))
}

fn push_zero(out: &mut Pieces, len: u64) {
    match out.last_mut() {
        _ if len == 0 => {}
        Some(Piece::Zero(last)) => *last += len,
        _ => out.push(Piece::Zero(len)),
    }
}

fn push_spans(out: &mut Pieces, spans: &mut Spans) {
    out.extend(spans.drain(..).map(Piece::Span));
}
