//! Pools that grow: when somebody says so, and by themselves when little is left.

use super::{Controller, Report};
use crate::engine::{Done, Driven, Mode, Session, SrPlace};
use crate::error::{Error, Result};
use crate::host::Attached;
use crate::plan::growth::{DATA_HIGH, METADATA_HIGH, is_high, percent};
use crate::plan::{Growth, SrGoal, Step};
use crate::record::{Change, SrRecord};
use crate::view::SrInfo;
use crate::{Outcome, dm};
use std::collections::BTreeSet;
use uuid::Uuid;

/// What is to become of an SR's pool.
#[derive(Clone, Debug, Default)]
pub struct SrGrow {
    /// The size that it is to have, in bytes; what the watermark wants if not given.
    pub size: Option<u64>,
    /// Whether it grows by itself from now on; as before if not given.
    pub automatically: Option<bool>,
}

/// What was found, and done, when an SR's pool was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Tended {
    /// The SR.
    pub uuid: Uuid,
    /// What people call it.
    pub name: String,
    /// What was done to its pool, as sentences.
    pub steps: Vec<String>,
    /// What somebody should look after, as sentences.
    pub warnings: Vec<String>,
}

impl Controller {
    /// Grows an SR's pool, or says whether it grows by itself. Where it does from now on and little is left, it grows at
    /// once; that this cannot be done is a warning.
    ///
    /// # Errors
    /// `Refused` for a size below what it has or beyond what the group has, and while a template under a VDI does not
    /// answer: growing suspends the pool, and every VDI would wait for that template.
    pub fn sr_grow(&mut self, sr: &str, request: &SrGrow) -> Result<Report<SrInfo>> {
        let mut open = self.open_sr(sr)?;
        let mut record = open.session.catalog.sr()?;
        let mut done = Vec::new();
        let mut warnings = Vec::new();
        // What may be refused comes first, for then nothing is changed.
        if request.size.is_some() || request.automatically.is_none() {
            done.extend(self.grow(&open.session, request.size)?);
        }
        if let Some(grows) = request.automatically
            && record.grows() != grows
        {
            record.grows = Some(grows);
            let step = Step::SetGrows { grows };
            if self.mode == Mode::Apply {
                open.session.catalog.commit(&[Change::Sr(record)])?;
                done.push((step, Some(Outcome::Changed)));
                warnings = self.tend_open(&open.session, &mut done);
            } else {
                done.push((step, None));
            }
        }
        let uuid = open.session.sr.uuid;
        // The report takes the lock for itself.
        drop(open);
        let report = self.sr_report(Driven { done, group: None }, uuid)?;
        Ok(if warnings.is_empty() { report } else { report.with_warnings(warnings) })
    }

    /// Looks at the pool of every attached SR, but for those in `leave`, and grows those that grow by themselves and have
    /// little left. Where there is nothing to do it takes no lock, asks LVM nothing and takes microseconds.
    ///
    /// # Errors
    /// What is attached cannot be told. What goes wrong with one SR is among its warnings.
    pub fn tend(&mut self, leave: &BTreeSet<Uuid>) -> Result<Vec<Tended>> {
        let mut tended = Vec::new();
        for sr in self.world.host.attached()? {
            if leave.contains(&sr.uuid) {
                continue;
            }
            let (steps, warnings) = match self.tend_one(&sr) {
                Ok(both) => both,
                Err(e) => (Vec::new(), vec![e.to_string()]),
            };
            tended.push(Tended { uuid: sr.uuid, name: sr.name, steps, warnings });
        }
        Ok(tended)
    }

