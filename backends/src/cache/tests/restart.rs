//! What an earlier process left: found, compared, and never believed where it is damaged.

use super::*;

/// The store in `dir`, once nobody else has it.
async fn owned(dir: &Path, max: u64) -> Store {
    let store = Store::open(dir, max).unwrap();
    wait_until("the lock is not given up", || store.is_owner()).await;
    store
}

async fn reopened(dir: &Path) -> (Store, Maker, Arc<Object<Maker>>) {
    let store = owned(dir, 1 << 30).await;
    let maker = Maker::new();
    let object = store.object(&key("a"), SIZE, BLOCK as u32, maker.clone()).await.unwrap();
    (store, maker, object)
}

/// A copy of a store as a crash would leave it, more or less.
fn copy(from: &Path) -> tempfile::TempDir {
    let to = tempfile::tempdir().unwrap();
    let ok = std::process::Command::new("cp")
        .arg("-r")
        .arg(from.join("objects"))
        .arg(to.path())
        .status()
        .unwrap()
        .success();
    assert!(ok);
    to
}

#[tokio::test]
async fn blocks_survive_a_restart() {
    let Case { dir, store, object, .. } = case(Maker::new()).await;
    assert!(object.warm(0..SIZE).await.unwrap());
    store.sync();
    drop((store, object));
    let (_store, maker, object) = reopened(dir.path()).await;
    let mut spans = Spans::new();
    assert!(!object.peek(0..1, &mut spans), "not before it was verified");
    object.get(0..SIZE, &mut spans).await.unwrap();
    assert!(matches!(spans[..], [Span::File { .. }]), "sent from where it lies: {spans:?}");
    assert!(bytes_of(&spans) == expect(0..SIZE));
    assert!(object.peek(0..1, &mut spans));
    assert_eq!(maker.ranges(), vec![]);
}

#[tokio::test]
async fn what_was_not_saved_is_fetched_again() {
    let case = case(Maker::new()).await;
    assert!(case.object.warm(0..50 * BLOCK).await.unwrap());
    case.store.sync();
    assert!(case.object.warm(0..SIZE).await.unwrap());
    let copy = copy(case.dir.path());
    let (_store, maker, object) = reopened(copy.path()).await;
    assert!(read(&object, 0..SIZE).await.unwrap() == expect(0..SIZE));
    assert!(maker.counts().keys().all(|block| *block >= 50));
}

#[tokio::test]
async fn no_damage_on_disk_becomes_a_wrong_byte() {
    let case = case(Maker::new()).await;
    assert!(case.object.warm(0..SIZE).await.unwrap());
    case.store.sync();
    type Damage = (&'static str, fn(&Path));
    let damage: [Damage; 9] = [
        ("a flipped bit in a block", |dir| {
            let data = File::options().write(true).open(dir.join("data")).unwrap();
            data.write_all_at(&[byte(7 * BLOCK) ^ 1], 7 * BLOCK).unwrap();
        }),
        ("zeros for a block", |dir| {
            let data = File::options().write(true).open(dir.join("data")).unwrap();
            data.write_all_at(&[0; BLOCK as usize], 7 * BLOCK).unwrap();
        }),
        ("two blocks swapped", |dir| {
            let data = File::options().write(true).open(dir.join("data")).unwrap();
            data.write_all_at(&expect(7 * BLOCK..8 * BLOCK), 8 * BLOCK).unwrap();
            data.write_all_at(&expect(8 * BLOCK..9 * BLOCK), 7 * BLOCK).unwrap();
        }),
        ("a truncated data file", |dir| {
            File::options().write(true).open(dir.join("data")).unwrap().set_len(3 * BLOCK + 5).unwrap();
        }),
        ("a truncated index", |dir| {
            File::options().write(true).open(dir.join("index")).unwrap().set_len(77).unwrap();
        }),
        ("a garbled index", |dir| {
            let index = File::options().write(true).open(dir.join("index")).unwrap();
            index.write_all_at(&expect(0..800), 0).unwrap();
        }),
        ("a garbled meta", |dir| std::fs::write(dir.join("meta"), b"{\"magic\":").unwrap()),
        ("no data file", |dir| std::fs::remove_file(dir.join("data")).unwrap()),
        ("a directory for a data file", |dir| {
            std::fs::remove_file(dir.join("data")).unwrap();
            std::fs::create_dir(dir.join("data")).unwrap();
        }),
    ];
    for (what, damage) in damage {
        let copy = copy(case.dir.path());
        damage(&object_dir(copy.path()));
        let (_store, maker, object) = reopened(copy.path()).await;
        for range in [0..SIZE, 0..SIZE, 6 * BLOCK..10 * BLOCK] {
            assert!(read(&object, range.clone()).await.unwrap() == expect(range), "{what}");
        }
        assert!(!maker.ranges().is_empty(), "{what} is not noticed");
        if what == "a flipped bit in a block" {
            assert_eq!(maker.counts(), [(7, 1)].into(), "its neighbours are whole");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_about_to_be_punched_is_read_into_memory() {
    const FIRST: Range<u64> = 0..1 << 20;
    let dir = tempfile::tempdir().unwrap();
    drop(held(Store::open(dir.path(), 4 << 20).unwrap()).await);
    let (object, held) = held(owned(dir.path(), 4 << 20).await).await;
    drive_out(&object).await;
    let mut spans = Spans::new();
    object.get(FIRST, &mut spans).await.unwrap();
    assert!(spans.iter().any(|span| matches!(span, Span::Bytes(_))), "{spans:?}");
    let fetched = object.source().ranges();
    assert!(fetched.iter().all(|range| range.start >= FIRST.end), "it is still on disk: {fetched:?}");
    drop(held);
    let mut bytes = vec![1; 65536];
    let file = File::open(object_dir(dir.path()).join("data")).unwrap();
    wait_until("never punched", || {
        (0..16).any(|i| {
            file.read_exact_at(&mut bytes, i * 65536).unwrap();
            bytes.iter().all(|b| *b == 0)
        })
    })
    .await;
    assert!(bytes_of(&spans) == expect(FIRST));
}

#[tokio::test]
async fn who_wants_what_is_on_disk_waits_for_no_server() {
    let case = case(Maker::new()).await;
    assert!(case.object.warm(0..4 * BLOCK).await.unwrap());
    case.store.sync();
    // The rest comes later.
    let here = copy(case.dir.path());
    let (_store, maker, object) = reopened(here.path()).await;
    maker.0.gate.forget_permits(Semaphore::MAX_PERMITS);
    let some = async {
        // While the flight of them all is still looking for what is there.
        let some = read(&object, BLOCK..3 * BLOCK).await.unwrap();
        assert_eq!(maker.counts(), (4..8).map(|block| (block, 1)).collect());
        maker.0.gate.add_permits(1);
        some
    };
    let (all, some) = tokio::join!(read(&object, 0..8 * BLOCK), some);
    assert!(all.unwrap() == expect(0..8 * BLOCK) && some == expect(BLOCK..3 * BLOCK));
    // The rest never comes.
    let here = copy(case.dir.path());
    let (_store, maker, object) = reopened(here.path()).await;
    maker.0.fail.store(usize::MAX, Ordering::SeqCst);
    let (all, some) = tokio::join!(read(&object, 0..8 * BLOCK), read(&object, 0..4 * BLOCK));
    assert_eq!(all.unwrap_err().kind, Kind::Unreachable);
    assert!(some.unwrap() == expect(0..4 * BLOCK));
}
