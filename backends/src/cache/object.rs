//! One cached object: what is ready, what is being fetched, and the way from one to the other.

use super::ahead::Streams;
use super::bits::Bits;
use super::disk::{Disk, Geometry};
use super::flight::{self, Flight, Pilot, Table};
use super::mapped::Mapped;
use super::store::{Reserved, Shared};
use super::writer::{self, Brought, Queue};
use super::{Fill, Key, Lease, Pieces, Span, Spans};
use crate::{Error, Kind};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use futures_util::future::try_join_all;
use smallvec::SmallVec;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

/// The most bytes that one call of a fill covers: large enough for a server far away, small enough that a large read
/// is spread over several connections.
const MAX_FILL: u64 = 2 << 20;

/// How long the disk may take to say what it has before it is passed by.
const LOAD_TIMEOUT: Duration = Duration::from_secs(5);

/// One cached object.
#[derive(Debug)]
pub struct Object<F> {
    core: Arc<Core>,
    fill: F,
}

/// What all `Object`s of one key share.
#[derive(Debug)]
pub(super) struct Core {
    /// The name in the store's table, and of the directory.
    pub(super) name: String,
    pub(super) key: Key,
    pub(super) geometry: Geometry,
    pub(super) store: Arc<Shared>,
    /// The files, if this process owns the store and they could be opened.
    owned: OnceLock<Option<Disk>>,
    /// Another process's files, to read from while it owns the store.
    foreign: OnceLock<Disk>,
    /// What spans hold; see the module about eviction. None without files.
    lease: ArcSwapOption<Lease>,
    /// Blocks that are in the file and whole.
    ready: Bits,
    /// Blocks that were in the index when somebody asked what is local; they are not ready until they are looked at.
    recorded: OnceLock<Bits>,
    /// Blocks that were used again after they were fetched, since the last time eviction looked.
    pub(super) touched: Bits,
    pub(super) flights: Arc<Table>,
    /// Who reads in sequence, and the blocks at whose reading more is fetched.
    streams: Mutex<Streams>,
    marks: Bits,
    /// Blocks that were fetched ahead and not asked for yet.
    unread: Bits,
    /// Whether there ever were such blocks.
    ahead: AtomicBool,
    /// Checksums of stored blocks that are not in the index yet.
    unsaved: Mutex<Vec<(u64, u64)>>,
    /// Blocks on their way to the file.
    pub(super) queue: Queue,
    /// Bytes reserved in the store and written since its accounts last looked at the files.
    pub(super) written: AtomicU64,
    /// Where eviction goes on.
    pub(super) hand: AtomicU64,
}

impl Core {
    pub(super) fn new(store: Arc<Shared>, name: String, key: Key, geometry: Geometry) -> Core {
        let max = store.max();
        Core {
            name,
            key,
            geometry,
            store,
            owned: OnceLock::new(),
            foreign: OnceLock::new(),
            lease: ArcSwapOption::empty(),
            ready: Bits::new(geometry.blocks()),
            recorded: OnceLock::new(),
            touched: Bits::new(geometry.blocks()),
            flights: Arc::default(),
            streams: Mutex::new(Streams::new(geometry.block, geometry.blocks(), max)),
            marks: Bits::new(geometry.blocks()),
            unread: Bits::new(geometry.blocks()),
            ahead: AtomicBool::new(false),
            unsaved: Mutex::default(),
            queue: Queue::default(),
            written: AtomicU64::new(0),
            hand: AtomicU64::new(0),
        }
    }

    /// Where its files are.
    pub(super) fn directory(&self) -> PathBuf {
        self.store.root().join(&self.name)
    }

    /// Whether nothing of it outlives this process, since nothing says which version of the object it is.
    pub(super) fn nameless(&self) -> bool {
        self.key.identity.validator.is_empty()
    }

