//! The store's thread: saves, evicts, and waits to become the owner.
//!
//! Eviction takes the blocks that were not used again since it last had to look at all of them: a block that was
//! fetched and never came back goes before one that was used twice, so that a copy of a whole image does not drive
//! out what machines boot from. Objects that are not open go first, the one opened longest ago before the others.

use super::Lease;
use super::core::Core;
use super::disk::{self, Disk};
use super::flight;
use super::mapped::Mapped;
use super::store::Shared;
use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

/// How long stored blocks may stay unsaved.
const SAVE_EVERY: Duration = Duration::from_secs(2);

/// How often to see whether blocks that are being sent are done with, when eviction waits for that.
const PUNCH_EVERY: Duration = Duration::from_millis(10);

/// After how long a client that is being sent blocks is taken to have stalled.
const STALLED: Duration = Duration::from_secs(5);

/// How many blocks are examined in one go while their object's flights wait.
const SWEEP: u64 = 1024;

/// Wakes the keeper.
#[derive(Debug, Default)]
pub(super) struct Bell {
    rung: Mutex<bool>,
    wake: Condvar,
}

impl Bell {
    pub(super) fn ring(&self) {
        *self.rung.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.wake.notify_one();
    }

    /// Waits until it is rung, or for `most`.
    fn wait(&self, most: Duration) {
        let rung = self.rung.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut rung, _) =
            self.wake.wait_timeout_while(rung, most, |rung| !*rung).unwrap_or_else(PoisonError::into_inner);
        *rung = false;
    }
}

/// Starts the thread. It ends with the store.
pub(super) fn start(store: &Arc<Shared>) -> io::Result<()> {
    let (bell, store) = (store.bell.clone(), Arc::downgrade(store));
    let run = move || {
        let mut keeper = Keeper { evicting: Vec::new(), turn: 0 };
        loop {
            bell.wait(if keeper.evicting.is_empty() { SAVE_EVERY } else { PUNCH_EVERY });
            let Some(store) = store.upgrade() else { return };
            store.check_lock();
            if let Err(error) = store.try_own() {
                store.failed("the cache cannot be taken over", &error);
            }
            if store.owner() {
                let _ = store.save();
                keeper.punch(&store);
                keeper.evict(&store);
                let live = live(&store);
                keeper.renew(&live);
                // Those whose files could not be opened, or had to be let go of.
                live.iter().filter(|core| !core.is_open()).for_each(|core| core.own());
            }
        }
    };
    std::thread::Builder::new().name("thinorigin-cache".to_owned()).spawn(run).map(|_| ())
}

/// The objects that are open.
fn live(store: &Shared) -> Vec<Arc<Core>> {
    store.objects().values().filter_map(|entry| entry.core.upgrade()).collect()
}

struct Keeper {
    evicting: Vec<Eviction>,
    /// Which object eviction begins with, so that all have their turn.
    turn: usize,
}

/// Blocks that are to be punched once nobody is sending them.
struct Eviction {
    core: Arc<Core>,
    blocks: Vec<Range<u64>>,
    lease: Weak<Lease>,
    /// So that, if nobody else needs it any more, it is unmapped by the keeper, and none of those who serve has to.
    _map: Option<Arc<Mapped>>,
    len: u64,
    began: Instant,
}

impl Keeper {
    /// Punches what nobody uses any more.
    fn punch(&mut self, store: &Shared) {
        // A span may hold a lease from before several evictions and refer to a victim of any of them, so those of one
        // object are over in the order in which they began.
        let mut waiting: Vec<Arc<Core>> = Vec::new();
        self.evicting.retain(|eviction| {
            let core = &eviction.core;
            if waiting.iter().any(|other| Arc::ptr_eq(other, core)) {
                return true;
            }
            if eviction.lease.strong_count() > 0 {
                waiting.push(core.clone());
                return true;
            }
            if let Some(disk) = core.disk().filter(|_| !eviction.blocks.is_empty()) {
                // Nobody writes their checksums after that.
                let _saving = store.saving();
                core.forget(&eviction.blocks);
                for blocks in &eviction.blocks {
                    if let Err(error) = disk.punch(blocks) {
                        core.store.failed("blocks cannot be evicted", &error);
                    }
                }
            }
            let mut flights = flight::lock(&core.flights);
            for block in eviction.blocks.iter().cloned().flatten() {
                flights.evicting.remove(&block);
            }
            drop(flights);
            core.store.account(core);
            false
        });
    }

    /// Brings the store below its limit, as far as blocks in use allow.
    fn evict(&mut self, store: &Arc<Shared>) {
        // What a client that has stalled holds is not counted on.
        let soon = self.evicting.iter().filter(|eviction| eviction.began.elapsed() < STALLED);
        let under_way: u64 = soon.map(|eviction| eviction.len).sum();
        let mut goal = store.excess().saturating_sub(under_way);
        if goal == 0 {
            return;
        }
        goal = goal.saturating_sub(evict_closed(store, goal));
        let mut live = live(store);
        live.retain(|core| core.is_open());
        if live.is_empty() {
            return;
        }
        self.turn += 1;
        let turn = self.turn % live.len();
        live.rotate_left(turn);
        for again in [false, true] {
            for core in &live {
                if goal > 0 {
                    goal = goal.saturating_sub(self.sweep(core, goal));
                }
            }
            if goal == 0 || again {
                break;
            }
            // Too little is cold: what was used counts as used no longer.
            live.iter().for_each(|core| core.touched.reset());
        }
        self.punch(store);
    }

