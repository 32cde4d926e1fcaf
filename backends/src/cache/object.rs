//! One cached object: the way from what is asked for to where it is.

use super::core::Core;
use super::disk::{Disk, Geometry};
use super::flight::{self, Flight, Pilot};
use super::writer::{self, Brought};
use super::{Fill, Lease, Pieces, Span, Spans};
use crate::{Error, Kind};
use bytes::Bytes;
use futures_util::future::try_join_all;
use smallvec::SmallVec;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

/// The most bytes that one call of a fill covers: large enough for a server far away, small enough that a large read
/// is spread over several connections.
const MAX_FILL: u64 = 2 << 20;

/// One cached object.
#[derive(Debug)]
pub struct Object<F> {
    core: Arc<Core>,
    fill: F,
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
        core.touch(&range);
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
        self.core.wanted(&range);
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
        if !core.is_open() || !core.store.has_room() {
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
        // What is not there any more says nothing of the disk.
        if self.core.disk().is_none_or(|disk| self.core.abandon_if_short(&disk)) {
            return;
        }
        let error = std::io::Error::other("bytes that were stored cannot be read");
        self.core.store.failed("the disk fails", &error);
    }

    /// Finds out which blocks an earlier process left, for [`locality`](Self::locality). The second call does nothing.
    pub async fn take_stock(self: &Arc<Self>) {
        if self.core.has_taken_stock() {
            return;
        }
        let core = self.core.clone();
        // If it fails nothing counts as left.
        let _ = tokio::task::spawn_blocking(move || core.take_stock()).await;
    }

    /// Whether all of `range`, which lies inside the object, is in the file, as far as can be said without reading it: also
    /// what an earlier process left.
    pub async fn has(self: &Arc<Self>, range: &Range<u64>) -> bool {
        let (core, blocks) = (self.core.clone(), self.core.geometry.touched(range));
        if core.is_ready(blocks.clone()) {
            return true;
        }
        if core.nameless() || core.is_fresh() {
            return false;
        }
        let look = move || {
            let recorded = |disk: &Disk, block| disk.is_recorded(block).unwrap_or(false);
            let all =
                |disk: &Disk| blocks.into_iter().all(|block| core.ready.get(block) || recorded(disk, block));
            core.look(all)
        };
        self.core.store.ask(look).await.flatten().unwrap_or(false)
    }

    /// Whether the byte at `range.start` is in the file, and for how many bytes of `range`, which lies inside the object
    /// and is not empty, the same holds. What an earlier process left counts once [`take_stock`](Self::take_stock) was
    /// called.
    pub fn locality(&self, range: &Range<u64>) -> (bool, u64) {
        let blocks = self.core.geometry.touched(range);
        let (local, end) = self.core.locality(blocks.start, blocks.end);
        let end = self.core.geometry.bytes(&(blocks.start..end)).end.min(range.end);
        (local, end - range.start)
    }

    /// Whether nothing of it was in the store when it was opened.
    pub fn is_fresh(&self) -> bool {
        self.core.is_fresh()
    }

    /// Notes that all that readers of the object need is in the store, after making it durable, so that
    /// [`Store::complete`](super::Store::complete) finds it. Evicting any of it takes the note away. Waits for the disk.
    pub fn mark_complete(&self) {
        let core = &self.core;
        if core.nameless() || !core.store.save() || !core.is_open() {
            return;
        }
        if let Err(error) = super::disk::set_complete(&core.directory()) {
            core.store.failed("an object cannot be marked as complete", &error);
        }
    }

    #[cfg(test)]
    pub(super) fn core_is_open(&self) -> bool {
        self.core.is_open()
    }

    /// How many of the object's bytes are ready in the file.
    #[cfg(test)]
    pub(super) fn ready(&self) -> u64 {
        let (geometry, mut at, mut ready) = (self.core.geometry, 0, 0);
        while at < geometry.blocks() {
            let (is_ready, end) = self.core.ready.run(at, geometry.blocks());
            if is_ready {
                let bytes = geometry.bytes(&(at..end));
                ready += bytes.end - bytes.start;
            }
            at = end;
        }
        ready
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