    /// Opens the files for writing. The caller's process owns the store.
    pub(super) fn own(&self) {
        self.owned.get_or_init(|| {
            let opened = match self.nameless() {
                true => Disk::nameless(self.store.root(), self.geometry),
                false => {
                    let directory = self.directory();
                    Disk::own(&directory, &self.key, self.geometry)
                        .and_then(|disk| super::disk::touch(&directory).map(|()| disk))
                }
            };
            match opened {
                Ok(disk) => {
                    self.lease.store(Some(Lease::of(disk.data().clone())));
                    Some(disk)
                }
                Err(error) => {
                    self.store.failed("an object's files cannot be opened", &error);
                    None
                }
            }
        });
    }

    /// The files, if they may be written to.
    pub(super) fn disk(&self) -> Option<&Disk> {
        self.owned.get()?.as_ref()
    }

    /// The files, to look for blocks in.
    fn readable(&self) -> Option<&Disk> {
        if let Some(disk) = self.disk() {
            return Some(disk);
        }
        if self.foreign.get().is_none() {
            let directory = self.directory();
            let disk = Disk::read_only(&directory, &self.key, self.geometry).ok()?;
            let _ = self.foreign.set(disk);
        }
        self.foreign.get()
    }

    /// Whether every block of `blocks` can be sent from the file. Whoever acts on it took the lease before asking.
    fn is_ready(&self, blocks: Range<u64>) -> bool {
        self.ready.all(blocks)
    }

    /// Notes that `blocks` were used. The first use of what was fetched ahead is the one that fetched the others.
    fn touch(&self, blocks: Range<u64>) {
        if !self.ahead.load(Ordering::Relaxed) {
            return self.touched.set(blocks);
        }
        for block in blocks {
            if self.unread.get(block) {
                self.unread.clear(block);
            } else {
                self.touched.set(block..block + 1);
            }
        }
    }

    /// Makes `blocks` unready, so that no span taken from now on refers to them.
    pub(super) fn unready(&self, blocks: Range<u64>) {
        for block in blocks {
            self.ready.clear(block);
            if let Some(recorded) = self.recorded.get() {
                recorded.clear(block);
            }
        }
    }

    /// Whether `block` is in the file, as far as can be said without reading it.
    fn is_local(&self, block: u64) -> bool {
        self.ready.get(block) || self.recorded.get().is_some_and(|recorded| recorded.get(block))
    }

    /// Replaces the lease, and returns what spans handed out before hold, with its map. Once that is gone nobody uses a
    /// block that was made unready before.
    pub(super) fn renew_lease(&self) -> Option<(std::sync::Weak<Lease>, Arc<Mapped>)> {
        let renewed = self.lease.load_full()?.renewed();
        let old = self.lease.swap(Some(renewed))?;
        Some((Arc::downgrade(&old), old.mapped.clone()))
    }

    /// Whether the lease should be renewed for what of the file is mapped.
    pub(super) fn has_worn_lease(&self) -> bool {
        self.lease.load().as_ref().is_some_and(|lease| lease.is_worn())
    }

    /// Where those of `blocks` are that are on disk and whole, one by one: in the file, if it is the own one, and ready from
    /// then on; but for `except`, and where others have the file, in memory. Called for a flight, for none of whose blocks
    /// eviction begins before it is over.
    async fn load(self: &Arc<Self>, blocks: Range<u64>, except: &[u64]) -> Vec<Option<Span>> {
        let nothing = || vec![None; (blocks.end - blocks.start) as usize];
        if self.nameless() || self.disk().is_some_and(|disk| disk.fresh) {
            return nothing();
        }
        let lease = self.lease.load_full().filter(|_| self.disk().is_some());
        let (core, range, except) = (self.clone(), blocks.clone(), except.to_vec());
        let mut found = nothing();
        let load = tokio::task::spawn_blocking(move || {
            core.readable()?.read(range.clone(), |block, bytes| {
                let (offset, len) = (block * core.geometry.block, bytes.len() as u64);
                let span = match &lease {
                    Some(lease) if !except.contains(&block) => {
                        Span::File { lease: lease.clone(), offset, len }
                    }
                    _ => Span::Bytes(bytes),
                };
                found[(block - range.start) as usize] = Some(span);
            });
            Some(found)
        });
        let found = match tokio::time::timeout(LOAD_TIMEOUT, load).await {
            Ok(Ok(Some(found))) => found,
            _ => return nothing(),
        };
        let in_file = |span: &Option<Span>| matches!(span, Some(Span::File { .. }));
        blocks
            .zip(&found)
            .filter(|(_, span)| in_file(span))
            .for_each(|(block, _)| self.ready.set(block..block + 1));
        found
    }