    /// Renews leases whose maps have served their time.
    fn renew(&mut self, live: &[Arc<Core>]) {
        for core in live.iter().filter(|core| core.has_worn_lease()) {
            // In its turn among evictions, though it evicts nothing: what waits for a lease waits for all before it.
            self.replace_lease(core, Vec::new(), 0);
        }
    }

    /// Has `blocks` of `core`, `len` bytes, punched once nobody has a lease that is older than this.
    fn replace_lease(&mut self, core: &Arc<Core>, blocks: Vec<Range<u64>>, len: u64) {
        // Without one nobody has to be waited for.
        let (lease, map) = core.renew_lease().map_or((Weak::new(), None), |(lease, map)| (lease, Some(map)));
        let (core, began) = (core.clone(), Instant::now());
        self.evicting.push(Eviction { core, blocks, lease, _map: map, len, began });
    }

    /// Chooses up to `goal` bytes of cold blocks of `core`, and makes them unready. Returns how many bytes it chose.
    fn sweep(&mut self, core: &Arc<Core>, goal: u64) -> u64 {
        let Some(disk) = core.disk() else { return 0 };
        let (mut victims, mut len) = (Vec::new(), 0);
        let start = core.hand.load(Ordering::Relaxed);
        let mut at = start;
        // Once around, from where the last sweep ended.
        let mut wrapped = false;
        while len < goal {
            let Some(run) = disk.stored(at).filter(|run| !wrapped || run.start < start) else {
                if wrapped || start == 0 {
                    at = 0;
                    break;
                }
                (at, wrapped) = (0, true);
                continue;
            };
            let run = run.start.max(at)..run.end.min(run.start.max(at) + SWEEP);
            let mut flights = flight::lock(&core.flights);
            for block in run.clone() {
                if len >= goal {
                    break;
                }
                let busy = flights.covering(block).is_some() || flights.evicting.contains(&block);
                if !busy && !core.touched.get(block) {
                    core.unready(block..block + 1);
                    flights.evicting.insert(block);
                    len += core.geometry.block;
                    match victims.last_mut() {
                        Some(last @ Range { .. }) if last.end == block => last.end = block + 1,
                        _ => victims.push(block..block + 1),
                    }
                }
            }
            at = run.end;
        }
        core.hand.store(at, Ordering::Relaxed);
        if !victims.is_empty()
            && let Err(error) = disk::clear_complete(&core.directory())
        {
            core.store.failed("an object cannot be marked as incomplete", &error);
        }
        if !victims.is_empty() {
            self.replace_lease(core, victims, len);
        }
        len
    }
}

/// Takes up to `goal` bytes from objects that are not open, and removes those that are empty then. Returns how much
/// it took.
fn evict_closed(store: &Shared, goal: u64) -> u64 {
    let mut closed: Vec<_> = store
        .objects()
        .iter()
        .filter(|(_, entry)| entry.core.strong_count() == 0)
        .map(|(name, _)| (disk::opened(&store.root().join(name)), name.clone()))
        .collect();
    closed.sort();
    let mut taken = 0;
    for (_, name) in closed {
        if taken >= goal {
            break;
        }
        let mut objects = store.objects();
        let Some(entry) = objects.get_mut(&name).filter(|entry| entry.core.strong_count() == 0) else {
            continue;
        };
        // Nobody opens its files meanwhile.
        entry.evicting = true;
        drop(objects);
        let directory = store.root().join(&name);
        let left = shrink(store, &directory, goal - taken).unwrap_or(0);
        let gone = match if left == 0 { std::fs::remove_dir_all(&directory) } else { Ok(()) } {
            // Others have removed it.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        };
        let mut objects = store.objects();
        store.evicted.notify_all();
        let Some(entry) = objects.get_mut(&name) else { continue };
        entry.evicting = false;
        match &gone {
            Ok(()) => {
                taken += entry.allocated.saturating_sub(left);
                store.took(entry, left);
            }
            Err(error) => store.failed("an object cannot be evicted", error),
        }
        if left == 0 && gone.is_ok() && entry.core.strong_count() == 0 {
            objects.remove(&name);
        }
    }
    taken
}

/// Punches blocks out of the object in `directory` until `goal` bytes are free. Returns what it still takes, 0 if no
/// block is left. An object that cannot be understood is an error, and of no use.
fn shrink(store: &Shared, directory: &std::path::Path, goal: u64) -> io::Result<u64> {
    let (key, geometry) = disk::read_meta(directory)?;
    let owned = store.owned();
    let disk = Disk::own(directory, &key, geometry)?;
    if store.owned_still() != owned {
        // Another process's.
        return Ok(disk.allocated());
    }
    disk::clear_complete(directory)?;
    let (mut at, mut freed) = (0, 0);
    while let Some(run) = disk.stored(at) {
        if freed >= goal {
            return Ok(disk.allocated());
        }
        let run = run.start..run.end.min(run.start + (goal - freed).div_ceil(geometry.block));
        disk.punch(&run)?;
        freed += (run.end - run.start) * geometry.block;
        at = run.end;
    }
    Ok(0)
}
