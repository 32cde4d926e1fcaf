//! What others do to the store while it is in use, and what the disk does.

use super::super::{Stock, crash};
use super::*;
use std::fs::File;
use std::os::unix::fs::MetadataExt;

/// The `data` of the only object under `dir`.
fn data(dir: &Path) -> File {
    File::options().read(true).write(true).open(object_dir(dir).join("data")).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_size_beyond_all_bounds_costs_nothing_and_is_passed_through() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    // Of the first, what is noted would take terabytes; the second is more than a file of ext4 can be.
    for size in [1 << 62, 1 << 45] {
        let huge = store.object(&key("huge"), size, 65536, Maker::new()).await.unwrap();
        for at in [0, size - 65536] {
            assert!(read(&huge, at..at + 65536).await.unwrap() == expect(at..at + 65536));
        }
        huge.take_stock().await;
        assert!(huge.locality(&(0..size)).1 > 0, "it does not look at each block");
        assert_eq!(
            Stock::look(dir.path()).unwrap().objects().iter().filter(|o| o.size == 1 << 62).count(),
            0
        );
        let other = store.object(&key("other"), 1 << 20, 65536, Maker::new()).await.unwrap();
        assert!(other.warm(0..1 << 20).await.unwrap(), "others are kept all the same");
        assert_eq!(other.ready(), 1 << 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_was_removed_belongs_to_who_makes_it_again() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("cache");
    let first = Store::open(&dir, 1 << 30).unwrap();
    let old = first.object(&key("old"), SIZE, BLOCK as u32, Maker::new()).await.unwrap();
    assert!(old.warm(0..SIZE).await.unwrap());
    let mut spans = Spans::new();
    assert!(old.peek(0..SIZE, &mut spans));
    std::fs::remove_dir_all(&dir).unwrap();
    let second = Store::open(&dir, 1 << 30).unwrap();
    assert!(second.is_owner());
    // At once, before the keeper looks: it is opened, and belongs to the other.
    let new = first.object(&key("new"), SIZE, BLOCK as u32, Maker::new()).await.unwrap();
    assert!(!first.is_owner() && first.used() == 0);
    assert!(read(&new, 0..SIZE).await.unwrap() == expect(0..SIZE));
    assert!(!new.warm(0..SIZE).await.unwrap() && new.ready() == 0, "both would write to it");
    assert!(read(&old, 0..SIZE).await.unwrap() == expect(0..SIZE));
    assert!(bytes_of(&spans) == expect(0..SIZE), "what was handed out before");
    let theirs = second.object(&key("new"), SIZE, BLOCK as u32, Maker::new()).await.unwrap();
    assert!(theirs.warm(0..SIZE).await.unwrap());
    second.sync();
    drop((theirs, second, spans));
    // The other has ended, and both objects are kept again.
    for (object, name) in [(&old, "old"), (&new, "new")] {
        wait_until(name, || first.is_owner() && object.core_is_open()).await;
        assert!(object.warm(0..SIZE).await.unwrap());
        assert_eq!(object.ready(), SIZE, "{name}");
        assert!(read(object, 0..SIZE).await.unwrap() == expect(0..SIZE));
    }
    first.sync();
    let (used, taken) = (first.used(), on_disk(&dir));
    assert!((taken..taken + (64 << 10)).contains(&used), "{used} of {taken}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_was_cut_short_shows_no_holes_when_it_grows_again() {
    let case = case(Maker::new()).await;
    let last = SIZE / BLOCK * BLOCK..SIZE;
    assert!(case.object.warm(0..SIZE - BLOCK).await.unwrap());
    let mut spans = Spans::new();
    assert!(case.object.peek(0..BLOCK, &mut spans));
    data(case.dir.path()).set_len(0).unwrap();
    // This is written behind what is gone.
    assert!(read(&case.object, last.clone()).await.unwrap() == expect(last.clone()));
    wait_until("it is not let go of", || !case.object.core_is_open()).await;
    assert!(read(&case.object, 0..SIZE).await.unwrap() == expect(0..SIZE));
    // While somebody may still send from it, it stays short: what is gone is an error to him, and no zeros.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    assert_eq!(data(case.dir.path()).metadata().unwrap().len(), 0);
    drop(spans);
    wait_until("it is not opened again", || case.object.core_is_open()).await;
    assert!(case.object.warm(0..SIZE).await.unwrap());
    assert_eq!(case.object.ready(), SIZE);
    assert!(read(&case.object, 0..SIZE).await.unwrap() == expect(0..SIZE));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_sync_takes_with_it_all_that_was_written_until_then() {
    let case = case(Maker::new()).await;
    let ino = data(case.dir.path()).metadata().unwrap().ino();
    // What is being made durable, and what comes while it is.
    assert!(case.object.warm(0..BLOCK).await.unwrap());
    let (syncing, begun) = std::sync::mpsc::channel();
    let (go, gone) = std::sync::mpsc::channel::<()>();
    crash::when_synced(ino, move || {
        syncing.send(()).unwrap();
        let _ = gone.recv();
        Err(std::io::Error::other("the disk is gone"))
    });
    let store = case.store.clone();
    let saving = std::thread::spawn(move || store.sync());
    begun.recv().unwrap();
    assert!(case.object.warm(BLOCK..2 * BLOCK).await.unwrap());
    assert_eq!(case.object.ready(), 2 * BLOCK);
    drop(go);
    saving.join().unwrap();
    assert_eq!(case.object.ready(), 0);
    assert!(!case.object.warm(2 * BLOCK..3 * BLOCK).await.unwrap(), "nothing is stored for a while");
    let deadline = Instant::now() + Duration::from_secs(60);
    while !case.object.warm(0..2 * BLOCK).await.unwrap() {
        assert!(Instant::now() < deadline, "nothing is stored any more");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    case.store.sync();
    let stock = Stock::look(case.dir.path()).unwrap();
    assert_eq!(stock.objects()[0].local, 2 * BLOCK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_evicted_of_an_old_version_does_not_make_it_the_newest() {
    const MAX: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), MAX).unwrap();
    let version = |validator: &str| {
        let mut key = key("http://h/image");
        (key.identity.validator, key.part) = (validator.into(), "raw".into());
        key
    };
    for validator in ["old", "new"] {
        let object = store.object(&version(validator), 1 << 20, 65536, Maker::new()).await.unwrap();
        assert!(object.warm(0..1 << 20).await.unwrap());
        store.sync();
        drop(object);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let other = store.object(&key("other"), 2 << 20, 65536, Maker::new()).await.unwrap();
    let before = store.used();
    assert!(other.warm(0..1920 << 10).await.unwrap());
    wait_until("nothing is evicted", || store.used() < before + (1900 << 10)).await;
    let location = "http://h/image".parse().unwrap();
    assert_eq!(store.known(&location).await.unwrap().validator, "new");
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_cannot_be_opened_are_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let object = store.object(&key("a"), SIZE, BLOCK as u32, Maker::new()).await.unwrap();
    let name = object_dir(dir.path());
    drop(object);
    std::fs::remove_dir_all(&name).unwrap();
    // Nothing that a directory could be made of.
    std::fs::write(&name, "").unwrap();
    let object = store.object(&key("a"), SIZE, BLOCK as u32, Maker::new()).await.unwrap();
    assert!(read(&object, 0..SIZE).await.unwrap() == expect(0..SIZE));
    assert!(!object.warm(0..SIZE).await.unwrap());
    std::fs::remove_file(&name).unwrap();
    wait_until("it is never opened", || object.core_is_open()).await;
    assert!(object.warm(0..SIZE).await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_answer_is_not_asked_again_at_once() {
    let dir = tempfile::tempdir().unwrap();
    {
        let store = Store::open(dir.path(), 1 << 30).unwrap();
        let object = store.object(&key("a"), SIZE, BLOCK as u32, Maker::new()).await.unwrap();
        assert!(object.warm(0..SIZE).await.unwrap());
        store.sync();
    }
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    wait_until("the lock is not given up", || store.is_owner()).await;
    let maker = Maker::new();
    let object = store.object(&key("a"), SIZE, BLOCK as u32, maker.clone()).await.unwrap();
    let (go, stuck) = std::sync::mpsc::channel::<()>();
    let began = Instant::now();
    assert_eq!(store.ask(move || stuck.recv().is_ok()).await, None);
    assert!(began.elapsed() >= Duration::from_secs(5));
    assert!(read(&object, 0..BLOCK).await.unwrap() == expect(0..BLOCK));
    assert_eq!(maker.counts(), [(0, 1)].into(), "it is on the disk, which is not asked");
    assert!(!object.has(&(BLOCK..2 * BLOCK)).await);
    drop(go);
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(object.has(&(BLOCK..2 * BLOCK)).await, "it is asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_limit_counts_the_index() {
    const MAX: u64 = 2 << 20;
    const BLOCKS: u64 = 4 << 20;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), MAX).unwrap();
    let object = store.object(&key("a"), BLOCKS * BLOCK, BLOCK as u32, Maker::new()).await.unwrap();
    // Each in a page of the index of its own.
    for number in 0..2000 {
        let start = (number * 1021 % 4096) * 1024 * BLOCK;
        let mut spans = Spans::new();
        object.get_exactly(start..start + BLOCK, &mut spans).await.unwrap();
        if number % 50 == 0 {
            store.sync();
        }
        let taken = on_disk(dir.path());
        assert!(taken <= MAX, "{taken} bytes on disk after {number} blocks");
    }
    assert!(object.ready() > 50 * BLOCK, "only {} blocks fit", object.ready() / BLOCK);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_checksum_outlives_its_block() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 2 << 20).unwrap();
    let object = store.object(&key("a"), 64 << 20, 65536, Maker::new()).await.unwrap();
    for round in 0..3 {
        for start in (0..16 << 20).step_by(65536) {
            let start = round * (16 << 20) + start;
            let range = start..start + 65536;
            object.warm(range).await.unwrap();
        }
        store.sync();
    }
    // What is being evicted at this moment is let go.
    wait_until("it goes on for ever", || store.used() < 2 << 20).await;
    store.sync();
    let stock = Stock::look(dir.path()).unwrap();
    for stored in stock.objects() {
        assert_eq!(stored.verify(|_| true).unwrap().damaged, vec![]);
    }
}

#[tokio::test]
async fn what_other_versions_left_goes_with_all() {
    let case = case(Maker::new()).await;
    assert!(case.object.warm(0..SIZE).await.unwrap());
    case.store.sync();
    let dir = case.dir.path();
    let other = dir.join("objects/other");
    let meta = std::fs::read_to_string(object_dir(dir).join("meta")).unwrap();
    std::fs::create_dir(&other).unwrap();
    std::fs::write(other.join("meta"), meta.replace("\"version\":1", "\"version\":2")).unwrap();
    let stock = || Stock::look(dir).unwrap();
    assert_eq!(stock().objects().len(), 1);
    assert_eq!(stock().drop_all().unwrap_err().kind, Kind::Denied, "a store is in use");
    drop((case.object, case.store));
    wait_until("the lock is kept", || lock_is_free(dir)).await;
    assert_eq!(stock().drop_objects(|_| true).unwrap().len(), 1);
    assert!(other.exists());
    assert_eq!(stock().drop_all().unwrap().len(), 0);
    assert!(!other.exists());
}

fn lock_is_free(dir: &Path) -> bool {
    File::options().write(true).open(dir.join("lock")).unwrap().try_lock().is_ok()
}
