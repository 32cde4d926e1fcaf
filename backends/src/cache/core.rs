//! What all users of one cached object share: its files, and what is known of its blocks.

use super::ahead::Streams;
use super::bits::Bits;
use super::disk::{self, Disk, Geometry};
use super::flight::Table;
use super::mapped::Mapped;
use super::recent::Recent;
use super::store::{Reserved, Shared};
use super::writer::Queue;
use super::{Key, Lease, Pieces, Span};
use arc_swap::ArcSwapOption;
use bytes::Bytes;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

/// What all [`Object`](super::Object)s of one key share.
#[derive(Debug)]
pub(super) struct Core {
    /// The name in the store's table, and of the directory.
    pub(super) name: String,
    pub(super) key: Key,
    pub(super) geometry: Geometry,
    pub(super) store: Arc<Shared>,
    /// The files, while this process owns the store and they can be opened.
    disk: ArcSwapOption<Disk>,
    /// Another process's files, to read from while it owns the store.
    foreign: ArcSwapOption<Disk>,
    /// What spans hold; see the module about eviction. None without files.
    pub(super) lease: ArcSwapOption<Lease>,
    state: Mutex<State>,
    /// Held while files are opened.
    opening: Mutex<()>,
    /// Blocks that are in the file and whole.
    pub(super) ready: Bits,
    /// Blocks that were in the index when somebody asked what is local; they are not ready until they are looked at.
    recorded: OnceLock<Bits>,
    /// Blocks that were used again after they were fetched, since the last time eviction looked.
    pub(super) touched: Bits,
    recent: Recent,
    pub(super) flights: Arc<Table>,
    /// Who reads in sequence, and the blocks at whose reading more is fetched.
    pub(super) streams: Mutex<Streams>,
    pub(super) marks: Bits,
    /// Blocks that were fetched ahead and not asked for yet.
    pub(super) unread: Bits,
    /// Whether there ever were such blocks.
    pub(super) ahead: AtomicBool,
    /// Blocks on their way to the file.
    pub(super) queue: Queue,
    /// Bytes reserved in the store and written since its accounts last looked at the files.
    pub(super) written: AtomicU64,
    /// Where eviction goes on.
    pub(super) hand: AtomicU64,
}

/// What changes when blocks become ready, and when files come and go.
#[derive(Debug, Default)]
struct State {
    /// How often what was being stored or looked at became worth nothing.
    generation: u64,
    /// Checksums of stored blocks that are not in the index yet.
    unsaved: Vec<(u64, u64)>,
    /// The file that was let go of: spans may refer to it, and whoever holds one of its leases acts on bits that say what
    /// is ready. Until all have finished no other is opened.
    left: Weak<File>,
    /// Whether the file system has no files of such a size.
    too_large: bool,
}