    /// Writes `bytes`, whole blocks from `first` on, to the file, and makes them ready. Waits for the disk.
    pub(super) fn store_blocks(self: &Arc<Self>, first: u64, bytes: &[u8], reserved: Reserved) {
        let Some(disk) = self.disk() else { return };
        let result = disk.store(first, bytes);
        reserved.written(self);
        match result {
            Ok(sums) => {
                self.ready.set(first..first + sums.len() as u64);
                self.unsaved.lock().unwrap_or_else(PoisonError::into_inner).extend(sums);
                self.store.dirty(self);
            }
            Err(error) => self.store.failed("a block cannot be stored", &error),
        }
    }

    /// Where `pieces`, which are whole blocks, are in the file, if all of them are ready.
    pub(super) fn in_file(&self, pieces: &Pieces) -> Option<Vec<(u64, Span)>> {
        // The lease first, then the bits, as always.
        let lease = self.lease.load_full()?;
        let blocks = |(at, bytes): &(u64, Bytes)| self.geometry.touched(&(*at..at + bytes.len() as u64));
        if !pieces.iter().all(|piece| self.is_ready(blocks(piece))) {
            return None;
        }
        let span = |(at, bytes): &(u64, Bytes)| {
            (*at, Span::File { lease: lease.clone(), offset: *at, len: bytes.len() as u64 })
        };
        Some(pieces.iter().map(span).collect())
    }

    /// Makes durable what was stored, and then the checksums that vouch for it. May wait for the disk.
    pub(super) fn save(&self) {
        let mut sums = std::mem::take(&mut *self.unsaved.lock().unwrap_or_else(PoisonError::into_inner));
        let Some(disk) = self.disk().filter(|_| !sums.is_empty()) else { return };
        sums.sort_unstable_by_key(|(block, _)| *block);
        sums.dedup_by_key(|(block, _)| *block);
        if let Err(error) = disk.record(&sums) {
            // What the page cache still shows may not be what the disk will say later.
            sums.iter().for_each(|(block, _)| self.ready.clear(*block));
            self.store.failed("blocks cannot be made durable", &error);
        }
        self.store.account(self);
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.store.closed(self);
    }
}

/// A piece of a range that is asked for.
enum Part {
    /// Ready in the file.
    Ready(Range<u64>),
    /// In a flight.
    Flying(Arc<Flight>, Range<u64>),
}

impl<F: Fill> Object<F> {
    pub(super) fn new(core: Arc<Core>, fill: F) -> Arc<Self> {
        Arc::new(Object { core, fill })
    }

    /// What makes missing blocks.
    pub fn source(&self) -> &F {
        &self.fill
    }

    /// Appends to `out` where `range` is in local files, if every block of it is there; else appends nothing and
    /// says false. Does not wait, does not allocate (beyond `out`); begins to read ahead where that is due, for which it
    /// must run in a tokio runtime.
    pub fn peek(self: &Arc<Self>, range: Range<u64>, out: &mut Spans) -> bool {
        let core = &*self.core;
        if range.start >= range.end || range.end > core.geometry.size {
            return range.start == range.end && range.end <= core.geometry.size;
        }
        let blocks = core.geometry.touched(&range);
        if !core.is_ready(blocks.clone()) {
            return false;
        }
        // The lease first, then the bits: in the other order the blocks might go in between.
        let Some(lease) = core.lease.load_full() else { return false };
        if !core.is_ready(blocks.clone()) {
            return false;
        }
        core.touch(blocks.clone());
        out.push(Span::File { lease, offset: range.start, len: range.end - range.start });
        if core.ahead.load(Ordering::Relaxed)
            && let Some(mark) = blocks.clone().find(|block| core.marks.get(*block))
        {
            core.marks.clear(mark);
            self.read_ahead(&blocks);
        }
        true
    }

