//! `vdi flatten`: a VDI becomes independent of its template.

use super::work::{PAUSE, SLICE};
use super::{Controller, Open, Report, Work};
use crate::Outcome;
use crate::engine::{Done, Flattening, Mode, Session, Slice};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Goal, Step};
use crate::record::{Body, Vdi};
use crate::view::VdiInfo;
use std::ops::Range;
use std::time::Instant;
use uuid::Uuid;

impl Controller {
    /// Copies what a disk still reads from its template into the pool, and then cuts the tie: the template may be
    /// forgotten, and what the guest discards reads as zeros from then on. A guest that uses the disk waits for moments.
    /// Other verbs of the SR go on meanwhile. Snapshots and clones of the disk keep their template. A pool that grows by
    /// itself grows at its watermark.
    ///
    /// A crash, or a stop, loses nothing: what was copied stays, and the next call goes on. A disk without a template is
    /// left as it is.
    ///
    /// # Errors
    /// `Refused` for a template, and while the disk is being flattened by somebody else; `Cancelled` if it was asked to
    /// stop; `Failed` if the template cannot be read, or the pool has no room left.
    pub fn vdi_flatten(&mut self, sr: &str, vdi: &str, work: &mut Work<'_>) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        if vdi.is_template() {
            return Err(Error::refused(format!(
                "'{}' is a template: 'smctl vdi localise' copies one into the SR",
                vdi.name
            )));
        }
        let mut done = self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Settled)?;
        let (Some(template), Body::Thin { id }) = (vdi.origin, vdi.body.clone()) else {
            return self.vdi_report(&open.session, done, vdi.uuid);
        };
        let step = Step::Flatten { vdi: vdi.uuid, name: vdi.name.clone() };
        let Some(alone) = self.locks.try_work(vdi.uuid)? else {
            return Err(Error::refused(format!("VDI '{}' is being flattened already", vdi.name)));
        };
        if self.mode == Mode::DryRun {
            done.extend(self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Shown)?);
            done.push((step, None));
            let goal = Goal::Independent { id };
            done.extend(self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &goal)?);
            alone.retire()?;
            return self.vdi_report(&open.session, done, vdi.uuid);
        }
        let sr = open.session.sr.uuid.to_string();
        let flattened = match self.copy_all(&mut done, open, &vdi, (template, id), work) {
            Ok((mut open, any)) => {
                done.push((step, Some(Outcome::from(any))));
                let goal = Goal::Independent { id };
                self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &goal)
            }
            Err(e) => Err(e),
        };
        // Whatever came of it, a template that was opened for this is let go.
        let mut open = self.open_sr(&sr)?;
        let released = self.release(&mut open.session, template);
        done.extend(flattened?);
        done.extend(released?);
        alone.retire()?;
        self.vdi_report(&open.session, done, vdi.uuid)
    }

    /// Copies all there is to be copied, in slices between which others have the SR; says whether there was anything.
    fn copy_all(
        &mut self,
        done: &mut Vec<Done>,
        mut open: Open,
        vdi: &Vdi,
        (template, id): (Uuid, u32),
        work: &mut Work<'_>,
    ) -> Result<(Open, bool)> {
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Shown)?);
        let data = self.template_data(&open.session, template)?;
        let chunk = open.session.catalog.sr()?.chunk;
        let mut flattening = Flattening::new(id, vdi.virtual_size, chunk, &data);
        let mut may_grow = true;
        loop {
            let Some(vdi) = open.session.catalog.vdi(vdi.uuid)? else {
                return Err(Error::refused(format!("VDI '{}' was destroyed meanwhile", vdi.name)));
            };
            if vdi.thin_id() != Some(flattening.id()) {
                return Err(Error::refused(format!(
                    "VDI '{}' was given another content meanwhile: flatten it again",
                    vdi.name
                )));
            }
            self.world.drive_vdi(self.mode, &mut open.session, vdi.uuid, &Goal::Shown)?;
            let slice = Slice { until: Instant::now() + SLICE, stop: work.cancelled };
            self.world.flatten(&open.session, &vdi, &mut flattening, &slice)?;
            let (gone_through, total) = flattening.progress();
            (work.progress)(gone_through, total);
            let shortage = flattening.take_shortage();
            // What grows by itself grows for this, too; a pool that could not is tried again when there is no other way.
            if may_grow || shortage.is_some() {
                let before = done.len();
                let warnings = self.tend_open(&open.session, done);
                let grown = done.len() > before;
                may_grow = grown || warnings.is_empty();
                if let (Some(shortage), false) = (shortage, grown) {
                    return Err(shortage);
                }
            }
            if flattening.is_done() {
                return Ok((open, flattening.copied() > 0));
            }
            if (work.cancelled)() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!(
                        "interrupted: what was copied into VDI '{}' stays, and flattening it again goes on",
                        vdi.name
                    ),
                ));
            }
            open = self.let_others(open)?;
        }
    }

    /// Gives the SR to whoever waits for it, and takes it back.
    pub(super) fn let_others(&mut self, open: Open) -> Result<Open> {
        let sr = open.session.sr.uuid.to_string();
        drop(open);
        std::thread::sleep(PAUSE);
        self.open_sr(&sr)
    }

    /// Where a template that is open has something else than zeros.
    fn template_data(&mut self, session: &Session, template: Uuid) -> Result<Vec<Range<u64>>> {
        let record = session.catalog.vdi(template)?;
        if let Some(copy) = record.as_ref().and_then(Vdi::local_ready) {
            return Ok(copy.runs.iter().map(|run| run.start..run.start + run.len).collect());
        }
        let content = self.world.origins.content(template);
        Ok(content
            .map_err(|e| Error::failed(format!("cannot tell what template {template} holds")).because(e))?
            .data)
    }

    /// Lets a template go that nobody stands on.
    pub(super) fn release(&mut self, session: &mut Session, template: Uuid) -> Result<Vec<Done>> {
        self.world.drive_vdi(self.mode, session, template, &Goal::Released)
    }
}
