//! Decodes compressed units: off the reactor, in parallel.

use super::flow::Flow;
use super::layer::LayerFiles;
use super::stored;
use super::workers;
use crate::error::{Error, Result};
use backends::Buffer;
use backends::cache::{Fill, Pieces};
use bytes::Bytes;
use formats::{Codec, FileIndex, Inflater, Mapping, Unit};
use futures_util::FutureExt;
use futures_util::future::try_join_all;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

/// Least decoded bytes that are worth a task of their own.
const LEAST_WORK: u32 = 128 << 10;

/// Decoded bytes that are made in one piece at most, in bytes, where no unit is larger. Each is a thread's work and is written
/// by itself: as little as a quarter costs a tenth more of the processors, as much as all of a fill is nobody else's to do.
const LARGEST_PIECE: u64 = 1 << 20;

/// Fills the cache's decoded blocks of one layer. Blocks in which the layer holds nothing that is kept there are left out, and
/// in others what it holds in another way is left zero: nobody looks it up there.
#[derive(Debug)]
pub(crate) struct DecodeFill {
    pub(super) files: Arc<LayerFiles>,
    /// Bytes in a block of the cache.
    pub(super) block: u64,
    /// Whether clusters that are stored as they are are kept as well. Each is a block then.
    pub(super) stored: bool,
    pub(super) flow: Flow,
}

impl Fill for DecodeFill {
    async fn fill(&self, range: Range<u64>) -> std::result::Result<Pieces, backends::Error> {
        let pieces = self.pieces(range).await?;
        self.flow.count(&pieces);
        Ok(pieces)
    }
}

impl DecodeFill {
    async fn pieces(&self, range: Range<u64>) -> Result<Pieces> {
        let files = &self.files;
        let mut units = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let run = files.run(at, range.end - at).await?;
            let end = run.end().min(range.end);
            match run.mapping {
                Mapping::Compressed(unit) => units.push(unit),
                Mapping::Data { file, at: place } if self.stored => {
                    units.extend(clusters(file, place, at..end, self.block));
                }
                _ => {}
            }
            at = end;
        }
        units.dedup();
        let (mut fetched, mut missing) = (HashMap::new(), Vec::new());
        for unit in units.iter().filter(|unit| lies_in(unit, &range) && !stored::is_local(files, unit)) {
            match cached(files, unit).await? {
                Some(bytes) => drop(fetched.insert(*unit, bytes)),
                None => missing.push(*unit),
            }
        }
        fetched.extend(stored::fetch(files, &missing).await?);
        let pieces: Vec<_> = pieces(units, &range, self.block)
            .into_iter()
            .map(async |(range, units)| {
                Ok::<_, Error>((range.start, block(files, units, range, &fetched).await?))
            })
            .collect();
        try_join_all(pieces).await
    }
}

/// What is stored of `unit`, if it is not compressed and the cache has it as it is in its file: from the opening of the image, or
/// from whoever reads it as another format.
async fn cached(files: &LayerFiles, unit: &Unit) -> Result<Option<Bytes>> {
    match unit.codec {
        Codec::Stored => files.file(unit.file)?.read_cached(unit.at..unit.at + u64::from(unit.len)).await,
        _ => Ok(None),
    }
}

/// The clusters of `block` bytes that hold `range`, which lies at `place` of `file`, as units.
fn clusters(file: FileIndex, place: u64, range: Range<u64>, block: u64) -> impl Iterator<Item = Unit> {
    range.clone().step_by(usize::try_from(block).unwrap_or(usize::MAX)).map(move |guest| {
        let len = u32::try_from(block.min(range.end - guest)).unwrap_or(u32::MAX);
        Unit { codec: Codec::Stored, file, at: place + (guest - range.start), len, guest, decoded: len }
    })
}

/// Splits `range` into stretches of whole blocks of `block` bytes with the units that each has a part of; blocks without any
/// are in none. `units` are in the order of the disk and have all a part in the range.
fn pieces(units: Vec<Unit>, range: &Range<u64>, block: u64) -> Vec<(Range<u64>, Vec<Unit>)> {
    let mut pieces: Vec<(Range<u64>, Vec<Unit>)> = Vec::new();
    for unit in units {
        let start = (unit.guest / block * block).max(range.start);
        let end = (unit.guest + u64::from(unit.decoded)).next_multiple_of(block).min(range.end);
        match pieces.last_mut() {
            Some((last, units))
                if start < last.end || start == last.end && end - last.start <= LARGEST_PIECE =>
            {
                last.end = last.end.max(end);
                units.push(unit);
            }
            _ => pieces.push((start..end, vec![unit])),
        }
    }
    pieces
}

