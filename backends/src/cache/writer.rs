//! What was fetched, on its way to an object's file.
//!
//! One thread at a time writes to a file: those that wait for one in the kernel wait awake. It goes on with what has come
//! meanwhile by itself, so that fetched memory is soon free again however busy the processors are.

use super::core::Core;
use super::disk::is_zero;
use super::flight::{Flight, Pilot};
use super::mapped::is_local;
use super::store::{Landing, Reserved};
use super::{Pieces, Span};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Bytes after which a thread has others write, of whose objects more may wait than there are threads.
const TURN: usize = 16 << 20;

/// Where so many bytes or more are kept, their readers get them from where they were written: to copy them once more, out of
/// memory, would take as long as to write them. For fewer that wait is not worth it.
const FROM_FILE: usize = 512 << 10;

/// How long readers wait for that.
const PROMPT: Duration = Duration::from_millis(20);

/// A flight that has all its bytes and is not over yet.
struct Landed {
    /// What is still to be delivered.
    late: Mutex<Option<(Arc<Core>, Brought)>>,
    _landing: Landing,
    /// Goes last: by what it ends, others know that nothing of the object is in use any more.
    pilot: Pilot,
}

impl Landed {
    fn late(&self) -> Option<(Arc<Core>, Brought)> {
        self.late.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Delivers out of memory, unless it has delivered.
    fn deliver(&self) {
        if let Some((_, brought)) = self.late() {
            self.pilot.deliver(brought.in_memory());
        }
    }
}

impl Drop for Landed {
    fn drop(&mut self) {
        if let Some((core, brought)) = self.late() {
            self.pilot.deliver(brought.in_file(&core));
        }
    }
}

/// All that a flight is for.
pub(super) struct Brought {
    /// What was on disk, each with its offset.
    pub(super) found: Vec<(u64, Span)>,
    /// What was not.
    pub(super) filled: Pieces,
}

impl Brought {
    /// To be delivered with what was not on disk in memory.
    fn in_memory(mut self) -> Vec<(u64, Span)> {
        self.found.extend(self.filled.into_iter().map(|(at, bytes)| (at, Span::Bytes(bytes))));
        self.found
    }

