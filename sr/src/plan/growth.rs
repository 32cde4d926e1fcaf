//! Plans for a pool that grows.
//!
//! Growing a pool suspends it, and with it every thin device, each until its reads under way have ended. A read that hangs
//! in one template would so hang all VDIs of the SR. So a pool grows only while every template that is under a VDI
//! answers; else growth is put off, with the template named.

use super::sr::{POOL_METADATA_MAX, SrSeen};
use super::step::{Step, exact_size_text};
use crate::dm::{PoolMode, PoolStatus};
use crate::error::{Error, Result};
use crate::lvm::{Lv, Vg};
use uuid::Uuid;

/// Above this share of its data in use, in percent, a pool is to grow.
pub(crate) const DATA_HIGH: u64 = 80;

/// The share in use, in percent, that a pool has after it has grown.
const DATA_TARGET: u64 = 60;

/// Above this share of its metadata in use, in percent, that is to grow, to twice its size.
pub(crate) const METADATA_HIGH: u64 = 75;

/// How a pool is to grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Growth {
    /// To this size, in bytes; by the watermark if not given.
    pub(crate) size: Option<u64>,
    /// Templates that may be under VDIs, with what people call them.
    pub(crate) templates: Vec<(Uuid, String)>,
}

pub(crate) fn percent(used: u64, total: u64) -> u64 {
    used.saturating_mul(100) / total.max(1)
}

/// Whether the watermark is passed, going by the pool's status alone.
pub(crate) fn is_high(status: &PoolStatus) -> bool {
    let grows = matches!(status.mode, PoolMode::ReadWrite | PoolMode::OutOfDataSpace) && !status.needs_check;
    grows
        && (status.mode == PoolMode::OutOfDataSpace
            || percent(status.data_used, status.data_total) >= DATA_HIGH
            || percent(status.metadata_used, status.metadata_total) >= METADATA_HIGH)
}

/// The steps, were every template healthy.
pub(crate) fn due(growth: &Growth, seen: &SrSeen) -> Result<Vec<Step>> {
    let (Some(group), Some((_, status))) = (&seen.group, &seen.pool) else {
        return Err(Error::refused(format!("SR {} is not attached", seen.uuid)));
    };
    let lv = group
        .lv(&seen.pool_lv)
        .ok_or_else(|| Error::failed(format!("the group {} has no volume {}", seen.vg_name, seen.pool_lv)))?;
    if !matches!(status.mode, PoolMode::ReadWrite | PoolMode::OutOfDataSpace) || status.needs_check {
        return Err(Error::failed(format!(
            "the thin pool {vg}/{pool} cannot grow while its metadata is not whole: 'lvconvert --repair {vg}/{pool}'",
            vg = seen.vg_name,
            pool = seen.pool_lv
        )));
    }
    let mut free = group.free;
    let mut steps = Vec::new();
    let (vg, pool_lv) = (seen.vg_name.clone(), seen.pool_lv.clone());
    // Metadata first: without room in it there is no use for data.
    if let Some(size) = metadata(status, lv, group, free) {
        // The spare that LVM keeps for repairs grows with it.
        free = free.saturating_sub(2 * (size - lv.metadata));
        steps.push(Step::GrowMetadata { vg: vg.clone(), pool_lv: pool_lv.clone(), size });
    }
    if let Some(size) = data(growth, status, lv, group, free)? {
        steps.push(Step::GrowPool { vg, pool_lv, size });
    }
    Ok(steps)
}

fn metadata(status: &PoolStatus, lv: &Lv, group: &Vg, free: u64) -> Option<u64> {
    if percent(status.metadata_used, status.metadata_total) < METADATA_HIGH {
        return None;
    }
    let size = lv.metadata.saturating_mul(2).min(POOL_METADATA_MAX / group.extent * group.extent);
    (size > lv.metadata && 2 * (size - lv.metadata) <= free).then_some(size)
}

/// The new size of the data, if it is to have another one.
fn data(growth: &Growth, status: &PoolStatus, lv: &Lv, group: &Vg, free: u64) -> Result<Option<u64>> {
    // Extents and blocks are powers of two, so the larger is a multiple of the smaller where both are.
    let unit = group.extent.max(lv.chunk).max(1);
    let room = free / unit * unit;
    let Some(wanted) = growth.size else {
        let full = status.mode == PoolMode::OutOfDataSpace;
        if !full && percent(status.data_used, status.data_total) < DATA_HIGH {
            return Ok(None);
        }
        let used = status.data_used.saturating_mul(lv.chunk);
        let wanted = (used.saturating_mul(100) / DATA_TARGET).next_multiple_of(unit);
        let size = wanted.min(lv.size + room);
        return Ok((size > lv.size).then_some(size));
    };
    let wanted = wanted.next_multiple_of(unit);
    if wanted < lv.size {
        return Err(Error::refused(format!(
            "the thin pool {}/{} has {} and cannot shrink to {}",
            group.name,
            lv.name,
            exact_size_text(lv.size),
            exact_size_text(wanted)
        )));
    }
    if wanted > lv.size + room {
        return Err(Error::refused(format!(
            "the thin pool {}/{} has {} and cannot grow to {}: the group has {} free",
            group.name,
            lv.name,
            exact_size_text(lv.size),
            exact_size_text(wanted),
            exact_size_text(free)
        )));
    }
    Ok((wanted > lv.size).then_some(wanted))
}

