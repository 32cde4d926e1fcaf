//! The store on a file, which serves as a device.

use super::*;
use crate::record::{Body, Intent};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};

const SIZE: u64 = 64 << 20;

fn device() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta");
    fs::File::create(&path).unwrap().set_len(SIZE).unwrap();
    (directory, path)
}

fn ledger() -> Ledger {
    Ledger { transaction_id: 1, next_thin_id: 1, intent: None }
}

/// A disk with a thin device that no other has.
fn vdi(name: &str, origin: Option<Uuid>) -> Vdi {
    static NEXT: AtomicU32 = AtomicU32::new(3);
    Vdi {
        uuid: Uuid::new_v4(),
        name: name.into(),
        body: Body::Thin { id: NEXT.fetch_add(1, Ordering::Relaxed) },
        virtual_size: 1 << 30,
        origin,
        parent: origin,
        snapshot_of: None,
        read_only: false,
    }
}

#[test]
fn records_survive_and_indexes_follow() {
    let (_directory, path) = device();
    let (sr, template) = (SrRecord::specimen(), Uuid::new_v4());
    BlockMedia.format(&path, &sr, &ledger(), &[]).unwrap();
    assert_eq!(BlockMedia.identify(&path).unwrap(), Some(sr.uuid));
    let (mut a, b) = (vdi("a", Some(template)), vdi("b", Some(template)));
    let intent = Ledger {
        intent: Some(Intent::Make { vdi: Box::new(b.clone()), from: None, replaces: None }),
        ..ledger()
    };
    {
        let mut catalog = BlockMedia.open(&path, sr.uuid).unwrap();
        let changes = [Change::Put(a.clone()), Change::Put(b.clone()), Change::Ledger(intent.clone())];
        catalog.commit(&changes).unwrap();
        a.name = "b".into();
        catalog.commit(&[Change::Put(a.clone())]).unwrap();
    }
    let mut catalog = BlockMedia.open(&path, sr.uuid).unwrap();
    assert_eq!(catalog.sr().unwrap(), sr);
    assert_eq!(catalog.ledger().unwrap(), intent);
    assert_eq!(catalog.vdi(a.uuid).unwrap(), Some(a.clone()));
    assert_eq!(catalog.vdis().unwrap().len(), 2);
    assert!(catalog.named("a").unwrap().is_empty(), "the old name is out of the index");
    assert_eq!(catalog.named("b").unwrap().len(), 2);
    assert_eq!(catalog.descendants(template).unwrap(), 2);
    catalog.commit(&[Change::Remove(a.uuid), Change::Remove(Uuid::nil())]).unwrap();
    assert_eq!(catalog.vdi(a.uuid).unwrap(), None);
    assert_eq!(catalog.named("b").unwrap(), [b.uuid]);
    assert_eq!(catalog.descendants(template).unwrap(), 1);
}

#[test]
fn what_is_no_catalog_is_told_apart() {
    let (_directory, path) = device();
    assert_eq!(BlockMedia.identify(&path).unwrap(), None);
    assert!(BlockMedia.open(&path, Uuid::nil()).is_err());
    let sr = SrRecord::specimen();
    BlockMedia.format(&path, &sr, &ledger(), &[]).unwrap();
    assert!(BlockMedia.open(&path, Uuid::nil()).is_err(), "another SR's records");
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    // Format version 2, with its checksum right: records of a later smctl.
    let mut block = superblock::encode(sr.uuid);
    block[8] = 2;
    let sum = crc32fast::hash(&block[..28]);
    block[28..32].copy_from_slice(&sum.to_le_bytes());
    file.write_all_at(&block, 0).unwrap();
    let error = BlockMedia.identify(&path).unwrap_err();
    assert!(error.message.contains("version 2"), "{error}");
    // A damaged one.
    file.write_all_at(&[9], 9).unwrap();
    let error = BlockMedia.identify(&path).unwrap_err();
    assert!(error.message.contains("damaged"), "{error}");
}

#[test]
fn a_small_device_is_refused_and_a_full_one_keeps_what_it_has() {
    let (_directory, path) = device();
    let file = OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(1 << 20).unwrap();
    assert!(BlockMedia.format(&path, &SrRecord::specimen(), &ledger(), &[]).is_err());
    file.set_len(16 << 20).unwrap();
    let sr = SrRecord::specimen();
    BlockMedia.format(&path, &sr, &ledger(), &[]).unwrap();
    let mut catalog = BlockMedia.open(&path, sr.uuid).unwrap();
    let name = "n".repeat(1 << 20);
    let mut kept = 0;
    let error = loop {
        match catalog.commit(&[Change::Put(vdi(&name, None))]) {
            Ok(()) => kept += 1,
            Err(e) => break e,
        }
        assert!(kept < 64, "it must fill up");
    };
    assert!(error.message.contains("cannot write the records"), "{error}");
    assert!(kept > 1, "only {kept} records of 1 MiB on 16 MiB");
    drop(catalog);
    let catalog = BlockMedia.open(&path, sr.uuid).unwrap();
    assert_eq!(catalog.vdis().unwrap().len(), kept);
}

/// A process that dies between any two writes leaves the state before or after the last commit.
#[test]
fn a_torn_length_slot_is_not_believed() {
    let (_directory, path) = device();
    let sr = SrRecord::specimen();
    BlockMedia.format(&path, &sr, &ledger(), &[]).unwrap();
    for slot in [0x1000, 0x2000] {
        let before = fs::read(&path).unwrap();
        let file = OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff; 7], slot).unwrap();
        let opened = BlockMedia.open(&path, sr.uuid);
        // The older slot gives a shorter length, of before the records were there: an error, never a wrong record.
        if let Ok(catalog) = opened {
            assert_eq!(catalog.sr().unwrap(), sr);
        }
        fs::write(&path, before).unwrap();
    }
    assert!(BlockMedia.open(&path, sr.uuid).is_ok());
}

#[test]
fn a_look_writes_nothing_and_sees_everything() {
    let (_directory, path) = device();
    let sr = SrRecord::specimen();
    BlockMedia.format(&path, &sr, &ledger(), &[]).unwrap();
    let disk = vdi("a", None);
    let mut catalog = BlockMedia.open(&path, sr.uuid).unwrap();
    catalog.commit(&[Change::Put(disk.clone())]).unwrap();
    // Closed in order, and as a crash leaves it.
    let crashed = fs::read(&path).unwrap();
    drop(catalog);
    for bytes in [fs::read(&path).unwrap(), crashed] {
        fs::write(&path, &bytes).unwrap();
        let mut catalog = BlockMedia.look(&path, sr.uuid).unwrap();
        assert_eq!(catalog.sr().unwrap(), sr);
        assert_eq!(catalog.vdis().unwrap(), std::slice::from_ref(&disk));
        let error = catalog.commit(&[Change::Remove(disk.uuid)]).unwrap_err();
        assert!(error.message.contains("cannot be changed"), "{error}");
        drop(catalog);
        assert!(fs::read(&path).unwrap() == bytes, "the device is as it was");
        assert_eq!(BlockMedia.open(&path, sr.uuid).unwrap().vdis().unwrap().len(), 1);
    }
}
