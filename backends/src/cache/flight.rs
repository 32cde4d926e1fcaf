//! Fetches under way: one per block, whoever asks.

use super::Span;
use crate::{Error, Kind};
use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// How far a flight is.
#[derive(Clone, Debug)]
pub(super) enum State {
    /// What was on disk is there, if anything was. The rest is being fetched.
    Flying(Delivered),
    /// All its blocks. Their bytes may still be on their way to the file.
    Done(Delivered),
    /// What was on disk, and why there is no more.
    Failed(Delivered, Error),
}

impl State {
    /// What can be had now.
    fn spans(&self) -> &Delivered {
        match self {
            State::Flying(spans) | State::Done(spans) | State::Failed(spans, _) => spans,
        }
    }

    /// Whether all of `wanted` can be had now.
    fn has(&self, wanted: &Range<u64>) -> bool {
        let within =
            |(at, span): &(u64, Span)| wanted.end.min(at + span.len()).saturating_sub(wanted.start.max(*at));
        self.spans().iter().map(within).sum::<u64>() == wanted.end - wanted.start
    }
}

/// What a flight has brought: spans in the order of the object, each with its offset.
type Delivered = Arc<[(u64, Span)]>;

/// Spans in the order of the object, those in a row of one file as one.
fn in_order(mut spans: Vec<(u64, Span)>) -> Delivered {
    spans.sort_unstable_by_key(|(at, _)| *at);
    spans.dedup_by(|(_, next), (_, span)| match (span, next) {
        (Span::File { lease, offset, len }, Span::File { lease: other, offset: at, len: more })
            if Arc::ptr_eq(lease, other) && *offset + *len == *at =>
        {
            *len += *more;
            true
        }
        _ => false,
    });
    spans.into()
}

/// A run of blocks being fetched.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) blocks: Range<u64>,
    state: watch::Receiver<State>,
}

impl Flight {
    /// Waits for what the flight brings of `wanted`, bytes that lie inside it, and returns that and what else came with it.
    pub(super) async fn spans(&self, wanted: &Range<u64>) -> Result<Delivered, Error> {
        let mut state = self.state.clone();
        let enough = |state: &State| !matches!(state, State::Flying(_)) || state.has(wanted);
        match state.wait_for(enough).await.as_deref() {
            Ok(failed @ State::Failed(_, error)) if !failed.has(wanted) => Err(error.clone()),
            Ok(state) => Ok(state.spans().clone()),
            // The task is gone without a word: it panicked, or the runtime ends.
            Err(_) => Err(Error::new(Kind::Io, "a fetch was abandoned")),
        }
    }

    /// Waits until the flight has all that it brings, or brings nothing more.
    pub(super) async fn done(&self) {
        let mut state = self.state.clone();
        let _ = state.wait_for(|state| !matches!(state, State::Flying(_))).await;
    }

    /// Waits until the flight is over: in the file, or not to be.
    pub(super) async fn landed(&self) {
        let mut state = self.state.clone();
        while state.changed().await.is_ok() {}
    }
}

/// The flights of one object, by their first blocks; they do not overlap.
#[derive(Debug, Default)]
pub(super) struct Flights {
    runs: BTreeMap<u64, Arc<Flight>>,
    /// Blocks that are about to be punched out of the file, which nothing may be written to until then.
    pub(super) evicting: HashSet<u64>,
}

impl Flights {
    /// The flight that `block` is in.
    pub(super) fn covering(&self, block: u64) -> Option<&Arc<Flight>> {
        self.runs.range(..=block).next_back().map(|(_, flight)| flight).filter(|f| f.blocks.contains(&block))
    }

    /// The first block at or after `block` that is in a flight.
    pub(super) fn next(&self, block: u64) -> Option<u64> {
        self.runs.range(block..).next().map(|(first, _)| *first)
    }
}

/// The table of one object.
pub(super) type Table = Mutex<Flights>;

pub(super) fn lock(table: &Table) -> MutexGuard<'_, Flights> {
    // Nothing in here is left half changed by a panic.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The flying side: what the task that fetches holds. When it is dropped, in whatever way the task ended, the flight
/// is out of the table and those who still wait for it fail.
#[derive(Debug)]
pub(super) struct Pilot {
    table: Arc<Table>,
    flight: Arc<Flight>,
    state: watch::Sender<State>,
    /// Blocks of the flight that were about to be punched when it took off: their bytes are not to be written, nor
    /// to be found where they still are.
    pub(super) evicting: Vec<u64>,
}

impl Pilot {
    /// Enters a flight over `blocks`, none of which is in one, into `flights`, which is `table` locked. The pilot is
    /// not to be dropped while it is locked.
    pub(super) fn take_off(table: &Arc<Table>, flights: &mut Flights, blocks: Range<u64>) -> Pilot {
        let (sender, receiver) = watch::channel(State::Flying(Delivered::default()));
        let evicting = match flights.evicting.is_empty() {
            true => Vec::new(),
            false => blocks.clone().filter(|block| flights.evicting.contains(block)).collect(),
        };
        let flight = Arc::new(Flight { blocks, state: receiver });
        flights.runs.insert(flight.blocks.start, flight.clone());
        Pilot { table: table.clone(), flight, state: sender, evicting }
    }

    pub(super) fn flight(&self) -> &Arc<Flight> {
        &self.flight
    }

    /// Gives `spans`, a part of what the flight is for, to those who want no more.
    pub(super) fn found(&self, spans: Vec<(u64, Span)>) {
        self.state.send_replace(State::Flying(in_order(spans)));
    }

    /// Gives `spans` to all who wait and to all who join from now on.
    pub(super) fn deliver(&self, spans: Vec<(u64, Span)>) {
        self.state.send_replace(State::Done(in_order(spans)));
    }

    /// Fails all who wait for what was not on disk. Those who come later try again.
    pub(super) fn fail(self, error: Error) {
        self.land();
        self.state.send_modify(|state| *state = State::Failed(state.spans().clone(), error));
    }

    /// Takes the flight out of the table. After that its blocks may be in another flight.
    fn land(&self) {
        let mut flights = lock(&self.table);
        let first = self.flight.blocks.start;
        if flights.runs.get(&first).is_some_and(|flight| Arc::ptr_eq(flight, &self.flight)) {
            flights.runs.remove(&first);
        }
    }
}

impl Drop for Pilot {
    fn drop(&mut self) {
        self.land();
    }
}
