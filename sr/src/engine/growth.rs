//! Finding templates that do not answer, before a pool is suspended to grow.

use super::World;
use crate::dm::{SECTOR, Target};
use crate::error::Result;
use crate::names::{self, Role};
use std::time::Duration;
use uuid::Uuid;

/// How long a template may take to answer before growth is put off.
const ANSWER: Duration = Duration::from_secs(2);

impl World {
    /// The templates under VDIs of `sr` that do not answer in time.
    pub(super) fn hung_origins(&mut self, sr: Uuid) -> Result<Vec<Uuid>> {
        let mut devices = Vec::new();
        let mut templates = Vec::new();
        for name in self.dm.names()? {
            let Some(Role::Origin(template)) = names::role(sr, &name) else { continue };
            let Some(device) = self.dm.device(&name)? else { continue };
            // What a padded device shows beyond its template is zeros, which tell nothing of the template's health.
            let Some(table) = &device.table else { continue };
            let mut start = 0;
            let mut data = None;
            for segment in &table.0 {
                if matches!(segment.target, Target::Linear { .. }) {
                    data.get_or_insert(start..start + segment.sectors * SECTOR);
                }
                start += segment.sectors * SECTOR;
            }
            if let Some(data) = data {
                devices.push((device.number, data));
                templates.push(template);
            }
        }
        if devices.is_empty() {
            return Ok(templates);
        }
        let answers = self.host.answer(&devices, ANSWER)?;
        Ok(templates.into_iter().zip(answers).filter(|(_, answers)| !answers).map(|(uuid, _)| uuid).collect())
    }
}
