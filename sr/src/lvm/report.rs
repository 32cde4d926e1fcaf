//! LVM's reports in JSON.

use super::{Found, Lv, Pv, Vg};
use crate::error::{Error, Result};
use serde::Deserialize;

/// What is asked of `lvm fullreport`, by report type; the fields below.
pub(super) const COLUMNS: [(&str, &str); 5] = [
    ("vg", "vg_name,vg_size,vg_free,vg_extent_size,vg_tags,vg_attr"),
    ("pv", "pv_name,pv_size,vg_name"),
    ("lv", "lv_name"),
    ("pvseg", "pvseg_start"),
    // LVM has volumes' and segments' columns together only here, so a volume of several segments comes several times.
    ("seg", "lv_name,lv_size,segtype,lv_tags,lv_active,pool_lv,transaction_id,chunk_size,lv_metadata_size"),
];

#[derive(Deserialize)]
struct Report {
    report: Vec<Group>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Group {
    vg: Vec<VgRow>,
    pv: Vec<PvRow>,
    seg: Vec<SegRow>,
}

#[derive(Deserialize)]
struct VgRow {
    vg_name: String,
    vg_size: String,
    vg_free: String,
    vg_extent_size: String,
    vg_tags: String,
    vg_attr: String,
}

#[derive(Deserialize)]
struct PvRow {
    pv_name: String,
    pv_size: String,
    vg_name: String,
}

#[derive(Deserialize)]
struct SegRow {
    lv_name: String,
    lv_size: String,
    segtype: String,
    lv_tags: String,
    lv_active: String,
    pool_lv: String,
    transaction_id: String,
    chunk_size: String,
    lv_metadata_size: String,
}

/// Reads the output of `lvm fullreport --reportformat json --units b --nosuffix`.
pub(super) fn parse(text: &[u8]) -> Result<Found> {
    let report: Report =
        serde_json::from_slice(text).map_err(|e| Error::failed("LVM's report cannot be read").because(e))?;
    let mut found = Found::default();
    for group in report.report {
        let mut pvs = Vec::new();
        for row in group.pv {
            if row.vg_name.is_empty() {
                found.free.push(row.pv_name.into());
            } else {
                pvs.push(Pv { size: number(&row.pv_size)?, path: row.pv_name.into() });
            }
        }
        // A group that is no group carries the physical volumes that are in none.
        if let [row] = group.vg.as_slice()
            && !row.vg_name.is_empty()
        {
            let mut lvs: Vec<Lv> = group.seg.into_iter().map(volume).collect::<Result<_>>()?;
            lvs.dedup_by(|a, b| a.name == b.name);
            found.groups.push(Vg {
                name: row.vg_name.clone(),
                size: number(&row.vg_size)?,
                free: number(&row.vg_free)?,
                extent: number(&row.vg_extent_size)?,
                // vgs(8): the sixth letter is c for clustered, s for shared.
                shared: row.vg_attr.chars().nth(5).is_some_and(|letter| "cs".contains(letter)),
                tags: words(&row.vg_tags),
                pvs,
                lvs,
            });
        }
    }
    Ok(found)
}

fn volume(row: SegRow) -> Result<Lv> {
    Ok(Lv {
        size: number(&row.lv_size)?,
        tags: words(&row.lv_tags),
        active: row.lv_active == "active",
        pool: Some(row.pool_lv).filter(|pool| !pool.is_empty()),
        transaction_id: number(&row.transaction_id)?,
        chunk: number(&row.chunk_size)?,
        metadata: number(&row.lv_metadata_size)?,
        name: row.lv_name,
        kind: row.segtype,
    })
}

/// A number, or 0 where LVM leaves the field empty because it does not apply.
fn number(text: &str) -> Result<u64> {
    if text.is_empty() {
        return Ok(0);
    }
    text.parse().map_err(|_| Error::failed(format!("LVM's report has '{text}' where a number belongs")))
}

fn words(text: &str) -> Vec<String> {
    text.split(',').filter(|word| !word.is_empty()).map(String::from).collect()
}