    /// As [`peek`](Self::peek), but fetches first what is missing, each block once however many callers wait for
    /// it. Dropping the future does not cancel fetches that others may need. Must run in a tokio runtime.
    pub async fn get(self: &Arc<Self>, range: Range<u64>, out: &mut Spans) -> Result<(), Error> {
        self.fetch(range, out, true).await
    }

    /// As [`get`](Self::get), for who does not come back for what follows: nothing beyond the range is fetched.
    pub async fn get_exactly(self: &Arc<Self>, range: Range<u64>, out: &mut Spans) -> Result<(), Error> {
        self.fetch(range, out, false).await
    }

    /// [`get`](Self::get), with or without reading ahead.
    async fn fetch(self: &Arc<Self>, range: Range<u64>, out: &mut Spans, ahead: bool) -> Result<(), Error> {
        if range.start > range.end || range.end > self.core.geometry.size {
            return Err(Error::new(
                Kind::Range,
                format!(
                    "{}: bytes {:#x} to {:#x} are not in an object of {} bytes",
                    self.core.key.identity.location, range.start, range.end, self.core.geometry.size
                ),
            ));
        }
        if self.peek(range.clone(), out) {
            return Ok(());
        }
        let had = out.len();
        let lease = self.core.lease.load_full();
        let parts = self.plan(self.core.geometry.touched(&range), lease.is_some());
        // After its own fetches, which come first.
        if ahead {
            self.read_ahead(&self.core.geometry.touched(&range));
        }
        if let Err(error) = self.collect(parts, lease.as_ref(), &range, out, true).await {
            out.truncate(had);
            return Err(error);
        }
        let got: u64 = out[had..].iter().map(Span::len).sum();
        if got != range.end - range.start {
            out.truncate(had);
            return Err(self.wrong_number(got, range.end - range.start));
        }
        Ok(())
    }

