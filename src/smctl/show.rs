//! How `smctl` shows what it did and what there is.

use crate::error::Result;
use crate::export::Progress;
use crate::output;
use crate::size::Size;
use backends::Location;
use serde::Serialize;
use sr::{Changed, OriginInfo, PoolSizes, Report, SrInfo, StepState, VdiInfo, VolumeSizes};
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
    output::table(&header, srs.iter().map(row))?;
    let why = |sr: &SrInfo| sr.error.as_ref().map(|error| format!("SR '{}' is unreadable: {error}", sr.name));
    warn(&srs.iter().filter_map(why).collect::<Vec<_>>());
    Ok(())
}

/// One SR.
pub(super) fn sr(sr: &SrInfo, json: bool) -> Result<()> {
    #[derive(Serialize)]
    struct Shown {
        #[serde(flatten)]
        sr: SrInfo,
        #[serde(flatten)]
        sizes: PoolSizes,
    }
    let mut sr = sr.clone();
    sr.origins.iter_mut().for_each(|origin| origin.location = location(&origin.location));
    if json {
        return output::json(&Shown { sizes: (&sr).into(), sr });
    }
    let (origins, warnings) = (std::mem::take(&mut sr.origins), std::mem::take(&mut sr.warnings));
    fields(&Shown { sizes: (&sr).into(), sr })?;
    if !origins.is_empty() {
        let header = ["template", "device", "users", "answers", "local", "location"];
        output::table(&header, origins.iter().map(origin))?;
    }
    warnings.iter().try_for_each(|warning| output::line(&format!("warning: {warning}")))
}

/// The row of a template under attached VDIs.
fn origin(origin: &OriginInfo) -> Vec<String> {
    let answers = match (origin.answers, &origin.silent_since) {
        (None, _) => "not known".to_owned(),
        (Some(true), _) => "yes".to_owned(),
        (Some(false), Some(since)) => format!("not since {since}"),
        (Some(false), None) => "no".to_owned(),
    };
    vec![
        origin.name.clone(),
        origin.device.as_ref().map_or_else(|| "-".to_owned(), |device| device.display().to_string()),
        origin.users.to_string(),
        answers,
        origin.local_percent.map_or_else(|| "-".to_owned(), |percent| format!("{percent} %")),
        origin.location.clone(),
    ]
}

/// A list of VDIs.
pub(super) fn vdis(mut vdis: Vec<VdiInfo>, json: bool) -> Result<()> {
    vdis.iter_mut().for_each(redact);
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
pub(super) fn vdi(mut vdi: VdiInfo, local: Option<Progress>, json: bool) -> Result<()> {
    #[derive(Serialize)]
    struct Shown {
        #[serde(flatten)]
        vdi: VdiInfo,
        #[serde(flatten)]
        sizes: VolumeSizes,
        #[serde(skip_serializing_if = "Option::is_none")]
        local: Option<Progress>,
    }
    redact(&mut vdi);
    let shown = Shown { sizes: (&vdi).into(), vdi, local };
    if json {
        return output::json(&shown);
    }
    fields(&Shown { local: None, ..shown })?;
    local.map_or(Ok(()), |local| output::line(&format!("{:>20}  {} of its template", "local", local.words())))
}

/// Leaves the VDI's location as it may be shown: a query can be a secret.
fn redact(vdi: &mut VdiInfo) {
    vdi.location = vdi.location.as_deref().map(location);
}

/// A location as it may be shown.
pub(super) fn location(text: &str) -> String {
    text.parse::<Location>().map_or_else(|_| "?".into(), |location| location.to_string())
}

/// Every field of a record on a line of its own.
fn fields(record: &impl Serialize) -> Result<()> {
    let value = serde_json::to_value(record).unwrap_or_default();
    for (name, value) in value.as_object().into_iter().flatten() {
        let text = match value {
            serde_json::Value::Null => continue,
            serde_json::Value::Array(values) if values.is_empty() => continue,
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
