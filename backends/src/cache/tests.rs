mod restart;
mod trouble;

use super::*;
use crate::{Identity, Kind};
use std::collections::HashMap;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

pub(super) const BLOCK: u64 = 4096;

/// Makes bytes that tell their place, counts, and fails or waits on request.
#[derive(Clone)]
pub(super) struct Maker(Arc<Made>);

pub(super) struct Made {
    ranges: Mutex<Vec<Range<u64>>>,
    gate: Semaphore,
    fail: AtomicUsize,
    panic: AtomicBool,
    short: AtomicBool,
}

fn byte(at: u64) -> u8 {
    ((at / 7) ^ (at / BLOCK * 31)) as u8
}

pub(super) fn expect(range: Range<u64>) -> Vec<u8> {
    range.map(byte).collect()
}

/// Makes all but one block, the sixth; and nothing together with that one.
struct AllButOne(Maker);

impl Fill for AllButOne {
    async fn fill(&self, range: Range<u64>) -> Result<Pieces, Error> {
        let made = self.0.fill(range.clone()).await?;
        match range.contains(&(5 * BLOCK)) {
            true => Err(Error::new(Kind::Io, "that one is damaged")),
            false => Ok(made),
        }
    }
}

#[tokio::test]
async fn a_block_that_cannot_be_had_does_not_fail_others_that_were_asked_for_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let maker = Maker::shut();
    let object = store.object(&key("a"), 10 * BLOCK, BLOCK as u32, AllButOne(maker.clone())).await.unwrap();
    let get = |range: Range<u64>| {
        let object = object.clone();
        tokio::spawn(async move {
            let mut spans = Spans::new();
            object.get_exactly(range, &mut spans).await.map(|()| spans.iter().map(Span::len).sum::<u64>())
        })
    };
    let all = get(0..10 * BLOCK);
    while maker.ranges().is_empty() {
        tokio::task::yield_now().await;
    }
    let (good, bad) = (get(BLOCK..3 * BLOCK), get(5 * BLOCK..6 * BLOCK));
    tokio::task::yield_now().await;
    maker.0.gate.add_permits(Semaphore::MAX_PERMITS / 2);
    assert_eq!(all.await.unwrap().unwrap_err().kind, Kind::Io);
    assert_eq!(good.await.unwrap().unwrap(), 2 * BLOCK);
    assert_eq!(bad.await.unwrap().unwrap_err().kind, Kind::Io);
    assert_eq!(maker.ranges().len(), 3, "each is asked for alone once more");
}

impl Maker {
    pub(super) fn new() -> Maker {
        let gate = Semaphore::new(Semaphore::MAX_PERMITS);
        Maker(Arc::new(Made {
            ranges: Mutex::default(),
            gate,
            fail: AtomicUsize::new(0),
            panic: AtomicBool::new(false),
            short: AtomicBool::new(false),
        }))
    }

    /// One that makes nothing until permits are added.
    fn shut() -> Maker {
        let maker = Maker::new();
        maker.0.gate.forget_permits(Semaphore::MAX_PERMITS);
        maker
    }

    fn ranges(&self) -> Vec<Range<u64>> {
        self.0.ranges.lock().unwrap().clone()
    }

    /// How often each block was made.
    pub(super) fn counts(&self) -> HashMap<u64, usize> {
        let mut counts = HashMap::new();
        for block in self.ranges().into_iter().flat_map(|r| r.start / BLOCK..r.end.div_ceil(BLOCK)) {
            *counts.entry(block).or_default() += 1;
        }
        counts
    }
}

impl Fill for Maker {
    async fn fill(&self, range: Range<u64>) -> Result<Pieces, Error> {
        self.0.ranges.lock().unwrap().push(range.clone());
        self.0.gate.acquire().await.unwrap().forget();
        assert!(!self.0.panic.swap(false, Ordering::SeqCst), "as asked for");
        if self.0.fail.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok() {
            return Err(Error::new(Kind::Unreachable, "as asked for"));
        }
        if self.0.short.swap(false, Ordering::SeqCst) {
            return Ok(vec![(range.start, expect(range.start..range.end - 1).into())]);
        }
        Ok(vec![(range.start, expect(range).into())])
    }
}

pub(super) fn key(name: &str) -> Key {
    let identity = Identity { location: name.into(), size: 1, validator: "etag:\"1\"".into() };
    Key { identity, part: "raw".into() }
}

