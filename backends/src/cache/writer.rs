//! What was fetched, on its way to an object's file.
//!
//! One thread at a time writes to a file: those that wait for one in the kernel wait awake. It goes on with what has come
//! meanwhile by itself, so that fetched memory is soon free again however busy the processors are.

use super::flight::Pilot;
use super::object::Core;
use super::store::{Landing, Reserved};
use bytes::Bytes;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Bytes after which a thread has others write, of whose objects more may wait than there are threads.
const TURN: usize = 16 << 20;

/// A flight that has delivered and is not over yet. The pilot goes first: who waits for the landing finds the blocks ready.
pub(super) struct Landed {
    pub(super) _pilot: Pilot,
    pub(super) _landing: Landing,
}

/// Whole blocks to be written.
struct Piece {
    first: u64,
    bytes: Bytes,
    reserved: Reserved,
    /// Over when all its pieces are.
    _flight: Arc<Landed>,
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
}

/// The right to write. Where it is dropped unused, by a runtime that ends, what waits is not written.
struct Pen(Option<Arc<Core>>);

impl Drop for Pen {
    fn drop(&mut self) {
        let Some(core) = &self.0 else { return };
        let mut queue = core.queue.lock();
        queue.taken = false;
        let unwritten = std::mem::take(&mut queue.pieces);
        // Pilots take locks of their own.
        drop(queue);
        drop(unwritten);
    }
}

impl Pen {
    /// Writes until nothing waits, and lays the pen down; or until others should have their turn, and returns it.
    fn write(mut self) -> Option<Pen> {
        let core = self.0.clone()?;
        let mut written = 0;
        while written < TURN {
            let piece = {
                let mut queue = core.queue.lock();
                let piece = queue.pieces.pop_front();
                queue.taken = piece.is_some();
                piece
            };
            let Some(piece) = piece else {
                self.0 = None;
                return None;
            };
            written += piece.bytes.len();
            core.store_blocks(piece.first, &piece.bytes, piece.reserved);
        }
        Some(self)
    }
}

/// Has whole blocks written, from `first` on, if there is a file and room for them. What goes wrong is the store's affair;
/// the bytes are with those who asked for them already. `flight` is over after that. Must run in a tokio runtime.
pub(super) fn keep(core: &Arc<Core>, first: u64, bytes: Bytes, flight: Arc<Landed>) {
    if core.disk().is_none() || !core.store.is_well() {
        return;
    }
    let Some(reserved) = core.store.reserve(bytes.len() as u64) else { return };
    let mut queue = core.queue.lock();
    queue.pieces.push_back(Piece { first, bytes, reserved, _flight: flight });
    let taken = std::mem::replace(&mut queue.taken, true);
    drop(queue);
    if !taken {
        tokio::spawn(write(Pen(Some(core.clone()))));
    }
}

async fn write(pen: Pen) {
    let Some(core) = pen.0.clone() else { return };
    let mut pen = Some(pen);
    while let Some(held) = pen.take() {
        // Never closed.
        let Ok(_turn) = core.store.writers.acquire().await else { return };
        // Left to itself if the runtime ends: then nothing becomes ready, and the bytes are fetched another time.
        pen = tokio::task::spawn_blocking(move || held.write()).await.ok().flatten();
    }
}