/// What is left to do so that the pool has room.
pub(super) fn grow(growth: &Growth, seen: &SrSeen) -> Result<Vec<Step>> {
    let steps = due(growth, seen)?;
    if steps.is_empty() || seen.hung.is_empty() {
        return Ok(steps);
    }
    let name = |uuid: &Uuid| match growth.templates.iter().find(|(template, _)| template == uuid) {
        Some((_, name)) => format!("'{name}' ({uuid})"),
        None => uuid.to_string(),
    };
    let names: Vec<_> = seen.hung.iter().map(name).collect();
    let (plural, verb) = if names.len() == 1 { ("", "does") } else { ("s", "do") };
    Err(Error::refused(format!(
        "the thin pool {}/{} does not grow now, for template{plural} {} {verb} not answer, and every VDI would wait for that",
        seen.vg_name,
        seen.pool_lv,
        names.join(", ")
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dm::{Device, DeviceNumber};

    const GIB: u64 = 1 << 30;
    const CHUNK: u64 = 65536;

    /// A pool of 10 GiB with 1 GiB of metadata in a group with 20 GiB free.
    fn seen(used_percent: u64, metadata_percent: u64) -> SrSeen {
        let total = 10 * GIB / CHUNK;
        let status = PoolStatus {
            transaction_id: 1,
            metadata_used: metadata_percent * GIB / 4096 / 100 + 1,
            metadata_total: GIB / 4096,
            data_used: total * used_percent / 100,
            data_total: total,
            held_root: None,
            mode: PoolMode::ReadWrite,
            needs_check: false,
        };
        let lv = Lv {
            name: "pool".into(),
            size: 10 * GIB,
            kind: "thin-pool".into(),
            tags: Vec::new(),
            active: true,
            pool: None,
            transaction_id: 0,
            chunk: CHUNK,
            metadata: GIB,
        };
        let group = Vg {
            shared: false,
            name: "vg".into(),
            size: 40 * GIB,
            free: 20 * GIB,
            extent: 4 << 20,
            tags: Vec::new(),
            pvs: Vec::new(),
            lvs: vec![lv],
        };
        let device = Device {
            number: DeviceNumber { major: 253, minor: 1 },
            uuid: String::new(),
            open_count: 0,
            suspended: false,
            read_only: false,
            table: None,
        };
        SrSeen {
            uuid: Uuid::nil(),
            vg_name: "vg".into(),
            pool_lv: "pool".into(),
            group: Some(group),
            free: Vec::new(),
            disks: Vec::new(),
            pool: Some((device, status)),
            records: None,
            remembered: None,
            devices: Vec::new(),
            links: Vec::new(),
            hung: Vec::new(),
            restore: None,
        }
    }

    fn by_watermark() -> Growth {
        Growth { size: None, templates: vec![(Uuid::nil(), "debian".into())] }
    }

    fn sizes(steps: &[Step]) -> Vec<(char, u64)> {
        let size = |step: &Step| match step {
            Step::GrowPool { size, .. } => ('d', *size),
            Step::GrowMetadata { size, .. } => ('m', *size),
            other => panic!("{other}"),
        };
        steps.iter().map(size).collect()
    }

    #[test]
    fn a_pool_grows_at_four_fifths_until_three_fifths_are_in_use() {
        assert!(grow(&by_watermark(), &seen(79, 10)).unwrap().is_empty());
        let steps = grow(&by_watermark(), &seen(81, 10)).unwrap();
        assert_eq!(sizes(&steps), [('d', (8100 * GIB / 600).next_multiple_of(4 << 20))]);
    }

    #[test]
    fn metadata_doubles_and_its_spare_is_counted() {
        assert_eq!(sizes(&grow(&by_watermark(), &seen(10, 80)).unwrap()), [('m', 2 * GIB)]);
        let mut tight = seen(10, 80);
        tight.group.as_mut().unwrap().free = 2 * GIB - 1;
        assert!(grow(&by_watermark(), &tight).unwrap().is_empty());
    }

    #[test]
    fn it_takes_what_is_left_and_no_more() {
        let mut tight = seen(90, 10);
        tight.group.as_mut().unwrap().free = (4 << 20) + 1;
        assert_eq!(sizes(&grow(&by_watermark(), &tight).unwrap()), [('d', 10 * GIB + (4 << 20))]);
        tight.group.as_mut().unwrap().free = 100;
        assert!(grow(&by_watermark(), &tight).unwrap().is_empty());
    }

    #[test]
    fn a_size_that_is_asked_for_is_given_or_refused() {
        let to = |size| Growth { size: Some(size), ..by_watermark() };
        assert_eq!(sizes(&grow(&to(11 * GIB), &seen(0, 0)).unwrap()), [('d', 11 * GIB)]);
        assert!(grow(&to(10 * GIB), &seen(0, 0)).unwrap().is_empty());
        let shrink = grow(&to(9 * GIB), &seen(0, 0)).unwrap_err();
        assert!(shrink.message.contains("cannot shrink"), "{shrink}");
        let large = grow(&to(31 * GIB), &seen(0, 0)).unwrap_err();
        assert!(large.message.contains("20 GiB (21474836480 bytes) free"), "{large}");
    }

    #[test]
    fn a_hung_template_puts_growth_off_and_is_named() {
        let mut hung = seen(90, 10);
        hung.hung.push(Uuid::nil());
        let error = grow(&by_watermark(), &hung).unwrap_err();
        assert!(error.message.contains("template 'debian'"), "{error}");
        // Where nothing is due, nobody asks.
        let mut idle = seen(10, 10);
        idle.hung.push(Uuid::nil());
        assert!(grow(&by_watermark(), &idle).unwrap().is_empty());
    }

    #[test]
    fn a_full_pool_is_high_and_a_broken_one_does_not_grow() {
        let (_, mut status) = seen(10, 10).pool.unwrap();
        assert!(!is_high(&status));
        status.mode = PoolMode::OutOfDataSpace;
        assert!(is_high(&status));
        status.mode = PoolMode::ReadOnly;
        assert!(!is_high(&status));
    }
}
