//! What VDIs hold, and how two differ.

use super::Controller;
use crate::engine::Session;
use crate::error::{Error, Result};
use crate::extents::{Changed, Extent, clipped, compose};
use crate::record::{Body, Vdi};
use std::ops::Range;

impl Controller {
    /// What ranges of a VDI hold and which layer decides, from 0 to its end without gaps, adjacent equal ones as one: of
    /// a thin disk by whole blocks of the pool, and where it has none of its own, what its template's image says. Of an
    /// attached disk it is what was so at one moment.
    ///
    /// # Errors
    /// `NotFound`; `Failed` if the template's image cannot be opened, or is not the version that it was.
    pub fn vdi_map(&mut self, sr: &str, vdi: &str) -> Result<Vec<Extent>> {
        let open = self.look_at_sr(sr)?;
        let vdi = self.find_vdi(&open.session, vdi)?;
        let mapped = match vdi.body {
            Body::Thin { id } => self.world.mapped_ranges(&open.session, id)?,
            Body::Thick => return Ok(vec![Extent::own(0..vdi.virtual_size)]),
            Body::Template { .. } => Vec::new(),
        };
        let template = match vdi.origin {
            Some(origin) => Some(template_of(&open.session, origin)?),
            None => None,
        };
        // The rest asks a server, perhaps, and nobody need wait for that.
        drop(open);
        if vdi.is_template() {
            let extents = self.template_extents(&vdi)?;
            return Ok(extents);
        }
        let origin = match &template {
            Some(template) => self.template_extents(template)?,
            None => Vec::new(),
        };
        Ok(compose(vdi.virtual_size, &mapped, &origin))
    }

    fn template_extents(&mut self, template: &Vdi) -> Result<Vec<Extent>> {
        let Body::Template { location, identity, .. } = &template.body else {
            return Err(Error::failed(format!("VDI {} is not a template", template.uuid)));
        };
        if let Some(copy) = template.local_ready() {
            let runs: Vec<_> = copy.runs.iter().map(|run| run.start..run.start + run.len).collect();
            return Ok(compose(template.virtual_size, &runs, &[]));
        }
        self.world.origins.extents(location, identity).map_err(|e| {
            Error::failed(format!("template '{}' ({}) cannot be used: {e}", template.name, template.uuid))
        })
    }

    /// The ranges in which two VDIs of an SR may differ; everywhere else they are equal. They are whole blocks of the
    /// pool: a block counts as changed when it was written since the two had it in common, whatever was written, and
    /// when it was discarded. Beyond the end of the shorter one only what is written counts, and the rest is zeros. Of
    /// attached disks it is what was so at one moment.
    ///
    /// # Errors
    /// `NotFound`; `Refused` for what nothing is known of: preallocated disks, and VDIs that show different templates.
    pub fn vdi_diff(&mut self, sr: &str, a: &str, b: &str) -> Result<Vec<Changed>> {
        let open = self.look_at_sr(sr)?;
        let (a, b) = (self.find_vdi(&open.session, a)?, self.find_vdi(&open.session, b)?);
        let size = a.virtual_size.max(b.virtual_size);
        let ranges = self.differences(&open.session, &a, &b)?;
        let changed = |range: Range<u64>| Changed { start: range.start, length: range.end - range.start };
        Ok(clipped(&ranges, size).map(changed).collect())
    }

    fn differences(&mut self, session: &Session, a: &Vdi, b: &Vdi) -> Result<Vec<Range<u64>>> {
        if a.uuid == b.uuid {
            return Ok(Vec::new());
        }
        if let Some(thick) = [a, b].into_iter().find(|vdi| vdi.body == Body::Thick) {
            return Err(Error::refused(format!(
                "'{}' is preallocated, and of those nothing tells what was written",
                thick.name
            )));
        }
        // Where neither has anything of its own, both show what is under them, which must be the same.
        let under = |vdi: &Vdi| if vdi.is_template() { Some(vdi.uuid) } else { vdi.origin };
        if under(a) != under(b) {
            let words = |vdi: &Vdi| match under(vdi) {
                Some(template) => format!("'{}' shows template {template}", vdi.name),
                None => format!("'{}' shows none", vdi.name),
            };
            return Err(Error::refused(format!(
                "these have not the same template under them, so all of them may differ: {}, and {}",
                words(a),
                words(b)
            )));
        }
        match (a.thin_id(), b.thin_id()) {
            (Some(a), Some(b)) => self.world.changed_ranges(session, a, b),
            (Some(id), None) | (None, Some(id)) => self.world.mapped_ranges(session, id),
            // One template has one record.
            (None, None) => Ok(Vec::new()),
        }
    }
}

fn template_of(session: &Session, origin: uuid::Uuid) -> Result<Vdi> {
    let template = session.catalog.vdi(origin)?;
    template.ok_or_else(|| Error::failed(format!("the records lack template {origin}")))
}