    fn tend_one(&mut self, sr: &Attached) -> Result<(Vec<String>, Vec<String>)> {
        let pool = crate::names::lv_device(&sr.vg, &sr.pool_lv);
        // It may be detached at any moment, and then there is nothing to tend.
        let Ok(line) = self.world.dm.status(&pool) else { return Ok(Default::default()) };
        match dm::PoolStatus::parse(&line) {
            Some(status) if is_high(&status) => {}
            Some(_) | None => return Ok(Default::default()),
        }
        let open = self.open_sr(&sr.uuid.to_string())?;
        let mut done = Vec::new();
        let warnings = self.try_tend(&open.session, &mut done).unwrap_or_else(|e| vec![e.to_string()]);
        Ok((done.into_iter().map(|(step, _)| step.to_string()).collect(), warnings))
    }

    /// Grows the pool of an SR that is open if that is due; says what somebody should look after. Nothing that goes wrong
    /// here is an error of the verb that looks.
    pub(super) fn tend_open(&mut self, session: &Session, done: &mut Vec<Done>) -> Vec<String> {
        // What a verb would do besides is not of its plan.
        if self.mode == Mode::DryRun {
            return Vec::new();
        }
        self.try_tend(session, done).unwrap_or_else(|e| vec![e.to_string()])
    }

    fn try_tend(&mut self, session: &Session, done: &mut Vec<Done>) -> Result<Vec<String>> {
        let record = session.catalog.sr()?;
        let (_, status) = self.world.pool_status(session)?;
        let mut warnings = Vec::new();
        if is_high(&status) && record.grows() {
            match self.grow(session, None) {
                Ok(grown) => done.extend(grown),
                Err(e) => warnings.push(e.to_string()),
            }
        }
        let (_, status) = self.world.pool_status(session)?;
        warnings.extend(shortage(&status, &record));
        Ok(warnings)
    }

    fn grow(&mut self, session: &Session, size: Option<u64>) -> Result<Vec<Done>> {
        let templates = session.catalog.vdis()?.into_iter().filter(crate::record::Vdi::is_template);
        let templates = templates.map(|template| (template.uuid, template.name)).collect();
        let sr = &session.sr;
        let place = SrPlace {
            uuid: sr.uuid,
            vg: sr.vg.clone(),
            pool_lv: sr.pool_lv.clone(),
            devices: sr.devices.clone(),
        };
        let grown = self.world.drive_sr(self.mode, &place, &SrGoal::Grown(Growth { size, templates }));
        grown.map(|driven| driven.done).map_err(|e| match e.kind {
            crate::ErrorKind::Failed => {
                Error::failed(format!("the pool of SR '{}' cannot grow", sr.name)).because(e)
            }
            _ => e,
        })
    }
}

/// What a pool that has little left lets its users expect, and what can be done.
pub(super) fn shortage(status: &dm::PoolStatus, record: &SrRecord) -> Vec<String> {
    let (vg, pool) = (&record.vg, &record.pool_lv);
    let mut warnings = Vec::new();
    let shares = [
        ("data", status.data_used, status.data_total, DATA_HIGH),
        ("metadata", status.metadata_used, status.metadata_total, METADATA_HIGH),
    ];
    for (what, used, total, high) in shares {
        let percent = percent(used, total);
        if percent < high {
            continue;
        }
        let outlook = if record.grows() {
            format!("and it has not grown: the group {vg} needs room, or a template does not answer")
        } else {
            format!("and it does not grow by itself: 'smctl sr grow {}' grows it", record.name)
        };
        warnings.push(format!("{percent} % of the {what} of {vg}/{pool} is in use, {outlook}"));
    }
    match status.mode {
        dm::PoolMode::ReadWrite => {}
        dm::PoolMode::OutOfDataSpace => {
            warnings.push(format!("{vg}/{pool} is full: writes to new blocks fail"));
        }
        dm::PoolMode::ReadOnly => {
            warnings.push(format!("{vg}/{pool} is read-only after a failure of its metadata"));
        }
        dm::PoolMode::Failed => warnings.push(format!("{vg}/{pool} has failed")),
    }
    if status.needs_check {
        warnings.push(format!("the metadata of {vg}/{pool} needs a check: 'lvconvert --repair {vg}/{pool}'"));
    }
    warnings
}