/// The decoded bytes of `range`, in one piece of memory: those of `units`, which are in the order of the disk, and zeros where
/// none of them is. Of some of them `fetched` has what is stored.
async fn block(
    files: &Arc<LayerFiles>,
    units: Vec<Unit>,
    range: Range<u64>,
    fetched: &HashMap<Unit, Bytes>,
) -> Result<Bytes> {
    let gaps = gaps(&units, &range);
    let (whole, cut): (Vec<_>, Vec<_>) = units.into_iter().partition(|unit| lies_in(unit, &range));
    let (mut stored, mut rest) = (Vec::new(), Vec::new());
    for unit in whole {
        match fetched.get(&unit) {
            Some(bytes) => stored.push((unit, bytes.clone())),
            None => rest.push(unit),
        }
    }
    // Those that other blocks want a part of as well are decoded by themselves, and remembered.
    let cut = remembered(files, &cut, &range).await?;
    let length =
        usize::try_from(range.end - range.start).map_err(|_| Error::failed("a fill beyond memory"))?;
    let layer = files.clone();
    let first = workers::run(move || {
        // Not before there is a thread for it: what waits for one takes no memory.
        let mut block = Block { buffer: Buffer::any(length), start: range.start, end: range.end };
        for gap in gaps {
            block.part(gap).fill(0);
        }
        for (unit, bytes) in &cut {
            let part = block.start.max(unit.guest)..block.end.min(unit.guest + u64::from(unit.decoded));
            block.part(part.clone()).copy_from_slice(&slice(unit, bytes, part));
        }
        block.inflate(stored)?;
        let mut made = Ok(());
        let left = stored::resident(&layer, rest, |unit, stored| {
            if made.is_ok() {
                made = inflate(unit, stored, block.unit(unit));
            }
        });
        made.map(|()| (block, left))
    });
    let (mut block, left) = first.await.ok_or_else(ended)?.map_err(|error| files.parse_error(error))?;
    if left.is_empty() {
        return Ok(block.buffer.freeze());
    }
    let fetched = stored::fetch(files, &left).await?;
    let second = workers::run(move || block.inflate(fetched).map(|()| block.buffer.freeze()));
    second.await.ok_or_else(ended)?.map_err(|error| files.parse_error(error))
}

/// Decoded bytes of a range that is being filled.
struct Block {
    buffer: Buffer,
    start: u64,
    end: u64,
}

impl Block {
    fn part(&mut self, range: Range<u64>) -> &mut [u8] {
        let content = self.buffer.content();
        let index = |at: u64| usize::try_from(at - self.start).unwrap_or(usize::MAX).min(content.len());
        let (from, to) = (index(range.start), index(range.end));
        &mut content[from..to]
    }

    /// Where `unit`, which lies inside the range, goes.
    fn unit(&mut self, unit: &Unit) -> &mut [u8] {
        self.part(unit.guest..unit.guest + u64::from(unit.decoded))
    }

    fn inflate(&mut self, stored: Vec<(Unit, Bytes)>) -> formats::Result<()> {
        stored.into_iter().try_for_each(|(unit, stored)| inflate(&unit, &stored, self.unit(&unit)))
    }
}

/// What of `range` none of `units`, which are in the order of the disk, holds.
fn gaps(units: &[Unit], range: &Range<u64>) -> Vec<Range<u64>> {
    let mut gaps = Vec::new();
    let mut at = range.start;
    for unit in units {
        if unit.guest > at {
            gaps.push(at..unit.guest);
        }
        at = at.max(unit.guest + u64::from(unit.decoded));
    }
    if at < range.end {
        gaps.push(at..range.end);
    }
    gaps
}

/// The bytes of `range`, which lies inside `unit`, out of its decoded bytes.
pub(super) fn slice(unit: &Unit, decoded: &Bytes, range: Range<u64>) -> Bytes {
    let index =
        |at: u64| usize::try_from(at.saturating_sub(unit.guest)).unwrap_or(usize::MAX).min(decoded.len());
    decoded.slice(index(range.start)..index(range.end))
}