pub(super) fn bytes_of(spans: &Spans) -> Vec<u8> {
    let mut out = Vec::new();
    for span in spans {
        match span {
            Span::Bytes(bytes) => out.extend_from_slice(bytes),
            Span::File { lease, offset, len } => {
                let mut bytes = vec![0; *len as usize];
                lease.read_exact_at(&mut bytes, *offset).unwrap();
                out.extend(bytes);
            }
        }
    }
    out
}

pub(super) async fn read(object: &Arc<Object<Maker>>, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let mut spans = Spans::new();
    object.get(range, &mut spans).await?;
    Ok(bytes_of(&spans))
}

/// An object of 100 blocks, the last one short, in a new store.
struct Case {
    dir: tempfile::TempDir,
    store: Store,
    maker: Maker,
    object: Arc<Object<Maker>>,
}

const SIZE: u64 = 100 * BLOCK - 100;

async fn case(maker: Maker) -> Case {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let object = store.object(&key("a"), SIZE, BLOCK as u32, maker.clone()).await.unwrap();
    Case { dir, store, maker, object }
}

/// The only object's directory.
fn object_dir(dir: &Path) -> std::path::PathBuf {
    std::fs::read_dir(dir.join("objects")).unwrap().next().unwrap().unwrap().path()
}

#[tokio::test]
async fn ranges_are_exact_cold_and_warm() {
    let case = case(Maker::new()).await;
    let ranges = [
        0..1,
        1..BLOCK,
        BLOCK - 1..BLOCK + 1,
        0..SIZE,
        SIZE - 1..SIZE,
        5 * BLOCK..9 * BLOCK,
        17..17,
        SIZE..SIZE,
    ];
    for range in ranges.iter().cloned().chain(ranges.iter().cloned()) {
        assert!(read(&case.object, range.clone()).await.unwrap() == expect(range.clone()), "{range:?}");
    }
    assert!(case.object.warm(0..SIZE).await.unwrap());
    assert_eq!(case.object.ready(), SIZE);
    for range in ranges {
        let mut spans = Spans::new();
        assert!(case.object.peek(range.clone(), &mut spans));
        assert!(spans.len() <= 1 && spans.iter().all(|span| matches!(span, Span::File { .. })));
        assert!(bytes_of(&spans) == expect(range));
    }
    let mut spans = Spans::new();
    assert!(!case.object.peek(0..SIZE + 1, &mut spans));
    assert_eq!(case.object.get(0..SIZE + 1, &mut spans).await.unwrap_err().kind, Kind::Range);
    assert!(spans.is_empty());
    assert!(case.maker.counts().values().all(|n| *n == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cold_block_is_fetched_once_however_many_ask() {
    let case = case(Maker::shut()).await;
    let readers: Vec<_> = (0..64)
        .map(|_| {
            let object = case.object.clone();
            tokio::spawn(async move { read(&object, 10..20).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut spans = Spans::new();
    assert!(!case.object.peek(10..20, &mut spans));
    case.maker.0.gate.add_permits(1);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap(), expect(10..20));
    }
    assert_eq!(case.maker.ranges(), vec![0..BLOCK; 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_on_random_blocks_fetch_none_twice() {
    let case = case(Maker::new()).await;
    let second = case.store.object(&key("a"), SIZE, BLOCK as u32, case.maker.clone()).await.unwrap();
    let readers: Vec<_> = (0..200u64)
        .map(|client| {
            let object = if client % 2 == 0 { case.object.clone() } else { second.clone() };
            tokio::spawn(async move {
                for i in 0..50u64 {
                    let start = (client * 7919 + i * 104_729) % (SIZE - 10_000);
                    let range = start..start + (client * i) % 10_000;
                    assert!(read(&object, range.clone()).await.unwrap() == expect(range));
                }
            })
        })
        .collect();
    for reader in readers {
        reader.await.unwrap();
    }
    assert!(case.maker.counts().values().all(|n| *n == 1));
}

#[tokio::test]
async fn neighbouring_misses_are_one_fetch() {
    let case = case(Maker::new()).await;
    read(&case.object, 0..10 * BLOCK).await.unwrap();
    case.object.warm(0..10 * BLOCK).await.unwrap();
    read(&case.object, 14 * BLOCK..15 * BLOCK).await.unwrap();
    case.object.warm(14 * BLOCK..15 * BLOCK).await.unwrap();
    read(&case.object, 5 * BLOCK..20 * BLOCK).await.unwrap();
    let blocks: Vec<_> = case.maker.ranges().into_iter().map(|r| r.start / BLOCK..r.end / BLOCK).collect();
    assert_eq!(blocks[..4], [0..10, 14..15, 10..14, 15..20], "and what is read ahead");
    // A large miss is several fetches at once.
    let big = case.store.object(&key("big"), 8 << 20, 65536, Maker::new()).await.unwrap();
    assert!(read(&big, 0..8 << 20).await.unwrap() == expect(0..8 << 20));
    assert_eq!(big.source().ranges().len(), 4);
}

#[tokio::test]
async fn a_departing_client_cancels_nothing() {
    let case = case(Maker::shut()).await;
    let leaver = tokio::spawn({
        let object = case.object.clone();
        async move { read(&object, 0..BLOCK).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    let stayer = tokio::spawn({
        let object = case.object.clone();
        async move { read(&object, 0..BLOCK).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    leaver.abort();
    assert!(leaver.await.is_err());
    case.maker.0.gate.add_permits(1);
    assert_eq!(stayer.await.unwrap().unwrap(), expect(0..BLOCK));
    assert_eq!(case.maker.ranges().len(), 1);
}

#[tokio::test]
async fn errors_reach_all_who_wait_and_are_not_kept() {
    let case = case(Maker::shut()).await;
    case.maker.0.fail.store(1, Ordering::SeqCst);
    let readers: Vec<_> = (0..8)
        .map(|_| {
            let object = case.object.clone();
            tokio::spawn(async move { read(&object, 0..BLOCK).await })
        })
        .collect();
    tokio::time::sleep(Duration::from_millis(20)).await;
    case.maker.0.gate.add_permits(1000);
    for reader in readers {
        assert_eq!(reader.await.unwrap().unwrap_err().kind, Kind::Unreachable);
    }
    assert_eq!(case.maker.ranges().len(), 1);
    assert_eq!(read(&case.object, 0..BLOCK).await.unwrap(), expect(0..BLOCK));
    // Nor is a fetch that panics a slot that hangs, nor a short one accepted.
    case.maker.0.panic.store(true, Ordering::SeqCst);
    assert!(read(&case.object, BLOCK..2 * BLOCK).await.is_err());
    case.maker.0.short.store(true, Ordering::SeqCst);
    assert_eq!(read(&case.object, BLOCK..2 * BLOCK).await.unwrap_err().kind, Kind::BadAnswer);
    assert_eq!(read(&case.object, BLOCK..2 * BLOCK).await.unwrap(), expect(BLOCK..2 * BLOCK));
}

/// Makes zeros, but for every fourth block.
struct Sparse;

impl Sparse {
    fn bytes(range: Range<u64>) -> Vec<u8> {
        range.map(|at| if (at / BLOCK).is_multiple_of(4) { byte(at) | 1 } else { 0 }).collect()
    }
}

impl Fill for Sparse {
    async fn fill(&self, range: Range<u64>) -> Result<Pieces, Error> {
        Ok(vec![(range.start, Sparse::bytes(range).into())])
    }
}

#[tokio::test]
async fn blocks_of_zeros_take_no_space() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..2 {
        let store = Store::open(dir.path(), 1 << 30).unwrap();
        let object = store.object(&key("sparse"), SIZE, BLOCK as u32, Sparse).await.unwrap();
        let mut spans = Spans::new();
        assert!(object.warm(0..SIZE).await.unwrap());
        object.get(0..SIZE, &mut spans).await.unwrap();
        assert!(spans.iter().all(|span| matches!(span, Span::File { .. })), "round {round}");
        assert!(bytes_of(&spans) == Sparse::bytes(0..SIZE), "round {round}");
        store.sync();
        let data = std::fs::metadata(object_dir(dir.path()).join("data")).unwrap();
        assert!(data.blocks() * 512 <= 26 * BLOCK, "{} bytes", data.blocks() * 512);
        drop((object, store));
        // What another program left where zeros should be is not taken for them.
        let file = File::options().write(true).open(object_dir(dir.path()).join("data")).unwrap();
        file.write_all_at(&[0xee; BLOCK as usize], 5 * BLOCK).unwrap();
    }
}

#[tokio::test]
async fn another_version_is_another_object() {
    let case = case(Maker::new()).await;
    read(&case.object, 0..BLOCK).await.unwrap();
    for change in 0..5 {
        let mut other = key("a");
        let (mut size, mut block) = (SIZE, BLOCK as u32);
        match change {
            0 => other.identity.validator = "etag:\"2\"".into(),
            1 => other.identity.location = "b".into(),
            2 => other.part = "decoded".into(),
            3 => size -= 1,
            _ => block *= 2,
        }
        let maker = Maker::new();
        let object = case.store.object(&other, size, block, maker.clone()).await.unwrap();
        read(&object, 0..1).await.unwrap();
        assert_eq!(maker.ranges().len(), 1, "change {change}");
    }
}

/// What the store takes on disk. Objects may be removed meanwhile.
fn on_disk(dir: &Path) -> u64 {
    let objects = std::fs::read_dir(dir.join("objects")).unwrap().flatten();
    let files = objects.filter_map(|object| std::fs::read_dir(object.path()).ok()).flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|metadata| metadata.blocks() * 512).sum()
}

pub(super) async fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_store_never_outgrows_its_limit() {
    const MAX: u64 = 4 << 20;
    const BIG: u64 = 16 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), MAX).unwrap();
    for name in ["a", "b", "c"] {
        let object = store.object(&key(name), BIG, 65536, Maker::new()).await.unwrap();
        for start in (0..BIG).step_by(256 << 10) {
            let range = start..start + (256 << 10);
            assert!(read(&object, range.clone()).await.unwrap() == expect(range));
            assert!(on_disk(dir.path()) <= MAX, "{} bytes on disk", on_disk(dir.path()));
        }
    }
    assert!(store.used() <= MAX && on_disk(dir.path()) > MAX / 4);
    // What is on disk is still right.
    let maker = Maker::new();
    let object = store.object(&key("c"), BIG, 65536, maker.clone()).await.unwrap();
    assert!(read(&object, 0..BIG).await.unwrap() == expect(0..BIG));
    assert!(maker.ranges().iter().map(|r| r.end - r.start).sum::<u64>() < BIG, "nothing was kept");
}

/// An object of 16 MiB in a store that has room for 4, and spans that hold its first MiB.
pub(super) async fn held(store: Store) -> (Arc<Object<Maker>>, Spans) {
    let object = store.object(&key("a"), 16 << 20, 65536, Maker::new()).await.unwrap();
    assert!(object.warm(0..1 << 20).await.unwrap());
    let mut spans = Spans::new();
    assert!(object.peek(0..1 << 20, &mut spans));
    (object, spans)
}

/// Reads until the first MiB of an object that [`held`] gave are victims, which are unready at once.
pub(super) async fn drive_out(object: &Arc<Object<Maker>>) {
    let (mut none, mut at) = (Spans::new(), 1 << 20);
    while object.peek(0..1 << 20, &mut none) {
        none.clear();
        read(object, at..at + 65536).await.unwrap();
        at = (at + 65536) % (16 << 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_being_sent_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let (object, spans) = held(Store::open(dir.path(), 4 << 20).unwrap()).await;
    drive_out(&object).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(bytes_of(&spans) == expect(0..1 << 20), "punched while it was held");
    // They are fetched again and served, though not from the file.
    assert!(read(&object, 0..1 << 20).await.unwrap() == expect(0..1 << 20));
    let Span::File { lease, .. } = &spans[0] else { panic!() };
    let file = lease.file.clone();
    drop(spans);
    wait_until("never punched", || {
        let mut bytes = vec![1; 65536];
        (0..16).any(|i| {
            file.read_exact_at(&mut bytes, i * 65536).unwrap();
            bytes.iter().all(|b| *b == 0)
        })
    })
    .await;
    assert!(read(&object, 0..1 << 20).await.unwrap() == expect(0..1 << 20));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_does_not_drive_out_what_is_used() {
    const MAX: u64 = 8 << 20;
    // Whole blocks, and small steps through each.
    for step in [65536, 4096] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), MAX).unwrap();
        let boot = store.object(&key("boot"), 2 << 20, 65536, Maker::new()).await.unwrap();
        assert!(boot.warm(0..2 << 20).await.unwrap());
        let mut spans = Spans::new();
        assert!(boot.peek(0..2 << 20, &mut spans));
        drop(spans);
        let scan = store.object(&key("scan"), 32 << 20, 65536, Maker::new()).await.unwrap();
        for start in (0..32 << 20).step_by(step) {
            scan.warm(start..start + step as u64).await.unwrap();
        }
        assert_eq!(boot.ready(), 2 << 20, "in steps of {step}");
        assert!(scan.ready() > 0);
    }
}

#[tokio::test]
async fn objects_that_are_not_open_go_first() {
    const MAX: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), MAX).unwrap();
    for name in ["old", "new"] {
        let object = store.object(&key(name), 1 << 20, 65536, Maker::new()).await.unwrap();
        assert!(object.warm(0..1 << 20).await.unwrap());
        store.sync();
    }
    let maker = Maker::new();
    let object = store.object(&key("live"), 2 << 20, 65536, maker.clone()).await.unwrap();
    for start in (0..2 << 20).step_by(65536) {
        // When the store is full they pass through until there is room.
        while !object.warm(start..start + 65536).await.unwrap() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }
    wait_until("nothing is evicted", || on_disk(dir.path()) <= MAX - MAX / 16).await;
    assert_eq!(object.ready(), 2 << 20, "the open one was evicted from");
    let maker = Maker::new();
    let object = store.object(&key("new"), 1 << 20, 65536, maker.clone()).await.unwrap();
    read(&object, 0..1 << 20).await.unwrap();
    assert_eq!(maker.ranges(), vec![], "the newer one was evicted from before the older one was gone");
}

#[tokio::test]
async fn a_second_process_reads_but_does_not_write_until_it_owns_the_store() {
    let first = case(Maker::new()).await;
    assert!(first.object.warm(0..50 * BLOCK).await.unwrap());
    first.store.sync();
    // Locks are per open file, so a second store in this process is as one in another.
    let store = Store::open(first.dir.path(), 1 << 30).unwrap();
    assert!(first.store.is_owner() && !store.is_owner());
    let maker = Maker::new();
    let object = store.object(&key("a"), SIZE, BLOCK as u32, maker.clone()).await.unwrap();
    for _ in 0..2 {
        assert!(read(&object, 0..60 * BLOCK).await.unwrap() == expect(0..60 * BLOCK));
    }
    assert_eq!(
        maker.ranges(),
        vec![50 * BLOCK..60 * BLOCK; 2],
        "what the owner has is read, the rest passed through"
    );
    let mut spans = Spans::new();
    assert!(!object.peek(0..1, &mut spans));
    drop((first.store, first.object));
    wait_until("the lock is not taken over", || store.is_owner()).await;
    assert!(object.warm(0..SIZE).await.unwrap());
    assert!(object.peek(0..SIZE, &mut spans));
}

#[tokio::test]
async fn without_a_validator_nothing_outlives_the_object() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let mut key = key("a");
    key.identity.validator.clear();
    for _ in 0..2 {
        let maker = Maker::new();
        let first = store.object(&key, SIZE, BLOCK as u32, maker.clone()).await.unwrap();
        let second = store.object(&key, SIZE, BLOCK as u32, maker.clone()).await.unwrap();
        assert!(first.warm(0..SIZE).await.unwrap() && second.warm(0..SIZE).await.unwrap());
        assert!(maker.counts().values().all(|n| *n == 2), "two opens may be two versions");
        assert!(read(&first, 0..SIZE).await.unwrap() == expect(0..SIZE));
        store.sync();
        drop((first, second));
        assert_eq!(std::fs::read_dir(dir.path().join("objects")).unwrap().count(), 0);
        assert_eq!(store.used(), 0);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_in_sequence_is_read_ahead_for_and_each_block_is_fetched_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let maker = Maker::new();
    let blocks = 8192;
    let object = store.object(&key("long"), blocks * BLOCK, BLOCK as u32, maker.clone()).await.unwrap();
    for at in 0..blocks {
        let range = at * BLOCK..(at + 1) * BLOCK;
        assert_eq!(read(&object, range.clone()).await.unwrap(), expect(range));
    }
    let fills = maker.ranges().len() as u64;
    assert!(fills < blocks / 64, "{fills} requests for {blocks} blocks");
    let counts = maker.counts();
    assert!((0..blocks).all(|block| counts[&block] == 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_read_ahead_at_random_or_where_it_cannot_be_kept() {
    let case = case(Maker::new()).await;
    for at in [50, 10, 90, 30, 70, 20, 60, 0] {
        read(&case.object, at * BLOCK..(at + 1) * BLOCK).await.unwrap();
    }
    assert_eq!(case.maker.ranges().len(), 8);
    // Another process owns this store.
    let second = Store::open(case.dir.path(), 1 << 30).unwrap();
    let maker = Maker::new();
    let object = second.object(&key("b"), SIZE, BLOCK as u32, maker.clone()).await.unwrap();
    for at in 0..50 {
        read(&object, at * BLOCK..(at + 1) * BLOCK).await.unwrap();
    }
    assert_eq!(maker.ranges().len(), 50);
}
