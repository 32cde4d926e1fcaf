//! Records in redb.
//!
//! Records are JSON by key, so that a field may be added without a new format, and two indexes answer the questions
//! that must not cost a scan: who has this name, and does anything descend from this template. An index is changed
//! in the transaction that changes the record.

use super::area::{Area, DEVICE_MIN};
use super::migrate::{SCHEMA, migrate};
use super::view::View;
use super::{Catalog, Media, superblock};
use crate::error::{Error, Result};
use crate::record::{Change, Ledger, SrRecord, Vdi};
use redb::{
    Database, MultimapTableDefinition, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;
use uuid::Uuid;

/// One value each: the schema's version, the SR's record, the ledger.
pub(super) const STATE: TableDefinition<&str, &[u8]> = TableDefinition::new("state");
pub(super) const VDIS: TableDefinition<u128, &[u8]> = TableDefinition::new("vdis");
/// Name to VDIs.
pub(super) const NAMES: MultimapTableDefinition<&str, u128> = MultimapTableDefinition::new("names");
/// Template to the VDIs whose origin it is.
pub(super) const DESCENDANTS: MultimapTableDefinition<u128, u128> =
    MultimapTableDefinition::new("descendants");
/// Thin device to the VDI that it is of: no device is of two.
pub(super) const THINS: TableDefinition<u32, u128> = TableDefinition::new("thins");

/// Memory that redb may use for pages.
const CACHE: usize = 16 << 20;

/// Catalogs on block devices (or files, which serve as well).
#[derive(Debug, Default)]
pub struct BlockMedia;

impl Media for BlockMedia {
    fn identify(&mut self, device: &Path) -> Result<Option<Uuid>> {
        let mut file = File::open(device).map_err(|e| io_error("open", device, e))?;
        read_superblock(&mut file, device)
    }

    fn format(&mut self, device: &Path, sr: &SrRecord, ledger: &Ledger, vdis: &[Vdi]) -> Result<()> {
        let (mut file, size) = open_device(device)?;
        if size < DEVICE_MIN {
            return Err(Error::failed(format!(
                "{} has {size} bytes, and records need {DEVICE_MIN}",
                device.display()
            )));
        }
        let failed = |e| io_error("format", device, e);
        file.write_all(&[0; superblock::LEN]).map_err(failed)?;
        Area::clear(&file).map_err(failed)?;
        let clone = file.try_clone().map_err(failed)?;
        let database = open_database(clone, size, device, Access::Change)?;
        let write = || -> Result<(), redb::Error> {
            let transaction = database.begin_write()?;
            {
                let mut state = transaction.open_table(STATE)?;
                state.insert("schema", json(&SCHEMA).as_slice())?;
                state.insert("sr", json(sr).as_slice())?;
                state.insert("ledger", json(ledger).as_slice())?;
            }
            transaction.open_table(VDIS)?;
            transaction.open_multimap_table(NAMES)?;
            transaction.open_multimap_table(DESCENDANTS)?;
            transaction.open_table(THINS)?;
            for vdi in vdis {
                put(&transaction, vdi)?;
            }
            transaction.commit()?;
            Ok(())
        };
        write().map_err(|e| Error::failed("cannot write the first records").because(e))?;
        drop(database);
        file.seek(SeekFrom::Start(0)).map_err(failed)?;
        file.write_all(&superblock::encode(sr.uuid)).map_err(failed)?;
        file.sync_data().map_err(failed)
    }

    fn open(&mut self, device: &Path, sr: Uuid) -> Result<Box<dyn Catalog>> {
        self.open_as(device, sr, Access::Change)
    }

    fn look(&mut self, device: &Path, sr: Uuid) -> Result<Box<dyn Catalog>> {
        self.open_as(device, sr, Access::Look)
    }
}

/// What records are opened for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Change,
    /// Nothing is written to the device.
    Look,
}