    /// Appends what of `range` is in `parts`. Whoever asked with others and fails, is asked `again` for what is wanted here
    /// alone: it may have been something else that was wrong.
    async fn collect(
        self: &Arc<Self>,
        parts: SmallVec<[Part; 4]>,
        lease: Option<&Arc<Lease>>,
        range: &Range<u64>,
        out: &mut Spans,
        again: bool,
    ) -> Result<(), Error> {
        for part in parts {
            match (part, lease) {
                (Part::Ready(blocks), Some(lease)) => {
                    let bytes = clip(self.core.geometry.bytes(&blocks), range);
                    out.push(Span::File {
                        lease: lease.clone(),
                        offset: bytes.start,
                        len: bytes.end - bytes.start,
                    });
                }
                (Part::Ready(_), None) => {}
                (Part::Flying(flight, blocks), _) => {
                    let wanted = clip(self.core.geometry.bytes(&blocks), range);
                    let spans = match flight.spans(&wanted).await {
                        Ok(spans) => spans,
                        Err(error) if again && error.kind == Kind::Io && flight.blocks != blocks => {
                            let parts = self.plan(blocks, lease.is_some());
                            Box::pin(self.collect(parts, lease, range, out, false)).await?;
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    for (at, span) in spans.iter() {
                        let part = clip(*at..at + span.len(), &wanted);
                        if part.start < part.end {
                            out.push(span.slice(part.start - at..part.end - at));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Begins to fetch what comes behind `asked`, if it is part of a stream and there is room to keep it.
    fn read_ahead(self: &Arc<Self>, asked: &Range<u64>) {
        let core = &self.core;
        if core.disk().is_none() || !core.store.has_room() {
            return;
        }
        let ahead = core.streams.lock().unwrap_or_else(PoisonError::into_inner).read(asked);
        let Some((blocks, mark)) = ahead else { return };
        core.marks.set(mark..mark + 1);
        blocks
            .clone()
            .filter(|block| !core.ready.get(*block))
            .for_each(|block| core.unread.set(block..block + 1));
        core.ahead.store(true, Ordering::Relaxed);
        self.plan(blocks, true);
    }

    /// Brings `range` into the file, and returns when it is there or there is no room for it. Says whether it is there.
    /// Nothing but the range is fetched.
    pub async fn warm(self: &Arc<Self>, range: Range<u64>) -> Result<bool, Error> {
        let mut spans = Spans::new();
        self.fetch(range.clone(), &mut spans, false).await?;
        let blocks = self.core.geometry.touched(&range);
        loop {
            let flight =
                blocks.clone().find_map(|block| flight::lock(&self.core.flights).covering(block).cloned());
            match flight {
                Some(flight) => flight.landed().await,
                None => return Ok(self.core.is_ready(blocks)),
            }
        }
    }

    /// The file did not give `range`, which lies inside the object: its blocks are fetched at their next use.
    pub fn spoil(&self, range: &Range<u64>) {
        self.core.unready(self.core.geometry.touched(range));
        let error = std::io::Error::other("bytes that were stored cannot be read");
        self.core.store.failed("the disk fails", &error);
    }

    /// Finds out which blocks an earlier process left, for [`locality`](Self::locality). The second call does nothing.
    pub async fn take_stock(self: &Arc<Self>) {
        if self.core.recorded.get().is_some() {
            return;
        }
        let core = self.core.clone();
        // If it fails nothing counts as left.
        let _ = tokio::task::spawn_blocking(move || {
            core.recorded.get_or_init(|| {
                let bits = Bits::new(core.geometry.blocks());
                let left = core.readable().map(Disk::recorded).and_then(Result::ok).unwrap_or_default();
                left.into_iter().for_each(|run| bits.set(run));
                bits
            });
        })
        .await;
    }

    /// Whether all of `range`, which lies inside the object, is in the file, as far as can be said without reading it: also
    /// what an earlier process left.
    pub async fn has(self: &Arc<Self>, range: &Range<u64>) -> bool {
        let (core, blocks) = (self.core.clone(), self.core.geometry.touched(range));
        if core.is_ready(blocks.clone()) {
            return true;
        }
        if core.nameless() || core.disk().is_some_and(|disk| disk.fresh) {
            return false;
        }
        let look = tokio::task::spawn_blocking(move || {
            let Some(disk) = core.readable() else { return false };
            blocks.into_iter().all(|block| core.ready.get(block) || disk.is_recorded(block).unwrap_or(false))
        });
        matches!(tokio::time::timeout(LOAD_TIMEOUT, look).await, Ok(Ok(true)))
    }

    /// Whether the byte at `range.start` is in the file, and for how many bytes of `range`, which lies inside the object
    /// and is not empty, the same holds. What an earlier process left counts once [`take_stock`](Self::take_stock) was
    /// called.
    pub fn locality(&self, range: &Range<u64>) -> (bool, u64) {
        let blocks = self.core.geometry.touched(range);
        let local = self.core.is_local(blocks.start);
        let end = (blocks.start + 1..blocks.end).find(|block| self.core.is_local(*block) != local);
        let end = end.map_or(range.end, |block| self.core.geometry.bytes(&(block..block + 1)).start);
        (local, end - range.start)
    }

    /// Whether nothing of it was in the store when it was opened.
    pub fn is_fresh(&self) -> bool {
        self.core.disk().is_some_and(|disk| disk.fresh)
    }

    /// Notes that all that readers of the object need is in the store, after making it durable, so that
    /// [`Store::complete`](super::Store::complete) finds it. Evicting any of it takes the note away. Waits for the disk.
    pub fn mark_complete(&self) {
        let core = &self.core;
        if core.nameless() || core.disk().is_none() {
            return;
        }
        core.store.save();
        if let Err(error) = super::disk::set_complete(&core.directory()) {
            core.store.failed("an object cannot be marked as complete", &error);
        }
    }

    /// How many of the object's bytes are ready in the file, found out block by block.
    pub fn ready(&self) -> u64 {
        let geometry = self.core.geometry;
        (0..geometry.blocks())
            .filter(|block| self.core.ready.get(*block))
            .map(|block| geometry.bytes(&(block..block + 1)))
            .map(|bytes| bytes.end - bytes.start)
            .sum()
    }

    /// Where each block of `blocks` comes from. Starts flights for those that nobody fetches yet.
    fn plan(self: &Arc<Self>, blocks: Range<u64>, leased: bool) -> SmallVec<[Part; 4]> {
        let core = &self.core;
        let run = (MAX_FILL / core.geometry.block).max(1);
        let mut parts = SmallVec::new();
        let mut started = SmallVec::<[Pilot; 4]>::new();
        let mut flights = flight::lock(&core.flights);
        let mut at = blocks.start;
        while at < blocks.end {
            // A flight makes its blocks ready before it leaves the table, so a block is found in one of both.
            let ready = |block: u64| leased && core.ready.get(block);
            if ready(at) {
                let end = (at..blocks.end).find(|block| !ready(*block)).unwrap_or(blocks.end);
                parts.push(Part::Ready(at..end));
                at = end;
                continue;
            }
            let flight = match flights.covering(at) {
                Some(flight) => flight.clone(),
                None => {
                    let end = blocks.end.min(at + run).min(flights.next(at).unwrap_or(u64::MAX));
                    let end = (at..end).find(|block| ready(*block)).unwrap_or(end);
                    let pilot = Pilot::take_off(&core.flights, &mut flights, at..end);
                    let flight = pilot.flight().clone();
                    started.push(pilot);
                    flight
                }
            };
            let end = flight.blocks.end.min(blocks.end);
            parts.push(Part::Flying(flight, at..end));
            at = end;
        }
        // Pilots land when they are dropped, which a runtime that is ending does at once, and that takes the lock.
        drop(flights);
        for pilot in started {
            tokio::spawn(self.clone().fly(pilot));
        }
        parts
    }

    /// The task behind a flight: finds on disk or fetches, delivers, stores.
    async fn fly(self: Arc<Self>, pilot: Pilot) {
        let (core, blocks) = (&self.core, pilot.flight().blocks.clone());
        let found = core.load(blocks.clone(), &pilot.evicting).await;
        let mut gaps = Vec::new();
        let mut at = blocks.start;
        for run in found.chunk_by(|a, b| a.is_some() == b.is_some()) {
            let end = at + run.len() as u64;
            if run[0].is_none() {
                gaps.push(at..end);
            }
            at = end;
        }
        let offset = |block: u64| block * core.geometry.block;
        let found = (blocks.start..).zip(found).filter_map(|(block, span)| Some((offset(block), span?)));
        let found: Vec<_> = found.collect();
        if !gaps.is_empty() && !found.is_empty() {
            // Who wants what is here does not wait for a server.
            pilot.found(found.clone());
        }
        let filled = match try_join_all(gaps.iter().map(|gap| self.fill_gap(gap))).await {
            Ok(filled) => filled.concat(),
            Err(error) => return pilot.fail(error),
        };
        let brought = Brought { found, filled: filled.clone() };
        let evicting = |at: u64, bytes: &Bytes| {
            let blocks = core.geometry.touched(&(at..at + bytes.len() as u64));
            pilot.evicting.iter().any(|block| blocks.contains(block))
        };
        let kept = filled.into_iter().filter(|(at, bytes)| !evicting(*at, bytes)).collect();
        let late = writer::land(core, pilot, brought, kept);
        drop(self);
        if let Some(late) = late {
            late.watch().await;
        }
    }

    async fn fill_gap(&self, gap: &Range<u64>) -> Result<Pieces, Error> {
        let range = self.core.geometry.bytes(gap);
        let pieces = self.fill.fill(range.clone()).await?;
        let mut next = range.start;
        for (at, bytes) in &pieces {
            let end = at + bytes.len() as u64;
            let Geometry { block, size } = self.core.geometry;
            let whole = at.is_multiple_of(block) && (end.is_multiple_of(block) || end == size);
            if *at < next || end > range.end || !whole {
                return Err(self.wrong_number(bytes.len() as u64, range.end - range.start));
            }
            next = end;
        }
        Ok(pieces)
    }

    fn wrong_number(&self, got: u64, asked: u64) -> Error {
        let location = &self.core.key.identity.location;
        Error::new(Kind::BadAnswer, format!("{location}: {got} bytes came when {asked} were asked for"))
    }
}

fn clip(range: Range<u64>, to: &Range<u64>) -> Range<u64> {
    range.start.max(to.start)..range.end.min(to.end)
}
