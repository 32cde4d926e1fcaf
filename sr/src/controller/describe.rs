//! What is told of SRs: which there are, and what one has.

use super::Controller;
use super::find::{FoundSr, srs_in};
use crate::dm::Device;
use crate::engine::Session;
use crate::error::{ErrorKind, Result};
use crate::lvm::Vg;
use crate::names::{self, Role};
use crate::origins::OriginHealth;
use crate::record::Vdi;
use crate::view::{OriginInfo, SrInfo};
use std::collections::BTreeSet;
use std::path::PathBuf;
use uuid::Uuid;

impl Controller {
    /// Every SR on this host, attached or not.
    ///
    /// # Errors
    /// LVM fails.
    pub fn sr_list(&mut self) -> Result<Vec<SrInfo>> {
        let mut infos = Vec::new();
        for found in self.scan()? {
            infos.push(self.describe(&found));
        }
        Ok(infos)
    }

    /// The SRs on a device or in a volume group; none if it holds none.
    ///
    /// # Errors
    /// LVM fails.
    pub fn sr_probe(&mut self, target: &str) -> Result<Vec<SrInfo>> {
        let path = std::path::Path::new(target);
        let mut infos = Vec::new();
        for found in self.scan()? {
            let on = |device: &PathBuf| {
                device == path || std::fs::canonicalize(path).is_ok_and(|it| it == *device)
            };
            if found.place.vg == target || found.place.devices.iter().any(on) {
                infos.push(self.describe(&found));
            }
        }
        Ok(infos)
    }

    /// One SR, attached or not.
    ///
    /// # Errors
    /// `NotFound`, or LVM fails.
    pub fn sr_info(&mut self, sr: &str) -> Result<SrInfo> {
        let found = self.find_sr(sr)?;
        Ok(self.describe(&found))
    }

    /// The same, of an SR whose group was just looked at.
    pub(super) fn info_in(&mut self, group: &Vg, uuid: Uuid) -> Result<SrInfo> {
        let attached = self.world.host.attached()?;
        match srs_in(group, &attached).into_iter().find(|sr| sr.place.uuid == uuid) {
            Some(found) => Ok(self.describe(&found)),
            None => self.sr_info(&uuid.to_string()),
        }
    }

    fn describe(&mut self, found: &FoundSr) -> SrInfo {
        let state = if found.attached {
            "attached"
        } else if found.whole {
            "detached"
        } else {
            "incomplete"
        };
        let mut info = SrInfo {
            uuid: found.place.uuid,
            name: found.name.clone(),
            state,
            vg: found.place.vg.clone(),
            pool: found.place.pool_lv.clone(),
            devices: found.place.devices.clone(),
            owns_vg: found.owns_vg,
            vg_size: Some(found.group.size),
            vg_free: Some(found.group.free),
            ..SrInfo::default()
        };
        if let Some(pool) = found.group.lv(&found.place.pool_lv) {
            info.pool_size = Some(pool.size);
            info.chunk_size = Some(pool.chunk);
            info.metadata_size = Some(pool.metadata);
        }
        if found.attached
            && let Err(e) = self.describe_attached(&mut info)
        {
            // Whatever is wrong with one SR is no reason to tell nothing of it, or of the others.
            if e.kind == ErrorKind::NotAttached {
                // It is being detached, or that was cut short.
                info.state = "detached";
                info.warnings.push(e.to_string());
            } else {
                info.state = "unreadable";
                info.error = Some(e.with_causes());
            }
        }
        info
    }

    fn describe_attached(&mut self, info: &mut SrInfo) -> Result<()> {
        let open = self.look_at_sr(&info.uuid.to_string())?;
        let (_, status) = self.world.pool_status(&open.session)?;
        let vdis = open.session.catalog.vdis()?;
        let (templates, disks): (Vec<_>, Vec<_>) = vdis.into_iter().partition(Vdi::is_template);
        info.virtual_allocation = Some(disks.iter().map(|vdi| vdi.virtual_size).sum());
        let usage = self.known_usage(&open.session);
        let physical = |vdi: &Vdi| match vdi.thin_id() {
            Some(id) => usage.get(&id).copied(),
            None => Some(vdi.virtual_size),
        };
        info.physical_allocation = disks.iter().map(physical).sum();
        info.templates = Some(templates.len() as u64);
        info.disks = Some(disks.len() as u64);
        info.pool_used = Some(status.data_used * info.chunk_size.unwrap_or_default());
        info.metadata_used = Some(status.metadata_used * 4096);
        let record = open.session.catalog.sr()?;
        info.pool_grows = Some(record.grows());
        info.warnings = super::growth::shortage(&status, &record);
        self.describe_origins(&open.session, &templates, info)?;
        drop(open.lock);
        Ok(())
    }

    fn describe_origins(&mut self, session: &Session, templates: &[Vdi], info: &mut SrInfo) -> Result<()> {
        let names = self.world.dm.names()?;
        let origins: BTreeSet<_> = names
            .iter()
            .filter_map(|name| match names::role(session.sr.uuid, name) {
                Some(Role::Origin(template)) => Some(template),
                _ => None,
            })
            .collect();
        if origins.is_empty() {
            return Ok(());
        }
        let open = match self.world.origins.attached() {
            Ok(open) => open,
            Err(e) => {
                info.warnings.push(format!("the state of the templates is not known: {e}"));
                Vec::new()
            }
        };
        let health = self.world.origins.health().unwrap_or_default();
        for template in templates.iter().filter(|vdi| origins.contains(&vdi.uuid)) {
            let name = names::origin_device(session.sr.uuid, template.uuid).name;
            let device: Option<Device> = self.world.dm.device(&name)?;
            let node = open.iter().find(|(uuid, _)| *uuid == template.uuid);
            // A copy of its own needs no server.
            let copied = template.local_ready().is_some();
            if node.is_none() && !copied {
                info.warnings.push(format!(
                    "nobody serves template '{}' ({}): what VDIs have not read of it gives errors",
                    template.name, template.uuid
                ));
            }
            let health = health.iter().find(|(uuid, _)| *uuid == template.uuid).map(|(_, health)| *health);
            let silent_since = health.and_then(|health| health.silent_since).map(rfc3339);
            if let (Some(OriginHealth { answers: false, .. }), Some(since)) = (health, &silent_since) {
                info.warnings.push(format!(
                    "template '{}' ({}) has not answered since {since}: VDIs read what is local, and errors elsewhere",
                    template.name, template.uuid
                ));
            }
            info.origins.push(OriginInfo {
                uuid: template.uuid,
                name: template.name.clone(),
                location: super::vdi::location(template).unwrap_or_default(),
                device: match node {
                    Some((_, device)) => Some(device.path.clone()),
                    None if copied => {
                        let lv = names::local_lv(session.sr.uuid, template.uuid);
                        Some(format!("/dev/{}/{lv}", session.sr.vg).into())
                    }
                    None => None,
                },
                users: device.map_or(0, |device| device.open_count),
                answers: health.map(|health| health.answers),
                silent_since,
                local_percent: match copied {
                    true => Some(100),
                    false => health.and_then(OriginHealth::local_percent),
                },
            });
        }
        Ok(())
    }
}

fn rfc3339(time: std::time::SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}
