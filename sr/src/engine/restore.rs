//! Looking at an SR whose records are lost, and writing them anew.

use super::{SrPlace, World};
use crate::dm::PoolStatus;
use crate::error::{Error, ErrorKind, Result};
use crate::names;
use crate::plan::{RestoreSeen, Restored, SrSeen};
use crate::record::{Ledger, SrRecord, THIN_ID_MAX, Vdi};
use crate::thin::{Root, Seen};
use std::collections::BTreeSet;

impl World {
    /// What is in the place of records that are to be restored.
    pub(super) fn observe_restore(&mut self, place: &SrPlace) -> Result<RestoreSeen> {
        let metadata = format!("{}_tmeta", place.pool_lv);
        let thins = match self.lv_device(&place.vg, &metadata)? {
            None => None,
            // Every change of what devices there are is committed at once, so the last superblock knows them all.
            Some(device) => match self.thin.usage(&device.number.dm_node(), Root::Live)? {
                Seen::Whole(usage) => Some(usage.into_keys().collect()),
                Seen::Moved => {
                    return Err(Error::failed(format!(
                        "the pool {}/{} is too busy to tell which thin devices it has: try again",
                        place.vg, place.pool_lv
                    )));
                }
            },
        };
        Ok(RestoreSeen { records: self.readable(place)?, thins })
    }

    /// The records, if they can be read.
    ///
    /// # Errors
    /// They are there, but another version's or another SR's.
    fn readable(&mut self, place: &SrPlace) -> Result<Option<(SrRecord, Vec<Vdi>)>> {
        let Some(device) = self.lv_device(&place.vg, &names::meta_lv(place.uuid))? else { return Ok(None) };
        let node = device.number.dm_node();
        let records = match self.media.identify(&node) {
            Ok(Some(_)) => self.media.look(&node, place.uuid).and_then(|catalog| {
                catalog.ledger()?;
                Ok(Some((catalog.sr()?, catalog.vdis()?)))
            }),
            other => other.map(|_| None),
        };
        match records {
            Err(e) if e.kind == ErrorKind::Refused => Err(e),
            Err(e) => {
                tracing::info!("the records on {} cannot be read: {e}", node.display());
                Ok(None)
            }
            records => records,
        }
    }

    /// Writes the records of a dump.
    pub(super) fn write_records(&mut self, place: &SrPlace, wanted: &Restored, seen: &SrSeen) -> Result<()> {
        let dump = &wanted.dump;
        let thins = seen.restore.as_ref().and_then(|seen| seen.thins.as_ref());
        let (Some(device), Some((_, status)), Some(thins)) =
            (self.lv_device(&place.vg, &names::meta_lv(place.uuid))?, &seen.pool, thins)
        else {
            return Err(Error::failed(format!("the volumes of SR '{}' are not active", dump.sr.name)));
        };
        let ledger = ledger(dump.next_thin_id, status, thins)?;
        self.media.format(&device.number.dm_node(), &dump.sr, &ledger, &dump.vdis)
    }
}

/// A ledger that fits the pool as it is, and uses no device id that is there.
fn ledger(next: u32, status: &PoolStatus, thins: &BTreeSet<u32>) -> Result<Ledger> {
    let next_thin_id = thins.last().map_or(next, |last| next.max(last + 1));
    if next_thin_id > THIN_ID_MAX {
        return Err(Error::failed("the pool has no device ids left"));
    }
    Ok(Ledger { transaction_id: status.transaction_id, next_thin_id, intent: None })
}