    /// To be delivered from the file, if all of it is there.
    fn in_file(mut self, core: &Core) -> Vec<(u64, Span)> {
        let Some(filled) = core.in_file(&self.filled) else { return self.in_memory() };
        self.found.extend(filled);
        self.found
    }
}

/// A flight whose readers wait for what is being written. It holds on to nothing of the object.
pub(super) struct Late {
    flight: Arc<Flight>,
    landed: Weak<Landed>,
}

impl Late {
    /// Gives them what is in memory if it takes too long.
    pub(super) async fn watch(self) {
        if timeout(PROMPT, self.flight.done()).await.is_err()
            && let Some(landed) = self.landed.upgrade()
            && let Some((core, brought)) = landed.late()
        {
            core.store.health.is_late();
            landed.pilot.deliver(brought.in_memory());
        }
    }
}

/// Delivers what was `brought`, and has what of it is `kept` written. The flight is over after that. Where something is returned
/// it has to be watched. Must run in a tokio runtime.
pub(super) fn land(core: &Arc<Core>, pilot: Pilot, brought: Brought, kept: Pieces) -> Option<Late> {
    let flight = pilot.flight().clone();
    // What is about to be punched is not written, and without it all of them would wait in vain.
    let from_file = pilot.evicting.is_empty() && is_sent_from_file(core, &kept);
    let landing = core.store.landing();
    let landed = Landed { late: Mutex::new(Some((core.clone(), brought))), _landing: landing, pilot };
    let landed = Arc::new(landed);
    if !from_file {
        landed.deliver();
    }
    for (at, bytes) in kept {
        if !keep(core, at / core.geometry.block, bytes, landed.clone()) {
            landed.deliver();
        }
    }
    from_file.then(|| Late { flight, landed: Arc::downgrade(&landed) })
}

/// Whether `kept` had better be sent from where it is going to be written.
fn is_sent_from_file(core: &Core, kept: &Pieces) -> bool {
    let size: usize = kept.iter().map(|(_, bytes)| bytes.len()).sum();
    let block = usize::try_from(core.geometry.block).unwrap_or(usize::MAX);
    // Those become holes, which the page cache does not hold.
    let has_zeros = || kept.iter().flat_map(|(_, bytes)| bytes.chunks(block)).any(is_zero);
    size >= FROM_FILE
        && core.disk().is_some_and(|disk| is_local(disk.data()))
        && core.store.health.is_prompt()
        && !has_zeros()
}

/// Whole blocks to be written.
struct Piece {
    /// The object, which stays until it is written.
    core: Arc<Core>,
    first: u64,
    bytes: Bytes,
    reserved: Reserved,
    /// Over when all its pieces are, and these have let go of everything else.
    flight: Arc<Landed>,
}

/// The pieces that wait to be written to one object's file.
#[derive(Default)]
pub(super) struct Queue(Mutex<Waiting>);

#[derive(Default)]
struct Waiting {
    pieces: VecDeque<Piece>,
    /// Whether somebody has the pen.
    taken: bool,
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").finish_non_exhaustive()
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        // Each change under this lock is a single step.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lays the pen down if nothing waits; whether it does.
    fn is_done(&self) -> bool {
        let mut queue = self.lock();
        queue.taken = !queue.pieces.is_empty();
        !queue.taken
    }
}

/// The right to write to an object's file. Where it is dropped before all is written, by a runtime that ends, what waits is
/// not written.
struct Pen {
    core: Weak<Core>,
    down: bool,
}

impl Drop for Pen {
    fn drop(&mut self) {
        if self.down {
            return;
        }
        let Some(core) = self.core.upgrade() else { return };
        let mut queue = core.queue.lock();
        queue.taken = false;
        let unwritten = std::mem::take(&mut queue.pieces);
        // Pilots take locks of their own.
        drop(queue);
        drop(core);
        drop(unwritten);
    }
}

impl Pen {
    /// Writes until nothing waits, and lays the pen down; or until others should have their turn, and returns it.
    fn write(mut self) -> Option<Pen> {
        let mut written = 0;
        while written < TURN {
            let core = self.core.upgrade()?;
            let piece = core.queue.lock().pieces.pop_front();
            drop(core);
            let Piece { core, first, bytes, reserved, flight } = piece?;
            written += bytes.len();
            core.store_blocks(first, &bytes, reserved);
            self.down = core.queue.is_done();
            drop((core, bytes));
            drop(flight);
            if self.down {
                return None;
            }
        }
        Some(self)
    }
}

/// Has whole blocks written, from `first` on, if there is a file and room for them; whether there is. What goes wrong is the
/// store's affair.
fn keep(core: &Arc<Core>, first: u64, bytes: Bytes, flight: Arc<Landed>) -> bool {
    if !core.is_open() || !core.store.health.is_well() {
        return false;
    }
    let Some(reserved) = core.store.reserve(bytes.len() as u64, core.geometry.block) else { return false };
    let mut queue = core.queue.lock();
    queue.pieces.push_back(Piece { core: core.clone(), first, bytes, reserved, flight });
    let taken = std::mem::replace(&mut queue.taken, true);
    drop(queue);
    if !taken {
        let pen = Pen { core: Arc::downgrade(core), down: false };
        tokio::spawn(write(pen, core.store.writers.clone()));
    }
    true
}

async fn write(pen: Pen, writers: Arc<Semaphore>) {
    let mut pen = Some(pen);
    while let Some(held) = pen.take() {
        // Never closed.
        let Ok(_turn) = writers.acquire().await else { return };
        // Left to itself if the runtime ends: then nothing becomes ready, and the bytes are fetched another time.
        pen = tokio::task::spawn_blocking(move || held.write()).await.ok().flatten();
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{BLOCK, Maker, bytes_of, expect, key, read};
    use super::super::{Fill, Pieces, Span, Spans, Store};
    use super::{Duration, FROM_FILE, PROMPT};
    use crate::{Error, Kind};
    use std::ops::Range;
    use std::sync::Arc;
    use tokio::time::Instant;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn a_runtime_that_ends_before_its_writes_leaves_the_pen_to_others() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 30).unwrap();
        let maker = Maker::new();
        let object =
            runtime().block_on(store.object(&key("a"), 100 * BLOCK, BLOCK as u32, maker.clone())).unwrap();
        // While nobody may write, what is read waits, and the runtime ends.
        let turns = runtime().block_on(store.writers().acquire_many_owned(4)).unwrap();
        assert_eq!(runtime().block_on(read(&object, 0..BLOCK)).unwrap(), expect(0..BLOCK));
        drop(turns);
        store.sync();
        assert_eq!(object.ready(), 0, "nobody has written it");
        assert!(runtime().block_on(object.warm(0..2 * BLOCK)).unwrap());
        assert_eq!(object.ready(), 2 * BLOCK);
        assert_eq!(maker.counts(), [(0, 2), (1, 1)].into());
    }