/// The decoded bytes of `range`, which `units` cover without a gap, where no cache keeps them.
///
/// A unit that is local and lies in the range as a whole is not remembered: who reads in sequence does not come back.
pub(super) async fn units(files: &Arc<LayerFiles>, units: &[Unit], range: &Range<u64>) -> Result<Vec<Bytes>> {
    let part = |unit: &Unit| range.start.max(unit.guest)..range.end.min(unit.guest + u64::from(unit.decoded));
    let local = units.iter().all(|unit| stored::is_local(files, unit));
    if !local || !units.iter().any(|unit| lies_in(unit, range)) {
        let decoded = remembered(files, units, range).await?;
        return Ok(decoded.iter().map(|(unit, bytes)| slice(unit, bytes, part(unit))).collect());
    }
    let none = HashMap::new();
    let blocks = shares(units).map(|units| {
        let range =
            units.first().map_or(0, |unit| part(unit).start)..units.last().map_or(0, |unit| part(unit).end);
        block(files, units.to_vec(), range, &none)
    });
    try_join_all(blocks).await
}

/// Parts of `units`, each to be decoded by one task: as many as there are processors with nothing to do, for more would
/// only take turns.
fn shares(units: &[Unit]) -> impl Iterator<Item = &[Unit]> {
    let least = units.first().map_or(1, |unit| LEAST_WORK.div_ceil(unit.decoded.max(1)) as usize);
    units.chunks(units.len().div_ceil(workers::idle().max(1)).max(least))
}

/// The decoded bytes of each of `units`, in their order, made once for all who ask for them. Those that lie in `asked` as a
/// whole are the first that are forgotten.
async fn remembered(
    files: &Arc<LayerFiles>,
    units: &[Unit],
    asked: &Range<u64>,
) -> Result<Vec<(Unit, Bytes)>> {
    let missing = units.iter().filter(|unit| files.units.peek(unit).is_none()).copied();
    let (local, remote): (Vec<_>, Vec<_>) = missing.partition(|unit| stored::is_local(files, unit));
    let local: HashSet<Unit> = local.into_iter().collect();
    let fetched: HashMap<Unit, Bytes> = stored::fetch(files, &remote).await?.into_iter().collect();
    let batches = shares(units).map(|units| {
        let fetched = units.iter().filter_map(|unit| Some((*unit, fetched.get(unit)?.clone()))).collect();
        let local = units.iter().filter(|unit| local.contains(unit)).copied().collect();
        batch(files, units, fetched, local)
    });
    let decoded = try_join_all(batches).await?;
    units.iter().filter(|unit| lies_in(unit, asked)).for_each(|unit| files.units.demote(unit));
    Ok(decoded.into_iter().flatten().collect())
}

fn lies_in(unit: &Unit, range: &Range<u64>) -> bool {
    unit.guest >= range.start && unit.guest + u64::from(unit.decoded) <= range.end
}

/// The decoded bytes of `units`, from memory or inflated in one task: those of `fetched` from what is stored of them,
/// and those of `local`.
async fn batch(
    files: &Arc<LayerFiles>,
    units: &[Unit],
    fetched: Vec<(Unit, Bytes)>,
    local: Vec<Unit>,
) -> Result<Vec<(Unit, Bytes)>> {
    // Begun by the first unit that nobody else has made or is making.
    let work = inflate_all(files, fetched, local).shared();
    let mut decoded = Vec::with_capacity(units.len());
    for unit in units {
        let make = || async {
            let all = work.clone().await?;
            match all.get(unit) {
                Some(made) => made.clone().map_err(|error| files.parse_error(error)),
                None => alone(files, unit).await,
            }
        };
        decoded.push((*unit, files.units.get(*unit, make).await?));
    }
    Ok(decoded)
}

/// The decoded bytes of a unit that was in memory when it was looked for, and is no more.
async fn alone(files: &Arc<LayerFiles>, unit: &Unit) -> Result<Bytes> {
    let fetched = stored::fetch(files, &[*unit]).await?;
    let all = inflate_all(files, fetched, Vec::new()).await?;
    let made = all.get(unit).cloned().ok_or_else(ended)?;
    made.map_err(|error| files.parse_error(error))
}

