use super::super::tests::{BLOCK, Maker, expect, key};
use super::super::{Span, Spans, Store};
use super::*;
use rustix::io::{Errno, read, write};
use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

const PAGE: u64 = 4096;

fn content(len: u64) -> Vec<u8> {
    (0..len).map(|at| ((at / 7) ^ (at / PAGE * 31)) as u8).collect()
}

fn file(len: u64) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&content(len)).unwrap();
    file
}

/// Whether files here are mapped at all.
fn is_local(file: &File) -> bool {
    LOCAL.contains(&fstatfs(file).unwrap().f_type)
}

/// Asks for `range` as often as a busy client does, for some periods or until it is held; whether it is.
fn ask(mapped: &Mapped, file: &File, range: &Range<u64>) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_millis(10 * u64::from(PERIOD)) {
        if mapped.holds(file, range.clone()) {
            return true;
        }
        std::thread::sleep(Duration::from_micros(50));
    }
    false
}

/// What a system call finds at `range`.
fn taken(mapped: &Mapped, range: Range<u64>) -> Result<Vec<u8>, Errno> {
    let (from, to): (OwnedFd, OwnedFd) = rustix::pipe::pipe().unwrap();
    let memory = mapped.memory(range).unwrap();
    let len = write(&to, &memory)?;
    let mut bytes = vec![0; len];
    assert_eq!(read(&from, &mut bytes).unwrap(), len);
    Ok(bytes)
}

#[test]
fn a_busy_stretch_is_sent_from_memory() {
    let len = 3 * CHUNK + 5000;
    let file = file(len);
    let mapped = Mapped::of(&file);
    assert!(mapped.memory(0..PAGE).is_none(), "nobody asked for it");
    let content = content(len);
    for range in [0..PAGE, CHUNK - 300..CHUNK, 2 * CHUNK + 17..2 * CHUNK + 30_000, 3 * CHUNK + 4999..len] {
        assert_eq!(ask(&mapped, &file, &range), is_local(&file), "{range:?}");
        if is_local(&file) {
            let found = taken(&mapped, range.clone()).unwrap();
            assert!(found == content[range.start as usize..range.end as usize], "{range:?}");
        }
    }
    // Another one of the same chunk is known by the same look.
    assert_eq!(mapped.holds(&file, 3 * CHUNK..3 * CHUNK + 10), is_local(&file));
    for range in [CHUNK - 1..CHUNK + 1, 5..5, len - 1..len + 1, len + CHUNK..len + CHUNK + 1] {
        assert!(!mapped.holds(&file, range.clone()), "{range:?}");
    }
    assert!(mapped.memory(len - 1..len + 1).is_none());
}

#[test]
fn what_is_seldom_asked_for_is_not_mapped() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    for _ in 0..3 {
        assert!((0..BUSY_FILE / 2).all(|_| !mapped.holds(&file, 0..PAGE)));
        std::thread::sleep(Duration::from_millis(u64::from(PERIOD) + 10));
    }
    assert!(mapped.memory.get().is_none());
}

#[test]
fn what_is_not_in_memory_is_not_held() {
    let file = file(CHUNK);
    file.sync_all().unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).unwrap();
    rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::Random).unwrap();
    rustix::io::pread(&file, &mut [0_u8], 0).unwrap();
    let flags = rustix::io::ReadWriteFlags::NOWAIT;
    let mut byte = [0];
    let mut slices = [std::io::IoSliceMut::new(&mut byte)];
    // To ask may already bring it, so that the one that is asked for is another.
    let late = rustix::io::preadv2(&file, &mut slices, CHUNK / 4, flags) == Err(Errno::AGAIN);
    let mapped = Mapped::of(&file);
    assert_eq!(ask(&mapped, &file, &(0..PAGE)), is_local(&file));
    // A file system in memory has all of it.
    assert_eq!(mapped.holds(&file, CHUNK / 2..CHUNK / 2 + PAGE), is_local(&file) && !late);
}

