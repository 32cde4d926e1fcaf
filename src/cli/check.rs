//! `thinorigin check`.

use super::args::OneImage;
use crate::error::{Error, Result};
use crate::output;
use serde::Serialize;

#[derive(Serialize)]
struct Report {
    location: String,
    ok: bool,
    errors: Vec<String>,
    warnings: Vec<String>,
    data_bytes: u64,
    zero_bytes: u64,
}

/// Walks every table of every layer and reports what does not hold together.
pub(super) async fn run(args: OneImage, json: bool) -> Result<()> {
    let image = args.reading.open(&args.location).await?;
    let mut report = Report {
        location: image.location().to_string(),
        ok: true,
        errors: Vec::new(),
        warnings: image.layers().flat_map(|(_, layer)| layer.info().warnings.clone()).collect(),
        data_bytes: 0,
        zero_bytes: 0,
    };
    let mut at = 0;
    while at < image.virtual_size() {
        match image.extent(at, image.virtual_size() - at).await {
            Ok(extent) => {
                if let Err(error) = image.bounds(&extent) {
                    report.errors.push(error.to_string());
                }
                match extent.kind {
                    formats::Kind::Zero | formats::Kind::Unallocated => report.zero_bytes += extent.len,
                    _ => report.data_bytes += extent.len,
                }
                at += extent.len;
            }
            Err(error) => {
                report.errors.push(format!("at guest offset {at:#x}: {error}"));
                break;
            }
        }
    }
    image.settle().await?;
    report.ok = report.errors.is_empty();
    if json {
        output::json(&report)?;
    } else {
        for warning in &report.warnings {
            output::line(&format!("warning: {warning}"))?;
        }
        for error in &report.errors {
            output::line(&format!("error: {error}"))?;
        }
    }
    match report.errors.len() {
        0 if json => Ok(()),
        0 => output::line(&format!("{}: no errors", report.location)),
        1 => Err(Error::failed(format!("{}: 1 error", report.location))),
        count => Err(Error::failed(format!("{}: {count} errors", report.location))),
    }
}