    // On a clock that goes on when nothing else is to be done.
    #[tokio::test(start_paused = true)]
    async fn much_is_sent_from_where_it_was_written_unless_that_takes_long() {
        const LEN: u64 = FROM_FILE as u64;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 30).unwrap();
        let object = store.object(&key("a"), 8 * LEN, BLOCK as u32, Maker::new()).await.unwrap();
        let get = async |range: Range<u64>| {
            let (mut spans, began) = (Spans::new(), Instant::now());
            object.get_exactly(range.clone(), &mut spans).await.unwrap();
            let took = began.elapsed();
            assert!(bytes_of(&spans) == expect(range));
            (spans.iter().all(|span| matches!(span, Span::File { .. })), took)
        };
        assert_eq!(get(0..LEN).await, (true, Duration::ZERO));
        assert!(!get(LEN..LEN + BLOCK).await.0, "little is there before it is written");
        let turns = store.writers().acquire_many_owned(4).await.unwrap();
        let (from_file, took) = get(2 * LEN..3 * LEN).await;
        assert!(!from_file && took >= PROMPT, "{took:?}");
        assert_eq!(
            get(3 * LEN..4 * LEN).await,
            (false, Duration::ZERO),
            "nobody waits for a disk that is behind"
        );
        drop(turns);
        assert!(object.warm(2 * LEN..4 * LEN).await.unwrap());
        assert!(get(2 * LEN..4 * LEN).await.0);
    }

    /// Makes zeros, but for the first block.
    struct Sparse;

    impl Fill for Sparse {
        async fn fill(&self, range: Range<u64>) -> Result<Pieces, Error> {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            bytes[..BLOCK as usize].fill(1);
            Ok(vec![(range.start, bytes.into())])
        }
    }

    #[tokio::test(start_paused = true)]
    async fn zeros_come_from_memory_for_the_file_has_holes_there() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 30).unwrap();
        let object = store.object(&key("a"), 1 << 20, BLOCK as u32, Sparse).await.unwrap();
        let (mut spans, began) = (Spans::new(), Instant::now());
        object.get_exactly(0..1 << 20, &mut spans).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO);
        assert!(spans.iter().all(|span| matches!(span, Span::Bytes(_))));
        assert!(object.warm(0..1 << 20).await.unwrap());
    }

    #[tokio::test(start_paused = true)]
    async fn what_cannot_be_written_comes_from_memory() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 20).unwrap();
        let object = store.object(&key("a"), 8 << 20, 65536, Maker::new()).await.unwrap();
        let range = 0..2 << 20;
        let (mut spans, began) = (Spans::new(), Instant::now());
        object.get_exactly(range.clone(), &mut spans).await.unwrap();
        assert_eq!(began.elapsed(), Duration::ZERO, "there is nothing to wait for");
        assert!(bytes_of(&spans) == expect(range));
        assert!(spans.iter().all(|span| matches!(span, Span::Bytes(_))));
    }

    /// Makes bytes in pieces of two blocks, and leaves out every third block.
    struct Pieced;

    impl Fill for Pieced {
        async fn fill(&self, range: Range<u64>) -> Result<Pieces, Error> {
            let blocks: Vec<u64> =
                (range.start / BLOCK..range.end.div_ceil(BLOCK)).filter(|n| n % 3 != 2).collect();
            let runs = blocks.chunk_by(|a, b| a + 1 == *b);
            Ok(runs
                .map(|run| run[0] * BLOCK..((run[run.len() - 1] + 1) * BLOCK).min(range.end))
                .map(|range| (range.start, expect(range).into()))
                .collect())
        }
    }

    #[tokio::test]
    async fn what_a_fill_leaves_out_is_neither_stored_nor_given() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), 1 << 30).unwrap();
        let size = 11 * BLOCK - 100;
        let object = store.object(&key("pieces"), size, BLOCK as u32, Pieced).await.unwrap();
        let mut spans = Spans::new();
        let error = object.get(0..size, &mut spans).await.unwrap_err();
        assert_eq!((error.kind, spans.len()), (Kind::BadAnswer, 0));
        for blocks in [0..2, 3..5, 6..8, 9..11] {
            let range = blocks.start * BLOCK..(blocks.end * BLOCK).min(size);
            assert!(object.warm(range.clone()).await.unwrap());
            let mut spans = Spans::new();
            assert!(object.peek(range.clone(), &mut spans), "{range:?}");
        }
        assert_eq!(object.ready(), 8 * BLOCK - 100);
        assert!(object.get(2 * BLOCK..3 * BLOCK, &mut spans).await.is_err(), "it does not wait for ever");
        assert!(Arc::strong_count(&object) == 1);
    }
}