impl Core {
    pub(super) fn new(store: Arc<Shared>, name: String, key: Key, geometry: Geometry) -> Core {
        let max = store.max();
        // Nothing is ever ready of what is not kept.
        let blocks = if geometry.is_kept() { geometry.blocks() } else { 0 };
        if blocks == 0 && geometry.size > 0 {
            let Geometry { size, .. } = geometry;
            tracing::warn!("{}: {size} bytes are too many to be cached", key.identity.location);
        }
        Core {
            name,
            key,
            geometry,
            store,
            disk: ArcSwapOption::empty(),
            foreign: ArcSwapOption::empty(),
            lease: ArcSwapOption::empty(),
            state: Mutex::default(),
            opening: Mutex::default(),
            ready: Bits::new(blocks),
            recorded: OnceLock::new(),
            touched: Bits::new(blocks),
            recent: Recent::new(),
            flights: Arc::default(),
            streams: Mutex::new(Streams::new(geometry.block, geometry.blocks(), max)),
            marks: Bits::new(blocks),
            unread: Bits::new(blocks),
            ahead: AtomicBool::new(false),
            queue: Queue::default(),
            written: AtomicU64::new(0),
            hand: AtomicU64::new(0),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in there is left half changed by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where its files are.
    pub(super) fn directory(&self) -> PathBuf {
        self.store.root().join(&self.name)
    }

    /// Whether nothing of it outlives this process, since nothing says which version of the object it is.
    pub(super) fn nameless(&self) -> bool {
        self.key.identity.validator.is_empty()
    }

    /// Opens the files for writing, unless they are open, if now is a time for it; the keeper tries again. The caller's
    /// process owns the store. Waits for the disk, and for another who is at it.
    pub(super) fn own(&self) {
        let _opening = self.opening.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        let left = state.left.strong_count() > 0 || state.too_large;
        drop(state);
        let owned = self.store.owned_still();
        if owned.is_none()
            || left
            || self.is_open()
            || !self.geometry.is_kept()
            || !self.store.health.is_well()
        {
            return;
        }
        let directory = self.directory();
        let _room = match self.nameless() || disk::read_meta(&directory).is_err() {
            true => match self.store.reserve_files() {
                Some(room) => Some(room),
                None => return,
            },
            false => None,
        };
        let opened = match self.nameless() {
            true => Disk::nameless(self.store.root(), self.geometry),
            false => Disk::own(&directory, &self.key, self.geometry)
                .and_then(|disk| disk::touch(&directory).map(|()| disk)),
        };
        match opened {
            Ok(disk) => {
                // If the directory was replaced meanwhile these may be another process's files.
                if self.store.owned_still() != owned {
                    return;
                }
                let state = self.state();
                // Who lets go of the store says so first, and then lets go of the files that are here.
                if self.store.owned() != owned {
                    return;
                }
                self.lease.store(Some(Lease::of(disk.data().clone())));
                self.disk.store(Some(Arc::new(disk)));
                drop(state);
                self.store.account(self);
            }
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                self.state().too_large = true;
                let _ = std::fs::remove_dir_all(&directory);
                let (location, dir) = (&self.key.identity.location, self.store.root().display());
                let Geometry { size, .. } = self.geometry;
                tracing::warn!("{location}: {size} bytes are too many for a file in {dir}: not cached");
            }
            Err(error) => self.store.failed("an object's files cannot be opened", &error),
        }
    }

    /// Whether the files may be written to.
    pub(super) fn is_open(&self) -> bool {
        self.disk.load().is_some()
    }

    /// The files, if they may be written to.
    pub(super) fn disk(&self) -> Option<Arc<Disk>> {
        self.disk.load_full()
    }

    /// Lets go of the files: nothing of them is ready any more, and those that [`own`](Self::own) opens later may be others.
    /// What spans refer to stays as it is.
    pub(super) fn abandon(&self) {
        let mut state = self.state();
        let Some(disk) = self.disk.swap(None) else { return };
        state.left = Arc::downgrade(disk.data());
        state.generation += 1;
        state.unsaved.clear();
        self.lease.store(None);
        self.ready.reset();
        if let Some(recorded) = self.recorded.get() {
            recorded.reset();
        }
    }

    /// Lets go of the files if somebody has cut one short, and says whether that is so.
    pub(super) fn abandon_if_short(&self, disk: &Disk) -> bool {
        let short = !disk.is_whole();
        if short {
            tracing::warn!("{}: a file became shorter; it is filled anew", self.directory().display());
            self.abandon();
        }
        short
    }

    /// The files, to look for blocks in.
    pub(super) fn look<T>(&self, with: impl FnOnce(&Disk) -> T) -> Option<T> {
        if let Some(disk) = self.disk() {
            return Some(with(&disk));
        }
        let directory = self.directory();
        // The other process may have removed what it had, and made it again.
        let known = self.foreign.load_full().filter(|disk| disk.is_in(&directory));
        let disk = match known {
            Some(disk) => disk,
            None => Arc::new(Disk::read_only(&directory, &self.key, self.geometry).ok()?),
        };
        self.foreign.store(Some(disk.clone()));
        Some(with(&disk))
    }

    /// Whether nothing of it was in the store when it was opened.
    pub(super) fn is_fresh(&self) -> bool {
        self.disk.load().as_ref().is_some_and(|disk| disk.fresh)
    }

    /// Whether every block of `blocks` can be sent from the file. Whoever acts on it took the lease before asking.
    pub(super) fn is_ready(&self, blocks: Range<u64>) -> bool {
        self.ready.all(blocks)
    }

    /// Notes that `range` was used, and was there. The first use of what was fetched ahead is the one that fetched the others.
    pub(super) fn touch(&self, range: &Range<u64>) {
        let ahead = self.ahead.load(Ordering::Relaxed);
        for block in self.geometry.touched(range) {
            if ahead && self.unread.get(block) {
                self.unread.clear(block);
                self.goes_on(block, range);
            } else if !self.touched.get(block) && !self.goes_on(block, range) {
                self.touched.set(block..block + 1);
            }
        }
    }

    /// Notes that `range` is fetched for somebody, which is its first use.
    pub(super) fn wanted(&self, range: &Range<u64>) {
        for block in self.geometry.touched(range) {
            self.goes_on(block, range);
        }
    }

    /// Whether to read what of `range` is in `block` goes on with what a reader was doing.
    fn goes_on(&self, block: u64, range: &Range<u64>) -> bool {
        let start = block * self.geometry.block;
        let within = range.start.max(start) - start..(range.end - start).min(self.geometry.block);
        self.recent.goes_on(block, &within, self.geometry.block)
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

    /// Whether `block` is in the file, as far as can be said without reading it, and the first block after it, `end` at most,
    /// of which the other holds.
    pub(super) fn locality(&self, block: u64, end: u64) -> (bool, u64) {
        let look = |at: u64| {
            let (ready, same) = self.ready.run(at, end);
            match self.recorded.get() {
                Some(recorded) if !ready => {
                    let (recorded, also) = recorded.run(at, end);
                    (recorded, if recorded { also } else { same.min(also) })
                }
                _ => (ready, same),
            }
        };
        let (local, mut at) = look(block);
        while at < end {
            let (other, next) = look(at);
            if other != local {
                break;
            }
            at = next;
        }
        (local, at)
    }

    /// Finds out which blocks an earlier process left. Waits for the disk.
    pub(super) fn take_stock(&self) {
        self.recorded.get_or_init(|| {
            let bits = Bits::new(if self.geometry.is_kept() { self.geometry.blocks() } else { 0 });
            let left = self.look(Disk::recorded).and_then(Result::ok).unwrap_or_default();
            left.into_iter().for_each(|run| bits.set(run));
            bits
        });
    }

    /// Whether somebody has asked what an earlier process left.
    pub(super) fn has_taken_stock(&self) -> bool {
        self.recorded.get().is_some()
    }

    /// Replaces the lease, and returns what spans handed out before hold, with its map. Once that is gone nobody uses a
    /// block that was made unready before.
    pub(super) fn renew_lease(&self) -> Option<(Weak<Lease>, Arc<Mapped>)> {
        // So that none comes back that was let go of.
        let _state = self.state();
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
    pub(super) async fn load(self: &Arc<Self>, blocks: Range<u64>, except: &[u64]) -> Vec<Option<Span>> {
        let mut found = vec![None; (blocks.end - blocks.start) as usize];
        if self.nameless() || self.is_fresh() {
            return found;
        }
        let nothing = found.clone();
        let generation = self.state().generation;
        let lease = self.lease.load_full();
        let (core, range, except) = (self.clone(), blocks.clone(), except.to_vec());
        let look = move || {
            core.look(|disk| {
                disk.read(range.clone(), |block, bytes| {
                    let (offset, len) = (block * core.geometry.block, bytes.len() as u64);
                    let span = match &lease {
                        Some(lease) if disk.is_of(lease) && !except.contains(&block) => {
                            Span::File { lease: lease.clone(), offset, len }
                        }
                        _ => Span::Bytes(bytes),
                    };
                    found[(block - range.start) as usize] = Some(span);
                });
            })?;
            Some(found)
        };
        let Some(found) = self.store.ask(look).await.flatten() else { return nothing };
        let state = self.state();
        if state.generation == generation {
            let in_file = |span: &Option<Span>| matches!(span, Some(Span::File { .. }));
            blocks
                .zip(&found)
                .filter(|(_, span)| in_file(span))
                .for_each(|(block, _)| self.ready.set(block..block + 1));
        }
        drop(state);
        found
    }

    /// Writes `bytes`, whole blocks from `first` on, to the file, and makes them ready. Waits for the disk.
    pub(super) fn store_blocks(self: &Arc<Self>, first: u64, bytes: &[u8], reserved: Reserved) {
        let generation = self.state().generation;
        let Some(disk) = self.disk() else { return };
        if self.abandon_if_short(&disk) {
            return;
        }
        let result = disk.store(first, bytes);
        reserved.written(self);
        match result {
            // It may have become so while it was being written.
            Ok(_) if self.abandon_if_short(&disk) => {}
            Ok(sums) => {
                let mut state = self.state();
                if state.generation == generation {
                    self.ready.set(first..first + sums.len() as u64);
                    state.unsaved.extend(sums);
                    drop(state);
                    self.store.dirty(self);
                }
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

    /// Makes durable what was stored, and then the checksums that vouch for it; whether that is done. May wait for the disk.
    pub(super) fn save(&self) -> bool {
        let mut state = self.state();
        let mut sums = std::mem::take(&mut state.unsaved);
        let disk = self.disk().filter(|_| !sums.is_empty());
        drop(state);
        let Some(disk) = disk else { return true };
        sums.sort_unstable_by_key(|(block, _)| *block);
        sums.dedup_by_key(|(block, _)| *block);
        let saved = disk.record(&sums);
        if let Err(error) = &saved {
            // What the page cache still shows may not be what the disk will say later. The kernel tells of it once, so that
            // goes for all that was written until now as well.
            let mut state = self.state();
            state.generation += 1;
            sums.append(&mut state.unsaved);
            sums.iter().for_each(|(block, _)| self.unready(*block..block + 1));
            drop(state);
            self.store.failed("blocks cannot be made durable", error);
        }
        self.store.account(self);
        saved.is_ok()
    }

    /// Forgets that `blocks`, which are not ready any more, are to be recorded.
    pub(super) fn forget(&self, blocks: &[Range<u64>]) {
        self.state().unsaved.retain(|(block, _)| !blocks.iter().any(|run| run.contains(block)));
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.store.closed(self);
    }
}
