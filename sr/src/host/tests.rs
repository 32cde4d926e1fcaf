//! Links, memory and locks in a directory of the test's own.

use super::*;
use std::time::Duration;

fn host() -> (tempfile::TempDir, SystemHost) {
    let directory = tempfile::tempdir().unwrap();
    let host = SystemHost::new(&directory.path().join("run"), &directory.path().join("dev"));
    (directory, host)
}

#[test]
fn links_are_made_replaced_and_removed() {
    let (_directory, mut host) = host();
    let (sr, vdi) = (Uuid::new_v4(), Uuid::new_v4());
    assert_eq!(host.link(sr, vdi).unwrap(), None);
    assert!(host.links(sr).unwrap().is_empty());
    for (target, outcome) in
        [("/dev/dm-1", Outcome::Changed), ("/dev/dm-1", Outcome::Unchanged), ("/dev/dm-2", Outcome::Changed)]
    {
        assert_eq!(host.set_link(sr, vdi, Path::new(target)).unwrap(), outcome);
        assert_eq!(host.link(sr, vdi).unwrap().as_deref(), Some(Path::new(target)));
    }
    assert_eq!(host.links(sr).unwrap(), [vdi]);
    assert_eq!(host.remove_link(sr, vdi).unwrap(), Outcome::Changed);
    assert_eq!(host.remove_link(sr, vdi).unwrap(), Outcome::Unchanged);
}

#[test]
fn attached_srs_are_remembered_until_forgotten() {
    let (directory, mut host) = host();
    assert!(host.attached().unwrap().is_empty());
    let sr = Attached {
        uuid: Uuid::new_v4(),
        name: "fast".into(),
        vg: "vg".into(),
        pool_lv: "pool".into(),
        devices: vec!["/dev/sda".into()],
    };
    host.remember(&sr).unwrap();
    host.remember(&sr).unwrap();
    // What a crash between writing and renaming leaves is not taken for a record.
    std::fs::write(directory.path().join(format!("run/sr/{}.new", Uuid::new_v4())), b"{").unwrap();
    assert_eq!(host.attached().unwrap(), std::slice::from_ref(&sr));
    host.forget(sr.uuid).unwrap();
    host.forget(sr.uuid).unwrap();
    assert!(host.attached().unwrap().is_empty());
}

#[test]
fn a_lock_is_held_by_one_and_survives_its_file() {
    let directory = tempfile::tempdir().unwrap();
    let locks = Locks::new(directory.path());
    let sr = Uuid::new_v4();
    let held = locks.sr(sr).unwrap();
    let waiter = std::thread::spawn({
        let locks = locks.clone();
        move || locks.sr(sr).unwrap()
    });
    std::thread::sleep(Duration::from_millis(50));
    assert!(!waiter.is_finished(), "the second must wait");
    held.retire().unwrap();
    let second = waiter.join().unwrap();
    // The second made a new file instead of holding one that is gone.
    assert!(directory.path().join(format!("lock/sr-{sr}")).exists());
    second.retire().unwrap();
}

#[test]
fn a_file_is_no_block_device() {
    let (directory, mut host) = host();
    let path = directory.path().join("x");
    let missing = host.number(&path).unwrap_err();
    assert_eq!(missing.kind, crate::ErrorKind::NotFound);
    std::fs::write(&path, b"").unwrap();
    let error = host.disk(&path).unwrap_err();
    assert_eq!(error.kind, crate::ErrorKind::Refused);
    assert!(error.message.ends_with("is not a block device"), "{error}");
}
