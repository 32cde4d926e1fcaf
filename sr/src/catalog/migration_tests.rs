//! Records of other schemas than this version's.

use super::migrate::SCHEMA;
use super::store::{BlockMedia, DESCENDANTS, NAMES, STATE, VDIS, database_on};
use super::*;
use crate::error::ErrorKind;
use crate::record::{Body, Intent};
use std::path::PathBuf;

const SR: &str = "6f1c3f0e-7c65-4a4e-9f2b-0f4d1f1f7a01";
const TEMPLATE: &str = "11111111-2222-4333-8444-555555555555";
const DISK: &str = "aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee";

/// An SR with a template, a clone of it and an operation that was cut short, in the words of schema 1.
const STATE_1: [(&str, &str); 2] = [
    (
        "sr",
        r#"{"uuid":"6f1c3f0e-7c65-4a4e-9f2b-0f4d1f1f7a01","name":"old","vg":"old","pool_lv":"smctl-pool","chunk":65536,"owns_vg":true,"owns_pool":true}"#,
    ),
    ("ledger", r#"{"transaction_id":9,"next_thin_id":6,"intent":{"op":"drop","id":4}}"#),
];
const VDIS_1: [&str; 2] = [
    r#"{"uuid":"11111111-2222-4333-8444-555555555555","name":"debian","body":{"kind":"template","location":"http://images/debian.qcow2","identity":"etag abc","format":"qcow2"},"virtual_size":1073741824,"origin":null,"parent":null,"snapshot_of":null,"read_only":true}"#,
    r#"{"uuid":"aaaaaaaa-bbbb-4ccc-8ddd-eeeeeeeeeeee","name":"web","body":{"kind":"thin","id":5},"virtual_size":2147483648,"origin":"11111111-2222-4333-8444-555555555555","parent":"11111111-2222-4333-8444-555555555555","snapshot_of":null,"read_only":false}"#,
];

fn uuid(text: &str) -> Uuid {
    Uuid::parse_str(text).unwrap()
}

/// A device with the specimen, which says that it has schema `schema`.
fn specimen(schema: &str, vdis: &[&str]) -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("meta");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let database = database_on(&path, uuid(SR)).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let mut state = transaction.open_table(STATE).unwrap();
        state.insert("schema", schema.as_bytes()).unwrap();
        for (key, value) in STATE_1 {
            state.insert(key, value.as_bytes()).unwrap();
        }
        let mut table = transaction.open_table(VDIS).unwrap();
        let mut names = transaction.open_multimap_table(NAMES).unwrap();
        let mut descendants = transaction.open_multimap_table(DESCENDANTS).unwrap();
        for text in vdis {
            let vdi: serde_json::Value = serde_json::from_str(text).unwrap();
            let key = uuid(vdi["uuid"].as_str().unwrap()).as_u128();
            table.insert(key, text.as_bytes()).unwrap();
            names.insert(vdi["name"].as_str().unwrap(), key).unwrap();
            if let Some(origin) = vdi["origin"].as_str() {
                descendants.insert(uuid(origin).as_u128(), key).unwrap();
            }
        }
    }
    transaction.commit().unwrap();
    (directory, path)
}

#[test]
fn records_of_schema_1_open_and_are_migrated() {
    let (_directory, path) = specimen("1", &VDIS_1);
    for _ in 0..2 {
        let catalog = BlockMedia.open(&path, uuid(SR)).unwrap();
        assert_eq!(catalog.sr().unwrap().name, "old");
        let ledger = catalog.ledger().unwrap();
        assert_eq!((ledger.transaction_id, ledger.intent), (9, Some(Intent::Drop { id: 4 })));
        let disk = catalog.vdi(uuid(DISK)).unwrap().unwrap();
        assert_eq!((disk.body, disk.origin), (Body::Thin { id: 5 }, Some(uuid(TEMPLATE))));
        assert_eq!(catalog.vdis().unwrap().len(), 2);
        assert_eq!(catalog.named("web").unwrap(), [uuid(DISK)]);
        assert_eq!(catalog.descendants(uuid(TEMPLATE)).unwrap(), 1);
    }
    // What schema 2 is about: the device of the old record has its owner.
    let mut catalog = BlockMedia.open(&path, uuid(SR)).unwrap();
    let disk = catalog.vdi(uuid(DISK)).unwrap().unwrap();
    let thief = Vdi { uuid: Uuid::new_v4(), ..disk.clone() };
    let error = catalog.commit(&[Change::Put(thief.clone())]).unwrap_err();
    assert!(std::error::Error::source(&error).unwrap().to_string().contains("thin device 5"), "{error:?}");
    assert_eq!(catalog.vdis().unwrap().len(), 2, "nothing of it is written");
    catalog.commit(&[Change::Put(disk)]).unwrap();
    catalog.commit(&[Change::Remove(uuid(DISK)), Change::Put(thief)]).unwrap();
}

#[test]
fn records_of_a_later_schema_are_refused_by_number() {
    for schema in [SCHEMA + 1, 40, 0] {
        let (_directory, path) = specimen(&schema.to_string(), &VDIS_1);
        let error = BlockMedia.open(&path, uuid(SR)).err().unwrap();
        assert_eq!(error.kind, ErrorKind::Refused);
        assert!(error.message.contains(&format!("schema {schema},")), "{error}");
    }
}

#[test]
fn two_records_of_one_device_are_told_and_left_as_they_are() {
    let twin = VDIS_1[1].replace(DISK, "aaaaaaaa-bbbb-4ccc-8ddd-ffffffffffff");
    let (_directory, path) = specimen("1", &[VDIS_1[0], VDIS_1[1], &twin]);
    for _ in 0..2 {
        let error = BlockMedia.open(&path, uuid(SR)).err().unwrap();
        assert!(error.message.contains("two VDIs have thin device 5"), "{error}");
    }
}

#[test]
fn old_records_that_are_looked_at_stay_old() {
    let (_directory, path) = specimen("1", &VDIS_1);
    let before = std::fs::read(&path).unwrap();
    assert_eq!(BlockMedia.look(&path, uuid(SR)).unwrap().vdis().unwrap().len(), 2);
    assert!(std::fs::read(&path).unwrap() == before);
    assert_eq!(BlockMedia.open(&path, uuid(SR)).unwrap().vdis().unwrap().len(), 2);
}