/// Inflates units off the reactor: those of `fetched` from what is stored of them, and those of `local`.
async fn inflate_all(
    files: &Arc<LayerFiles>,
    fetched: Vec<(Unit, Bytes)>,
    local: Vec<Unit>,
) -> Result<Arc<HashMap<Unit, Made>>> {
    let make = |unit: &Unit, stored: &[u8]| {
        let mut buffer = Buffer::any(formats::limits::unit_length(unit.decoded)?);
        inflate(unit, stored, buffer.content())?;
        Ok(buffer.freeze())
    };
    let make_all = move |fetched: Vec<(Unit, Bytes)>| -> HashMap<Unit, Made> {
        fetched.into_iter().map(|(unit, stored)| (unit, make(&unit, &stored))).collect()
    };
    let layer = files.clone();
    let first = workers::run(move || {
        let mut all = make_all(fetched);
        let left = stored::resident(&layer, local, |unit, stored| {
            all.insert(*unit, make(unit, stored));
        });
        (all, left)
    });
    let (mut all, left) = first.await.ok_or_else(ended)?;
    if !left.is_empty() {
        let fetched = stored::fetch(files, &left).await?;
        all.extend(workers::run(move || make_all(fetched)).await.ok_or_else(ended)?);
    }
    Ok(Arc::new(all))
}

/// What came of a unit.
type Made = formats::Result<Bytes>;

fn ended() -> Error {
    Error::failed("an inflating task ended before its time")
}

/// Inflates `unit` into `clear`, with state that each thread keeps.
fn inflate(unit: &Unit, stored: &[u8], clear: &mut [u8]) -> formats::Result<()> {
    thread_local! {
        static INFLATER: RefCell<Inflater> = RefCell::new(Inflater::new());
    }
    INFLATER.with_borrow_mut(|inflater| inflater.decode_into(unit.codec, stored, clear))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(guest: u64, decoded: u32) -> Unit {
        Unit { codec: Codec::Zstd, file: FileIndex(0), at: 0, len: 1, guest, decoded }
    }

    /// As `pieces` says, but of each unit only where it begins.
    fn split(units: &[(u64, u32)], range: Range<u64>, block: u64) -> Vec<(Range<u64>, Vec<u64>)> {
        let units = units.iter().map(|(guest, decoded)| unit(*guest, *decoded)).collect();
        let split = pieces(units, &range, block);
        split
            .into_iter()
            .map(|(range, units)| (range, units.iter().map(|unit| unit.guest).collect()))
            .collect()
    }

    const K: u64 = 1 << 10;

    #[test]
    fn blocks_with_nothing_compressed_are_in_no_piece() {
        let units = [(0, 64 << 10), (64 * K, 64 << 10), (256 * K, 64 << 10)];
        let expect = vec![(0..128 * K, vec![0, 64 * K]), (256 * K..320 * K, vec![256 * K])];
        assert_eq!(split(&units, 0..512 * K, 64 * K), expect);
        assert_eq!(split(&[], 0..512 * K, 64 * K), vec![]);
    }

    #[test]
    fn pieces_are_small_unless_a_unit_is_not() {
        let units: Vec<_> = (0..32).map(|n| (n * 64 * K, 64 << 10)).collect();
        let split_at = |units: &[_], block| -> Vec<_> {
            split(units, 0..4096 * K, block).into_iter().map(|(range, _)| range).collect()
        };
        assert_eq!(split_at(&units, 64 * K), vec![0..1024 * K, 1024 * K..2048 * K]);
        assert_eq!(
            split_at(&[(0, 2 << 20), (2048 * K, 2 << 20)], 2048 * K),
            vec![0..2048 * K, 2048 * K..4096 * K]
        );
        // All of a block is in one piece.
        let small: Vec<_> = (0..512).map(|n| (n * 4 * K, 4 << 10)).collect();
        assert_eq!(split_at(&small, 1024 * K), vec![0..1024 * K, 1024 * K..2048 * K]);
    }

    #[test]
    fn a_unit_that_reaches_beyond_the_range_is_cut() {
        let units = [(0, 64 << 10), (64 * K, 64 << 10)];
        assert_eq!(split(&units, 32 * K..96 * K, 4 * K), vec![(32 * K..96 * K, vec![0, 64 * K])]);
        assert_eq!(split(&[(0, 1 << 10)], 0..K, 4 * K), vec![(0..K, vec![0])]);
    }
}
