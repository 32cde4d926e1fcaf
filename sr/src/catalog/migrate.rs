//! Schemas of the records, and how those of an older one become those of this version.
//!
//! | schema | what is new |
//! | --- | --- |
//! | 1 | state, VDIs, and the indexes of names and of templates' descendants |
//! | 2 | the index of thin devices, which keeps two VDIs from having one |
//!
//! Records are migrated when they are opened, in one transaction: whoever dies leaves the old schema or the new one.
//! There is no way back, for an older version would leave the new indexes behind.

use super::store::{STATE, THINS, VDIS, json, parse, unreadable};
use crate::error::{Error, Result};
use crate::record::Vdi;
use redb::{Database, ReadableDatabase, ReadableTable, WriteTransaction};

/// The tables and what is in them, as this version writes them.
pub(super) const SCHEMA: u32 = 2;

/// Makes the records those of [`SCHEMA`].
///
/// # Errors
/// `Refused` for the schema of a later version, which is named; `Failed` if the records are damaged.
pub(super) fn migrate(database: &Database) -> Result<()> {
    let found = schema(database)?;
    if found == SCHEMA {
        return Ok(());
    }
    if found == 0 || found > SCHEMA {
        return Err(Error::refused(format!(
            "the records have schema {found}, and this smctl knows schemas 1 to {SCHEMA}"
        )));
    }
    tracing::info!("the records are of schema {found} and become those of schema {SCHEMA}");
    let transaction = database.begin_write().map_err(failed)?;
    for from in found..SCHEMA {
        step(from, &transaction)?;
    }
    {
        let mut state = transaction.open_table(STATE).map_err(failed)?;
        state.insert("schema", json(&SCHEMA).as_slice()).map_err(failed)?;
    }
    transaction.commit().map_err(failed)
}

fn schema(database: &Database) -> Result<u32> {
    let read = database.begin_read().map_err(unreadable)?;
    let table = read.open_table(STATE).map_err(unreadable)?;
    match table.get("schema").map_err(unreadable)? {
        Some(value) => parse(value.value()),
        None => Err(Error::failed("the records lack the entry 'schema'")),
    }
}

/// Makes what schema `from + 1` has out of what schema `from` has.
fn step(from: u32, transaction: &WriteTransaction) -> Result<()> {
    match from {
        1 => index_thin_devices(transaction),
        other => Err(Error::failed(format!("nothing is known of schema {other}"))),
    }
}

fn index_thin_devices(transaction: &WriteTransaction) -> Result<()> {
    let vdis = transaction.open_table(VDIS).map_err(failed)?;
    let mut thins = transaction.open_table(THINS).map_err(failed)?;
    for entry in vdis.iter().map_err(failed)? {
        let (uuid, value) = entry.map_err(failed)?;
        let vdi: Vdi = parse(value.value())?;
        let Some(id) = vdi.thin_id() else { continue };
        if thins.insert(id, uuid.value()).map_err(failed)?.is_some() {
            return Err(Error::failed(format!("the records are damaged: two VDIs have thin device {id}")));
        }
    }
    Ok(())
}

fn failed(error: impl Into<redb::Error>) -> Error {
    Error::failed("cannot migrate the records").because(error.into())
}
