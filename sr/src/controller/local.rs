//! `vdi localise`: a template that is all in the cache is copied into the SR.

use super::work::SLICE;
use super::{Controller, Open, Report, Work};
use crate::Outcome;
use crate::engine::{Done, Filling, Mode, Slice};
use crate::error::{Error, ErrorKind, Result};
use crate::plan::{Goal, Step, layout, size_text};
use crate::record::Vdi;
use crate::view::VdiInfo;
use std::time::Instant;

impl Controller {
    /// Copies a template that is all local into a volume of the SR, reads the copy back, and lets the VDIs that descend
    /// from it read that from then on, those that are in use too. Neither the image's server nor ours is needed for it
    /// any more. What pins the image's version stays recorded.
    ///
    /// A crash or a stop before the copy is whole leaves nothing of it once the SR is recovered, or this is called again.
    ///
    /// # Errors
    /// `Refused` for a disk, for a template that is not all in the cache, without room in the volume group, and while
    /// somebody else does this; `Cancelled` if it was asked to stop; `Failed` if something cannot be read or written.
    pub fn vdi_localise(&mut self, sr: &str, template: &str, work: &mut Work<'_>) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let template = self.find_template(&open, template)?;
        let uuid = template.uuid;
        let Some(alone) = self.locks.try_work(uuid)? else {
            return Err(busy(&template));
        };
        let step = Step::FillLocal { template: uuid, name: template.name.clone() };
        let mut done = Vec::new();
        if template.local_ready().is_none() {
            if self.mode == Mode::DryRun {
                done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Shown)?);
                done.push((step, None));
                return self.vdi_report(&open.session, done, uuid);
            }
            let id = open.session.sr.uuid.to_string();
            open = match self.copy_template(&mut done, open, &template, work) {
                Ok(open) => open,
                Err(e) => {
                    self.abandon_copy(&id, &template);
                    return Err(e);
                }
            };
            done.push((step, Some(Outcome::Changed)));
        }
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Localised)?);
        if self.mode == Mode::Apply {
            alone.retire()?;
        }
        self.vdi_report(&open.session, done, uuid)
    }

    /// Has a template read from its location again, by those that use it now too, and removes its copy from the SR,
    /// whether that is still there or lost.
    ///
    /// # Errors
    /// `Refused` for a disk; `Failed` if VDIs stand on it and its location cannot be opened; then nothing has changed.
    pub fn vdi_localise_undo(&mut self, sr: &str, template: &str) -> Result<Report<VdiInfo>> {
        let mut open = self.open_sr(sr)?;
        let template = self.find_template(&open, template)?;
        let Some(alone) = self.locks.try_work(template.uuid)? else {
            return Err(busy(&template));
        };
        let goal = Goal::Delocalised;
        let done = self.world.drive_vdi(self.mode, &mut open.session, template.uuid, &goal)?;
        if self.mode == Mode::Apply {
            alone.retire()?;
        }
        self.vdi_report(&open.session, done, template.uuid)
    }

    /// Takes away a copy that is half made. The reason why it is half made is what its caller tells, so what goes wrong
    /// here is only logged; recovery does the same again.
    fn abandon_copy(&mut self, sr: &str, template: &Vdi) {
        let undone = self.open_sr(sr).and_then(|mut open| {
            let uuid = template.uuid;
            self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Delocalised)?;
            self.release(&mut open.session, uuid)
        });
        if let Err(e) = undone {
            tracing::warn!("template '{}': {e}", template.name);
        }
    }

    fn find_template(&mut self, open: &Open, text: &str) -> Result<Vdi> {
        let template = self.find_vdi(&open.session, text)?;
        if !template.is_template() {
            return Err(Error::refused(format!(
                "'{}' is a disk, and only templates are copied into an SR: 'smctl vdi flatten' makes a disk independent",
                template.name
            )));
        }
        Ok(template)
    }

    /// Makes the copy and fills it, in slices between which others have the SR.
    fn copy_template(
        &mut self,
        done: &mut Vec<Done>,
        mut open: Open,
        template: &Vdi,
        work: &mut Work<'_>,
    ) -> Result<Open> {
        let uuid = template.uuid;
        if template.local().is_some() {
            // Of an attempt that was cut short.
            done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Delocalised)?);
        }
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Shown)?);
        let content = self.world.origins.content(uuid);
        let content = content.map_err(|e| {
            Error::failed(format!("cannot tell what template '{}' holds", template.name)).because(e)
        })?;
        if content.local < content.stored {
            return Err(Error::refused(format!(
                "{} % of template '{}' are in the cache ({} of {}), and only one that is all there can be copied: \
                 'thinorigin warm' of its location brings the rest",
                u128::from(content.local) * 100 / u128::from(content.stored.max(1)),
                template.name,
                size_text(content.local),
                size_text(content.stored)
            )));
        }
        let mut filling = Filling::new(layout(&content.data, template.virtual_size));
        let goal = Goal::RoomMade(filling.copy().clone());
        done.extend(self.world.drive_vdi(self.mode, &mut open.session, uuid, &goal)?);
        loop {
            self.world.drive_vdi(self.mode, &mut open.session, uuid, &Goal::Shown)?;
            let slice = Slice { until: Instant::now() + SLICE, stop: work.cancelled };
            self.world.fill(&open.session, template, &mut filling, &slice)?;
            let (copied, total) = filling.progress();
            (work.progress)(copied, total);
            if filling.is_done() {
                return Ok(open);
            }
            if (work.cancelled)() {
                return Err(Error::new(
                    ErrorKind::Cancelled,
                    format!("interrupted: nothing of template '{}' was copied", template.name),
                ));
            }
            open = self.let_others(open)?;
            let now = open.session.catalog.vdi(uuid)?;
            if now.as_ref().and_then(Vdi::local) != Some(filling.copy()) {
                return Err(Error::refused(format!("template '{}' was changed meanwhile", template.name)));
            }
        }
    }
}

fn busy(template: &Vdi) -> Error {
    Error::refused(format!("template '{}' is being copied already", template.name))
}