impl BlockMedia {
    fn open_as(&self, device: &Path, sr: Uuid, access: Access) -> Result<Box<dyn Catalog>> {
        let (mut file, size) = open_device(device)?;
        match read_superblock(&mut file, device)? {
            Some(found) if found == sr => {}
            Some(found) => {
                return Err(Error::refused(format!(
                    "{} holds the records of SR {found}, not of {sr}",
                    device.display()
                )));
            }
            None => {
                return Err(Error::failed(format!("{} holds no records of an SR", device.display())));
            }
        }
        let store = Store { database: open_database(file, size, device, access)?, access };
        migrate(&store.database)?;
        Ok(Box::new(store))
    }
}

fn io_error(verb: &str, device: &Path, error: std::io::Error) -> Error {
    Error::failed(format!("cannot {verb} {}", device.display())).because(error)
}

fn open_device(device: &Path) -> Result<(File, u64)> {
    let mut file =
        OpenOptions::new().read(true).write(true).open(device).map_err(|e| io_error("open", device, e))?;
    // The end of a block device is where seeking to the end leads; its inode says 0.
    let size = file
        .seek(SeekFrom::End(0))
        .and_then(|size| file.seek(SeekFrom::Start(0)).map(|_| size))
        .map_err(|e| io_error("measure", device, e))?;
    Ok((file, size))
}

fn read_superblock(file: &mut File, device: &Path) -> Result<Option<Uuid>> {
    let mut block = [0; superblock::LEN];
    match file.read_exact(&mut block) {
        Ok(()) => superblock::decode(&block),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(e) => Err(io_error("read", device, e)),
    }
}

fn open_database(file: File, size: u64, device: &Path, access: Access) -> Result<Database> {
    let failed = |e| io_error("read", device, e);
    let area = Area::open(file, size).map_err(failed)?;
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE);
    let database = match access {
        Access::Change => builder.create_with_backend(area),
        Access::Look => builder.create_with_backend(View::new(area).map_err(failed)?),
    };
    database.map_err(|e| Error::failed(format!("cannot open the records on {}", device.display())).because(e))
}

pub(super) fn json<T: Serialize>(value: &T) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "records have string keys and plain values, which JSON can hold")]
    serde_json::to_vec(value).expect("a record becomes JSON")
}

pub(super) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|e| Error::failed("a record is damaged").because(e))
}

struct Store {
    database: Database,
    access: Access,
}

pub(super) fn unreadable(error: impl Into<redb::Error>) -> Error {
    Error::failed("cannot read the records").because(error.into())
}

impl Store {
    fn state<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let read = self.database.begin_read().map_err(unreadable)?;
        let table = read.open_table(STATE).map_err(unreadable)?;
        let value = table
            .get(key)
            .map_err(unreadable)?
            .ok_or_else(|| Error::failed(format!("the records lack the entry '{key}'")))?;
        parse(value.value())
    }
}

impl Catalog for Store {
    fn sr(&self) -> Result<SrRecord> {
        self.state("sr")
    }

    fn ledger(&self) -> Result<Ledger> {
        self.state("ledger")
    }

    fn vdi(&self, uuid: Uuid) -> Result<Option<Vdi>> {
        let read = self.database.begin_read().map_err(unreadable)?;
        let table = read.open_table(VDIS).map_err(unreadable)?;
        let value = table.get(uuid.as_u128()).map_err(unreadable)?;
        value.map(|value| parse(value.value())).transpose()
    }

    fn named(&self, name: &str) -> Result<Vec<Uuid>> {
        let read = self.database.begin_read().map_err(unreadable)?;
        let table = read.open_multimap_table(NAMES).map_err(unreadable)?;
        table
            .get(name)
            .map_err(unreadable)?
            .map(|entry| Ok(Uuid::from_u128(entry.map_err(unreadable)?.value())))
            .collect()
    }

    fn descendants(&self, template: Uuid) -> Result<u64> {
        let read = self.database.begin_read().map_err(unreadable)?;
        let table = read.open_multimap_table(DESCENDANTS).map_err(unreadable)?;
        Ok(table.get(template.as_u128()).map_err(unreadable)?.len())
    }

