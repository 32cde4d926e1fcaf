//! How `smctl` shows what it did and what there is.

use crate::error::Result;
use crate::export::Progress;
use crate::output;
use crate::size::Size;
use backends::Location;
use serde::Serialize;
use sr::{Changed, Report, SrInfo, StepState, VdiInfo};
use std::collections::HashMap;
use uuid::Uuid;

/// A new SR or VDI: its UUID, and in JSON its record too. In a dry run, the steps.
pub(super) fn made<T: Serialize>(report: Report<T>, uuid: fn(&T) -> Uuid, json: bool) -> Result<()> {
    #[derive(Serialize)]
    struct Made<T> {
        uuid: Uuid,
        #[serde(flatten)]
        report: Report<T>,
    }
    match &report.record {
        None => done(&report, json),
        Some(record) => {
            warn(&report.warnings);
            let uuid = uuid(record);
            if json { output::json(&Made { uuid, report }) } else { output::line(&uuid.to_string()) }
        }
    }
}

/// The device of a VDI that was attached. In a dry run, the steps.
pub(super) fn attached(report: &Report<VdiInfo>, json: bool) -> Result<()> {
    match report.record.as_ref().and_then(|record| record.device.as_ref()) {
        Some(device) if !json && !planned(report) => {
            warn(&report.warnings);
            output::line(&device.display().to_string())
        }
        _ => done(report, json),
    }
}

/// The steps of a change, if they are asked for: in JSON, or in a dry run.
pub(super) fn done<T: Serialize>(report: &Report<T>, json: bool) -> Result<()> {
    warn(&report.warnings);
    if json {
        return output::json(report);
    }
    if planned(report) {
        for step in &report.steps {
            output::line(&step.step)?;
        }
    }
    Ok(())
}

/// What somebody should look after, on stderr.
pub(super) fn warn(warnings: &[String]) {
    for warning in warnings {
        output::note("smctl", &format!("warning: {warning}"));
    }
}

fn planned<T>(report: &Report<T>) -> bool {
    report.steps.iter().any(|step| step.state == StepState::Planned)
}

/// A list of SRs.
pub(super) fn srs(srs: &[SrInfo], json: bool) -> Result<()> {
    if json {
        return output::json(&srs);
    }
    let row = |sr: &SrInfo| {
        let mut row = vec![sr.uuid.to_string(), sr.name.clone(), sr.state.to_owned(), sr.vg.clone()];
        row.extend([size(sr.pool_size), size(sr.pool_used), count(sr.templates), count(sr.disks)]);
        row
    };
    let header = ["uuid", "name", "state", "vg", "pool", "used", "templates", "disks"];
    output::table(&header, srs.iter().map(row))
}

/// One SR.
pub(super) fn sr(sr: &SrInfo, json: bool) -> Result<()> {
    if json { output::json(sr) } else { fields(sr) }
}

/// A list of VDIs.
pub(super) fn vdis(vdis: &[VdiInfo], json: bool) -> Result<()> {
    let vdis: Vec<_> = vdis.iter().map(redacted).collect();
    if json {
        return output::json(&vdis);
    }
    let names: HashMap<Uuid, &str> = vdis.iter().map(|vdi| (vdi.uuid, vdi.name.as_str())).collect();
    let row = |vdi: &VdiInfo| {
        let name_of = |uuid: Uuid| names.get(&uuid).map_or_else(|| uuid.to_string(), |&name| name.to_owned());
        let what = match (&vdi.location, &vdi.device) {
            (Some(location), _) => location.clone(),
            (None, Some(device)) => device.display().to_string(),
            _ => "-".to_owned(),
        };
        vec![
            vdi.uuid.to_string(),
            vdi.name.clone(),
            vdi.kind.to_owned(),
            Size(vdi.virtual_size).to_string(),
            size(vdi.physical_utilisation),
            vdi.from_template_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
            vdi.parent.map_or_else(|| "-".to_owned(), name_of),
            what,
        ]
    };
    let header = ["uuid", "name", "type", "size", "used", "from template", "parent", "location or device"];
    output::table(&header, vdis.iter().map(row))
}

/// The ranges in which two VDIs may differ.
pub(super) fn changed(ranges: &[Changed], json: bool) -> Result<()> {
    if json {
        return output::json(&ranges);
    }
    let row = |range: &Changed| vec![format!("{:#x}", range.start), format!("{:#x}", range.length)];
    output::table(&["start", "length"], ranges.iter().map(row))
}

/// One VDI, and how much of its template is local.
pub(super) fn vdi(vdi: &VdiInfo, local: Option<Progress>, json: bool) -> Result<()> {
    #[derive(Serialize)]
    struct Shown {
        #[serde(flatten)]
        vdi: VdiInfo,
        #[serde(skip_serializing_if = "Option::is_none")]
        local: Option<Progress>,
    }
    let vdi = redacted(vdi);
    if json {
        return output::json(&Shown { vdi, local });
    }
    fields(&vdi)?;
    local.map_or(Ok(()), |local| output::line(&format!("{:>20}  {} of its template", "local", local.words())))
}

/// The VDI with its location as it may be shown: a query can be a secret.
fn redacted(vdi: &VdiInfo) -> VdiInfo {
    let shown =
        |location: &String| location.parse::<Location>().map_or_else(|_| "?".into(), |l| l.to_string());
    VdiInfo { location: vdi.location.as_ref().map(shown), ..vdi.clone() }
}

/// Every field of a record on a line of its own.
fn fields(record: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(record).unwrap_or_default();
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        output::line(&format!("{name:>20}  {text}"))?;
    }
    Ok(())
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| "-".to_owned(), |bytes| Size(bytes).to_string())
}

fn count(count: Option<u64>) -> String {
    count.map_or_else(|| "-".to_owned(), |count| count.to_string())
}
