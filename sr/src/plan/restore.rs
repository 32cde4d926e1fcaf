//! The plan for an SR whose records are lost.

use super::sr::{META_SIZE, SrSeen, SrSpec, remember};
use super::step::Step;
use crate::dump::Dump;
use crate::error::{Error, Result};
use crate::names;
use crate::record::{Body, SrRecord, Vdi};
use std::collections::BTreeSet;

/// Records that are to be written anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Restored {
    pub(crate) dump: Dump,
    /// Whether thin devices that the dump does not know are left in the pool, and the rest restored.
    pub(crate) leave_unknown: bool,
}

/// What there is in place of what is to be restored.
#[derive(Clone, Debug)]
pub(crate) struct RestoreSeen {
    /// What the records hold; `None` if they cannot be read, or their volume is not active.
    pub(crate) records: Option<(SrRecord, Vec<Vdi>)>,
    /// The device ids of the pool; `None` unless it is active.
    pub(crate) thins: Option<BTreeSet<u32>>,
}

impl Restored {
    fn spec(&self) -> SrSpec {
        let sr = &self.dump.sr;
        SrSpec {
            uuid: sr.uuid,
            name: sr.name.clone(),
            vg: sr.vg.clone(),
            devices: Vec::new(),
            pool_size: None,
            chunk: None,
            adopt: (!sr.owns_pool).then(|| sr.pool_lv.clone()),
            grows: sr.grows(),
        }
    }
}

pub(super) fn restore(wanted: &Restored, seen: &SrSeen) -> Result<Vec<Step>> {
    let (dump, sr) = (&wanted.dump, &wanted.dump.sr);
    let mut steps = Vec::new();
    // A volume without a record is taken for what a crash left, and removed.
    let volumes = seen.group.iter().flat_map(|group| &group.lvs);
    let unknown = volumes.filter(|lv| {
        let vdi = names::vdi_of_thick_lv(sr.uuid, &lv.name).filter(|_| lv.is_of(sr.uuid));
        vdi.is_some_and(|uuid| dump.vdis.iter().all(|vdi| vdi.uuid != uuid))
    });
    if let Some(lv) = unknown.into_iter().next() {
        return Err(Error::refused(format!(
            "the volume {}/{} is of a preallocated VDI that the dump does not know, and would be removed: 'lvrename' keeps \
             it, 'lvremove' gives it up",
            sr.vg, lv.name
        )));
    }
    let Some(pool) = seen.pool_volume() else {
        return Err(Error::not_found(format!(
            "the volume group {} has no volume {}, which is the pool of SR '{}'",
            sr.vg, sr.pool_lv, sr.name
        )));
    };
    if pool.kind != "thin-pool" || pool.chunk != sr.chunk {
        return Err(Error::refused(format!(
            "{}/{} is not the pool of the dump: it is a {} with blocks of {} bytes, and was a thin-pool with blocks of {}",
            sr.vg, sr.pool_lv, pool.kind, pool.chunk, sr.chunk
        )));
    }
    let meta = names::meta_lv(sr.uuid);
    if seen.meta().is_none() {
        let (vg, lv, tags) = (sr.vg.clone(), meta.clone(), wanted.spec().tags());
        steps.push(Step::CreateMeta { vg, lv, size: META_SIZE, tags });
    } else if seen.records.is_none() {
        steps.push(Step::Activate { vg: sr.vg.clone(), lv: meta.clone() });
    }
    if seen.pool.is_none() {
        steps.push(Step::Activate { vg: sr.vg.clone(), lv: sr.pool_lv.clone() });
    }
    let looked = seen.restore.as_ref();
    match looked.and_then(|looked| looked.records.as_ref()) {
        Some((record, vdis)) if *record == *sr && same(vdis, &dump.vdis) => {}
        Some(_) => {
            return Err(Error::refused(format!(
                "{}/{meta} holds records of SR '{}' that can be read, and other ones than the dump's: nothing is restored over them",
                sr.vg, sr.name
            )));
        }
        None => {
            if let (Some((_, status)), Some(thins)) = (&seen.pool, looked.and_then(|it| it.thins.as_ref())) {
                check_volumes(dump, seen)?;
                check_pool(wanted, status.transaction_id, thins)?;
                if status.transaction_id == 0 {
                    steps.push(Step::Fence { vg: sr.vg.clone(), pool_lv: sr.pool_lv.clone() });
                }
            }
            steps.push(Step::WriteRecords { lv: meta, vdis: dump.vdis.len() });
        }
    }
    steps.extend(remember(&sr.name, seen, &[]));
    Ok(steps)
}

/// Whether the volumes are there that the VDIs have of their own.
fn check_volumes(dump: &Dump, seen: &SrSeen) -> Result<()> {
    for vdi in &dump.vdis {
        let lv = match &vdi.body {
            Body::Thick => names::thick_lv(dump.sr.uuid, vdi.uuid),
            Body::Template { .. } if vdi.local_ready().is_some() => names::local_lv(dump.sr.uuid, vdi.uuid),
            _ => continue,
        };
        if seen.group.as_ref().is_none_or(|group| group.lv(&lv).is_none()) {
            return Err(Error::refused(format!(
                "the volume group {} lacks {lv}, which holds what VDI '{}' has: the dump is of another time",
                dump.sr.vg, vdi.name
            )));
        }
    }
    Ok(())
}

/// Whether the pool is the one that the dump speaks of.
fn check_pool(wanted: &Restored, transaction_id: u64, there: &BTreeSet<u32>) -> Result<()> {
    let dump = &wanted.dump;
    let path = format!("{}/{}", dump.sr.vg, dump.sr.pool_lv);
    let known = dump.thin_ids();
    let missing: Vec<_> = known.iter().filter(|(id, _)| !there.contains(id)).collect();
    if let Some((id, vdi)) = missing.first() {
        return Err(Error::refused(format!(
            "the pool {path} lacks {} of the dump's {} thin devices, as {id} of VDI '{}' ({}): the dump is of another pool or another time",
            missing.len(),
            known.len(),
            vdi.name,
            vdi.uuid
        )));
    }
    if transaction_id < dump.transaction_id {
        return Err(Error::refused(format!(
            "the pool {path} is at transaction {transaction_id}, before the dump, which is of transaction {}",
            dump.transaction_id
        )));
    }
    let unknown: Vec<_> = there.iter().filter(|id| !known.contains_key(id)).map(u32::to_string).collect();
    if !unknown.is_empty() && !wanted.leave_unknown {
        let first = unknown.iter().take(8).cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::refused(format!(
            "the pool {path} has {} thin devices that the dump does not know, made since: {first}; '--leave-unknown' restores the others and leaves these in the pool",
            unknown.len()
        )));
    }
    Ok(())
}

fn same(a: &[Vdi], b: &[Vdi]) -> bool {
    let sorted = |vdis: &[Vdi]| {
        let mut vdis = vdis.to_vec();
        vdis.sort_by_key(|vdi| vdi.uuid);
        vdis
    };
    sorted(a) == sorted(b)
}