    fn vdis(&self) -> Result<Vec<Vdi>> {
        let read = self.database.begin_read().map_err(unreadable)?;
        let table = read.open_table(VDIS).map_err(unreadable)?;
        table.iter().map_err(unreadable)?.map(|entry| parse(entry.map_err(unreadable)?.1.value())).collect()
    }

    fn commit(&mut self, changes: &[Change]) -> Result<()> {
        if self.access == Access::Look {
            return Err(Error::failed("the records were opened to be looked at, and cannot be changed"));
        }
        self.write(changes).map_err(|e| Error::failed("cannot write the records").because(e))
    }
}

impl Store {
    fn write(&mut self, changes: &[Change]) -> Result<(), redb::Error> {
        let mut transaction = self.database.begin_write()?;
        // The allocator's state goes with every commit, so that opening after a crash does not walk every page.
        transaction.set_quick_repair(true);
        for change in changes {
            match change {
                Change::Sr(sr) => {
                    transaction.open_table(STATE)?.insert("sr", json(sr).as_slice())?;
                }
                Change::Ledger(ledger) => {
                    transaction.open_table(STATE)?.insert("ledger", json(ledger).as_slice())?;
                }
                Change::Put(vdi) => put(&transaction, vdi)?,
                Change::Remove(uuid) => {
                    unindex(&transaction, *uuid)?;
                    transaction.open_table(VDIS)?.remove(uuid.as_u128())?;
                }
            }
        }
        transaction.commit()?;
        Ok(())
    }
}

/// Adds the VDI's record and what the indexes have of it, in place of the one that it has.
fn put(transaction: &WriteTransaction, vdi: &Vdi) -> Result<(), redb::Error> {
    unindex(transaction, vdi.uuid)?;
    let key = vdi.uuid.as_u128();
    transaction.open_table(VDIS)?.insert(key, json(vdi).as_slice())?;
    transaction.open_multimap_table(NAMES)?.insert(vdi.name.as_str(), key)?;
    if let Some(origin) = vdi.origin {
        transaction.open_multimap_table(DESCENDANTS)?.insert(origin.as_u128(), key)?;
    }
    if let Some(id) = vdi.thin_id()
        && transaction.open_table(THINS)?.insert(id, key)?.is_some()
    {
        return Err(redb::Error::Corrupted(format!("thin device {id} is another VDI's")));
    }
    Ok(())
}

/// Takes the VDI out of the indexes, if it has a record.
fn unindex(transaction: &WriteTransaction, uuid: Uuid) -> Result<(), redb::Error> {
    let table = transaction.open_table(VDIS)?;
    let Some(value) = table.get(uuid.as_u128())? else {
        return Ok(());
    };
    let Ok(vdi) = serde_json::from_slice::<Vdi>(value.value()) else {
        return Err(redb::Error::Corrupted(format!("the record of VDI {uuid} is damaged")));
    };
    transaction.open_multimap_table(NAMES)?.remove(vdi.name.as_str(), uuid.as_u128())?;
    if let Some(origin) = vdi.origin {
        transaction.open_multimap_table(DESCENDANTS)?.remove(origin.as_u128(), uuid.as_u128())?;
    }
    if let Some(id) = vdi.thin_id() {
        transaction.open_table(THINS)?.remove(id)?;
    }
    Ok(())
}

/// A database in the area of a device that says it is `sr`'s, without tables: what tests write specimens to.
#[cfg(test)]
pub(super) fn database_on(device: &Path, sr: Uuid) -> Result<Database> {
    let (mut file, size) = open_device(device)?;
    let failed = |e| io_error("format", device, e);
    file.write_all(&superblock::encode(sr)).map_err(failed)?;
    Area::clear(&file).map_err(failed)?;
    open_database(file, size, device, Access::Change)
}