#[test]
fn a_file_that_became_shorter_is_an_error_and_not_the_end() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    if !ask(&mapped, &file, &(0..PAGE)) {
        assert!(!is_local(&file));
        return;
    }
    file.set_len(PAGE + 10).unwrap();
    assert_eq!(taken(&mapped, 2 * PAGE..3 * PAGE), Err(Errno::FAULT));
    // The clock of the kernel's ticks, of which a hundred or more are in a second.
    std::thread::sleep(Duration::from_millis(20));
    assert!(!mapped.holds(&file, PAGE..2 * PAGE), "there are zeros behind the file's end");
}

#[test]
fn a_worn_map_holds_nothing() {
    let file = file(CHUNK);
    let mapped = Mapped::of(&file);
    if !ask(&mapped, &file, &(0..PAGE)) {
        assert!(!is_local(&file));
        return;
    }
    assert!(!mapped.is_worn());
    let memory = mapped.memory.get().unwrap().as_ref().unwrap();
    assert_eq!(memory.begun.load(Ordering::Relaxed), 1);
    memory.begun.store(WORN, Ordering::Relaxed);
    assert!(mapped.is_worn() && !mapped.holds(&file, 0..PAGE));
    assert_eq!(taken(&mapped, 0..PAGE).unwrap(), content(PAGE), "what is being sent is still there");
}

#[test]
fn a_chunk_gives_way_when_nobody_asks_for_it() {
    let chunk = Chunk::default();
    assert!(chunk.is(7, 1000));
    chunk.note(Some([1; PAGES / 64]));
    assert!(chunk.holds(0..PAGE) && !chunk.holds(0..PAGE + 1));
    assert!(!chunk.is(7 + KNOWN, 1000 + 2 * PERIOD - 1) && chunk.is(7, 1000 + 2 * PERIOD - 1));
    assert!(chunk.is(7 + KNOWN, 1000 + 2 * PERIOD) && !chunk.holds(0..PAGE));
    assert!(!chunk.is(7, 1000 + 2 * PERIOD));
}

#[test]
fn rates_are_for_a_period() {
    let rate = Rate::default();
    rate.begin(u32::MAX - 10);
    assert!((0..99).all(|n| rate.count(n).is_none()));
    // A hundred in two periods, over the end of the numbers.
    assert_eq!(rate.count(2 * PERIOD - 11), Some(50));
    assert_eq!(rate.count(3 * PERIOD - 11), Some(1));
}

#[test]
fn files_of_others_and_what_is_no_file_are_not_mapped() {
    assert_eq!(Mapped::of(&File::open("/dev/null").unwrap()).len, 0);
    // procfs is not on a disk.
    assert_eq!(Mapped::of(&File::open("/proc/self/maps").unwrap()).len, 0);
}

#[tokio::test]
async fn a_worn_map_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), 1 << 30).unwrap();
    let object = store.object(&key("a"), 10 * BLOCK, BLOCK as u32, Maker::new()).unwrap();
    let mut spans = Spans::new();
    object.get_exactly(0..10 * BLOCK, &mut spans).await.unwrap();
    let lease = || {
        let mut spans = Spans::new();
        // Bytes are in the file some time after they are in memory.
        while !object.peek(0..BLOCK, &mut spans) {
            std::thread::sleep(Duration::from_millis(1));
        }
        match spans.remove(0) {
            Span::File { lease, .. } => lease,
            Span::Bytes(_) => unreachable!("it is not in memory"),
        }
    };
    let first = lease();
    if !ask(&first.mapped, &first, &(0..BLOCK)) {
        assert!(!is_local(&first));
        return;
    }
    first.mapped.memory.get().unwrap().as_ref().unwrap().begun.store(WORN, Ordering::Relaxed);
    let began = Instant::now();
    while lease().is_worn() {
        assert!(began.elapsed() < Duration::from_secs(30), "it is not replaced");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(
        taken(&first.mapped, 0..BLOCK).unwrap(),
        expect(0..BLOCK),
        "what is being sent is still there"
    );
    let map = std::sync::Arc::downgrade(&first.mapped);
    drop(first);
    assert!(map.upgrade().is_none(), "nobody else needs it");
    let again = lease();
    assert!(ask(&again.mapped, &again, &(0..BLOCK)));
}
